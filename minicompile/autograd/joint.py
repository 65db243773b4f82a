"""The joint graph: forward and backward in one trace, with the autograd engine's own formulas.

Takes the captured torch-level graph and example inputs, as `lower.trace` does; gives a `Joint`, which
`lower.decompose` turns into prims and `partition` splits. The engine runs on the same fakes under the same
recorder, so custom functions, checkpointing and hooks come out as the ATen calls they make.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.autograd.function import BackwardCFunction

from ..errors import Refusal, Where
from ..ir.fake import Fake, engine_gradients, history, storage_key
from ..ir.geometry import sizes_in
from ..ir.graph import Output
from ..ir.spec import TensorSpec, bind
from ..ir.sym import Sym
from ..lower.functionalise import Functionaliser
from ..lower.graphs import AtenGraph
from ..lower.trace import input_names, record, runner

# formulas of torch that take another way for subclasses, as fakes are, with other strides of a gradient
DENSER = frozenset((torch.ops.aten.ormqr.default, torch.ops.aten.linalg_householder_product.default))


@dataclass(frozen=True, slots=True)
class Joint:
    """aten       inputs: the primals, then one tangent per output of `tangents`; outputs: the forward's,
    then the gradients primals    how many inputs the forward takes
    outputs    how many outputs the forward gives
    attached   which of those outputs require grad (the rest are constants to the engine)
    tangents   which of those outputs have an incoming gradient
    gradients  the primals that the gradients belong to, in order
    views      (i, j): output i is a view of output j, which has the incoming gradient for both
    returned   how many outputs are the user's; further ones are only bases of views
    apart      the primals that require grad and have no gradient: nothing flows into their history
    custom     whether custom functions with several results are in it: what they make of one gradient alone
               is not what they make of all
    held       for each of `tangents` the primals that eager mode's formulas keep for its backward
    spent      (i, why): output i requires grad, but eager mode raises this when it is differentiated: a
               backward inside has freed its graph, or changed what it needs
    """

    aten: AtenGraph
    primals: int
    outputs: int
    tangents: tuple[int, ...]
    gradients: tuple[int, ...]
    attached: tuple[int, ...] = ()
    views: tuple[tuple[int, int], ...] = ()
    returned: int | None = None
    spent: tuple[tuple[int, str], ...] = ()
    apart: tuple[int, ...] = ()
    custom: bool = False
    held: tuple[frozenset[int], ...] = ()

    def __str__(self) -> str:
        return str(self.aten)

    @property
    def varies(self) -> bool:
        """Whether sizes do."""
        return bool(sizes_in(*(n.spec for n in self.aten.graph.inputs)))

    def sizes(self, primals: Sequence[Any]) -> dict[str, int]:
        """What the sizes are for these primals."""
        return bind([n.spec for n in self.aten.graph.inputs[:self.primals]], primals)

    def check(self) -> None:
        self.aten.check()

    def run(self, *inputs: Any) -> list[torch.Tensor]:
        """(*primals, *tangents) → (*outputs, *gradients), one ATen call at a time."""
        return self.aten.run(*inputs)


def trace_joint(gm: fx.GraphModule, inputs: Sequence[Any],
                where: Mapping[fx.Node, Where] | None = None) -> Joint:
    """The joint graph of `gm` for inputs like these. Without a differentiable result it has no tangents.

    Raises Refusal "alias-grad" for results that need a gradient and share memory with a written input, or
    with each other without being views of one tensor; and what `trace` raises.
    """
    into = Functionaliser()
    try:
        recorder, fakes, results = record(runner(gm, into, where), inputs, input_names(gm), into)
    except RuntimeError as e:           # the engine's rules on views, where grad mode was off in the program
        raise Refusal("raises", f"the graph cannot be traced for training: {e}") from e
    inputs = [f for f in fakes if isinstance(f, (Fake, Sym))]
    given = [f for f in inputs if isinstance(f, Fake)]
    storages = {storage_key(f) for f in given}
    tangents = tuple(i for i, r in enumerate(results) if r.requires_grad and storage_key(r) not in storages)
    spent = _spent(gm, [results[i] for i in tangents], [f for f in given if f.requires_grad])
    spent = tuple((tangents[k], why) for k, why in spent)
    tangents = tuple(i for i in tangents if i not in dict(spent))
    _check_aliases(given, results)
    returned, views = len(results), _share_bases(results, tangents)
    at = dict(views)
    tangents = tuple(dict.fromkeys(at.get(i, i) for i in tangents))
    leaves = [i for i, f in enumerate(inputs) if isinstance(f, Fake) and f.requires_grad]
    try:
        custom = any(isinstance(n, BackwardCFunction) and len(n._input_metadata) > 1
                     for n in history(results[i] for i in tangents))
        held = tuple(_held([results[i] for i in tangents], inputs))
    except RuntimeError as e:           # of several views of one tensor, one was written to
        raise Refusal("view-write", f"the engine does not say where a result comes from: {e}") from e
    gradients: list[Any] = []
    seeds = [Fake.from_spec(dense(results[i].spec)) for i in tangents]
    for i, seed in zip(tangents, seeds):
        into.add_input(seed, f"tangent_{i}")
    into.where = None
    with recorder:
        if tangents:
            gradients = _gradients([results[i] for i in tangents], [inputs[i] for i in leaves], seeds)
    if any(n.op in DENSER and not n.args[0].tensor.is_contiguous for n in into.nodes):
        raise Refusal("layout", "eager mode gives a gradient strides that depend on its taking no subclass")
    flowing = [(i, g) for i, g in zip(leaves, gradients) if g is not None]
    if tangents and not flowing and not spent:
        raise Refusal("escapes", "gradients of a result are collected in tensors made inside the call")
    graph = into.finish(results + [recorder.fake(g) for _, g in flowing])
    fresh = tuple(Output(o.node, dense(o.spec)) for o in graph.outputs[len(results):graph.returned])
    outputs = (*graph.outputs[:len(results)], *fresh, *graph.outputs[graph.returned:])
    graph = replace(graph, outputs=outputs)
    attached = tuple(i for i, r in enumerate(results) if r.requires_grad)
    return Joint(AtenGraph(graph), len(inputs), len(results), tangents, tuple(i for i, _ in flowing),
                 attached, views, returned, spent, tuple(sorted({*leaves} - {i for i, _ in flowing})),
                 custom, held)


def _held(results: Sequence[Fake], inputs: Sequence[Any]) -> Iterator[frozenset[int]]:
    """For each result, the inputs whose memory the engine's nodes behind it keep; all, where hooks (of a
    checkpoint) do not tell."""
    everything = frozenset(range(len(inputs)))
    sharing: dict[int, set[int]] = {}
    for i, f in enumerate(inputs):
        if isinstance(f, Fake):
            sharing.setdefault(storage_key(f), set()).add(i)

    @functools.cache
    def kept(node: Any) -> frozenset[int]:
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_raw_saved_")]
        each = [s for x in saved for s in (x if isinstance(x, (tuple, list)) else (x,))]
        tensors = [s.data for s in each if s is not None]
        if not all(isinstance(t, torch.Tensor | None) for t in tensors):
            return everything
        return frozenset().union(*[sharing.get(storage_key(t), ()) for t in tensors if isinstance(t, Fake)])
    for r in results:
        yield frozenset().union(*map(kept, history([r])))


def _spent(gm: fx.GraphModule, results: Sequence[Fake], leaves: list[Fake]) -> list[tuple[int, str]]:
    """Which results cannot be differentiated any more, and what eager mode says of them. Only where the
    engine runs inside the graph; elsewhere that is known when the backward is traced."""
    found = []
    if any(n.target in (engine_gradients, torch.autograd.grad) for n in gm.graph.nodes):
        for i, r in enumerate(results):
            try:
                engine_gradients([r], leaves, [Fake.from_spec(dense(r.spec))], True)
            except RuntimeError as error:
                found.append((i, str(error)))
    return found


def _gradients(results: list[Any], leaves: list[Any], seeds: list[Any]) -> list[Any]:
    try:
        return engine_gradients(results, leaves, seeds)
    except RuntimeError as e:        # eager mode raises the same, but not before there is a backward
        raise Refusal("raises", f"the backward cannot be traced: {e}") from e


def dense(spec: TensorSpec) -> TensorSpec:
    """The geometry of a fresh tensor that stands for one like `spec`: its strides if they are dense, else
    row-major."""
    if spec.is_dense:
        return spec.with_(offset=0)
    return TensorSpec.contiguous(spec.dtype, spec.shape, spec.device)


def overlaps_itself(spec: TensorSpec) -> bool:
    return any(s == 0 and n > 1 for n, s in zip(spec.shape, spec.stride))


def _check_aliases(given: Sequence[Fake], results: Sequence[Fake]) -> None:
    expanded = {storage_key(f) for f in given if f.requires_grad and overlaps_itself(f.spec)}
    views = [r for r in results if r.requires_grad and storage_key(r) in expanded]
    if torch.is_grad_enabled() and any(all(r is not f for f in given) for r in views):
        raise Refusal("alias-grad", "a result is a view of an expanded input that needs a gradient")
    for f in given:
        if f.grad_fn is not None:
            raise Refusal("alias-grad", "an input that needs a gradient is written to")


def _share_bases(results: list[Fake], tangents: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(i, j) for each result i that needs a gradient and shares memory with another: it is a view of result
    j, which is added where the user does not get it. The engine then knows them for what they are."""
    groups: dict[int, list[int]] = {}
    for i in tangents:
        groups.setdefault(storage_key(results[i]), []).append(i)
    views: list[tuple[int, int]] = []
    for members in groups.values():
        if len({id(results[i]) for i in members}) == 1:
            continue
        bases = [results[i]._base if results[i]._is_view() else results[i] for i in members]
        base = bases[0]
        if any(b is not base for b in bases) or not base.requires_grad or base.spec.offset or not (
                base.spec.is_dense and all(results[i].spec.dtype is base.spec.dtype for i in members)):
            raise Refusal("alias-grad", "two results that need gradients share memory, and are not views of "
                                        "one tensor that does")
        at = next((i for i in members if results[i] is base), len(results))
        if at == len(results):
            results.append(base)
        views += [(i, at) for i in members if i != at]
    return tuple(views)
