"""Teams: kernels that need nothing of each other run as one parallel region, each exactly once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prim_graphs import Make

import minicompile
from minicompile.errors import CheckError
from minicompile.loops.build import build_loops
from minicompile.schedule.fuse import schedule
from minicompile.schedule.liveness import touched
from minicompile.schedule.plan import Plan
from minicompile.schedule.teams import teams


def updates(sizes: list[int], chained: bool = False) -> Plan:
    """In-place updates of one tensor per size; chained: of the same counter, too, one after the other."""
    m = Make()
    counter = m.input(1) if chained else None
    for n in sizes:
        x = m.input(n)
        m.writes.append((len(m.inputs) - 1, m.exp(m.mul(x, x))))
    if counter is not None:
        m.writes.append((0, m.add(counter, 1.0)))
    plan = schedule(build_loops(m.graph()))
    plan.check()
    return plan


def test_many_small_kernels_are_one_team() -> None:
    plan = updates([3000 + i for i in range(40)])
    assert len(plan.steps) > 20 and plan.teams == (range(len(plan.steps)),)
    assert "team of" in str(plan)


def test_what_is_too_little_for_threads_is_no_team() -> None:
    assert updates([8, 9, 10]).teams == ()


def test_temporaries_stay_where_they_are() -> None:
    """A kernel that stores to the arena is planned alone."""
    m = Make()
    for n in (40000, 50000, 60000):
        x = m.input(n, 4)
        m.output(m.call(torch.ops.aten.mm.default, m.exp(x), m.input(4, 4)))
    plan = schedule(build_loops(m.graph()))
    plan.check()
    assert plan.teams == () and plan.arena


def test_what_stores_where_another_reads_comes_after() -> None:
    """p -= lr * g * count, then count += 1: all parameters first, then all counters."""
    m = Make()
    for n in (30000, 40000, 50000):
        p, c = m.input(n), m.input(1)
        i = len(m.inputs)
        m.writes.append((i - 2, m.mul(p, m.expand(m.reshape(c, (1,)), (n,)))))
        m.writes.append((i - 1, m.add(c, 1.0)))
    plan = schedule(build_loops(m.graph()))
    plan.check()
    assert [len(t) for t in plan.teams] == [3] and len(plan.steps) == 6 or len(plan.steps) < 6


@pytest.mark.parametrize("team", [range(0, 3), range(0, 6)])
def test_check_finds_members_that_need_each_other(team: range) -> None:
    m = Make()
    for n in (30000, 40000, 50000):
        p, c = m.input(n), m.input(1)
        i = len(m.inputs)
        m.writes.append((i - 2, m.mul(p, m.expand(m.reshape(c, (1,)), (n,)))))
        m.writes.append((i - 1, m.add(c, 1.0)))
    plan = schedule(build_loops(m.graph()))
    assert len(plan.steps) == 6
    replace(plan, teams=(range(0, 3),)).check()
    with pytest.raises(CheckError, match="others need what it stores"):
        replace(plan, teams=(range(team.start, 6),)).check()


@given(st.lists(st.sampled_from([1, 7, 64, 1000, 5000, 33000]), min_size=2, max_size=12), st.integers(1, 4))
@settings(max_examples=12, deadline=None)
def test_every_element_is_computed_once(sizes: list[int], threads: int) -> None:
    """x.add_(1) twice in an element, or never, shows."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        xs = [torch.arange(float(n)) for n in sizes]
        f = minicompile.compile(lambda *xs: [x.add_(1).sin_() for x in xs] and None)
        f(*xs)
        for n, x in zip(sizes, xs):
            torch.testing.assert_close(x, (torch.arange(float(n)) + 1).sin())
    finally:
        torch.set_num_threads(before)


def test_an_index_error_in_a_team_is_raised() -> None:
    def f(xs: list, i: torch.Tensor, out: list) -> None:
        for x, o in zip(xs, out):
            o.copy_(x[i])

    xs, out = [torch.randn(4000 + k) for k in range(12)], [torch.zeros(3000) for _ in range(12)]
    g = minicompile.compile(f)
    good, bad = torch.randint(0, 4000, (3000,)), torch.full((3000,), 4005)
    g(xs, good, out)
    assert all(torch.equal(o, x[good]) for x, o in zip(xs, out))
    with pytest.raises(IndexError):
        g(xs, bad, out)


def test_the_order_is_legal() -> None:
    plan = updates([1000 * i for i in range(1, 30)], chained=True)
    ordered, _ = teams(plan.steps, plan.buffers, plan.loops)
    assert sorted(s.name for s in ordered) == sorted(s.name for s in plan.steps)
    assert all(touched(s)[1] for s in ordered)
