"""Gradients against finite differences in float64: sixty operators, compiled."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

import minicompile

OPERATORS = """add sub mul div pow exp log sin cos tan tanh sigmoid erf sqrt rsqrt reciprocal abs atan2 logaddexp
maximum minimum where clamp lerp addcmul addcdiv sum mean prod var std logsumexp cumsum cumprod softmax log_softmax
matmul mm bmm addmm addmv dot mv outer linalg.norm cat stack transpose permute expand reshape gather
index_select masked_fill roll flip tril triu diagonal unfold nn.functional.gelu nn.functional.silu
nn.functional.softplus nn.functional.layer_norm nn.functional.linear nn.functional.mse_loss""".split()
BY_NAME = {op.name: op for op in op_db if not op.variant_test_name}


def test_the_sample_is_sixty() -> None:
    assert len([n for n in OPERATORS if n in BY_NAME]) >= 60


@pytest.mark.parametrize("name", [n for n in OPERATORS if n in BY_NAME])
def test_gradcheck(name: str) -> None:
    op = BY_NAME[name]
    samples = [s for s in op.sample_inputs("cpu", torch.float64, requires_grad=True)
               if 0 < sum(t.numel() for t in tensors((s.input, s.args))) <= 1000]
    sample = samples[len(samples) // 2]
    given = [t for t in tensors((sample.input, sample.args)) if t.requires_grad]

    def f(*values: torch.Tensor) -> Any:
        rest = iter(values)
        x, args = replaced((sample.input, sample.args), rest)
        return op(x, *args, **sample.kwargs)
    compiled = minicompile.compile(f, backend="aot_eager")
    assert torch.autograd.gradcheck(compiled, tuple(given), fast_mode=True)
    handle = compiled.__minicompile__
    assert handle.compilations and not handle.refusals


def tensors(x: Any) -> list[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        return [x]
    return [t for v in x for t in tensors(v)] if isinstance(x, (list, tuple)) else []


def replaced(x: Any, values: Any) -> Any:
    """x with the next of `values` for each tensor that requires a gradient."""
    if isinstance(x, torch.Tensor):
        return next(values) if x.requires_grad else x
    return type(x)(replaced(v, values) for v in x) if isinstance(x, (list, tuple)) else x
