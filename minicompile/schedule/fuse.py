"""Fusion: loops into kernels, most bytes saved first.

Takes `Loops`, gives the `Plan` (with schedule.memory and schedule.tiling). Legality and profit are pure
functions of two groups: `fuse(a, b)` gives the group or the reason why not, `gain(a, b)` the bytes of
memory traffic it saves. Refused pairs keep both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

import torch

from ..config import config
from ..ir.sym import hint, same
from ..loops.ir import Buffer, Extern, Loop, Loops
from .cores import core_group, round_on_the_way, why_not_core
from .deps import reads_of, step_dependencies, writes_of
from .kernel import Cyclic, finish, stages_of
from .legal import place
from .memory import plan_memory
from .nest import Kernel, Refused
from .plan import Plan
from .space import Group, align, common_inner, single, total
from .teams import teams

SCRATCH = 256 * 1024  # bytes of row scratch per thread: what half of a usual second-level cache holds
FEW_ROWS = 8  # a kernel with fewer rows cannot occupy the cores
BIG_ROW = 16 * 1024  # elements per row that are worth several cores
MOST_PARTS = 48


def schedule(loops: Loops, cores: Collection[torch.dtype] = (), lend: bool = False) -> Plan:
    """Fuses, places memory, and orders the kernels of `loops`.

    cores    element types whose matrix products and convolutions become kernels with an epilogue (see
             schedule.cores)
    lend     see schedule.memory"""
    cores = () if "cores" in config.disable_passes else cores
    loops = round_on_the_way(loops) if torch.bfloat16 in cores else loops
    work = _Fusion(loops, dict(loops.buffers), cores)
    work.run()
    steps, buffers = work.finished()
    steps, together = teams(steps, buffers, loops)
    return plan_memory(loops, steps, buffers, tuple(work.refused.values()), together, lend)


# ---- decisions ----


def gain(a: Group, b: Group, buffers: dict[str, Buffer], kept: frozenset[str] = frozenset()) -> int:
    """Bytes of memory traffic that one kernel saves over two: a value passed on is neither stored (unless
    it is among `kept`, which others need) nor loaded, and inputs are read once instead of twice."""
    saved = 0
    for name in a.reads & b.reads:
        saved += hint(buffers[name].spec.nbytes)
    for name in (a.writes & b.reads) | (b.writes & a.reads):
        stays = name in kept or buffers[name].kind != "temp"
        saved += hint(buffers[name].spec.nbytes) * (1 if stays else 2)
    return saved


def why_not_fuse(a: Group, b: Group, buffers: dict[str, Buffer]) -> Refused | None:
    """Why a and b (a before b in the program) don't become one kernel, or None."""
    result = fuse(a, b, buffers)
    return result if isinstance(result, Refused) else None


def fuse(a: Group, b: Group, buffers: dict[str, Buffer]) -> Group | Refused:
    """The group of both, or the reason against it."""

    def no(reason: str) -> Refused:
        return Refused(a.name, b.name, reason, gain(a, b, buffers))

    if any(p.loop.is_ordered for p in (*a.parts, *b.parts)):
        return no("scatters run alone, in order")
    if len(a.parts) + len(b.parts) > MOST_PARTS:
        return no(f"more than {MOST_PARTS} loops in one kernel")
    if any(same(n, 0) for n in (a.rows, b.rows, *(total(p.inner) for p in (*a.parts, *b.parts)))):
        return no("one of them has nothing to do")
    if not same(a.rows, b.rows) and a.flat and b.flat and not a.writes & b.reads:
        return no("iteration spaces differ, and neither reads the other's result")
    reason = _unprofitable(a, b)
    if reason:
        return no(reason)
    if a.core or b.core:
        reason = _no_epilogue(a, b)
        if reason:
            return no(reason)
    aligned = align(a, b)
    if isinstance(aligned, str):
        return no(aligned)
    parts = sorted((*aligned[0].parts, *aligned[1].parts), key=lambda p: p.order)
    group = Group(aligned[0].par, tuple(common_inner(parts)), a.core or b.core)
    placed = place(group)
    if isinstance(placed, str):
        return no(placed)
    if group.core and max(placed, default=0) > 0:
        return no("an epilogue is one stage")
    scratch = scratch_bytes(group, placed, buffers)
    if scratch > SCRATCH:
        return no(f"a row needs {scratch} bytes of scratch")
    return group


def _no_epilogue(core: Group, b: Group) -> str | None:
    """Why b is not computed on a core's finished tiles."""
    if not core.core or b.core:
        return "a core's tiles serve only what comes after it"
    if not b.flat or not core.writes & b.reads:
        return "not an elementwise use of the core's result"
    inputs = {v.buffer for v in core.core.views()}
    if inputs & b.writes:
        return "would overwrite the core's operands"
    return None


def _unprofitable(a: Group, b: Group) -> str | None:
    rows, more = sorted((hint(a.rows), hint(b.rows)))
    if rows < FEW_ROWS and rows != more and more // rows > BIG_ROW:
        return f"only {rows} rows to share between threads"
    wide = max((hint(total(p.inner)) for p in (*a.parts, *b.parts)), default=1)
    if rows < FEW_ROWS and a.flat != b.flat and wide > BIG_ROW:
        return f"only {rows} rows to share between threads"
    return None


def scratch_bytes(group: Group, stages: list[int], buffers: dict[str, Buffer]) -> int:
    """Row scratch that the values passed between stages need, if none goes to memory."""
    at = {p.loop.out.buffer: (s, p) for p, s in zip(group.parts, stages)}
    crossing = {x.buffer for p, s in zip(group.parts, stages) for x in p.loop.loads() if x.buffer in at
                and at[x.buffer][0] != s and buffers[x.buffer].kind == "temp"}
    return sum(hint(total(at[n][1].inner)) * buffers[n].spec.dtype.itemsize for n in crossing
               if at[n][1].loop.combine is None or at[n][1].loop.is_scan)


# ---- the greedy loop ----


@dataclass
class _Fusion:
    loops: Loops
    buffers: dict[str, Buffer]
    cores: Collection[torch.dtype]
    groups: dict[int, Group | Extern] = field(default_factory=dict)
    after: dict[int, set[int]] = field(default_factory=dict)  # group -> groups that need it
    before: dict[int, set[int]] = field(default_factory=dict)
    touching: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    refused: dict[tuple[int, int], Refused] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)            # needs first; -1: nothing any more
    rank: dict[int, int] = field(default_factory=dict)        # group -> its place there
    numbers: count[int] = field(default_factory=count)

    def run(self) -> None:
        """Fuses until no pair with something to gain is left."""
        for i, step in enumerate(self.loops.steps):
            self.groups[i] = self._group(i, step)
            for name in (*reads_of(step), *writes_of(step)):
                self.touching[name].add(i)
        self.before = step_dependencies(self.loops)
        self.after = {i: set() for i in self.groups}
        for i, needs in self.before.items():
            for j in needs:
                self.after[j].add(i)
        self.order = list(self.groups)
        self.rank = dict(zip(self.order, range(len(self.order))))
        self.numbers = count(len(self.order))
        heap: list[tuple[int, int, int]] = []
        for i in self.groups if "fuse" not in config.disable_passes else ():
            self._candidates(i, heap, later_only=True)
        while heap:
            _, i, j = heappop(heap)
            if i in self.groups and j in self.groups:
                self._try(i, j, heap)
        self.refused = {pair: r for pair, r in self.refused.items() if self.groups.keys() >= {*pair}}

    def _group(self, i: int, step: Loop | Extern) -> Group | Extern:
        if isinstance(step, Loop):
            return single(step, i)
        if why_not_core(step) or step.outs[0].spec.dtype not in self.cores:
            return step
        group, changed = core_group(step, i, self.buffers, tuple(r.buffer for r in self.loops.results))
        self.buffers.update((b.name, b) for b in changed)
        return group

    def _kept(self, i: int, j: int) -> frozenset[str]:
        """What groups other than these two need of what they store."""
        a, b = self.groups[i], self.groups[j]
        assert isinstance(a, Group) and isinstance(b, Group)
        return frozenset(n for n in a.writes | b.writes if self.touching[n] - {i, j})

    def _candidates(self, i: int, heap: list[tuple[int, int, int]], later_only: bool = False) -> None:
        g = self.groups[i]
        if isinstance(g, Extern):
            return
        near: set[int] = set()
        reads, writes = g.reads, g.writes
        for name in sorted(reads | writes):
            others = sorted(self.touching[name])
            if (
                name not in writes and len(others) > 8
            ):  # an input of many: only its neighbours in the program
                k = others.index(i)
                others = others[max(k - 2, 0) : k + 3]
            near.update(others)
        for j in sorted(near):
            other = self.groups.get(j)
            if j == i or other is None or isinstance(other, Extern) or (later_only and j < i):
                continue
            saved = gain(g, other, self.buffers, self._kept(i, j)) + bool(g.core or other.core)
            if saved:
                heappush(heap, (-saved, min(i, j), max(i, j)))

    def _try(self, i: int, j: int, heap: list[tuple[int, int, int]]) -> None:
        a, b = self.groups[i], self.groups[j]
        assert isinstance(a, Group) and isinstance(b, Group)
        if a.parts[0].order > b.parts[0].order:
            a, b = b, a
        if self.rank[i] > self.rank[j]:
            i, j = j, i
        later = self._between(i, j)
        if not later.isdisjoint(self.before[j]):
            self.refused[i, j] = Refused(a.name, b.name, "another step lies between them",
                                         gain(a, b, self.buffers))
            return
        result = fuse(a, b, self.buffers)
        if isinstance(result, Group) and self._overwrites(result):
            result = Refused(a.name, b.name, "would overwrite what it still reads", gain(a, b, self.buffers))
        if isinstance(result, Refused):
            self.refused[i, j] = result
            return
        self._candidates(self._merge(i, j, later, result), heap)

    def _overwrites(self, group: Group) -> bool:
        """Whether the kernel's stores cannot be put behind the loads of what they overwrite."""
        both = group.reads & group.writes
        if not both.isdisjoint(self.loops.renewed):
            return True
        if not any(self.buffers[n].kind == "input" for n in both):
            return False
        try:
            stages_of(group, place(group), self.buffers, self._private(group))
        except Cyclic:
            return True
        return False

    def _between(self, i: int, j: int) -> set[int]:
        """What i leads to among the groups that stand before j in the order."""
        end, todo = self.rank[j], [i]
        found: set[int] = set()
        while todo:
            near = [n for n in self.after[todo.pop()] if n not in found and self.rank[n] < end]
            found.update(near)
            todo += near
        return found

    def _merge(self, i: int, j: int, later: set[int], group: Group) -> int:
        """Puts `group` in the place of i and j. It stands behind all between them but what i leads to."""
        k = next(self.numbers)
        for links, back in ((self.after, self.before), (self.before, self.after)):
            links[k] = (links.pop(i) | links.pop(j)) - {i, j}
            for n in links[k]:
                back[n] = (back[n] - {i, j}) | {k}
        for name in group.reads | group.writes:
            self.touching[name] = (self.touching[name] - {i, j}) | {k}
        del self.groups[i], self.groups[j]
        self.groups[k] = group
        first, last = self.rank.pop(i), self.rank.pop(j)
        between = [n for n in self.order[first + 1:last] if n in self.groups]
        moved = [*(n for n in between if n not in later), k, *(n for n in between if n in later)]
        self.order[first:last + 1] = moved + [-1] * (last + 1 - first - len(moved))
        self.rank.update(zip(moved, range(first, last)))
        return k

    # ---- the result ----

    def _private(self, group: Group) -> set[str]:
        """Temps that nothing outside the group touches."""
        shown = {r.buffer for r in self.loops.results}
        orders = {p.order for p in group.parts}

        def outside(u: int) -> bool:
            g = self.groups[u]
            return isinstance(g, Extern) or g.parts[0].order not in orders
        return {name for name in group.writes if self.buffers[name].kind == "temp" and name not in shown
                and not any(map(outside, self.touching[name]))}

    def finished(self) -> tuple[list[Kernel | Extern], dict[str, Buffer]]:
        """Kernels and library calls in a legal order near the program's, and the buffers that are left."""
        buffers = dict(self.buffers)
        steps: list[Kernel | Extern] = []
        for n, i in enumerate(self._order()):
            g = self.groups[i]
            if isinstance(g, Extern):
                steps.append(g)
                continue
            placed = place(g)
            if isinstance(placed, str):
                raise AssertionError(placed)
            kernel, changed, gone = finish(g, placed, self.buffers, self._private(g), f"k{n}")
            buffers.update(changed)
            for name in gone:
                del buffers[name]
            if kernel.loops:
                steps.append(kernel)
        return steps, buffers

    def _order(self) -> Iterable[int]:
        """Dependencies first, else program order; what comes of inputs alone waits for its first reader, so
        that values computed again for a backward pass don't all live from its start."""
        place = {i: float(self._place(i)) for i in self.groups}
        order = sorted(self.groups, key=self._place)
        early: set[int] = set()
        for i in order:
            if isinstance(self.groups[i], Group) and self.before[i] <= early:
                early.add(i)
        for i in reversed(order):
            if i in early and self.after[i]:
                place[i] = max(place[i], min(place[j] for j in self.after[i]) - 0.5)
        waiting = {i: len(self.before[i]) for i in self.groups}
        ready: list[tuple[float, int]] = []
        for i, n in waiting.items():
            if not n:
                heappush(ready, (place[i], i))
        while ready:
            _, i = heappop(ready)
            yield i
            for j in self.after[i]:
                waiting[j] -= 1
                if not waiting[j]:
                    heappush(ready, (place[j], j))

    def _place(self, i: int) -> int:
        """A group's place in the program: its last loop's."""
        g = self.groups[i]
        return g.parts[-1].order if isinstance(g, Group) else i
