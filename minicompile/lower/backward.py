"""Decompositions of backward operators: the derivatives that the autograd engine asks for by name.

Takes a builder and operands, gives nodes. The formulas are eager mode's, its choices where a function has
no derivative and for NaN included (where its scalar and vector code disagree about NaN: the vector code's);
sums over narrow floats are taken in float32.
"""
from __future__ import annotations

import math
from typing import Any

import torch

from ..ir.graph import Node
from ..ir.sym import Sym
from .builder import RULES, Builder, real, rule, wide
from .pointwise import dtype_of, point, sigmoid, softplus
from .reduction import Dims, count, dims_of, mean, reduce, spread

aten = torch.ops.aten
Mask = tuple[bool, ...]
# Eager mode's kernels have these as float32, whatever they compute in.
SIXTH, TINY = (torch.tensor(c).item() for c in (1 / 6, 1e-12))


# ---- activations: (gradient, input or result) ------------------------------------------------------

@point(aten.tanh_backward.default, operands=2)
def _tanh(b: Builder, g: Node, y: Node) -> Node:
    return b.mul(g, b.sub(1.0, b.mul(y, y)))


@point(aten.sigmoid_backward.default, operands=2)
def _sigmoid(b: Builder, g: Node, y: Node) -> Node:
    return b.mul(b.mul(g, b.sub(1.0, y)), y)


@point(aten.gelu_backward.default, operands=2)
def _gelu(b: Builder, g: Node, x: Node, approximate: str = "none") -> Node:
    if approximate == "none":
        bell = b.exp(b.mul(b.mul(x, x), -0.5))
        density = b.mul(bell, 1 / math.sqrt(2 * math.pi))
        return b.mul(g, b.add(_normal_cdf(b, x, bell), b.mul(x, density)))
    beta, kappa = math.sqrt(2 / math.pi), 0.044715
    square = b.mul(x, x)
    bent = b.tanh(b.mul(b.add(x, b.mul(b.mul(square, x), kappa)), beta))
    half, right = b.mul(x, 0.5), b.add(bent, 1.0)
    inner = b.mul(b.add(b.mul(square, 3 * kappa), 1.0), beta)
    slope = b.mul(b.mul(half, b.sub(1.0, b.mul(bent, bent))), inner)
    return b.mul(g, b.add(b.mul(right, 0.5), slope))


def _normal_cdf(b: Builder, x: Node, bell: Node) -> Node:
    """The normal distribution function from e^(-x²/2), which the caller has, so that one exponential does
    for both: Abramowitz & Stegun 7.1.26, whose error of 1.5e-7 eager mode's float32 kernel has, too."""
    if dtype_of(x) is not torch.float32:
        return b.mul(b.add(b.erf(b.mul(x, math.sqrt(0.5))), 1.0), 0.5)
    t = b.div(1.0, b.add(b.mul(b.abs(x), 0.3275911 * math.sqrt(0.5)), 1.0))
    tail = b.mul(t, 1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = b.mul(b.add(tail, c), t)
    tail = b.mul(b.mul(tail, bell), 0.5)
    return b.where(b.lt(x, 0.0), tail, b.sub(1.0, tail))


@point(aten.silu_backward.default, operands=2)
def _silu(b: Builder, g: Node, x: Node) -> Node:
    s = sigmoid(b, x)
    return b.mul(b.mul(g, s), b.add(b.mul(x, b.sub(1.0, s)), 1.0))


@point(aten.mish_backward.default, operands=2)
def _mish(b: Builder, g: Node, x: Node) -> Node:
    t = b.tanh(softplus(b, x))
    return b.mul(g, b.add(t, b.mul(b.mul(x, sigmoid(b, x)), b.sub(1.0, b.mul(t, t)))))


@point(aten.softplus_backward.default, operands=2)
def _softplus(b: Builder, g: Node, x: Node, beta: Any, threshold: Any) -> Node:
    scaled = b.mul(x, beta)
    z = b.exp(scaled)
    return b.where(b.gt(scaled, threshold), g, b.div(b.mul(g, z), b.add(z, 1.0)))


@point(aten.log_sigmoid_backward.default, operands=2)
def _log_sigmoid(b: Builder, g: Node, x: Node, buffer: Node) -> Node:
    small, negative = b.exp(b.neg(b.abs(x))), b.lt(x, 0.0)
    part = b.div(small, b.add(small, 1.0))
    return b.mul(g, b.where(negative, b.sub(1.0, part), part))


@point(aten.threshold_backward.default, operands=2)
def _threshold(b: Builder, g: Node, x: Node, threshold: Any) -> Node:
    return b.where(b.le(x, threshold), 0, g)


@point(aten.leaky_relu_backward.default, operands=2)
def _leaky_relu(b: Builder, g: Node, x: Node, slope: Any, of_result: bool) -> Node:
    return b.where(b.gt(x, 0.0), g, b.mul(g, slope))


@point(aten.hardtanh_backward.default, operands=2)
def _hardtanh(b: Builder, g: Node, x: Node, low: Any, high: Any) -> Node:
    return b.where(b.and_(b.gt(x, low), b.lt(x, high)), g, 0)


@point(aten.hardswish_backward.default, operands=2)
def _hardswish(b: Builder, g: Node, x: Node) -> Node:
    middle = b.mul(g, b.add(b.div(x, 3.0), 0.5))
    return b.where(b.le(x, -3.0), 0.0, b.where(b.ge(x, 3.0), g, middle))


@point(aten.hardsigmoid_backward.default, operands=2)
def _hardsigmoid(b: Builder, g: Node, x: Node) -> Node:
    return b.where(b.and_(b.gt(x, -3.0), b.lt(x, 3.0)), b.mul(g, SIXTH), 0.0)


@point(aten.softshrink_backward.default, aten.hardshrink_backward.default, operands=2)
def _shrink(b: Builder, g: Node, x: Node, lambd: Any) -> Node:
    return b.where(b.or_(b.lt(x, -lambd), b.gt(x, lambd)), g, 0.0)


@rule(aten.elu_backward.default)
def _elu(b: Builder, g: Node, alpha: Any, scale: Any, input_scale: Any, of_result: bool, x: Node) -> Node:
    g, y = b.widen(g), b.widen(x)
    if of_result:
        low = b.mul(b.mul(g, input_scale), b.add(y, alpha * scale))
    else:
        low = b.mul(b.mul(g, input_scale * (alpha * scale)), b.exp(b.mul(y, input_scale)))
    return b.cast(b.where(b.gt(y, 0.0), b.mul(g, scale), low), b.out.dtype)


@point(aten.logit_backward.default, operands=2)
def _logit(b: Builder, g: Node, x: Node, eps: float | None = None) -> Node:
    low, high, outside = (0.0, 1.0, math.nan) if eps is None else (eps, 1 - eps, 0.0)
    inside = b.div(g, b.mul(x, b.sub(1.0, x)))
    return b.where(b.and_(b.ge(x, low), b.le(x, high)), inside, outside)


@rule(aten._prelu_kernel_backward.default)
def _prelu(b: Builder, g: Node, x: Node, weight: Node) -> Any:
    g, y, w = (b.expand(b.widen(n), x.tensor.shape) for n in (g, x, weight))
    positive = b.gt(y, 0.0)
    pair = b.where(positive, g, b.mul(w, g)), b.where(positive, 0.0, b.mul(y, g))
    return tuple(b.cast(n, s.dtype) for n, s in zip(pair, b.out))


@rule(aten.glu_backward.default)
def _glu(b: Builder, g: Node, x: Node, dim: int) -> Node:
    dim %= x.tensor.ndim
    half = x.tensor.shape[dim] // 2
    y, g = b.widen(x), b.widen(g)
    s = sigmoid(b, b.slice(y, dim, half, 2 * half, 1))
    second = b.mul(b.mul(b.mul(b.sub(1.0, s), s), b.slice(y, dim, 0, half, 1)), g)
    return b.cast(b.cat((b.mul(s, g), second), dim), dtype_of(x))


# ---- softmax and normalisation ---------------------------------------------------------------------

@rule(aten._softmax_backward_data.default)
def _softmax(b: Builder, g: Node, y: Node, dim: int, input_dtype: Any) -> Node:
    dims, g, y = dims_of(y, dim), b.widen(g), b.widen(y)
    if not y.tensor.numel:
        return b.cast(y, b.out.dtype)
    total = reduce(b, "sum", b.mul(g, y), dims)
    return b.cast(b.mul(b.sub(g, spread(b, total, dims, y)), y), b.out.dtype)


@rule(aten._log_softmax_backward_data.default)
def _log_softmax(b: Builder, g: Node, y: Node, dim: int, input_dtype: Any) -> Node:
    dims, g, y = dims_of(y, dim), b.widen(g), b.widen(y)
    if not y.tensor.numel:
        return b.cast(y, b.out.dtype)
    return b.cast(b.sub(g, b.mul(b.exp(y), spread(b, reduce(b, "sum", g, dims), dims, y))), b.out.dtype)


def _through_statistics(b: Builder, g: Node, normal: Node, scale: Node, dims: Dims, centred: bool) -> Node:
    """The gradient of what was normalised over `dims`: `normal` is the result, `scale` what it was
    multiplied by; g less what moves the mean (if it was taken off) and the variance."""
    if centred:
        rest = b.sub(g, spread(b, mean(b, g, dims), dims, g))
    else:
        rest = g
    moved = b.mul(normal, spread(b, mean(b, b.mul(g, normal), dims), dims, g))
    return b.mul(b.sub(rest, moved), scale)


def _masked(b: Builder, mask: Mask, *make: Any) -> Any:
    """The results that are asked for, in their dtypes and shapes; None for the others."""
    return tuple(b.cast(b.reshape(f(), s.shape), s.dtype) if wanted else None
                 for wanted, f, s in zip(mask, make, b.out))


@rule(aten.native_layer_norm_backward.default)
def _layer_norm(b: Builder, g: Node, x: Node, shape: Any, average: Node, scale: Node, weight: Node | None,
                bias: Node | None, mask: Mask) -> Any:
    if not x.tensor.numel:
        return NotImplemented
    lead = x.tensor.ndim - len(shape)
    rows, dims = tuple(range(lead)), tuple(range(lead, x.tensor.ndim))
    g, y, full = b.widen(g), b.widen(x), x.tensor.shape
    average, scale = (b.expand(b.cast(s, dtype_of(y)), full) for s in (average, scale))
    normal = b.mul(b.sub(y, average), scale)
    gy = g if weight is None else b.mul(g, b.broadcast_like(b.cast(weight, dtype_of(y)), rows, full))
    return _masked(b, mask, lambda: _through_statistics(b, gy, normal, scale, dims, True),
                   lambda: reduce(b, "sum", b.mul(g, normal), rows), lambda: reduce(b, "sum", g, rows))


@rule(aten._fused_rms_norm_backward.default)
def _rms_norm(b: Builder, g: Node, x: Node, shape: Any, scale: Node, weight: Node | None, mask: Mask) -> Any:
    if not x.tensor.numel:
        return NotImplemented
    lead = x.tensor.ndim - len(shape)
    rows, dims = tuple(range(lead)), tuple(range(lead, x.tensor.ndim))
    g, y, full = b.widen(g), b.widen(x), x.tensor.shape
    scale = b.expand(b.cast(scale, dtype_of(y)), full)
    normal = b.mul(y, scale)
    gy = g if weight is None else b.mul(g, b.broadcast_like(b.cast(weight, dtype_of(y)), rows, full))
    return _masked(b, mask, lambda: _through_statistics(b, gy, normal, scale, dims, False),
                   lambda: reduce(b, "sum", b.mul(g, normal), rows))


@rule(aten.native_group_norm_backward.default)
def _group_norm(b: Builder, g: Node, x: Node, average: Node, scale: Node, weight: Node | None, n: int, c: int,
                hw: int, groups: int, mask: Mask) -> Any:
    if not x.tensor.numel:
        return NotImplemented
    full = (n, groups, c // groups, hw)
    g, y = b.reshape(b.widen(g), full), b.reshape(b.widen(x), full)
    average, scale = (b.broadcast_like(b.cast(b.reshape(s, full[:2]), dtype_of(y)), (2, 3), full)
                      for s in (average, scale))
    normal = b.mul(b.sub(y, average), scale)
    gy = g
    if weight is not None:
        gy = b.mul(g, b.broadcast_like(b.reshape(b.cast(weight, dtype_of(y)), full[1:3]), (0, 3), full))
    return _masked(b, mask, lambda: _through_statistics(b, gy, normal, scale, (2, 3), True),
                   lambda: reduce(b, "sum", b.mul(g, normal), (0, 3)), lambda: reduce(b, "sum", g, (0, 3)))


@rule(aten.native_batch_norm_backward.default)
def _batch_norm(b: Builder, g: Node, x: Node, weight: Node | None, running_mean: Node | None,
                running_var: Node | None, saved_mean: Node | None, saved_scale: Node | None, training: bool,
                eps: float, mask: Mask) -> Any:
    average = saved_mean if training else running_mean
    if not x.tensor.numel or average is None:
        return NotImplemented
    g, y = b.widen(g), b.widen(x)
    dtype, dims = dtype_of(y), tuple(d for d in range(x.tensor.ndim) if d != 1)
    if training:
        scale = b.cast(saved_scale, dtype)
    else:
        scale = b.div(1.0, b.sqrt(b.add(b.cast(running_var, dtype), eps)))
    factor = scale if weight is None else b.mul(scale, b.cast(weight, dtype))
    centred = b.sub(y, spread(b, b.cast(average, dtype), dims, y))
    total, product = (reduce(b, "sum", t, dims) for t in (g, b.mul(g, centred)))

    def of_input() -> Node:
        if not training:
            return b.mul(g, spread(b, factor, dims, y))
        n = real(count(x, dims))
        slope = b.div(b.mul(product, b.mul(scale, scale)), n)
        rest = b.sub(b.sub(g, spread(b, b.div(total, n), dims, y)), b.mul(centred, spread(b, slope, dims, y)))
        return b.mul(rest, spread(b, factor, dims, y))
    return _masked(b, mask, of_input, lambda: b.mul(product, scale), lambda: total)


@rule(aten._weight_norm_interface.default)
def _weight_norm(b: Builder, v: Node, g: Node, dim: int = 0) -> Any:
    over = tuple(d for d in range(v.tensor.ndim) if d != dim % v.tensor.ndim)
    y = b.widen(v)
    norm = b.unsqueeze(b.sqrt(reduce(b, "sum", b.mul(y, y), over)), over)
    result = b.mul(y, b.expand(b.div(b.widen(g), norm), y.tensor.shape))
    return tuple(b.cast(n, s.dtype) for n, s in zip((result, norm), b.out))


@rule(aten._weight_norm_interface_backward.default)
def _weight_norm_backward(b: Builder, gw: Node, v: Node, g: Node, norm: Node, dim: int) -> Any:
    over = tuple(d for d in range(v.tensor.ndim) if d != dim % v.tensor.ndim)
    gw, y, g = b.widen(gw), b.widen(v), b.widen(g)
    norm = b.cast(norm, dtype_of(y))
    total = b.unsqueeze(reduce(b, "sum", b.mul(gw, y), over), over)
    factor = b.expand(b.div(total, b.mul(norm, norm)), y.tensor.shape)
    of_v = b.mul(b.expand(b.div(g, norm), y.tensor.shape), b.sub(gw, b.mul(y, factor)))
    return tuple(b.cast(n, s.dtype) for n, s in zip((of_v, b.div(total, norm)), b.out))


# ---- losses ----------------------------------------------------------------------------------------

def _share(b: Builder, x: Node, reduction: int, times: float = 1.0) -> Any:
    """What part of the loss one element of x is, `times`: 1 / n for a mean."""
    n = b.out.numel
    if isinstance(n, Sym) and reduction == 1:
        return b.cast(b.div(b.full(x.tensor.shape, times, torch.float64), n), dtype_of(x))
    return times * (1.0 / n) if reduction == 1 and n else times


@point(aten.mse_loss_backward.default, operands=3)
def _mse_loss(b: Builder, g: Node, x: Node, target: Node, reduction: int) -> Node:
    return b.mul(b.mul(b.sub(x, target), _share(b, x, reduction, 2.0)), g)


@point(aten.smooth_l1_loss_backward.default, operands=3)
def _smooth_l1_loss(b: Builder, g: Node, x: Node, target: Node, reduction: int, beta: float) -> Node:
    g, d = b.mul(g, _share(b, x, reduction)), b.sub(x, target)
    middle = b.div(b.mul(d, g), beta) if beta else b.mul(d, g)
    return b.where(b.le(d, -beta), b.neg(g), b.where(b.ge(d, beta), g, middle))


@point(aten.huber_loss_backward.default, operands=3)
def _huber_loss(b: Builder, g: Node, x: Node, target: Node, reduction: int, delta: float) -> Node:
    g, d = b.mul(g, _share(b, x, reduction)), b.sub(x, target)
    end = b.mul(g, delta)
    return b.where(b.le(d, -delta), b.neg(end), b.where(b.ge(d, delta), end, b.mul(d, g)))


@point(aten.binary_cross_entropy_backward.default, operands=3)
def _binary_cross_entropy(b: Builder, g: Node, x: Node, target: Node, weight: Node | None = None,
                          reduction: int = 1) -> Node:
    slope = b.div(b.mul(g, b.sub(x, target)), b.maximum(b.mul(b.sub(1.0, x), x), TINY))
    if weight is not None:
        slope = b.mul(slope, b.to(weight, dtype_of(slope), slope.tensor.shape))
    return b.mul(slope, _share(b, slope, reduction))


@rule(aten.binary_cross_entropy_with_logits.default)
def _with_logits(b: Builder, x: Node, target: Node, weight: Node | None = None,
                 pos_weight: Node | None = None, reduction: int = 1) -> Node:
    dtype, shape = wide(b.out.dtype), x.tensor.shape
    x, target = b.cast(x, dtype), b.to(target, dtype, shape)
    log = b.sub(b.minimum(x, 0.0), b.log1p(b.exp(b.neg(b.abs(x)))))
    if pos_weight is not None:
        log = b.mul(log, b.add(b.mul(b.sub(b.to(pos_weight, dtype, shape), 1.0), target), 1.0))
    loss = b.sub(b.mul(b.sub(1.0, target), x), log)
    if weight is not None:
        loss = b.mul(loss, b.to(weight, dtype, shape))
    if reduction:
        total = reduce(b, "sum", loss, dims_of(loss, None))
        loss = mean(b, loss, dims_of(loss, None)) if reduction == 1 else total
    return b.cast(loss, b.out.dtype)


def _classes(x: Node) -> int:
    """The dimension that classes lie along."""
    return 1 if x.tensor.ndim > 1 else 0


def _weights(b: Builder, target: Node, weight: Node | None, ignore: int, dtype: torch.dtype,
             ) -> tuple[Node, Node]:
    """(class of each target, 0 for ignored ones; weight of each target, 0 for ignored ones)."""
    skipped = b.eq(target, ignore)
    safe = b.where(skipped, 0, target)
    each = b.full(target.tensor.shape, 1.0, dtype)
    if weight is not None:
        each = b.cast(b.gather(weight, (safe,), True, OUT_OF_BOUNDS), dtype)
    return safe, b.where(skipped, 0.0, each)


OUT_OF_BOUNDS = ("IndexError", "Target {index} is out of bounds.")


@rule(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def _nll_loss(b: Builder, x: Node, target: Node, weight: Node | None, reduction: int, ignore: int) -> Any:
    if not x.tensor.numel or not target.tensor.numel:
        return NotImplemented
    dim, dtype = _classes(x), wide(dtype_of(x))
    target = b.cast(target, torch.int64)
    if not target.tensor.ndim or x.tensor.ndim == 1:
        target = b.reshape(target, ())
    safe, each = _weights(b, target, weight, ignore, dtype)
    shape = target.tensor.shape
    index = [b.index(shape, d) for d in range(len(shape))]
    chosen = b.gather(x, (*index[:dim], safe, *index[dim:]), True, OUT_OF_BOUNDS)
    loss = b.neg(b.mul(b.cast(chosen, dtype), each))
    loss = b.where(b.eq(target, ignore), 0.0, loss)
    total = b.full((), 0.0, dtype)
    if reduction or x.tensor.ndim == 1:
        dims = tuple(range(len(shape)))
        loss, total = reduce(b, "sum", loss, dims), reduce(b, "sum", each, dims)
        loss = b.div(loss, total) if reduction == 1 else loss
    return tuple(b.cast(b.reshape(n, s.shape), s.dtype) for n, s in zip((loss, total), b.out))


@rule(aten.nll_loss_backward.default, aten.nll_loss2d_backward.default)
def _nll_loss_backward(b: Builder, g: Node, x: Node, target: Node, weight: Node | None, reduction: int,
                       ignore: int, total: Node) -> Any:
    """A comparison at every element instead of a scatter: it fuses with what reads it."""
    if not x.tensor.numel or not target.tensor.numel:
        return NotImplemented
    dim, dtype, shape = _classes(x), wide(dtype_of(x)), x.tensor.shape
    target = b.reshape(b.cast(target, torch.int64), tuple(n for d, n in enumerate(shape) if d != dim))
    safe, each = _weights(b, target, weight, ignore, dtype)
    g = b.cast(g, dtype)
    if reduction == 1:
        g = b.div(g, b.cast(total, dtype))
    g = b.reshape(g, target.tensor.shape if g.tensor.numel > 1 else ())
    step = b.neg(b.mul(b.expand(g, target.tensor.shape), each))
    step = b.where(b.eq(target, ignore), 0.0, step)
    here = b.eq(b.index(shape, dim), b.broadcast_like(safe, (dim,), shape))
    return b.cast(b.where(here, b.broadcast_like(step, (dim,), shape), 0.0), b.out.dtype)


# ---- views, dropout -----------------------------------------------------------

@rule(aten.slice_backward.default)
def _slice(b: Builder, g: Node, sizes: Any, dim: int, start: int, end: int, step: int) -> Node:
    dim %= len(sizes)
    size, n = sizes[dim], g.tensor.shape[dim]
    start = min(max(start + size if start < 0 else start, 0), size)
    if step > 1 and n:
        wide_shape = (*g.tensor.shape[:dim + 1], step, *g.tensor.shape[dim + 1:])
        zeros = [0] * len(wide_shape)
        high = tuple(step - 1 if d == dim + 1 else 0 for d in range(len(wide_shape)))
        g = b.pad(b.unsqueeze(g, (dim + 1,)), tuple(zeros), high, 0)
        g = b.reshape(g, tuple(n * step if d == dim else k for d, k in enumerate(sizes)))
        g = b.slice(g, dim, 0, (n - 1) * step + 1, 1)
    return _placed(b, g, sizes, dim, start)


@rule(aten.select_backward.default)
def _select(b: Builder, g: Node, sizes: Any, dim: int, index: int) -> Node:
    dim %= len(sizes)
    return _placed(b, b.unsqueeze(g, (dim,)), sizes, dim, index + sizes[dim] if index < 0 else index)


def _placed(b: Builder, g: Node, sizes: Any, dim: int, start: int) -> Node:
    """Zeros of these sizes with g put in from `start` on."""
    rest = sizes[dim] - start - g.tensor.shape[dim]
    low, high = (tuple(k if d == dim else 0 for d in range(len(sizes))) for k in (start, rest))
    return b.pad(g, low, high, 0)


@rule(aten.diagonal_backward.default)
def _diagonal(b: Builder, g: Node, sizes: Any, offset: int, dim1: int, dim2: int) -> Any:
    zeros = b.full(tuple(sizes), 0.0, dtype_of(g))
    return RULES[aten.diagonal_scatter.default](b, zeros, g, offset, dim1, dim2)


@rule(aten.bernoulli.p)
def _bernoulli(b: Builder, x: Node, p: float = 0.5, *, generator: Any = None) -> Any:
    """Eager's own draw; said to be zeros and ones, so that a backward may keep it as a byte an element."""
    if generator is not None:
        return NotImplemented
    drawn = b.extern(aten.bernoulli.p, (x, p), {}, b.out)
    return b.cast(b.cast(drawn, torch.bool), b.out.dtype)


@rule(aten.native_dropout_backward.default)
def _dropout(b: Builder, g: Node, mask: Node, scale: float) -> Node:
    y = b.widen(g)
    return b.cast(b.mul(b.mul(y, b.cast(mask, dtype_of(y))), scale), b.out.dtype)
