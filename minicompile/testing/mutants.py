"""Planted miscompiles: how many of them the fuzzer finds, after how many programs, and what it blames.

MUTANTS is the table: (stage, fault, target, what stands there, what stands there instead). A target
"module:function" has its source edited, compiled and put in the function's place; "module:TABLE[key]" has an
entry of a table replaced; "kernels/cpp/file.h" has the line of a header replaced. One at a time, each in a
process of its own (a miscompile may crash), programs are drawn and judged as `fuzz` does until one differs.

    python -m minicompile.testing.mutants [--only WORD] [--first 3 --step 8] [--programs 4000] [--seconds 120]
"""
from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import textwrap
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .. import api
from ..codegen import driver
from ..config import config
from . import fuzz
from .ladder import walk
from .programs import Program


@dataclass(frozen=True)
class Mutant:
    """One fault: in which stage, what it is, where, and the edit."""

    stage: str
    fault: str
    target: str
    before: str
    after: str

    @property
    def name(self) -> str:
        return f"{self.stage}: {self.fault}"


def _table(text: str) -> tuple[Mutant, ...]:
    """Rows: a line "# stage" opens a stage; a fault is a line "target | fault", then what stands there (from
    "- ") and what will (from "+ ")."""
    found, stage, head, old = [], "", ("", ""), ""
    for line in text.splitlines():
        if line.startswith("# "):
            stage = line[2:]
        elif line.startswith("- "):
            old = line[2:]
        elif line.startswith("+"):
            found.append(Mutant(stage, head[1], head[0], old, line[2:]))
        elif line.strip():
            target, _, fault = line.partition(" | ")
            head = (target.strip(), fault.strip())
    return tuple(found)


MUTANTS: tuple[Mutant, ...] = _table((Path(__file__).parent / "mutants.txt").read_text())


# ------------------------------------------------------------------------------------------------- planting

@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The compiler with this fault. Raises ValueError where the place is not as the table says."""
    if mutant.target.endswith(".h"):
        how = _header(mutant)
    elif mutant.target.endswith("]"):
        how = _entry(mutant)
    else:
        how = _code(mutant)
    undo = how()
    api.reset()
    try:
        yield
    finally:
        undo()
        api.reset()


def _resolved(target: str) -> Any:
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(f"minicompile.{module}")
    for name in path.split("."):
        found = vars(found)[name]
        found = getattr(found, "__func__", found) if isinstance(found, staticmethod) else found
    return found


def _code(m: Mutant) -> Callable[[], Callable[[], None]]:
    function = inspect.unwrap(_resolved(m.target))
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(m.before) != 1:
        raise ValueError(f"{m.name}: {m.before!r} stands {source.count(m.before)} times in {m.target}")
    tree = ast.parse("\n" * (function.__code__.co_firstlineno - 1) + source.replace(m.before, m.after))
    made = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function.__name__)
    made.decorator_list = []
    free = function.__code__.co_freevars
    cells = "; ".join(f"{v} = None" for v in free) or "pass"
    holder = ast.parse(f"def holder():\n    global {function.__name__}\n    {cells}")  # it may call itself
    holder.body[0].body.append(made)  # type: ignore[attr-defined]
    code = compile(ast.fix_missing_locations(holder), inspect.getfile(function), "exec",
                   function.__code__.co_flags & ~0xFF, True)

    def nested(c: types.CodeType) -> types.CodeType | None:
        inside = [k for k in c.co_consts if isinstance(k, types.CodeType)]
        return next((k for k in inside if k.co_name == function.__name__), None) or next(
            (n for k in inside if (n := nested(k)) is not None), None)
    new = nested(code)
    assert new is not None and new.co_freevars == free, m.name

    def plant() -> Callable[[], None]:
        old = function.__code__
        function.__code__ = new

        def undo() -> None:
            function.__code__ = old
        return undo
    return plant


def _entry(m: Mutant) -> Callable[[], Callable[[], None]]:
    path, _, key = m.target.rstrip("]").partition("[")
    module = importlib.import_module(f"minicompile.{path.partition(':')[0]}")
    table, where = vars(module)[path.partition(":")[2]], eval(key, {**vars(module)})
    old = table[where]
    shown = old.cpp if hasattr(old, "cpp") else repr(old) if not callable(old) else m.before
    if shown != m.before:
        raise ValueError(f"{m.name}: {m.target} is {shown}, not {m.before}")
    if hasattr(old, "cpp"):                         # a row of the prim table, which is known by identity

        def plant() -> Callable[[], None]:
            object.__setattr__(old, "cpp", m.after)
            return lambda: object.__setattr__(old, "cpp", m.before)
        return plant
    new = eval(m.after, {**vars(module)})

    def plant_entry() -> Callable[[], None]:
        table[where] = new
        return lambda: table.__setitem__(where, old)
    return plant_entry


def _header(m: Mutant) -> Callable[[], Callable[[], None]]:
    folder, name = driver.headers_folder(), Path(m.target).name
    text = (folder / name).read_text()
    if text.count(m.before) != 1:
        raise ValueError(f"{m.name}: {m.before!r} stands {text.count(m.before)} times in {name}")

    def plant() -> Callable[[], None]:
        home = Path(tempfile.mkdtemp()) / "cpp"
        shutil.copytree(folder, home)
        (home / name).write_text(text.replace(m.before, m.after))
        real, driver.headers_folder = driver.headers_folder, lambda: home  # type: ignore[assignment]
        driver._headers_hash.cache_clear()

        def undo() -> None:
            driver.headers_folder = real
            driver._headers_hash.cache_clear()
            shutil.rmtree(home.parent)
        return undo
    return plant


# -------------------------------------------------------------------------------------------------- hunting

@dataclass(frozen=True)
class Killed:
    """What became of a mutant: by which program, after how many, what differed, which stage was blamed."""

    name: str
    killed: bool = False
    programs: int = 0
    seconds: float = 0.0
    reason: str = ""
    blamed: str = ""


def program_for(seed: int, stage: str) -> Program:
    """The fuzzer's program of a seed; for what is behind the plan all of them run as C++."""
    program = fuzz.program_of(seed)
    return replace(program, backend="cpp") if stage in ("source", "executable", "kernels") else program


def cpu_time() -> float:
    """Seconds of CPU time of this process and of the compilers that it ran."""
    return sum(os.times()[:4])


def hunt(mutant: Mutant, seeds: Iterator[int] | Sequence[int], seconds: float = 120.0,
         blame: bool = True) -> Killed:
    """Judges programs with the fault planted until one differs that does not without it; `seconds` are of CPU
    time."""
    start, n = cpu_time(), 0
    for seed in seeds:
        if cpu_time() - start > seconds:
            break
        n += 1
        program = program_for(seed, mutant.stage)
        with planted(mutant):
            found = fuzz.judge(program)
        if found is None or fuzz.judge(program) is not None:
            continue
        spent = cpu_time() - start
        with planted(mutant):
            step = walk(program.session, name_node=False) if blame else None
        return Killed(mutant.name, True, n, spent, str(found), step.stage if step else "")
    return Killed(mutant.name, False, n, cpu_time() - start)


def _child(mutant: Mutant, programs: int, seconds: float, pipe: Any) -> None:
    torch.set_num_threads(1)            # of as many processes as there may be
    with tempfile.TemporaryDirectory() as folder, config.patch(cache_dir=folder):
        pipe.send(json.dumps(asdict(hunt(mutant, range(programs), seconds))))


def alone(mutant: Mutant, programs: int, seconds: float) -> Killed:
    """`hunt` in a process of its own; one that crashes is killed, too."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(False)
    process = context.Process(target=_child, args=(mutant, programs, seconds, theirs))
    start = time.monotonic()
    process.start()
    theirs.close()
    try:
        result = Killed(**json.loads(ours.recv())) if ours.poll(10 * seconds) else None
    except EOFError:
        result = None
    process.join(1.0)
    if process.is_alive():
        process.kill()
    if result is not None:
        return result
    how = f"the process ended with {process.exitcode}"          # by a signal: 1 is an error of the harness
    return Killed(mutant.name, (process.exitcode or 0) < 0, 0, time.monotonic() - start, how, "crash")


def main(argv: Sequence[str] | None = None) -> int:
    """Hunts every mutant; prints a table as it goes; status 1 if fewer than 95% are killed."""
    parser = argparse.ArgumentParser(prog="python -m minicompile.testing.mutants", description=main.__doc__)
    parser.add_argument("--only", default="", help="those whose name has this in it")
    parser.add_argument("--first", type=int, default=1, help="the number of the first one")
    parser.add_argument("--step", type=int, default=1, help="every so many from there on")
    parser.add_argument("--programs", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=120.0, help="of CPU time for each")
    args = parser.parse_args(argv)
    chosen = [m for m in MUTANTS if args.only in m.name][args.first - 1::args.step]
    results = []
    for i, mutant in enumerate(chosen, 1):
        done = alone(mutant, args.programs, args.seconds)
        results.append(done)
        print(f"{i:3}/{len(chosen)} {'killed' if done.killed else 'ALIVE '} after {done.programs:4} programs "
              f"{done.seconds:6.1f} s  {done.name}  [{done.blamed}] {done.reason[:90]}", flush=True)
    table = Table("stage", "fault", "programs", "CPU s", "blamed", "what differed", title=
                  "Planted miscompiles")
    for mutant, r in zip(chosen, results):
        table.add_row(mutant.stage, mutant.fault, str(r.programs) if r.killed else f"ALIVE ({r.programs})",
                      f"{r.seconds:.1f}", r.blamed, r.reason[:60])
    Console(width=150).print(table)
    dead = sum(r.killed for r in results)
    print(f"{dead} of {len(results)} killed ({100 * dead / max(len(results), 1):.1f}%)")
    return 0 if dead >= 0.95 * len(results) else 1


__all__ = ["MUTANTS", "Killed", "Mutant", "alone", "hunt", "planted"]

if __name__ == "__main__":
    sys.exit(main())
