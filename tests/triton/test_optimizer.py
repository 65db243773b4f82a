"""Multi-tensor optimizer steps against torch.optim, interpreted; one launch however many parameters."""

from __future__ import annotations

import pytest
import torch
from templates import compiled, interpreted, template

optimizer = template("optimizer")
SHAPES = [(3,), (20, 7), (1,), (65,)]


def model():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s)) for s in SHAPES]
    ours = [p.detach().clone() for p in params]
    return params, ours, [torch.zeros_like(p) for p in ours], [torch.zeros_like(p) for p in ours]


def test_adamw():
    params, ours, means, squares = model()
    theirs = torch.optim.AdamW(params, lr=0.01, weight_decay=0.1)
    for step in range(1, 4):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.adamw(ours, [p.grad for p in params], means, squares, step, 0.01, decay=0.1, size=32,
                        kernel=interpreted(optimizer.adamw_kernel))
        theirs.step()
        for a, p in zip(ours, params, strict=True):
            torch.testing.assert_close(a, p.detach(), rtol=1e-5, atol=1e-6)


def test_sgd():
    params, ours, momenta, _ = model()
    theirs = torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.sgd(ours, [p.grad for p in params], momenta, 0.1, decay=0.1, first=step == 0, size=32,
                      kernel=interpreted(optimizer.sgd_kernel))
        theirs.step()
        for a, p in zip(ours, params, strict=True):
            torch.testing.assert_close(a, p.detach(), rtol=1e-5, atol=1e-6)


def test_tensors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="float32 and contiguous"):
        optimizer.addresses([torch.zeros(3, dtype=torch.float64)])


@pytest.mark.parametrize("name, tables", [("adamw_kernel", 4), ("sgd_kernel", 3)])
def test_optimizer_compiles_without_spills(name, tables):
    kernel = getattr(optimizer, name)
    pointers = dict.fromkeys(kernel.arg_names[:tables], "*i64") | {"owners": "*i32", "starts": "*i64", "sizes": "*i64"}
    numbers = dict.fromkeys("lr beta1 beta2 eps decay correction1 correction2 momentum".split(), "fp32")
    assert compiled(kernel, pointers, {"X": 1024, "FIRST": False}, "sm_80", 4, numbers).spills == 0
