"""`loss.backward()` inside a captured program: gradients by one node of the graph, kept as eager mode does.

Takes the call, met while capturing; records what the engine gives for the leaves that the losses come from,
and sets or adds to their `.grad` as the engine's accumulation does. Used by `world`.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction

from .. import _native
from ..ir.fake import Fake, engine_gradients, history, storage_key
from .attributes import fact

# What a leaf must not have: the engine would run it.
_FREE = (("is_leaf", True), ("_backward_hooks", None), ("_post_accumulate_grad_hooks", None))


def call_backward(frame: Any, losses: Any, seeds: Any = None, retain_graph: Any = None,
                  create_graph: bool = False, grad_variables: Any = None, inputs: Any = None) -> None:
    """torch.autograd.backward. Raises Refusal for second derivatives, chosen inputs, and leaves that are not
    inputs of the graph or have hooks."""
    world = frame.world
    losses = [losses] if issubclass(type(losses), torch.Tensor) else list(world.iter(losses))
    if seeds is None or issubclass(type(seeds), torch.Tensor):
        seeds = [seeds] * len(losses)
    seeds = [torch.ones_like(x) if s is None and x.numel() == 1 else s for s, x in zip(seeds, losses)]
    if create_graph or inputs is not None or grad_variables is not None or any(s is None for s in seeds):
        raise world.refuse("autograd-inside", "Tensor.backward() is called with more than a gradient")
    leaves, custom = leaves_of(losses)
    for leaf in leaves:
        i = world.input_of.get(id(leaf))
        if i is None:
            raise world.refuse("autograd-inside", "backward() reaches a leaf made in the program")
        source, t, _ = world.inputs[i]
        for name, expected in _FREE:
            if fact(t, name) is not expected:
                raise world.refuse("autograd-inside", f"{source} has a history, or hooks of its own")
            world.guard(source.attr(name), "id", expected)
    arguments = (losses, leaves, seeds, bool(retain_graph))
    with world.one_node(engine_gradients) as record:
        with torch._C.DisableTorchFunction():
            found = _native.suspend(engine_gradients, *arguments)
        record(arguments, found)
    used = {storage_key(x) for x in (*leaves, *seeds)}
    for leaf, gradient in zip(leaves, found):
        if gradient is not None:
            accumulate(world, leaf, gradient, used, custom)


def leaves_of(losses: Sequence[Fake]) -> tuple[list[Fake], bool]:
    """The leaves that the losses are computed from; whether a custom function is on the way."""
    nodes = list(history(losses))
    return ([n.variable for n in nodes if hasattr(n, "variable")],
            any(isinstance(n, BackwardCFunction) for n in nodes))


def accumulate(world: Any, leaf: Fake, gradient: Fake, used: set[int], custom: bool) -> None:
    """What the engine does with a leaf's gradient: a first one becomes `.grad`, in the leaf's geometry and in
    memory of its own; others are added in place. `used` are the storages that others look at."""
    old = world.getattr(leaf, "grad")
    if old is not None:
        if old.requires_grad:
            raise world.refuse("autograd-inside", "a gradient that requires a gradient is added to")
        old.add_(gradient)
        return
    spec = leaf.spec
    stride = spec.stride if spec.is_dense else spec.contiguous(spec.dtype, spec.shape).stride
    if custom or storage_key(gradient) in used or gradient.stride() != stride or not gradient.spec.is_dense:
        gradient = torch.empty_strided(spec.shape, stride, dtype=spec.dtype,
                                       device=spec.device).copy_(gradient.detach())
    used.add(storage_key(gradient))
    world.setattr(leaf, "grad", gradient)


def call_method(frame: Any, loss: Any, gradient: Any = None, retain_graph: Any = None,
                create_graph: bool = False, inputs: Any = None) -> None:
    """torch.Tensor.backward."""
    return call_backward(frame, loss, gradient, retain_graph, create_graph, None, inputs)


SPECIAL = {torch.Tensor.backward: call_method, torch.autograd.backward: call_backward}
