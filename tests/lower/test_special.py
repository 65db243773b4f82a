"""Special functions by series, and composite operators: against eager mode."""
from __future__ import annotations

import math

import pytest
import torch

from minicompile.lower.composite import is_composite
from minicompile.lower.decompose import decompose
from minicompile.lower.trace import callable_inputs, trace_callable

aten = torch.ops.aten
EDGES = [0.0, -0.0, 1e-30, 1e-8, 0.5, 2.0, 2.0001, 4.99, 5.0, 5.01, 8.0, 8.01, 27.0, 100.0, 710.0, 1e4,
         math.inf, -math.inf, math.nan, -1.0, -8.5, -30.0]
NAMES = """i0 i0e i1 i1e modified_bessel_i0 modified_bessel_k0 modified_bessel_k1
scaled_modified_bessel_k0 scaled_modified_bessel_k1 bessel_j0 bessel_j1 bessel_y0 bessel_y1
spherical_bessel_j0 erfcx log_ndtr""".split()


def prims_of(f, *args):
    with torch.no_grad():
        prims = decompose(trace_callable(f, *args))
        prims.check()
        return prims, prims.run(*callable_inputs(f, *args))[0]


@pytest.mark.parametrize("name", NAMES)
def test_series(name):
    f = getattr(torch.special, name)
    for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 4e-6)):
        x = torch.cat([torch.tensor(EDGES), torch.linspace(-20, 30, 801)]).to(dtype)
        prims, got = prims_of(f, x)
        assert not any(isinstance(n.op, torch._ops.OpOverload) for n in prims.graph.nodes)
        big = x.abs() > 1e3          # there sines of what float32 holds mean little
        torch.testing.assert_close(got[~big], f(x)[~big], rtol=tol, atol=tol, equal_nan=True)
        assert torch.equal(got[big].isinf(), f(x)[big].isinf())


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5])
def test_polygamma(n):
    x = torch.cat([torch.linspace(-5.3, 30, 501), torch.tensor([0.5, 100.0, 1e5])]).double()
    got = prims_of(lambda x: torch.polygamma(n, x), x)[1]
    torch.testing.assert_close(got, torch.polygamma(n, x), rtol=1e-9, atol=1e-9)


COMPOSITE = {
    "rot90": lambda x: torch.rot90(x, 1), "block_diag": lambda x: torch.block_diag(x, x * 2),
    "dist": lambda x: torch.dist(x, x * 2), "ldexp": lambda x: torch.ldexp(x, torch.arange(4.0)),
    "chunk_cat": lambda x: aten._chunk_cat([x, x], 0, 2),
}


@pytest.mark.parametrize("name", COMPOSITE)
def test_composite_operators_are_traced_through(name):
    x = torch.randn(3, 4)
    prims, got = prims_of(COMPOSITE[name], x)
    assert not any(isinstance(n.op, torch._ops.OpOverload) for n in prims.graph.nodes)
    torch.testing.assert_close(got, COMPOSITE[name](x))
    assert got.stride() == COMPOSITE[name](x).stride()


def test_what_counts_as_composite():
    assert is_composite(aten.rot90.default) and is_composite(aten.block_diag.default)
    for op in (aten.add.Tensor, aten.mm.default, aten.rand.default, aten.view.default, aten.add_.Tensor,
               aten.native_layer_norm.default):
        assert not is_composite(op)


def test_a_composition_that_leads_back_is_a_library_call():
    prims, _ = prims_of(lambda x: x.logcumsumexp(1), torch.ones(2, 3))
    assert [str(n.op) for n in prims.graph.nodes] == ["aten.logcumsumexp.default"]
