"""Kernels over sizes against the same kernels over numbers: ratios of the fastest of many runs, taken in turn in one process.

    python benchmarks/dynamic_kernels.py [filter]        (THREADS=n; by default 1, which a loaded machine disturbs least)

Each program is compiled twice by the C++ back end: with its first dimensions as sizes (hints as in the call) and
with numbers. Above 1: the one over sizes is slower.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from minicompile.codegen import cpp, driver
from minicompile.codegen.driver import core_types
from minicompile.ir.fake import Fake
from minicompile.ir.spec import TensorSpec
from minicompile.ir.sym import Size, asking
from minicompile.loops.build import build_loops
from minicompile.lower.decompose import decompose
from minicompile.lower.trace import trace_callable
from minicompile.runtime.toolchain import detect_isa
from minicompile.schedule.fuse import schedule

W = [torch.randn(256, 256) * 0.05 for _ in range(4)]


def attention(x: torch.Tensor) -> torch.Tensor:
    b, t, _ = x.shape
    q, k, v = (F.linear(x, w).view(b, t, 4, 64).transpose(1, 2) for w in W[:3])
    return x + F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, 256), W[3])


# name -> (function, shapes; a tuple entry (n,) is a size)
PROGRAMS: dict[str, tuple[Callable, list[tuple]]] = {
    "pointwise": (lambda x, y: torch.tanh(x * y + 1) * x, [((512,), (512,))] * 2),
    "pointwise small": (lambda x, y: x * y + 1, [((16,), (33,))] * 2),
    "softmax rows": (lambda x: x.softmax(-1), [((512,), (1000,))]),
    "softmax, static rows": (lambda x: x.softmax(-1), [((512,), 1000)]),
    "layer norm, gelu": (lambda x: F.gelu(F.layer_norm(x, (768,))), [((512,), 768)]),
    "column sum": (lambda x: x.sum(0), [((1024,), 768)]),
    "row sum": (lambda x: (x * x).sum(-1), [((1024,), (777,))]),
    "whole sum": (lambda x: (x * x).sum(), [((1024,), 768)]),
    "transpose": (lambda x: x.t().contiguous() + 1, [((512,), (700,))]),
    "bias, relu, product": (lambda x: torch.relu(F.linear(x, W[0])) @ W[1], [((300,), 256)]),
    "cat": (lambda x, y: torch.cat([x, y * 2], 0), [((300,), 256), ((301,), 256)]),
    "argmax": (lambda x: x.argmax(-1), [((512,), (1000,))]),
    "cumsum": (lambda x: x.cumsum(-1), [((256,), (500,))]),
    "index": (lambda x, y: x[(y[:, 0] * 3).long().abs()] + 1, [((300,), 256), ((200,), 4)]),
    "attention": (attention, [((4,), (128,), 256)]),
}


def build(fn: Callable, shapes: list[tuple], dynamic: bool) -> driver.Executable:
    known: dict[int, Size] = {}

    def size(n: object) -> object:
        if not isinstance(n, tuple):
            return n
        return known.setdefault(n[0], Size(f"s{len(known)}", n[0])) if dynamic else n[0]
    examples = [Fake.from_spec(TensorSpec.contiguous(torch.float32, tuple(map(size, s)))) for s in shapes]
    with asking(), torch.no_grad():
        prims = decompose(trace_callable(fn, *examples))
        plan = schedule(build_loops(prims), core_types(detect_isa()))
        return driver.load(cpp.emit(plan))


def ratio(a: Callable, b: Callable, args: list[torch.Tensor]) -> tuple[float, float]:
    """(least time of a / least time of b, b's in microseconds), in turns."""
    for f in (a, b) * 3:
        f(*args)
    start = time.perf_counter()
    b(*args)
    inner = max(1, int(3e-4 / max(time.perf_counter() - start, 1e-7)))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(61):
        for f, into in zip((a, b), times):
            start = time.perf_counter()
            for _ in range(inner):
                f(*args)
            into.append((time.perf_counter() - start) / inner)
    return min(times[0]) / min(times[1]), min(times[1]) * 1e6


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    found = []
    for name, (fn, shapes) in PROGRAMS.items():
        if sys.argv[1:] and sys.argv[1] not in name:
            continue
        args = [torch.randn([n[0] if isinstance(n, tuple) else n for n in s]) for s in shapes]
        try:
            sized, fixed = build(fn, shapes, True), build(fn, shapes, False)
        except Exception as e:      # a program that cannot be over sizes is a line of the table
            print(f"{name:24} {type(e).__name__}: {e}")
            continue
        torch.testing.assert_close(sized(*args), fixed(*args), rtol=1e-4, atol=1e-4)
        r, micro = ratio(sized, fixed, args)
        found.append(r)
        print(f"{name:24} {r:5.2f}   ({micro:.1f} us)", flush=True)
    print(f"{'geometric mean':24} {statistics.geometric_mean(found):5.2f}")


if __name__ == "__main__":
    main()
