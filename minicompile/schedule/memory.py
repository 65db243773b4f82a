"""Memory: when each buffer lives, where it lies in the arena, and when kernels' own allocations are let go.

Takes kernels in order, gives the `Plan`. Best fit over a list of free blocks, 64-byte aligned; a result may
take the place of an operand that dies in the same kernel if every element is read where it is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ..config import config
from ..loops.ir import Buffer, Extern, Loops
from .liveness import ALIGN, lifetimes, may_replace, touched
from .nest import Kernel, Refused
from .plan import Plan


class _Arena:
    """Free blocks as [start, end), and the high-water mark."""

    def __init__(self) -> None:
        self.free: list[tuple[int, int]] = []
        self.top = 0

    def take(self, size: int) -> int:
        """The start of the smallest free block that holds `size` bytes; else grows at the end."""
        fitting = [b for b in self.free if b[1] - b[0] >= size]
        if fitting:
            start, end = min(fitting, key=lambda b: (b[1] - b[0], b[0]))
            self.free.remove((start, end))
        elif self.free and self.free[-1][1] == self.top:
            start, end = self.free.pop()
            self.top = end = start + size
        else:
            start, end = self.top, self.top + size
            self.top = end
        if start + size < end:
            self.give(start + size, end)
        return start

    def give(self, start: int, end: int) -> None:
        """Returns a block, joining it with its neighbours."""
        blocks = sorted([*self.free, (start, end)])
        self.free = [blocks[0]]
        for a, b in blocks[1:]:
            if a == self.free[-1][1]:
                self.free[-1] = (self.free[-1][0], b)
            else:
                self.free.append((a, b))


def plan_memory(loops: Loops, steps: Sequence[Kernel | Extern], buffers: dict[str, Buffer],
                refused: tuple[Refused, ...] = (), teams: tuple[range, ...] = ()) -> Plan:
    """The Plan: arena offsets, frees, and only the buffers still in use."""
    local = {n for s in steps if isinstance(s, Kernel) for n in s.local}
    shown = {r.buffer for r in loops.results}
    spans = lifetimes(steps, shown)
    placed = {n for n in spans if buffers[n].kind == "temp" and n not in local}
    size = {n: -(-max(buffers[n].spec.storage_numel * buffers[n].spec.dtype.itemsize, 1) // ALIGN) * ALIGN
            for n in placed}
    arena, offsets, share = _Arena(), {}, "memory" not in config.disable_passes
    ends: dict[int, list[str]] = defaultdict(list)
    for n in placed:
        ends[spans[n][1]].append(n)
    for i, step in enumerate(steps):
        dying = [n for n in ends[i] if n in offsets and share]
        taken = set()
        for n in (n for n in touched(step)[1] if n in placed and n not in offsets):
            heir = next((d for d in dying if d not in taken and size[d] == size[n]
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
