"""What tests of sizes that vary share: calls with several sizes, compared with eager mode, and how many programs
they took."""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch

import minicompile
from minicompile import api


def clones(x: Any) -> Any:
    """Copies of the tensors in nested containers, with their strides and requires_grad."""
    if isinstance(x, torch.Tensor):
        if x._base is not None and x.requires_grad:
            return x
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x.detach()).requires_grad_(
            x.requires_grad)
    if isinstance(x, (tuple, list)):
        return type(x)(map(clones, x))
    return {k: clones(v) for k, v in x.items()} if isinstance(x, dict) else copy.deepcopy(x)


def same(a: Any, b: Any) -> None:
    """Values up to rounding; shapes, strides and dtypes exactly."""
    if isinstance(a, torch.Tensor):
        assert type(a) is type(b) and a.shape == b.shape and a.dtype == b.dtype, (a.shape, b.shape, a.dtype, b.dtype)
        assert a.stride() == b.stride(), (a.shape, a.stride(), b.stride())
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5, equal_nan=True)
    elif isinstance(a, (tuple, list)):
        assert type(a) is type(b) and len(a) == len(b)
        for x, y in zip(a, b):
            same(x, y)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for k in a:
            same(a[k], b[k])
    else:
        assert type(a) is type(b) and a == b, (a, b)


def check(fn: Callable, calls: Iterable[tuple], *, most: int | None = 2, train: bool = False, **settings: Any) -> Any:
    """Calls fn and a compiled fn with each tuple of arguments in turn: same results, same inputs afterwards, and, if
    `train`, same gradients of the inputs. At most `most` programs may have been compiled for all of them (None: any
    number), none of them refused. Gives the compiled function's Handle."""
    compiled = minicompile.compile(fn, **settings)
    handle = api.handle_of(compiled)
    assert handle is not None
    for args in calls:
        mine, theirs = clones(args), clones(args)
        same(compiled(*mine), fn(*theirs))
        same(list(mine), list(theirs))
        if train:
            _backward(compiled, clones(args), fn, clones(args))
    if most is not None:
        reasons = handle.compiled.why_constant
        assert len(handle.compiled.entries) <= most, (len(handle.compiled.entries), reasons, handle.misses)
        assert not handle.refusals, handle.refusals
    return handle


def _backward(compiled: Callable, mine: tuple, fn: Callable, theirs: tuple) -> None:
    for f, args in ((compiled, mine), (fn, theirs)):
        out = f(*args)
        out = out[0] if isinstance(out, (tuple, list)) else out
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    for a, b in zip(mine, theirs):
        if isinstance(a, torch.Tensor) and a.requires_grad:
            same(a.grad, b.grad)
