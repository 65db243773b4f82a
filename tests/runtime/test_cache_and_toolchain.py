"""Disk cache and compiler: every fault is a miss, concurrent makers share, a missing compiler is said
clearly."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from minicompile.config import config
from minicompile.errors import ToolchainError
from minicompile.runtime import cache, toolchain


@pytest.fixture
def home(tmp_path):
    with config.patch(cache_dir=str(tmp_path / "cache")):
        yield tmp_path / "cache"


def make(text: str = "one"):
    made = []

    def write(path: Path) -> None:
        made.append(path)
        path.write_text(text)

    return write, made


def test_hit_after_miss_and_private_folder(home):
    write, made = make()
    path, hit = cache.get_or_make("k", write)
    assert not hit and path.read_text() == "one"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    again, hit = cache.get_or_make("k", write)
    assert hit and again == path and len(made) == 1
    assert [p.name for p in home.iterdir() if not p.name.startswith("k.")] == []  # nothing left over


def test_keys_differ_when_text_moves_between_parts():
    assert cache.key_of("ab", "c") != cache.key_of("a", "bc")


@pytest.mark.parametrize("harm", ["truncate", "edit", "no sum", "wrong sum", "others may write", "link"])
def test_faults_are_misses(home, harm, tmp_path):
    write, made = make()
    path, _ = cache.get_or_make("k", write)
    if harm == "truncate":
        path.write_text("")
    elif harm == "edit":
        path.write_text("two")
    elif harm == "no sum":
        path.with_suffix(".sum").unlink()
    elif harm == "wrong sum":
        path.with_suffix(".sum").write_text("0" * 64)
    elif harm == "others may write":
        path.chmod(0o666)
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    path, hit = cache.get_or_make("k", write)
    assert not hit and len(made) == 2 and path.read_text() == "one"
    assert cache.get_or_make("k", write)[1]


def test_a_folder_others_can_write_to_is_not_used(home):
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    write, _ = make()
    path, hit = cache.get_or_make("k", write)
    assert not hit and path.read_text() == "one" and not list(home.iterdir())


def test_an_unwritable_folder_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with config.patch(cache_dir=str(tmp_path / "file" / "cache")):
        write, _ = make()
        assert cache.get_or_make("k", write)[0].read_text() == "one"


def test_a_failing_maker_leaves_nothing(home):
    def fail(path: Path) -> None:
        path.write_text("half")
        raise ToolchainError("no")

    with pytest.raises(ToolchainError):
        cache.get_or_make("k", fail)
    assert list(home.iterdir()) == []


def test_one_maker_at_a_time(home):
    made = []

    def slow(path: Path) -> None:
        made.append(1)
        time.sleep(0.2)
        path.write_text("x")

    threads = [threading.Thread(target=cache.get_or_make, args=("k", slow)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(made) == 1


def test_size_cap_drops_the_least_recently_used(home):
    def big(path: Path) -> None:
        path.write_bytes(b"x" * 400_000)

    with config.patch(cache_size_mb=1):
        for k in range(4):
            cache.get_or_make(f"k{k}", big)
            os.utime(home / f"k{k}.so", (k, k))
        assert not (home / "k0.so").exists() and (home / "k3.so").exists()


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ToolchainError, match="install g\\+\\+"):
        toolchain.find()
    monkeypatch.setenv("CXX", "/no/such/compiler -O1")
    with pytest.raises(ToolchainError, match="is not a program"):
        toolchain.find()


def test_cxx_may_hold_options(monkeypatch):
    monkeypatch.setenv("CXX", "g++ -DX=1")
    assert toolchain.find().command[1:] == ("-DX=1",)


def test_a_failing_compile_says_why(tmp_path):
    source = tmp_path / "a.cpp"
    source.write_text("int main( {")
    with pytest.raises(ToolchainError, match="error"):
        toolchain.build(toolchain.find(), source, tmp_path / "a.so", ("-shared",), tmp_path)


def test_a_slow_compiler_is_stopped(tmp_path, monkeypatch):
    fake = tmp_path / "slow"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo slow 1 && exit 0\nexec sleep 30\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with config.patch(compile_timeout_s=0.3), pytest.raises(ToolchainError, match=r"more than 0\.3 s"):
        toolchain.build(toolchain.find(), tmp_path / "a.cpp", tmp_path / "a.so", (), tmp_path)


def test_isa_choice():
    assert toolchain.machine_isas()[-1] == "scalar"
    with config.patch(isa="scalar"):
        assert toolchain.detect_isa() == "scalar"
