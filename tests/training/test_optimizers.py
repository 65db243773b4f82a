"""Every optimizer of torch.optim as a compiled step, under a learning rate schedule: eager's numbers from the
first step on, no recompile after the second."""
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.common_optimizers import optim_db

import minicompile

FUSED = {"fused": True}
EAGER = {"LBFGS", "SparseAdam"}          # Python that looks at data, sparse gradients: in parts at most


def cases() -> Any:
    """The first and the richest settings of each optimizer, in each of its implementations."""
    for info in optim_db:
        given = sorted(info.optim_inputs_func(device="cpu"), key=lambda i: len(i.kwargs))
        for kwargs in (given[0].kwargs, given[-1].kwargs):
            for how in ({"foreach": False}, {"foreach": True}, FUSED):
                if next(iter(how)) in info.supported_impls or how == {"foreach": False}:
                    known = {} if info.optim_cls.__name__ in EAGER | {"Muon"} else how
                    yield pytest.param(info.optim_cls, {**kwargs, **known},
                                       id=f"{info.optim_cls.__name__}-{len(kwargs)}-{'-'.join(known)}")


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(s)) for s in ((3, 4), (5, 5), (3, 4))]


def step(call: Any, params: list[nn.Parameter], name: str, seed: int) -> None:
    torch.manual_seed(seed)
    for p in params:
        p.grad = torch.randn_like(p) if name != "SparseAdam" else torch.randn_like(p).to_sparse()
    if name == "LBFGS":
        def closure() -> torch.Tensor:
            for p in params:
                p.grad = p.detach() * 2
            return sum(p.detach().square().sum() for p in params)
        call(closure)
    else:
        call()


@pytest.mark.parametrize("kind,settings", list(cases()))
def test_steps_are_eager_s(kind: Any, settings: dict) -> None:
    ours, theirs = parameters(), parameters()
    a, b = kind(ours, **copy.deepcopy(settings)), kind(theirs, **copy.deepcopy(settings))
    compiled = minicompile.compile(a.step, backend="aot_eager")
    handle, made = compiled.__minicompile__, 0
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 20) for o in (a, b)]
    for i in range(20):
        step(compiled, ours, kind.__name__, i)
        step(b.step, theirs, kind.__name__, i)
        for schedule in schedules:
            schedule.step()
        for p, q in zip(ours, theirs):
            torch.testing.assert_close(p, q)
        made = len(handle.compilations) if i < 2 else made
    if kind.__name__ not in EAGER:
        assert not handle.refusals
        assert len(handle.compilations) == made, "compiled again after the second step"
    for p, q in zip(ours, theirs):
        assert a.state[p].keys() == b.state[q].keys()
        for key, value in a.state[p].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, b.state[q][key])


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_compiled_code_follows_a_schedule(name: str) -> None:
    """A schedule that changes momentum as well, and compiled C++ instead of ATen calls."""
    ours, theirs = parameters(), parameters()
    settings = {"momentum": 0.9} if name == "SGD" else {}
    a, b = (getattr(torch.optim, name)(p, lr=0.01, **settings) for p in (ours, theirs))
    compiled = minicompile.compile(a.step, fullgraph=True)
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=13) for o in (a, b)]
    for i in range(12):
        step(compiled, ours, name, i)
        step(b.step, theirs, name, i)
        for schedule in schedules:
            schedule.step()
        for p, q in zip(ours, theirs):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert len(compiled.__minicompile__.compilations) <= 3
