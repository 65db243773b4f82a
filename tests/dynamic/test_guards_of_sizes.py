"""Conditions on sizes as guards, and strides as expressions of sizes: properties over random ones."""
from __future__ import annotations

import operator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minicompile.capture.sizes import Sizes, learned, strides
from minicompile.capture.sources import Source
from minicompile.capture.varying import Numbers
from minicompile.capture.world import CaptureWorld
from minicompile.ir.spec import TensorSpec
from minicompile.ir.sym import Condition, Size, Sym, evaluate

NAMES = ("x", "y")
FUNCTIONS = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod)


def world() -> Sizes:
    """Two tensors' first sizes, open."""
    found = CaptureWorld()
    found.numbers = Numbers(sizes=True)
    for i, name in enumerate(NAMES):
        found.sizes.open(Source.local(i, name).size(0), 10 + i)
    return found.sizes


@st.composite
def expressions(draw: st.DrawFn) -> list[tuple]:
    """Steps (function, operand, operand), operands being sizes, ints or earlier results."""
    steps: list[tuple] = []
    for i in range(draw(st.integers(1, 5))):
        before = st.sampled_from([*NAMES, *range(i)])
        f = draw(st.sampled_from(FUNCTIONS))
        small = st.integers(1, 9).map(lambda n: ("int", n))
        b = draw(small if f in (operator.floordiv, operator.mod) else st.one_of(before, small))
        steps.append((f, draw(before), b))
    return steps


def compute(steps: list[tuple], values: dict) -> object:
    done = dict(values)
    for i, (f, a, b) in enumerate(steps):
        done[i] = f(done[a], b[1] if isinstance(b, tuple) else done[b])
    return done[len(steps) - 1]


@settings(max_examples=150, deadline=None)
@given(expressions(), st.sampled_from(["eq", "ne", "ge"]), st.integers(-3, 40), st.integers(2, 30), st.integers(2, 30))
def test_guards_say_what_conditions_say(steps: list[tuple], relation: str, less: int, m: int, n: int) -> None:
    sizes = world()
    s0, s1 = sizes.dims
    sym = compute(steps, {"x": s0, "y": s1})
    assert isinstance(sym, (int, Sym))
    sym = sym - less
    if isinstance(sym, int):
        return
    condition = Condition(relation, sym)
    guard = sizes.guard(condition, None)
    slots = [torch.empty(m), torch.empty(n)]
    expected = compute(steps, {"x": m, "y": n}) - less
    assert evaluate(sym, {"s0": m, "s1": n}) == expected
    assert guard.holds(slots) == condition.holds({"s0": m, "s1": n}) == {
        "eq": expected == 0, "ne": expected != 0, "ge": expected >= 0}[relation], (guard, condition)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_strides_follow_sizes(shape: list[int], data: st.DataObject) -> None:
    """A permuted dense tensor's strides as expressions are right for every other size."""
    order = data.draw(st.permutations(range(len(shape))))
    open_ = data.draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
    spec = TensorSpec.of(torch.empty(shape).permute(*order))
    marked = tuple(Size(f"s{d}", n) if o and n > 1 else n for d, (n, o) in enumerate(zip(spec.shape, open_)))
    found = strides(spec, marked)
    env = {f"s{d}": data.draw(st.integers(2, 9)) for d in range(len(shape))}
    there = [evaluate(n, env) for n in marked]
    back = [there[order.index(d)] for d in range(len(shape))]
    assert tuple(evaluate(s, {f"s{d}": n for d, n in enumerate(spec.shape)}) for s in found) == spec.stride
    if 1 not in spec.shape:
        assert tuple(evaluate(s, env) for s in found) == torch.empty(back).permute(*order).stride()


def test_other_strides_are_constants() -> None:
    """Of a window on a larger tensor, a broadcast one, one with overlaps."""
    n = Size("s0", 4)
    assert strides(TensorSpec.of(torch.empty(4, 9)[:, :6]), (n, 6)) == (9, 1)
    assert strides(TensorSpec.of(torch.empty(1, 6).expand(4, 6)), (n, 6)) == (0, 1)
    assert strides(TensorSpec.of(torch.empty(9).as_strided((4, 6), (1, 1))), (n, 6))[0] in (1, n)


def test_guards_read_well() -> None:
    sizes = world()
    s0, s1 = sizes.dims
    shown = [str(sizes.guard(Condition(r, s), None)) for r, s in (
        ("ge", s0 - 5), ("ge", 7 - s0), ("eq", s0 * 2 - 8), ("ne", s0 - s1), ("eq", s0 % 4), ("ge", s0 * s1 - 9))]
    assert shown == ["x.size(0) >= 5", "x.size(0) <= 7", "(x.size(0) * 2) == 8",
                     "((x.size(0) + (y.size(0) * -1)) != 0)", "(x.size(0) % 4) == 0", "(x.size(0) * y.size(0)) >= 9"]


def test_equal_sizes_are_one() -> None:
    sizes = world()
    first = next(iter(sizes.dims))
    assert sizes.open(Source.local(2, "z").size(1), first.hint) is first
    assert len(sizes.dims[first]) == 2 and any("==" in str(g) for g in sizes.world.guards.values())


def test_what_a_call_teaches() -> None:
    found = CaptureWorld()
    found.guard(Source.local(0, "n"), "equals", 3)
    source = Source.local(1, "x")
    found.read_tensor(source, torch.empty(4, 5))
    guards = list(found.guards.values())
    numbers = learned(Numbers(), guards, [3, torch.empty(4, 6)])
    assert numbers.changing == {"x.size(1)"}
    assert learned(Numbers(sizes=False), guards, [3, torch.empty(4, 6)]).changing == frozenset()
    assert learned(Numbers(), guards, [4, torch.empty(4, 6, dtype=torch.float64)]).changing == {"n"}
    assert learned(Numbers(), guards, ["a", None]).changing == frozenset()
