"""Decompositions of indexing by tensors: gathers and scatters, with eager's checks and messages.

Takes a builder and operands, gives nodes. Each is one `gather` or `scatter` prim with an index per
dimension; dimensions that are not indexed get an iota, which the loop builder folds away.
"""
from __future__ import annotations

import math
from typing import Any

import torch

from ..ir.elementwise import broadcast
from ..ir.graph import Node
from ..ir.prims import need
from .builder import Builder, Rule, as_dtype, rule, wide
from .reduction import norm_of, reduce, shrinking

aten = torch.ops.aten
NO_MASKS = (torch.int64, torch.int32, torch.int16, torch.int8)
EMBEDDING_ERROR = ("IndexError", "index out of range in self")


def bounds_error(kind: str, dim: int, size: int) -> tuple[str, str]:
    return kind, f"index {{index}} is out of bounds for dimension {dim} with size {size}"


def _wrapped(b: Builder, i: Node, size: int) -> Node:
    """Negative indices counted from the end; those out of range stay as they are, for the message."""
    i = b.cast(i, torch.int64)
    return b.where(b.and_(b.lt(i, 0), b.ge(i, -size)), b.add(i, size), i)


def _along(b: Builder, shape: tuple[int, ...], dim: int, index: Node) -> tuple[Node, ...]:
    """`index` (of that shape) for dimension dim, the element's own position for all others."""
    return tuple(b.cast(index, torch.int64) if d == dim else b.index(shape, d) for d in range(len(shape)))


def line(b: Builder, x: Any) -> Any:
    """A tensor without dimensions as one with one; anything else as it is."""
    return b.reshape(x, (1,)) if isinstance(x, Node) and not x.tensor.ndim else x


# ---- reading --------------------------------------------------------------------------------------

@rule(aten.embedding.default)
def _embedding(b: Builder, weight: Node, indices: Node, *_: Any, **__: Any) -> Node:
    rows = b.expand(b.unsqueeze(b.cast(indices, torch.int64), (indices.tensor.ndim,)), b.out.shape)
    return b.gather(weight, (rows, b.index(b.out.shape, indices.tensor.ndim)), True, EMBEDDING_ERROR)


@rule(aten.embedding_renorm.default)
def _embedding_renorm(b: Builder, weight: Node, indices: Node, most: float, p: float) -> Any:
    """The rows that are looked up, shrunk and put back."""
    if weight.tensor.ndim != 2 or not indices.tensor.numel:
        return NotImplemented
    size, shape = weight.tensor.shape, (indices.tensor.numel, weight.tensor.shape[1])
    text = f"select(): index {{index}} out of range for tensor of size {[*size]} at dimension 0"
    error = ("IndexError", text)
    rows = _wrapped(b, b.reshape(indices, shape[:1]), size[0])
    place = (b.broadcast_like(rows, (1,), shape), b.index(shape, 1))
    y = b.widen(b.gather(weight, place, True, error))
    norm = b.widen(b.cast(norm_of(b, y, p, (1,)), weight.tensor.dtype))
    y = b.mul(y, b.broadcast_like(shrinking(b, norm, most), (1,), shape))
    return b.scatter(weight, place, b.cast(y, weight.tensor.dtype), "set", True, error)


@rule(aten.index_select.default)
def _index_select(b: Builder, x: Node, dim: int, index: Node) -> Any:
    x, index = line(b, x), line(b, index)
    dim %= x.tensor.ndim
    shape = (*x.tensor.shape[:dim], index.tensor.numel, *x.tensor.shape[dim + 1:])
    error = EMBEDDING_ERROR
    if dim == 1:          # eager mode has a kernel of its own
        size = x.tensor.shape[1]
        error = "RuntimeError", f"INDICES element is out of DATA bounds, id={{index}} axis_dim={size}"
    y = b.gather(x, _along(b, shape, dim, _lead(b, index, dim, shape)), True, error)
    return b.reshape(y, b.out.shape)


def _lead(b: Builder, index: Node, dim: int, shape: tuple[int, ...]) -> Node:
    """A 1-d index laid along dimension dim of `shape`."""
    return b.expand(b.reshape(index, (shape[dim],) + (1,) * (len(shape) - dim - 1)), shape)


@rule(aten.gather.default)
def _gather(b: Builder, x: Node, dim: int, index: Node, **_: Any) -> Any:
    x, index = line(b, x), line(b, index)
    need(x.tensor.ndim == index.tensor.ndim, "not one index per dimension")
    dim %= x.tensor.ndim
    error = bounds_error("RuntimeError", dim, x.tensor.shape[dim])
    return b.reshape(b.gather(x, _along(b, index.tensor.shape, dim, index), True, error), b.out.shape)


def _flat_place(b: Builder, index: Node, n: int) -> tuple[tuple[Node], tuple[str, str]]:
    """(index into n elements, error) of take and put."""
    error = ("IndexError", f"out of range: tried to access index {{index}} on a tensor of {n} elements.")
    return (_wrapped(b, index, n),), error


@rule(aten.take.default)
def _take(b: Builder, x: Node, index: Node) -> Node:
    place, error = _flat_place(b, index, x.tensor.numel)
    return b.gather(b.reshape(x, (x.tensor.numel,)), place, True, error)


@rule(aten.put.default)
def _put(b: Builder, x: Node, index: Node, source: Node, accumulate: bool = False) -> Any:
    need(source.tensor.numel == index.tensor.numel, "not one value per index")
    n = x.tensor.numel
    place, error = _flat_place(b, b.reshape(index, (index.tensor.numel,)), n)
    source = b.reshape(source, (index.tensor.numel,))
    done = scatter(b, b.reshape(x, (n,)), place, source, "add" if accumulate else "set", error)
    return done if done is NotImplemented else b.reshape(done, x.tensor.shape)


@rule(aten.masked_scatter.default)
def _masked_scatter(b: Builder, x: Node, mask: Node, source: Node) -> Any:
    """The n-th element chosen by the mask becomes source's n-th."""
    n, shape = source.tensor.numel, b.out.shape
    if not n or mask.tensor.dtype is not torch.bool or len(shape) == 0:
        return NotImplemented
    mask = b.expand(mask, shape)
    chosen = b.cast(b.reshape(mask, (math.prod(shape),)), torch.int64)
    place = b.reshape(b.sub(b.scan_sum(chosen, 0), 1), shape)
    error = ("RuntimeError", "Number of elements of source < number of ones in mask")
    values = b.gather(b.reshape(source, (n,)), (b.where(mask, place, 0),), True, error)
    return b.where(mask, values, b.expand(x, shape))


# ---- searching ----------------------------------------------------------------------------------------

UNSORTED = ("RuntimeError", "torch.searchsorted(): sorter index out of range")


@rule(aten.searchsorted.Tensor, aten.searchsorted.Scalar)
def _searchsorted(b: Builder, sequence: Node, values: Any, *, out_int32: bool = False, right: bool = False,
                  side: str | None = None, sorter: Node | None = None) -> Any:
    """Eager's binary search, a gather per step: how many elements come before each value."""
    if side is not None:
        right = side == "right"
    shape, rows = b.out.shape, sequence.tensor.shape[:-1]
    n = sequence.tensor.shape[-1]
    dtype = wide(b.promoted(sequence, values))
    if not n or dtype is torch.bool:
        return NotImplemented
    values = b.to(values, dtype, shape)
    lead = tuple(b.index(shape, d) for d in range(len(rows)))

    def element(i: Node) -> Node:
        if sorter is not None:
            i = b.gather(sorter, (*lead, i), True, UNSORTED)
        return b.cast(b.gather(sequence, (*lead, i), True), dtype)
    low, high = b.full(shape, 0, torch.int64), b.full(shape, n, torch.int64)
    for _ in range(n.bit_length()):
        middle = b.add(low, b.shr(b.sub(high, low), 1))
        found = element(b.minimum(middle, n - 1))
        before = b.not_(b.gt(found, values) if right else b.ge(found, values))
        open_ = b.lt(low, high)
        low, high = (b.where(b.and_(open_, before), b.add(middle, 1), low),
                     b.where(b.and_(open_, b.not_(before)), middle, high))
    return b.cast(low, b.out.dtype)


@rule(aten.bucketize.Tensor, aten.bucketize.Scalar)
def _bucketize(b: Builder, values: Node, boundaries: Node, *, out_int32: bool = False,
               right: bool = False) -> Any:
    need(boundaries.tensor.ndim == 1, "boundaries are one row")
    return _searchsorted(b, boundaries, values, right=right)


@rule(aten.isin.Tensor_Tensor)
def _isin(b: Builder, x: Node, tests: Node, *, assume_unique: bool = False, invert: bool = False) -> Any:
    """By comparing all with all, where eager mode does so, too; else it sorts."""
    n = tests.tensor.numel
    if n >= 10 * x.tensor.numel ** 0.145 or not n:
        return NotImplemented
    dtype, shape = wide(b.promoted(x, tests)), (*x.tensor.shape, n)
    each = b.eq(b.expand(b.unsqueeze(b.cast(x, dtype), (x.tensor.ndim,)), shape),
                b.expand(b.reshape(b.cast(tests, dtype), (n,)), shape))
    found = reduce(b, "any", each, (len(shape) - 1,))
    return b.not_(found) if invert else found


def plan_index(b: Builder, x: Node, indices: Any) -> Any:
    """(shape of x[indices], an index of that shape per dimension, error); None for masks. Indexed
    dimensions that are not neighbours move to the front, as in numpy."""
    given = {d: i for d, i in enumerate(indices) if i is not None}
    if not given or any(i.tensor.dtype not in NO_MASKS for i in given.values()):
        return None
    common = broadcast([i.tensor.shape for i in given.values()])
    if common is None:
        return None
    dims, xs = sorted(given), x.tensor.shape
    together = dims == list(range(dims[0], dims[-1] + 1))
    at = dims[0] if together else 0
    rest = [d for d in range(len(xs)) if d not in given]
    shape = tuple(xs[d] for d in rest[:at]) + common + tuple(xs[d] for d in rest[at:])
    where = {d: (i if i < at else i + len(common)) for i, d in enumerate(rest)}
    full, tail = [], len(shape) - at - len(common)
    for d, size in enumerate(xs):
        if d in given:
            i = b.expand(given[d], common)
            full.append(_wrapped(b, b.expand(b.reshape(i, common + (1,) * tail), shape), size))
        else:
            full.append(b.index(shape, where[d]))
    bad = dims[0] if len(dims) == 1 else next((d for d in dims), 0)
    return shape, tuple(full), bounds_error("IndexError", bad, xs[bad])


@rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(b: Builder, x: Node, indices: Any) -> Any:
    plan = plan_index(b, x, indices)
    if plan is None:
        return NotImplemented
    return b.gather(x, plan[1], True, plan[2])


# ---- writing --------------------------------------------------------------------------------------

def scatter(b: Builder, x: Node, indices: tuple[Node, ...], source: Node, mode: str,
            error: tuple[str, str]) -> Any:
    """One scatter prim; what accumulates in narrow floats or bools goes to the ATen kernel."""
    dtype = x.tensor.dtype
    if mode != "set" and (dtype is torch.bool or dtype.is_floating_point and dtype.itemsize < 4):
        return NotImplemented
    return b.scatter(x, indices, b.cast(source, dtype), mode, True, error)


def _scatter_along(b: Builder, x: Node, dim: int, index: Node, source: Any, mode: str) -> Any:
    """scatter's indexing: source[:index's sizes] goes to x at index along dim."""
    if not x.tensor.ndim:
        done = _scatter_along(b, line(b, x), dim, line(b, index), line(b, source), mode)
        return done if done is NotImplemented else b.reshape(done, ())
    need(index.tensor.ndim == x.tensor.ndim, "not one index per dimension")
    shape, dim = index.tensor.shape, dim % x.tensor.ndim
    if isinstance(source, Node) and source.tensor.ndim == len(shape):
        for d, n in enumerate(shape):
            source = b.slice(source, d, 0, n, 1)
    elif isinstance(source, Node) and source.tensor.ndim:
        return NotImplemented
    error = bounds_error("RuntimeError", dim, x.tensor.shape[dim])
    return scatter(b, x, _along(b, shape, dim, index), b.to(source, x.tensor.dtype, shape), mode, error)


@rule(aten.scatter.src, aten.scatter.value)
def _scatter(b: Builder, x: Node, dim: int, index: Node, source: Any) -> Any:
    return _scatter_along(b, x, dim, index, source, "set")


@rule(aten.scatter_add.default)
def _scatter_add(b: Builder, x: Node, dim: int, index: Node, source: Node) -> Any:
    return _scatter_along(b, x, dim, index, source, "add")


MODES = {"sum": "add", "add": "add", "prod": "mul", "multiply": "mul", "amin": "amin", "amax": "amax"}


def _collected(put: Rule, b: Builder, x: Node, dim: int, index: Node, source: Node, reduction: str, *,
               include_self: bool = True) -> Any:
    """What a reduction leaves where `put` (see _scatter_along) puts several; without x's own value, if it
    shall not count."""
    def along(y: Node, values: Any, mode: str) -> Any:
        return put(b, y, dim, index, values, mode)

    dtype, mode = x.tensor.dtype, MODES.get(reduction, "add")
    if dtype is torch.bool or dtype.itemsize < 4 and dtype.is_floating_point:
        return NotImplemented
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    low, high = (-math.inf, math.inf) if dtype.is_floating_point else (limits.min, limits.max)
    if not include_self:
        x = along(x, {"add": 0, "mul": 1, "amax": low, "amin": high}[mode], "set")
    total = along(x, source, mode)
    if reduction != "mean":
        return total
    count = along(b.full(x.tensor.shape, as_dtype(int(include_self), dtype), dtype), 1, "add")
    count = b.maximum(count, 1)
    return b.div(total, count) if dtype.is_floating_point else b.floordiv(total, count)


@rule(aten.scatter_reduce.two)
def _scatter_reduce(*args: Any, **kwargs: Any) -> Any:
    return _collected(_scatter_along, *args, **kwargs)


@rule(aten.index_reduce.default)
def _index_reduce(*args: Any, **kwargs: Any) -> Any:
    return _collected(_index_along, *args, **kwargs)


@rule(aten.scatter.reduce, aten.scatter.value_reduce)
def _scatter_with(b: Builder, x: Node, dim: int, index: Node, source: Any, *, reduce: str) -> Any:
    return _scatter_along(b, x, dim, index, source, MODES[reduce])


def _index_along(b: Builder, x: Node, dim: int, index: Node, source: Any, mode: str,
                 error: tuple[str, str] = EMBEDDING_ERROR) -> Any:
    """index_add and its like: row i of source goes to row index[i] of x."""
    if not x.tensor.ndim or not index.tensor.ndim:
        done = _index_along(b, line(b, x), dim, line(b, index), line(b, source), mode, error)
        return done if done is NotImplemented else b.reshape(done, x.tensor.shape)
    dim %= x.tensor.ndim
    shape = tuple(index.tensor.shape[0] if d == dim else n for d, n in enumerate(x.tensor.shape))
    return scatter(b, x, _along(b, shape, dim, _lead(b, index, dim, shape)),
                   b.to(source, x.tensor.dtype, shape), mode, error)


@rule(aten.index_add.default)
def _index_add(b: Builder, x: Node, dim: int, index: Node, source: Node, *, alpha: Any = 1) -> Any:
    if alpha != 1:
        source = (b.mul(source, as_dtype(alpha, source.tensor.dtype)) if source.tensor.dtype.itemsize >
                  2 else None)
    fits = source is not None and max(source.tensor.ndim, 1) == max(x.tensor.ndim, 1)
    n = x.tensor.ndim
    as_scatter = n > 1 and alpha == 1 and dim % n in (0, n - 1)          # as eager mode does it
    error = bounds_error("RuntimeError", dim % n, x.tensor.shape[dim]) if as_scatter else EMBEDDING_ERROR
    return NotImplemented if not fits else _index_along(b, x, dim, index, source, "add", error)


@rule(aten.index_copy.default)
def _index_copy(b: Builder, x: Node, dim: int, index: Node, source: Node) -> Any:
    size = x.tensor.shape[dim] if x.tensor.ndim else 1
    kind, text = bounds_error("IndexError", dim % max(x.tensor.ndim, 1), size)
    return _index_along(b, x, dim, index, source, "set", (kind, f"index_copy_(): {text}"))


@rule(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)
def _index_fill(b: Builder, x: Node, dim: int, index: Node, value: Any) -> Any:
    size = x.tensor.shape[dim % x.tensor.ndim] if x.tensor.ndim else 1
    error = bounds_error("IndexError", dim % max(x.tensor.ndim, 1), size)
    return _index_along(b, x, dim, _wrapped(b, index, size), value, "set", error)


@rule(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(b: Builder, x: Node, indices: Any, values: Node, accumulate: bool = False) -> Any:
    plan = plan_index(b, x, indices)
    if plan is None:
        return _masked_put(b, x, indices, values, accumulate)
    shape, full, error = plan
    return scatter(b, x, full, b.expand(values, shape), "add" if accumulate else "set", error)


def _masked_put(b: Builder, x: Node, indices: Any, values: Node, accumulate: bool) -> Any:
    """x[mask] = one value, where the mask covers the leading dimensions."""
    if accumulate or values.tensor.numel != 1 or len(indices) != 1 or indices[0] is None:
        return NotImplemented
    mask = indices[0]
    if mask.tensor.dtype is not torch.bool:
        return NotImplemented
    mask = b.reshape(mask, mask.tensor.shape + (1,) * (x.tensor.ndim - mask.tensor.ndim))
    value = b.expand(b.reshape(values, ()), x.tensor.shape)
    return b.where(b.expand(mask, x.tensor.shape), value, x)
