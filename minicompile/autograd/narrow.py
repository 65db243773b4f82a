"""Narrow: what is left of a backward where only some results of the forward were differentiated.

Takes a `partition.Split` and which incoming gradients arrived, gives the graph that computes from them what
the engine would. A gradient that did not arrive is not zeros: the engine runs nothing for it, and zeros times
infinity are NaN in the sum. `pipeline` compiles it at the first backward of that kind.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..ir.graph import Graph, Node, map_arg
from ..ir.prims import PRIMS
from ..ir.spec import TensorSpec
from ..lower.builder import as_dtype
from .joint import Joint
from .partition import Split, ancestors, dependents


@dataclass(frozen=True, slots=True)
class Narrowed:
    """graph    the inputs of the whole backward → some of its gradients; what did not arrive is not read
    gives    which gradients (by position): those that something flows into
    reads    which saved values (by position) it needs
    """

    graph: Graph
    gives: tuple[int, ...]
    reads: frozenset[int]


def narrow(joint: Joint, split: Split, arrived: frozenset[int]) -> Narrowed:
    """The part of `split.backward` that the tangents at the positions `arrived` flow through.

    Formulas are linear in the incoming gradients. So what comes of missing ones alone is left out of sums;
    where another operator takes both kinds it is zeros, as in the engine's formulas for several results.
    Which gradients there are the ATen graph tells: in prims, one that is zeros comes of nothing.
    """
    backward, saved = split.backward, len(split.saved)
    if len(arrived) == len(split.tangents):
        return Narrowed(backward, tuple(range(len(backward.outputs))), frozenset(range(saved)))
    tangents = backward.inputs[saved:saved + len(split.tangents)]
    live = dependents(backward, [tangents[k] for k in arrived])
    dead = dependents(backward, tangents) - live
    new: dict[Node, Node] = {n: n for n in backward.inputs if n not in dead}
    nodes: list[Node] = []

    def put(n: Node) -> Node:
        if n not in new:                # it is dead
            new[n] = _zeros(n)
            nodes.append(new[n])
        return new[n]
    for n in backward.nodes:
        if n in dead:
            continue
        rest = _rest_of_sum(n, dead)
        if rest is None:
            args, kwargs = map_arg((n.args, n.kwargs), put)
            nodes.append(Node(n.name, n.op, args, kwargs, n.spec, n.where))
        new[n] = nodes[-1] if rest is None else put(rest)
    aten = joint.aten.graph
    reached = dependents(aten, [aten.inputs[joint.primals + k] for k in arrived])
    given = aten.outputs[joint.outputs:aten.returned]
    gives = tuple(i for i, o in enumerate(given) if o.node in reached)
    outputs = tuple(replace(o, node=put(o.node)) for o in (backward.outputs[i] for i in gives))
    needed = ancestors([o.node for o in outputs])
    graph = Graph(backward.inputs, tuple(n for n in nodes if n in needed), outputs, (), len(outputs),
                  consumed=backward.consumed)
    return Narrowed(graph, gives, frozenset(i for i, n in enumerate(backward.inputs[:saved]) if n in needed))


def _rest_of_sum(n: Node, dead: set[Node]) -> Node | None:
    """What a sum comes to without its dead operand, if it has one."""
    if n.op is not PRIMS["add"] or not all(isinstance(a, Node) for a in n.args):
        return None
    left = [a for a in n.args if a not in dead]
    return left[0] if len(left) == 1 and left[0].spec == n.spec else None


def _zeros(n: Node) -> Node:
    """A node of zeros in place of n."""
    spec = TensorSpec.contiguous(n.tensor.dtype, n.tensor.shape, n.tensor.device)
    op, args = PRIMS["full"], (spec.shape, as_dtype(0, spec.dtype), spec.dtype)
    if spec.dtype.is_complex:           # no kernel of ours makes these
        op, args = "constant", (torch.zeros(spec.shape, dtype=spec.dtype, device=spec.device),)
    return Node(f"{n.name}_missing", op, args, {}, spec)
