"""From prims to loops: what is realised becomes a loop nest that fills a buffer; everything else lives
inside bodies.

Takes `lower.Prims` (or its graph), gives `Loops` for `schedule`. Consumer-driven: the loop of a realised
value asks for the value at its own index, and that question travels through views and elementwise prims
down to memory. Library kernels become calls on strided windows. Write-backs to inputs come last, after
everything that reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..ir.forms import alike, coefficient
from ..ir.graph import Graph, Node, arg_nodes, map_arg
from ..ir.spec import TensorSpec, contiguous_stride
from ..ir.sym import Sym, Var, hint, same
from .axes import share_scatter, split_axes, split_reduction
from .ir import Loops
from .nest import Axis, Buffer, Extern, Loop, Result, Step, Store, View, axis
from .realise import Decisions, decide, filler, layout_of, out_variant
from .sizes import sizes_in, sources
from .val import Val, apply, const, loads, stride_along
from .values import TOP, Undecided, Values
from .views import Indices, argument, kind_of, name_of, offset_of, strided_window

BOXES = 8  # a loop over concatenations is split into at most so many


def build_loops(prims: Any) -> Loops:
    """The loops of a prim graph (`prims` is an ir.Graph or holds one as `.graph`)."""
    return _Builder(getattr(prims, "graph", prims)).build()


class _Builder:
    def __init__(self, graph: Graph):
        self.graph = graph
        self.decisions: Decisions = decide(graph)
        self.values = Values()
        self.buffers: dict[str, Buffer] = {}
        self.steps: list[Step] = []
        self.constants: list[torch.Tensor] = []
        self.notes: dict[str, str] = {}
        self.outputs: dict[Node, int] = {}  # realised node -> the output whose memory it fills
        self.several: dict[Node, dict[int, Node]] = {}
        # what library kernels read: their layout is eager mode's
        self.shown = {base for pairs in self.decisions.windows.values() for _, base in pairs}
        self.renewed = _renewed(graph)

    def build(self) -> Loops:
        g = self.graph
        for i, n in enumerate(g.inputs):
            if not isinstance(n.spec, Sym):
                self._bind(n, Buffer(f"in{i}", "input", n.tensor, i))
        for j, o in enumerate(g.outputs):
            node = filler(o, self.decisions.reasons)
            if o.alias is None and node in self.decisions.reasons:
                self.outputs.setdefault(node, j)
        for n in g.nodes:
            if n.op == "getitem":
                self.several.setdefault(n.args[0], {})[n.args[1]] = n
        for n in g.nodes:
            self._node(n)
        copies = [self._output(j) for j in range(len(g.outputs))]
        self._writes()
        loops = Loops(self.buffers, tuple(self.steps), tuple(copies),
                      tuple(f"in{i}" for i in range(len(g.inputs))), tuple(self.constants),
                      tuple(self.values.errors), self.notes, g.returned,
                      tuple(f"in{i}" for i, n in g.writes if n is not g.inputs[i]), g.restrides,
                      tuple(i for i, n in g.writes if n is g.inputs[i]), g.consumed,
                      renewed=tuple(dict.fromkeys(f"in{i}" for i in self.renewed.values())))
        shapes = (b.spec.shape for b in self.buffers.values())
        if any(isinstance(n, Sym) for shape in ([n.spec for n in g.inputs], *shapes) for n in shape):
            loops = replace(loops, sizes=sources([n.spec for n in g.inputs], sizes_in(loops)))
        return loops

    # ---- buffers ----

    def _bind(self, node: Node, buffer: Buffer) -> Buffer:
        self.buffers[buffer.name] = self.values.buffers[node] = buffer
        return buffer

    def _fresh(self, name: str) -> str:
        while name in self.buffers:
            name += "_"
        return name

    def _memory(self, node: Node, kind: str = "temp", order: Sequence[int] | None = None) -> Buffer:
        """Registers the buffer that a realised node fills; `order` has its dimensions, outermost first."""
        spec = node.tensor
        stride = layout_of(spec) if order is None else contiguous_stride(spec.shape, order)
        spec = spec.with_(stride=stride, offset=0)
        j = self.outputs.get(node, -1)
        if j < 0 or kind != "temp":
            buffer = Buffer(self._fresh(node.name), kind, spec)
        else:                                       # an output may show the node's memory in other dimensions
            o = self.graph.outputs[j]
            shown = o.spec.with_(offset=0)
            buffer, spec = Buffer(f"out{j}", "output", shown, j), shown if o.node is node else spec
        if node in self.decisions.reasons:
            self.notes[buffer.name] = self.decisions.reasons[node]
        self._bind(node, buffer)
        self.values.buffers[node] = replace(buffer, spec=spec)
        return self.values.buffers[node]

    # ---- nodes ----

    def _node(self, n: Node) -> None:
        kind = kind_of(n)
        if n.op == "constant":
            self._bind(n, Buffer(self._fresh(f"c{len(self.constants)}"), "constant", n.tensor,
                                 len(self.constants)))
            self.constants.append(n.args[0])
        elif kind == "extern":
            self._extern(n)
        elif n not in self.decisions.reasons or kind == "getitem":
            return
        elif kind in ("reduce", "scan"):
            self._reduce(n)
        elif name_of(n) == "scatter":
            self._scatter(n)
        else:
            self._fill(n, None)

    def _fill(self, n: Node, target: Buffer | None) -> None:
        """An elementwise loop (or several, over the boxes a concatenation leaves) that computes n into its
        buffer."""
        fill = target is None
        values = [(box, self.values.compute(n, idx) if fill else self.values.of(n, idx))
                  for box, idx in self._boxes(n, own=fill)]
        buffer = target or self._memory(n, order=self._order(n, values))
        for k, ((axes, idx), body) in enumerate(values):
            out = Store(buffer.name, offset_of(idx, buffer.spec.stride))
            self._loop(n, f"{n.name}_{k}" if k else n.name, axes, (), None, body, out)

    def _order(self, n: Node, values: Sequence[tuple[Any, Val]]) -> Sequence[int] | None:
        """The dimensions of a value that nobody else sees, in the order in which the largest operand of its
        loop lies in memory, where that makes the reads contiguous and its own layout does not."""
        read = [x for x in loads(values[0][1]) if x.buffer in self.buffers] if len(values) == 1 else []
        if not read or n in self.outputs or n in self.shown:
            return None
        main = max(read, key=lambda x: hint(self.buffers[x.buffer].spec.numel))
        idx = values[0][0][1]
        steps = {k: stride_along(main, v) for k, v in enumerate(idx) if isinstance(v, Var)}
        last = max(steps, key=lambda k: -hint(layout_of(n.tensor)[k]), default=0)
        if None in steps.values() or 1 not in steps.values() or steps[last] == 1:
            return None
        return sorted(range(len(idx)), key=lambda k: -(steps.get(k) or 0))

    def _boxes(self, n: Node, own: bool) -> Iterator[tuple[tuple[tuple[Axis, ...], Indices], Indices]]:
        """((axes, index), index) of each box of n's index space in which every concatenation is decided."""
        shape = n.tensor.shape
        todo = [tuple((0, size) for size in shape)]
        if own and name_of(n) == "cat" and len(n.args[0]) <= 4 * BOXES:
            todo = list(_parts(n))
        made = 0
        while todo:
            box = todo.pop(0)
            axes = tuple(axis(f"i{k}", stop - start) for k, (start, stop) in enumerate(box)
                         if not same(stop - start, 1))
            by_name = {a.var.name: a.var for a in axes}
            idx: Indices = tuple(start if same(stop - start, 1) else by_name[f"i{k}"] + start
                                 for k, (start, stop) in enumerate(box))
            self.values.splits = made + len(todo) < BOXES or len(todo) + made == 0
            try:
                self.values.compute(n, idx) if own else self.values.of(n, idx)
            except Undecided as u:
                k = int(u.var.name[1:])
                start, stop = box[k]
                todo[:0] = [(*box[:k], part, *box[k + 1 :]) for part in ((start, start + u.point),
                    (start + u.point, stop))]
                continue
            finally:
                self.values.splits = False
            made += 1
            yield (axes, idx), idx

    def _loop(self, n: Node, name: str, axes: tuple[Axis, ...], reduce_axes: tuple[Axis, ...],
              combine: str | None, body: Val, out: Store) -> None:
        axes = tuple(sorted(axes, key=lambda a: -hint(coefficient(out.index, a.var) or 0)))
        loop = Loop(name, axes, reduce_axes, combine, body, out, self.buffers[out.buffer].spec.dtype, n.where)
        self.steps += split_reduction(split_axes(loop), self.buffers)

    def _reduce(self, n: Node) -> None:
        src: Node = n.args[0]
        name = name_of(n)
        scan = kind_of(n) == "scan"
        shape = src.tensor.shape
        given = (argument(n, 1, "dim"),) if scan else tuple(argument(n, 1, "dims"))
        dims = tuple(d % max(len(shape), 1) for d in given)
        axes = {k: axis(f"r{k}" if k in dims else f"i{k}", size) for k, size in enumerate(shape)
                if not same(size, 1)}
        idx: Indices = tuple(axes[k].var if k in axes else 0 for k in range(len(shape)))
        body = self.values.of(src, idx)
        if body.dtype is not n.tensor.dtype and name in ("any", "all"):
            body = apply("ne", (body, const(0, body.dtype)), torch.bool)
        reduce_axes = tuple(axes[k] for k in sorted(dims) if k in axes)
        buffer = self._memory(n)
        kept = idx if scan else tuple(i for k, i in enumerate(idx) if k not in dims)
        out = Store(buffer.name, offset_of(kept, buffer.spec.stride))
        par = tuple(a for k, a in axes.items() if k not in dims)
        # the least of booleans is whether all are true
        boolean = {"amin": "all", "amax": "any"} if body.dtype is torch.bool else {}
        combine: str | None = boolean.get(name, name)
        if not reduce_axes and (scan or not name.startswith("arg")):
            combine = None  # over one element
        elif not reduce_axes:
            combine, body = None, const(0, torch.int64)
        self._loop(n, n.name, par, reduce_axes, combine, body, out)

    def _scatter(self, n: Node) -> None:
        base, indices, src = n.args[:3]
        mode = argument(n, 3, "mode", "set")
        idx: Indices
        shape = n.tensor.shape
        if n in self.renewed:
            buffer = self.values.buffers[n] = self.buffers[f"in{self.renewed[n]}"]
        else:
            buffer = self._memory(n)
            axes = tuple(axis(f"i{k}", size) for k, size in enumerate(shape) if not same(size, 1))
            by_name = {a.var.name: a.var for a in axes}
            idx = tuple(by_name.get(f"i{k}", 0) for k in range(len(shape)))
            self._loop(n, f"{n.name}_base", axes, (), None, self.values.of(base, idx),
                       Store(buffer.name, offset_of(idx, buffer.spec.stride)))
        points = next((a.tensor.shape for a in (src, *indices) if isinstance(a, Node)), ())
        axes = tuple(axis(f"i{k}", size) for k, size in enumerate(points) if not same(size, 1))
        by_name = {a.var.name: a.var for a in axes}
        at: Indices = tuple(by_name.get(f"i{k}", 0) for k in range(len(points)))
        where, pairs = self.values.indirect(indices, shape, at, TOP, n)
        place = offset_of(where, buffer.spec.stride)
        body = self.values.of(src, at) if isinstance(src, Node) else const(src, n.tensor.dtype)
        loop = Loop(n.name, axes, (), None, body, Store(buffer.name, place, mode, pairs), n.tensor.dtype,
                    n.where)
        self.steps.append(share_scatter(loop))

    # ---- library kernels ----

    def _extern(self, n: Node) -> None:
        into = out_variant(n.op)
        single = isinstance(n.spec, TensorSpec)
        specs: tuple = (n.spec,) if single else tuple(n.spec or ())
        items = {0: n} if single else self.several.get(n, {})
        windows = {a: self._window(a, base) for a, base in self.decisions.windows.get(n, ())}
        outs: list[View | None] = []
        if any(s is None for s in specs):
            into = None
        for k, spec in enumerate(specs):
            node = items.get(k)
            if node is None and (into is None or spec is None):
                outs.append(None)
                continue
            if node is not None and into:
                buffer = self._memory(node)
            elif node is not None:
                buffer = self._bind(node, Buffer(self._fresh(node.name), "extern", spec.with_(offset=0)))
            else:
                buffer = Buffer(self._fresh(f"{n.name}_{k}"), "temp", spec.with_(offset=0))
                self.buffers[buffer.name] = buffer
            outs.append(View(buffer.name, buffer.spec))
        args = map_arg(n.args, windows.__getitem__)
        kwargs = map_arg(n.kwargs, windows.__getitem__)
        self.steps.append(Extern(n.name, n.op, args, kwargs, tuple(outs), into, n.where))

    def _window(self, a: Node, base: Node) -> View:
        memory = self.values.buffers[base]
        window = strided_window(a, base, memory.spec.stride)
        if window is None:
            raise TypeError(f"{a.name} is no strided window of {base.name}")
        return View(memory.name, window)

    # ---- results ----

    def _output(self, j: int) -> Result:
        o = self.graph.outputs[j]
        if o.alias is not None:
            kind, i = o.alias
            return Result(f"in{i}" if kind == "input" else self._result_buffer(i), o.spec, True, o.views)
        return Result(self._result_buffer(j), o.spec)

    def _result_buffer(self, j: int) -> str:
        """The buffer that output j owns, filling it by a copy if the value lives elsewhere."""
        o = self.graph.outputs[j]
        name = f"out{j}"
        if name in self.buffers:
            return name
        own = self.values.buffers.get(o.node)
        if (own is not None and own.kind == "extern" and self.outputs.get(o.node) == j
                and alike(own.spec.stride, o.spec.stride)):
            return own.name
        target = Buffer(name, "output", o.spec.with_(offset=0), j)
        self.buffers[name] = target
        self._fill(o.node, target)
        return name

    def _writes(self) -> None:
        """Write-backs: a value whose loop would read what an earlier write-back changed is computed before
        them all."""
        written = {f"in{i}" for i, n in self.graph.writes}
        kept: dict[Node, Buffer] = {}
        for i, n in self.graph.writes:
            own = self.values.buffers.get(n)
            if own is None and not self._safe(n, f"in{i}", written):
                self.decisions.reasons[n] = "written back, and reads what is written"
                self._fill(n, None)
            elif own is not None and own.name in written and own.name != f"in{i}" and n not in kept:
                spec = n.tensor.with_(stride=layout_of(n.tensor), offset=0)
                kept[n] = Buffer(self._fresh(n.name + "_old"), "temp", spec)
                self.buffers[kept[n].name] = kept[n]
                self._fill(n, kept[n])
        self.values.buffers.update(kept)
        for i, n in self.graph.writes:
            target = self.buffers[f"in{i}"]
            if self.values.buffers.get(n) is not target:
                self._fill(n, target)

    def _safe(self, n: Node, target: str, written: set[str]) -> bool:
        stride = self.buffers[target].spec.stride
        for (axes, idx), _ in self._boxes(n, own=True):
            body = self.values.compute(n, idx)
            here = offset_of(idx, stride)
            for x in loads(body):
                if x.buffer in written and (x.buffer != target or not same(x.index, here)):
                    return False
        return True


def _renewed(graph: Graph) -> dict[Node, int]:
    """Scatters into an input that nothing else reads, whose result it gets: they store to its memory, and
    what comes after reads them there. With the number of the input."""
    users, shown = graph.users(), {o.node for o in graph.outputs if o.alias is None}
    found: dict[Node, int] = {}
    for i, n in graph.writes:
        layout, chain = graph.inputs[i].tensor, []
        while name_of(n) == "scatter" and n.args[0] not in arg_nodes(n.args[1:3]):
            chain.append(n)
            n = n.args[0]
            if users[n] != chain[-1:] or n in shown:
                break
        alone = users[n] == chain[-1:] and n not in shown and n is graph.inputs[i]
        if alone and not layout.may_overlap and all(i != j for j, _ in graph.restrides) and all(
                x.tensor.dtype == layout.dtype and alike(layout_of(x.tensor), layout.stride) for x in chain):
            found.update((x, i) for x in chain)
    return found


def _parts(n: Node) -> Iterator[tuple[tuple[int, int], ...]]:
    dim = argument(n, 1, "dim", 0)
    start = 0
    for part in n.args[0]:
        stop = start + part.tensor.shape[dim]
        if stop > start:
            yield tuple((start, stop) if k == dim else (0, size) for k, size in enumerate(n.tensor.shape))
        start = stop
