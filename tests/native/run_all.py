"""Builds `minicompile._native` for each given Python in a temporary folder and runs these tests there.

    python tests/native/run_all.py [python ...]        # default: the 3.11, 3.12 and 3.13 that are found

A Python without pytest gets it in a temporary virtual environment. Tests that need torch skip themselves
where there is none.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def find_pythons() -> list[str]:
    found = [sys.executable]
    for version in ("3.11", "3.12", "3.13"):
        if version == "{}.{}".format(*sys.version_info):
            continue
        candidates = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        path = str(candidates[-1]) if candidates else shutil.which(f"python{version}")
        if path:
            found.append(path)
    return found


def ask(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def build(python: str, folder: Path) -> None:
    """The extension alone, without setuptools, which not every Python has."""
    include = ask(python, "import sysconfig; print(sysconfig.get_path('include'))")
    suffix = ask(python, "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
    target = folder / "minicompile" / f"_native{suffix}"
    target.parent.mkdir(parents=True)
    sources = sorted(map(str, (ROOT / "minicompile" / "capture").glob("*.c")))
    flags = [
        "-O2",
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Werror",
        "-fvisibility=hidden",
        "-shared",
        "-fPIC",
    ]
    subprocess.run(
        [*os.environ.get("CC", "cc").split(), *flags, f"-I{include}", "-o", str(target), *sources, "-ldl"],
        check=True,
    )


def with_pytest(python: str, folder: Path) -> str:
    if subprocess.run([python, "-c", "import pytest"], capture_output=True).returncode == 0:
        return python
    subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
    inside = str(folder / "venv" / "bin" / "python")
    subprocess.run([inside, "-m", "pip", "install", "-q", "pytest"], check=True)
    return inside


def main(pythons: list[str]) -> int:
    failures = 0
    for python in pythons:
        print(f"=== {ask(python, 'import sys; print(sys.version)')} ({python})", flush=True)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            build(python, folder)
            runner = with_pytest(python, folder)
            environment = {**os.environ, "MINICOMPILE_NATIVE_DIR": name}
            command = [
                runner,
                "-X",
                "faulthandler",
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-o",
                "filterwarnings=",
                str(HERE),
            ]
            failures += subprocess.run(command, env=environment, cwd=ROOT).returncode != 0
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or find_pythons()))
