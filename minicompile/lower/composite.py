"""Composite operators without a rule: torch's own composition of them, traced.

Takes an ATen call, gives the ATen graph that its kernel amounts to, for `decompose` to go on with. Only
operators that have no kernel of their own for a device: for these eager mode, too, runs the composition, so
the numbers are its.
"""
from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from ..errors import Refusal
from ..ir.graph import Graph, Node, map_arg
from ..ir.spec import TensorSpec
from .functionalise import Functionaliser
from .trace import record

COMPOSITE = torch._C.DispatchKey.CompositeExplicitAutograd
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key


@lru_cache(maxsize=None)
def is_composite(op: Any) -> bool:
    """Whether every device runs the same composition of other operators."""
    drawn = torch.Tag.nondeterministic_seeded in op.tags
    return (op.namespace == "aten" and not (drawn or op.is_view or op._schema.is_mutable)
            and bool(op._schema.returns) and has_kernel(op.name(), "CompositeExplicitAutograd")
            and not has_kernel(op.name(), "CPU"))


def composition(n: Node) -> Graph | None:
    """What n's operator does, as ATen calls on n's tensors (the graph's inputs, in the order of
    `arg_nodes`); None if that depends on data, fails, or leads back to the operator itself."""
    tensors = list(dict.fromkeys(n.operands))
    if not is_composite(n.op) or any(not isinstance(t.spec, TensorSpec) for t in tensors):
        return None
    names = [t.name for t in tensors]

    def run(*fakes: Any) -> Any:
        given = dict(zip(tensors, fakes))
        args, kwargs = map_arg(n.args, given.__getitem__), map_arg(n.kwargs, given.__getitem__)
        return n.op._op_dk(COMPOSITE, *args, **kwargs)
    into = Functionaliser()
    try:
        with torch.no_grad():
            graph = into.finish(record(run, [t.tensor for t in tensors], names, into)[2])
    except (Refusal, RuntimeError, IndexError, TypeError, ValueError):
        return None          # the kernel itself is called: what it has to say, it says then
    return None if graph.writes or any(m.op is n.op for m in graph.nodes) else graph
