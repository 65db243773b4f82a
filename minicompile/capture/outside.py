"""The outside world: calls whose effect no later read can see are kept, and made after the graph has run. And
what numpy computes while capturing.

Takes print, warnings.warn and logging calls met while capturing, renders what they say, and leaves "call"
effects in program order. What is said must be constant under the guards; anything else is refused. Used by
`world`.
"""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch

from ..ir.fake import Fake
from .frame import Frame
from .reads import LEAVES
from .varying import vary
from .writes import LARGEST, Effect


def text_of(world: Any, value: Any) -> str:
    """str(value) as the guards make it constant. Raises Refusal for what holds a tensor or shows an
    address."""
    if type(value) in LEAVES:
        return str(value)
    if holds_tensor(value):
        raise world.refuse("data-dependent", "a tensor is printed")
    world.identify(value)
    return world.operate(str, value)


def holds_tensor(value: Any) -> bool:
    if issubclass(type(value), (list, tuple, set)):
        return any(map(holds_tensor, value))
    if issubclass(type(value), dict):
        return any(map(holds_tensor, dict.values(value)))
    return issubclass(type(value), Fake)


def _print(frame: Frame, *args: Any, file: Any = None, flush: Any = False, **spacing: Any) -> None:
    world: Any = frame.world
    if file is not None and world.source_of(file) is None:
        raise world.refuse("impure-call", "print() writes into an object made inside the call")
    text = (" " if spacing.get("sep") is None else spacing["sep"]).join(text_of(world, a) for a in args)
    words = {"end": spacing.get("end"), "file": file, "flush": flush}
    world.calls.append(Effect("call", print, words, (text,)))


def _warn(frame: Frame, message: Any, category: Any = None, stacklevel: int = 1, source: Any = None,
          **more: Any) -> None:
    world: Any = frame.world
    if more or source is not None:
        raise world.refuse("impure-call", "warnings.warn() is given a source")
    if issubclass(type(message), Warning):
        message, category = text_of(world, message), type(message)
    place: Frame | None = frame
    for _ in range(stacklevel - 1):
        place = place.back if place is not None else None
    if place is None or not issubclass(type(message), str):
        raise world.refuse("impure-call", "warnings.warn() names a line outside the compiled call")
    where = (place.code.code.co_filename, place.where.line)
    category = UserWarning if category is None else category
    world.calls.append(Effect("call", warn_at(place.globals), None, (message, category, *where)))


def warn_at(names: dict[str, Any]) -> Callable[..., None]:
    """warnings.warn as said from the module whose globals are `names`."""

    def warn(message: str, category: type, filename: str, line: int) -> None:
        registry = names.setdefault("__warningregistry__", {})
        warnings.warn_explicit(message, category, filename, line, names.get("__name__"), registry)

    return warn


def constant(value: Any) -> bool:
    return all(map(constant, value)) if type(value) is tuple else type(value) in LEAVES


def _log(function: FunctionType) -> Callable[..., None]:
    def logged(frame: Frame, *args: Any, **kwargs: Any) -> None:
        world: Any = frame.world
        first = 0 if function.__qualname__ == function.__name__ else 1
        plain = not kwargs and all(map(constant, args[first:]))
        if not plain or first and not world.source_of(args[0]):
            raise world.refuse("impure-call", f"{function.__qualname__}() is given more than constants")
        world.calls.append(Effect("call", function, None, args))

    return logged


_LEVELS = ("debug", "info", "warning", "error", "critical", "log", "warn")


def holds_numpy(value: Any) -> bool:
    if issubclass(type(value), (list, tuple)):
        return any(map(holds_numpy, value))
    return type(value).__module__ == "numpy"


def _from_array(function: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """`function`, which makes tensors of data: numpy arrays computed while capturing are constants, and reach
    the graph as numbers. From then on they can't be written: the tensor might share their memory."""
    def made(frame: Frame, data: Any, **kwargs: Any) -> torch.Tensor:
        world: Any = frame.world
        if not holds_numpy(data) or id(data) in world.origin:
            return world.call_native(function, (data,), kwargs)
        dtype = getattr(torch, data.dtype.name, None) if hasattr(data, "tolist") else None
        if dtype is None or data.size > LARGEST or not data.flags.c_contiguous:
            raise world.refuse("numpy", "a tensor is made of numpy's numbers in a list, or of many")
        if data.ndim:
            data.flags.writeable = False
        if function is torch.from_numpy or kwargs.get("dtype") is None:
            kwargs["dtype"] = dtype
        return world.call_native(torch.tensor, (data.tolist(),), kwargs).reshape(data.shape)

    return made


@dataclass(frozen=True)
class Draw:
    """The last of a number of draws from Python's random numbers, which are left as they are."""

    draws: tuple[tuple[Callable[..., Any], tuple], ...]

    def __call__(self, numbers: random.Random) -> Any:
        copy = random.Random(0)
        copy.setstate(numbers.getstate())
        return [function(copy, *args) for function, args in self.draws][-1]

    @property
    def __name__(self) -> str:
        return f"draw {len(self.draws)} of"


def _drawn(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Python's `random`: its result is a number that varies, drawn again after the graph."""
    def draw(frame: Frame, *args: Any) -> Any:
        world: Any = frame.world
        if args and args[0] is random._inst:
            args = args[1:]
        elif function is not random.Random.random:
            raise world.refuse("impure-call", "a random.Random of the program's own is used")
        draws = Draw((*world.draws, (function, args)))
        source, value = world.const(random._inst).call(draws), world.unseen(draws, random._inst)
        if str(source) in world.numbers.pinned:
            raise world.refuse("impure-call", f"the value of random.{function.__name__}() is needed")
        world.draws = draws.draws
        world.calls.append(Effect("call", getattr(random._inst, function.__name__), None, args))
        return vary(world, source, value)

    return draw


SPECIAL: dict[Any, Callable[..., Any]] = {print: _print, warnings.warn: _warn} | {
    f: _drawn(g) for f, g in ((random.random, random.Random.random), *(
        (g, g) for g in (random.Random.uniform, random.Random.randint, random.Random.randrange)))} | {
    f: _from_array(f) for f in (torch.from_numpy, torch.tensor, torch.as_tensor)} | {
    f: _log(f) for owner in (logging, logging.Logger) for f in (getattr(owner, n) for n in _LEVELS)
}
