"""Small models of the usual kinds at many batch sizes and lengths: eager mode's numbers, few programs."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicompile import api, compile
from minicompile.config import config


class Encoder(nn.Module):
    """As BERT: embeddings, a padding mask, attention, layer norms, GELU, a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 32), nn.Embedding(64, 32)
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(32, 4, 64, 0.0, F.gelu, batch_first=True)
                                     for _ in range(2)])
        self.head = nn.Linear(32, 3)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        mask = (ids == 0)[:, None, :].expand(-1, ids.shape[1], -1)
        bias = torch.zeros(mask.shape).masked_fill(mask, -1e4).repeat_interleave(4, 0)
        for layer in self.layers:
            x = layer(x, src_mask=bias)
        return x, self.head(torch.tanh(x[:, 0]))


class Net(nn.Module):
    """As ResNet: convolutions, batch norm, a residual, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.a, self.b = nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        return self.head(x.mean((2, 3)))


def agree(model: nn.Module, calls: list[torch.Tensor], most: int) -> None:
    with torch.no_grad(), config.patch(contest=False):
        compiled = compile(model)
        for x in calls:
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(api.handle_of(compiled).compiled.entries) <= most


@pytest.mark.parametrize("first", [0, 3])
def test_an_encoder_at_many_lengths(first):
    torch.manual_seed(0)
    sizes = [(2, 7), (3, 7), (3, 12), (5, 64), (2, 2), (9, 33), (4, 5), (4, 4)]
    agree(Encoder().eval(), [torch.randint(0, 50, s) for s in sizes[first:] + sizes[:first]], 4)


def test_a_network_on_images_of_many_sizes():
    torch.manual_seed(0)
    sizes = [(2, 3, 32, 32), (4, 3, 32, 32), (3, 3, 48, 40), (2, 3, 17, 33), (7, 3, 64, 64), (2, 3, 9, 8)]
    agree(Net().eval(), [torch.randn(s) for s in sizes], 5)


def test_a_recurrent_loop_over_a_batch_that_varies():
    torch.manual_seed(0)

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates, self.new = nn.Linear(14, 16), nn.Linear(14, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.zeros(x.shape[0], 8)
            for t in range(3):
                r, z = torch.sigmoid(self.gates(torch.cat([x[:, t], h], 1))).chunk(2, 1)
                h = z * h + (1 - z) * torch.tanh(self.new(torch.cat([x[:, t], r * h], 1)))
            return h
    agree(Loop(), [torch.randn(n, 3, 6) for n in (4, 9, 2, 33, 64)], 2)


def in_blocks(x: torch.Tensor) -> torch.Tensor:
    """As models that scan a sequence in chunks: padded to whole blocks, summed in each, cut off again."""
    batch, length, width = x.shape
    pad = (8 - length % 8) % 8
    blocks = F.pad(x, (0, 0, 0, pad)).reshape(batch, -1, 8, width)
    sums = blocks.cumsum(2).reshape(batch, -1, width)
    return sums[:, :length] if pad > 0 else sums


def test_a_sequence_in_blocks_at_many_lengths() -> None:
    compiled = compile(in_blocks)
    for length in (5, 13, 22, 30, 45):
        x = torch.randn(2 + length % 3, length, 4)
        torch.testing.assert_close(compiled(x), in_blocks(x))
    assert len(compiled.__minicompile__.compilations) == 2
    assert "float32[s0, s1, 4]" in str(compiled.__minicompile__.compilations[1].aten)


RECURRENT = {
    "lstm": nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True), "projected": nn.LSTM(4, 5, bias=False, proj_size=3),
    "gru": nn.GRU(4, 5, batch_first=True, bidirectional=True), "tanh": nn.RNN(4, 5, 2), "relu": nn.RNN(4, 5, nonlinearity="relu"),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("train", [False, True])
def test_a_recurrent_network_over_a_batch_that_varies(name: str, train: bool) -> None:
    net = RECURRENT[name]
    compiled = compile(net)
    for batch in (3, 5, 8, 6):
        found = []
        for f in (net, compiled):
            x = torch.linspace(-1, 1, batch * 24).view((batch, 6, 4) if net.batch_first else (6, batch, 4))
            with torch.set_grad_enabled(train):
                out, state = f(x.requires_grad_(train))
            states = state if isinstance(state, tuple) else (state,)
            net.zero_grad()
            if train:
                (out.square().sum() + sum(s.sum() for s in states)).backward()
            found.append([out, states, x.grad, *(p.grad for p in net.parameters())])
        torch.testing.assert_close(*found)
    if train and name == "lstm":          # oneDNN's, with a workspace of its own, does it
        assert {r.code for r in compiled.__minicompile__.refusals} == {"no-meta"}
    else:
        assert len(compiled.__minicompile__.compilations) == 2 and not compiled.__minicompile__.refusals


@pytest.mark.parametrize("cell", [nn.LSTMCell(4, 5), nn.GRUCell(4, 5), nn.RNNCell(4, 5)])
def test_a_recurrent_cell_over_a_batch_that_varies(cell: nn.Module) -> None:
    compiled = compile(cell)
    for batch in (3, 5, 8):
        x = torch.randn(batch, 4)
        torch.testing.assert_close(compiled(x), cell(x))
    assert len(compiled.__minicompile__.compilations) == 2


@pytest.mark.parametrize("mode, dims", [("nearest", 1), ("nearest", 2), ("nearest-exact", 3), ("linear", 1), ("bilinear", 2),
                                        ("trilinear", 3), ("bicubic", 2), ("area", 2)])
@pytest.mark.parametrize("to", [{"size": 7}, {"scale_factor": 2}, {"scale_factor": 1.5},
                                {"scale_factor": 1.5, "recompute_scale_factor": True}])
def test_images_of_a_batch_that_varies_resized(mode: str, dims: int, to: dict) -> None:
    compiled = compile(lambda x: F.interpolate(x, mode=mode, **to))
    for batch in (2, 3, 5):
        x = torch.randn(batch, 2, *(6, 5, 4)[:dims])
        torch.testing.assert_close(compiled(x), F.interpolate(x, mode=mode, **to))
    assert len(compiled.__minicompile__.compilations) == 2


@pytest.mark.parametrize("f", [lambda x: x * torch.tensor(x.shape[0]), lambda x: x / len(x), lambda x: x.new_full((2, 1), len(x)),
                               lambda x: torch.as_tensor(x.shape[0], dtype=torch.float32) + x.sin().cos()[:len(x) - 1]])
def test_a_size_as_a_value(f: Any) -> None:
    compiled = compile(f)
    for batch in (4, 6, 7):
        x = torch.randn(batch, 3)
        torch.testing.assert_close(compiled(x), f(x))
    assert len(compiled.__minicompile__.compilations) == 2


def test_a_quotient_of_numbers_is_a_tensor_of_known_value() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return x.view(x.size(0), torch.div(x.size(1), 4, rounding_mode="trunc"), 4) * 2
    compiled = compile(f, fullgraph=True)
    x = torch.randn(3, 8)
    torch.testing.assert_close(compiled(x), f(x))
