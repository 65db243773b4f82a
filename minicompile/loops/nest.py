"""The parts of a loop program: buffers, loop nests, calls of library kernels, results.

Takes `val`; `ir.Loops` holds them, `schedule` groups them into kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import Where
from ..ir.forms import running
from ..ir.spec import TensorSpec
from ..ir.sym import Sym, Var
from .val import Load, Val, loads, show

REDUCTIONS = ("sum", "prod", "amax", "amin", "any", "all", "argmax", "argmin")
SCANS = ("scan_sum", "scan_prod", "scan_amax", "scan_amin")


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory a graph touches. `spec.offset` counts from the start of the tensor's *storage* for inputs and
    is 0 for all others.

    kind    "input"    the caller's tensor (`index` = which); also the target of write-backs
            "constant" a tensor the graph carries (`index` = which of `Loops.constants`)
            "temp"     ours, lives inside one call (the schedule places it in the arena, in a kernel's own
                       scratch, or nowhere)
            "output"   fresh memory handed to the caller (`index` = which output)
            "extern"   allocated by a library kernel that cannot write to given memory; freed after its last
                       use
    """

    name: str
    kind: str
    spec: TensorSpec
    index: int = -1


@dataclass(frozen=True, slots=True)
class Axis:
    """One loop variable running over range(size); `var` has bounds [0, size-1]."""

    var: Var
    size: Sym | int

    def __str__(self) -> str:
        return f"{self.var}<{self.size}"


def axis(name: str, size: Sym | int) -> Axis:
    """An axis with its variable."""
    return Axis(running(name, size), size)


@dataclass(frozen=True, slots=True)
class Store:
    """Where a loop puts its result: buffer[index] (mode "set"), or buffer[index] (op)= value for modes
    "add" "mul" "amin" "amax".

    With `indirect` pairs (as in Load) it is a scatter: points may meet an element twice, and then act in
    row-major order of the axes."""

    buffer: str
    index: Sym | int
    mode: str = "set"
    indirect: tuple[tuple[Var, Val], ...] = ()

    def __str__(self) -> str:
        tail = "".join(f"; {v}={show(x)}" for v, x in self.indirect)
        return f"{self.buffer}[{self.index}{tail}]"


@dataclass(frozen=True, slots=True)
class Loop:
    """for axes: [acc = identity; for reduce_axes: acc = combine(acc, body)]; out = acc

    combine None         elementwise: no reduce axes; one store of `body` per point of `axes`
            "sum" "prod" "amax" "amin" "any" "all"   a reduction over reduce_axes, accumulated in
                                                     `body.dtype`. amax/amin carry NaN.
            "argmax" "argmin"   position of the first extreme (NaN wins) in row-major order over
                                reduce_axes; result int64
            "scan_sum" "scan_prod" "scan_amax" "scan_amin"   inclusive scan along reduce_axes[0]; stores at
                                                             every point of axes+reduce_axes
    out      stored once per point of `axes` (scans: once per point of axes and reduce_axes)
    store_dtype   the stored dtype: the result is cast to it
    """

    name: str
    axes: tuple[Axis, ...]
    reduce_axes: tuple[Axis, ...]
    combine: str | None
    body: Val
    out: Store
    store_dtype: torch.dtype
    where: Where | None = None

    @property
    def is_scan(self) -> bool:
        return self.combine in SCANS

    @property
    def is_reduction(self) -> bool:
        return self.combine in REDUCTIONS

    @property
    def is_ordered(self) -> bool:
        """Whether one place may be stored to twice, or is added to: such points keep their order."""
        return bool(self.out.indirect) or self.out.mode != "set"

    @property
    def store_axes(self) -> tuple[Axis, ...]:
        """The axes `out.index` may use."""
        return self.axes + self.reduce_axes if self.is_scan else self.axes

    def values(self) -> tuple[Val, ...]:
        """Every expression of the loop: the body and the indices of a scatter."""
        return (self.body, *(x for _, x in self.out.indirect))

    def loads(self) -> Iterator[Load]:
        seen: set[Load] = set()
        for v in self.values():
            for x in loads(v):
                if x not in seen:
                    seen.add(x)
                    yield x

    def __str__(self) -> str:
        axes = ", ".join(map(str, self.axes)) or "()"
        sign = {"set": "=", "add": "+=", "mul": "*="}.get(self.out.mode, f"{self.out.mode}=")
        body = str(self.body)
        if self.combine:
            body = f"{self.combine}({', '.join(map(str, self.reduce_axes))})({body})"
        dtype = str(self.store_dtype).removeprefix("torch.")
        return f"{self.name}: for {axes}: {self.out} {sign} {body}  # {dtype}" + (f" | {self.where}"
            if self.where else "")


@dataclass(frozen=True, slots=True)
class View:
    """A strided window on a buffer: what a library kernel gets as an argument (no copy)."""

    buffer: str
    spec: TensorSpec  # offset counts from the buffer's own start

    def __str__(self) -> str:
        return f"{self.buffer}:{self.spec}"

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class Extern:
    """A call of a library kernel.

    op      the functional OpOverload; args and kwargs as in its schema, with View in place of tensors
            (nested in tuples for tensor lists)
    outs    the result views, one per returned tensor (None where the schema returns an undefined or unused
            one)
    into    the overload that writes results to given memory (its out arguments, in order, are `outs`);
            None: the kernel allocates, and every buffer of `outs` is of kind "extern"
    """

    name: str
    op: Any
    args: tuple
    kwargs: dict
    outs: tuple[View | None, ...]
    into: Any = None
    where: Where | None = None

    def views(self) -> Iterator[View]:
        """The tensors it reads, nested ones included."""
        return _views((self.args, self.kwargs))

    def __str__(self) -> str:
        shown = [str(a) for a in self.args] + [f"{k}={v}" for k, v in self.kwargs.items()]
        sign = "into" if self.into else "="
        return f"{self.name}: {', '.join(map(str, self.outs))} {sign} {self.op}({', '.join(shown)})"


def _views(arg: Any) -> Iterator[View]:
    if isinstance(arg, View):
        yield arg
    elif isinstance(arg, (tuple, list)):
        for a in arg:
            yield from _views(a)
    elif isinstance(arg, dict):
        yield from _views(tuple(arg.values()))


Step = Loop | Extern


@dataclass(frozen=True, slots=True)
class Result:
    """What the caller gets as output i.

    alias False   the whole "output" or "extern" buffer, fresh memory
    alias True    a window with `spec`'s geometry on the storage of an input buffer, or of the output or
                  extern buffer of another result; spec.offset counts from the start of that storage
    """

    buffer: str
    spec: TensorSpec
    alias: bool = False
    views: tuple = ()                       # as `ir.graph.Output` has them

    def __str__(self) -> str:
        return f"view of {self.buffer} as {self.spec}" if self.alias else self.buffer
