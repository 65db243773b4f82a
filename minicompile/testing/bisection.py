"""Bisection: which stage of a compilation is wrong, and at which node.

Takes a `pipeline.Compilation` and the real inputs of its graph; gives a `Finding`. Every border object is
verified by its `check()` and run by its slow reference on the same inputs; the first that differs from eager
names the stage. The node is the first value that the stage never computes, or, behind the prims, the end of
the shortest beginning of the graph that is compiled wrongly. The user's entry is `bisect`.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves

from ..api import compile_anew
from ..errors import CheckError, MinicompileError, ToolchainError, Where
from ..ir.graph import Graph, Node, Output
from ..ir.spec import TensorSpec, copies
from ..lower.graphs import call_node
from ..pipeline import STAGES, Compilation
from .compare import value_differs

# What is run; the captured graph, run eagerly, is the reference.
RUN_ORDER = ("aten", "prims", "loops", "plan", "executable")
TRAINING_ORDER = ("joint", "prims", "loops", "plan", "executable")


@dataclass(frozen=True, slots=True)
class Finding:
    """What bisecting found.

    stage       the first stage whose object is wrong, "" if all agree with eager
    node        its first wrong node, as far as could be told ("" if not)
    reason      what the verifier said, or by how much the result differs
    agreed      the stages that were run and agree with eager
    """

    stage: str = ""
    node: str = ""
    reason: str = ""
    where: Where | None = None
    agreed: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return not self.stage

    def __str__(self) -> str:
        before = f"agree with eager: {', '.join(self.agreed)}" if self.agreed else "nothing before it agrees"
        if self.agrees:
            return f"no stage is wrong ({before})"
        at = (f" at {self.node}" if self.node else "") + (f" ({self.where})" if self.where else "")
        return f"{self.stage} is wrong{at}: {self.reason} ({before})"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave: `outputs` outputs, then the inputs as they were left; or the exception it raised."""

    values: tuple[Any, ...] = ()
    outputs: int = 0
    raised: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """Eager's outcome, and the same in float64 where that is possible (it measures eager's own rounding)."""

    eager: Outcome
    precise: Outcome | None = field(default=None)

    @classmethod
    def of(cls, done: Compilation, given: Sequence[Any]) -> Reference:
        """Of a captured graph. Where its float64 version does not run, eager's result has to stand for it."""
        inputs = tensors_of(given)
        eager, precise = (observe(with_gradients(with_numbers(gm, given), done), tensors)
                          for gm, tensors in ((done.capture.gm, inputs),
                                              (widened(done.capture.gm), [wide(t) for t in inputs])))
        usable = precise.raised is None and len(precise.values) == len(eager.values)
        return cls(eager, precise if usable else None)


def bisect(fn: Any, *args: Any, **kwargs: Any) -> Finding:
    """Runs every stage's border object on the inputs of fn(*args, **kwargs) and names the first stage, then
    the first node, whose result differs from eager's.

    What was captured is compared with what a copy of `fn` returns, where fn and its arguments can be copied.
    Raises MinicompileError if nothing of `fn` was compiled.
    """
    expected = _results_of_copy(fn, args, kwargs)
    compiled, handle = compile_anew(fn)
    handle.keep_inputs = True
    try:
        compiled(*args, **kwargs)
    finally:
        handle.keep_inputs = False
    if not handle.compilations:
        refused = "; ".join(map(str, handle.refusals))
        raise MinicompileError(f"nothing of {handle.name} was compiled: {refused}")
    whole = len(handle.compilations) == 1 and not handle.refusals
    findings = [bisect_compilation(c, expected=expected if whole else ()) for c in handle.compilations]
    return next((f for f in findings if not f.agrees), findings[0])


def _results_of_copy(fn: Any, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """The tensors a copy of `fn` gives for copies of its arguments, less those it only passes on; none if
    they cannot be copied."""
    try:
        twin, args, kwargs = deepcopy((getattr(fn, "__wrapped__", fn), args, kwargs))
    except (TypeError, RuntimeError, AttributeError):
        return []
    held = [*twin.parameters(), *twin.buffers()] if isinstance(twin, torch.nn.Module) else []
    known = tensors_of([*held, *tree_leaves((args, kwargs))])
    old = {t.untyped_storage()._cdata for t in known}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        results = tree_leaves(twin(*args, **kwargs))
    return [r.detach() for r in tensors_of(results) if r.untyped_storage()._cdata not in old]


def bisect_compilation(done: Compilation, inputs: Sequence[Any] | None = None,
                       expected: Sequence[torch.Tensor] = ()) -> Finding:
    """The first wrong stage of `done` and its first wrong node.

    inputs      the graph's, left untouched; None: those that `done` has kept
    expected    tensors that the original function returned; the captured graph must give each of them
    """
    given = done.inputs if inputs is None else inputs
    reference = Reference.of(done, given)
    finding = _verify("capture", done.capture) or _missing(reference, expected)
    if finding:
        return finding
    agreed = ["capture"]
    for stage in RUN_ORDER if done.split is None else TRAINING_ORDER:
        try:
            parts = _parts(stage, done)
        except ToolchainError:
            break                                       # then the user, too, gets what the reference gives
        finding = _judge(stage, done, parts, given, reference)
        if finding:
            return dataclasses.replace(finding, agreed=tuple(agreed))
        agreed.append(stage)
    return Finding(agreed=tuple(agreed))


def _parts(stage: str, done: Compilation) -> list[Any]:
    """The object of a stage, or those of the forward and of the backward half."""
    halves = [done, done.backward] if done.backward is not None and stage in ("prims", *STAGES) else [done]
    return [half.reach(stage) if stage in STAGES else getattr(half, stage) for half in halves]


def _judge(stage: str, done: Compilation, parts: list[Any], given: Sequence[Any],
           reference: Reference) -> Finding | None:
    sources = [half.source for half in (done, done.backward) if half is not None]
    for border in parts if stage != "executable" else sources:
        checked = _verify(stage if stage != "executable" else "source", border)
        if checked:
            return checked
    try:
        reason = differs(observe(_runner(parts, done), tensors_of(given)), reference)
    except CheckError as e:                             # the slow references verify what they compute, too
        return Finding(stage, e.node, e.reason)
    if not reason:
        return None
    node, where = first_wrong_node(stage, done, given) if done.split is None else ("", None)
    return Finding(stage, node, reason, where)


def _runner(parts: list[Any], done: Compilation) -> Callable[..., Any]:
    """Runs a stage's object; of a graph that is trained through both halves, for fixed incoming gradients."""
    if done.split is None:
        return parts[0].run
    split, tangents = done.split, tangents_of(done)
    if len(parts) == 1:
        return lambda *primals: parts[0].run(*primals, *tangents)

    def run(*primals: torch.Tensor) -> list[torch.Tensor]:
        results = parts[0].run(*primals)
        rest = iter(results[split.outputs:])
        saved = [primals[i] if i is not None else next(rest) for i in split.from_input]
        return [*results[:split.outputs], *parts[1].run(*saved, *tangents)]
    return run


def tangents_of(done: Compilation) -> list[torch.Tensor]:
    """Incoming gradients for a graph that is trained through: any, but always the same."""
    specs = [n.tensor for n in done.split.backward.inputs[len(done.split.from_input):]]
    random = torch.Generator().manual_seed(0)
    return [torch.empty_strided(s.shape, s.stride, dtype=s.dtype).normal_(generator=random) for s in specs]


def with_gradients(run: Callable[..., Any], done: Compilation) -> Callable[..., Any]:
    """`run`; of a graph that is trained through the outputs and, after them, the gradients."""
    if done.split is None:
        return run
    joint, tangents = done.joint, tangents_of(done)

    def both(*primals: torch.Tensor) -> list[torch.Tensor]:
        with torch.enable_grad():
            outputs = run(*primals)
            results = [outputs[i] for i in joint.tangents]
            incoming = [t.to(r.dtype) for t, r in zip(tangents, results)]
            wanted = [primals[i] for i in joint.gradients]
            gradients = torch.autograd.grad(results, wanted, incoming)
        return [*(o.detach() for o in outputs), *gradients]
    return both


def _verify(stage: str, border: Any) -> Finding | None:
    if not hasattr(border, "check"):
        return None
    try:
        border.check()
    except CheckError as e:
        return Finding(stage, e.node, e.reason)
    return None


def _missing(reference: Reference, expected: Sequence[torch.Tensor]) -> Finding | None:
    """A Finding unless every tensor of `expected` is among the captured graph's values."""
    for i, want in enumerate(expected):
        got = [v for v in reference.eager.values if isinstance(v, torch.Tensor) and v.shape == want.shape]
        if not any(not value_differs(g, want) for g in got):
            return Finding("capture", reason=f"tensor {i} of the function's result is not the graph's")
    return None


# ------------------------------------------------------------------------------------ running and comparing

def is_float(t: Any) -> bool:
    return isinstance(t, torch.Tensor) and t.dtype in (torch.float32, torch.float16, torch.bfloat16)


def wide(t: torch.Tensor) -> torch.Tensor:
    return t.detach().double().requires_grad_(t.requires_grad) if is_float(t) else t


def tensors_of(inputs: Sequence[Any]) -> list[torch.Tensor]:
    """What the stages behind the captured graph take: Python numbers are constants to them."""
    return [t for t in inputs if isinstance(t, torch.Tensor)]


def with_numbers(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """`gm` as a function of tensors alone, with the numbers among `inputs` put where they belong."""
    def run(*tensors: torch.Tensor) -> Any:
        rest = iter(tensors)
        return gm.forward(*(next(rest) if isinstance(x, torch.Tensor) else x for x in inputs))
    return run


def widened(gm: fx.GraphModule) -> fx.GraphModule:
    """`gm` with float64 wherever it says float32."""
    graph = deepcopy(gm.graph)
    for n in graph.nodes:
        n.args, n.kwargs = (map_aggregate(a, lambda x: torch.float64 if x is torch.float32 else x)
                            for a in (n.args, n.kwargs))
        if n.op == "call_method" and n.target == "float":
            n.target = "double"
    attributes = {n.target: getattr(gm, n.target) for n in graph.nodes if n.op == "get_attr"}
    return fx.GraphModule({k: v.double() if is_float(v) else v for k, v in attributes.items()}, graph)


def observe(run: Callable[..., Any], inputs: Sequence[Any]) -> Outcome:
    """Runs on fresh copies of `inputs`, without autograd and from a fixed random state."""
    given = copies(inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            results = run(*given)
        except MinicompileError:
            raise
        except Exception as e:  # part of what a program does: the stages must raise alike
            return Outcome(raised=e)
    results = results if isinstance(results, (tuple, list)) else (results,)
    values = tuple(v.clone() if isinstance(v, torch.Tensor) else v for v in (*results, *given))
    return Outcome(values, len(results))


def differs(got: Outcome, reference: Reference) -> str:
    """What of `got` is not eager's outcome up to reassociation of float arithmetic; "" if nothing."""
    eager = reference.eager
    if got.raised or eager.raised:
        if type(got.raised) is type(eager.raised):
            return ""
        return f"raised {got.raised!r}, eager raised {eager.raised!r}"
    if len(got.values) != len(eager.values):
        return f"{len(got.values)} results and inputs, eager has {len(eager.values)}"
    precise = reference.precise.values if reference.precise else (None,) * len(eager.values)
    for i, (g, e, p) in enumerate(zip(got.values, eager.values, precise)):
        reason = value_differs(g, e, p)
        if reason:
            i_th = f"output {i}" if i < eager.outputs else f"input {i - eager.outputs}, as it was left,"
            return f"{i_th} {reason}"
    return ""


# ----------------------------------------------------------------------------------------- finding the node

def first_wrong_node(stage: str, done: Compilation, given: Sequence[Any]) -> tuple[str, Where | None]:
    """The first wrong node of a stage whose result differs, and the user's place; ("", None) if unknown."""
    if stage == "aten":
        return _never_computed(_fx_values(done, given), _graph_values(done.aten.graph, given))
    if stage == "prims":
        return _never_computed(_graph_values(done.aten.graph, given), _graph_values(done.prims.graph, given))
    return _shortest_wrong(stage, done, tensors_of(given))


@dataclass(slots=True)
class Computed:
    """A value that a graph computes on the way: the node, its place, the names of the nodes it uses."""

    name: str
    where: Where | None
    value: Any
    uses: tuple[str, ...]
    is_view: bool


def _never_computed(before: list[Computed], after: list[Computed]) -> tuple[str, Where | None]:
    """The first value of `before` that is not among those of `after`, and does not lead to one that is.

    Views are named last: the stage behind may well have no use for them.
    """
    values = [c.value for c in after if isinstance(c.value, torch.Tensor)]
    right: dict[str, bool] = {}
    for c in reversed(before):
        found = isinstance(c.value, torch.Tensor) and any(not value_differs(v, c.value) for v in values)
        right[c.name] = found or any(right[u.name] for u in before if c.name in u.uses)
    wrong = sorted((c for c in before if not right[c.name]), key=lambda c: c.is_view)      # stable
    return (wrong[0].name, wrong[0].where) if wrong else ("", None)


def _computed(name: str, where: Where | None, call: Callable[[], Any],
              operands: dict[str, Any]) -> tuple[Any, Computed]:
    """Runs one node; gives its value, and a record of it as it is now (a later node may write to it)."""
    before = [(v, v._version) for v in operands.values() if isinstance(v, torch.Tensor)]
    value = call()
    if not isinstance(value, torch.Tensor):
        return value, Computed(name, where, value, tuple(operands), False)
    storage = value.untyped_storage()._cdata
    is_view = any(v._version == n and v.untyped_storage()._cdata == storage for v, n in before)
    return value, Computed(name, where, value.clone(), tuple(operands), is_view)


def _graph_values(graph: Graph, given: Sequence[Any]) -> list[Computed]:
    """Every value an ATen or prim graph computes."""
    values: dict[Node, Any] = dict(zip(graph.inputs, copies(tensors_of(given))))
    records = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for n in graph.nodes:
            operands = {a.name: values[a] for a in n.operands}
            run = partial(call_node, n, values.__getitem__)
            values[n], record = _computed(n.name, n.where, run, operands)
            records.append(record)
    return records


class _Watched(fx.Interpreter):
    """Runs a captured graph and records every value."""

    def __init__(self, gm: fx.GraphModule, places: Any) -> None:
        super().__init__(gm)
        self.places = places
        self.records: list[Computed] = []

    def run_node(self, n: fx.Node) -> Any:
        operands = {a.name: self.env[a] for a in n.all_input_nodes}
        value, record = _computed(n.name, self.places.get(n), partial(super().run_node, n), operands)
        if n.op not in ("placeholder", "output"):
            self.records.append(record)
        return value


def _fx_values(done: Compilation, given: Sequence[Any]) -> list[Computed]:
    return captured_values(done.capture.gm, getattr(done.capture, "where", {}), given)


def captured_values(gm: fx.GraphModule, places: Any, given: Sequence[Any]) -> list[Computed]:
    """Every value a captured graph computes."""
    watched = _Watched(gm, places)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        watched.run(*copies(given))
    return watched.records


def _shortest_wrong(stage: str, done: Compilation,
                    tensors: Sequence[torch.Tensor]) -> tuple[str, Where | None]:
    """The last node of the shortest beginning of the prims for which building `stage` anew goes wrong.

    ("", None) if it does not go wrong for all of them: then the fault is in this one object.
    """
    beginnings = list(graph_beginnings(done.prims.graph))

    def wrong(k: int) -> bool:
        prims = dataclasses.replace(done.prims, graph=beginnings[k][1])
        built = Compilation("beginning", None, prims=prims).reach(stage)
        return bool(differs(observe(built.run, tensors), Reference(observe(prims.run, tensors))))

    if not beginnings or not wrong(len(beginnings) - 1):
        return "", None
    low, high = -1, len(beginnings) - 1                 # low: right (or empty), high: wrong
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wrong(middle) else (middle, high)
    node = beginnings[high][0]
    return node.name, node.where


def graph_beginnings(graph: Graph) -> Iterator[tuple[Node, Graph]]:
    """Every node that gives a tensor, with the graph up to it, which returns all values nothing uses yet."""
    for k, node in enumerate(graph.nodes):
        if isinstance(node.spec, TensorSpec):
            part = dataclasses.replace(graph, nodes=graph.nodes[:k + 1], outputs=(), writes=(), returned=-1)
            used = part.users()
            loose = [n for n in part.nodes if not used[n] and isinstance(n.spec, TensorSpec)]
            outputs = tuple(Output(n, TensorSpec.contiguous(n.tensor.dtype, n.tensor.shape)) for n in loose)
            yield node, dataclasses.replace(part, outputs=outputs)
