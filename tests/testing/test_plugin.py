"""The pytest plugin, as another project sees it."""
from __future__ import annotations

from importlib.metadata import entry_points

import pytest

# installed, it is found by its entry point, and cannot be given again
PLUGIN = [] if "minicompile" in entry_points(group="pytest11").names else ["-p", "minicompile.testing.plugin"]
pytest_plugins = ["pytester"]
TESTS = """
import pytest, torch
from minicompile.testing import mutants

def rows(x):
    return (x - x.mean()).sum(0)

@pytest.fixture
def x():
    return torch.randn(3, 4)

def test_right(compiled_rightly, x):
    assert compiled_rightly(rows, x).ok

def test_wrong(compiled_rightly, x):
    with mutants.planted(next(m for m in mutants.MUTANTS if m.name == "prims: swapped operands")):
        compiled_rightly.using(shrink_seconds=5)(rows, x)

@pytest.mark.compiled_rightly(torch_compile=False)
def test_marked(x):
    y = rows(x)
    assert y.shape == (4,)
"""


def test_fixture_and_marker(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    folder = pytester.path / "repro"
    result = pytester.runpytest_inprocess(*PLUGIN, "--repro", str(folder), "--strict-markers")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*minicompile is wrong*", "*prims is the first that differs*"])
    script = (folder / "test_wrong.py").read_text()
    assert "def fn" in script and "Check(" in script


def test_the_plugin_alone_imports_no_torch(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import sys\ndef test_it():\n    assert 'torch' not in sys.modules\n")
    result = pytester.runpytest_subprocess(*PLUGIN)
    result.assert_outcomes(passed=1)
