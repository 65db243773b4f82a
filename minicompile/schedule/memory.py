"""Memory: when each buffer lives, where it lies, and when what a step is the last to need is let go.

Takes kernels in order, gives the `Plan`. Buffers that take each other's place (a result may be stored over an
operand that dies in the same kernel, if every element is read where it is written) are one block. Blocks are
placed from the largest to the smallest: in memory that is there anyway and not in use meanwhile, a result's
before it is first written or that of an input the graph owns after its last use, else at the lowest place in
the arena that is free for as long as they live (greedy by size: Pisarchyk & Lee, "Efficient memory management
for deep neural net inference", 2020).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..config import config
from ..ir.forms import less
from ..ir.spec import TensorSpec
from ..ir.sym import Sym, hint, same
from ..loops.ir import Buffer, Extern, Loops
from .liveness import ALIGN, Spans, lifetimes, may_replace, owned, peak_bytes, touched
from .nest import Kernel, Refused
from .plan import Plan

SMALL = 4096      # bytes of a block that is not worth looking for a lender
MOST_LENDERS = 8  # that are tried for one block


@dataclass(slots=True, eq=False)
class _Block:
    """Buffers of one size, one after the other in the same bytes.

    offers    results and owned inputs whose place it can take as well, or that can take its place
    host, at  whose memory it lies in ("": the arena's), and from which byte on"""

    names: list[str]
    size: Sym | int
    first: int
    last: int
    offers: list[str] = field(default_factory=list)
    host: str = ""
    at: Sym | int = 0


@dataclass(slots=True, eq=False)
class _Lender:
    """Memory that is there anyway, and idle from step `start` to `end`; it is there from step `first` to
    `last`."""

    name: str
    size: Sym | int
    start: int
    end: int
    first: int
    last: int


def used(spec: TensorSpec) -> Sym | int:
    """Bytes that a buffer takes."""
    n = spec.storage_numel * spec.dtype.itemsize
    return max(n, 1) if isinstance(n, int) else n


def aligned(n: Sym | int) -> Sym | int:
    return (n + (ALIGN - 1)) // ALIGN * ALIGN


def plan_memory(loops: Loops, steps: Sequence[Kernel | Extern], buffers: dict[str, Buffer],
                refused: tuple[Refused, ...] = (), teams: tuple[range, ...] = (), lend: bool = False) -> Plan:
    """The Plan: places, frees, and only the buffers still in use.

    lend    whether temporaries may lie in results and owned inputs. They do where that needs less in all."""
    shown, own = {r.buffer for r in loops.results}, owned(loops)
    spans, share = lifetimes(steps, shown, teams), "memory" not in config.disable_passes
    kept = {n: b for n, b in buffers.items() if n in spans or b.kind in ("input", "output", "constant")
            or n in shown}
    ends = {n: last for n, (_, last) in spans.items()
            if n in own or buffers[n].kind == "extern" and n not in shown}

    def plan(lend: bool) -> Plan:
        blocks = _blocks(steps, buffers, spans, own, share)
        top = _place(blocks, _lenders(buffers, spans, own, len(steps)) if lend else [],
                     _live(buffers, spans, own, len(steps)), share)
        frees: dict[int, list[str]] = defaultdict(list)
        for n, last in ends.items():
            frees[max(last, *(b.last for b in blocks if b.host == n), -1)].append(n)
        return Plan(loops, tuple(steps), kept, {n: b.at for b in blocks for n in b.names}, top,
                    {i: tuple(names) for i, names in sorted(frees.items())}, refused, teams,
                    {n: b.host for b in blocks if b.host for n in b.names})
    return min([plan(False), *([plan(True)] if lend and share else [])], key=peak_bytes)


def _lenders(buffers: dict[str, Buffer], spans: Spans, own: frozenset[str], end: int) -> list[_Lender]:
    """Results, whose memory is idle until they are written, and owned inputs, whose is once they are read."""
    return [_Lender(n, used(buffers[n].spec), *((last + 1, end, 0, last) if n in own else
                                                (0, first - 1, first, end)))
            for n, (first, last) in spans.items() if n in own or buffers[n].kind == "output"]


def _live(buffers: dict[str, Buffer], spans: Spans, own: frozenset[str], end: int) -> list[int]:
    """Bytes that are there outside of the arena, step by step."""
    live = [0] * (end + 1)
    for n, (first, last) in spans.items():
        if n in own or buffers[n].kind in ("output", "extern"):
            _add(live, 0 if n in own else first, last, hint(used(buffers[n].spec)))
    return live


def _blocks(steps: Sequence[Kernel | Extern], buffers: dict[str, Buffer], spans: Spans, own: frozenset[str],
            share: bool) -> list[_Block]:
    """The blocks that temporaries make."""
    local = {n for s in steps if isinstance(s, Kernel) for n in s.local}
    blocks: dict[str, _Block] = {}
    ends: dict[int, list[str]] = defaultdict(list)
    for n, (_, last) in spans.items():
        if n in own or buffers[n].kind == "temp" and n not in local:
            ends[last].append(n)
    for i, step in enumerate(steps):
        dying = ends[i] if share and isinstance(step, Kernel) else []
        for n in touched(step)[1]:
            b = buffers[n]
            if n in local or b.kind not in ("temp", "output") or n in blocks or spans[n][0] != i:
                continue
            old = next((d for d in dying if b.spec.dtype.itemsize == buffers[d].spec.dtype.itemsize
                        and same(used(buffers[d].spec), used(b.spec)) and "temp" in (b.kind, buffers[d].kind)
                        and may_replace(step, d, n)), "")  # type: ignore[arg-type]
            dying = [d for d in dying if d != old]
            if b.kind == "output":
                if old:
                    blocks[old].offers.append(n)
            elif old in blocks:
                blocks[n] = blocks[old]
                blocks[n].names.append(n)
                blocks[n].last = spans[n][1]
            else:
                blocks[n] = _Block([n], used(b.spec), i, spans[n][1], [old] if old else [])
    return list(dict.fromkeys(blocks.values()))


def _place(blocks: list[_Block], lenders: list[_Lender], live: list[int], share: bool) -> Sym | int:
    """Gives every block its place: the one by which the most that is there at once grows least; the bytes of
    the arena. `live` are the bytes outside of it, step by step."""
    there: dict[str, list[_Block]] = defaultdict(list)
    top: Sym | int = 0
    for b in sorted(blocks, key=lambda b: (-hint(b.size), b.first)):
        size = aligned(b.size)
        fits = [at for at in _gaps(there[""], b) if less(top, at + size) is False
                or less(at + size, top) is False and less(top, at) is False] if share else []
        b.at = fits[0] if fits else top
        higher = top if less(top, b.at + size) is False else b.at + size
        grown, best = hint(higher) + max(live), None
        if hint(higher) > hint(top) and hint(b.size) >= SMALL:
            for x in _lending(b, lenders)[:MOST_LENDERS]:
                idle = x.start <= b.first and b.last <= x.end
                at = next((at for at in _gaps(there[x.name], b)[:None if idle else 1]
                           if less(x.size, at + b.size) is False and (idle or at == 0)), None)
                longer = live[b.first:x.first] + live[x.last + 1:b.last + 1]
                least = hint(top) + max(max(live), max(longer, default=0) + hint(x.size))
                if at is not None and least < grown:
                    grown, best, place = least, x, at
        if best is None:
            top = higher
        else:
            b.host, b.at = best.name, place
            _add(live, b.first, best.first - 1, hint(best.size))
            _add(live, best.last + 1, b.last, hint(best.size))
            best.first, best.last = min(best.first, b.first), max(best.last, b.last)
        there[b.host].append(b)
    return top


def _lending(b: _Block, lenders: list[_Lender]) -> list[_Lender]:
    """Those that are large enough and idle while b lives, from the smallest; first whose place it takes."""
    found = [x for x in lenders if x.name in b.offers or x.start <= b.first and b.last <= x.end
             and less(x.size, b.size) is False]
    return sorted(found, key=lambda x: (x.name not in b.offers, hint(x.size)))


def _add(live: list[int], first: int, last: int, n: int) -> None:
    for i in range(first, min(last + 1, len(live))):
        live[i] += n


def _gaps(others: list[_Block], b: _Block) -> list[Sym | int]:
    """Where b could start, from below, so that it meets none of those that live when it does."""
    near = [o for o in others if o.first <= b.last and b.first <= o.last]
    return [at for at in sorted({0, *(o.at + aligned(o.size) for o in near)}, key=hint)
            if all(less(at, o.at + o.size) is False or less(o.at, at + b.size) is False for o in near)]
