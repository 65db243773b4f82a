"""Steps of optimizers: scalars that depend on a step counter, without reading the counter's value.

Optimizers take `value=` or lists of scalars computed from `step.item()`, which would make each step another
graph. While capturing, the counter is a double-precision tensor instead, and the calls that want Python
numbers are spelled with tensor arithmetic, in the order in which eager kernels compute. Used by `world`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import optimizer

from ..ir.fake import Fake


def _get_value(frame: Any, x: Any) -> Any:
    return x.double() if issubclass(type(x), Fake) else optimizer._get_value(x)


def _addcdiv(frame: Any, x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    return x.add_(value * a / b) if issubclass(type(value), Fake) else x.addcdiv_(a, b, value=value)


def _foreach_addcdiv(frame: Any, xs: Any, a: Any, b: Any, scalars: Any = 1, **more: Any) -> Any:
    if not issubclass(type(scalars), Fake):
        return torch._foreach_addcdiv_(xs, a, b, scalars, **more)
    for i in range(len(xs)):
        xs[i].add_(scalars[i] * a[i] / b[i])
    return None


SPECIAL: dict[Any, Callable[..., Any]] = {
    optimizer._get_value: _get_value, torch.Tensor.addcdiv_: _addcdiv,
    torch._foreach_addcdiv_: _foreach_addcdiv}
