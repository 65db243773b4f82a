"""Peak memory of a step, above what is there between steps, of workloads in eager mode and compiled: each in a process of its own.

    python benchmarks/memory.py --workloads FILE [--only REGEX] [--compilers eager,minicompile]

FILE has WORKLOADS: name -> () -> (kind, make, parts), where make(compile) gives one step. The peak is the process's resident set in one step, after
a few others and after what is free has gone back to the system; memory that a compiled graph keeps between its calls is counted to its step.
"""
from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


def status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


def workloads(path: str) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("workloads", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["workloads"] = module
    spec.loader.exec_module(module)
    return module.WORKLOADS


def kept() -> int:
    """Bytes that compiled graphs keep between calls."""
    api = sys.modules.get("minicompile.api")
    if api is None:
        return 0
    done = [c for h in api._live for c in h.compilations]
    return sum(c.plan.arena_bytes for c in [*done, *(c.backward for c in done)] if c is not None and c.plan is not None)


def peak(path: str, name: str, compiler: str) -> dict[str, int]:
    import torch
    torch.set_num_threads(2)
    _, make, _ = workloads(path)[name]()
    if compiler == "minicompile":
        import minicompile
        step = make(minicompile.compile)
    else:
        step = make(torch.compile if compiler == "torch.compile" else lambda f: f)
    for _ in range(16):
        step()
    found = []
    for _ in range(3):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        out = step()
        found.append(status("VmHWM") - before)
        del out
    return {"step": min(found) + kept(), "kept": kept()}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workloads", required=True)
    p.add_argument("--only", default=".")
    p.add_argument("--compilers", default="eager,minicompile")
    p.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one:
        print("PEAK " + json.dumps(peak(a.workloads, *a.one)))
        return
    for name in (n for n in workloads(a.workloads) if re.search(a.only, n)):
        row = {}
        for compiler in a.compilers.split(","):
            command = [sys.executable, __file__, "--workloads", a.workloads, "--one", name, compiler]
            done = subprocess.run(command, capture_output=True, text=True)
            found = re.search(r"^PEAK (.*)$", done.stdout, re.M)
            row[compiler] = json.loads(found[1]) if found else {"step": -1, "kept": -1, "error": done.stderr[-200:]}
        print(f"{name:26}", "  ".join(f"{c} {r['step'] / 2**20:8.2f} MiB (kept {r['kept'] / 2**20:.2f})" for c, r in row.items()), flush=True)


if __name__ == "__main__":
    main()
