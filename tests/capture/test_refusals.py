"""What capture cannot do it refuses with a code and the user's line; the program breaks there, or the call runs
as in eager mode."""

import gc
import random
import sys
import threading

import pytest
import torch

from minicompile.capture.compiled import force_eager
from minicompile.errors import Refusal

from .common import broken, compiled, refusals

X = torch.arange(6.0)


def to_numpy(x):
    return x.sum().numpy()


def branch(x):
    return x + 1 if x.numpy().any() else x


def randomness(x):
    return x * random.gauss(0, 1)


def raises(x):
    raise ValueError("from the program")


def shape_error(x):
    return x @ torch.ones(3, 3)


def frame_access(x):
    return x + sys._getframe(0).f_lineno * 0


@force_eager
def helper(x):
    return x * 2


def uses_disabled(x):
    return helper(x) + 1


GENERATOR = (i for i in range(100))


def outside_generator(x):
    return x + next(GENERATOR) * 0


def leaves_grad_mode_changed(x):
    torch.set_grad_enabled(False)
    return x


CASES = {
    to_numpy: "data-dependent",
    branch: "data-dependent",
    randomness: "forbidden",
    raises: "raises",
    shape_error: "raises",
    frame_access: "frame-access",
    uses_disabled: "disabled",
    outside_generator: "external-iterator",
}


def outcome(f):
    try:
        return repr(f(X))
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    finally:
        torch.set_grad_enabled(True)


@pytest.mark.parametrize("f", CASES, ids=lambda f: f.__name__)
def test_refused_and_run_eagerly(f):
    c = compiled(f)
    for _ in range(2):
        random.seed(0)
        got = outcome(c)
        random.seed(0)
        assert got == outcome(f)
    assert set(refusals(c)) <= {CASES[f], "impure-call", "hidden-state"} and refusals(c)
    assert len(refusals(c)) <= 2, "a refused call is captured once"
    refusal = broken(c)
    assert refusal.where is not None and refusal.where.file == __file__


@pytest.mark.parametrize("f", [to_numpy, randomness, uses_disabled])
def test_fullgraph_raises(f):
    with pytest.raises(Refusal):
        compiled(f, fullgraph=True)(X)


def test_a_refusal_names_the_innermost_user_line():
    c = compiled(lambda x: branch(x))
    c(X)
    assert broken(c).where.line == branch.__code__.co_firstlineno + 1


def test_a_refusal_points_at_the_expression():
    c = compiled(to_numpy)
    c(X)
    with open(__file__) as source:
        line = source.read().splitlines()[broken(c).where.line - 1]
    start, end = broken(c).where.columns
    assert line[start:end] == "x.sum().numpy()"


def test_a_refusal_is_guarded_too():
    def f(x, flag):
        return x.sum().numpy() if flag else x + 1

    c = compiled(f)
    assert c(X, True) == 15.0 and torch.equal(c(X, False), X + 1)
    assert [bool(e.capture.broken) for e in c.entries] == [False, True]


def test_the_compiler_may_refuse():
    def compile_graph(capture, examples):
        raise Refusal("needs-grad", "no")

    from minicompile.capture.compiled import Compiled

    c = Compiled(lambda x: x + 1, compile_graph)
    assert torch.equal(c(X), X + 1) and torch.equal(c(X), X + 1)
    assert [e.refusal.code for e in c.entries] == ["needs-grad"]


def test_an_error_of_our_own_runs_eagerly_and_is_logged(caplog):
    def compile_graph(capture, examples):
        raise ZeroDivisionError("a bug")

    from minicompile.capture.compiled import Compiled
    from minicompile.config import config

    c = Compiled(lambda x: x + 1, compile_graph)
    with config.patch(strict=False):
        assert torch.equal(c(X), X + 1)
    assert [e.refusal.code for e in c.entries] == ["internal"]
    assert "ZeroDivisionError" in caplog.text


def test_modes_are_left_after_a_refusal():
    def f(x):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch.device("cpu"):
            return x.sum().numpy()

    c = compiled(f)
    c(X)
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    assert torch._C._len_torch_function_stack() == 0 and torch._C._len_torch_dispatch_stack() == 0


def test_a_changed_grad_mode_is_captured():
    c = compiled(leaves_grad_mode_changed)
    for _ in range(2):
        with torch.enable_grad():
            assert torch.equal(c(X), X) and not torch.is_grad_enabled()
    assert not refusals(c) and len(c.entries) == 1


def test_threads():
    def f(x, k):
        return [x * i for i in range(k)], sorted([3, 1, 2], key=lambda v: -v)

    c = compiled(f)
    results, limit = [None] * 8, sys.getrecursionlimit()

    def work(i):
        results[i] = [c(X, i % 3 + 1) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sys.getrecursionlimit() == limit
    for i, got in enumerate(results):
        for tensors, order in got:
            assert order == [3, 2, 1] and all(torch.equal(t, X * j) for j, t in enumerate(tensors))
    assert not refusals(c)


def test_generators_left_behind_by_a_refusal_do_not_run_on():
    log = []

    def generator():
        try:
            yield 1
        finally:
            log.append("closed")

    def f(x):
        g = generator()
        next(g)
        return x.sum().numpy(), g

    c = compiled(f)
    kept = c(X)
    gc.collect()
    assert log == [], "only the eager call's generator exists, and it is alive"
    kept[1].close()
    assert log == ["closed"]
