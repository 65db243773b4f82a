"""Results that are views of inputs: tensors of their own, also where the geometry is the input's."""
from __future__ import annotations

import pytest
import torch

import minicompile


@pytest.mark.parametrize("backend", ["aot_eager", "reference", "cpp"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_view_is_not_the_input_itself(backend: str, grad: bool) -> None:
    f = minicompile.compile(lambda x: (x, x[...], x.view(3), x * 2), backend=backend)
    x = torch.ones(3, requires_grad=grad)
    same, *views, _ = f(x)
    assert same is x
    for v in views:
        assert v is not x and v.data_ptr() == x.data_ptr() and v.requires_grad == grad
    with torch.no_grad():
        assert f(x)[1].requires_grad == grad          # as eager mode has it for views of leaves


def test_an_expanded_input_has_a_gradient_per_element() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return x[None]
    x = torch.randn(1, 2).expand(3, 2).detach().requires_grad_()
    (got,) = torch.autograd.grad(minicompile.compile(fn, backend="reference")(x), x,
                                 torch.arange(6.0).view(1, 3, 2))
    torch.testing.assert_close(got, torch.arange(6.0).view(3, 2))


def test_a_draw_that_nothing_uses_still_moves_the_generator_while_training() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        torch.randperm(5)
        return x.abs().sum()
    x, states = torch.randn(4, requires_grad=True), []
    for f in (fn, minicompile.compile(fn, backend="reference")):
        torch.manual_seed(0)
        f(x)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_no_index_is_checked_where_there_is_no_point() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return x.index_add(-1, torch.tensor([1, 0]), x.index_select(-1, torch.tensor([0, 2])))
    for backend in ("reference", "cpp"):
        assert minicompile.compile(fn, backend=backend)(torch.ones(0, 3)).shape == (0, 3)
