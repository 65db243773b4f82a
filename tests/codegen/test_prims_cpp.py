"""Each elementwise prim's C++, as scalar and as vector code, against its reference over edge values of
every dtype."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from plans import Buffer, Kernel, Loop, Result, Stage, Store, Tiling, apply, axis, build, load, plan_of, spec

from minicompile.codegen import cpp
from minicompile.codegen.driver import headers_folder
from minicompile.ir.prims import PRIMS
from minicompile.ir.spec import TensorSpec
from minicompile.runtime import toolchain
from minicompile.runtime.toolchain import machine_isas

ISAS = machine_isas()
EXACT = set(
    "add sub mul div neg abs sign floor ceil trunc round maximum minimum copysign nextafter fmod remainder "
    "eq ne lt le gt ge "
    "and or xor not shl shr isnan isinf signbit where floordiv truncdiv reciprocal".split()
)
# polynomials and Sleef, in float32 and float64 units in the last place
ULPS = 2.0


def edges(dtype: torch.dtype, extra: tuple = ()) -> list[float]:
    """What every operand of this dtype is tried with, and what a row adds."""
    if dtype is torch.bool:
        return [False, True]
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        usual = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, info.tiny,
                 -info.tiny / 4, 88.6, -87.5, -103.5, info.max, 1e-3, 3.0, 7.0, 1e5, 2.0, 0.999, 10.0]
        return [*usual, *(e for e in extra if e not in usual)]
    info = torch.iinfo(dtype)
    return [info.min, info.max, 0, 1, 2, 7, *([] if info.min == 0 else [-1, -3])]


def values(dtype: torch.dtype, n: int, seed: int) -> torch.Tensor:
    """n values, edges among them."""
    g, edge = torch.Generator().manual_seed(seed), edges(dtype)
    if dtype.is_floating_point:
        rest = torch.randn(max(n - len(edge), 0), generator=g, dtype=torch.float64) * 3
        t = torch.cat([torch.tensor(edge, dtype=torch.float64), rest])[:n]
    else:
        low, high = (0, 2) if dtype is torch.bool else (max(torch.iinfo(dtype).min, -40),
                                                        min(torch.iinfo(dtype).max, 40))
        rest = torch.randint(low, high, (max(n - len(edge), 0),), generator=g)
        t = torch.cat([torch.tensor(edge), rest])[:n]
    return t[torch.randperm(n, generator=g)].to(dtype)


def operands(name: str, dtype: torch.dtype, n: int) -> list[torch.Tensor]:
    """All pairs of edge values (triples for `where`), then values at random; of n = 0: nothing."""
    p = PRIMS[name]
    kinds = [torch.bool, dtype, dtype] if name == "where" else [dtype] * p.arity
    grid = list(product(*(edges(k, p.edges) for k in kinds)))
    exact = {k: torch.float64 if k.is_floating_point else k for k in kinds}
    ts = [torch.cat([torch.tensor(e, dtype=exact[k]).to(k), values(k, n, i)])
          for i, (e, k) in enumerate(zip(zip(*grid), kinds))]
    ts = [t[:LONGEST] if n else t[:0] for t in ts]
    ts = [torch.cat([t, t[:1].expand(LONGEST - len(t))]) if n else t for t in ts]
    if name in ("floordiv", "truncdiv", "remainder", "fmod") and not dtype.is_floating_point:
        ts[1][ts[1] == 0] = 3
        ts[1][ts[1] == -1] = 2
    # eager's vector code gives NaN where x / y overflows
    if name in ("remainder", "fmod") and dtype.is_floating_point:
        ts[0][ts[0].abs() > 1e6] = 7.25
        ts[1][ts[1].abs() < 1e-6] = 0.75
    if name in ("shl", "shr"):
        ts[1] = ts[1].remainder(dtype.itemsize * 8 - 1)
    return ts


LONGEST = 24 * 24 * 2 + 203          # all triples of `where`, and a tail that fills no vector


def many(dtype: torch.dtype, n: int, vector: bool):
    """One plan with a kernel per prim that takes `dtype`: (plan, inputs, [(name, expected, operands)])."""
    i = axis("i0", LONGEST if n else 0)
    kernels, buffers, results, inputs, expected = [], [], [], [], []
    for name, p in PRIMS.items():
        if p.kind != "elementwise" or name in ("cast", "bitcast") or (p.dtypes and dtype not in p.dtypes):
            continue
        ts = operands(name, dtype, n)
        want = p.ref(*ts)
        names = [f"{name}_{k}" for k in range(len(ts))]
        buffers += [
            Buffer(x, "input", TensorSpec.of(t), len(inputs) + k) for k, (x, t) in enumerate(zip(names, ts))
        ]
        inputs += ts
        body = apply(name, tuple(load(x, i.var, t.dtype) for x, t in zip(names, ts)), want.dtype)
        loop = Loop(f"l_{name}", (i,), (), None, body, Store(f"out_{name}", i.var), want.dtype)
        out = Buffer(f"out_{name}", "output", spec(want.dtype, len(want)), len(results))
        buffers.append(out)
        results.append(Result(out.name, out.spec))
        kernels.append(
            Kernel(f"k_{name}", (i,), (Stage((), (loop,)),), (), Tiling("i0" if vector else None, 1, 1e6))
        )
        expected.append((name, want, ts))
    order = [b.name for b in buffers if b.kind == "input"]
    return plan_of(kernels, buffers, results, order), inputs, expected


def ulps(got: torch.Tensor, want: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest distance from the exact value, in units in the last place of `want`."""
    same = (got == want) | (got.isnan() & want.isnan())
    if bool(same.all()):
        return 0.0
    unit = torch.nextafter(want.abs(), torch.tensor(math.inf, dtype=want.dtype)) - want.abs()
    off = (got.double() - exact.double()).abs() / unit.double()
    return float(off.where(~same, 0.0).nan_to_num(nan=1e9).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vector", [True, False], ids=["vector", "scalar"])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
    ids=lambda d: str(d).removeprefix("torch."),
)
@pytest.mark.parametrize("n", [203, 0])
def test_elementwise(dtype, vector, isa, n):
    if isa == "scalar" and vector:
        pytest.skip("no vectors")
    plan, inputs, expected = many(dtype, n, vector)
    got = build(plan, isa)(*inputs)
    for result, (name, want, ts) in zip(got, expected, strict=True):
        assert result.dtype is want.dtype
        if name in EXACT or not want.dtype.is_floating_point:
            same = (result == want) | (result != result) & (want != want)
            assert bool(same.all()), (name, [t[~same][:4] for t in (*ts, result, want)])
            # eager does not order ±0 either
            if want.dtype.is_floating_point and name not in ("maximum", "minimum"):
                zero = want == 0
                assert torch.equal(result[zero].signbit(), want[zero].signbit()), name
        elif dtype is torch.float32:
            off = ulps(result, want, PRIMS[name].ref(*(t.double() if t.dtype is dtype else t for t in ts)))
            most = {"rsqrt": 4.0, "lgamma": 4.0, "digamma": 4.0, "erf": 6.0}.get(name, ULPS)
            assert off <= most, (name, off)
        else:
            torch.testing.assert_close(
                result, want, rtol=1e-14, atol=1e-14, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
            )


NUMBERS = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("isa", ISAS)
def test_casts(isa):
    n = 61
    i = axis("i0", n)
    kernels, buffers, results, inputs, wants = [], [], [], [], []
    for source in NUMBERS:
        x = values(torch.float32, n, 5) if source.is_floating_point else values(source, n, 5)
        x = x.to(source)
        for target in NUMBERS:
            if source.is_floating_point and not target.is_floating_point and target is not torch.bool:
                # beyond the range C leaves it undefined
                x = values(torch.float32, n, 6).nan_to_num(0, 1, 1).clamp(0, 100).to(source)
            for vector in (True, False):
                k = len(results)
                body = apply("cast", (load(f"x{k}", i.var, source),), target)
                loop = Loop(f"l{k}", (i,), (), None, body, Store(f"o{k}", i.var), target)
                buffers += [
                    Buffer(f"x{k}", "input", TensorSpec.of(x), k),
                    Buffer(f"o{k}", "output", spec(target, n), k),
                ]
                results.append(Result(f"o{k}", spec(target, n)))
                kernels.append(
                    Kernel(f"k{k}", (i,), (Stage((), (loop,)),), (), Tiling("i0" if vector else None, 1, 1e6))
                )
                inputs.append(x)
                wants.append((source, target, vector, x.to(target)))
    plan = plan_of(kernels, buffers, results, [f"x{k}" for k in range(len(inputs))])
    for got, (source, target, vector, want) in zip(build(plan, isa)(*inputs), wants, strict=True):
        same = (got == want) | (got != got) & (want != want)
        assert bool(same.all()), (source, target, vector, got[~same][:5], want[~same][:5])


@pytest.mark.skipif("avx512" in ISAS, reason="then it is run, which says more")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool], ids=str)
def test_avx512_compiles_where_it_cannot_run(dtype, tmp_path):
    source = cpp.emit(many(dtype, 203, True)[0], "avx512")
    text = tmp_path / "k.cpp"
    text.write_text(source.text)
    toolchain.build(toolchain.find(), [text], tmp_path / "k.so", source.flags, headers_folder())
