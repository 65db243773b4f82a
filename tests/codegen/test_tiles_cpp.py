"""Reads along one axis, writes along another: tiles turned in registers give what plain lanes give, for every tail
of both axes, every element type, with and without threads."""

from __future__ import annotations

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
    f32,
    load,
    plan_of,
    spec,
)

from minicompile.codegen.cpp import emit
from minicompile.runtime.toolchain import machine_isas

isas = pytest.mark.parametrize("isa", machine_isas())
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool)


def turned(sizes, dtype=f32, parallel=0, batch=1):
    """One plan; kernel n: out_n[b, i, j] = x_n[b, j, i] for an output of (batch, *sizes[n])."""
    kernels, buffers, results = [], [], []
    for k, (rows, columns) in enumerate(sizes):
        b, i, j = axis("i0", batch), axis("i1", rows), axis("i2", columns)
        each = b.var * (rows * columns)
        par: tuple[Axis, ...] = (b, i, j) if batch > 1 else (i, j)
        each = each if batch > 1 else 0
        body = load(f"x{k}", each + i.var + rows * j.var, dtype)
        loop = Loop(f"l{k}", par, (), None, body, Store(f"o{k}", each + columns * i.var + j.var), dtype)
        for kind, name in (("input", "x"), ("output", "o")):
            buffers.append(Buffer(f"{name}{k}", kind, spec(dtype, batch * rows * columns), k))
        results.append(Result(f"o{k}", spec(dtype, batch * rows * columns)))
        kernels.append(Kernel(f"k{k}", par, (Stage((), (loop,)),), (), Tiling("i2", parallel, 1e6, ("i1", "i2"))))
    return plan_of(kernels, buffers, results, [f"x{k}" for k in range(len(sizes))])


def inputs(sizes, dtype, batch):
    return [(torch.randn(batch, columns, rows) * 20).to(dtype) for rows, columns in sizes]


def agree(sizes, dtype, parallel, batch, isa):
    plan = turned(sizes, dtype, parallel, batch)
    xs = inputs(sizes, dtype, batch)
    assert isa == "scalar" or "load_columns" in emit(plan, isa).text
    for x, got in zip(xs, build(plan, isa)(*(x.flatten() for x in xs))):
        assert torch.equal(got, x.mT.contiguous().flatten()), x.shape


@isas
@pytest.mark.parametrize("batch, parallel", [(1, 0), (1, 1), (3, 1), (3, 2)])
def test_tails_of_both_axes(isa, batch, parallel):
    sizes = [(rows, columns) for rows in (2, 7, 8, 17, 65, 130) for columns in (8, 9, 16, 35)]
    agree(sizes, f32, parallel, batch, isa)


@isas
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_element_types(isa, dtype):
    agree([(40, 33), (33, 40), (64, 64)], dtype, 1, 2, isa)


@isas
def test_a_turned_and_a_plain_read_meet(isa):
    i, j = axis("i0", 37), axis("i1", 50)
    body = apply("add", (load("x", i.var + 37 * j.var, f32), load("y", 50 * i.var + j.var, f32)), f32)
    loop = Loop("l", (i, j), (), None, body, Store("o", 50 * i.var + j.var), f32)
    kernel = Kernel("k", (i, j), (Stage((), (loop,)),), (), Tiling("i1", 1, 1e6, ("i0", "i1")))
    plan = plan_of([kernel], [Buffer("x", "input", spec(f32, 1850), 0), Buffer("y", "input", spec(f32, 1850), 1),
                              Buffer("o", "output", spec(f32, 1850), 0)], [Result("o", spec(f32, 1850))], ["x", "y"])
    x, y = torch.randn(50, 37), torch.randn(37, 50)
    (got,) = build(plan, isa)(x.flatten(), y.flatten())
    assert torch.equal(got.view(37, 50), x.t() + y)
