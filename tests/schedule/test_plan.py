"""Memory, order and the verifier of plans: planted faults are found by `check`, or by running in the arena."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prim_graphs import Make, inputs_of, run_graph

from minicompile.errors import CheckError
from minicompile.ir.sym import Var
from minicompile.loops.build import build_loops
from minicompile.loops.ir import Extern, Loop, Store
from minicompile.schedule.cores import TYPES
from minicompile.schedule.fuse import schedule
from minicompile.schedule.liveness import lifetimes, may_replace
from minicompile.schedule.memory import _Block, _Lender, _place
from minicompile.schedule.plan import Kernel, Plan

aten = torch.ops.aten


def chain() -> Make:
    """Products with a softmax each, then a kernel that allocates: temps one after another, one lives longer."""
    m = Make()
    x, first = m.input(48, 64), None
    for _ in range(3):
        e = m.exp(m.sub(x, m.expand(m.reshape(m.amax(x, (1,)), (48, 1)), (48, 64))))
        p = m.div(e, m.expand(m.reshape(m.sum(e, (1,)), (48, 1)), (48, 64)))
        x = m.call(aten.mm.default, p, m.input(64, 64))
        first = first or x
    far = m.call(aten.cdist.default, x, first)
    m.output(m.neg(far), x)
    m.writes.append((1, m.add(m.inputs[1], 1.0)))
    return m


def right(cores: Sequence[torch.dtype] = ()) -> Plan:
    plan = schedule(build_loops(chain().graph()), cores)
    plan.check()
    return plan


def test_the_arena_is_reused() -> None:
    plan = right()
    total = sum(plan.buffers[n].spec.nbytes for n in plan.arena)
    assert 0 < plan.arena_bytes < total
    assert all(at % 64 == 0 for at in plan.arena.values())


def test_pointwise_result_takes_its_operands_place() -> None:
    """exp(mm) read by another product: the product's temp dies where the result is born."""
    m = Make()
    y = m.call(aten.mm.default, m.input(32, 32), m.input(32, 32))
    m.output(m.call(aten.mm.default, m.exp(y), m.input(32, 32)))
    plan = schedule(build_loops(m.graph()))
    plan.check()
    (a, b), (first, second) = plan.arena.values(), plan.arena
    kernel = next(s for s in plan.steps if isinstance(s, Kernel))
    assert a == b and may_replace(kernel, first, second)
    g, x = m.graph(), inputs_of(m.graph())
    torch.testing.assert_close(plan.run(*x), run_graph(g, x))


SPAN = st.tuples(st.integers(1, 9), st.integers(0, 12), st.integers(0, 5))


@given(st.lists(SPAN, max_size=24), st.lists(st.tuples(SPAN, st.booleans()), max_size=5))
def test_blocks_never_overlap(sizes: list[tuple[int, int, int]],
                              lending: list[tuple[tuple[int, int, int], bool]]) -> None:
    """What lives at once lies apart, and in nothing that is in use; more than the largest sum is never taken."""
    end = 20
    blocks = [_Block([f"b{i}"], 4096 * n - 8 * (n % 3), first, first + more) for i, (n, first, more) in enumerate(sizes)]
    lenders = [_Lender(f"x{i}", 4096 * n, *((last + 1, end, 0, last) if own else (0, last - 1, last, end)))
               for i, ((n, last, _), own) in enumerate(lending)]
    idle, live = {x.name: (x.start, x.end, x.size) for x in lenders}, [0] * (end + 1)
    for x in lenders:
        live[x.first:x.last + 1] = [n + x.size for n in live[x.first:x.last + 1]]
    top = _place(blocks, lenders, live, True)
    for i, a in enumerate(blocks):
        start, stop, room = idle[a.host] if a.host else (0, end, top)
        assert start <= a.first and a.last <= stop and a.at % 64 == 0 and a.at + a.size <= room
        for b in blocks[:i]:
            apart = a.last < b.first or b.last < a.first or a.at + a.size <= b.at or b.at + b.size <= a.at
            assert apart or a.host != b.host
    assert top <= sum(-(-b.size // 64) * 64 for b in blocks)


# ---- planted faults ----


def kernel(
    plan: Plan, change: Callable[[Kernel], Kernel], want: Callable[[Kernel], bool] = lambda k: True
) -> Plan:
    steps = list(plan.steps)
    k = next(k for k, s in enumerate(steps) if isinstance(s, Kernel) and want(s))
    steps[k] = change(steps[k])
    return replace(plan, steps=tuple(steps))


def rows(k: Kernel) -> bool:
    return len(k.stages) > 2


def stage(k: Kernel, n: int, change: Callable[[Loop], Loop]) -> Kernel:
    stages = list(k.stages)
    stages[n] = replace(stages[n], loops=tuple(change(x) for x in stages[n].loops))
    return replace(k, stages=tuple(stages))


def merged(k: Kernel) -> Kernel:
    """The second stage's loops already in the first: they read a maximum that is not complete."""
    first, second, *rest = k.stages
    return replace(k, stages=(replace(first, loops=first.loops + second.loops), *rest))


def overlap(p: Plan) -> Plan:
    spans = lifetimes(p.steps, set())
    a, b = next(
        (a, b) for a in p.arena for b in p.arena if a != b and spans[a][0] < spans[b][0] < spans[a][1]
    )
    return replace(p, arena={**p.arena, b: p.arena[a]})


def freed_early(p: Plan) -> Plan:
    ((step, names),) = p.frees.items()
    return replace(p, frees={step - 1: names})


FAULTS: list[tuple[str, Callable[[Plan], Plan], str | None]] = [
    ("stages merged", lambda p: kernel(p, merged, rows), "later stage"),
    ("stages reversed", lambda p: kernel(p, lambda k: replace(k, stages=k.stages[::-1]), rows), None),
    ("a stage gone", lambda p: kernel(p, lambda k: replace(k, stages=k.stages[1:]), rows), "before"),
    ("last stage gone", lambda p: kernel(p, lambda k: replace(k, stages=k.stages[:-1]), rows), None),
    (
        "a local by par index",
        lambda p: kernel(
            p, lambda k: stage(k, 0, lambda x: replace(x, out=Store(x.out.buffer, k.par[0].var))), rows
        ),
        None,
    ),
    ("a local no more", lambda p: kernel(p, lambda k: replace(k, local=k.local[1:]), rows), None),
    ("other axes", lambda p: kernel(p, lambda k: replace(k, par=k.par[1:]), rows), "axes"),
    (
        "unknown vector axis",
        lambda p: kernel(p, lambda k: replace(k, tiling=replace(k.tiling, vector="i9"))),
        "vector",
    ),
    (
        "too parallel",
        lambda p: kernel(p, lambda k: replace(k, tiling=replace(k.tiling, parallel=5))),
        "shares",
    ),
    (
        "store elsewhere",
        lambda p: kernel(
            p, lambda k: stage(k, -1, lambda x: replace(x, out=Store(x.out.buffer, x.out.index + 1))), rows
        ),
        "reaches",
    ),
    (
        "other rows stored",
        lambda p: kernel(
            p, lambda k: stage(k, -1, lambda x: replace(x, out=Store(x.out.buffer, Var("j0", 0, 63)))), rows
        ),
        None,
    ),
    ("kernel gone", lambda p: replace(p, steps=p.steps[1:]), "before"),
    ("steps swapped", lambda p: replace(p, steps=(p.steps[1], p.steps[0], *p.steps[2:])), "before"),
    (
        "library call twice",
        lambda p: replace(p, steps=(*p.steps, next(s for s in p.steps if isinstance(s, Extern)))),
        "doubled",
    ),
    ("arena too small", lambda p: replace(p, arena_bytes=p.arena_bytes - 64), "lies at"),
    ("arena not aligned", lambda p: replace(p, arena={n: a + 4 for n, a in p.arena.items()}), "lies at"),
    ("arena overlap", overlap, "shares memory"),
    ("no memory", lambda p: replace(p, arena=dict(list(p.arena.items())[1:])), "no memory"),
    ("freed early", freed_early, "freed after"),
    ("never freed", lambda p: replace(p, frees={}), "never freed"),
    (
        "freed twice",
        lambda p: replace(p, frees={**p.frees, len(p.steps): next(iter(p.frees.values()))}),
        "again",
    ),
    (
        "write-back gone",
        lambda p: replace(
            p,
            steps=tuple(
                s for s in p.steps if isinstance(s, Extern) or all(x.out.buffer != "in1" for x in s.loops)
            ),
        ),
        "never written",
    ),
    (
        "write-back first",
        lambda p: replace(
            p,
            steps=tuple(
                sorted(
                    p.steps,
                    key=lambda s: isinstance(s, Extern) or all(x.out.buffer != "in1" for x in s.loops),
                )
            ),
        ),
        "overwritten",
    ),
]


@pytest.mark.parametrize("name, plant, reason", FAULTS, ids=[f[0] for f in FAULTS])
def test_fault_is_found(name: str, plant: Callable[[Plan], Plan], reason: str | None) -> None:
    with pytest.raises(CheckError, match=reason):
        plant(right()).check()


CORE_FAULTS: list[tuple[str, Callable[[Kernel], Any]]] = [
    ("core of another operator", lambda k: replace(k, core=replace(k.core, op=aten.cdist.default))),
    ("register in memory", lambda k: replace(k, local=())),
    ("other points", lambda k: replace(k, par=k.par[::-1])),
    (
        "operand overwritten",
        lambda k: stage(k, 0, lambda x: replace(x, out=Store(next(k.core.views()).buffer, x.out.index))),
    ),  # type: ignore[union-attr]
]


@pytest.mark.parametrize("name, change", CORE_FAULTS, ids=[f[0] for f in CORE_FAULTS])
def test_core_fault_is_found(name: str, change: Callable[[Kernel], Any]) -> None:
    with pytest.raises(CheckError):
        kernel(right(cores=TYPES), change, lambda k: k.core is not None).check()


def test_overlap_shows_in_numbers_too() -> None:
    """The reference executor uses the arena as C++ would."""
    g = chain().graph()
    want = run_graph(g, inputs_of(g))
    broken = overlap(right()).run(*inputs_of(g))
    assert any(not torch.allclose(a, b, equal_nan=True) for a, b in zip(want, broken))


def test_plan_prints_memory() -> None:
    text = str(right())
    assert "arena of" in text and " at 0" in text and "free " in text and "kernel k0" in text


def test_recomputed_values_are_made_when_needed() -> None:
    """Values of inputs alone, all written down first and read by products one after another: one lives at a time."""
    m = Make()
    made = [m.exp(m.input(32, 32)) for _ in range(6)]
    y = m.input(32, 32)
    for v in made:
        y = m.call(aten.mm.default, y, v)
    m.output(y)
    plan = schedule(build_loops(m.graph()))
    plan.check()
    assert plan.arena_bytes == 3 * 4096
