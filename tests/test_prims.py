"""The prim table: every row's meta rule agrees with its reference, on every dtype it is for."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from minicompile.ir.prims import PRIMS, Prim, prims
from minicompile.ir.spec import TensorSpec

F32, I64, BOOL = torch.float32, torch.int64, torch.bool
EVERY = (
    torch.float32,
    torch.float64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)


def tensor(dtype: torch.dtype, shape: tuple[int, ...] = (2, 3)) -> torch.Tensor:
    n = math.prod(shape)
    if dtype is BOOL:
        return (torch.arange(n) % 2 == 0).reshape(shape)
    return (torch.arange(n) % 5 + 1).to(dtype).reshape(shape)


def spec(a: Any) -> Any:
    if isinstance(a, torch.Tensor):
        return TensorSpec.of(a)
    return tuple(map(spec, a)) if isinstance(a, tuple) else a


def agree(row: Prim, *args: Any) -> None:
    out = row.ref(*args)
    assert row.meta(*map(spec, args)) == (out.dtype, tuple(out.shape)), row


def test_at_most_a_hundred_documented_rows() -> None:
    assert len(PRIMS) <= 100
    for name, row in PRIMS.items():
        assert row.name == name and row.doc
        assert hasattr(prims, row.text_name)
        if row.kind == "elementwise":
            assert row.cpp and row.triton
            assert all(f"{{{i}}}" in row.cpp for i in range(row.arity))


@pytest.mark.parametrize(
    "name", [n for n, r in PRIMS.items() if r.kind == "elementwise" and n not in ("where", "cast", "bitcast")]
)
def test_elementwise(name: str) -> None:
    row = PRIMS[name]
    for dtype in row.dtypes:
        agree(row, *[tensor(dtype)] * row.arity)
        if row.arity == 2 and dtype is not BOOL:
            agree(row, tensor(dtype), 2)
            agree(row, 2, tensor(dtype))
    for dtype in set(EVERY) - set(row.dtypes):
        with pytest.raises(ValueError):
            row.meta(*[spec(tensor(dtype))] * row.arity)
    if row.arity == 2:
        with pytest.raises(ValueError):
            row.meta(spec(tensor(row.dtypes[0])), spec(tensor(row.dtypes[0], (3,))))
    if row.dtypes[0] is F32:
        values = torch.tensor(
            [*row.edges, math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-42], dtype=torch.float64
        )
        row.ref(*[values] * row.arity)


def test_where_cast_bitcast() -> None:
    condition = tensor(BOOL)
    for dtype in EVERY:
        agree(PRIMS["where"], condition, tensor(dtype), tensor(dtype))
        for target in EVERY:
            agree(PRIMS["cast"], tensor(dtype), target)
    agree(PRIMS["where"], condition, 2.0, tensor(F32))
    agree(PRIMS["bitcast"], tensor(F32), torch.int32)
    with pytest.raises(ValueError):
        PRIMS["bitcast"].meta(spec(tensor(F32)), I64)
    with pytest.raises(ValueError):
        PRIMS["where"].meta(spec(tensor(F32)), spec(tensor(F32)), spec(tensor(F32)))


VIEWS = [
    ("expand", (3,), ((2, 3),)),
    ("expand", (2, 1), ((4, 2, 5),)),
    ("permute", (2, 3, 4), ((2, 0, 1),)),
    ("reshape", (2, 6), ((3, 4),)),
    ("slice", (5, 2), (0, 1, 5, 2)),
    ("slice", (5, 2), (1, 0, 0, 1)),
    ("flip", (2, 3), ((0, 1),)),
    ("pad", (2, 3), ((1, 0), (0, 2), 7)),
    ("reshape", (0, 3), ((3, 0),)),
    ("reshape", (), ((1, 1),)),
]


@pytest.mark.parametrize(("name", "shape", "args"), VIEWS)
def test_views(name: str, shape: tuple, args: tuple) -> None:
    for dtype in (F32, I64):
        agree(PRIMS[name], tensor(dtype, shape), *args)


def test_bad_views_are_noticed() -> None:
    x = spec(tensor(F32, (2, 3)))
    for name, args in [
        ("expand", ((2, 4),)),
        ("permute", ((0, 0),)),
        ("reshape", ((5,),)),
        ("slice", (0, 1, 3, 1)),
        ("slice", (0, 0, 2, 0)),
        ("flip", ((2,),)),
        ("pad", ((-1, 0), (0, 0), 0)),
    ]:
        with pytest.raises(ValueError):
            PRIMS[name].meta(x, *args)


def test_cat_and_creation() -> None:
    agree(PRIMS["cat"], (tensor(F32, (2, 3)), tensor(F32, (2, 1))), 1)
    agree(PRIMS["full"], (2, 3), 1.5, F32)
    agree(PRIMS["iota"], 4, 3, -2, I64)
    assert PRIMS["iota"].ref(4, 3, -2, I64).tolist() == [3, 1, -1, -3]


@pytest.mark.parametrize("name", [n for n, r in PRIMS.items() if r.kind in ("reduce", "scan")])
def test_reductions_and_scans(name: str) -> None:
    row = PRIMS[name]
    for dtype in row.dtypes:
        for dims in (0, 1) if row.kind == "scan" else ((0,), (1,), (0, 1), ()):
            if dims != () or name.startswith(("sum", "prod", "any", "all")):
                agree(row, tensor(dtype), dims)


def test_reductions_of_nothing() -> None:
    empty = torch.empty(0, 3)
    assert PRIMS["sum"].ref(empty, (0,)).tolist() == [0, 0, 0]
    with pytest.raises(ValueError):
        PRIMS["amax"].meta(spec(empty), (0,))
    assert (
        PRIMS["argmax"].ref(torch.tensor([[1.0, math.nan], [3.0, math.nan]]), (0, 1)) == 1
    )  # the first NaN wins


def test_gather_and_scatter() -> None:
    x, i, j = tensor(F32, (3, 4)), torch.tensor([2, 0]), torch.tensor([1, 3])
    agree(PRIMS["gather"], x, (i, j))
    assert torch.equal(PRIMS["gather"].ref(x, (i, j)), x[i, j])
    with pytest.raises(IndexError, match="index 3 is bad"):
        PRIMS["gather"].ref(x, (torch.tensor([3, 0]), j), True, ("IndexError", "index {index} is bad"))
    for mode in ("set", "add", "mul", "amin", "amax"):
        agree(PRIMS["scatter"], x, (i, j), torch.tensor([10.0, 20.0]), mode)
    twice = (torch.tensor([0, 0]), torch.tensor([0, 0]))
    assert PRIMS["scatter"].ref(x, twice, torch.tensor([10.0, 20.0]), "set")[0, 0] == 20
    assert PRIMS["scatter"].ref(x, twice, torch.tensor([10.0, 20.0]), "add")[0, 0] == 31
    with pytest.raises(ValueError):
        PRIMS["gather"].meta(spec(x), (spec(i),))
