"""Liveness: from which step to which a buffer is in use, and whether one may take the place of another.

Takes steps in order, serves `memory` (which places buffers) and `check` (which verifies that).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from ..ir.sym import hint, same
from ..loops.ir import Extern, Loops
from .deps import reads_of, writes_of
from .nest import Kernel

if TYPE_CHECKING:
    from .plan import Plan

ALIGN = 64


def touched(step: Kernel | Extern) -> tuple[list[str], list[str]]:
    """(buffers read, buffers written) by a step, in order."""
    if isinstance(step, Extern):
        return reads_of(step), writes_of(step)
    reads = dict.fromkeys(reads_of(step.core) if step.core else ())
    reads.update(dict.fromkeys(n for loop in step.loops for n in reads_of(loop)))
    writes = dict.fromkeys(n for loop in step.loops for n in writes_of(loop))
    return list(reads), list(writes)


Spans = dict[str, tuple[int, int]]


def lifetimes(steps: Sequence[Kernel | Extern], shown: set[str], teams: Sequence[range] = ()) -> Spans:
    """Buffer -> (first step that touches it, last one); what the caller gets lives on. The steps of a team
    run at the same time."""
    when = {i: (t.start, t.stop - 1) for t in teams for i in t}
    spans: Spans = {}
    for i, step in enumerate(steps):
        start, end = when.get(i, (i, i))
        for names in touched(step):
            for n in names:
                spans[n] = (spans.get(n, (start, i))[0], end)
    return {n: (a, len(steps) if n in shown else b) for n, (a, b) in spans.items()}


def owned(loops: Loops) -> frozenset[str]:
    """The inputs that are the graph's to let go of, or to write to, after their last use."""
    return frozenset(loops.inputs[i] for i in loops.consumed)


def peak_bytes(plan: Plan) -> int:
    """The most memory that a call of the plan needs at once, without inputs that are not its own: the arena,
    results from their first use on, the rest until it is let go of."""
    spans = lifetimes(plan.steps, {r.buffer for r in plan.loops.results}, plan.teams)
    gone = {n: i for i, names in plan.frees.items() for n in names}
    change = [0] * (len(plan.steps) + 2)
    own = owned(plan.loops)
    for n, (first, last) in spans.items():
        b = plan.buffers[n]
        if b.kind in ("output", "extern") or n in own:
            first = min([first, *(spans[g][0] for g, host in plan.hosts.items() if host == n)])
            change[0 if n in own else first] += hint(b.spec.nbytes)
            change[gone.get(n, len(plan.steps)) + 1] -= hint(b.spec.nbytes)
    return hint(plan.arena_bytes) + max(accumulate(change))


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
