"""Steps of optimizers: scalars that depend on a step counter or on data, without reading a value.

Optimizers take `value=`, `alpha=` or lists of scalars computed from `step.item()`, which would make each
step another graph. While capturing, such a number is a double-precision tensor instead, and the calls that
want Python numbers are spelled with tensor arithmetic, in the order in which eager kernels compute. Used by
`world`.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import adagrad, adam, asgd, optimizer, radam, sgd

from ..ir.fake import Fake

_FOLDER = os.path.dirname(optimizer.__file__)


def _is_fake(x: Any) -> bool:
    return issubclass(type(x), Fake)


def in_optimizer(frame: Any) -> bool:
    """Whether the frame runs code of torch.optim."""
    return frame is not None and os.path.dirname(frame.code.code.co_filename) == _FOLDER


def concerns(frame: Any, x: Any) -> bool:
    """Whether code of torch.optim calls a method of a tensor."""
    return _is_fake(x) and in_optimizer(frame)


def _get_value(frame: Any, x: Any) -> Any:
    return x.double() if _is_fake(x) else optimizer._get_value(x)


def _add(frame: Any, x: Any, y: Any, *, alpha: Any = 1) -> Any:
    return x.add_(alpha * y) if _is_fake(alpha) else x.add_(y, alpha=alpha)


def _addcdiv(frame: Any, x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    return x.add_(value * a / b) if _is_fake(value) else x.addcdiv_(a, b, value=value)


def _lerp(x: Any, y: Any, weight: Any) -> Any:
    return x.lerp_(y, weight.to(x.dtype) if _is_fake(weight) else weight)


def _each(op: Any, one: Callable[..., Any]) -> Callable[..., Any]:
    """A foreach operator whose last operand, a list of scalars, may be one of tensors."""
    def call(frame: Any, xs: Any, *operands: Any, **more: Any) -> Any:
        if not any(map(_is_fake, operands[-1])) if type(operands[-1]) is list else not _is_fake(operands[-1]):
            return op(xs, *operands, **more)
        for i in range(len(xs)):
            one(xs[i], *(v[i] for v in operands))
        return None
    return call


def _extreme(op: Any, bound: str) -> Callable[..., Any]:
    """min or max of a number and a tensor that stands for one."""
    def call(frame: Any, *args: Any, **more: Any) -> Any:
        fakes = [a for a in args if _is_fake(a)]
        if len(args) != 2 or len(fakes) != 1 or not in_optimizer(frame):
            return frame.world.call_native(op, args, more)
        return fakes[0].clamp(**{bound: next(a for a in args if a is not fakes[0])})
    return call


def _by_tensors(inner: Any) -> Callable[..., Any]:
    """An optimizer's own form for counters whose values are not to be looked at, on doubles as eager mode
    computes with Python's."""
    def call(frame: Any, *lists: Any, capturable: bool = False, **settings: Any) -> Any:
        counters = lists[-1]
        doubles = [c.double() for c in counters]
        frame.world.call_function(inner, (*lists[:-1], doubles), {**settings, "capturable": True})
        for c, d in zip(counters, doubles):
            c.copy_(d)
    return call


def _fused(module: Any, name: str) -> dict[Any, Callable[..., Any]]:
    """An optimizer's library kernel, as the lists of operators that do the same, which the compiler fuses.
    With a scale of the gradients (a GradScaler's) it stays."""
    library, lists = getattr(module, f"_fused_{name}"), getattr(module, f"_multi_tensor_{name}")

    def call(frame: Any, *args: Any, **settings: Any) -> Any:
        scaled = any(map(_is_fake, (*args, settings.get("grad_scale"), settings.get("found_inf"))))
        return frame.world.call_function(library if scaled else lists, args, settings)
    return {library: call}


# methods of tensors, called in torch.optim: `item` gives a number that is not looked at
METHODS: dict[str, Callable[..., Any]] = {
    "item": lambda frame, x: x.double(), "add_": _add, "addcdiv_": _addcdiv}
SPECIAL: dict[Any, Callable[..., Any]] = {
    optimizer._get_value: _get_value, builtins.min: _extreme(min, "max"), builtins.max: _extreme(max, "min"),
    torch._foreach_addcdiv_: _each(torch._foreach_addcdiv_, lambda x, a, b, s: x.add_(s * a / b)),
    torch._foreach_lerp_: _each(torch._foreach_lerp_, _lerp),
    **_fused(adam, "adam"), **_fused(sgd, "sgd"), **_fused(adagrad, "adagrad"),
    **{f: _by_tensors(f) for f in (asgd._single_tensor_asgd, radam._single_tensor_radam,
                                   radam._multi_tensor_radam)}}
