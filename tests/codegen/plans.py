"""Hand-made plans for the tests of the C++ back end: a kernel from loops, a graph from one library call."""

from __future__ import annotations

import torch

from minicompile.codegen import cpp, driver
from minicompile.ir.spec import TensorSpec
from minicompile.loops.ir import (
    Axis,
    Buffer,
    Extern,
    Loop,
    Loops,
    Result,
    Store,
    View,
    apply,
    axis,
    const,
    load,
)
from minicompile.schedule.plan import Kernel, Plan, Stage, Tiling

f32 = torch.float32


def spec(dtype: torch.dtype, *shape: int) -> TensorSpec:
    return TensorSpec.contiguous(dtype, shape)


def temp(name: str, s: TensorSpec) -> Buffer:
    return Buffer(name, "temp", s)


def plan_of(kernels, buffers, results, inputs, local=(), **kw) -> Plan:
    """A plan with its buffers in order; temps that are not local lie in an arena, one after another."""
    table = {b.name: b for b in buffers}
    arena, at = {}, 0
    for b in buffers:
        if b.kind == "temp" and b.name not in local:
            arena[b.name] = at
            at += -(-b.spec.nbytes // 64) * 64
    steps = tuple(s for k in kernels for s in (k.loops if isinstance(k, Kernel) else (k,)))
    loops = Loops(table, steps, tuple(results), tuple(inputs), **kw)
    return Plan(loops, tuple(kernels), table, arena, at, {})


def pointwise(
    make, inputs: list[torch.Tensor], out_dtype: torch.dtype, vector: bool = True, parallel: int = 1
) -> Plan:
    """out[i] = make(x[i], y[i], …) over 1-d tensors of one length; `make` takes Vals and gives a Val."""
    n = len(inputs[0])
    i = axis("i0", n)
    names = [f"in{k}" for k in range(len(inputs))]
    body = make(*(load(name, i.var, t.dtype) for name, t in zip(names, inputs)))
    loop = Loop("l0", (i,), (), None, body, Store("out0", i.var), out_dtype)
    buffers = [Buffer(name, "input", TensorSpec.of(t), k) for k, (name, t) in enumerate(zip(names, inputs))]
    out = Buffer("out0", "output", spec(out_dtype, n), 0)
    tiling = Tiling("i0" if vector else None, parallel, 1e6)
    return plan_of(
        [Kernel("k0", (i,), (Stage((), (loop,)),), (), tiling)],
        [*buffers, out],
        [Result("out0", out.spec)],
        names,
    )


def rows(
    r: int,
    c: int,
    stages,
    locals_: list[Buffer],
    inputs: list[torch.Tensor],
    out: TensorSpec,
    vector="inner",
    parallel: int = 1,
) -> Plan:
    """A row kernel over i0 < r, each stage (reduces or not) over j0 < c: `stages` gives lists of loops from
    (i, j)."""
    i, j = axis("i0", r), axis("j0", c)
    made = tuple(Stage((j,) if inner else (), tuple(loops)) for inner, loops in stages(i, j))
    names = [f"in{k}" for k in range(len(inputs))]
    buffers = [Buffer(n, "input", TensorSpec.of(t), k) for k, (n, t) in enumerate(zip(names, inputs))]
    local = tuple(b.name for b in locals_)
    kernel = Kernel("k0_rows", (i,), made, local, Tiling(vector, parallel, 1e6))
    return plan_of(
        [kernel], [*buffers, *locals_, Buffer("out0", "output", out, 0)], [Result("out0", out)], names, local
    )


def extern(op, args: tuple, kwargs: dict, into=None) -> tuple[Plan, list[torch.Tensor]]:
    """(plan that calls `op` on the tensors among its arguments, those tensors). Results are laid out as
    eager's."""
    tensors: list[torch.Tensor] = []

    def view(x):
        if isinstance(x, torch.Tensor):
            tensors.append(x)
            return View(f"in{len(tensors) - 1}", TensorSpec.of(x).with_(offset=0))
        return tuple(map(view, x)) if isinstance(x, (tuple, list)) else x

    args, kwargs = view(args), {k: view(v) for k, v in kwargs.items()}
    with torch.random.fork_rng():
        got = op(*_fill(args, tensors), **{k: _fill(v, tensors) for k, v in kwargs.items()})
    got = list(got) if isinstance(got, (tuple, list)) else [got]
    kind = "output" if into else "extern"
    outs = [Buffer(f"out{k}", kind, TensorSpec.of(t).with_(offset=0), k) for k, t in enumerate(got)]
    call = Extern("e0", op, args, kwargs, tuple(View(b.name, b.spec) for b in outs), into)
    inputs = [Buffer(f"in{k}", "input", TensorSpec.of(t), k) for k, t in enumerate(tensors)]
    return plan_of(
        [call], [*inputs, *outs], [Result(b.name, b.spec) for b in outs], [b.name for b in inputs]
    ), tensors


def _fill(x, tensors):
    if isinstance(x, View):
        return tensors[int(x.buffer[2:])]
    return [_fill(y, tensors) for y in x] if isinstance(x, tuple) else x


def build(plan: Plan, isa: str | None = None) -> driver.Executable:
    plan_source = cpp.emit(plan, isa)
    plan_source.check()
    return driver.load(plan_source)


__all__ = [
    "Axis",
    "Buffer",
    "Kernel",
    "Loop",
    "Result",
    "Stage",
    "Store",
    "Tiling",
    "View",
    "apply",
    "axis",
    "build",
    "const",
    "extern",
    "f32",
    "load",
    "plan_of",
    "pointwise",
    "rows",
    "spec",
    "temp",
]
