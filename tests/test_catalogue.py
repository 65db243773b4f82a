"""The pages written from the code are current; decompositions are short."""
from __future__ import annotations

import statistics

import pytest
import torch

from minicompile.testing import catalogue


@pytest.mark.parametrize("name", catalogue.PAGES)
def test_page_is_current(name):
    if name == "coverage" and not torch.__version__.startswith("2.13.0"):
        pytest.skip("the page lists another torch's operators")
    text = catalogue.PAGES[name]()
    assert (catalogue.DOCS / f"{name}.md").read_text() == text, "run python -m minicompile.testing.catalogue"


def test_decompositions_are_short():
    lengths = catalogue.lengths()
    assert len(lengths) > 200
    assert statistics.median(lengths.values()) <= 12
    assert max(lengths.values()) <= 60


def test_fates():
    aten = torch.ops.aten
    for name, fate in {"add": "decomposed", "max_pool2d_with_indices": "decomposed", "rot90": "composed",
                       "clip": "taken apart", "mm": "product", "randn": "random", "_linalg_svd": "library",
                       "nonzero": "refused", "_sparse_mm": "other layouts"}.items():
        packet = getattr(aten, name)
        overloads = [getattr(packet, o) for o in packet.overloads() if "out" not in o]
        assert catalogue.fate(overloads) == fate, name


def test_every_operator_has_one_fate():
    found = catalogue.operators()
    assert len(found) > 1000
    assert {catalogue.fate(overloads) for overloads in found.values()} <= set(catalogue.FATES)
