"""Guards: the list of facts about the world that a captured program relies on, each with its source and the
user's line that read it.

Takes what `world` notes while capturing; gives one list that is printed (`explain`), evaluated slowly here
(the reference) and compiled to the native guard program, which checks and fetches in one pass.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import _native
from ..errors import Where
from .sources import Source

FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class TensorFact:
    """What must stay the same of a tensor input; sizes and strides that are no ints are left open."""

    kind: type
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    device: torch.device
    requires_grad: bool

    @classmethod
    def of(cls, t: torch.Tensor, shape: tuple | None = None, stride: tuple | None = None) -> TensorFact:
        with torch._C.DisableTorchFunction():
            return cls(type(t), t.dtype, shape or tuple(t.shape), stride or tuple(t.stride()), t.device,
                       t.requires_grad)

    def holds(self, t: torch.Tensor) -> bool:
        found = TensorFact.of(t)
        return len(found.shape) == len(self.shape) and replace(
            found, shape=_opened(found.shape, self.shape), stride=_opened(found.stride, self.stride)) == self

    def __str__(self) -> str:
        grad = ", requires grad" if self.requires_grad else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.kind.__name__} {dtype}{list(self.shape)} stride {self.stride} {self.device}{grad}"


def _opened(found: tuple, expected: tuple) -> tuple:
    return tuple([f if type(e) is int else e for f, e in zip(found, expected)])


@dataclass(frozen=True, slots=True)
class Guard:
    """`check` of the value at `source` against `expected`.

    id        is the object             type      has exactly the type        equals    same type and equal
              (floats by bits)
    len       has the length            keys      a dict with these keys      absent    the parent has no
              such attribute or key
    present   the path leads somewhere  tensor    matches a TensorFact        same      is the object at the
              source `expected`
    distinct  is not the object at the source `expected`
    range     is an int from expected[0] to expected[1]
    single    is a float that a float32 can hold (or infinite, or NaN)
    none_alias   `expected` is a tuple of sources whose tensors share no storage
    ambient   torch's thread state (grad mode, autocast, default dtype, modes, deterministic) is `expected`
    state     the function `expected[0]`, called with nothing, gives `expected[1]`
    """

    source: Source | None
    check: str
    expected: Any = None
    where: Where | None = None

    def __str__(self) -> str:
        text = _TEXT[self.check](self)
        return text + (f"  # {self.where}" if self.where else "")

    def holds(self, slots: Sequence[Any]) -> bool:
        """Whether the guard holds for a call with these frame slots. Slow; a path that leads nowhere does
        not hold."""
        try:
            if self.check in _WORLD_CHECKS:
                return _WORLD_CHECKS[self.check](self.expected, slots)
            assert self.source is not None
            if self.check == "absent":
                return _absent(self.source, slots)
            if self.check in ("same", "distinct"):
                return (self.source.get(slots) is self.expected.get(slots)) == (self.check == "same")
            return CHECKS[self.check](self.source.get(slots), self.expected)
        except (LookupError, AttributeError, TypeError, ValueError):
            return False


def same_value(a: Any, b: Any) -> bool:
    """Equal and of the same type; floats by their bits, so that NaN equals itself and -0.0 differs from
    0.0; tuples by element."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, complex):
        return same_value(a.real, b.real) and same_value(a.imag, b.imag)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same_value, a, b))
    return bool(a == b)


CHECKS: dict[str, Callable[[Any, Any], bool]] = {
    "id": lambda value, expected: value is expected,
    "type": lambda value, expected: type(value) is expected,
    "equals": same_value,
    "len": lambda value, expected: len(value) == expected,
    "keys": lambda value, expected: (
        tuple(value) == expected and all(map(same_value, tuple(value), expected))
    ),
    "present": lambda value, expected: True,
    "range": lambda value, expected: type(value) is int and expected[0] <= value <= expected[1],
    "single": lambda value, expected: type(value) is float and not FLOAT32_MAX < abs(value) < math.inf,
    "tensor": lambda value, expected: isinstance(value, torch.Tensor) and expected.holds(value),
}


def _absent(source: Source, slots: Sequence[Any]) -> bool:
    assert source.parent is not None
    source.parent.get(slots)
    try:
        source.get(slots)
    except (LookupError, AttributeError):
        return True
    return False


def _none_alias(sources: tuple[Source, ...], slots: Sequence[Any]) -> bool:
    storages = [s.get(slots).untyped_storage()._cdata for s in sources]
    return len(set(storages)) == len(storages)


def _ambient(expected: dict[str, Any], slots: Sequence[Any]) -> bool:
    return _native.ambient() == expected


_WORLD_CHECKS: dict[str, Callable[[Any, Sequence[Any]], bool]] = {
    "state": lambda expected, slots: same_value(expected[0](), expected[1]), "none_alias": _none_alias,
    "ambient": _ambient}


def _name(x: Any) -> str:
    return getattr(x, "__qualname__", None) or getattr(x, "__name__", None) or f"<{type(x).__name__}>"


def _range_text(low: int, high: int, source: Source | None) -> str:
    if high - low < 1 << 61:
        return f"{low} <= {source} <= {high}"
    return f"{source} >= {low}" if abs(low) < high else f"{source} <= {high}"


_TEXT: dict[str, Callable[[Guard], str]] = {
    "id": lambda g: f"{g.source} is {_name(g.expected)}",
    "type": lambda g: f"type({g.source}) is {_name(g.expected)}",
    "equals": lambda g: f"{g.source}" if g.expected is True else f"{g.source} == {g.expected!r}",
    "len": lambda g: f"len({g.source}) == {g.expected}",
    "keys": lambda g: f"keys of {g.source} == {list(g.expected)}",
    "range": lambda g: _range_text(*g.expected, g.source),
    "single": lambda g: f"{g.source} fits into a float32",
    "present": lambda g: f"{g.source} exists", "absent": lambda g: f"{g.source} does not exist",
    "tensor": lambda g: f"{g.source}: {g.expected}", "same": lambda g: f"{g.source} is {g.expected}",
    "distinct": lambda g: f"{g.source} is not {g.expected}",
    "none_alias": lambda g: f"no two of {', '.join(map(str, g.expected))} share storage",
    "ambient": lambda g: "torch's modes: " + ", ".join(f"{k} = {v}" for k, v in g.expected.items()),
    "state": lambda g: f"{_name(g.expected[0])}() == {g.expected[1]!r}"}


def first_failure(guards: Sequence[Guard], slots: Sequence[Any]) -> Guard | None:
    """The first guard that does not hold for a call with these frame slots; None when all hold."""
    return next((g for g in guards if not g.holds(slots)), None)
