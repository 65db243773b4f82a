"""Foreach operators through the lowering against eager mode, without a library call left."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from minicompile.lower.decompose import decompose
from minicompile.lower.foreach import TABLE, UNARY
from minicompile.lower.trace import callable_inputs, trace_callable

aten = torch.ops.aten
Tensors = list[torch.Tensor]


def lists(dtype: torch.dtype, n: int = 3) -> list[Tensors]:
    torch.manual_seed(0)
    shapes = [(3, 5), (7,), (), (2, 0)]
    return [[(torch.rand(s) + 0.25).to(dtype) for s in shapes] for _ in range(n)]


def agree(fn: Callable[..., Any], *args: Any) -> None:
    want = fn(*args)
    prims = decompose(trace_callable(fn, *args))
    prims.check()
    for a, b in zip(prims.run(*callable_inputs(fn, *args)), want, strict=True):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        torch.testing.assert_close(a, b, rtol=1e-2 if a.dtype is torch.bfloat16 else 3e-6, atol=1e-6,
                                   equal_nan=True)
    assert not [n for n in prims.graph.nodes if isinstance(n.op, torch._ops.OpOverload)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(set(TABLE) | {"norm", "copy", "zero"}))
def test_foreach(name: str, dtype: torch.dtype) -> None:
    xs, ys, zs = lists(dtype)
    packet = getattr(aten, f"_foreach_{name}")
    if name in ("max", "norm"):
        xs = xs[:2]
    numbers = [0.5, 2.0, 3.0, 0.25]
    calls: dict[str, Callable[..., Any]] = {
        "default": (lambda xs, ys, zs: packet(xs, ys)) if name == "copy" else lambda xs, ys, zs: packet(xs),
        "List": lambda xs, ys, zs: packet.List(xs, ys, zs) if name == "lerp" else packet.List(xs, ys),
        "Scalar": lambda xs, ys, zs: packet.Scalar(xs, 2.0),
        "ScalarList": lambda xs, ys, zs: packet.ScalarList(xs, numbers),
        "Tensor": lambda xs, ys, zs: packet.Tensor(xs, ys[2]),
        "ScalarAndTensor": lambda xs, ys, zs: packet.ScalarAndTensor(0.9, xs),
    }
    if name in ("addcmul", "addcdiv"):
        calls["Scalar"] = lambda xs, ys, zs: packet.Scalar(xs, ys, zs, 0.5)
        calls["ScalarList"] = lambda xs, ys, zs: packet.ScalarList(xs, ys, zs, numbers)
    if name == "lerp":
        calls["Scalar"] = lambda xs, ys, zs: packet.Scalar(xs, ys, 0.1)
        calls["ScalarList"] = lambda xs, ys, zs: packet.ScalarList(xs, ys, numbers)
    given = TABLE[name][1] if name in TABLE else ("Scalar",) if name == "norm" else ("default",)
    for overload in given:
        if overload in packet.overloads():
            agree(calls[overload], xs, ys, zs)


def test_in_place_forms_write_their_lists() -> None:
    def step(ps: Tensors, gs: Tensors, ms: Tensors) -> Tensors:
        torch._foreach_lerp_(ms, gs, 0.1)
        torch._foreach_add_(ps, ms, alpha=-0.5)
        return torch._foreach_sqrt(ps)
    a, b = lists(torch.float32), lists(torch.float32)
    prims = decompose(trace_callable(step, *a))
    assert not [n for n in prims.graph.nodes if isinstance(n.op, torch._ops.OpOverload)]
    for x, y in zip(prims.run(*callable_inputs(step, *a)), step(*b), strict=True):
        torch.testing.assert_close(x, y, equal_nan=True)
    torch.testing.assert_close(a, b)


def test_the_table_names_operators() -> None:
    assert all(hasattr(aten, f"_foreach_{name}") for name in UNARY)
