"""The matrix product templates: values by the interpreter, instructions by compiling for GPUs that are not here."""

from __future__ import annotations

import pytest
import torch
from templates import compiled, interpreted, template

matmul = template("matmul")
SMALL = (16, 16, 16, 1, 1)


def activated(x: torch.Tensor, activation: str) -> torch.Tensor:
    f = {"": lambda t: t, "relu": torch.relu, "silu": torch.nn.functional.silu,
         "gelu": torch.nn.functional.gelu, "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh")}
    return f[activation](x)


@pytest.mark.parametrize("activation", matmul.ACTIVATIONS)
@pytest.mark.parametrize("m, n, k", [(33, 17, 40), (16, 32, 48), (1, 5, 3)])
def test_matmul(m, n, k, activation):
    a, b, bias, rest = torch.randn(m, k), torch.randn(k, n), torch.randn(n), torch.randn(m, n)
    got = matmul.matmul(a, b, bias, rest, activation, tile=SMALL, kernel=interpreted(matmul.matmul_kernel))
    torch.testing.assert_close(got, activated(a @ b + bias, activation) + rest, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matmul_of_half_types_accumulates_in_float32(dtype):
    a, b = torch.randn(20, 64).to(dtype), torch.randn(64, 24).to(dtype)
    got = matmul.matmul(a, b.t().contiguous().t(), tile=SMALL, kernel=interpreted(matmul.matmul_kernel))
    torch.testing.assert_close(got, (a.float() @ b.float()).to(dtype), rtol=1e-2, atol=1e-2)


def test_matmul_applies_the_prologue_to_its_first_operand():
    a, b = torch.randn(20, 33), torch.randn(33, 24)
    got = matmul.matmul(a, b, prologue="relu", tile=SMALL, kernel=interpreted(matmul.matmul_kernel))
    torch.testing.assert_close(got, a.relu() @ b, rtol=1e-4, atol=1e-4)


def test_bmm():
    a, b, w = torch.randn(3, 20, 33), torch.randn(3, 33, 24), torch.randn(33, 24)
    kernel = interpreted(matmul.matmul_kernel)
    torch.testing.assert_close(matmul.matmul(a, b, tile=SMALL, kernel=kernel), a @ b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(matmul.matmul(a, w, tile=SMALL, kernel=kernel), a @ w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised(bits):
    x, weight, bias = torch.randn(19, 96), torch.randn(40, 96), torch.randn(40)
    w, scale = matmul.quantise(weight, bits, 32)
    if bits == 8:
        exact = w.float() * scale[:, None]
    else:
        both = torch.stack([w & 15, w >> 4], 2).reshape(40, 96).float() - 8
        exact = (both.reshape(40, 3, 32) * scale[:, :, None]).reshape(40, 96)
    assert float((exact - weight).abs().max()) <= float(weight.abs().max()) / (127 if bits == 8 else 7)
    got = matmul.quantised(x, w, scale, bias, "relu", SMALL, interpreted(matmul.quantised_kernel))
    torch.testing.assert_close(got, torch.relu(x @ exact.t() + bias), rtol=1e-4, atol=1e-4)


POINTERS = {"a": "*fp16", "b": "*fp16", "out": "*fp16", "bias": "*fp16", "residual": "*fp16", "w": "*i8",
            "scale": "*fp32"}
FIXED = {"sak": 1, "sbn": 1, "son": 1, "srn": 1, "swk": 1}
CONSTANTS = {"BM": 128, "BN": 128, "BK": 64, "GROUP": 8, "EVEN": True, "PRECISION": "ieee", "PROLOGUE": "",
             "BIAS": True, "RESIDUAL": False, "ACTIVATION": "gelu"}


@pytest.mark.parametrize("target", ["sm_70", "sm_80", "sm_90"])
def test_matmul_compiles_to_tensor_cores_and_asynchronous_copies(target):
    small = {"BM": 64, "BN": 64, "BK": 16} if target == "sm_70" else {}
    got = compiled(matmul.matmul_kernel, POINTERS, {**FIXED, **CONSTANTS, **small}, target, 8)
    mix = got.instructions
    assert got.spills == 0
    if target == "sm_70":                               # Triton has no mma for Volta: cuBLAS is called there
        return
    for part in (mix, got.loop):                        # in the main loop, too
        assert part["async copies"] > 0 and part["mma"] + part["wgmma"] > 0, part
    if target == "sm_90":
        assert mix["wgmma"] > 0 and "wgmma" in got.ptx


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_compiles_to_tensor_cores(bits):
    pointers = {**POINTERS, "w": "*i8" if bits == 8 else "*u8"}
    got = compiled(matmul.quantised_kernel, pointers, {
        **FIXED, "BM": 64, "BN": 64, "BK": 32, "GROUP": 8, "EVEN": True, "BITS": bits, "SPAN": 128, "BIAS": False,
        "ACTIVATION": "", "ssn": 1}, "sm_80", 4)
    assert got.spills == 0 and got.instructions["mma"] > 0 and got.instructions["async copies"] > 0
