"""Graph: a straight line of single-assignment nodes; the container of the ATen graph and of the prims.

torch.fx holds the captured torch-level program, because user backends expect it. Behind that border nodes
are frozen and typed: a spec is a field, never an entry in an untyped `meta`, and passes build new graphs
instead of editing (see docs/architecture.md).

Comes before `lower` (which builds graphs) and `loops` (which reads the last one).
"""
from __future__ import annotations

import keyword
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import CheckError, Where
from .spec import TensorSpec, at
from .sym import Size

# one tensor, several, an input that is a size, or a plain Python value
Spec = TensorSpec | tuple["TensorSpec | None", ...] | Size | None


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """`name = op(*args, **kwargs)`, whose result is described by `spec`. Identity is equality.

    op      a `Prim` row, an `OpOverload` (an ATen call; among prims: an extern), or a string: "input",
            "constant" or "getitem"
    args    nested tuples of Node, int, float, bool, complex, str, None, torch.dtype, torch.device, …
            "input" has (index,), "constant" has (tensor,), "getitem" has (node, index)
    operands    every Node inside args and kwargs, left to right, repeats included
    """

    name: str
    op: Any
    args: tuple
    kwargs: dict[str, Any] = field(default_factory=dict)
    spec: Spec = None
    where: Where | None = None
    operands: tuple[Node, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "operands", tuple(arg_nodes((self.args, self.kwargs))))

    @property
    def tensor(self) -> TensorSpec:
        """The spec of a node known to give one tensor."""
        if not isinstance(self.spec, TensorSpec):
            raise TypeError(f"{self.name} does not give one tensor: {self.spec}")
        return self.spec

    def __repr__(self) -> str:
        return self.name

    def __str__(self) -> str:
        op = self.op if isinstance(self.op, str) else getattr(self.op, "name", None) or str(self.op)
        if callable(op):
            op = str(self.op)
        shown = [_show(a) for a in self.args] + [f"{k}={_show(v)}" for k, v in self.kwargs.items()]
        spec = f"({', '.join(map(str, self.spec))})" if isinstance(self.spec, tuple) else str(self.spec)
        where = f"  | {self.where}" if self.where else ""
        return f"{self.name} = {op}({', '.join(shown)})  # {spec}{where}"


class Names:
    """Names for nodes: the operator's, with a number where it has been given already; valid Python."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def take(self, name: str) -> str:
        """`name`, or the next free one like it."""
        while name in self.taken or keyword.iskeyword(name):
            count = self.taken[name] = self.taken.get(name, 0) + 1
            numbered = f"{name}_{count}"
            if numbered not in self.taken:
                name = numbered
        self.taken[name] = 0
        return name

    def fresh(self, op: Any) -> str:
        """A name for a node of this operator: a string, a Prim, or an OpOverload."""
        packet = getattr(op, "_overloadpacket", op)
        return self.take(str(getattr(packet, "name" if packet is op else "__name__", op)).strip("_"))


def _show(a: Any) -> str:
    if isinstance(a, (tuple, list)):
        inner = ", ".join(map(_show, a))
        return f"({inner},)" if len(a) == 1 else f"({inner})"
    if isinstance(a, torch.Tensor):
        return f"<{TensorSpec.of(a)}>"
    return repr(a)


def map_arg(arg: Any, f: Callable[[Node], Any]) -> Any:
    """`arg` with f applied to every Node inside nested tuples, lists and dicts."""
    if isinstance(arg, Node):
        return f(arg)
    if isinstance(arg, (tuple, list)):
        return tuple(map_arg(a, f) for a in arg)
    if isinstance(arg, dict):
        return {k: map_arg(v, f) for k, v in arg.items()}
    return arg


def arg_nodes(arg: Any) -> Iterator[Node]:
    """Every Node inside `arg`, left to right, repeats included."""
    if isinstance(arg, Node):
        yield arg
    elif isinstance(arg, (tuple, list)):
        for a in arg:
            yield from arg_nodes(a)
    elif isinstance(arg, dict):
        for a in arg.values():
            yield from arg_nodes(a)


@dataclass(frozen=True, slots=True)
class Output:
    """One result of a graph.

    node    the value
    spec    the geometry eager would give it (shape, stride, offset)
    alias   None: a fresh tensor; ("input", i): a view of input i's storage with `spec`'s geometry (the
            input itself, where the geometry is its own); ("output", j): a view with `spec`'s geometry of
            the storage of output j, which is fresh
    views   for an alias that geometry alone does not make (another dtype, a lazy conjugate): the calls
            (op, args, kwargs, item) that make it from the base
    """

    node: Node
    spec: TensorSpec
    alias: tuple[str, int] | None = None
    views: tuple = ()


def seen(base: torch.Tensor, spec: TensorSpec, views: tuple = (), start: Any = 0) -> torch.Tensor:
    """The alias of `base` that an Output with this spec and these views is. Offsets count from where the base
    begins; `start` is where it began when they were said."""
    moved = base.storage_offset() - start
    if not views:
        return base.as_strided(spec.shape, spec.stride, spec.offset + moved)
    for op, args, kwargs, item in views:
        args = (*args[:2], args[2] + moved) if op is torch.ops.aten.as_strided.default else args
        base = op(base, *args, **kwargs) if item is None else op(base, *args, **kwargs)[item]
    return base


def restride(inputs: Sequence[torch.Tensor], restrides: Iterable[tuple[int, TensorSpec]]) -> None:
    """Gives inputs of a graph the geometry they have in the end; offsets count from where they begin."""
    with torch.no_grad():
        for i, spec in restrides:
            inputs[i].as_strided_(spec.shape, spec.stride, inputs[i].storage_offset() + spec.offset)


@dataclass(frozen=True, slots=True)
class Graph:
    """inputs, nodes in execution order (inputs not among them), outputs, and `writes`: pairs (input index,
    node) whose value is copied into that input after everything else has read it. Functional: nodes never
    change their arguments, but for the random generator (nodes with `op` tagged nondeterministic_seeded keep
    their order).

    `returned` counts the outputs the caller sees; later ones are hidden bases that output aliases refer to.
    `restrides` are inputs that have another geometry in the end; those in `consumed` (numbers) are the
    graph's own: nobody needs them after it.
    """

    inputs: tuple[Node, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]
    writes: tuple[tuple[int, Node], ...] = ()
    returned: int = -1
    restrides: tuple[tuple[int, TensorSpec], ...] = ()
    consumed: tuple[int, ...] = ()

    def users(self) -> dict[Node, list[Node]]:
        users: dict[Node, list[Node]] = {n: [] for n in (*self.inputs, *self.nodes)}
        for n in self.nodes:
            for a in dict.fromkeys(n.operands):
                users[a].append(n)
        return users

    def roots(self) -> Iterable[Node]:
        yield from (o.node for o in self.outputs)
        yield from (n for _, n in self.writes)

    def at(self, env: Mapping[str, int]) -> Graph:
        """The graph for sizes of these values."""
        if not env:
            return self
        new: dict[Node, Node] = {}

        def put(x: Any) -> Any:
            return new[x] if isinstance(x, Node) else at(x, env, put)
        for n in (*self.inputs, *self.nodes):
            new[n] = Node(n.name, n.op, put(n.args), put(n.kwargs), put(n.spec), n.where)
        outputs = [Output(new[o.node], put(o.spec), o.alias, put(o.views)) for o in self.outputs]
        return Graph(tuple(new[n] for n in self.inputs), tuple(new[n] for n in self.nodes), tuple(outputs),
                     tuple((i, new[n]) for i, n in self.writes), self.returned, put(self.restrides),
                     self.consumed)

    def __str__(self) -> str:
        lines = [f"def graph({', '.join(n.name for n in self.inputs)}):"]
        lines += [f"    # {n.name}: {n.spec}" for n in self.inputs]
        lines += [f"    {n}" for n in self.nodes]
        lines += [f"    write({self.inputs[i].name}, {n.name})" for i, n in self.writes]
        shown = [o.node.name + (f" as {o.alias[0]}{o.alias[1]}" if o.alias else "") for o in self.outputs]
        return "\n".join([*lines, f"    return {', '.join(shown)}"])

    def check(self, stage: str) -> None:
        """Raises CheckError unless names are unique, every argument is defined before its use, and outputs
        and writes fit their specs."""
        seen: dict[Node, None] = {}
        names: set[str] = set()
        for i, n in enumerate((*self.inputs, *self.nodes)):
            if n.name in names:
                raise CheckError(stage, n.name, "name is defined twice")
            if i < len(self.inputs) and (n.op != "input" or n.args != (i,)):
                raise CheckError(stage, n.name, f"is not input {i}")
            for a in n.operands:
                if a not in seen:
                    raise CheckError(stage, n.name, f"uses {a.name} before it is defined")
            names.add(n.name)
            seen[n] = None
        for o in self.outputs:
            _check_result(stage, o, seen, self)
        for i, n in self.writes:
            if not 0 <= i < len(self.inputs) or n not in seen:
                raise CheckError(stage, n.name, f"is undefined, or written to input {i}, which is none")
            target = self.inputs[i].tensor
            if (n.tensor.shape, n.tensor.dtype) != (target.shape, target.dtype):
                raise CheckError(stage, n.name, f"is {n.spec}, written to input {i}, which is {target}")


def _check_result(stage: str, o: Output, seen: dict[Node, None], graph: Graph) -> None:
    if o.node not in seen:
        raise CheckError(stage, o.node.name, "is returned but not defined")
    if not o.views and (o.node.tensor.shape != o.spec.shape or o.node.tensor.dtype != o.spec.dtype):
        raise CheckError(stage, o.node.name, f"is {o.node.spec}, returned as {o.spec}")
    if o.alias is None:
        if not o.spec.is_dense and o.spec.numel:
            raise CheckError(stage, o.node.name, f"is returned fresh, but its stride is not dense: {o.spec}")
        return
    kind, i = o.alias
    if kind == "output" and (not 0 <= i < len(graph.outputs) or graph.outputs[i].alias is not None):
        raise CheckError(stage, o.node.name, f"aliases output {i}, which is not fresh")
    if kind == "input" and not 0 <= i < len(graph.inputs):
        raise CheckError(stage, o.node.name, f"aliases input {i}, which does not exist")
