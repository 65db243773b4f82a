"""Training steps in float32 and under autocast to bfloat16: eager mode, minicompile and torch.compile.

    python benchmarks/amp.py [--torch] [--seconds S] [NAME …]

A step is zero_grad, forward, a loss, and backward; the optimizer is left out, as it does not depend on
autocast. The sides take turns, so all see the same machine; printed are the least times of each in
milliseconds, and how much faster than eager mode the others are.
"""
from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import minicompile

Make = Callable[[], tuple[nn.Module, torch.Tensor]]
MODELS: dict[str, Make] = {}


def model(f: Make) -> Make:
    MODELS[f.__name__] = f
    return f


@model
def mlp() -> tuple[nn.Module, torch.Tensor]:
    layers = [nn.Linear(256, 1024), nn.GELU(), nn.LayerNorm(1024), nn.Linear(1024, 1024), nn.GELU(),
              nn.Dropout(0.1), nn.Linear(1024, 256)]
    return nn.Sequential(*layers), torch.randn(256, 256)


def _encoder(dim: int, heads: int, hidden: int, layers: int, **kwargs: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(dim, heads, hidden, 0.0, batch_first=True, **kwargs)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


@model
def encoder() -> tuple[nn.Module, torch.Tensor]:
    return _encoder(256, 4, 1024, 3), torch.randn(8, 128, 256)


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 192, 8, 8)
        self.place = nn.Parameter(torch.randn(1, 64, 192) / 50)
        self.body = _encoder(192, 3, 768, 4, activation=F.gelu, norm_first=True)
        self.head = nn.Linear(192, 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.cut(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.body(h).mean(1))


@model
def vision_transformer() -> tuple[nn.Module, torch.Tensor]:
    return Vision(), torch.randn(8, 3, 64, 64)


class Decoder(nn.Module):
    """RMS norm, rotary positions, causal attention and a gated feed-forward, as in Llama."""

    def __init__(self, dim: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.RMSNorm(dim) for _ in range(2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)
        angles = torch.arange(128)[:, None] * 100 ** -torch.linspace(0, 1, dim // heads // 2)
        self.register_buffer("turn", torch.cat((angles, angles), 1))

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return x * self.turn.cos() + torch.cat((-b, a), -1) * self.turn.sin()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for p in self.qkv(self.norms[0](x)).chunk(3, -1))
        h = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v.to(q.dtype), is_causal=True)
        x = x + self.out(h.transpose(1, 2).flatten(2))
        a, b = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(a) * b)


@model
def decoder() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(*[Decoder() for _ in range(3)]), torch.randn(4, 128, 256)


class Block(nn.Module):
    def __init__(self, n: int, m: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(n, m, 3, stride, 1, bias=False), nn.Conv2d(m, m, 3, 1, 1, bias=False)
        self.na, self.nb = nn.BatchNorm2d(m), nn.BatchNorm2d(m)
        self.skip = nn.Conv2d(n, m, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.nb(self.b(F.relu(self.na(self.a(x))))) + self.skip(x))


@model
def resnet() -> tuple[nn.Module, torch.Tensor]:
    blocks = [Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(128, 10)), torch.randn(8, 3, 32, 32)


class Mixer(nn.Module):
    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.across = nn.Sequential(nn.Linear(tokens, 128), nn.GELU(), nn.Linear(128, tokens))
        self.along = nn.Sequential(nn.Linear(dim, 512), nn.GELU(), nn.Linear(512, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.across(self.norms[0](x).mT).mT
        return x + self.along(self.norms[1](x))


@model
def mixer() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(*[Mixer(64, 256) for _ in range(4)]), torch.randn(16, 64, 256)


class Convolutions(nn.Module):
    """A depthwise convolution, layer norm over channels, and a feed-forward, as in ConvNeXt."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.deep, self.norm = nn.Conv2d(n, n, 7, 1, 3, groups=n), nn.LayerNorm(n)
        self.up, self.down = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.deep(x).permute(0, 2, 3, 1))
        return x + self.down(F.gelu(self.up(h))).permute(0, 3, 1, 2)


@model
def convnext() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Conv2d(3, 64, 4, 4), *[Convolutions(64) for _ in range(3)]), torch.randn(4, 3, 64, 64)


def step(call: Any, m: nn.Module, x: torch.Tensor, half: bool) -> torch.Tensor:
    m.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = call(x).float().square().mean()
    loss.backward()
    return loss.detach()


def measure(make: Make, half: bool, systems: dict[str, Callable], seconds: float) -> dict[str, float]:
    """System → the least milliseconds of a step."""
    runs = {}
    for name, compile_ in systems.items():
        torch.manual_seed(0)
        m, x = make()
        runs[name] = (compile_(m), m, x, half)
        for _ in range(4):
            step(*runs[name])
    least, end = dict.fromkeys(systems, float("inf")), time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, run in runs.items():
            for _ in range(3):
                start = time.perf_counter()
                step(*run)
                least[name] = min(least[name], 1e3 * (time.perf_counter() - start))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MODELS), metavar="NAME")
    parser.add_argument("--torch", action="store_true", help="torch.compile, too")
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    systems: dict[str, Callable] = {"eager": lambda m: m, "minicompile": minicompile.compile}
    if given.torch:
        systems["torch.compile"] = torch.compile
    ratios: dict[tuple[str, bool], list[float]] = {}
    for name in given.names or MODELS:
        for half in (False, True):
            found = measure(MODELS[name], half, systems, given.seconds)
            for system, ms in found.items():
                ratios.setdefault((system, half), []).append(found["eager"] / ms)
            print(f"| {name} | {'bfloat16' if half else 'float32'} | " + " | ".join(
                f"{ms:.2f}" + ("" if s == "eager" else f" ({found['eager'] / ms - 1:+.0%})")
                for s, ms in found.items()) + " |", flush=True)
    for (system, half), values in ratios.items():
        mean = math.exp(sum(map(math.log, values)) / len(values))
        print(f"geomean, {system}, {'bfloat16' if half else 'float32'}: {mean - 1:+.0%}")


if __name__ == "__main__":
    main()
