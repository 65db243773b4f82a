"""The walk both emitters share: where a value of a kernel is computed, once, and how memory is reached
along a vector axis.

Takes the loops of `schedule.plan.Kernel`; `codegen.cpp` prints with it. Scopes (function, thread, par
point, inner loops) nest, and each knows which loop variables exist in it; a value is printed in the
outermost scope that has all its variables, so hoisting out of loops needs no analysis of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ..ir.forms import coefficient
from ..ir.sym import Div, Mod, Prod, Size, Sym, Var, bounds
from ..loops.ir import Load, Loop, Val, walk


@dataclass
class Scope:
    """One level of nesting while it is being printed.

    names    loop variables that exist here (those of outer scopes included)
    lines    text so far; a value hoisted into this scope is appended while inner scopes are still open,
             hence before them
    memo     what is already computed here: Val -> its text
    """

    names: frozenset[Var]
    depth: int
    lines: list[str] = field(default_factory=list)
    memo: dict[Val, str] = field(default_factory=dict)

    def put(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)


def buffers_read(v: Val, memo: dict[Val, frozenset[str]]) -> frozenset[str]:
    """Names of the buffers whose content `v` depends on."""
    if v in memo:
        return memo[v]
    for x in walk(v):
        if x not in memo:
            own = frozenset((x.buffer,)) if isinstance(x, Load) else frozenset()
            memo[x] = own.union(*(memo[a] for a in x.args))
    return memo[v]


def forget(scopes: Iterable[Scope], stored: frozenset[str], memo: dict[Val, frozenset[str]]) -> None:
    """Drops remembered values that read a buffer which has been stored to since."""
    if not stored:
        return
    for scope in scopes:
        for v in [v for v in scope.memo if buffers_read(v, memo) & stored]:
            del scope.memo[v]


def widest(values: Iterable[Val], loops: Iterable[Loop], varying: Callable[[Val], bool]) -> int:
    """Bytes of the widest element type among the values that differ from lane to lane: decides the number
    of lanes."""
    size = 1
    for loop in loops:
        size = max(size, 4 if loop.combine in ("argmax", "argmin") else loop.store_dtype.itemsize)
    seen: set[Val] = set()
    for root in values:
        for v in walk(root):
            if v not in seen and varying(v):
                size = max(size, v.dtype.itemsize)
            seen.add(v)
    return size


def lane_step(index: Sym | int, var: Var | None) -> Sym | int | None:
    """How far apart in memory neighbouring lanes are: 0 for one place, 1 for a row, k for a stride, None
    for anything else."""
    return 0 if var is None else coefficient(index, var)


@dataclass(frozen=True, slots=True)
class Language:
    """How a target writes what Sym has: a quotient of numbers that are not negative, the general quotient and
    remainder (rounded down), and an integer that needs 64 bits."""

    quotient: str
    floordiv: str
    remainder: str
    long: str


CPP = Language("/", "mc::floordiv(i64({}), i64({}))", "mc::floormod(i64({}), i64({}))", "{}L")
TRITON = Language("//", "ops.floordiv({}, {})", "ops.remainder({}, {})", "{}")


def index_text(s: Sym | int, names: Mapping[str, str] | None = None, to: Language = CPP) -> str:
    """Text of a Sym; `names` replaces variables (bound by a gather) by their text."""
    if isinstance(s, int):
        return to.long.format(s) if abs(s) >= 2**31 else str(s)
    parts = []
    for atom, c in s.terms:
        text = _atom_text(atom, names or {}, to)
        parts.append(text if c == 1 else f"-{text}" if c == -1 else f"{index_text(c, to=to)} * {text}")
    if s.const:
        parts.append(index_text(s.const, to=to))
    return parts[0] if len(parts) == 1 else "(" + " + ".join(parts).replace("+ -", "- ") + ")"


def count_text(n: Sym | int) -> str:
    """Text of an extent or a stride, as an operand."""
    text = index_text(n) if isinstance(n, Sym) else str(n)
    return text if isinstance(n, (int, Var)) else f"({text})"


def _atom_text(a: Sym, names: Mapping[str, str], to: Language) -> str:
    if isinstance(a, Var):
        return names.get(a.name, f"n_{a.name}" if isinstance(a, Size) else a.name)
    if isinstance(a, Prod):
        return "(" + " * ".join(_atom_text(f, names, to) for f in a.factors) + ")"
    assert isinstance(a, (Div, Mod)), a
    num, den = index_text(a.num, names, to), index_text(a.den, names, to)
    den = den if isinstance(a.den, int) else f"({den})"
    # then the targets' operators, which cut towards 0, agree
    if bounds(a.num)[0] >= 0 and bounds(a.den)[0] > 0:
        return f"({num} {to.quotient if isinstance(a, Div) else '%'} {den})"
    return (to.floordiv if isinstance(a, Div) else to.remainder).format(num, den)
