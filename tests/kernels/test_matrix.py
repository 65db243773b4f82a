"""The kernel library (gemm.h, conv.h, attention.h) against float64, for every instruction set this machine runs."""
from __future__ import annotations

import ctypes
import importlib.machinery
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

import minicompile
from minicompile.runtime import toolchain

I, P = ctypes.c_int64, ctypes.c_void_p
HERE = Path(__file__).parent
KERNELS = Path(minicompile.__file__).parent.parent / "kernels" / "cpp"


class Gemm(ctypes.Structure):
    _fields_ = [(n, I) for n in ("batch", "M", "N", "K")] + [("A", P), ("B", P)] + [
        (n, I) for n in ("sab", "sa", "sak", "sbb", "sbk", "sbn")] + [("epilogue", P), ("context", P), ("kind", I)]


class Conv2d(ctypes.Structure):
    _fields_ = [(n, I) for n in ("batch", "channels", "height", "width", "out_channels", "out_height", "out_width", "kh",
                                 "kw", "groups")] + [("stride", I * 2), ("pad", I * 2), ("dilation", I * 2), ("x", P), ("w", P),
                                           ("xs", I * 4), ("epilogue", P), ("context", P), ("last", ctypes.c_bool),
                                           ("w_last", ctypes.c_bool), ("first", I)]


class Attention(ctypes.Structure):
    _fields_ = [(n, I) for n in ("batch", "heads", "kv_heads", "queries", "keys", "dim", "value_dim")] + [
        (n, P) for n in ("q", "k", "v", "mask")] + [("qs", I * 3), ("ks", I * 3), ("vs", I * 3), ("ms", I * 4), ("out", P),
                                                    ("lse", P), ("os", I * 3), ("ls", I * 3), ("scale", ctypes.c_float),
                                                    ("causal", ctypes.c_bool)]


def library_file(isa: str) -> Path:
    folder = Path(minicompile.__file__).parent
    found = [folder / f"_kernels_{isa}{s}" for s in importlib.machinery.EXTENSION_SUFFIXES]
    return next(f for f in found if f.exists())


@pytest.fixture(scope="module", params=toolchain.machine_isas())
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    out = tmp_path_factory.mktemp("matrix") / "calls.so"
    toolchain.build(toolchain.find(), [HERE / "matrix_calls.cpp"], out, toolchain.flags_for(request.param), KERNELS)
    return ctypes.CDLL(str(out)), ctypes.CDLL(str(library_file(request.param)))


def close(got: torch.Tensor, exact: torch.Tensor, terms: int) -> None:
    """Within what float32 sums of `terms` products of unit normals may lose."""
    assert got.shape == exact.shape
    error = (got.double() - exact).abs().max().item() if got.numel() else 0.0
    assert error <= 2e-5 + 3e-7 * terms, error


def layout(t: torch.Tensor, kind: int) -> torch.Tensor:
    """The same values with rows dense, columns dense, or neither."""
    if kind == 1:
        return t.mT.contiguous().mT
    if kind == 2:
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), math.nan, dtype=t.dtype)
        wide[..., 1::2] = t
        return wide[..., 1::2]
    return t.contiguous()


sizes = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 130, 257]))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3), sizes, sizes, st.one_of(st.integers(0, 70), st.sampled_from([256, 1024])), st.integers(0, 2),
       st.integers(0, 2), st.integers(1, 3))
@example(1, 20, 300, 1700, 0, 1, 2).via("several parts of K")
@example(2, 130, 40, 1600, 1, 0, 1).via("several parts of K, rows copied")
@example(1, 40, 300, 2048, 0, 1, 2).via("rows that collide in the cache, several groups of panels")
@example(1, 800, 20, 1600, 1, 0, 1).via("several runs of rows")
@example(1, 700, 33, 1500, 1, 1, 2).via("several runs of copied rows")
@example(1, 3, 2100, 65, 2, 0, 2).via("few rows")
@example(1, 2100, 3, 65, 1, 1, 1).via("few columns")
@example(1, 1500, 1, 300, 0, 2, 1).via("one column")
def test_products(library: tuple, batch: int, m: int, n: int, k: int, la: int, lb: int, threads: int) -> None:
    calls, lib = library
    g = torch.Generator().manual_seed(m * n + k)
    a = layout(torch.randn(batch, m, k, generator=g), la)
    b = layout(torch.randn(batch, k, n, generator=g), lb)
    bias, out = torch.randn(n, generator=g), torch.full((batch, m, n), math.nan)
    args = Gemm(batch, m, n, k, a.data_ptr(), b.data_ptr(), *a.stride(), *b.stride())
    calls.gemm_call(lib.mc_gemm, ctypes.byref(args), P(out.data_ptr()), P(bias.data_ptr()), threads)
    close(out, a.double() @ b.double() + bias.double(), k)


HALVES = (torch.bfloat16, torch.float32)                   # a float32 operand counts as rounded to bfloat16


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 3), sizes, sizes, st.one_of(st.integers(0, 70), st.sampled_from([255, 1024])), st.integers(0, 2),
       st.integers(0, 2), st.integers(1, 3), st.sampled_from(HALVES), st.sampled_from(HALVES), st.integers(0, 3))
@example(1, 20, 300, 3401, 0, 1, 2, *HALVES[:1] * 2, 0).via("several parts of an odd K")
@example(2, 130, 40, 3200, 1, 0, 1, *HALVES, 1).via("several parts of K, rows copied")
@example(1, 800, 20, 3400, 1, 0, 1, *HALVES[:1] * 2, 0).via("several runs of rows")
@example(1, 40, 300, 4096, 0, 1, 2, *HALVES, 0).via("rows rounded while they are copied, several groups of panels")
@example(1, 3, 2100, 65, 2, 0, 2, *HALVES[:1] * 2, 0).via("few rows")
@example(1, 16, 1100, 333, 0, 1, 2, *HALVES[:1] * 2, 1).via("dot products of two blocks of rows")
@example(1, 2100, 3, 65, 1, 1, 1, *HALVES[:1] * 2, 0).via("few columns")
def test_products_in_bfloat16(library: tuple, batch: int, m: int, n: int, k: int, la: int, lb: int, threads: int,
                              ta: torch.dtype, tb: torch.dtype, offset: int) -> None:
    """Products of numbers rounded to bfloat16, summed in float32; what lies around the operands is NaN."""
    calls, lib = library
    g = torch.Generator().manual_seed(m * n + k)

    def operand(shape: tuple[int, ...], kind: int, dtype: torch.dtype) -> torch.Tensor:
        values = layout(torch.randn(shape, generator=g).to(dtype), kind)
        around = torch.full((values.untyped_storage().nbytes() // dtype.itemsize + offset + 2,), math.nan, dtype=dtype)
        placed = around[offset:].as_strided(values.shape, values.stride(), offset + values.storage_offset())
        return placed.copy_(values)

    a, b = operand((batch, m, k), la, ta), operand((batch, k, n), lb, tb)
    bias, out = torch.randn(n, generator=g), torch.full((batch, m, n), math.nan)
    args = Gemm(batch, m, n, k, a.data_ptr(), b.data_ptr(), *a.stride(), *b.stride())
    args.kind = 4 | (ta is torch.bfloat16) | 2 * (tb is torch.bfloat16)
    calls.gemm_call(lib.mc_gemm, ctypes.byref(args), P(out.data_ptr()), P(bias.data_ptr()), threads)
    close(out, a.bfloat16().double() @ b.bfloat16().double() + bias.double(), k)


@pytest.mark.parametrize("m", [1, 3, 8, 20, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_so(library: tuple, m: int, dtype: torch.dtype) -> None:
    """inf and NaN reach exactly the results that eager mode gives them to."""
    calls, lib = library
    for la, lb in ((0, 0), (0, 1), (1, 0), (1, 1)):
        a, b = layout(torch.randn(m, 131).to(dtype), la), layout(torch.randn(131, 37).to(dtype), lb)
        a[0, 5], a[m // 2, 130], b[7, 3], b[130, 36] = math.inf, math.nan, -math.inf, math.inf
        out, exact = torch.empty(m, 37), a.double() @ b.double()
        args = Gemm(1, m, 37, 131, a.data_ptr(), b.data_ptr(), 0, *a.stride(), 0, *b.stride())
        args.kind = 7 if dtype is torch.bfloat16 else 0
        calls.gemm_call(lib.mc_gemm, ctypes.byref(args), P(out.data_ptr()), P(torch.zeros(37).data_ptr()), 1)
        for test in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(test(out), test(exact))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 20), st.integers(1, 40), st.sampled_from([1, 3, 8, 17, 33]),
       st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3),
       st.sampled_from([1, 1, 2, 5]), st.integers(0, 7), st.integers(1, 3))
@example(2, 100, 13, 21, 17, 3, 3, 1, 1, 1, 1, 0, 1).via("several parts of the channels")
@example(1, 64, 40, 40, 9, 3, 3, 1, 2, 2, 1, 0, 2).via("several runs of rows")
@example(2, 5, 9, 8, 8, 1, 1, 1, 0, 1, 1, 1, 2).via("a product")
@example(1, 1, 50, 80, 1, 3, 3, 1, 1, 1, 3, 0, 2).via("depthwise, several runs of rows")
@example(2, 1, 4, 4, 1, 7, 7, 1, 3, 1, 16, 0, 2).via("depthwise, rows shorter than vectors")
@example(2, 1, 37, 70, 2, 5, 5, 2, 2, 1, 3, 1, 1).via("depthwise, strided, two for each")
@example(1, 130, 4, 5, 100, 3, 3, 1, 1, 1, 1, 0, 3).via("more weight than image")
@example(2, 100, 13, 21, 37, 3, 3, 1, 1, 1, 1, 7, 1).via("channels last, several parts")
@example(2, 1, 20, 30, 1, 7, 7, 1, 3, 1, 37, 7, 2).via("channels last, depthwise")
@example(1, 40, 9, 9, 24, 1, 1, 1, 0, 1, 1, 7, 2).via("channels last, a product")
def test_convolutions(library: tuple, batch: int, channels: int, height: int, width: int, out_channels: int, kh: int,
                      kw: int, stride: int, pad: int, dilation: int, groups: int, last: int,
                      threads: int) -> None:
    if height + 2 * pad < (kh - 1) * dilation + 1 or width + 2 * pad < (kw - 1) * dilation + 1:
        return
    if channels == 1 and out_channels > 1 and groups > 1:
        last &= 5                                            # left to the library
    calls, lib = library
    g = torch.Generator().manual_seed(height * width + channels)
    x = torch.randn(batch, channels * groups, height, width, generator=g)
    x = x.contiguous(memory_format=torch.channels_last) if last & 1 else x
    w, bias = (torch.randn(out_channels * groups, *s, generator=g) for s in ((channels, kh, kw), ()))
    strides = (stride, 1 + width % 2)
    exact = F.conv2d(x.double(), w.double(), bias.double(), strides, pad, dilation, groups)
    out = torch.full(exact.shape, math.nan)
    out = out.contiguous(memory_format=torch.channels_last) if last & 2 else out
    w = w.contiguous(memory_format=torch.channels_last) if last & 4 else w
    args = Conv2d(batch, channels, height, width, out_channels, *exact.shape[2:], kh, kw, groups,
                  (I * 2)(*strides), (I * 2)(pad, pad), (I * 2)(dilation, dilation), x.data_ptr(), w.data_ptr(), (I * 4)(*x.stride()),
                  None, None, bool(last & 2), bool(last & 4))
    calls.conv_call(lib.mc_conv2d, ctypes.byref(args), P(out.data_ptr()), P(bias.data_ptr()), threads)
    close(out, exact, channels * kh * kw)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.sampled_from([1, 2, 5, 17, 60, 130]),
       st.sampled_from([1, 3, 16, 33, 513, 700]), st.sampled_from([1, 7, 16, 33, 64]), st.sampled_from([1, 16, 24, 65]),
       st.booleans(), st.booleans(), st.integers(1, 2))
def test_attention(library: tuple, batch: int, kv_heads: int, groups: int, queries: int, keys: int, dim: int,
                   value_dim: int, causal: bool, masked: bool, threads: int) -> None:
    _, lib = library
    g = torch.Generator().manual_seed(queries * keys + dim)
    heads = kv_heads * groups
    q = torch.randn(batch, queries, heads, dim, generator=g).transpose(1, 2)
    k = torch.randn(batch, keys, kv_heads, dim, generator=g).transpose(1, 2)
    v = torch.randn(batch, keys, kv_heads, value_dim, generator=g).transpose(1, 2)
    mask = torch.randn(batch, 1, queries, keys, generator=g)
    mask[..., 1:][torch.rand(batch, 1, queries, keys - 1, generator=g) < 0.3] = -math.inf
    mask = mask.expand(batch, heads, queries, keys)
    out = torch.full((batch, queries, heads, value_dim), math.nan).transpose(1, 2)
    lse = torch.full((batch, heads, queries), math.nan)
    scale = 1 / math.sqrt(dim)
    args = Attention(batch, heads, kv_heads, queries, keys, dim, value_dim, q.data_ptr(), k.data_ptr(), v.data_ptr(),
                     mask.data_ptr() if masked else None, q.stride()[:3], k.stride()[:3], v.stride()[:3], mask.stride(),
                     out.data_ptr(), lse.data_ptr(), out.stride()[:3], lse.stride(), scale, causal)
    lib.mc_attention(ctypes.byref(args), threads)
    scores = q.double() @ k.double().repeat_interleave(groups, 1).mT * scale
    scores = scores + mask.double() if masked else scores
    if causal:
        scores = scores.masked_fill(torch.ones(queries, keys).tril() == 0, -math.inf)
    exact = torch.softmax(scores, -1) @ v.double().repeat_interleave(groups, 1)
    close(out, exact, keys)
    assert torch.allclose(lse.double(), scores.logsumexp(-1), atol=1e-5)


def test_a_row_without_keys_gives_zeros(library: tuple) -> None:
    """Every key masked: eager's kernel gives 0 for the values and for the logarithm of their sum."""
    _, lib = library
    q = k = v = torch.randn(1, 1, 4, 8)
    mask = torch.full((1, 1, 4, 4), -math.inf)
    out, lse = torch.full((1, 1, 4, 8), math.nan), torch.empty(1, 1, 4)
    args = Attention(1, 1, 1, 4, 4, 8, 8, q.data_ptr(), k.data_ptr(), v.data_ptr(), mask.data_ptr(), q.stride()[:3],
                     k.stride()[:3], v.stride()[:3], mask.stride(), out.data_ptr(), lse.data_ptr(), out.stride()[:3],
                     lse.stride(), 1.0, False)
    lib.mc_attention(ctypes.byref(args), 1)
    eager, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=1.0)
    assert torch.equal(eager, out) and torch.equal(sums, lse)
