"""Fusion and tiling: which loops become one kernel, why others don't, and that values survive it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prim_graphs import Make, inputs_of, random_graph, run_graph

from minicompile.ir.graph import Graph, Node
from minicompile.loops import realise
from minicompile.loops.build import build_loops
from minicompile.loops.ir import Buffer, Loop
from minicompile.schedule.cores import TYPES
from minicompile.schedule.fuse import fuse, gain, schedule, why_not_fuse
from minicompile.schedule.kernel import recompute_or_scratch
from minicompile.schedule.plan import Kernel, Plan, signature
from minicompile.schedule.space import Group, Run, align, onto, refine, run_of, single, sizes_of, within
from minicompile.schedule.tiling import parallel_depth

aten = torch.ops.aten


def both(m: Make | Graph, seed: int = 0, cores: Sequence[torch.dtype] = ()) -> Plan:
    g = m.graph() if isinstance(m, Make) else m
    plan = schedule(build_loops(g), cores)
    plan.check()
    mine, theirs = inputs_of(g, seed), inputs_of(g, seed)
    want, got = run_graph(g, theirs), plan.run(*mine)
    for a, b in zip([*want, *theirs], [*got, *mine]):
        torch.testing.assert_close(b, a, equal_nan=True, rtol=1e-4, atol=1e-4)
    return plan


def kernels(p: Plan) -> list[Kernel]:
    return [s for s in p.steps if isinstance(s, Kernel)]


def softmax(m: Make, x: Node) -> Node:
    k = x.tensor.shape
    wide = lambda v: m.expand(m.reshape(v, (*k[:-1], 1)), k)
    e = m.exp(m.sub(x, wide(m.amax(x, (len(k) - 1,)))))
    return m.div(e, wide(m.sum(e, (len(k) - 1,))))


def layer_norm(m: Make, x: Node, w: Node) -> Node:
    k, d = x.tensor.shape, x.tensor.ndim - 1
    wide = lambda v: m.expand(m.reshape(v, (*k[:-1], 1)), k)
    c = m.sub(x, wide(m.mul(m.sum(x, (d,)), 1 / k[-1])))
    var = m.mul(m.sum(m.mul(c, c), (d,)), 1 / k[-1])
    return m.mul(m.mul(c, wide(m.rsqrt(m.add(var, 1e-5)))), m.expand(w, k))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
@example(38291, False, True)            # a masked reader of a product: no second stage in its epilogue
def test_random_graphs(seed: int, cheap: bool, cores: bool) -> None:
    few, realise.FEW = realise.FEW, 4096 if cheap else 0
    try:
        both(random_graph(seed), seed, TYPES if cores else ())
    finally:
        realise.FEW = few


# ---- whole patterns ----


def test_softmax_is_one_row_kernel() -> None:
    m = Make()
    (kernel,) = kernels(both(m.output(softmax(m, m.input(8, 12, 128)))))
    assert sizes_of(kernel.par) == [96] and [sizes_of(s.inner) for s in kernel.stages] == [[128]] * 3
    assert kernel.tiling.vector == "inner"
    assert sum(str(loop).count("exp(") for loop in kernel.stages[2].loops) == 0  # never computed twice


def test_layer_norm_with_residual_is_one_row_kernel() -> None:
    m = Make()
    x, r, w = m.input(4, 32, 768), m.input(4, 32, 768), m.input(768)
    h = m.add(x, r)
    p = both(m.output(layer_norm(m, h, w), h))
    assert len(kernels(p)) == 1 and p.arena_bytes == 0


def test_pointwise_is_flat() -> None:
    m = Make()
    x, y = m.input(64, 64, 8), m.input(64, 64, 8)
    (kernel,) = kernels(both(m.output(m.tanh(m.add(x, y)), m.mul(x, y))))
    assert sizes_of(kernel.par) == [64 * 64 * 8] and kernel.tiling.vector == "i0"


def test_column_reduction_runs_along_its_results() -> None:
    m = Make()
    x = m.input(512, 256)
    (kernel,) = kernels(both(m.output(m.sum(m.mul(x, x), (0,)))))
    assert kernel.tiling.vector == "i0" and sizes_of(kernel.par) == [256]


def test_argmax_shares_the_row() -> None:
    m = Make()
    x = m.input(300, 200)
    (kernel,) = kernels(both(m.output(m.argmax(x, (1,)), m.sum(x, (1,)))))
    assert kernel.tiling.vector == "inner"


def test_optimizer_step_is_one_kernel() -> None:
    """Two states and a parameter, updated in place from one gradient; the stores follow every load."""
    m = Make()
    p, a, b, g = (m.input(5000) for _ in range(4))
    a2 = m.add(m.mul(a, 0.9), m.mul(g, 0.1))
    b2 = m.add(m.mul(b, 0.99), m.mul(m.mul(g, g), 0.01))
    m.writes += [(0, m.sub(p, m.div(a2, m.sqrt(m.add(m.abs(b2), 1.0))))), (1, a2), (2, b2)]
    (kernel,) = kernels(both(m))
    assert len(kernel.loops) == 3 and not kernel.local


def test_swapped_inputs_stay_apart() -> None:
    m = Make()
    x, y = m.input(5000), m.input(5000)
    m.writes += [(0, m.sin(y)), (1, m.sin(x))]
    both(m)


def test_heads_stay_apart_but_right() -> None:
    m = Make()
    x = m.input(2, 128, 96)
    h = m.permute(m.reshape(x, (2, 128, 4, 24)), (0, 2, 1, 3))
    z = m.mul(h, 2.0)
    p = both(m.output(z, m.reshape(m.permute(m.exp(z), (0, 2, 1, 3)), (256, 96))))
    assert len(p.refused) == 1 and p.refused[0].bytes > 0


# ---- cores ----


def test_product_with_epilogue() -> None:
    m = Make()
    x, w, b, r = m.input(64, 32), m.input(48, 32), m.input(48), m.input(4, 16, 48)
    y = m.call(aten.mm.default, x, m.permute(w, (1, 0), stride=(1, 32)))
    h = m.reshape(m.add(y, m.expand(b, (64, 48))), (4, 16, 48))
    (kernel,) = kernels(both(m.output(m.add(m.tanh(h), r)), cores=TYPES))
    assert kernel.core is not None and sizes_of(kernel.par) == [64, 48] and len(kernel.loops) == 1
    assert kernel.local == (kernel.core.outs[0].buffer,) and "+" in str(kernel.loops[0].out.index)


def test_raw_product_needed_elsewhere_is_stored_too() -> None:
    m = Make()
    y = m.call(aten.bmm.default, m.input(3, 8, 4), m.input(3, 4, 6))
    kernel, *_ = kernels(both(m.output(y, m.neg(y), m.sum(y, (2,))), cores=TYPES))
    assert kernel.core is not None and len(kernel.loops) == 2


def test_convolution_with_folded_pixels() -> None:
    m = Make()
    x, w, b = m.input(2, 3, 9, 9), m.input(5, 3, 3, 3), m.input(5)
    y = m.call(aten.convolution.default, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    z = m.maximum(m.add(y, m.expand(m.reshape(b, (5, 1, 1)), (2, 5, 9, 9))), 0.0)
    p = both(m.output(z, y), cores=TYPES)
    (kernel,) = kernels(p)
    assert kernel.core is not None and sizes_of(kernel.par) == [2, 5, 81]
    assert not p.frees and p.buffers[y.name].kind == "output"


def test_transposed_convolution_stays_a_library_call() -> None:
    m = Make()
    x, w = m.input(2, 4, 9, 9), m.input(4, 4, 3, 3)
    y = m.call(aten.convolution.default, x, w, None, [1, 1], [1, 1], [1, 1], True, [0, 0], 1)
    p = both(m.output(m.neg(y)), cores=TYPES)
    assert len(p.steps) == 2 and list(p.frees.values()) == [(y.name,)]


def test_transposed_use_is_no_epilogue() -> None:
    m = Make()
    y = m.call(aten.mm.default, m.input(64, 32), m.input(32, 48))
    p = both(m.output(m.neg(m.permute(y, (1, 0)))), cores=TYPES)
    assert len(p.steps) == 2


# ---- decisions as tables ----


def groups(m: Make) -> tuple[list[Group], dict[str, Buffer]]:
    loops = build_loops(m.graph())
    return [single(s, i) for i, s in enumerate(loops.steps) if isinstance(s, Loop)], loops.buffers


def other_rows(m: Make) -> None:
    x = m.input(64, 100)
    m.output(y := m.exp(x), m.neg(m.flip(y, (0,))))


def spaces(m: Make) -> None:
    x = m.input(5000)
    m.output(m.neg(x), m.neg(m.slice(x, 0, 0, 4999, 1)))


def few_rows(m: Make) -> None:
    x = m.input(2, 40000)
    m.output(m.amax(x, (1,)), m.neg(x))


def scatters(m: Make) -> None:
    x, i = m.input(50), m.input(50, dtype=torch.int64)
    m.output(m.scatter(x, (i,), x, "add", True), m.neg(x))


@pytest.mark.parametrize(
    "make, reason",
    [
        (other_rows, "of other rows"),
        (spaces, "iteration spaces"),
        (few_rows, "only 2 rows"),
        (scatters, "scatters run alone"),
    ],
)
def test_refusals_have_reasons(make: Any, reason: str) -> None:
    m = Make()
    make(m)
    found, buffers = groups(m)
    reasons = [
        r.reason for i, a in enumerate(found) for b in found[i + 1 :] if (r := why_not_fuse(a, b, buffers))
    ]
    assert any(reason in r for r in reasons), reasons
    both(m)


def test_rows_too_long_for_scratch_go_to_memory() -> None:
    m = Make()
    p = schedule(build_loops(m.output(softmax(m, m.input(128, 70_000))).graph()))
    p.check()
    assert any("bytes of scratch" in r.reason for r in p.refused)


def test_gain_counts_what_stays() -> None:
    m = Make()
    x = m.input(10_000)
    m.output(m.sum(y := m.exp(x), (0,)), m.neg(m.flip(y, (0,))))
    (a, b, *_), buffers = groups(m)
    name = next(iter(a.writes))
    assert gain(a, b, buffers) == 2 * 40_000 and gain(a, b, buffers, frozenset((name,))) == 40_000
    assert isinstance(fuse(a, b, buffers), Group) or why_not_fuse(a, b, buffers)


@pytest.mark.parametrize(
    "a, b, want",
    [
        ([6, 8], [48], ([6, 8], 2)),
        ([48], [6, 8], ([6, 8], 2)),
        ([4, 6], [6, 4], None),
        ([2, 12], [8, 3], ([2, 4, 3], 3)),
        ([24, 10], [4, 6], ([4, 6, 10], 2)),
        ([5], [10], None),
        ([1, 7], [7], ([1, 7], 2)),
        ([8], [], ([8], 0)),
    ],
)
def test_refine(a: list[int], b: list[int], want: Any) -> None:
    assert refine(a, b) == want


def test_runs() -> None:
    m = Make()
    m.output(m.exp(m.input(4, 6)))
    (g,), _ = groups(m)
    i, j = g.par
    assert run_of(6 * i.var + j.var, g.par) == Run(0, 1, 24) and run_of(12 * j.var + 3, (j,)) == Run(
        3, 12, 6
    )
    assert run_of(7 * i.var + j.var, g.par) is None
    assert (
        within(j.var, Run(0, 1, 6))
        and not within(j.var + 1, Run(0, 1, 6))
        and within(2 * j.var, Run(0, 2, 6))
    )


def test_align_splits_the_flat_one() -> None:
    m = Make()
    x = m.input(4, 6, 8)
    m.output(m.sum(x, (2,)), m.exp(x))
    (a, b), _ = groups(m)
    first, second = align(a, b)  # type: ignore[misc]
    assert sizes_of(first.par) == sizes_of(second.par) == [4, 6] and sizes_of(second.parts[0].inner) == [8]
    assert onto(b.par, a) == "iteration spaces [4, 6, 8] and [4, 6] differ"


@pytest.mark.parametrize("prim, want", [("add", "recompute"), ("exp", "scratch"), ("div", "scratch")])
def test_recompute_or_scratch(prim: str, want: str) -> None:
    m = Make()
    x = m.input(4)
    m.output(getattr(m, prim)(x) if prim == "exp" else getattr(m, prim)(x, 2.0))
    (g,), _ = groups(m)
    assert recompute_or_scratch(g.parts[0].loop.body)[0] == want


@pytest.mark.parametrize(
    "sizes, depth", [([1000, 8], 1), ([4, 12, 128, 128], 3), ([2, 3], 2), ([1], 0), ([], 0)]
)
def test_parallel_depth(sizes: list[int], depth: int) -> None:
    m = Make()
    m.output(m.exp(m.input(*[max(n, 2) for n in sizes])))
    (g,), _ = groups(m)
    if 1 not in sizes:
        assert parallel_depth(g.par) == depth


def test_equal_kernels_have_equal_signatures() -> None:
    m = Make()
    x, w = m.input(64, 32), m.input(32)
    for _ in range(3):
        x = m.call(aten.mm.default, layer_norm(m, x, w), m.input(32, 32))
    p = both(m.output(x))
    keys = [signature(k, p.buffers) for k in kernels(p)]
    assert len(keys) == 3 and len({k for k, _ in keys}) == 1 and len({n for _, n in keys}) == 3
