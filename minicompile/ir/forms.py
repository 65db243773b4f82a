"""Questions about the form of a Sym: what it is made of, its coefficients, what divides it, loop variables.

Takes `sym`; what is asked here leaves no condition. Serves every stage that compares or takes apart indices
and extents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .sym import Div, Mod, Prod, Sym, Var, Walk, _of_sizes, _without, mod, same, span


def running(name: str, extent: Sym | int) -> Var:
    """The variable of a loop over range(extent)."""
    return Var(name, 0, max(extent - 1, 0)) if isinstance(extent, int) else Walk(name, extent)


def alike(a: Sequence[Sym | int], b: Sequence[Sym | int]) -> bool:
    """The same, item by item."""
    return len(a) == len(b) and all(map(same, a, b))


def divides(d: Sym | int, n: Sym | int) -> bool:
    """Whether n is a multiple of d by its form."""
    return not same(d, 0) and same(mod(n, d), 0)


def less(a: Sym | int, b: Sym | int) -> bool | None:
    """a < b: True or False where the bounds decide it, None where they don't."""
    lo, hi = span(a - b)
    return True if hi < 0 else False if lo >= 0 else None


def coefficient(s: Sym | int, v: Var) -> Sym | int | None:
    """k where s = k*v + (something without v) and k is a number or made of sizes; None where there is no
    such k."""
    if isinstance(s, int) or v not in s.vars:
        return 0
    k: Sym | int = 0
    for a, c in s.terms:
        if a is v:
            k = k + c
        elif v in a.vars:
            rest = _without(a, (v,)) if isinstance(a, Prod) else None
            if rest is None or not _of_sizes(rest):
                return None
            k = k + rest * c
    return k


def atoms(s: Sym | int) -> Iterator[Sym]:
    """Every atom inside s, the inner ones of // and % and products included, outermost first."""
    if isinstance(s, int):
        return
    for a, _ in s.terms:
        yield a
        for part in children(a):
            yield from atoms(part)


def children(a: Sym) -> tuple[Sym | int, ...]:
    """What an atom is made of."""
    if isinstance(a, (Div, Mod)):
        return (a.num, a.den)
    return a.factors if isinstance(a, Prod) else ()
