"""Operators on bfloat16 and float16 with Python numbers, and others that round more than once, bit for bit as
in eager mode."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from minicompile.lower.decompose import decompose
from minicompile.lower.trace import callable_inputs, trace_callable

EXACT = {
    "add": lambda x: x + 0.7, "sub": lambda x: x - 0.7, "rsub": lambda x: 0.7 - x, "mul": lambda x: x * 0.7,
    "div": lambda x: x / 0.7, "rdiv": lambda x: 0.7 / x, "rpow": lambda x: 0.7 ** x, "mod": lambda x: x % 0.7,
    "fmod": lambda x: torch.fmod(x, 0.7), "floordiv": lambda x: x // 0.7, "clamp": lambda x: x.clamp(-0.7, 0.7),
    "add 0-d": lambda x: x + torch.tensor(0.7), "mul 0-d": lambda x: x * torch.tensor(0.7),
    "floor": lambda x: torch.div(x, x.flip(0), rounding_mode="floor"),
    "trunc": lambda x: torch.div(x, x.flip(0), rounding_mode="trunc"),
    "floor number": lambda x: torch.div(x, 0.7, rounding_mode="floor"),
    "trunc number": lambda x: torch.div(x, 0.7, rounding_mode="trunc"),
    "lerp": lambda x: torch.lerp(x, x * 2, 0.7), "threshold": lambda x: F.threshold(x, 0.7, 0.3),
    "where": lambda x: torch.where(x > 0.7, x, 0.7), "masked_fill": lambda x: x.masked_fill(x > 0, 0.7),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.7), "elu": lambda x: F.elu(x, 0.7), "celu": lambda x: F.celu(x, 0.7),
    "softshrink": lambda x: F.softshrink(x, 0.7), "addcmul": lambda x: torch.addcmul(x, x, x, value=0.7),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_rounds_where_eager_rounds(name, dtype):
    f, x = EXACT[name], (torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    with torch.no_grad():
        got, want = decompose(trace_callable(f, x)).run(*callable_inputs(f, x))[0], f(x)
    assert bool(((got == want) | got.isnan() & want.isnan()).all())
