"""Loops, the border object behind `loops.build`: buffers, steps in a legal order, results. `schedule` turns
it into a Plan.

Data, not closures: a `Val` is hash-consed, so common subexpressions are one object, and printing,
dependencies, cost, reference execution, C++ and Triton are folds. This module is also the one to import the
parts from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..ir.spec import TensorSpec
from .check import check_loops
from .nest import REDUCTIONS, SCANS, Axis, Buffer, Extern, Loop, Result, Step, Store, View, axis
from .reference import run_loops
from .sizes import Source, bind, hints, specialise
from .val import (
    Apply,
    Checked,
    Const,
    Index,
    Load,
    Val,
    apply,
    checked,
    const,
    index,
    load,
    loads,
    rewrite,
    show,
    walk,
)

__all__ = ["REDUCTIONS", "SCANS", "Apply", "Axis", "Buffer", "Checked", "Const", "Extern", "Index", "Load",
           "Loop", "Loops", "Result", "Step", "Store", "Val", "View", "apply", "axis", "check_loops",
           "checked", "const", "index", "load", "loads", "rewrite", "run_loops", "show", "walk"]


@dataclass(frozen=True, slots=True)
class Loops:
    """The border object: buffers by name, steps in a legal order, results, constants, error texts.

    returned   the caller gets results[:returned]; later ones are only bases that aliases refer to
    errors[i] = (exception type name, message) for Checked index number i; {index} in a message stands for
    the value found. written    the inputs that the graph writes back to
    kept       numbers of those it writes back unchanged: they only get a new version
    renewed    those of them that are not written last: all that is read there is the new value
    consumed   numbers of those it owns: each may be let go of, or written over, after its last use
    restrides  (i, spec): input i has that geometry in the end
    sizes      the sizes that vary, each with the input and dimension that say it (-1: the input is a number)
    notes      decisions for people: buffer name -> why it is realised
    """

    buffers: dict[str, Buffer]
    steps: tuple[Step, ...]
    results: tuple[Result, ...]
    inputs: tuple[str, ...]
    constants: tuple[torch.Tensor, ...] = ()
    errors: tuple[tuple[str, str], ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    returned: int = -1
    written: tuple[str, ...] = ()
    restrides: tuple[tuple[int, TensorSpec], ...] = ()
    kept: tuple[int, ...] = ()
    consumed: tuple[int, ...] = ()
    sizes: tuple[Source, ...] = ()
    renewed: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"loops({', '.join(self.inputs)}):"]
        for b in self.buffers.values():
            note = f"  ({self.notes[b.name]})" if b.name in self.notes else ""
            lines.append(f"    {b.kind} {b.name}: {b.spec}{note}")
        lines += [f"    {s}" for s in self.steps]
        shown = list(map(str, self.results[: self.returned] if self.returned >= 0 else self.results))
        return "\n".join([*lines, f"    return {', '.join(shown)}"])

    def check(self) -> None:
        """Raises CheckError naming the step: see loops.check."""
        check_loops(specialise(self, hints(self.sizes)) if self.sizes else self)

    def run(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """The caller's results by the reference executor; inputs that the graph writes are changed. See
        loops.reference."""
        return run_loops(specialise(self, bind(self.sizes, inputs)) if self.sizes else self, inputs)
