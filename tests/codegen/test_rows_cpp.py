"""The prim rows that are no scalar arithmetic: reductions, scans, views, creation, gather and scatter. Compiled
code of each against its reference, over edge values of every dtype, along every dimension, and over nothing."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from plans import build

from minicompile.ir.graph import Graph, Node, Output
from minicompile.ir.prims import PRIMS
from minicompile.ir.spec import TensorSpec
from minicompile.loops.build import build_loops
from minicompile.runtime.toolchain import machine_isas
from minicompile.schedule.fuse import schedule

Case = tuple[str, tuple, str]          # row, its arguments, what must be equal: "bits", "value" or "sum"
NUMBERS = (torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
NARROW = (torch.bfloat16, torch.float16)
WIDTH = 37                              # fills no vector
inf, nan = math.inf, math.nan
# for sums and products: what no order of adding makes overflow
MILD = [0.0, -0.0, inf, -inf, nan, 1.0, -1.0, 0.5, 2.0]


def edges(dtype: torch.dtype, mild: bool = False) -> list:
    if dtype is torch.bool:
        return [False, True]
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        return MILD if mild else [*MILD, info.max, info.min, info.tiny, info.tiny / 4, -info.tiny / 4, 1e5]
    info = torch.iinfo(dtype)
    return [info.min, info.max, 0, 1, 2, *([] if info.min == 0 else [-1])]


def table(dtype: torch.dtype, mild: bool = False) -> torch.Tensor:
    """Rows of values at random, each with one or two edge values among them; and rows of one edge value."""
    g, wide = torch.Generator().manual_seed(1), torch.float64 if dtype.is_floating_point else dtype
    found = torch.tensor(edges(dtype, mild) * 2, dtype=wide).to(dtype)
    rows = []
    for i in range(max(len(found) // 2, 3)):
        t = torch.randint(0, 3, (WIDTH,), generator=g).double() - (0.5 if dtype.is_floating_point else 0)
        t = t.to(dtype)
        t[i * 5 % WIDTH], t[(i * 11 + 3) % WIDTH] = found[i], found[(i + 1) % len(found)] if i % 2 else found[i]
        rows += [t, found[i].expand(WIDTH)]
    return torch.stack(rows)


def shapes(t: torch.Tensor) -> list[tuple[torch.Tensor, tuple[int, ...]]]:
    """(tensor, dimensions) to reduce: along rows, columns, both, the middle, one element, and over none."""
    cube = t[:6].reshape(2, 3, WIDTH)
    return [(t, (1,)), (t.repeat(1, 4), (0, 1)), (t.T.contiguous(), (0,)), (cube, (0, 1, 2)), (cube, (1,)), (cube, (0, 2)), (t[:, :1], (1,)),
            (t[:0], (1,)), (t[:, :, None].expand(-1, -1, 5).contiguous(), (1,))]


def reductions(dtype: torch.dtype) -> list[Case]:
    cases: list[Case] = []
    for name, row in PRIMS.items():
        if row.kind not in ("reduce", "scan") or dtype not in row.dtypes:
            continue
        rounds = name.endswith(("sum", "prod"))
        how = "sum" if rounds and dtype.is_floating_point else "value"
        for t, dims in shapes(table(dtype, rounds)):
            if row.kind == "scan":
                cases += [(name, (t, d), how) for d in dims]
            else:
                cases.append((name, (t, dims), how))
        if row.kind == "reduce" and name in ("sum", "prod", "any", "all"):
            cases.append((name, (table(dtype)[:, :0], (1,)), "value"))
    return cases


def views(dtype: torch.dtype) -> list[Case]:
    t = table(dtype)
    cube, value = t[:6].reshape(2, 3, WIDTH), t[3, 0].item()
    return [("permute", (cube, (2, 0, 1)), "bits"), ("permute", (t, (1, 0)), "bits"),
            ("reshape", (cube, (WIDTH, 6)), "bits"), ("expand", (cube[:, :1], (4, 2, 3, WIDTH)), "bits"),
            ("slice", (t, 1, 3, WIDTH, 4), "bits"), ("slice", (t, 0, 2, 2, 1), "bits"), ("flip", (cube, (0, 2)), "bits"),
            ("pad", (cube, (1, 0, 2), (0, 3, 5), value), "bits"), ("pad", (t[:0], (1, 0), (0, 2), value), "bits"),
            ("cat", ((t, t[:1], t[:0], t), 0), "bits"), ("cat", ((cube, cube[..., :5]), 2), "bits"),
            *(("full", ((3, WIDTH), e.item(), dtype), "bits") for e in t[1::2, 0]), ("full", ((0, 3), value, dtype), "bits")]


def counts(dtype: torch.dtype) -> list[Case]:
    whole = not dtype.is_floating_point
    return [] if dtype is torch.bool or dtype in NARROW else [
        ("iota", (WIDTH, 0, 1, dtype), "bits"), ("iota", (9, 5, 3, dtype), "bits"), ("iota", (0, 5, 3, dtype), "bits"),
        *([("iota", (9, 40, -3, dtype), "bits")] if whole else [("iota", (9, 0.5, 0.25, dtype), "bits")])]


def lookups(dtype: torch.dtype) -> list[Case]:
    t, g = table(dtype), torch.Generator().manual_seed(2)
    i, j = (torch.randint(0, n, (11, 7), generator=g) for n in t.shape)
    order = torch.randperm(len(t) * WIDTH, generator=g)[:77].reshape(11, 7)
    once = (order // WIDTH, order % WIDTH)
    src = t.reshape(-1)[torch.randint(0, t.numel(), (11, 7), generator=g)]
    cases = [("gather", (t, (i, j), True), "bits"), ("gather", (t, (i[:0], j[:0]), True), "bits"),
             ("scatter", (t, once, src, "set"), "bits"), ("scatter", (t, (i[:0], j[:0]), src[:0], "set"), "bits"),
             ("scatter", (t[:2], (i * 0, i * 0 + 1), src, "set"), "bits")]
    if dtype in NUMBERS:
        mild = table(dtype, True)
        few = mild.reshape(-1)[torch.randint(0, mild.numel(), (11, 7), generator=g)]
        i = i % len(mild)
        cases += [("scatter", (mild, (i, j), few, m), "sum" if dtype.is_floating_point else "value") for m in ("add", "mul")]
        cases += [("scatter", (t, (i, j), src, m), "value") for m in ("amin", "amax")]
    return cases


def compiled(cases: list[Case], isa: str) -> list[torch.Tensor]:
    """The results of all cases, from one compiled program."""
    inputs: list[Node] = []
    tensors: list[torch.Tensor] = []
    nodes, outputs = [], []

    def given(a: Any) -> Any:
        if isinstance(a, torch.Tensor):
            tensors.append(a.contiguous())
            inputs.append(Node(f"x{len(inputs)}", "input", (len(inputs),), {}, TensorSpec.of(tensors[-1])))
            return inputs[-1]
        return tuple(map(given, a)) if isinstance(a, tuple) else a

    for k, (name, args, _) in enumerate(cases):
        args = given(args)
        dtype, shape = PRIMS[name].meta(*specs(args))
        nodes.append(Node(f"n{k}", PRIMS[name], args, {}, TensorSpec.contiguous(dtype, shape)))
        outputs.append(Output(nodes[-1], nodes[-1].tensor))
    loops = build_loops(Graph(tuple(inputs), tuple(nodes), tuple(outputs)))
    return list(build(schedule(loops), isa)(*tensors))


def specs(a: Any) -> Any:
    return a.spec if isinstance(a, Node) else tuple(map(specs, a)) if isinstance(a, tuple) else a


def same(got: torch.Tensor, want: torch.Tensor, how: str) -> bool:
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return False
    if how == "sum":
        return torch.allclose(got.double(), want.double(), 1e-5 if want.dtype is torch.float32 else 1e-12, 0, equal_nan=True)
    equal = (got == want) | (got != got) & (want != want)
    if how == "bits" and want.dtype.is_floating_point:
        equal &= (got.signbit() == want.signbit()) | want.isnan()
    return bool(equal.all())


def check(cases: list[Case], isa: str) -> None:
    wrong = []
    for (name, args, how), got in zip(cases, compiled(cases, isa), strict=True):
        want = PRIMS[name].ref(*args)
        if not same(got, want, how):
            wrong.append((name, [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in args], got, want))
    assert not wrong, "\n".join(map(str, wrong))


QUICK = (torch.float32, torch.int64, torch.bool)
EVERY = [pytest.param(d, marks=() if d in QUICK else pytest.mark.slow, id=str(d).removeprefix("torch."))
         for d in (*NUMBERS, torch.bool)]


@pytest.mark.parametrize("isa", machine_isas()[:1])
@pytest.mark.parametrize("dtype", EVERY)
def test_reductions_and_scans(dtype: torch.dtype, isa: str) -> None:
    check(reductions(dtype), isa)


@pytest.mark.parametrize("isa", machine_isas()[:1])
@pytest.mark.parametrize("dtype", [*EVERY, *(pytest.param(d, marks=pytest.mark.slow, id=str(d)) for d in NARROW)])
def test_views_creation_and_lookups(dtype: torch.dtype, isa: str) -> None:
    check([*views(dtype), *counts(dtype), *lookups(dtype)], isa)


@pytest.mark.slow
@pytest.mark.parametrize("isa", machine_isas()[1:])
@pytest.mark.parametrize("dtype", (*NUMBERS, torch.bool), ids=lambda d: str(d).removeprefix("torch."))
def test_other_instruction_sets(dtype: torch.dtype, isa: str) -> None:
    check([*reductions(dtype), *views(dtype), *lookups(dtype)], isa)


def test_every_row_is_tested() -> None:
    rows = {name for d in (torch.float32, torch.bool)
            for name, *_ in (*reductions(d), *views(d), *counts(d), *lookups(d))}
    assert rows == {name for name, row in PRIMS.items() if row.kind != "elementwise"}
