"""Each elementwise prim's Triton text, interpreted, against its reference over edge values of every dtype."""

from __future__ import annotations

import pytest
import torch
from plans import Kernel, Loop, Result, Stage, Store, Tiling, apply, axis, load, plan_of, spec
from test_prims_cpp import Buffer, many, ulps, values

from minicompile.codegen import triton, triton_driver
from minicompile.ir.prims import PRIMS

DTYPES = [torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_elementwise(dtype):
    plan, inputs, expected = many(dtype, 97, True)
    outs = triton_driver.load(triton.emit(plan)).call(*inputs)
    wrong = []
    for (name, want, ts), got in zip(expected, outs, strict=True):
        if dtype.is_floating_point:
            exact = PRIMS[name].ref(*(t.double() if t.dtype.is_floating_point else t for t in ts))
            if name == "digamma":                       # a series; eager's own is no better near its zero
                normal = (ts[0].abs() > 1e-30) & ((want - exact).abs() <= 1e-4 * want.abs() + 1e-4)
                got, want = torch.where(normal | want.isnan(), got, 0), torch.where(normal | want.isnan(), want, 0)
                assert torch.allclose(got, want, 1e-4, 1e-5, equal_nan=True)
                continue
            off = ulps(got, want, exact) if want.dtype.is_floating_point else 1e9 * float(not torch.equal(got, want))
            if off > 2:
                at = [i for i in range(len(got)) if not got.isclose(want, 1e-4, 0, True)[i]][:9]
                wrong.append(f"{name}: {off:.1f} ulp {ts[0][at]} -> {got[at]}, not {want[at]}")
            bits = torch.int32 if want.dtype == torch.float32 else torch.int64
            if want.dtype == dtype and name in ("neg", "abs", "copysign", "trunc", "where", "mul"):
                ok = (got.view(bits) == want.view(bits)) | want.isnan()
                if not bool(ok.all()):
                    wrong.append(f"{name}: sign of zero")
        elif not torch.equal(got, want):
            at = int((got != want).nonzero()[0])
            wrong.append(f"{name}: {[t[at].item() for t in ts]} -> {got[at].item()}, not {want[at].item()}")
    assert not wrong, "\n".join(wrong)


CASTS = [*DTYPES, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("source", CASTS, ids=lambda d: str(d).removeprefix("torch."))
def test_casts(source):
    """Every conversion, of values that the target can hold (what does not fit is undefined in C)."""
    i = axis("i0", 97)
    x = values(torch.float32, 97, 3).to(source) if source.itemsize == 2 else values(source, 97, 3)
    kernels, buffers, results, wants, inputs = [], [], [], [], []
    for target in CASTS:
        given = x
        if x.dtype.is_floating_point and not target.is_floating_point and target is not torch.bool:
            given = x.nan_to_num(0, 0, 0).clamp(0 if not target.is_signed else -100, 100)
        name = f"to_{str(target).removeprefix('torch.')}"
        body = apply("cast", (load(f"x_{name}", i.var, source),), target)
        loop = Loop(name, (i,), (), None, body, Store(f"out_{name}", i.var), target)
        out = Buffer(f"out_{name}", "output", spec(target, 97), len(results))
        buffers += [Buffer(f"x_{name}", "input", spec(source, 97), len(inputs)), out]
        inputs.append(given)
        results.append(Result(out.name, out.spec))
        kernels.append(Kernel(f"k_{name}", (i,), (Stage((), (loop,)),), (), Tiling("i0", 1, 1e6)))
        wants.append(given.to(target))
    plan = plan_of(kernels, buffers, results, [b.name for b in buffers if b.kind == "input"])
    outs = triton_driver.load(triton.emit(plan)).call(*inputs)
    for got, want in zip(outs, wants, strict=True):
        assert torch.equal(got.double().nan_to_num(nan=7.5), want.double().nan_to_num(nan=7.5)), want.dtype
