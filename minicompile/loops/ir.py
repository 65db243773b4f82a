"""The loop IR: buffers, scalar expressions over index variables, loop nests, and calls of library kernels.

Takes nothing; `loops.build` makes it from prims, `schedule` groups it into kernels, `codegen` prints it. Data, not closures: a `Val` is
hash-consed, so common subexpressions are one object, and printing, dependencies, cost, reference execution, C++ and Triton are folds.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import Where
from ..ir.spec import TensorSpec
from ..ir.sym import Sym, Var


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory a graph touches. `spec.offset` counts from the start of the tensor's *storage* for inputs and is 0 for all others.

    kind    "input"    the caller's tensor (`index` = which); also the target of write-backs
            "constant" a tensor the graph carries (`index` = which of `Loops.constants`)
            "temp"     ours, lives inside one call (the schedule places it in the arena, in a register, or nowhere)
            "output"   fresh memory handed to the caller (`index` = which output)
            "extern"   allocated by a library kernel that has no out variant; freed after its last use
    """

    name: str
    kind: str
    spec: TensorSpec
    index: int = -1


class Val:
    """A scalar expression of the loop variables. Subclasses are hash-consed: equal means identical."""

    __slots__ = ("__weakref__",)
    dtype: torch.dtype


# Val's subclasses (frozen, slots, interned by loops/ir.py's `intern`):
#
#   Load(buffer: str, index: Sym, dtype, indirect: tuple[(Var, Val), ...] = (), mask: Val | None = None)
#       the element at linear offset `index` (in elements, from the buffer's own start: its spec's offset is not included) of `buffer`.
#       Each `indirect` pair binds a variable of `index` to an integer Val (gather). Where `mask` (a bool Val) is false nothing is read
#       and the value is 0.
#   Const(value: bool | int | float | complex, dtype)
#   Index(sym: Sym, dtype)               an affine (or //, %) function of the loop variables as a number
#   Apply(prim: str, args: tuple[Val, ...], dtype)
#       an elementwise row of the prim table, by name ("add", "where", "cast", …). Operands of one call share a dtype, but for where's
#       first (bool) and cast's. Low-precision floats (bfloat16, float16, float8) are computed in float32: build.py inserts the casts
#       and rounds where eager rounds, so a backend never has to know.
#   Checked(value: Val, lo: int, hi: int, error: int)
#       an index Val that must lie in [lo, hi); outside, error number `error` (of Loops.errors) is raised after the call and the access is
#       clamped, so the process lives.


@dataclass(frozen=True, slots=True)
class Axis:
    """One loop variable running over range(size); `var` has bounds [0, size-1]."""

    var: Var
    size: Sym | int


@dataclass(frozen=True, slots=True)
class Store:
    """Where a loop puts its result: buffer[index] (mode "set"), or buffer[index] (op)= value for modes "add" "mul" "amin" "amax" and an
    `indirect` index (scatter; such loops may meet an element twice, and then run in index order)."""

    buffer: str
    index: Sym
    mode: str = "set"
    indirect: tuple = ()


@dataclass(frozen=True, slots=True)
class Loop:
    """for axes: [acc = identity; for reduce_axes: acc = combine(acc, body)]; out = acc

    combine None         elementwise: no reduce axes; one store of `body` per point of `axes`
            "sum" "prod" "amax" "amin" "any" "all"   a reduction over reduce_axes, accumulated in `body.dtype`. amax/amin carry NaN.
            "argmax" "argmin"   index of the first extreme (NaN wins) in row-major order over reduce_axes; result int64
            "scan_sum" "scan_prod" "scan_amax" "scan_amin"   inclusive scan along reduce_axes[0]; stores at every point of axes+reduce_axes
    out      stored once per point of `axes` (scans: once per point of axes and reduce_axes)
    epilogue_dtype   the stored dtype: the accumulator is cast to it (sum of bfloat16 accumulates float32, stores bfloat16)
    """

    name: str
    axes: tuple[Axis, ...]
    reduce_axes: tuple[Axis, ...]
    combine: str | None
    body: Any                      # Val
    out: Store
    store_dtype: torch.dtype
    where: Where | None = None


@dataclass(frozen=True, slots=True)
class View:
    """A strided window on a buffer: what a library kernel gets as an argument (no copy)."""

    buffer: str
    spec: TensorSpec               # offset counts from the buffer's own start


@dataclass(frozen=True, slots=True)
class Extern:
    """A call of a library kernel.

    op      the OpOverload; args and kwargs as in its schema, with View in place of tensors (nested in tuples for tensor lists)
    outs    the result views, one per returned tensor (None where the schema returns an undefined or unused one)
    """

    name: str
    op: Any
    args: tuple
    kwargs: dict
    outs: tuple[View | None, ...]
    where: Where | None = None


Step = Loop | Extern


@dataclass(frozen=True, slots=True)
class Result:
    """What the caller gets as output i: a whole "output" or "extern" buffer, or a window on an input's or another output's storage
    (spec.offset then counts from the start of that tensor's storage)."""

    buffer: str
    spec: TensorSpec
    alias: bool = False


@dataclass(frozen=True, slots=True)
class Loops:
    """The border object: buffers by name, steps in a legal order, results, constants, error texts.

    errors[i] = (exception type name, message) for Checked index number i.
    """

    buffers: dict[str, Buffer]
    steps: tuple[Step, ...]
    results: tuple[Result, ...]
    inputs: tuple[str, ...]
    constants: tuple[torch.Tensor, ...] = ()
    errors: tuple[tuple[str, str], ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
