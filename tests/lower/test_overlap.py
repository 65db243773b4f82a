"""Which windows on one storage share elements, writes that read what they write, and errors nobody waits for."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minicompile
from minicompile.errors import Refusal
from minicompile.ir.spec import TensorSpec
from minicompile.lower.functionalise import share

STEPS = st.lists(st.tuples(st.sampled_from(["narrow", "stride", "transpose", "select"]), st.integers(0, 3),
                           st.integers(0, 5), st.integers(1, 3)), max_size=3)
SHAPES = st.sampled_from([(2, -1), (2, 3, -1), (-1,), (4, -1)])


def window(flat: torch.Tensor, shape: tuple[int, ...], steps: list) -> torch.Tensor:
    x = flat.view(shape)
    for name, dim, at, step in steps:
        if x.dim() and x.shape[dim % x.dim()]:
            dim %= x.dim()
            at %= x.shape[dim]
            x = {"narrow": lambda x=x, d=dim, a=at, s=step: x.narrow(d, a, min(s, x.shape[d] - a)),
                 "stride": lambda x=x, d=dim, a=at, s=step: x[(slice(None),) * d + (slice(a, None, s),)],
                 "transpose": lambda x=x, d=dim: x.transpose(0, d),
                 "select": lambda x=x, d=dim, a=at: x.select(d, a)}[name]()
    return x


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([24, 36, 60]), SHAPES, STEPS, SHAPES, STEPS)
def test_windows_share_what_a_write_shows(size: int, one: tuple, first: list, two: tuple, second: list) -> None:
    flat = torch.zeros(size)
    a, b = window(flat, one, first), window(flat, two, second)
    a.fill_(1)
    before = flat.clone()
    flat.zero_()
    b.fill_(1)
    assert share(TensorSpec.of(a), TensorSpec.of(b)) == bool((flat * before).any())


X, I = torch.randn(4, 6), torch.tensor([0, 1, 1])


@pytest.mark.parametrize("fn", [
    lambda x: x.index_put_((I,), x[0], accumulate=True),
    lambda x: x.index_add_(0, I, x[1:4]),
    lambda x: x[:, ::2].copy_(x[:, :3]),
    lambda x: x.scatter_add_(0, I.view(1, 3), x[:1, :3]),
])
def test_what_depends_on_the_order_of_a_loop_is_refused(fn: Callable) -> None:
    with pytest.raises(Refusal, match="overlap"):
        minicompile.compile(fn, fullgraph=True)(X.clone())


@pytest.mark.parametrize("fn", [lambda x: x[:, ::2].copy_(x[:, 1::2]), lambda x: x.add_(x), lambda x: x.copy_(x),
                                lambda x: x[:, :3].mul_(x[:, 3:])])
def test_what_does_not_is_compiled(fn: Callable) -> None:
    mine, eager = X.clone(), X.clone()
    minicompile.compile(fn, fullgraph=True)(mine)
    fn(eager)
    assert torch.equal(mine, eager)


@pytest.mark.parametrize("fn, x, error", [
    (lambda x: (x[torch.tensor([7])], x + 1)[1], X, IndexError),
    (lambda x: (x // 0, x + 1)[1], torch.arange(5), RuntimeError),
    (lambda x: (x.gather(0, torch.full((1, 6), 9)), x + 1)[1], X, RuntimeError),
])
def test_an_error_in_an_unused_result_is_raised(fn: Callable, x: torch.Tensor, error: type) -> None:
    for f in (fn, minicompile.compile(fn, fullgraph=True)):
        with pytest.raises(error) as caught:
            f(x)
        if f is fn:
            message = str(caught.value)
    assert str(caught.value) == message


@pytest.mark.parametrize("fn", [
    lambda x, i: x.unsqueeze(0)[i], lambda x, i: x.expand(3, 4)[i], lambda x, i: x.sum(0, keepdim=True)[i],
    lambda x, i: torch.zeros(3)[i], lambda x, i: x[:1].view(()).index_select(0, i),
    lambda x, i: x.unsqueeze(0).index_put((i,), x), lambda x, i: x.index_fill(0, i, 2.0),
    lambda x, i: x.index_copy(0, i, x[:1]), lambda x, i: x.index_add(0, i, x[:1]),
    lambda x, i: x.view(2, 2).index_add(1, i, x.view(2, 2)[:, :1]), lambda x, i: x.view(2, 2).index_select(1, i),
])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_bad_index_is_seen_also_where_the_place_does_not_depend_on_it(fn: Callable, backend: str) -> None:
    x, i, words = torch.randn(4), torch.tensor([5]), []
    for f in (fn, minicompile.compile(fn, fullgraph=True, backend=backend)):
        with pytest.raises((IndexError, RuntimeError)) as caught:
            f(x, i)
        words.append((type(caught.value), str(caught.value)))
    assert words[0] == words[1]
