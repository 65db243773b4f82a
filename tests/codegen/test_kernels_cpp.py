"""Kernels of every shape the plan can hold, compiled and compared with torch: tails, rows, columns,
strides, gathers, scans, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plans import (
    Axis,
    Buffer,
    Kernel,
    Loop,
    Result,
    Stage,
    Store,
    Tiling,
    apply,
    axis,
    build,
    const,
    f32,
    load,
    plan_of,
    pointwise,
    rows,
    spec,
    temp,
)

from minicompile.codegen import cpp
from minicompile.ir.spec import TensorSpec
from minicompile.ir.sym import Var
from minicompile.loops.ir import checked, index
from minicompile.runtime.toolchain import machine_isas

ISAS = machine_isas()
isas = pytest.mark.parametrize("isa", ISAS)


def ap(name, *args, dtype=f32):
    return apply(name, args, dtype)


def flat_kernels(sizes, make, dtype=f32, parallel=1):
    """One plan with a flat kernel out_n[i] = make(load) per length."""
    kernels, buffers, results = [], [], []
    for k, n in enumerate(sizes):
        i = axis("i0", n)
        loop = Loop(f"l{k}", (i,), (), None, make(load(f"x{k}", i.var, dtype)), Store(f"o{k}", i.var), dtype)
        buffers += [Buffer(f"x{k}", "input", spec(dtype, n), k), Buffer(f"o{k}", "output", spec(dtype, n), k)]
        results.append(Result(f"o{k}", spec(dtype, n)))
        kernels.append(Kernel(f"k{k}", (i,), (Stage((), (loop,)),), (), Tiling("i0", parallel, 1e6)))
    return plan_of(kernels, buffers, results, [f"x{k}" for k in range(len(sizes))])


@isas
@pytest.mark.parametrize("parallel", [0, 1])
def test_tails_of_every_length(isa, parallel):
    sizes = range(41)
    plan = flat_kernels(sizes, lambda x: ap("add", ap("mul", x, x), const(1.0, f32)), parallel=parallel)
    xs = [torch.randn(n) for n in sizes]
    # a write past the end would show in no output
    guarded = [torch.cat([x, torch.full((1,), 7.0)])[: len(x)] for x in xs]
    for got, x in zip(build(plan, isa)(*guarded), xs, strict=True):
        assert torch.equal(got, x * x + 1)


@isas
@pytest.mark.parametrize("c", [1, 5, 8, 128, 131, 197])
def test_softmax_rows(isa, c):
    x = torch.randn(7, c) * 3

    def stages(i, j):
        v = load("in0", c * i.var + j.var, f32)
        e = ap("exp", ap("sub", v, load("m", 0, f32)))
        yield True, [Loop("a", (i,), (j,), "amax", v, Store("m", 0), f32)]
        yield (
            True,
            [
                Loop("b", (i, j), (), None, e, Store("e", j.var), f32),
                Loop("c", (i,), (j,), "sum", e, Store("s", 0), f32),
            ],
        )
        yield (
            True,
            [
                Loop(
                    "d",
                    (i, j),
                    (),
                    None,
                    ap("div", load("e", j.var, f32), load("s", 0, f32)),
                    Store("out0", c * i.var + j.var),
                    f32,
                )
            ],
        )

    locals_ = [temp("m", spec(f32)), temp("e", spec(f32, c)), temp("s", spec(f32))]
    ex = build(rows(7, c, stages, locals_, [x], spec(f32, 7, c)), isa)
    torch.testing.assert_close(ex(x)[0], x.softmax(-1), rtol=1e-6, atol=1e-7)
    x[2, 0] = float("nan")
    x[3, 0] = float("inf")
    torch.testing.assert_close(ex(x)[0], x.softmax(-1), rtol=1e-6, atol=1e-7, equal_nan=True)


@isas
@pytest.mark.parametrize("c", [6, 768])
def test_layer_norm_with_residual(isa, c):
    x, y, w, b = torch.randn(5, c), torch.randn(5, c), torch.randn(c), torch.randn(c)

    def stages(i, j):
        at = c * i.var + j.var
        h = ap("add", load("in0", at, f32), load("in1", at, f32))
        mean, rstd = load("mean", 0, f32), load("rstd", 0, f32)
        d = ap("sub", load("h", j.var, f32), mean)
        yield (
            True,
            [
                Loop("a", (i, j), (), None, h, Store("h", j.var), f32),
                Loop("b", (i,), (j,), "sum", h, Store("s", 0), f32),
            ],
        )
        yield (
            False,
            [Loop("c", (i,), (), None, ap("div", load("s", 0, f32), const(c, f32)), Store("mean", 0), f32)],
        )
        yield True, [Loop("d", (i,), (j,), "sum", ap("mul", d, d), Store("q", 0), f32)]
        var = ap("div", load("q", 0, f32), const(c, f32))
        yield (
            False,
            [Loop("e", (i,), (), None, ap("rsqrt", ap("add", var, const(1e-5, f32))), Store("rstd", 0), f32)],
        )
        out = ap("add", ap("mul", ap("mul", d, rstd), load("in2", j.var, f32)), load("in3", j.var, f32))
        yield True, [Loop("f", (i, j), (), None, out, Store("out0", at), f32)]

    locals_ = [temp("h", spec(f32, c)), *(temp(n, spec(f32)) for n in ("s", "mean", "q", "rstd"))]
    plan = rows(5, c, stages, locals_, [x, y, w, b], spec(f32, 5, c))
    torch.testing.assert_close(
        build(plan, isa)(x, y, w, b)[0],
        torch.nn.functional.layer_norm(x + y, (c,), w, b),
        rtol=1e-5,
        atol=1e-5,
    )


REDUCTIONS = [
    ("sum", f32),
    ("sum", torch.int64),
    ("prod", torch.float64),
    ("amax", f32),
    ("amin", f32),
    ("amax", torch.int32),
    ("amin", torch.uint8),
    ("any", torch.bool),
    ("all", torch.bool),
    ("argmax", f32),
    ("argmin", f32),
    ("argmax", torch.int64),
    ("amax", torch.float64),
    ("argmax", torch.float64),
]


def sample(dtype, *shape):
    if dtype is torch.bool:
        return torch.rand(shape) < 0.7
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype).round(decimals=1)
    return torch.randint(0, 9, shape, dtype=dtype)


def eager(name, x, dim):
    return (
        x.sum(dim, dtype=x.dtype)
        if name == "sum"
        else x.prod(dim, dtype=x.dtype)
        if name == "prod"
        else getattr(x, name)(dim)
    )


@isas
@pytest.mark.parametrize("column", [False, True], ids=["rows", "columns"])
def test_reductions(isa, column):
    r, sizes = 9, (1, 3, 17, 64, 100)
    kernels, buffers, results, inputs, wants = [], [], [], [], []
    for name, dtype in REDUCTIONS:
        for c in sizes:
            k = len(kernels)
            i, j = axis("i0", r), axis("j0", c)
            x = sample(dtype, *((c, r) if column else (r, c)))
            if dtype.is_floating_point and c == 17:
                x[3, 5] = float("nan")
            at = r * j.var + i.var if column else c * i.var + j.var
            out = torch.int64 if name.startswith("arg") else dtype
            loop = Loop(f"l{k}", (i,), (j,), name, load(f"x{k}", at, dtype), Store(f"o{k}", i.var), out)
            buffers += [
                Buffer(f"x{k}", "input", TensorSpec.of(x), k),
                Buffer(f"o{k}", "output", spec(out, r), k),
            ]
            results.append(Result(f"o{k}", spec(out, r)))
            kernels.append(
                Kernel(
                    f"k{k}", (i,), (Stage((j,), (loop,)),), (), Tiling("i0" if column else "inner", 1, 1e6)
                )
            )
            inputs.append(x)
            wants.append((name, dtype, c, eager(name, x, 0 if column else 1)))
    plan = plan_of(kernels, buffers, results, [f"x{k}" for k in range(len(inputs))])
    for got, (name, dtype, c, want) in zip(build(plan, isa)(*inputs), wants, strict=True):
        torch.testing.assert_close(
            got, want, rtol=1e-5, atol=1e-5, equal_nan=True, msg=lambda m, w=(name, dtype, c): f"{w}: {m}"
        )


@isas
@pytest.mark.parametrize("column", [False, True], ids=["rows", "columns"])
def test_long_sums_stay_exact(isa, column):
    n = 200_003
    torch.manual_seed(0)
    x = torch.rand(n, 3) if column else torch.rand(3, n)
    i, j = axis("i0", 3), axis("j0", n)
    at = 3 * j.var + i.var if column else n * i.var + j.var
    loop = Loop("l", (i,), (j,), "sum", load("x", at, f32), Store("o", i.var), f32)
    kernel = Kernel("k", (i,), (Stage((j,), (loop,)),), (), Tiling("i0" if column else "inner", 0, 1e6))
    plan = plan_of(
        [kernel],
        [Buffer("x", "input", TensorSpec.of(x), 0), Buffer("o", "output", spec(f32, 3), 0)],
        [Result("o", spec(f32, 3))],
        ["x"],
    )
    want = x.double().sum(0 if column else 1)
    assert ((build(plan, isa)(x)[0] - want).abs() / want).max() < 1e-6


@isas
@pytest.mark.parametrize("n", [31, 32, 45, 100])
@pytest.mark.parametrize("parallel", [0, 1, 2])
def test_wide_column_reductions(isa, n, parallel):
    x, w = torch.randn(3, 300, n), torch.randn(n)
    b, i, j = axis("i0", 3), axis("i1", n), axis("j0", 300)
    v = load("x", 300 * n * b.var + n * j.var + i.var, f32)
    loops = (
        Loop(
            "l", (b, i), (j,), "sum", ap("mul", v, load("w", i.var, f32)), Store("o", n * b.var + i.var), f32
        ),
        Loop("m", (b, i), (j,), "amax", v, Store("p", n * b.var + i.var), f32),
    )
    kernel = Kernel("k", (b, i), (Stage((j,), loops),), (), Tiling("i1", parallel, 1e6))
    out = spec(f32, 3, n)
    plan = plan_of(
        [kernel],
        [
            Buffer("x", "input", TensorSpec.of(x), 0),
            Buffer("w", "input", spec(f32, n), 1),
            Buffer("o", "output", out, 0),
            Buffer("p", "output", out, 1),
        ],
        [Result("o", out), Result("p", out)],
        ["x", "w"],
    )
    o, p = build(plan, isa)(x, w)
    torch.testing.assert_close(o, (x * w).sum(1), rtol=1e-5, atol=1e-4)
    assert torch.equal(p, x.amax(1))


@isas
@pytest.mark.parametrize("vector", ["inner", "i0", None])
def test_scan(isa, vector):
    x = torch.randn(6, 11)
    i, j = axis("i0", 6), axis("j0", 11)
    at = 11 * i.var + j.var
    loop = Loop("l", (i,), (j,), "scan_sum", load("x", at, f32), Store("o", at), f32)
    kernel = Kernel("k", (i,), (Stage((j,), (loop,)),), (), Tiling(vector, 1, 1e6))
    plan = plan_of(
        [kernel],
        [Buffer("x", "input", spec(f32, 6, 11), 0), Buffer("o", "output", spec(f32, 6, 11), 0)],
        [Result("o", spec(f32, 6, 11))],
        ["x"],
    )
    torch.testing.assert_close(build(plan, isa)(x)[0], x.cumsum(1))


@isas
def test_column_softmax_has_a_row_of_scratch_per_lane(isa):
    r, c = 13, 11  # over dim 0 of x[c, r]: lanes run along r
    x = torch.randn(c, r)

    def stages(i, j):
        v = load("in0", r * j.var + i.var, f32)
        e = ap("exp", ap("sub", v, load("m", 0, f32)))
        yield True, [Loop("a", (i,), (j,), "amax", v, Store("m", 0), f32)]
        yield (
            True,
            [
                Loop("b", (i, j), (), None, e, Store("e", j.var), f32),
                Loop("c", (i,), (j,), "sum", e, Store("s", 0), f32),
            ],
        )
        yield (
            True,
            [
                Loop(
                    "d",
                    (i, j),
                    (),
                    None,
                    ap("div", load("e", j.var, f32), load("s", 0, f32)),
                    Store("out0", r * j.var + i.var),
                    f32,
                )
            ],
        )

    locals_ = [temp("m", spec(f32)), temp("e", spec(f32, c)), temp("s", spec(f32))]
    plan = rows(r, c, stages, locals_, [x], spec(f32, c, r), vector="i0")
    torch.testing.assert_close(build(plan, isa)(x)[0], x.softmax(0))


@isas
def test_strided_and_broadcast_reads(isa):
    n, m = 9, 21
    x, row, col = torch.randn(m, n), torch.randn(m), torch.randn(n)
    i, j = axis("i0", n), axis("i1", m)
    body = ap(
        "add", ap("mul", load("x", n * j.var + i.var, f32), load("row", j.var, f32)), load("col", i.var, f32)
    )
    loop = Loop("l", (i, j), (), None, body, Store("o", m * i.var + j.var), f32)
    buffers = [
        Buffer("x", "input", spec(f32, m, n), 0),
        Buffer("row", "input", spec(f32, m), 1),
        Buffer("col", "input", spec(f32, n), 2),
        Buffer("o", "output", spec(f32, n, m), 0),
    ]
    for parallel in (0, 1, 2):
        kernel = Kernel("k", (i, j), (Stage((), (loop,)),), (), Tiling("i1", parallel, 1e6))
        (got,) = build(plan_of([kernel], buffers, [Result("o", spec(f32, n, m))], ["x", "row", "col"]), isa)(
            x, row, col
        )
        assert torch.equal(got, x.t() * row + col[:, None])


@isas
@pytest.mark.parametrize("vector", [True, False])
def test_gather_checks_its_index_and_masked_load(isa, vector):
    n = 37
    table = torch.randn(10)
    idx = torch.randint(0, 10, (n,))
    i, t = axis("i0", n), Var("t0", 0, 9)
    v = checked(load("idx", i.var, torch.int64), 0, 10, 0)
    inside = apply("lt", (index(i.var), const(30, torch.int64)), torch.bool)
    body = ap("add", load("table", t, f32, ((t, v),)), load("x", i.var, f32, (), inside))
    loop = Loop("l", (i,), (), None, body, Store("o", i.var), f32)
    buffers = [
        Buffer("idx", "input", spec(torch.int64, n), 0),
        Buffer("table", "input", spec(f32, 10), 1),
        Buffer("x", "input", spec(f32, 30), 2),
        Buffer("o", "output", spec(f32, n), 0),
    ]
    kernel = Kernel("k", (i,), (Stage((), (loop,)),), (), Tiling("i0" if vector else None, 1, 1e6))
    plan = plan_of(
        [kernel],
        buffers,
        [Result("o", spec(f32, n))],
        ["idx", "table", "x"],
        errors=(("IndexError", "index {index} is out of range"),),
    )
    ex = build(plan, isa)
    x = torch.randn(30)
    assert torch.equal(ex(idx, table, x)[0], table[idx] + torch.cat([x, torch.zeros(7)]))
    idx[36] = 12
    with pytest.raises(IndexError, match="index 12 is out of range"):
        ex(idx, table, x)
    idx[36] = 1
    ex(idx, table, x)


@isas
@pytest.mark.parametrize("mode", ["set", "add", "amax"])
def test_scatter_in_order(isa, mode):
    n = 20
    idx, src = torch.randint(0, 5, (n,)), torch.randn(n)
    i, t = axis("i0", n), Var("t0", 0, 4)
    first = Loop("z", (j := axis("i0", 5),), (), None, const(0.0, f32), Store("o", j.var), f32)
    loop = Loop(
        "l",
        (i,),
        (),
        None,
        load("src", i.var, f32),
        Store("o", t, mode, ((t, load("idx", i.var, torch.int64)),)),
        f32,
    )
    kernels = [
        Kernel("k0", (j,), (Stage((), (first,)),), (), Tiling("i0", 0, 1.0)),
        Kernel("k1", (i,), (Stage((), (loop,)),), (), Tiling(None, 0, 1.0)),
    ]
    buffers = [
        Buffer("idx", "input", spec(torch.int64, n), 0),
        Buffer("src", "input", spec(f32, n), 1),
        Buffer("o", "output", spec(f32, 5), 0),
    ]
    want = torch.zeros(5)
    for at, s in zip(idx, src):
        want[at] = s if mode == "set" else want[at] + s if mode == "add" else torch.maximum(want[at], s)
    assert torch.equal(
        build(plan_of(kernels, buffers, [Result("o", spec(f32, 5))], ["idx", "src"]), isa)(idx, src)[0], want
    )


def test_equal_kernels_become_one_function():
    plan = flat_kernels([64, 64, 64], lambda x: ap("tanh", x))
    source = cpp.emit(plan)
    assert len(source.kernels) == 1 and len({c.buffers for c in source.calls}) == 3


def test_units_of_a_library_share_what_is_bound(monkeypatch):
    """Kernels in two units that call math functions of another library, and a team of all of them."""
    monkeypatch.setattr(cpp, "SMALL", 0)
    makers = iter([lambda x: ap("tanh", x), lambda x: ap("exp", ap("exp", x)), lambda x: ap("sin", ap("exp", x))])
    sizes = [5000, 5001, 5002]
    plan = replace(flat_kernels(sizes, lambda x: next(makers)(x)), teams=(range(3),))
    source = cpp.emit(plan)
    units = cpp.units(source.text)
    assert len(units) == 2
    for name in (*source.kernels, "team_0"):
        assert sum(f" {name}(char* const* b, Env* env) {{" in unit for unit in units) == 1
    assert ["mc_bind(" in unit for unit in units] == [True, False]
    inputs = [torch.randn(n) for n in sizes]
    wants = [torch.tanh(inputs[0]), torch.exp(torch.exp(inputs[1])), torch.sin(torch.exp(inputs[2]))]
    for got, want in zip(build(plan)(*inputs), wants, strict=True):
        assert torch.allclose(got, want, 1e-5, 1e-6)


def test_bfloat16_goes_through_float32():
    bf = torch.bfloat16
    x = torch.randn(100).to(bf)

    def make(v):
        return ap("cast", ap("exp", ap("cast", v)), dtype=bf)

    (got,) = build(pointwise(make, [x], bf))(x)
    assert torch.equal(got, x.float().exp().to(bf))


def test_zero_size_and_no_axes():
    plan = flat_kernels([0], lambda x: ap("neg", x))
    assert build(plan)(torch.empty(0))[0].shape == (0,)
    r = Loop("l", (), (Axis(Var("j0", 0, 0), 0),), "sum", load("x", Var("j0", 0, 0), f32), Store("o", 0), f32)
    kernel = Kernel("k", (), (Stage((Axis(Var("j0", 0, 0), 0),), (r,)),), (), Tiling("inner", 0, 1.0))
    plan = plan_of(
        [kernel],
        [Buffer("x", "input", spec(f32, 0), 0), Buffer("o", "output", spec(f32), 0)],
        [Result("o", spec(f32))],
        ["x"],
    )
    assert build(plan)(torch.empty(0))[0].item() == 0.0
