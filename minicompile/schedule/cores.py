"""Cores: library calls that have a kernel of our own, so that what follows them can be computed on each
finished tile.

Takes an `Extern`, gives the group of a core: the call writes to a register, one loop stores that to the
call's result. `fuse` may then put further loops at the same points (the epilogue) and drop the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..ir.spec import TensorSpec
from ..ir.sym import Sym
from ..loops.nest import Axis, Buffer, Extern, Loop, Store, View, axis
from ..loops.val import load
from .space import Group, Part


def _is_float32(step: Extern) -> str | None:
    views = [*step.views(), *(v for v in step.outs if v is not None)]
    return None if all(v.spec.dtype is torch.float32 for v in views) else "not float32"


def _product(step: Extern) -> str | None:
    """mm and bmm: two plain tensors."""
    return (None if len(list(step.views())) == len(step.args) == 2 and not step.kwargs
            else "not a plain product")


def _convolution(step: Extern) -> str | None:
    """Two-dimensional, no bias, result and weight dense with their channels first or last."""
    if len(step.args) != 9 or step.kwargs:
        return "arguments not understood"
    x, w, bias, _, padding, _, transposed, _, _ = step.args
    if bias is not None or transposed:
        return "bias or transposed"
    if x.spec.ndim != 4 or isinstance(padding, str) or not _plain(w.spec):
        return "not two-dimensional, or weight not dense"
    out = step.outs[0]
    if out is None or not _plain(out.spec):
        return "result not laid out as NCHW or NHWC"
    several = w.spec.shape[1] == 1 and out.spec.shape[1] != x.spec.shape[1] and not out.spec.is_contiguous
    return "several channels of each, the channels last" if several else None


def _plain(spec: TensorSpec) -> bool:
    return spec.is_contiguous or spec.is_channels_last


CORES: dict[Any, Callable[[Extern], str | None]] = {torch.ops.aten.mm.default: _product,
                                                    torch.ops.aten.bmm.default: _product,
                                                    torch.ops.aten.convolution.default: _convolution}


def why_not_core(step: Extern) -> str | None:
    """Why a library call stays one, or None if we have a kernel for it."""
    rule = CORES.get(step.op)
    if rule is None:
        return "no kernel of our own"
    out = step.outs[0] if len(step.outs) == 1 else None
    if out is None or 0 in out.spec.shape or any(0 in v.spec.shape for v in step.views()):
        return "nothing to compute"
    return _is_float32(step) or rule(step)


def core_axes(out: TensorSpec) -> tuple[tuple[Axis, ...], tuple[int, ...]]:
    """(axes, strides) of a core's result: (batch,) row, column; a convolution's are image, channel, pixel,
    or image, pixel, channel."""
    shape, stride = list(out.shape), list(out.stride)
    if len(shape) == 4:
        shape, stride = [*shape[:2], shape[2] * shape[3]], [*stride[:2], stride[3]]
        if not out.is_contiguous:
            shape, stride = [shape[k] for k in (0, 2, 1)], [stride[k] for k in (0, 2, 1)]
    return tuple(axis(f"i{k}", n) for k, n in enumerate(shape)), tuple(stride)


def core_group(step: Extern, order: int, buffers: Mapping[str, Buffer],
               results: tuple[str, ...]) -> tuple[Group, list[Buffer]]:
    """The group that computes a core and stores it as it is, and the buffers that are new or changed.

    `results` are the buffers the caller gets, in order: a result that a library would have allocated
    becomes ours."""
    out = step.outs[0]
    assert out is not None
    register = Buffer(step.name + "_value", "temp", TensorSpec(out.spec.dtype, (), ()))
    axes, strides = core_axes(out.spec)
    place: Sym | int = 0
    for a, s in zip(axes, strides):
        place = place + a.var * s
    value = load(register.name, 0, out.spec.dtype)
    store = Loop(step.name, axes, (), None, value, Store(out.buffer, place), out.spec.dtype, step.where)
    changed = [register]
    target = buffers[out.buffer]
    if target.kind == "extern":
        shown = out.buffer in results
        changed.append(replace(target, kind="output" if shown else "temp",
                               index=results.index(out.buffer) if shown else -1))
    core = replace(step, outs=(View(register.name, out.spec),))
    return Group(axes, (Part(store, (), order),), core), changed
