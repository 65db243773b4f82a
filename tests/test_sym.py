"""Symbolic integers against Python's: every operation, with bounds, printing and substitution."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicompile.ir.forms import coefficient, less
from minicompile.ir.sym import Div, Mod, Var, bounds, evaluate, floordiv, mod, substitute

VARS = [Var("i", 0, 63), Var("j", 0, 11), Var("k", -4, 7), Var("n", 2, 9)]
NUMBERS = st.integers(-70, 70)
DIVISORS = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 64, 100, -2, -3, -64])


def trees(leaf: st.SearchStrategy, size: int = 12) -> st.SearchStrategy:
    """(operation, operand, operand) nested; divisors are numbers."""
    return st.recursive(
        leaf,
        lambda t: st.one_of(
            st.tuples(st.sampled_from("+-"), t, t),
            st.tuples(st.just("*"), t, NUMBERS),
            st.tuples(st.sampled_from(["//", "%"]), t, DIVISORS),
        ),
        max_leaves=size,
    )


def compute(tree: Any, env: dict) -> Any:
    if not isinstance(tree, tuple):
        return env.get(tree, tree)
    op, a, b = tree
    x, y = compute(a, env), compute(b, env)
    return {
        "+": lambda: x + y,
        "-": lambda: x - y,
        "*": lambda: x * y,
        "//": lambda: x // y,
        "%": lambda: x % y,
    }[op]()


@settings(max_examples=600, deadline=None)
@given(
    trees(st.one_of(st.sampled_from(VARS), NUMBERS)), st.lists(st.integers(0, 1000), min_size=4, max_size=4)
)
def test_equals_python(tree: Any, seeds: list[int]) -> None:
    sym = compute(tree, {})
    point = {v: v.lo + s % (v.hi - v.lo + 1) for v, s in zip(VARS, seeds)}
    want = compute(tree, point)
    lo, hi = bounds(sym)
    assert lo <= want <= hi
    names = {v.name: x for v, x in point.items()}
    assert evaluate(sym, names) == want == substitute(sym, point) == eval(str(sym), {}, names)


@settings(max_examples=200, deadline=None)
@given(
    trees(st.one_of(st.sampled_from(VARS), NUMBERS), 6),
    trees(st.one_of(st.sampled_from(VARS), NUMBERS), 6),
    st.lists(st.integers(0, 1000), min_size=4, max_size=4),
)
def test_symbolic_operands(a: Any, b: Any, seeds: list[int]) -> None:
    """Products, divisions and comparisons of two symbolic values."""
    x, y = compute(a, {}), compute(b, {})
    point = {v: v.lo + s % (v.hi - v.lo + 1) for v, s in zip(VARS, seeds)}
    names = {v.name: p for v, p in point.items()}
    p, q = compute(a, point), compute(b, point)
    assert evaluate(x * y, names) == p * q
    if less(x, y) is not None:
        assert less(x, y) == (p < q)
    size = y * y + 1
    assert evaluate(floordiv(x, size), names) == p // (q * q + 1)
    assert evaluate(mod(x, size), names) == p % (q * q + 1)


@pytest.mark.parametrize(
    "sym, text",
    [
        (lambda i, j: (64 * i + j) // 64, "i"),
        (lambda i, j: (64 * i + j) % 64, "j"),
        (lambda i, j: (12 * i + j) // 24, "(i//2)"),
        (lambda i, j: (12 * i + j) % 24, "(12*(i%2) + j)"),
        (lambda i, j: i // 4 * 4 + i % 4, "i"),
        (lambda i, j: (i // 3) // 4, "(i//12)"),
        (lambda i, j: (i % 12) % 4, "(i%4)"),
        (lambda i, j: (i + 128) // 64, "2"),
        (lambda i, j: i - i, "0"),
        (lambda i, j: (i + j) - j, "i"),
        (lambda i, j: j // 12, "0"),
        (lambda i, j: (-i) // 64 + 1, "(((-1*i)//64) + 1)"),
        (lambda i, j: i - i % 8, "(8*(i//8))"),
        (lambda i, j: i + 5 - 8 * ((i + 5) // 8), "((i + 5)%8)"),
        (lambda i, j: i + (8 - i % 8) % 8, "(-8*((-1*i)//8))"),
        (lambda i, j: (i + (8 - i % 8) % 8) // 8, "(-1*((-1*i)//8))"),
        (lambda i, j: (i + (8 - i % 8) % 8) // 8 * 8 - i, "((-1*i)%8)"),
    ],
)
def test_simplifies(sym: Any, text: str) -> None:
    assert str(sym(Var("i", 0, 63), Var("j", 0, 11))) == text


def test_equal_forms_are_one_object() -> None:
    i, j = VARS[:2]
    assert i * 3 + j is j + i + i + i
    assert Var("i", 0, 63) is i and Var("i", 0, 64) is not i
    assert (i + 5) // 7 is (5 + i) // 7


def test_symbolic_sizes() -> None:
    s, i = Var("s0", 2), Var("i", 0, 1)
    assert (i * s + 1) // s is i and (i * s + 1) % s == 1
    assert s // s == 1 and s % s == 0 and (s * s) // s is s
    assert isinstance((i + s) // (s + 1), Div) and isinstance((i * 5) % s, Mod)


def test_affine_coefficients() -> None:
    i, j = VARS[:2]
    assert coefficient(5 * i + j, i) == 5 and coefficient(j, i) == 0
    assert coefficient(i // 3 + j, i) is None and coefficient(i // 3 + j, j) == 1


def test_division_by_zero_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        VARS[0] // 0
