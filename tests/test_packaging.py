"""What gets shipped: an sdist that builds, and a wheel with the kernels, headers, type marker and entry points."""
from __future__ import annotations

import importlib.util
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LEFT_OUT = ("minicompile.kernels",)                        # lives in kernels/, not in minicompile/


def folders(root: Path, package: str) -> set[str]:
    inits = [f.parent.relative_to(root).parts for f in root.rglob("__init__.py")]
    return {".".join((package, *parts)) for parts in inits if "build" not in parts}


def test_every_package_is_listed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed == folders(ROOT / "minicompile", "minicompile") | folders(ROOT / "kernels", "minicompile.kernels")


def test_every_pin_is_a_version() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if line.count("==") != 1 or "/" in line or "@" in line] == []
    assert "torch==2.13.0" in lines


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, wheel): the wheel is built from the sdist, so a file missing there shows."""
    work = tmp_path_factory.mktemp("package")
    junk = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.so", "*.egg-info", "__pycache__", ".*_cache",
                                  ".hypothesis")
    shutil.copytree(ROOT, work / "tree", ignore=junk)
    done = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(work / "dist"),
                           str(work / "tree")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next((work / "dist").glob("*.tar.gz")), next((work / "dist").glob("*.whl"))


def test_the_sdist_has_all_sources(shipped: tuple[Path, Path]) -> None:
    names = {n.partition("/")[2] for n in tarfile.open(shipped[0]).getnames()}
    wanted = [f for pattern in ("*.py", "*.c", "*.h") for part in ("minicompile", "kernels")
              for f in (ROOT / part).rglob(pattern) if "build" not in f.parts]
    assert {str(f.relative_to(ROOT)) for f in wanted} - names == set()
    assert {"LICENSE", "README.md", "pyproject.toml", "Makefile", "constraints.txt", "minicompile/py.typed"} <= names


def test_the_wheel_has_kernels_headers_and_extensions(shipped: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(shipped[1])
    names = set(wheel.namelist())
    headers = {f"minicompile/kernels/{f.relative_to(ROOT / 'kernels')}" for f in (ROOT / "kernels").rglob("*.h")}
    modules = {str(f.relative_to(ROOT)) for f in (ROOT / "minicompile").rglob("*.py")}
    assert (headers | modules | {"minicompile/py.typed", "minicompile/kernels/__init__.py"}) - names == set()
    assert any(n.startswith("minicompile/_native") and n.endswith(".so") for n in names)
    assert not any(n.startswith(("tests/", "kernels/", "benchmarks/")) for n in names)
    entry = wheel.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert "[torch_dynamo_backends]\nminicompile = minicompile.api:torch_backend" in entry


def test_the_wheel_imports(shipped: tuple[Path, Path], tmp_path: Path) -> None:
    zipfile.ZipFile(shipped[1]).extractall(tmp_path)
    code = ("import minicompile, minicompile._native, minicompile.kernels as k, pathlib\n"
            "print(minicompile.__file__, any(pathlib.Path(k.__file__).parent.rglob('*.h')))")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "minicompile" / "__init__.py"), "True"], done.stderr


def test_an_installation_in_the_repository_has_its_python_files_compiled(tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    from setuptools.command.build_ext import build_ext
    from setuptools.dist import Distribution

    files = [tmp_path / folder / "a.py" for folder in ("minicompile", "kernels")]
    for file in files:
        file.parent.mkdir()
        file.write_text("1\n")
    given: dict = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("setuptools.setup", lambda **settings: given.update(settings))
    monkeypatch.setattr(build_ext, "copy_extensions_to_source", lambda self: None)
    runpy.run_path(str(ROOT / "setup.py"))
    given["cmdclass"]["build_ext"](Distribution()).copy_extensions_to_source()
    assert all(Path(importlib.util.cache_from_source(str(file))).exists() for file in files)


def test_it_is_a_backend_of_torch_compile() -> None:
    """What the entry point names, behind torch's own capture."""
    import torch

    from minicompile import api

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.T, -1).sin()

    x = torch.randn(5, 7)
    with torch.no_grad():
        got = torch.compile(f, backend=api.torch_backend)(x)
        assert torch.allclose(got, f(x), atol=1e-6)
