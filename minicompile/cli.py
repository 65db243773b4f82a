"""The command line: `python -m minicompile demo | explain | cache | fuzz | doctor`.

Takes argv, gives the exit status; sits on top of everything. Each command is one function below.
"""
from __future__ import annotations

import argparse
import importlib.util
import platform
import runpy
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from . import __version__
from .codegen import driver
from .config import STAGES, config
from .errors import MinicompileError, ToolchainError
from .runtime import cache, toolchain
from .testing import fuzz
from .viz import cross, demo, demo_training
from .viz.explanation import explain

Options = Callable[[argparse.ArgumentParser], None]
COMMANDS: dict[str, tuple[str, Options, Callable[[argparse.Namespace], int]]] = {}


def command(name: str, text: str, options: Options = lambda p: None) -> Callable:
    """Registers a function as a command; `options` adds its arguments to the command's parser."""
    def register(f: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
        COMMANDS[name] = (text, options, f)
        return f
    return register


def demo_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--compare", action="store_true", help="add torch.compile's column")
    p.add_argument("--rounds", type=int, default=20, help="turns to time (the median counts)")
    p.add_argument("--out", default="minicompile-demo", help="folder for every stage's artefacts")
    p.add_argument("--epochs", type=int, default=6, help="of the training half; 0 leaves it out")


@command("demo", "embed sentences with a trained model, train a small one; eager and compiled", demo_options)
def run_demo(args: argparse.Namespace) -> int:
    status = demo.run(args.compare, args.out, args.rounds)
    return max(status, demo_training.run(args.epochs)) if args.epochs else status


def explain_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("function", help="FILE.py:NAME or MODULE:NAME")
    p.add_argument("args", nargs="*", help="arguments as Python expressions, e.g. 'torch.randn(8, 8)'")
    p.add_argument("--html", metavar="FILE", help="also write the page that shows all stages side by side")
    p.add_argument("--open", action="store_true", help="and open it in the browser")
    p.add_argument("--stage", choices=STAGES, help="print only what this stage makes of each graph")
    p.add_argument("--profile", action="store_true", help="also time each kernel by itself")
    p.add_argument("--errors", action="store_true", help="also compare each node with a run in float64")
    p.add_argument("--train", action="store_true", help="with grad mode on: forward and backward")


@command("explain", "compile a function for the given arguments and tell what became of it", explain_options)
def run_explain(args: argparse.Namespace) -> int:
    function, values = target(args.function), [eval(a, {"torch": torch}) for a in args.args]
    with torch.set_grad_enabled(args.train):
        explanation = explain(function, args.profile, args.errors)(*values)
    if args.stage:
        print("\n\n".join(str(border) for stages in explanation.stages for stage, border in stages.items()
                          if stage.rpartition(" ")[2] == args.stage))
    else:
        print(explanation)
    if args.html or args.open:
        page = explanation.to_html(args.html or "minicompile-report.html", args.function.rpartition(":")[2])
        print(f"\nwritten to {page}")
        if args.open:
            webbrowser.open(page.resolve().as_uri())
    return 0 if explanation.graph_count else 1


def target(text: str) -> Any:
    """The object that "FILE.py:NAME" or "MODULE:NAME" names; raises MinicompileError if there is none."""
    home, _, name = text.rpartition(":")
    if not home:
        raise MinicompileError(f"{text!r} is not FILE.py:NAME or MODULE:NAME")
    if home.endswith(".py"):
        if not Path(home).is_file():
            raise MinicompileError(f"there is no file {home!r}")
        found = runpy.run_path(home)
    elif importlib.util.find_spec(home) is None:
        raise MinicompileError(f"there is no module {home!r}")
    else:
        found = vars(importlib.import_module(home))
    if name not in found:
        raise MinicompileError(f"{home} has no {name!r}")
    return found[name]


def cross_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--target", default="sm_80", choices=list(cross.TARGETS), help="the GPU to compile for")
    p.add_argument("--out", default="minicompile-cross", help="folder for kernels, cubins and load.py")
    explain_options(p)


@command("cross", "compile a function's Triton kernels for a GPU that need not be here", cross_options)
def run_cross(args: argparse.Namespace) -> int:
    values = [eval(a, {"torch": torch}) for a in args.args]
    crossed = cross.cross(target(args.function), args.target)(*values)
    print(f"{crossed}\nwritten to {crossed.write(args.out)}")
    return 0


def cache_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("action", nargs="?", default="info",
                   choices=("info", "clear", "verify", "export", "import"),
                   help="info: where it is and how much there is; clear: remove every entry; verify: read "
                        "every entry, tell what is wrong, status 1 if anything is; export, import: to and "
                        "from a file, for machines with the same versions and instruction set")
    p.add_argument("file", nargs="?", type=Path, help="of export and import")


@command("cache", "the disk cache of compiled code: info, clear, verify, export, import", cache_options)
def run_cache(args: argparse.Namespace) -> int:
    folder = cache.folder()
    if folder is None:
        print("no disk cache: " + ("it is turned off by cache_size_mb = 0" if config.cache_size_mb == 0
                                   else "its folder cannot be used"))
        return 1
    if args.action == "clear":
        print(f"{folder}: {cache.clear(folder)} compiled graphs removed")
        return 0
    if args.action in ("export", "import"):
        return _ship(args.action, args.file, folder)
    entries = cache.entries(folder, verify=args.action == "verify")
    for e in entries:
        if e.fault:
            print(f"{e.path}: {e.fault}")
    print(f"{folder}: {len(entries)} compiled graphs, {sum(e.size for e in entries) / 2**20:.1f} MiB "
          f"of at most {config.cache_size_mb}"
          + (f"; {sum(e.fault is not None for e in entries)} bad" if args.action == "verify" else ""))
    return 1 if any(e.fault for e in entries) else 0


def _ship(action: str, file: Path | None, folder: Path) -> int:
    if file is None:
        raise MinicompileError(f"cache {action} takes a file")
    try:
        if action == "export":
            n = cache.export(folder, driver.facts(), file)
        else:
            n = cache.import_(folder, driver.facts(), toolchain.machine_isas(), file)
    except OSError as e:
        raise MinicompileError(f"{file}: {e.strerror}") from e
    print(f"{n} compiled graphs {action}ed: {file}")
    return 0


def fuzz_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--minutes", type=float, default=2.0)
    p.add_argument("--seed", type=int, default=0, help="of the first program; the others follow")
    p.add_argument("--out", default="minicompile-fuzz", help="folder for scripts of what fails")
    p.add_argument("--against", action="append", default=[], choices=["torch.compile", "dynamo+minicompile",
                   "minicompile+inductor", "triton"], help="one program in ten is run by this, too")


@command("fuzz", "compile random programs and compare them with eager mode", fuzz_options)
def run_fuzz(args: argparse.Namespace) -> int:
    return 1 if fuzz.shown(args.minutes, args.seed, Path(args.out), args.against).ours else 0


@command("doctor", "what minicompile found on this machine, and every setting")
def run_doctor(args: argparse.Namespace) -> int:
    console = Console(highlight=False)
    rows, ok = facts()
    for name, value in rows:
        console.print(f"{name:<14} {value}", markup=False)
    settings = Table("setting", "value", "environment", "meaning", title="Settings", title_justify="left")
    for row in config.describe():
        settings.add_row(*row)
    console.print(settings)
    return 0 if ok else 1


def facts() -> tuple[list[tuple[str, str]], bool]:
    """Rows (name, finding), and whether everything needed is there."""
    ok, native = True, importlib.util.find_spec("minicompile._native")
    if native is None:
        ok = False
    try:
        found = toolchain.find()
        compiler = f"{' '.join(found.command)}: {found.version}"
    except ToolchainError as e:
        compiler, ok = f"MISSING: {e}", False
    return [("minicompile", f"{__version__} in {Path(__file__).parent}"),
            ("python", f"{platform.python_version()} on {platform.platform()}"),
            ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads, "
                      f"CUDA {torch.version.cuda if torch.cuda.is_available() else 'not available'}"),
            ("frame hook", native.origin or "" if native else "MISSING: build it with pip install -e ."),
            ("C++ compiler", compiler),
            ("vector units", f"{', '.join(toolchain.machine_isas())}; used: {toolchain.detect_isa()}"),
            ("cache", str(cache.folder() or "none"))], ok


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; errors of our own are one line on stderr and status 2."""
    parser = argparse.ArgumentParser(prog="minicompile", description="torch.compile, rebuilt from scratch")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, options, _) in COMMANDS.items():
        options(subparsers.add_parser(name, help=text, description=text))
    args = parser.parse_args(argv)
    try:
        return COMMANDS[args.command][2](args)
    except MinicompileError as e:
        print(f"minicompile: {e}", file=sys.stderr)
        return 2
