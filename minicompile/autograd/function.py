"""What runs the two halves of a training graph behind torch's autograd engine.

Takes a `partition.Split` and the two compiled halves, gives one callable that eager code can differentiate
through. The last stage of a training graph; `pipeline` builds it.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ir.graph import Output, seen
from ..ir.spec import TensorSpec, at
from .joint import Joint
from .narrow import Narrowed
from .partition import Split, recompute_class

Call = Callable[..., Sequence[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Backward:
    """What computes gradients from those that arrived.

    part    its graph, which gradients it gives and which saved values it reads
    call    (*saved, *tangents, *sizes) → these gradients
    lent    numbers of the saved tensors that it would write to, once it has read them
    """

    part: Narrowed
    call: Call
    lent: frozenset[int] = frozenset()

    def gradients(self, saved: list[Any], rest: Sequence[Any]) -> Sequence[torch.Tensor]:
        """The gradients. `saved` loses its tensors: each is let go of once it has been read, where nobody
        else needs it; its memory then serves what comes after."""
        consume = getattr(self.call, "consume", None)
        if consume is None:
            return self.call(*saved, *rest)
        own = bytes([1 + (i in self.lent and alone(saved, i)) for i in range(len(saved))])
        saved += rest
        return consume(saved, own + bytes(len(rest)))


@dataclass(frozen=True, slots=True)
class Halves:
    """The compiled halves and how they join.

    forward    (*primals) → (*outputs, *saved)
    split      the graphs they were compiled from
    joint      what these were cut from: how outputs and primals take part
    eager      the captured graph, for a backward that is itself differentiated
    narrowed   the tangents (by position) that arrived → what computes their part of the gradients
    varies     whether sizes do
    """

    forward: Call
    split: Split
    joint: Joint
    eager: Call
    narrowed: Callable[[frozenset[int]], Backward]
    varies: bool = False

    def __call__(self, *primals: torch.Tensor) -> Sequence[torch.Tensor]:
        """The outputs, connected to the autograd graph."""
        if not torch.is_grad_enabled():         # it was, inside, where these results were computed
            with torch.enable_grad():
                return self(*primals)
        given = list(primals)
        for i in self.joint.apart:
            given[i] = given[i].detach()
        env = self.joint.sizes(primals) if self.varies else {}          # before inputs get another geometry
        outputs, described = list(_Function.apply(self, *given)), self.split.forward.outputs
        for i, j in self.joint.views:
            outputs[i] = view_of(outputs[j], at(described[i].spec, env))
        return viewed(outputs, described[:self.split.outputs], primals, self.joint, env)[:self.joint.returned]

    @property
    def repeatable(self) -> bool:
        """Whether running the captured graph again gives the same results and changes nothing."""
        forward = self.split.forward
        return not forward.writes and all(recompute_class(n) != "random" for n in forward.nodes)


def viewed(results: list[torch.Tensor], outputs: Sequence[Output], primals: Sequence[torch.Tensor],
           joint: Joint, env: Mapping[str, int] | None = None) -> list[torch.Tensor]:
    """`results`, in which views of inputs are taken outside of any compiled function, so that the engine
    knows them as the views they are; those that are not attached are detached, those that are spent say why.
    `env` has the sizes that vary."""
    for i, why in joint.spent:
        results[i] = _Spent.apply(torch.zeros((), requires_grad=True), results[i], why)
    for i, o in enumerate(outputs):
        if o.alias is not None and o.alias[0] == "input":
            base, start = primals[o.alias[1]], joint.aten.graph.inputs[o.alias[1]].tensor.offset
            detached = base.requires_grad and i not in joint.attached
            results[i] = view_of(base.detach() if detached else base, at(o.spec, env), at(o.views, env),
                                 at(start, env))
    return results


def view_of(t: torch.Tensor, spec: TensorSpec, views: tuple = (), start: int = 0) -> torch.Tensor:
    """A view of t (see `seen`) with spec's geometry; a tensor of its own, as in eager mode, also if that is
    t's."""
    geometry = tuple(t.shape), t.stride(), start
    if not views and geometry == (spec.shape, spec.stride, spec.offset):
        return t.view_as(t)
    return seen(t, spec, views, start)


def apart(t: torch.Tensor) -> torch.Tensor:
    """t's memory as a tensor of its own: no view to the engine. A lazily conjugated or negated one stays."""
    if t.is_conj() or t.is_neg():
        return t
    return torch.empty(0, dtype=t.dtype, device=t.device).set_(t)


class _Spent(torch.autograd.Function):
    """A result whose graph a backward inside the compiled function has freed."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, result: torch.Tensor, why: str) -> torch.Tensor:
        ctx.why = why
        return apart(result)

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor) -> Any:
        raise RuntimeError(ctx.why)


class _Function(torch.autograd.Function):
    """Forward and backward are each one call of a compiled graph."""

    @staticmethod
    def forward(ctx: Any, halves: Halves, *primals: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        split = halves.split
        results = halves.forward(*primals)
        rest = iter(results[split.outputs:])
        # of several results, those that are differentiated tell which inputs must not have changed
        several = len(split.tangents) > 1
        saved = [next(rest) if i is None else primals[i].data if several else primals[i]
                 for i in split.from_input]
        ctx.save_for_backward(*saved)
        # For a second derivative only. Not saved tensors: those must not change until the backward has run,
        # and eager mode asks that of no input that its own formulas do not need.
        ctx.halves, ctx.primals, ctx.versions = halves, primals, versions(primals)
        ctx.sizes = halves.joint.sizes(primals) if halves.varies else {}
        ctx.set_materialize_grads(False)
        later, bases = {i for i, _ in halves.joint.views}, {j for _, j in halves.joint.views}
        outputs: list[torch.Tensor | None] = []
        for i, (o, r) in enumerate(zip(split.forward.outputs, results[:split.outputs])):
            absent = i in later or o.alias is not None and o.alias[0] == "input"
            # the engine lets nobody write to a view that a Function gave
            outputs.append(None if absent else apart(r) if o.alias is not None or i in bases else r)
        fixed = [o for i, o in enumerate(outputs) if o is not None and i not in split.tangents]
        ctx.mark_non_differentiable(*fixed)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        halves: Halves = ctx.halves
        split = halves.split
        saved = list(ctx.saved_tensors)
        specs = [at(n.spec, ctx.sizes) for n in split.backward.inputs[len(saved):]]
        arrived = frozenset(k for k, i in enumerate(split.tangents) if incoming[i] is not None)
        partly = len(arrived) < len(split.tangents)
        if torch.is_grad_enabled():          # create_graph=True: the gradients are to be differentiated, too
            given = eager_gradients(ctx, incoming, "a second derivative is needed")
        elif partly and halves.joint.custom:
            given = eager_gradients(ctx, incoming, "not all results of a custom function are used")
        else:
            backward = halves.narrowed(arrived)
            part = backward.part
            if len(split.tangents) > 1:
                _check_unchanged(ctx, [split.from_input[i] for i in part.reads], "it is read")
            ctx.maybe_clear_saved_tensors()          # unless the graph is retained
            tangents = [fit(incoming[i], spec) for i, spec in zip(split.tangents, specs)]
            found = backward.gradients(saved, [*tangents, *specs[len(tangents):]]) if part.gives else ()
            given = dict(zip([halves.joint.gradients[i] for i in part.gives], found))
        return (None, *[given.get(i) for i in range(len(ctx.primals))])


def alone(tensors: list[torch.Tensor], i: int) -> bool:
    """Whether this list is all that holds a tensor and its memory, which is as large as the tensor."""
    t = tensors[i]
    storage = t.untyped_storage()
    whole = not t.storage_offset() and storage.nbytes() >= t.nbytes
    return (whole and sys.getrefcount(t) == 3 and t._use_count() == 1          # the list, here, the argument
            and torch._C._storage_Use_Count(storage._cdata) == 2)              # the tensor, here


def versions(tensors: Sequence[Any]) -> list[int]:
    """How often each was written to; inference tensors, and what is no tensor, do not count."""
    return [0 if not isinstance(t, torch.Tensor) or t.is_inference() else t._version for t in tensors]


def _check_unchanged(ctx: Any, inputs: Iterable[int | None], why: str) -> None:
    """Raises RuntimeError if one of these inputs was written to since the forward."""
    for i in inputs:
        if i is not None and (now := versions(ctx.primals[i:i + 1])[0]) != ctx.versions[i]:
            raise RuntimeError("one of the variables needed for gradient computation has been modified by an "
                               f"inplace operation: input {i} of a compiled graph, a tensor of shape "
                               f"{list(ctx.primals[i].shape)}, is at version {now}; expected version "
                               f"{ctx.versions[i]} instead ({why})")


def eager_gradients(ctx: Any, incoming: Sequence[torch.Tensor | None], why: str) -> dict[int, Any]:
    """Input → its gradient by eager mode's own autograd, from the captured graph run again.

    Raises RuntimeError where running it again would draw other random numbers or write to inputs twice, or an
    input has changed.
    """
    halves, primals = ctx.halves, ctx.primals
    if not halves.repeatable:
        raise RuntimeError(f"{why} of a compiled graph that draws random numbers or writes to its inputs, "
                           "which cannot be run again; leave it out: minicompile.disable(fn)")
    _check_unchanged(ctx, range(len(primals)), why)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = halves.eager(*primals)
    base = {j: outputs[i]._base for i, j in halves.joint.views}
    pairs = [(outputs[i] if i < len(outputs) else base[i], incoming[i]) for i in halves.split.tangents
             if incoming[i] is not None]
    wanted = halves.joint.gradients
    found = torch.autograd.grad([r for r, _ in pairs], [primals[i] for i in wanted], [g for _, g in pairs],
                                create_graph=again, allow_unused=True) if pairs else ()
    return dict(zip(wanted, found))


def fit(gradient: torch.Tensor | None, spec: TensorSpec) -> torch.Tensor:
    """An incoming gradient in the geometry the backward graph was compiled for; where none came, memory of
    that geometry that nothing reads."""
    if gradient is not None:
        gradient = gradient.resolve_conj().resolve_neg()          # compiled code reads memory
        if all(n == 1 or s == t for n, s, t in zip(spec.shape, gradient.stride(), spec.stride)):
            return gradient
    fitting = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device)
    return fitting if gradient is None else fitting.copy_(gradient)
