"""Builder: what decompositions write prims with; every node it gives is typed, simplified and shared on the
way in.

Takes prim names and arguments (`b.mul(x, 0.5)`), gives nodes. `decompose` drives one builder over an ATen
graph; the rules of `rewrite` are tried on every new node, and an equal node is never made twice.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..config import config
from ..errors import Where
from ..ir.elementwise import promote
from ..ir.forms import alike
from ..ir.geometry import sizes_in
from ..ir.graph import Names, Node
from ..ir.prims import PRIMS, Prim
from ..ir.scalar import like_number
from ..ir.spec import TensorSpec, contiguous_stride
from ..ir.sym import NeedsSizes, Sym, same
from .graphs import infer, same_strides
from .rewrite import REWRITES

NARROW = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
SUPPORTED = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.int8,
                       torch.int16, torch.int32, torch.int64, torch.uint8))
Number = bool | int | float
Operand = Node | bool | int | float
Rule = Callable[..., Any]
RULES: dict[
    Any, Rule
] = {}  # ATen overload -> decomposition (builder, *args, **kwargs) -> node(s) or NotImplemented


def rule(*overloads: Any) -> Callable[[Rule], Rule]:
    """Registers a decomposition for these overloads; a view's is its copying variant's, too."""
    def register(f: Rule) -> Rule:
        for o in overloads:
            RULES[o] = f
            copy = getattr(torch.ops.aten, o._schema.name.split("::")[1] + "_copy", None)
            if o.is_view and copy is not None and o._overloadname in copy.overloads():
                RULES.setdefault(getattr(copy, o._overloadname), f)
        return f
    return register


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype prims compute in for values of this one."""
    return NARROW.get(dtype, dtype)


class Builder:
    """`b.<prim>(*args)` appends a node of that row and returns it (or an equal or simpler one that exists).

    source the node of the ATen call being decomposed
    out    the geometry eager mode gives the ATen call being decomposed (a tuple for several results)
    whole  operators that stay library calls, though there are rules for them
    """

    def __init__(self, whole: frozenset[Any] = frozenset()) -> None:
        self.whole = whole
        self.nodes: list[Node] = []
        self.names = Names()
        self.shared: dict[Any, Node] = {}
        self.source: Any = None
        self.place: Where | None = None
        self.out: Any = None
        self.mark = 0          # nodes from here on belong to the call being decomposed

    def __getattr__(self, name: str) -> Callable[..., Node]:
        row = PRIMS.get(name.rstrip("_") if name.endswith("_") else name)
        if row is None:
            raise AttributeError(name)

        def emit(*args: Any) -> Node:
            return self.emit(row, args)
        self.__dict__[name] = emit
        return emit

    def emit_named(self, name: str, *args: Any) -> Node:
        """A node of the row of this name."""
        return self.emit(PRIMS[name], args)

    def emit(self, row: Prim, args: tuple) -> Node:
        """A node of `row`, simplified. Operands that are constant are given as numbers, unless all are."""
        if row.kind == "elementwise":
            args = self._sizes(row, args)
        for rewrite in REWRITES.get(row.kind, ()) if "rewrite" not in config.disable_passes else ():
            found = rewrite(self, row, args)
            if found is not None:
                return found
        if row.kind == "elementwise":
            args = _numbers(row, args)
        key = (row, tuple(map(_key, args)))
        node = self.shared.get(key)
        if node is None:
            dtype, shape = row.meta(*_specs(args))
            node = self.shared[key] = self._append(row, args,
                                                   TensorSpec(dtype, shape, self._stride(row, args, shape)))
        return node

    def _sizes(self, row: Prim, args: tuple) -> tuple:
        """Operands that are sizes, as tensors."""
        if not any(isinstance(a, Sym) for a in args):
            return args
        typed = next(a.tensor for a in args[row.name == "where":] if isinstance(a, Node))
        return tuple([self.to(a, typed.dtype, typed.shape) if isinstance(a, Sym) else a for a in args])

    def _append(self, op: Any, args: tuple, spec: Any, kwargs: dict | None = None) -> Node:
        node = Node(self.names.fresh(op), op, args, kwargs or {}, spec, self.place)
        self.nodes.append(node)
        return node

    def _stride(self, row: Prim, args: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The layout a new value gets if it is realised: that of the call's result, of an operand, or of
        the view it is."""
        x = args[0] if args else None
        if row.kind == "view" and isinstance(x, Node):
            stride, lead = x.tensor.stride, len(shape) - x.tensor.ndim
            if row.name == "permute":
                return tuple(stride[d] for d in args[1])
            if row.name == "expand":
                own = [0 if same(n, 1) and not same(shape[lead + i], 1) else s
                       for i, (n, s) in enumerate(zip(x.tensor.shape, stride))]
                return (0,) * lead + tuple(own)
            if row.name == "slice":
                return tuple(s * args[4] if d == args[1] else s for d, s in enumerate(stride))
            return contiguous_stride(shape)
        outs = self.out if isinstance(self.out, tuple) else (self.out,)
        result = next((o for o in outs if o is not None and alike(o.shape, shape) and o.is_dense), None)
        operands = [a.tensor for a in args if isinstance(a, Node)] if row.kind == "elementwise" else []
        like = result or next((t for t in operands if t.is_dense), None)
        return like.stride if like is not None else contiguous_stride(shape)

    # -- what decompositions need beyond prims

    def extern(self, op: Any, args: tuple, kwargs: dict, spec: Any) -> Node:
        """A call of an ATen kernel; shared only if it draws no random numbers."""
        key = None
        if torch.Tag.nondeterministic_seeded not in op.tags and op._schema.returns:
            key = (op, _key(args), tuple((k, _key(v)) for k, v in kwargs.items()))
            if key in self.shared:
                return self.shared[key]
        if isinstance(spec, TensorSpec) and spec.offset:
            spec = spec.with_(offset=0)
        node = self._append(op, args, spec, kwargs)
        if key is not None:
            self.shared[key] = node
        return node

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Node:
        """A call of an ATen kernel that a decomposition asks for itself."""
        return self.extern(op, args, kwargs, infer(op, args, kwargs))

    def item(self, node: Node, i: int) -> Node:
        """Result i of an extern that gives several."""
        key = ("getitem", id(node), i)
        if key not in self.shared:
            assert isinstance(node.spec, tuple)
            spec = node.spec[i]
            self.shared[key] = self._append("getitem", (node, i),
                                            spec.with_(offset=0) if spec is not None else None)
        return self.shared[key]

    def constant(self, tensor: torch.Tensor) -> Node:
        """A tensor the graph carries; one element becomes a number."""
        if tensor.numel() == 1 and tensor.dtype in SUPPORTED:
            return self.full(tuple(tensor.shape), tensor.item(), tensor.dtype)
        return self._append("constant", (tensor,), TensorSpec.of(tensor))

    def to(self, x: Operand, dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> Node:
        """x cast to dtype and expanded to shape; a number becomes a constant of that shape."""
        if isinstance(x, Sym):
            return self.cast(self.full(shape or (), x, torch.int64), dtype)
        if not isinstance(x, Node):
            return self.full(shape or (), as_dtype(x, dtype), dtype)
        if shape is not None and not alike(x.tensor.shape, shape):
            x = self.expand(x, shape)
        return self.cast(x, dtype)

    def widen(self, x: Node) -> Node:
        """x in the dtype prims compute in."""
        return self.cast(x, wide(x.tensor.dtype))

    def unsqueeze(self, x: Node, dims: tuple[int, ...]) -> Node:
        """x with dimensions of size 1 put in, where `dims` index the result's shape."""
        shape = list(x.tensor.shape)
        for d in sorted(dims):
            shape.insert(d, 1)
        return self.reshape(x, tuple(shape))

    def broadcast_like(self, x: Node, dims: tuple[int, ...], shape: tuple[int, ...]) -> Node:
        """What a reduction over `dims` gave, spread over them again."""
        return self.expand(self.unsqueeze(x, dims), shape)

    def index(self, shape: tuple[int, ...], dim: int, start: int = 0, step: int = 1) -> Node:
        """An int64 tensor whose elements are start + step * (position along dim)."""
        i = self.iota(shape[dim], start, step, torch.int64)
        return self.expand(self.reshape(i, (shape[dim],) + (1,) * (len(shape) - dim - 1)), shape)

    def wrapped(self, i: Node, size: int) -> Node:
        """An index with negative values counted from the end."""
        i = self.cast(i, torch.int64)
        return self.where(self.lt(i, 0), self.add(i, size), i)

    def laid_out(self, x: Node, spec: TensorSpec) -> Node:
        """x as a value whose layout, if realised, is spec's. The newest node is changed, any other one gets
        a reshape."""
        if x.tensor.shape != spec.shape and spec.varies:          # what was inferred is not what comes out
            raise NeedsSizes(sum(sizes_in(spec, x.spec)), f"{x.tensor.shape} is computed, not {spec.shape}")
        if same_strides(x.tensor, spec):
            return x
        spec = TensorSpec(spec.dtype, spec.shape, spec.stride)
        if self.nodes and x is self.nodes[-1] and len(self.nodes) > self.mark and isinstance(x.op, Prim):
            node = Node(x.name, x.op, x.args, x.kwargs, spec, x.where)
            self.nodes[-1] = node
            self.shared[(x.op, tuple(map(_key, x.args)))] = node
            return node
        key = ("layout", id(x), spec.stride)
        if key not in self.shared:
            self.shared[key] = self._append(PRIMS["reshape"], (x, x.tensor.shape), spec)
        return self.shared[key]

    def promoted(self, *operands: Operand) -> torch.dtype:
        return promote(*[_promoted_as(o) if isinstance(o, Node) else o for o in operands])


def _promoted_as(x: Node) -> Any:
    return like_number(x.tensor) if x.tensor.number else x.tensor


def real(n: Any) -> Any:
    """A count as a floating-point operand."""
    return float(n) if isinstance(n, int) else n


def as_dtype(value: Any, dtype: torch.dtype) -> Any:
    """A number as an element of this dtype has it. A size stays one: see Builder.to."""
    if isinstance(value, Sym):
        return value
    if dtype is torch.bool:
        return bool(value)
    if dtype.is_floating_point:
        return torch.tensor(value, dtype=dtype).item()
    return int(value)


def _numbers(row: Prim, args: tuple) -> tuple:
    """Constant operands as numbers of the operands' dtype, but for one that says the dtype."""
    full = PRIMS["full"]
    shown = [a.args[1] if isinstance(a, Node) and a.op is full and not isinstance(a.args[1], Sym) else a
             for a in args]
    values = args[1:] if row.name == "where" else args
    typed = next((a for a in values if isinstance(a, Node)), None)
    if typed is not None and typed.tensor.dtype.is_floating_point:
        shown = [float(a) if isinstance(a, int) and not isinstance(a, bool) else a for a in shown]
    if row.name == "where":
        shown[0] = args[0]
        if typed is not None and not any(isinstance(a, Node) for a in shown[1:]):
            shown[args.index(typed)] = typed
    return tuple(shown) if any(isinstance(a, Node) for a in shown) else args


def _specs(args: Any) -> tuple:
    return tuple([a.spec if isinstance(a, Node) else _specs(a) if isinstance(a, tuple) else a for a in args])


def _key(a: Any) -> Any:
    """Equal exactly for arguments that mean the same: 0.0 is not -0.0, 1 is not True."""
    if isinstance(a, Node):
        return ("node", id(a))
    if isinstance(a, (tuple, list)):
        return tuple([_key(x) for x in a])
    if isinstance(a, float):
        return ("float", a.hex())
    return type(a), a
