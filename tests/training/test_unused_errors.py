"""What nothing needs, but eager mode would raise for, raises in training graphs too; and so does what a library call
checks on the side."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import minicompile

X, BAD = torch.randn(5, 3), torch.tensor([1, 7])
UNUSED = {
    "index": lambda x, i: x[i],
    "embedding": lambda x, i: F.embedding(i, x),
    "nll_loss": lambda x, i: F.nll_loss(x[:2], i),
    "division": lambda x, i: i // (i * 0),
    "index_put": lambda x, i: x.clone().index_put((i,), torch.tensor(1.0)),
    "gather": lambda x, i: torch.gather(x, 0, i[:, None]),
    "take": lambda x, i: torch.take(x, i * 10),
    "binary_cross_entropy": lambda x, i: F.binary_cross_entropy(x + 100, x),
    "cholesky": lambda x, i: torch.linalg.cholesky(x[:3, :3] * 0 - 1),
}


def raised(f, x: torch.Tensor) -> tuple[str, str]:
    with pytest.raises(Exception) as caught:
        f(x.clone().requires_grad_(), BAD).sum().backward()
    return type(caught.value).__name__, str(caught.value)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("name", UNUSED)
def test_unused_results_raise(name: str, backend: str) -> None:
    def f(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        UNUSED[name](x, i)
        return x * 2

    assert raised(minicompile.compile(f, fullgraph=True, backend=backend), X) == raised(f, X)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_result_in_use_is_checked_too(backend: str) -> None:
    def f(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.linalg.cholesky(x[:3, :3] * 0 - 1) * x[:3]

    assert raised(minicompile.compile(f, fullgraph=True, backend=backend), X) == raised(f, X)
