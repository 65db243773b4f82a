"""Attention that a program writes out becomes one library call where that gives eager mode's values, and only there."""
import math

import pytest
import torch

import minicompile
from minicompile.api import compile_anew
from minicompile.lower import attention

LOWEST = torch.finfo(torch.float32).min


def attend(q, k, v, mask=None, scale=None):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) if scale is None else q @ k.mT * scale
    return torch.softmax(scores if mask is None else scores + mask, -1) @ v


def plain(q, k, v, keep):
    return attend(q, k, v)


def scaled(q, k, v, keep):
    return attend(q, k, v, scale=0.3).transpose(1, 2).reshape(2, 8, -1)


def chosen(q, k, v, keep):
    return attend(q, k, v, torch.where(keep, 0.0, LOWEST))


def before(q, k, v, keep):
    scores = torch.where(keep, 0.0, LOWEST) + torch.matmul(q * 0.25, k.transpose(3, 2))
    return torch.matmul(scores.softmax(3), v)


def heads(q, k, v, keep):
    split = [x.transpose(1, 2).reshape(2, x.shape[2], -1).view(2, x.shape[2], 4, -1).transpose(1, 2) for x in (q, k, v)]
    return attend(*split).transpose(1, 2).reshape(2, -1, 64)


def infinite(q, k, v, keep):
    return attend(q, k, v, torch.zeros(2, 1, 8, 12).masked_fill(~keep, float("-inf")))


def given(q, k, v, keep):
    return attend(q, k, v, torch.where(keep, 0.0, float("-inf")))


def too_low(q, k, v, keep):
    return attend(q, k, v, torch.where(keep, -1.0, 0.0) * 3e38 * 2)


def shown(q, k, v, keep):
    weights = torch.softmax(q @ k.mT, -1)
    return weights @ v, weights


def another_axis(q, k, v, keep):
    return torch.softmax(q @ k.mT, -2) @ v


def half(q, k, v, keep):
    return attend(q.bfloat16(), k.bfloat16(), v.bfloat16())


def calls(f, *args):
    compiled, handle = compile_anew(f, options={"stop": "aten"})
    compiled(*args)
    return sum(n.op is attention.OP for n in handle.compilations[0].reach("prims").graph.nodes)


def operands():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 8, 16), torch.randn(2, 4, 12, 16), torch.randn(2, 4, 12, 16)
    keep = torch.rand(2, 1, 8, 12) > 0.3
    keep[0, 0, 3] = False                               # a row without anything to look at
    return q, k, v, keep


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("f", [plain, scaled, chosen, before, heads])
def test_becomes_one_call_with_equal_values(f, backend):
    args = operands()
    assert calls(f, *args) == 1
    got = minicompile.compile(f, backend=backend, fullgraph=True)(*args)
    torch.testing.assert_close(got, f(*args), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("f", [infinite, given, too_low, shown, another_axis, half])
def test_stays_where_values_would_differ_or_weights_are_needed(f):
    args = operands()
    assert calls(f, *args) == 0
    torch.testing.assert_close(minicompile.compile(f, fullgraph=True)(*args), f(*args), atol=2e-6, rtol=2e-5,
                               equal_nan=True)


def test_training_keeps_its_weights():
    args = [x.requires_grad_(x.is_floating_point()) for x in operands()]
    compiled = minicompile.compile(plain, fullgraph=True)
    for f in (plain, compiled):
        f(*args).square().sum().backward()
    expected = torch.autograd.grad(plain(*args).square().sum(), args[:3])
    for x, grad in zip(args, expected):
        torch.testing.assert_close(x.grad, 2 * grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("x, y", [((3, 4, 5), (3, 5, 1)), ((3, 1, 5), (3, 5, 4)), ((3, 1, 5), (3, 5, 1)), ((2, 1, 1), (2, 1, 1)),
                                  ((3, 4, 0), (3, 0, 1))])
def test_batched_products_with_a_vector_are_loops_on_a_gpu(x, y, dtype):
    a, b = torch.randn(x, dtype=dtype), torch.randn(y, dtype=dtype)
    compiled, handle = compile_anew(torch.bmm, backend="triton", options={"stop": "aten"})
    compiled(a, b)
    graph = handle.compilations[0].reach("prims")
    assert not any(n.op is torch.ops.aten.bmm.default for n in graph.graph.nodes)
    torch.testing.assert_close(graph.run(a, b)[0], torch.bmm(a, b))


def test_an_output_in_other_dimensions_is_the_library_calls_own_memory():
    def f(x, w, b):
        return torch.nn.functional.linear(x, w, b), torch.softmax(x, -1).view(16, 2, 8)
    args = torch.randn(2, 8, 16), torch.randn(6, 16), torch.randn(6)
    compiled, handle = compile_anew(f, backend="triton")
    for got, expected in zip(compiled(*args), f(*args)):
        torch.testing.assert_close(got, expected)
        assert got.stride() == expected.stride() and got.untyped_storage().nbytes() == 4 * got.numel()
    assert len(handle.compilations[0].plan.steps) == 2
