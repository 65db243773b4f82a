"""Peak memory of a step: minicompile beside eager mode, by counting what the allocator has given out.

    python benchmarks/peak_memory.py WORKLOADS.py [NAME …] [--compilers eager,minicompile,torch.compile]

WORKLOADS.py has WORKLOADS: name → function giving (kind, make, parts), where make(compile_fn) gives a callable
of no arguments that does one step. Each compiler runs in a process of its own under a shim that counts live
blocks of 4 KB and more; the figure is the most that was live during steps 4 to 6, less what was live before the
compiler saw the model (it has compiled another one, so that its modules are there): what compiled code keeps between
calls counts.
"""
from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <errno.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void*, size_t);
extern void *__libc_memalign(size_t, size_t), __libc_free(void*);
static atomic_long live, peak;
static void count(void* p, int sign) {
  long n = p ? (long)malloc_usable_size(p) : 0;
  if (n < 4096) return;
  long now = atomic_fetch_add(&live, sign * n) + sign * n, top = atomic_load(&peak);
  while (now > top && !atomic_compare_exchange_weak(&peak, &top, now)) {}
}
void* malloc(size_t n) { void* p = __libc_malloc(n); count(p, 1); return p; }
void* calloc(size_t a, size_t b) { void* p = __libc_calloc(a, b); count(p, 1); return p; }
void* memalign(size_t a, size_t n) { void* p = __libc_memalign(a, n); count(p, 1); return p; }
void* aligned_alloc(size_t a, size_t n) { return memalign(a, n); }
int posix_memalign(void** out, size_t a, size_t n) { *out = memalign(a, n); return *out ? 0 : ENOMEM; }
void* realloc(void* old, size_t n) { count(old, -1); void* p = __libc_realloc(old, n); count(p, 1); return p; }
void free(void* p) { count(p, -1); __libc_free(p); }
long shim_live(void) { return live; }
long shim_peak(void) { return peak; }
void shim_reset(void) { peak = live; }
"""


def workloads(path: str) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("workloads", path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found.WORKLOADS


def child(path: str, name: str, compiler: str) -> None:
    """Prints the bytes of one workload."""
    import torch

    torch.set_num_threads(1)
    _, make, _ = workloads(path)[name]()
    shim = ctypes.CDLL(None)
    shim.shim_live.restype = shim.shim_peak.restype = ctypes.c_long
    compile_fn = (lambda f: f) if compiler == "eager" else torch.compile
    if compiler == "minicompile":
        import minicompile
        compile_fn = minicompile.compile
    warm = torch.nn.Linear(4, 4)
    compile_fn(warm)(torch.randn(2, 4)).sum().backward()
    with torch.no_grad():
        compile_fn(lambda x: warm(x).relu())(torch.randn(2, 4))
    step = make(compile_fn)
    gc.collect()
    before = shim.shim_live()
    for _ in range(3):
        step()
    gc.collect()
    kept = shim.shim_live() - before
    shim.shim_reset()
    for _ in range(3):
        step()
    print("RESULT", json.dumps([shim.shim_peak() - before, kept]))


def measure(shim: Path, workloads: str, name: str, compiler: str) -> tuple[int, int]:
    """(peak, bytes still live between steps) of one workload, in a fresh process."""
    done = subprocess.run([sys.executable, __file__, workloads, name, "--child", compiler], text=True,
                          capture_output=True, env={**os.environ, "LD_PRELOAD": str(shim)})
    lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT")]
    if not lines:
        raise SystemExit(done.stderr)
    peak, kept = json.loads(lines[0][7:])
    return peak, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads")
    parser.add_argument("names", nargs="*", help="all, if none is given")
    parser.add_argument("--compilers", default="eager,minicompile")
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        return child(given.workloads, given.names[0], given.child)
    with tempfile.TemporaryDirectory() as folder:
        source, shim = Path(folder) / "shim.c", Path(folder) / "shim.so"
        source.write_text(SHIM)
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", str(source), "-o", str(shim)], check=True)
        print(f"{'workload':20} {'compiler':14} {'peak MB':>9} {'kept MB':>9} {'of the first':>12}")
        for name in given.names or workloads(given.workloads):
            first = 0
            for compiler in given.compilers.split(","):
                peak, kept = measure(shim, given.workloads, name, compiler)
                first = first or peak
                print(f"{name:20} {compiler:14} {peak / 1e6:9.2f} {kept / 1e6:9.2f} {peak / max(first, 1):12.3f}", flush=True)
    return None


if __name__ == "__main__":
    main()
