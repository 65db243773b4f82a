"""Sizes that vary, from the user's side: one program for all sizes, eager mode's results for each."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minicompile
from minicompile import api

from .common import check

SIZES = (4, 7, 16, 33, 3, 64)


def rows(*shape: object, dtype: torch.dtype = torch.float32) -> list[tuple]:
    """Calls with one tensor each; "n" in the shape stands for the size that varies."""
    made = [tuple(n if s == "n" else s for s in shape) for n in SIZES]
    torch.manual_seed(0)
    return [(torch.randn(s, dtype=dtype),) for s in made]


# Python and torch on sizes; each stays one program from the second size on
PROGRAMS = {
    "pointwise": (lambda x: torch.relu(x * 2 + 1), rows("n", 8)),
    "inner": (lambda x: torch.tanh(x) + 1, rows(8, "n")),
    "sum": (lambda x: x.sum(0), rows("n", 8)),
    "inner sum": (lambda x: x.sum(-1), rows(5, "n")),
    "mean": (lambda x: x.mean(), rows("n", 3)),
    "var": (lambda x: x.var(0), rows("n", 3)),
    "softmax": (lambda x: x.softmax(-1), rows(3, "n")),
    "argmax": (lambda x: x.argmax(-1), rows(3, "n")),
    "cumsum": (lambda x: x.cumsum(0), rows("n", 3)),
    "layer_norm": (lambda x: F.layer_norm(x, (8,)), rows("n", 8)),
    "rows normed": (lambda x: F.normalize(x, dim=-1), rows(6, "n")),
    "transpose": (lambda x: x.t() + 1, rows("n", 8)),
    "contiguous transpose": (lambda x: x.t().contiguous(), rows("n", 8)),
    "view": (lambda x: x.view(x.shape[0] * 2, -1) + 1, rows("n", 8)),
    "flatten": (lambda x: x.flatten() * 2, rows("n", 8, 3)),
    "unflatten": (lambda x: x.view(x.shape[0], x.shape[1], 2, 4).transpose(1, 2) * 2, rows("n", 5, 8)),
    "cat": (lambda x: torch.cat([x, x * 2]), rows("n", 3)),
    "stack": (lambda x: torch.stack([x, x + 1], 1), rows("n", 3)),
    "slice": (lambda x: x[1:] - x[:-1], rows("n", 3)),
    "last": (lambda x: x[:, -1] + x[:, 0], rows(3, "n")),
    "flip": (lambda x: x.flip(0), rows("n", 3)),
    "roll": (lambda x: torch.roll(x, 1, 0), rows("n", 3)),
    "expand": (lambda x: x.unsqueeze(1).expand(-1, 4, -1) + 1, rows("n", 3)),
    "outer": (lambda x: x[:, None] * x[None, :], rows("n")),
    "arange": (lambda x: x + torch.arange(x.shape[0])[:, None], rows("n", 3)),
    "zeros": (lambda x: torch.zeros(x.shape[0], 3) + x, rows("n", 3)),
    "causal": (lambda x: x.masked_fill(torch.ones(x.shape[-1], x.shape[-1]).triu(1).bool(), 0.0), [
        (torch.randn(2, n, n),) for n in SIZES]),
    "size as a number": (lambda x: x * x.shape[0] / x.shape[1], rows("n", 3)),
    "root of a size": (lambda x: x / math.sqrt(x.shape[-1]), rows(3, "n")),
    "numel": (lambda x: x.sum() / x.numel(), rows("n", 3)),
    "branch": (lambda x: x + 1 if x.shape[0] > 1 else x - 1, rows("n", 3)),
    "matmul": (lambda x: x @ x.t(), rows("n", 8)),
    "bmm": (lambda x: torch.einsum("bij,bkj->bik", x, x), rows(3, "n", 8)),
    "gather": (lambda x: x[torch.tensor([1, 0, 1])], rows("n", 3)),
    "embedding": (lambda i: F.embedding(i, torch.arange(12.).view(6, 2)), [
        (torch.randint(0, 6, (2, n)),) for n in SIZES]),
    "one_hot": (lambda i: F.one_hot(i, 6), [(torch.randint(0, 6, (n,)),) for n in SIZES]),
    "pad": (lambda x: F.pad(x, (1, 2)), rows(3, "n")),
    "conv1d": (lambda x: F.conv1d(x, torch.ones(4, 2, 3), padding=1), rows(2, 2, "n")),
    "pool": (lambda x: F.max_pool2d(x, 2), [(torch.randn(1, 2, 2 * n, 8),) for n in SIZES]),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2.0), [(torch.randn(1, 2, n, 8),) for n in SIZES]),
    "attention": (lambda q: F.scaled_dot_product_attention(q, q, q), [(torch.randn(2, 4, n, 8),) for n in SIZES]),
    "bf16": (lambda x: x * 2 + x.sum(-1, keepdim=True), rows("n", 8, dtype=torch.bfloat16)),
    "int64": (lambda x: x // 3 + x % 2, [(torch.arange(3 * n).view(n, 3),) for n in SIZES]),
    "strided": (lambda x: x + 1, [(torch.randn(8, n).t(),) for n in SIZES]),
    "a view of the input": (lambda x: x[1:], rows("n", 3)),
    "a reshaped view of the input": (lambda x: x.view(-1), rows("n", 3)),
}
PINNED = {"interpolate"}          # torch's own code reads the sizes: one program for each, and the reason says so
WRITES = {
    "in place": lambda x: x.add_(1),
    "a row": lambda x: x[0].fill_(1),
    "all but a row": lambda x: x[1:].mul_(x.shape[0]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_program(name: str) -> None:
    fn, calls = PROGRAMS[name]
    handle = check(fn, calls, most=None if name in PINNED else 2)
    assert bool(handle.compiled.why_constant) == (name in PINNED)


@pytest.mark.parametrize("name", ["pointwise", "softmax", "layer_norm", "cat", "matmul", "view", "slice", "mean"])
def test_first_call(name: str) -> None:
    """dynamic=True: one program from the first call on."""
    fn, calls = PROGRAMS[name]
    check(fn, calls, most=1, dynamic=True)


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients(name: str) -> None:
    fn, calls = PROGRAMS[name]
    if not calls[0][0].is_floating_point() or name == "argmax":
        pytest.skip("has no gradient")
    check(fn, [(x.requires_grad_(),) for x, in [tuple(t.clone() for t in c) for c in calls]], train=True, most=None)


@pytest.mark.parametrize("name", WRITES)
def test_writes(name: str) -> None:
    check(WRITES[name], rows("n", 3))


def test_none_varies() -> None:
    handle = check(PROGRAMS["pointwise"][0], rows("n", 8), most=None, dynamic=False)
    assert len(handle.compiled.entries) == len(SIZES)


def test_marked() -> None:
    calls = rows("n", 3)
    for x, in calls:
        minicompile.mark_dynamic(x, 0)
    compiled = minicompile.compile(lambda x: x + 1)
    for x, in calls:
        assert torch.equal(compiled(x), x + 1)
    assert len(api.handle_of(compiled).compiled.entries) == 1
    compiled = minicompile.compile(lambda x: x + 1)
    for x, in calls[:4]:
        minicompile.mark_static(x)
        compiled(x)
    assert len(api.handle_of(compiled).compiled.entries) == 4
    with pytest.raises(IndexError):
        minicompile.mark_dynamic(calls[0][0], 2)
    with pytest.raises(minicompile.MinicompileError, match="from 2"):
        minicompile.mark_dynamic(calls[0][0], 0, min=0)


def test_bounds() -> None:
    compiled = minicompile.compile(lambda x: x + 1)
    for n in (8, 16, 32):
        x = torch.randn(n, 3)
        minicompile.mark_dynamic(x, 0, min=8, max=16)
        assert torch.equal(compiled(x), x + 1)
    assert len(api.handle_of(compiled).compiled.entries) == 2


def test_zero_and_one() -> None:
    handle = check(lambda x: x * 2 + x.sum(), [(torch.randn(n, 3),) for n in (4, 5, 1, 0, 9, 1, 0)], most=4)
    assert len(handle.compiled.entries) == 4


def test_several_sizes() -> None:
    """Equal by chance in one call, different in the next."""
    check(lambda x, y: (x[:, :, None] + y[:, None, :]).sum(-1),
          [(torch.randn(b, m), torch.randn(b, n)) for b, m, n in ((3, 4, 4), (3, 5, 6), (2, 7, 7), (4, 8, 9))], most=3)


def test_unequal_sizes_raise() -> None:
    """What is one size because the program needs it raises eager mode's error otherwise."""
    compiled = minicompile.compile(lambda x, y: x + y)
    for n in (3, 4, 5):
        compiled(torch.ones(n), torch.ones(n))
    with pytest.raises(RuntimeError, match="must match the size"):
        compiled(torch.ones(6), torch.ones(7))
    assert torch.equal(compiled(torch.ones(6), torch.ones(1)), torch.full((6,), 2.))


def test_branches_on_sizes() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return x.sum(0) if x.shape[0] > 10 else x.mean(0)
    check(fn, [(torch.randn(n, 3),) for n in (4, 5, 12, 20, 6, 30, 9)], most=3)


def test_loops_over_sizes() -> None:
    """A loop is unrolled: its size is a constant again, and the reason says so."""
    def fn(x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(3)
        for i in range(x.shape[0]):
            total = total + x[i] * i
        return total
    handle = check(fn, [(torch.randn(n, 3),) for n in (2, 3, 4)], most=3)
    assert "x.size(0)" in handle.compiled.why_constant


def test_why_static() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return sum(x[i] for i in range(x.shape[0])) + x.sum(0)
    explanation = minicompile.explain(minicompile.compile(fn, dynamic=True))(torch.randn(3, 4))
    assert "range" in explanation.why_static("x", 0) or ".py:" in explanation.why_static("x", 0)
    assert "varies" in explanation.why_static("x", 1)
    with pytest.raises(LookupError, match="there are x"):
        explanation.why_static("y", 0)


def test_recompiles_say_which_size() -> None:
    compiled = minicompile.compile(lambda x: x + 1)
    compiled(torch.ones(3, 4))
    compiled(torch.ones(5, 4))
    assert "shape: expected (3, 4), found (5, 4)" in minicompile.recompiles(compiled)[0]


def test_growing_cache() -> None:
    """One token at a time, with keys and values of all before: at most two programs for the whole of it."""
    torch.manual_seed(0)
    project = nn.Linear(16, 48)

    def step(x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple:
        q, k, v = project(x).chunk(3, -1)
        keys, values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
        heads = [t.view(t.shape[0], t.shape[1], 4, 4).transpose(1, 2) for t in (q, keys, values)]
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2), keys, values

    with torch.no_grad():
        compiled = minicompile.compile(step)
        keys, values = torch.randn(2, 2, 3, 16)
        mine_k, mine_v = keys, values
        for _ in range(12):
            x = torch.randn(2, 1, 16)
            out, keys, values = step(x, keys, values)
            mine, mine_k, mine_v = compiled(x, mine_k, mine_v)
            torch.testing.assert_close((mine, mine_k, mine_v), (out, keys, values))
    assert len(api.handle_of(compiled).compiled.entries) <= 2


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 50)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + torch.arange(ids.shape[1], device=ids.device)[None, :, None] / 100
        return self.head(self.norm(self.layer(x)))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
                                    nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(),
                                    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("train", [False, True])
def test_encoder(train: bool) -> None:
    torch.manual_seed(0)
    model = Encoder().train(train)
    calls = [(torch.randint(0, 50, (b, t)),) for b, t in ((2, 8), (3, 12), (4, 9), (2, 30))]
    if train:
        compiled = minicompile.compile(model)
        for ids, in calls:
            found = [torch.autograd.grad(m(ids).square().mean(), list(model.parameters())) for m in (compiled, model)]
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
        handle = api.handle_of(compiled)
        assert len(handle.compiled.entries) <= 2, handle.compiled.why_constant
    else:
        with torch.no_grad():
            check(model, calls)


@pytest.mark.parametrize("image", [False, True])
def test_convolutions(image: bool) -> None:
    torch.manual_seed(0)
    shapes = ((2, 32), (2, 48), (2, 40), (2, 64)) if image else ((2, 32), (3, 32), (5, 32), (8, 32))
    with torch.no_grad():
        check(Convolutions().eval(), [(torch.randn(b, 3, s, s),) for b, s in shapes])


def test_torch_compile_backend() -> None:
    """Behind torch's own capture, which gives sizes that vary its own way."""
    def fn(x: torch.Tensor) -> torch.Tensor:
        return (x.view(x.shape[0] * 2, -1) * x.shape[0]).sum(-1) + x.size(1)
    compiled = torch.compile(fn, backend=api.torch_backend)
    for n in (4, 6, 8, 10):
        x = torch.randn(n, 4)
        torch.testing.assert_close(compiled(x), fn(x))
