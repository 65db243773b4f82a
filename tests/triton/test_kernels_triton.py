"""Emitted Triton: every kind of kernel a plan can hold, interpreted against eager mode with the blocks a GPU gets,
and what the text says about masks, index types and order."""

from __future__ import annotations

import re

import pytest
import torch
from plans import Buffer, Kernel, Loop, Result, Stage, Store, Tiling, apply, axis, const, load, plan_of, spec
from torch.nn import functional as F

import minicompile
from minicompile.api import compile_anew
from minicompile.codegen import triton, triton_driver
from minicompile.codegen.triton_blocks import candidates, power, programs
from minicompile.codegen.triton_values import element, template
from minicompile.errors import Refusal
from minicompile.loops.ir import Extern
from minicompile.viz.cross import sources_of


def sources(fn, *args):
    """Triton sources of a function's graphs, forward and backward, with the blocks of a GPU."""
    compiled, handle = compile_anew(fn, backend="triton", fullgraph=True, options={"stop": "aten"})
    compiled(*args)
    return sources_of([p for c in handle.compilations for p in (c, c.backward) if p is not None])


def agree(fn, *args, grad=False):
    """The interpreted forward, by every candidate shape of blocks, against eager mode."""
    want = fn(*args)
    want = want if isinstance(want, tuple) else (want,)
    source = sources(fn, *args)[0]
    for number in range(3):
        chosen = triton.emit(source.plan, lambda k, b, n=number: candidates(k, b)[min(n, len(candidates(k, b)) - 1)])
        got = triton_driver.load(chosen).call(*args[:len(source.plan.loops.inputs)])
        for a, b in zip(got, want, strict=False):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
    return source.text


X = torch.randn(37, 70)
INDEX = torch.randint(-37, 37, (5, 9))
CASES = {
    "pointwise": (lambda x: (x * 2 + 1).sigmoid() - x, X),
    "broadcast": (lambda x: x[:, None] * x[None], torch.randn(7, 9)),
    "scalar": (lambda x: x * x + 1, torch.tensor(3.0)),
    "empty": (lambda x: x + 1, torch.zeros(0, 4)),
    "sum of nothing": (lambda x: x.sum(1), torch.zeros(4, 0)),
    "transpose": (lambda x: (x.t() + 1).contiguous(), torch.randn(70, 45)),
    "transpose of the middle": (lambda x: x.transpose(1, 2).contiguous(), torch.randn(3, 33, 20)),
    "rows": (lambda x: x.softmax(-1), X),
    "rows, several passes": (lambda x: F.layer_norm(x.softmax(-1), (70,)), X),
    "long rows": (lambda x: x.softmax(-1), torch.randn(3, 5000)),
    "columns": (lambda x: (x.sum(0), x.amax(0)), X),
    "long columns": (lambda x: x.mean(0), torch.randn(700, 33)),
    "everything": (lambda x: (x.sum(), x.amin(), x.prod()), torch.rand(50)),
    "sums of ones": (lambda x: (torch.ones_like(x).sum(1) + x[:, 0], torch.ones_like(x).cumsum(1) * x), X),
    "variance": (lambda x: x.var(1), X),
    "argmax": (lambda x: (x.argmax(1), x.argmin(0), x.argmax()), torch.randint(0, 9, (20, 30)).float()),
    "argmax meets NaN": (lambda x: x.argmax(1), torch.tensor([[1.0, torch.nan, 5.0, torch.nan]] * 3)),
    "amax meets NaN": (lambda x: (x.amax(1), x.amin(1)), torch.tensor([[1.0, torch.nan, 5.0]] * 3)),
    "any and all": (lambda x: ((x > 0).any(1), (x > -9).all(1)), X),
    "scan": (lambda x: (x.cumsum(1), x.cumprod(0)), torch.rand(9, 30)),
    "long scan": (lambda x: x.cumsum(0), torch.rand(5000)),
    "running extremes": (lambda x: x.cummax(1).values, torch.randn(4, 20)),
    "gather": (lambda x, i: x[i], X, INDEX),
    "index add": (lambda x, i: torch.zeros(37, 70).index_add(0, i.flatten() % 37, x[:45 - 8].repeat(2, 1)[:45]), X, INDEX),
    "scatter of products": (lambda x, i: x.scatter_reduce(0, i, x[:5] * 2, "prod"), torch.rand(37, 9), INDEX % 37),
    "embedding": (lambda w, i: F.embedding(i, w), X, INDEX % 37),
    "pad, slice, flip": (lambda x: F.pad(x, (2, 3), value=7.0)[:, 1::2].flip(0), X),
    "cat": (lambda x: torch.cat([x, x * 2, x[:, :3]], 1), X),
    "roll": (lambda x: x.roll((3, 5), (0, 1)), X),
    "pooling": (lambda x: F.max_pool2d(x, 2), torch.randn(2, 3, 8, 10)),
    "group norm": (lambda x: F.group_norm(x, 2), torch.randn(3, 4, 5, 6)),
    "attention by hand": (lambda q: (q @ q.transpose(-1, -2) / 4).softmax(-1) @ q, torch.randn(2, 3, 10, 16)),
    "half types": (lambda x: (x * 1.5 + x.sum(-1, keepdim=True)).to(torch.float16), X.bfloat16()),
    "constants": (lambda x: (x.new_full((5,), 1.5), x * 0.3, torch.where(x > 0, x, 2.5)), X.bfloat16()),
    "constants of float16": (lambda x: (x.new_full((5,), 1.5), x * 0.3, torch.where(x > 0, x, 2.5)), X.half()),
    "integers": (lambda x: (x // 3, x % -7, x << 2, ~x, x.sum(1)), torch.randint(-50, 50, (20, 30))),
    "small integers wrap": (lambda x: x * x + 100, torch.randint(-128, 127, (50,), dtype=torch.int8)),
    "bools": (lambda x: ((x > 0) & ~(x > 1), (x > 0) < (x > 1), (x > 0) ^ True), X),
    "float64": (lambda x: (x * 0.1 + 1e-12).softmax(-1) / 3, X.double()),
    "negative zero": (lambda x: (-x, x * -0.0), torch.tensor([0.0, -0.0, 1.0])),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels(name):
    fn, *args = CASES[name]
    agree(fn, *args)


def test_gradients():
    net = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.GELU(), torch.nn.LayerNorm(30), torch.nn.Linear(30, 7))
    x = torch.randn(5, 20, requires_grad=True)
    compiled = minicompile.compile(net, backend="triton", fullgraph=True)
    loss = F.cross_entropy(compiled(x), torch.arange(5))
    got = torch.autograd.grad(loss, [x, *net.parameters()])
    want = torch.autograd.grad(F.cross_entropy(net(x), torch.arange(5)), [x, *net.parameters()])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_inputs_are_written_back_and_views_of_them_returned():
    def f(x):
        x.mul_(2)
        return x[1:], x + 1
    a, b = torch.randn(4, 3), None
    b = a.clone()
    compiled = minicompile.compile(f, backend="triton", fullgraph=True)
    view, other = compiled(a)
    torch.testing.assert_close((a, view, other), (2 * b, 2 * b[1:], 2 * b + 1))
    assert view.data_ptr() == a[1:].data_ptr() and a._version == 1


def test_an_index_out_of_range_raises_as_eager_mode_does():
    compiled = minicompile.compile(lambda x, i: x[i], backend="triton", fullgraph=True)
    assert torch.equal(compiled(X, torch.tensor([0, -1])), X[[0, -1]])
    with pytest.raises(IndexError, match="99"):
        compiled(X, torch.tensor([0, 99]))
    with pytest.raises(IndexError, match="out of"):
        compiled(torch.zeros(0, 3), torch.tensor([0]))


def test_masks_only_where_the_size_does_not_show_the_end():
    whole = sources(lambda x: x.softmax(-1) + 1, torch.randn(64, 128))[0].text
    assert "mask" not in whole.split("import torch\n")[0]
    ragged = sources(lambda x: x.softmax(-1) + 1, torch.randn(63, 100))[0].text
    assert "xmask" in ragged and "jmask" in ragged


def test_indices_are_32_bits_wide_unless_they_must_be_wider():
    small = sources(lambda x: x + 1, torch.zeros(100))[0]
    assert "int64" not in small.text.split("import torch\n")[0]
    i, bytes_ = axis("i0", 3 << 30), spec(torch.int8, 3 << 30)
    loop = Loop("l", (i,), (), None, load("x", i.var, torch.int8), Store("y", i.var), torch.int8)
    buffers = [Buffer("x", "input", bytes_, 0), Buffer("y", "output", bytes_, 0)]
    kernel = Kernel("k", (i,), (Stage((), (loop,)),), (), Tiling("i0", 0, 1.0))
    big = triton.emit(plan_of([kernel], buffers, [Result("y", bytes_)], ["x"]))
    assert "tl.program_id(0).to(tl.int64)" in big.text


def test_rows_that_fit_are_read_once():
    text = sources(lambda x: F.layer_norm(x.softmax(-1), (128,)), torch.randn(64, 128))[0].text
    assert text.count("tl.load") == 1 and text.count("tl.store") == 1 and "debug_barrier" not in text


def test_threads_wait_before_they_read_what_others_stored():
    text = sources(lambda x: x.softmax(-1), torch.randn(4, 5000))[0].text
    body = text.split("import torch\n")[0]
    assert re.search(r"tl\.store\(row0.*tl\.debug_barrier\(\).*tl\.load\(row0", body, re.S), body


def test_scatters_are_atomic_where_the_hardware_can_and_serial_elsewhere():
    index = torch.tensor([0, 1, 0])
    atomic = sources(lambda x, i: torch.zeros(2).index_add(0, i, x), torch.ones(3), index)[0]
    assert "tl.atomic_add" in atomic.text
    serial = sources(lambda x, i: torch.ones(2).scatter_reduce(0, i, x, "prod"), torch.ones(3), index)[0]
    assert "atomic" not in serial.text and "for n in range(3)" in serial.text


def test_equal_kernels_are_one_function():
    net = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()) for _ in range(4)))
    source = sources(lambda x: net(x), torch.randn(4, 8))[0]
    calls = [c for c in source.calls if c is not None]
    assert len(calls) > len(source.kernels) and len(set(source.kernels)) == len(source.kernels)


def test_the_number_of_programs_covers_every_point():
    for fn, *args in (CASES["transpose of the middle"], CASES["rows"], CASES["pointwise"], CASES["columns"]):
        plan = sources(fn, *args)[0].plan
        for kernel in (s for s in plan.steps if not isinstance(s, Extern)):
            for blocks in candidates(kernel, plan.buffers):
                points = 1
                for a in kernel.par:
                    points *= a.size
                assert programs(kernel, blocks) * blocks.x * blocks.y >= points
                assert all(n == power(n) for n in (blocks.x, blocks.y, *blocks.r, blocks.warps))


@pytest.mark.parametrize("fn", [
    lambda x: (torch.fft.ihfft(x), x * 2), lambda x: torch.view_as_complex(x.view(4, 3, 2) * 2),
    lambda x: (x + 1).view(torch.int32), lambda x: torch.view_as_complex(x.view(4, 3, 2)),
    lambda x: x.t_().add_(1) * 2, lambda x: x.resize_(3, 2) + 1, lambda x: x.unsqueeze_(1)])
def test_views_of_another_dtype_and_inputs_of_another_geometry_in_the_end(fn):
    compiled = minicompile.compile(fn, backend="triton", fullgraph=True)
    for _ in range(2):
        mine, eager = torch.arange(24.0).view(4, 6), torch.arange(24.0).view(4, 6)
        got, want = ((*(r if isinstance(r, tuple) else (r,)), x) for r, x in ((compiled(mine), mine), (fn(eager), eager)))
        for a, b in zip(got, want, strict=True):
            assert (a.dtype, a.shape, a.stride(), a.is_conj()) == (b.dtype, b.shape, b.stride(), b.is_conj())
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reduce", [False, True])
def test_threads_that_would_load_much_hold_fewer_points(reduce):
    """Else their registers spill: 8 points of 4 bytes are loaded at ease, of 40 not."""
    def warps_of(count):
        def fn(*xs):
            total = sum(xs[1:], xs[0])
            return total.sum(-1) if reduce else total
        source = sources(fn, *torch.randn(count, 256, 1024).unbind())[0]
        return next(c.warps for c in source.calls if c is not None)
    assert warps_of(10) == 2 * warps_of(1 + (not reduce))


def test_what_triton_lacks_is_refused():
    with pytest.raises(Refusal, match="no Triton element type"):
        element(torch.complex64)
    with pytest.raises(Refusal, match="no Triton form on bool"):
        template(apply("sin", (const(True, torch.bool),), torch.bool))
