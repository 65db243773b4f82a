"""Reference executor: runs loops with torch on whole index grids. The meaning of the loop IR, and the
fallback without a C++ compiler.

Takes `Loops` (and, through schedule.execute, the kernels of a Plan), gives tensors. Slow and obvious: each
Val is evaluated for all points at once; a load whose index is affine is a strided view, any other one
gathers.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckError
from ..ir.forms import coefficient
from ..ir.graph import restride, seen
from ..ir.prims import PRIMS
from ..ir.spec import TensorSpec
from ..ir.sym import Sym, evaluate, substitute
from .nest import Axis, Buffer, Extern, Loop, Result, View
from .val import Apply, Checked, Const, Index, Load, Val, walk

if TYPE_CHECKING:
    from .ir import Loops

Tensor = torch.Tensor
TENSOR = {
    "add": "sum",
    "mul": "prod",
    "amin": "amin",
    "amax": "amax",
}  # store mode -> scatter_reduce's name


@dataclass
class Memory:
    """Buffers as flat tensors (element 0 is the buffer's start), the tensors handed in, and the index
    errors met."""

    buffers: dict[str, Buffer]
    flat: dict[str, Tensor] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)
    faults: list[tuple[int, int]] = field(default_factory=list)

    def bind(self, name: str, tensor: Tensor) -> None:
        """Makes buffer `name` the memory of `tensor`."""
        spec = self.buffers[name].spec
        if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise CheckError("run", name, f"expects {spec}, got {TensorSpec.of(tensor)}")
        self.given[name] = tensor
        stride = tuple(tensor.stride())
        if any(n > 1 and a != b for n, a, b in zip(spec.shape, stride, spec.stride)):
            raise CheckError("run", name, f"expects {spec}, got {TensorSpec.of(tensor)}")
        t = tensor.detach()
        self.flat[name] = t.as_strided((spec.storage_numel,), (1,), t.storage_offset())

    def get(self, name: str) -> Tensor:
        if name not in self.flat:
            raise CheckError("run", name, "is read or written outside its lifetime")
        return self.flat[name]


def allocate(spec: TensorSpec) -> Tensor:
    """Fresh flat memory for one buffer, poisoned so that reading it before writing shows."""
    flat = torch.empty(spec.storage_numel, dtype=spec.dtype, device=spec.device)
    return flat.fill_(torch.nan) if spec.dtype.is_floating_point and flat.element_size() > 1 else flat


@torch.no_grad()
def run_loops(loops: Loops, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Runs every step in order. Returns the results the caller sees; inputs with write-backs are changed in
    place.

    Raises CheckError where an input does not fit its spec, and the error of a failed index check after all
    steps.
    """
    memory = start(loops.buffers, loops.inputs, inputs, loops.constants)
    for b in loops.buffers.values():
        if b.kind in ("temp", "output"):
            memory.flat[b.name] = allocate(b.spec)
    for step in loops.steps:
        if isinstance(step, Extern):
            run_extern(step, memory)
        else:
            run_loop(step, memory)
    raise_faults(loops, memory)
    return results(loops, memory)


def start(buffers: dict[str, Buffer], names: Sequence[str], inputs: Sequence[Tensor],
          constants: Sequence[Tensor]) -> Memory:
    """Memory with inputs and constants bound."""
    memory = Memory(buffers)
    if len(names) != len(inputs):
        raise CheckError("run", "inputs", f"expects {len(names)} tensors, got {len(inputs)}")
    for name, tensor in zip(names, inputs):
        if isinstance(tensor, Tensor):          # else a size
            memory.bind(name, tensor)
    for b in buffers.values():
        if b.kind == "constant":
            memory.bind(b.name, constants[b.index])
    return memory


def results(loops: Loops, memory: Memory) -> list[Tensor]:
    """The tensors the caller gets."""
    shown = loops.results[: loops.returned] if loops.returned >= 0 else loops.results
    given = [_result(r, memory, loops.buffers) for r in shown]
    torch._C._increment_version([memory.given[loops.inputs[i]] for i in loops.kept])
    restride([memory.given.get(name) for name in loops.inputs], loops.restrides)
    return given


def _result(r: Result, memory: Memory, buffers: Mapping[str, Buffer]) -> Tensor:
    base = memory.given.get(r.buffer)
    spec = r.spec
    if r.alias and base is not None:
        return seen(base, spec, r.views, buffers[r.buffer].spec.offset)
    flat = memory.get(r.buffer)
    offset = flat.storage_offset() + (spec.offset if r.alias else 0)
    if not r.alias:                         # a tensor of its own, not a view: the caller may write to it
        return flat.new_empty(0).set_(flat.untyped_storage(), offset, spec.shape, spec.stride)
    return seen(flat, spec, r.views)


def raise_faults(loops: Loops, memory: Memory) -> None:
    """Raises eager's exception for the first failed index check."""
    if memory.faults:
        number, value = memory.faults[0]
        kind, message = loops.errors[number]
        raise getattr(builtins, kind)(message.replace("{index}", str(value)))


# ---- loops ----


class Grid:
    """The points of a loop: one tensor dimension per axis."""

    def __init__(self, axes: Sequence[Axis], device: str = "cpu"):
        self.axes = tuple(axes)
        self.shape = tuple(int(a.size) for a in axes)
        n = len(axes)
        self.env = {a.var.name: torch.arange(int(a.size),
                                             device=device).reshape([-1 if k == i else 1 for k in range(n)])
                    for i, a in enumerate(axes)}

    def window(self, flat: Tensor, index: Sym | int) -> Tensor | None:
        """flat[index] as a strided view of one dimension per axis (size 1 where index ignores it), if
        affine."""
        strides = [coefficient(index, a.var) for a in self.axes]
        if any(s is None or s < 0 for s in strides):
            return None
        start_ = substitute(index, {a.var: 0 for a in self.axes})
        if not isinstance(start_, int):
            return None
        shape = [n if s else min(n, 1) for n, s in zip(self.shape, strides)]
        if 0 in shape:
            return flat.new_empty(shape)
        last = start_ + sum((n - 1) * s for n, s in zip(shape, strides))
        if not 0 <= start_ <= last < flat.numel():
            raise CheckError("run", str(index), f"reaches elements {start_} to {last} of {flat.numel()}")
        return flat.as_strided(shape, [s or 0 for s in strides], flat.storage_offset() + start_)


def run_loop(loop: Loop, memory: Memory) -> None:
    """Evaluates one loop nest and stores its result."""
    if any(int(a.size) == 0 for a in loop.store_axes):
        return                                  # no point: no index is looked at, either
    grid = Grid(loop.axes + loop.reduce_axes)
    memo: dict[Val, Tensor] = {}
    value = evaluate_val(loop.body, grid, memory, memo)
    if loop.combine:
        value = _combine(loop, value.expand(grid.shape), len(loop.axes))
    _store(loop, value.to(loop.store_dtype), memory, memo, Grid(loop.store_axes))


def evaluate_val(v: Val, grid: Grid, memory: Memory, memo: dict[Val, Tensor]) -> Tensor:
    """v at every point of the grid; dimensions it does not depend on may have size 1."""
    for x in walk(v):
        if x not in memo:
            memo[x] = _evaluate(x, [memo[a] for a in x.args], grid, memory)
    return memo[v]


def _evaluate(v: Val, args: list[Tensor], grid: Grid, memory: Memory) -> Tensor:
    if isinstance(v, Load):
        return _load(v, args, grid, memory)
    if isinstance(v, Const):
        return torch.tensor(v.value, dtype=v.dtype)
    if isinstance(v, Index):
        return torch.as_tensor(evaluate(v.sym, grid.env), dtype=v.dtype)
    if isinstance(v, Checked):
        bad = (args[0] < v.lo) | (args[0] >= v.hi)
        if bad.any():
            memory.faults.append((v.error, int(args[0][bad][0])))
        return args[0].clamp(v.lo, max(int(v.hi) - 1, v.lo))
    if isinstance(v, Apply):
        extra = (v.dtype,) if v.prim in ("cast", "bitcast") else ()
        out = PRIMS[v.prim].ref(*args, *extra)
        if out.dtype != v.dtype:
            raise CheckError("run", str(v)[:80], f"says {v.dtype}, computes {out.dtype}")
        return out
    raise TypeError(f"not a Val: {v!r}")


def _load(v: Load, args: list[Tensor], grid: Grid, memory: Memory) -> Tensor:
    flat = memory.get(v.buffer)
    if not args:
        view = grid.window(flat, v.index)
        if view is not None:
            return view
    env: dict[str, Any] = dict(grid.env)
    env.update((var.name, x) for (var, _), x in zip(v.indirect, args))
    where = torch.as_tensor(evaluate(v.index, env))
    if v.mask is None:
        return flat[where] if flat.numel() or where.numel() == 0 else flat.new_zeros(where.shape)
    mask = args[-1]
    if not flat.numel():
        return flat.new_zeros(torch.broadcast_shapes(mask.shape, where.shape))
    return torch.where(mask, flat[torch.where(mask, where, 0)], torch.zeros((), dtype=v.dtype))


def _combine(loop: Loop, x: Tensor, par: int) -> Tensor:
    """The reduction or scan over the dimensions after `par`."""
    points = x.shape[:par]
    if loop.is_scan:
        return _scan(loop.combine or "", x)
    x = (x.reshape(*points, x.shape[par:].numel()) if x.numel() or
         loop.combine in ("sum", "prod", "any", "all") else x)
    if x.dim() != par + 1:
        x = x.new_empty((*points, 0))
    match loop.combine:
        case "sum":
            return x.sum(-1, dtype=x.dtype)
        case "prod":
            return x.prod(-1, dtype=x.dtype)
        case "amax":
            return x.amax(-1)
        case "amin":
            return x.amin(-1)
        case "any":
            return x.any(-1)
        case "all":
            return x.all(-1)
        case "argmax":
            return x.argmax(-1)
        case "argmin":
            return x.argmin(-1)
    raise CheckError("run", loop.name, f"unknown combine {loop.combine!r}")


def _scan(combine: str, x: Tensor) -> Tensor:
    if combine == "scan_sum":
        return x.cumsum(-1, dtype=x.dtype)
    if combine == "scan_prod":
        return x.cumprod(-1, dtype=x.dtype)
    return x.cummax(-1).values if combine == "scan_amax" else x.cummin(-1).values


def _store(loop: Loop, value: Tensor, memory: Memory, memo: dict[Val, Tensor], grid: Grid) -> None:
    out, flat = loop.out, memory.get(loop.out.buffer)
    if flat.dtype != loop.store_dtype:
        raise CheckError("run", loop.name,
                         f"stores {loop.store_dtype} into {out.buffer}, which is {flat.dtype}")
    value = value.expand(grid.shape)
    if 0 in grid.shape:
        return
    if not out.indirect and out.mode == "set":
        view = grid.window(flat, out.index)
        if view is not None and view.shape == value.shape:
            view.copy_(value.clone())  # clone: the value may be a view of the very same memory
            return
    env: dict[str, Any] = dict(grid.env)
    for var, x in out.indirect:
        env[var.name] = evaluate_val(x, grid, memory, memo)
    where = torch.as_tensor(evaluate(out.index, env)).expand(grid.shape).reshape(-1)
    scatter(flat, where, value.reshape(-1), out.mode)


def scatter(flat: Tensor, where: Tensor, value: Tensor, mode: str) -> None:
    """flat[where] (mode)= value, in place; where an element is met twice with mode "set", the last one
    stays."""
    if mode != "set":
        if flat.dtype is torch.bool:
            flat.copy_(flat.to(torch.uint8).scatter_reduce(0, where, value.to(torch.uint8),
                TENSOR[mode]).bool())
        else:
            flat.scatter_reduce_(0, where, value, TENSOR[mode], include_self=True)
        return
    order = torch.arange(where.numel())
    last = torch.full((flat.numel(),), -1).scatter_reduce(0, where, order, "amax")
    hit = last >= 0
    flat[hit] = value[last[hit]]


# ---- library kernels ----


def view_tensor(view: View, memory: Memory) -> Tensor:
    """The tensor a library kernel gets for `view`."""
    flat = memory.get(view.buffer)
    spec = view.spec
    return flat.as_strided(spec.shape, spec.stride, flat.storage_offset() + spec.offset)


def call(step: Extern, memory: Memory) -> tuple:
    """Every result of the functional overload."""

    def fill(arg: Any) -> Any:
        if isinstance(arg, View):
            return view_tensor(arg, memory)
        if isinstance(arg, (tuple, list)):
            return [fill(a) for a in arg]
        return arg

    out = step.op(*[fill(a) for a in step.args], **{k: fill(a) for k, a in step.kwargs.items()})
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


def run_extern(step: Extern, memory: Memory) -> None:
    """Calls the functional overload and puts its results where `outs` says."""
    for view, tensor in zip(step.outs, call(step, memory)):
        if view is None:
            continue
        if tuple(tensor.shape) != view.spec.shape or tensor.dtype != view.spec.dtype:
            raise CheckError("run", step.name, f"gave {TensorSpec.of(tensor)}, the graph says {view.spec}")
        if memory.buffers[view.buffer].kind == "extern":
            memory.flat[view.buffer] = allocate(view.spec)
        view_tensor(view, memory).copy_(tensor)
