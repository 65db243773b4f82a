"""Kernels that read every other element, with and without edges: pooling, slices with steps."""

from __future__ import annotations

import ctypes
import mmap

import pytest
import torch
from plans import build

from minicompile.loops.build import build_loops
from minicompile.lower.decompose import decompose
from minicompile.lower.trace import trace_callable
from minicompile.runtime.toolchain import machine_isas
from minicompile.schedule.fuse import schedule

F = torch.nn.functional
isas = pytest.mark.parametrize("isa", machine_isas())


def compiled(fn, *args, isa):
    return build(schedule(build_loops(decompose(trace_callable(fn, *args)))), isa)


@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("size", [(7, 5), (31, 64), (9, 131)])
def test_pools(isa, dtype, size):
    x = torch.randn(2, 3, *size).mul(50).to(dtype)
    if dtype.is_floating_point:
        x[0, 0, 0, 0] = float("nan")

    def fn(x):
        if dtype is torch.uint8:
            return x[..., ::2] + 1, x[..., 1::2] + x[..., :-1:2]
        return tuple(F.max_pool2d(x + 1, *geometry) for geometry in [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 2, 1)])
    for got, want in zip(compiled(fn, x, isa=isa)(x), fn(x), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@isas
@pytest.mark.parametrize("n", [1, 15, 16, 17, 33, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_behind_the_last_element_is_read(isa, n, dtype):
    """The memory behind it can't be read at all."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0) == 0
    length = 2 * n - 1
    x = torch.frombuffer(memory, dtype=dtype, count=length, offset=page - length * dtype.itemsize)
    x.copy_(torch.randn(length))
    assert torch.equal(compiled(lambda x: x[::2] * 3, x, isa=isa)(x)[0], x[::2] * 3)
