"""Mixed precision: autocast around, inside and nested in a compiled function, weights cast once, GradScaler."""
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minicompile


class Net(nn.Module):
    """A weight that is used twice, a normalisation that stays in float32, a nested region without autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.a(F.gelu(self.a(x))))
        with torch.autocast("cpu", enabled=False):
            h = h + self.b(h.float())
        return F.softmax(self.b(h), -1)


class Inside(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def around(call: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return call(x)


def outcome(kind: type[Net], call: Any, compiled: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    m, x = kind(), torch.randn(8, 16, requires_grad=True)
    f = minicompile.compile(m) if compiled else m
    for _ in range(2):
        y = call(f, x)
        y.float().square().mean().backward()
    return [y, x.grad, *(p.grad for p in m.parameters())]


@pytest.mark.parametrize("kind, call", [(Net, around), (Inside, lambda f, x: f(x)), (Inside, around)],
                         ids=["around", "inside", "both"])
def test_gradients_and_dtypes(kind: type[Net], call: Any) -> None:
    for ours, theirs in zip(outcome(kind, call, True), outcome(kind, call, False)):
        assert ours.dtype is theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)


def test_a_weight_is_cast_once() -> None:
    """Eager mode caches the cast of a parameter for the region; so does the graph."""
    m = Net()
    e = minicompile.explain(lambda x: around(m, x))(torch.randn(8, 16))
    aten = next(s for stages in e.stages for name, s in stages.items() if name in ("aten", "joint"))
    graph = getattr(aten, "aten", aten).graph
    casts = [n for n in graph.nodes if "_to_copy" in str(n.op) and n.args[0].tensor.shape == (16, 16)]
    forward = {n.args[0] for n in casts if n.tensor.dtype is torch.bfloat16 and n.args[0].op == "input"}
    assert len([n for n in casts if n.args[0] in forward and n.tensor.dtype is torch.bfloat16]) == len(forward)


def test_autocast_switched_between_calls() -> None:
    """One compiled module, with and without: each has its own graph, neither spoils the other."""
    torch.manual_seed(0)
    m, x = Net(), torch.randn(8, 16)
    f = minicompile.compile(m)
    for _ in range(3):
        for ours, theirs in ((f(x), m(x)), (around(f, x), around(m, x))):
            assert ours.dtype is theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("whole", [False, True], ids=["module", "whole step"])
def test_a_scaler_skips_what_overflows(whole: bool) -> None:
    torch.manual_seed(0)
    first = Inside()

    def run(compiled: bool) -> tuple[list[torch.Tensor], list[float]]:
        m = copy.deepcopy(first)
        f = minicompile.compile(m) if compiled and not whole else m
        opt, scaler, scales = torch.optim.SGD(m.parameters(), 0.1), torch.amp.GradScaler("cpu", 2.0**8, growth_interval=2), []

        def lossy(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
            loss = f(x).float().square().mean() * factor
            scaler.scale(loss).backward()
            return loss.detach()

        step = minicompile.compile(lossy) if compiled and whole else lossy
        for i in range(6):
            torch.manual_seed(i)
            opt.zero_grad()
            step(torch.randn(8, 16), torch.tensor(float("inf") if i == 3 else 1.0))
            scaler.step(opt)
            scaler.update()
            scales.append(scaler.get_scale())
        return [p.detach() for p in m.parameters()], scales

    (ours, a), (theirs, b) = run(True), run(False)
    assert a == b and a[3] < a[2]
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q, rtol=2e-2, atol=2e-3)
