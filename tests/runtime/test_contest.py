"""The contest with eager mode: what is timed, who wins, and what nobody may notice of it."""
from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import minicompile
from minicompile import api
from minicompile.config import config
from minicompile.runtime import contest
from minicompile.runtime.contest import TURNS, Contest


class Graph:
    """A native graph as a contest sees it, on a clock that only moves by what calls take."""

    def __init__(self, monkeypatch, compiled: float, eager: float):
        self.clock, self.seconds, self.instead, self.runs, self.rests = 0.0, (compiled, eager), None, [0, 0], 0
        monkeypatch.setattr(contest.time, "perf_counter", lambda: self.clock)

    def run(self, *inputs):
        return self._side(0)

    def eager(self, *inputs):
        return self._side(1)

    def _side(self, k):
        self.clock += self.seconds[k]
        self.runs[k] += 1
        return ("compiled", "eager")[k]

    def rest(self):
        self.rests += 1

    def __call__(self, *inputs):
        return (self.instead or self.run)(*inputs)


@pytest.mark.parametrize("compiled, eager, wins, calls", [
    (1e-3, 2e-3, False, TURNS), (1e-3, 1e-3, False, TURNS), (1.1e-3, 1e-3, False, TURNS),     # not clearly slower
    (1.2e-3, 1e-3, True, 2 * TURNS), (5e-6, 1e-6, True, 2 * TURNS), (1e-6, 5e-6, False, TURNS)])
def test_who_wins(monkeypatch, compiled, eager, wins, calls):
    graph, said = Graph(monkeypatch, compiled, eager), []
    held = Contest(graph, graph.eager, said.append)
    for n in range(calls + 2):
        assert held.verdict == "" and str(held) == f"not decided after {n} calls"
        assert graph() == "compiled", "while it lasts, the caller gets what the compiled graph gave"
    assert said == [held.verdict] and ("eager mode, which runs from now on" in held.verdict) == wins
    assert graph.instead == (graph.eager if wins else None)
    assert graph() == ("eager" if wins else "compiled")
    assert graph.rests == calls, "only one side holds memory"


def test_one_slow_turn_decides_nothing(monkeypatch):
    graph = Graph(monkeypatch, 1e-3, 1.1e-3)
    held = Contest(graph, graph.eager, lambda text: None)
    for n in range(TURNS + 2):
        graph.seconds = (9e-3 if n != 3 else 1e-3, 1.1e-3)       # somebody else has the processor in all calls but one
        graph()
    assert graph.instead is None and held.seconds == (pytest.approx(1e-3), pytest.approx(1.1e-3))


def test_long_calls_are_not_tried_twice(monkeypatch):
    graph = Graph(monkeypatch, 0.05, 0.01)
    held = Contest(graph, graph.eager, lambda text: None)
    assert (graph(), graph()) == ("compiled",) * 2 and graph.runs == [2, 0] and graph.instead is None
    assert held.verdict == "not compared with eager mode: a call takes 50 ms"


def test_eager_mode_that_raises_loses(monkeypatch):
    graph = Graph(monkeypatch, 1e-3, 1e-3)

    def raising(*inputs):
        raise ValueError("no")
    held = Contest(graph, raising, lambda text: None)
    assert [graph() for _ in range(4)] == ["compiled"] * 4
    assert held.verdict == "not compared with eager mode, which raised ValueError: no" and graph.instead is None


def test_other_threads_do_not_take_part(monkeypatch):
    graph = Graph(monkeypatch, 1e-3, 1e-3)
    results: list = []

    def eager(*inputs):
        other = threading.Thread(target=lambda: results.append(held()))
        other.start()
        other.join()
        return graph.eager()
    held = Contest(graph, eager, lambda text: None)
    for _ in range(3):
        graph()
    assert results == ["compiled"] and held.turns == 3


def of(fn):
    return api.handle_of(fn).compilations[0]


def test_a_real_graph_is_decided_and_then_costs_nothing():
    compiled, x = minicompile.compile(lambda x: torch.relu(x) * 3), torch.randn(64, 64)
    for _ in range(2 * TURNS + 3):
        torch.testing.assert_close(compiled(x), torch.relu(x) * 3)
    done = of(compiled)
    assert done.contest.verdict.startswith("a call takes ")
    assert done.executable.call.instead == (done.contest.eager if "now on" in done.contest.verdict else None)


def test_when_eager_mode_wins_results_are_its_own(monkeypatch):
    monkeypatch.setattr(contest, "MARGIN", 0.0)
    net = nn.Sequential(nn.Linear(32, 32), nn.GELU()).eval()
    compiled, x = minicompile.compile(net), torch.randn(8, 32)
    with torch.no_grad():
        for _ in range(2 * TURNS + 3):
            compiled(x)
        assert "which runs from now on" in of(compiled).contest.verdict
        assert torch.equal(compiled(x), net(x))
        net[0].weight.mul_(2)
        assert torch.equal(compiled(x), net(x)), "parameters are still the module's"


@pytest.mark.parametrize("function", [
    lambda x: x.mul_(2), lambda x: torch.nn.functional.dropout(x), lambda x: torch.rand_like(x) + x])
def test_what_would_show_takes_no_part(function):
    compiled = minicompile.compile(function)
    compiled(torch.randn(5))
    assert of(compiled).contest is None


def test_nor_what_is_trained_through():
    compiled = minicompile.compile(torch.sin)
    compiled(torch.randn(5, requires_grad=True))
    assert of(compiled).contest is None


def test_nor_where_equal_calls_give_equal_bits():
    torch.use_deterministic_algorithms(True)
    try:
        compiled = minicompile.compile(torch.sin)
        compiled(torch.randn(5))
    finally:
        torch.use_deterministic_algorithms(False)
    assert of(compiled).contest is None


def test_it_can_be_turned_off():
    with config.patch(contest=False):
        compiled = minicompile.compile(torch.sin)
        compiled(torch.randn(5))
    assert of(compiled).contest is None


def test_explain_holds_it_to_its_end():
    found = minicompile.explain(lambda x: torch.sin(x) + 1)(torch.randn(100))
    assert len(found.contests) == 1 and "a call takes" in found.contests[0]
    assert "against eager mode" in str(found)


def test_errors_of_the_call_are_the_callers():
    compiled, x = minicompile.compile(lambda x, i: x[i] * 2), torch.randn(5)
    for i in (1, 4, 7, 2, 9, 3):
        index = torch.tensor([i])
        if i < 5:
            assert torch.equal(compiled(x, index), x[index] * 2)
        else:
            with pytest.raises(IndexError):
                compiled(x, index)
