"""Backward operators through the lowering against the ATen kernels: values, dtypes and strides, the places
without a derivative included."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from minicompile.ir.graph import Graph, Node, Output
from minicompile.ir.spec import TensorSpec
from minicompile.lower.builder import RULES, Builder
from minicompile.lower.decompose import decompose
from minicompile.lower.graphs import Prims
from minicompile.lower.trace import callable_inputs, tensors_in, trace_callable

aten = torch.ops.aten
EDGES = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 0.5, -0.5, 6.0, -6.0, 20.0, 21.0, 1e-30, -1e-30, 50.0, -50.0]
NONFINITE = [math.nan, math.inf, -math.inf]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def agree(fn: Callable[..., Any], *args: Any, whole: bool = True, rtol: float | None = None) -> list:
    """Checks fn through the lowering against eager mode; the library calls left."""
    want = list(tensors_in(fn(*args)))
    prims = decompose(trace_callable(fn, *args))
    prims.check()
    got = prims.run(*callable_inputs(fn, *args))
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert all(n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True))
        t = TOLERANCE.get(a.dtype, 0) if rtol is None else rtol
        torch.testing.assert_close(a, b, rtol=t, atol=t, equal_nan=True)
    left = [n.op for n in prims.graph.nodes if isinstance(n.op, torch._ops.OpOverload)]
    assert not whole or not left
    return prims.graph.nodes if not whole else left


def points(dtype: torch.dtype, finite: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient, input): every edge value, and more, a whole number of vectors of them."""
    torch.manual_seed(0)
    x = torch.tensor((EDGES + ([] if finite else NONFINITE)) * 4)
    x = torch.cat([x, 3 * torch.randn(128 - len(x))]).to(dtype)
    return torch.randn(128).to(dtype), x


ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "tanh": aten.tanh_backward,
    "sigmoid": aten.sigmoid_backward,
    "gelu": aten.gelu_backward,
    "gelu_tanh": lambda g, x: aten.gelu_backward(g, x, approximate="tanh"),
    "silu": aten.silu_backward,
    "mish": aten.mish_backward,
    "softplus": lambda g, x: aten.softplus_backward(g, x, 1, 20),
    "softplus_steep": lambda g, x: aten.softplus_backward(g, x, 2.0, 3.0),
    "log_sigmoid": lambda g, x: aten.log_sigmoid_backward(g, x, torch.exp(-x.abs())),
    "threshold": lambda g, x: aten.threshold_backward(g, x, 0),
    "threshold_half": lambda g, x: aten.threshold_backward(g, x, 0.5),
    "leaky_relu": lambda g, x: aten.leaky_relu_backward(g, x, 0.1, False),
    "hardtanh": lambda g, x: aten.hardtanh_backward(g, x, -1, 1),
    "relu6": lambda g, x: aten.hardtanh_backward(g, x, 0.0, 6.0),
    "hardswish": aten.hardswish_backward,
    "hardsigmoid": aten.hardsigmoid_backward,
    "softshrink": lambda g, x: aten.softshrink_backward(g, x, 0.5),
    "hardshrink": lambda g, x: aten.hardshrink_backward(g, x, 0.5),
    "elu": lambda g, x: aten.elu_backward(g, 1.5, 1.1, 0.7, False, x),
    "elu_result": lambda g, x: aten.elu_backward(g, 1, 1, 1, True, x),
    "logit": aten.logit_backward,
    "logit_eps": lambda g, x: aten.logit_backward(g, x, 0.25),
    "prelu": lambda g, x: aten._prelu_kernel_backward(g, x, torch.full_like(x, 0.25)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str, dtype: torch.dtype) -> None:
    g, x = points(dtype)
    agree(ACTIVATIONS[name], g, x)
    agree(ACTIVATIONS[name], g.view(8, 16).t(), x.view(8, 16).t())
    agree(ACTIVATIONS[name], g[:0], x[:0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_glu_and_dropout(dtype: torch.dtype) -> None:
    g, x = points(dtype, finite=True)
    for dim in (0, -1, 1):
        half = torch.nn.functional.glu(x.view(8, 16), dim)
        agree(lambda g, x, dim=dim: aten.glu_backward(g, x, dim), torch.randn_like(half), x.view(8, 16),
              rtol=5e-2 if dtype.itemsize == 2 else None)          # eager rounds after each step
    agree(lambda g, mask: aten.native_dropout_backward(g, mask, 1.25), g, x > 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, -1])
def test_softmax(dtype: torch.dtype, dim: int) -> None:
    g, x = torch.randn(6, 33).to(dtype), torch.randn(6, 33).to(dtype)
    y, z = torch.softmax(x, dim), torch.log_softmax(x, dim)
    agree(lambda g, y: aten._softmax_backward_data(g, y, dim, dtype), g, y)
    agree(lambda g, y: aten._log_softmax_backward_data(g, y, dim, dtype), g, z)


def masks(n: int) -> list[list[bool]]:
    return [[bool(i >> k & 1) for k in range(n)] for i in range(1, 1 << n)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(dtype: torch.dtype, affine: bool) -> None:
    torch.manual_seed(0)
    x, g = (torch.randn(4, 5, 12, 2).to(dtype) for _ in range(2))
    w, c = (torch.randn(12, 2).to(dtype), torch.randn(12, 2).to(dtype)) if affine else (None, None)
    _, m, r = torch.native_layer_norm(x, (12, 2), w, c, 1e-5)
    for mask in masks(3) if affine else [[True, False, False]]:
        agree(lambda g, x, mask=mask: aten.native_layer_norm_backward(g, x, (12, 2), m, r, w, c, mask), g, x,
              rtol=5e-2 if dtype is torch.bfloat16 else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm(dtype: torch.dtype, affine: bool) -> None:
    torch.manual_seed(0)
    x, g = (torch.randn(3, 6, 5, 4).to(dtype) for _ in range(2))
    w, c = (torch.randn(6).to(dtype), torch.randn(6).to(dtype)) if affine else (None, None)
    _, m, r = torch.native_group_norm(x, w, c, 3, 6, 20, 2, 1e-5)
    for mask in masks(3) if affine else [[True, False, False]]:
        agree(lambda g, x, mask=mask: aten.native_group_norm_backward(g, x, m, r, w, 3, 6, 20, 2, mask), g, x,
              rtol=5e-2 if dtype is torch.bfloat16 else None)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_norm(dtype: torch.dtype, training: bool, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x, g = (torch.randn(4, 6, 5, 3).to(dtype).to(memory_format=layout) for _ in range(2))
    w, c = torch.randn(6).to(dtype), torch.randn(6).to(dtype)
    rm, rv = torch.randn(6).to(dtype), torch.rand(6).to(dtype)
    _, m, r = torch.native_batch_norm(x, w, c, rm.clone(), rv.clone(), training, 0.1, 1e-5)
    for weight in (w, None):
        for mask in masks(3) if weight is not None else [[True, False, False]]:
            agree(lambda g, x, weight=weight, mask=mask: aten.native_batch_norm_backward(
                g, x, weight, rm, rv, m, r, training, 1e-5, mask), g, x)


def test_rms_norm() -> None:
    """No ATen kernel on the CPU: against autograd of the formula."""
    torch.manual_seed(0)
    x, w = torch.randn(4, 5, 12, requires_grad=True), torch.randn(12, requires_grad=True)
    g = torch.randn(4, 5, 12)
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    want = torch.autograd.grad(x * scale * w, (x, w), g)
    given = [x.detach(), w.detach(), g, scale.detach()]
    nodes = [Node(n, "input", (i,), {}, TensorSpec.of(t)) for i, (n, t) in enumerate(zip("xwgs", given))]
    b, (xn, wn, gn, sn) = Builder(), nodes
    b.out = tuple(TensorSpec.of(t) for t in want)
    out = RULES[aten._fused_rms_norm_backward.default](b, gn, xn, (12,), sn, wn, (True, True))
    outputs = tuple(Output(o, o.spec, None) for o in out)
    got = Prims(Graph(tuple(nodes), tuple(b.nodes), outputs, (), 2)).run(*given)
    torch.testing.assert_close(got, list(want), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [0, 2])
def test_weight_norm(dtype: torch.dtype, dim: int) -> None:
    torch.manual_seed(0)
    v = torch.randn(4, 5, 6).to(dtype)
    g = torch.randn([n if d == dim else 1 for d, n in enumerate(v.shape)]).to(dtype)
    w, norm = aten._weight_norm_interface(v, g, dim)
    agree(lambda v, g: aten._weight_norm_interface(v, g, dim), v, g)
    agree(lambda gw, v, g, norm: aten._weight_norm_interface_backward(gw, v, g, norm, dim),
          torch.randn_like(w), v, g, norm)


LOSSES: dict[str, Callable[..., Any]] = {
    "mse": aten.mse_loss_backward,
    "smooth_l1": lambda g, x, t, r: aten.smooth_l1_loss_backward(g, x, t, r, 0.5),
    "l1": lambda g, x, t, r: aten.smooth_l1_loss_backward(g, x, t, r, 0.0),
    "huber": lambda g, x, t, r: aten.huber_loss_backward(g, x, t, r, 0.5),
    "bce": lambda g, x, t, r: aten.binary_cross_entropy_backward(g, x.sigmoid(), t.sigmoid(), None, r),
    "bce_weight": lambda g, x, t, r: aten.binary_cross_entropy_backward(
        g, x.sigmoid(), t.sigmoid(), x[:1], r),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_loss(name: str, reduction: int, dtype: torch.dtype) -> None:
    g, x = (t.view(8, 16) for t in points(dtype, finite=True))
    target = torch.zeros_like(x)
    target[4:] = torch.randn(4, 16)
    g = g if reduction == 0 else g[0, 0].clone()
    agree(lambda g, x, t: LOSSES[name](g, x, t, reduction), g, x, target)


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_with_logits(dtype: torch.dtype, reduction: int) -> None:
    _, x = points(dtype, finite=True)
    x, t, w = x.view(8, 16), torch.rand(8, 16).to(dtype), torch.rand(16).to(dtype)
    for weight, positive in ((None, None), (w, None), (None, w), (w, w)):
        agree(lambda x, t, weight=weight, positive=positive: aten.binary_cross_entropy_with_logits(
            x, t, weight, positive, reduction), x, t, rtol=5e-2 if dtype is torch.bfloat16 else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("shape", [(7,), (6, 7), (2, 7, 3, 4)])
def test_nll_loss(shape: tuple[int, ...], reduction: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.log_softmax(torch.randn(shape), min(1, len(shape) - 1)).to(dtype)
    target = torch.randint(0, 7, shape[:1] + shape[2:] if len(shape) > 1 else ())
    flat = target.view(-1)
    flat[::3] = 4 if len(shape) == 1 else -100
    two = "2d" if len(shape) == 4 else ""
    forward = getattr(aten, f"nll_loss{two}_forward")
    backward = getattr(aten, f"nll_loss{two}_backward")
    for weight in (None, torch.rand(7).to(dtype)):
        for ignore in (-100, 4):
            if ignore == 4:
                flat[::3] = 4
            agree(lambda x, t, w=weight, i=ignore: forward(x, t, w, reduction, i), x, target)
            loss, total = forward(x, target, weight, reduction, ignore)
            g = torch.randn_like(loss)
            agree(lambda g, x, t, n, w=weight, i=ignore: backward(g, x, t, w, reduction, i, n), g, x, target,
                  total)


def test_nll_loss_checks_its_targets() -> None:
    x, target = torch.randn(3, 4), torch.tensor([0, 4, 1])
    prims = decompose(trace_callable(lambda x, t: torch.nn.functional.nll_loss(x, t), x, target))
    with pytest.raises(IndexError, match="Target 4 is out of bounds"):
        prims.run(x, target)
    everything_ignored = torch.full((3,), -100)
    assert prims.run(x, everything_ignored)[0].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_views(dtype: torch.dtype) -> None:
    g = torch.arange(24).view(2, 3, 4).to(dtype)
    for dim, start, end, step, size in ((1, 2, 5, 1, 7), (1, 1, 9, 3, 9), (-1, -4, 99, 1, 6), (0, 0, 4, 2, 4),
                                        (1, 0, 3, 1, 3), (2, 1, 8, 2, 8)):
        sizes = [2, 3, 4]
        sizes[dim] = size
        agree(lambda g, d=dim, s=start, e=end, k=step, n=sizes: aten.slice_backward(g, n, d, s, e, k), g)
    for dim, index in ((0, 1), (-1, -1), (2, 0), (3, 4)):
        sizes = [2, 3, 4]
        sizes.insert(dim % 4, 5)
        agree(lambda g, d=dim, i=index, n=sizes: aten.select_backward(g, n, d, i), g)
    for offset, sizes in ((0, [2, 4, 3, 4]), (1, [2, 4, 3, 5]), (-2, [2, 6, 3, 4])):
        agree(lambda g, n=sizes, o=offset: aten.diagonal_backward(g, n, o, 1, 3), g)


@pytest.mark.parametrize("mask", masks(3))
@pytest.mark.parametrize("transposed", [False, True])
def test_the_bias_of_a_convolution_is_a_sum(mask: list[bool], transposed: bool) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 4, 9, 9), torch.randn(4, 4, 3, 3)
    y = torch.convolution(x, w, None, (2, 2), (1, 1), (1, 1), transposed, (0, 0), 1)

    def backward(g: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> list:
        out = aten.convolution_backward(g, x, w, [4], (2, 2), (1, 1), (1, 1), transposed, (0, 0), 1, mask)
        return [t for t, wanted in zip(out, mask) if wanted]
    nodes = agree(backward, torch.randn_like(y), x, w, whole=False, rtol=1e-4)
    calls = [n for n in nodes if n.op is aten.convolution_backward.default]
    assert len(calls) == any(mask[:2]) and not any(n.args[-1][2] for n in calls)
    assert not mask[2] or any(getattr(n.op, "name", "") == "sum" for n in nodes)


@pytest.mark.parametrize("channels, out, kernel, padding, dilation, groups", [
    (4, 6, (3, 3), (1, 1), (1, 1), 1), (4, 6, (3, 2), (0, 1), (1, 2), 1), (6, 6, (5, 5), (2, 2), (1, 1), 6),
    (6, 12, (3, 3), (2, 2), (2, 2), 3), (4, 4, (1, 1), (0, 0), (1, 1), 1)])
def test_the_image_of_a_convolution_is_a_convolution(channels: int, out: int, kernel: tuple, padding: tuple,
                                                     dilation: tuple, groups: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, channels, 9, 8), torch.randn(out, channels // groups, *kernel)
    y = torch.convolution(x, w, None, (1, 1), padding, dilation, False, (0, 0), groups)
    how = ((1, 1), padding, dilation, False, (0, 0), groups)
    nodes = agree(lambda g, x, w: aten.convolution_backward(g, x, w, None, *how, (True, True, False))[:2],
                  torch.randn_like(y), x, w, whole=False, rtol=1e-4)
    assert [n.args[-1] for n in nodes if n.op is aten.convolution_backward.default] == [(False, True, False)]
    assert sum(n.op is aten.convolution.default for n in nodes) == 1


@pytest.mark.parametrize("how", [((1, 1), (3, 3), (1, 1), False, (0, 0), 1), ((2, 1), (1, 1), (1, 1), False, (0, 0), 1),
                                 ((1, 1), (1, 1), (1, 1), True, (0, 0), 1)])
def test_what_is_no_convolution_stays_a_call(how: tuple) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 4, 9, 8), torch.randn(4, 4, 3, 3)
    y = torch.convolution(x, w, None, *how)
    nodes = agree(lambda g, x, w: aten.convolution_backward(g, x, w, None, *how, (True, False, False))[0],
                  torch.randn_like(y), x, w, whole=False, rtol=1e-4)
    assert not any(n.op is aten.convolution.default for n in nodes)


def test_a_dropout_mask_is_eagers_and_may_be_kept_as_bytes() -> None:
    x = torch.randn(64, 64)
    prims = decompose(trace_callable(lambda x: torch.nn.functional.dropout(x, 0.3), x))
    torch.manual_seed(5)
    want = torch.nn.functional.dropout(x, 0.3)
    torch.manual_seed(5)
    assert torch.equal(prims.run(x)[0], want)
    (draw,) = [n for n in prims.graph.nodes if isinstance(n.op, torch._ops.OpOverload)]
    readers = [n for n in prims.graph.nodes if draw in n.operands]
    assert [n.tensor.dtype for n in readers] == [torch.bool]
