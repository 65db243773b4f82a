"""A program that is stopped at any operation goes on natively as if nothing had been: see tests/lang/resuming.py."""

import os
import subprocess
import sys

import pytest

LANG = os.path.join(os.path.dirname(os.path.dirname(__file__)), "lang")
PYENV = os.path.join(os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv")), "versions")


def python(version):
    """This Python, or one of that version under pyenv."""
    if sys.version.startswith(version + "."):
        return sys.executable
    found = [v for v in os.listdir(PYENV) if v.startswith(version + ".")] if os.path.isdir(PYENV) else []
    return os.path.join(PYENV, sorted(found)[0], "bin", "python") if found else None


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_stopped_anywhere(version):
    interpreter = python(version)
    if interpreter is None:
        pytest.skip(f"no Python {version} under pyenv")
    done = subprocess.run(
        [interpreter, os.path.join(LANG, "resuming.py"), "0", "8"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
