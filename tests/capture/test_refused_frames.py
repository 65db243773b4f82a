"""A refused function runs natively; the functions it calls are compiled in their turn."""

import gc
import sys
import threading
import weakref

import pytest
import torch
from torch import nn

import minicompile

from .common import compiled, refusals

X = torch.arange(6.0)
OFF = pytest.mark.skip(reason="off by default: results of some models with nested outputs differ still")


def served(f):
    return compiled(f, callees=True)


def captures(c):
    return [payload.name for kind, payload in c.events if kind == "capture"]


def part(x, k=1):
    return torch.sin(x) * k + torch.cos(x) - 1


def small(x):
    return x + 1


def stops(x):
    return part(x) + float(x.sum().numpy())


def outer(x):
    y = part(x)
    y = small(y)
    z = y.numpy().sum()
    return part(y, k=2) + float(z)


def deep(x):
    return part(stops(x) * 2)


def test_callees_are_served():
    c = served(outer)
    for x in (X, X + 1, X, X):
        torch.testing.assert_close(c(x), outer(x))
    assert captures(c).count("part") == 2 and refusals(c) == ["data-dependent"]
    before = len(c.events)
    c(X)
    assert len(c.events) == before, "the steady state compiles nothing"


def test_a_refused_callee_leaves_its_own():
    c = served(deep)
    for _ in range(3):
        torch.testing.assert_close(c(X), deep(X))
    assert captures(c).count("part") >= 1 and refusals(c) == ["data-dependent"], "one break, reported once"


class Stops(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))
        self.second = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6))

    def forward(self, x):
        y = self.first(x)
        y = y * float(y.detach().numpy().sum())
        return self.second(y)


@OFF
def test_modules_of_a_refused_module():
    torch.manual_seed(0)
    model = Stops()
    c = minicompile.compile(model)
    with torch.no_grad():
        for x in (X, X + 1, X):
            torch.testing.assert_close(c(x), model(x), rtol=1e-4, atol=1e-5)
    handle = type(c).__minicompile__
    assert len(handle.compilations) == 2 and len(handle.refusals) == 1
    with torch.no_grad():
        found = minicompile.explain(model)(X)
    assert found.graph_count == 2 and found.graph_break_count == 1
    handle.reset()
    assert not handle.compilations and not handle.refusals
    with torch.no_grad():
        torch.testing.assert_close(c(X), model(X), rtol=1e-4, atol=1e-5)
    assert len(handle.compilations) == 2


@OFF
def test_training_through_a_refused_module():
    torch.manual_seed(0)
    model = Stops()
    c = minicompile.compile(model)
    for x in (X, X + 1):
        c(x).sum().backward()
        got = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        model(x).sum().backward()
        for g, p in zip(got, model.parameters()):
            torch.testing.assert_close(g, p.grad, rtol=1e-4, atol=1e-5)
        model.zero_grad()


def test_changes_between_calls_are_seen():
    torch.manual_seed(0)
    model = Stops().eval()
    c = served(lambda x: model(x))
    with torch.no_grad():
        for change in (lambda: None, lambda: model.first[0].weight.add_(1),
                       lambda: setattr(model, "first", nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Tanh())),
                       lambda: setattr(model.first, "forward", lambda x: x * 3 + 1),
                       lambda: model.second.register_forward_hook(lambda m, a, out: out * 2)):
            change()
            for _ in range(2):
                torch.testing.assert_close(c(X), model(X))


class Oops(Exception):
    pass


def raising(x):
    y = torch.sin(x) + 1
    if len(x) == 6:
        raise Oops("at six")
    return y * 2


def generator(x):
    for i in range(3):
        yield part(x) * i


def catches(x):
    total = float(x.numpy().sum())
    try:
        raising(x)
    except Oops as error:
        total += len(str(error))
    return sum(generator(x)) + total


def test_exceptions_and_generators():
    c = served(catches)
    for x in (X, X[:3], X):
        torch.testing.assert_close(c(x), catches(x))

    c = served(lambda x: raising(x * float(x.numpy().sum())))
    for _ in range(2):
        with pytest.raises(Oops, match="at six"):
            c(X)


def effects(x, log, *more, scale=2, **named):
    log.append((len(more), sorted(named)))
    return torch.sin(x) * scale + torch.cos(x) + sum(more)


def calls_with_all_kinds(x, log):
    x.numpy()
    return effects(x, log) + effects(x, log, 1, 2, scale=3, a=4) + effects(scale=1, x=x, log=log)


def test_arguments_of_all_kinds_and_effects():
    c, mine, want = served(calls_with_all_kinds), [], []
    for i in range(3):
        torch.testing.assert_close(c(X, mine), calls_with_all_kinds(X, want))
        assert mine == want
    assert "effects" in captures(c)


def recursive(x, n):
    y = torch.sin(x) + torch.cos(x)
    if n == 0:
        return y * float(y.numpy().sum())
    return recursive(y, n - 1) + 1


def test_recursion():
    c = served(recursive)
    for _ in range(3):
        torch.testing.assert_close(c(X, 3), recursive(X, 3))


def makes_closures(x):
    x.numpy()
    out = []
    for k in range(3):
        def scaled(y):
            return torch.sin(y) * k + torch.cos(y)
        out.append(scaled(x))
    return out


def test_closures_made_by_the_refused_function():
    c = served(makes_closures)
    for _ in range(3):
        for got, want in zip(c(X), makes_closures(X)):
            torch.testing.assert_close(got, want)


def test_no_callee_is_worth_it():
    def f(x):
        return small(x).numpy()

    c = served(f)
    for _ in range(4):
        assert (c(X) == f(X)).all()
    assert not c.worth and refusals(c) == ["data-dependent"]


def test_other_tools_of_the_thread_are_left():
    c = served(outer)
    hook, seen = sys.getprofile(), []
    for _ in range(2):
        c(X)
    assert sys.getprofile() is hook and minicompile._native.mode() == 0 and not seen


def test_threads():
    c = served(outer)
    results = [None] * 8

    def work(i):
        results[i] = [c(X + i) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for i, rs in enumerate(results):
        for r in rs:
            torch.testing.assert_close(r, outer(X + i))


def test_reset_lets_modules_go():
    model = Stops()
    c = served(lambda m, x: m(x))
    with torch.no_grad():
        c(model, X)
    gone = weakref.ref(model.first)
    c.reset()
    c.events.clear()
    del model
    gc.collect()
    assert gone() is None
