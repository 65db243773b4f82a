"""Functionalisation: a straight line of ATen calls that may write to tensors becomes one without writes.

Takes the calls `lower.trace` recorded on fakes, gives nodes. One generic pass, by storage and by schema:
every tensor is a chain of views over the base that owns its storage; a write makes a new value of the base,
by undoing the views one after another; a later read of another view of that base replays its views on the
new value. What an operator writes, its schema says (`alias_info`); what shares memory, the fakes' storage
says.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import Refusal, Where
from ..ir.elementwise import ROWS as ELEMENTWISE
from ..ir.fake import Fake, facts_of, storage_key
from ..ir.graph import Graph, Names, Node, Output, arg_nodes
from ..ir.spec import TensorSpec
from ..ir.sym import Size, Sym, hint
from .draws import draw
from .graphs import infer, same_strides, spec_of

aten = torch.ops.aten


@dataclass(slots=True, eq=False)
class Base:
    """What owns a storage. `value` is the node that holds the whole of it now, `version` counts the
    writes. A constant that is `fresh` is made anew by each run of the program, so it may be written to."""

    fake: Fake
    spec: TensorSpec
    value: Node
    input: int | None = None
    constant: bool = False
    fresh: bool = False
    version: int = 0
    root: Any = None                    # the alias that is the base itself


@dataclass(slots=True, eq=False)
class Alias:
    """One tensor: `base` seen through the views from `parent` (None: it is the base). `node` is its value
    at `version`."""

    base: Base
    spec: TensorSpec
    parent: Alias | None
    op: Any = None
    args: tuple = ()
    kwargs: dict | None = None
    item: int | None = None
    node: Node | None = None
    version: int = -1


class Functionaliser:
    """Feed it the calls in order (`call`), then ask for the graph (`finish`)."""

    def __init__(self) -> None:
        self.inputs: list[Node] = []
        self.nodes: list[Node] = []
        self.names = Names()
        self.aliases: dict[int, Alias] = {}          # by id of the fake
        self.bases: dict[int, Base] = {}             # by storage
        self.keep: list[Any] = []                    # what must stay alive for ids to mean something
        self.where: Where | None = None

    # -- nodes

    def emit(self, op: Any, args: tuple, kwargs: dict, spec: Any) -> Node:
        """Appends a node."""
        node = Node(self.names.fresh(op), op, args, kwargs, spec, self.where)
        self.nodes.append(node)
        return node

    def add_input(self, fake: Fake, name: str, number: bool = False) -> None:
        index = len(self.inputs)
        node = Node(self.names.take(name), "input", (index,), {}, fake.spec.with_(number=number))
        self.inputs.append(node)
        self._own(fake, node, index)

    def add_size(self, size: Size, name: str) -> None:
        self.inputs.append(Node(self.names.take(name), "input", (len(self.inputs),), {}, size))

    def add_constant(self, fake: Fake, tensor: torch.Tensor) -> None:
        self._own(fake, self.emit("constant", (tensor,), {}, TensorSpec.of(tensor)), constant=True)

    def _own(self, fake: Fake, node: Node, index: int | None = None, constant: bool = False) -> None:
        base = Base(fake, fake.spec, node, index, constant)
        self.bases[storage_key(fake)] = base
        self.aliases[id(fake)] = base.root = Alias(base, base.spec, None)
        self.keep.append(fake)

    def value(self, fake: Fake) -> Node:
        """The node that holds the fake's value now."""
        return self.read(self.aliases[id(fake)])

    def read(self, alias: Alias) -> Node:
        if alias.parent is None:
            return alias.base.value
        if alias.version != alias.base.version or alias.node is None:
            args = (self.read(alias.parent), *alias.args)
            if alias.item is None:
                alias.node = self.emit(alias.op, args, alias.kwargs or {}, alias.spec)
            else:
                specs = infer(alias.op, args, alias.kwargs or {})
                alias.node = self.emit("getitem",
                                       (self.emit(alias.op, args, alias.kwargs or {}, specs), alias.item), {},
                                       alias.spec)
            alias.version = alias.base.version
        return alias.node

    def lowered(self, x: Any) -> Any:
        """Arguments with nodes in place of fakes."""
        if isinstance(x, Fake):
            return self.value(x)
        if isinstance(x, (tuple, list)):
            return tuple([self.lowered(e) for e in x])
        return x

    # -- calls

    def call(self, op: Any, args: tuple, kwargs: dict, out: Any) -> None:
        """One recorded ATen call, whose arguments and results are fakes."""
        facts = facts_of(op)
        if op is aten.linalg_lu_solve.default and out.dtype.is_complex and not kwargs.get("left", True):
            raise Refusal("layout", f"{op} gives a lazily conjugated result that is no view", self.where)
        if op is aten.as_strided.default:          # a window on the storage: as well one on the base itself
            through = self.aliases[id(args[0])]
            inside = (through.spec.is_dense and through.spec.offset <= out.spec.offset
                      and out.spec.flat.numel <= through.spec.flat.numel)
            if not inside and args[0].requires_grad and torch.is_grad_enabled():
                raise Refusal("as-strided", "a gradient for memory around the tensor it is taken of",
                              self.where)
            return self._window(out, through.base)
        if op is aten.lift_fresh.default:
            self.aliases[id(args[0])].base.fresh = True
        if facts.inplace_view:
            return self._restride(op, args, kwargs)
        if facts.writes or op in HIDDEN_WRITES:
            return self._write_call(op, args, kwargs, out)
        node = self.emit(op, tuple([self.lowered(a) for a in args]),
                         {k: self.lowered(v) for k, v in kwargs.items()}, spec_of(out))
        return self._results(op, args, kwargs, out, node)

    def _results(self, op: Any, args: tuple, kwargs: dict, out: Any, node: Node) -> None:
        if isinstance(out, Fake):
            self._result(op, args, kwargs, out, node, None)
        elif isinstance(out, (tuple, list)):
            made: dict[Any, Fake] = {}
            for i, o in enumerate(out):
                twin = made.get(storage_key(o)) if isinstance(o, Fake) else None
                if twin is not None and twin.spec == o.spec and self.aliases[id(twin)].parent is None:
                    self.aliases[id(o)] = self.aliases[id(twin)]          # one tensor, given twice
                    self.keep.append(o)
                elif isinstance(o, Fake):
                    self._result(op, args, kwargs, o, self.emit("getitem", (node, i), {}, o.spec), i)
                    made[storage_key(o)] = o

    def _result(self, op: Any, args: tuple, kwargs: dict, out: Fake, node: Node, item: int | None) -> None:
        if id(out) in self.aliases:          # the operator gave an argument back
            return
        base = self.bases.get(storage_key(out))
        if base is None:
            self._own(out, node)
            return
        first = args[0]
        if not isinstance(first, Fake) or self.aliases[id(first)].base is not base:
            raise Refusal("aliasing", f"{op} gives a view of an argument that is not its first", self.where)
        self.aliases[id(out)] = Alias(base, out.spec, self.aliases[id(first)], op, args[1:], kwargs, item,
                                      node, base.version)
        self.keep.append(out)

    def _window(self, out: Fake, base: Base) -> None:
        """A fake that is a window on the memory of `base`."""
        spec, whole = out.spec, base.spec
        if spec.dtype != whole.dtype:
            raise Refusal("as-strided", "a window on memory that is seen as another type", self.where)
        if whole.offset and base.input is None or retyping(self.aliases.get(id(out), base.root)):
            raise Refusal("as-strided", "a window on memory of which the base is a part", self.where)
        if not whole.offset <= spec.offset <= spec.flat.numel <= whole.flat.numel:
            raise Refusal("as-strided", f"a window {spec} that {whole} does not hold", self.where)
        self.aliases[id(out)] = Alias(base, spec, base.root, aten.as_strided.default,
                                      (spec.shape, spec.stride, spec.offset), {})
        self.keep.append(out)

    def _restride(self, op: Any, args: tuple, kwargs: dict) -> None:
        """t_, squeeze_, …: the fake becomes a view of what it was."""
        fake, old = args[0], self.aliases[id(args[0])]
        pure = functional(op)
        if old.base.input is not None and fake.requires_grad:
            raise Refusal("geometry-write", f"{op} changes the geometry of an input that needs a gradient",
                          self.where)
        if pure is None or op._overloadpacket.__name__ in ("as_strided_", "resize_", "resize_as_"):
            return self._window(fake, old.base)
        self.aliases[id(fake)] = Alias(old.base, fake.spec, old, pure, args[1:], kwargs)

    # -- writes

    def _write_call(self, op: Any, args: tuple, kwargs: dict, out: Any) -> None:
        hidden = HIDDEN_WRITES.get(op)
        if hidden is not None:
            written = [args[i] for i in hidden.written(args) if isinstance(args[i], Fake)]
            pure = hidden.functional if written else op
        else:
            found = functional(op)
            if found is None or len([r for r in found._schema.returns if "List" in str(r.type)]) > 1:
                raise Refusal("in-place", f"{op} has no functional form of plain results", self.where)
            pure, written = found, written_args(op, args, kwargs)
        names = {a.name for a in op._schema.arguments if a.is_out}
        call_args = reordered(op, pure, tuple([self.lowered(a) for a in with_defaults(op, args, kwargs)]))
        call_kwargs = {k: self.lowered(v) for k, v in kwargs.items() if k not in names}
        self._check_overlap(op, pure, written, args, kwargs)
        if torch.Tag.nondeterministic_seeded in op.tags:
            if not all(f.spec.is_contiguous for f in written):
                pure, call_args, call_kwargs = self._draw(op, written, call_args, call_kwargs)
        spec = spec_of(out) if pure is op else infer(pure, call_args, call_kwargs)
        for s, f in zip((spec,) if isinstance(spec, TensorSpec) else (), written):
            if not torch.can_cast(s.dtype, f.dtype) or not names and s.shape != f.spec.shape:
                raise Refusal("raises", f"{op}: a result {s} can't be put into {f.spec}", self.where)
        if names and pure not in ELEMENTWISE:
            self._check_out(op, written, args, kwargs, spec)
        node = self.emit(pure, call_args, call_kwargs, spec)
        parts = [node] if isinstance(spec, TensorSpec) else [self.emit("getitem", (node, i), {}, s)
                                                             for i, s in enumerate(spec or ())]
        returns = op._schema.returns  # of the functional form: fresh results first, then what was written
        fresh = [o for o, r in zip(out if isinstance(out, (tuple, list)) else (out,), returns)
                 if r.alias_info is None]
        for o, part in zip(fresh, parts):
            if isinstance(o, Fake):
                self._result(op, args, kwargs, o, part, None)
        for fake, part in zip(written, parts[len(fresh):]):
            self.write(self.aliases[id(fake)], part)

    def _draw(self, op: Any, written: list[Fake], args: tuple, kwargs: dict) -> tuple[Any, tuple, dict]:
        """A draw into a tensor that is not contiguous, as (operator, args, kwargs)."""
        rest = (*args[1:], *(v for k, v in kwargs.items() if k != "generator"))
        if next(arg_nodes(rest), None) is not None or None in rest:
            raise Refusal("layout", f"{op} depends on how its tensor lies in memory", self.where)
        name = op._overloadpacket.__name__
        given = {k: v for k, v in kwargs.items() if k == "generator"}
        return draw, (args[0], name, written[0].spec.stride, rest), given

    def write(self, alias: Alias, new: Node) -> None:
        """alias's elements get new's values: gives its base a new value."""
        if alias.base.constant and not alias.base.fresh:
            raise Refusal("constant-write", "a tensor the graph holds as a constant is written to",
                          self.where)
        alias.base.constant = False
        while True:
            old = alias.spec
            if not fits(new.tensor, old):
                new = self.emit(aten.copy.default, (self.read(alias), new), {}, old)
            if alias.parent is None:
                break
            parent = self.read(alias.parent)
            undo = UNDO.get(alias.op._overloadpacket.__name__)
            if undo is None:
                raise Refusal("view-write", f"a write through {alias.op} cannot be undone", self.where)
            new = undo(self, parent, new, alias)
            alias = alias.parent
        alias.base.value, alias.base.version = new, alias.base.version + 1

    def _check_overlap(self, op: Any, pure: Any, written: list[Fake], args: tuple, kwargs: dict) -> None:
        """Refuses what eager mode refuses, or leaves to chance: writes to elements that share memory, or that
        are read elsewhere. Elementwise operators may read just what they write."""
        aligned = pure in ELEMENTWISE or pure is aten.copy.default or "_foreach" in pure._schema.name
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Fake)]
        for w in written:
            mine = self.aliases[id(w)]
            if mine.spec.may_overlap or mine.base.spec.may_overlap:
                raise Refusal("overlap", "a write to a tensor whose elements share memory", self.where)
            own = next((i for i, o in enumerate(given) if o is w), None)
            for i, o in enumerate(given):
                other = self.aliases[id(o)]
                if i == own or other.base is not mine.base or not share(mine.spec, other.spec):
                    continue
                if not (aligned and fits(mine.spec, other.spec) and mine.spec.offset == other.spec.offset):
                    raise Refusal("overlap", "a write to memory that the same operator reads elsewhere",
                                  self.where)

    def _check_out(self, op: Any, written: list[Fake], args: tuple, kwargs: dict, spec: Any) -> None:
        """Refuses `out=` tensors for which eager mode may raise: of another dtype, or sharing memory."""
        specs = spec if isinstance(spec, tuple) else (spec,)
        keys = [storage_key(f) for f in written]
        each = (x for a in args for x in (a if isinstance(a, (tuple, list)) else (a,)))
        given = [x for x in each if isinstance(x, Fake)]
        keys += {storage_key(f) for f in given}
        if len(set(keys)) < len(keys) or any(s.dtype != f.spec.dtype for s, f in zip(specs, written)):
            raise Refusal("out", f"{op} gets an `out` that shares memory or has another dtype", self.where)

    def inferred(self, op: Any, *args: Any) -> Node:
        return self.emit(op, args, {}, infer(op, args, {}))

    # -- the end

    def finish(self, outputs: list[Fake]) -> Graph:
        """The graph that returns these tensors; raises Refusal where an output's aliasing cannot be
        expressed."""
        self.where = None
        results: list[Output | None] = [None] * len(outputs)
        hidden: list[Output] = []
        groups: dict[Base, list[int]] = {}
        for i, fake in enumerate(outputs):
            groups.setdefault(self.aliases[id(fake)].base, []).append(i)
        for base, members in groups.items():
            self._group(base, members, outputs, results, hidden)
        writes = tuple((b.input, b.value) for b in self.bases.values() if b.input is not None and b.version)
        done = tuple(r for r in results if r is not None)
        restrides = tuple((b.input, a.spec.with_(offset=a.spec.offset - b.spec.offset))
                          for b in self.bases.values() if b.input is not None
                          and (a := self.aliases[id(b.fake)]).parent is not None)
        return Graph(tuple(self.inputs), tuple(self.nodes), (*done, *hidden), writes, len(outputs),
                     restrides)

    def _group(self, base: Base, members: list[int], outputs: list[Fake], results: list,
               hidden: list[Output]) -> None:
        """The outputs that share one storage."""
        aliases = [self.aliases[id(outputs[i])] for i in members]
        if base.constant and len(members) == 1 and not retyping(aliases[0]):
            node = self.inferred(aten.clone.default, self.read(aliases[0]))
            results[members[0]] = Output(node, node.tensor)
            return
        if base.constant:                   # the caller may write to one, and see it in the others
            base.value, base.version = self.inferred(aten.clone.default, base.value), base.version + 1
        if base.input is not None:
            home = ("input", base.input)
        else:
            home = ("output", self._root(base, members, aliases, results, hidden))
        for i, alias in zip(members, aliases):
            if results[i] is None:
                views = retyping(alias, home[0] == "input" and outputs[i].requires_grad)
                results[i] = Output(self.read(alias), alias.spec, home, views)

    def _root(self, base: Base, members: list[int], aliases: list[Alias], results: list,
              hidden: list[Output]) -> int:
        """The output that owns the storage of a group: one of them, or else a hidden one, the base."""
        for i, a in zip(members, aliases):
            if a.spec.nbytes == base.spec.nbytes and a.spec.is_dense and not (a.spec.offset or retyping(a)):
                results[i] = Output(self.read(a), a.spec)
                return i
        whole, spec = base.value, base.spec
        if spec.may_overlap:
            raise Refusal("layout", f"a fresh result whose elements share memory: {spec}")
        if spec.numel and (spec.offset or not spec.is_dense):          # memory with holes
            whole = self.emit(aten.empty.memory_format, ((spec.offset + spec.storage_numel,),),
                              {"dtype": spec.dtype}, spec.flat)
            if base.value.op not in UNWRITTEN:
                whole = self.inferred(aten.as_strided_scatter.default, whole, base.value, spec.shape,
                                      spec.stride, spec.offset)
        hidden.append(Output(whole, whole.tensor))
        return len(results) + len(hidden) - 1


def retyping(alias: Alias, differentiated: bool = False) -> tuple:
    """The calls that make `alias` from its base (see `Output.views`); none where geometry alone does. To the
    engine one of several views is not a view by geometry: it allows no writes."""
    calls: list[tuple] = []
    a, retyped = alias, False
    while a.parent is not None:
        retyped |= a.op in RETYPING or differentiated and a.item is not None
        calls.append((a.op, a.args, a.kwargs or {}, a.item))
        a = a.parent
    spec = a.spec
    calls.append((aten.as_strided.default, (spec.shape, spec.stride, spec.offset), {}, None))
    return tuple(calls[::-1]) if retyped else ()


UNWRITTEN = frozenset((aten.empty_strided.default, aten.new_empty_strided.default))
RETYPING = frozenset((aten.view_as_real.default, aten.view_as_complex.default, aten.view.dtype,
                      aten._conj.default, aten._neg_view.default))


def fits(new: TensorSpec, old: TensorSpec) -> bool:
    return (new.dtype, new.shape) == (old.dtype, old.shape) and same_strides(new, old)


def share(a: TensorSpec, b: TensorSpec) -> bool:
    """Whether two windows on one storage have an element in common; True for some that are too large to
    tell."""
    if a.dtype.itemsize != b.dtype.itemsize:
        one, two = ((x.offset * x.dtype.itemsize, x.flat.nbytes) for x in (a, b))
        return one[0] < two[1] and two[0] < one[1]
    dims = [sorted(((s, n) for n, s in zip(x.shape, x.stride) if n != 1), reverse=True,
                   key=lambda d: (hint(d[0]), hint(d[1]))) for x in (a, b)]
    low = min(a.offset, b.offset)
    while True:
        ends = [x.offset + sum(s * (n - 1) for s, n in d) + 1 for x, d in zip((a, b), dims)]
        inner = [end - d[0][0] * (d[0][1] - 1) if d else end for end, d in zip(ends, dims)]
        if dims[0][:1] != dims[1][:1] or not dims[0] or dims[0][0][0] < max(inner) - low:
            break
        dims = [d[1:] for d in dims]          # both repeat what is inside, without touching the next one
    if not (a.numel and b.numel and a.offset < ends[1] and b.offset < ends[0]):
        return False
    if any(isinstance(count := math.prod(n for _, n in d), Sym) or count > MOST_COMPARED for d in dims):
        return True
    cells = [{x.offset} for x in (a, b)]
    for i, d in enumerate(dims):
        for s, n in d:
            cells[i] = {c + s * k for c in cells[i] for k in range(n)}
    return not cells[0].isdisjoint(cells[1])


MOST_COMPARED = 1 << 14


# ---- functional forms, read off the schemas -------------------------------------------------------

@dataclass(frozen=True)
class Hidden:
    """An operator that writes to arguments without its schema saying so."""

    functional: Any
    written: Callable[[tuple], list[int]]


HIDDEN_WRITES = {
    aten.native_batch_norm.default: Hidden(aten._native_batch_norm_legit_functional.default,
                                           lambda args: [3, 4] if args[5] else []),
}
_functional: dict[Any, Any] = {}          # a pure function of the operator, remembered


def functional(op: Any) -> Any:
    """The overload that computes what `op` writes, without writing; None if there is none."""
    if op not in _functional:
        _functional[op] = _find_functional(op)
    return _functional[op]


def _find_functional(op: Any) -> Any:
    schema = op._schema
    wanted = [(a.name, _type(a)) for a in schema.arguments if not a.is_out]
    name = schema.name.split("::")[1]
    for packet_name in (name.removesuffix("_"), name, name.removesuffix("_") + "_functional"):
        packet = getattr(getattr(torch.ops, op.namespace), packet_name, None)
        for overload in packet.overloads() if packet is not None else ():
            found = getattr(packet, overload)
            if (not found._schema.is_mutable and sorted((a.name, _type(a))
                                                        for a in found._schema.arguments) == sorted(wanted)):
                return found
    return None


def with_defaults(op: Any, args: tuple, kwargs: dict) -> tuple:
    """args, with op's defaults for positional arguments that were left out (its functional form may have
    none)."""
    missing = [a for a in op._schema.arguments[len(args):] if not a.kwarg_only and a.name not in kwargs]
    return (*args, *(a.default_value for a in missing)) if not kwargs or not missing else args


def reordered(op: Any, pure: Any, args: tuple) -> tuple:
    """Arguments of `op` in the order in which its functional form takes them."""
    mine, its = ([a.name for a in o._schema.arguments if not a.is_out][:len(args)] for o in (op, pure))
    return args if mine == its or set(mine) != set(its) else tuple(args[mine.index(name)] for name in its)


def _type(argument: Any) -> str:
    return str(argument.type)


def written_args(op: Any, args: tuple, kwargs: dict) -> list[Fake]:
    """The fakes an operator writes to, in the order of its schema (= the order of its results)."""
    written: list[Fake] = []
    for i, name in facts_of(op).writes:
        w = args[i] if i < len(args) else kwargs.get(name)
        written += [x for x in (w if isinstance(w, (list, tuple)) else (w,)) if isinstance(x, Fake)]
    return written


# ---- undoing views: new value of the parent, where the view's elements have been replaced
# ---------------------------- op name -> function (functionaliser, parent's old value, new value of the
# view, the view)

Undo = Callable[[Functionaliser, Node, Node, Alias], Node]


def _back(f: Functionaliser, parent: Node, new: Node, alias: Alias) -> Node:
    return (f.inferred(aten.reshape.default, new, parent.tensor.shape)
            if new.tensor.shape != parent.tensor.shape else new)


def _undo_expand(f: Functionaliser, parent: Node, new: Node, alias: Alias) -> Node:
    if new.tensor.numel != parent.tensor.numel:
        raise Refusal("overlap", "a write to an expanded tensor", f.where)
    return _back(f, parent, new, alias)


def _undo_permute(f: Functionaliser, parent: Node, new: Node, alias: Alias) -> Node:
    dims = [d % new.tensor.ndim for d in alias.args[0]]
    return f.inferred(aten.permute.default, new, tuple(dims.index(d) for d in range(len(dims))))


def _undo_bits(f: Functionaliser, parent: Node, new: Node, alias: Alias) -> Node:
    if alias.op is aten.view.dtype:
        return f.inferred(aten.view.dtype, new, parent.tensor.dtype)
    return _back(f, parent, new, alias)


def _undo_chunks(f: Functionaliser, parent: Node, new: Node, alias: Alias) -> Node:
    """split, split_with_sizes, unbind: item `alias.item` along a dimension."""
    kwargs = alias.kwargs or {}
    name, item = alias.op._overloadpacket.__name__, alias.item or 0
    at = 0 if name == "unbind" else 1
    dim = alias.args[at] if len(alias.args) > at else kwargs.get("dim", 0)
    dim %= parent.tensor.ndim
    if name == "unbind":
        return f.inferred(aten.select_scatter.default, parent, new, dim, item)
    size = alias.args[0]
    start = sum(size[:item]) if isinstance(size, (tuple, list)) else item * size
    return f.inferred(aten.slice_scatter.default, parent, new, dim, start, start + new.tensor.shape[dim])


def _scatter(op: Any) -> Undo:
    return lambda f, parent, new, alias: f.emit(
        op,
        (parent, new, *alias.args),
        alias.kwargs or {},
        infer(op, (parent, new, *alias.args), alias.kwargs or {}),
    )


UNDO: dict[str, Undo] = {
    **dict.fromkeys(
        (
            "_unsafe_view",
            "reshape",
            "_reshape_alias",
            "unsqueeze",
            "squeeze",
            "alias",
            "detach",
            "lift_fresh",
            "flatten",
            "view_as",
        ),
        _back,
    ),
    "view": _undo_bits,
    "expand": _undo_expand,
    "permute": _undo_permute,
    "t": lambda f, parent, new, alias: f.inferred(aten.t.default, new),
    "transpose": lambda f, parent, new, alias: f.inferred(aten.transpose.int, new, *alias.args),
    **dict.fromkeys(("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes"), _undo_chunks),
    "unbind": _undo_chunks,
    "slice": _scatter(aten.slice_scatter.default),
    "select": _scatter(aten.select_scatter.default),
    "diagonal": _scatter(aten.diagonal_scatter.default),
    "as_strided": _scatter(aten.as_strided_scatter.default),
    "view_as_real": lambda f, parent, new, alias: f.inferred(aten.view_as_complex.default, new),
    "view_as_complex": lambda f, parent, new, alias: f.inferred(aten.view_as_real.default, new),
    "_conj": lambda f, parent, new, alias: f.inferred(aten._conj_physical.default, new),
    "_neg_view": lambda f, parent, new, alias: f.inferred(aten.neg.default, new),
}
