"""Results that are views under another dtype or lazily conjugated, inputs that get another geometry, draws into
memory that is not contiguous: all is as eager mode leaves it."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import minicompile

REAL, COMPLEX = torch.randn(4, 6), torch.randn(4, 6, dtype=torch.complex64)


def transposed_and_written(x: torch.Tensor) -> torch.Tensor:
    x.t_()
    x.add_(1)
    return x + 1


def unsqueezed_for_a_while(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x.unsqueeze_(0)
    x.mul_(2)
    y = x.view(2, 2, 6)
    x.squeeze_()
    return y, x


def all_at_once(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = x * 2
    return y.real, y.imag, y.conj(), y


VIEWS: list[tuple[Callable, torch.Tensor]] = [
    (lambda x: x.conj(), COMPLEX),
    (lambda x: (x * 2).conj(), COMPLEX),
    (lambda x: (x * 2).conj().imag, COMPLEX),
    (lambda x: (x.real, x.imag, x * 2), COMPLEX),
    (all_at_once, COMPLEX),
    (lambda x: torch.view_as_real(x) + 1, COMPLEX),
    (lambda x: torch.view_as_complex(x.view(4, 3, 2)), REAL),
    (lambda x: (x + 1).view(torch.int32), REAL),
    (lambda x: x.view(torch.int16), REAL),
    (lambda x: x.conj().mul_(2j), COMPLEX),
    (lambda x: x.conj().imag.mul_(2), COMPLEX),
    (lambda x: (x.mH @ x, x.mT.conj().resolve_conj()), COMPLEX),
    (lambda x: x.conj().t().contiguous(), COMPLEX),
    (lambda x: torch.conj_physical(x.conj()), COMPLEX),
    (lambda x: torch.fft.ihfft(x), REAL),
]
GEOMETRY: list[tuple[Callable, torch.Tensor]] = [
    (lambda x: x.t_(), REAL),
    (transposed_and_written, REAL),
    (unsqueezed_for_a_while, REAL),
    (lambda x: x.unsqueeze_(1), COMPLEX),
    (lambda x: (x.t_(), x.imag), COMPLEX),
    (lambda x: x.transpose_(0, 1).add_(1), COMPLEX),
    (lambda x: x.as_strided_((2, 2), (1, 2), 3), REAL),
    (lambda x: x.as_strided_((2, 2), (1, 2)).mul_(3), REAL),
    (lambda x: x.resize_(2, 3), REAL),
    (lambda x: x.resize_as_(torch.zeros(3, 2)), REAL),
    (lambda x: (x + 1).t_().add_(1), REAL),
    (lambda x: x.as_strided((2, 2), (1, 2), 3).mul_(2), REAL),
]
HOLES: list[tuple[Callable, torch.Tensor]] = [
    (lambda x: torch.slice_scatter(x[::2], x[:1], 0, 0, 1), REAL),
    (lambda x: torch.select_scatter(x[:, ::2], x[:, 0], 1, 0), REAL),
    (lambda x: torch.select_scatter(x[:, 1::2], x[:, 0], 1, 0), COMPLEX),
    (lambda x: x[:, ::2].uniform_(), REAL),
    (lambda x: x[:, ::2].normal_(1, 2), REAL),
    (lambda x: x.t().cauchy_(), REAL),
    (lambda x: x[:, 1::2].bernoulli_(0.3), REAL),
    (lambda x: x.t().bernoulli_(0.3), REAL),
    (lambda x: x[:, 1::2].random_(3, 10), REAL),
    (lambda x: x[:, 1::2].random_(), REAL),
    (lambda x: x[:, 1::2].log_normal_(), REAL),
]


def geometry(t: torch.Tensor) -> tuple:
    return t.dtype, t.shape, t.stride(), t.storage_offset(), t.is_conj(), t.is_neg()


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("fn, x", [*VIEWS, *GEOMETRY, *HOLES])
def test_results_and_inputs_are_as_in_eager_mode(fn: Callable, x: torch.Tensor, backend: str) -> None:
    compiled = minicompile.compile(fn, backend=backend, fullgraph=True)
    for seed in range(2):
        mine, eager = x.clone(), x.clone()
        results = []
        for f, given in ((compiled, mine), (fn, eager)):
            torch.manual_seed(seed)
            out = f(given)
            results.append([*(out if isinstance(out, tuple) else (out,)), given])
        for got, want in zip(*results, strict=True):
            assert geometry(got) == geometry(want)
            torch.testing.assert_close(got, want)
        assert [r is mine for r in results[0]] == [r is eager for r in results[1]]


def test_a_conjugated_gradient_comes_into_compiled_code_as_its_value() -> None:
    for fn in (lambda x: x * x, lambda x: (x * x).conj()):
        grads = []
        for f in (fn, minicompile.compile(fn, fullgraph=True)):
            x = COMPLEX.clone().requires_grad_()
            (f(x).conj() * (1 + 2j)).sum().abs().backward()
            grads.append(x.grad)
        torch.testing.assert_close(*grads)


def test_gradients_that_are_parts_of_a_complex_one() -> None:
    def fn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.complex(a, b) * (2 + 1j)
    grads = []
    for f in (fn, minicompile.compile(fn, fullgraph=True)):
        a, b = REAL.clone().requires_grad_(), (REAL + 1).requires_grad_()
        (f(a, b) * (1 + 3j)).real.sum().backward()
        grads.append((a.grad, b.grad))
    torch.testing.assert_close(*grads)
