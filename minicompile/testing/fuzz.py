"""Differential fuzzing: random programs, compiled and compared with eager mode in all that can be observed.

Takes seeds and a time, gives a `Report`: `Failure`s (each a standalone script, shrunk, with the first bad
stage), and which operators were compiled with which dtypes by which stages. What is compared is said in
`observe`: for a first call, a call after the inputs' values and the program's state changed, and a call with
other shapes. Against torch.compile, too, if asked for: then what is wrong there is a finding, not a failure.

    python -m minicompile fuzz --minutes 10 --seed 0 --against torch.compile
"""
from __future__ import annotations

import itertools
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import api
from ..ir.graph import Graph
from ..ir.spec import TensorSpec
from ..loops.ir import Loop
from .checker import LADDER_OF, Judge
from .ladder import Ran, Step, runs, walk
from .observe import Difference
from .programs import Program, Written, generate

log = logging.getLogger("minicompile.fuzz")
CPP_ONE_IN = 4
TORCH_ONE_IN = 10               # torch.compile needs seconds for what we need a tenth of one for
SHRINK_SECONDS = 25.0


@dataclass(frozen=True)
class Failure:
    """A program that an engine does not run as eager mode does: how, and the first bad stage."""

    program: Program
    difference: Difference
    seed: int = -1
    engine: str = ""
    step: Step | None = None

    @property
    def stage(self) -> str:
        return self.step.stage if self.step else ""

    @property
    def op(self) -> str:
        """The operator to blame: the wrong node's, or else all that are left of the program."""
        if self.step and self.step.node and not self.step.node.startswith("("):
            return re.sub(r"_\d+$", "", self.step.node)
        return ",".join(sorted(set(re.findall(r"(?:\.|\btorch\.|F\.)(\w+)\(",
                                              " ".join(self.program.statements)))))

    @property
    def dtype(self) -> str:
        return ",".join(sorted(set(re.findall(r"torch\.(\w+)", " ".join(self.program.inputs)))))

    @property
    def key(self) -> tuple[str, ...]:
        return self.engine, self.stage, self.op, self.dtype, self.difference.kind

    def __str__(self) -> str:
        said = [f"{self.engine}: {self.difference}", *([str(self.step)] if self.step else [])]
        about = "\n".join(f"# {line}" for text in said for line in text.splitlines())
        return (f"{about}\n# seed {self.seed}\n{self.program}\n\n"
                'if __name__ == "__main__":\n    from minicompile.testing.fuzz import replay\n\n'
                f'    print(replay(__file__, {self.engine!r}) or "as in eager mode")\n')


# -------------------------------------------------------------------------------------------------- judging

def judge(program: Program, engine: str = "", ran: Callable[[Ran], Any] | None = None,
          all_values: bool = False) -> Difference | None:
    """What an engine (the program's own, if none is named) does not as eager mode; None if nothing."""
    case = Judge(program.session)
    done = runs(program.session, engine or program.engine)
    if ran is not None:
        ran(done)
    found = [d for d in case.differences(done)[0] if not d.is_note]
    if found and found[0].kind == "raises" and found[0].text.startswith("raises None") and not all_values:
        # an error in what nothing uses may go with it: but the rest must be right
        names = {n for s in program.statements for pair in re.findall(r"^(a\d+)|^a\d+, (b\d+) =", s)
                 for n in pair if n}
        if program.statements and names:
            return judge(replace(program, returns=(*program.returns, *sorted(names))), engine, None, True)
    return found[0] if found else None


def replay(path: str | Path, engine: str = "") -> str:
    """What the program in a file written by `fuzz` does differently; "" if nothing."""
    found = judge(load(path), engine)
    return str(found) if found else ""


def load(path: str | Path) -> Program:
    """The program in a file."""
    return Written(path)


# ------------------------------------------------------------------------------------------------ shrinking

def shrink(failure: Failure, seconds: float = SHRINK_SECONDS) -> Failure:
    """The same kind of failure with as few results, statements and oddities as it takes."""
    deadline, best, progress = time.monotonic() + seconds, failure, True
    while progress:
        progress = False
        for smaller in _smaller(best.program):
            if time.monotonic() > deadline:
                return best
            try:
                found = judge(smaller, best.engine)
            except Exception as error:
                log.debug("shrinking: no longer a program: %s", error)
                continue
            if found is not None and "NameError" in found.text:
                continue
            if found is not None and found.group.split(",")[0] == best.difference.group.split(",")[0]:
                best, progress = replace(best, program=smaller, difference=found), True
                break
    return best


def _smaller(p: Program) -> Iterator[Program]:
    """Programs a step simpler, most promising first."""
    for name in ("changes", "returns", "statements"):
        items = getattr(p, name)
        for i in reversed(range(len(items) if name != "returns" or len(items) > 1 else 0)):
            yield replace(p, **{name: items[:i] + items[i + 1:]})
    for i in reversed(range(len(p.statements))):
        lines = p.statements[i].split("\n")
        for j in reversed(range(len(lines) if len(lines) > 1 else 0)):
            fewer = "\n".join(lines[:j] + lines[j + 1:])
            yield replace(p, statements=(*p.statements[:i], fewer, *p.statements[i + 1:]))
        made = re.match(r"(\w+) = ", p.statements[i])
        for name in sorted(set(re.findall(r"\b[axb]\d+\b", p.statements[i][len(made.group(0)):] if made else
                                          ""))):
            rename = re.compile(rf"\b{made.group(1)}\b")
            rest = tuple(rename.sub(name, s) for s in p.statements[i + 1:])
            yield replace(p, statements=p.statements[:i] + rest,
                          returns=tuple(rename.sub(name, r) for r in p.returns))
    last = len(p.inputs) - 1
    if last > 0 and not re.search(rf"\bx{last}\b", " ".join((*p.statements, *p.returns))):
        yield replace(p, inputs=p.inputs[:-1])
    for name, plain in (("backend", "reference"), ("grad", ""), ("prelude", ""), ("changes", ())):
        if getattr(p, name) != plain:
            yield replace(p, **{name: plain})
    for i, e in enumerate(p.inputs):
        plain = re.sub(r"'\w+'", "'contiguous'", e)
        if plain != e:
            yield replace(p, inputs=p.inputs[:i] + (plain,) + p.inputs[i + 1:])


# ------------------------------------------------------------------------------------------------- coverage

def covered(ran: Ran) -> Counter[tuple[str, str, str]]:
    """(operator, dtype, stage) of all that an engine compiled, the last stage being what was run."""
    pairs: Counter[tuple[str, str, str]] = Counter()
    for done in ran.handle.compilations if ran.handle is not None else ():
        for half in (done, done.backward):
            if half is None:
                continue
            for stage in ("aten", "prims"):
                pairs.update((*p, stage) for p in _graph_pairs(getattr(half, stage)))
            for stage, reached in (("loops", half.loops), ("plan", half.plan), (ran.engine, half.executable)):
                if reached is not None and half.loops is not None:
                    pairs.update((*p, stage) for p in _loop_pairs(half.loops))
        if done.joint is not None:
            pairs.update((*p, "joint") for p in _graph_pairs(done.joint.aten))
    return pairs


def _graph_pairs(border: Any) -> Iterator[tuple[str, str]]:
    graph: Graph | None = getattr(border, "graph", None)
    for n in graph.nodes if graph is not None else ():
        if isinstance(n.spec, TensorSpec):
            yield str(getattr(n.op, "text_name", n.op)), _short(n.spec.dtype)


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _loop_pairs(loops: Any) -> Iterator[tuple[str, str]]:
    for step in loops.steps:
        if not isinstance(step, Loop):
            yield getattr(step, "name", type(step).__name__), "library"
            continue
        if step.combine:
            yield f"reduce {step.combine}", _short(loops.buffers[step.out.buffer].spec.dtype)
        waiting, seen = [step.body], set()
        while waiting:
            value = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            name = getattr(value, "prim", None) or getattr(value, "op", None) or type(value).__name__.lower()
            yield str(getattr(name, "name", name)), _short(getattr(value, "dtype", ""))
            waiting += [a for a in getattr(value, "args", ()) if hasattr(a, "dtype")]


# ------------------------------------------------------------------------------------------------- the loop

@dataclass
class Report:
    """What a run of the fuzzer did."""

    programs: int = 0
    runs: Counter = field(default_factory=Counter)
    refusals: Counter = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    kinds: Counter = field(default_factory=Counter)
    pairs: Counter = field(default_factory=Counter)

    @property
    def ours(self) -> list[Failure]:
        """Failures of minicompile; the others are findings."""
        return [f for f in self.failures if not f.engine.startswith(("torch.compile", "dynamo"))]

    def coverage(self) -> str:
        stages = Counter(stage for _, _, stage in self.pairs)
        return ", ".join(f"{stage} {n}" for stage, n in stages.items())

    def __str__(self) -> str:
        refused = ", ".join(f"{code} {n}" for code, n in self.refusals.most_common()) or "none"
        lines = [f"{self.programs} programs, {len(self.failures)} faults that differ; refusals: {refused}",
                 f"pairs of operator and dtype, by stage: {self.coverage()}"]
        lines += [f"  seed {f.seed}: {f.engine}: {f.difference}\n    {f.step or ''}" for f in self.failures]
        return "\n".join(lines)

    def table(self) -> Table:
        """The failures, one row each."""
        table = Table("seed", "engine", "first bad stage", "operator", "dtype", "what differs", title=
                      "Faults",
                      title_justify="left")
        for f in self.failures:
            table.add_row(str(f.seed), f.engine, f.stage, f.op, f.dtype, str(f.difference)[:160])
        return table


def program_of(seed: int) -> Program:
    """The program of a seed; one in CPP_ONE_IN is for the compiled backend."""
    return replace(generate(seed), backend="cpp" if seed % CPP_ONE_IN == 0 else "plan" if seed % 2 else
                   "loops")


def fuzz(seeds: Iterator[int] | Sequence[int], seconds: float = 1e9, out: Path | None = None,
         tell: Callable[[str], None] = print, against: Sequence[str] = (),
         progress: Callable[[Report], None] = lambda report: None) -> Report:
    """Judges the programs of `seeds` until the time is up; one in TORCH_ONE_IN by the engines of `against`,
    too. Scripts go into `out`, together with the program that is running: a crash of the process leaves it
    there."""
    report, end, seen = Report(), time.monotonic() + seconds, set()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)

    def ran(done: Ran) -> None:
        report.runs[done.engine] += 1
        report.refusals.update(r.code for r in done.refusals)
        report.pairs.update(covered(done))
    for seed in seeds:
        if time.monotonic() > end:
            break
        program = program_of(seed)
        for engine in (program.engine, *(against if seed % TORCH_ONE_IN == 0 else ())):
            if out is not None:
                running = Failure(program, Difference(0, "", "running", "is running"), seed, engine)
                (out / "running.py").write_text(str(running))
            found = judge(program, engine, ran)
            if found is not None:
                failure = explained(Failure(program, found, seed, engine), report)
                if failure.key not in seen:
                    seen.add(failure.key)
                    report.failures.append(failure)
                    tell(f"seed {seed}: {engine}: {failure.difference}\n    {failure.step or ''}")
                    if out is not None:
                        (out / f"seed{seed}-{engine}.py").write_text(str(failure))
        report.programs += 1
        progress(report)
        api.reset()
    return report


def explained(failure: Failure, report: Report) -> Failure:
    """The failure shrunk, with the first bad stage; of a kind that came often only as it is."""
    report.kinds[failure.engine, failure.difference.group] += 1
    if report.kinds[failure.engine, failure.difference.group] > 3:
        return failure
    failure = shrink(failure)
    return replace(failure, step=walk(failure.program.session, LADDER_OF.get(failure.engine, "minicompile")))


def shown(minutes: float, seed: int = 0, out: Path | None = None, against: Sequence[str] = ()) -> Report:
    """`fuzz` with a bar that moves, and at the end a table of what was found and what was covered."""
    console, end = Console(), 60 * minutes
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
                  console=console) as bars:
        task, start = bars.add_task("fuzzing", total=end), time.monotonic()

        def moved(report: Report) -> None:
            bars.update(task, completed=min(time.monotonic() - start, end), description=(
                f"{report.programs} programs, {len(report.failures)} faults, {len(report.pairs)} pairs"))
        report = fuzz(itertools.count(seed), end, out, lambda text: bars.console.print(text, markup=False),
                      against, moved)
    console.print(report.table() if report.failures else "no faults")
    console.print(str(report), markup=False, highlight=False)
    return report
