"""Dependencies between the steps of `Loops`: who must run before whom.

Takes steps, serves `fuse`, `memory` and the verifiers.
"""

from __future__ import annotations

from collections import defaultdict

import torch

from ..loops.ir import Extern, Loops, Step


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


def step_dependencies(loops: Loops) -> dict[int, set[int]]:
    """Step number -> numbers of the steps that must run before it."""
    needs: dict[int, set[int]] = {}
    stores: dict[str, list[int]] = defaultdict(list)
    readers: dict[str, list[int]] = defaultdict(list)
    last_random: int | None = None
    for i, step in enumerate(loops.steps):
        mine = needs[i] = set()
        for name in reads_of(step):
            mine.update(stores[name])
        for name in writes_of(step):
            mine.update(readers[name], stores[name])
        for name in reads_of(step):
            readers[name].append(i)
        for name in writes_of(step):
            stores[name].append(i)
        mine.discard(i)
        if is_random(step):
            if last_random is not None:
                mine.add(last_random)
            last_random = i
    return needs
