"""Plans over sizes: fusion as for numbers, one arena whose places depend on the sizes."""

from __future__ import annotations

import pytest
import torch
from size_graphs import S0, S1, Sized, expected, random_sized
from test_loops import assignments

from minicompile.ir.sym import asking
from minicompile.loops.build import build_loops
from minicompile.loops.sizes import hints, specialise
from minicompile.schedule.cores import TYPES
from minicompile.schedule.fuse import schedule


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("seed", range(120))
def test_random_plans_at_many_sizes(seed):
    graph, made = random_sized(seed, 18)
    with asking() as conditions:
        plan = schedule(build_loops(graph), cores=TYPES if seed % 2 else ())
    plan.check()
    for sizes in assignments([*made, *conditions]):
        inputs, want, after = expected(graph, sizes)
        close(plan.run(*inputs), want)
        close(inputs, after)


@pytest.mark.parametrize("seed", range(60))
def test_kernels_are_those_of_numbers(seed):
    """Fusion of the same loops with numbers in place of sizes: as many kernels, hints decide profit."""
    graph, _ = random_sized(seed, 18)
    with asking():
        loops = build_loops(graph)
        plan = schedule(loops)
    fixed = schedule(specialise(loops, hints(loops.sizes)))
    assert len(plan.steps) <= len(fixed.steps) + 1


def softmax(m, x, shape):
    top = m.expand(m.reshape(m.amax(x, (1,)), (shape[0], 1)), shape)
    e = m.exp(m.sub(x, top))
    return m.div(e, m.expand(m.reshape(m.sum(e, (1,)), (shape[0], 1)), shape))


def test_a_softmax_over_sizes_is_one_kernel_with_no_condition():
    m = Sized()
    x = m.input(S0, S1)
    with asking() as conditions:
        plan = schedule(build_loops(m.output(softmax(m, x, (S0, S1))).graph()))
    assert len(plan.steps) == 1 and not conditions, plan
    assert plan.steps[0].tiling.vector == "inner"


def test_layers_share_their_memory():
    """Temporaries of equal sizes take each other's place: two live at once, however many layers."""
    m = Sized()
    x = m.input(S0, 16)
    w = m.input(16, 16)
    y = x
    for _ in range(6):
        y = m.mm(m.tanh(m.mm(y, w)), w)
    with asking() as conditions:
        plan = schedule(build_loops(m.output(y).graph()))
    assert str(plan.arena_bytes) == "(128*s0)" and not conditions, plan.arena


def test_a_larger_block_serves_a_smaller_need():
    m = Sized()
    x, w, v = m.input(S0, 64), m.input(64, 256), m.input(256, 64)
    y = m.mm(m.tanh(m.mm(x, w)), v)
    y = m.mm(m.tanh(m.mm(y, w)), v)
    with asking() as conditions:
        plan = schedule(build_loops(m.output(y).graph()))
    assert not conditions
    assert str(plan.arena_bytes) == "(1280*s0)", plan.arena
