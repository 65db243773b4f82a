"""Decompositions of reductions, scans, softmax and normalisation.

Takes a builder and operands, gives nodes. Narrow floats are summed in float32 and rounded at the end;
variance takes two passes; softmax subtracts the maximum first: as eager mode does.
"""
from __future__ import annotations

import math
from typing import Any

import torch

from ..ir.graph import Node
from .builder import Builder, real, rule, wide

aten = torch.ops.aten
Dims = tuple[int, ...]


def dims_of(x: Node, dims: Any) -> Dims:
    """Which dimensions are meant, sorted; None or an empty list means all."""
    n = x.tensor.ndim
    if dims is None or (isinstance(dims, (tuple, list)) and not dims):
        return tuple(range(n))
    given = (dims,) if isinstance(dims, int) else dims
    return tuple(sorted({d % n for d in given})) if n else ()


def count(x: Node, dims: Dims) -> int:
    return math.prod(x.tensor.shape[d] for d in dims)


def reduce(b: Builder, name: str, x: Node, dims: Dims, keepdim: bool = False) -> Node:
    """One reduction prim; a reduction over nothing, or over dimensions of size 1, is a reshape."""
    if x.tensor.dtype is torch.bool:
        name = {"sum": "any", "prod": "all"}.get(name, name)
    if name not in ("argmax", "argmin") and all(x.tensor.shape[d] == 1 for d in dims):
        shape = tuple(n for d, n in enumerate(x.tensor.shape) if d not in dims)
        y = b.reshape(x, shape)
    else:
        y = b.emit_named(name, x, dims)
    return b.unsqueeze(y, dims) if keepdim else y


def spread(b: Builder, y: Node, dims: Dims, x: Node) -> Node:
    """What a reduction of x over dims gave (dims gone), at every element of x again."""
    return b.broadcast_like(y, dims, x.tensor.shape)


def mean(b: Builder, x: Node, dims: Dims) -> Node:
    n = count(x, dims)
    return b.div(reduce(b, "sum", x, dims), real(n) if n else math.nan if x.tensor.numel else 0.0)


@rule(aten.sum.default)
def _sum_all(b: Builder, x: Node, *, dtype: Any = None) -> Node:
    return _sum(b, x)


@rule(aten.sum.dim_IntList)
def _sum(b: Builder, x: Node, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    total = reduce(b, "sum", b.cast(b.cast(x, b.out.dtype), wide(b.out.dtype)), dims_of(x, dims), keepdim)
    return b.cast(total, b.out.dtype)


@rule(aten.prod.default)
def _prod_all(b: Builder, x: Node, *, dtype: Any = None) -> Node:
    return _prod(b, x, None)


@rule(aten.prod.dim_int)
def _prod(b: Builder, x: Node, dim: Any, keepdim: bool = False, *, dtype: Any = None) -> Node:
    y = b.cast(b.cast(x, b.out.dtype), wide(b.out.dtype))
    return b.cast(reduce(b, "prod", y, dims_of(x, dim), keepdim), b.out.dtype)


@rule(aten.mean.default)
def _mean_all(b: Builder, x: Node, *, dtype: Any = None) -> Node:
    return _mean(b, x)


@rule(aten.mean.dim)
def _mean(b: Builder, x: Node, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    over = dims_of(x, dims)
    y = b.cast(b.cast(x, b.out.dtype), wide(b.out.dtype))
    total, n = reduce(b, "sum", y, over, keepdim), count(x, over)
    return b.cast(b.div(total, real(n)), b.out.dtype)


for name in ("amax", "amin"):
    rule(getattr(aten, name).default)(lambda b, x, dims=(), keepdim=False, name=name: b.cast(
        reduce(b, name, b.widen(x), dims_of(x, dims), keepdim), b.out.dtype))

for packet, name in ((aten.max, "amax"), (aten.min, "amin")):
    rule(packet.default)(lambda b, x, name=name: b.cast(
        reduce(b, name, b.widen(x), dims_of(x, None)), b.out.dtype))


def _with_index(b: Builder, x: Node, dim: int, keepdim: bool, largest: bool) -> Any:
    if not x.tensor.ndim:
        return x, b.full((), 0, torch.int64)
    y, dims = b.cast(x, torch.uint8) if x.tensor.dtype is torch.bool else b.widen(x), dims_of(x, dim)
    value = b.cast(reduce(b, "amax" if largest else "amin", y, dims, keepdim), x.tensor.dtype)
    return value, reduce(b, "argmax" if largest else "argmin", y, dims, keepdim)


rule(aten.max.dim)(lambda b, x, dim, keepdim=False: _with_index(b, x, dim, keepdim, True))
rule(aten.min.dim)(lambda b, x, dim, keepdim=False: _with_index(b, x, dim, keepdim, False))


def _arg(b: Builder, name: str, x: Node, dim: int | None, keepdim: bool) -> Any:
    if x.tensor.dtype is torch.bool:
        return NotImplemented
    if not x.tensor.ndim:
        return b.full((), 0, torch.int64)
    return reduce(b, name, b.widen(x), dims_of(x, dim), keepdim)


rule(aten.argmax.default)(lambda b, x, dim=None, keepdim=False: _arg(b, "argmax", x, dim, keepdim))
rule(aten.argmin.default)(lambda b, x, dim=None, keepdim=False: _arg(b, "argmin", x, dim, keepdim))


def _logical(b: Builder, name: str, x: Node, dims: Any, keepdim: bool) -> Node:
    return b.cast(reduce(b, name, b.cast(x, torch.bool), dims_of(x, dims), keepdim), b.out.dtype)


for name in ("any", "all"):
    packet = getattr(aten, name)
    rule(packet.default)(lambda b, x, name=name: _logical(b, name, x, None, False))
    rule(packet.dim)(lambda b, x, dim, keepdim=False, name=name: _logical(b, name, x, dim, keepdim))
    rule(packet.dims)(lambda b, x, dim=None, keepdim=False, name=name: _logical(b, name, x, dim, keepdim))


@rule(aten.aminmax.default)
def _aminmax(b: Builder, x: Node, *, dim: int | None = None, keepdim: bool = False) -> Any:
    dims, y = dims_of(x, dim), b.widen(x)
    return tuple(b.cast(reduce(b, name, y, dims, keepdim), x.tensor.dtype) for name in ("amin", "amax"))


@rule(aten.nansum.default)
def _nansum(b: Builder, x: Node, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    return _sum(b, b.where(b.ne(x, x), 0, x) if x.tensor.dtype.is_floating_point else x, dims, keepdim)


@rule(aten.count_nonzero.dim_IntList)
def _count_nonzero(b: Builder, x: Node, dims: Any = None) -> Node:
    return reduce(b, "sum", b.cast(b.ne(b.widen(x), 0), torch.int64), dims_of(x, dims))


@rule(aten.trace.default)
def _trace(b: Builder, x: Node) -> Node:
    n = min(x.tensor.shape)
    return _sum(b, b.gather(x, (b.index((n,), 0),) * 2, False), None)


# ---- variance -------------------------------------------------------------------------------------

def moments(b: Builder, x: Node, dims: Dims) -> tuple[Node, Node, Node]:
    """(mean, x - mean, sum of squares of that), in two passes."""
    average = mean(b, x, dims)
    centred = b.sub(x, spread(b, average, dims, x))
    return average, centred, reduce(b, "sum", b.mul(centred, centred), dims)


def variance(b: Builder, x: Node, dims: Any, correction: Any) -> tuple[Node, Node]:
    """(variance, mean) over dims."""
    over = dims_of(x, dims)
    average, _, squares = moments(b, b.widen(x), over)
    n, less = count(x, over), 1 if correction is None else correction
    divisor = real(max(n - int(less), 0)) if less == int(less) else max(float(n) - less, 0.0)
    return b.div(squares, divisor), average


def _statistic(b: Builder, x: Node, y: Node, dims: Any, keepdim: bool) -> Node:
    y = b.unsqueeze(y, dims_of(x, dims)) if keepdim else y
    return b.cast(y, x.tensor.dtype)


@rule(aten.var.correction)
def _var(b: Builder, x: Node, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Node:
    return _statistic(b, x, variance(b, x, dims, correction)[0], dims, keepdim)


@rule(aten.std.correction)
def _std(b: Builder, x: Node, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Node:
    return _statistic(b, x, b.sqrt(variance(b, x, dims, correction)[0]), dims, keepdim)


@rule(aten.var_mean.correction)
def _var_mean(b: Builder, x: Node, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return tuple(_statistic(b, x, y, dims, keepdim) for y in variance(b, x, dims, correction))


@rule(aten.std_mean.correction)
def _std_mean(b: Builder, x: Node, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    squared, average = variance(b, x, dims, correction)
    return tuple(_statistic(b, x, y, dims, keepdim) for y in (b.sqrt(squared), average))


@rule(aten.linalg_vector_norm.default)
def _vector_norm(b: Builder, x: Node, ord: Any = 2, dims: Any = None, keepdim: bool = False, *,
                 dtype: Any = None) -> Any:
    y, over = b.cast(b.cast(x, b.out.dtype), wide(b.out.dtype)), dims_of(x, dims)
    if ord in (math.inf, -math.inf) and not count(x, over):
        return NotImplemented
    norm = norm_of(b, y, ord, over)
    return b.cast(b.unsqueeze(norm, over) if keepdim else norm, b.out.dtype)


def norm_of(b: Builder, y: Node, p: Any, over: Dims) -> Node:
    """The p-norm over these dimensions, which go."""
    size = b.abs(y)
    if p in (math.inf, -math.inf):
        return reduce(b, "amax" if p > 0 else "amin", size, over)
    if p == 0:
        return reduce(b, "sum", b.cast(b.ne(y, 0.0), y.tensor.dtype), over)
    if p == 1:
        return reduce(b, "sum", size, over)
    if p == 2:
        return b.sqrt(reduce(b, "sum", b.mul(y, y), over))
    return b.pow(reduce(b, "sum", b.pow(size, float(p)), over), 1.0 / p)


@rule(aten.norm.Scalar, aten.norm.ScalarOpt_dim, aten.norm.ScalarOpt_dim_dtype)
def _norm(b: Builder, x: Node, p: Any = 2, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
    return _vector_norm(b, x, 2 if p is None else p, dims, keepdim)


@rule(aten.renorm.default)
def _renorm(b: Builder, x: Node, p: Any, dim: int, most: Any) -> Any:
    over, y = tuple(d for d in range(x.tensor.ndim) if d != dim % x.tensor.ndim), b.widen(x)
    norm = norm_of(b, y, p, over)
    factor = b.widen(b.cast(shrinking(b, norm, most), x.tensor.dtype))
    return b.cast(b.mul(y, spread(b, factor, over, y)), x.tensor.dtype)


def shrinking(b: Builder, norm: Node, most: Any) -> Node:
    """What to multiply by for a norm of at most `most`."""
    return b.where(b.gt(norm, float(most)), b.div(float(most), b.add(norm, 1e-7)), 1.0)


@rule(aten._cdist_forward.default)
def _cdist(b: Builder, x: Node, y: Node, p: float, mode: int | None) -> Any:
    """All pairs of rows; where eager mode multiplies matrices instead, the ATen kernel does."""
    (n, width), m = x.tensor.shape[-2:], y.tensor.shape[-2]
    if p == 2 and mode != 2 and (mode == 1 or max(n, m) > 25) or not width:
        return NotImplemented
    shape = (*b.out.shape, width)
    first = b.expand(b.unsqueeze(x, (x.tensor.ndim - 1,)), shape)
    apart = b.sub(first, b.expand(b.unsqueeze(y, (y.tensor.ndim - 2,)), shape))
    return norm_of(b, apart, p, (len(shape) - 1,))


@rule(aten._pdist_forward.default)
def _pdist(b: Builder, x: Node, p: float = 2.0) -> Any:
    n, width = x.tensor.shape
    if not width:
        return NotImplemented
    rows = [b.constant(i) for i in torch.triu_indices(n, n, 1)]
    shape = (*b.out.shape, width)
    pair = [b.gather(x, (b.broadcast_like(b.reshape(i, b.out.shape), (1,), shape), b.index(shape, 1)), False)
            for i in rows]
    return norm_of(b, b.sub(*pair), p, (1,))


# ---- softmax --------------------------------------------------------------------------------------

def _shifted(b: Builder, x: Node, dims: Dims) -> Node:
    return b.sub(x, spread(b, reduce(b, "amax", x, dims), dims, x))


@rule(aten._safe_softmax.default)
def _safe_softmax(b: Builder, x: Node, dim: int, dtype: Any = None) -> Any:
    """Rows of nothing but -inf give 0."""
    if x.tensor.numel == 0 or dtype not in (None, x.tensor.dtype):
        return NotImplemented
    y, dims = b.widen(x), dims_of(x, dim)
    empty = spread(b, b.eq(reduce(b, "amax", y, dims), -math.inf), dims, x)
    return b.cast(b.where(empty, 0.0, b.widen(_softmax(b, x, dim))), b.out.dtype)


@rule(aten._softmax.default)
def _softmax(b: Builder, x: Node, dim: int, half_to_float: Any = False) -> Node:
    if x.tensor.numel == 0:
        return b.cast(x, b.out.dtype)
    y, dims = b.widen(x), dims_of(x, dim)
    powers = b.exp(_shifted(b, y, dims))
    return b.cast(b.div(powers, spread(b, reduce(b, "sum", powers, dims), dims, y)), b.out.dtype)


@rule(aten._log_softmax.default)
def _log_softmax(b: Builder, x: Node, dim: int, half_to_float: Any = False) -> Node:
    if x.tensor.numel == 0:
        return b.cast(x, b.out.dtype)
    y, dims = b.widen(x), dims_of(x, dim)
    shifted = _shifted(b, y, dims)
    total = reduce(b, "sum", b.exp(shifted), dims)
    return b.cast(b.sub(shifted, spread(b, b.log(total), dims, y)), b.out.dtype)


@rule(aten.logsumexp.default)
def _logsumexp(b: Builder, x: Node, dims: Any, keepdim: bool = False) -> Any:
    y, over = b.cast(x, wide(b.out.dtype)), dims_of(x, dims)
    if x.tensor.numel == 0:
        return NotImplemented
    largest = reduce(b, "amax", y, over)
    largest = b.where(b.isinf(largest), 0.0, largest)          # infinities stand for themselves
    total = reduce(b, "sum", b.exp(b.sub(y, spread(b, largest, over, y))), over)
    result = b.add(b.log(total), largest)
    return b.cast(b.unsqueeze(result, over) if keepdim else result, b.out.dtype)


# ---- normalisation --------------------------------------------------------------------------------

def _affine(b: Builder, y: Node, weight: Node | None, bias: Node | None, dims: Dims) -> Node:
    """y * weight + bias, where the parameters lie along the dimensions not in `dims`."""
    for parameter, combine in ((weight, b.mul), (bias, b.add)):
        if parameter is not None:
            y = combine(y, b.broadcast_like(b.cast(parameter, y.tensor.dtype), dims, y.tensor.shape))
    return y


@rule(aten.native_layer_norm.default)
def _layer_norm(b: Builder, x: Node, shape: Any, weight: Node | None, bias: Node | None, eps: float) -> Any:
    lead = x.tensor.ndim - len(shape)
    dims, outs = tuple(range(lead, x.tensor.ndim)), b.out
    if x.tensor.numel == 0 or not dims:
        return NotImplemented
    y = b.widen(x)
    average, centred, squares = moments(b, y, dims)
    scale = b.rsqrt(b.add(b.div(squares, real(count(x, dims))), eps))
    result = _affine(b, b.mul(centred, spread(b, scale, dims, y)), weight, bias, tuple(range(lead)))
    return (b.cast(result, outs[0].dtype), *(b.cast(b.unsqueeze(s, dims), o.dtype) for s,
                                             o in zip((average, scale), outs[1:])))


@rule(aten._fused_rms_norm.default)
def _rms_norm(b: Builder, x: Node, shape: Any, weight: Node | None, eps: float | None) -> Any:
    lead = x.tensor.ndim - len(shape)
    dims, outs = tuple(range(lead, x.tensor.ndim)), b.out
    if x.tensor.numel == 0:
        return NotImplemented
    y = b.widen(x)
    smallest = torch.finfo(y.tensor.dtype).eps if eps is None else eps
    scale = b.rsqrt(b.add(mean(b, b.mul(y, y), dims), smallest))
    result = _affine(b, b.mul(y, spread(b, scale, dims, y)), weight, None, tuple(range(lead)))
    return b.cast(result, outs[0].dtype), b.cast(b.unsqueeze(scale, dims), outs[1].dtype)


@rule(aten.native_group_norm.default)
def _group_norm(b: Builder, x: Node, weight: Node | None, bias: Node | None, n: int, c: int, hw: int,
                groups: int, eps: float) -> Any:
    if x.tensor.numel == 0 or not b.source.args[0].tensor.is_contiguous:          # eager raises
        return NotImplemented
    outs, shape = b.out, x.tensor.shape
    y = b.reshape(b.widen(x), (n, groups, c // groups * hw))
    average, centred, squares = moments(b, y, (2,))
    scale = b.rsqrt(b.add(b.div(squares, real(y.tensor.shape[2])), eps))
    result = b.reshape(b.mul(centred, spread(b, scale, (2,), y)), shape)
    result = _affine(b, result, weight, bias, tuple(d for d in range(x.tensor.ndim) if d != 1))
    return b.cast(result, outs[0].dtype), b.cast(average, outs[1].dtype), b.cast(scale, outs[2].dtype)


def _channels(x: Node) -> Dims:
    return tuple(d for d in range(x.tensor.ndim) if d != 1)


@rule(aten.native_batch_norm.default)
def _batch_norm(b: Builder, x: Node, weight: Any, bias: Any, mean_: Any, var: Any, training: bool,
                momentum: float, eps: float) -> Any:
    if x.tensor.numel == 0:
        return NotImplemented
    outs, y, dims = b.out, b.widen(x), _channels(x)
    if training or mean_ is None:
        average, _, squares = moments(b, y, dims)
        scale = b.rsqrt(b.add(b.div(squares, real(count(x, dims))), eps))
    else:
        average = b.widen(mean_)
        scale = b.div(1.0, b.sqrt(b.add(b.widen(var), eps)))
    # per channel, so two operations a pixel
    factor = scale if weight is None else b.mul(scale, b.widen(weight))
    shift = b.neg(b.mul(average, factor))
    shift = shift if bias is None else b.add(shift, b.widen(bias))
    result = b.add(b.mul(y, spread(b, factor, dims, y)), spread(b, shift, dims, y))
    saved = [b.cast(s, o.dtype) if o.numel else b.full(o.shape, 0.0, o.dtype)
             for s, o in zip((average, scale), outs[1:3])]
    return b.cast(result, outs[0].dtype), *saved


@rule(aten._native_batch_norm_legit_functional.default)
def _batch_norm_functional(b: Builder, x: Node, weight: Any, bias: Any, mean_: Node, var: Node,
                           training: bool, momentum: float, eps: float) -> Any:
    """Also gives the running statistics' new values."""
    done = _batch_norm(b, x, weight, bias, mean_, var, training, momentum, eps)
    if done is NotImplemented or not training:
        return NotImplemented if done is NotImplemented else (*done, mean_, var)
    dims = _channels(x)
    average, _, squares = moments(b, b.widen(x), dims)
    unbiased = b.div(squares, real(count(x, dims) - 1))
    new = [b.add(b.mul(b.cast(s, wide(r.tensor.dtype)), momentum), b.mul(b.widen(r), 1.0 - momentum))
           for s, r in ((average, mean_), (unbiased, var))]
    return (*done, *(b.cast(n, r.tensor.dtype) for n, r in zip(new, (mean_, var))))


@rule(aten._batch_norm_with_update_functional.default)
def _batch_norm_with_update(b: Builder, x: Node, weight: Any, bias: Any, mean_: Node, var: Node,
                            momentum: float, eps: float) -> Any:
    done = _batch_norm_functional(b, x, weight, bias, mean_, var, True, momentum, eps)
    reserve = b.full(b.out[3].shape, 0, b.out[3].dtype)
    return done if done is NotImplemented else (*done[:3], reserve, *done[3:])


# ---- scans ----------------------------------------------------------------------------------------

def _scan(b: Builder, name: str, x: Node, dim: int) -> Node:
    y = b.cast(b.cast(x, b.out.dtype), wide(b.out.dtype))
    return (b.cast(b.emit_named(name, y, dim % y.tensor.ndim), b.out.dtype) if y.tensor.ndim else
            b.cast(y, b.out.dtype))


rule(aten.cumsum.default)(lambda b, x, dim, *, dtype=None: _scan(b, "scan_sum", x, dim))
rule(aten.cumprod.default)(lambda b, x, dim, *, dtype=None: _scan(b, "scan_prod", x, dim))


def _running(b: Builder, name: str, x: Node, dim: int) -> Any:
    """cummax, cummin: the running extreme, and where it was found: of equals the last; a NaN stays."""
    if not x.tensor.ndim:
        return x, b.full((), 0, torch.int64)
    if x.tensor.dtype is torch.bool:
        return NotImplemented
    y, dim = b.widen(x), dim % x.tensor.ndim
    best = b.emit_named(name, y, dim)
    here = b.or_(b.eq(y, best), b.ne(y, y))
    place = b.scan_amax(b.where(here, b.index(x.tensor.shape, dim), 0), dim)
    return b.cast(best, x.tensor.dtype), place


rule(aten.cummax.default)(lambda b, x, dim: _running(b, "scan_amax", x, dim))
rule(aten.cummin.default)(lambda b, x, dim: _running(b, "scan_amin", x, dim))


# ---- losses ---------------------------------------------------------------------------------------

def _reduced(b: Builder, y: Node, reduction: int) -> Node:
    """0 none, 1 mean, 2 sum."""
    if reduction:
        total = reduce(b, "sum", y, dims_of(y, None))
        y = b.div(total, real(y.tensor.numel)) if reduction == 1 else total
    return b.cast(y, b.out.dtype)


def _loss(b: Builder, x: Node, target: Node, reduction: int, f: Any) -> Any:
    if x.tensor.shape != target.tensor.shape or x.tensor.dtype != target.tensor.dtype:
        return NotImplemented
    return _reduced(b, f(b.widen(x), b.widen(target)), reduction)


@rule(aten.mse_loss.default)
def _mse_loss(b: Builder, x: Node, target: Node, reduction: int = 1) -> Any:
    def squared(p: Node, q: Node) -> Node:
        d = b.sub(p, q)
        return b.mul(d, d)
    return _loss(b, x, target, reduction, squared)


@rule(aten.smooth_l1_loss.default)
def _smooth_l1_loss(b: Builder, x: Node, target: Node, reduction: int = 1, beta: float = 1.0) -> Any:
    def smooth(p: Node, q: Node) -> Node:
        d = b.abs(b.sub(p, q))
        return (b.where(b.lt(d, beta), b.div(b.mul(b.mul(d, d), 0.5), beta), b.sub(d, 0.5 * beta))
                if beta else d)

    return _loss(b, x, target, reduction, smooth)


@rule(aten.huber_loss.default)
def _huber_loss(b: Builder, x: Node, target: Node, reduction: int = 1, delta: float = 1.0) -> Any:
    def huber(p: Node, q: Node) -> Node:
        d = b.abs(b.sub(p, q))
        return b.where(b.le(d, delta), b.mul(b.mul(d, d), 0.5), b.mul(b.sub(d, 0.5 * delta), delta))
    return _loss(b, x, target, reduction, huber)


def checked(b: Builder, x: Node, fine: Node, error: tuple[str, str]) -> Node:
    """x; raises `error` where `fine` does not hold for some element."""
    shape = x.tensor.shape
    if not shape:
        return b.reshape(checked(b, b.reshape(x, (1,)), b.reshape(fine, (1,)), error), ())
    own = [b.index(shape, d) for d in range(len(shape))]
    return b.gather(x, (b.where(fine, own[0], -1), *own[1:]), True, error)


@rule(aten.binary_cross_entropy.default)
def _binary_cross_entropy(b: Builder, x: Node, target: Node, weight: Node | None = None,
                          reduction: int = 1) -> Any:
    def loss(p: Node, q: Node) -> Node:
        p, q = (checked(b, y, b.and_(b.ge(y, 0.0), b.le(y, 1.0)),
                        ("RuntimeError", f"all elements of {name} should be between 0 and 1"))
                for y, name in ((p, "input"), (q, "target")))
        logs = [b.maximum(log, -100.0) for log in (b.log(p), b.log1p(b.neg(p)))]
        y = b.cast(b.sub(b.mul(b.sub(q, 1.0), logs[1]), b.mul(q, logs[0])), x.tensor.dtype)
        return b.widen(y) if weight is None else b.mul(b.widen(y), b.to(b.widen(weight), wide(x.tensor.dtype),
                                                                       x.tensor.shape))
    return _loss(b, x, target, reduction, loss)


@rule(aten.soft_margin_loss.default)
def _soft_margin_loss(b: Builder, x: Node, target: Node, reduction: int = 1) -> Any:
    def rounded(y: Node) -> Node:          # after each step, as eager mode does: exp may overflow
        return b.widen(b.cast(y, x.tensor.dtype))
    return _loss(b, x, target, reduction,
                 lambda p, q: rounded(b.log1p(rounded(b.exp(rounded(b.mul(b.neg(q), p)))))))


@rule(aten.multi_margin_loss.default)
def _multi_margin_loss(b: Builder, x: Node, target: Node, p: Any = 1, margin: Any = 1,
                       weight: Node | None = None, reduction: int = 1) -> Any:
    """The mean over classes of max(0, margin - x[target] + x)^p, but for the target's own."""
    if p not in (1, 2) or not x.tensor.ndim:
        return NotImplemented
    classes, y = x.tensor.shape[-1], b.widen(x)
    y = b.reshape(y, (y.tensor.numel // classes, classes))
    target, shape = b.reshape(target, y.tensor.shape[:1]), y.tensor.shape
    error = ("RuntimeError", "target out of range")
    own = b.gather(y, (b.index(shape[:1], 0), target), True, error)
    z = b.maximum(b.add(b.sub(margin, spread(b, own, (1,), y)), y), 0.0)
    z = b.mul(z, z) if p == 2 else z
    if weight is not None:
        z = b.mul(z, spread(b, b.cast(b.gather(weight, (target,), True, error), y.tensor.dtype), (1,), y))
    z = b.where(b.eq(spread(b, target, (1,), y), b.index(shape, 1)), 0.0, z)
    return b.reshape(_reduced(b, b.div(reduce(b, "sum", z, (1,)), float(classes)), reduction), b.out.shape)
