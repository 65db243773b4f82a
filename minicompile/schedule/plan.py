"""Plan: kernels in order, with the tiling as data and every buffer placed. What an emitter gets.

Takes `Loops` (through schedule.fuse and schedule.memory), gives what `codegen` prints; both emitters read
this and argue about nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..ir.sym import Sym
from ..loops.ir import Buffer, Extern, Loops
from ..loops.sizes import bind, hints, specialise
from .check import check_plan
from .execute import run_plan
from .nest import Kernel, Refused, Stage, Tiling, signature

__all__ = ["Kernel", "Plan", "Refused", "Stage", "Tiling", "signature"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The border object.

    steps     Kernel or Extern, in order
    buffers   all buffers that still exist (inputs, constants, outputs, arena temps, locals, extern results)
    arena     byte offset of each "temp" buffer that is not local, 64-byte aligned; arena_bytes in all
    teams     steps that may run at the same time, as one parallel region (see schedule.teams)
    hosts     temp -> the result or owned input in whose memory it lies (its offset counts from there)
    frees     after step i, these "extern" buffers and owned inputs can be released
    """

    loops: Loops
    steps: tuple[Kernel | Extern, ...]
    buffers: dict[str, Buffer]
    arena: dict[str, Sym | int]
    arena_bytes: Sym | int
    frees: dict[int, tuple[str, ...]]
    refused: tuple[Refused, ...] = ()
    teams: tuple[range, ...] = ()
    hosts: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"plan({', '.join(self.loops.inputs)}):  # arena of {self.arena_bytes} bytes"]
        for b in self.buffers.values():
            place = f" at {self.arena[b.name]}" if b.name in self.arena else ""
            place += f" of {self.hosts[b.name]}" if b.name in self.hosts else ""
            lines.append(f"    {b.kind} {b.name}: {b.spec}{place}")
        for i, s in enumerate(self.steps):
            lines += [f"    team of {len(t)}:" for t in self.teams if t.start == i]
            lines += ["    " + line for line in str(s).split("\n")]
            if i in self.frees:
                lines.append(f"    free {', '.join(self.frees[i])}")
        lines += [f"    # not fused: {r}" for r in self.refused]
        return "\n".join([*lines, f"    return {', '.join(map(str, self.loops.results))}"])

    def check(self) -> None:
        """Raises CheckError naming the kernel: see schedule.check."""
        check_plan(specialise(self, hints(self.loops.sizes)) if self.loops.sizes else self)

    def run(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """The caller's results by the reference executor, in the plan's order and memory. See
        schedule.execute."""
        sizes = self.loops.sizes
        return run_plan(specialise(self, bind(sizes, inputs)) if sizes else self, inputs)
