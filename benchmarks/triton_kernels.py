"""Compiles the Triton kernels of many models for GPUs that are not here, and says what does not hold.

    python benchmarks/triton_kernels.py --zoo FOLDER --models all --target sm_80 --out kernels.jsonl
    python benchmarks/triton_kernels.py --workloads FILE.py --target sm_80 --target sm_90 --out kernels.jsonl
    python benchmarks/triton_kernels.py --zoo FOLDER --models 'vision' --inductor --out compared.jsonl
    python benchmarks/triton_kernels.py --out kernels.jsonl                 the summary of what is there

FOLDER has a `zoo.py` with `models(pattern, split)`, whose entries have `name` and `make() -> (module, args,
kwargs)`; FILE.py has `WORKLOADS`, name -> function giving (kind, make, parts), where `make(compile)()` does one
step (forward, and where it trains, backward or the optimizer's step). Every one runs in a forked child; a
kernel that another had is not compiled again, whatever its name.

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
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minicompile.api import compile_anew
from minicompile.codegen.triton import TritonLaunch
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


def measure(name: str, make: Callable[[], Once], given: argparse.Namespace, known: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "train": given.train, "kernels": {}, "failed": {}, "uses": []}
    start = time.perf_counter()
    sources = ours(make())
    row.update(graphs=len(sources), launches=0, bytes=0, library_bytes=0, seconds=round(time.perf_counter() - start, 1))
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
                said = re.sub(r"\b\d+\b", "N", text) if given.alike else text
                key = hashlib.sha256((target + said).encode()).hexdigest()[:24]
                row["uses"].append(key)
                if key not in known and key not in row["kernels"] and key not in row["failed"]:
                    try:
                        binary = cross.compile_kernel(kernels[call.function], call, target, False)
                    except Exception as e:             # counted and shown: a kernel that does not compile
                        row["failed"][key] = f"{target} {call.function}: {type(e).__name__}: {e}"[:600]
                        continue
                    row["kernels"][key] = {
                        "target": target, "kind": kind(step), "registers": binary.registers, "shared": binary.shared,
                        "spills": binary.spills, "instructions": binary.instructions, "text": text[:4000],
                        "wide": [vectors.allowed(step, source.plan.buffers, call), vectors.given(binary.ptx)]}
    if given.inductor:
        row["inductor"] = inductor(make())
    return row


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


def child(name: str, make: Any, given: argparse.Namespace, known: dict[str, Any]) -> dict[str, Any]:
    """One model in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        signal.alarm(given.timeout)
        torch.set_num_threads(1)
        try:
            row = measure(name, make, given, known)
        except BaseException:                          # the child's last word goes to its parent
            row = {"name": name, "error": traceback.format_exc()[-1500:]}
        with os.fdopen(write, "w") as out:
            json.dump(row, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        text = lines.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else {"name": name, "error": "died or timed out"}


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
    rows = list({r["name"]: r for r in rows}.values())
    known = {k: v for r in rows for k, v in r.get("kernels", {}).items()}
    lines = [f"{len(rows)} models, {sum(r.get('launches', 0) for r in rows)} launches, "
             f"{sum('error' in r for r in rows)} models failed, "
             f"{sum(len(r.get('failed', ())) for r in rows)} kernels failed to compile"]
    for target, kinds in sorted({(v["target"], v["kind"]) for v in known.values()}):
        mine = [v for v in known.values() if (v["target"], v["kind"]) == (target, kinds)]
        can, missed = sum(v["wide"][0] for v in mine), sum(max(v["wide"][0] - v["wide"][1], 0) for v in mine)
        lines.append(f"{target} {kinds}: {len(mine)} kernels, {sum(v['spills'] > 0 for v in mine)} spill, at most "
                     f"{max(v['registers'] for v in mine)} registers; 128-bit accesses {can - missed} of {can}")
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
    p.add_argument("--alike", action="store_true", help="of kernels that differ in integers only, compile the first")
    p.add_argument("--inductor", action="store_true")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--timeout", type=int, default=600)
    given = p.parse_args()
    given.target = given.target or []
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {r["name"] for r in rows}
    known = {k: v["spills"] for r in rows for k, v in r.get("kernels", {}).items()}
    warm(given)
    for name, make in entries(given):
        if name in done:
            continue
        row = child(name, make, given, known)
        known.update({k: v["spills"] for k, v in row.get("kernels", {}).items()})
        rows.append(row)
        with given.out.open("a") as out:
            print(json.dumps(row), file=out)
        print(name, row.get("launches"), row.get("bytes"), len(row.get("kernels", ())), row.get("inductor", ""),
              row.get("failed") or row.get("error", "")[-300:], flush=True)
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
