"""F21: what a call costs beyond its graph: guards that hold, and guards of the wrong variant that are tried first.

    python benchmarks/reliability/guards.py [--system torch.compile]        # 1 minute; torch.compile 3

Models of 1, 100 and 1,000 modules with a parameter each; the graph is replaced by its result, so nanoseconds per call are those
of guards and calling. `hit`: the same call again; `miss`: calls of two shapes in turn, the variant used last is tried first.
The least of 7 rounds counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import common  # isort: skip


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.ones(4), requires_grad=False), 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight * self.factor


def result(gm: Any, examples: Any) -> Callable:
    """A backend whose graph costs nothing."""
    out = tuple(gm(*examples)) if gm is not None else ()
    return lambda *tensors: out


def nanoseconds(call: Callable, inputs: list[Any], budget: float = 0.4) -> float:
    for _ in range(20):
        for x in inputs:
            call(x)
    n, best = 1, float("inf")
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(n):
            for x in inputs:
                call(x)
        took = time.perf_counter() - start
        if took > budget / 50:
            best = min(best, took / n / len(inputs))
        n = max(1, int(n * min(10, budget / 7 / max(took, 1e-9))))
    return best * 1e9


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--system", choices=list(common.SYSTEMS), default="minicompile")
    p.add_argument("--sizes", default="1,100,1000")
    given = p.parse_args()
    sys.setrecursionlimit(100_000)
    for n in map(int, given.sizes.split(",")):
        net = nn.Sequential(*(Scale() for _ in range(n))).eval()
        if given.system == "minicompile":
            import minicompile
            call = minicompile.compile(net, backend=result, dynamic=False)
        else:
            torch._dynamo.reset()
            call = torch.compile(net, backend=result, dynamic=False)
        a, b = torch.ones(3, 4), torch.ones(5, 4)
        with torch.no_grad():
            begin = time.perf_counter()
            call(a)
            capture = time.perf_counter() - begin
            hit = nanoseconds(call, [a])
            call(b)
            miss = nanoseconds(call, [a, b])
        print(f"F21 | {given.system} | {n} modules: hit {hit:,.0f} ns, miss {miss:,.0f} ns a call; first call {capture:.2f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
