"""Flash attention: values and gradients by the interpreter against torch, code for GPUs that are not here."""

from __future__ import annotations

import pytest
import torch
from templates import compiled, interpreted, template

attention = template("attention")
TILE = (16, 16, 1, 1)
KERNELS = (attention.attention_delta_kernel, attention.attention_keys_kernel, attention.attention_queries_kernel)


def reference(q, k, v, mask, causal):
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    s = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        s = s + mask
    if causal:
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return torch.nan_to_num(s.softmax(-1)) @ v, s.logsumexp(-1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["", "full", "row"])
@pytest.mark.parametrize("heads, key_heads, m, n, d", [(2, 2, 20, 37, 16), (4, 2, 17, 17, 24), (2, 1, 1, 33, 8)])
def test_attention(causal, masked, heads, key_heads, m, n, d):
    q, k, v = (torch.randn(2, h, length, d, requires_grad=True)
               for h, length in ((heads, m), (key_heads, n), (key_heads, n)))
    mask = {"": None, "full": torch.randn(2, heads, m, n), "row": torch.randn(2, 1, 1, n)}[masked]
    if masked == "full":
        mask[0, 0, 0] = -torch.inf                      # a query that sees nothing
    want, lse = reference(q, k, v, mask, causal)
    with torch.no_grad():
        got, sums = attention.attention(q, k, v, mask, causal, None, TILE, interpreted(attention.attention_forward_kernel))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums, lse, rtol=1e-4, atol=1e-4)
    if masked == "full":                                # torch's own gradient is NaN there
        mask[0, 0, 0] = 0
        want, lse = reference(q, k, v, mask, causal)
    grad = torch.randn_like(want)
    expected = torch.autograd.grad(want, (q, k, v), grad)
    with torch.no_grad():
        gradients = attention.attention_backward(grad, q, k, v, want, lse, mask, causal, None, TILE,
                                                 tuple(map(interpreted, KERNELS)))
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_attention_of_views_that_are_not_contiguous():
    q, k, v = (torch.randn(2, 20, 3, 16).transpose(1, 2) for _ in range(3))
    got, _ = attention.attention(q, k, v, None, True, 0.3, TILE, interpreted(attention.attention_forward_kernel))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


POINTERS = {**dict.fromkeys("q k v mask out grad dq dk dv".split(), "*fp16"), "lse": "*fp32", "delta": "*fp32",
            "scale": "fp32"}
CONSTANTS = {"D": 64, "BD": 64, "CAUSAL": True, "MASK": False, "PRECISION": "ieee"}


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kernel", ["attention_forward_kernel", "attention_keys_kernel", "attention_queries_kernel"])
def test_attention_compiles_to_tensor_cores(kernel, target):
    tile = attention.TILE if "forward" in kernel else attention.BACKWARD
    sizes = dict(zip(("BM", "BN"), tile))
    got = compiled(getattr(attention, kernel), POINTERS, {**CONSTANTS, **sizes}, target, tile[2])
    assert got.spills == 0 and got.instructions["mma"] + got.instructions["wgmma"] > 0, got.instructions


def test_no_buffer_is_quadratic(monkeypatch):
    sizes = []
    empty = torch.empty

    def counted(*args, **kwargs):
        sizes.append((t := empty(*args, **kwargs)).numel())
        return t
    q = torch.randn(1, 1, 160, 8)
    with monkeypatch.context() as m:
        m.setattr(attention.torch, "empty", counted)
        out, lse = attention.attention(q, q, q, tile=TILE, kernel=interpreted(attention.attention_forward_kernel))
        attention.attention_backward(q, q, q, q, out, lse, tile=TILE, kernels=tuple(map(interpreted, KERNELS)))
    assert sizes and max(sizes) <= 160 * 8
