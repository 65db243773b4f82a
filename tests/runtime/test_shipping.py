"""Compiled code that is exported on one machine and imported on another: used where it fits, refused with the reason
where it does not, never trusted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

import minicompile
from minicompile.api import handle_of
from minicompile.cli import main
from minicompile.codegen import driver
from minicompile.config import config
from minicompile.errors import MinicompileError
from minicompile.runtime import cache, toolchain

CODE = "0123456789" * 4


def f(x):  # type: ignore[no-untyped-def]
    return torch.softmax(x.sin(), -1) * 2


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A file with one entry, of a machine whose facts are FACTS."""
    with config.patch(cache_dir=str(tmp_path / "there")), \
            cache.get_or_make(f"{CODE}-compiler", lambda path: path.write_bytes(b"a library")):
        pass
    assert cache.export(tmp_path / "there", FACTS, tmp_path / "file") == 1
    return tmp_path / "file"


FACTS = {"minicompile": "1", "torch": "2", "isa": "avx2"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with config.patch(cache_dir=str(tmp_path / "here")):
        found = cache.folder()
        assert found is not None
        yield found


def taken(home: Path, source: Path, facts: dict[str, str] = FACTS, isas: tuple[str, ...] = ("avx2", "scalar")) -> int:
    return cache.import_(home, facts, isas, source)


def test_code_is_used_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    x, file = torch.randn(8, 16), str(tmp_path / "file")
    with config.patch(cache_dir=str(tmp_path / "there")):
        want = minicompile.compile(f)(x)
        assert main(["cache", "export", file]) == 0
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with config.patch(cache_dir=str(tmp_path / "here")):
        assert main(["cache", "import", file]) == 0
        g = minicompile.compile(f)
        assert torch.equal(g(x), want)
        (done,) = handle_of(g).compilations
        assert done.runs == "executable" and done.executable.cached
        assert main(["cache", "verify"]) == 0
    assert "1 compiled graphs exported" in capsys.readouterr().out


def test_what_the_compiler_here_made_goes_before_what_was_imported(home: Path, exported: Path) -> None:
    assert taken(home, exported) == 1
    with cache.get_or_make(f"{CODE}-another", lambda path: path.write_bytes(b"ours")) as (path, hit):
        assert hit and path.name == f"{CODE}.so"
    path.unlink()
    with cache.get_or_make(f"{CODE}-another", lambda path: path.write_bytes(b"ours")) as (_, hit):
        assert not hit
    taken(home, exported)
    with cache.get_or_make(f"{CODE}-another", lambda path: path.write_bytes(b"ours")) as (path, hit):
        assert hit and path.name == f"{CODE}-another.so"


@pytest.mark.parametrize("facts, isas, says", [
    ({**FACTS, "torch": "3"}, ("avx2",), "torch 2, here 3"), (FACTS, ("scalar",), "isa avx2"),
    ({"isa": "avx2"}, ("avx2",), "minicompile 1, here unknown")])
def test_another_version_or_instruction_set_is_refused(home: Path, exported: Path, facts: dict[str, str],
                                                       isas: tuple[str, ...], says: str) -> None:
    with pytest.raises(MinicompileError, match=says):
        taken(home, exported, facts, isas)
    assert not cache.entries(home)


@pytest.mark.parametrize("at", [0, 30, 80, -40, -1])
def test_a_damaged_file_is_refused(home: Path, exported: Path, at: int) -> None:
    data = bytearray(exported.read_bytes())
    data[at] ^= 1
    exported.write_bytes(data)
    with pytest.raises(MinicompileError, match="damaged"):
        taken(home, exported)
    exported.write_bytes(exported.read_bytes()[:at or None])
    with pytest.raises(MinicompileError, match="damaged"):
        taken(home, exported)
    assert not cache.entries(home)


def test_names_that_lead_elsewhere_are_refused(home: Path, exported: Path) -> None:
    whole = cache.ARTEFACTS + json.dumps({"facts": FACTS, "entries": [["../evil", 1]]}).encode() + b"\nx"
    exported.write_bytes(whole + hashlib.sha256(whole).digest())
    with pytest.raises(MinicompileError, match="no keys"):
        taken(home, exported)
    assert not (home.parent / "evil.so").exists()


def test_a_file_that_others_may_write_to_is_refused(home: Path, exported: Path) -> None:
    exported.chmod(0o666)
    with pytest.raises(MinicompileError, match="others may write"):
        taken(home, exported)


def test_a_missing_file_and_a_missing_name(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "import", "/no/such/file"]) == 2 and main(["cache", "export"]) == 2
    assert "No such file" in capsys.readouterr().err


def test_facts_name_versions_and_the_instruction_set() -> None:
    with config.patch(isa="scalar"):
        assert driver.facts()["isa"] == "scalar"
    assert driver.facts()["torch"] == torch.__version__ and driver.facts()["isa"] in toolchain.machine_isas()
