"""Decompositions of views, copies, concatenation, creation and padding.

Takes a builder and operands, gives nodes. Views of the same elements are one reshape; what remains is
permute, expand, slice, flip, pad and cat. Creation is `full` and integer `iota`.
"""
from __future__ import annotations

from typing import Any

import torch

from ..errors import Refusal
from ..ir.geometry import sliced
from ..ir.graph import Node
from ..ir.prims import need
from ..ir.spec import TensorSpec
from ..ir.sym import Sym
from .builder import Builder, as_dtype, real, rule, wide

aten = torch.ops.aten


# ---- the same elements ----------------------------------------------------------------------------

@rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten._reshape_alias.default,
      aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
      aten.flatten.using_ints, aten.view_copy.default)
def _reshape(b: Builder, x: Node, *_: Any) -> Node:
    return b.reshape(x, b.out.shape)


@rule(aten.alias.default, aten.detach.default, aten.lift_fresh.default, aten.lift_fresh_copy.default,
      aten.clone.default, aten._to_copy.default, aten.contiguous.default, aten.lift.default,
      aten.alias_copy.default)
def _copy_of(b: Builder, x: Node, **_: Any) -> Node:
    return b.cast(x, b.out.dtype)


@rule(aten.copy.default)
def _copy(b: Builder, x: Node, source: Node, non_blocking: bool = False) -> Node:
    return b.to(source, b.out.dtype, b.out.shape)


@rule(aten.view.dtype)
def _view_dtype(b: Builder, x: Node, dtype: torch.dtype) -> Any:
    return b.bitcast(x, dtype) if x.tensor.dtype.itemsize == dtype.itemsize else NotImplemented


@rule(aten.expand.default, aten.expand_copy.default)
def _expand(b: Builder, x: Node, *_: Any, **__: Any) -> Node:
    return b.expand(x, b.out.shape)


@rule(aten.permute.default)
def _permute(b: Builder, x: Node, dims: Any) -> Node:
    return b.permute(x, tuple(d % x.tensor.ndim for d in dims))


@rule(aten.transpose.int)
def _transpose(b: Builder, x: Node, first: int, second: int) -> Node:
    n = x.tensor.ndim
    if not n:
        return x
    dims = list(range(n))
    dims[first % n], dims[second % n] = dims[second % n], dims[first % n]
    return b.permute(x, tuple(dims))


@rule(aten.t.default)
def _t(b: Builder, x: Node) -> Node:
    return _transpose(b, x, 0, 1) if x.tensor.ndim == 2 else x


# ---- some of the elements -------------------------------------------------------------------------

@rule(aten.slice.Tensor)
def _slice(b: Builder, x: Node, dim: int = 0, start: int | None = None, end: int | None = None,
           step: int = 1) -> Node:
    dim %= x.tensor.ndim
    return b.slice(x, dim, *sliced(x.tensor.shape[dim], start, end), step)


@rule(aten.select.int)
def _select(b: Builder, x: Node, dim: int, index: int) -> Node:
    dim %= x.tensor.ndim
    index = index + x.tensor.shape[dim] if index < 0 else index
    return b.reshape(b.slice(x, dim, index, index + 1, 1), b.out.shape)


def _parts(b: Builder, x: Node, sizes: Any, dim: int) -> tuple[Node, ...]:
    dim %= x.tensor.ndim
    parts, start = [], 0
    for size in sizes:
        parts.append(b.slice(x, dim, start, start + size, 1))
        start += size
    return tuple(parts)


@rule(aten.split.Tensor, aten.unsafe_split.Tensor)
def _split(b: Builder, x: Node, size: int, dim: int = 0) -> Any:
    return _parts(b, x, [spec.shape[dim] for spec in b.out], dim)


@rule(aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default)
def _split_with_sizes(b: Builder, x: Node, sizes: Any, dim: int = 0) -> Any:
    return _parts(b, x, sizes, dim)


@rule(aten.unbind.int)
def _unbind(b: Builder, x: Node, dim: int = 0) -> Any:
    parts = _parts(b, x, [1] * len(b.out), dim)
    return tuple(b.reshape(p, spec.shape) for p, spec in zip(parts, b.out))


@rule(aten.flip.default)
def _flip(b: Builder, x: Node, dims: Any) -> Node:
    return b.flip(x, tuple(sorted(d % x.tensor.ndim for d in dims))) if dims and x.tensor.ndim else x


@rule(aten.roll.default)
def _roll(b: Builder, x: Node, shifts: Any, dims: Any = ()) -> Node:
    if not dims:
        flat = b.reshape(x, (x.tensor.numel,))
        return b.reshape(_roll(b, flat, shifts, (0,)), x.tensor.shape) if x.tensor.numel else x
    need(len(shifts) == len(dims), "not one shift per dimension")
    for shift, dim in zip(shifts, dims):
        dim %= x.tensor.ndim
        size = x.tensor.shape[dim]
        within = isinstance(size, Sym) and 0 < shift < size
        cut = size - shift if within else (size - shift) % size if size else 0
        if cut:
            x = b.cat((b.slice(x, dim, cut, size, 1), b.slice(x, dim, 0, cut, 1)), dim)
    return x


@rule(aten.narrow_copy.default)
def _narrow(b: Builder, x: Node, dim: int, start: int, length: int) -> Node:
    dim, size = dim % x.tensor.ndim, x.tensor.shape[dim]
    start = start + size if start < 0 else start
    return b.slice(x, dim, start, start + length, 1)


def _shuffle(b: Builder, x: Node, r: int, up: bool) -> Any:
    """pixel_shuffle (channels into r x r pixels) and its inverse."""
    *lead, c, h, w = x.tensor.shape
    n = len(lead)
    split = (*lead, c // (r * r), r, r, h, w) if up else (*lead, c, h // r, r, w // r, r)
    order = (0, 3, 1, 4, 2) if up else (0, 2, 4, 1, 3)
    return b.reshape(b.permute(b.reshape(x, split), (*range(n), *(n + d for d in order))), b.out.shape)


rule(aten.pixel_shuffle.default)(lambda b, x, r: _shuffle(b, x, r, True))
rule(aten.pixel_unshuffle.default)(lambda b, x, r: _shuffle(b, x, r, False))


@rule(aten.channel_shuffle.default, aten.native_channel_shuffle.default)
def _channel_shuffle(b: Builder, x: Node, groups: int) -> Node:
    n, c, *rest = x.tensor.shape
    y = b.reshape(x, (n, groups, c // groups, *rest))
    return b.reshape(b.permute(y, (0, 2, 1, *range(3, len(rest) + 3))), b.out.shape)


@rule(aten.linalg_cross.default)
def _cross(b: Builder, x: Node, y: Node, *, dim: int = -1) -> Node:
    dim, (p, q) = dim % len(b.out.shape), (b.widen(b.expand(n, b.out.shape)) for n in (x, y))

    def turned(n: Node, cut: int) -> Node:
        return b.cat((b.slice(n, dim, cut, 3, 1), b.slice(n, dim, 0, cut, 1)), dim)
    product = b.sub(b.mul(turned(p, 1), turned(q, 2)), b.mul(turned(p, 2), turned(q, 1)))
    return b.cast(product, b.out.dtype)


def flat_index(b: Builder, spec: TensorSpec, base: TensorSpec) -> Node | None:
    """For each element of a window `spec` on the storage of `base`: which element of base in memory order
    it is. None where base has holes, or the window leaves it."""
    start = spec.offset - base.offset
    if not base.is_dense or start < 0 or start + spec.storage_numel > base.numel:
        return None
    index = b.full(spec.shape, start, torch.int64)
    for d, stride in enumerate(spec.stride):
        index = b.add(index, b.index(spec.shape, d, 0, stride))
    return index


def memory_order(spec: TensorSpec) -> tuple[int, ...]:
    """Dimensions from the slowest to the fastest."""
    return tuple(sorted(range(spec.ndim), key=lambda d: (-spec.stride[d], d)))


@rule(aten.as_strided.default)
def _as_strided(b: Builder, x: Node, size: Any, stride: Any, offset: int | None = None) -> Any:
    base = b.source.args[0].tensor
    window = TensorSpec(base.dtype, tuple(size), tuple(stride), base.device,
                        base.offset if offset is None else offset)
    index = flat_index(b, window, base)
    if index is None and x.op == "input" and not b.source.op.is_view:
        return NotImplemented          # the kernel that copies sees the input's memory
    if index is None:
        raise Refusal("as-strided", f"a window {window} that {base} does not hold", b.place)
    flat = b.reshape(b.permute(x, memory_order(base)), (base.numel,))
    return b.gather(flat, (index,), False)


@rule(aten.as_strided_scatter.default)
def _as_strided_scatter(b: Builder, x: Node, source: Node, size: Any, stride: Any,
                        offset: int | None = None) -> Node:
    base = b.source.args[0].tensor
    window = TensorSpec(base.dtype, tuple(size), tuple(stride), base.device, base.offset if offset
                        is None else offset)
    index, order = flat_index(b, window, base), memory_order(base)
    if index is None:
        raise Refusal("as-strided", f"a window {window} that {base} does not hold", b.place)
    shape = tuple(base.shape[d] for d in order)
    flat = b.scatter(b.reshape(b.permute(x, order), (base.numel,)), (index,), source, "set", False)
    return b.permute(b.reshape(flat, shape), tuple(order.index(d) for d in range(base.ndim)))


def _diagonal_indices(b: Builder, shape: tuple[int, ...], x: Node, offset: int, dim1: int,
                      dim2: int) -> tuple[Node, ...]:
    last, rest = len(shape) - 1, iter(range(len(shape) - 1))
    starts = {dim1: max(-offset, 0), dim2: max(offset, 0)}
    return tuple(b.index(shape, last, starts[d]) if d in starts else
                 b.index(shape, next(rest)) for d in range(x.tensor.ndim))


@rule(aten.diagonal.default)
def _diagonal(b: Builder, x: Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Node:
    n = x.tensor.ndim
    return b.gather(x, _diagonal_indices(b, b.out.shape, x, offset, dim1 % n, dim2 % n), False)


@rule(aten.diagonal_scatter.default)
def _diagonal_scatter(b: Builder, x: Node, source: Node, offset: int = 0, dim1: int = 0,
                      dim2: int = 1) -> Node:
    n = x.tensor.ndim
    indices = _diagonal_indices(b, source.tensor.shape, x, offset, dim1 % n, dim2 % n)
    return b.scatter(x, indices, source, "set", False)


@rule(aten.diag_embed.default)
def _diag_embed(b: Builder, x: Node, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Node:
    shape, n = b.out.shape, len(b.out.shape)
    dim1, dim2 = dim1 % n, dim2 % n
    size = shape[dim1]
    row, column = b.index(shape, dim1), b.index(shape, dim2)
    padded = b.pad(x, (0,) * (n - 2) + (max(-offset, 0),), (0,) * (n - 2) + (max(offset, 0),),
                   as_dtype(0, x.tensor.dtype))
    along_row = b.reshape(
        padded, (*padded.tensor.shape[:-1], size, 1)
    )  # element i of the diagonal is in row i
    order = list(range(n - 2))
    order.insert(min(dim1, dim2), n - 2)
    order.insert(max(dim1, dim2), n - 1)
    if dim1 > dim2:
        order[dim1], order[dim2] = n - 2, n - 1
    values = b.expand(b.permute(along_row, tuple(order)), shape)
    return b.where(b.eq(b.sub(column, row), offset), values, as_dtype(0, x.tensor.dtype))


@rule(aten.slice_scatter.default)
def _slice_scatter(b: Builder, x: Node, source: Node, dim: int = 0, start: int | None = None,
                   end: int | None = None, step: int = 1) -> Node:
    dim %= x.tensor.ndim
    size, source = x.tensor.shape[dim], b.cast(source, x.tensor.dtype)
    first, last = sliced(size, start, end)
    if last == first:
        return x
    if step == 1:
        parts = (b.slice(x, dim, 0, first, 1), b.expand(source, b.slice(x, dim, first, last, 1).tensor.shape),
                 b.slice(x, dim, last, size, 1))
        return b.cat(tuple(p for p in parts if p.tensor.shape[dim]), dim)
    shape = b.slice(x, dim, first, last, step).tensor.shape
    indices = tuple(b.index(shape, d, first, step) if d == dim else
                    b.index(shape, d) for d in range(x.tensor.ndim))
    return b.scatter(x, indices, b.expand(source, shape), "set", False)


@rule(aten.select_scatter.default)
def _select_scatter(b: Builder, x: Node, source: Node, dim: int, index: int) -> Node:
    dim %= x.tensor.ndim
    index = index + x.tensor.shape[dim] if index < 0 else index
    return _slice_scatter(b, x, b.unsqueeze(source, (dim,)), dim, index, index + 1)


# ---- putting together -----------------------------------------------------------------------------

@rule(aten.cat.default)
def _cat(b: Builder, xs: Any, dim: int = 0) -> Node:
    dim %= max(len(b.out.shape), 1)
    parts = [b.cast(x, b.out.dtype) for x in xs if x.tensor.ndim == len(b.out.shape) and x.tensor.shape[dim]]
    return b.cat(tuple(parts), dim) if parts else b.full(b.out.shape, as_dtype(0, b.out.dtype), b.out.dtype)


@rule(aten.stack.default)
def _stack(b: Builder, xs: Any, dim: int = 0) -> Node:
    dim %= len(b.out.shape)
    return b.cat(tuple(b.unsqueeze(b.cast(x, b.out.dtype), (dim,)) for x in xs), dim)


@rule(aten.repeat.default)
def _repeat(b: Builder, x: Node, repeats: Any) -> Node:
    if not b.out.numel:
        return b.full(b.out.shape, as_dtype(0, b.out.dtype), b.out.dtype)
    shape = (1,) * (len(repeats) - x.tensor.ndim) + x.tensor.shape
    paired = b.reshape(x, tuple(n for size in shape for n in (1, size)))
    spread = b.expand(paired, tuple(n for count, size in zip(repeats, shape) for n in (count, size)))
    return b.reshape(spread, b.out.shape)


@rule(aten.constant_pad_nd.default)
def _constant_pad(b: Builder, x: Node, pad: Any, value: Any = 0) -> Node:
    n = x.tensor.ndim
    low, high = [0] * n, [0] * n
    for i in range(len(pad) // 2):
        low[n - 1 - i], high[n - 1 - i] = pad[2 * i], pad[2 * i + 1]
    for d in range(n):          # negative padding cuts off
        size = x.tensor.shape[d]
        x = b.slice(x, d, max(-low[d], 0), size - max(-high[d], 0), 1)
    return b.pad(x, tuple(max(p, 0) for p in low), tuple(max(p, 0) for p in high),
                 as_dtype(value, x.tensor.dtype))


def _pad_ends(b: Builder, x: Node, pad: Any, mirror: bool) -> Any:
    """reflection_pad and replication_pad: each end is a flipped piece, or the last element repeated; a
    negative end cuts off."""
    for i in range(len(pad) // 2):
        d = x.tensor.ndim - 1 - i
        size, (low, high), shape = x.tensor.shape[d], pad[2 * i:2 * i + 2], x.tensor.shape
        if mirror:
            need(min(low, high) >= 0, "does not cut off")
            before = b.flip(b.slice(x, d, 1, low + 1, 1), (d,))
            after = b.flip(b.slice(x, d, size - 1 - high, size - 1, 1), (d,))
        else:
            first, last = min(max(-low, 0), size - 1), max(min(size, size + high), 1)
            before = b.expand(b.slice(x, d, 0, 1, 1), (*shape[:d], max(low, 0), *shape[d + 1:]))
            after = b.expand(b.slice(x, d, size - 1, size, 1), (*shape[:d], max(high, 0), *shape[d + 1:]))
            need(max(-low, 0) < size + min(high, 0), "all of it is cut off")
            x = b.slice(x, d, first, last, 1)
        x = b.cat(tuple(p for p in (before, x, after) if p.tensor.shape[d]), d)
    return x


rule(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)(
    lambda b, x, pad: _pad_ends(b, x, pad, True))
rule(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)(
    lambda b, x, pad: _pad_ends(b, x, pad, False))


# ---- creation -------------------------------------------------------------------------------------

def _constant(value: Any) -> Any:
    return lambda b, *args, **kwargs: b.full(b.out.shape, as_dtype(value, b.out.dtype), b.out.dtype)


for names, value in (
    (
        "zeros zeros_like new_zeros zero empty empty_like new_empty empty_strided new_empty_strided "
        "empty_permuted _efficientzerotensor",
        0,
    ),
    ("ones ones_like new_ones", 1),
):
    for name in names.split():
        packet = getattr(aten, name)
        rule(*(getattr(packet, o) for o in packet.overloads() if "out" not in o and "names"
               not in o))(_constant(value))


@rule(aten.full.default, aten.new_full.default, aten.full_like.default, aten.fill.Scalar, aten.fill.Tensor)
def _full(b: Builder, _: Any, value: Any, *rest: Any, **kwargs: Any) -> Node:
    return b.to(rest[0] if rest and b.source.op is aten.new_full.default else value, b.out.dtype, b.out.shape)


@rule(aten.scalar_tensor.default)
def _scalar_tensor(b: Builder, value: Any, **_: Any) -> Node:
    return b.to(value, b.out.dtype, ())


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _arange(b: Builder, *args: Any, **_: Any) -> Node:
    start, step = (0 if len(args) == 1 else args[0]), (args[2] if len(args) > 2 else 1)
    if not b.out.dtype.is_floating_point:          # eager cuts fractions off before it counts
        start, step = int(start), int(step)
    return ramp(b, b.out.shape[0], start, step, b.out.dtype)


def ramp(b: Builder, n: int, start: Any, step: Any, dtype: torch.dtype) -> Node:
    """start + i * step for i < n, in integers where they are, else in float64, cast to dtype at the end."""
    if isinstance(start, int) and isinstance(step, int):
        return b.cast(b.iota(n, start, step, torch.int64), dtype)
    i = b.cast(b.iota(n, 0, 1, torch.int64), torch.float64)
    return b.cast(b.add(b.mul(i, float(step)), float(start)), dtype)


def _spaced(b: Builder, start: Any, end: Any, n: int, dtype: torch.dtype) -> Node:
    """n numbers from start to end (numbers, or tensors without dimensions): each half counted from its own
    end."""
    first, last = (b.to(b.to(e, b.out.dtype, ()), dtype, ()) for e in (start, end))
    step = b.div(b.sub(last, first), real(max(n - 1, 1)))
    first, last, step = (b.expand(e, (n,)) for e in (first, last, step))
    i = b.cast(b.iota(n, 0, 1, torch.int64), dtype)
    up, down = b.add(first, b.mul(step, i)), b.sub(last, b.mul(step, b.sub(real(n - 1), i)))
    return b.where(b.lt(i, real(n // 2 if n > 1 else 1)), up, down)


@rule(aten.linspace.default, aten.linspace.Tensor_Tensor, aten.linspace.Tensor_Scalar,
      aten.linspace.Scalar_Tensor)
def _linspace(b: Builder, start: Any, end: Any, steps: int, **_: Any) -> Any:
    dtype = wide(b.out.dtype) if b.out.dtype.is_floating_point else torch.float64
    return b.cast(_spaced(b, start, end, steps, dtype), b.out.dtype)


@rule(aten.logspace.default, aten.logspace.Tensor_Tensor, aten.logspace.Tensor_Scalar,
      aten.logspace.Scalar_Tensor)
def _logspace(b: Builder, start: Any, end: Any, steps: int, base: float = 10.0, **_: Any) -> Any:
    dtype = b.out.dtype
    if dtype not in (torch.float32, torch.float64):
        return NotImplemented
    return b.pow(b.full(b.out.shape, as_dtype(base, dtype), dtype), _spaced(b, start, end, steps, dtype))


@rule(aten.eye.default, aten.eye.m)
def _eye(b: Builder, *_: Any, **__: Any) -> Node:
    return b.cast(b.eq(b.index(b.out.shape, 0), b.index(b.out.shape, 1)), b.out.dtype)


def _triangle(b: Builder, x: Node, diagonal: int, lower: bool) -> Node:
    n, shape = x.tensor.ndim, x.tensor.shape
    distance = b.sub(b.index(shape, n - 1), b.index(shape, n - 2))
    kept = b.le(distance, diagonal) if lower else b.ge(distance, diagonal)
    return b.where(kept, x, as_dtype(0, x.tensor.dtype))


rule(aten.tril.default)(lambda b, x, diagonal=0: _triangle(b, x, diagonal, True))
rule(aten.triu.default)(lambda b, x, diagonal=0: _triangle(b, x, diagonal, False))
