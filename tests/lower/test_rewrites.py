"""Rewrites keep every bit: the builder's graph against the prims' references applied one by one; and each
one happens."""
from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minicompile.ir.graph import Graph, Node, Output
from minicompile.ir.prims import PRIMS
from minicompile.ir.spec import TensorSpec
from minicompile.lower import rewrite
from minicompile.lower.builder import Builder
from minicompile.lower.decompose import alive
from minicompile.lower.graphs import Prims

EDGES = [0.0, -0.0, 1.0, -1.0, 2.5, math.inf, -math.inf, math.nan]


def edge_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    n = math.prod(shape)
    if dtype.is_floating_point:
        return torch.tensor([EDGES[i % len(EDGES)] for i in range(n)], dtype=dtype).reshape(shape)
    return (torch.arange(n) % 7 - 3).to(dtype).reshape(shape)


class Pair:
    """Applies prims twice: through a builder with rewrites, and by reference without."""

    def __init__(self, x: torch.Tensor):
        self.b = Builder()
        self.input = Node("x", "input", (0,), {}, TensorSpec.of(x))
        self.x = x
        self.node, self.value = self.input, x

    def apply(self, name: str, *rest: Any, first: Any = None) -> None:
        row = PRIMS[name]
        args = (self.node, *rest) if first is None else (first, self.node)
        values = (self.value, *rest) if first is None else (first, self.value)
        self.value = row.ref(*values)
        self.node = self.b.emit(row, args)

    def check(self) -> list[Node]:
        nodes = alive(self.b.nodes, [self.node])
        out = self.b.laid_out(
            self.node, TensorSpec.contiguous(self.node.tensor.dtype, self.node.tensor.shape)
        )
        nodes = alive(self.b.nodes, [out])
        prims = Prims(Graph((self.input,), tuple(nodes), (Output(out, out.tensor),)))
        prims.check()
        got, want = prims.run(self.x)[0], self.value.contiguous()
        assert got.dtype == want.dtype and got.shape == want.shape
        bits = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[want.dtype.itemsize]
        nan = torch.isnan(want) if want.dtype.is_floating_point else torch.zeros_like(want, dtype=torch.bool)
        assert torch.equal(got.view(bits)[~nan], want.view(bits)[~nan])
        assert not nan.any() or torch.isnan(got[nan]).all()
        return nodes


# (what is applied, how many nodes are left): each line shows one rewrite happening
HAPPENS = [
    ([("mul", 1.0)], 0),
    ([("div", 1.0)], 0),
    ([("sub", 0.0)], 0),
    ([("add", -0.0)], 0),
    ([("pow", 1.0)], 0),
    ([("neg",), ("neg",)], 0),
    ([("abs",), ("abs",)], 1),
    ([("floor",), ("floor",)], 1),
    ([("cast", torch.float32)], 0),
    ([("cast", torch.float64), ("cast", torch.float32)], 0),
    ([("permute", (1, 0)), ("permute", (1, 0))], 0),
    ([("permute", (0, 1))], 0),
    ([("reshape", (12,)), ("reshape", (4, 3))], 0),
    ([("reshape", (2, 6)), ("reshape", (6, 2))], 1),
    ([("expand", (2, 4, 3)), ("expand", (5, 2, 4, 3))], 1),
    ([("slice", 0, 0, 4, 1)], 0),
    ([("slice", 0, 1, 4, 1), ("slice", 0, 0, 3, 2)], 1),
    ([("flip", (0,)), ("flip", (0,))], 0),
    ([("flip", (0,)), ("flip", (1,))], 1),
    ([("pad", (0, 0), (0, 0), 0.0)], 0),
    ([("reshape", (4, 1, 3)), ("permute", (1, 0, 2))], 1),
    ([("neg",), ("abs",)], 1),
    ([("ceil",), ("round",)], 1),
]
# what must stay, as dropping it would change bits
STAYS = [
    ([("add", 0.0)], 1),
    ([("sub", -0.0)], 1),
    ([("mul", 0.0)], 1),
    ([("mul", -1.0)], 1),
    ([("cast", torch.bfloat16), ("cast", torch.float32)], 2),
    ([("cast", torch.int32), ("cast", torch.float32)], 2),
    ([("abs",), ("neg",)], 2),
    ([("div", 3.0)], 1),
    ([("pow", 2.0)], 1),
]


@pytest.mark.parametrize(("steps", "left"), HAPPENS + STAYS)
def test_each_rewrite(steps: list, left: int) -> None:
    pair = Pair(edge_tensor((4, 3), torch.float32))
    if any(s == ("cast", torch.int32) for s in steps):
        pair = Pair(torch.tensor([1.5, -2.5, 0.0, 7.9]))
    for name, *rest in steps:
        pair.apply(name, *rest)
    assert len(pair.check()) == left


DTYPES = {"f": (torch.float32, torch.float64), "i": (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
          "b": (torch.bool,)}
TABLE = [pytest.param(before, after, d, id=f"{before} {d}".replace("torch.", ""))
         for kinds, before, after in rewrite.parsed() for kind in kinds for d in DTYPES[kind]]


def letters(p: Any) -> set[str]:
    return {p} if isinstance(p, str) else set().union(*map(letters, p[1:])) if isinstance(p, tuple) else set()


def grid(names: list[str], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All combinations of edge values for these letters (`c` is a condition)."""
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        edges = [*EDGES, 0.5, -1.5, info.max, info.min, info.tiny, -info.tiny / 4]
    else:
        edges = [False, True] if dtype is torch.bool else [torch.iinfo(dtype).min, torch.iinfo(dtype).max, 0, 1, 2, 5]
    kinds = [torch.bool if n == "c" else dtype for n in names]
    every = list(product(*([False, True] if n == "c" else edges for n in names)))
    return {n: torch.tensor([e[i] for e in every], dtype=k) for i, (n, k) in enumerate(zip(names, kinds))}


def value(p: Any, given: dict[str, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """A pattern, computed by the rows' references."""
    if isinstance(p, str):
        return given[p]
    if not isinstance(p, tuple):
        return torch.full_like(like, p)
    conditions = (torch.zeros(len(like), dtype=torch.bool),) if p[0].name == "where" else ()
    return p[0].ref(*(value(q, given, t) for q, t in zip(p[1:], (*conditions, like, like))))


@pytest.mark.parametrize(("before", "after", "dtype"), TABLE)
def test_each_identity(before: Any, after: Any, dtype: torch.dtype) -> None:
    """Both sides have the same bits for all edge values, and the builder makes the second of the first."""
    names = sorted(letters(before))
    given = grid(names, dtype)
    like = torch.zeros(len(next(iter(given.values()))), dtype=dtype)
    want, got = value(before, given, like), value(after, given, like)
    same = (got == want) | (got != got) & (want != want)
    assert got.dtype is want.dtype and bool(same.all())
    assert not dtype.is_floating_point or torch.equal((1 / want.double())[want == 0], (1 / got.double())[want == 0])
    b = Builder()
    nodes = {n: Node(n, "input", (i,), {}, TensorSpec.of(given[n])) for i, n in enumerate(names)}

    def made(p: Any, like: torch.dtype = dtype) -> Any:
        if isinstance(p, str):
            return nodes[p]
        if not isinstance(p, tuple):
            return b.full((len(same),), bool(p) if like is torch.bool else float(p) if like.is_floating_point else p,
                          like)
        conditions = (torch.bool,) if p[0].name == "where" else ()
        return b.emit(p[0], tuple(made(q, k) for q, k in zip(p[1:], (*conditions, dtype, dtype))))
    assert made(before) is made(after)


def test_constants_fold_and_are_shared() -> None:
    b = Builder()
    two, three = b.full((3,), 2.0, torch.float32), b.full((3,), 3.0, torch.float32)
    six = b.mul(two, three)
    assert six.op is PRIMS["full"] and six.args[1] == 6.0
    assert b.expand(six, (4, 3)).args[0] == (4, 3)
    x = Node("x", "input", (0,), {}, TensorSpec.contiguous(torch.float32, (3,)))
    assert b.add(x, six) is b.add(x, 6.0)
    assert b.add(x, 0.0) is not b.add(x, -0.0) and b.where(b.full((3,), True, torch.bool), x, six) is x
    assert b.mul(x, b.exp(x)) is b.mul(x, b.exp(x))


def shaped_view(pair: Pair, kind: str, seed: int) -> None:
    shape = tuple(pair.value.shape)
    n = len(shape)
    if kind == "permute":
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
        pair.apply("permute", tuple(order))
    elif kind == "reshape":
        flat = math.prod(shape)
        pair.apply("reshape", [(flat,), (1, flat), (flat, 1), shape[::-1], (*shape, 1)][seed % 5])
    elif kind == "expand" and n < 5:
        pair.apply("expand", (2, *shape))
    elif kind == "slice" and n and shape[seed % n] > 1:
        d = seed % n
        pair.apply("slice", d, seed % shape[d], shape[d], 1 + seed % 2)
    elif kind == "flip" and n:
        pair.apply("flip", tuple(sorted({seed % n, (seed // 3) % n})))
    elif kind == "pad" and n:
        pair.apply("pad", (seed % 2,) * n, (seed % 3,) * n, 1.5)


POINTWISE = [
    ("neg",),
    ("abs",),
    ("mul", 1.0),
    ("mul", 2.0),
    ("add", 0.0),
    ("add", -0.0),
    ("sub", 0.0),
    ("div", 1.0),
    ("div", -8.0),
    ("div", 2.0 ** -60),
    ("div", 3.0),
    ("maximum", 0.0),
    ("cast", torch.float64),
    ("cast", torch.float32),
    ("floor",),
    ("pow", 1.0),
    ("cast", torch.bfloat16),
]
view_steps = st.tuples(
    st.sampled_from(["permute", "reshape", "expand", "slice", "flip", "pad"]), st.integers(0, 30)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(view_steps, st.sampled_from(POINTWISE)), max_size=8),
       st.sampled_from([(2, 3), (4,), (1, 3, 2), (3, 1), (0, 2)]))
def test_chains_keep_every_bit(steps: list, shape: tuple) -> None:
    pair = Pair(edge_tensor(shape, torch.float32))
    for step in steps:
        if len(step) == 2 and isinstance(step[1], int):
            shaped_view(pair, *step)
            continue
        if pair.value.dtype is torch.bfloat16 and step[0] != "cast":  # prims do not compute in narrow floats
            pair.apply("cast", torch.float32)
        pair.apply(*step)
    pair.check()


INTEGER = [
    ("add", 0),
    ("mul", 1),
    ("or", 0),
    ("xor", 0),
    ("shl", 0),
    ("shr", 0),
    ("floordiv", 1),
    ("truncdiv", 1),
    ("not",),
    ("neg",),
    ("add", 3),
    ("cast", torch.int64),
    ("cast", torch.int32),
    ("cast", torch.int8),
]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from(INTEGER), max_size=6), st.sampled_from([torch.int32, torch.int64, torch.uint8])
)
def test_integer_chains(steps: list, dtype: torch.dtype) -> None:
    pair = Pair(edge_tensor((7,), dtype))
    for step in steps:
        pair.apply(*step)
    pair.check()
