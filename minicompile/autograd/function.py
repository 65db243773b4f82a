"""What runs the two halves of a training graph behind torch's autograd engine.

Takes a `partition.Split` and the two compiled halves, gives one callable that eager code can differentiate
through. The last stage of a training graph; `pipeline` builds it.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..ir.spec import TensorSpec
from .partition import Split

Call = Callable[..., Sequence[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Halves:
    """The compiled halves and how they join.

    forward    (*primals) → (*fresh outputs, *saved)
    backward   (*saved, *tangents) → gradients
    split      the graphs they were compiled from
    gradients  the primals that the gradients belong to, in order
    """

    forward: Call
    backward: Call
    split: Split
    gradients: tuple[int, ...]

    def __call__(self, *primals: torch.Tensor) -> Sequence[torch.Tensor]:
        """The outputs, connected to the autograd graph."""
        return _Function.apply(self, *primals)


class _Function(torch.autograd.Function):
    """Forward and backward are each one call of a compiled graph."""

    @staticmethod
    def forward(ctx: Any, halves: Halves, *primals: torch.Tensor) -> tuple[torch.Tensor, ...]:
        split = halves.split
        results = halves.forward(*primals)
        outputs, rest = results[:split.outputs], iter(results[split.outputs:])
        ctx.save_for_backward(*[primals[i] if i is not None else next(rest) for i in split.from_input])
        ctx.halves = halves
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[o for i, o in enumerate(outputs) if i not in split.tangents])
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        halves, saved = ctx.halves, ctx.saved_tensors
        specs = [n.tensor for n in halves.split.backward.inputs[len(saved):]]
        tangents = [fit(incoming[i], spec) for i, spec in zip(halves.split.tangents, specs)]
        given = dict(zip(halves.gradients, halves.backward(*saved, *tangents)))
        return (None, *[given.get(i) for i in range(len(halves.split.forward.inputs))])


def fit(gradient: torch.Tensor | None, spec: TensorSpec) -> torch.Tensor:
    """An incoming gradient in the geometry the backward graph was compiled for; zeros where none came."""
    if gradient is None:
        return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device).zero_()
    if tuple(gradient.stride()) == spec.stride or all(
            n == 1 or s == t for n, s, t in zip(spec.shape, gradient.stride(), spec.stride)):
        return gradient
    return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device).copy_(gradient)
