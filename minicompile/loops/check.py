"""Verifier of loops: every access in bounds and of the right dtype, everything stored before it is read,
nothing lost.

Takes `Loops`, raises CheckError("loops", step, reason). Its parts also serve the verifier of plans.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from ..errors import CheckError
from ..ir.forms import coefficient
from ..ir.prims import PRIMS
from ..ir.spec import TensorSpec
from ..ir.sym import Sym, bounds, evaluate, free_vars, substitute
from .nest import REDUCTIONS, SCANS, Buffer, Extern, Loop, View
from .val import Apply, Checked, Const, Index, Load, Val, walk

if TYPE_CHECKING:
    from .ir import Loops

ENUMERATED = 1 << 20  # buffers up to this size are verified element by element


def check_loops(loops: Loops) -> None:
    """Raises CheckError naming the first step that breaks a rule."""
    stage = "loops"
    stored: dict[str, str] = {b.name: "given" for b in loops.buffers.values()
                              if b.kind in ("input", "constant")}
    overwritten: dict[str, str] = {}
    read: dict[str, str] = {}
    for step in loops.steps:
        reads, writes = check_step(stage, step, loops.buffers, len(loops.errors))
        for name in reads:
            if name not in stored:
                raise CheckError(stage, step.name, f"reads {name} before anything is stored there")
            if name in loops.renewed:
                if name not in overwritten and name not in writes:
                    raise CheckError(stage, step.name, f"reads {name} before its new value is there")
            elif name in overwritten and not (name in writes and _reads_what_it_stores(step, name)):
                raise CheckError(stage, step.name,
                                 f"reads {name} after {overwritten[name]} has overwritten it")
            read.setdefault(name, step.name)
        for name in writes:
            kind = loops.buffers[name].kind
            if kind == "input":
                overwritten[name] = step.name
            elif name in read and name not in reads:
                raise CheckError(stage, step.name, f"stores to {name} after {read[name]} has read it")
            stored.setdefault(name, step.name)
    check_coverage(stage, loops.steps, loops.buffers)
    check_results(stage, loops, set(stored), set(overwritten))


def _reads_what_it_stores(step: Loop | Extern, name: str) -> bool:
    """Whether a loop reads of `name` only the element it stores: no other loop stores that one, too."""
    return isinstance(step, Loop) and not step.out.indirect and all(
        not x.indirect and x.index == step.out.index for x in step.loads() if x.buffer == name)


def check_results(stage: str, loops: Loops, stored: set[str], overwritten: set[str]) -> None:
    """Every result exists and has the promised geometry; every promised write-back happens."""
    for i, r in enumerate(loops.results):
        b = loops.buffers.get(r.buffer)
        if b is None or r.buffer not in stored:
            raise CheckError(stage, f"result {i}", f"{r.buffer} is returned but nothing is stored there")
        if r.alias:
            continue
        if b.kind not in ("output", "extern"):
            raise CheckError(stage, f"result {i}", f"{r.buffer} is {b.kind} memory, not the caller's")
        if (r.spec.shape, r.spec.dtype) != (b.spec.shape, b.spec.dtype) or not same_layout(r.spec, b.spec):
            raise CheckError(stage, f"result {i}", f"promised as {r.spec}, but {r.buffer} is {b.spec}")
    for name in loops.written:
        if name not in overwritten:
            raise CheckError(stage, name, "is never written, but the graph changes it")


def same_layout(a: TensorSpec, b: TensorSpec) -> bool:
    """Whether two specs of one shape place elements alike."""
    return a.numel == 0 or all(n == 1 or s == t for n, s, t in zip(a.shape, a.stride, b.stride))


def check_step(stage: str, step: Loop | Extern, buffers: Mapping[str, Buffer],
               errors: int) -> tuple[list[str], list[str]]:
    """Verifies one step by itself; gives the buffers it (reads, writes)."""
    for name in names_in(step):
        if name not in buffers:
            raise CheckError(stage, step.name, f"touches {name}, which does not exist")
    if isinstance(step, Extern):
        return _check_extern(stage, step, buffers)
    return _check_loop(stage, step, buffers, errors)


def names_in(step: Loop | Extern) -> list[str]:
    """Every buffer a step mentions."""
    if isinstance(step, Extern):
        return [v.buffer for v in (*step.views(), *(o for o in step.outs if o is not None))]
    return [*(x.buffer for x in step.loads()), step.out.buffer]


# ---- library kernels ----


def _check_extern(stage: str, step: Extern, buffers: Mapping[str, Buffer]) -> tuple[list[str], list[str]]:
    outs = [v for v in step.outs if v is not None]
    for v in (*step.views(), *outs):
        check_view(stage, step.name, v, buffers[v.buffer])
    for v in outs:
        kind = buffers[v.buffer].kind
        if (kind == "extern") != (step.into is None) or kind in ("input", "constant"):
            raise CheckError(stage, step.name, f"puts its result into {v.buffer}, which is {kind} memory")
    return [v.buffer for v in step.views()], [v.buffer for v in outs]


def check_view(stage: str, step: str, v: View, b: Buffer) -> None:
    """A view's dtype is its buffer's, and it stays inside."""
    if v.spec.dtype != b.spec.dtype:
        raise CheckError(stage, step, f"sees {v.buffer} as {v.spec.dtype}, which is {b.spec.dtype}")
    end = v.spec.offset + v.spec.storage_numel
    if v.spec.numel and (v.spec.offset < 0 or end > b.spec.storage_numel):
        raise CheckError(stage, step, f"window {v} reaches element {end - 1} of {b.spec.storage_numel}")


# ---- loops ----


def _check_loop(stage: str, loop: Loop, buffers: Mapping[str, Buffer], errors: int) -> tuple[list[str],
    list[str]]:
    def bad(reason: str) -> CheckError:
        return CheckError(stage, loop.name, reason)

    if loop.combine is not None and loop.combine not in (*REDUCTIONS, *SCANS):
        raise bad(f"unknown combine {loop.combine!r}")
    if bool(loop.reduce_axes) != (loop.combine is not None) or (loop.is_scan and len(loop.reduce_axes) != 1):
        raise bad(f"combine {loop.combine} over {len(loop.reduce_axes)} axes")
    for a in (*loop.axes, *loop.reduce_axes):
        if isinstance(a.size, int) and a.size > 0 and bounds(a.var) != (0, a.size - 1):
            raise bad(f"axis {a} has a variable with bounds {bounds(a.var)}")
    if any(a.size == 0 for a in (*loop.axes, *loop.reduce_axes)):
        return [x.buffer for x in loop.loads()], [loop.out.buffer]
    target = buffers[loop.out.buffer]
    if target.spec.dtype != loop.store_dtype:
        raise bad(f"stores {loop.store_dtype} into {target.name}, which is {target.spec.dtype}")
    if target.kind == "constant":
        raise bad(f"stores to the constant {target.name}")
    _check_vals(stage, loop, buffers, errors)
    inner = {a.var for a in (*loop.axes, *loop.reduce_axes)}
    free = {v for x in loop.values() for v in x.vars} - inner
    stray = free | (free_vars(loop.out.index) - {a.var for a in loop.store_axes} -
                    {v for v, _ in loop.out.indirect})
    if stray:
        raise bad(f"uses {', '.join(map(str, stray))}, over which it does not run")
    _in_bounds(bad, f"store to {target.name}", loop.out.index, target.spec.storage_numel)
    reads = [x.buffer for x in loop.loads()]
    if loop.is_ordered:
        reads.append(loop.out.buffer)
    return reads, [loop.out.buffer]


def _in_bounds(bad: object, what: str, index: Sym | int, size: int) -> None:
    lo, hi = bounds(index)
    if lo < 0 or hi >= size:
        raise bad(f"{what} reaches elements {lo} to {hi} of {size}")


def _check_vals(stage: str, loop: Loop, buffers: Mapping[str, Buffer], errors: int) -> None:
    def bad(reason: str) -> CheckError:
        return CheckError(stage, loop.name, reason)

    seen: set[Val] = set()
    for root in loop.values():
        for v in walk(root):
            if v in seen:
                continue
            seen.add(v)
            if isinstance(v, Load):
                spec = buffers[v.buffer].spec
                if v.dtype != spec.dtype:
                    raise bad(f"loads {v.dtype} from {v.buffer}, which is {spec.dtype}")
                if v.mask is None:
                    _in_bounds(bad, f"load of {v.buffer}", v.index, spec.storage_numel)
            elif isinstance(v, Apply):
                reason = apply_fault(v)
                if reason:
                    raise bad(reason)
            elif isinstance(v, Checked) and not 0 <= v.error < errors:
                raise bad(f"error number {v.error} of {errors}")
            elif not isinstance(v, (Const, Index, Checked)):
                raise bad(f"holds {type(v).__name__}, which is no Val")


def apply_fault(v: Apply) -> str | None:
    """What is wrong with the operands of a prim, if anything."""
    row = PRIMS.get(v.prim)
    if row is None or row.kind != "elementwise":
        return f"{v.prim} is no elementwise prim"
    if len(v.args) != row.arity:
        return f"{v.prim} takes {row.arity} operands, has {len(v.args)}"
    rest = v.args[1:] if v.prim == "where" else v.args
    if v.prim == "where" and v.args[0].dtype is not torch.bool:
        return "the condition of where is not bool"
    dtypes = {a.dtype for a in rest}
    if len(dtypes) > 1:
        return f"{v.prim} mixes {' and '.join(sorted(map(str, dtypes)))}"
    expect = {"bool": torch.bool, "same": rest[0].dtype}.get(row.result, v.dtype)
    return None if v.dtype == expect else f"{v.prim} of {rest[0].dtype} is said to be {v.dtype}"


# ---- coverage ----


def check_coverage(stage: str, steps: Iterable[Loop | Extern], buffers: Mapping[str, Buffer]) -> None:
    """Every element of a buffer we fill is stored exactly once (scatters excepted)."""
    fills: dict[str, list[Loop | Extern]] = defaultdict(list)
    for step in steps:
        if isinstance(step, Extern):
            for v in step.outs:
                if v is not None:
                    fills[v.buffer].append(step)
        elif not step.out.indirect and step.out.mode == "set":
            fills[step.out.buffer].append(step)
    for name, found in fills.items():
        b = buffers[name]
        loops = [s for s in found if isinstance(s, Loop)]
        if len(loops) < len(found):
            if len(found) > 1:
                raise CheckError(stage, found[1].name, f"stores to {name} again")
            continue
        _check_filled(stage, b, loops)


def _check_filled(stage: str, b: Buffer, loops: list[Loop]) -> None:
    counts = [_points(loop) for loop in loops]
    whole = b.spec.numel if b.kind == "input" else b.spec.storage_numel
    least = 0 if b.kind == "input" else whole           # an input has values: what is not stored stays
    if sum(counts) < least:
        raise CheckError(stage, loops[-1].name, f"fills {sum(counts)} of the {whole} elements of {b.name}")
    if len(loops) == 1 and least <= counts[0] <= whole and _injective(loops[0]):
        return
    if b.spec.storage_numel > ENUMERATED:
        if sum(counts) > whole and len(loops) == 1:
            raise CheckError(stage, loops[0].name,
                             f"stores {counts[0]} values into the {whole} elements of {b.name}")
        return
    hits = torch.zeros(b.spec.storage_numel, dtype=torch.int32)
    for loop in loops:
        if _points(loop):
            where = torch.as_tensor(_all_indices(loop)).reshape(-1)
            hits.scatter_add_(0, where.expand(_points(loop)) if where.numel() == 1 else where,
                              torch.ones(_points(loop), dtype=torch.int32))
    filled = int((hits > 0).sum())
    if filled < least:
        raise CheckError(stage, loops[-1].name, f"fills {filled} of the {whole} elements of {b.name}")


def _all_indices(loop: Loop) -> torch.Tensor:
    axes = loop.store_axes
    env = {a.var.name: torch.arange(int(a.size)).reshape([-1 if k == i else 1 for k in range(len(axes))])
           for i, a in enumerate(axes)}
    return torch.as_tensor(evaluate(loop.out.index, env)).expand([int(a.size) for a in axes])


def _points(loop: Loop) -> int:
    n = 1
    for a in loop.store_axes:
        n *= int(a.size)
    return n


def _injective(loop: Loop) -> bool:
    """Whether different points surely store to different elements."""
    reach = 0
    strides = [(coefficient(loop.out.index, a.var), int(a.size)) for a in loop.store_axes]
    if any(k is None for k, _ in strides):
        return False
    for k, n in sorted((abs(k or 0), n) for k, n in strides if n != 1):
        if k <= reach:
            return False
        reach += k * (n - 1)
    return not free_vars(substitute(loop.out.index, {a.var: 0 for a in loop.store_axes}))
