"""A fast part of CPython's own tests, in the interpreter: those that `expected.txt` does not list pass. `make cpython` runs all."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
import run


@pytest.fixture(scope="module")
def expected():
    return run.read_expected("{}.{}".format(*sys.version_info))


@pytest.mark.parametrize("part", range(4))
def test_quick_modules(part, expected):
    passed, failed, _ = run.compare(sys.executable, run.QUICK[part::4])
    assert len(passed) > 100
    assert {n: m for n, m in failed.items() if n not in expected} == {}


def test_a_failure_is_seen(tmp_path, monkeypatch):
    """A module whose tests must be judged rightly: what fails by both, what raises, what only CPython passes."""
    (tmp_path / "test_judge.py").write_text(
        "import sys, unittest\n"
        "class T(unittest.TestCase):\n"
        "    def test_good(self): self.assertEqual(sum(x * x for x in range(4)), 14)\n"
        "    def test_bad(self): self.assertEqual(1, 2)\n"
        "    def test_frame(self): self.assertIs(sys._getframe().f_code, type(self).test_frame.__code__)\n"
        "    def test_real_frame(self): self.assertEqual(type(sys._getframe()).__name__, 'frame')\n"
        "    def test_dies(self):\n"
        "        if type(sys._getframe()).__name__ != 'frame': import os; os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(run, "PREFIX", "test_")
    passed, failed, _ = run.compare(sys.executable, ["judge"])
    names = {n.rpartition(".")[2] for n in passed}, {n.rpartition(".")[2] for n in failed}
    assert names == ({"test_good", "test_frame", "test_real_frame", "test_dies"}, {"test_real_frame", "test_dies"})
