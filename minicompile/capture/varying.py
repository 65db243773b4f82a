"""Varying: Python numbers that differed from call to call, and whose value a captured program leaves open.

Takes the reads that a guard on the value failed for (see `compiled`); gives objects that stand for a float or
an int. What Python computes from them has a source of its own, which is computed along with the guards; what
needs the value is told it, and leaves a guard. Torch calls take them as they are (`ir.scalar`). A program
finds no way around: to C code they are no floats, so it has to ask.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import Refusal
from ..ir.scalar import Number
from .guards import FLOAT32_MAX
from .sources import Source

NUMBERS = (int, float)
LIMIT = 1 << 31          # ints further from 0 are constants: their products may not fit into an int64
# Functions of numbers, which do nothing else.
NUMERIC = {id(f): f for f in (
    float, int, abs, round, min, max, pow,
    *(f for f in vars(math).values() if callable(f) and f is not math.fsum))}


@dataclass(frozen=True, slots=True)
class Numbers:
    """What earlier calls taught, by the text of sources: numbers that differ from call to call, those of them
    that torch calls take as sizes, and those of which the value is needed all the same."""

    changing: frozenset[str] = frozenset()
    sized: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()
    sizes: bool | None = None           # of tensors: all are open, none, or those that differ
    met: Mapping[str, dict[int, int]] = field(default_factory=dict, compare=False)      # see `Sizes.met`

    @property
    def all_sizes(self) -> bool:
        return self.sizes is True

    def closed(self) -> Numbers:
        """With nothing open."""
        return replace(self, pinned=self.pinned | self.changing, sizes=False)

    def pin(self, *sources: Source) -> Numbers:
        """With these asked for once more: an int may do as a size first, or else is a constant."""
        sized = {str(s) for s in sources if s.kind != "size" and str(s) not in self.sized}
        return replace(self, sized=self.sized | sized, pinned=self.pinned.union(map(str, sources)) - sized)


NO_NUMBERS = Numbers(sizes=False)


class NeedsNumber(Refusal):
    """The value of the int at `source` is needed."""

    def __init__(self, source: Source):
        super().__init__("varying", f"{source} must be known, but varies")
        self.source = source


class Varying:
    """A number at `source`, with the value it has in this call. `node` is torch's view of it."""

    node: Number
    source: Source
    world: Any

    def known(self) -> int | float:
        """The value, which is guarded from now on."""
        return self.node.ask(self.node)


class VaryingFloat(Varying, torch.SymFloat):
    __class__ = property(lambda self: float)  # type: ignore[assignment]  # what isinstance() asks


class VaryingInt(Varying, torch.SymInt):
    __class__ = property(lambda self: int)  # type: ignore[assignment]


KINDS: dict[type, type] = {float: VaryingFloat, int: VaryingInt}
VARYING = frozenset(KINDS.values())


def vary(world: Any, source: Source, value: int | float) -> Any:
    """What stands for the number at `source`, whose type is guarded; the value itself where it cannot
    vary."""
    known = world.scalars.get(source)
    if known is None:
        if str(source) in world.numbers.pinned or type(value) is int and abs(value) >= LIMIT:
            return world.constant_number(source, value)
        if str(source) in world.numbers.sized and value > 1:
            return world.sizes.number(world.sizes.open(source, value))
        world.guard(source, "type", type(value))
        known = world.scalars[source] = _make(world, source, value)
        world.numbers_vary()
    return settled(known)


def as_input(value: Any) -> Any:
    """`value` as a graph takes it: guarded to be in a tensor's range, or the value itself."""
    value = settled(value)
    if type(value) is VaryingInt:
        value.world.guard(value.source, "range", (1 - LIMIT, LIMIT - 1))
    elif type(value) is VaryingFloat:
        if FLOAT32_MAX < abs(value.node.value) < math.inf:
            return value.known()
        value.world.guard(value.source, "single")
    return value


def settled(value: Any) -> Any:
    """The value itself, if it is guarded."""
    return value.node.value if type(value) in VARYING and value.node.ask is _given else value


def _given(number: Number) -> int | float:
    return number.value


def _make(world: Any, source: Source, value: int | float) -> Varying:
    def ask(number: Number) -> int | float:
        if type(value) is int and value > 1 and world.numbers.sizes is not False and not _drawn(source):
            world.needed = NeedsNumber(source)
            raise world.needed
        number.ask = _given
        return world.constant_number(source, number.value)

    made: Any = KINDS[type(value)](Number(value, ask))
    made.source, made.world = source, world
    return made


def _drawn(source: Source | None) -> bool:
    """Whether it is computed from random numbers, each of which a call has once."""
    return source is not None and (source.kind == "call" or _drawn(source.parent))


def derive(function: Callable[..., Any], *operands: Any) -> Any:
    """function(*operands), where some vary: the result does so too, if it is a number. Raises what the
    function raises."""
    operands = tuple(map(settled, operands))
    first = next((v for v in operands if type(v) in VARYING), None)
    sizes = [_sized(v) for v in operands]
    by_zero = function in _DIVISIONS and type(sizes[-1]) is int and sizes[-1] == 0
    if first is not None and function in _OF_SIZES and not by_zero and all(s is not None for s in sizes):
        result = function(*sizes)
        first.world.sizes.placed()
        return first.world.sizes.number(result)
    try:
        result = function(*[v.node.value if type(v) in VARYING else v for v in operands])
    except Exception:          # that it raises is for these values
        for v in operands:
            known(v)
        raise
    if first is None:
        return result
    source = first.source.derived(function, tuple(v.source if type(v) in VARYING else v for v in operands))
    if type(result) in NUMBERS:
        return vary(first.world, source, result)
    return first.world.read(source, result)


def _sized(value: Any) -> Any:
    """An int, or the expression of sizes that a number is; else None."""
    return value.node.sym if type(value) in VARYING else value if type(value) is int else None


_DIVISIONS = frozenset({operator.floordiv, operator.mod})
_OF_SIZES = _DIVISIONS | {int, round, min, max, operator.add, operator.sub, operator.mul, operator.neg,
                          operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne,
                          operator.truth}


def _operation(function: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def method(self: Varying, *others: Any) -> Any:
        for other in others:
            if type(other) not in VARYING and type(other) not in (int, float, bool):
                if type(other) is not complex:
                    return NotImplemented
                return function(other, self.known()) if reflected else function(self.known(), other)
        return derive(function, *others, self) if reflected else derive(function, self, *others)

    return method


def _asking(name: str) -> Callable[..., Any]:
    def method(self: Varying, *args: Any) -> Any:
        return getattr(self.known(), name)(*map(known, args))

    return method


def _define(base: type, kind: type) -> None:
    for name in "add sub mul truediv floordiv mod pow".split():
        function = getattr(operator, name)
        setattr(kind, f"__{name}__", _operation(function))
        setattr(kind, f"__r{name}__", _operation(function, reflected=True))
    for name in "lt le gt ge eq ne neg pos abs".split():
        setattr(kind, f"__{name}__", _operation(getattr(operator, name)))
    kind.__bool__ = _operation(operator.truth)  # type: ignore[attr-defined]
    for name in ("hash int float complex index format repr str round trunc floor ceil divmod rdivmod and or "
                 "xor rand ror rxor lshift rshift rlshift rrshift invert reduce reduce_ex").split():
        if hasattr(base, f"__{name}__"):
            setattr(kind, f"__{name}__", _asking(f"__{name}__"))


for _base, _kind in KINDS.items():
    _define(_base, _kind)


def numbers(values: Any) -> bool:
    """Whether all are numbers, and not too many for the native guards."""
    return len(values) <= 8 and all(type(v) in VARYING or type(v) in (int, float, bool) for v in values)


def known(value: Any) -> Any:
    """The value, guarded if it varies."""
    return value.known() if type(value) in VARYING else value
