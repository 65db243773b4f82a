"""Folding: prims on indices and literals decided while loops are built.

Takes a prim and its operand Vals, gives a simpler Val or None. It matters for index arithmetic: `where(i <
0, i + n, i)` with i a loop variable is i, so a gather through an arange becomes an ordinary strided load.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..ir.sym import Sym, bounds, span
from .val import Const, Index, Val, const, index

LIMIT = 1 << 62
ARITHMETIC: dict[str, Callable[[Sym | int, Sym | int], Sym | int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
}
DIVISIONS: dict[str, Callable[[Sym | int, int], Sym | int]] = {
    "floordiv": lambda a, b: a // b,
    "remainder": lambda a, b: a % b,
}


def fold(prim: str, args: tuple[Val, ...], dtype: torch.dtype) -> Val | None:
    """What the prim gives if that is a literal, an index, or one of its operands; else None."""
    if prim == "where":
        return _where(args)
    if prim in ("and", "or") and dtype is torch.bool:
        return _logical(prim, args)
    if prim == "cast":
        s = integer(args[0])
        return (index(s, dtype) if s is not None and dtype in (torch.int64, torch.float32, torch.float64) and
                exact(s, dtype) else None)
    syms = [integer(a) for a in args]
    if len(syms) != 2 or syms[0] is None or syms[1] is None:
        return None
    return _two(prim, syms[0], syms[1], dtype)


def integer(v: Val) -> Sym | int | None:
    """The int64 Val as a Sym, if it is one."""
    if v.dtype is not torch.int64:
        return None
    if isinstance(v, Const):
        return int(v.value)
    return v.sym if isinstance(v, Index) else None


def exact(s: Sym | int, dtype: torch.dtype) -> bool:
    """Whether every value of s is a number of this dtype."""
    lo, hi = bounds(s)
    most = {torch.float32: 1 << 24, torch.float64: 1 << 53}.get(dtype, LIMIT)
    return -most <= lo and hi <= most


def _where(args: tuple[Val, ...]) -> Val | None:
    condition, a, b = args
    if isinstance(condition, Const):
        return a if condition.value else b
    return a if a is b else None


def _logical(prim: str, args: tuple[Val, ...]) -> Val | None:
    for one, other in (args, args[::-1]):
        if isinstance(one, Const):
            return other if bool(one.value) == (prim == "and") else one
    return args[0] if args[0] is args[1] else None


def _two(prim: str, a: Sym | int, b: Sym | int, dtype: torch.dtype) -> Val | None:
    result: Sym | int
    if prim in ARITHMETIC:
        result = ARITHMETIC[prim](a, b)
    elif prim == "mul" and (isinstance(a, int) or isinstance(b, int)):
        result = a * b
    elif prim in DIVISIONS and isinstance(b, int) and b > 0:
        result = DIVISIONS[prim](a, b)
    else:
        return _compare(prim, a - b)
    return index(result, dtype) if exact(result, dtype) and dtype is torch.int64 else None


def _compare(prim: str, difference: Sym | int) -> Val | None:
    lo, hi = span(difference)
    never, always = {"lt": (lo >= 0, hi < 0), "le": (lo > 0, hi <= 0), "gt": (hi <= 0, lo > 0),
                     "ge": (hi < 0, lo >= 0), "eq": (lo > 0 or hi < 0, lo == hi == 0),
                     "ne": (lo == hi == 0, lo > 0 or hi < 0)}.get(prim, (False, False))
    return const(always, torch.bool) if never or always else None
