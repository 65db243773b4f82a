"""`config.random = "philox"`: numbers by a counter, seeded by torch's generator, the same in the backward."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minicompile
from minicompile.ir.prims import PRIMS


@pytest.fixture(autouse=True)
def philox() -> Iterator[None]:
    minicompile.reset()
    with minicompile.config.patch(random="philox"):
        yield
    minicompile.reset()


# counter words, key → first word: the known answers that the authors of Philox publish
@pytest.mark.parametrize("words, expected", [
    ((0x00000000, 0x00000000, 0x00000000), 0xFF1DAE59),
    ((0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), 0x2C3F628B),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E), 0xDD7CE038)])
def test_known_answers(words: tuple[int, int, int], expected: int) -> None:
    index, stream, key = (torch.tensor([w], dtype=torch.int64).to(torch.int32) for w in words)
    assert PRIMS["philox"].ref(key, stream, index).long().item() & 0xFFFFFFFF == expected


def test_forward_and_backward_see_one_mask() -> None:
    x = torch.ones(64, 1000, requires_grad=True)
    f = minicompile.compile(lambda x: F.dropout(x * 1.0, 0.25))
    torch.manual_seed(3)
    y = f(x)
    (g,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, g) and 0.23 < (y == 0).float().mean() < 0.27
    assert not torch.equal(f(x), y)
    torch.manual_seed(3)
    assert torch.equal(f(x), y)


def test_masks_of_one_graph_and_of_neighbours_differ() -> None:
    f = minicompile.compile(lambda x: (F.dropout(x), F.dropout(x), torch.rand_like(x)))
    a, b, c = f(torch.ones(2000))
    assert 800 < (a == b).sum() < 1200
    assert abs(torch.corrcoef(torch.stack([a, c]))[0, 1]) < 0.1
    assert abs(torch.corrcoef(torch.stack([c[1:], c[:-1]]))[0, 1]) < 0.1


def test_nothing_is_kept_but_the_seed() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.1))
    e = minicompile.explain(net)(torch.randn(128, 64))
    made = [s for s in e.saved if s.node.op != "input"]
    assert sum(s.bytes for s in made) <= 16
    assert not any("bernoulli" in str(k) for k in e.kernels)


@pytest.mark.parametrize("make, mean, std", [
    (lambda: torch.rand(200_000), 0.5, 12 ** -0.5), (lambda: torch.randn(200_000), 0.0, 1.0),
    (lambda: torch.empty(200_000).uniform_(-1, 3), 1.0, 4 * 12 ** -0.5),
    (lambda: torch.empty(200_000).normal_(2, 3), 2.0, 3.0),
    (lambda: torch.empty(200_000).exponential_(2.0), 0.5, 0.5),
    (lambda: torch.empty(200_000).bernoulli_(0.3), 0.3, 0.21 ** 0.5),
    (lambda: torch.bernoulli(torch.full((200_000,), 0.3)), 0.3, 0.21 ** 0.5),
    (lambda: torch.empty(400, 500).t().bernoulli_(0.3), 0.3, 0.21 ** 0.5),
    (lambda: torch.rand(200_000, dtype=torch.bfloat16).float(), 0.5, 12 ** -0.5)])
def test_distributions(make: object, mean: float, std: float) -> None:
    torch.manual_seed(1)
    drawn = minicompile.compile(make, fullgraph=True)()
    assert abs(drawn.mean() - mean) < 4 * std / 200_000 ** 0.5 + 2e-3 * (std > 0.9)
    assert abs(drawn.std() - std) < 0.02 * std
    torch.manual_seed(1)
    assert torch.equal(minicompile.compile(make, fullgraph=True)(), drawn)


def test_what_keeps_eagers_numbers() -> None:
    """A generator of one's own, and float64, which needs more bits."""
    def f(g: torch.Generator) -> tuple:
        return torch.empty(50).uniform_(generator=g), torch.rand(50, dtype=torch.float64)

    torch.manual_seed(5)
    ours = minicompile.compile(f)(torch.Generator().manual_seed(7))
    torch.manual_seed(5)
    for a, b in zip(ours, f(torch.Generator().manual_seed(7))):
        assert torch.equal(a, b)


def test_training_with_dropout_and_attention_converges() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
    f, x, y = minicompile.compile(layer), torch.randn(8, 16, 32), torch.randn(8, 16, 32)
    opt = torch.optim.Adam(layer.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        opt.zero_grad()
        loss = F.mse_loss(f(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
