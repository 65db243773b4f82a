"""Plan: kernels in order, with the tiling as data and every buffer placed. What an emitter gets.

Takes `Loops` (through schedule.fuse and schedule.memory), gives what `codegen` prints; both emitters read this and argue about nothing.
"""
from __future__ import annotations

from dataclasses import dataclass

from ..loops.ir import Axis, Buffer, Extern, Loop, Loops


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a kernel's iteration space is walked.

    vector     the Var name that runs over SIMD lanes (innermost), or None for scalar code; a vector axis is the last par axis of a
               flat kernel or the inner axis of a row kernel
    parallel   how many leading par axes are collapsed into the OpenMP loop (0: run by the caller alone)
    work       estimated nanoseconds of the whole kernel on one core (decides `parallel`, shown to the user)
    transpose  (var, var) of a 2-D tile where reads and writes disagree on the fast axis, or None
    """

    vector: str | None
    parallel: int
    work: float
    transpose: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass over the inner axes of a row kernel (or the only body of a flat one): loops that share the axes `inner`, run point by point
    in order. A stage is a reduction pass if any of its loops reduces; the results of its reductions are complete after it."""

    inner: tuple[Axis, ...]
    loops: tuple[Loop, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """for par axes (parallel): for stage in stages: for stage.inner: loops

    local   buffers that live only inside one point of the par axes: a scalar (no inner index) is a register, a row is per-thread scratch.
            They are stored and loaded through Store/Load as any buffer; their index has only inner variables. A buffer in `local` is absent from the arena.
    All loops have been renamed to the kernel's own axis variables, so the same `Val` in two loops is the same object.
    """

    name: str
    par: tuple[Axis, ...]
    stages: tuple[Stage, ...]
    local: tuple[str, ...]
    tiling: Tiling
    where: str = ""                # "softmax, mul": what it computes, for people

    @property
    def loops(self) -> tuple[Loop, ...]:
        return tuple(loop for stage in self.stages for loop in stage.loops)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why two kernels were not fused, and the bytes of memory traffic a fusion would have saved."""

    a: str
    b: str
    reason: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The border object.

    steps     Kernel or Extern, in order
    buffers   all buffers that still exist (inputs, constants, outputs, arena temps, locals, extern results)
    arena     byte offset of each "temp" buffer that is not local, 64-byte aligned; arena_bytes in all
    frees     after step i, these "extern" buffers can be released
    """

    loops: Loops
    steps: tuple[Kernel | Extern, ...]
    buffers: dict[str, Buffer]
    arena: dict[str, int]
    arena_bytes: int
    frees: dict[int, tuple[str, ...]]
    refused: tuple[Refused, ...] = ()
