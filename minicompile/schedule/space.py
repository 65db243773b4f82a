"""Iteration spaces: bringing two groups of loops onto common axes, and what one point of them needs of
another.

Takes loops, serves `fuse`. A group walks `par` axes; each of its loops has `inner` axes besides (those it
reduces, or the rest of its index space when others reduce it). Pure functions over frozen data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..ir.forms import alike, coefficient, divides, less
from ..ir.sym import Size, Sym, Var, bounds, free_vars, hint, same, substitute
from ..loops.axes import rename, syms
from ..loops.nest import Axis, Extern, Loop, axis


@dataclass(frozen=True, slots=True)
class Part:
    """One loop of a group, on the group's axes. `order` is its place in the program."""

    loop: Loop
    inner: tuple[Axis, ...]
    order: int


@dataclass(frozen=True)
class Group:
    """Loops that will be one kernel. Parts are in program order; with a `core` they are its epilogue (see
    cores)."""

    par: tuple[Axis, ...]
    parts: tuple[Part, ...]
    core: Extern | None = None

    @property
    def flat(self) -> bool:
        """No part has inner axes: the split into par and inner axes is still open."""
        return not any(p.inner for p in self.parts)

    @property
    def rows(self) -> Sym | int:
        return total(self.par)

    @property
    def name(self) -> str:
        return self.parts[-1].loop.name

    @cached_property
    def reads(self) -> frozenset[str]:
        """Buffers the loops and the core load from; remembered, as every pair of groups asks."""
        core = {v.buffer for v in self.core.views()} if self.core else set()
        return frozenset(core | {x.buffer for p in self.parts for x in p.loop.loads()})

    @cached_property
    def writes(self) -> frozenset[str]:
        """Buffers the loops store to."""
        return frozenset(p.loop.out.buffer for p in self.parts)


def total(axes: Sequence[Axis]) -> Sym | int:
    """The number of points."""
    n: Sym | int = 1
    for a in axes:
        n *= a.size
    return n


def sizes_of(axes: Sequence[Axis]) -> list[Sym | int]:
    return [a.size for a in axes]


def single(loop: Loop, order: int) -> Group:
    """The group of one loop, its axes renamed to i0, i1, … and j0, j1, …."""
    par = tuple(axis(f"i{k}", n) for k, n in enumerate(sizes_of(loop.axes)))
    inner = tuple(axis(f"j{k}", n) for k, n in enumerate(sizes_of(loop.reduce_axes)))
    env: dict[Var, Sym | int] = {a.var: b.var
                                 for a, b in zip((*loop.axes, *loop.reduce_axes), (*par, *inner))}
    return Group(par, (Part(rename(loop, env, par, inner), inner, order),))


def refine(a: Sequence[Sym | int], b: Sequence[Sym | int]) -> tuple[list[Sym | int], int] | None:
    """The coarsest sizes that both lists (outermost first) are products of neighbours of.

    b may stop early: then it matches a prefix of a, and the second value says how many of the sizes b
    covers.
    """
    out: list[Sym | int] = []
    left, right = list(a[::-1]), list(b[::-1])
    while right:
        if not left:
            return None
        x, y = left.pop(), right.pop()
        small = x if divides(x, y) else y
        if not divides(small, x):
            return None
        out.append(small)
        if not same(x, small):
            left.append(x // small)
        if not same(y, small):
            right.append(y // small)
    return out + left[::-1], len(out)


def respace(g: Group, sizes: Sequence[Sym | int], split: int) -> Group:
    """g over axes of the given sizes (a refinement of its par sizes), the first `split` of them par and the
    rest inner axes of every part."""
    if alike(sizes_of(g.par), sizes) and split == len(sizes):
        return g
    par = tuple(axis(f"i{k}", n) for k, n in enumerate(sizes[:split]))
    rest = tuple(axis(f"j{k}", n) for k, n in enumerate(sizes[split:]))
    env = joined(g.par, par + rest)
    memo: dict = {}
    parts = []
    for p in g.parts:
        reduces = p.loop.combine is not None
        axes = par if reduces else par + rest + p.inner
        parts.append(Part(rename(p.loop, env, axes, p.loop.reduce_axes, memo), rest + p.inner, p.order))
    return Group(par, tuple(parts))


def joined(old: Sequence[Axis], new: Sequence[Axis]) -> dict[Var, Sym | int]:
    """Old variables in terms of the refined new ones."""
    env: dict[Var, Sym | int] = {}
    pieces = iter(new)
    for a in old:
        value: Sym | int = 0
        n: Sym | int = 1
        while not same(n, a.size):
            piece = next(pieces)
            value = value * piece.size + piece.var
            n *= piece.size
        env[a.var] = value
    return env


def align(a: Group, b: Group) -> tuple[Group, Group] | str:
    """Both on common par axes, or why that can't be."""
    if a.core:
        moved = onto(a.par, b)
        return moved if isinstance(moved, str) else (a, moved)
    ra, rb = hint(a.rows), hint(b.rows)
    if same(a.rows, b.rows):
        found = refine(sizes_of(a.par), sizes_of(b.par))
        if found:
            return respace(a, found[0], found[1]), respace(b, found[0], found[1])
    elif ra > rb and a.flat:
        found = refine(sizes_of(a.par), sizes_of(b.par))
        if found:
            return respace(a, *found), respace(b, found[0][: found[1]], found[1])
    elif rb > ra and b.flat:
        swapped = align(b, a)
        return swapped if isinstance(swapped, str) else (swapped[1], swapped[0])
    return f"iteration spaces {sizes_of(a.par)} and {sizes_of(b.par)} differ"


def onto(par: tuple[Axis, ...], g: Group) -> Group | str:
    """A flat group over exactly these axes, or why it can't be: a core gives its points in rows and
    columns."""
    found = refine(sizes_of(par), sizes_of(g.par)) if same(total(par), g.rows) else None
    if found is None:
        return f"iteration spaces {sizes_of(par)} and {sizes_of(g.par)} differ"
    fine = respace(g, found[0], found[1])
    env: dict[Var, Sym | int] = {}
    pieces = list(fine.par)
    for a in reversed(par):  # the pieces of one axis, innermost first
        step: Sym | int = 1
        while not same(step, a.size):
            piece = pieces.pop()
            env[piece.var] = (a.var // step) % piece.size
            step *= piece.size
    env.update((p.var, 0) for p in pieces)
    memo: dict = {}
    parts = tuple(replace(p, loop=rename(p.loop, env, par, (), memo)) for p in fine.parts)
    column = par[-1].var
    if any(coefficient(s, column) is None for p in parts for s in syms(p.loop)):
        return f"not affine in the columns {sizes_of(par)[-1]}"
    return Group(par, parts)


def common_inner(parts: Sequence[Part]) -> list[Part]:
    """The parts with inner axes of the same extent brought to common sizes, where there are some."""
    shared: dict[Sym | int, list[Sym | int] | None] = {}
    kinds = {tuple(sizes_of(p.inner)) for p in parts}
    if len({total(p.inner) for p in parts}) == len(kinds):
        return list(parts)
    for p in parts:
        n = total(p.inner)
        mine = sizes_of(p.inner)
        if n not in shared:
            shared[n] = mine
        elif not alike(shared[n] or (), mine) and shared[n] is not None:
            found = refine(shared[n] or (), mine)
            shared[n] = found[0] if found else None
    return [_on_inner(p, shared[total(p.inner)]) for p in parts]


def _on_inner(p: Part, sizes: list[Sym | int] | None) -> Part:
    if sizes is None or alike(sizes, sizes_of(p.inner)) or p.loop.is_scan:  # a scan runs along one axis
        return p
    inner = tuple(axis(f"j{k}", n) for k, n in enumerate(sizes))
    env = joined(p.inner, inner)
    outer = tuple(a for a in p.loop.axes if a not in p.inner)
    if p.loop.combine is not None:
        return replace(p, loop=rename(p.loop, env, outer, inner), inner=inner)
    return replace(p, loop=rename(p.loop, env, outer + inner, ()), inner=inner)


# ---- what one point needs of another ----


@dataclass(frozen=True, slots=True)
class Run:
    """The elements a loop stores at one par point, relative to that point's own part: start, start+step, …,
    n of them."""

    start: Sym | int
    step: Sym | int
    n: Sym | int


def row_part(s: Sym | int, par: frozenset[Var]) -> tuple[Sym | int, Sym | int] | None:
    """s as (part of the par variables, the rest); None where they are entangled."""
    mine: Sym | int = 0
    rest: Sym | int = s if isinstance(s, int) else s.const
    for a, c in () if isinstance(s, int) else s.terms:
        used = a.vars & par
        if used and used != {v for v in a.vars if not isinstance(v, Size)}:
            return None
        if used:
            mine = mine + c * a
        else:
            rest = rest + c * a
    return mine, rest


def run_of(rest: Sym | int, inner: Sequence[Axis]) -> Run | None:
    """The elements that `rest` runs through over the inner axes, if they are evenly spaced."""
    if isinstance(rest, int):
        return Run(rest, 1, 1)
    strides = sorted(((coefficient(rest, a.var) or 0, a.size) for a in inner if not same(a.size, 1)),
                     key=lambda pair: (hint(pair[0]), hint(pair[1])))
    step = strides[0][0] if strides else 1
    n: Sym | int = 1
    for k, size in strides:
        if bounds(k)[0] <= 0 or not same(k, step * n):
            return None
        n *= size
    start = substitute(rest, {a.var: 0 for a in inner})
    if any(not isinstance(v, Size) for v in free_vars(start)):
        return None
    return Run(start, step, n)


def within(rest: Sym | int, run: Run) -> bool:
    """Whether every value of `rest` is one of run's elements."""
    if less(rest, run.start) is not False or less(run.start + run.step * (run.n - 1), rest) is not False:
        return False
    at = rest - run.start
    parts = [at] if isinstance(at, int) else [at.const, *(a * c for a, c in at.terms)]
    return all(divides(run.step, part) for part in parts)
