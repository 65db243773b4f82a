"""Explanations: what they count, and the excerpt with a caret."""
from __future__ import annotations

import linecache

import pytest
import torch

import minicompile
from minicompile.errors import Refusal, Where
from minicompile.viz.explanation import Explanation, KernelInfo, some


def two(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    h = torch.softmax(x.sin(), -1)
    return h @ w, h + 1


@pytest.fixture(scope="module")
def told() -> Explanation:
    with torch.no_grad():
        return minicompile.explain(two)(torch.randn(6, 8), torch.randn(8, 4))


def test_counts(told: Explanation) -> None:
    assert (told.graph_count, told.graph_break_count, told.op_count) == (1, 0, 4)
    assert told.break_reasons == () and len(told.graphs) == len(told.guards) == len(told.stages) == 1
    assert isinstance(told.graphs[0], torch.fx.GraphModule)


def test_every_stage_is_kept_and_timed(told: Explanation) -> None:
    assert list(told.stages[0]) == ["capture", "aten", "prims", "loops", "plan", "source"]
    assert {"aten", "prims", "loops", "plan", "source", "executable"} <= set(told.seconds)
    assert all(n >= 0 for n in told.seconds.values())


def test_kernels_and_library_calls(told: Explanation) -> None:
    kinds = [k.kind for k in told.kernels]
    assert set(kinds) <= {"kernel", "library"} and "kernel" in kinds
    assert any("sum" in k.does for k in told.kernels)
    assert all(isinstance(k, KernelInfo) and str(k).startswith(k.name) for k in told.kernels)


def test_guards_name_the_arguments(told: Explanation) -> None:
    assert any(str(g).startswith("x: ") and "float32[6, 8]" in str(g) for g in told.guards[0])


def test_text_has_the_sections_in_order(told: Explanation) -> None:
    titles = [line for line in str(told).splitlines() if line and not line.startswith(" ")]
    wanted = ["summary", "guards of graph 0", "graph 0", "program around graph 0", "kernels"]
    assert [t for t in titles if t in wanted] == wanted
    assert "def program(" in str(told)


def test_a_refusal_keeps_code_reason_and_place() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return x if x.numpy().any() else -x

    told = minicompile.explain(f)(torch.randn(3))
    assert told.graph_count == 0 and told.graph_break_count >= 1
    reason = told.break_reasons[0]
    assert reason.code == "data-dependent" and reason.where.file == __file__ and reason.where.function.endswith("f")
    assert "runs as in eager mode" in str(told) and "^" in str(told)


def test_nothing_at_all() -> None:
    told = Explanation.of([], [Refusal("internal", "no place is known")])
    assert "[internal] no place is known" in str(told)


@pytest.mark.parametrize("columns, mark", [((8, 15), "    ^^^^^^^"), (None, "^^^^^^^^^^^^^^^"), ((8, 3), "    ^^^^^^^^^^^"),
                                           ((8, 400), "    ^^^^^^^^^^^")])
def test_excerpt(columns: tuple[int, int] | None, mark: str) -> None:
    linecache.cache["<made up>"] = (0, None, ["def f():\n", "    y = x.sum() > 0\n"], "<made up>")
    assert Where("<made up>", 2, "f", columns).excerpt() == ["    y = x.sum() > 0", "    " + mark]


def test_no_excerpt_without_source() -> None:
    assert Where("<no such file>", 3).excerpt() == []


def test_many_guards_are_cut() -> None:
    assert some(list(range(3))) == ["0", "1", "2"]
    assert some(list(range(50)), 2) == ["0", "1", "... and 48 more, in .guards"]
