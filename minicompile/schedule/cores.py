"""Cores: library calls that have a kernel of our own, so that what follows them can be computed on each
finished tile.

Takes an `Extern`, gives the group of a core: the call writes to a register, one loop stores that to the
call's result. `fuse` may then put further loops at the same points (the epilogue) and drop the store. The
register is float32, so a product of bfloat16 rounds where eager's does: once, after its bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..ir.spec import TensorSpec
from ..ir.sym import Sym, same
from ..loops.ir import Loops
from ..loops.nest import Axis, Buffer, Extern, Loop, Store, View, axis
from ..loops.val import Apply, Load, Val, apply, load
from .deps import reads_of, writes_of
from .space import Group, Part

TYPES = (torch.float32, torch.bfloat16)  # of products
aten = torch.ops.aten


def _product(step: Extern) -> str | None:
    """mm and bmm: two plain tensors; float32 ones count as rounded if the result is bfloat16."""
    out, views = step.outs[0], [v.spec.dtype for v in step.views()]
    if out is None or len(views) != len(step.args) or any(step.kwargs[k] != 1 for k in step.kwargs):
        return "not a plain product"
    fits = out.spec.dtype in TYPES and {*views} <= {out.spec.dtype, torch.float32}
    return None if fits else "neither float32 nor bfloat16"


def _convolution(step: Extern) -> str | None:
    """Two-dimensional, no bias, result and weight dense with their channels first or last."""
    if len(step.args) != 9 or step.kwargs:
        return "arguments not understood"
    x, w, bias, _, padding, _, transposed, _, _ = step.args
    if {x.spec.dtype, w.spec.dtype} != {torch.float32}:
        return "not float32"
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


CORES: dict[Any, Callable[[Extern], str | None]] = {
    aten.mm.default: _product, aten.bmm.default: _product, aten.addmm.default: _product,
    aten.convolution.default: _convolution}


def why_not_core(step: Extern) -> str | None:
    """Why a library call stays one, or None if we have a kernel for it."""
    rule = CORES.get(step.op)
    if rule is None:
        return "no kernel of our own"
    out = step.outs[0] if len(step.outs) == 1 else None
    if out is None or 0 in out.spec.shape or any(0 in v.spec.shape for v in step.views()):
        return "nothing to compute"
    return rule(step)


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
    register = Buffer(step.name + "_value", "temp", TensorSpec(torch.float32, (), ()))
    axes, strides = core_axes(out.spec)
    place: Sym | int = 0
    for a, s in zip(axes, strides):
        place = place + a.var * s
    value: Val = load(register.name, 0, torch.float32)
    core = replace(step, outs=(View(register.name, out.spec),))
    if step.op is aten.addmm.default:
        bias, core = step.args[0], replace(core, op=aten.mm.default, args=step.args[1:], kwargs={})
        value = apply("add", (value, _cast(_at(bias, axes), torch.float32)), torch.float32)
    value = _cast(value, out.spec.dtype)
    store = Loop(step.name, axes, (), None, value, Store(out.buffer, place), out.spec.dtype, step.where)
    changed = [register]
    target = buffers[out.buffer]
    if target.kind == "extern":
        shown = out.buffer in results
        changed.append(replace(target, kind="output" if shown else "temp",
                               index=results.index(out.buffer) if shown else -1))
    return Group(axes, (Part(store, (), order),), core), changed


def _cast(value: Val, dtype: torch.dtype) -> Val:
    return value if value.dtype is dtype else apply("cast", (value,), dtype)


def _at(v: View, axes: tuple[Axis, ...]) -> Val:
    """The element of a tensor, broadcast, at a point of these axes."""
    place: Sym | int = v.spec.offset
    for a, size, stride in zip(reversed(axes), reversed(v.spec.shape), reversed(v.spec.stride)):
        place = place + (0 if same(size, 1) else a.var * stride)
    return load(v.buffer, place, v.spec.dtype)


def round_on_the_way(loops: Loops) -> Loops:
    """The program without the copies that only round an input (a weight, under autocast) for one product in
    bfloat16: its kernel rounds while it packs, and the copy is neither written nor read."""
    readers = Counter(x for step in loops.steps for x in reads_of(step))
    written = {name for step in loops.steps for name in writes_of(step)}
    shown = {r.buffer for r in loops.results}
    copies = {step.out.buffer: step.body.args[0] for step in loops.steps if isinstance(step, Loop)
              and _rounds(step) and readers[step.out.buffer] == 1 and step.out.buffer not in shown
              and step.body.args[0].buffer not in written}

    def direct(arg: Any) -> Any:
        if not isinstance(arg, View) or arg.buffer not in copies:
            return arg
        source = copies[arg.buffer]
        used.add(arg.buffer)
        return View(source.buffer, arg.spec.with_(dtype=source.dtype))

    used: set[str] = set()
    steps = [replace(step, args=(*step.args[:-2], *map(direct, step.args[-2:]))) if isinstance(step, Extern)
             and step.op in CORES and CORES[step.op] is _product and why_not_core(step) is None else step
             for step in loops.steps]
    if not used:
        return loops
    kept = tuple(s for s in steps if not (isinstance(s, Loop) and s.out.buffer in used))
    return replace(loops, steps=kept, buffers={n: b for n, b in loops.buffers.items() if n not in used})


def _rounds(step: Loop) -> bool:
    """Whether it copies a float32 buffer as bfloat16, every element to where it was."""
    body = step.body
    if not isinstance(body, Apply) or body.prim != "cast" or step.store_dtype is not torch.bfloat16:
        return False
    read = body.args[0]
    return (step.combine is None and not step.is_ordered and isinstance(read, Load)
            and read.dtype is torch.float32 and not read.indirect and read.mask is None
            and same(read.index, step.out.index))
