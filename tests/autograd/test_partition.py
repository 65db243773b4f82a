"""The cut against every possible choice, on small random programs."""
from __future__ import annotations

import itertools
import random

import pytest
import torch

from minicompile.autograd.joint import Joint, trace_joint
from minicompile.autograd.partition import BANNED, Split, recompute_class, saving_cost, split
from minicompile.ir.graph import Graph, Node
from minicompile.lower.decompose import decompose

STEPS = (
    lambda a, b: torch.sin(a),
    lambda a, b: a * b,
    lambda a, b: torch.tanh(a + b),
    lambda a, b: a @ b.t() @ b,
    lambda a, b: a.sum(0, keepdim=True) * b,
    lambda a, b: a[:2].repeat(2, 1) * b,
    lambda a, b: torch.where(a > 0, a, b),
    lambda a, b: a.double().exp().float(),
)


def random_split(seed: int) -> tuple[Graph, Split, Joint]:
    pick = random.Random(seed)
    plan = [(pick.choice(STEPS), pick.random(), pick.random()) for _ in range(pick.randint(1, 4))]

    def program(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        values = [x, y]
        for f, i, j in plan:
            values.append(f(values[int(i * len(values))], values[int(j * len(values))]))
        return sum(values[2:])
    gm = torch.fx.symbolic_trace(program)
    joint = trace_joint(gm, [torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)])
    graph = decompose(joint.aten).graph
    return graph, split(graph, joint.primals, joint.outputs, joint.tangents), joint


def reachable(n: Node, kept: set[Node], known: dict[Node, bool]) -> bool:
    """Whether the backward has n, given what is kept and the rules of recomputation."""
    if n not in known:
        known[n] = n in kept or recompute_class(n) not in BANNED and all(
            reachable(a, kept, known) for a in n.operands)
    return known[n]


def asked_for(graph: Graph, joint: Joint) -> tuple[set[Node], set[Node]]:
    """(forward values that the backward reads directly, all forward values it may depend on)"""
    after = set(graph.inputs[joint.primals:])
    for n in graph.nodes:
        if after & set(n.operands):
            after.add(n)
    stack = [o.node for o in graph.outputs[joint.outputs:graph.returned]]
    read: set[Node] = {n for n in stack if n not in after}
    seen: set[Node] = set()
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        for a in n.operands:
            stack.append(a)
            if n in after and a not in after:
                read.add(a)
    return read, seen - after


@pytest.mark.parametrize("seed", range(60))
def test_no_choice_is_cheaper(seed: int) -> None:
    graph, halves, joint = random_split(seed)
    halves.check()
    read, values = asked_for(graph, joint)
    saved = {s.node for s in halves.saved}
    assert all(reachable(n, saved, {}) for n in read)
    cost = sum(map(saving_cost, saved))
    candidates = [n for n in values if saving_cost(n) <= cost and n.op != "constant"]
    for size in range(len(candidates) + 1):
        if len(candidates) > 14 and size > 4:          # too many: small sets only
            break
        for kept in itertools.combinations(candidates, size):
            if sum(map(saving_cost, kept)) < cost:
                known: dict[Node, bool] = {}
                assert not all(reachable(n, set(kept), known) for n in read), kept
