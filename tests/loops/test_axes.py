"""Axes that threads may share in a scatter: against all places that a loop stores to."""
from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minicompile
from minicompile.ir.forms import running
from minicompile.loops.axes import separate, share_scatter
from minicompile.loops.nest import Loop, Store, axis
from minicompile.loops.val import const, load

term = st.tuples(st.integers(1, 4), st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12, 24]))


def scatter(terms: list[tuple[int, int]], read: tuple[int, int]) -> Loop:
    """A loop over axes of (size, stride in what it stores to), with one index read from memory."""
    axes = tuple(axis(f"i{k}", size) for k, (size, _) in enumerate(terms))
    t = running("t0", read[0])
    place = sum((a.var * stride for a, (_, stride) in zip(axes, terms)), t * read[1])
    pairs = ((t, load("in1", axes[0].var, torch.int64)),)
    return Loop("scatter", axes, (), None, const(1.0, torch.float32), Store("out0", place, "add", pairs), torch.float32, None)


def places(terms: list[tuple[int, int]], read: tuple[int, int], k: int) -> list[set[int]]:
    """What each point of axis k may store to, whatever is read."""
    found: list[set[int]] = [set() for _ in range(terms[k][0])]
    for point in itertools.product(*(range(n) for n, _ in (*terms, read))):
        found[point[k]].add(sum(i * stride for i, (_, stride) in zip(point, (*terms, read))))
    return found


@given(st.lists(term, min_size=1, max_size=3), term)
def test_separate_axes_never_meet(terms: list[tuple[int, int]], read: tuple[int, int]) -> None:
    loop = scatter(terms, read)
    for k, a in enumerate(loop.axes):
        if separate(loop, a):
            sets = places(terms, read, k)
            assert sum(map(len, sets)) == len(set().union(*sets)), (str(loop.out.index), str(a))


def test_rows_are_shared_and_long_last_axes_cut() -> None:
    def first(terms: list[tuple[int, int]], read: tuple[int, int]) -> list[int]:
        loop = share_scatter(scatter(terms, read))
        assert separate(loop, loop.axes[0]) or [a.size for a in loop.axes] == [n for n, _ in terms]
        return [a.size for a in loop.axes]
    assert first([(5, 7), (6, 0)], (7, 1)) == [5, 6]              # out[i, t]: rows already lead
    assert first([(6, 0), (5, 7), (3, 0)], (7, 1)) == [5, 6, 3]   # they are put first
    assert first([(6, 0), (768, 1)], (4, 768)) == [12, 6, 64]     # out[t, j]: blocks of j
    assert first([(6, 0), (65, 1)], (4, 65)) == [6, 65]           # too few for blocks
    assert first([(6, 0)], (4, 1)) == [6]                         # out[t]: nothing to share


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("mode", ["set", "sum", "amax"])
def test_order_is_kept(dim: int, mode: str) -> None:
    x, src = torch.randn(4, 6, 256), torch.randn([(9, 6, 256), (4, 9, 256), (4, 6, 300)][dim])
    i = torch.randint(0, x.shape[dim], (src.shape[dim],))
    wide = i.view([-1 if k == dim else 1 for k in range(3)]).expand(src.shape)

    def f(x: torch.Tensor, wide: torch.Tensor, i: torch.Tensor, src: torch.Tensor) -> torch.Tensor:
        if mode == "set":
            return x.index_put((i,), src) if dim == 0 else x.scatter(dim, wide, src)
        return x.index_add(dim, i, src) if mode == "sum" else x.scatter_reduce(dim, wide, src, mode)
    torch.set_num_threads(1)                          # eager mode's order among equal places: with more, any
    want = f(x, wide, i, src)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            got = minicompile.compile(f)(x, wide, i, src)
            assert torch.equal(got, want) if mode != "sum" else torch.allclose(got, want, atol=1e-6)
    finally:
        torch.set_num_threads(1)

