"""torch.compile, once used, marks and wraps functions of torch itself; what minicompile captures is the same after that."""
from __future__ import annotations

import torch

import minicompile
from minicompile import api


def step(**settings: object) -> api.Handle:
    p = [torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.SGD(p, lr=0.1, momentum=0.9, **settings)
    compiled = minicompile.compile(optimizer.step)
    for _ in range(3):
        p[0].grad = torch.ones(3)
        compiled()
    return api.handle_of(compiled)


def test_optimizers() -> None:
    for used in (False, True):
        if used:
            p = torch.nn.Parameter(torch.ones(3))
            p.grad = torch.ones(3)
            torch.compile(torch.optim.SGD([p], lr=0.1).step, backend="eager")()
        for settings in ({}, {"fused": True}, {"foreach": True}):
            assert not step(**settings).refusals, settings
