"""What runs the two halves of a training graph behind torch's autograd engine.

Takes a `partition.Split` and the two compiled halves, gives one callable that eager code can differentiate
through. The last stage of a training graph; `pipeline` builds it.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ir.graph import Output, seen
from ..ir.spec import TensorSpec, at
from .joint import Joint
from .partition import Split, recompute_class

Call = Callable[..., Sequence[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Halves:
    """The compiled halves and how they join.

    forward    (*primals) → (*outputs, *saved)
    backward   (*saved, *tangents) → gradients
    split      the graphs they were compiled from
    joint      what these were cut from: how outputs and primals take part
    eager      the captured graph, for a backward that is itself differentiated
    varies     whether sizes do
    lent       numbers of the saved tensors that the backward would write to, once it has read them
    """

    forward: Call
    backward: Call
    split: Split
    joint: Joint
    eager: Call
    varies: bool = False
    lent: frozenset[int] = frozenset()

    def __call__(self, *primals: torch.Tensor) -> Sequence[torch.Tensor]:
        """The outputs, connected to the autograd graph."""
        if not torch.is_grad_enabled():         # it was, inside, where these results were computed
            with torch.enable_grad():
                return self(*primals)
        given = list(primals)
        for i in self.joint.apart:
            given[i] = given[i].detach()
        outputs, described = list(_Function.apply(self, *given)), self.split.forward.outputs
        env = self.joint.sizes(primals) if self.varies else {}
        for i, j in self.joint.views:
            outputs[i] = view_of(outputs[j], at(described[i].spec, env))
        return viewed(outputs, described[:self.split.outputs], primals, self.joint.attached,
                      self.joint.spent, env)[:self.joint.returned]

    def gradients(self, saved: list[Any], rest: Sequence[Any]) -> Sequence[torch.Tensor]:
        """The gradients. `saved` loses its tensors: each is let go of once it has been read, where nobody
        else needs it; its memory then serves what comes after."""
        consume = getattr(self.backward, "consume", None)
        if consume is None:
            return self.backward(*saved, *rest)
        own = bytes([1 + (i in self.lent and alone(saved, i)) for i in range(len(saved))])
        saved += rest
        return consume(saved, own + bytes(len(rest)))

    @property
    def repeatable(self) -> bool:
        """Whether running the captured graph again gives the same results and changes nothing."""
        forward = self.split.forward
        return not forward.writes and all(recompute_class(n) != "random" for n in forward.nodes)


def viewed(results: list[torch.Tensor], outputs: Sequence[Output], primals: Sequence[torch.Tensor],
           attached: Sequence[int], spent: Sequence[tuple[int, str]] = (),
           env: Mapping[str, int] | None = None) -> list[torch.Tensor]:
    """`results`, in which views of inputs are taken outside of any compiled function, so that the engine
    knows them as the views they are; those not in `attached` are detached, those `spent` say why. `env` has
    the sizes that vary."""
    for i, why in spent:
        results[i] = _Spent.apply(torch.zeros((), requires_grad=True), results[i], why)
    for i, o in enumerate(outputs):
        if o.alias is not None and o.alias[0] == "input":
            base = primals[o.alias[1]]
            detached = base.requires_grad and i not in attached
            results[i] = view_of(base.detach() if detached else base, at(o.spec, env), at(o.views, env))
    return results


def view_of(t: torch.Tensor, spec: TensorSpec, views: tuple = ()) -> torch.Tensor:
    """A view of t with spec's geometry; a tensor of its own, as in eager mode, also where that is t's."""
    geometry = tuple(t.shape), t.stride(), t.storage_offset()
    if not views and geometry == (spec.shape, spec.stride, spec.offset):
        return t.view_as(t)
    return seen(t, spec, views)


class _Spent(torch.autograd.Function):
    """A result whose graph a backward inside the compiled function has freed."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, result: torch.Tensor, why: str) -> torch.Tensor:
        ctx.why = why
        return torch.empty(0, dtype=result.dtype, device=result.device).set_(result)

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
        saved = [primals[i] if i is not None else next(rest) for i in split.from_input]
        ctx.save_for_backward(*saved)
        # For a second derivative only. Not saved tensors: those must not change until the backward has run,
        # and eager mode asks that of no input that its own formulas do not need.
        ctx.halves, ctx.primals, ctx.versions = halves, primals, versions(primals)
        ctx.sizes = halves.joint.sizes(primals) if halves.varies else {}
        ctx.set_materialize_grads(False)
        later = {i for i, _ in halves.joint.views}
        outputs = [None if i in later or o.alias is not None and o.alias[0] == "input" else r
                   for i, (o, r) in enumerate(zip(split.forward.outputs, results[:split.outputs]))]
        for i in {j for _, j in halves.joint.views}:          # to the engine a tensor of its own, not a view
            outputs[i] = torch.empty(0, dtype=results[i].dtype).set_(results[i])
        fixed = [o for i, o in enumerate(outputs) if o is not None and i not in split.tangents]
        ctx.mark_non_differentiable(*fixed)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        halves: Halves = ctx.halves
        split = halves.split
        saved = list(ctx.saved_tensors)
        specs = [at(n.spec, ctx.sizes) for n in split.backward.inputs[len(saved):]]
        tangents = [fit(incoming[i], spec) for i, spec in zip(split.tangents, specs)]
        if torch.is_grad_enabled():          # create_graph=True: the gradients are to be differentiated, too
            if versions(ctx.primals) != ctx.versions:
                raise RuntimeError("a second derivative is needed, but an input of the compiled graph has "
                                   "been modified in place since")
            gradients = differentiable_gradients(halves, ctx.primals, tangents)
        else:
            ctx.maybe_clear_saved_tensors()          # unless the graph is retained
            gradients = halves.gradients(saved, [*tangents, *specs[len(tangents):]])
        # As in eager mode, a gradient that nothing flowed into is None, not zeros: optimizers tell the two
        # apart.
        arrived = {k for k, i in enumerate(split.tangents) if incoming[i] is not None}
        whole = len(arrived) == len(split.tangents)          # a formula may give zeros that depend on nothing
        given = {i: g for i, g, flow in zip(halves.joint.gradients, gradients, split.flows)
                 if whole or flow & arrived}
        return (None, *[given.get(i) for i in range(len(ctx.primals))])


def alone(tensors: list[torch.Tensor], i: int) -> bool:
    """Whether this list is all that holds a tensor and its memory, which is as large as the tensor."""
    t = tensors[i]
    storage = t.untyped_storage()
    whole = not t.storage_offset() and storage.nbytes() >= t.nbytes
    return (whole and sys.getrefcount(t) == 3 and t._use_count() == 1          # the list, here, the argument
            and torch._C._storage_Use_Count(storage._cdata) == 2)              # the tensor, here


def versions(tensors: Sequence[torch.Tensor]) -> list[int]:
    """How often each was written to; inference tensors do not count."""
    return [0 if t.is_inference() else t._version for t in tensors if isinstance(t, torch.Tensor)]


def differentiable_gradients(halves: Halves, primals: Sequence[torch.Tensor],
                             tangents: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
    """The gradients by eager mode's own autograd, from the captured graph run again.

    Raises RuntimeError where running it again would draw other random numbers or write to inputs twice.
    """
    if not halves.repeatable:
        raise RuntimeError("a second derivative is needed of a compiled graph that draws random numbers or "
                           "writes to its inputs, which cannot be run again; leave it out: "
                           "minicompile.disable(fn)")
    outputs = halves.eager(*primals)
    base = {j: outputs[i]._base for i, j in halves.joint.views}
    results = [outputs[i] if i < len(outputs) else base[i] for i in halves.split.tangents]
    wanted = [primals[i] for i in halves.joint.gradients]
    return torch.autograd.grad(results, wanted, tangents, create_graph=True, allow_unused=True)


def fit(gradient: torch.Tensor | None, spec: TensorSpec) -> torch.Tensor:
    """An incoming gradient in the geometry the backward graph was compiled for; zeros where none came."""
    if gradient is None:
        return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device).zero_()
    gradient = gradient.resolve_conj().resolve_neg()          # compiled code reads memory
    if all(n == 1 or s == t for n, s, t in zip(spec.shape, gradient.stride(), spec.stride)):
        return gradient
    return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device).copy_(gradient)
