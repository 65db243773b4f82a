"""A whole training step as one graph: forward, backward, clipping and the optimizer."""
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
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 4)
        self.unused, self.frozen = nn.Linear(3, 3), nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.dropout(F.relu(self.norm(self.a(x))), 0.2, self.training)
        return self.frozen(self.b(h))


def plain(m: nn.Module, opt: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    opt.zero_grad()
    loss = F.cross_entropy(m(x), y)
    loss.backward()
    opt.step()
    return loss


def zeroed(m: nn.Module, opt: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    opt.zero_grad(set_to_none=False)
    loss = F.cross_entropy(m(x), y)
    loss.backward()
    opt.step()
    return loss.detach()


def clipped(m: nn.Module, opt: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    loss = F.cross_entropy(m(x), y)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(m.parameters(), 0.5)
    opt.step()
    opt.zero_grad()
    return loss, norm


def accumulated(m: nn.Module, opt: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(())
    for part, target in zip(x.chunk(3), y.chunk(3)):
        loss = F.cross_entropy(m(part), target) / 3
        loss.backward()
        total += loss.detach()
    opt.step()
    opt.zero_grad()
    return total


def two_losses(m: nn.Module, opt: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = m(x)
    opt.zero_grad()
    F.cross_entropy(out, y).backward(retain_graph=True)
    torch.autograd.backward([out.square().mean()])
    opt.step()
    return out.detach()


def by_hand(m: nn.Module, opt: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = F.cross_entropy(m(x), y)
    used = [p for p in (*m.a.parameters(), *m.b.parameters())]
    for p, g in zip(used, torch.autograd.grad(loss, used)):
        p.grad = g
    opt.step()
    return loss.detach()


STEPS = (plain, zeroed, clipped, accumulated, two_losses, by_hand)


def trained(step: Callable[..., Any], kind: Any, backend: str | None, **settings: Any) -> tuple:
    torch.manual_seed(0)
    m = Net()
    opt = kind(m.parameters(), **settings)
    call = step if backend is None else minicompile.compile(step, backend=backend, fullgraph=True)
    out = []
    for i in range(5):
        torch.manual_seed(i)
        out.append(call(m, opt, torch.randn(12, 8), torch.randint(0, 4, (12,))))
    return out, m, call


@pytest.mark.parametrize("kind,settings", [(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
                                           (torch.optim.AdamW, {"lr": 0.01})])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_one_graph(step: Callable[..., Any], kind: Any, settings: dict) -> None:
    for backend in ("aot_eager", "auto"):
        if backend == "auto" and (step is not plain and kind is torch.optim.AdamW):
            continue
        (want, theirs, _), (got, ours, call) = (trained(step, kind, b, **settings) for b in (None, backend))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        for (name, a), b in zip(theirs.state_dict().items(), ours.state_dict().values()):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
        for p, q in zip(theirs.parameters(), ours.parameters()):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5)
                assert p.grad.stride() == q.grad.stride() and not q.grad.requires_grad
        assert len(call.__minicompile__.compilations) <= 2 and not call.__minicompile__.refusals


def test_a_loss_whose_graph_is_gone_says_so() -> None:
    p = nn.Parameter(torch.ones(3))

    def f() -> torch.Tensor:
        loss = (p * p).sum()
        loss.backward()
        return loss
    loss = minicompile.compile(f, fullgraph=True)()
    assert loss.requires_grad and not loss.is_leaf
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_have_memory_of_their_own() -> None:
    def f(x: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> None:
        (x + y).backward(v)
    made = []
    for call in (f, minicompile.compile(f, fullgraph=True)):
        x, y = (torch.ones(3, 2).t().requires_grad_() for _ in range(2))
        v = torch.full((2, 3), 3.0)
        call(x, y, v)
        v.zero_()
        x.grad.add_(1)
        made.append((x.grad, y.grad, x.grad.stride(), y.grad.stride()))
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1], made[1][1])
    assert made[0][2:] == made[1][2:]


@pytest.mark.parametrize("spoil", ["hook", "history", "after"])
def test_leaves_with_hooks_or_history_are_left_to_eager_mode(spoil: str) -> None:
    seen: list[Any] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        loss = (x * x).sum()
        loss.backward()
        return loss.detach()
    compiled = minicompile.compile(f)
    leaf = torch.ones(3, requires_grad=True)
    compiled(leaf)                  # the guards, then, tell the next call from this one
    x = leaf * 2 if spoil == "history" else leaf
    if spoil == "hook":
        leaf.register_hook(lambda g: seen.append(g) or g * 2)
    elif spoil == "after":
        leaf.register_post_accumulate_grad_hook(lambda t: seen.append(t))
    leaf.grad = None
    compiled(x)
    expected = {"hook": 4.0, "history": 8.0, "after": 2.0}[spoil]
    assert torch.equal(leaf.grad, torch.full((3,), expected)) and len(seen) == (spoil != "history")


def test_a_gradient_is_set_and_read_back() -> None:
    def f(p: torch.Tensor, g: torch.Tensor) -> Any:
        before = p.grad
        p.grad = g * 2
        p.grad.mul_(3)
        return before, p.grad
    p, g = nn.Parameter(torch.zeros(2)), torch.ones(2)
    compiled = minicompile.compile(f)
    for _ in range(3):
        q = copy.deepcopy(p)
        q.grad = copy.deepcopy(p.grad)
        want, got = f(q, g), compiled(p, g)
        assert p.grad is got[1] and torch.equal(q.grad, p.grad)
        assert (want[0] is None) == (got[0] is None)
    with pytest.raises(RuntimeError, match=r"size|shape"):
        compiled(p, torch.ones(3))
