"""One group of loops made into a Kernel: values passed on in place, rows kept in scratch, axes merged and
named.

Takes a legal group and its stages from `fuse`; gives what an emitter prints, with `tiling` attached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..ir.forms import coefficient
from ..ir.spec import TensorSpec
from ..ir.sym import Sym, Var, hint, same
from ..loops.axes import rename, syms
from ..loops.nest import Axis, Buffer, Store, axis
from ..loops.val import Apply, Load, Val, load, rewrite, walk
from .nest import Kernel, Stage
from .space import Group, Part, row_part, run_of, total
from .tiling import SHORT, lane_score, tile

CHEAP_PRIMS, CHEAP_LOADS = 2, 2
LONG = 32  # points of an axis that one of fewer than SHORT points gives way to


class Cyclic(Exception):
    """The loops of a stage overwrite what the others still read, whichever goes first."""


def recompute_or_scratch(body: Val) -> tuple[str, str]:
    """How a value reaches a later stage of its row: ("recompute" | "scratch", reason)."""
    prims = [x for x in walk(body) if isinstance(x, Apply)]
    reads = sum(isinstance(x, Load) for x in walk(body))
    heavy = [x.prim for x in prims if x.prim not in LIGHT]
    if heavy:
        return "scratch", f"{heavy[0]} is not computed twice"
    if len(prims) > CHEAP_PRIMS or reads > CHEAP_LOADS:
        return "scratch", f"{len(prims)} prims on {reads} loads cost more than one load"
    return "recompute", f"{len(prims)} cheap prims on {reads} loads that are in cache"


LIGHT = frozenset("add sub mul neg abs maximum minimum where and or xor not eq ne lt le gt ge cast".split())


def finish(group: Group, placed: Sequence[int], buffers: dict[str, Buffer], private: set[str],
           name: str) -> tuple[Kernel, dict[str, Buffer], list[str]]:
    """(kernel, buffers whose spec changed because they are local now, buffers that need no memory at all).
    Raises as `stages_of`."""
    stages, local, gone = stages_of(group, placed, buffers, private)
    par = group.par
    if group.core is None:
        par, stages = lanes_last(*merge_axes(group.par, stages))
    words = list(dict.fromkeys(loop.name.rsplit("_", 1)[0] for stage in stages for loop in stage.loops))
    kernel = Kernel(name, par, tuple(stages), tuple(local),
                    tile(par, stages, {**buffers, **local}, local, group.core), ", ".join(words[:6]),
                    group.core)
    return kernel, local, gone


def stages_of(group: Group, placed: Sequence[int], buffers: dict[str, Buffer],
              private: set[str]) -> tuple[list[Stage], dict[str, Buffer], list[str]]:
    """(the kernel's stages over the group's axes, and the rest that `finish` gives).

    Raises Cyclic where the stores of a stage cannot be put behind the loads of what they overwrite."""
    parts, local = _pass_on(group, placed, buffers, private)
    if group.core is not None and group.core.outs[0] is not None:
        local[group.core.outs[0].buffer] = buffers[group.core.outs[0].buffer]
    used = {x.buffer for _, p in parts for x in p.loop.loads()}
    parts = [(s, p) for s, p in parts if p.loop.out.buffer not in private or p.loop.out.buffer in used]
    left = {p.loop.out.buffer for _, p in parts}
    gone = sorted(private - left)
    local = {n: b for n, b in local.items() if n in left or n in used - private}
    stages = []
    for number in sorted({s for s, _ in parts}):
        mine = [p for s, p in parts if s == number]
        stages.append(Stage(mine[0].inner, tuple(p.loop for p in _readers_first(mine))))
    return stages, local, gone


@dataclass(frozen=True, slots=True)
class _Source:
    """A value of the kernel: which part computes it, in which stage; if private, its place in a row."""

    part: Part
    stage: int
    body: Val
    place: tuple[Sym | int, Sym | int]  # (position in the row as stored, its length)
    lo: Sym | int
    step: Sym | int
    even: bool  # the row is evenly spaced: any element of it can be addressed


def _pass_on(group: Group, placed: Sequence[int], buffers: dict[str, Buffer],
             private: set[str]) -> tuple[list[tuple[int, Part]], dict[str, Buffer]]:
    """Replaces loads of private values by the value itself (same stage, or cheap) or by a load from row
    scratch."""
    par = frozenset(a.var for a in group.par)
    overwritten = frozenset(p.loop.out.buffer for p in group.parts) - private
    sources: dict[str, _Source] = {}
    local: dict[str, Buffer] = {}
    out: list[tuple[int, Part]] = []
    for p, s in zip(group.parts, placed):

        def change(v: Val, p: Part = p, s: int = s) -> Val | None:
            source = sources.get(v.buffer) if isinstance(v, Load) else None
            if source is None:
                return None
            return _arrives(v, source, p, s, par, private, overwritten)

        body = rewrite(p.loop.body, {}, change)
        loop = replace(p.loop, body=body)
        target = loop.out.buffer
        source = _source(p, s, body, par, target in private)
        sources[target] = source
        if target in private:
            n = source.place[1]
            shape = () if isinstance(n, int) and n <= 1 else (n,)
            spec = TensorSpec.contiguous(buffers[target].spec.dtype, shape)
            local[target] = replace(buffers[target], spec=spec)
            loop = replace(loop, out=Store(target, source.place[0]))
        out.append((s, replace(p, loop=loop)))
    return out, local


def _source(p: Part, stage: int, body: Val, par: frozenset[Var], private: bool) -> _Source:
    split = row_part(p.loop.out.index, par)
    if split is None or not private:
        return _Source(p, stage, body, (0, 1), 0, 1, False)
    rest = split[1]
    run = run_of(rest, p.inner)
    if run is not None:
        shifted = rest - run.start
        return _Source(p, stage, body, (shifted // run.step, run.n), run.start, run.step, True)
    place: Sym | int = 0
    for a in p.inner:
        place = place * a.size + a.var
    return _Source(p, stage, body, (place, total(p.inner)), 0, 1, False)


def _arrives(x: Load, source: _Source, p: Part, stage: int, par: frozenset[Var], private: set[str],
             overwritten: frozenset[str]) -> Val:
    """What stands for the load of a value of the same kernel in part p."""
    w = source.part
    same_point = same(x.index, w.loop.out.index) and not x.indirect and x.mask is None
    if same_point and w.loop.combine is None and w.inner == p.inner:
        cheap = x.buffer in private and recompute_or_scratch(source.body)[0] == "recompute"
        if stage == source.stage or (cheap and _lasting(source.body, overwritten)):
            return source.body
    if x.buffer not in private:
        return x
    if not source.even:
        return load(x.buffer, source.place[0], x.dtype)
    split = row_part(x.index, par)
    if split is None:
        raise AssertionError(x)
    return load(x.buffer, (split[1] - source.lo) // source.step, x.dtype, x.indirect, x.mask)


def _lasting(body: Val, overwritten: frozenset[str]) -> bool:
    """Whether the value can be computed again in a later stage: what it reads is still there, and no index
    is checked twice."""
    return all(x.buffer not in overwritten if isinstance(x, Load) else isinstance(x, Apply) or not x.args
               for x in walk(body))


def _readers_first(parts: list[Part]) -> list[Part]:
    """Program order, but a loop that overwrites a buffer comes after those that load it. Raises Cyclic."""
    loads = [{x.buffer for x in p.loop.loads()} for p in parts]
    if not any(p.loop.out.buffer in reads for p in parts for q, reads in zip(parts, loads) if q is not p):
        return parts
    left = list(range(len(parts)))
    out: list[Part] = []
    while left:
        free = next((i for i in left if not any(parts[i].loop.out.buffer in loads[j] for j in left
                                                if j != i)), None)
        if free is None:
            raise Cyclic
        left.remove(free)
        out.append(parts[free])
    return out


# ---- axes ----


def merge_axes(par: tuple[Axis, ...], stages: list[Stage]) -> tuple[tuple[Axis, ...], list[Stage]]:
    """Neighbouring axes become one where every index walks them as one; the rest is named i0, i1, … and j0,
    j1, …."""
    loops = [loop for stage in stages for loop in stage.loops]
    used = {s for loop in loops for s in syms(loop) if not isinstance(s, int)}
    env: dict[Var, Sym | int] = {}
    new_par = _merged(par, used, "i", env)
    out = []
    for stage in stages:
        own = {s for loop in stage.loops for s in syms(loop) if not isinstance(s, int)}
        inner_env = dict(env)
        inner = _merged(stage.inner, own, "j", inner_env)
        memo: dict[Val, Val] = {}
        changed = []
        for loop in stage.loops:
            axes = new_par if loop.combine else new_par + inner
            changed.append(rename(loop, inner_env, axes, inner if loop.combine else (), memo))
        out.append(Stage(inner, tuple(changed)))
    return new_par, out


def lanes_last(par: tuple[Axis, ...], stages: list[Stage]) -> tuple[tuple[Axis, ...], list[Stage]]:
    """The same with the axis last that lanes should run along, where the last one is too short for them and
    points have no order."""
    loops = [loop for stage in stages for loop in stage.loops]
    if not par or hint(par[-1].size) >= SHORT or any(s.inner for s in stages) or any(
            loop.is_ordered for loop in loops):
        return par, stages
    long = [a for a in par if hint(a.size) >= LONG and all(lane_score(s, a.var) > 0 for s in stages)]
    if not long:
        return par, stages
    best = max(long, key=lambda a: sum(lane_score(s, a.var) for s in stages))
    par = (*(a for a in par if a is not best), best)
    return par, [Stage((), tuple(replace(loop, axes=par) for loop in s.loops)) for s in stages]


def _merged(axes: tuple[Axis, ...], used: set[Sym], letter: str, env: dict[Var, Sym | int]) -> tuple[Axis,
        ...]:
    """The fewest axes that do; `env` learns what the old variables become.

    Where outer's coefficient is always size(inner) times inner's, c*outer + k*inner is k*merged: so outer
    becomes 0 and inner becomes the merged variable."""
    runs: list[list[Axis]] = []
    env.update({a.var: 0 for a in axes if same(a.size, 1)})
    for a in (a for a in axes if not same(a.size, 1)):
        if runs and all(_walks_as_one(s, runs[-1][-1], a) for s in used):
            runs[-1].append(a)
        else:
            runs.append([a])
    out = []
    for k, run in enumerate(runs):
        merged = axis(f"{letter}{k}", total(run))
        out.append(merged)
        for a in run[:-1]:
            env[a.var] = 0
        env[run[-1].var] = merged.var
    return tuple(out)


def _walks_as_one(s: Sym, outer: Axis, inner: Axis) -> bool:
    if outer.var not in s.vars and inner.var not in s.vars:
        return True
    a, b = coefficient(s, outer.var), coefficient(s, inner.var)
    return a is not None and b is not None and same(a, b * inner.size)
