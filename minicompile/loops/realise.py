"""Which values get memory, and why. Everything else is computed again wherever it is read.

Takes the prim graph, serves `build`. The policy: a value that several loops need is realised unless
computing it again reads no more than loading it would; the schedule then keeps it out of memory where it
can fuse those loops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from ..ir.forms import alike
from ..ir.graph import Graph, Node, Output, arg_nodes
from ..ir.spec import TensorSpec, contiguous_stride
from ..ir.sym import Sym, hint
from .views import VIEWS, chain, kind_of, name_of, strided_window

HEAVY = frozenset(
    """exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh
acosh atanh erf
    erfc erfinv lgamma digamma pow atan2 hypot fmod remainder floordiv truncdiv sqrt rsqrt""".split()
)
MODEST = frozenset("div reciprocal nextafter".split())
MATMULS = frozenset("mm addmm bmm baddbmm".split())  # library kernels that take any one-dense-side strides
NEARLY = 1.25  # times the bytes of loading a value: small operands stay in cache
FEW = 4096  # evaluations that cost less than another loop
FEW_HEAVY = 256  # the same of those with a heavy prim
LARGEST = 200  # prims in one expression


def layout_of(spec: TensorSpec) -> tuple[int, ...]:
    """The stride a value is realised with: its own where that is dense."""
    return spec.stride if spec.is_dense else contiguous_stride(spec.shape)


@lru_cache(maxsize=None)
def out_variant(op: Any) -> Any:
    """The overload of `op` that writes into given tensors, or None. Generated wrappers, which compute first
    and copy then, don't count."""
    own = [(a.name, str(a.type)) for a in op._schema.arguments]
    for name in op.overloadpacket.overloads():
        other = getattr(op.overloadpacket, name)
        arguments = other._schema.arguments
        outs = [a for a in arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        tensors = all(str(a.type) == "Tensor" for a in outs)
        if (outs and tensors and len(outs) == len(op._schema.returns) and rest == own and torch.Tag.generated
            not in other.tags):
            return other
    return None


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one element of a value, computed from what is realised for sure: prims applied, bytes read, a
    heavy prim inside."""

    ops: int = 0
    bytes: float = 0.0
    heavy: bool = False

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.ops + other.ops, self.bytes + other.bytes, self.heavy or other.heavy)


@dataclass
class Decisions:
    """reasons: realised node -> why; windows: library call -> (argument, realised node it is a strided
    window of)."""

    reasons: dict[Node, str] = field(default_factory=dict)
    windows: dict[Node, list[tuple[Node, Node]]] = field(default_factory=dict)


def why_realise(name: str, cost: Cost, itemsize: int, uses: int, evaluations: int, numel: int) -> str | None:
    """A reason to give a value memory, or None: it is computed at each use.

    uses          places that read it, counting readers at the same point of the same loop once
    evaluations   how often one of its elements would be computed, in all
    """
    if evaluations <= numel or numel == 0 or (cost.bytes == 0 and not cost.heavy):
        return None
    if evaluations - numel <= (FEW_HEAVY if cost.heavy else FEW) and cost.ops <= 8:
        return None
    times = f"{evaluations / numel:.3g} times"
    if cost.heavy:
        return f"{name} would be computed {times}"
    if uses > 1 and (cost.ops > 3 or cost.bytes > NEARLY * itemsize):
        return f"read by {uses} loops, and computing it again reads {cost.bytes:.3g} bytes for {itemsize}"
    if cost.ops > 8:
        return f"{cost.ops} prims would be computed {times}"
    return None


def decide(graph: Graph) -> Decisions:
    """What must and what had better be realised."""
    d = Decisions()
    _must(graph, d)
    costs = _costs(graph, d.reasons)
    _uses(graph, d, costs)
    sizes: dict[Node, int] = {}
    for n in graph.nodes:
        if n.op in ("input", "constant") or not isinstance(n.spec, TensorSpec):
            continue
        if not costs[n].bytes:          # functions of the index are cheap, and mostly fold away
            continue
        size = 1 + sum(sizes.get(a, 0) for a in dict.fromkeys(n.operands) if a not in d.reasons)
        sizes[n] = size
        if size > LARGEST and n not in d.reasons and kind_of(n) == "elementwise":
            d.reasons[n] = f"an expression of {size} prims"
            sizes[n] = 0
    return d


def _must(graph: Graph, d: Decisions) -> None:
    for n in graph.nodes:
        kind = kind_of(n)
        if kind in ("reduce", "scan") or name_of(n) == "scatter":
            d.reasons[n] = kind if kind != "gather" else "scatter"
        elif kind in ("extern", "getitem"):
            d.reasons[n] = "library kernel"
    for o in graph.outputs:
        if o.alias is None and o.node.op not in ("input", "constant"):
            d.reasons.setdefault(filler(o, d.reasons), "output")
    for n in graph.nodes:
        if kind_of(n) == "extern":
            for a in dict.fromkeys(n.operands):
                _argument(n, a, d)


def filler(o: Output, reasons: Mapping[Node, str]) -> Node:
    """The node that fills an output's memory: a realised one that the output shows whole, in other
    dimensions, or the output's own."""
    base = chain(o.node, reasons)
    if base is o.node or base not in reasons or any(isinstance(n, Sym) for n in o.spec.shape):
        return o.node
    window = strided_window(o.node, base, layout_of(base.tensor))
    whole = window is not None and window.offset == 0 and window.numel == base.tensor.numel
    return base if whole and _same_stride(window, o.spec) else o.node


def _argument(call: Node, a: Node, d: Decisions) -> None:
    """Realises a library kernel's argument, or what it is a strided window of."""
    if not isinstance(a.spec, TensorSpec):
        return
    base = chain(a, d.reasons)
    layout = base.tensor.stride if base.op in ("input", "constant") else layout_of(base.tensor)
    window = strided_window(a, base, layout)
    if window is None or not (_same_stride(window, a.tensor) or _any_stride(call, window)):
        base = a
    d.windows.setdefault(call, []).append((a, base))
    if base.op not in ("input", "constant"):
        d.reasons.setdefault(base, "argument of a library kernel")


def _same_stride(window: TensorSpec, spec: TensorSpec) -> bool:
    return spec.numel == 0 or all(n == 1 or s == t for n, s, t in zip(spec.shape, window.stride, spec.stride))


def points(n: Node) -> int:
    """Elements of a value, in the call that is being compiled."""
    return hint(n.tensor.numel)


def _any_stride(call: Node, window: TensorSpec) -> bool:
    """Matrix products give the same numbers for any stride their library takes without a copy."""
    if call.op.overloadpacket.__name__ not in MATMULS or window.ndim < 2:
        return False
    (m, n), (s, t) = window.shape[-2:], window.stride[-2:]
    return (t == 1 and s >= n) or (s == 1 and t >= m)


def _costs(graph: Graph, leaves: dict[Node, str]) -> dict[Node, Cost]:
    costs: dict[Node, Cost] = {}
    for n in (*graph.inputs, *graph.nodes):
        if not isinstance(n.spec, TensorSpec):
            continue
        kind, name = kind_of(n), name_of(n)
        if kind in ("input", "constant", "extern", "getitem", "reduce", "scan") or n in leaves:
            own = Cost(0, n.spec.dtype.itemsize)
        elif kind == "create":
            own = Cost()
        else:
            own = Cost(1 if kind != "view" else 0, 0.0, name in HEAVY or (name in MODEST and _big(n)))
            for a in n.operands:
                if costs[a].bytes or costs[a].heavy:        # functions of the index mostly fold away
                    own = own + _share(costs[a], points(a), points(n))
        costs[n] = own
    return costs


def _big(n: Node) -> bool:
    return n.tensor.dtype is torch.float64 or not n.tensor.dtype.is_floating_point


def _share(cost: Cost, numel: int, wider: int) -> Cost:
    """The cost seen by one element of a broadcast: a small operand stays in cache."""
    return cost if numel >= wider or wider == 0 else Cost(cost.ops, cost.bytes * numel / wider, cost.heavy)


def _uses(graph: Graph, d: Decisions, costs: dict[Node, Cost]) -> None:
    """Walks from the results to the inputs; `keys[n]` are the points of view from which n is read (equal
    key: same index in the same loop), each with how many evaluations it asks for."""
    keys: dict[Node, dict[Any, int]] = {n: {} for n in (*graph.inputs, *graph.nodes)}
    for i, n in graph.writes:
        keys[n]["write", i] = points(n)
    for n in reversed(graph.nodes):
        if (isinstance(n.spec, TensorSpec) and kind_of(n) not in ("constant", "create") and n
            not in d.reasons):
            if kind_of(n) != "view" or name_of(n) not in VIEWS:
                reason = why_realise(name_of(n), costs[n], n.spec.dtype.itemsize, len(keys[n]),
                                     sum(keys[n].values()), points(n))
                if reason:
                    d.reasons[_unpadded(n, d.reasons)] = reason
        for a, key, evaluations in _reads(n, d.reasons, keys[n]):
            if isinstance(a.spec, TensorSpec):
                keys[a][key] = max(keys[a].get(key, 0), evaluations)


def _unpadded(n: Node, realised: Mapping[Node, str]) -> Node:
    """What is padded to make n, or n: an edge costs its readers a mask, which is less than a copy, and a loop
    without edges may fuse with what makes its values."""
    inner: Node = n
    while name_of(inner) == "pad":
        inner = inner.args[0]
    return inner if inner not in realised and kind_of(inner) in ("elementwise", "gather") else n


def _reads(n: Node, realised: dict[Node, str], mine: dict[Any, int]) -> Iterator[tuple[Node, Any, int]]:
    """(operand, key, evaluations) for everything n reads, given how n itself is read."""
    kind, name = kind_of(n), name_of(n)
    if kind in ("extern", "getitem", "input", "constant"):
        return
    operands = list(dict.fromkeys(n.operands))
    if n in realised:
        mine = {n: points(n)}
    if kind in ("reduce", "scan"):
        yield operands[0], n, points(operands[0])
    elif kind == "elementwise":
        for a in operands:
            for key, evaluations in mine.items():
                yield a, (key if alike(a.tensor.shape, n.tensor.shape) else (key, "scalar")), evaluations
    elif name in ("cat", "pad"):
        for a in operands:
            share = points(a) / max(points(n), 1)
            for key, evaluations in mine.items():
                yield a, (n, key), int(evaluations * share)
    elif name == "scatter":
        base, indices, src = n.args[:3]
        yield base, (n, "base"), points(n)
        for a in (*arg_nodes(indices), *arg_nodes(src)):
            yield a, (n, "source"), points(a)
    elif name == "expand":  # emitters hoist what inner loops don't change
        src = operands[0]
        for key, evaluations in mine.items():
            yield src, (n, key), evaluations // _trailing(src.tensor.shape, n.tensor.shape)
    else:  # views, and gather: its indices are read where it is
        for a in operands:
            at_same = name == "gather" and a is not n.args[0]
            for key, evaluations in mine.items():
                yield a, key if at_same else (n, key), evaluations


def _trailing(src: tuple[int, ...], wide: tuple[int, ...]) -> int:
    """Points of the innermost dimensions along which a broadcast repeats one value."""
    n = 1
    for k, size in enumerate(reversed(wide)):
        if k < len(src) and src[-1 - k] != 1:
            break
        n *= hint(size)
    return max(n, 1)
