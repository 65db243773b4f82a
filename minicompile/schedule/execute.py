"""Reference executor of plans: the kernels in order, in the plan's own memory.

Takes a `Plan`, gives tensors through loops.reference. The arena is one real block of bytes and every local
lives only inside its kernel, so a plan that shares memory wrongly gives wrong numbers here, as it would in
C++.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..ir.sym import Sym
from ..loops.nest import Extern, Loop, Store, View
from ..loops.reference import (
    Memory,
    allocate,
    raise_faults,
    results,
    run_extern,
    run_loop,
    start,
    view_tensor,
)
from ..loops.val import Load, Val, load, rewrite

if TYPE_CHECKING:
    from .nest import Kernel
    from .plan import Plan


@torch.no_grad()
def run_plan(plan: Plan, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Runs every step in order. Returns the results the caller sees; inputs with write-backs are changed in
    place."""
    memory = start(plan.buffers, plan.loops.inputs, inputs, plan.loops.constants)
    for n in plan.hosts.values():
        memory.flat[n] = memory.flat[n].clone() if n in memory.flat else allocate(plan.buffers[n].spec)
    arena = torch.full((plan.arena_bytes,), 255, dtype=torch.uint8)  # 255s are NaN in every float type
    for b in plan.buffers.values():
        if b.name in plan.arena:
            at, host = plan.arena[b.name], plan.hosts.get(b.name)
            whole = memory.flat[host].view(torch.uint8) if host else arena
            memory.flat[b.name] = whole[at : at
                                        + b.spec.storage_numel * b.spec.dtype.itemsize].view(b.spec.dtype)
        elif b.kind == "output" and b.name not in memory.flat:
            memory.flat[b.name] = allocate(b.spec)
    for i, step in enumerate(plan.steps):
        if isinstance(step, Extern):
            run_extern(step, memory)
        else:
            run_kernel(step, memory)
        for name in plan.frees.get(i, ()):
            del memory.flat[name]
    raise_faults(plan.loops, memory)
    return results(plan.loops, memory)


def run_kernel(kernel: Kernel, memory: Memory) -> None:
    """All loops of a kernel in order; locals get one copy per point of the par axes, as each point has its
    own."""
    point: Sym | int = 0
    points = 1
    for a in kernel.par:
        point = point * a.size + a.var
        points = points * int(a.size)
    rows: dict[str, Sym | int] = {}
    for name in kernel.local:
        spec = memory.buffers[name].spec
        rows[name] = point * spec.storage_numel
        memory.flat[name] = allocate(spec.with_(shape=(points * spec.storage_numel,), stride=(1,)))
    if kernel.core is not None and kernel.core.outs[0] is not None:
        memory.flat[kernel.core.outs[0].buffer] = run_core(kernel.core, memory).reshape(-1)
    memo: dict[Val, Val] = {}
    for loop in kernel.loops:
        run_loop(_spread(loop, rows, memo), memory)
    for name in kernel.local:
        del memory.flat[name]


def run_core(core: Extern, memory: Memory) -> torch.Tensor:
    """A core's value, summed in float32; operands count as rounded to the type that its result has."""
    out = core.outs[0]
    assert out is not None
    return core.op(*(view_tensor(a, memory).to(out.spec.dtype).float() if isinstance(a, View) else a
                     for a in core.args), **core.kwargs)


def _spread(loop: Loop, rows: dict[str, Sym | int], memo: dict[Val, Val]) -> Loop:
    """The loop with each local's index moved to the copy of its own par point."""

    def change(v: Val) -> Val | None:
        if isinstance(v, Load) and v.buffer in rows:
            return load(v.buffer, v.index + rows[v.buffer], v.dtype, v.indirect, v.mask)
        return None

    out = loop.out
    if out.buffer in rows:
        out = Store(out.buffer, out.index + rows[out.buffer], out.mode, out.indirect)
    return replace(loop, body=rewrite(loop.body, {}, change, memo), out=out)
