"""Rewrites: identities tried on every new prim, as data. Each is exact: the same bits as without it.

Takes (builder, row, args) of a node about to be made, gives a node that means the same, or None. Not here:
x + 0.0 (wrong for -0.0), x * 0 and x - x (wrong for NaN and infinities), and casts to a narrower dtype and
back (that is where eager mode rounds). Common subexpressions are shared by the builder itself.
"""
from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from ..ir.forms import alike
from ..ir.graph import Node
from ..ir.prims import PRIMS, Prim
from ..ir.sym import Sym, same

if TYPE_CHECKING:
    from .builder import Builder

Rewrite = Callable[["Builder", Prim, tuple], Node | None]


def is_op(x: Any, name: str) -> bool:
    return isinstance(x, Node) and x.op is PRIMS[name]


def number(x: Any) -> Any:
    """The value of a constant operand, None for any other."""
    value = x.args[1] if is_op(x, "full") else x
    return None if isinstance(value, (Node, Sym)) else value


def fold_constants(b: Builder, row: Prim, args: tuple) -> Node | None:
    """Elementwise on constants only: computed now, by the row's reference."""
    nodes = [a for a in args if isinstance(a, Node)]
    if not nodes or any(number(n) is None for n in nodes):
        return None
    values = [torch.tensor(a.args[1], dtype=a.args[2]) if isinstance(a, Node) else a for a in args]
    out = row.ref(*values)
    return b.full(nodes[0].tensor.shape, out.item(), out.dtype)


# Dtypes of the operands (f float, i integer, b bool): pattern -> replacement. Letters are any operands, the
# same letter the same operand; numbers are constants, of which zeros have signs and bools are 0 and 1.
IDENTITIES = {
    "fi": """mul(x, 1) -> x; mul(1, x) -> x; sub(x, 0) -> x; neg(neg(x)) -> x; abs(abs(x)) -> abs(x);
        add(x, neg(y)) -> sub(x, y); add(neg(x), y) -> sub(y, x); maximum(x, x) -> x;
        sub(x, neg(y)) -> add(x, y); mul(neg(x), neg(y)) -> mul(x, y); minimum(x, x) -> x""",
    "f": """abs(neg(x)) -> abs(x); div(x, 1) -> x; pow(x, 1) -> x; add(x, -0.0) -> x; add(-0.0, x) -> x;
        div(neg(x), neg(y)) -> div(x, y); """ + "; ".join(
            f"{a}({b}(x)) -> {b}(x)" for a in ("floor", "ceil", "trunc", "round")
            for b in ("floor", "ceil", "trunc", "round")),
    "i": """add(x, 0) -> x; add(0, x) -> x; mul(x, 0) -> 0; mul(0, x) -> 0; sub(x, x) -> 0; shl(x, 0) -> x;
        floordiv(x, 1) -> x; truncdiv(x, 1) -> x; remainder(x, 1) -> 0; shr(x, 0) -> x""",
    "ib": """and_(x, 0) -> 0; and_(0, x) -> 0; and_(x, x) -> x; or_(x, x) -> x; or_(x, 0) -> x;
        or_(0, x) -> x; xor(x, 0) -> x; xor(0, x) -> x; xor(x, x) -> 0; not_(not_(x)) -> x""",
    "b": """and_(x, 1) -> x; and_(1, x) -> x; or_(x, 1) -> 1; or_(1, x) -> 1; xor(x, 1) -> not_(x);
        xor(1, x) -> not_(x); eq(x, 1) -> x; ne(x, 0) -> x; eq(x, 0) -> not_(x); ne(x, 1) -> not_(x);
        where(c, 1, 0) -> c; where(c, 0, 1) -> not_(c); not_(eq(x, y)) -> ne(x, y);
        not_(ne(x, y)) -> eq(x, y)""",
    "fib": """where(1, x, y) -> x; where(0, x, y) -> y; where(c, x, x) -> x;
        where(not_(c), x, y) -> where(c, y, x);
        where(c, where(c, x, y), z) -> where(c, x, z); where(c, x, where(c, y, z)) -> where(c, x, z)"""}
Pattern = Any          # a number, a letter, or (row, *patterns)


def _pattern(e: Any) -> Pattern:
    if isinstance(e, ast.Call):
        return (PRIMS[e.func.id.rstrip("_")], *map(_pattern, e.args))          # type: ignore[attr-defined]
    return e.id if isinstance(e, ast.Name) else ast.literal_eval(e)


def parsed() -> Iterator[tuple[str, Pattern, Pattern]]:
    """(dtypes, pattern, replacement) of each identity."""
    for kinds, text in IDENTITIES.items():
        for identity in text.split(";"):
            before, after = (ast.parse(side.strip(), mode="eval").body for side in identity.split("->"))
            yield kinds, _pattern(before), _pattern(after)


BY_ROW: dict[Prim, list[tuple[str, Pattern, Pattern]]] = {}
for identity in parsed():
    BY_ROW.setdefault(identity[1][0], []).append(identity)


def fits(p: Pattern, x: Any, found: dict[str, Any]) -> bool:
    """Whether x is of this form; `found` learns what its letters are."""
    if isinstance(p, str):
        known = found.setdefault(p, x)
        return known is x or not isinstance(x, Node) and not isinstance(known, Node) and _is(x, known)
    if isinstance(p, tuple):
        return isinstance(x, Node) and x.op is p[0] and all(fits(q, a, found) for q, a in zip(p[1:], x.args))
    return _is(x, p)


def _is(x: Any, value: float) -> bool:
    """Is it this constant, sign of zero included?"""
    n = number(x)
    return (n is not None and not isinstance(n, torch.dtype) and n == value
            and math.copysign(1, n) == math.copysign(1, value))


def simplify(b: Builder, row: Prim, args: tuple) -> Node | None:
    """The first identity that fits."""
    node = next((a for a in args[row.name == "where":] if isinstance(a, Node)), None)
    if row not in BY_ROW or node is None:
        return None
    dtype = node.tensor.dtype
    kind = "b" if dtype is torch.bool else "f" if dtype.is_floating_point else "i"
    for kinds, pattern, replacement in BY_ROW[row]:
        found: dict[str, Any] = {}
        if kind in kinds and all(fits(p, a, found) for p, a in zip(pattern[1:], args)):
            if not isinstance(replacement, (str, tuple)):
                return b.full(node.tensor.shape, replacement == 1 if kind == "b" else replacement, dtype)
            made = _made(b, replacement, found)
            if isinstance(made, Node):
                return made
    return None


def _made(b: Builder, p: Pattern, found: dict[str, Any]) -> Any:
    return b.emit(p[0], tuple(_made(b, q, found) for q in p[1:])) if isinstance(p, tuple) else found.get(p, p)


def by_reciprocal(b: Builder, row: Prim, args: tuple) -> Node | None:
    """A quotient by a power of two is a product."""
    n = number(args[1]) if row.name == "div" else None
    if not isinstance(n, float) or not isinstance(args[0], Node) or abs(math.frexp(n)[0]) != 0.5:
        return None
    return b.mul(args[0], 1 / n) if 2.0 ** -100 < abs(n) < 2.0 ** 100 else None


WIDER = {torch.bool: "uint8 int8 int16 int32 int64 bfloat16 float16 float32 float64",
         torch.uint8: "int16 int32 int64 float16 float32 float64",
         torch.int8: "int16 int32 int64 float16 bfloat16 float32 float64",
         torch.int16: "int32 int64 float32 float64", torch.int32: "int64 float64",
         torch.bfloat16: "float32 float64", torch.float16: "float32 float64", torch.float32: "float64"}


def keeps_all(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether every value of `source` is a value of `target`."""
    return str(target).removeprefix("torch.") in WIDER.get(source, "").split()


def merge_casts(b: Builder, row: Prim, args: tuple) -> Node | None:
    """A cast to the same dtype; a cast of a cast that lost nothing. Casts that round stay."""
    if row.name not in ("cast", "bitcast"):
        return None
    x, dtype = args
    if x.tensor.dtype is dtype:
        return x
    if row.name == "cast" and is_op(x, "cast") and keeps_all(x.args[0].tensor.dtype, x.tensor.dtype):
        return b.cast(x.args[0], dtype)
    return None


# ---- views ----------------------------------------------------------------------------------------

def same_shape(b: Builder, row: Prim, args: tuple) -> Node | None:
    """Views that change nothing."""
    x = args[0]
    if row.name in ("reshape", "expand") and alike(x.tensor.shape, tuple(args[1])):
        return x
    if row.name == "permute" and tuple(args[1]) == tuple(range(len(args[1]))):
        return x
    if row.name == "slice" and alike(args[2:], (0, x.tensor.shape[args[1]], 1)):
        return x
    if row.name == "flip" and all(x.tensor.shape[d] == 1 for d in args[1]):
        return x
    if row.name == "pad" and not any(args[1]) and not any(args[2]):
        return x
    return x[0] if row.name == "cat" and len(x) == 1 else None


def view_of_constant(b: Builder, row: Prim, args: tuple) -> Node | None:
    """Any view of a constant is a constant."""
    x = args[0]
    if row.name in ("cat", "pad") or not is_op(x, "full"):
        return None
    return b.full(row.meta(x.spec, *args[1:])[1], x.args[1], x.args[2])


def merge_views(b: Builder, row: Prim, args: tuple) -> Node | None:
    """A view of a view of the same kind."""
    x = args[0]
    if not isinstance(x, Node) or x.op is not row:
        return None
    inner = x.args[0]
    if row.name in ("reshape", "expand"):
        return b.emit(row, (inner, *args[1:]))
    if row.name == "permute":
        return b.permute(inner, tuple(x.args[1][d] for d in args[1]))
    if row.name == "slice" and x.args[1] == args[1]:
        (_, dim, start, stop, step), (start2, stop2, step2) = x.args, args[2:]
        if any(isinstance(n, Sym) for n in (start, stop, start2, stop2)):
            return b.slice(inner, dim, start + start2, start + stop2, step2) if same(step, 1) else None
        first = start + start2 * step
        count = len(range(start2, stop2, step2))
        last = first + (count - 1) * step * step2 + 1 if count else first
        return b.slice(inner, dim, first, min(last, stop) if count else first, step * step2)
    if row.name == "flip":
        return b.flip(inner, tuple(sorted(set(x.args[1]) ^ set(args[1]))))
    return None


def permute_as_reshape(b: Builder, row: Prim, args: tuple) -> Node | None:
    """A permutation that moves only dimensions of size 1 keeps the order of elements."""
    if row.name != "permute":
        return None
    shape = args[0].tensor.shape
    moving = [d for d in args[1] if shape[d] != 1]
    return b.reshape(args[0], tuple(shape[d] for d in args[1])) if moving == sorted(moving) else None


# kind of prim -> rewrites, tried in order
REWRITES: dict[str, tuple[Rewrite, ...]] = {
    "elementwise": (fold_constants, simplify, merge_casts, by_reciprocal),
    "view": (same_shape, view_of_constant, merge_views, permute_as_reshape),
}
