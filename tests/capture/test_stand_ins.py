"""A compiled module is the module: class, state, hooks, pickles and copies are those of the original."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import minicompile

X = torch.randn(3, 4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.norm(self.first(x)) * self.scale


@pytest.fixture
def pair():
    torch.manual_seed(0)
    net = Net()
    return net, minicompile.compile(net, backend="aot_eager")


def test_class_and_names(pair):
    net, compiled = pair
    assert isinstance(compiled, Net) and isinstance(compiled, nn.Module)
    assert compiled.__class__ is Net and type(compiled).__name__ == "Net"
    assert list(compiled.state_dict()) == list(net.state_dict())
    assert [n for n, _ in compiled.named_parameters()] == [n for n, _ in net.named_parameters()]
    assert [n for n, _ in compiled.named_modules()] == [n for n, _ in net.named_modules()]
    assert repr(compiled) == repr(net)


def test_state_is_shared(pair):
    net, compiled = pair
    compiled(X)
    compiled.scale.data.mul_(2)
    net.eval()
    assert not compiled.training and net.scale is compiled.scale
    torch.testing.assert_close(compiled(X), net.forward(X))
    compiled.train()
    assert net.training and net.norm.training
    net.scale = nn.Parameter(torch.zeros(4))
    assert not compiled(X).any()
    assert int(net.norm.num_batches_tracked) == 2


def test_loading_states(pair):
    _, compiled = pair
    other = Net()
    compiled(X)
    compiled.load_state_dict(other.state_dict())
    torch.testing.assert_close(compiled(X), other(X))
    other.load_state_dict(compiled.state_dict())


@pytest.mark.parametrize("save", ["pickle", "torch"])
def test_pickles_as_the_original(pair, save):
    net, compiled = pair
    net.eval()
    compiled(X)
    if save == "pickle":
        loaded = pickle.loads(pickle.dumps(compiled))
    else:
        file = io.BytesIO()
        torch.save(compiled, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
    assert type(loaded) is Net
    torch.testing.assert_close(loaded(X), net(X))


def test_deep_copies_are_compiled_and_apart(pair):
    net, compiled = pair
    net.eval()
    before = compiled(X)
    twin = copy.deepcopy(compiled)
    assert isinstance(twin, Net) and twin.scale is not net.scale
    twin.scale.data.zero_()
    assert not twin(X).any()
    torch.testing.assert_close(compiled(X), before)
    assert minicompile.explain(twin)(X).graph_count == 1


def test_hooks_of_the_module_and_inside(pair):
    net, compiled = pair
    net.eval()
    seen = []
    plain = compiled(X)
    handles = [
        net.register_forward_pre_hook(lambda m, args: (args[0] + 1,)),
        compiled.register_forward_hook(lambda m, args, out: out * 2),
        net.first.register_forward_hook(lambda m, args, out: seen.append(type(m).__name__)),
        compiled.norm.register_forward_hook(lambda m, args, kwargs, out: out + 1, with_kwargs=True)]
    torch.testing.assert_close(compiled(X), net(X))
    assert seen == ["Linear", "Linear"]
    for h in handles:
        h.remove()
    torch.testing.assert_close(compiled(X), plain)
    assert len(seen) == 2


def test_part_of_another_module(pair):
    net, compiled = pair
    net.eval()
    whole = nn.Sequential(compiled, nn.ReLU())
    torch.testing.assert_close(whole(X), net(X).relu())
    assert next(iter(whole.state_dict())) == "0.scale"
    again = minicompile.compile(whole, backend="aot_eager")
    torch.testing.assert_close(again(X), net(X).relu())


def test_moves(pair):
    net, compiled = pair
    compiled(X)
    compiled.double().eval()
    assert net.scale.dtype == torch.float64
    torch.testing.assert_close(compiled(X.double()), net(X.double()))
    compiled.requires_grad_(False)
    assert not compiled(X.double()).requires_grad


def test_methods_call_what_is_compiled(pair):
    net, compiled = pair
    compiled.apply(lambda m: m.eval())
    assert not net.norm.training
    compiled.zero_grad()
    compiled(X).sum().backward()
    expected = copy.deepcopy(net)
    expected.zero_grad()
    expected(X).sum().backward()
    for p, q in zip(net.parameters(), expected.parameters()):
        torch.testing.assert_close(p.grad, q.grad)
