"""Decompositions of what reads windows of an image: pooling of all kinds, resampling, unfolding, and their
derivatives.

Takes a builder and operands, gives nodes. Along each dimension a table of `Taps` says which elements a result
reads and with which weight. Windows in regular steps become affine indices, others constant tables; the
derivative of a weighted sum is the weighted sum over the transposed table. So an operator is its table.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from ..ir.graph import Node
from ..ir.prims import need
from ..ir.sym import NeedsSizes, Sym
from .builder import Builder, as_dtype, rule, wide
from .pointwise import is_float
from .reduction import reduce

aten = torch.ops.aten
Tensor = torch.Tensor
Sizes = Sequence[int]


@dataclass(frozen=True, slots=True)
class Taps:
    """Along one dimension: result o reads elements `position[o, j]` (int64; outside the dimension: nothing),
    each times `weight[o, j]` (1 if None)."""

    position: Tensor
    weight: Tensor | None = None

    @property
    def counts(self) -> Any:
        """How many results there are, and how many elements each reads."""
        return self.position.shape

    def reach(self, size: int) -> tuple[int, int, Tensor]:
        """(how far windows reach out before the first of `size` elements, after the last one, which elements
        of windows there are)."""
        p = self.position
        return max(0, int(-p.min())), max(0, int(p.max() - size + 1)), (p >= 0) & (p < size)

    def affine(self) -> tuple[int, int, int] | None:
        """(start, step, dilation) if position[o, j] = start + step * o + dilation * j."""
        p = self.position
        start = int(p[0, 0])
        step = int(p[1, 0]) - start if p.shape[0] > 1 else 1
        dilation = int(p[0, 1]) - start if p.shape[1] > 1 else 1
        even = torch.arange(p.shape[0])[:, None] * step + torch.arange(p.shape[1]) * dilation + start
        return (start, step, dilation) if torch.equal(p, even) else None

    def transposed(self, size: int) -> Taps:
        """For each of the `size` elements: the results that read it."""
        found: list[list[tuple[int, int]]] = [[] for _ in range(size)]
        for o, row in enumerate(self.position.tolist()):
            for j, i in enumerate(row):
                if 0 <= i < size:
                    found[i].append((o, j))
        most = max([1, *map(len, found)])
        position = torch.tensor([[o for o, _ in f] + [-1] * (most - len(f)) for f in found])
        if self.weight is None:
            return Taps(position)
        given = self.weight.expand(self.position.shape)
        weights = [given[[o for o, _ in f], [j for _, j in f]] for f in found]
        return Taps(position, torch.stack([torch.cat([w, w.new_zeros(most - len(w))]) for w in weights]))


@dataclass(frozen=True, slots=True)
class Steps:
    """Windows in regular steps, where it varies how many there are. They fit into the padded dimension."""

    counts: Any
    stride: int
    padding: int
    dilation: int
    weight: Tensor | None = None

    def affine(self) -> tuple[int, int, int]:
        return -self.padding, self.stride, self.dilation

    def reach(self, size: Any) -> tuple[int, int, Tensor]:
        return self.padding, self.padding, torch.tensor(not self.padding)

    @property
    def position(self) -> Tensor:
        raise NeedsSizes(self.counts[0])


def steps(out: Any, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Any:
    """Windows in regular steps."""
    if isinstance(out, Sym):
        return Steps((out, kernel), stride, padding, dilation)
    return Taps(torch.arange(out)[:, None] * stride - padding + torch.arange(kernel) * dilation)


def shares(size: int, out: int) -> Taps:
    """Adaptive windows: result o reads from floor(o * size / out) to ceil((o + 1) * size / out)."""
    o = torch.arange(out)
    first, last = o * size // out, -(-(o + 1) * size // out)
    position = first[:, None] + torch.arange(int((last - first).max()))
    return Taps(torch.where(position < last[:, None], position, -1))


def table(b: Builder, values: Tensor, shape: tuple[int, ...], dims: tuple[int, ...]) -> Node:
    """A constant table whose dimensions lie along `dims` of `shape`."""
    key = ("table", values.dtype, tuple(values.shape), values.numpy().tobytes())
    node = b.shared.get(key)
    if node is None:
        node = b.shared[key] = b.constant(values)
    own = tuple(shape[d] if d in dims else 1 for d in range(len(shape)))
    return b.expand(b.reshape(node, own), shape)


@dataclass(frozen=True, slots=True)
class Windows:
    """values     (*lead, *results, *taps)
    positions  of each value, along each dimension
    exists     whether there is an element, None if there always is one"""

    values: Node
    positions: list[Node]
    exists: Node | None


def read(b: Builder, x: Node, taps: Sequence[Taps], fill: Any, first: int | None = None) -> Windows:
    """The windows over x's dimensions from `first` on (the last ones), `fill` where there is nothing."""
    need(all(0 not in t.counts for t in taps), "there is nothing to read")          # eager mode raises
    sizes, n, k = x.tensor.shape, x.tensor.ndim, len(taps)
    first = n - k if first is None else first
    own = {first + i: t for i, t in enumerate(taps)}
    shape = (*(own[d].counts[0] if d in own else m for d, m in enumerate(sizes)),
             *(t.counts[1] for t in taps))
    index = [b.index(shape, d) for d in range(n)]
    positions, exists, masks, low, high = [], None, [], [0] * n, [0] * n
    for i, (d, t) in enumerate(own.items()):
        even, (before, after, inside), here = t.affine(), t.reach(sizes[d]), None
        if even is not None:
            p = b.add(b.index(shape, d, even[0], even[1]), b.index(shape, n + i, 0, even[2]))
            low[d], high[d] = before, after
            if not inside.all():
                here = b.and_(b.ge(p, 0), b.lt(p, sizes[d]))
        else:
            p = table(b, t.position.clamp(0, sizes[d] - 1), shape, (d, n + i))
            if not inside.all():
                here = table(b, inside, shape, (d, n + i))
                masks.append(here)
        positions.append(p)
        index[d] = b.add(p, low[d])
        exists = here if exists is None else exists if here is None else b.and_(exists, here)
    y = b.gather(b.pad(x, tuple(low), tuple(high), fill), tuple(index), False)
    for mask in masks:
        y = b.where(mask, y, fill)
    return Windows(y, positions, exists)


UNROLLED = 25          # a window of so few elements is no loop
PAIRWISE = {"sum": "add", "amax": "maximum", "amin": "minimum"}


def total(b: Builder, name: str, x: Node, k: int) -> Node:
    """The reduction over the last k dimensions; a few elements are written out, which fuses and vectorises
    better than a short loop."""
    lead, taps = x.tensor.shape[:-k], math.prod(x.tensor.shape[-k:])
    if taps > UNROLLED:
        return reduce(b, name, x, tuple(range(len(lead), len(lead) + k)))
    flat, result = b.reshape(x, (*lead, taps)), None
    for j in range(taps):
        one = b.reshape(b.slice(flat, len(lead), j, j + 1, 1), lead)
        result = one if result is None else b.emit_named(PAIRWISE[name], result, one)
    assert result is not None
    return result


def weighted(b: Builder, x: Node, taps: Sequence[Taps]) -> Node:
    """The weighted sum over each window, one dimension after the other."""
    first = x.tensor.ndim - len(taps)
    for d, t in reversed(list(enumerate(taps, first))):
        w = t.weight if t.weight is None else t.weight.to(x.tensor.dtype)
        whole = (x.tensor.shape[d], 1)
        if w is None and t.position.numel() and t.affine() == (0, 1, 1) and t.position.shape == whole:
            continue
        y = read(b, x, [t], as_dtype(0, x.tensor.dtype), d).values
        even = w is None or bool((w == w[:, :1]).all())          # then it can wait until after the sum
        if not even:
            y = b.mul(y, table(b, w, y.tensor.shape, (d, y.tensor.ndim - 1)))
        x = total(b, "sum", y, 1)
        if even and w is not None:
            same = bool((w == w[0, 0]).all())
            x = b.mul(x, w[0, 0].item() if same else table(b, w[:, 0].contiguous(), x.tensor.shape, (d,)))
    return x


def both(forward: Any, backward: Any, taps_of: Callable[..., list[Taps]]) -> None:
    """Registers a weighted sum over windows and its derivative: taps_of(b, sizes before, sizes after, *args)
    gives the tables, where args are the operator's after the first, the derivative's after the second."""
    def run(b: Builder, x: Node, *args: Any) -> Any:
        taps = taps_of(b, x.tensor.shape, b.out.shape, *args)
        return b.cast(weighted(b, b.widen(x), taps), b.out.dtype) if is_float(x) else NotImplemented

    def back(b: Builder, g: Node, _: Any, *args: Any) -> Any:
        taps = taps_of(b, b.out.shape, g.tensor.shape, *args)
        taps = [t.transposed(n) for t, n in zip(taps, b.out.shape[-len(taps):])]
        return b.cast(weighted(b, b.widen(g), taps), b.out.dtype)
    rule(forward)(run)
    rule(backward)(back)


# ---- mean pooling ---------------------------------------------------------------------------------

def every(given: Sizes, k: int, usual: Sizes) -> Sizes:
    """One number per dimension, given as one for all, or not at all."""
    return (tuple(given) * k if len(given) == 1 else tuple(given)) if given else usual


def _mean_taps(t: Taps, size: int, padding: int, counts_padding: bool) -> Taps:
    if isinstance(t, Steps) and (counts_padding or not padding):
        return replace(t, weight=torch.full((1, t.counts[1]), 1.0 / t.counts[1]).double())
    p = t.position
    used = (p < size + padding) if counts_padding else (p >= 0) & (p < size)
    weight = 1.0 / used.sum(1, keepdim=True).to(torch.float64)
    return Taps(p, weight.expand(p.shape))


def _average(k: int) -> Callable[..., Any]:
    def taps_of(b: Builder, sizes: Sizes, out: Sizes, kernel: Sizes, stride: Sizes = (), padding: Sizes = (),
                ceil_mode: bool = False, counts_padding: bool = True, divisor: int | None = None) -> Any:
        kernel = every(kernel, k, kernel)
        stride, padding = every(stride, k, kernel), every(padding, k, (0,) * k)
        found = []
        for n, m, size, s, p in zip(sizes[-k:], out[-k:], kernel, stride, padding):
            t = steps(m, size, s, p)
            if divisor is None:
                t = _mean_taps(t, n, p, counts_padding)
            found.append(t)
        if divisor is not None:
            found[0] = replace(found[0], weight=torch.full((1, found[0].counts[1]), 1.0 / divisor).double())
        return found
    return taps_of


def _adaptive(k: int) -> Callable[..., Any]:
    def taps_of(b: Builder, sizes: Sizes, out: Sizes, *_: Any) -> Any:
        return [_mean_taps(shares(n, m), n, 0, False) for n, m in zip(sizes[-k:], out[-k:])]
    return taps_of


for k in (2, 3):
    both(getattr(aten, f"avg_pool{k}d").default, getattr(aten, f"avg_pool{k}d_backward").default, _average(k))
    both(getattr(aten, f"_adaptive_avg_pool{k}d").default,
         getattr(aten, f"_adaptive_avg_pool{k}d_backward").default, _adaptive(k))


# ---- resampling -----------------------------------------------------------------------------------

def _scale(before: int, after: int, given: float | None) -> float:
    return 1.0 / given if given is not None and given > 0 else before / after


def _source(before: int, after: int, given: float | None, align: bool, dtype: torch.dtype) -> Tensor:
    """Where each result lies among the elements, as a float of the dtype eager mode computes it in."""
    o = torch.arange(after, dtype=dtype)
    if align:
        return o * torch.tensor((before - 1) / (after - 1) if after > 1 else 0.0, dtype=dtype)
    return (o + 0.5) * torch.tensor(_scale(before, after, given), dtype=dtype) - 0.5


def _nearest(before: int, after: int, given: float | None, shift: float) -> Taps:
    o = torch.arange(after, dtype=torch.float32) + shift
    scale = torch.tensor(_scale(before, after, given), dtype=torch.float32)
    return Taps((o * scale).floor().long().clamp(max=before - 1)[:, None])


def _linear(before: int, after: int, given: float | None, align: bool, dtype: torch.dtype) -> Taps:
    if before == after:
        return Taps(torch.arange(after)[:, None])
    source = _source(before, after, given, align, dtype).clamp(min=0)
    first = source.long().clamp(max=before - 1)
    share = (source - first).clamp(0, 1)
    pair = torch.stack([first, (first + 1).clamp(max=before - 1)], 1)
    return Taps(pair, torch.stack([1 - share, share], 1))


def _cubic(before: int, after: int, given: float | None, align: bool, dtype: torch.dtype) -> Taps:
    source = _source(before, after, given, align, dtype)
    first = source.floor()
    distance = (source - first)[:, None] + torch.tensor([1, 0, -1, -2], dtype=dtype)
    position = first.long()[:, None] + torch.arange(-1, 3)
    return Taps(position.clamp(0, before - 1), keys(distance.abs(), -0.75))


def keys(x: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel at distance x."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    return torch.where(x <= 1, near, torch.where(x < 2, ((x - 5) * x + 8) * x * a - 4 * a, 0.0))


def _antialiased(width: int, kernel: Callable[[Tensor], Tensor]) -> Callable[..., Taps]:
    """A window as wide as `width` results, so that no element is skipped where the image shrinks."""
    def taps(before: int, after: int, given: float | None, align: bool, dtype: torch.dtype) -> Taps:
        aligned = (before - 1) / (after - 1) if after > 1 else 0.0
        scale = aligned if align else _scale(before, after, given)
        reach = width / 2 * max(scale, 1.0)
        centre = (torch.arange(after, dtype=dtype) + 0.5) * scale
        first = (centre - reach + 0.5).long().clamp(min=0)
        last = (centre + reach + 0.5).long().clamp(max=before)
        position = first[:, None] + torch.arange(math.ceil(reach) * 2 + 1)
        weight = kernel(((position - centre[:, None] + 0.5) / max(scale, 1.0)).abs())
        weight = torch.where(position < last[:, None], weight, 0.0)
        return Taps(torch.where(position < last[:, None], position, -1), weight / weight.sum(1, keepdim=True))
    return taps


def _resampled(k: int, taps: Callable[..., Taps], aligns: bool, own_columns: bool) -> Callable[..., Any]:
    """Arguments: a size, `align_corners` if `aligns`, scales if given. `own_columns`: a result one column
    wide is eager mode's own, whose kernel takes all of its rows from the first where their number changes."""
    def taps_of(b: Builder, sizes: Sizes, out: Sizes, *args: Any) -> Any:
        need(all(n > 0 for n in (*sizes[-k:], *out[-k:])), "nothing to resample")
        need(not own_columns or out[-1] > 1 or sizes[-2] == out[-2], "one column, resampled in rows")
        scales = (*args[1 + aligns:], *(None,) * k)[:k]
        own = (args[1], wide(b.out.dtype)) if aligns else ()
        return [taps(n, m, s, *own) for n, m, s in zip(sizes[-k:], out[-k:], scales)]
    return taps_of


RESAMPLING: dict[str, tuple[Callable[..., Taps], bool]] = {
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), (_linear, True)),
    "upsample_bicubic2d": (_cubic, True),
    "_upsample_bilinear2d_aa": (_antialiased(2, lambda x: (1 - x).clamp(min=0)), True),
    "_upsample_bicubic2d_aa": (_antialiased(4, lambda x: keys(x, -0.5)), True),
    **{f"upsample_nearest{k}d": (lambda n, m, s: _nearest(n, m, s, 0.0), False) for k in (1, 2, 3)},
    **{f"_upsample_nearest_exact{k}d": (lambda n, m, s: _nearest(n, m, s, 0.5), False) for k in (1, 2, 3)},
}
for name, (taps, aligns) in RESAMPLING.items():
    k = next(int(c) for c in name if c.isdigit())
    both(getattr(aten, name).default, getattr(aten, name + "_backward").default,
         _resampled(k, taps, aligns, name.endswith("_aa")))


# ---- derivatives of padding -----------------------------------------------------------------------

def _padded(n: int, low: int, high: int, mirror: bool) -> Taps:
    """Which element each one of the padded dimension shows."""
    i = torch.arange(-low, n + high)
    return Taps((n - 1 - (n - 1 - i.abs()).abs() if mirror else i.clamp(0, n - 1))[:, None])


def _register_padding(k: int, mirror: bool) -> None:
    @rule(getattr(aten, f"{'reflection' if mirror else 'replication'}_pad{k}d_backward").default)
    def backward(b: Builder, g: Node, x: Node, pad: Sizes) -> Node:
        ends = [pad[2 * i:2 * i + 2] for i in reversed(range(k))]
        taps = [_padded(n, *e, mirror).transposed(n) for n, e in zip(b.out.shape[-k:], ends)]
        return b.cast(weighted(b, b.widen(g), taps), b.out.dtype)


for k in (1, 2, 3):
    for mirror in (True, False):
        _register_padding(k, mirror)


# ---- unfolding ------------------------------------------------------------------------------------

@rule(aten.unfold.default)
def _unfold(b: Builder, x: Node, dim: int, size: int, step: int) -> Any:
    if not x.tensor.ndim:
        return b.reshape(x, b.out.shape)
    n, dim = x.tensor.ndim, dim % x.tensor.ndim
    order = tuple(d for d in range(n) if d != dim) + (dim,)
    taps = steps(b.out.shape[dim], size, step)
    y = read(b, b.permute(x, order), [taps], as_dtype(0, x.tensor.dtype)).values
    return b.permute(y, tuple(order.index(d) for d in range(n)) + (n,))


def _columns(sizes: Sizes, kernel: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes) -> list[Taps]:
    return [steps((n + 2 * p - d * (k - 1) - 1) // s + 1, k, s, p, d)
            for n, k, d, p, s in zip(sizes, kernel, dilation, padding, stride)]


@rule(aten.im2col.default)
def _im2col(b: Builder, x: Node, *geometry: Sizes) -> Any:
    n = x.tensor.ndim
    y = read(b, x, _columns(x.tensor.shape[-2:], *geometry), as_dtype(0, x.tensor.dtype)).values
    return b.reshape(b.permute(y, (*range(n - 2), n, n + 1, n - 2, n - 1)), b.out.shape)


def folded(b: Builder, y: Node, taps: Sequence[Taps], sizes: Sizes) -> Node:
    """The sum of windows (*lead, results, taps, results, taps, …) where they came from."""
    lead = y.tensor.shape[:y.tensor.ndim - 2 * len(taps)]
    y = b.reshape(y, (*lead, *(t.position.numel() for t in taps)))
    return weighted(b, y, [Taps(t.position.reshape(-1, 1)).transposed(n) for t, n in zip(taps, sizes)])


@rule(aten.col2im.default)
def _col2im(b: Builder, x: Node, sizes: Sizes, *geometry: Sizes) -> Any:
    taps, n, lead = _columns(sizes, *geometry), len(b.out.shape), b.out.shape[:-2]
    (rows, height), (columns, width) = (t.position.shape for t in taps)
    y = b.reshape(b.widen(x), (*lead, height, width, rows, columns))
    y = b.permute(y, (*range(n - 2), n, n - 2, n + 1, n - 1))
    return b.cast(folded(b, y, taps, sizes), b.out.dtype)


@rule(aten.unfold_backward.default)
def _unfold_backward(b: Builder, g: Node, sizes: Sizes, dim: int, size: int, step: int) -> Any:
    n = len(sizes)
    if not n:
        return b.reshape(g, ())
    dim %= n
    order = tuple(d for d in range(n) if d != dim) + (dim,)
    taps = steps(g.tensor.shape[dim], size, step)
    y = folded(b, b.permute(b.widen(g), (*order, n)), [taps], [sizes[dim]])
    return b.cast(b.permute(y, tuple(order.index(d) for d in range(n))), b.out.dtype)


# ---- the greatest of each window ------------------------------------------------------------------

def greatest(b: Builder, x: Node, taps: Sequence[Taps]) -> tuple[Node, Node]:
    """(the greatest of each window, its row-major position): of equals the first; a NaN beats all, the last
    of several."""
    dtype, k = x.tensor.dtype, len(taps)
    least = -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min
    return best(b, read(b, x, taps, as_dtype(least, dtype)), x.tensor.shape[-k:])


def best(b: Builder, w: Windows, sizes: Sizes) -> tuple[Node, Node]:
    """(the greatest of each window, its row-major position in an image of these sizes)."""
    k, flat, shape = len(sizes), flattened(b, w.positions, sizes), w.values.tensor.shape
    value = total(b, "amax", w.values, k)
    same = b.eq(w.values, b.broadcast_like(value, tuple(range(len(shape) - k, len(shape))), shape))
    same = same if w.exists is None else b.and_(same, w.exists)
    found = total(b, "amin", b.where(same, flat, math.prod(sizes)), k)
    if w.values.tensor.dtype.is_floating_point:
        last = total(b, "amax", b.where(b.isnan(w.values), flat, -1), k)
        found = b.where(b.isnan(value), last, found)
    return value, found


def flattened(b: Builder, positions: Sequence[Node], sizes: Sizes) -> Node:
    """Row-major positions in an image of these sizes."""
    flat = positions[0]
    for p, n in zip(positions[1:], sizes[1:]):
        flat = b.add(b.mul(flat, n), p)
    return flat


def _greatest(b: Builder, x: Node, taps: Sequence[Taps]) -> Any:
    value, found = greatest(b, b.widen(x), taps)
    return b.cast(value, b.out[0].dtype), found


def _max_taps(out: Sizes, kernel: Sizes, stride: Sizes = (), padding: Sizes = (),
              dilation: Sizes = (), ceil_mode: bool = False) -> list[Taps]:
    k = len(out)
    kernel = every(kernel, k, kernel)
    padding, dilation = every(padding, k, (0,) * k), every(dilation, k, (1,) * k)
    return list(map(steps, out, kernel, every(stride, k, kernel), padding, dilation))


def _derivative(b: Builder, g: Node, indices: Node, sizes: Sizes, taps: Sequence[Taps]) -> Any:
    """Each element collects the gradients of the windows that chose it."""
    back = [t.transposed(n) for t, n in zip(taps, sizes)]
    y, chosen = read(b, b.widen(g), back, 0.0).values, read(b, indices, back, -1).values
    lead = y.tensor.ndim - 2 * len(back)
    own = flattened(b, [b.index(y.tensor.shape, lead + i) for i in range(len(sizes))], sizes)
    return b.cast(total(b, "sum", b.where(b.eq(chosen, own), y, 0.0), len(back)), b.out.dtype)


def _register_max(k: int) -> None:
    @rule(getattr(aten, f"max_pool{k}d_with_indices").default)
    def pool(b: Builder, x: Node, *geometry: Any) -> Any:
        return _greatest(b, x, _max_taps(b.out[0].shape[-k:], *geometry))

    @rule(getattr(aten, f"max_pool{k}d_with_indices_backward").default)
    def pool_backward(b: Builder, g: Node, x: Node, *rest: Any) -> Any:
        sizes, taps = x.tensor.shape[-k:], _max_taps(g.tensor.shape[-k:], *rest[:-1])
        apart = all(t.transposed(n).position.shape[1] == 1 for t, n in zip(taps, sizes))
        return _derivative(b, g, rest[-1], sizes, taps) if apart else NotImplemented    # else ATen is faster

    @rule(getattr(aten, f"adaptive_max_pool{k}d").default)
    def adaptive(b: Builder, x: Node, _: Any) -> Any:
        return _greatest(b, x, list(map(shares, x.tensor.shape[-k:], b.out[0].shape[-k:])))

    @rule(getattr(aten, f"adaptive_max_pool{k}d_backward").default)
    def adaptive_backward(b: Builder, g: Node, x: Node, indices: Node) -> Any:
        sizes = x.tensor.shape[-k:]
        return _derivative(b, g, indices, sizes, list(map(shares, sizes, g.tensor.shape[-k:])))

    @rule(getattr(aten, f"max_unpool{k}d").default)
    def unpool(b: Builder, x: Node, indices: Node, *_: Any) -> Any:
        lead, sizes = b.out.shape[:-k], b.out.shape[-k:]
        n, flat = math.prod(sizes), (*lead, math.prod(x.tensor.shape[-k:]))
        size = "x".join(map(str, sizes))
        error = ("RuntimeError", f"Found an invalid max index: {{index}} (output volumes are of size {size}")
        zeros = b.full((*lead, n), as_dtype(0, b.out.dtype), b.out.dtype)
        place = (*(b.index(flat, d) for d in range(len(lead))), b.reshape(indices, flat))
        return b.reshape(b.scatter(zeros, place, b.reshape(x, flat), "set", True, error), b.out.shape)


for k in (2, 3):
    _register_max(k)


@rule(aten.fractional_max_pool2d.default, aten.fractional_max_pool3d.default)
def _fractional(b: Builder, x: Node, kernel: Sizes, out: Sizes, samples: Node) -> Any:
    """Windows that begin where a random number per plane says."""
    k, n = len(kernel), x.tensor.ndim
    shape, dtype, sizes = (*b.out[0].shape, *kernel), samples.tensor.dtype, x.tensor.shape[n - k:]
    planes = b.reshape(samples, samples.tensor.shape[-(n - k) - 1:])          # one image has no batch
    index = [b.index(shape, d) for d in range(n - k)]
    for i, (size, width, m) in enumerate(zip(sizes, kernel, out)):
        o = b.index(shape, n - k + i)
        j = i if k == 3 else k - 1 - i          # of an image eager has the last dimension's number first
        u = b.slice(planes, n - k, j, j + 1, 1)
        u = b.expand(b.reshape(u, (*u.tensor.shape[:n - k], *(1,) * (2 * k))), shape)
        alpha = as_dtype((size - width) / (m - 1) if m > 1 else 0.0, dtype)
        first = b.sub(b.cast(b.mul(b.add(b.cast(o, dtype), u), alpha), torch.int64),
                      b.cast(b.mul(u, alpha), torch.int64))
        first = b.where(b.eq(o, m - 1), size - width, first)
        index.append(b.add(first, b.index(shape, n + i)))
    y = b.gather(x, tuple(index), False)
    value, found = best(b, Windows(y, index[n - k:], None), sizes)
    return b.cast(value, b.out[0].dtype), found


# ---- sampling at coordinates ----------------------------------------------------------------------

def _reflected(b: Builder, c: Node, low: float, high: float) -> Node:
    """c thrown back at both ends as often as it takes."""
    if low == high:
        return b.full(c.tensor.shape, 0.0, c.tensor.dtype)
    span = high - low
    off = b.abs(b.sub(c, low))
    rest, even = b.fmod(off, span), b.eq(b.fmod(b.floor(b.div(off, span)), 2.0), 0.0)
    return b.where(even, b.add(rest, low), b.add(b.sub(span, rest), low))


def _bounded(b: Builder, c: Node, size: int, padding: int, align: bool) -> Node:
    """A coordinate as the padding mode has it: 0 zeros, 1 border, 2 reflection."""
    if padding == 2:
        c = _reflected(b, c, 0.0, size - 1.0) if align else _reflected(b, c, -0.5, size - 0.5)
    return b.minimum(b.maximum(c, 0.0), size - 1.0) if padding else c


def _taps_at(b: Builder, c: Node, mode: int, fix: Any) -> list[tuple[Node, Node | None]]:
    """(element, weight) of those that the value at coordinate c is made of: 0 linear, 1 nearest, 2 cubic."""
    if mode == 1:
        return [(b.round(fix(c)), None)]
    if mode == 0:
        c = fix(c)
        first = b.floor(c)
        share = b.sub(c, first)
        return [(first, b.sub(b.add(first, 1.0), c)), (b.add(first, 1.0), share)]
    first = b.floor(c)
    share = b.sub(c, first)
    return [(fix(b.add(first, float(j))), _cubic_weight(b, b.abs(b.sub(share, float(j))), abs(j - 0.5) < 1))
            for j in range(-1, 3)]


def _cubic_weight(b: Builder, x: Node, near: bool, a: float = -0.75) -> Node:
    if near:
        return b.add(b.mul(b.mul(b.sub(b.mul(x, a + 2), a + 3), x), x), 1.0)
    return b.sub(b.mul(b.mul(b.add(b.mul(b.sub(x, 5.0), x), 8.0), x), a), 4 * a)


@rule(aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def _grid_sampler(b: Builder, x: Node, grid: Node, mode: int, padding: int, align: bool) -> Any:
    k, shape, sizes = grid.tensor.shape[-1], b.out.shape, x.tensor.shape[2:]
    if 0 in sizes:
        return NotImplemented
    y, g = b.widen(x), b.widen(grid)
    each = []
    for d, size in enumerate(sizes):
        c = b.reshape(b.slice(g, k + 1, k - 1 - d, k - d, 1), grid.tensor.shape[:-1])
        c = b.mul(b.div(b.add(c, 1.0), 2.0), size - 1.0) if align else b.div(
            b.sub(b.mul(b.add(c, 1.0), float(size)), 1.0), 2.0)
        each.append(_taps_at(b, c, mode, lambda n, size=size: _bounded(b, n, size, padding, align)))
    result: Node | None = None
    for taps in product(*each):
        inside = weight = None
        index = [b.index(shape, 0), b.index(shape, 1)]
        for (place, w), size in zip(taps, sizes):
            here = b.and_(b.ge(place, 0.0), b.le(place, size - 1.0))
            index.append(b.broadcast_like(b.cast(b.where(here, place, 0.0), torch.int64), (1,), shape))
            inside = here if inside is None else b.and_(inside, here)
            weight = w if weight is None or w is None else b.mul(weight, w)
        value = b.where(b.broadcast_like(inside, (1,), shape), b.gather(y, tuple(index), False), 0.0)
        if weight is not None:
            value = b.mul(value, b.broadcast_like(weight, (1,), shape))
        result = value if result is None else b.add(result, value)
    return b.cast(result, b.out.dtype)
