"""Matrix products on 20 shapes: the compiled `linear` against oneDNN with its weight packed beforehand, and against eager mode, in turns.

    python benchmarks/gemm.py [--threads 1,2] [--dtypes float32,bfloat16] [--seconds 0.3] [--json F]

A ratio is oneDNN's least time over ours (more than 1: ours is faster), over alternating calls. About two minutes.
"""
from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

SHAPES = [(1, 256, 256), (1, 1024, 1024), (1, 4096, 1024), (4, 1024, 1024), (8, 768, 768), (16, 1024, 1024), (32, 4000, 256), (64, 256, 1024),
          (64, 1024, 256), (128, 512, 2048), (128, 2048, 512), (128, 4096, 4096), (196, 192, 768), (256, 768, 768), (256, 3072, 768),
          (256, 768, 3072), (512, 256, 256), (512, 1024, 256), (512, 2048, 2048), (1024, 1024, 1024)]


def why_not_packed(dtype: torch.dtype) -> str | None:
    """Why oneDNN packs no weights of this type on this machine."""
    try:
        packed(torch.ones(8, 8, dtype=dtype), torch.ones(8, 8, dtype=dtype))
    except RuntimeError as e:
        return str(e).split("\n")[0]
    return None


def packed(x: torch.Tensor, w: torch.Tensor) -> Callable[[], Any]:
    weight = torch.ops.mkldnn._reorder_linear_weight(w, x.shape[0])
    return lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def least(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    best = dict.fromkeys(calls, math.inf)
    for call in calls.values():
        for _ in range(16):                                # past the contest with eager mode
            call()
    end, turns = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turns < 5:
        turns += 1
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    import minicompile
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", default="1,2")
    p.add_argument("--dtypes", default="float32,bfloat16")
    p.add_argument("--seconds", type=float, default=0.3)
    p.add_argument("--json")
    a = p.parse_args()
    found: list[dict[str, Any]] = []
    for threads in map(int, a.threads.split(",")):
        torch.set_num_threads(threads)
        for dtype in (getattr(torch, d) for d in a.dtypes.split(",")):
            why = why_not_packed(dtype)
            if why is not None:
                print(f"{dtype}: compared with eager mode alone: {why}")
            ratios = []
            for m, n, k in SHAPES:
                x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
                with torch.no_grad():
                    calls = {"ours": partial(minicompile.compile(lambda x, w: F.linear(x, w)), x, w), "eager": partial(F.linear, x, w)}
                    calls["packed"] = packed(x, w) if why is None else calls["eager"]
                    torch.testing.assert_close(calls["ours"](), calls["packed"](), rtol=2e-2, atol=0.5 if dtype is torch.bfloat16 else 1e-2)
                    best = least(calls, a.seconds)
                row = {"threads": threads, "dtype": str(dtype), "shape": (m, n, k), **{f"{c}_us": s * 1e6 for c, s in best.items()},
                       "gflops": 2e-9 * m * n * k / best["ours"], "of_packed": best["packed"] / best["ours"], "of_eager": best["eager"] / best["ours"]}
                found.append(row)
                ratios.append(row["of_packed"])
                print(f"{threads} threads {dtype!s:15} {(m, n, k)!s:18} {row['gflops']:7.1f} Gflop/s  {row['of_packed']:5.2f} x packed oneDNN  "
                      f"{row['of_eager']:5.2f} x eager", flush=True)
            print(f"{threads} threads {dtype}: geometric mean {statistics.geometric_mean(ratios):.2f} x packed oneDNN, least {min(ratios):.2f}, "
                  f"{sum(r < 0.95 for r in ratios)} of {len(ratios)} below 0.95")
    if a.json:
        with open(a.json, "w") as file:
            json.dump(found, file, indent=0)


if __name__ == "__main__":
    main()
