"""Source: emitted text and what the driver must know to run it.

Takes `schedule.Plan` (through an emitter), gives what `codegen.driver.load` turns into an `Executable`.
"""
from __future__ import annotations

from dataclasses import dataclass

from ..schedule.plan import Plan


@dataclass(frozen=True, slots=True)
class Source:
    """One translation unit.

    text    the C++; `flags` and `isa` ("avx512", "avx2", "scalar") take part in the cache key
    kernels names of the emitted kernels, in order, for people
    plan    the plan it was emitted from
    """

    text: str
    language: str
    isa: str
    flags: tuple[str, ...]
    kernels: tuple[str, ...]
    plan: Plan
