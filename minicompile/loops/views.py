"""Index maps: where a view prim's element comes from. Views never become loops; they move indices from
consumer to producer.

Takes view nodes of the prim graph, serves `build` (values at an index) and `realise` (strided windows for
library kernels).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir.forms import alike, coefficient, running
from ..ir.graph import Node
from ..ir.spec import TensorSpec, contiguous_stride
from ..ir.sym import Sym, free_vars, hint, same, substitute

Indices = tuple[Sym | int, ...]
VIEWS = (
    "expand",
    "permute",
    "reshape",
    "slice",
    "flip",
)  # each element is one element of the first argument


def name_of(node: Node) -> str:
    """The prim's name, "input" and the like, or "" for a library kernel."""
    if isinstance(node.op, str):
        return node.op
    return node.op.name if hasattr(node.op, "kind") else ""


def kind_of(node: Node) -> str:
    """The prim's kind column, or "input" "constant" "getitem" "extern"."""
    if isinstance(node.op, str):
        return node.op
    return node.op.kind if hasattr(node.op, "kind") else "extern"


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """A prim's argument, however it was passed."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def source_index(node: Node, idx: Indices) -> tuple[Node, Indices]:
    """(source, its index) of element `idx` of a node in VIEWS."""
    src: Node = node.args[0]
    shape = src.tensor.shape
    match name_of(node):
        case "expand":
            tail = idx[len(idx) - len(shape) :]
            return src, tuple(0 if n == 1 else i for n, i in zip(shape, tail))
        case "permute":
            out: list[Sym | int] = [0] * len(idx)
            for i, d in zip(idx, argument(node, 1, "dims")):
                out[d] = i
            return src, tuple(out)
        case "reshape":
            return src, reshape_index(shape, node.tensor.shape, idx)
        case "slice":
            d, start = argument(node, 1, "dim"), argument(node, 2, "start")
            step = argument(node, 4, "step", 1)
            return src, tuple(i * step + start if k == d else i for k, i in enumerate(idx))
        case "flip":
            dims = argument(node, 1, "dims")
            return src, tuple(shape[k] - 1 - i if k in dims else i for k, i in enumerate(idx))
    raise TypeError(f"not a view: {node}")


def reshape_index(src: Sequence[int], dst: Sequence[int], idx: Indices) -> Indices:
    """The index into shape `src` of element `idx` of shape `dst`, same elements in row-major order.

    Dimensions are matched in the smallest groups whose sizes multiply to the same, so most stay untouched.
    """
    if alike(src, dst):
        return idx
    if any(same(n, 0) for n in src):
        return (0,) * len(src)
    out: list[Sym | int] = []
    i = j = 0
    while i < len(src) or j < len(dst):
        i0, j0 = i, j
        have: Sym | int = 1
        want: Sym | int = 1
        if i < len(src):
            have, i = src[i], i + 1
        if j < len(dst):
            want, j = dst[j], j + 1
        while not same(have, want):
            if i < len(src) and (j == len(dst) or hint(have) < hint(want)):
                have, i = have * src[i], i + 1
            elif j < len(dst):
                want, j = want * dst[j], j + 1
            elif have == want:                      # known to be: asked before
                break
            else:
                raise ValueError(f"{src} and {dst} have different numbers of elements")
        out += _regroup(src[i0:i], dst[j0:j], idx[j0:j])
    return tuple(out)


def _regroup(src: Sequence[int], dst: Sequence[int], idx: Indices) -> list[Sym | int]:
    big = [(n, i) for n, i in zip(dst, idx) if not same(n, 1)]
    wide = [n for n in src if not same(n, 1)]
    if alike([n for n, _ in big], wide):
        left = iter(i for _, i in big)
        return [0 if same(n, 1) else next(left) for n in src]
    linear: Sym | int = 0
    for n, i in big:
        linear = linear * n + i
    out: list[Sym | int] = []
    for k, (n, step) in enumerate(zip(src, contiguous_stride(src))):
        first = all(same(m, 1) for m in src[:k])
        out.append(0 if same(n, 1) else linear // step if first else linear // step % n)
    return out


def offset_of(idx: Indices, stride: Sequence[int]) -> Sym | int:
    """The linear offset of an element."""
    total: Sym | int = 0
    for i, s in zip(idx, stride):
        total = total + i * s
    return total


def chain(node: Node, stop: dict[Node, Any] | frozenset[Node]) -> Node:
    """The node that `node` is a view of: the first one that is no view, or lies in `stop`."""
    while kind_of(node) == "view" and name_of(node) in VIEWS and node not in stop:
        node = node.args[0]
    return node


def strided_window(node: Node, base: Node, layout: Sequence[int]) -> TensorSpec | None:
    """node's geometry on `base`'s memory (stride `layout`), if node is a strided window of it; offset
    counts from base's first element."""
    spec = node.tensor
    if spec.numel == 0:
        return spec.with_(offset=0)
    variables = [running(f"i{k}", n) for k, n in enumerate(spec.shape)]
    idx: Indices = tuple(0 if n == 1 else v for n, v in zip(spec.shape, variables))
    at = node
    while at is not base:
        at, idx = source_index(at, idx)
    total = offset_of(idx, layout)
    strides = [coefficient(total, v) for v in variables]
    start = substitute(total, dict.fromkeys(variables, 0))
    if any(s is None or s < 0 for s in strides) or free_vars(start) & set(variables):
        return None
    kept = tuple(own if n == 1 else s for n, s, own in zip(spec.shape, strides, spec.stride))
    return spec.with_(stride=kept, offset=start)
