"""Dependencies between the steps of `Loops`: who must run before whom.

Takes steps, serves `fuse`, `memory` and the verifiers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from ..loops.ir import Checked, Extern, Loops, Step, walk


def reads_of(step: Step) -> list[str]:
    """Buffers a step loads from. A scatter or an accumulating store reads what it stores to."""
    if isinstance(step, Extern):
        return list(dict.fromkeys(v.buffer for v in step.views()))
    names = [x.buffer for x in step.loads()]
    if step.out.mode != "set" or step.out.indirect:
        names.append(step.out.buffer)
    return list(dict.fromkeys(names))


def writes_of(step: Step) -> list[str]:
    """Buffers a step stores to."""
    if isinstance(step, Extern):
        return [v.buffer for v in step.outs if v is not None]
    return [step.out.buffer]


def is_random(step: Step) -> bool:
    """Whether a library kernel draws from the random generator: such calls keep their order."""
    return isinstance(step, Extern) and torch.Tag.nondeterministic_seeded in getattr(step.op, "tags", ())


ERRORS = "an error"       # no buffer: what may raise is said to store to it; what waits for that, to read it
SURE = frozenset("mm bmm addmm baddbmm convolution convolution_backward".split())      # whatever the values


def error_order(step: Any, stores: Iterable[str], whole: Loops) -> tuple[list[str], list[str]]:
    """(what a step reads, what it stores to) besides buffers: a write to an input is there when an error ends
    the call, so it keeps its place among the steps that may raise. A step is a loop, a kernel or a call."""
    if isinstance(step, Extern):
        raises = getattr(getattr(step.op, "_overloadpacket", None), "__name__", "") not in SURE
    else:
        raises = bool(whole.errors) and any(isinstance(v, Checked) for p in getattr(step, "loops", (step,))
                                            for value in p.values() for v in walk(value))
    return [ERRORS] * (not set(whole.written).isdisjoint(stores)), [ERRORS] * raises


def step_dependencies(loops: Loops) -> dict[int, set[int]]:
    """Step number -> numbers of the steps that must run before it."""
    needs: dict[int, set[int]] = {}
    stores: dict[str, list[int]] = defaultdict(list)
    readers: dict[str, list[int]] = defaultdict(list)
    last_random: int | None = None
    for i, step in enumerate(loops.steps):
        mine = needs[i] = set()
        read, stored = reads_of(step), writes_of(step)
        if loops.written:
            before, after = error_order(step, stored, loops)
            read, stored = read + before, stored + after
        for name in read:
            mine.update(stores[name])
        for name in stored:
            mine.update(readers[name], stores[name] if name is not ERRORS else ())
        for name in read:
            readers[name].append(i)
        for name in stored:
            stores[name].append(i)
        mine.discard(i)
        if is_random(step):
            if last_random is not None:
                mine.add(last_random)
            last_random = i
    return needs
