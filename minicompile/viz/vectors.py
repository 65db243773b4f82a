"""Which memory accesses of a Triton kernel 128-bit instructions can do, and which of them got one.

Takes a `Kernel` with its launch, and the PTX it was compiled to; serves `viz.cross`. What is possible is told
from the plan alone, so that it checks the emitter and Triton's own analysis alike.
"""
from __future__ import annotations

import re
from collections.abc import Mapping

from ..codegen.triton import TritonLaunch
from ..codegen.triton_blocks import turned
from ..ir.forms import coefficient
from ..ir.sym import Div, Mod, Sym
from ..loops.ir import Axis, Buffer
from ..schedule.plan import Kernel, Stage

WIDE = 16               # bytes of a 128-bit access
LANES = 32              # threads of a warp


def allowed(kernel: Kernel, buffers: Mapping[str, Buffer], call: TritonLaunch) -> int:
    """How many of a kernel's loads and stores 128-bit instructions can do.

    These walk the contiguous axis of the tile with stride 1, every run of elements that fills 16 bytes begins
    at a multiple of 16 and ends inside the axis, and each thread has as many elements. Elements of one byte
    don't count: a thread has eight of them, so their accesses have 64 bits."""
    sizes = dict(call.constants)
    found = set()
    stored = {(loop.out.buffer, loop.out.index) for loop in kernel.loops}       # loaded again from registers
    for stage in kernel.stages:
        for loop in stage.loops:
            seen = [(x.buffer, x.index, False) for x in loop.loads()
                    if not (x.indirect or x.mask or (x.buffer, x.index) in stored)]
            if not loop.out.indirect and loop.out.mode == "set":
                seen.append((loop.out.buffer, loop.out.index, True))
            for buffer, index, stores in seen:
                axis = _contiguous(kernel, stage, stores)
                size = buffers[buffer].spec.dtype.itemsize
                if axis is None or buffer in kernel.local or size < 2:
                    continue
                if _elements(kernel, stage, sizes, index) * size >= WIDE * LANES * call.warps and (
                        walks(index, axis, max(WIDE // size, 1))):
                    found.add((buffer, index, stores))
    return len(found)


def _contiguous(kernel: Kernel, stage: Stage, stores: bool) -> Axis | None:
    """The axis along which neighbouring threads go: what reads and writes of a turned tile differ in."""
    across = turned(kernel)
    if across is not None and not stores:
        return next(a for a in kernel.par if a.var.name == across)
    if stage.inner and kernel.tiling.vector in (None, "inner"):
        return stage.inner[-1]
    return kernel.par[-1] if kernel.par else None


def _elements(kernel: Kernel, stage: Stage, sizes: Mapping[str, int], index: Sym | int) -> int:
    """Elements of the tile that an access touches."""
    lists = list(dict.fromkeys(s.inner for s in kernel.stages if s.inner))
    free = frozenset() if isinstance(index, int) else index.vars
    par = any(a.var in free for a in kernel.par)
    n = sizes.get("X", 1) * sizes.get("Y", 1) if par else 1
    if any(a.var in free for a in stage.inner):
        n *= sizes.get("R" if len(lists) == 1 else f"R{lists.index(stage.inner)}", 1)
    return n


def walks(index: Sym | int, axis: Axis, run: int) -> bool:
    """Whether every aligned run of so many points along the axis lies together, at a multiple of the run."""
    if isinstance(index, int) or int(axis.size) % run or index.const % run:
        return False
    if coefficient(index, axis.var) != 1:
        return False
    return all(a is axis.var or (c % run == 0 and not _splits(a, axis)) for a, c in index.terms)


def _splits(a: Sym, axis: Axis) -> bool:
    return isinstance(a, (Div, Mod)) and axis.var in a.vars


def given(ptx: str) -> int:
    """How many source lines of the kernel became 128-bit loads or stores. The PTX tells the line of each
    instruction; what is inlined from another file belongs to the line that called it."""
    lines: set[tuple[str, str]] = set()
    at = ("", "")
    for line in ptx.splitlines():
        if place := re.match(r"\s*\.loc\s+(\d+) (\d+)", line):
            at = place.group(1), place.group(2)
        elif re.search(r"\b(ld|st)\.global\S*\.(v4\.b32|v2\.b64|v8\.b16|b128)", line):
            lines.add(at)
    return len(lines)
