"""AtenGraph and Prims: the border objects of the lowering.

`trace` gives an AtenGraph (ATen calls, functional), `decompose` turns it into Prims (rows of the prim table
and externs), `loops.build` reads those. Both wrap an `ir.Graph` and share printing, checking and running: a
node's op is called on the values of its arguments, and its result must have the geometry its spec promises.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CheckError, Refusal
from ..ir.fake import Fake, fake_call
from ..ir.graph import Graph, Node, Output, map_arg, restride, seen
from ..ir.prims import PRIMS, Prim
from ..ir.scalar import like_number
from ..ir.spec import TensorSpec, bind

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Program:
    """A graph that prints as a Python program, checks itself, and runs on tensors."""

    graph: Graph
    stage = "graph"

    def __str__(self) -> str:
        return to_python(self.graph)

    def check(self) -> None:
        """Raises CheckError naming the node whose spec its operator would not give, or whose use is not
        legal."""
        self.graph.check(self.stage)
        for n in self.graph.nodes:
            self.check_node(n)

    def check_node(self, n: Node) -> None:
        raise NotImplementedError

    def run(self, *inputs: Any) -> list[Tensor]:
        """Runs every node, one ATen call or prim reference at a time. Inputs that are written to are
        changed in place; outputs that alias do so. Arguments that are neither tensors nor sizes of the graph
        are left out, as they are constants of it."""
        taken = Tensor if all(isinstance(n.spec, TensorSpec) for n in self.graph.inputs) else (Tensor, int)
        return run_graph(self.graph, [x for x in inputs if isinstance(x, taken)], self.stage)


@dataclass(frozen=True, slots=True)
class AtenGraph(Program):
    """What `trace` gives: nodes are ATen calls without side effects (but on the random generator),
    "constant", "getitem"."""

    stage = "aten"

    def check_node(self, n: Node) -> None:
        if isinstance(n.op, Prim):
            raise CheckError(self.stage, n.name, "is a prim")
        check_call(self.stage, n)


@dataclass(frozen=True, slots=True)
class Prims(Program):
    """What `decompose` gives: nodes are prims, externs (ATen calls), "constant", "getitem"."""

    stage = "prims"

    def check_node(self, n: Node) -> None:
        if not isinstance(n.op, Prim):
            return check_call(self.stage, n)
        spec = n.spec
        if not isinstance(spec, TensorSpec):
            raise CheckError(self.stage, n.name, f"has no spec: {spec}")
        try:
            dtype, shape = n.op.meta(*map_arg(n.args, lambda a: a.spec), **n.kwargs)
        except (ValueError, TypeError) as e:
            raise CheckError(self.stage, n.name, f"{n.op}: {e}") from e
        if (dtype, tuple(shape)) != (spec.dtype, spec.shape):
            raise CheckError(self.stage, n.name, f"says {spec}, but {n.op} gives {dtype}{tuple(shape)}")
        if len(spec.stride) != len(spec.shape):
            raise CheckError(self.stage, n.name,
                             f"has {len(spec.stride)} strides for {len(spec.shape)} dimensions")
        return None

    def check(self) -> None:
        """Besides what every graph checks: the strides of what is returned fresh are those promised to the
        caller."""
        Program.check(self)
        for o in self.graph.outputs:
            mine, promised = o.node.tensor, o.spec
            if o.alias is None and not same_strides(mine, promised):
                raise CheckError(self.stage, o.node.name, f"is laid out as {mine}, returned as {promised}")


def same_strides(a: TensorSpec, b: TensorSpec) -> bool:
    """Whether two specs of one shape lay elements out alike (strides of dimensions of size 1 mean
    nothing)."""
    return len(a.stride) == len(b.stride) and (
        all(s is t or n <= 1 or s == t for n, s, t in zip(a.shape, a.stride, b.stride)) or a.numel == 0
    )


def infer(op: Any, args: tuple, kwargs: dict) -> Any:
    """The spec (or tuple of specs) of an ATen call on nodes, by torch's shape rules."""
    def fake(n: Node) -> Any:
        if isinstance(n.spec, tuple):
            return tuple(None if s is None else Fake.from_spec(s) for s in n.spec)
        return Fake.from_spec(n.tensor) if not n.tensor.number else like_number(n.tensor)
    out = fake_call(op, map_arg(args, fake), map_arg(kwargs, fake), {})
    return spec_of(out)


def spec_of(out: Any) -> Any:
    """The spec of a fake or real result, tuple for several."""
    if isinstance(out, Fake):
        return out.spec
    if isinstance(out, Tensor):
        return TensorSpec.of(out)
    return tuple(map(spec_of, out)) if isinstance(out, (tuple, list)) else None


def check_call(stage: str, n: Node) -> None:
    """Raises CheckError unless n's spec is what its op gives."""
    if n.op == "constant":
        expect = TensorSpec.of(n.args[0])
    elif n.op == "getitem":
        source = n.args[0].spec
        if not isinstance(source, tuple) or not 0 <= n.args[1] < len(source):
            raise CheckError(stage, n.name, f"takes item {n.args[1]} of {n.args[0].name}, which is {source}")
        expect = source[n.args[1]]
    elif isinstance(n.op, torch._ops.OpOverload):
        if n.op._schema.is_mutable:
            raise CheckError(stage, n.name, f"{n.op} writes to its arguments")
        try:
            expect = infer(n.op, n.args, n.kwargs)
        except Refusal:                 # its geometry depends on data
            return
        except Exception as e:
            raise CheckError(stage, n.name, f"{n.op} does not take these arguments: {e}") from e
    else:
        raise CheckError(stage, n.name, f"has no known operator: {n.op}")
    if not _agree(expect, n.spec):
        raise CheckError(stage, n.name, f"says {_text(n.spec)}, but {n.op} gives {_text(expect)}")


def _text(spec: Any) -> str:
    return f"({', '.join(map(_text, spec))})" if isinstance(spec, tuple) else str(spec)


def _agree(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_agree, a, b))
    if isinstance(a, TensorSpec) and isinstance(b, TensorSpec):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and same_strides(a, b)
    return a is None and b is None


# ---- running --------------------------------------------------------------------------------------

def run_graph(graph: Graph, inputs: Sequence[Tensor], stage: str) -> list[Tensor]:
    """See Program.run. Raises CheckError where inputs do not fit, or a value turns out different from its
    spec."""
    if len(inputs) != len(graph.inputs):
        raise CheckError(stage, "inputs", f"expects {len(graph.inputs)} tensors, got {len(inputs)}")
    graph = graph.at(bind([n.spec for n in graph.inputs], inputs))
    values: dict[Node, Any] = {}
    for n, t in zip(graph.inputs, inputs):
        if isinstance(n.spec, int):
            values[n] = t
            continue
        spec = n.tensor
        if (t.dtype, tuple(t.shape)) != (spec.dtype, spec.shape) or not same_strides(TensorSpec.of(t), spec):
            raise CheckError(stage, n.name, f"expects {spec}, got {TensorSpec.of(t)}")
        values[n] = t.item() if spec.number and stage == "aten" else t.detach()
    with torch.no_grad():
        for n in graph.nodes:
            values[n] = call_node(n, values.__getitem__)
            if values[n] is not None:          # a gradient that nobody asked for
                check_value(stage, n, values[n])
        results = _results(graph, values, inputs)
        return results


def call_node(n: Node, value: Callable[[Node], Any]) -> Any:
    """The value of a node, given those of its arguments."""
    if n.op == "constant":
        return n.args[0]
    if n.op == "getitem":
        return value(n.args[0])[n.args[1]]
    f = n.op.ref if isinstance(n.op, Prim) else n.op
    return f(*map_arg(n.args, value), **map_arg(n.kwargs, value))


def check_value(stage: str, n: Node, value: Any) -> None:
    """Raises CheckError where a computed value is not of the dtype and shape its node promises."""
    if value is None:               # a result that the kernel leaves out, and nobody takes
        return
    if isinstance(n.spec, TensorSpec) and (value.dtype, tuple(value.shape)) != (n.spec.dtype, n.spec.shape):
        raise CheckError(stage, n.name, f"says {n.spec}, computes {TensorSpec.of(value)}")


def _results(graph: Graph, values: dict[Node, Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    fresh = {i: lay_out(values[o.node], o.spec) for i, o in enumerate(graph.outputs) if o.alias is None}
    new = [(i, values[n].clone()) for i, n in graph.writes]
    for i, v in new:
        inputs[i].detach().copy_(v)
    out = []
    for i, o in enumerate(graph.outputs[:graph.returned] if graph.returned >= 0 else graph.outputs):
        out.append(fresh[i] if o.alias is None else _alias(o, graph, inputs, fresh))
    restride(inputs, graph.restrides)
    return out


def _alias(o: Output, graph: Graph, inputs: Sequence[Tensor], fresh: dict[int, Tensor]) -> Tensor:
    assert o.alias is not None
    kind, i = o.alias
    if kind == "input":
        return seen(inputs[i], o.spec, o.views, graph.inputs[i].tensor.offset)
    return seen(fresh[i], o.spec, o.views)


def lay_out(value: Tensor, spec: TensorSpec) -> Tensor:
    """A fresh tensor with this value and spec's strides."""
    out = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device)
    return out.copy_(value)


# ---- printing -------------------------------------------------------------------------------------

def to_python(graph: Graph) -> str:
    """A Python program: `graph(*inputs)` gives the outputs. Large constants are parameters with the name of
    their node."""
    constants = [n for n in graph.nodes if n.op == "constant" and n.args[0].numel() > 64]
    names = [n.name for n in (*graph.inputs, *constants)]
    lines = ["import torch", "from torch import device, inf, nan", "from minicompile.ir.prims import prims",
             "", "aten = torch.ops.aten", "", "", f"def graph({', '.join(names)}):"]
    lines += [f"    # {n.name}: {n.spec}" for n in graph.inputs]
    where = ""
    for n in graph.nodes:
        if n.where is not None and str(n.where) != where:
            where = str(n.where)
            lines.append(f"    # {where}")
        if n not in constants:
            lines.append(f"    {n.name} = {_call_text(n)}  # {_text(n.spec)}")
    lines += [f"    {graph.inputs[i].name}.copy_({n.name})" for i, n in graph.writes]
    lines += [f"    {name}.as_strided_({s.shape}, {s.stride}, {name}.storage_offset() + {s.offset})"
              for name, s in ((graph.inputs[i].name, s) for i, s in graph.restrides)]
    shown = graph.outputs[:graph.returned] if graph.returned >= 0 else graph.outputs
    return "\n".join([*lines, f"    return ({''.join(_output_text(o, graph) + ', ' for o in shown)})"]) + "\n"


def _call_text(n: Node) -> str:
    if n.op == "constant":
        return f"torch.tensor({n.args[0].tolist()}, dtype={n.args[0].dtype})"
    if n.op == "getitem":
        return f"{n.args[0].name}[{n.args[1]}]"
    name = f"prims.{n.op.text_name}" if isinstance(n.op, Prim) else str(n.op)
    if not name.startswith(("prims.", "aten.")):
        name = f"torch.ops.{name}"
    arguments = [*map(_arg_text, n.args), *(f"{k}={_arg_text(v)}" for k, v in n.kwargs.items())]
    return f"{name}({', '.join(arguments)})"


def _arg_text(a: Any) -> str:
    if isinstance(a, (tuple, list)):
        inner = ", ".join(map(_arg_text, a))
        return f"[{inner}]" if isinstance(a, list) else f"({inner}{',' if len(a) == 1 else ''})"
    return repr(a)


def _output_text(o: Output, graph: Graph) -> str:
    s, kind = o.spec, o.alias
    if kind is None:
        if s.is_contiguous:
            return o.node.name
        return f"torch.empty_strided({s.shape}, {s.stride}, dtype={s.dtype}).copy_({o.node.name})"
    base = graph.inputs[kind[1]] if kind[0] == "input" else graph.outputs[kind[1]].node
    if kind[0] == "input" and base.spec == s:
        return base.name
    text = base.name
    for op, args, kwargs, item in o.views:
        given = ", ".join([text, *map(_arg_text, args), *(f"{k}={_arg_text(v)}" for k, v in kwargs.items())])
        text = f"{op}({given})" + ("" if item is None else f"[{item}]")
    return text if o.views else f"{text}.as_strided({s.shape}, {s.stride}, {s.offset})"


assert PRIMS
