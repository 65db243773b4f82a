"""Corners where the lowering has to agree with eager mode, or refuse: geometry, aliasing, errors."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from minicompile.lower.decompose import decompose
from minicompile.lower.trace import trace_callable
from minicompile.testing.opinfo import Case, How, judge


def verdict(fn: Callable, *args: object) -> str:
    kind, reason, _ = judge(Case("", fn, args, {}), How(), None, True)
    return kind if kind in ("ok", "refused") else f"{kind}: {reason}"


X, Y, INDEX = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0, 2])
COMPLEX = torch.randn(3, 4, dtype=torch.complex64)

# Eager mode raises; the lowering either does so as well, or leaves the call to the kernel that does.
RAISES: list[tuple[Callable, tuple]] = [
    (lambda x, y: x.atan2_(y), (torch.randn(3, 1), Y)),
    (lambda x, i: torch.gather(x, 0, i), (torch.randn(3), torch.zeros(6, 1, dtype=torch.int64))),
    (lambda x, v: x.masked_fill(x > 0, v), (X, torch.ones(1))),
    (lambda x: F.softshrink(x, -0.5), (X,)),
    (lambda x: F.gelu(x, approximate="other"), (X,)),
    (lambda x: torch.roll(x, (), ()), (X,)),
    (lambda x, i, s: x.index_add(0, i, s), (X, INDEX, torch.randn(2))),
    (lambda x: torch.native_layer_norm(x, [], None, None, 1e-5), (X,)),
    (lambda x: torch.native_group_norm(x, None, None, 3, 4, 1, 2, 1e-5), (torch.randn(4, 3).t(),)),
    (lambda x: x.amax(0), (torch.ones([1] * 65),)),
    (lambda x: x.mul_(0.5), (torch.arange(3),)),
]
AGREES: list[tuple[Callable, tuple]] = [
    (lambda x: torch.linalg.svd(x), (torch.randn(2, 3, 4),)),
    (lambda x: torch.fft.rfftn(x), (torch.randn(3, 4, 5),)),
    (lambda x: torch.linalg.eig(x), (torch.randn(4, 4),)),
    (lambda x: torch.histogram(x, 4), (torch.rand(9),)),
    (lambda: torch.arange(1.0, 5.000001, 2.0, dtype=torch.int64), ()),
    (lambda: torch.arange(1.0, 5.000001, 2.0, dtype=torch.uint8), ()),
    (lambda x: x.polygamma_(1), (torch.rand(3) + 1,)),
    (lambda x: (x * 2).real, (COMPLEX,)),
    (lambda x: torch.view_as_complex(x * 2), (torch.randn(3, 2),)),
    (lambda x: torch.view_as_real(x * 2), (COMPLEX,)),
    (lambda x, y: (x @ y).reshape(9), (COMPLEX, torch.randn(4, 3, dtype=torch.complex64))),
    (lambda x, y: torch.add(x, y, out=x), (X.clone(), Y)),
    (lambda x: x.t().unbind(), (torch.zeros(2, 3),)),
    (lambda x: [p.add_(1) for p in x.unsafe_split(2)] + [x], (torch.zeros(6),)),
    (lambda *a: torch.gru_cell(*a), (torch.randn(2, 3), torch.randn(2, 4), torch.randn(12, 3), torch.randn(12, 4),
                                     torch.randn(12), torch.randn(12))),
]
AGREES += [
    (lambda x: x.conj(), (COMPLEX,)),
    (lambda x: x.normal_(), (torch.zeros(4, 4)[:, ::2],)),
    (lambda x, y: x.clone().resize_as_(y), (X, Y)),
]
REFUSED: list[tuple[Callable, tuple]] = [
    (lambda x, y: torch.mm(x, y, out=x), (torch.randn(3, 3), torch.randn(3, 3))),
    (lambda x, o: torch.cumsum(x, 0, out=o), (X, torch.zeros(3, 4, dtype=torch.float64))),
]


@pytest.mark.parametrize("fn, args", RAISES)
def test_what_eager_mode_raises_is_raised(fn: Callable, args: tuple) -> None:
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        fn(*(a.clone() for a in args))
    assert verdict(fn, *args) in ("ok", "refused")


@pytest.mark.parametrize("fn, args", AGREES)
def test_results_are_eager_modes(fn: Callable, args: tuple) -> None:
    assert verdict(fn, *args) == "ok"


@pytest.mark.parametrize("fn, args", REFUSED)
def test_what_has_no_form_here_is_refused(fn: Callable, args: tuple) -> None:
    assert verdict(fn, *args) == "refused"


def test_arguments_that_do_not_fit_become_a_library_call() -> None:
    prims = decompose(trace_callable(lambda x: F.softshrink(x, -0.5), X))
    assert [str(n.op) for n in prims.graph.nodes] == ["aten.softshrink.default"]
