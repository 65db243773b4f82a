"""Planted faults: a copy of each border object is broken in one way, and `check` or `bisect` must name the stage.

Each row of MUTANTS is (stage, fault, function from the right object to the broken one, who must notice).
"""
from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minicompile.codegen import driver
from minicompile.errors import CheckError
from minicompile.ir.graph import Graph, Node, map_arg
from minicompile.ir.spec import TensorSpec
from minicompile.loops.ir import Load, Loop, Loops, load, rewrite
from minicompile.lower.trace import trace
from minicompile.pipeline import Compilation, compile_graph
from minicompile.schedule.plan import Kernel, Plan
from minicompile.testing.bisection import bisect_compilation

INPUTS = ("x", "y", "w", "table", "ids", "state")


def program(x, y, w, table, ids, state):  # type: ignore[no-untyped-def]
    """A bit of everything: a write to an input and a view of it, softmax, an explicit cast, library calls with and
    without out variant, a checked gather, reductions over both axes."""
    state.add_(x.mean(0))
    h = torch.softmax(x - y * 2, -1)
    low = h.to(torch.bfloat16).to(torch.float32)
    m = torch.mm(low.t(), w)
    rows = table[ids]
    n = torch.mm(torch.sigmoid(rows), torch.tanh(w).t())
    far = torch.linalg.matrix_exp(n.t() * 0.01 @ n)
    s = (rows - m).sum(0)
    return h, m.t() * 3, s, state.view(4, 4), torch.exp(-far), far.amax(1)


def inputs() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)
    return [randn(8, 16), randn(8, 16), randn(8, 12), randn(10, 12), torch.randint(0, 10, (16,), generator=g), randn(16)]


def lowered() -> Compilation:
    gm = torch.fx.symbolic_trace(program)
    done = Compilation("mutant", SimpleNamespace(gm=gm), inputs=tuple(inputs()))
    with torch.no_grad():
        done.put("aten", lambda: trace(gm, inputs()))
        done.reach("executable")
    return done


@pytest.fixture(scope="module")
def right() -> Compilation:
    return lowered()


# --------------------------------------------------------------------------------------------- editing border objects

Edit = Callable[[Any], Any]


def edit_graph(change: Callable[[Node], Node | None]) -> Edit:
    """A border object whose graph has every node for which `change` gives another replaced, users included."""
    def edit(border: Any) -> Any:
        graph: Graph = border.graph
        new: dict[Node, Node] = {}
        hits = 0
        for n in graph.nodes:
            changed = change(n) if not hits else None
            hits += changed is not None
            n2 = changed or n
            new[n] = dataclasses.replace(n2, args=map_arg(n2.args, lambda a: new.get(a, a)),
                                         kwargs=map_arg(n2.kwargs, lambda a: new.get(a, a)))
        assert hits, "the fault found no place to be planted"
        outputs = tuple(dataclasses.replace(o, node=new.get(o.node, o.node)) for o in graph.outputs)
        writes = tuple((i, new.get(n, n)) for i, n in graph.writes)
        return dataclasses.replace(border, graph=dataclasses.replace(
            graph, nodes=tuple(new.values()), outputs=outputs, writes=writes))
    return edit


def on(op: str, change: Callable[[Node], Node], when: Callable[[Node], bool] = lambda n: True) -> Edit:
    """`change` applied to the first node of operation `op` for which `when` holds."""
    return edit_graph(lambda n: change(n) if op_name(n) == op and when(n) else None)


def op_name(n: Node) -> str:
    return str(getattr(n.op, "name", n.op)() if callable(getattr(n.op, "name", None)) else getattr(n.op, "name", n.op))


def args(*values: Any) -> Callable[[Node], Node]:
    return lambda n: dataclasses.replace(n, args=values)


def swapped(n: Node) -> Node:
    return dataclasses.replace(n, args=(n.args[1], n.args[0], *n.args[2:]))


def with_graph(change: Callable[[Graph], dict[str, Any]]) -> Edit:
    return lambda border: dataclasses.replace(border, graph=dataclasses.replace(border.graph, **change(border.graph)))


def spec(**changes: Any) -> Callable[[Node], Node]:
    return lambda n: dataclasses.replace(n, spec=n.tensor.with_(**changes))


def reorder_users(g: Graph) -> dict[str, Any]:
    """The last node first: it comes before what it uses."""
    return {"nodes": (g.nodes[-1], *g.nodes[:-1])}


def duplicate_name(g: Graph) -> dict[str, Any]:
    clone = dataclasses.replace(g.nodes[0])
    return {"nodes": (clone, *g.nodes)}


def alias_of(i: int) -> Callable[[Graph], dict[str, Any]]:
    return lambda g: {"outputs": tuple(dataclasses.replace(o, alias=("input", i)) if o.alias else o for o in g.outputs)}


def drop_cast(border: Any) -> Any:
    """The explicit rounding to bfloat16 goes: who used it uses the value before it."""
    def change(n: Node) -> Node | None:
        inner = n.args[0] if n.args and isinstance(n.args[0], Node) else None
        if op_name(n) == "cast" and inner is not None and op_name(inner) == "cast":
            return dataclasses.replace(n, args=(inner.args[0], *n.args[1:]))
        return None
    return edit_graph(change)(border)


def restride_output(border: Any) -> Any:
    """The node behind output 0 promises another layout than the caller is told."""
    target = border.graph.outputs[0].node

    def change(n: Node) -> Node | None:
        s = n.spec
        return spec(stride=tuple(reversed(TensorSpec.contiguous(s.dtype, s.shape[::-1]).stride)))(n) if n is target else None
    return edit_graph(change)(border)


def edit_loop(change: Callable[[Loop], Loop | None]) -> Edit:
    """Loops whose first loop for which `change` gives another is replaced."""
    def edit(loops: Loops) -> Loops:
        steps, hits = [], 0
        for s in loops.steps:
            changed = change(s) if isinstance(s, Loop) and not hits else None
            hits += changed is not None
            steps.append(changed or s)
        assert hits, "the fault found no place to be planted"
        return dataclasses.replace(loops, steps=tuple(steps))
    return edit


def edit_load(buffer: str, change: Callable[[Any], Any]) -> Edit:
    """The index of every load of `buffer` in the first loop that has one goes through `change`."""
    def shift(v: Any) -> Any:
        if isinstance(v, Load) and v.buffer == buffer:
            return load(v.buffer, change(v.index), v.dtype, v.indirect, v.mask)
        return None

    def one(loop: Loop) -> Loop | None:
        body = rewrite(loop.body, {}, shift)
        return dataclasses.replace(loop, body=body) if body is not loop.body else None
    return edit_loop(one)


def recombine(before: str, after: str) -> Edit:
    return edit_loop(lambda s: dataclasses.replace(s, combine=after) if s.combine == before else None)


def without_step(which: Callable[[Loops, Any], bool]) -> Edit:
    def edit(loops: Loops) -> Loops:
        kept = tuple(s for s in loops.steps if not which(loops, s))
        assert len(kept) < len(loops.steps)
        return dataclasses.replace(loops, steps=kept)
    return edit


def stores(kind: str) -> Callable[[Loops, Any], bool]:
    return lambda loops, s: isinstance(s, Loop) and loops.buffers[s.out.buffer].kind == kind


def shorten(loop: Loop) -> Loop | None:
    """The last axis stops one short: a column is never stored."""
    if not loop.axes or loop.reduce_axes or loop.out.mode != "set":
        return None
    last = dataclasses.replace(loop.axes[-1], size=loop.axes[-1].size - 1)
    return dataclasses.replace(loop, axes=(*loop.axes[:-1], last))


def write_first(loops: Loops) -> Loops:
    """The write-back to an input comes before its old value has been read."""
    writes = [s for s in loops.steps if stores("input")(loops, s)]
    return dataclasses.replace(loops, steps=(*writes, *(s for s in loops.steps if s not in writes)))


def overlap(plan: Plan) -> Plan:
    return dataclasses.replace(plan, arena=dict.fromkeys(plan.arena, 0))


def free_early(plan: Plan) -> Plan:
    assert plan.frees, "no buffer is ever freed"
    return dataclasses.replace(plan, frees={min(plan.frees) - 1: tuple(n for names in plan.frees.values() for n in names)})


def misalign(plan: Plan) -> Plan:
    return dataclasses.replace(plan, arena={n: o + 4 for n, o in plan.arena.items()}, arena_bytes=plan.arena_bytes + 4)


def reversed_steps(plan: Plan) -> Plan:
    return dataclasses.replace(plan, steps=plan.steps[::-1], frees={len(plan.steps) - 1: sum(plan.frees.values(), ())})


def shared_local(plan: Plan) -> Plan:
    """A buffer that two steps use is called local to one kernel."""
    name = next(iter(plan.arena))
    steps, done = [], False
    for s in plan.steps:
        if isinstance(s, Kernel) and not done and any(loop.out.buffer == name for loop in s.loops):
            s, done = dataclasses.replace(s, local=(*s.local, name)), True
        steps.append(s)
    assert done
    return dataclasses.replace(plan, steps=tuple(steps), arena={n: o for n, o in plan.arena.items() if n != name})


def edit_kernel(change: Callable[[Loop], Loop | None]) -> Edit:
    """A plan with one loop of one kernel replaced."""
    def edit(plan: Plan) -> Plan:
        steps, hits = [], 0
        for s in plan.steps:
            if isinstance(s, Kernel) and not hits:
                stages = []
                for stage in s.stages:
                    new = [change(loop) if not hits else None for loop in stage.loops]
                    hits += sum(n is not None for n in new)
                    stages.append(dataclasses.replace(stage, loops=tuple(n or o for n, o in zip(new, stage.loops))))
                s = dataclasses.replace(s, stages=tuple(stages))
            steps.append(s)
        assert hits, "the fault found no place to be planted"
        return dataclasses.replace(plan, steps=tuple(steps))
    return edit


def text(before: str, after: Any) -> Edit:
    """The emitted C++ with every match of `before` replaced."""
    def edit(source: Any) -> Any:
        changed, hits = re.subn(before, after, source.text)
        assert hits, f"{before!r} is not in the source"
        return dataclasses.replace(source, text=changed)
    return edit


CHECK, BISECT = "check", "bisect"

MUTANTS: list[tuple[str, str, Edit, str]] = [
    ("aten", "swapped operands", on("aten::sub.Tensor", swapped), BISECT),
    ("aten", "wrong axis", on("aten::_softmax", lambda n: dataclasses.replace(n, args=(n.args[0], 0, n.args[2]))), BISECT),
    ("aten", "missing write-back", with_graph(lambda g: {"writes": ()}), BISECT),
    ("aten", "wrong alias", with_graph(alias_of(0)), BISECT),
    ("aten", "undefined use", with_graph(reorder_users), CHECK),
    ("aten", "duplicated name", with_graph(duplicate_name), CHECK),
    ("aten", "wrong dtype", on("aten::exp", spec(dtype=torch.float64)), CHECK),
    ("aten", "an operator that writes", on("aten::exp", lambda n: dataclasses.replace(n, op=torch.ops.aten.exp_.default)), CHECK),
    ("prims", "dropped cast", drop_cast, BISECT),
    ("prims", "wrong constant", on("mul", lambda n: dataclasses.replace(n, args=(n.args[0], n.args[1] + 1)),
                                   lambda n: isinstance(n.args[1], (int, float))), BISECT),
    ("prims", "wrong reduction axis", on("sum", lambda n: dataclasses.replace(n, args=(n.args[0], (1 - n.args[1][0],)))), CHECK),
    ("prims", "wrong shape", on("exp", spec(shape=(16, 8), stride=(8, 1))), CHECK),
    ("prims", "wrong stride", restride_output, CHECK),
    ("loops", "index out of range", edit_load("in0", lambda i: i + 1), CHECK),
    ("loops", "wrong index stride", edit_load("in0", lambda i: i // 2), BISECT),
    ("loops", "wrong reduction", recombine("sum", "amax"), BISECT),
    ("loops", "read before stored", without_step(stores("temp")), CHECK),
    ("loops", "missing output", without_step(stores("output")), CHECK),
    ("loops", "missing write-back", without_step(stores("input")), CHECK),
    ("loops", "store that does not cover", edit_loop(shorten), CHECK),
    ("loops", "written before read", write_first, CHECK),
    ("plan", "overlapping arena", overlap, CHECK),
    ("plan", "arena too small", lambda p: dataclasses.replace(p, arena_bytes=64), CHECK),
    ("plan", "misaligned arena", misalign, CHECK),
    ("plan", "freed buffer read", free_early, CHECK),
    ("plan", "wrong order", reversed_steps, CHECK),
    ("plan", "local read elsewhere", shared_local, CHECK),
    ("plan", "wrong operation", edit_kernel(
        lambda s: dataclasses.replace(s, combine="amax") if s.combine == "sum" else None), BISECT),
    ("source", "wrong operation", text(r"mc::sub\(", "mc::add("), BISECT),
    ("source", "wrong identity of a reduction", text(r"Sum::identity", "Prod::identity"), BISECT),
    ("source", "short tail", text(r"Tail\{(\d+)\}", lambda m: f"Tail{{{int(m[1]) - 1}}}"), BISECT),
]


def test_nothing_is_found_in_the_right_objects(right: Compilation) -> None:
    for stage in ("aten", "prims", "loops", "plan"):
        getattr(right, stage).check()
    finding = bisect_compilation(right)
    assert finding.agrees, str(finding)
    assert finding.agreed == ("capture", "aten", "prims", "loops", "plan", "executable")


@pytest.mark.parametrize("stage, fault, mutate, noticed_by", MUTANTS, ids=[f"{m[0]}-{m[1]}" for m in MUTANTS])
def test_mutant_is_caught(right: Compilation, stage: str, fault: str, mutate: Edit, noticed_by: str) -> None:
    broken = mutate(getattr(right, stage))
    changes: dict[str, Any] = {stage: broken}
    if stage == "source":
        changes["executable"] = driver.load(broken)
    done = dataclasses.replace(right, **changes)
    try:
        if hasattr(broken, "check"):
            broken.check()
        caught = BISECT
    except CheckError as e:
        caught = CHECK
        assert e.node and e.reason
    finding = bisect_compilation(done)
    assert finding.stage == {"source": "executable"}.get(stage, stage), str(finding)
    assert caught == noticed_by, f"{fault} was noticed by {caught}: {finding}"


# ------------------------------------------------------------------------------------------------------ training

def trained() -> Compilation:
    """A small graph with its backward, all stages of both halves."""
    def f(x, w, b):  # type: ignore[no-untyped-def]
        h = torch.tanh(x @ w) * torch.sigmoid(b)
        return (h - b).exp().sum(0), h

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), requires_grad=True)
    done = compile_graph("train", SimpleNamespace(gm=torch.fx.symbolic_trace(f)), [leaf(6, 4), leaf(4, 5), leaf(5)],
                         keep_inputs=True)
    assert done.backward is not None
    return done


@pytest.fixture(scope="module")
def right_training() -> Compilation:
    return trained()


def test_nothing_is_found_in_right_training_graphs(right_training: Compilation) -> None:
    finding = bisect_compilation(right_training)
    assert finding.agreed == ("capture", "joint", "prims", "loops", "plan", "executable"), str(finding)


def wrong_joint(done: Compilation) -> Compilation:
    aten = on("aten::sub.Tensor", swapped)(done.joint.aten)
    return dataclasses.replace(done, joint=dataclasses.replace(done.joint, aten=aten))


def wrong_backward(stage: str, edit: Edit) -> Callable[[Compilation], Compilation]:
    def change(done: Compilation) -> Compilation:
        assert done.backward is not None
        return dataclasses.replace(done, backward=dataclasses.replace(
            done.backward, **{stage: edit(getattr(done.backward, stage))}))
    return change


def wrong_saved(done: Compilation) -> Compilation:
    """Two saved values of one shape change places."""
    graph = done.backward.prims.graph
    specs = [n.spec for n in graph.inputs]
    i, j = next((i, j) for i in range(len(specs)) for j in range(i) if specs[i] == specs[j])
    places = {graph.inputs[i]: graph.inputs[j], graph.inputs[j]: graph.inputs[i]}
    nodes: dict[Node, Node] = {}

    def use(a: Node) -> Node:
        return nodes.get(a, places.get(a, a))
    for n in graph.nodes:
        nodes[n] = dataclasses.replace(n, args=map_arg(n.args, use), kwargs=map_arg(n.kwargs, use))
    outputs = tuple(dataclasses.replace(o, node=use(o.node)) for o in graph.outputs)
    prims = dataclasses.replace(done.backward.prims,
                                graph=dataclasses.replace(graph, nodes=tuple(nodes.values()), outputs=outputs))
    return dataclasses.replace(done, backward=dataclasses.replace(done.backward, prims=prims))


@pytest.mark.parametrize("stage, mutate", [
    ("joint", wrong_joint), ("prims", wrong_saved),
    ("loops", wrong_backward("loops", recombine("sum", "amax"))),
    ("plan", wrong_backward("plan", edit_kernel(
        lambda s: dataclasses.replace(s, combine="amax") if s.combine == "sum" else None)))])
def test_a_wrong_training_graph_is_caught(right_training: Compilation, stage: str,
                                          mutate: Callable[[Compilation], Compilation]) -> None:
    finding = bisect_compilation(mutate(right_training))
    assert finding.stage == stage, str(finding)


def test_a_wrong_capture_is_caught(right: Compilation) -> None:
    """What was captured is not what the function does: only the function's own result tells."""
    gm = torch.fx.symbolic_trace(program)
    first = next(n for n in gm.graph.nodes if n.target is torch.softmax)
    first.args = (first.args[0], 0)
    gm.recompile()
    done = Compilation("mutant", SimpleNamespace(gm=gm))
    with torch.no_grad():
        done.put("aten", lambda: trace(gm, inputs()))
        finding = bisect_compilation(done, inputs(), expected=program(*inputs()))
    assert finding.stage == "capture" and "tensor 0" in finding.reason
    assert bisect_compilation(right, inputs(), expected=program(*inputs())).agrees


def stage_bug(monkeypatch: pytest.MonkeyPatch, stage: str, edit: Edit) -> None:
    """From now on the stage that makes `stage` is buggy."""
    from minicompile import pipeline
    before, make = pipeline.STAGES[stage]
    monkeypatch.setitem(pipeline.STAGES, stage, (before, lambda border: edit(make(border))))


def test_the_node_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decomposition that swaps subtraction's operands: bisect names that subtraction, not what comes after it."""
    def swap_all(border: Any) -> Any:
        try:
            return on("sub", swapped, lambda n: n.tensor.shape == (16, 12))(border)
        except AssertionError:
            return border

    stage_bug(monkeypatch, "prims", swap_all)
    finding = bisect_compilation(lowered())
    assert (finding.stage, finding.node) == ("prims", "sub_1"), str(finding)


def test_fresh_copies_share_storage_as_the_originals() -> None:
    from minicompile.ir.spec import copies
    base = torch.arange(12.)
    a, b, n = copies([base[2:8].view(2, 3), base, 3])
    assert n == 3 and a.storage_offset() == 2 and a.data_ptr() == b.data_ptr() + 8 and a.data_ptr() != base.data_ptr() + 8
    a.zero_()
    assert b[2:8].eq(0).all() and base[3] == 3


@pytest.mark.parametrize("got, same", [
    (torch.tensor([1.0, 2.0 + 1e-6]), True), (torch.tensor([1.0, 2.001]), False), (torch.tensor([1.0, float("nan")]), False),
    (torch.tensor([1.0, 2.0], dtype=torch.float64), False), (torch.tensor([[1.0, 2.0]]), False), (3, False)])
def test_tolerance(got: Any, same: bool) -> None:
    from minicompile.testing.compare import value_differs
    assert (value_differs(got, torch.tensor([1.0, 2.0])) == "") is same


def test_integers_must_be_equal() -> None:
    from minicompile.testing.compare import value_differs
    assert value_differs(torch.tensor([1, 3]), torch.tensor([1, 2])) == "differs in 1 of 2 elements"
