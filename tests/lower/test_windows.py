"""Pooling, resampling, unfolding and sampling against eager mode, over sizes that do not divide, with NaN,
infinities and ties; and their derivatives."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minicompile.lower.decompose import decompose
from minicompile.lower.trace import callable_inputs, trace_callable
from minicompile.lower.windows import Taps, shares, steps

aten = torch.ops.aten


def lowered(f, *args):
    """(results of f's prims, what f gives, externs that are left)."""
    with torch.no_grad():
        prims = decompose(trace_callable(f, *args))
        prims.check()
        got = prims.run(*callable_inputs(f, *args))
        want = f(*args)
    left = {str(n.op) for n in prims.graph.nodes if isinstance(n.op, torch._ops.OpOverload)}
    return got, list(want) if isinstance(want, tuple) else [want], left


def agree(f, *args, tol=1e-6, library=()):
    got, want, left = lowered(f, *args)
    assert left == set(library)
    for a, b in zip(got, want, strict=True):
        assert a.stride() == b.stride() and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tol, atol=tol, equal_nan=True)


def image(*shape, seed=0):
    """Random numbers with ties, a NaN and infinities."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g).mul(2).round().div(2)
    flat = x.view(-1)
    places = torch.randperm(flat.numel(), generator=g)[:4]
    flat[places] = torch.tensor([math.nan, math.inf, -math.inf, math.nan])
    return x


geometry = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 1), st.integers(1, 2))


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(5, 9), st.integers(5, 9)), geometry, st.booleans(), st.integers(0, 99))
def test_max_pooling(sizes, geometry, ceil, seed):
    kernel, stride, padding, dilation = geometry
    padding = min(padding, kernel // 2)
    x = image(2, 3, *sizes, seed=seed)
    agree(lambda x: F.max_pool2d(x, kernel, stride, padding, dilation, ceil, True), x)


def test_of_nothing_but_infinity_the_first_element_counts():
    agree(lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), torch.full((1, 1, 5, 5), -math.inf))
    agree(lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), torch.full((1, 1, 5, 5), math.nan))


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(5, 9), st.integers(5, 9)), geometry, st.booleans(), st.booleans(),
       st.sampled_from([None, 3]))
def test_mean_pooling_and_its_derivative(sizes, geometry, ceil, counts, divisor):
    kernel, stride, padding, _ = geometry
    args = ([kernel], [stride], [min(padding, kernel // 2)], ceil, counts, divisor)
    x = torch.randn(2, 3, *sizes)
    agree(lambda x: aten.avg_pool2d(x, *args), x, tol=1e-5)
    g = torch.randn_like(aten.avg_pool2d(x, *args))
    agree(lambda g, x: aten.avg_pool2d_backward(g, x, *args), g, x, tol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_adaptive_pooling(sizes, out):
    x = torch.randn(2, 3, *sizes)
    agree(lambda x: aten._adaptive_avg_pool2d(x, out), x, tol=1e-5)
    agree(lambda x: aten.adaptive_max_pool2d(x, out), image(2, 3, *sizes) if 6 * math.prod(sizes) > 8 else x)
    g, (_, i) = torch.randn(2, 3, *out), aten.adaptive_max_pool2d(x, out)
    agree(lambda g, x: aten._adaptive_avg_pool2d_backward(g, x), g, x, tol=1e-5)
    agree(lambda g, x, i: aten.adaptive_max_pool2d_backward(g, x, i), g, x, i, tol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic"]), st.integers(2, 8),
       st.integers(2, 8), st.tuples(st.integers(1, 12), st.integers(1, 12)), st.booleans(), st.booleans())
def test_resampling(mode, h, w, size, align, antialias):
    linear = mode in ("bilinear", "bicubic")
    more = {"align_corners": align, "antialias": antialias} if linear else {}
    x = torch.randn(2, 3, h, w)
    eager_s_own = linear and antialias and size[1] == 1 and size[0] != h      # its rows are all the first one's
    agree(lambda x: F.interpolate(x, size, mode=mode, **more), x, tol=2e-5,
          library=[f"aten._upsample_{mode}2d_aa.default"] * eager_s_own)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 1), (5, 1), (2, 1)])
def test_one_antialiased_column_is_eager_s(mode, size):
    agree(lambda x: F.interpolate(x, size, mode=mode, antialias=True), torch.randn(1, 2, 2, 2), tol=2e-5,
          library=[f"aten._upsample_{mode}2d_aa.default"] * (size[0] != 2))


@pytest.mark.parametrize("name", ["upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa"])
@pytest.mark.parametrize("align", [True, False])
def test_derivatives_of_resampling(name, align):
    g = torch.randn(2, 3, 7, 4)
    agree(lambda g: getattr(aten, name + "_backward")(g, [7, 4], [2, 3, 5, 6], align), g, tol=2e-5)


@pytest.mark.parametrize("k", [2, 3])
def test_fractional_pooling(k):
    x, u = image(2, 3, *(9, 7, 8)[:k]), torch.rand(2, 3, k)
    op = getattr(aten, f"fractional_max_pool{k}d")
    agree(lambda x, u: op(x, (2, 3, 2)[:k], (4, 3, 5)[:k], u), x, u)
    agree(lambda x, u: op(x, (2, 3, 2)[:k], (4, 3, 5)[:k], u), x[0], u[:1])


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("align", [True, False])
def test_grid_sampling(mode, padding, align):
    x, grid = torch.randn(2, 3, 5, 6), torch.randn(2, 4, 7, 2) * 1.5
    agree(lambda x, grid: aten.grid_sampler_2d(x, grid, mode, padding, align), x, grid, tol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2))
def test_unfolding_and_folding(kernel, stride, padding, dilation):
    x, args = torch.randn(2, 3, 7, 8), ((kernel,) * 2, (dilation,) * 2, (padding,) * 2, (stride,) * 2)
    agree(lambda x: aten.im2col(x, *args), x)
    agree(lambda y: aten.col2im(y, (7, 8), *args), aten.im2col(x, *args), tol=1e-5)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))
def test_transposed_tables(size, out, kernel, stride, padding):
    """Who reads what, told from the other side; twice gives the same."""
    for t in (steps(out, kernel, stride, padding), shares(size, out)):
        t = Taps(t.position, torch.rand(t.position.shape))
        dense, back = torch.zeros(out, size), torch.zeros(size, out)
        for table, into, n in ((t, dense, size), (t.transposed(size), back, out)):
            for o, j in torch.cartesian_prod(*map(torch.arange, table.position.shape)).tolist():
                if 0 <= (i := int(table.position[o, j])) < n:
                    into[o, i] += table.weight[o, j]
        torch.testing.assert_close(dense, back.T)
