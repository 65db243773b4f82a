"""mode=: blocks chosen by timing and CUDA graphs; and running on a GPU at all, where there is one."""

from __future__ import annotations

import pytest
import torch
from test_kernels_triton import CASES, sources

import minicompile
from minicompile.codegen import triton, triton_driver
from minicompile.codegen.triton_blocks import candidates
from minicompile.codegen.triton_modes import tuned, why_not_recorded
from minicompile.errors import MinicompileError
from minicompile.loops.ir import Extern

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def test_the_fastest_blocks_are_chosen():
    plan = sources(lambda x: (x.softmax(-1), x.t().contiguous()), torch.randn(40, 70))[0].plan
    kernels = [s for s in plan.steps if not isinstance(s, Extern)]
    for wanted in (0, 1, 2):
        slow = {}
        for k in kernels:
            for n, blocks in enumerate(candidates(k, plan.buffers)):
                sizes = tuple((name, size) for name, size in triton._sizes(blocks) if size > 1)
                slow[k.name, sizes, blocks.warps] = abs(n - wanted)
        choose = tuned(plan, lambda source, call: min(t for (_, sizes, warps), t in slow.items()
                                                      if sizes == call.constants and warps == call.warps))
        for k in kernels:
            shapes = candidates(k, plan.buffers)
            assert choose(k, plan.buffers) == shapes[min(wanted, len(shapes) - 1)]
        triton_driver.load(triton.emit(plan, choose)).call(torch.randn(40, 70))


def test_a_graph_that_cannot_be_recorded_says_why():
    plan = sources(lambda x: x.softmax(-1), torch.randn(4, 7))[0].plan
    assert why_not_recorded(plan, ()) is None and why_not_recorded(plan, (0,)) == "it writes to its inputs"
    plan = sources(lambda x, i: x[i], torch.randn(4, 7), torch.tensor([1]))[0].plan
    assert "checks indices" in why_not_recorded(plan, ())


def test_modes_are_validated_and_do_nothing_on_a_cpu():
    with pytest.raises(MinicompileError, match="max-autotune"):
        minicompile.compile(torch.sin, mode="fastest")
    x = torch.randn(5)
    for mode in ("default", "reduce-overhead", "max-autotune"):
        torch.testing.assert_close(minicompile.compile(lambda t: t.sin() * 2, mode=mode)(x), x.sin() * 2)


@gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("half types",)])
def test_on_a_gpu(name, mode):
    fn, *args = CASES[name]
    args = [a.cuda() for a in args]

    def run(*given):
        return fn(*given)
    compiled = minicompile.compile(run, mode=mode)
    for _ in range(3):
        got, want = compiled(*args), fn(*args)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4, equal_nan=True)


@gpu
def test_training_on_a_gpu():
    net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.LayerNorm(256)).cuda()
    x = torch.randn(32, 64, device="cuda")
    want = torch.autograd.grad(net(x).square().mean(), list(net.parameters()))
    got = torch.autograd.grad(minicompile.compile(net)(x).square().mean(), list(net.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
