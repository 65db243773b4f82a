"""Each small program gives the same by CPython, by the interpreter in plain mode, and captured (twice)."""

import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from programs import PROGRAMS
from runner import outcome

from minicompile.capture.compiled import Compiled
from minicompile.capture.interp import World

RUNNER = os.path.join(os.path.dirname(__file__), "runner.py")
# Programs that capture refuses today, besides those that raise; they run as in eager mode.
REFUSED = {"dataclass", "frozen_dataclass", "named_tuples", "import_no_module", "conditional_import_error",
           "typing_runtime",          # typing looks at the frame that subscripts Optional
           "dunder_methods"}          # gives objects of a class that the call makes


@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
def test_plain(f):
    assert outcome(lambda: World().run_function(f, (), None)) == outcome(f)


@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
def test_captured(f):
    expected = outcome(f)
    compiled = Compiled(f, lambda capture, examples: capture.gm)
    assert outcome(compiled) == expected
    assert outcome(compiled) == expected
    refusals = {e.refusal.code for e in compiled.entries if e.refusal}
    if expected.startswith("returned") and f.__name__ not in REFUSED:
        assert not refusals
    if not refusals:
        assert [e.hits for e in compiled.entries] == [1]
        compiled.entries[0].capture.check()


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_other_pythons(version):
    found = [
        p
        for p in _pythons()
        if os.path.basename(os.path.dirname(os.path.dirname(p))).startswith(version + ".")
    ]
    if not found:
        pytest.skip(f"no Python {version} under pyenv")
    done = subprocess.run([found[0], RUNNER], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def _pythons():
    root = os.path.join(os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv")), "versions")
    if not os.path.isdir(root):
        return []
    return [os.path.join(root, v, "bin", "python") for v in sorted(os.listdir(root))]
