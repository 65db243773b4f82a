"""Source: emitted text and what the driver must know to run it.

Takes `schedule.Plan` (through an emitter), gives what `codegen.driver.load` turns into an `Executable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import CheckError
from ..ir.sym import Sym
from ..loops.ir import Extern
from ..schedule.plan import Plan


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel call: the C function and the buffers whose pointers it takes, in order."""

    function: str
    buffers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """The code of a graph.

    text    the C++ (`cpp.units` says in how many pieces it is compiled); `flags` and `isa` ("avx512", "avx2",
            "scalar") take part in the cache key
    kernels names of the emitted functions, for people; equal kernels share one
    calls   one per step of the plan: a Launch, or None where the step is a call that torch makes
    plan    the plan it was emitted from
    sizes   what `mc_sizes` of the text computes from the graph's sizes, in order
    teams   one per team of the plan: what runs it instead of its members' calls
    """

    text: str
    language: str
    isa: str
    flags: tuple[str, ...]
    kernels: tuple[str, ...]
    calls: tuple[Launch | None, ...]
    plan: Plan
    teams: tuple[Launch, ...] = ()
    sizes: tuple[Sym, ...] = ()

    def __str__(self) -> str:
        return self.text

    def check(self) -> None:
        """Raises CheckError unless every kernel of the plan has a call, on buffers that exist."""
        if len(self.calls) != len(self.plan.steps):
            raise CheckError("source", "calls", f"{len(self.calls)} for {len(self.plan.steps)} steps")
        for step, call in zip(self.plan.steps, self.calls):
            if call is None and not isinstance(step, Extern):
                raise CheckError("source", step.name, "kernel without a call")
            for name in call.buffers if call else ():
                if name not in self.plan.buffers:
                    raise CheckError("source", step.name, f"takes {name}, which does not exist")

    def run(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        """The plan's reference: a Source is text, and has no meaning of its own but the compiled one."""
        return self.plan.run(*inputs)
