"""Library calls inside the native call: every way of passing arguments, results' layout, errors, aliases
and views."""

from __future__ import annotations

import pytest
import torch
from plans import (
    Buffer,
    Kernel,
    Loop,
    Result,
    Stage,
    Store,
    Tiling,
    View,
    apply,
    axis,
    build,
    extern,
    f32,
    load,
    plan_of,
    spec,
)

import minicompile
from minicompile.ir.spec import TensorSpec
from minicompile.loops.ir import Extern

a = torch.ops.aten
R = torch.randn


def D(*shape):
    return R(shape, dtype=torch.float64)  # the kernel library takes float32 only


CASES = {
    "mm": (a.mm.default, (R(4, 5), R(5, 6)), {}, a.mm.out, "direct"),
    "mm functional": (a.mm.default, (R(4, 5), R(5, 6)), {}, None, "dispatcher"),
    "mm of a transposed input": (a.mm.default, (R(5, 4).t(), R(5, 6)), {}, a.mm.out, "direct"),
    "bmm": (a.bmm.default, (R(2, 4, 5), R(2, 5, 6)), {}, a.bmm.out, "direct"),
    "addmm": (a.addmm.default, (R(6), R(4, 5), R(5, 6)), {}, a.addmm.out, "direct"),
    "addmm scaled": (
        a.addmm.default,
        (R(6), R(4, 5), R(5, 6)),
        {"beta": 2, "alpha": 0.5},
        a.addmm.out,
        "direct",
    ),
    "baddbmm": (a.baddbmm.default, (R(2, 4, 6), R(2, 4, 5), R(2, 5, 6)), {}, a.baddbmm.out, "direct"),
    "convolution": (
        a.convolution.default,
        (R(1, 3, 8, 8), R(4, 3, 3, 3), R(4), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        {},
        None,
        "direct",
    ),
    "convolution without bias": (
        a.convolution.default,
        (R(1, 3, 8, 8), R(4, 3, 3, 3), None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
        {},
        None,
        "direct",
    ),
    "attention": (
        a._scaled_dot_product_flash_attention_for_cpu.default,
        (D(1, 2, 4, 8), D(1, 2, 4, 8), D(1, 2, 4, 8), 0.0, True),
        {"scale": 0.3},
        None,
        "direct",
    ),
    "attention with mask": (
        a._scaled_dot_product_flash_attention_for_cpu.default,
        (D(1, 2, 4, 8), D(1, 2, 4, 8), D(1, 2, 4, 8)),
        {"attn_mask": D(1, 2, 4, 4)},
        None,
        "direct",
    ),
    "two results": (a.sort.default, (R(3, 7),), {}, None, "dispatcher"),
    "two results into memory": (a.sort.default, (R(3, 7),), {}, a.sort.values, "dispatcher"),
    "optional bool": (
        a.sort.stable,
        (R(3, 7),),
        {"stable": True, "dim": 1, "descending": True},
        None,
        "dispatcher",
    ),
    "tensor list": (a.cat.default, ([R(2, 3), R(4, 3)], 0), {}, a.cat.out, "dispatcher"),
    "list of optional tensors": (
        a.index.Tensor,
        (R(5, 4), [None, torch.tensor([1, 2])]),
        {},
        None,
        "dispatcher",
    ),
    "optional list": (
        a.upsample_bilinear2d.vec,
        (R(1, 2, 4, 4), [8, 8], False, None),
        {},
        None,
        "dispatcher",
    ),
    "dtype": (a.sum.dim_IntList, (R(3, 4), [1]), {"dtype": torch.float64}, None, "dispatcher"),
    "string": (a.scatter_reduce.two, (R(5), 0, torch.tensor([0, 1, 1]), R(3), "sum"), {}, None, "dispatcher"),
    "complex result": (a._fft_r2c.default, (R(8), [0], 0, True), {}, None, "dispatcher"),
    "random": (a.native_dropout.default, (R(10), 0.5, True), {}, None, "dispatcher"),
    "a number": (a.linalg_vector_norm.default, (R(3, 4),), {}, None, "python"),
    "a list of tensors back": (a.split_with_sizes_copy.default, (R(6), [2, 4]), {}, None, "python"),
}


@pytest.mark.parametrize("name", CASES)
def test_call(name):
    op, args, kwargs, into, how = CASES[name]
    plan, tensors = extern(op, args, kwargs, into)
    ex = build(plan)
    assert ex.externs["e0"].split(":")[0] == how
    for _ in range(2):
        torch.manual_seed(5)
        got = ex(*tensors)
        torch.manual_seed(5)
        want = op(*args, **kwargs)
        want = list(want) if isinstance(want, (tuple, list)) else [want]
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w)
            assert g.stride() == w.stride()
    assert ex.call.python_calls == ((0,) if how != "python" else (2,))


def test_the_exception_is_eagers():
    plan, _ = extern(a.mm.default, (R(4, 5), R(5, 6)), {}, None)
    ex = build(plan)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(4x5 and 7x6\)"):
        ex(R(4, 5), R(7, 6))
    x, y = R(4, 5), R(5, 6)
    torch.testing.assert_close(ex(x, y)[0], x @ y)  # and the graph goes on working


@pytest.mark.parametrize("into", [True, False])
def test_inputs_with_an_offset(into):
    base = R(3, 4, 5)
    q, k, _ = base.unbind()
    transposed = View("k", TensorSpec(f32, (5, 4), (1, 5)))
    out = Buffer("o", "output" if into else "extern", spec(f32, 4, 4), 0)
    mm = Extern(
        "mm",
        a.mm.default,
        (View("q", spec(f32, 4, 5)), transposed),
        {},
        (View("o", out.spec),),
        a.mm.out if into else None,
    )
    buffers = [Buffer("q", "input", TensorSpec.of(q), 0), Buffer("k", "input", TensorSpec.of(k), 1), out]
    torch.testing.assert_close(
        build(plan_of([mm], buffers, [Result("o", out.spec)], ["q", "k"]))(q, k)[0], q @ k.t()
    )


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_views_of_inputs_with_an_offset_and_results_laid_out_by_the_library(backend):
    def fn(x):
        return (*torch.linalg.svd(x.t()[1:], full_matrices=False), torch.fft.rfft(x[1:].t()).abs(),
                torch.linalg.eigh(x[1:, 1:] @ x[1:, 1:].mT)[0], torch.sort(x[2:, 1:].t(), 0)[0])
    x = R(40)[4:].view(6, 6)
    for got, want in zip(minicompile.compile(fn, backend=backend, fullgraph=True)(x), fn(x)):
        torch.testing.assert_close(got, want)
        assert got.stride() == want.stride()


def test_nothing_is_recorded_for_autograd():
    plan, _ = extern(a.mm.default, (R(4, 5), R(5, 6)), {}, None)
    x = R(4, 5, requires_grad=True)
    assert not build(plan)(x, R(5, 6))[0].requires_grad
    assert torch.is_grad_enabled()


def chain():
    """out = (x @ w)[:, :3] + tanh of it, with the product in the arena and read by a kernel through the
    arena."""
    m = axis("i0", 4 * 3)
    i, j = m.var // 3, m.var % 3
    product = spec(f32, 4, 6)
    mm = Extern(
        "mm",
        a.mm.default,
        (View("x", spec(f32, 4, 5)), View("w", spec(f32, 5, 6))),
        {},
        (View("t", product),),
        a.mm.out,
    )
    v = load("t", 6 * i + j, f32)
    loop = Loop("l", (m,), (), None, apply("add", (v, apply("tanh", (v,), f32)), f32), Store("h", m.var), f32)
    kernel = Kernel("k", (m,), (Stage((), (loop,)),), (), Tiling("i0", 1, 1e6))
    again = Extern(
        "mm2",
        a.mm.default,
        (View("h", TensorSpec(f32, (3, 4), (1, 3))), View("t", TensorSpec(f32, (4, 2), (6, 1), offset=1))),
        {},
        (View("o", spec(f32, 3, 2)),),
        a.mm.out,
    )
    buffers = [
        Buffer("x", "input", spec(f32, 4, 5), 0),
        Buffer("w", "input", spec(f32, 5, 6), 1),
        Buffer("t", "temp", product),
        Buffer("h", "temp", spec(f32, 12)),
        Buffer("o", "output", spec(f32, 3, 2), 0),
    ]
    return plan_of([mm, kernel, again], buffers, [Result("o", spec(f32, 3, 2))], ["x", "w"])


def expected(x, w):
    t = x @ w
    h = t[:, :3] + t[:, :3].tanh()
    return h.t() @ t[:, 1:3]


def test_kernels_and_calls_share_the_arena():
    ex = build(chain())
    for _ in range(3):
        x, w = R(4, 5), R(5, 6)
        torch.testing.assert_close(ex(x, w)[0], expected(x, w))


def test_extern_buffers_are_read_by_kernels_and_freed():
    n = 6
    i = axis("i0", n)
    call = Extern("s", a.sort.default, (View("x", spec(f32, n)),), {}, (View("v", spec(f32, n)), None))
    loop = Loop(
        "l",
        (i,),
        (),
        None,
        apply("mul", (load("v", i.var, f32), load("v", i.var, f32)), f32),
        Store("o", i.var),
        f32,
    )
    kernel = Kernel("k", (i,), (Stage((), (loop,)),), (), Tiling("i0", 0, 1e3))
    buffers = [
        Buffer("x", "input", spec(f32, n), 0),
        Buffer("v", "extern", spec(f32, n)),
        Buffer("o", "output", spec(f32, n), 0),
    ]
    plan = plan_of([call, kernel], buffers, [Result("o", spec(f32, n))], ["x"])
    plan = type(plan)(plan.loops, plan.steps, plan.buffers, plan.arena, plan.arena_bytes, {1: ("v",)})
    x = R(n)
    torch.testing.assert_close(build(plan)(x)[0], x.sort().values ** 2)


def test_constants_writes_and_aliases():
    i = axis("i0", 8)
    table = torch.arange(8.0)
    v = apply("add", (load("x", i.var, f32), load("c", i.var, f32)), f32)
    loop = Loop("l", (i,), (), None, v, Store("x", i.var), f32)
    kernel = Kernel("k", (i,), (Stage((), (loop,)),), (), Tiling("i0", 0, 1e3))
    buffers = [Buffer("x", "input", spec(f32, 8), 0), Buffer("c", "constant", spec(f32, 8), 0)]
    window = TensorSpec(f32, (2, 2), (4, 1), offset=1)
    plan = plan_of(
        [kernel],
        buffers,
        [Result("x", spec(f32, 8), True), Result("x", window, True)],
        ["x"],
        constants=(table,),
    )
    x = torch.ones(8)
    version = x._version
    same, view = build(plan)(x)
    assert x._version == version + 1
    # a view of all of x is a tensor of its own, as in eager mode
    assert same is not x and same.data_ptr() == x.data_ptr() and torch.equal(same, table + 1)
    assert torch.equal(view, x.as_strided((2, 2), (4, 1), 1)) and view._base is x
    view.zero_()
    assert x[1] == 0
