"""Decompose: ATen graph to prims and externs.

Takes an `AtenGraph` from `trace`, gives `Prims` for `loops.build`. One pass: each call goes to its
decomposition (`pointwise`, `reduction`, `views`, `indexing`, `backward`, `foreach`), or stays whole as an
extern where there is none, where it declines (NotImplemented), or where a dtype is not for prims. Then
what no result needs is dropped.
"""
from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from ..errors import Refusal, Where
from ..ir.geometry import sizes_in
from ..ir.graph import Graph, Node, Output, map_arg
from ..ir.prims import Misfit
from ..ir.scalar import Specialise
from ..ir.spec import TensorSpec
from ..ir.sym import NeedsSizes
from . import (
    attention,
    backward,
    foreach,
    indexing,
    philox,
    pointwise,
    products,
    reduction,
    special,
    views,
    windows,
)
from .builder import RULES, SUPPORTED, Builder, as_dtype
from .composite import composition
from .graphs import AtenGraph, Prims, infer

# each registers its rules
assert all((backward, foreach, indexing, philox, pointwise, products, reduction, special, views, windows))


def decompose(aten_graph: AtenGraph, whole: frozenset[Any] = products.LIBRARY) -> Prims:
    """The prims of an ATen graph: same inputs, outputs and writes, same values up to reassociation of
    sums. Operators in `whole` stay library calls."""
    g, b = aten_graph.graph, Builder(whole)
    values: dict[Node, Any] = {}
    for n in g.inputs:
        values[n] = Node(b.names.take(n.name), "input", n.args, {}, n.spec)
    needed = set(alive(g.nodes, list(g.roots()), cut=True))
    attentions = attention.found(g)
    checks: list[Node] = []
    for n in g.nodes:
        if n in needed or not _may_raise(n):
            fused = attentions.get(n)
            values[n] = attention.call(b, n, fused, values) if fused else _lower(b, n, values)
            if _may_raise(n) and isinstance(values[n], Node) and values[n].op is n.op:
                checks.append(values[n])          # also where what became of its value is known without it
        else:                             # nothing needs its value, but eager mode would see bad arguments
            args, kwargs = map_arg((n.args, n.kwargs), values.__getitem__)
            b.place, b.out = n.where, n.spec
            values[n] = _extern(b, n, args, kwargs)
            checks.append(values[n])
    outputs = []
    for o in g.outputs:
        node = values[o.node]
        if o.views:                       # the caller makes it from its base
            node = values[g.inputs[o.alias[1]] if o.alias[0] == "input" else g.outputs[o.alias[1]].node]
        node = b.laid_out(node, o.spec) if o.alias is None else node
        outputs.append(Output(node, o.spec, o.alias, o.views))
    b.mark = len(b.nodes)
    writes = tuple((i, values[n]) for i, n in g.writes)
    inputs = tuple(values[n] for n in g.inputs)
    roots = [o.node for o in outputs] + [n for _, n in writes] + checks
    return Prims(Graph(inputs, tuple(alive(b.nodes, roots)), tuple(outputs), writes, g.returned, g.restrides))


def _lower(b: Builder, n: Node, values: dict[Node, Any], place: Where | None = None) -> Any:
    """The prim-level value of one ATen node: a Node, or a tuple of them."""
    b.source, b.place, b.out, b.mark = n, n.where or place, n.spec, len(b.nodes)
    if n.op == "constant":
        return b.constant(n.args[0])
    if n.op == "getitem":
        source = values[n.args[0]]
        return source[n.args[1]] if isinstance(source, tuple) else b.item(source, n.args[1])
    args = map_arg(n.args, values.__getitem__)
    kwargs = {k: map_arg(v, values.__getitem__) for k, v in n.kwargs.items()}
    rule = RULES.get(n.op) if n.op not in b.whole else None
    out: Any = NotImplemented
    if rule is not None and _for_prims(n):
        with suppress(Misfit):             # arguments that do not fit together: the ATen kernel says so
            try:
                out = _nothing(b, n.spec) or rule(b, *args, **kwargs)
            except (TypeError, AttributeError) as e:          # of C code that is given sizes
                sizes = sizes_in(n.spec, n.args, *(a.spec for a in n.operands))
                if not sizes:
                    raise
                raise NeedsSizes(sum(sizes), f"{n.op} is decomposed with numbers") from e
    if out is NotImplemented:
        inside = composition(n) if rule is None else None
        if inside is None:
            return _extern(b, n, args, kwargs)
        out = _inline(b, n, inside, values)
    if isinstance(out, (tuple, list)):
        specs = n.spec if isinstance(n.spec, tuple) else (None,) * len(out)
        if len(set(out)) < len(out):          # laying out one result must not replace another
            b.mark = len(b.nodes)
        return tuple([b.laid_out(o, s) if s is not None else o for o, s in zip(out, specs)])
    return b.laid_out(out, n.tensor)


def _inline(b: Builder, n: Node, inside: Graph, values: dict[Node, Any]) -> Any:
    """The prim-level value of what a composite operator does."""
    own = {i: values[a] for i, a in zip(inside.inputs, dict.fromkeys(n.operands))}
    for m in inside.nodes:
        own[m] = _lower(b, m, own, n.where)
    b.source, b.place, b.out, b.mark = n, n.where, n.spec, len(b.nodes)
    results = tuple([own[o.node] for o in inside.outputs[:inside.returned]])
    return results if isinstance(n.spec, tuple) else results[0]


def _nothing(b: Builder, spec: Any) -> Any:
    """What has no elements needs no computing; None where there are some."""
    if not empty(spec):
        return None
    if isinstance(spec, tuple):
        return tuple(_nothing(b, s) for s in spec)
    return b.full(spec.shape, as_dtype(0, spec.dtype), spec.dtype)


def empty(spec: Any) -> bool:
    """Whether a result is known to have no elements, all of it if it is several tensors."""
    if isinstance(spec, tuple):
        return bool(spec) and all(map(empty, spec))
    return isinstance(spec, TensorSpec) and 0 in spec.shape


MOST_DIMS = 64          # what eager mode's reductions take


def _for_prims(n: Node) -> bool:
    """Whether all tensors at this node have dtypes prims know."""
    specs = [a.spec for a in n.operands] + [n.spec]
    flat = [s for spec in specs for s in (spec if isinstance(spec, tuple) else (spec,)) if s is not None]
    return all(s.dtype in SUPPORTED and s.ndim <= MOST_DIMS for s in flat)


# operators that look at data and may raise: at any, and at integers only
INDEXING = frozenset("""index index_select gather embedding take index_put index_add index_copy index_fill
                     scatter scatter_add scatter_reduce nll_loss_forward nll_loss2d_forward multi_margin_loss
                     put masked_scatter index_reduce embedding_renorm binary_cross_entropy""".split())
DIVIDING = frozenset("div floor_divide remainder fmod".split())


def _may_raise(n: Node) -> bool:
    name = n.op._overloadpacket.__name__ if isinstance(n.op, torch._ops.OpOverload) else ""
    return name in INDEXING or name in DIVIDING and not n.tensor.dtype.is_floating_point


def _extern(b: Builder, n: Node, args: tuple, kwargs: dict) -> Any:
    """The ATen call itself. Views are copied: an extern's result never shares memory with its arguments."""
    aten, op, spec = torch.ops.aten, n.op, n.spec
    for a in n.operands:
        if isinstance(a.spec, TensorSpec) and a.spec.number:
            raise Specialise(str(op), a.args[0])
    if op is aten.as_strided_scatter.default and args[0].op is not aten.empty.memory_format:
        if n.tensor.dtype is not torch.complex64:
            raise Refusal("as-strided", f"{op} on {n.tensor.dtype} depends on its argument's memory", n.where)
        words = [b.call(aten.view_copy.dtype, a, torch.int64) for a in args[:2]]
        return b.call(aten.view_copy.dtype, RULES[op](b, *words, *args[2:], **kwargs), n.tensor.dtype)
    if op in UNVIEWED:
        op = UNVIEWED[op]
        spec = infer(op, args, kwargs)
    elif op.is_view:
        packet = op._overloadpacket.__name__.strip("_") + "_copy"
        op = getattr(getattr(torch.ops.aten, packet), op._overloadname)
        spec = infer(op, args, kwargs)
    return b.extern(op, args, kwargs, spec)


UNVIEWED = {torch.ops.aten._unsafe_view.default: torch.ops.aten.view_copy.default,
            torch.ops.aten._reshape_alias.default: torch.ops.aten._reshape_alias_copy.default,
            torch.ops.aten.reshape.default: torch.ops.aten._reshape_copy.default,
            torch.ops.aten._conj.default: torch.ops.aten._conj_physical.default,
            torch.ops.aten._neg_view.default: torch.ops.aten.neg.default}


def alive(nodes: list[Node], roots: list[Node], cut: bool = False) -> list[Node]:
    """The nodes that results depend on, and those with an effect: drawing random numbers, or raising. With
    `cut`, what has no elements depends on nothing."""
    needed = set(roots)
    kept = []
    for n in reversed(nodes):
        effect = isinstance(n.op, torch._ops.OpOverload) and (
            torch.Tag.nondeterministic_seeded in n.op.tags or not n.op._schema.returns)
        if n in needed or effect:
            kept.append(n)
            if not (cut and empty(n.spec)):
                needed.update(n.operands)
    return kept[::-1]
