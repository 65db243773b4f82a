"""Torch's features, program by program: values, types, effects, gradients and random numbers are as in eager mode,
on the first call and on later ones, also after something has changed between them."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils import _pytree

import minicompile

from . import features_more  # noqa: F401  (adds programs)
from .features import FEATURES


def leaves(value):
    return _pytree.tree_leaves(value)


def equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True)
        assert found.requires_grad == expected.requires_grad
        assert found.is_leaf == expected.is_leaf
        assert found.__dict__ == expected.__dict__
        if expected.layout is torch.strided and 1 not in expected.shape:
            assert found.stride() == expected.stride()
    elif isinstance(expected, (tuple, list)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected):
            equal(a, b)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for k in expected:
            equal(found[k], expected[k])
    elif isinstance(expected, (int, float, str, bool, type(None), torch.dtype, torch.device)):
        assert found == expected


def state(f):
    """What a callable holds that a call may change."""
    owner = f if isinstance(f, nn.Module) else getattr(f, "__self__", None)
    if isinstance(owner, nn.Module):
        return [(name, {k: v for k, v in vars(m).items() if k in ("_parameters", "_buffers", "training") or not
                        k.startswith("_") and isinstance(v, (int, float, list, dict, torch.Tensor))})
                for name, m in owner.named_modules()]
    return dict(vars(owner)) if owner is not None else {}


def outcome(f, args):
    """(result or exception, the generator's state after it)"""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = f(*args)
        except Exception as e:
            result = (type(e), str(e))
    return result, torch.get_rng_state()


def gradients(result, f, args):
    """Runs a backward from all results that have one; the gradients that arrive."""
    sources = [t for t in leaves(result) if isinstance(t, torch.Tensor) and t.grad_fn is not None
               and (t.is_floating_point() or t.is_complex())]
    if sources:
        sum(t.abs().square().sum() for t in sources).backward()
    owner = f if isinstance(f, nn.Module) else None
    into = [*(owner.parameters() if owner else ()), *(t for t in leaves(args) if isinstance(t, torch.Tensor)
                                                      and t.is_leaf)]
    arrived = [t.grad for t in into]
    for t in into:
        t.grad = None
    return arrived


@pytest.mark.parametrize("trains", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("name", FEATURES)
def test_feature(name, trains):
    make, mutate = FEATURES[name]
    sides = []
    for _ in range(2):
        torch.manual_seed(0)
        sides.append(make())
    (f, args), (g, given) = sides
    with torch.set_grad_enabled(trains):
        compiled = minicompile.compile(g, backend="aot_eager")     # of code other tests know more
        for step in range(3):
            if step == 2 and mutate is not None:
                torch.manual_seed(2), mutate(f, args)
                torch.manual_seed(2), mutate(g, given)
            (expected, numbers), (found, drawn) = outcome(f, args), outcome(compiled, given)
            equal(found, expected)
            assert torch.equal(numbers, drawn)
            equal(given, args)
            if trains:
                equal(gradients(found, g, given), gradients(expected, f, args))
            equal(state(g), state(f))
