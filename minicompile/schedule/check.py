"""Verifier of plans: the loops' own rules, in the new order, plus stages, locals, the arena and frees.

Takes a `Plan`, raises CheckError("plan", kernel or buffer, reason).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from ..errors import CheckError
from ..ir.sym import free_vars
from ..loops.check import check_coverage, check_loops, check_results, check_step, check_view, names_in
from ..loops.nest import Extern, Loop
from ..loops.val import Load
from .cores import core_axes, why_not_core
from .deps import is_random
from .legal import Placing
from .liveness import ALIGN, lifetimes, may_replace, owned, touched
from .space import Part
from .teams import why_not_team
from .tiling import may_collide, shares

if TYPE_CHECKING:
    from .nest import Kernel
    from .plan import Plan

_Place = tuple[int, int, int, int, str]      # bytes from, to; steps from, to; whose
STAGE = "plan"


def check_plan(plan: Plan) -> None:
    """Raises CheckError naming the kernel or buffer that breaks a rule."""
    check_loops(plan.loops)
    externs = [s for s in plan.loops.steps if isinstance(s, Extern)]
    mine = [c for s in plan.steps if (c := s if isinstance(s, Extern) else s.core) is not None]
    names = [
        s.name for s in mine
    ]  # one that nobody needs may go: a lost one shows as a read before any store
    if len(set(names)) < len(names) or not set(names) <= {s.name for s in externs}:
        raise CheckError(STAGE, "externs", "library calls were doubled, or are new")
    if [s.name for s in mine if is_random(s)] != [s.name for s in externs if is_random(s)]:
        raise CheckError(STAGE, "externs", "calls that draw random numbers changed their order")
    for step in plan.steps:
        if not isinstance(step, Extern):
            check_kernel(step, plan)
    _check_order(plan)
    _check_teams(plan)
    _check_memory(plan)
    _check_frees(plan)


# ---- one kernel ----


def check_kernel(kernel: Kernel, plan: Plan) -> None:
    """Axes, stages and locals of one kernel."""

    def bad(reason: str) -> CheckError:
        return CheckError(STAGE, kernel.name, reason)

    par_vars = {a.var for a in kernel.par}
    names = {a.var.name for a in kernel.par} | {"inner"}
    if kernel.tiling.vector is not None and kernel.tiling.vector not in names:
        raise bad(f"vector axis {kernel.tiling.vector} does not exist")
    if not 0 <= kernel.tiling.parallel <= len(kernel.par):
        raise bad(f"shares {kernel.tiling.parallel} of {len(kernel.par)} axes")
    if kernel.core is not None:
        _check_core(kernel, plan)
    placing = Placing(kernel.par)
    for number, stage in enumerate(kernel.stages):
        earlier: set[str] = set()
        for loop in stage.loops:
            axes = kernel.par + (() if loop.combine else stage.inner)
            if loop.axes != axes or loop.reduce_axes != (stage.inner if loop.combine else ()):
                raise bad(f"{loop.name} does not run over the kernel's axes")
            check_step(STAGE, loop, plan.buffers, len(plan.loops.errors))
            part = Part(loop, stage.inner, number)
            need = placing.first_stage(part)
            if isinstance(need, str):
                raise bad(need)
            if need > number or any(x.buffer in earlier for x in loop.loads()):
                raise bad(f"{loop.name} needs what is complete only in a later stage")
            placing.put(part, number)
            earlier.add(loop.out.buffer)
            _check_locals(kernel, loop, par_vars)
    ordered = [x for x in kernel.loops if x.is_ordered]
    depth, lanes = kernel.tiling.parallel, kernel.tiling.vector
    if ordered and (depth > 1 or depth and not shares(kernel.par, ordered)
                    or lanes and any(may_collide(x, kernel.par) for x in ordered)):
        raise bad("a scatter must run in order")
    stored = {v.buffer for v in kernel.core.outs if v is not None} if kernel.core else set()
    for loop in kernel.loops:
        for x in loop.loads():
            if x.buffer in kernel.local and x.buffer not in stored:
                raise bad(f"{loop.name} reads {x.buffer} before the kernel has computed it")
        stored.add(loop.out.buffer)


def _check_core(kernel: Kernel, plan: Plan) -> None:
    """One register, one epilogue over the core's own points, which leaves the core's operands alone."""

    def bad(reason: str) -> CheckError:
        return CheckError(STAGE, kernel.name, reason)

    core = kernel.core
    out = core.outs[0] if core and len(core.outs) == 1 else None
    if core is None or out is None or why_not_core(core):
        raise bad("has a core that is none")
    if out.buffer not in kernel.local or plan.buffers[out.buffer].spec.shape != ():
        raise bad(f"the core's value {out.buffer} is not a register")
    if tuple(a.size for a in kernel.par) != tuple(a.size for a in core_axes(out.spec)[0]):
        raise bad("does not run over the core's points")
    if len(kernel.stages) != 1 or kernel.stages[0].inner:
        raise bad("an epilogue is one stage without inner axes")
    operands = {v.buffer for v in core.views()}
    for v in core.views():
        check_view(STAGE, kernel.name, v, plan.buffers[v.buffer])
    if any(loop.out.buffer in operands for loop in kernel.loops):
        raise bad("overwrites the core's operands")


def _check_locals(kernel: Kernel, loop: Loop, par: set) -> None:
    accesses: list[tuple[str, object]] = [(loop.out.buffer, loop.out.index)]
    accesses += [(x.buffer, x.index) for x in loop.loads() if isinstance(x, Load)]
    for name, index in accesses:
        if name in kernel.local and free_vars(index) & par:
            raise CheckError(STAGE, kernel.name,
                             f"{name} is local to a point but indexed by the kernel's own axes")


# ---- order ----


def _check_order(plan: Plan) -> None:
    stored = {b.name for b in plan.buffers.values() if b.kind in ("input", "constant")}
    overwritten: set[str] = set()
    renewed = plan.loops.renewed          # read only once they have been overwritten
    read: dict[str, str] = {}
    local: dict[str, str] = {}
    for step in plan.steps:
        mine = set() if isinstance(step, Extern) else set(step.local)
        loops = [step] if isinstance(step, Extern) else list(step.loops)
        if not isinstance(step, Extern) and step.core is not None:
            stored |= {v.buffer for v in step.core.outs if v is not None}
            for v in step.core.views():
                if v.buffer not in stored or (v.buffer in overwritten) != (v.buffer in renewed):
                    raise CheckError(STAGE, step.name, f"reads {v.buffer}, which is not there (any more)")
                read[v.buffer] = step.name
        inside = {n for s in loops for n in touched_by(s)[1]}
        for s in loops:
            for name in names_in(s):
                if name not in plan.buffers:
                    raise CheckError(STAGE, step.name, f"touches {name}, which does not exist")
                if name in mine and local.setdefault(name, step.name) != step.name:
                    raise CheckError(STAGE, step.name, f"{name} is local to {local[name]}")
                if name not in mine and name in local:
                    raise CheckError(STAGE, step.name, f"{name} is local to {local[name]}")
            reads, writes = check_step(STAGE, s, plan.buffers, len(plan.loops.errors))
            for name in reads:
                if name not in stored:
                    raise CheckError(STAGE, step.name, f"reads {name} before anything is stored there")
                if (name in overwritten) != (name in renewed) and name not in inside:
                    when = "before its new value is there" if name in renewed else "after it was overwritten"
                    raise CheckError(STAGE, step.name, f"reads {name} {when}")
            for name in writes:
                if plan.buffers[name].kind == "input":
                    overwritten.add(name)
                elif name in read and name not in reads:
                    raise CheckError(STAGE, step.name, f"stores to {name} after {read[name]} has read it")
                stored.add(name)
            read.update((name, step.name) for name in reads)
    everything = [s for step in plan.steps for s in ([step] if isinstance(step, Extern) else step.loops)]
    check_coverage(STAGE, [s for s in everything if isinstance(s, Extern) or s.out.buffer not in local],
                   plan.buffers)
    check_results(STAGE, plan.loops, stored, overwritten)


def touched_by(s: Loop | Extern) -> tuple[list[str], list[str]]:
    """(buffers read, buffers written) of a loop or a library call."""
    if isinstance(s, Extern):
        return [v.buffer for v in s.views()], [v.buffer for v in s.outs if v is not None]
    return [x.buffer for x in s.loads()], [s.out.buffer]


def _check_teams(plan: Plan) -> None:
    """Kernels that run at the same time touch nothing that one of them stores to, and no memory changes
    hands."""
    for team in plan.teams:
        stored: set[str] = set()
        used: set[str] = set()
        for step in (plan.steps[i] for i in team):
            reads, writes = map(set, touched(step))
            needed = "others need what it stores" if stored & (reads | writes) or used & writes else None
            if reason := why_not_team(step, plan.buffers) or needed:
                raise CheckError(STAGE, step.name, f"runs in a team: {reason}")
            stored |= writes
            used |= reads


# ---- memory ----


def _check_memory(plan: Plan) -> None:
    """Every temporary has a place, in which nothing else lives when it does: not the result or owned input
    whose memory that is, either."""
    local = {n for s in plan.steps if not isinstance(s, Extern) for n in s.local}
    spans, own = lifetimes(plan.steps, {r.buffer for r in plan.loops.results}, plan.teams), owned(plan.loops)
    spans.update((n, (-1, spans[n][1] if n in spans else -1)) for n in own)
    there: dict[str, list[_Place]] = defaultdict(list)
    for name, (first, last) in spans.items():
        b, host = plan.buffers[name], plan.hosts.get(name, "")
        end = b.spec.storage_numel * b.spec.dtype.itemsize
        if name in plan.hosts.values():
            if b.kind != "output" and name not in own:
                raise CheckError(STAGE, name, "lends its memory, but is not the plan's to lend")
            there[name].append((0, end, first, last, name))
        if b.kind != "temp" or name in local:
            continue
        if name not in plan.arena:
            raise CheckError(STAGE, name, "has no memory")
        start = plan.arena[name]
        spec = plan.buffers[host].spec if host else None
        top = spec.storage_numel * spec.dtype.itemsize if spec else plan.arena_bytes
        if start % ALIGN or start < 0 or start + end > top:
            raise CheckError(STAGE, name, f"lies at bytes {start} to {start + end} of {top}")
        there[host].append((start, start + end, first, last, name))
    for blocks in there.values():
        blocks.sort()
        for i, (start, end, first, last, name) in enumerate(blocks):
            for start2, end2, first2, last2, other in blocks[i + 1 :]:
                if start2 >= end:
                    break
                if first2 <= last and first <= last2 and end > start and end2 > start2:
                    _check_shared(plan, (name, first, last, start), (other, first2, last2, start2))


def _check_shared(plan: Plan, a: tuple[str, int, int, int], b: tuple[str, int, int, int]) -> None:
    """Two buffers share memory while both live: only where one replaces the other, element by element."""
    old, new = (a, b) if a[2] <= b[1] else (b, a)
    step = plan.steps[new[1]]
    if (old[2] == new[1] and old[3] == new[3] and not isinstance(step, Extern) and old[1] < new[1]
        and may_replace(step, old[0], new[0]) and not any(new[1] in team for team in plan.teams)
        and plan.buffers[old[0]].spec.dtype.itemsize == plan.buffers[new[0]].spec.dtype.itemsize):
        return
    raise CheckError(STAGE, new[0], f"shares memory with {old[0]} while both are in use")


def _check_frees(plan: Plan) -> None:
    shown, own = {r.buffer for r in plan.loops.results}, owned(plan.loops)
    spans = lifetimes(plan.steps, shown, plan.teams)
    for guest, host in plan.hosts.items():
        spans[host] = spans[host][0], max(spans[host][1], spans[guest][1])
    freed: dict[str, int] = {}
    for i, names in plan.frees.items():
        for name in names:
            if name in freed or plan.buffers[name].kind != "extern" and name not in own or name in shown:
                raise CheckError(STAGE, name, "is freed, but is not the plan's to free (again)")
            if spans[name][1] > i:
                raise CheckError(STAGE, name, f"is freed after step {i}, but read by step {spans[name][1]}")
            freed[name] = i
    for name in spans:
        if plan.buffers[name].kind == "extern" and name not in shown and name not in freed:
            raise CheckError(STAGE, name, "is never freed")
