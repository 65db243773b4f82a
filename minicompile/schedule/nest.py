"""Kernel and its parts: stages, tiling, and the key by which equal kernels are known.

Takes loops; `kernel.finish` makes these, `plan.Plan` holds them in order, emitters print them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..loops.ir import Apply, Axis, Buffer, Checked, Const, Extern, Index, Load, Loop, Val, View, walk


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a kernel's iteration space is walked.

    vector     the Var name that runs over SIMD lanes, or None for scalar code. Three cases:
               the last par axis of a flat kernel (one stage without inner axes);
               the last inner axis, where every stage that has inner axes vectorises its own last one (row
               kernel; `vector` is then "inner");
               the last par axis of a kernel that has inner axes (column reduction): each lane is one par
               point, accumulators are vectors, inner loops run in order
    parallel   how many leading par axes are collapsed into the OpenMP loop (0: the caller's thread alone)
    work       estimated nanoseconds of the whole kernel on one core (decides `parallel`, shown to the user)
    transpose  (var, var) of a 2-D tile where reads and writes disagree on the fast axis, or None
    """

    vector: str | None
    parallel: int
    work: float
    transpose: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass over the axes `inner` (none: a single point): its loops share them and run point by point,
    in order.

    A stage is a reduction pass if any of its loops reduces; the results of its reductions are complete
    after it, so only later stages read them. Values that loops of one stage share are the same `Val` object
    (stores that a later loop of the stage reads at the same point have been forwarded), so emit each
    distinct Val of a stage once.
    """

    inner: tuple[Axis, ...]
    loops: tuple[Loop, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """for par axes (parallel): for stage in stages: for stage.inner: loops

    A loop's own axes are `par` + (inner, where it does not reduce); its reduce_axes are the stage's inner
    axes. Par axes are named i0, i1, …; inner axes j0, j1, …: equal kernels print equal
    text.

    local   temp buffers that live only inside one point of the par axes: shape () is a scalar (a register,
            stored by a reduction or in a stage without inner axes), shape (n,) is a row of per-thread
            scratch. Stored and loaded through Store and Load like any buffer; their index has only inner
            variables. Absent from the arena.
    core    a matrix product or convolution with a kernel of our own: its result at a point of the par axes
            ((batch,) row, column; or image, channel, pixel) is in the local register `core.outs[0].buffer`,
            and the one stage, without inner axes, is the epilogue that applies to it and stores
    No Load of a kernel reads a place that an earlier loop of the same stage stores, so loads can be hoisted
    to the start of a point. Different par points never touch each other's results.
    """

    name: str
    par: tuple[Axis, ...]
    stages: tuple[Stage, ...]
    local: tuple[str, ...]
    tiling: Tiling
    where: str = ""  # "softmax, mul": what it computes, for people
    core: Extern | None = None

    @property
    def loops(self) -> tuple[Loop, ...]:
        return tuple(loop for stage in self.stages for loop in stage.loops)

    def __str__(self) -> str:
        t = self.tiling
        head = f"kernel {self.name}: parallel={t.parallel} vector={t.vector} work={t.work / 1000:.1f}us"
        lines = [head + (f" transpose={t.transpose}" if t.transpose else "")
                 + (f"  # {self.where}" if self.where else "")]
        if self.local:
            lines.append(f"  local {', '.join(self.local)}")
        lines.append(f"  for {', '.join(map(str, self.par)) or '()'}:")
        if self.core is not None and self.core.outs[0] is not None:
            lines.append(
                f"    {self.core.outs[0].buffer}[0] = {str(self.core).split(' = ')[-1].split(' into ')[-1]}"
            )
        for stage in self.stages:
            pad = "    "
            if stage.inner:
                lines.append(f"    for {', '.join(map(str, stage.inner))}:")
                pad = "      "
            lines += [pad + str(loop).split(": ", 2)[2] for loop in stage.loops]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why two kernels were not fused, and the bytes of memory traffic a fusion would have saved."""

    a: str
    b: str
    reason: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.a} + {self.b}: {self.reason} ({self.bytes} bytes)"


def signature(kernel: Kernel, buffers: dict[str, Buffer]) -> tuple[str, tuple[str, ...]]:
    """(key, buffer names): kernels with equal keys differ in nothing but which buffers they touch, in this
    order.

    Locals take part in the key by shape. Offsets, strides and sizes are in the index expressions."""
    names: dict[str, int] = {}
    numbers: dict[Val, int] = {}
    lines = [str(kernel.tiling.vector), str(kernel.tiling.parallel), str(kernel.tiling.transpose),
             " ".join(map(str, kernel.par))]

    def name(buffer: str) -> str:
        if buffer not in names:
            names[buffer] = len(names)
            spec = buffers[buffer].spec
            lines.append(f"b{names[buffer]}: {spec.dtype}"
                         + (f"{list(spec.shape)}" if buffer in kernel.local else ""))
        return f"b{names[buffer]}"

    def number(v: Val) -> str:
        for x in walk(v):
            if x not in numbers:
                args = " ".join(str(numbers[a]) for a in x.args)
                lines.append(f"{len(numbers)}= {_head(x, name)} {args} {x.dtype}")
                numbers[x] = len(numbers)
        return str(numbers[v])

    if kernel.core is not None:
        lines.append(f"core {kernel.core.op} {_core_args(kernel.core, name)}")
    for stage in kernel.stages:
        lines.append("for " + " ".join(map(str, stage.inner)))
        for loop in stage.loops:
            pairs = " ".join(f"{v}={number(x)}" for v, x in loop.out.indirect)
            body = number(loop.body)
            lines.append(
                f"{name(loop.out.buffer)}[{loop.out.index} {pairs}] {loop.out.mode} {loop.combine} "
                f"{' '.join(map(str, loop.axes))} {body} {loop.store_dtype}"
            )
    return "\n".join(lines), tuple(names)


def _core_args(core: Extern, name: Callable[[str], str]) -> str:
    shown = [f"{name(a.buffer)}:{a.spec}" if isinstance(a, View) else repr(a) for a in core.args]
    return " ".join([*shown, *(f"= {name(v.buffer)}:{v.spec}" for v in core.outs if v is not None)])


def _head(x: Val, name: Callable[[str], str]) -> str:
    if isinstance(x, Load):
        bound = " ".join(str(v) for v, _ in x.indirect)
        return f"load {name(x.buffer)} {x.index} [{bound}] {'masked' if x.mask is not None else ''}"
    if isinstance(x, Const):
        return f"const {x.value!r}"
    if isinstance(x, Index):
        return f"index {x.sym}"
    if isinstance(x, Checked):
        return f"checked {x.lo} {x.hi} {x.error}"
    return f"apply {x.prim}" if isinstance(x, Apply) else repr(x)
