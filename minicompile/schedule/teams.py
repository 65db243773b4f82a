"""Teams: kernels that need nothing of each other run as one parallel region, its work split evenly.

Takes a plan's steps in order, gives them in an order in which such kernels are neighbours, and where these
teams are. Serves `fuse`. The many parameters of an optimizer step are what it is for: each is a kernel too
small for several threads, all of them are not.
"""
from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from ..loops.ir import Buffer, Extern, Loops
from .deps import error_order
from .liveness import touched
from .nest import Kernel
from .tiling import FORK_NS


def why_not_team(step: Kernel | Extern, buffers: Mapping[str, Buffer]) -> str | None:
    """Why a step runs alone, or None."""
    if isinstance(step, Extern) or step.core is not None:
        return "a library kernel shares out its own work"
    if any(buffers[n].kind == "temp" for n in touched(step)[1] if n not in step.local):
        return "temporary memory is planned step by step"
    return None


def teams(steps: Sequence[Kernel | Extern], buffers: Mapping[str, Buffer],
          whole: Loops) -> tuple[list[Kernel | Extern], tuple[range, ...]]:
    """(the steps, each at the earliest team whose members it needs nothing of; the ranges that are teams).

    What moves stores only to memory that is the caller's, so no temporary lives longer."""
    places: list[list[Kernel | Extern]] = []
    open_: list[int] = []          # places that kernels may join
    stored: dict[str, int] = {}    # buffer → the last place that stores to it, or touches it
    used: dict[str, int] = {}
    for step in steps:
        reads, writes = touched(step)
        if whole.written:
            before, behind = error_order(step, writes, whole)
            reads, writes = reads + before, writes + behind
        after = 1 + max((*(stored.get(n, -1) for n in reads), *(used.get(n, -1) for n in writes)), default=-1)
        if why_not_team(step, buffers):
            at = len(places)
        else:
            k = bisect_left(open_, after)
            if k == len(open_):
                open_.append(len(places))
            at = open_[k]
        if at == len(places):
            places.append([])
        places[at].append(step)
        stored.update((n, max(at, stored.get(n, -1))) for n in writes)
        used.update((n, max(at, used.get(n, -1))) for n in (*reads, *writes))
    found, first = [], 0
    for members in places:
        if len(members) > 1 and sum(m.tiling.work for m in members if isinstance(m, Kernel)) >= FORK_NS:
            found.append(range(first, first + len(members)))
        first += len(members)
    return [step for members in places for step in members], tuple(found)
