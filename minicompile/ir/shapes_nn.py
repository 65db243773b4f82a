"""More shape rules: products, convolution, attention, indexing, creation, and the backward operators of
training graphs.

Takes and gives what `ir.shapes` does; importing it fills that module's table. A rule answers None for what
it does not cover.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .elementwise import broadcast, is_last, ordered_stride, result_stride
from .shapes import formatted, normed, reduced, rule

aten = torch.ops.aten
Tensor = torch.Tensor
INDEX = (torch.int64, torch.int32)


def fresh(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Laid out as empty_like(x) is: the same strides if x is dense, else in the order of its strides."""
    stride = result_stride(tuple(x.shape), [x])
    return torch.empty_strided(x.shape, stride, dtype=dtype or x.dtype, device="meta")


# ---- products, convolution, pooling, attention ----------------------------------------------------

@rule(aten.mm.default)
def _mm(a: Tensor, b: Tensor) -> Tensor | None:
    ok = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and a.dtype == b.dtype
    return fresh((a.shape[0], b.shape[1]), a.dtype) if ok else None


@rule(aten.bmm.default)
def _bmm(a: Tensor, b: Tensor) -> Tensor | None:
    ok = (a.dim() == b.dim() == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1]
          and a.dtype == b.dtype)
    return fresh((a.shape[0], a.shape[1], b.shape[2]), a.dtype) if ok else None


@rule(aten.baddbmm.default)
def _baddbmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor | None:
    out = _bmm(a, b)
    fits = (out is not None and bias.dtype == a.dtype
            and broadcast([tuple(bias.shape), tuple(out.shape)]) == tuple(out.shape))
    return out if fits else None


@rule(aten.convolution.default)
def _convolution(x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
                 transposed: bool, output_padding: Any, groups: int) -> Tensor | None:
    """Channels last if the input or the weight is, else contiguous."""
    n, channels = x.dim() - 2, weight.shape[1] * groups if transposed else weight.shape[0]
    taken = weight.shape[0] if transposed else weight.shape[1] * groups
    if (n not in (1, 2) or weight.dim() != x.dim() or x.shape[1] != taken or x.dtype != weight.dtype
        or not x.numel() or bias is not None and (bias.dtype != x.dtype or tuple(bias.shape) != (channels,))):
        return None
    stride, padding, dilation, extra = (list(p) * n if len(p) == 1 else list(p)
                                        for p in (stride, padding, dilation, output_padding))
    spatial = []
    for size, k, s, p, d, more in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, extra):
        span = d * (k - 1) + 1
        spatial.append((size - 1) * s - 2 * p + span + more if transposed else (size + 2 * p - span) // s + 1)
    if min(spatial) < 1 or (x.dtype is not torch.float32
                            and not (x.is_contiguous() and weight.is_contiguous())):
        return None
    return formatted((x.shape[0], channels, *spatial), x.dtype, is_last(x) or is_last(weight))


@rule(aten.convolution_backward.default)
def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, *rest: Any) -> Any:
    if not (x.is_contiguous() and weight.is_contiguous()) or rest[3]:
        return None
    mask = rest[-1]
    return (like(x) if mask[0] else None, like(weight) if mask[1] else None,
            fresh((weight.shape[0],), grad.dtype) if mask[2] else None)


@rule(aten.max_pool2d_with_indices.default)
def _max_pool(x: Tensor, kernel: Any, stride: Any = (), padding: Any = (0,), dilation: Any = (1,),
              ceil_mode: bool = False,) -> Any:
    if ceil_mode or x.dim() != 4 or not x.numel():
        return None
    kernel, padding, dilation = (list(p) * 2 if len(p) == 1 else list(p) for p in (kernel, padding, dilation))
    stride = kernel if not stride else (list(stride) * 2 if len(stride) == 1 else list(stride))
    spatial = [(x.shape[i + 2] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
               for i in range(2)]
    if min(spatial) < 1 or any(2 * p > k for p, k in zip(padding, kernel)):
        return None
    shape = (*x.shape[:2], *spatial)
    return formatted(shape, x.dtype, is_last(x)), formatted(shape, torch.int64, is_last(x))


@rule(aten.max_pool2d_with_indices_backward.default)
def _max_pool_backward(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return formatted(x.shape, x.dtype, is_last(x))


@rule(aten._scaled_dot_product_flash_attention_for_cpu.default)
def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Any:
    batch, heads, length, _ = q.shape
    total = torch.float32 if q.dtype.itemsize < 4 else q.dtype
    return like(q), fresh((batch, length, heads), total).transpose(1, 2)


@rule(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
def _attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Any:
    def laid(x: Tensor) -> Tensor:
        batch, heads, length, size = x.shape
        return fresh((batch, length, heads, size), x.dtype).transpose(1, 2)
    return laid(q), laid(k), laid(v)


@rule(aten.roll.default)
def _roll(x: Tensor, shifts: Any, dims: Any = ()) -> Tensor | None:
    ok = len(shifts) == len(dims) or len(shifts) == 1 and not dims
    return (formatted(x.shape, x.dtype, is_last(x)) if ok and all(-x.dim() <= d < x.dim() for d in dims)
            else None)


@rule(aten.replication_pad2d.default)
def _pad(x: Tensor, pad: Any) -> Tensor | None:
    if x.dim() != 4 or min(pad) < 0 or not x.numel():
        return None
    shape = (*x.shape[:2], x.shape[2] + pad[2] + pad[3], x.shape[3] + pad[0] + pad[1])
    return formatted(shape, x.dtype, is_last(x))


@rule(aten.reflection_pad2d.default)
def _reflection_pad(x: Tensor, pad: Any) -> Tensor | None:
    return _pad(x, pad) if max(pad[:2]) < x.shape[-1] and max(pad[2:]) < x.shape[-2] else None


@rule(aten.pixel_shuffle.default)
def _pixel_shuffle(x: Tensor, factor: int) -> Tensor | None:
    if x.dim() != 4 or x.shape[1] % (factor * factor):
        return None
    shape = (x.shape[0], x.shape[1] // (factor * factor), x.shape[2] * factor, x.shape[3] * factor)
    return formatted(shape, x.dtype, is_last(x))


# ---- indexing -------------------------------------------------------------------------------------

@rule(aten.embedding.default)
def _embedding(weight: Tensor, indices: Tensor, *_: Any, **__: Any) -> Tensor | None:
    ok = weight.dim() == 2 and indices.dtype in INDEX
    return fresh((*indices.shape, weight.shape[1]), weight.dtype) if ok else None


@rule(aten.embedding_dense_backward.default)
def _embedding_backward(grad: Tensor, indices: Tensor, rows: int, *_: Any) -> Tensor:
    return fresh((rows, grad.shape[-1]), grad.dtype)


@rule(aten.index.Tensor)
def _index(x: Tensor, indices: Any) -> Tensor | None:
    """Dimensions are ordered by x's strides (indexed ones do not vote), then by those of the indices."""
    given = {d: i for d, i in enumerate(indices) if i is not None}
    if not given or len(indices) > x.dim() or any(i.dtype not in INDEX for i in given.values()):
        return None
    common = broadcast([tuple(i.shape) for i in given.values()])
    if common is None:
        return None
    dims = sorted(given)
    at = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    rest = [d for d in range(x.dim()) if d not in given]
    shape = (*(x.shape[d] for d in rest[:at]), *common, *(x.shape[d] for d in rest[at:]))
    moved = [x.stride(d) for d in rest]
    votes = [[*moved[:at], *[0] * len(common), *moved[at:]]]
    for i in given.values():
        own = [s if n != 1 else 0 for n, s in zip(i.shape, i.stride())]
        votes.append([0] * at + [0] * (len(common) - len(own)) + own + [0] * len(rest[at:]))
    return torch.empty_strided(shape, ordered_stride(shape, votes), dtype=x.dtype, device="meta")


@rule(aten.index_put.default)
def _index_put(x: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor | None:
    return like(x) if values.dtype == x.dtype else None


@rule(aten.gather.default)
def _gather(x: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor | None:
    ok = x.dim() == index.dim() and x.dim() and -x.dim() <= dim < x.dim() and index.dtype in INDEX
    fits = ok and all(d == dim % x.dim() or i <= n for d, (i, n) in enumerate(zip(index.shape, x.shape)))
    return fresh(index.shape, x.dtype) if fits else None


@rule(aten.slice_backward.default, aten.select_backward.default)
def _slice_backward(grad: Tensor, sizes: Any, *_: Any) -> Tensor:
    return fresh(sizes, grad.dtype)


@rule(aten.stack.default)
def _stack(xs: Any, dim: int = 0) -> Tensor | None:
    first, n = xs[0], xs[0].dim() + 1
    if not -n <= dim < n or any(x.shape != first.shape or x.dtype != first.dtype or not x.is_contiguous()
                                for x in xs):
        return None
    shape = list(first.shape)
    shape.insert(dim % n, len(xs))
    return fresh(shape, first.dtype)


# ---- creation -------------------------------------------------------------------------------------

@rule(aten.empty_like.default, aten.ones_like.default, aten.zeros_like.default)
def _like(x: Tensor, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
          memory_format: Any = None) -> Tensor | None:
    if memory_format in (None, torch.preserve_format):
        return like(x, dtype)
    return torch.empty(x.shape, dtype=dtype or x.dtype, device="meta", memory_format=memory_format)


@rule(aten.rand_like.default, aten.randn_like.default)
def _random_like(x: Tensor, **options: Any) -> Tensor | None:
    return _like(x, **options)


@rule(aten.full_like.default)
def _full_like(x: Tensor, value: Any, **options: Any) -> Tensor | None:
    return _like(x, **options)


@rule(aten.eye.default, aten.eye.m)
def _eye(n: int, m: int | None = None, *, dtype: Any = None, **_: Any) -> Tensor:
    return fresh((n, n if m is None else m), dtype or torch.get_default_dtype())


@rule(aten.tril_indices.default)
def _lower(rows: int, columns: int, offset: int = 0, *, dtype: Any = torch.int64, **_: Any) -> Tensor | None:
    n = sum(min(max(i + offset + 1, 0), columns) for i in range(rows))
    return fresh((2, n), dtype or torch.int64) if min(rows, columns) >= 0 else None


@rule(aten.triu_indices.default)
def _upper(rows: int, columns: int, offset: int = 0, *, dtype: Any = torch.int64, **_: Any) -> Tensor | None:
    n = sum(min(max(columns - i - offset, 0), columns) for i in range(rows))
    return fresh((2, n), dtype or torch.int64) if min(rows, columns) >= 0 else None


@rule(aten.topk.default)
def _topk(x: Tensor, k: int, dim: int = -1, *_: Any) -> Any:
    n = x.dim()
    if not -n <= dim < n or not 0 <= k <= x.shape[dim] or not x.is_contiguous():
        return None
    shape = [k if i == dim % n else size for i, size in enumerate(x.shape)]
    return fresh(shape, x.dtype), fresh(shape, torch.int64)


@rule(aten.sort.default, aten.sort.stable)
def _sort(x: Tensor, dim: int = -1, *_: Any, **named: Any) -> Any:
    n, dim = max(x.dim(), 1), named.get("dim", dim)
    ok = -n <= dim < n and x.is_contiguous()
    return (fresh(x.shape, x.dtype), fresh(x.shape, torch.int64)) if ok else None


@rule(aten.histc.default)
def _histogram(x: Tensor, bins: int = 100, low: float = 0, high: float = 0) -> Tensor | None:
    ok = bins > 0 and x.dtype.is_floating_point and -math.inf < low <= high < math.inf
    return fresh((bins,), x.dtype) if ok else None


@rule(aten.flip.default)
def _flip(x: Tensor, dims: Any) -> Tensor | None:
    wrapped = [d % x.dim() for d in dims] if x.dim() and all(-x.dim() <= d < x.dim() for d in dims) else []
    return like(x) if wrapped and len(set(wrapped)) == len(wrapped) else None


@rule(aten.tril.default, aten.triu.default)
def _triangle(x: Tensor, diagonal: int = 0) -> Tensor | None:
    return fresh(x.shape, x.dtype) if x.dim() >= 2 else None


@rule(aten.repeat.default)
def _repeat(x: Tensor, repeats: Any) -> Tensor | None:
    lead = len(repeats) - x.dim()
    if lead < 0 or any(r < 0 for r in repeats) or not x.is_contiguous():
        return None
    return fresh([n * r for n, r in zip([1] * lead + list(x.shape), repeats)], x.dtype)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor | None:
    number = isinstance(value, (bool, int)) or isinstance(value, float) and x.dtype.is_floating_point
    same = tuple(x.shape) == broadcast([tuple(x.shape), tuple(mask.shape)])
    ok = (same and mask.dtype == torch.bool
          and (number or isinstance(value, Tensor) and value.dtype == x.dtype))
    return fresh(x.shape, x.dtype) if ok else None          # a contiguous clone, filled


@rule(aten.masked_fill_.Scalar, aten.masked_fill_.Tensor)
def _masked_fill_in_place(x: Tensor, mask: Tensor, value: Any) -> Tensor | None:
    return x if _masked_fill(x, mask, value) is not None else None


@rule(aten.fill.Scalar)
def _fill(x: Tensor, value: Any) -> Tensor:
    return like(x)


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _arange(*args: Any, dtype: Any = None, **_: Any) -> Tensor | None:
    start, end, step = ((0, args[0], 1) if len(args) == 1
                        else (args[0], args[1], args[2] if len(args) > 2 else 1))
    whole = all(isinstance(v, int) for v in (start, end, step))
    if any(isinstance(v, float) and not math.isfinite(v) for v in (start, end, step)):
        return None
    if dtype is torch.int64:          # fractions are cut off before it counts; other dtypes count in float64
        start, end, step = int(start), int(end), int(step)
        whole = True
    if not step or (end - start) * step < 0:
        return None
    n = -((start - end) // step) if whole else math.ceil((end - start) / step)
    return fresh((n,), dtype or (torch.int64 if whole else torch.get_default_dtype()))


# ---- reductions, norms and losses; backward -------------------------------------------------------

@rule(aten.mean.default)
def _mean(x: Tensor, *, dtype: Any = None) -> Tensor | None:
    return fresh((), dtype or x.dtype) if (dtype or x.dtype).is_floating_point else None


@rule(aten.argmax.default, aten.argmin.default)
def _arg(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor | None:
    shape = reduced(tuple(x.shape), dim, keepdim)
    return (fresh(shape, torch.int64) if shape is not None and x.numel() and not x.dtype.is_complex
            and x.dtype != torch.bool else None)


@rule(aten.var_mean.correction)
def _var_mean(x: Tensor, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    shape = reduced(tuple(x.shape), dims, keepdim)
    ok = shape is not None and x.dtype.is_floating_point
    return (fresh(shape, x.dtype), fresh(shape, x.dtype)) if ok and shape is not None else None


@rule(aten.std.correction)
def _std(x: Tensor, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Tensor | None:
    shape = reduced(tuple(x.shape), dims, keepdim)
    return fresh(shape, x.dtype) if shape is not None and x.dtype.is_floating_point else None


@rule(aten.logsumexp.default)
def _logsumexp(x: Tensor, dims: Any, keepdim: bool = False) -> Tensor | None:
    shape = reduced(tuple(x.shape), dims, keepdim)
    return fresh(shape, x.dtype) if shape is not None and x.dtype.is_floating_point else None


@rule(aten.linalg_vector_norm.default)
def _vector_norm(x: Tensor, ord: Any = 2, dims: Any = None, keepdim: bool = False, *,
                 dtype: Any = None) -> Tensor | None:
    shape = reduced(tuple(x.shape), dims, keepdim)
    ok = shape is not None and x.dtype.is_floating_point and dtype is None and x.numel()
    return fresh(shape, x.dtype) if ok and shape is not None else None


@rule(aten.any.default, aten.all.default)
def _any_of_all(x: Tensor) -> Tensor | None:
    return fresh((), torch.bool) if x.dtype is not torch.uint8 else None


@rule(aten.any.dim, aten.all.dim)
def _any(x: Tensor, dim: int, keepdim: bool = False) -> Tensor | None:
    shape = reduced(tuple(x.shape), dim, keepdim)
    return fresh(shape, torch.bool) if shape is not None and x.dtype is not torch.uint8 else None


@rule(aten.native_group_norm.default)
def _group_norm(x: Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float) -> Any:
    if any(p is not None and p.dtype != x.dtype for p in (weight, bias)):
        return None
    return formatted(x.shape, x.dtype, is_last(x)), fresh((n, groups), x.dtype), fresh((n, groups), x.dtype)


@rule(aten._softmax_backward_data.default, aten._log_softmax_backward_data.default)
def _softmax_backward(grad: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor | None:
    return fresh(grad.shape, grad.dtype) if input_dtype == grad.dtype else None


@rule(aten.native_layer_norm_backward.default)
def _layer_norm_backward(grad: Tensor, x: Tensor, shape: Any, mean: Tensor, rstd: Tensor, weight: Any,
                         bias: Any, mask: Any) -> Any:
    return (fresh(x.shape, x.dtype) if mask[0] else None,
            fresh(weight.shape, weight.dtype) if mask[1] and weight is not None else None,
            fresh(bias.shape, bias.dtype) if mask[2] and bias is not None else None)


@rule(aten.mse_loss_backward.default)
def _mse_backward(g: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor | None:
    return like(x) if x.dtype == target.dtype == g.dtype and x.shape == target.shape else None


@rule(aten.rrelu_with_noise.default)
def _rrelu(x: Tensor, *_: Any) -> Tensor:
    return fresh(x.shape, x.dtype)


@rule(aten.rrelu_with_noise_functional.default)
def _rrelu_functional(x: Tensor, noise: Tensor, *_: Any) -> Any:
    return fresh(x.shape, x.dtype), like(noise)


@rule(aten._native_batch_norm_legit_functional.default)
def _batch_norm_functional(x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, training: bool,
                           momentum: float, eps: float) -> Any:
    if any(p is not None and p.dtype != x.dtype for p in (weight, bias, mean, var)) or x.dim() < 2:
        return None
    saved = (x.shape[1],) if training else (0,)
    return normed(x), fresh(saved, x.dtype), fresh(saved, x.dtype), like(mean), like(var)


@rule(aten.native_batch_norm_backward.default)
def _batch_norm_backward(grad: Tensor, x: Tensor, weight: Any, mean: Any, var: Any, saved: Any, scale: Any,
                         train: bool, eps: float, mask: Any) -> Any:
    if weight is not None and weight.dtype != x.dtype:
        return None
    channels = (x.shape[1],)
    return (normed(x) if mask[0] else None,
            fresh(channels, x.dtype) if mask[1] else None, fresh(channels, x.dtype) if mask[2] else None)


@rule(aten.nll_loss_forward.default)
def _nll_loss(x: Tensor, target: Tensor, weight: Any, reduction: int, ignore: int) -> Any:
    if x.dim() not in (1, 2) or target.dim() != x.dim() - 1:
        return None
    return fresh(target.shape if reduction == 0 else (), x.dtype), fresh((), x.dtype)


@rule(aten.nll_loss_backward.default)
def _nll_loss_backward(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return fresh(x.shape, x.dtype)


@rule(aten._ctc_loss.default)
def _ctc_loss(x: Tensor, targets: Tensor, lengths: Any, target_lengths: Any, *_: Any) -> Any:
    n, steps = x.shape[1], x.shape[0]
    return fresh((n,), x.dtype), fresh((n, steps, 2 * max(target_lengths) + 1), x.dtype)
