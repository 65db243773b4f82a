"""Attention that a program writes out, softmax(q k' * scale + mask) v, found among ATen calls: one call.

Takes the nodes of an `AtenGraph`, serves `decompose`. The fused kernel never writes the square of weights. It
gives 0 where a whole row is masked by -inf, eager mode NaN: so a mask must be seen to be finite.
"""
from __future__ import annotations

import math
from typing import Any

import torch

from ..ir.graph import Graph, Node
from .builder import Builder
from .graphs import infer

aten = torch.ops.aten
OP = aten._scaled_dot_product_flash_attention_for_cpu.default
SAME = (aten.view.default, aten._unsafe_view.default, aten.clone.default, aten.expand.default,
        aten.detach.default, aten.alias.default, aten.unsqueeze.default, aten.slice.Tensor)
Operands = tuple[Node, Node, Node, Node | None, float]          # q, k, v, mask, scale


def found(graph: Graph) -> dict[Node, Operands]:
    """The matrix products that end an attention, with its operands."""
    users = graph.users()
    shown = set(graph.roots())
    hits = {n: _operands(n) for n in graph.nodes if n.op is aten.bmm.default and _static(n)}
    return {n: got for n, (got, weights) in hits.items() if got is not None and not any(
        len(users[w]) > 1 or w in shown for w in weights)}


def call(b: Builder, n: Node, operands: Operands, values: dict[Node, Any]) -> Node:
    """The library call, in the shape of the product n."""
    q, k, v, mask = (None if x is None else values[x] for x in operands[:4])
    b.source, b.place, b.out, b.mark = n, n.where, n.spec, len(b.nodes)
    args, kwargs = (q, k, v, 0.0, False), {"attn_mask": mask, "scale": operands[4]}
    out = b.item(b.extern(OP, args, kwargs, infer(OP, args, kwargs)), 0)
    return b.laid_out(b.reshape(out, n.tensor.shape), n.tensor)


def _operands(n: Node) -> tuple[Operands | None, list[Node]]:
    """(operands, what lies between the two products) of the attention that ends in n."""
    soft, v = _behind(n.args[0], 4), _behind(n.args[1], 4)
    if soft.op is not aten._softmax.default or soft.args[1] not in (-1, 3) or soft.args[2]:
        return None, []
    scores, mask, scale = soft.args[0], None, 1.0
    if scores.op is aten.add.Tensor and not scores.kwargs and len(scores.args) == 2:
        scores, mask = sorted(scores.args, key=lambda a: not _is_product(a))
    if scores.op in (aten.mul.Tensor, aten.div.Tensor) and isinstance(scores.args[1], (int, float)):
        scale = float(scores.args[1]) if scores.op is aten.mul.Tensor else 1.0 / (scores.args[1] or math.nan)
        scores = scores.args[0]
    product = _behind(scores, 3)
    if product.op is not aten.bmm.default:
        return None, []
    q, turned = (_behind(a, 4) for a in product.args)
    if turned.op is not aten.transpose.int or {d % 4 for d in turned.args[1:]} != {2, 3}:
        return None, []
    k = turned.args[0]
    return ((q, k, v, mask, scale) if _fits(q, k, v, mask, scale) else None), [soft, scores, product]


def _static(n: Node) -> bool:
    return all(isinstance(size, int) for a in (n, *n.args) for size in a.tensor.shape)


def _is_product(a: Any) -> bool:
    """Whether it is a product of matrices, maybe times a number."""
    if isinstance(a, Node) and a.op in (aten.mul.Tensor, aten.div.Tensor):
        a = a.args[0]
    return isinstance(a, Node) and _behind(a, 3).op is aten.bmm.default


def _behind(n: Node, ndim: int) -> Node:
    """What n is a copy of, in other dimensions: the furthest with as many dimensions as are asked for."""
    best = n
    while n.op in SAME[:6] and n.args[0].tensor.numel == n.tensor.numel:
        n = n.args[0]
        if n.tensor.ndim == ndim and (best.tensor.ndim != ndim or n.tensor.shape == best.tensor.shape):
            best = n
    return best


def _fits(q: Node, k: Node, v: Node, mask: Any, scale: float) -> bool:
    """Whether the kernel takes them, and gives eager mode's values."""
    specs = [x.tensor for x in (q, k, v)]
    if any(s.ndim != 4 or not s.numel or s.stride[3] != 1
           or s.dtype is not torch.float32 or s.device != "cpu" for s in specs) or not math.isfinite(scale):
        return False
    (b, h, _, d), (*_, s, _) = specs[0].shape, specs[1].shape
    if any(x.shape[:2] != (b, h) or x.shape[3] != d for x in specs) or specs[2].shape[2] != s:
        return False
    if mask is None:
        return True
    full = (b, h, specs[0].shape[2], s)
    return (isinstance(mask, Node) and mask.tensor.dtype is torch.float32 and mask.tensor.ndim == 4
            and all(m in (1, n) for m, n in zip(mask.tensor.shape, full)) and finite(mask))


def finite(n: Any) -> bool:
    """Whether every element of a value is seen to be a finite number."""
    if not isinstance(n, Node):
        return isinstance(n, (bool, int, float)) and math.isfinite(n)
    if n.op in SAME or n.op is aten._to_copy.default:
        source = n.args[0].tensor.dtype
        return finite(n.args[0]) and (source is n.tensor.dtype or not source.is_floating_point)
    if n.op is aten.where.self:
        return finite(n.args[1]) and finite(n.args[2])
    if n.op in (aten.scalar_tensor.default, aten.full.default):
        return finite(n.args[-1]) and abs(n.args[-1]) <= torch.finfo(torch.float32).max
    return n.op in (aten.zeros.default, aten.ones.default) or (
        n.op == "constant" and bool(n.args[0].isfinite().all()) or n.tensor.dtype is torch.bool)
