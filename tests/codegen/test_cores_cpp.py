"""Kernels with a core: products and convolutions of the kernel library, with an emitted epilogue on tiles."""

from __future__ import annotations

import pytest
import torch
from plans import build

from minicompile.loops.build import build_loops
from minicompile.lower.decompose import decompose
from minicompile.lower.trace import trace_callable
from minicompile.runtime.library import kernel_library
from minicompile.runtime.toolchain import machine_isas
from minicompile.schedule.cores import TYPES
from minicompile.schedule.fuse import schedule

R = torch.randn
F = torch.nn.functional
CASES = {
    "mm": (lambda x, w: x @ w, (R(33, 40), R(40, 70))),
    "linear": (lambda x, w, b: F.linear(x, w, b), (R(65, 48), R(100, 48), R(100))),
    "linear gelu residual": (
        lambda x, w, b, r: F.gelu(F.linear(x, w, b)) + r,
        (R(5, 7, 32), R(64, 32), R(64), R(5, 7, 64)),
    ),
    "bmm scaled": (lambda x, y: torch.bmm(x, y.transpose(1, 2)) * 0.125, (R(6, 20, 16), R(6, 24, 16))),
    "one row": (lambda x, w, b: F.relu(F.linear(x, w, b)), (R(1, 64), R(40, 64), R(40))),
    "one column": (lambda x, w: torch.tanh(x @ w), (R(40, 64), R(64, 1))),
    "conv bias relu": (
        lambda x, w, b: F.relu(F.conv2d(x, w, b, padding=1)),
        (R(2, 3, 17, 19), R(8, 3, 3, 3), R(8)),
    ),
    "conv strided residual": (
        lambda x, w, r: F.conv2d(x, w, stride=2, padding=1) + r,
        (R(2, 4, 16, 16), R(6, 4, 3, 3), R(2, 6, 8, 8)),
    ),
    "conv depthwise": (
        lambda x, w, b: F.hardswish(F.conv2d(x, w, b, padding=3, groups=6)) + x,
        (R(2, 6, 20, 35), R(6, 1, 7, 7), R(6)),
    ),
    "conv grouped": (lambda x, w: F.conv2d(x, w, stride=2, groups=3) * 2, (R(2, 6, 16, 16), R(12, 2, 3, 3))),
    "conv channels last": (
        lambda x, w, b, r: F.relu(F.conv2d(x, w, b, padding=1) + r),
        tuple(t.contiguous(memory_format=torch.channels_last) for t in (R(2, 9, 11, 13), R(20, 9, 3, 3)))
        + (R(20), R(2, 20, 11, 13).contiguous(memory_format=torch.channels_last)),
    ),
    "conv channels last 1x1": (
        lambda x, w: F.conv2d(x, w) * 2,
        (R(2, 20, 7, 5).contiguous(memory_format=torch.channels_last), R(33, 20, 1, 1)),
    ),
    "conv channels last depthwise": (
        lambda x, w, b: F.silu(F.conv2d(x, w, b, padding=2, groups=21)),
        (R(2, 21, 9, 10).contiguous(memory_format=torch.channels_last), R(21, 1, 5, 5), R(21)),
    ),
    "conv dilated": (lambda x, w: F.conv2d(x, w, dilation=2).sigmoid(), (R(1, 4, 20, 20), R(5, 4, 3, 3))),
}


@pytest.mark.parametrize("isa", machine_isas())
@pytest.mark.parametrize("name", CASES)
def test_core(name, isa):
    if kernel_library(isa) is None:
        pytest.skip("the kernel library is not built")
    fn, args = CASES[name]
    with torch.no_grad():
        plan = schedule(build_loops(decompose(trace_callable(fn, *args))), cores=TYPES)
        assert any(getattr(step, "core", None) for step in plan.steps), str(plan)
        got, want = build(plan, isa)(*args)[0], fn(*args)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert got.stride() == want.stride()


ATTENTION = {
    "plain": ({}, False),
    "causal": ({"is_causal": True}, False),
    "mask over keys": ({"attn_mask": R(2, 1, 1, 20)}, False),
    "full mask and scale": ({"attn_mask": R(2, 3, 17, 20), "scale": 0.3}, False),
    "as a transformer lays it out": ({}, True),
}


@pytest.mark.parametrize("isa", machine_isas())
@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name, isa):
    if kernel_library(isa) is None:
        pytest.skip("the kernel library is not built")
    kwargs, transposed = ATTENTION[name]
    shapes = (
        [(2, 17, 3, 16), (2, 20, 3, 16), (2, 20, 3, 16)]
        if transposed
        else [(2, 3, 17, 16), (2, 3, 20, 16), (2, 3, 20, 16)]
    )
    q, k, v = (R(s).transpose(1, 2) if transposed else R(s) for s in shapes)

    def fn(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **kwargs) * 2

    with torch.no_grad():
        plan = schedule(build_loops(decompose(trace_callable(fn, q, k, v))))
        executable = build(plan, isa)
        assert list(executable.externs.values()) == ["kernel library"]
        for _ in range(3):
            torch.testing.assert_close(executable(q, k, v)[0], fn(q, k, v), rtol=1e-4, atol=1e-5)


H = torch.bfloat16
HALVES = {
    "mm": (lambda x, w: x @ w, (R(33, 40, dtype=H), R(40, 70, dtype=H))),
    "linear": (lambda x, w, b: F.linear(x, w, b), (R(65, 48, dtype=H), R(100, 48, dtype=H), R(100, dtype=H))),
    "linear gelu residual": (lambda x, w, b, r: F.gelu(F.linear(x, w, b)) + r,
                             (R(5, 7, 33, dtype=H), R(64, 33, dtype=H), R(64, dtype=H), R(5, 7, 64, dtype=H))),
    "bmm scaled": (lambda x, y: torch.bmm(x, y.transpose(1, 2)) * 0.125, (R(6, 20, 16, dtype=H), R(6, 24, 16, dtype=H))),
    "one row": (lambda x, w: F.linear(x, w), (R(1, 130, dtype=H), R(40, 130, dtype=H))),
    "bias of rows": (lambda x, w, b: torch.addmm(b, x, w), (R(20, 40, dtype=H), R(40, 30, dtype=H), R(20, 1, dtype=H))),
    "weight rounded on the way": (lambda x, w, b: F.linear(x, w.to(H), b.to(H)), (R(40, 64, dtype=H), R(50, 64), R(50))),
    "training's products": (lambda x, g: (g.t() @ x, g.sum(0)), (R(70, 40, dtype=H), R(70, 30, dtype=H))),
}


@pytest.mark.parametrize("isa", machine_isas())
@pytest.mark.parametrize("name", HALVES)
def test_core_of_bfloat16(name, isa):
    """Values are eager's, within one step of bfloat16 where sums in another order round the other way."""
    if kernel_library(isa) is None:
        pytest.skip("the kernel library is not built")
    fn, args = HALVES[name]
    with torch.no_grad():
        plan = schedule(build_loops(decompose(trace_callable(fn, *args))), cores=TYPES)
        plan.check()
        (core,) = (step.core for step in plan.steps if getattr(step, "core", None))
        if "on the way" in name:
            assert [v.spec.dtype for v in core.views()] == [H, torch.float32]
        want = fn(*args)
        for got in (build(plan, isa)(*args), plan.run(*args)):
            for g, w in zip(got, want if isinstance(want, tuple) else (want,)):
                assert g.dtype is w.dtype and g.stride() == w.stride()
                torch.testing.assert_close(g, w, rtol=2**-7, atol=2**-7)
                assert (g == w).float().mean() > 0.97
