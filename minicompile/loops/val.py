"""Val: scalar expressions over loop variables, hash-consed, and the folds over them.

Takes `ir.sym`; loops are made of these (`nest`), and every later stage reads them by folding: printing,
dependencies, cost, reference execution, C++ and Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..ir.forms import coefficient, less
from ..ir.intern import interner
from ..ir.sym import Sym, Var, bounds, free_vars, hint, substitute


class Val:
    """A scalar expression of the loop variables. Hash-consed: equal means identical, so `is` and dict keys
    are structural.

    args    the operand Vals (of a Load: its indirect indices, then its mask)
    vars    every loop variable it depends on (variables that a Load binds itself are not free)
    """

    __slots__ = ("dtype", "args", "vars", "loaded", "__weakref__")
    dtype: torch.dtype
    args: tuple[Val, ...]
    vars: frozenset[Var]
    loaded: tuple[Load, ...]  # set by `loads`

    def __str__(self) -> str:
        return show(self)

    __repr__ = __str__


class Load(Val):
    """The element at linear offset `index` (in elements from the buffer's own start: its spec's offset is
    not included) of `buffer`.

    Each `indirect` pair binds a variable of `index` to an int64 Val (gather). Where `mask` (a bool Val) is
    false nothing is read and the value is 0.
    """

    __slots__ = ("buffer", "index", "indirect", "mask")
    buffer: str
    index: Sym | int
    indirect: tuple[tuple[Var, Val], ...]
    mask: Val | None


class Const(Val):
    """A literal; `value` is a bool, int, float or complex as `dtype` has it."""

    __slots__ = ("value",)
    value: bool | int | float | complex


class Index(Val):
    """A function of the loop variables as a number."""

    __slots__ = ("sym",)
    sym: Sym | int


class Apply(Val):
    """An elementwise row of the prim table, by name ("add", "where", "cast", …). Operands of one call share
    a dtype, but for where's first (bool) and cast's and bitcast's, whose result is `dtype`. Low-precision
    floats never reach arithmetic: the lowering casts."""

    __slots__ = ("prim",)
    prim: str


class Checked(Val):
    """An int64 index that must lie in [lo, hi); outside, error number `error` (of Loops.errors) is raised
    after the call and the value is clamped into the range, so that the process lives."""

    __slots__ = ("lo", "hi", "error")
    lo: int
    hi: Sym | int
    error: int


COMPARISONS = frozenset("eq ne lt le gt ge".split())
NARROW = -2**31, 2**31 - 1
_intern = interner()  # the one Val with a key


def _new(cls: type, dtype: torch.dtype, args: tuple[Val, ...], own: frozenset[Var], **fields: Any) -> Any:
    self = object.__new__(cls)
    self.dtype, self.args = dtype, args
    self.vars = own.union(*(a.vars for a in args)) if args else own
    for name, value in fields.items():
        setattr(self, name, value)
    return self


def _sym_key(s: Sym | int) -> tuple:
    return ("int", s) if isinstance(s, int) else ("sym", id(s))


def load(buffer: str, index: Sym | int, dtype: torch.dtype, indirect: tuple[tuple[Var, Val], ...] = (),
         mask: Val | None = None) -> Load:
    """See Load. Pairs whose variable the index does not use are dropped."""
    used = free_vars(index)
    indirect = tuple(p for p in indirect if p[0] in used)
    key = ("load", buffer, *_sym_key(index), dtype, *((id(v), id(x)) for v, x in indirect), id(mask)
           if mask else None)
    args = tuple(x for _, x in indirect) + ((mask,) if mask else ())
    own = used.difference(v for v, _ in indirect)
    return _intern(key, lambda: _new(Load, dtype, args, own, buffer=buffer, index=index, indirect=indirect,
                                     mask=mask))


def const(value: bool | int | float | complex, dtype: torch.dtype) -> Const:
    """See Const; `value` is converted to dtype's Python type (0.0 and -0.0 stay two constants)."""
    if dtype is torch.bool:
        value = bool(value)
    elif dtype.is_complex:
        value = complex(value)
    else:
        value = float(value) if dtype.is_floating_point else int(value)
    return _intern(("const", repr(value), dtype), lambda: _new(Const, dtype, (), frozenset(), value=value))


def index(sym: Sym | int, dtype: torch.dtype = torch.int64) -> Val:
    """See Index; a plain int is a Const."""
    if isinstance(sym, int):
        return const(sym, dtype)
    return _intern(("index", id(sym), dtype), lambda: _new(Index, dtype, (), sym.vars, sym=sym))


def apply(prim: str, args: tuple[Val, ...], dtype: torch.dtype) -> Apply:
    """See Apply. Places that are compared are 32 bits wide where they fit: more lanes."""
    if prim in COMPARISONS and args[0].dtype is torch.int64:
        places = [a.sym if isinstance(a, Index) else a.value if isinstance(a, Const) else None for a in args]
        if all(isinstance(p, (Sym, int)) and NARROW[0] <= bounds(p)[0] and bounds(p)[1] <= NARROW[1]
               for p in places):
            args = tuple(index(p, torch.int32) for p in places if isinstance(p, (Sym, int)))
    return _intern(("apply", prim, dtype, *map(id, args)),
                   lambda: _new(Apply, dtype, args, frozenset(), prim=prim))


def checked(value: Val, lo: int, hi: Sym | int, error: int) -> Val:
    """See Checked; an Index or Const whose bounds prove it needs no check."""
    at = value.value if isinstance(value, Const) else value.sym if isinstance(value, Index) else None
    if at is not None and less(at, lo) is False and less(at, hi):       # type: ignore[arg-type]
        return value
    key = ("checked", id(value), lo, *_sym_key(hi), error)
    return _intern(key, lambda: _new(Checked, value.dtype, (value,), frozenset(), lo=lo, hi=hi, error=error))


def walk(v: Val) -> list[Val]:
    """Every distinct Val inside v, operands before users, v last."""
    order: list[Val] = []
    seen: set[Val] = set()
    stack: list[Val | None] = [v]
    while stack:
        x = stack.pop()
        if x is None:                       # behind it is one whose operands are all in `order`
            order.append(stack.pop())       # type: ignore[arg-type]
        elif x not in seen:
            seen.add(x)
            if x.args:
                stack += (x, None, *x.args[::-1])
            else:
                order.append(x)
    return order


def loads(v: Val) -> tuple[Load, ...]:
    """Every distinct Load inside v; remembered, as every stage asks (a Load would hold itself: not by it)."""
    if isinstance(v, Load):
        return tuple(x for x in walk(v) if isinstance(x, Load)) if v.args else (v,)
    found: tuple[Load, ...] | None = getattr(v, "loaded", None)
    if found is None:
        found = v.loaded = tuple(x for x in walk(v) if isinstance(x, Load))
    return found


def stride_along(x: Load, v: Var) -> int | None:
    """How many elements apart two neighbours along v are read, roughly; None where it is not that simple."""
    step: Sym | int = 0
    for bound, place in ((v, None), *x.indirect):
        if place is None or v in place.vars:
            k = coefficient(x.index, bound)
            if k is None:
                return None
            step = step + k
    return hint(step)


def rebuild(v: Val, args: tuple[Val, ...], env: Mapping[Var, Sym | int]) -> Val:
    """v with new operands and with loop variables replaced in its own index."""
    if isinstance(v, Apply):
        return v if args == v.args else apply(v.prim, args, v.dtype)
    if isinstance(v, Load):
        n = len(v.indirect)
        bound = tuple((env.get(p[0], p[0]), x) for p, x in zip(v.indirect, args))
        return load(v.buffer, substitute(v.index, env), v.dtype, bound, args[n] if v.mask else None)
    if isinstance(v, Index):
        return index(substitute(v.sym, env), v.dtype)
    if isinstance(v, Checked):
        return checked(args[0], v.lo, substitute(v.hi, env), v.error)
    return v


def rewrite(v: Val, env: Mapping[Var, Sym | int], change: Callable[[Val], Val | None] = lambda _: None,
            memo: dict[Val, Val] | None = None) -> Val:
    """v with variables replaced by `env`, then each node for which `change` gives something replaced by
    that, bottom up. `memo` may be shared between calls with the same env and change."""
    done = {} if memo is None else memo
    if v in done:
        return done[v]
    for x in walk(v):
        if x not in done:
            new = rebuild(x, tuple(done[a] for a in x.args), env)
            done[x] = change(new) or new
    return done[v]


def show(v: Val) -> str:
    """One line of Python-like text."""
    if isinstance(v, Load):
        text = str(v.index)
        text = text[1:-1] if text.startswith("(") and text.endswith(")") and ")" not in text[:-1] else text
        for var, x in v.indirect:
            text += f"; {var}={show(x)}"
        return f"{v.buffer}[{text}]" + (f" if {show(v.mask)} else 0" if v.mask else "")
    if isinstance(v, Const):
        return repr(v.value)
    if isinstance(v, Index):
        return str(v.sym)
    if isinstance(v, Checked):
        return f"checked({show(v.args[0])}, {v.lo}, {v.hi}, error={v.error})"
    if isinstance(v, Apply):
        tail = f", {str(v.dtype).removeprefix('torch.')}" if v.prim in ("cast", "bitcast") else ""
        return f"{v.prim}({', '.join(map(show, v.args))}{tail})"
    raise TypeError(f"not a Val: {type(v)}")
