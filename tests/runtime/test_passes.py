"""F27: with each pass left out, one by one, results are the same: programs of the fuzzer, and models, forward and backward."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import minicompile
from minicompile.api import handle_of
from minicompile.config import PASSES, ConfigError, config
from minicompile.testing import fuzz


class Block(nn.Module):
    """Something for every pass: products with epilogues, attention, a transpose, constants that fold, rows, temporaries."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 48), nn.Linear(48, 32)
        self.conv = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.norm(x.view(2, 4, 8, 32).transpose(1, 2)) * 1.0
        a = nn.functional.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(2, 32, 32)
        h = x.view(2, 32, 32) + a
        t = h.transpose(1, 2).contiguous() * 2 + h
        h = self.down(nn.functional.gelu(self.up(t))) + t
        pictures = self.conv(h[:, None])
        return torch.softmax(pictures, -1).square().sum((1, 3)) + h.mean(-1).cumsum(-1) - h.neg().neg().amax(-1)


def outcome(off: tuple[str, ...], training: bool) -> tuple[list[torch.Tensor], object]:
    torch.manual_seed(0)
    net, x = Block(), torch.randn(2, 1024)
    eager = off == ("eager",)
    with config.patch(disable_passes=() if eager else off), torch.set_grad_enabled(training):
        run = net if eager else minicompile.compile(net, fullgraph=True)
        y = run(x)
        if training:
            y.square().sum().backward()
    return [y.detach(), *(p.grad for p in net.parameters() if training)], handle_of(run)


@pytest.mark.parametrize("training", [False, True])
def test_a_model_without_each_pass(training: bool) -> None:
    want, _ = outcome(("eager",), training)
    plain, handle = outcome((), training)
    (usual,) = handle.compilations
    changed = set()
    for off in (*PASSES, "all"):
        got, other = outcome(PASSES if off == "all" else (off,), training)
        (done,) = other.compilations
        assert done.runs == "executable"
        if (done.source.text, done.plan.arena_bytes) != (usual.source.text, usual.plan.arena_bytes):
            changed.add(off)
        for a, b, c in zip(got, want, plain):
            assert torch.allclose(a, b, 1e-3, 1e-4) and torch.allclose(a, c, 1e-3, 1e-4), off
            assert a.stride() == b.stride() == c.stride(), off
    assert changed == {*PASSES, "all"}, "each switch does something here"


def failing(off: str, seeds: range) -> str:
    with config.patch(disable_passes=(off,)):
        report = fuzz.fuzz(seeds, tell=lambda text: None)
    return str(report) if report.failures else ""


@pytest.mark.parametrize("off", PASSES)
def test_programs_without_each_pass(off: str) -> None:
    first = 310_000 + 100 * PASSES.index(off)
    assert not failing(off, range(first, first + 24, 4))          # every fourth program is for compiled code


def test_unknown_passes_are_named() -> None:
    with pytest.raises(ConfigError, match="'fuse'"):
        config.disable_passes = "fusion"


if __name__ == "__main__":      # python tests/runtime/test_passes.py [programs per pass]: the long form, for docs/reliability.md
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for name in PASSES:
        found = failing(name, range(320_000, 320_000 + 4 * n, 4))
        print(f"F27 | without {name}: {n} programs, {found or 'all as in eager mode'}", flush=True)
