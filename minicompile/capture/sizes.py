"""Sizes: dimensions of tensors that differ from call to call, and what a program computes from them.

Takes the tensors that `reads` meets; gives specs of which the open dimensions are `ir.sym.Size`s, and
objects that stand for them in the captured program. Such an object has an expression of sizes where Python
has an int (see `varying`): arithmetic on it gives another one, a question about it is answered for this call
and is a condition of the capture, which becomes a guard here.
"""
from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..errors import Where
from ..ir.forms import children
from ..ir.scalar import Number
from ..ir.spec import TensorSpec
from ..ir.sym import LARGEST_SIZE, Condition, Div, Mod, NeedsSizes, Prod, Size, Sym, Var, hint
from .guards import Guard, TensorFact
from .sources import Source
from .varying import VARYING, Numbers, VaryingInt

MARK = "_minicompile_sizes"     # attribute of a tensor: dimension -> (least, most), or None: a constant
BEYOND = 1 << 62


class Sizes:
    """The open sizes of one capture.

    dims    each Size with the places where it was found, which hold the same number in every call
    specs   of the tensors that have open sizes
    """

    def __init__(self, world: Any):
        self.world = world
        self.dims: dict[Size, list[Source]] = {}
        self.specs: dict[Source, TensorSpec] = {}
        self.made: dict[Sym, VaryingInt] = {}
        self.conditions: dict[Condition, Where | None] = {}

    def spec(self, source: Source, t: torch.Tensor) -> TensorSpec:
        """What the tensor at `source` is like, with guards on its open sizes."""
        spec = TensorSpec.of(t)
        marks = vars(t).get(MARK, {}) if hasattr(t, "__dict__") else {}
        fixed = isinstance(t, torch.nn.Parameter)
        shape = tuple([n if fixed else self.size(source.size(d), n, marks.get(d, ())) for d, n
                       in enumerate(spec.shape)])
        if all(type(n) is int for n in shape):
            return spec
        stride = strides(spec, shape)
        for d, s in enumerate(stride):
            if isinstance(s, Sym):
                self.equal(source.stride(d), self.source(s))
        self.specs[source] = replace(spec, shape=shape, stride=stride)
        return self.specs[source]

    def met(self) -> dict[str, dict[int, int]]:
        """The sizes met by this capture and those before it: of a source, by the number of the capture."""
        before: Mapping[str, dict[int, int]] = self.world.numbers.met
        call = max((n for sizes in before.values() for n in sizes), default=-1) + 1
        now = {str(source): s.hint for s, places in self.dims.items() for source in places}
        return {**before, **{text: {**before.get(text, {}), call: n} for text, n in now.items()}}

    def at(self, source: Source) -> Size | None:
        """The Size that the number at `source` is."""
        return next((s for s, places in self.dims.items() if places[0] is source), None)

    def size(self, source: Source, n: int, mark: tuple | None) -> Size | int:
        """The size n at `source`: a Size if it is open."""
        numbers: Numbers = self.world.numbers
        opened = mark or mark is not None and (str(source) in numbers.changing or numbers.all_sizes)
        if n < 2 or not opened or numbers.sizes is False or str(source) in numbers.pinned:
            return n
        return self.open(source, n, *mark or ())

    def open(self, source: Source, n: int, low: int = 2, high: int = LARGEST_SIZE) -> Size:
        """The Size that the number n at `source` is. Those that were equal so far are one, guarded to stay
        equal."""
        met: Mapping[str, dict[int, int]] = self.world.numbers.met
        mine = met.get(str(source), {})

        def alike(s: Size, first: Source) -> bool:
            theirs = met.get(str(first), {})
            return (s.hint, s.lo, s.hi) == (n, low, high) and (
                first is source or "derived" not in (source.kind, first.kind)
                and all(theirs.get(call, size) == size for call, size in mine.items()))

        known = next((s for s, (first, *_) in self.dims.items() if alike(s, first)), None)
        if known is None:
            known = Size(f"s{len(self.dims)}", n, low, high)
            self.dims[known] = []
            self.world.guard(source, "range", (low, high))
            self.world.numbers_vary()
        elif self.dims[known][0] is not source:
            self.equal(source, self.dims[known][0])
        self.dims[known].append(source)
        return known

    def equal(self, a: Source, b: Source) -> None:
        self.world.guard(a.derived(operator.eq, (a, b)), "equals", True)

    def number(self, value: Any) -> Any:
        """What stands for an expression of sizes in the captured program; anything else as it is."""
        if not isinstance(value, Sym):
            return value
        def ask(number: Number) -> int:
            needed = self.world.needed = NeedsSizes(value)
            needed.where = self.world.where()
            raise needed

        known = self.made.get(value)
        if known is None:
            known = self.made[value] = VaryingInt(Number(hint(value), ask, value))  # type: ignore[arg-type]
            known.source, known.world = self.source(value), self.world
        return known

    def seen(self, x: Any) -> Any:
        """`x`, which torch gave, with such objects for its sizes."""
        if isinstance(x, torch.SymInt) and type(x) not in VARYING:
            return self.number(x.node.sym)
        if type(x) in (tuple, list, torch.Size):
            return type(x)([self.seen(e) for e in x])
        return x

    def source(self, s: Sym) -> Source:
        """Where the value of an expression of sizes is computed from."""
        return computed(s, lambda v: self.dims[v][0], lambda function, a, b: (  # type: ignore[index]
            a if type(a) is Source else b).derived(function, (a, b)))

    def placed(self) -> None:
        """The user's line of what was asked last."""
        for condition in reversed(self.conditions):
            if self.conditions[condition] is not None:
                return
            self.conditions[condition] = self.world.where()

    def guards(self) -> Iterable[Guard]:
        """The conditions of the capture and of what compiled it."""
        return [self.guard(c, where) for c, where in self.conditions.items()]

    def guard(self, condition: Condition, where: Where | None) -> Guard:
        s, relation = condition.sym, condition.relation
        bound = -s.const
        varying: Any = s - s.const
        negative = all(k < 0 for _, k in varying.terms)
        if negative:
            varying, bound = -varying, -bound
        source = self.source(varying)
        if relation == "ge":
            return Guard(source, "range", (-BEYOND, bound) if negative else (bound, BEYOND), where)
        if relation == "eq":
            return Guard(source, "equals", bound, where)
        return Guard(source.derived(operator.ne, (source, bound)), "equals", True, where)


_ATOMS: dict[type, Callable[..., Any]] = {Div: operator.floordiv, Mod: operator.mod, Prod: operator.mul}


def computed(s: Sym | int, leaf: Callable[[Var], Any], call: Callable[..., Any]) -> Any:
    """The expression, put together by `call(function, a, b)` from what `leaf` gives for its variables."""
    def atom(a: Sym) -> Any:
        if isinstance(a, Var):
            return leaf(a)
        parts = [computed(p, leaf, call) for p in children(a)]
        return functools.reduce(functools.partial(call, _ATOMS[type(a)]), parts)

    if isinstance(s, int):
        return s
    terms = [atom(a) if k == 1 else call(operator.mul, atom(a), k) for a, k in s.terms]
    return functools.reduce(functools.partial(call, operator.add), terms + [s.const] * (s.const != 0))


def strides(spec: TensorSpec, shape: tuple) -> tuple:
    """The strides as expressions of the sizes: those that are the extent of what is inside them, as in a
    dense tensor whose dimensions are in this order. Any other stays the constant it is."""
    found: list[Any] = list(spec.stride)
    extent: Any = 1
    step = 1
    for d in sorted(range(len(shape)), key=lambda d: (spec.stride[d], spec.shape[d], -d)):
        if spec.stride[d] == step:
            found[d] = extent
        elif spec.shape[d] > 1:
            extent = step = spec.stride[d]
        if spec.stride[d] and spec.shape[d] > 1:
            extent, step = extent * shape[d], step * spec.shape[d]
    return tuple(found)


def learned(numbers: Numbers, guards: Iterable[Guard], slots: list[Any]) -> Numbers:
    """What a call teaches that some of these guards do not hold for: which numbers and sizes differ."""
    changing: set[str] = set()
    for g in guards:
        if g.check not in ("equals", "tensor") or g.source is None or g.holds(slots):
            continue
        try:
            value = g.source.get(slots)
        except (LookupError, AttributeError, TypeError, ValueError):
            continue
        if g.check == "equals" and type(value) is type(g.expected) in (int, float):
            changing.add(str(g.source))
        elif g.check == "tensor" and issubclass(type(value), torch.Tensor) and numbers.sizes is not False:
            changing.update(_resized(g.source, g.expected, TensorFact.of(value)))
    return replace(numbers, changing=numbers.changing | changing) if changing else numbers


def _resized(source: Source, expected: TensorFact, found: TensorFact) -> list[str]:
    same = replace(found, shape=expected.shape, stride=expected.stride) == expected
    if not same or len(found.shape) != len(expected.shape):
        return []
    return [str(source.size(d)) for d, (a, b) in enumerate(zip(expected.shape, found.shape))
            if type(a) is int and a != b]


def mark_sizes(t: torch.Tensor, dims: int | Iterable[int], bounds: tuple[int, int] | None) -> None:
    """Notes on the tensor itself what is to become of its sizes."""
    dims = (dims,) if isinstance(dims, int) else dims
    marks: Mapping[int, Any] = getattr(t, MARK, {})
    setattr(t, MARK, {**marks, **{range(t.dim())[d]: bounds for d in dims}})
