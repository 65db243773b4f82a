"""Torch calls with a Python int that differs from call to call, wherever they take one: as a scalar, a size,
a dimension, an index, a parameter. Whatever a call makes of it, the next call's answer is eager mode's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import minicompile

from .test_varying import agree, outcome

CALLS = {
    "expand": lambda x, n: x[:1].expand(n, 5),
    "zeros": lambda x, n: torch.zeros(n) + x.sum(),
    "narrow": lambda x, n: x.narrow(0, n - 1, 1),
    "idx": lambda x, n: x[n - 1],
    "sl": lambda x, n: x[..., :n],
    "cat": lambda x, n: torch.cat([x, x], dim=n - 2),
    "pad": lambda x, n: F.pad(x, (n, n)),
    "pad2": lambda x, n: F.pad(x, (n, 0), value=n),
    "rep": lambda x, n: x.repeat(n, 1),
    "split": lambda x, n: x.split(n),
    "ones": lambda x, n: torch.ones(2, n),
    "arange": lambda x, n: torch.arange(n) * 2,
    "arange2": lambda x, n: torch.arange(n, n + 3),
    "lin": lambda x, n: torch.linspace(0, 1, n),
    "topk": lambda x, n: x.topk(n)[0],
    "chunk": lambda x, n: x.chunk(n),
    "view": lambda x, n: x[:, :4].reshape(-1, n if n != 3 else 4),
    "unf": lambda x, n: x.unfold(1, n, 1),
    "roll": lambda x, n: x.roll(n, 0),
    "tri": lambda x, n: x.tril(n),
    "diag": lambda x, n: x.diagonal(n - 1),
    "eye": lambda x, n: torch.eye(n),
    "full": lambda x, n: torch.full((n, 2), n),
    "randperm": lambda x, n: torch.zeros(n).fill_(n),
    "mean": lambda x, n: x.mean(n - 2),
    "sm": lambda x, n: x.softmax(n - 2),
    "tr": lambda x, n: x.transpose(0, n - 2),
    "unsq": lambda x, n: x.unsqueeze(n - 1),
    "norm": lambda x, n: x.norm(n),
    "cumsum": lambda x, n: x.cumsum(n - 2),
    "sel": lambda x, n: x.select(0, n - 1),
    "size": lambda x, n: x.size(n - 2) + n,
    "avg": lambda x, n: F.avg_pool1d(x[None], n),
    "conv": lambda x, n: F.conv1d(x[None], torch.ones(1, 4, 1), stride=n),
    "onehot": lambda x, n: F.one_hot(torch.tensor([0, 1]), n + 2),
    "ln": lambda x, n: F.layer_norm(x, (5,), eps=n * 1e-05),
    "drop": lambda x, n: F.dropout(x, n * 0.1, False),
    "idxput": lambda x, n: torch.cat([x]).index_fill_(0, torch.tensor([1]), n),
    "scat": lambda x, n: x.scatter(0, torch.zeros(1, 5, dtype=torch.long), n),
    "maskedf": lambda x, n: x.masked_fill(x > 0, n),
    "where": lambda x, n: torch.where(x > 0, n, x),
    "clampn": lambda x, n: x.clamp(-n, n),
    "thr": lambda x, n: F.threshold(x, n, n),
    "hardt": lambda x, n: F.hardtanh(x, -n, n),
    "elu": lambda x, n: F.elu(x, n),
    "leaky": lambda x, n: F.leaky_relu(x, n),
    "gel": lambda x, n: F.softplus(x, n),
    "powt": lambda x, n: n ** x,
    "powx": lambda x, n: x ** n,
    "rpow": lambda x, n: torch.pow(n, x),
    "fdiv": lambda x, n: x // n,
    "mod": lambda x, n: x % n,
    "rdiv": lambda x, n: n / x,
    "rfd": lambda x, n: n // (x.abs() + 1),
    "rmod": lambda x, n: n % (x.abs() + 1),
    "bit": lambda x, n: x.long() & n,
    "shift": lambda x, n: x.long() << n,
    "addmm": lambda x, n: torch.addmm(x[:, :4], x[:, :4], x[:, :4], alpha=n, beta=n),
    "baddbmm": lambda x, n: torch.baddbmm(x[None, :, :4], x[None, :, :4], x[None, :, :4], alpha=n),
    "sdpa": lambda x, n: F.scaled_dot_product_attention(x[None], x[None], x[None], scale=n * 0.5),
    "bn": lambda x, n: F.batch_norm(x, torch.zeros(5), torch.ones(5), momentum=n * 0.1, eps=n * 0.1),
    "cdist": lambda x, n: torch.cdist(x, x, p=n),
    "var": lambda x, n: x.var(correction=n - 1),
    "round": lambda x, n: x.round(decimals=n),
    "nan": lambda x, n: x.nan_to_num(nan=n),
    "quant": lambda x, n: x.quantile(n * 0.1),
    "renorm": lambda x, n: x.renorm(2, 0, n),
    "addc": lambda x, n: x.addcmul(x, x, value=n),
    "cross": lambda x, n: F.cross_entropy(x, torch.tensor([0, 1, 2, 3]), label_smoothing=n * 0.1),
    "huber": lambda x, n: F.huber_loss(x, x * 2, delta=n),
    "item": lambda x, n: (x * n).sum().item(),
    "tens": lambda x, n: torch.tensor([n, 2]) + x[0, 0],
    "tens2": lambda x, n: x.new_tensor(n),
    "newf": lambda x, n: x.new_full((2,), n),
    "fl": lambda x, n: x * float(n),
    "npow": lambda x, n: x * 2 ** n,
    "interp": lambda x, n: F.interpolate(x[None, None], size=(n, n)),
    "gelu": lambda x, n: x.fill_(n),
    "setit": lambda x, n: x.__setitem__(0, n),
    "setsl": lambda x, n: x.__setitem__(slice(0, n), n * 0.5),
    "copyt": lambda x, n: x.add_(n).mul_(n),
    "iadd": lambda x, n: torch.Tensor.__iadd__(x, n),
    "isub": lambda x, n: x.sub_(x, alpha=n),
    "lerp_": lambda x, n: x.lerp_(x.cos(), n * 0.1),
    "uniform": lambda x, n: (torch.manual_seed(0), torch.empty(3).uniform_(0, n))[1],
    "normal": lambda x, n: torch.normal(n * 1.0, 1.0, (3,), generator=torch.Generator().manual_seed(1)),
    "bern": lambda x, n: torch.bernoulli(x * 0 + 0.5, generator=torch.Generator().manual_seed(n)),
    "logspace": lambda x, n: torch.logspace(0, n, 3),
    "hist": lambda x, n: torch.histc(x, n + 2, -1, 1),
    "bucket": lambda x, n: torch.bucketize(x, torch.tensor([0.0, 1.0])) + n,
    "stack": lambda x, n: torch.stack([x] * n),
    "repint": lambda x, n: x.repeat_interleave(n, 0),
    "movedim": lambda x, n: x.movedim(0, n - 2),
    "perm": lambda x, n: x.permute(n - 2, -n + 3 - 2 + (1 if n == 2 else 0)) if n < 4 else x,
    "flat": lambda x, n: x.flatten(0, n - 2) if n < 4 else x,
    "vstr": lambda x, n: x.as_strided((n, 2), (1, 1)),
    "swap": lambda x, n: x.flip(n - 2) if n < 4 else x,
    "kth": lambda x, n: x.kthvalue(n)[0],
    "isclose": lambda x, n: torch.isclose(x, x + n, atol=n),
    "allc": lambda x, n: torch.allclose(x, x + n, atol=n + 0.1),
    "cst": lambda x, n: x.sum() + [1, 2, 3, 4, 5][n],
    "fm": lambda x, n: torch.fmod(x, n),
    "rem": lambda x, n: torch.remainder(x, n),
    "atan2": lambda x, n: torch.special.xlogy(x.abs(), n),
    "gtt": lambda x, n: x.gt(n),
    "eqq": lambda x, n: torch.eq(x, n),
    "maxi": lambda x, n: torch.maximum(x, torch.tensor(n)),
    "dist": lambda x, n: torch.dist(x, x * 2, n),
    "pairw": lambda x, n: F.pairwise_distance(x, x * 2, p=n),
    "cosim": lambda x, n: F.cosine_similarity(x, x, dim=n - 2) if n < 4 else x,
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", CALLS)
def test_call(name, backend):
    f = CALLS[name]
    compiled = minicompile.compile(f, backend=backend)
    for n in (2, 3, 2, 3, 4):
        x = torch.randn(4, 5)
        y = x.clone()
        got, expected = outcome(compiled, x, n), outcome(f, y, n)
        if not isinstance(expected, tuple) or expected[0] not in (IndexError, RuntimeError):
            agree(got, expected)
            agree(x, y)
        else:
            assert got[0] is expected[0]
