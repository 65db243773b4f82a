"""Times functions and modules under eager, torch.compile and minicompile, in turns, and prints ratios.

    python benchmarks/bench.py [--only REGEX] [--compilers eager,minicompile] [--rounds N] [--threads N] [--json F]
    python benchmarks/bench.py --startup        seconds of the first call in fresh processes, cold and warm cache

Compilers take turns (A B C A B C ...), and ratios are taken turn by turn: on a shared machine only ratios mean anything.
Every result is compared with eager's before it is timed.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

Case = tuple[Callable[..., Any], tuple]


def pointwise() -> Case:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = torch.tanh(x * y) + torch.exp(-y * y)
        return torch.where(z > 0, z * torch.sigmoid(x), y - z)
    return f, (torch.randn(1024, 1024), torch.randn(1024, 1024))


def softmax() -> Case:
    return lambda x, y: torch.softmax(x * 0.125 + y, -1), (torch.randn(2048, 512), torch.randn(512))


def layer_norm() -> Case:
    norm = nn.LayerNorm(768)
    return lambda x, r: F.gelu(norm(x + r)) + r, (torch.randn(1024, 768), torch.randn(1024, 768))


def column_sum() -> Case:
    return lambda x: (x * x).sum(0).sqrt(), (torch.randn(4096, 512),)


def transpose() -> Case:
    return lambda x, y: (x.t() + y).relu(), (torch.randn(1024, 1024), torch.randn(1024, 1024))


def embedding() -> Case:
    table = nn.Embedding(30000, 384)
    return lambda i: F.normalize(table(i).sum(1), dim=-1), (torch.randint(0, 30000, (64, 32)),)


def mlp() -> Case:
    net = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512), nn.LayerNorm(512))
    return net.eval(), (torch.randn(128, 512),)


def encoder_layer() -> Case:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, norm_first=True).eval()
    return layer, (torch.randn(8, 64, 256),)


def convolutions() -> Case:
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
                        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return net.eval(), (torch.randn(4, 3, 64, 64),)


def tiny_call() -> Case:
    return lambda x: x * 2 + 1, (torch.randn(8),)


CASES: dict[str, Callable[[], Case]] = {f.__name__: f for f in (
    tiny_call, pointwise, softmax, layer_norm, column_sum, transpose, embedding, mlp, encoder_layer, convolutions)}


def compiler(name: str) -> Callable[[Any], Any]:
    """Imported only when asked for, so that a start-up measurement pays for one compiler alone."""
    if name == "eager":
        return lambda f: f
    if name == "torch.compile":
        return torch.compile
    if name == "minicompile":
        import minicompile
        return minicompile.compile
    raise SystemExit(f"unknown compiler {name!r}: eager, torch.compile or minicompile")


def build(case: str) -> Case:
    torch.manual_seed(0)
    return CASES[case]()


def measure(case: str, compilers: list[str], rounds: int) -> dict[str, Any]:
    """{compiler: {"ms", "speed" (times eager's), "difference" (largest, to eager)}} and "error" for what failed."""
    function, args = build(case)
    want = function(*args)
    calls, row = {}, {}
    for name in compilers:
        call = compiler(name)(function)
        try:
            got = call(*args)
        except Exception as e:  # shown in the table: one compiler's failure must not hide the others' figures
            row[name] = {"error": f"{type(e).__name__}: {e}"[:200]}
            continue
        row[name] = {"difference": float((got - want).abs().max())}
        calls[name] = call
    start = time.perf_counter()
    function(*args)
    inner = max(1, int(0.02 / max(time.perf_counter() - start, 1e-6)))
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(inner):
                call(*args)
            turns[name].append((time.perf_counter() - start) / inner)
    for name, seconds in turns.items():
        speed = statistics.median(e / s for e, s in zip(turns["eager"], seconds)) if "eager" in turns else None
        row[name].update(ms=statistics.median(seconds) * 1e3, speed=speed)
    return row


def startup(case: str, name: str, cache: str) -> float:
    """Seconds of compile and first call in a fresh process, importing torch and building the case not counted."""
    code = (f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r}); import torch, bench\n"
            f"function, args = bench.build({case!r})\nstart = time.perf_counter()\n"
            f"with torch.no_grad(): bench.compiler({name!r})(function)(*args)\n"
            "print('SECONDS', time.perf_counter() - start)")
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch", "MINICOMPILE_CACHE_DIR": f"{cache}/minicompile"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    found = re.search(r"SECONDS ([\d.]+)", done.stdout)
    if not found:
        raise SystemExit(f"{case} under {name} failed:\n{done.stderr[-1000:]}")
    return float(found[1])


def cell(figures: dict[str, Any]) -> str:
    if "error" in figures:
        return figures["error"][:60]
    speed = f" (x{figures['speed']:.2f})" if figures["speed"] else ""
    return f"{figures['ms']:.3f} ms{speed}  diff {figures['difference']:.0e}"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default=".", help="regular expression on the case's name")
    p.add_argument("--compilers", default="eager,torch.compile,minicompile")
    p.add_argument("--rounds", type=int, default=11)
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--startup", action="store_true")
    p.add_argument("--json", help="also write the figures to this file")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    names = [n for n in args.compilers.split(",") if not (args.startup and n == "eager")]
    table = Table("case", *names, title=f"{args.threads} threads, torch {torch.__version__}", title_justify="left")
    figures: dict[str, Any] = {}
    for case in (c for c in CASES if re.search(args.only, c)):
        if args.startup:
            figures[case] = {}
            for name in names:
                with tempfile.TemporaryDirectory() as cache:
                    figures[case][name] = {"cold": startup(case, name, cache), "warm": startup(case, name, cache)}
            table.add_row(case, *(f"cold {v['cold']:.2f} s, warm {v['warm']:.2f} s" for v in figures[case].values()))
        else:
            with torch.no_grad():
                figures[case] = measure(case, names, args.rounds)
            table.add_row(case, *(cell(figures[case][name]) for name in names))
    Console(highlight=False).print(table)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
