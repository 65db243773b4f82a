"""Legality inside a kernel: in which stage a loop may run, given what it reads and overwrites at its own
point.

Takes the parts of a group, serves `fuse` (to place them) and `check` (to verify a kernel's stages).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ..ir.sym import Var, same
from ..loops.nest import Axis
from ..loops.val import Load
from .space import Group, Part, row_part, run_of, within


class Placing:
    """What the parts of a group placed so far store and load; gives the first stage that the next part may
    have."""

    def __init__(self, par: Iterable[Axis]):
        self.par = frozenset(a.var for a in par)
        self.written: dict[str, list[tuple[Part, int]]] = defaultdict(list)
        self.read: dict[str, list[tuple[Load, Part, int]]] = defaultdict(list)

    def first_stage(self, p: Part) -> int | str:
        """The earliest stage for p, or why one row cannot be computed without others."""
        needs: list[int | str] = [_after_other(w, s, p, self.par) for w, s in self.written[p.loop.out.buffer]]
        for x in p.loop.loads():
            if len(self.written[x.buffer]) > 1:
                return f"{p.loop.name} reads {x.buffer}, which several loops fill"
            needs += [_after_store(w, s, p, x, self.par) for w, s in self.written[x.buffer]]
        needs += [_after_load(r, s, p, x, self.par) for x, r, s in self.read[p.loop.out.buffer]]
        refused = next((n for n in needs if isinstance(n, str)), None)
        return refused or max([0, *(n for n in needs if isinstance(n, int))])

    def put(self, p: Part, stage: int) -> None:
        self.written[p.loop.out.buffer].append((p, stage))
        for x in p.loop.loads():
            self.read[x.buffer].append((x, p, stage))


def place(group: Group) -> list[int] | str:
    """The stage of each part: as early as what it reads and overwrites allows. Or why one row cannot be
    computed without others."""
    placing = Placing(group.par)
    stages: list[tuple] = []  # inner axes of each stage
    result: list[int] = []
    for p in group.parts:
        lowest = placing.first_stage(p)
        if isinstance(lowest, str):
            return lowest
        stage = next((k for k in range(lowest, len(stages)) if stages[k] == p.inner), len(stages))
        if stage == len(stages):
            stages.append(p.inner)
        result.append(stage)
        placing.put(p, stage)
    return result


def _after_other(w: Part, s: int, p: Part, par: frozenset[Var]) -> int | str:
    """The first stage in which p may store to the buffer that part w stores to in stage s: its store is the
    later one, also where a row of p's stores to another row of w's."""
    if same(w.loop.out.index, p.loop.out.index) and w.loop.combine is None and w.inner == p.inner:
        return s
    mine, theirs = row_part(p.loop.out.index, par), row_part(w.loop.out.index, par)
    if mine is None or theirs is None or not same(mine[0], theirs[0]):
        return f"{p.loop.name} stores to other rows of {p.loop.out.buffer}"
    return s + 1


def _after_store(w: Part, s: int, p: Part, x: Load, par: frozenset[Var]) -> int | str:
    """The first stage in which p may load x, which part w stores in stage s."""
    same_point = same(x.index, w.loop.out.index) and not x.indirect and x.mask is None
    if same_point and w.loop.combine is None and w.inner == p.inner:
        return s
    mine, theirs = row_part(w.loop.out.index, par), row_part(x.index, par)
    if mine is None or theirs is None or not same(mine[0], theirs[0]):
        return f"{p.loop.name} reads {x.buffer} of other rows"
    run = run_of(mine[1], w.inner)
    if same_point and (w.inner == p.inner or run is not None):
        return s + 1
    if run is None or not within(theirs[1], run):
        return f"{p.loop.name} reads {x.buffer} of other rows"
    return s + 1


def _after_load(reader: Part, s: int, p: Part, x: Load, par: frozenset[Var]) -> int | str:
    """The first stage in which p may overwrite what `reader` loads as x in stage s."""
    if (same(x.index, p.loop.out.index) and not x.indirect and reader.inner == p.inner
        and p.loop.combine is None):
        return s
    mine, theirs = row_part(p.loop.out.index, par), row_part(x.index, par)
    run = run_of(mine[1], p.inner) if mine else None
    if (mine is None or theirs is None or not same(mine[0], theirs[0]) or run is None
        or not within(theirs[1], run)):
        return f"{p.loop.name} overwrites {x.buffer}, which other rows read"
    return s + 1
