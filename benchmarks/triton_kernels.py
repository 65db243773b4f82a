"""Compiles the Triton kernels of many models for GPUs that are not here, and says what does not hold.

    python benchmarks/triton_kernels.py --zoo FOLDER --models all --split dev --target sm_80 --out kernels.jsonl
    python benchmarks/triton_kernels.py --zoo FOLDER --models 'vision' --inductor --out compared.jsonl

FOLDER has a `zoo.py` with `models(pattern, split)`, whose entries have `name`, `family` and `make() -> (module,
args, kwargs)`. Every model runs in a forked child; a kernel that another model had is not compiled again.
--inductor counts kernels and bytes of the same model under torch.compile: `torch._inductor.metrics` on its CPU
backend, `generated_kernel_count` and `num_bytes_accessed` (its scheduler's own estimate, here without library calls), without building C++.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minicompile.api import compile_anew
from minicompile.codegen.triton import TritonLaunch
from minicompile.codegen.triton_driver import functions
from minicompile.loops.ir import Extern
from minicompile.viz import cross


def call_of(entry: Any, train: bool) -> tuple[torch.nn.Module, Any]:
    """(module, what to call with it)."""
    module, args, kwargs = entry.make()
    for m in module.modules():
        if isinstance(m, torch.nn.modules.dropout._DropoutNd):
            m.p = 0.0
    module.train(train)

    def run(f: Any) -> None:
        with torch.set_grad_enabled(train):
            f(*args, **kwargs)
    return module, run


def sources_of(module: torch.nn.Module, run: Any) -> list[Any]:
    compiled, handle = compile_anew(module, backend="triton", options={"stop": "aten"})
    run(compiled)
    parts = [p for c in handle.compilations for p in (c, c.backward) if p is not None]
    return cross.sources_of(parts)


def measure(entry: Any, given: argparse.Namespace, known: dict[str, Any]) -> dict[str, Any]:
    module, run = call_of(entry, given.train)
    row: dict[str, Any] = {"name": entry.name, "train": given.train}
    start = time.perf_counter()
    sources = sources_of(module, run)
    row.update(graphs=len(sources), launches=0, bytes=0, library_bytes=0, seconds=time.perf_counter() - start, kernels={}, failed={})
    row["libraries"] = sum(isinstance(s, Extern) for source in sources for s in source.plan.steps)
    for source in sources:
        kernels = functions(source)
        for step, call in zip(source.plan.steps, source.calls):
            if isinstance(step, Extern):
                views = [*step.views(), *(v for v in step.outs if v is not None)]
                row["library_bytes"] += sum(v.spec.numel * v.spec.dtype.itemsize for v in views)
            if not isinstance(call, TritonLaunch) or not call.programs:
                continue
            row["launches"] += 1
            row["bytes"] += cross.traffic(step, source.plan.buffers)
            text = repr((cross._text(source.text, call.function), call.constants, call.warps, call.dtypes))
            for target in given.target:
                key = hashlib.sha256((target + text).encode()).hexdigest()[:24]
                if key not in known and key not in row["kernels"]:
                    try:
                        binary = asdict(cross.compile_kernel(kernels[call.function], call, target, False))
                        del binary["cubin"], binary["ptx"]
                        binary["kind"] = "rows" if any(s.inner for s in step.stages) else "flat"
                        row["kernels"][key] = binary
                    except Exception as e:             # counted and shown: a kernel that does not compile
                        row["failed"][key] = f"{target} {call.function}: {type(e).__name__}: {e}"[:600]
                        known[key] = None
    if given.inductor:
        row["inductor"] = inductor(entry, given.train)
    return row


def inductor(entry: Any, train: bool) -> dict[str, int]:
    """Kernels, library calls and bytes of the same model under torch.compile."""
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
    module, run = call_of(entry, train)
    config.fx_graph_cache = False
    metrics.reset()
    torch._dynamo.reset()
    compiled = torch.compile(module)
    if train:
        from torch._functorch import config as functorch
        functorch.enable_autograd_cache = False
    run(compiled)
    return {"kernels": metrics.generated_kernel_count, "bytes": metrics.num_bytes_accessed}


def child(entry: Any, given: argparse.Namespace, known: dict[str, Any]) -> dict[str, Any]:
    """One model in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        signal.alarm(given.timeout)
        torch.set_num_threads(1)
        try:
            row = measure(entry, given, known)
        except BaseException:                          # the child's last word goes to its parent
            row = {"name": entry.name, "error": traceback.format_exc()[-1500:]}
        with os.fdopen(write, "w") as out:
            json.dump(row, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        text = lines.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else {"name": entry.name, "error": "died or timed out"}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--zoo", required=True)
    p.add_argument("--models", default="all")
    p.add_argument("--split", default="dev")
    p.add_argument("--train", action="store_true")
    p.add_argument("--target", action="append", choices=list(cross.TARGETS))
    p.add_argument("--inductor", action="store_true")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--timeout", type=int, default=600)
    given = p.parse_args()
    given.target = given.target or []
    sys.path.insert(0, given.zoo)
    import zoo

    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {r["name"] for r in rows}
    known = {k: v for r in rows for k, v in r.get("kernels", {}).items()}
    for entry in zoo.models(given.models, given.split):
        if entry.name in done:
            continue
        row = child(entry, given, known)
        known.update(row.get("kernels", {}))
        rows.append(row)
        with given.out.open("a") as out:
            print(json.dumps(row), file=out)
        print(entry.name, row.get("launches"), row.get("bytes"), row.get("library_bytes"), len(row.get("kernels", ())), row.get("inductor", ""),
              row.get("failed") or row.get("error", "")[-300:], flush=True)
    spilled = {k: v for k, v in known.items() if v and v["spills"]}
    print(f"{len(rows)} models, {sum(r.get('launches', 0) for r in rows)} launches, {len(known)} distinct kernels, "
          f"{sum(len(r.get('failed', ())) for r in rows)} failed to compile, {len(spilled)} spill, "
          f"{sum('error' in r for r in rows)} models failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
