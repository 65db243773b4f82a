"""The ways people train, each beside eager mode: gradients, dtypes, strides, buffers, and the order of hooks."""
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import minicompile


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.tied = nn.Linear(8, 6, bias=False)
        self.tied.weight = nn.Parameter(self.a.weight.detach().t().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.dropout(torch.tanh(self.norm(self.a(x))), 0.25, self.training)
        return self.b(h) + self.a(self.tied(h))[:, :3]


WAYS: dict[str, Callable[..., Any]] = {}


def way(f: Callable[..., Any]) -> Callable[..., Any]:
    WAYS[f.__name__] = f
    return f


@way
def several_losses(m: Any, call: Any, x: Any, log: list) -> Any:
    out = call(x)
    a, b = out.square().mean(), out.abs().sum()
    a.backward(retain_graph=True)
    b.backward()
    return a.detach(), b.detach()


@way
def accumulation(m: Any, call: Any, x: Any, log: list) -> Any:
    for part in x.chunk(2):
        (call(part).square().mean() / 2).backward()


@way
def zeroed_not_none(m: Any, call: Any, x: Any, log: list) -> Any:
    opt = torch.optim.SGD(m.parameters(), 0.1)
    for _ in range(3):
        opt.zero_grad(set_to_none=False)
        call(x).square().mean().backward()
        opt.step()


@way
def steps_between(m: Any, call: Any, x: Any, log: list) -> Any:
    """The optimizer writes to parameters: what was packed or kept must follow."""
    opt = torch.optim.SGD(m.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(4):
        opt.zero_grad()
        loss = call(x).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        losses.append(loss.detach())
    return losses


@way
def frozen_and_thawed(m: Any, call: Any, x: Any, log: list) -> Any:
    for free in (False, True, False):
        m.a.requires_grad_(free)
        call(x).square().mean().backward()
    m.a.requires_grad_(True)


@way
def input_gradients(m: Any, call: Any, x: Any, log: list) -> Any:
    x = x.clone().requires_grad_()
    y = call(x * 2)
    g, = torch.autograd.grad(y.sum(), x, retain_graph=True)
    y.square().sum().backward()
    return g, x.grad


@way
def train_and_eval(m: Any, call: Any, x: Any, log: list) -> Any:
    out = []
    for training in (True, False, True):
        m.train(training)
        with torch.set_grad_enabled(training):
            y = call(x)
        out.append(y.detach())
        assert y.requires_grad == training
        if training:
            y.square().mean().backward()
    return out


@way
def tensor_hooks(m: Any, call: Any, x: Any, log: list) -> Any:
    handles = [p.register_hook(lambda g, n=n: log.append(n) or g * 2) for n, p in m.named_parameters()]
    handles += [m.b.bias.register_post_accumulate_grad_hook(lambda p: log.append("after"))]
    y = call(x)
    y.register_hook(lambda g: log.append("result") or g + 1)
    y.square().mean().backward()
    for h in handles:
        h.remove()


@way
def module_hooks(m: Any, call: Any, x: Any, log: list) -> Any:
    handles = [m.b.register_full_backward_hook(lambda mod, gi, go: log.append("backward")),
               m.a.register_forward_hook(lambda mod, args, out: log.append("forward") or out * 2),
               m.register_full_backward_pre_hook(lambda mod, go: log.append("pre"))]
    call(x).square().mean().backward()
    for h in handles:
        h.remove()
    call(x).square().mean().backward()


@way
def detached_and_kept(m: Any, call: Any, x: Any, log: list) -> Any:
    y = call(x)
    z = y.detach()
    z.mul_(2)
    (y * z).sum().backward()
    return z


@way
def in_place_after(m: Any, call: Any, x: Any, log: list) -> Any:
    y = call(x)
    y.mul_(3).add_(1)
    y[0].zero_()
    y.sum().backward()
    return y.detach()


@way
def second_derivative(m: Any, call: Any, x: Any, log: list) -> Any:
    m.eval()
    x = x.clone().requires_grad_()
    g, = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
    g.square().sum().backward()
    m.train()
    return g.detach()


@way
def autocast(m: Any, call: Any, x: Any, log: list) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        y = call(x)
        with torch.autocast("cpu", enabled=False):
            z = call(x)
        loss = y.float().square().mean() + z.square().mean()
    loss.backward()
    return y.dtype, z.dtype


@way
def scaled(m: Any, call: Any, x: Any, log: list) -> Any:
    scaler, opt = torch.amp.GradScaler("cpu", init_scale=8.0), torch.optim.SGD(m.parameters(), 0.1)
    for _ in range(3):
        opt.zero_grad()
        scaler.scale(call(x).square().mean()).backward()
        scaler.unscale_(opt)
        nn.utils.clip_grad_value_(m.parameters(), 0.1)
        scaler.step(opt)
        scaler.update()
    return scaler.get_scale()


@way
def checkpointed(m: Any, call: Any, x: Any, log: list) -> Any:
    checkpoint(call, x, use_reentrant=False).square().mean().backward()
    checkpoint(call, x.clone().requires_grad_(), use_reentrant=True).square().mean().backward()


@way
def retained(m: Any, call: Any, x: Any, log: list) -> Any:
    y = call(x)
    y.retain_grad()
    loss = y.square().mean()
    loss.backward(retain_graph=True)
    loss.backward()
    return y.grad


@way
def two_calls_one_backward(m: Any, call: Any, x: Any, log: list) -> Any:
    (call(x).square().mean() + call(x * 2).abs().mean()).backward()


@way
def state_reloaded(m: Any, call: Any, x: Any, log: list) -> Any:
    state = copy.deepcopy(m.state_dict())
    opt = torch.optim.SGD(m.parameters(), 0.5)
    call(x).square().mean().backward()
    opt.step()
    m.load_state_dict(state)
    opt.zero_grad()
    return call(x).detach()


@way
def parameter_swapped(m: Any, call: Any, x: Any, log: list) -> Any:
    call(x).sum().backward()
    m.b.weight = nn.Parameter(m.b.weight.detach() * 2)
    m.a.weight.data = m.a.weight.data * 3
    call(x).sum().backward()


@way
def grads_kept_by_the_user(m: Any, call: Any, x: Any, log: list) -> Any:
    call(x).square().mean().backward()
    first = [p.grad for p in m.parameters()]
    before = [g.clone() for g in first]
    for p in m.parameters():
        p.grad = None
    call(x * 2).square().mean().backward()
    for a, b in zip(first, before):
        assert torch.equal(a, b)
    return first


class Doubled(torch.autograd.Function):
    """A formula that is not the derivative."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g * 2 * ctx.saved_tensors[0]


@way
def custom_functions(m: Any, call: Any, x: Any, log: list) -> Any:
    """One inside of the compiled part, one around it."""
    handle = m.b.register_forward_hook(lambda mod, args, out: Doubled.apply(out))
    Doubled.apply(call(x)).square().mean().backward()
    handle.remove()


@way
def break_in_the_middle(m: Any, call: Any, x: Any, log: list) -> Any:
    """The hook cannot be captured; the layers before and after it can. What it changes was not needed."""
    def look(mod: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        log.append(tuple(out.detach().numpy().shape))
        return out * 2
    handles = [m.a.register_forward_hook(look), m.tied.register_forward_hook(look)]
    for _ in range(2):
        call(x).square().mean().backward()
    for h in handles:
        h.remove()


@way
def one_of_several_results(m: Any, call: Any, x: Any, log: list) -> Any:
    """The derivative of the other is infinite, and no part of it."""
    handle = m.register_forward_hook(lambda mod, args, out: (out, (out * 0).sqrt(), out.detach()))
    call(x)[0].square().mean().backward()
    handle.remove()


@way
def changed_after_use(m: Any, call: Any, x: Any, log: list) -> Any:
    """Biases and inputs that eager mode does not keep may change before the backward."""
    x = x.clone()
    loss = call(x * 1).square().mean()
    with torch.no_grad():
        m.a.bias.add_(1)
        m.b.bias.mul_(2)
    loss.backward()


def outcome(name: str, compiled: bool, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    torch.manual_seed(0)
    m = Net().to(dtype)
    call = minicompile.compile(m) if compiled else m
    x, log = torch.randn(8, 6, dtype=dtype), []
    torch.manual_seed(1)
    result = WAYS[name](m, call, x, log)
    return {"result": result, "log": log, "random": torch.get_rng_state(),
            "state": dict(m.state_dict()), "requires": [p.requires_grad for p in m.parameters()],
            "grads": {n: p.grad for n, p in m.named_parameters()},
            "strides": {n: p.grad.stride() for n, p in m.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("name", WAYS)
def test_as_in_eager_mode(name: str) -> None:
    want, got = outcome(name, False), outcome(name, True)
    loose = name in ("autocast",)
    if name == "tensor_hooks":          # those of parameters: a compiled backward hands over all gradients at once
        want["log"], got["log"] = ([r["log"][0], *sorted(r["log"][1:])] for r in (want, got))
    for key in ("log", "strides", "requires"):
        assert got[key] == want[key], key
    assert torch.equal(got["random"], want["random"])
    for n, g in want["grads"].items():
        assert (g is None) == (got["grads"][n] is None), n
    compare: dict[str, float] = {"rtol": 2e-2, "atol": 2e-2} if loose else {"rtol": 1e-4, "atol": 1e-5}
    for key in ("result", "state", "grads"):
        torch.testing.assert_close(plain(got[key]), plain(want[key]), **compare, msg=lambda s, k=key: f"{k}: {s}")


def plain(x: Any) -> Any:
    """The tensors in x."""
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items() if isinstance(v, torch.Tensor)}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x if isinstance(v, torch.Tensor)]
    return x if isinstance(x, torch.Tensor) else torch.tensor(0.0)
