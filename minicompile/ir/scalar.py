"""Scalars: Python numbers that torch calls take while their value stays open.

Takes nothing; `ir.fake` computes with them, `capture.varying` makes them of numbers that differ from call to
call, `lower.trace` turns them into inputs of a graph. Torch hands a SymFloat or SymInt through to where an
operator is called; all it asks on the way is asked of the `Number` inside. So a value that is looked at
is always known to have been.
"""
from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch

from ..errors import Refusal
from .spec import TensorSpec
from .sym import NeedsSizes, Size, Sym, hint

SYMBOLS = (torch.SymFloat, torch.SymInt)
DTYPES = {float: torch.float64, int: torch.int64}


class Specialise(Refusal):
    """The value of a scalar is needed, in a graph that of its input `index`."""

    def __init__(self, what: str, index: int = -1):
        super().__init__("varying", f"{what} needs the value of a number that varies")
        self.index = index


class Number:
    """What a SymFloat or SymInt of ours holds: the value it has in this call, and `ask`, which is called when
    it matters (it notes that, or raises Specialise) and gives the value. A size has its expression `sym`."""

    __slots__ = ("value", "ask", "sym")

    def __init__(self, value: int | float, ask: Callable[[Number], int | float], sym: Sym | None = None):
        self.value, self.ask, self.sym = value, ask, sym

    @classmethod
    def of_size(cls, sym: Sym) -> Number:
        """The number that a size, or an expression of sizes, is."""
        return cls(hint(sym), _needs_size, sym)

    def is_int(self) -> bool:
        return type(self.value) is int

    def is_float(self) -> bool:
        return type(self.value) is float

    def is_bool(self) -> bool:
        return False

    is_constant = is_nested_int = is_bool
    constant = None

    def is_symbolic(self) -> bool:
        return True

    has_hint = is_symbolic

    def maybe_as_int(self) -> None:
        return None

    def guard_float(self, file: str, line: int) -> float:
        return self.ask(self)

    guard_int = guard_float

    def __getattr__(self, name: str) -> Any:          # arithmetic of torch's own
        if self.sym is not None and name in _ARITHMETIC:
            return lambda *others: _ARITHMETIC[name](self.sym, *map(_size, others))
        if self.sym is not None and name in _OF_SIZES:
            return lambda *given: _OF_SIZES[name](self, *given)
        if name[0] == "_":
            raise AttributeError(name)
        raise Specialise(f"torch's {name}") if self.sym is None else NeedsSizes(self.sym, f"torch's {name}")


class Constant(Number):
    """A number that an expression of sizes turns out to be."""

    __slots__ = ()

    def __init__(self, value: int):
        super().__init__(value, lambda number: number.value, value)

    def is_constant(self) -> bool:
        return True

    def is_symbolic(self) -> bool:
        return False

    def maybe_as_int(self) -> int:
        return self.value


class Truth:
    """What a SymBool of ours holds: a question about sizes, asked when its answer matters."""

    def __init__(self, answer: Callable[[], Any]):
        self.answer = answer

    def is_bool(self) -> bool:
        return True

    is_symbolic = has_hint = is_bool

    def is_int(self) -> bool:
        return False

    is_float = is_constant = is_nested_int = is_int
    constant = None

    def guard_bool(self, *_: Any) -> bool:
        return bool(self.answer())

    bool_ = expect_true = guard_size_oblivious = guard_or_true = guard_or_false = guard_bool
    statically_known_true = guard_bool

    def sym_and(self, other: Truth) -> Truth:
        return Truth(lambda: self.answer() and other.answer())

    def sym_or(self, other: Truth) -> Truth:
        return Truth(lambda: self.answer() or other.answer())

    def sym_not(self) -> Truth:
        return Truth(lambda: not self.answer())

    and_, or_ = sym_and, sym_or

    def wrap_bool(self, value: bool) -> Truth:
        return Truth(lambda: value)


def _size(number: Number) -> Sym | int:
    if number.sym is None:
        raise Specialise("arithmetic with a size")
    return number.sym


def _number(result: Sym | int) -> Number:
    return Constant(result) if isinstance(result, int) else Number.of_size(result)


def _computed(f: Callable[..., Sym | int]) -> Callable[..., Number]:
    return lambda *syms: _number(f(*syms))


def _asked(f: Callable[..., bool]) -> Callable[..., Truth]:
    return lambda *syms: Truth(lambda: f(*syms))


def _power(base: Sym | int, exponent: Sym | int) -> Sym | int:
    return prod([base] * exponent)          # type: ignore[list-item, operator]


# What torch asks of integers, by the names it has for it.
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{name: _computed(getattr(operator, name)) for name in "add sub mul mod floordiv neg".split()},
    "pow_by_natural": _computed(_power),
    "int_floordiv": _computed(operator.floordiv), "sym_max": _computed(max), "sym_min": _computed(min),
    **{name: _asked(getattr(operator, name)) for name in "eq ne lt le gt ge".split()}}
_OF_SIZES: dict[str, Callable[..., Any]] = {
    "clone": lambda number: number, "wrap_int": lambda number, value: Constant(value),
    "wrap_bool": lambda number, value: Truth(lambda: value),
    "_graph_repr": lambda number: str(number.sym), "str": lambda number: str(number.sym)}


def symint(s: Sym | int) -> Any:
    """A size as torch takes it."""
    return s if isinstance(s, int) else torch.SymInt(Number.of_size(s))


def sym_of(x: Any) -> Any:
    """`x` with the sizes that are in it as Syms: arguments of a torch call."""
    if isinstance(x, torch.SymInt):
        return x if x.node.sym is None else x.node.sym
    if isinstance(x, dict):
        return {k: sym_of(v) for k, v in x.items()}
    return type(x)(map(sym_of, x)) if type(x) in (tuple, list) else x


def unbound(examples: Sequence[Any]) -> tuple[int, ...]:
    """Which of a graph's examples are sizes that no tensor among them has as a dimension: they are inputs of
    their own. Any other size is read off a tensor."""
    bound = {id(sym_of(n)) for x in examples if isinstance(x, (torch.Tensor, TensorSpec)) for n in x.shape}
    found = []
    for i, x in enumerate(examples):
        if isinstance(x, torch.SymInt) and isinstance(x.node.sym, Size) and id(x.node.sym) not in bound:
            bound.add(id(x.node.sym))
            found.append(i)
    return tuple(found)


def _needs_size(number: Number) -> int:
    assert number.sym is not None
    raise NeedsSizes(number.sym)


def symbol(number: Number) -> Any:
    """What stands for the number in torch calls."""
    return (torch.SymFloat if number.is_float() else torch.SymInt)(number)


def numbers_in(x: Any) -> Iterator[Number]:
    if isinstance(x, SYMBOLS):
        yield x.node
    elif isinstance(x, (tuple, list)):
        for e in x:
            yield from numbers_in(e)
    elif isinstance(x, slice):
        yield from numbers_in((x.start, x.stop, x.step))


def plain(x: Any) -> Any:
    """`x` with the values of its scalars. Only for what does not show in results."""
    if isinstance(x, SYMBOLS):
        return x.node.value
    return type(x)(map(plain, x)) if type(x) in (tuple, list) else x


def ask(x: Any) -> Any:
    """`x` with the values of its scalars, which are known from now on."""
    if isinstance(x, SYMBOLS):
        return x.node.ask(x.node)
    if isinstance(x, slice):
        return slice(ask(x.start), ask(x.stop), ask(x.step))
    return type(x)(map(ask, x)) if type(x) in (tuple, list) else x


def number_spec(value: int | float) -> TensorSpec:
    """The spec of a graph's input that holds a number like this one."""
    return TensorSpec(DTYPES[type(value)], (), (), number=True)


def like_number(spec: TensorSpec) -> int | float:
    """A number as good as any for asking about geometries."""
    return 1.0 if spec.dtype.is_floating_point else 1


# Operators whose decompositions take a scalar that is only known at run time, and in none of which a scalar
# decides about a geometry. In place too, and over lists.
_TABLE = """add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar mul.Tensor mul.Scalar
div.Tensor div.Scalar pow.Scalar lerp.Scalar addcmul addcdiv clamp clamp_min clamp_max masked_fill.Scalar
where.ScalarSelf where.ScalarOther where.Scalar fill.Scalar full full_like new_full scalar_tensor eq.Tensor
ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar
_foreach_add.Scalar _foreach_add.List _foreach_add.ScalarList _foreach_sub.Scalar _foreach_sub.List
_foreach_sub.ScalarList _foreach_mul.Scalar _foreach_mul.ScalarList _foreach_div.Scalar
_foreach_div.ScalarList _foreach_lerp.Scalar _foreach_addcmul.Scalar _foreach_addcmul.ScalarList
_foreach_addcdiv.Scalar _foreach_addcdiv.ScalarList""".split()
_TYPES = frozenset({"number", "Optional[number]", "List[number]", "Tensor"})


def _open_arguments() -> dict[Any, frozenset[str]]:
    table: dict[Any, frozenset[str]] = {}
    for text in _TABLE:
        name, _, overload = text.partition(".")
        for packet in (getattr(torch.ops.aten, n, None) for n in (name, f"{name}_")):
            op = getattr(packet, overload or "default", None) if packet is not None else None
            if op is not None:
                table[op] = frozenset(a.name for a in op._schema.arguments if str(a.type) in _TYPES)
    return table


OPEN = _open_arguments()
_FLOATS = frozenset({torch.float32, torch.float64, torch.bfloat16})


def fits(number: Number, dtype: torch.dtype) -> bool:
    """Whether results of this dtype take any such number as eager mode does, without an error for some."""
    return dtype in _FLOATS or dtype is torch.bool or dtype is torch.int64 and number.is_int()
