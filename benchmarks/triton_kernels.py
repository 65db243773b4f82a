"""Compiles the Triton kernels of many models for GPUs that are not here, and says what does not hold.

    python benchmarks/triton_kernels.py --zoo FOLDER --models all --target sm_80 --out kernels.jsonl
    python benchmarks/triton_kernels.py --workloads FILE.py --target sm_80 --target sm_90 --out kernels.jsonl
    python benchmarks/triton_kernels.py --zoo FOLDER --models 'vision' --inductor --out compared.jsonl
    python benchmarks/triton_kernels.py --out kernels.jsonl                 the summary of what is there

The texts of all kernels come first, then each is compiled; what is in the file already is not done again, so a run that
was stopped goes on where it was.

FOLDER has a `zoo.py` with `models(pattern, split)`, whose entries have `name` and `make() -> (module, args,
kwargs)`; FILE.py has `WORKLOADS`, name -> function giving (kind, make, parts), where `make(compile)()` does one
step (forward, and where it trains, backward or the optimizer's step). Every model, and every compilation, runs in a
forked child; a kernel that another had is not compiled again, whatever its name.

--inductor counts kernels and bytes of the same under torch.compile, by `torch._inductor.metrics` on its CPU backend:
`generated_kernel_count`, and the bytes that its scheduler says each of its own nodes moves
(`get_read_write_buffers_sizes`, what `num_bytes_accessed` sums), without library calls, as the bytes of ours are
(`viz.cross.traffic`). Its C++ is not built and does not run: so kernels that depend on values see zeros.
"""
from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minicompile.api import compile_anew
from minicompile.codegen.triton import HEADER, TritonLaunch
from minicompile.codegen.triton_driver import functions
from minicompile.loops.ir import Extern
from minicompile.viz import cross, vectors

Once = Callable[[Callable[[Any], Any]], Any]        # one step of something, with what compiles it


def entries(given: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Once]]]:
    """(name, what makes one step of it)."""
    if given.workloads:
        spec = importlib.util.spec_from_file_location("workloads", given.workloads)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, make in module.WORKLOADS.items():
            yield f"workload {name}", lambda make=make: lambda compiler: make()[1](compiler)()
    if given.zoo:
        sys.path.insert(0, given.zoo)
        import zoo
        found = zoo.models(given.models, given.split)
        random.Random(0).shuffle(found)                         # so that a part of them stands for all
        for entry in found:
            yield entry.name, lambda entry=entry: zoo_step(entry, given.train)

def zoo_step(entry: Any, train: bool) -> Once:
    module, args, kwargs = entry.make()
    for m in module.modules():
        if isinstance(m, torch.nn.modules.dropout._DropoutNd):
            m.p = 0.0
    module.train(train)

    def once(compiler: Callable[[Any], Any]) -> None:
        with torch.set_grad_enabled(train):
            compiler(module)(*args, **kwargs)
    return once


def ours(once: Once) -> list[Any]:
    handles = []

    def compiler(f: Any) -> Any:
        compiled, handle = compile_anew(f, backend="triton", options={"stop": "aten"})
        handles.append(handle)
        return compiled
    once(compiler)
    parts = [p for h in handles for c in h.compilations for p in (c, c.backward) if p is not None]
    return cross.sources_of(parts)


def measure(make: Callable[[], Once], given: argparse.Namespace) -> dict[str, Any]:
    """What one model's graphs launch and move, and the text of its kernels."""
    row: dict[str, Any] = {"train": given.train, "kernels": {}, "uses": []}
    start = time.perf_counter()
    sources = ours(make())
    row.update(graphs=len(sources), launches=0, bytes=0, library_bytes=0, seconds=round(time.perf_counter() - start, 1))
    row["libraries"] = sum(isinstance(s, Extern) for source in sources for s in source.plan.steps)
    for source in sources:
        for step, call in zip(source.plan.steps, source.calls):
            if isinstance(step, Extern):
                views = [*step.views(), *(v for v in step.outs if v is not None)]
                row["library_bytes"] += sum(v.spec.numel * v.spec.dtype.itemsize for v in views)
            if not isinstance(call, TritonLaunch) or not call.programs:
                continue
            row["launches"] += 1
            row["bytes"] += cross.traffic(step, source.plan.buffers)
            text = cross._text(source.text, call.function)
            dtypes = [str(d).removeprefix("torch.") for d in call.dtypes]
            key = key_of(text, call.constants, call.warps, dtypes)
            row["uses"].append(key)
            row["kernels"][key] = {
                "kind": kind(step), "text": f"def k{text}", "constants": call.constants, "warps": call.warps,
                "dtypes": dtypes, "wide": vectors.allowed(step, source.plan.buffers, call)}
    if given.inductor:
        row["inductor"] = inductor(make())
    return row


def key_of(*what: Any) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:24]


def family(kernel: dict[str, Any]) -> str:
    """What kernels share that differ only in integers of a kind: those that the same powers of two up to 16
    divide, as on that depend the shape of accesses and of index arithmetic, and which floats they are."""
    def class_of(found: re.Match[str]) -> str:
        if "." in found[0] or "e" in found[0]:
            return "F"
        n = int(found[0])
        return found[0] if n < 2 else f"N{min(n & -n, 16)}" + "p" * (n & (n - 1) == 0)
    text = re.sub(r"\b\d+(\.\d+)?(e[+-]?\d+)?\b", class_of, kernel["text"])
    return key_of(text, kernel["constants"], kernel["warps"], kernel["dtypes"])


def compiled(kernel: dict[str, Any], target: str) -> dict[str, Any]:
    """What Triton makes of one kernel's text for a target."""
    source: Any = SimpleNamespace(text=f"{HEADER}\n\n@triton.jit\n{kernel['text']}", kernels=("k",))
    dtypes = tuple(getattr(torch, d) for d in kernel["dtypes"])
    call = TritonLaunch("k", (), constants=tuple(map(tuple, kernel["constants"])), warps=kernel["warps"], dtypes=dtypes)
    binary = cross.compile_kernel(functions(source)["k"], call, target, False)
    return {"registers": binary.registers, "shared": binary.shared, "spills": binary.spills,
            "instructions": binary.instructions, "wide": vectors.given(binary.ptx)}


def kind(kernel: Any) -> str:
    """What sort of kernel it is: pointwise, reduction, scan, scatter."""
    if any(loop.out.mode != "set" or loop.out.indirect for loop in kernel.loops):
        return "scatter"
    if any(loop.is_scan for loop in kernel.loops):
        return "scan"
    return "reduction" if any(s.inner for s in kernel.stages) else "pointwise"


def inductor(once: Once) -> dict[str, int]:
    """Kernels and bytes of the same step under torch.compile."""
    from torch._functorch import config as functorch
    from torch._inductor import compile_fx, config, metrics
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.graph import GraphLowering

    def count(self: Any) -> tuple[int, list, list]:
        own = [n for n in self.scheduler.nodes if not n.is_extern()]
        return sum(n.get_read_write_buffers_sizes() for n in own), [], []

    GraphLowering.count_bytes = count                           # its estimate, of what it emits itself
    compile_fx.inductor_metrics_log.setLevel(logging.INFO)      # bytes are counted only when logged
    compile_fx.inductor_metrics_log.propagate = False
    AsyncCompile.cpp_pybinding = lambda *_: lambda *_: None     # counted, not built: results are not looked at
    config.fx_graph_cache = functorch.enable_autograd_cache = False
    metrics.reset()
    torch._dynamo.reset()
    once(torch.compile)
    return {"kernels": metrics.generated_kernel_count, "bytes": metrics.num_bytes_accessed}


def child(timeout: int, what: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a function gives in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        signal.alarm(timeout)
        torch.set_num_threads(1)
        try:
            row = what()
        except BaseException:                          # the child's last word goes to its parent
            row = {"error": traceback.format_exc()[-1500:]}
        with os.fdopen(write, "w") as out:
            json.dump(row, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        text = lines.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else {"error": "died or timed out"}


def warm(given: argparse.Namespace) -> None:
    """Imports here what every child would import."""
    torch.set_num_threads(1)                                    # no threads before a fork
    for source in ours(lambda compiler: compiler(torch.sin)(torch.ones(3))):
        functions(source)
    for name in ["transformers.modeling_utils"] * bool(given.zoo) + ["torch._inductor.compile_fx"] * given.inductor:
        if importlib.util.find_spec(name.split(".")[0]):
            importlib.import_module(name)


def summary(rows: list[dict[str, Any]]) -> str:
    """What holds of all rows; of each name the last one."""
    made = {(r["key"], r["target"]): r for r in rows if "key" in r}
    rows = list({r["name"]: r for r in rows if "name" in r}.values())
    kernels = {k: v for r in rows for k, v in r.get("kernels", {}).items()}
    lines = [f"{len(rows)} models, {sum('error' in r for r in rows)} failed, "
             f"{sum(r.get('launches', 0) for r in rows)} launches, {len(kernels)} kernels"]
    for target, kinds in sorted({(t, v["kind"]) for t in dict.fromkeys(t for _, t in made) for v in kernels.values()}):
        mine = [(v, made[k, target]) for k, v in kernels.items() if v["kind"] == kinds and (k, target) in made]
        good = [(v, m) for v, m in mine if "error" not in m]
        can, missed = sum(v["wide"] for v, _ in good), sum(max(v["wide"] - m["wide"], 0) for v, m in good)
        lines.append(f"{target} {kinds}: {len(mine)} compiled, {len(mine) - len(good)} failed, "
                     f"{sum(m['spills'] > 0 for _, m in good)} spill, at most "
                     f"{max((m['registers'] for _, m in good), default=0)} registers; "
                     f"128-bit accesses {can - missed} of {can}")
    both = [r for r in rows if "inductor" in r]
    for what, mine in (("kernels", "launches"), ("bytes", "bytes")):
        over = [r["name"] for r in both if r[mine] > r["inductor"][what]]
        if both:
            lines.append(f"{what}: at most Inductor's in {len(both) - len(over)} of {len(both)} {' '.join(over)}")
    return "\n".join(lines)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--zoo")
    p.add_argument("--models", default="all")
    p.add_argument("--split", default="dev")
    p.add_argument("--workloads")
    p.add_argument("--train", action="store_true")
    p.add_argument("--target", action="append", choices=list(cross.TARGETS))
    p.add_argument("--alike", action="store_true", help="of kernels that differ only in integers of a kind, compile the first")
    p.add_argument("--inductor", action="store_true")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--timeout", type=int, default=600)
    given = p.parse_args()
    given.target = given.target or []
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    warm(given)

    def keep(row: dict[str, Any], *shown: Any) -> None:
        rows.append(row)
        with given.out.open("a") as out:
            print(json.dumps(row), file=out)
        print(*shown, row.get("error", "")[-300:], flush=True)

    done = {r["name"] for r in rows if "name" in r}
    for name, make in entries(given):
        if name not in done:
            row = {"name": name, **child(given.timeout, lambda make=make: measure(make, given))}
            keep(row, name, row.get("launches"), row.get("bytes"), row.get("seconds"), row.get("inductor", ""))
    kernels = {k: v for r in rows for k, v in r.get("kernels", {}).items()}
    sorts = {k: family(v) if given.alike else k for k, v in kernels.items()}
    known = {(sorts.get(r["key"]), r["target"]) for r in rows if "key" in r}
    for target in given.target:
        if kernels:                                             # what Triton loads at first, no child loads again
            compiled({**next(iter(kernels.values())), "warps": 2}, target)
        for key, kernel in kernels.items():
            if (sorts[key], target) not in known:
                known.add((sorts[key], target))
                row = {"key": key, "target": target,
                       **child(given.timeout, lambda k=kernel, t=target: compiled(k, t))}
                odd = row.get("spills") or row.get("wide", 0) < kernel["wide"] or "error" in row
                keep(row, key, target, *([kernel["kind"], row, kernel["wide"]] if odd else []))
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
