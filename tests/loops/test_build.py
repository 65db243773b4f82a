"""Loops from prims: hand-made cases where the result's shape matters, random graphs where only values do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prim_graphs import Make, boolean, f32, i64, inputs_of, random_graph, run_graph

from minicompile.errors import CheckError
from minicompile.ir.graph import Graph, Output
from minicompile.ir.spec import contiguous_stride
from minicompile.ir.sym import Var, evaluate
from minicompile.loops import realise
from minicompile.loops.build import build_loops
from minicompile.loops.ir import Extern, Load, Loops, walk
from minicompile.loops.views import reshape_index

close = torch.testing.assert_close


def both(m: Make | Graph, seed: int = 0) -> Loops:
    """The loops, after their reference gave what the prims give: results, strides and changed inputs."""
    g = m.graph() if isinstance(m, Make) else m
    loops = build_loops(g)
    loops.check()
    mine, theirs = inputs_of(g, seed), inputs_of(g, seed)
    want, got = run_graph(g, theirs), loops.run(*mine)
    for a, b, o in zip(want, got, g.outputs):
        close(b, a, equal_nan=True, rtol=1e-4, atol=1e-4)
        assert o.spec.numel == 0 or all(
            n == 1 or s == t for n, s, t in zip(a.shape, b.stride(), o.spec.stride)
        )
    for a, b in zip(theirs, mine):
        close(b, a, equal_nan=True, rtol=1e-4, atol=1e-4)
    return loops


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_random_graphs(seed: int, cheap: bool) -> None:
    few, realise.FEW = realise.FEW, 4096 if cheap else 0  # 0: everything read twice is realised
    try:
        both(random_graph(seed), seed)
    finally:
        realise.FEW = few


@settings(deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), max_size=4), st.randoms())
def test_reshape_index(shape: list[int], r) -> None:  # type: ignore[no-untyped-def]
    """Every element of a reshaped tensor is found where row-major order says."""
    n = 1
    for size in shape:
        n *= size
    other, left = [], n
    while left > 1:
        f = r.choice([d for d in range(2, left + 1) if left % d == 0])
        other.append(f)
        left //= f
    other.insert(r.randint(0, len(other)), 1)
    idx = tuple(Var(f"i{k}", 0, size - 1) for k, size in enumerate(other))
    where = reshape_index(shape, other, idx)
    source = torch.arange(n).reshape(shape)
    for linear in range(n):
        point, rest = {}, linear
        for k, step in enumerate(contiguous_stride(other)):
            point[f"i{k}"], rest = divmod(rest, step)
        assert int(source[tuple(evaluate(w, point) for w in where)]) == linear


def test_a_chain_is_one_loop() -> None:
    m = Make()
    x, y = m.input(4, 6), m.input(6)
    h = m.tanh(m.add(x, m.expand(y, (4, 6))))
    loops = both(m.output(m.mul(h, h)))
    assert len(loops.steps) == 1  # h is read twice, but at the same point of the same loop


def test_views_are_index_maps() -> None:
    m = Make()
    x = m.input(4, 6)
    v = m.slice(m.flip(m.reshape(m.permute(x, (1, 0)), (3, 8)), (1,)), 1, 1, 7, 2)
    loops = both(m.output(m.neg(v)))
    assert len(loops.steps) == 1


def test_a_split_axis_stays_affine() -> None:
    """[B, S, H*D] seen as [B*S, H, D] and back: no division is left in any index."""
    m = Make()
    x = m.input(2, 4, 6, 8)  # B, H, S, D
    y = m.reshape(m.permute(m.exp(x), (0, 2, 1, 3)), (12, 32))
    loops = both(m.output(y))
    assert "//" not in str(loops) and "%" not in str(loops)


def test_what_is_realised_has_a_reason() -> None:
    m = Make()
    x, y = m.input(64, 512), m.input(64, 512)
    h = m.exp(m.add(x, y))
    m.output(m.sum(h, (1,)), m.neg(m.permute(h, (1, 0))))
    loops = both(m)
    assert (
        "exp would be computed 2 times" in loops.notes[next(n for n in loops.notes if n.startswith("exp"))]
    )


def test_slices_of_one_value_are_not_realised() -> None:
    m = Make()
    x = m.exp(m.input(64, 512))
    m.output(m.neg(m.slice(x, 1, 0, 256, 1)), m.neg(m.slice(x, 1, 256, 512, 1)))
    assert all(b.kind != "temp" for b in both(m).buffers.values())  # each element is computed once


def test_cat_stores_parts_into_slices() -> None:
    m = Make()
    x, y = m.input(3, 4), m.input(3, 2)
    loops = both(m.output(m.cat((m.exp(x), y), 1)))
    assert len(loops.steps) == 2 and not any(
        isinstance(v, Load) and v.mask for s in loops.steps for v in walk(s.body)
    )


def test_consumers_of_cat_are_split_too() -> None:
    """Half-rotation: the loop over the last axis is cut in two, so that neither half needs a condition."""
    m = Make()
    x, c = m.input(3, 8), m.input(3, 8)
    turned = m.cat((m.neg(m.slice(x, 1, 4, 8, 1)), m.slice(x, 1, 0, 4, 1)), 1)
    loops = both(m.output(m.add(x, m.mul(turned, c))))
    assert len(loops.steps) == 2 and "where" not in str(loops)


@pytest.mark.parametrize(
    "shape, dims", [((4, 6), (0, 1)), ((3, 5, 2), (1,)), ((1, 4), (0,)), ((0, 3), (0,)), ((2, 3), ())]
)
@pytest.mark.parametrize("name", ["sum", "prod", "any", "argmax"])
def test_reductions(shape: tuple, dims: tuple, name: str) -> None:
    m = Make()
    x = m.input(*shape, dtype=boolean if name == "any" else f32)
    if name == "argmax" and (0 in shape or not dims):
        return
    both(m.output(getattr(m, name)(x, dims)))


def test_long_reduction_is_split() -> None:
    m = Make()
    loops = both(m.output(m.sum(m.input(256, 512), (0, 1))))
    assert [s.combine for s in loops.steps] == ["sum", "sum"] and len(loops.steps[0].axes) == 1


def test_gather_through_arange_is_a_plain_load() -> None:
    m = Make()
    x = m.input(6, 4)
    i = m.iota(6, 0, 1, i64)
    wrapped = m.where(m.lt(i, 0), m.add(i, 6), i)
    rows = m.expand(m.reshape(wrapped, (6, 1)), (6, 4))
    cols = m.expand(m.reshape(m.iota(4, 0, 1, i64), (1, 4)), (6, 4))
    loops = both(m.output(m.neg(m.gather(x, (rows, cols), True))))
    assert "checked(" not in str(loops) and "t0=" not in str(loops)


def test_gather_checks_its_index() -> None:
    m = Make()
    x, i = m.input(6), m.input(3, dtype=i64)
    g = m.output(m.gather(x, (i,), True, ("IndexError", "index {index} is out of range"))).graph()
    loops = build_loops(g)
    close(loops.run(torch.arange(6.0), torch.tensor([5, 0, 2]))[0], torch.tensor([5.0, 0, 2]))
    with pytest.raises(IndexError, match="index 9 is out of range"):
        loops.run(torch.arange(6.0), torch.tensor([0, 9, 1]))


def test_padded_gather_does_not_check_what_is_padding() -> None:
    m = Make()
    x, i = m.input(6), m.input(3, dtype=i64)
    both(m.output(m.pad(m.gather(x, (i,), True), (2,), (1,), 7.0)))


def test_masked_integer_division_never_divides_by_zero() -> None:
    m = Make()
    x, y = m.input(3, dtype=i64), m.input(3, dtype=i64)
    g = m.output(m.pad(m.floordiv(x, m.add(y, 1)), (2,), (2,), 0)).graph()
    assert "where" in str(build_loops(g))
    both(g)


# ---- results, aliases, writes ----


def test_the_same_value_twice_is_copied() -> None:
    m = Make()
    x = m.input(3)
    y = m.neg(x)
    both(m.output(y, y, x))


def test_alias_of_an_input_is_a_tensor_of_its_own_on_the_same_memory() -> None:
    m = Make()
    x = m.input(3)
    y = m.neg(x)
    g = m.output(y).graph()
    g = Graph(g.inputs, g.nodes, (*g.outputs, Output(x, x.tensor, ("input", 0))), (), 2)
    t = torch.randn(3)
    alias = build_loops(g).run(t)[1]
    assert alias is not t and alias.data_ptr() == t.data_ptr()


def test_hidden_base_of_an_alias() -> None:
    m = Make()
    y = m.neg(m.input(4, 6))
    v = m.permute(y, (1, 0), stride=(1, 6))
    g = m.output(y).graph()
    g = Graph(g.inputs, (*g.nodes, v), (Output(v, v.tensor, ("output", 1)), g.outputs[0]), (), 1)
    loops = build_loops(g)
    t = torch.randn(4, 6)
    (out,) = loops.run(t)
    close(out, -t.t())
    assert out.stride() == (1, 6)


def test_output_stride_is_eagers() -> None:
    m = Make()
    x = m.input(4, 6)
    y = m.permute(m.neg(x), (1, 0), stride=(1, 6))
    both(m.output(y))


def test_writes_come_after_readers() -> None:
    """x <- y, y <- x at once, and x.flip(0) read by an output: old values everywhere."""
    m = Make()
    x, y = m.input(4), m.input(4)
    m.output(m.flip(x, (0,)))
    m.writes += [(0, y), (1, x)]
    both(m)
    m = Make()
    x = m.input(4)
    m.writes.append((0, m.flip(x, (0,))))
    both(m)


def test_write_in_place_needs_no_copy() -> None:
    m = Make()
    x, y = m.input(4), m.input(4)
    m.writes.append((0, m.add(x, m.mul(y, 0.5))))
    loops = both(m)
    assert len(loops.steps) == 1 and loops.written == ("in0",)


# ---- library kernels ----


def test_windows_of_buffers_are_not_copied() -> None:
    m = Make()
    x, w = m.input(8, 4), m.input(6, 4)
    y = m.call(
        torch.ops.aten.mm.default, m.slice(m.exp(x), 0, 2, 6, 1), m.permute(w, (1, 0), stride=(1, 4))
    )
    loops = both(m.output(y))
    call = next(s for s in loops.steps if isinstance(s, Extern))
    assert [v.spec.offset for v in call.views()] == [8, 0] and call.into is not None
    assert len(loops.steps) == 2


def test_library_kernel_without_out_variant_allocates() -> None:
    m = Make()
    x, w = m.input(1, 2, 5, 5), m.input(3, 2, 3, 3)
    y = m.call(torch.ops.aten.convolution.default, x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    loops = both(m.output(m.neg(y)))
    assert next(s for s in loops.steps if isinstance(s, Extern)).into is None
    assert loops.buffers[y.name].kind == "extern"


def test_several_results() -> None:
    m = Make()
    x = m.input(4, 6)
    n = m.call(torch.ops.aten.sort.default, x, 1)
    both(m.output(m.neg(m.item(n, 0)), m.item(n, 1)))


def test_scatter_keeps_order() -> None:
    m = Make()
    x, i, v = m.input(4), m.input(6, dtype=i64), m.input(6)
    g = m.output(
        m.scatter(x, (m.minimum(i, 3),), v, "set", True), m.scatter(x, (m.minimum(i, 3),), v, "add", True)
    ).graph()
    both(g)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (2, 0, 3)])
def test_tiny_shapes(shape: tuple) -> None:
    m = Make()
    x = m.input(*shape)
    both(m.output(m.add(m.exp(x), 1.0), m.reshape(x, (*shape, 1))))


def test_constants() -> None:
    m = Make()
    x = m.input(3)
    both(m.output(m.add(x, m.constant(torch.tensor([1.0, 2.0, 3.0])))))


# ---- the reference refuses what does not fit ----


def test_wrong_input_is_named() -> None:
    m = Make()
    loops = build_loops(m.output(m.neg(m.input(3))).graph())
    for wrong in (torch.randn(4), torch.randn(3, dtype=torch.float64), torch.randn(6)[::2]):
        with pytest.raises(CheckError, match="in0"):
            loops.run(wrong)


def test_loops_print_with_reasons() -> None:
    m = Make()
    text = str(build_loops(m.output(m.sum(m.exp(m.input(4, 8)), (1,))).graph()))
    assert "sum(r1<8)(exp(in0[8*i0 + r1]))" in text and "return out0" in text and "(reduce)" in text
