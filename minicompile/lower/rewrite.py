"""Rewrites: identities tried on every new prim, as data. Each is exact: the same bits as without it.

Takes (builder, row, args) of a node about to be made, gives a node that means the same, or None. Not here:
x + 0.0 (wrong for -0.0), x * 0 and x - x (wrong for NaN and infinities), and casts to a narrower dtype and
back (that is where eager mode rounds). Common subexpressions are shared by the builder itself.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..ir.graph import Node
from ..ir.prims import PRIMS, Prim
from ..ir.sym import Sym, alike, same

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


def _is(x: Any, value: float) -> bool:
    """Is it this constant, sign of zero included?"""
    n = number(x)
    return (n is not None and not isinstance(n, (bool, torch.dtype)) and n == value
            and str(float(n)) == str(float(value)))


# (row, which operand, the constant for which the other operand is the result)
NEUTRAL = [("mul", 1, 1), ("mul", 0, 1), ("div", 1, 1), ("sub", 1, 0), ("pow", 1, 1), ("add", 1, -0.0),
           ("add", 0, -0.0)]
NEUTRAL_INT = [("add", 1, 0), ("add", 0, 0), ("floordiv", 1, 1), ("truncdiv", 1, 1), ("shl", 1, 0),
               ("shr", 1, 0), ("or", 1, 0), ("or", 0, 0), ("xor", 1, 0), ("xor", 0, 0)]


def drop_neutral(b: Builder, row: Prim, args: tuple) -> Node | None:
    """x * 1, x / 1, x - 0.0, x + -0.0; for integers also x + 0, x | 0, …"""
    if len(args) != 2:
        return None
    node = next(a for a in args if isinstance(a, Node))
    if node.tensor.dtype is torch.bool:
        return None
    table = NEUTRAL if node.tensor.dtype.is_floating_point else NEUTRAL + NEUTRAL_INT
    for name, i, value in table:
        if row.name == name and _is(args[i], value) and isinstance(args[1 - i], Node):
            return args[1 - i]
    return None


def drop_double(b: Builder, row: Prim, args: tuple) -> Node | None:
    """neg(neg(x)), not(not(x)), abs(abs(x)), and rounding what is rounded."""
    if row.name in ("neg", "not") and is_op(args[0], row.name):
        return args[0].args[0]
    if row.name in ("abs", "floor", "ceil", "trunc", "round") and is_op(args[0], row.name):
        return args[0]
    return None


def choose(b: Builder, row: Prim, args: tuple) -> Node | None:
    """where with a constant condition, or with twice the same value."""
    if row.name != "where":
        return None
    condition = number(args[0])
    chosen = args[1] if condition or args[1] is args[2] else args[2] if condition is not None else None
    return chosen if isinstance(chosen, Node) else None


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
    "elementwise": (fold_constants, choose, merge_casts, drop_double, drop_neutral),
    "view": (same_shape, view_of_constant, merge_views, permute_as_reshape),
}
