"""Bisection: which stage of a compilation is wrong, and at which node.

Takes a `pipeline.Compilation` and the real inputs of its graph; gives a `Finding`. Every border object is
verified by its `check()` and run by its slow reference on the same inputs; the first that differs from eager
names the stage. The node is then found by compiling ever shorter beginnings of the graph. The user's entry is
`api.bisect`.
"""
from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from .errors import CheckError, MinicompileError, ToolchainError, Where
from .ir.graph import Graph, Node, Output
from .ir.spec import TensorSpec
from .lower.trace import trace
from .pipeline import STAGES, Compilation

RUN_ORDER = ("aten", "prims", "loops", "plan", "executable")     # the captured graph is the reference


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
    """What a run gave: the outputs, then the inputs as they were left; or the exception it raised."""

    values: tuple[Any, ...] = ()
    raised: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """Eager's outcome, and the same in float64 where that is possible (it measures eager's own rounding)."""

    eager: Outcome
    precise: Outcome | None = field(default=None)

    @classmethod
    def of_graph(cls, gm: fx.GraphModule, given: Sequence[Any]) -> Reference:
        """Of a captured graph. Where its float64 version does not run, eager's result has to stand for it."""
        inputs = tensors_of(given)
        eager = observe(with_numbers(gm, given), inputs)
        wide = [t.double() if is_float(t) else t for t in inputs]
        precise = observe(with_numbers(widened(gm), given), wide)
        usable = precise.raised is None and len(precise.values) == len(eager.values)
        return cls(eager, precise if usable else None)


def bisect_compilation(done: Compilation, inputs: Sequence[Any] | None = None,
                       expected: Sequence[torch.Tensor] = ()) -> Finding:
    """The first wrong stage of `done` and its first wrong node.

    inputs      the graph's, left untouched; None: those that `done` has kept
    expected    tensors that the original function returned; the captured graph must give each of them
    """
    given = done.inputs if inputs is None else inputs
    reference = Reference.of_graph(done.capture.gm, given)
    finding = _verify("capture", done.capture) or _missing(reference, expected)
    if finding:
        return finding
    agreed = ["capture"]
    for stage in RUN_ORDER:
        try:
            border = done.reach(stage) if stage in STAGES else getattr(done, stage)
        except ToolchainError:
            break                                       # then the user, too, gets what the reference gives
        finding = _judge(stage, done, border, given, reference)
        if finding:
            return dataclasses.replace(finding, agreed=tuple(agreed))
        agreed.append(stage)
    return Finding(agreed=tuple(agreed))


def _judge(stage: str, done: Compilation, border: Any, given: Sequence[Any],
           reference: Reference) -> Finding | None:
    checked = _verify(stage, border) if stage != "executable" else _verify("source", done.source)
    if checked:
        return checked
    try:
        reason = differs(observe(border.run, tensors_of(given)), reference)
    except CheckError as e:                             # the slow references verify what they compute, too
        return Finding(stage, e.node, e.reason)
    if not reason:
        return None
    node, where = first_wrong_node(stage, done, given)
    return Finding(stage, node, reason, where)


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
        if not any(not differs(Outcome((g,)), Reference(Outcome((want,)))) for g in got):
            return Finding("capture", reason=f"tensor {i} of the function's result is not the graph's")
    return None


# ------------------------------------------------------------------------------------ running and comparing

def is_float(t: Any) -> bool:
    return isinstance(t, torch.Tensor) and t.dtype in (torch.float32, torch.float16, torch.bfloat16)


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
    graph = copy.deepcopy(gm.graph)
    for n in graph.nodes:
        n.args, n.kwargs = (map_aggregate(a, lambda x: torch.float64 if x is torch.float32 else x)
                            for a in (n.args, n.kwargs))
        if n.op == "call_method" and n.target == "float":
            n.target = "double"
    attributes = {n.target: getattr(gm, n.target) for n in graph.nodes if n.op == "get_attr"}
    return fx.GraphModule({k: v.double() if is_float(v) else v for k, v in attributes.items()}, graph)


def fresh(inputs: Sequence[Any]) -> list[Any]:
    """Copies of `inputs` that share storage, and have the geometry, exactly as the originals do."""
    storages: dict[int, torch.UntypedStorage] = {}
    copies = []
    for t in inputs:
        if isinstance(t, torch.Tensor):
            storage = t.untyped_storage()
            if storage._cdata not in storages:
                storages[storage._cdata] = storage.clone()
            t = torch.empty(0, dtype=t.dtype, device=t.device).set_(
                storages[storage._cdata], t.storage_offset(), t.shape, t.stride())
        copies.append(t)
    return copies


def observe(run: Callable[..., Any], inputs: Sequence[Any]) -> Outcome:
    """Runs on fresh copies of `inputs`, without autograd and from a fixed random state."""
    given = fresh(inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            results = run(*given)
        except MinicompileError:
            raise
        except Exception as e:  # part of what a program does: the stages must raise alike
            return Outcome(raised=e)
    results = results if isinstance(results, (tuple, list)) else (results,)
    return Outcome(tuple(v.clone() if isinstance(v, torch.Tensor) else v for v in (*results, *given)))


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
            return f"result {i}: {reason}"
    return ""


def value_differs(got: Any, eager: Any, precise: Any = None) -> str:
    """What differs, or "". Floats may differ by what reassociation explains: 16 times eager's own error
    against float64, plus 64 units in the last place of the largest element."""
    if not isinstance(eager, torch.Tensor):
        return "" if got == eager or eager is None else f"{got!r}, not {eager!r}"
    if not isinstance(got, torch.Tensor) or got.shape != eager.shape or got.dtype != eager.dtype:
        return f"{TensorSpec.of(got) if isinstance(got, torch.Tensor) else got!r}, not {TensorSpec.of(eager)}"
    if not eager.is_floating_point():
        wrong = int((got != eager).sum())
        return f"{wrong} of {eager.numel()} elements differ" if wrong else ""
    finite = eager.isfinite()
    other = got[~finite].nan_to_num(), eager[~finite].nan_to_num()
    if not torch.equal(*other) or not got[finite].isfinite().all():
        return "NaN or infinity at other places"
    g, e = got[finite].double(), eager[finite].double()
    if not e.numel():
        return ""
    exact = precise is not None and precise.shape == eager.shape and bool(precise[finite].isfinite().all())
    p = precise[finite].double() if exact else e
    allowed = 16 * (e - p).abs().max() + 64 * torch.finfo(eager.dtype).eps * p.abs().max()
    error = (g - p).abs().max()
    return f"differs by {float(error):.2e}; rounding explains {float(allowed):.2e}" if error > allowed else ""


# ----------------------------------------------------------------------------------------- finding the node

def first_wrong_node(stage: str, done: Compilation, inputs: Sequence[Any]) -> tuple[str, Where | None]:
    """The node up to which the graph must be compiled for `stage` to go wrong, and the user's place.

    ("", None) if recompiling the whole graph does not go wrong: then the fault is in this one object.
    """
    beginnings, tensors = _beginnings(stage, done, inputs), tensors_of(inputs)

    def wrong(k: int) -> bool:
        _, _, run, before = beginnings[k]
        return bool(differs(observe(run, tensors), Reference(observe(before, tensors))))

    if not beginnings or not wrong(len(beginnings) - 1):
        return "", None
    low, high = -1, len(beginnings) - 1                 # low: right (or empty), high: wrong
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wrong(middle) else (middle, high)
    name, where, _, _ = beginnings[high]
    return name, where


Beginning = tuple[str, Where | None, Callable[..., Any], Callable[..., Any]]


def _beginnings(stage: str, done: Compilation, inputs: Sequence[Any]) -> list[Beginning]:
    """(last node, its place, the stage's result for this beginning, the reference result), shortest first."""
    if stage == "aten":
        return list(_fx_beginnings(done, inputs))
    source = "aten" if stage == "prims" else "prims"
    whole = getattr(done, source)
    return [(node.name, node.where, _built(stage, dataclasses.replace(whole, graph=part), source),
             dataclasses.replace(whole, graph=part).run) for node, part in graph_beginnings(whole.graph)]


def _built(stage: str, border: Any, source: str) -> Callable[..., Any]:
    """Builds `stage` from a beginning's `source` object when called, and runs it."""
    def run(*inputs: Any) -> Any:
        return Compilation("beginning", None, **{source: border}).reach(stage).run(*inputs)
    return run


def graph_beginnings(graph: Graph) -> Iterator[tuple[Node, Graph]]:
    """Every node that gives a tensor, with the graph up to it, which returns all values nothing uses yet."""
    for k, node in enumerate(graph.nodes):
        if isinstance(node.spec, TensorSpec):
            part = dataclasses.replace(graph, nodes=graph.nodes[:k + 1], outputs=(), writes=(), returned=-1)
            used = part.users()
            loose = [n for n in part.nodes if not used[n] and isinstance(n.spec, TensorSpec)]
            outputs = tuple(Output(n, TensorSpec.contiguous(n.tensor.dtype, n.tensor.shape)) for n in loose)
            yield node, dataclasses.replace(part, outputs=outputs)


def _fx_beginnings(done: Compilation, inputs: Sequence[Any]) -> Iterator[Beginning]:
    """The same for the captured torch.fx graph: traced anew up to each call."""
    gm = done.capture.gm
    calls = [n for n in gm.graph.nodes if n.op in ("call_function", "call_method", "call_module")]
    for last in calls:
        part = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        for n in gm.graph.nodes:
            if n.op != "output" and (n.op == "placeholder" or n <= last):
                copied[n] = part.node_copy(n, copied.__getitem__)
        part.output((copied[last],))
        module = fx.GraphModule(gm, part)
        where = getattr(done.capture, "where", {}).get(last)
        yield last.name, where, _traced(module, inputs), with_numbers(module, inputs)


def _traced(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    return lambda *tensors: trace(gm, inputs, {}).run(*tensors)
