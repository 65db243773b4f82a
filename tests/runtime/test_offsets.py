"""Inputs that begin anywhere in their storage: results that are views of them, new geometries, in one program."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import minicompile


def itself(x: torch.Tensor) -> Any:
    return x.squeeze(1), x[1:], x.t()


def other_type(x: torch.Tensor) -> Any:
    return x.view(torch.int32)[1:], x.chunk(2, 1)[1]


def written(x: torch.Tensor) -> Any:
    x.mul_(2)
    return x[1:], x.unbind(0)[2]


def turned(x: torch.Tensor) -> Any:
    x.t_()
    return x * 2, x[2:]


def window(x: torch.Tensor) -> Any:
    return x.as_strided((2, 2), (1, 2), 1) + 1, x.as_strided((2, 2), (1, 2), 1)


def told(x: torch.Tensor) -> Any:
    return x.storage_offset() + x.sum(), x[:, 1]


def seen(t: torch.Tensor) -> tuple:
    return t.tolist(), t.shape, t.stride(), t.storage_offset(), t.dtype


@pytest.mark.parametrize("backend", ["aot_eager", "reference", "cpp", "triton"])
@pytest.mark.parametrize("f", [itself, other_type, written, turned, window, told])
@pytest.mark.parametrize("grad", [False, True])
def test_a_view_of_an_input_begins_where_it_does(f: Callable, backend: str, grad: bool) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    compiled = minicompile.compile(f, backend=backend)
    for offset in (0, 3, 0, 7):
        found = []
        for g in (f, compiled):
            memory = torch.arange(20.0).requires_grad_(grad) * 1
            x = memory[offset:offset + 12].view(3, 4)
            with torch.set_grad_enabled(grad and f is itself):
                results = g(x)
            assert all(r.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
                       for r in results if f is itself)
            found.append([*map(seen, results), seen(x), seen(memory)])
        assert found[0] == found[1]
    if f in (itself, other_type, written) or f is turned and not grad:
        assert len(compiled.__minicompile__.compilations) == 1
