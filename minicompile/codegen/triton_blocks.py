"""How a kernel's iteration space is cut into Triton programs: block shape and warps, as data. Pure
functions.

Takes a `Kernel`, serves `codegen.triton`. The heuristic, in short: a thread holds 8 elements or so, enough
for 128-bit accesses; rows that fit stay in registers; axes that memory walks with stride 1 are the wide
ones.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ..loops.ir import Axis, Buffer
from ..schedule.plan import Kernel
from ..schedule.space import total
from ..schedule.tiling import transpose

WHOLE = 4096            # rows up to this long stay in registers
LONG = 2048             # elements of a longer row that a program takes at once
TILE = 1024             # elements of a tile of shorter rows
COLUMNS = (8, 64)       # results of a reduction down columns: a sector of memory, and enough
PROGRAMS = 256          # enough to fill a GPU
THREAD = 256            # elements per warp: 8 per thread
LOADED = 192            # bytes that a thread loads; with more it gets half the elements
ATOMIC = {"add": (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64),
          "amax": (torch.int32, torch.int64), "amin": (torch.int32, torch.int64)}


@dataclass(frozen=True, slots=True)
class Blocks:
    """The shape of one program's tile; every number is a power of two, and 1 means a scalar.

    x       points of the par axes (in a transposing kernel: of the last one)
    y       in a transposing kernel: points of the axis that reads walk with stride 1; else 1
    r       for each distinct list of inner axes, in order of first use: elements at once; at least their
            number means the row stays in registers from stage to stage
    warps   warps of 32 threads per program
    serial  one program takes all points in order: for scatters that no atomic operation does
    """

    x: int
    y: int = 1
    r: tuple[int, ...] = ()
    warps: int = 4
    serial: bool = False

    def __str__(self) -> str:
        return f"x={self.x} y={self.y} r={self.r} warps={self.warps}" + (" serial" if self.serial else "")


def candidates(kernel: Kernel, buffers: Mapping[str, Buffer]) -> tuple[Blocks, ...]:
    """Blocks worth trying, the heuristic's own choice first; autotuning times all of them."""
    inner, n = inner_axes(kernel), total(kernel.par)
    few = 1 + (THREAD // 32 * _loaded(kernel, buffers) > LOADED)
    if is_serial(kernel, buffers):
        return (Blocks(1, 1, (1,) * len(inner), 1, True),)
    if inner:
        return _row_candidates(kernel, [total(axes) for axes in inner], n, few)
    if turned(kernel):
        return tuple(Blocks(x, y, (), w) for x, y, w in ((32, 32, 4), (64, 32, 4), (64, 64, 8), (16, 64, 4)))
    x = min(max(power(n // PROGRAMS), THREAD), TILE, power(n))
    sizes = (x, min(2 * x, power(n)), max(x // 2, 1))
    return tuple(dict.fromkeys(Blocks(k, 1, (), warps(few * k)) for k in sizes))


def _loaded(kernel: Kernel, buffers: Mapping[str, Buffer]) -> int:
    """Bytes that a kernel loads per point."""
    loads = {x for loop in kernel.loops for x in loop.loads()}
    return sum(buffers[x.buffer].spec.dtype.itemsize for x in loads)


def _row_candidates(kernel: Kernel, lengths: list[int], n: int, few: int) -> tuple[Blocks, ...]:
    longest = power(max(lengths))
    if kernel.tiling.vector not in (None, "inner"):          # down columns: lanes are neighbouring results
        def columns(x: int, tile: int) -> Blocks:
            x = min(power(n), x)
            r = tuple(min(power(k), max(tile // x, 1)) for k in lengths)
            return Blocks(x, 1, r, warps(few * x * max(r)))
        x = min(max(power(n // PROGRAMS), COLUMNS[0]), COLUMNS[1])
        return tuple(dict.fromkeys((columns(x, LONG), columns(2 * x, LONG), columns(x, 2 * LONG))))
    if longest <= WHOLE:
        r = tuple(power(k) for k in lengths)
        x = min(max(TILE // longest, 1), power(n))
        sizes = (k for k in (x, 2 * x, max(x // 2, 1)) if k <= power(n))
        shapes = [Blocks(k, 1, r, warps(few * k * longest)) for k in sizes]
        return tuple(dict.fromkeys((*shapes, replace(shapes[0], warps=min(2 * shapes[0].warps, 16)))))
    return tuple(Blocks(1, 1, tuple(min(power(k), at_once) for k in lengths), warps(few * at_once))
                 for at_once in (LONG, 2 * LONG, LONG // 2))


def widened(blocks: Blocks, kernel: Kernel, most: int = 1 << 16) -> Blocks:
    """Blocks of many more points, where what a program costs does not depend on their number (interpreted
    kernels)."""
    if blocks.serial or blocks.y > 1:
        return blocks
    return replace(blocks, x=max(blocks.x, min(power(total(kernel.par)), most // max((*blocks.r, 1)))))


def inner_axes(kernel: Kernel) -> list[tuple[Axis, ...]]:
    """The distinct lists of inner axes, in order of first use."""
    return list(dict.fromkeys(stage.inner for stage in kernel.stages if stage.inner))


def turned(kernel: Kernel) -> str | None:
    """The name of the axis that reads walk with stride 1 where writes walk another, in a flat kernel."""
    found = transpose(kernel.par, kernel.stages, kernel.par[-1].var.name) if kernel.par else None
    return found[0] if found else None


def is_serial(kernel: Kernel, buffers: Mapping[str, Buffer]) -> bool:
    """Whether some scatter combines in a way or type that has no atomic operation."""
    return any(loop.out.mode != "set" and loop.store_dtype not in ATOMIC.get(loop.out.mode, ())
               for loop in kernel.loops)


def programs(kernel: Kernel, blocks: Blocks) -> int:
    """How many programs a launch has."""
    if blocks.serial:
        return 1
    if blocks.y == 1:
        return -(-total(kernel.par) // blocks.x)
    count = 1
    for a in kernel.par:
        size = blocks.x if a is kernel.par[-1] else blocks.y if a.var.name == turned(kernel) else 1
        count *= -(-int(a.size) // size)
    return count


def warps(elements: int) -> int:
    return min(max(elements // THREAD, 1), 8 if elements <= LONG else 16)


def power(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
