"""Callees: a refused function runs natively, and the functions it calls are compiled in their turn.

Takes the function and a way to make a `Compiled` for each callee; gives the program of a refused entry.
`compiled` makes it. Frames are offered by the native hook; those of the program's own functions and of
modules that are handed tensors get a `Compiled`, under the same rules, so one callee that is refused, too,
leaves its own callees to be compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import Any

import torch

from .. import _native
from . import policy
from .policy import Policy

MOST = 500                      # callees of one function; more are made anew again and again
GENERATOR = 0x20
_MODULE_CALLS = frozenset(
    id(f.__code__) for f in (torch.nn.Module._wrapped_call_impl, torch.nn.Module._call_impl))


class Callees:
    """The program of a refused entry: called with the slots of `function`.

    make(callee) -> Compiled. One that stays without a graph is not kept: its frames run natively, and what
    they call is offered. Where nothing has been compiled in two calls, `function` runs alone.
    """

    def __init__(self, function: FunctionType, make: Callable[[FunctionType], Any]):
        _mark_own_code()
        self.function, self.make = function, make
        self.plain = eager(function)
        self.__code__ = function.__code__
        self.calls = 0
        # by id of code: None to leave its frames alone, else by id of the module (0: no module): what to
        # call, its Compiled, and the module, which must not go while its id is known
        self.known: dict[int, dict[int, tuple[Any, Any, Any]] | None] = {}
        self.keep: list[CodeType] = []
        self.useful = False

    def __call__(self, *slots: Any) -> Any:
        if self.calls >= 2 and not self.useful:
            return self.plain(*slots)
        self.calls += 1
        return _native.capture(_Run(self).offer, self.plain, *slots)

    def offered(self, code: CodeType, function: FunctionType | None, slots: list) -> Any:
        """The result of a frame that starts, or NotImplemented to run it natively."""
        by_module = self.known.get(id(code), _NEW)
        if by_module is _NEW:
            by_module = self.known[id(code)] = {} if _native.suspend(compilable, code, function) else None
            self.keep.append(code)
        if by_module is None or function is None:
            return NotImplemented
        slots = slots[:parameters(code)]
        subject = slots[0] if slots and issubclass(type(slots[0]), torch.nn.Module) else None
        known = by_module.get(id(subject) if subject is not None else 0)
        if known is None:
            if subject is None and not any(map(holds_tensor, slots)) or len(by_module) > MOST:
                return NotImplemented
            child = _native.suspend(self.make, function)
            known = (eager(function, child.native), child, subject)
            by_module[id(subject) if subject is not None else 0] = known
        call, child, _ = known
        if child is None:
            return NotImplemented
        result = _native.suspend(call, *slots)
        if child.worth:
            self.useful = True
        else:
            by_module[id(subject) if subject is not None else 0] = (None, None, subject)
        return result


_NEW: Any = object()


class _Run:
    """One native run: its first frame is the function's own."""

    def __init__(self, callees: Callees):
        self.callees, self.started = callees, False

    def offer(
        self, code: CodeType, function: FunctionType | None, slots: list, namespace: Any, resumed: bool
    ) -> Any:
        if not self.started:
            self.started = code is self.callees.function.__code__
            return NotImplemented
        if resumed or namespace is not None:
            return NotImplemented
        return self.callees.offered(code, function, slots)


def compilable(code: CodeType, function: FunctionType | None) -> bool:
    """Whether frames of this code may be compiled: functions of the program, and calls of modules."""
    if function is None or function.__code__ is not code or code.co_freevars:
        return False
    if code.co_flags & (GENERATOR | policy.COROUTINE) or "__minicompile_disabled__" in function.__dict__:
        return False
    own = policy.is_user_file(code.co_filename) and policy.of_code(code) is Policy.INTERPRET
    return own or id(code) in _MODULE_CALLS


def parameters(code: CodeType) -> int:
    """How many slots a frame's parameters take, *args and **kwargs included."""
    return code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)


def holds_tensor(x: Any) -> bool:
    if issubclass(type(x), (tuple, list)):
        return any(issubclass(type(e), torch.Tensor) for e in x)
    if issubclass(type(x), dict):
        return any(issubclass(type(e), torch.Tensor) for e in dict.values(x))
    return issubclass(type(x), torch.Tensor)


def eager(function: FunctionType, target: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """`target` (`function` itself) called with the values of the slots of `function`, whose frame packs
    *args and **kwargs."""
    code, called = function.__code__, target or function
    positional, keyword = code.co_argcount, code.co_kwonlyargcount
    has_args, has_kwargs = bool(code.co_flags & 4), bool(code.co_flags & 8)
    names = code.co_varnames[positional : positional + keyword]

    def run(*slots: Any) -> Any:
        rest = slots[positional + keyword :]
        args = rest[0] if has_args else ()
        kwargs = dict(rest[-1]) if has_kwargs else {}
        return called(*slots[:positional], *args, **dict(zip(names, slots[positional:])), **kwargs)

    return run


_marked: list[bool] = []


def _mark_own_code() -> None:
    """Tells the hook, once, that these frames are not to be offered."""
    own: Sequence[Any] = (_Run.__init__, _Run.offer, Callees.offered, parameters, holds_tensor, eager)
    for function in own if not _marked else ():
        _native.set_policy(function.__code__, _native.NATIVE, nested=True)
    _marked.append(True)
