"""The project's benchmark suite: eager mode, torch.compile (also with freezing), ONNX Runtime, OpenVINO and minicompile in turns.

    python benchmarks/bench.py                           the table; about five minutes
    python benchmarks/bench.py --report                  the same and how speed scales, into docs/benchmarks.{json,md,svg}; about six minutes
    python benchmarks/bench.py --only 'mlp|resnet' --compilers eager,minicompile --threads 1 --json figures.json
    python benchmarks/bench.py --workloads FILE          cases from a file: WORKLOADS, name -> () -> (kind, make, (function, args, kwargs))
    python benchmarks/bench.py --startup                 seconds of the first call in fresh processes, cold and warm cache

Each case has a process of its own, in which the compilers take turns (A B C A B C ...); a ratio is the median over the turns of one's time over the
other's in the same turn: on a shared machine only such ratios mean anything. Every result is compared with eager's before it is timed.

The roofline of a case is the time that its bytes (inputs, parameters and results, each once) take at this machine's copy bandwidth, its multiply-adds at
its best rate of matrix products, or its transcendental functions at the rate of a vectorised exp, whichever is longest: no compiler can be much faster
without computing something else. All three rates are measured in the same process.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Case = tuple[Callable[..., Any], tuple]
HERE = Path(__file__).resolve().parent
COMPILERS = ("eager", "torch.compile", "torch.freezing", "onnxruntime", "openvino", "minicompile")


# ---- what is timed --------------------------------------------------------------------------------------------------------------------------

def tiny_call() -> Case:
    return lambda x: x * 2 + 1, (torch.randn(8),)


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


def mlp(layers: int = 1) -> Case:
    net = nn.Sequential(*[nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512), nn.LayerNorm(512)) for _ in range(layers)])
    return net.eval(), (torch.randn(128, 512),)


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), (torch.randn(8, 64, 256),)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
                                  nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def residual_network() -> Case:
    net = nn.Sequential(nn.Conv2d(3, 32, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Residual(32), nn.Conv2d(32, 64, 3, 2, 1), Residual(64),
                        nn.Conv2d(64, 128, 3, 2, 1), Residual(128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 100))
    return net.eval(), (torch.randn(4, 3, 128, 128),)


def depthwise() -> Case:
    net = nn.Sequential(nn.Conv2d(32, 32, 7, padding=3, groups=32), nn.GroupNorm(1, 32), nn.Conv2d(32, 128, 1), nn.GELU(), nn.Conv2d(128, 32, 1))
    return net.eval(), (torch.randn(4, 32, 56, 56),)


CASES: dict[str, Callable[[], Case]] = {f.__name__: f for f in (
    tiny_call, pointwise, softmax, layer_norm, column_sum, transpose, embedding, mlp, encoder, residual_network, depthwise)}


def cases(workloads: str | None) -> dict[str, Callable[[], Case]]:
    """CASES, or those of a file that only compute results."""
    if workloads is None:
        return CASES
    spec = importlib.util.spec_from_file_location("workloads", workloads)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["workloads"] = module
    spec.loader.exec_module(module)

    def case(make: Callable[[], Any]) -> Case:
        _, _, (function, args, kwargs) = make()
        names = list(kwargs)

        class Call(nn.Module):                             # positional arguments are all that exporters share
            def __init__(self) -> None:
                super().__init__()
                self.inner = function

            def forward(self, *given: Any) -> Any:
                return self.inner(*given[:len(args)], **{n: x for n, x in zip(names, given[len(args):])})
        return (Call().eval() if kwargs else function), (*args, *kwargs.values())
    found = {n: make for n, make in module.WORKLOADS.items() if n not in ("adamw_step",) and not n.endswith("_train")}
    return {n: lambda make=make: case(make) for n, make in found.items()}


# ---- compilers ------------------------------------------------------------------------------------------------------------------------------

def as_module(function: Callable[..., Any]) -> nn.Module:
    if isinstance(function, nn.Module):
        return function

    class Function(nn.Module):
        def forward(self, *args: Any) -> Any:
            return function(*args)
    return Function().eval()


def onnxruntime(function: Callable[..., Any], args: tuple, threads: int) -> Callable[..., Any]:
    import onnxruntime as ort
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        torch.onnx.export(as_module(function), args, path, dynamo=True, verbose=False)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")     # its threads would run on in others' turns
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def call(*given: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(o) for o in session.run(None, {n: x.numpy() for n, x in zip(names, given)})]
    return call


def openvino(function: Callable[..., Any], args: tuple, threads: int) -> Callable[..., Any]:
    import openvino as ov
    model = ov.convert_model(torch.export.export(as_module(function), args))
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.compile_model(model, "CPU", settings).create_infer_request()

    def call(*given: torch.Tensor) -> list[torch.Tensor]:
        done = request.infer([x.numpy() for x in given], share_inputs=True)
        return [torch.from_numpy(o.copy()) for o in done.values()]
    return call


def compiled(name: str, function: Callable[..., Any], args: tuple, threads: int) -> Callable[..., Any]:
    """Imported only when asked for, so that a start-up measurement pays for one compiler alone."""
    if name == "eager":
        return function
    if name == "torch.compile":
        return torch.compile(function)
    if name == "torch.freezing":
        return torch.compile(function, options={"freezing": True})
    if name == "minicompile":
        import minicompile
        return minicompile.compile(function)
    if name in ("onnxruntime", "openvino"):
        return {"onnxruntime": onnxruntime, "openvino": openvino}[name](function, args, threads)
    raise SystemExit(f"unknown compiler {name!r}: {', '.join(COMPILERS)}")


def build(case: str, workloads: str | None = None) -> Case:
    torch.manual_seed(0)
    return cases(workloads)[case]()


# ---- measuring ------------------------------------------------------------------------------------------------------------------------------

def tensors(x: Any) -> list[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        return [x]
    if isinstance(x, Mapping):
        x = list(x.values())
    return [t for y in x for t in tensors(y)] if isinstance(x, (list, tuple)) else []


def least(call: Callable[[], Any], times: int = 7) -> float:
    best = math.inf
    for _ in range(times):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def rates() -> dict[str, float]:
    """What this machine can do: bytes copied, multiply-adds (as two) and vectorised exps per second."""
    big, other = torch.zeros(1 << 24), torch.zeros(1 << 24)
    a, small = torch.randn(1024, 1024), torch.randn(1 << 16)
    return {"bytes": 2 * big.nbytes / least(lambda: other.copy_(big)), "flops": 2 * 1024**3 / least(lambda: a @ a),
            "functions": 16 * small.numel() / least(lambda: [small.exp() for _ in range(16)])}


FUNCTIONS = ("exp", "tanh", "sigmoid", "erf", "gelu", "silu", "softmax", "log", "sin", "cos", "pow", "rsqrt", "logsumexp")


def work(function: Callable[..., Any], args: tuple, results: list[torch.Tensor]) -> dict[str, float]:
    """A case's bytes, flops and transcendental functions."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Count(TorchDispatchMode):
        functions = 0

        def __torch_dispatch__(self, op: Any, types: Any, given: Any = (), kwargs: Any = None) -> Any:
            out = op(*given, **(kwargs or {}))
            if any(word in op.__name__ for word in FUNCTIONS):
                self.functions += sum(t.numel() for t in tensors(out)[:1])
            return out
    own = list(function.parameters()) + list(function.buffers()) if isinstance(function, nn.Module) else []
    own += [p for cell in getattr(function, "__closure__", None) or () if isinstance(cell.cell_contents, nn.Module)
            for p in cell.cell_contents.parameters()]
    moved = {t.data_ptr(): t.nbytes for t in (*tensors(args), *own, *results)}
    with FlopCounterMode(display=False) as flops, Count() as count:
        function(*args)
    return {"bytes": sum(moved.values()), "flops": flops.get_total_flops(), "functions": count.functions}


def measure(case: str, compilers: list[str], rounds: int, threads: int, workloads: str | None, made: Case | None = None) -> dict[str, Any]:
    """{"rows": {compiler: {"ms", "speed" (times eager's), "difference" (largest, to eager) or "error"}}, "bound": ..., "roofline_ms": ...}"""
    torch.set_num_threads(threads)
    function, args = made or build(case, workloads)
    want = tensors(function(*args))
    calls: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    for name in compilers:
        try:
            call = compiled(name, function, args, threads)
            got = tensors(call(*args))
        except Exception as e:  # shown in the table: one compiler's failure must not hide the others' figures
            rows[name] = {"error": f"{type(e).__name__}: {e}"[:200]}
            continue
        rows[name] = {"difference": max(float((g.float() - w.float()).abs().max()) for g, w in zip(got, want))}
        calls[name] = call
    for call in calls.values():
        for _ in range(14):                                # past minicompile's contest with eager mode
            call(*args)
    inner = max(1, int(0.02 / max(least(lambda: function(*args), 3), 1e-6)))
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(0.005)                              # until the threads of the one before are asleep
            call(*args)
            start = time.perf_counter()
            for _ in range(inner):
                call(*args)
            turns[name].append((time.perf_counter() - start) / inner)
    for name, seconds in turns.items():
        speed = statistics.median(e / s for e, s in zip(turns["eager"], seconds)) if "eager" in turns else None
        rows[name].update(ms=statistics.median(seconds) * 1e3, speed=speed)
    amount, rate = work(function, args, want), rates()
    bounds = {k: amount[k] / rate[k] for k in rate}
    bound = max(bounds, key=lambda k: bounds[k])
    return {"rows": rows, "work": amount, "rates": rate, "bound": bound, "roofline_ms": bounds[bound] * 1e3}


def apart(case: str, a: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", case, "--compilers", a.compilers, "--rounds", str(a.rounds), "--threads", str(a.threads)]
    command += ["--workloads", a.workloads] if a.workloads else []
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"^FIGURES (.*)$", done.stdout, re.M)
    return json.loads(found[1]) if found else {"rows": {}, "error": done.stderr[-300:]}


def scaling(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """How the speed, times eager mode's, grows with size, depth and threads: [(x, speed)]."""
    def speed(case: Case, threads: int) -> float:
        found = measure("", ["eager", "minicompile"], rounds, threads, None, case)
        return float(found["rows"]["minicompile"]["speed"])
    function = pointwise()[0]
    return {"elements": [(n, speed((function, (torch.randn(n), torch.randn(n))), 2)) for n in (2**k for k in range(8, 25, 4))],
            "layers": [(n, speed(mlp(n), 2)) for n in (1, 2, 4, 8)],
            "threads": [(n, speed(encoder(), n)) for n in range(1, (os.cpu_count() or 1) + 1)]}


def startup(case: str, name: str, cache: str) -> float:
    """Seconds of compile and first call in a fresh process, importing torch and building the case not counted."""
    code = (f"import sys, time; sys.path.insert(0, {str(HERE)!r}); import torch, bench\n"
            f"function, args = bench.build({case!r})\nstart = time.perf_counter()\n"
            f"with torch.no_grad(): bench.compiled({name!r}, function, args, 2)(*args)\n"
            "print('SECONDS', time.perf_counter() - start)")
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch", "MINICOMPILE_CACHE_DIR": f"{cache}/minicompile"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    found = re.search(r"SECONDS ([\d.]+)", done.stdout)
    if not found:
        raise SystemExit(f"{case} under {name} failed:\n{done.stderr[-1000:]}")
    return float(found[1])


# ---- showing --------------------------------------------------------------------------------------------------------------------------------

def mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def lines(figures: dict[str, Any], compilers: list[str]) -> list[list[str]]:
    """A table: case, speed of each compiler in eager's, milliseconds of minicompile, its part of the roofline's speed and what bounds it."""
    found = [["case", *compilers, "minicompile, ms", "of the roofline"]]
    for case, f in figures.items():
        rows = f["rows"]
        cells = [f"{rows[c]['speed']:.2f}" if rows.get(c, {}).get("speed") else "failed" for c in compilers]
        ms = rows.get("minicompile", {}).get("ms", math.nan)
        found.append([case, *cells, f"{ms:.3f}", f"{f.get('roofline_ms', math.nan) / ms:.0%} ({f.get('bound', '?')})"])
    both = [mean([r["speed"] for f in figures.values() if (r := f["rows"].get(c, {})).get("speed")]) for c in compilers]
    return [*found, ["geometric mean", *(f"{m:.2f}" for m in both), "", ""]]


def plot(figures: dict[str, Any], scales: Mapping[str, list[tuple[float, float]]], compilers: list[str], path: Path) -> None:
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(2, 1, figsize=(11, 7), height_ratios=(3, 2), constrained_layout=True)
    shown = [c for c in compilers if c != "eager"]
    for i, c in enumerate(shown):
        speeds = [f["rows"].get(c, {}).get("speed") or 0 for f in figures.values()]
        axes[0].bar([k + (i - len(shown) / 2 + 0.5) * 0.8 / len(shown) for k in range(len(speeds))], speeds, 0.8 / len(shown), label=c)
    axes[0].axhline(1, color="black", linewidth=0.8)
    axes[0].set_xticks(range(len(figures)), list(figures), rotation=20, ha="right")
    axes[0].set(ylabel="speed, times eager mode")
    axes[0].legend(ncols=len(shown), frameon=False)
    for name, points in scales.items():
        axes[1].plot([str(int(x)) for x, _ in points], [s for _, s in points], marker="o", label=f"minicompile over {name}")
    axes[1].set(ylabel="speed, times eager mode", xlabel="elements (pointwise), layers (mlp), threads (encoder)")
    axes[1].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def report(figures: dict[str, Any], scales: Mapping[str, list[tuple[float, float]]], compilers: list[str], threads: int) -> None:
    docs = HERE.parent / "docs"
    (docs / "benchmarks.json").write_text(json.dumps({"cases": figures, "scaling": scales}, indent=1) + "\n")
    table = lines(figures, compilers)
    rows = ["| " + " | ".join(r) + " |" for r in table]
    rows.insert(1, "| " + " | ".join(["---"] * len(table[0])) + " |")
    rate = next((f["rates"] for f in figures.values() if "rates" in f), {"bytes": 0, "flops": 0, "functions": 0})
    text = [
        "# Benchmarks", "",
        f"Written by `python benchmarks/bench.py --report` ({threads} threads, torch {torch.__version__}). Figures are speeds in eager mode's (higher is better): medians",
        "over turns that all compilers take in one process. *Of the roofline*: the time that a case's bytes, multiply-adds or transcendental functions take",
        f"at this machine's measured rates ({rate['bytes'] / 1e9:.0f} GB/s copied, {rate['flops'] / 1e9:.0f} Gflop/s, {rate['functions'] / 1e9:.1f} G exp/s), the longest of the three,",
        "over minicompile's time. More than 100% is possible: weights and activations that fit the caches don't come from memory, and some functions cost less than exp.",
        "", *rows, "", "![speeds](benchmarks.svg)", "",
        "Scaling of minicompile's speed over eager mode's: " + "; ".join(
            f"{name} " + ", ".join(f"{int(x)}: {s:.2f}" for x, s in points) for name, points in scales.items()) + ".", ""]
    (docs / "benchmarks.md").write_text("\n".join(text))
    plot(figures, scales, compilers, docs / "benchmarks.svg")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default=".", help="regular expression on the case's name")
    p.add_argument("--compilers", default=",".join(COMPILERS))
    p.add_argument("--workloads", help="a file of workloads instead of the suite's own")
    p.add_argument("--rounds", type=int, default=11)
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--startup", action="store_true")
    p.add_argument("--report", action="store_true", help="also measure scaling, and write docs/benchmarks.*")
    p.add_argument("--json", help="also write the figures to this file")
    p.add_argument("--one", help=argparse.SUPPRESS)
    a = p.parse_args()
    names = a.compilers.split(",")
    if a.one:
        with torch.no_grad():
            print("FIGURES " + json.dumps(measure(a.one, names, a.rounds, a.threads, a.workloads)))
        return 0
    wanted = [c for c in cases(a.workloads) if re.search(a.only, c)]
    figures: dict[str, Any] = {}
    for case in wanted:
        if a.startup:
            figures[case] = {}
            for name in (n for n in names if n in ("torch.compile", "minicompile")):
                with tempfile.TemporaryDirectory() as cache:
                    figures[case][name] = {"cold": startup(case, name, cache), "warm": startup(case, name, cache)}
            print(case, "  ".join(f"{n}: cold {v['cold']:.2f} s, warm {v['warm']:.2f} s" for n, v in figures[case].items()), flush=True)
            continue
        figures[case] = apart(case, a)
        for name, row in figures[case]["rows"].items():
            if "error" in row:
                print(f"{case}: {name}: {row['error']}", file=sys.stderr)
        print("  ".join(f"{c:>16}" for c in lines({case: figures[case]}, names)[1]), flush=True)
    if figures and not a.startup:
        table = lines(figures, names)
        print()
        for row in (table[0], *table[1:]):
            print("  ".join(f"{c:>16}" for c in row))
    if a.report:
        with torch.no_grad():
            report(figures, scaling(max(3, a.rounds // 2)), names, a.threads)
    if a.json:
        Path(a.json).write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
