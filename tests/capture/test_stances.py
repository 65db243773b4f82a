"""Stances, the marks that keep functions out of graphs, and what is said when a function is compiled again."""

import logging
import threading

import pytest
import torch

import minicompile
from minicompile.api import handle_of
from minicompile.config import ConfigError, config
from minicompile.errors import MinicompileError, Refusal

X = torch.arange(4.0)


def graphs(f):
    return len(handle_of(f).compilations)


def make():
    return minicompile.compile(lambda x, k=None: x * 2 + 1, backend="eager")


@pytest.fixture(autouse=True)
def back_to_default():
    yield
    minicompile.set_stance("default")


def test_force_eager():
    before = make()
    before(X)
    with minicompile.set_stance("force_eager"):
        after = make()
        assert torch.equal(before(X), X * 2 + 1) and torch.equal(after(X), X * 2 + 1)
        hits = handle_of(before).compiled.entries[0].hits
        before(X)
        assert handle_of(before).compiled.entries[0].hits == hits and graphs(after) == 0
    after(X)
    assert graphs(after) == 1


def test_eager_on_recompile():
    f = make()
    f(X)
    with minicompile.set_stance("eager_on_recompile"):
        assert torch.equal(f(X + 1), X * 2 + 3) and handle_of(f).compiled.entries[0].hits >= 1
        y = torch.ones(7)
        assert torch.equal(f(y), y * 2 + 1) and graphs(f) == 1
    f(y)
    assert graphs(f) == 2


def test_fail_on_recompile():
    f = make()
    f(X)
    minicompile.set_stance("fail_on_recompile")
    f(X)
    with pytest.raises(MinicompileError, match=r"fail_on_recompile[\s\S]*x: Tensor float32\[4\]"):
        f(torch.ones(5))
    with pytest.raises(MinicompileError, match="nothing is compiled yet"):
        make()(X)
    minicompile.set_stance("default")
    assert torch.equal(f(torch.ones(5)), torch.full((5,), 3.0))


def test_as_a_decorator_and_nested():
    f = make()

    @minicompile.set_stance("force_eager")
    def eager(x):
        assert config.stance == "force_eager"
        with minicompile.set_stance("eager_on_recompile"):
            f(x)
        assert config.stance == "force_eager"
        return f(x)

    assert config.stance == "default"
    eager(X)
    assert config.stance == "default" and graphs(f) == 0


def test_a_stance_is_the_processs():
    f = make()
    with minicompile.set_stance("force_eager"):
        thread = threading.Thread(target=f, args=(X,))
        thread.start()
        thread.join()
        assert graphs(f) == 0


def test_an_unknown_stance():
    with pytest.raises(ConfigError, match="force_eager"):
        minicompile.set_stance("never")


def test_stances_reach_what_comes_after_breaks():
    @minicompile.compile(backend="eager")
    def f(x):
        y = x + 1
        minicompile.graph_break()
        return y * x.shape[0]

    f(X)
    assert graphs(f) == 2
    with minicompile.set_stance("eager_on_recompile"):
        assert torch.equal(f(torch.ones(9)), torch.full((9,), 18.0)) and graphs(f) == 2
    with minicompile.set_stance("force_eager"):
        assert torch.equal(f(X), (X + 1) * 4)


# Marks


def test_graph_break():
    def f(x):
        y = x + 1
        minicompile.graph_break()
        return y * 2

    c = minicompile.compile(f, backend="eager")
    assert torch.equal(c(X), f(X)) and graphs(c) == 2
    assert [r.code for r in handle_of(c).refusals] == ["graph-break"]
    with pytest.raises(Refusal, match="graph-break"):
        minicompile.compile(f, fullgraph=True)(X)


@pytest.mark.parametrize("disable", [minicompile.disable, torch.compiler.disable], ids=["ours", "torch's"])
def test_disable(disable):
    seen = []

    @disable
    def outside(x):
        seen.append(torch.compiler.is_compiling())
        return x.sum().item()

    @minicompile.compile(backend="eager")
    def f(x):
        y = x + 1
        a = outside(y)
        b = list(map(outside, [y * 2]))
        return y * a + b[0]

    y = X + 1
    for _ in range(2):
        assert torch.equal(f(X), y * y.sum() + 2 * y.sum())
    assert seen == [False] * 4 and {r.code for r in handle_of(f).refusals} == {"disabled"}


def test_markers_of_torch():
    @torch.compiler.assume_constant_result
    def constant():
        return 3

    @torch.compiler.allow_in_graph
    def allowed(x):
        return x.sin()

    @minicompile.compile(backend="eager", fullgraph=True)
    def f(x):
        torch.compiler.cudagraph_mark_step_begin()
        return allowed(x) * constant() + (1 if torch.compiler.is_compiling() else 0) + minicompile.is_compiling()

    assert torch.equal(f(X), X.sin() * 3 + 2)
    assert not minicompile.is_compiling()


# Compiled again


def test_a_miss_tells_what_was_expected_and_found():
    f = minicompile.compile(lambda x, word: x + len(word), backend="eager")
    f(X, "a")
    f(X, "bc")
    f(X.double(), "bc")
    first, second = minicompile.recompiles(f)
    assert "word == 'a'" in first and "found str 'bc'" in first and __file__ in first
    assert "float32[4]" in second and "float64" in second
    with pytest.raises(MinicompileError):
        minicompile.recompiles(len)


def test_too_many_variants_are_told_once(caplog):
    f = minicompile.compile(lambda x, word: x + len(word), backend="eager")
    with caplog.at_level(logging.WARNING):
        for n in range(14):
            assert torch.equal(f(X, "a" * n), X + n)
    assert caplog.text.count("more than 8 variants") == 1
    assert len(handle_of(f).compiled.entries) == 8, "the others are still compiled"


def test_what_comes_after_a_break_runs_as_it_is_after_too_many_variants(caplog):
    @minicompile.compile(backend="eager")
    def f(x, words):
        for w in words:
            x = x + 1
            minicompile.graph_break()
            x = x * len(w)
        return x

    words = ["a" * n for n in range(1, 20)]
    with caplog.at_level(logging.WARNING):
        got = f(X, words)
    expected = X
    for w in words:
        expected = (expected + 1) * len(w)
    assert torch.equal(got, expected)
    assert caplog.text.count("runs as in eager mode now") <= 2
    assert torch.equal(f(X, words), expected)


def test_an_internal_error_comes_with_what_is_needed_to_repeat_it(caplog):
    def backend(gm, examples):
        raise ZeroDivisionError("a bug")

    @minicompile.compile(backend=backend)
    def f(x, n):
        return x + n

    with config.patch(strict=False), caplog.at_level(logging.WARNING):
        assert torch.equal(f(X, 2), X + 2) and torch.equal(f(X, 2), X + 2)
    assert caplog.text.count("internal error") == 1
    assert "return x + n" in caplog.text and "# x = torch.empty_strided((4,), (1,), dtype=torch.float32" in caplog.text
