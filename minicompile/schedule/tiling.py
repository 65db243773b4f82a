"""Tiling: which axis runs over SIMD lanes, how many axes threads share, and what a kernel costs. Pure
functions.

Takes a kernel's axes and stages, serves `kernel`; the estimates are nanoseconds on one core of a current
machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from ..config import config
from ..ir.forms import coefficient
from ..ir.sym import Sym, Var, hint, same
from ..loops.axes import separate
from ..loops.nest import Axis, Buffer, Extern, Loop
from ..loops.val import Apply, Checked, Load, Val, walk
from .nest import Stage, Tiling
from .space import total

NS_PER_BYTE = 0.06  # one core streaming from memory
NS_PER_LANE = {"light": 0.03, "divide": 0.15, "function": 0.5}  # per element, vectorised for float32
SCALAR_FACTOR = 8.0  # without SIMD
NS_PER_MULTIPLY_ADD = 0.02
FORK_NS = 20_000  # below this much work a team of threads costs more than it gives
SHORT = 8  # points of an axis that fill no vector
SERIAL_VALS = frozenset("erfinv lgamma digamma nextafter".split())
DIVIDES = frozenset("div reciprocal sqrt rsqrt floordiv truncdiv remainder fmod".split())
LIGHT = frozenset(
    """neg abs sign floor ceil trunc round add sub mul maximum minimum eq ne lt le gt ge and
or xor not
    shl shr where cast bitcast isnan isinf signbit copysign""".split()
)


# types that are in registers as in memory
WHOLE = frozenset((torch.float32, torch.float64, torch.int32, torch.int64))


def prim_cost(prim: str) -> float:
    """Nanoseconds per element of one prim."""
    return NS_PER_LANE["light" if prim in LIGHT else "divide" if prim in DIVIDES else "function"]


def tile(
    par: tuple[Axis, ...],
    stages: Sequence[Stage],
    buffers: Mapping[str, Buffer],
    local: Mapping[str, Buffer],
    core: Extern | None = None,
) -> Tiling:
    """The tiling of a kernel; a core brings its own tiles and threads, and its epilogue runs along its
    columns."""
    if core is not None:
        work = cost(par, stages, buffers, local, True) + core_cost(core, hint(total(par)))
        return Tiling(par[-1].var.name, int(work >= FORK_NS), round(work, 1))
    vector = vector_axis(par, stages) if "vectors" not in config.disable_passes else None
    work = cost(par, stages, buffers, local, vector is not None)
    ordered = [loop for s in stages for loop in s.loops if loop.is_ordered]
    varies = any(isinstance(a.size, Sym) for a in (*par, *(a for s in stages for a in s.inner)))
    parallel = 0 if work < FORK_NS and not varies else parallel_depth(par)
    if ordered:
        parallel = min(parallel, int(shares(par, ordered)))
    return Tiling(vector, parallel, round(work, 1), transpose(par, stages, vector))


def shares(par: Sequence[Axis], ordered: Sequence[Loop]) -> bool:
    """Whether threads may share the first axis of loops that keep their order."""
    return bool(par) and all(separate(loop, par[0]) for loop in ordered)


def parallel_depth(par: Sequence[Axis]) -> int:
    """How many leading axes threads share: as few as give 64 or more pieces; the last one stays whole if it
    can."""
    pieces = 1
    for k, a in enumerate(par):
        if pieces >= 64:
            return k
        pieces *= hint(a.size)
    return len(par) if pieces > 1 else 0


def vector_axis(par: tuple[Axis, ...], stages: Sequence[Stage]) -> str | None:
    """See Tiling.vector: the candidate that more accesses walk with stride 1, unless something forbids
    lanes."""
    if any(may_collide(loop, par) for s in stages for loop in s.loops):
        return None
    rows = [s for s in stages if s.inner]
    scores: dict[str, float] = {}
    if par:
        scores[par[-1].var.name] = sum(lane_score(stage, par[-1].var) for stage in stages)
    if rows and (not par or any(hint(s.inner[-1].size) >= SHORT for s in rows)
                 or hint(par[-1].size) < SHORT):
        scores["inner"] = sum(lane_score(s, s.inner[-1].var) for s in rows)
    if not scores or all(v < 0 for v in scores.values()):
        return None
    return max(scores, key=lambda k: (scores[k], k == "inner"))


def may_collide(loop: Loop, par: tuple[Axis, ...]) -> bool:
    """Whether lanes may store to one place. Where it depends on memory, they may, unless the last axis runs
    along what is stored."""
    out = loop.out
    if not loop.is_ordered:
        return False
    last = par[-1].var if par else None
    return (last is None or loop.is_reduction or loop.store_dtype not in WHOLE
            or coefficient(out.index, last) != 1 or any(last in x.vars for _, x in out.indirect))


def lane_score(stage: Stage, v: Var) -> float:
    """+1 for each access that walks v with stride 1, -0.5 for each that jumps far or gathers, weighted by the
    inner extent."""
    points = hint(total(stage.inner))
    score = 0.0
    for s, indirect, times in _accesses(stage, points):
        k = coefficient(s, v)
        near = k is not None and abs(hint(k)) <= 4          # the same cache lines as without lanes
        gathers = any(v in place.vars for _, place in indirect)
        score += (-0.5 if gathers or not near else 1 if same(k, 1) else 0) * times
    return score


def _accesses(stage: Stage, points: int) -> Iterator[tuple[Sym | int, Sequence[tuple[Var, Val]], int]]:
    """(index, what of it is read from memory, how often per par point)."""
    seen: set[Val] = set()
    for loop in stage.loops:
        yield loop.out.index, loop.out.indirect, 1 if loop.is_reduction else points
        for x in loop.loads():
            if x not in seen:
                seen.add(x)
                yield x.index, x.indirect, points


def transpose(par: Sequence[Axis], stages: Sequence[Stage], vector: str | None) -> tuple[str, str] | None:
    """(axis the reads walk with stride 1, axis the writes do) of a flat kernel where these differ."""
    flat = len(par) > 1 and not any(s.inner for s in stages) and vector == par[-1].var.name
    if not flat or "tiles" in config.disable_passes:
        return None
    last = par[-1].var
    reads = [x.index for s in stages for loop in s.loops for x in loop.loads() if not x.indirect]
    for a in par[:-1]:
        if hint(a.size) >= 8 and hint(par[-1].size) >= 8:
            if any(same(coefficient(r, a.var), 1) and hint(coefficient(r, last) or 0) > 1 for r in reads):
                return a.var.name, last.name
    return None


def cost(
    par: Sequence[Axis],
    stages: Sequence[Stage],
    buffers: Mapping[str, Buffer],
    local: Mapping[str, Buffer],
    vectorised: bool,
) -> float:
    """Estimated nanoseconds on one core: arithmetic plus each buffer's traffic once."""
    rows = hint(total(par))
    compute = 0.0
    touched: set[str] = set()
    for stage in stages:
        seen: set[Val] = set()
        per_point = 0.0
        for loop in stage.loops:
            touched.add(loop.out.buffer)
            per_point += NS_PER_LANE["light"] if loop.combine else 0.0
            for v in loop.values():
                for x in walk(v):
                    if x not in seen:
                        seen.add(x)
                        per_point += _val_cost(x)
                        if isinstance(x, Load):
                            touched.add(x.buffer)
        compute += per_point * rows * hint(total(stage.inner))
    traffic = sum(
        min(hint(buffers[n].spec.nbytes), _most(stages, rows, buffers[n])) for n in touched if n not in local
    )
    return compute * (1.0 if vectorised else SCALAR_FACTOR) + traffic * NS_PER_BYTE


def core_cost(core: Extern, points: int) -> float:
    """Of a product or convolution: one multiply-add per point and element of a row of its second
    operand."""
    first, second = list(core.views())[:2]
    depth = (
        first.spec.shape[-1] if second.spec.ndim < 4 else second.spec.numel // max(second.spec.shape[0], 1)
    )
    return points * hint(depth) * NS_PER_MULTIPLY_ADD


def _most(stages: Sequence[Stage], rows: int, b: Buffer) -> int:
    """A kernel cannot move more of a buffer than one element per point and stage."""
    return sum(rows * hint(total(s.inner)) for s in stages) * b.spec.dtype.itemsize


def _val_cost(x: Val) -> float:
    if isinstance(x, Apply):
        wide = 2.0 if x.dtype in (torch.float64, torch.int64) else 1.0
        return prim_cost(x.prim) * wide * (SCALAR_FACTOR if x.prim in SERIAL_VALS else 1.0)
    if isinstance(x, Checked):
        return 0.1
    if isinstance(x, Load):
        return 0.5 if x.indirect else 0.02
    return 0.0
