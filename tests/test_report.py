"""The page: its data for inference and training, and, where a Chromium is at hand, the page itself, clicked through."""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import minicompile
from minicompile.viz.explanation import Explanation
from minicompile.viz.profile import run_steps
from minicompile.viz.report import page_data

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def block(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    h = F.layer_norm(x @ w, (64,))
    y = F.gelu(h) + x
    return torch.softmax(y, -1).sum(0)


@pytest.fixture(scope="module")
def training() -> Explanation:
    return minicompile.explain(block, profile=True, errors=True)(torch.randn(32, 64), torch.randn(64, 64, requires_grad=True))


def panes(data: dict) -> dict[str, dict]:
    return {p["title"]: p for p in data["graphs"][0]["panes"]}


def test_every_stage_has_a_pane_both_ways(training: Explanation) -> None:
    titles = list(panes(page_data(training, "block")))
    assert titles[:4] == ["Python", "Bytecode", "Captured graph", "Program around it"]
    assert {"Joint graph", "Cut in two", "Prims", "Loops", "Kernels", "C++", "Prims, backward",
            "C++, backward"} <= set(titles)


def test_relatives_are_linked_to_the_column(training: Explanation) -> None:
    data = page_data(training, "block")
    shown, exact = panes(data), set(data["exact"])

    def fine(pane: str, word: str) -> set[int]:
        return {k for text, keys in shown[pane]["lines"] if word in text for k in keys if k in exact}

    gelu = fine("Captured graph", "gelu = torch")
    assert gelu and not gelu & fine("Captured graph", "softmax = ")
    for pane, word in (("Python", "F.gelu"), ("Prims", "erf"), ("Kernels", "erf"), ("Joint graph", "aten.gelu")):
        assert gelu <= fine(pane, word), pane
    assert gelu & fine("Bytecode", "CALL")
    assert gelu & fine("C++", "erf")


def test_kernels_lie_below_what_they_read(training: Explanation) -> None:
    drawings = page_data(training, "block")["graphs"][0]["drawings"]
    assert len(drawings) == 2
    for d in drawings:
        layer = {n: i for i, names in enumerate(d["layers"]) for n in names}
        assert sorted(layer) == list(range(len(d["boxes"])))
        assert all(layer[a] < layer[b] and n > 0 for a, b, _, n in d["edges"])
    assert drawings[0]["edges"]


def test_steps_are_timed_and_nodes_measured(training: Explanation) -> None:
    assert {(t.graph, t.name) for t in training.timed} == {(k.graph, k.name) for k in training.kernels}
    assert all(t.seconds and t.bytes > 0 for t in training.timed)
    assert [e.name for e in training.errors[0]] == ["matmul", "layer_norm", "gelu", "add", "softmax", "sum_1"]
    assert all(0 < e.relative < 1e-5 for e in training.errors[0])
    data = page_data(training, "block")
    assert all(isinstance(row[8], float) for row in data["kernels"]) and len(data["errors"]) == 6


@pytest.mark.skipif(shutil.which("objdump") is None, reason="there is no objdump")
def test_instructions_belong_to_their_kernel(training: Explanation) -> None:
    lines = panes(page_data(training, "block"))["Assembly"]["lines"]
    assert any(text == "k0:" for text, _ in lines) and sum(bool(keys) for _, keys in lines) > 20


def test_kernels_called_alone_give_the_graphs_result() -> None:
    compiled, handle = minicompile.api.compile_anew(lambda x: torch.softmax(x * 2, -1).sum(0))
    x = torch.randn(32, 64)
    expected = compiled(x)
    timed, (found,) = run_steps(handle.compilations[0], [x])
    assert timed and torch.equal(found, expected)


def test_no_text_can_end_the_script(tmp_path: Path) -> None:
    def evil(x: torch.Tensor) -> torch.Tensor:
        return x + 1  # </script><script>alert(1)</script>

    page = minicompile.explain(evil)(torch.ones(3)).to_html(tmp_path / "evil.html", "<b>").read_text()
    assert page.count("</script>") == 2 and "<title>&lt;b&gt;" in page
    found = re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.S)
    assert found and "alert(1)" in json.dumps(json.loads(found[1]))


def test_a_refused_function_has_a_page_too() -> None:
    def refused(x: torch.Tensor) -> torch.Tensor:
        open("/dev/null").close()
        return x

    data = page_data(minicompile.explain(refused)(torch.ones(3)), "refused")
    assert data["breaks"] and json.dumps(data)


@pytest.fixture(scope="module")
def page(training: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    file = training.to_html(tmp_path_factory.mktemp("page") / "block.html")
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        errors: list[str] = []
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(file.as_uri())
        yield page
        assert errors == []
        browser.close()


def lit(page, pane: str) -> list[str]:
    return page.locator(f".pane:has(h2:text-is('{pane}')) .lit, .pane:has(h2:has-text('{pane}')) .lit").all_inner_texts()


def test_pointing_at_a_node_lights_up_its_relatives(page) -> None:
    page.locator(".pane:has(h2:has-text('Captured graph')) .has", has_text="gelu = torch").hover()
    assert any("F.gelu" in t for t in lit(page, "Python"))
    prims = lit(page, "Prims")
    assert any("erf" in t for t in prims) and not any("softmax" in t or "amax" in t for t in prims)


def test_stages_slide_and_toggle(page) -> None:
    page.keyboard.press("Escape")
    page.locator("#stages button", has_text="C++").first.click()
    assert page.locator(".pane h2", has_text="C++").count() == 1
    page.locator("#slider").fill("0")
    assert page.locator(".pane").count() == 2
    page.keyboard.press("ArrowRight")


@pytest.mark.parametrize("view, words", [("drawing", "k0"), ("kernels", "estimate"), ("guards", "Tensor float32"), ("saved", "bytes"),
                                         ("notFused", "because"), ("breaks", "no break"), ("errors", "layer_norm"), ("seconds", "executable")])
def test_every_view_shows_something(page, view: str, words: str) -> None:
    page.click(f"#view-{view}")
    assert words in page.locator("main").text_content()


def test_changes_and_copies(page) -> None:
    page.click("#view-stages")
    page.keyboard.press("d")
    assert page.locator(".more").count() > 0 and page.locator(".less").count() > 0
    page.keyboard.press("d")
    assert page.locator(".more").count() == 0
    assert "import torch" in page.evaluate("copyable(graph().panes.find(p => p.stage === 'aten' || p.stage === 'prims'))")


def test_search_and_theme(page) -> None:
    page.click("#view-stages")
    page.fill("#search", "softmax")
    assert page.locator(".found").count() > 0
    before = page.evaluate("document.documentElement.dataset.theme")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") != before
