"""The Python text that runs a whole graph of Triton kernels: memory, launches and library calls, in order.

Takes a `Plan` and its launches, gives text for `codegen.triton`, which `triton_driver` (and the loader
script of `codegen.cross`) executes. One function per graph; nothing is looked up while it runs.
"""
from __future__ import annotations

import functools
import keyword
from collections.abc import Sequence
from typing import Any

import torch

from ..ir.graph import seen
from ..ir.spec import TensorSpec
from ..loops.ir import Extern, Result, View
from ..schedule.plan import Plan
from .externs import DIRECT
from .source import Launch

HELPERS = '''
import torch

exact = {"enable_fp_fusion": False}


def laid(tensor, shape, stride):
    """The tensor, laid out as the plan says."""
    if tuple(tensor.shape) == shape and tensor.stride() == stride and not tensor.storage_offset():
        return tensor
    return torch.empty_strided(shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def view(tensor, shape, stride, offset):
    """A window on the memory of a tensor that starts where the tensor does."""
    return tensor.as_strided(shape, stride, tensor.storage_offset() + offset)
'''


RESERVED = frozenset("torch exact laid view device inputs constants extras errors arena got graph".split())


def name_of(buffer: str) -> str:
    """The variable that holds a buffer."""
    return f"b_{buffer}" if keyword.iskeyword(buffer) or buffer in RESERVED else buffer


def graph_text(plan: Plan, calls: Sequence[Launch | None], extras: list[Any]) -> str:
    """`def graph(device, inputs, constants, extras, errors)`, which gives the graph's results.

    extras   is extended by the arguments of library calls, and the views of results, that have no text"""
    loops = plan.loops
    lines = [f"({', '.join([*map(name_of, loops.inputs), ''])}) = inputs"] if loops.inputs else []
    if plan.arena_bytes:
        lines.append(f"arena = torch.empty({plan.arena_bytes}, dtype=torch.uint8, device=device)")
    for b in plan.buffers.values():
        name, n, dtype = name_of(b.name), b.spec.storage_numel, b.spec.dtype
        if b.name in plan.arena:
            at = plan.arena[b.name]
            lines.append(f"{name} = arena[{at}:{at + n * dtype.itemsize}].view({dtype})")
        elif b.kind == "output":
            lines.append(f"{name} = torch.empty({n}, dtype={dtype}, device=device)")
        elif b.kind == "constant":
            lines.append(f"{name} = constants[{b.index}]")
    for i, (step, call) in enumerate(zip(plan.steps, calls)):
        if isinstance(step, Extern):
            lines += _library(step, plan, extras)
        elif call is not None and call.programs:                                # type: ignore[attr-defined]
            lines.append(_launch(call))
        if i in plan.frees:
            lines.append(f"del {', '.join(map(name_of, plan.frees[i]))}")
    shown = loops.results[:loops.returned] if loops.returned >= 0 else loops.results
    given = [*(_result(r, plan, extras) for r in shown), ""]
    lines.append(f"return ({', '.join(given)})" if shown else "return ()")
    return (f"{HELPERS}\n\ndef graph(device, inputs, constants, extras, errors):\n"
            + "".join(f"    {line}\n" for line in lines))


def _launch(call: Any) -> str:
    rows = [f"torch.empty({n}, dtype={d}, device=device)" for d, n in call.rows]
    sizes = [f"{name}={size}" for name, size in call.constants]
    given = [*map(name_of, call.buffers), *rows, *(["errors"] if call.checks else []), *sizes,
             f"num_warps={call.warps}"]
    return f"{call.function}[({call.programs},)]({', '.join(given)}, **exact)"


def _library(step: Extern, plan: Plan, extras: list[Any]) -> list[str]:
    """A library call, into the plan's memory where the operator can write there."""
    given = [_argument(a, extras) for a in step.args]
    given += [f"{k}={_argument(a, extras)}" for k, a in step.kwargs.items()]
    if step.into is not None and step.op in DIRECT:          # a copy of others' results costs little
        names = [a.name for a in step.into._schema.arguments if a.is_out]
        given += [f"{n}={_view(v)}" for n, v in zip(names, step.outs) if v is not None]
        return [f"torch.ops.{step.into}({', '.join(given)})"]
    call = f"torch.ops.{step.op}({', '.join(given)})"
    if not step.outs:
        return [call]
    returns = step.op._schema.returns
    many = len(returns) > 1 or str(returns[0].type).startswith("List")
    lines = [f"got = {call}" if many else f"got = ({call},)"]
    for n, out in enumerate(step.outs):
        if out is not None and plan.buffers[out.buffer].kind == "extern":
            lines.append(f"{name_of(out.buffer)} = laid(got[{n}], {_geometry(out.spec)})")
        elif out is not None:
            lines.append(f"{_view(out)}.copy_(got[{n}])")
    return [*lines, "del got"]


def _argument(a: Any, extras: list[Any]) -> str:
    if isinstance(a, View):
        return _view(a)
    if isinstance(a, (tuple, list)):
        return f"[{', '.join(_argument(x, extras) for x in a)}]"
    if isinstance(a, torch.device):
        return "device"
    if a is None or type(a) in (bool, int, str, torch.dtype, torch.layout, torch.memory_format) or (
            type(a) is float and a - a == 0):
        return repr(a)
    extras.append(a)
    return f"extras[{len(extras) - 1}]"


def _geometry(spec: TensorSpec) -> str:
    return f"{tuple(map(int, spec.shape))}, {tuple(map(int, spec.stride))}"


def _view(v: View) -> str:
    return f"view({name_of(v.buffer)}, {_geometry(v.spec)}, {int(v.spec.offset)})"


def _result(r: Result, plan: Plan, extras: list[Any]) -> str:
    if r.views:                                 # no strided view: of another dtype, or lazily conjugated
        base = plan.buffers[r.buffer]
        extras.append(functools.partial(seen, spec=r.spec, views=r.views, start=base.spec.offset))
        whole = name_of(r.buffer) if base.kind in ("input", "extern") else _view(View(r.buffer, base.spec))
        return f"extras[{len(extras) - 1}]({whole})"
    if r.alias and plan.buffers[r.buffer].kind == "input":
        start = plan.buffers[r.buffer].spec.offset
        return f"view({name_of(r.buffer)}, {_geometry(r.spec)}, {int(r.spec.offset - start)})"
    if r.alias or plan.buffers[r.buffer].kind != "extern":
        return f"view({name_of(r.buffer)}, {_geometry(r.spec)}, {int(r.spec.offset) if r.alias else 0})"
    return name_of(r.buffer)
