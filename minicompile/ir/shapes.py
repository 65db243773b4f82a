"""Shape rules of ATen operators that are not elementwise and whose torch rule is slow or imports sympy:
reductions, softmax, norms, cat, addmm.

Takes meta tensors and the operator's other arguments, gives meta tensors with the strides the CPU kernels
give. A rule answers None for arguments it does not cover (torch's own rule then decides, errors included).
`ir.fake` is the only caller.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .elementwise import elementwise, is_last

aten = torch.ops.aten
Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


def shape_rule(func: Any, args: tuple, kwargs: dict) -> Any:
    """The meta result of `func`, or None if no rule here decides it."""
    rule = RULES.get(func)
    return rule(*args, **kwargs) if rule is not None else elementwise(func, args, kwargs)


def rule(*overloads: Any) -> Callable[[Rule], Rule]:
    def register(f: Rule) -> Rule:
        RULES.update(dict.fromkeys(overloads, f))
        return f
    return register


def formatted(shape: Any, dtype: torch.dtype, last: bool) -> torch.Tensor:
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, device="meta", memory_format=form)


def normed(x: torch.Tensor) -> torch.Tensor:
    """Laid out as batch norm's result, for which also a size of 1 with any stride is in order."""
    dense = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return formatted(x.shape, x.dtype, dense or is_last(x))


def _new(shape: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def reduced(shape: tuple[int, ...], dims: Any, keepdim: bool) -> list[int] | None:
    """The shape after reducing `dims` (None or empty: all); None for dims out of range or repeated."""
    n = len(shape)
    if dims is None or (isinstance(dims, (tuple, list)) and not dims):
        dims = range(n)
    given = [dims] if isinstance(dims, int) else list(dims)
    if any(not -max(n, 1) <= d < max(n, 1) for d in given):
        return None
    wrapped = {d % n for d in given} if n else set()
    if n and len(wrapped) != len(given):
        return None
    return [1 if i in wrapped else s for i, s in enumerate(shape) if keepdim or i not in wrapped]


def _summed(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point or dtype.is_complex else torch.int64


@rule(aten.mean.dim)
def _mean(x: torch.Tensor, dims: Any = None, keepdim: bool = False, *,
          dtype: torch.dtype | None = None) -> torch.Tensor | None:
    return _sum(x, dims, keepdim, dtype=dtype) if (dtype or x.dtype).is_floating_point else None


@rule(aten.sum.dim_IntList)
def _sum(x: torch.Tensor, dims: Any = None, keepdim: bool = False, *,
         dtype: torch.dtype | None = None) -> torch.Tensor | None:
    shape = reduced(tuple(x.shape), dims, keepdim)
    return None if shape is None else _new(shape, dtype or _summed(x.dtype))


@rule(aten.sum.default)
def _sum_all(x: torch.Tensor, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    return _new((), dtype or _summed(x.dtype))


@rule(aten.amax.default, aten.amin.default)
def _extreme(x: torch.Tensor, dims: Any = (), keepdim: bool = False) -> torch.Tensor | None:
    shape = reduced(tuple(x.shape), dims, keepdim)
    return None if shape is None or x.numel() == 0 else _new(shape, x.dtype)


@rule(aten.var.correction)
def _var(x: torch.Tensor, dims: Any = None, *, correction: Any = None,
         keepdim: bool = False) -> torch.Tensor | None:
    shape = reduced(tuple(x.shape), dims, keepdim)
    return None if shape is None or not x.dtype.is_floating_point else _new(shape, x.dtype)


@rule(aten._softmax.default, aten._log_softmax.default)
def _softmax(x: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor | None:
    n = max(x.dim(), 1)
    if not -n <= dim < n:           # torch's own rule does not look
        raise IndexError(f"Dimension out of range (expected to be in [{-n}, {n - 1}], but got {dim})")
    return _new(x.shape, x.dtype) if not half_to_float and x.dtype.is_floating_point else None


@rule(aten.cumsum.default, aten.cumprod.default)
def _cumulate(x: torch.Tensor, dim: int, *, dtype: torch.dtype | None = None) -> torch.Tensor | None:
    n = max(x.dim(), 1)
    return _new(x.shape, dtype or _summed(x.dtype)) if -n <= dim < n else None


@rule(aten.native_layer_norm.default)
def _layer_norm(x: torch.Tensor, shape: list[int], weight: torch.Tensor | None, bias: torch.Tensor | None,
                eps: float) -> Any:
    lead = x.dim() - len(shape)
    if (lead < 0 or tuple(x.shape[lead:]) != tuple(shape)
        or any(p is not None and p.dtype != x.dtype for p in (weight, bias))):
        return None
    stat = [*x.shape[:lead], *[1] * len(shape)]
    return _new(x.shape, x.dtype), _new(stat, x.dtype), _new(stat, x.dtype)


@rule(aten.native_batch_norm.default)
def _batch_norm(x: torch.Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float,
                eps: float) -> Any:
    if any(p is not None and p.dtype != x.dtype for p in (weight, bias, mean, var)) or x.dim() < 2:
        return None
    saved = (x.shape[1],) if training else (0,)
    return normed(x), _new(saved, x.dtype), _new(saved, x.dtype)


@rule(aten.cat.default)
def _cat(xs: list[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    if any(x.dtype != xs[0].dtype for x in xs):
        return None
    some = [x for x in xs if x.shape != (0,)]         # the others may stand between tensors of any shape
    plain, xs = len(some) < len(xs), some or xs
    n, first = xs[0].dim(), xs[0]
    if not n or not -n <= dim < n or any(x.dim() != n for x in xs):
        return None
    dim %= n
    if any(x.shape[:dim] != first.shape[:dim] or x.shape[dim + 1:] != first.shape[dim + 1:] for x in xs):
        return None
    shape = list(first.shape)
    shape[dim] = sum(x.shape[dim] for x in xs)
    return formatted(shape, first.dtype, not plain and all(map(is_last, xs)))


@rule(aten.addmm.default)
def _addmm(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: Any = 1,
           alpha: Any = 1) -> torch.Tensor | None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or not a.dtype == b.dtype == bias.dtype:
        return None
    shape = (a.shape[0], b.shape[1])
    lead = (1,) * (2 - bias.dim()) + tuple(bias.shape)
    return _new(shape, a.dtype) if len(lead) == 2 and all(m in (1, n) for m, n in zip(lead, shape)) else None
