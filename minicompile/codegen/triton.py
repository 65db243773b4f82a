"""Triton emitter: one function per distinct kernel, for NVIDIA GPUs (and, interpreted, for tests on a CPU).

Takes `schedule.plan.Plan`, gives `Source` for `codegen.triton_driver` and `codegen.cross`. Emitting needs
no Triton. The block shape is data that `triton_blocks` derives from the kernel; nothing is decided here.

How a kernel looks:

    @triton.jit
    def k0_softmax(in0, out0, X: tl.constexpr, R: tl.constexpr):
        i0 = tl.program_id(0) * X + tl.arange(0, X)[:, None]       # par axes: the rows of the tile
        j0 = tl.arange(0, R)[None, :]                              # inner axes: its columns
        jmask = j0 < 100                                           # only where the bounds don't show it
        v1 = tl.load(in0 + (100 * i0 + j0), jmask)
        v2 = ops.amax(tl.where(jmask, v1, float("-inf")), 1)[:, None]
        ...
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..ir.sym import NeedsSizes
from ..loops.ir import Buffer, Extern
from ..schedule.plan import Kernel, Plan
from .source import Launch, Source
from .triton_blocks import Blocks, candidates, programs, widened
from .triton_calls import graph_text
from .triton_kernel import KernelText

HEADER = """\
import triton
import triton.language as tl
from triton.language.extra import libdevice

from minicompile.kernels.triton import ops
"""
Choice = Callable[[Kernel, Mapping[str, Buffer]], Blocks]


@dataclass(frozen=True, slots=True)
class TritonLaunch(Launch):
    """A kernel call on the GPU.

    programs  how many there are; constants: the values of the tl.constexpr parameters; warps per program
    rows      (dtype, elements) of rows kept in memory, whose pointers come after those of `buffers`
    checks    whether a last pointer takes failed index checks: int64 pairs (failed, index), one per error
    dtypes    element types of all pointers, in order
    """

    programs: int = 1
    constants: tuple[tuple[str, int], ...] = ()
    warps: int = 4
    rows: tuple[tuple[torch.dtype, int], ...] = ()
    checks: bool = False
    dtypes: tuple[torch.dtype, ...] = ()


def heuristic(kernel: Kernel, buffers: Mapping[str, Buffer]) -> Blocks:
    """The blocks taken on a GPU without autotuning."""
    return candidates(kernel, buffers)[0]


def few_programs(kernel: Kernel, buffers: Mapping[str, Buffer]) -> Blocks:
    """The blocks taken where kernels are interpreted: a program's time hardly depends on its size."""
    return widened(heuristic(kernel, buffers), kernel)


def on_gpu(plan: Plan) -> bool:
    """Whether the caller's tensors lie on a GPU; else kernels are interpreted."""
    return any(str(b.spec.device).startswith("cuda") for b in plan.buffers.values() if b.kind != "temp")


def emit(plan: Plan, choose: Choice | None = None) -> Source:
    """The Triton kernels of a plan that was scheduled without cores; `choose` gives each kernel's blocks.

    Raises Refusal for a dtype or prim that has no Triton form, NeedsSizes for sizes that vary."""
    for size, _, _ in plan.loops.sizes:
        raise NeedsSizes(size)
    choose = choose or (heuristic if on_gpu(plan) else few_programs)
    functions: dict[tuple[str, ...], str] = {}  # text -> function name
    shown: list[str] = []
    calls: list[Launch | None] = []
    for step in plan.steps:
        if isinstance(step, Extern):
            calls.append(None)
            continue
        blocks = choose(step, plan.buffers)
        printed = KernelText(step, plan.buffers, blocks, _overlap(plan)).emit()
        constants = tuple((name, size) for name, size in _sizes(blocks) if size > 1)
        parameters = ", ".join([*printed.parameters, *(f"{name}: tl.constexpr" for name, _ in constants)])
        key = (parameters, printed.body)
        if key not in functions:
            functions[key] = name = "".join(c if c.isalnum() else "_" for c in step.name)
            pairs = ", ".join(f"{p} = {b}" for p, b in zip(printed.parameters, printed.buffers))
            shown.append(f"# {step.where or step.name}: {pairs}\n"
                         f"@triton.jit\ndef {name}({parameters}):\n{printed.body}")
        dtypes = (*(plan.buffers[b].spec.dtype for b in printed.buffers), *(d for d, _ in printed.rows),
                  *([torch.int64] if printed.checks else []))
        calls.append(TritonLaunch(functions[key], printed.buffers, programs(step, blocks), constants,
                                  blocks.warps, printed.rows, printed.checks, dtypes))
    text = HEADER + "".join("\n\n" + s for s in shown) + "\n" + graph_text(plan, calls, [])
    return Source(text, "triton", "", (), tuple(functions.values()), tuple(calls), plan)


def _sizes(blocks: Blocks) -> list[tuple[str, int]]:
    rows = [("R" if len(blocks.r) == 1 else f"R{n}", r) for n, r in enumerate(blocks.r)]
    return [("X", blocks.x), ("Y", blocks.y), *rows]


def _overlap(plan: Plan) -> Callable[[str, str], bool]:
    """Whether two buffers may share memory."""
    def span(name: str) -> tuple[int, int] | None:
        if name not in plan.arena:
            return None
        spec = plan.buffers[name].spec
        return plan.arena[name], plan.arena[name] + spec.storage_numel * spec.dtype.itemsize

    def overlap(a: str, b: str) -> bool:
        p, q = span(a), span(b)
        return a == b or (p is not None and q is not None and p[0] < q[1] and q[0] < p[1])
    return overlap
