"""Steps of optimizers: one graph from the second step on, with eager's numbers; state is looked up by
parameter."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import minicompile

from .common import compiled, refusals

CASES = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"foreach": True, "momentum": 0.9}),
    ("AdamW", {"foreach": True}),
    ("AdamW", {"foreach": False, "amsgrad": True}),
    ("Adam", {"foreach": True, "weight_decay": 0.1}),
]


@pytest.mark.parametrize("name,settings", CASES)
def test_a_step_is_one_graph(name, settings):
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(3, 2)) for _ in range(3)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    a, b = (getattr(torch.optim, name)(p, lr=0.1, **settings) for p in (ours, theirs))
    step = minicompile.compile(a.step, backend="aot_eager")
    for i in range(6):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn(3, 2)
            q.grad = p.grad.clone()
        if i == 4:
            a.param_groups[0]["lr"] = b.param_groups[0]["lr"] = 0.01
        step()
        b.step()
        for p, q in zip(ours, theirs):
            torch.testing.assert_close(p, q)
    assert len(step.__minicompile__.compilations) <= 3 and len(step.__minicompile__.refusals) <= 1
    assert len(a.state) == len(b.state)
    ours[0].grad = theirs[0].grad = None
    step()
    b.step()
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q)


def test_a_dict_keyed_by_tensors():
    keys = [torch.ones(2), torch.zeros(2)]
    table = {keys[0]: 3.0}

    def f(t):
        table[keys[1]] = table.get(keys[1], 0.0) + 1.0
        return t * table.get(t, 5.0)

    c = compiled(f)
    for _ in range(2):
        assert c(keys[0]).tolist() == [3.0, 3.0] and c(torch.ones(2)).tolist() == [5.0, 5.0]
    assert table[keys[1]] == 4.0 and not refusals(c)


def test_gradients_are_read_where_they_are():
    p = nn.Parameter(torch.ones(2))
    f = lambda: p.detach() + (0 if p.grad is None else p.grad)
    c = compiled(f)
    for grad in (None, torch.ones(2), torch.full((2,), 5.0), None):
        p.grad = grad
        assert torch.equal(c(), f())
    assert not refusals(c) and len(c.entries) == 2


def test_a_checkpoint_is_its_function():
    m = nn.Linear(2, 2)
    c = compiled(lambda x: checkpoint(m, x, use_reentrant=False))
    x = torch.randn(3, 2)
    assert torch.equal(c(x), m(x)) and not refusals(c)
