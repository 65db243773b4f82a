"""Decompositions of foreach operators: that of the operator they stand for, on each tensor of the lists.

Takes a builder and lists of operands, gives lists of nodes. On the CPU eager mode, too, takes one tensor
after the other.
"""
from __future__ import annotations

from typing import Any

import torch

from ..ir.graph import Node
from .builder import RULES, Builder, rule

aten = torch.ops.aten
UNARY = """abs acos asin atan ceil cos cosh erf erfc exp expm1 floor frac lgamma log log10 log1p log2 neg
reciprocal round rsqrt sigmoid sign sin sinh sqrt tan tanh trunc max""".split()
ARITHMETIC = {"List": "Tensor", "Scalar": "Scalar", "ScalarList": "Scalar", "Tensor": "Tensor"}
BOUND = {"List": "Tensor", "Scalar": "default", "ScalarList": "default"}
POWER = {"List": "Tensor_Tensor", "Scalar": "Tensor_Scalar", "ScalarList": "Tensor_Scalar",
         "ScalarAndTensor": "Scalar"}
# foreach operator → (the operator on one tensor, overload → its overload)
TABLE: dict[str, tuple[str, dict[str, str]]] = {
    **{name: (name, {"default": "default"}) for name in UNARY},
    **{name: (name, ARITHMETIC) for name in ("add", "sub", "mul", "div", "lerp")},
    "clamp_min": ("clamp_min", BOUND), "maximum": ("clamp_min", BOUND),
    "clamp_max": ("clamp_max", BOUND), "minimum": ("clamp_max", BOUND),
    "pow": ("pow", POWER),
    **{name: (name, {"Scalar": "default", "ScalarList": "default"}) for name in ("addcmul", "addcdiv")},
}


def _each(op: Any) -> Any:
    def decompose(b: Builder, *args: Any, **kwargs: Any) -> Any:
        outs, results = b.out, []
        try:
            for i, spec in enumerate(outs):
                b.out = spec
                one = RULES[op](b, *(a[i] if isinstance(a, tuple) else a for a in args), **kwargs)
                if one is NotImplemented:
                    return NotImplemented
                results.append(b.laid_out(one, spec))
                b.mark = len(b.nodes)
        finally:
            b.out = outs
        return tuple(results)
    return decompose


for name, (base, overloads) in TABLE.items():
    packet = getattr(aten, f"_foreach_{name}")
    for overload, target in overloads.items():
        if overload in packet.overloads():
            rule(getattr(packet, overload))(_each(getattr(getattr(aten, base), target)))


@rule(aten._foreach_norm.Scalar)
def _norm(b: Builder, xs: tuple[Node, ...], ord: Any = 2, dtype: Any = None) -> Any:
    return _each(aten.linalg_vector_norm.default)(b, xs, ord, None, False, dtype=dtype)


@rule(aten._foreach_copy.default)
def _copy(b: Builder, xs: tuple[Node, ...], ys: tuple[Node, ...], non_blocking: bool = False) -> Any:
    return tuple(b.to(y, s.dtype, s.shape) for y, s in zip(ys, b.out))


@rule(aten._foreach_zero.default)
def _zero(b: Builder, xs: tuple[Node, ...]) -> Any:
    return tuple(b.full(s.shape, 0, s.dtype) for s in b.out)
