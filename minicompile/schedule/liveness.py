"""Liveness: from which step to which a buffer is in use, and whether one may take the place of another.

Takes steps in order, serves `memory` (which places buffers) and `check` (which verifies that).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.sym import same
from ..loops.ir import Extern
from .deps import reads_of, writes_of
from .nest import Kernel

ALIGN = 64


def touched(step: Kernel | Extern) -> tuple[list[str], list[str]]:
    """(buffers read, buffers written) by a step, in order."""
    if isinstance(step, Extern):
        return reads_of(step), writes_of(step)
    reads = dict.fromkeys(reads_of(step.core) if step.core else ())
    reads.update(dict.fromkeys(n for loop in step.loops for n in reads_of(loop)))
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
    """Whether `new` may be stored over `old` in this kernel: every load of old is at the index of the one
    store of new, in one stage, so no element is overwritten before its last use."""
    stores = [(s, loop.out.index) for s, stage in enumerate(kernel.stages) for loop in stage.loops
              if loop.out.buffer == new]
    loads = [(s, x.index, x.indirect, loop.combine) for s, stage in enumerate(kernel.stages)
             for loop in stage.loops for x in loop.loads() if x.buffer == old]
    if kernel.core is not None and old in reads_of(kernel.core):
        return False
    if len(stores) != 1 or any(loop.out.buffer == old for loop in kernel.loops):
        return False
    stage, index = stores[0]
    last = [loop.out.buffer for loop in kernel.stages[stage].loops][-1] == new
    return last and all(s == stage and same(i, index) and not indirect and not combine
                        for s, i, indirect, combine in loads)
