"""Explanation: what became of a function, as data and as text.

Takes what `api` kept of a compilation (every stage's object per graph, and the refusals); gives
`minicompile.explain`'s result.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..api import compile_anew
from ..autograd.partition import Saved
from ..debug import ARTEFACTS
from ..errors import Refusal, Where
from ..loops.ir import Extern
from ..pipeline import Compilation
from ..schedule.plan import Kernel, Refused
from .profile import NodeError, Timed
from .profile import errors as errors_of
from .profile import profile as profile_of
from .report import to_html


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """One step of a graph's plan, for people.

    kind    "kernel" (emitted by us) or "library" (an ATen kernel)
    does    what it computes
    how     how a library kernel is called: "direct", "dispatcher", or "python: why" (back into Python)
    space   the sizes of a kernel's parallel axes; nanoseconds: its estimated time on one core
    """

    name: str
    kind: str
    does: str
    how: str = ""
    space: tuple[Any, ...] = ()
    passes: int = 1
    vector: str | None = None
    parallel: int = 0
    nanoseconds: float = 0.0
    where: Where | None = None
    backward: bool = False
    graph: str = ""

    def __str__(self) -> str:
        if self.kind == "library":
            return f"{self.name:<28} library      {self.does}" + (f", {self.how}" if self.how else "")
        how = [f"{self.passes} pass{'es' if self.passes > 1 else ''}",
               "vector" if self.vector else "scalar",
               "threads" if self.parallel else "one thread", f"~{self.nanoseconds / 1000:.1f} us"]
        return f"{self.name:<28} {'x'.join(map(str, self.space)) or '1':<12} {', '.join(how)}  {self.does}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What became of one function.

    graphs      the captured torch.fx.GraphModules; op_count: torch calls in them
    guards      per graph, the guards under which it is used
    kernels     every kernel and library call, graph by graph; refusals of fusion are in `not_fused`
    saved       what graphs that are trained through keep from forward to backward, with bytes and reason
    stages      per graph, stage name -> border object
    seconds     stage name -> compile seconds, summed over the graphs
    constant    sizes that one program could not leave open, and why
    timed       the measured time of each step alone, where `profile` was asked for
    errors      per graph, each node's error against float64, where `errors` was asked for
    contests    of graphs that were timed against eager mode: what was found
    """

    graph_count: int
    graph_break_count: int
    break_reasons: tuple[Refusal, ...]
    graphs: tuple[Any, ...]
    guards: tuple[tuple[Any, ...], ...]
    kernels: tuple[KernelInfo, ...]
    not_fused: tuple[Refused, ...]
    stages: tuple[Mapping[str, Any], ...]
    op_count: int
    saved: tuple[Saved, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    contests: tuple[str, ...] = ()
    constant: Mapping[str, str] = field(default_factory=dict)
    timed: tuple[Timed, ...] = ()
    errors: tuple[tuple[NodeError, ...], ...] = ()

    @classmethod
    def of(cls, compiled: Sequence[Compilation], refusals: Sequence[Refusal] = (),
           constant: Mapping[str, str] | None = None) -> Explanation:
        """From what the API kept: the compiled graphs, the refusals met, the sizes that are constants."""
        for c in compiled:
            if c.backward is not None:
                c.backward.reach(c.runs)
        parts = [part for c in compiled for part in (c, c.backward) if part is not None]
        stages = tuple(stages_of(c) for c in compiled)
        graphs = tuple(s["capture"].gm for s in stages if "capture" in s)
        seconds: dict[str, float] = {}
        for c in parts:
            for stage, n in c.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + n
        return cls(
            graph_count=len(graphs),
            graph_break_count=len(refusals),
            break_reasons=tuple(refusals),
            graphs=graphs,
            guards=tuple((*s["capture"].guards, *getattr(s["capture"], "data_guards", ()))
                         for s in stages if "capture" in s),
            kernels=tuple(k for c in parts if c.plan for k in kernels_of(c)),
            not_fused=tuple(r for c in parts if c.plan for r in c.plan.refused),
            stages=stages,
            op_count=sum(torch_calls(g) for g in graphs),
            saved=tuple(v for c in compiled if c.split for v in c.split.saved),
            seconds=seconds,
            contests=tuple(f"{c.name}: {c.contest}" for c in compiled if c.contest),
            constant=constant or {},
        )

    def __str__(self) -> str:
        guards = [(f"guards of graph {i}", some(gs)) for i, gs in enumerate(self.guards)]
        graphs = [(f"graph {i}", [g.code.strip()]) for i, g in enumerate(self.graphs)]
        programs = [(f"program around graph {i}", [s["capture"].program.text.strip()])
                    for i, s in enumerate(self.stages) if hasattr(s.get("capture"), "program")]
        parts = [("summary", self.summary()),
                 ("refused", [r.describe() for r in self.break_reasons]),
                 ("sizes that are constants", [f"{size}: {why}" for size, why in self.constant.items()]),
                 *guards,
                 *graphs,
                 *programs,
                 ("kernels", [str(k) for k in self.kernels if not k.backward]),
                 ("kernels of the backward", [str(k) for k in self.kernels if k.backward]),
                 ("measured, each step alone", [str(t) for t in self.timed]),
                 *[(f"error against float64, graph {i}", [str(e) for e in nodes])
                   for i, nodes in enumerate(self.errors)],
                 ("saved for the backward", [str(v) for v in self.saved]),
                 ("not fused", [str(r) for r in sorted(self.not_fused, key=lambda r: -r.bytes)]),
                 ("against eager mode", self.contests),
                 ("seconds", [f"{stage:<12} {n:8.3f}" for stage, n in self.seconds.items()])]
        return "\n\n".join(section(title, lines) for title, lines in parts if lines)

    def to_html(self, path: str | Path, title: str = "") -> Path:
        """Writes the page that shows all stages side by side (one file, no network); gives its path."""
        path = Path(path)
        path.write_text(to_html(self, title or path.stem), encoding="utf-8")
        return path

    def why_static(self, tensor: str, dim: int) -> str:
        """Why a program serves one size only of this dimension of the input at `tensor` ("x", "b['ids']"),
        with the line that had to know it. Raises LookupError where no graph has such an input."""
        size = f"{tensor}.size({dim})"
        if size in self.constant:
            return f"{size} is a constant: {self.constant[size]}"
        inputs = [i for s in self.stages if hasattr(s.get("capture"), "inputs") for i in s["capture"].inputs]
        found = [i.spec.shape[dim] for i in inputs if str(i.source) == tensor and dim < len(i.spec.shape)]
        if not found:
            raise LookupError(f"no graph has an input {tensor} with a dimension {dim}; there are "
                              f"{', '.join(dict.fromkeys(str(i.source) for i in inputs))}")
        if not isinstance(found[0], int):
            return f"{size} varies: one program serves every {found[0]} from {found[0].lo} to {found[0].hi}"
        if found[0] < 2:
            return f"{size} is {found[0]}: 0 and 1 have programs of their own, being empty or broadcast"
        return f"{size} was {found[0]} in every call so far; another makes it vary, or mark_dynamic() at once"

    def summary(self) -> list[str]:
        """The counts that matter, one sentence each."""
        ours = sum(k.kind == "kernel" for k in self.kernels)
        lines = [f"graphs {self.graph_count}, breaks {self.graph_break_count}, torch calls {self.op_count}, "
                 f"kernels emitted {ours}, library calls {len(self.kernels) - ours}, "
                 f"compiled in {sum(self.seconds.values()):.2f} s"]
        if not self.graph_count:
            lines.append("nothing was compiled: the function runs as in eager mode")
        return lines


def stages_of(done: Compilation) -> dict[str, Any]:
    """Stage name -> border object; those of the backward are named "backward prims" and so on."""
    found = {s: getattr(done, s) for s in ARTEFACTS if getattr(done, s) is not None}
    if done.backward is not None:
        found |= {f"backward {s}": o for s, o in stages_of(done.backward).items() if s != "capture"}
    return found


def explain(fn: Any, profile: bool = False, errors: bool = False) -> Callable[..., Explanation]:
    """`explain(fn)(*args, **kwargs)` compiles `fn` anew, calls it once and tells what became of it.

    profile   also time each kernel and library call by itself
    errors    also run each graph in float64, and tell how far every node is from that
    """

    def explained(*args: Any, **kwargs: Any) -> Explanation:
        compiled, handle = compile_anew(fn)
        handle.keep_inputs = True
        try:
            compiled(*args, **kwargs)
        finally:
            handle.keep_inputs = False
        for done in handle.compilations:
            if done.contest is not None:
                done.contest.finish(done.inputs)
        all_done = handle.compilations
        wrong = tuple(tuple(errors_of(done)) if done.inputs else () for done in all_done) if errors else ()
        timed = tuple(t for done in all_done for t in profile_of(done)) if profile else ()
        for done in handle.compilations:
            done.inputs = ()
        told = Explanation.of(handle.compilations, handle.refusals, handle.compiled.why_constant)
        return replace(told, timed=timed, errors=wrong)

    return explained


def kernels_of(done: Compilation) -> Iterable[KernelInfo]:
    """The steps of its plan, in order."""
    calls = getattr(done.executable, "externs", {})
    backward = done.name.endswith("_backward")
    for step in done.plan.steps:
        if isinstance(step, Kernel):
            t = step.tiling
            yield KernelInfo(step.name, "kernel", work_of(step), "", tuple(a.size for a in step.par),
                             len(step.stages), t.vector, t.parallel, t.work, step.loops[0].where, backward,
                             done.name)
        elif isinstance(step, Extern):
            yield KernelInfo(step.name, "library", str(step.op), calls.get(step.name, ""), where=step.where,
                             backward=backward, graph=done.name)
        else:
            raise TypeError(f"a plan has kernels and library calls, not {type(step).__name__}")


def work_of(kernel: Kernel) -> str:
    """What a kernel computes; the library-class operator at its core, if any, comes first."""
    core = str(kernel.core.op).split(".")[1] if kernel.core else ""
    return kernel.where if core in ("", *kernel.where.split(", ")) else f"{core}, {kernel.where}"


def torch_calls(gm: Any) -> int:
    """Torch calls in a captured graph: its nodes less inputs, attributes and the output."""
    return sum(n.op in ("call_function", "call_method", "call_module") for n in gm.graph.nodes)


def some(guards: Sequence[Any], most: int = 40) -> list[str]:
    """The text of at most `most` guards, and how many more there are."""
    shown = [str(g) for g in guards[:most]]
    return shown if len(guards) <= most else [*shown, f"... and {len(guards) - most} more, in .guards"]


def section(title: str, lines: Iterable[str]) -> str:
    body = "\n".join(lines).replace("\n", "\n    ")
    return f"{title}\n    {body}"
