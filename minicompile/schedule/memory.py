"""Memory: when each buffer lives, where it lies in the arena, and when kernels' own allocations are let go.

Takes kernels in order, gives the `Plan`. Best fit over a list of free blocks, 64-byte aligned; a result may
take the place of an operand that dies in the same kernel if every element is read where it is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ..config import config
from ..ir.forms import less
from ..ir.spec import TensorSpec
from ..ir.sym import Sym, hint, same
from ..loops.ir import Buffer, Extern, Loops
from .liveness import ALIGN, lifetimes, may_replace, touched
from .nest import Kernel, Refused
from .plan import Plan


class _Arena:
    """Free blocks as [start, end), and the high-water mark."""

    def __init__(self) -> None:
        self.free: list[tuple[Sym | int, Sym | int]] = []
        self.top: Sym | int = 0

    def take(self, size: Sym | int) -> Sym | int:
        """The start of the smallest free block that holds `size` bytes for sure; else grows at the end."""
        fitting = [b for b in self.free if less(b[1] - b[0], size) is False]
        last = self.free[-1] if self.free else (0, -1)
        if fitting:
            block = min(fitting, key=lambda b: (hint(b[1] - b[0]), hint(b[0])))
            start, end = block
            self.free = [b for b in self.free if b is not block]
        elif same(last[1], self.top) and less(size, last[1] - last[0]) is False:
            start, _ = self.free.pop()
            self.top = end = start + size
        else:
            start, end = self.top, self.top + size
            self.top = end
        if not same(start + size, end):
            self.give(start + size, end)
        return start

    def give(self, start: Sym | int, end: Sym | int) -> None:
        """Returns a block, joining it with its neighbours."""
        blocks = sorted([*self.free, (start, end)], key=lambda b: (hint(b[0]), hint(b[1])))
        self.free = [blocks[0]]
        for a, b in blocks[1:]:
            if same(a, self.free[-1][1]):
                self.free[-1] = (self.free[-1][0], b)
            else:
                self.free.append((a, b))


def _room(spec: TensorSpec) -> Sym | int:
    """Bytes that a buffer takes, aligned."""
    used = spec.storage_numel * spec.dtype.itemsize
    used = max(used, 1) if isinstance(used, int) else used
    return (used + (ALIGN - 1)) // ALIGN * ALIGN


def plan_memory(loops: Loops, steps: Sequence[Kernel | Extern], buffers: dict[str, Buffer],
                refused: tuple[Refused, ...] = (), teams: tuple[range, ...] = ()) -> Plan:
    """The Plan: arena offsets, frees, and only the buffers still in use."""
    local = {n for s in steps if isinstance(s, Kernel) for n in s.local}
    shown = {r.buffer for r in loops.results}
    spans = lifetimes(steps, shown)
    placed = {n for n in spans if buffers[n].kind == "temp" and n not in local}
    size = {n: _room(buffers[n].spec) for n in placed}
    arena, offsets, share = _Arena(), {}, "memory" not in config.disable_passes
    ends: dict[int, list[str]] = defaultdict(list)
    for n in placed:
        ends[spans[n][1]].append(n)
    for i, step in enumerate(steps):
        dying = [n for n in ends[i] if n in offsets and share]
        taken = set()
        for n in (n for n in touched(step)[1] if n in placed and n not in offsets):
            heir = next((d for d in dying if d not in taken and same(size[d], size[n])
                         and buffers[d].spec.dtype.itemsize == buffers[n].spec.dtype.itemsize
                         and isinstance(step, Kernel) and may_replace(step, d, n)), None)
            if heir is not None:
                taken.add(heir)
                offsets[n] = offsets[heir]
            else:
                offsets[n] = arena.take(size[n])
        for n in ends[i]:
            if n not in taken and n in offsets and share:
                arena.give(offsets[n], offsets[n] + size[n])
    frees: dict[int, list[str]] = defaultdict(list)
    for n, (_, last) in spans.items():
        if buffers[n].kind == "extern" and n not in shown:
            frees[last].append(n)
    kept = {n: b for n, b in buffers.items() if n in spans or b.kind in ("input", "output", "constant")
            or n in shown}
    return Plan(loops, tuple(steps), kept, offsets, arena.top, {i: tuple(v) for i, v in frees.items()},
                refused, teams)
