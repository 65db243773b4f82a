"""Calls of the autograd engine's interface: one call of the graph each, so that traces run the engine itself.

Takes a call of `torch.autograd.Function.apply`, `torch.autograd.grad` or `checkpoint` met while capturing. A
custom function's forward runs once in the interpreter, which guards what it reads; what it recorded is
dropped for a single node that applies the function. Used by `world`.
"""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from .. import _native
from . import policy
from .attributes import fact
from .reads import IDENTITIES, LEAVES

CHECKPOINT = checkpoint.__wrapped__
APPLY = torch.autograd.Function.apply.__func__  # type: ignore[attr-defined]


class Apply:
    """The graph's target for a custom function. Not a bound method, whose printed name would be torch's."""

    def __init__(self, cls: type):
        self.cls, self.__name__, self.__qualname__ = cls, cls.__name__, cls.__qualname__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.cls.apply(*args, **kwargs)  # type: ignore[attr-defined]


def plain(value: Any) -> bool:
    """Whether a graph may hold an argument as it is."""
    if issubclass(type(value), (tuple, list)):
        return all(map(plain, value))
    if type(value) is dict:
        return all(map(plain, value.values()))
    return type(value) in LEAVES or issubclass(type(value), (torch.Tensor, *IDENTITIES))


def call_apply(world: Any, cls: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """cls.apply(*args, **kwargs) as one node. Raises Refusal for arguments or effects that a graph cannot
    hold."""
    args = [world.consumed(a) for a in args]
    if world.getattr(cls, "setup_context") is not torch.autograd.Function.setup_context:
        read_names(world, world.getattr(cls, "setup_context"))
        bound = inspect.signature(world.getattr(cls, "forward")).bind(*args, **kwargs)
        bound.apply_defaults()
        args, kwargs = list(bound.args), bound.kwargs
    if kwargs or not all(map(plain, args)):
        raise world.refuse("autograd-function", f"{cls.__name__}.apply() is given more than constants")
    read_names(world, world.getattr(cls, "backward"))
    before = (len(world.calls), effects_of(world))
    with world.one_node(Apply(cls)) as record:
        if torch._C._are_functorch_transforms_active():
            for name in ("forward", "setup_context", "vmap", "jvp"):
                read_names(world, world.getattr(cls, name))
            with torch._C.DisableTorchFunction():
                out = _native.suspend(APPLY, cls, *args)
        else:
            out = super(torch.autograd.Function, cls).apply(*args)
        record(args, out)
    if (len(world.calls), effects_of(world)) != before:
        raise world.refuse("autograd-function", f"{cls.__name__}.forward() changes the world")
    return out


def effects_of(world: Any) -> int:
    return len(world.changed) + len(world.cells) + len(world.slots) + sum(map(len, world.changed.values()))


def read_names(world: Any, function: Any) -> None:
    """Guards what a function finds in globals and cells: it runs when graphs are compiled, unseen."""
    if not issubclass(type(function), FunctionType) or not world.interprets(function.__code__):
        return
    if function in world.names_read:
        return
    world.names_read.add(function)
    names = function.__globals__
    for op, name in world.code_of(function.__code__).ops:
        if op != "LOAD_GLOBAL":
            continue
        if name in names:
            source = world.const(names).item(name)
            constant(world, world.read_constant(names.get("__name__"), source, names[name]))
        elif getattr(builtins, name, None) in (print, open, input):
            raise world.refuse("autograd-function", f"{function.__qualname__}() acts on the outside world")
    world.enter_function(function)
    for cell in function.__closure__ or ():
        constant(world, world.load_cell(cell))


def constant(world: Any, value: Any) -> None:
    """Guards all of a value that unseen code may look into."""
    value = world.consumed(value)
    if issubclass(type(value), FunctionType):
        read_names(world, value)
    elif issubclass(type(value), (list, dict, tuple)):
        for inner in value.values() if issubclass(type(value), dict) else value:
            constant(world, inner)
    elif issubclass(type(value), type) and issubclass(value, torch.autograd.Function):
        return
    elif issubclass(type(value), type) and not policy.trusted(value.__module__) or not plain(value):
        raise world.refuse("autograd-function", f"a backward looks into a {type(value).__name__}")


def call_checkpoint(world: Any, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """torch.utils.checkpoint.checkpoint: what to compute again is the partitioner's choice, so the function
    is just called."""
    reentrant = kwargs.pop("use_reentrant", None)
    if reentrant is not False and torch.is_grad_enabled() or "context_fn" in kwargs:
        raise world.refuse("autograd-function", "a reentrant checkpoint, or one with contexts of its own")
    for name in ("preserve_rng_state", "determinism_check", "debug", "early_stop"):
        kwargs.pop(name, None)
    return world.call(world.current, function, args, kwargs)


def call_grad(frame: Any, outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """torch.autograd.grad, one node: the engine runs on the fakes. They know no history from before the call,
    so where a gradient for an input of the graph is asked for, the other inputs must be leaves."""
    world = frame.world
    wanted = [inputs] if issubclass(type(inputs), torch.Tensor) else list(world.iter(inputs))
    asked = {world.input_of[id(x)] for x in wanted if id(x) in world.input_of}
    for i, (source, t, _) in enumerate(world.inputs) if asked else ():
        free = [("_backward_hooks", None)] if i in asked else []
        if t.requires_grad and asked != {i}:        # its history might lead to an input that is asked for
            free.append(("is_leaf", True))
        for name, expected in free:
            if fact(t, name) is not expected:
                raise world.refuse("autograd-inside", f"{source} has a history, or hooks of its own")
            world.guard(source.attr(name), "id", expected)
    return world.call_native(torch.autograd.grad, (outputs, wanted, *args), kwargs)


SPECIAL = {torch.autograd.grad: call_grad}
