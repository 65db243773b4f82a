"""Memory: the budget for what the forward keeps, and what is let go of when."""
from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

import minicompile
from minicompile.autograd.partition import recompute_class
from minicompile.config import ConfigError


def model() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True)
    return nn.Sequential(*[copy.deepcopy(layer) for _ in range(2)])


def made(halves: object) -> int:
    """Bytes of the values that the forward makes for the backward."""
    return sum(s.bytes for s, i in zip(halves.saved, halves.from_input) if i is None)


def gradients(m: nn.Module, call: object, x: torch.Tensor) -> list[torch.Tensor]:
    m.zero_grad()
    torch.manual_seed(3)
    call(x).square().mean().backward()
    return [p.grad for p in m.parameters()]


def test_a_memory_budget_is_kept() -> None:
    x, m = torch.randn(4, 8, 32), model()
    want, full, before = gradients(m, m, x), 0, float("inf")
    for budget in (1.0, 0.7, 0.4, 0.0):
        other = copy.deepcopy(m)
        compiled = minicompile.compile(other, fullgraph=True, backend="aot_eager",
                                       options={"activation_memory_budget": budget})
        for a, b in zip(want, gradients(other, compiled, x), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
        halves = compiled.__minicompile__.compilations[0].split
        halves.check()
        full = full or made(halves)
        assert made(halves) <= max(budget, 0.3) * full and made(halves) <= before
        before = made(halves)
        assert bool(halves.again) == (budget < 1)
        assert {recompute_class(n) for n in halves.again} <= {"library", "pass"}
        assert ("computed again to stay within" in str(halves)) == (budget < 1)


@pytest.mark.parametrize("value", [-0.1, 1.5, "much"])
def test_a_budget_is_a_part(value: object) -> None:
    with pytest.raises(ConfigError, match=r"from 0 to 1|of at least 0"):
        minicompile.compile(model(), options={"activation_memory_budget": value})


def test_what_the_forward_keeps_dies_with_the_backward() -> None:
    w = torch.randn(64, 64, requires_grad=True)
    compiled = minicompile.compile(lambda x: torch.tanh(torch.tanh(x @ w) @ w), fullgraph=True)
    x = torch.randn(32, 64)
    out = compiled(x)
    assert any(t is not w and t is not x for t in out.grad_fn.saved_tensors)
    out.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()
    given = weakref.ref(out)
    del out
    assert given() is None
