"""Sym: integers that depend on loop variables and on sizes, with bounds; what indices, extents and strides
are made of.

Takes nothing; `loops` builds index expressions, `schedule` compares them, `codegen` prints them. A small
algebra of our own, because a general computer algebra system in the hot path is a main reason for long
compile times.

Normal form: `sum(coefficient * atom) + const`, where an atom is a `Var`, a product of atoms, a floor
division or a modulo. Every Sym is hash-consed: equal normal forms are one object, so `is`, `==` and `hash`
are cheap. Plain ints are Syms without atoms and stay ints: wherever this file says `Sym | int`, both may
come.

Sizes that are only known when a program runs are `Size` variables. Code that computes with sizes need not
know: what it asks of one (`n == 1`, `a < b`) is answered by the bounds, or else for the sizes of the call
that is being compiled, and is then a `Condition` of the program (see `asking`). What needs the number itself
(`range(n)`) raises `NeedsSizes`, and these sizes are constants again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, inf
from typing import Any

from ..errors import Refusal
from .intern import interner

Bound = int | float  # an int, or ±inf where nothing is known
_intern = interner()  # the one Sym with a key


class Sym:
    """Base of all symbolic integers. `lo <= value <= hi` always holds; `terms` are (atom, coefficient)
    pairs, `const` the rest."""

    __slots__ = ("lo", "hi", "text", "vars", "__weakref__")
    lo: Bound
    hi: Bound
    text: str
    vars: frozenset[Var]

    @property
    def terms(self) -> tuple[tuple[Sym, int], ...]:
        return ((self, 1),)

    @property
    def const(self) -> int:
        return 0

    def __add__(self, other: Sym | int) -> Sym | int:
        return _linear(((self, 1), (other, 1)))

    __radd__ = __add__

    def __sub__(self, other: Sym | int) -> Sym | int:
        return _linear(((self, 1), (other, -1)))

    def __rsub__(self, other: Sym | int) -> Sym | int:
        return _linear(((other, 1), (self, -1)))

    def __neg__(self) -> Sym | int:
        return _linear(((self, -1),))

    def __mul__(self, other: Sym | int) -> Sym | int:
        return _linear(((self, other),)) if isinstance(other, int) else _product(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Sym | int) -> Sym | int:
        return floordiv(self, other)

    def __rfloordiv__(self, other: int) -> Sym | int:
        return floordiv(other, self)

    def __mod__(self, other: Sym | int) -> Sym | int:
        return mod(self, other)

    def __rmod__(self, other: int) -> Sym | int:
        return mod(other, self)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, (int, Sym)) and _of_sizes(self - other) and _decide("eq", self - other)

    def __lt__(self, other: Sym | int) -> bool:
        return _decide("ge", other - self - 1)

    def __le__(self, other: Sym | int) -> bool:
        return _decide("ge", other - self)

    def __gt__(self, other: Sym | int) -> bool:
        return _decide("ge", self - other - 1)

    def __ge__(self, other: Sym | int) -> bool:
        return _decide("ge", self - other)

    def __bool__(self) -> bool:
        return not _of_sizes(self) or not _decide("eq", self)

    def _value(self, *_: Any) -> Any:
        raise NeedsSizes(self)

    __index__ = __int__ = __float__ = __truediv__ = __rtruediv__ = __round__ = __trunc__ = __pow__ = _value

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text

    def __reduce__(self) -> Any:
        raise TypeError("a Sym is not pickled: print it, or substitute values first")


class Var(Sym):
    """A variable with bounds: a loop index, an index read from memory, or a size."""

    __slots__ = ("name",)
    name: str

    def __new__(cls, name: str, lo: Bound = 0, hi: Bound = inf) -> Var:
        return _intern(("v", name, lo, hi), lambda: cls._make(name, lo, hi))

    @classmethod
    def _make(cls, name: str, lo: Bound, hi: Bound) -> Any:
        self = object.__new__(cls)
        self.name, self.lo, self.hi, self.text = name, lo, hi, name
        return self

    @property
    def vars(self) -> frozenset[Var]:  # a stored set would be a reference cycle
        return frozenset((self,))


LARGEST_SIZE = 2**31 - 1


class Size(Var):
    """A size known only when the program runs; `hint` is what it is in the call that is being compiled. Not
    0 or 1, unless its bounds say so: those behave differently (nothing there, broadcasting)."""

    __slots__ = ("hint",)
    hint: int

    def __new__(cls, name: str, hint: int, lo: int = 2, hi: int = LARGEST_SIZE) -> Size:
        def make() -> Size:
            self = cls._make(name, lo, hi)
            self.hint = hint
            return self
        return _intern(("size", name, hint, lo, hi), make)


class Walk(Var):
    """A loop variable that runs over range(extent), where that depends on sizes."""

    __slots__ = ("extent",)
    extent: Sym

    def __new__(cls, name: str, extent: Sym) -> Walk:  # type: ignore[misc]
        def make() -> Walk:
            self = cls._make(name, 0, max(extent.hi - 1, 0))
            self.extent = extent
            return self
        return _intern(("walk", name, id(extent)), make)


class Sum(Sym):
    """At least two terms, or one with a coefficient or a constant beside it. Made by arithmetic only."""

    __slots__ = ("_terms", "_const")

    @property
    def terms(self) -> tuple[tuple[Sym, int], ...]:
        return self._terms

    @property
    def const(self) -> int:
        return self._const


class Prod(Sym):
    """A product of two or more atoms (a size times an index)."""

    __slots__ = ("factors",)
    factors: tuple[Sym, ...]


class Div(Sym):
    """num // den, rounded down."""

    __slots__ = ("num", "den")
    num: Sym
    den: Sym | int


class Mod(Sym):
    """num % den, with the sign of den."""

    __slots__ = ("num", "den")
    num: Sym
    den: Sym | int


# ---- sums and products ----


def _linear(parts: Iterable[tuple[Sym | int, int]]) -> Sym | int:
    """sum(coefficient * part)."""
    coefficients: dict[Sym, int] = {}
    const = 0
    for part, k in parts:
        if isinstance(part, int):
            const += k * part
            continue
        const += k * part.const
        for atom, c in part.terms:
            coefficients[atom] = coefficients.get(atom, 0) + k * c
    return _sum(coefficients, const)


def _sum(coefficients: dict[Sym, int], const: int) -> Sym | int:
    terms = [(a, c) for a, c in coefficients.items() if c]
    if not terms:
        return const
    if len(terms) > 1:
        for a, c in terms:
            rounded = _rounded(coefficients, const, a, c) if isinstance(a, (Div, Mod)) else None
            if rounded is not None:
                return rounded
        terms.sort(key=lambda term: term[0].text)
    elif const == 0 and terms[0][1] == 1:
        return terms[0][0]
    key = ("+", const, *((id(a), c) for a, c in terms))
    return _intern(key, lambda: _make_sum(tuple(terms), const))


def _rounded(coefficients: dict[Sym, int], const: int, a: Div | Mod, c: int) -> Sym | int | None:
    """x % d + d*(x // d) is x. So where two of these three stand in a sum, it has the third instead: what one
    reshape leaves of another, what rounding to whole blocks adds or cuts off. None where not."""
    d, x = a.den, a.num
    if not isinstance(d, int) or isinstance(a, Div) and c % d:
        return None
    k, rest = c if isinstance(a, Mod) else c // d, dict(coefficients)
    del rest[a]
    quotient = floordiv(x, d) if isinstance(a, Mod) else None
    if isinstance(quotient, Div) and rest.get(quotient) == k * d:
        del rest[quotient]
        return _linear([(x, k), (_sum(rest, const), 1)])
    if any(rest.get(b) != -k * cb for b, cb in x.terms):
        return None
    for b, _ in x.terms:
        del rest[b]
    other = (quotient, -k * d) if quotient is not None else (mod(x, d), -k)
    return _linear([other, (_sum(rest, const + k * x.const), 1)])


def _make_sum(terms: tuple[tuple[Sym, int], ...], const: int) -> Sum:
    self = object.__new__(Sum)
    self._terms, self._const = terms, const
    lo: Bound = const
    hi: Bound = const
    for a, c in terms:
        lo += c * (a.lo if c > 0 else a.hi)
        hi += c * (a.hi if c > 0 else a.lo)
    self.lo, self.hi = lo, hi
    self.vars = frozenset().union(*(a.vars for a, _ in terms))
    text = " + ".join(_term_text(a, c) for a, c in terms)
    self.text = f"({text} + {const})" if const else f"({text})"
    return self


def _term_text(a: Sym, c: int) -> str:
    return a.text if c == 1 else f"{c}*{a.text}"


def _product(a: Sym, b: Sym) -> Sym | int:
    """The product, multiplied out term by term."""
    total: Sym | int = a.const * b.const
    for x, k in a.terms:
        total = total + x * (k * b.const)
        for y, m in b.terms:
            total = total + _atom_product(x, y) * (k * m)
    for y, m in b.terms:
        total = total + y * (m * a.const)
    return total


def _atom_product(x: Sym, y: Sym) -> Sym:
    factors = sorted(
        (*(x.factors if isinstance(x, Prod) else (x,)), *(y.factors if isinstance(y, Prod) else (y,))),
        key=str,
    )
    return _intern(("*", *map(id, factors)), lambda: _make_prod(tuple(factors)))


def _make_prod(factors: tuple[Sym, ...]) -> Prod:
    self = object.__new__(Prod)
    self.factors = factors
    lo: Bound = 1
    hi: Bound = 1
    for f in factors:
        corners = [0 if 0 in (p, q) else p * q for p in (lo, hi) for q in (f.lo, f.hi)]  # 0 * inf is 0 here
        lo, hi = min(corners), max(corners)
    self.lo, self.hi = lo, hi
    self.vars = frozenset().union(*(f.vars for f in factors))
    self.text = "*".join(f.text for f in factors)
    return self


# ---- division and modulo ----


def _split(n: Sym, d: int) -> tuple[Sym | int, Sym | int]:
    """n = d*q + r, where r holds what d does not divide; r's constant lies in [0, d)."""
    whole: dict[Sym, int] = {}
    rest: dict[Sym, int] = {}
    for a, c in n.terms:
        k = c // d if c % d == 0 or abs(c) > d else 0
        if k:
            whole[a] = k
        if c - k * d:
            rest[a] = c - k * d
    q, r = divmod(n.const, d)
    return _sum(whole, q), _sum(rest, r)


def _coarse(r: Sym, d: int) -> tuple[int, Sym | int, Sym | int] | None:
    """(g, s, t) with r = g*s + t, 0 <= t < g, 1 < g, g divides d: then r // d = s // (d/g) and r % d = g*(s
    % (d/g)) + t."""
    for g in sorted({gcd(c, d) for _, c in r.terms} - {1}, reverse=True):
        fine = {a: c for a, c in r.terms if c % g}
        t = _sum(fine, r.const % g)
        lo, hi = bounds(t)
        if lo >= 0 and hi < g:
            s = _sum({a: c // g for a, c in r.terms if c % g == 0}, r.const // g)
            return g, s, t
    return None


def floordiv(n: Sym | int, d: Sym | int) -> Sym | int:
    """n // d, rounded down. d must not be 0."""
    if isinstance(n, int) and isinstance(d, int):
        return n // d
    if n is d:
        return 1
    if not isinstance(d, int):
        return _symbolic_div(n, d)
    if d < 0:
        return floordiv(-n, -d)
    if d == 1 or d == 0:
        return n if d else 1 // d
    q, r = _split(n, d)
    if isinstance(r, int):
        return q
    low = _bound_div(r.lo, d)
    if low == _bound_div(r.hi, d):
        return q + int(low)
    coarse = _coarse(r, d)
    if coarse:
        return q + floordiv(coarse[1], d // coarse[0])
    dropped = _drop_mods(r, d)
    if isinstance(dropped, int):        # all else went with the mods, whose quotients are left
        quotients = [(floordiv(a.num, a.den), c * a.den // d) for a, c in r.terms
                     if isinstance(a, Mod) and isinstance(a.den, int)]
        return q + dropped // d - _linear(quotients)
    if len(r.terms) == 1 and r.terms[0][1] == 1 and isinstance(r.terms[0][0], Div):
        inner = r.terms[0][0]  # (x // a + c) // d = (x + c*a) // (a*d)
        if isinstance(inner.den, int):
            return q + floordiv(inner.num + r.const * inner.den, inner.den * d)
    return q + _intern(("/", id(r), d), lambda: _make_div(r, d))


def mod(n: Sym | int, d: Sym | int) -> Sym | int:
    """n % d, with the sign of d. d must not be 0."""
    if isinstance(n, int) and isinstance(d, int):
        return n % d
    if n is d:
        return 0
    if not isinstance(d, int):
        return _symbolic_mod(n, d)
    if d < 0:
        return -mod(-n, -d)
    if d == 1 or d == 0:
        return 0 if d else 1 % d
    dropped = _drop_mods(n, d)
    r = dropped % d if isinstance(dropped, int) else _split(dropped, d)[1]
    if isinstance(r, int):
        return r
    low = _bound_div(r.lo, d)
    if low == _bound_div(r.hi, d):
        return r - d * int(low)
    coarse = _coarse(r, d)
    if coarse:
        g, s, t = coarse
        return g * mod(s, d // g) + t
    return _intern(("%", id(r), d), lambda: _make_mod(r, d))


def _drop_mods(n: Sym | int, d: int) -> Sym | int:
    """n with each c*(x % a) replaced by c*x where d divides c*a: equal modulo d."""
    if isinstance(n, int) or not any(isinstance(a, Mod) for a, _ in n.terms):
        return n
    def bare(a: Sym, c: int) -> Sym | int:
        return a.num if isinstance(a, Mod) and isinstance(a.den, int) and c * a.den % d == 0 else a
    return _linear([(n.const, 1), *((bare(a, c), c) for a, c in n.terms)])


def _symbolic_div(n: Sym | int, d: Sym) -> Sym | int:
    whole: Sym | int = 0
    rest: Sym | int = n
    if not isinstance(n, int):
        whole, rest = _split_by(n, d)
    if isinstance(rest, int) and rest == 0:
        return whole
    if _is_rest(rest, d):
        return whole
    return whole + _intern(("/", *_key(rest), *_key(d)), lambda: _make_div(rest, d))


def _symbolic_mod(n: Sym | int, d: Sym) -> Sym | int:
    rest: Sym | int = n if isinstance(n, int) else _split_by(n, d)[1]
    if isinstance(rest, int) and rest == 0 or _is_rest(rest, d):
        return rest
    return _intern(("%", *_key(rest), *_key(d)), lambda: _make_mod(rest, d))


def _is_rest(r: Sym | int, d: Sym) -> bool:
    """Whether 0 <= r < d for sure."""
    if isinstance(r, Div) and bounds(r.den)[0] > 0:       # x // a < d where x < a*d
        return nonnegative(r.num) and nonnegative(r.den * d - 1 - r.num)
    return d.lo > 0 and nonnegative(r) and nonnegative(d - 1 - r)


def _key(s: Sym | int) -> tuple:
    return ("int", s) if isinstance(s, int) else ("sym", id(s))


def _split_by(n: Sym, d: Sym) -> tuple[Sym | int, Sym | int]:
    """n = d*q + r for a symbolic d, by polynomial division: q takes the terms of n that d's leading term
    divides. Where d has several terms, only a division without remainder is kept."""
    lead, k = max(d.terms, key=_degree)
    need = lead.factors if isinstance(lead, Prod) else (lead,)
    whole: Sym | int = 0
    rest: Sym | int = n
    for _ in range(64):
        terms = () if isinstance(rest, int) else sorted(rest.terms, key=_degree, reverse=True)
        left = next((q * (c // k) for a, c in terms
                     if c % k == 0 and (q := _without(a, need)) is not None), None)
        if left is None:
            break
        whole, rest = whole + left, rest - left * d
    exact = len(d.terms) == 1 and d.const == 0 or isinstance(rest, int) and rest == 0
    return (whole, rest) if exact else (0, n)


def _degree(term: tuple[Sym, int]) -> tuple[int, str]:
    return len(term[0].factors) if isinstance(term[0], Prod) else 1, term[0].text


def _without(a: Sym, need: tuple[Sym, ...]) -> Sym | int | None:
    """a divided by the product of `need`; None where one of these is no factor of it."""
    have = list(a.factors if isinstance(a, Prod) else (a,))
    for f in need:
        at = next((i for i, h in enumerate(have) if h is f), None)
        if at is None:
            return None
        del have[at]
    out: Sym | int = 1
    for f in have:
        out = out * f
    return out


def _make_div(num: Sym | int, den: Sym | int) -> Div:
    self = object.__new__(Div)
    self.num, self.den = num, den
    (lo, hi), (dlo, dhi) = bounds(num), bounds(den)
    if dlo > 0:
        corners = [_bound_div(b, d) for b in (lo, hi) for d in (dlo, dhi)]
        self.lo, self.hi = min(corners), max(corners)
    else:
        self.lo, self.hi = -inf, inf
    self.vars = free_vars(num) | free_vars(den)
    self.text = f"({_bare(num)}//{_bare(den)})"
    return self


def _bound_div(b: Bound, d: Bound) -> Bound:
    return b if b in (inf, -inf) else (0 if b >= 0 else -1) if d == inf else b // d


def _make_mod(num: Sym | int, den: Sym | int) -> Mod:
    self = object.__new__(Mod)
    self.num, self.den = num, den
    (lo, hi), (dlo, dhi) = bounds(num), bounds(den)
    if dlo > 0:
        self.lo, self.hi = 0, dhi - 1
        if lo >= 0:
            self.hi = min(self.hi, hi)
    else:
        self.lo, self.hi = -inf, inf
    self.vars = free_vars(num) | free_vars(den)
    self.text = f"({_bare(num)}%{_bare(den)})"
    return self


def _bare(s: Sym | int) -> str:
    return str(s) if not isinstance(s, Prod) else f"({s})"


# ---- sizes ----


class NeedsSizes(Refusal):
    """The value of an integer that depends on `sizes` is needed."""

    def __init__(self, s: Sym, why: str = ""):
        super().__init__("varying", f"{s} must be known, but is a size that varies{why and ': '}{why}")
        self.sizes = [v for v in s.vars if isinstance(v, Size)]


@dataclass(frozen=True, slots=True)
class Condition:
    """What a program takes for granted of its sizes: sym == 0 ("eq"), sym != 0 ("ne") or sym >= 0 ("ge")."""

    relation: str
    sym: Sym

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it does for sizes of these names."""
        return _RELATIONS[self.relation](evaluate(self.sym, sizes))

    def __str__(self) -> str:
        return f"{self.sym} {_SIGNS[self.relation]} 0"


_SIGNS = {"eq": "==", "ne": "!=", "ge": ">="}
_RELATIONS: dict[str, Callable[[int], bool]] = {"eq": lambda n: n == 0, "ne": lambda n: n != 0,
                                                "ge": lambda n: n >= 0}
_OPPOSITE: dict[str, Callable[[Sym], tuple[str, Any]]] = {
    "eq": lambda s: ("ne", s), "ge": lambda s: ("ge", -1 - s)}
_asked: ContextVar[dict[Condition, Any] | None] = ContextVar("asked", default=None)


@contextmanager
def asking() -> Iterator[dict[Condition, Any]]:
    """While entered, questions about sizes are answered for their hints, and noted: the dict that this gives
    holds them, in order."""
    found: dict[Condition, Any] = {}
    token = _asked.set(found)
    try:
        yield found
    finally:
        _asked.reset(token)


def asked() -> dict[Condition, Any]:
    """What has been asked since `asking` was entered; the values are the notes of whoever asks."""
    found = _asked.get()
    return {} if found is None else found


def _of_sizes(s: Sym | int) -> bool:
    return isinstance(s, int) or all(type(v) is Size for v in s.vars)


def _decide(relation: str, s: Sym | int) -> bool:
    """Whether `s` is 0 ("eq") or at least 0 ("ge"): by its bounds, else by hints, which is noted."""
    lo, hi = span(s)
    if lo >= 0 and (relation == "ge" or lo > 0):
        return relation == "ge"
    if hi < 0 or lo == hi == 0:
        return hi == 0
    found = _asked.get()
    if found is None or isinstance(s, int) or not _of_sizes(s):
        raise TypeError(f"the sign of {s} cannot be decided")
    yes = _RELATIONS[relation](hint(s))
    found.setdefault(Condition(relation, s) if yes else Condition(*_OPPOSITE[relation](s)))
    return yes


def hint(s: Sym | int) -> int:
    """The value in the call that is being compiled. For what is about speed or sizes of tables; it leaves no
    condition, so nothing may be decided by it that results depend on."""
    if isinstance(s, int):
        return s
    return evaluate(s, {v.name: v.hint for v in s.vars})  # type: ignore[attr-defined]


# ---- questions ----


def bounds(s: Sym | int) -> tuple[Bound, Bound]:
    """(lo, hi), inclusive; ±inf where unknown."""
    return (s, s) if isinstance(s, int) else (s.lo, s.hi)


def free_vars(s: Sym | int) -> frozenset[Var]:
    return frozenset() if isinstance(s, int) else s.vars


def same(a: Sym | int | None, b: Sym | int) -> bool:
    """Whether they are equal by their form; asks nothing of sizes. None is equal to nothing."""
    return a is b or isinstance(a, int) and isinstance(b, int) and a == b


def span(s: Sym | int) -> tuple[Bound, Bound]:
    """The bounds, brought to 0 or beyond where what sizes are decides the sign."""
    lo, hi = bounds(s)
    if lo > 0 or hi < 0 or isinstance(s, int) or not any(isinstance(v, (Size, Walk)) for v in s.vars):
        return lo, hi
    if nonnegative(s):
        return int(nonnegative(s - 1)), hi
    return (lo, -int(nonnegative(-1 - s))) if nonnegative(-s) else (lo, hi)


@lru_cache(maxsize=4096)
def nonnegative(s: Sym | int) -> bool:
    """Whether s >= 0 for sure: by its bounds, or at every corner of the loops and for all sizes."""
    lo, hi = bounds(s)
    if lo >= 0 or hi < 0 or isinstance(s, int) or not any(isinstance(v, (Size, Walk)) for v in s.vars):
        return lo >= 0
    for a, c in s.terms:                            # c*a is at least (something without a) / scale
        rest, scale = s - c * a, 1
        if isinstance(a, Div) and bounds(a.den)[0] > 0:
            scale, least = a.den, c * a.num - (c * (a.den - 1) if c > 0 else 0)
        elif isinstance(a, Mod) and bounds(a.den)[0] > 0:
            least = 0 if c > 0 else c * (a.den - 1)
        elif c > 0 and isinstance(a, Prod) and not all(isinstance(f, Var) for f in a.factors):
            least = a.lo if a.lo == 0 else -inf
        else:
            continue
        return not isinstance(least, float) and nonnegative(rest * scale + least + scale - 1)
    v = next((v for v in s.vars if not isinstance(v, Size)), None)
    if v is not None:
        return _at_ends(s, v)
    shifted = substitute(s, {v: v.lo + Var(v.name, 0) for v in s.vars})     # type: ignore[operator]
    return bounds(shifted)[0] >= 0


def _at_ends(s: Sym, v: Var) -> bool:
    """Whether s, linear in v, is at least 0 at both ends of v's range."""
    slope: Sym | int = 0
    for a, c in s.terms:
        if v in a.vars:
            k = _without(a, (v,))
            if k is None or v in free_vars(k):
                return False
            slope = slope + k * c
    top = v.extent - 1 if isinstance(v, Walk) else v.hi
    if v.lo == -inf or isinstance(top, float):
        return False
    ends = [] if nonnegative(-slope) and not same(slope, 0) else [v.lo]
    ends += [] if nonnegative(slope) else [top]
    return all(nonnegative(substitute(s, {v: end})) for end in ends)     # type: ignore[dict-item]


def substitute(s: Sym | int, env: Mapping[Var, Sym | int]) -> Sym | int:
    """s with variables replaced, simplified again under the new bounds."""
    if isinstance(s, int) or not any(v in env for v in s.vars):
        return s
    total: Sym | int = s.const
    for a, c in s.terms:
        total = total + c * _rebuild(a, lambda part: substitute(part, env), lambda v: env.get(v, v))
    return total


def evaluate(s: Sym | int, env: Mapping[str, Any]) -> Any:
    """The value of s where each variable's name stands for env[name]: an int, or an integer tensor (then
    everything broadcasts)."""
    if isinstance(s, int):
        return s
    total: Any = s.const
    for a, c in s.terms:
        total = total + c * _rebuild(a, lambda part: evaluate(part, env), lambda v: env[v.name])
    return total


def _rebuild(a: Sym, again: Callable[[Sym | int], Any], leaf: Callable[[Var], Any]) -> Any:
    if isinstance(a, Var):
        return leaf(a)
    if isinstance(a, Prod):
        out: Any = 1
        for f in a.factors:
            out = out * again(f)
        return out
    if isinstance(a, Div):
        return again(a.num) // again(a.den)
    if isinstance(a, Mod):
        return again(a.num) % again(a.den)
    raise TypeError(f"not an atom: {a!r}")
