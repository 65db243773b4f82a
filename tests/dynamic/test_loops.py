"""Loops over sizes: index arithmetic that knows extents, and random graphs at many sizes against their
meaning."""

from __future__ import annotations

import pytest
import torch
from size_graphs import S0, S1, Sized, expected, random_sized

from minicompile.errors import Refusal
from minicompile.ir.forms import coefficient, less, running
from minicompile.ir.sym import NeedsSizes, Size, asking, evaluate, nonnegative
from minicompile.loops.build import build_loops

NUMBERS = [(6, 10), (2, 2), (3, 7), (17, 5), (4, 33), (9, 9)]


def assignments(conditions, first=S0, second=S1, numbers=NUMBERS):
    """The sizes that the conditions allow."""
    for a, b in numbers:
        if all(c.holds({"s0": a, "s1": b}) for c in conditions):
            yield {first: a, second: b}


def test_a_variable_knows_its_extent():
    i, j, k = running("i", S0), running("j", S1), running("k", S0 * S1)
    assert (i * S1 + j) // S1 is i and (i * S1 + j) % S1 is j
    assert (k // S1) % S0 is k // S1                        # below s0, because k is below s0*s1
    assert coefficient(i * S1 + j, i) is S1 and coefficient(i * S1 + j, j) == 1
    assert coefficient(i * j, i) is None                    # no constant
    assert less(i * S1 + j, S0 * S1) is True and less(i * S1 + j, S0 * S1 - 1) is None
    assert nonnegative(S0 - 2 * (S0 // 2)) and not nonnegative(2 * (S0 // 2) - S0)


def test_what_sizes_decide_leaves_no_condition():
    with asking() as conditions:
        assert S0 * S1 > S1 and S0 * S1 != S0 and S0 * S1 * 4 >= 8 and not S0 + S1 < 4
    assert not conditions
    with asking() as conditions:
        assert S1 > S0
    assert list(map(str, conditions)) == ["(-1*s0 + s1 + -1) >= 0"]


@pytest.mark.parametrize("seed", range(300))
def test_proofs_hold_at_every_point(seed):
    import random
    r = random.Random(seed)
    i, j = running("i", S0), running("j", r.choice([S1, S0 * S1, S0 + 1, S1 // 2 + 1]))
    atoms = [i, j, S0, S1, S0 * S1, i * S1, i * S0, j * S0, i // 2, j % S0, (S0 + 1) // 2, S1 % 3, j // S1]
    s = sum((r.choice(atoms) * r.choice([-2, -1, 1, 2]) for _ in range(r.randint(1, 4))), r.randint(-3, 3))
    if not nonnegative(s):
        return
    for a, b in [(2, 2), (2, 5), (3, 2), (5, 4), (7, 9)]:
        sizes = {"s0": a, "s1": b}
        for x in range(a):
            for y in range(evaluate(getattr(j, "extent", 0), sizes)):
                assert evaluate(s, {**sizes, "i": x, "j": y}) >= 0, (s, sizes, x, y)


@pytest.mark.parametrize("seed", range(150))
def test_random_graphs_at_many_sizes(seed):
    graph, made = random_sized(seed)
    with asking() as conditions:
        loops = build_loops(graph)
    loops.check()
    ran = 0
    for sizes in assignments([*made, *conditions]):
        inputs, want, after = expected(graph, sizes)
        got = loops.run(*inputs)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)
        torch.testing.assert_close(inputs, after, rtol=1e-4, atol=1e-4, equal_nan=True)
        ran += 1
    assert ran


def test_groups_of_dimensions_never_divide_by_a_size():
    """B,S,(H D) to B,S,H,D to B,H,S,D and back to (B S),(H D)."""
    m = Sized()
    x = m.input(S0, S1, 12)
    y = m.permute(m.reshape(x, (S0, S1, 3, 4)), (0, 2, 1, 3))
    z = m.reshape(m.permute(m.neg(y), (0, 2, 1, 3)), (S0 * S1, 12))
    with asking() as conditions:
        loops = build_loops(m.output(m.add(z, 1.0)).graph())
    assert not conditions
    assert "//" not in str(loops) and "%" not in str(loops), loops


def test_a_size_no_input_says_is_refused_and_one_that_is_an_input_is_read():
    m = Sized()
    x = m.input(S0 * S1)
    m.output(m.reshape(m.neg(x), (S0, S1)))
    with pytest.raises(NeedsSizes) as e, asking():
        build_loops(m.graph())
    assert isinstance(e.value, Refusal)
    m.size(S0)
    m.size(S1)
    with asking():
        loops = build_loops(m.graph())
    x = torch.arange(12.0)
    assert loops.run(x, 3, 4)[0].equal(-x.reshape(3, 4))


def test_the_sizes_are_read_from_plain_dimensions():
    t = Size("s7", 5)
    m = Sized()
    x, y = m.input(2 * t, 4), m.input(3, t)
    m.output(m.neg(x), m.neg(y))
    with asking():
        loops = build_loops(m.graph())
    assert loops.sizes == ((t, 1, 1),)
