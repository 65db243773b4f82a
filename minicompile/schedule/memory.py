"""Memory: when each buffer lives, where it lies in the arena, and when kernels' own allocations are let go.

Takes kernels in order, gives the `Plan`. Best fit over a list of free blocks, 64-byte aligned; a result may take the
place of an operand that dies in the same kernel if every element is read where it is written.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ..loops.ir import Buffer, Extern, Loops
from .deps import reads_of, writes_of
from .plan import Kernel, Plan, Refused

ALIGN = 64


def touched(step: Kernel | Extern) -> tuple[list[str], list[str]]:
    """(buffers read, buffers written) by a step, in order."""
    if isinstance(step, Extern):
        return reads_of(step), writes_of(step)
    reads = dict.fromkeys(n for loop in step.loops for n in reads_of(loop))
    writes = dict.fromkeys(n for loop in step.loops for n in writes_of(loop))
    return list(reads), list(writes)


def lifetimes(steps: Sequence[Kernel | Extern], shown: set[str]) -> dict[str, tuple[int, int]]:
    """Buffer -> (first step that touches it, last one); what the caller gets lives on."""
    spans: dict[str, tuple[int, int]] = {}
    for i, step in enumerate(steps):
        for names in touched(step):
            for n in names:
                spans[n] = (spans.get(n, (i, i))[0], i)
    return {n: (a, len(steps) if n in shown else b) for n, (a, b) in spans.items()}


def may_replace(kernel: Kernel, old: str, new: str) -> bool:
    """Whether `new` may be stored over `old` in this kernel: every load of old is at the index of the one store of
    new, in one stage, so no element is overwritten before its last use."""
    stores = [(s, loop.out.index) for s, stage in enumerate(kernel.stages) for loop in stage.loops
              if loop.out.buffer == new]
    loads = [(s, x.index, x.indirect, loop.combine) for s, stage in enumerate(kernel.stages) for loop in stage.loops
             for x in loop.loads() if x.buffer == old]
    if len(stores) != 1 or any(loop.out.buffer == old for loop in kernel.loops):
        return False
    stage, index = stores[0]
    last = [loop.out.buffer for loop in kernel.stages[stage].loops][-1] == new
    return last and all(s == stage and i == index and not indirect and not combine for s, i, indirect, combine in loads)


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
                refused: tuple[Refused, ...] = ()) -> Plan:
    """The Plan: arena offsets, frees, and only the buffers still in use."""
    local = {n for s in steps if isinstance(s, Kernel) for n in s.local}
    shown = {r.buffer for r in loops.results}
    spans = lifetimes(steps, shown)
    placed = {n for n in spans if buffers[n].kind == "temp" and n not in local}
    size = {n: -(-max(buffers[n].spec.storage_numel * buffers[n].spec.dtype.itemsize, 1) // ALIGN) * ALIGN for n in placed}
    arena, offsets = _Arena(), {}
    ends: dict[int, list[str]] = defaultdict(list)
    for n in placed:
        ends[spans[n][1]].append(n)
    for i, step in enumerate(steps):
        dying = [n for n in ends[i] if n in offsets]
        taken = set()
        for n in (n for n in touched(step)[1] if n in placed and n not in offsets):
            heir = next((d for d in dying if d not in taken and size[d] == size[n] and isinstance(step, Kernel)
                         and may_replace(step, d, n)), None)
            if heir is not None:
                taken.add(heir)
                offsets[n] = offsets[heir]
            else:
                offsets[n] = arena.take(size[n])
        for n in ends[i]:
            if n not in taken and n in offsets:
                arena.give(offsets[n], offsets[n] + size[n])
    frees: dict[int, list[str]] = defaultdict(list)
    for n, (_, last) in spans.items():
        if buffers[n].kind == "extern" and n not in shown:
            frees[last].append(n)
    kept = {n: b for n, b in buffers.items() if n in spans or b.kind in ("input", "output", "constant") or n in shown}
    return Plan(loops, tuple(steps), kept, offsets, arena.top, {i: tuple(v) for i, v in frees.items()}, refused)
