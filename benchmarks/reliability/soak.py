"""F20: random shapes for as long as asked; memory, descriptors, threads and mapped libraries must stay as after the warm-up.

    nice python benchmarks/reliability/soak.py --minutes 60 [--system torch.compile]

Three functions (pointwise, a model, a model that is trained) get shapes at random; variants are dropped and made anew all the
time. A line a minute; at the end the growth per hour, by least squares over what came after the warm-up (a fifth of the time).
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from common import SYSTEMS
from torch import nn


def state() -> tuple[float, int, int, int]:
    gc.collect()
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
    libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    return rss, len(os.listdir("/proc/self/fd")), len(libraries), threading.active_count()


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=10)
    p.add_argument("--system", choices=list(SYSTEMS), default="minicompile")
    p.add_argument("--shapes", type=int, default=24)
    given = p.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    compile_ = SYSTEMS[given.system]
    net, trained = (nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 8)) for _ in range(2))

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x.sin(), -1) * 2 + x.mean(0)
    g, cnet, ctrained = compile_(f), compile_(net), compile_(trained)
    xs = [torch.randn(n, 32) for n in range(2, 2 + given.shapes)]
    begin = last = time.monotonic()
    seen: list[tuple[float, ...]] = []
    calls = 0
    while time.monotonic() - begin < 60 * given.minutes:
        x = random.choice(xs)
        with torch.no_grad():
            assert torch.allclose(g(x), f(x), atol=1e-5)
            assert torch.allclose(cnet(x), net(x), atol=1e-4)
        loss = ctrained(x).square().sum()
        loss.backward()
        trained.zero_grad()
        calls += 3
        if time.monotonic() - last > min(60, 6 * given.minutes):
            last = time.monotonic()
            seen.append(((last - begin) / 3600, *state()))
            print("{:.3f} h: {:.1f} MiB, {} descriptors, {} libraries, {} threads".format(*seen[-1]), flush=True)
    rows = np.array(seen[len(seen) // 5:])
    slope = np.polyfit(rows[:, 0], rows[:, 1], 1)[0] if len(rows) > 2 else float("nan")
    spread = [f"{int(rows[:, i].min())} to {int(rows[:, i].max())} {name}"
              for i, name in ((2, "descriptors"), (3, "libraries"), (4, "threads"))]
    print(f"F20 | {given.system} | {given.minutes:g} minutes, {calls} calls of {given.shapes} shapes: {rows[0, 1]:.0f} to "
          f"{rows[-1, 1]:.0f} MiB after the warm-up, {slope:+.1f} MiB per hour; {', '.join(spread)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
