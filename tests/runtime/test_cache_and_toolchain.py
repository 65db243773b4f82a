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


def get(key: str, write) -> tuple[bytes, bool]:
    """What is loaded for `key`, without what the cache writes behind it, and whether it was there."""
    with cache.get_or_make(key, write) as (path, hit):
        data = path.read_bytes()
    return data[:-cache.SUM_BYTES - len(cache.MARK)] if hit else data, hit


def test_hit_after_miss_and_private_folder(home):
    write, made = make()
    assert get("k", write) == (b"one", False)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "k.so").stat().st_mode) == 0o600
    assert get("k", write) == (b"one", True) and len(made) == 1
    assert [p.name for p in home.iterdir()] == ["k.so"]  # nothing left over


def test_keys_differ_when_text_moves_between_parts():
    assert cache.key_of("ab", "c") != cache.key_of("a", "bc")


def swap(path: Path, tmp_path: Path) -> None:
    get("other", make("two")[0])
    os.replace(path.with_name("other.so"), path)


def edited(at: int):
    def edit(path: Path, tmp_path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return edit


def linked(path: Path, tmp_path: Path) -> None:
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")


HARMS = {
    "empty": lambda p, t: p.write_bytes(b""),
    "cut short": lambda p, t: p.write_bytes(p.read_bytes()[:-1]),
    "longer": lambda p, t: p.write_bytes(p.read_bytes() + b"x"),
    "foreign": lambda p, t: p.write_bytes(b"somebody else's file, which is long enough to hold a checksum"),
    "library edited": edited(0),
    "checksum edited": edited(5),
    "mark edited": edited(-3),
    "another entry's file": swap,
    "others may write": lambda p, t: p.chmod(0o666),
    "the group may write": lambda p, t: p.chmod(0o660),
    "link": linked,
    "pipe": lambda p, t: (p.unlink(), os.mkfifo(p, 0o600)),
}


@pytest.mark.parametrize("harm", HARMS)
def test_faults_are_misses(home, harm, tmp_path):
    write, made = make()
    get("k", write)
    HARMS[harm](home / "k.so", tmp_path)
    assert [e.fault is None for e in cache.entries(home, verify=True) if e.path.stem == "k"] == [False]
    assert get("k", write) == (b"one", False) and len(made) == 2
    assert get("k", write) == (b"one", True)


def test_another_users_entry_is_not_used(home, monkeypatch):
    write, _ = make()
    get("k", write)
    uid = os.getuid()
    monkeypatch.setattr(cache.os, "getuid", lambda: uid + 1)
    assert cache.folder() is None and cache.fault(home / "k.so") == "it belongs to another user"


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_others_can_write_to_is_not_used(home, mode):
    home.mkdir()
    home.chmod(mode)
    write, _ = make()
    assert get("k", write) == (b"one", False) and not list(home.iterdir())


def test_a_linked_folder_is_not_used(home, tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    home.symlink_to(tmp_path / "real")
    write, _ = make()
    assert get("k", write) == (b"one", False) and not list(home.iterdir())


def test_an_unwritable_folder_is_no_error_and_said_once(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with config.patch(cache_dir=str(tmp_path / "file" / "cache")):
        write, made = make()
        assert get("k", write) == get("k", write) == (b"one", False)
        assert len(caplog.records) == 1
    assert not made[0].exists()  # what was not kept is gone


def test_a_failing_maker_leaves_nothing(home):
    def fail(path: Path) -> None:
        path.write_text("half")
        raise ToolchainError("no")

    with pytest.raises(ToolchainError):
        get("k", fail)
    assert list(home.iterdir()) == []


def test_what_does_not_load_is_not_kept(home):
    write, _ = make()
    for _ in range(2):  # made just now, and found
        with pytest.raises(OSError), cache.get_or_make("k", write):
            raise OSError("it does not load")
        assert list(home.iterdir()) == []
        get("k", write)


def test_one_maker_at_a_time(home):
    made = []

    def slow(path: Path) -> None:
        made.append(1)
        time.sleep(0.2)
        path.write_text("x")

    threads = [threading.Thread(target=get, args=("k", slow)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(made) == 1


def test_the_lock_of_a_dead_process_is_free_and_a_held_one_is_waited_for(home, monkeypatch):
    write, _ = make()
    cache.folder()
    (home / "k.lock").write_text("left by a process that was killed")
    start = time.monotonic()
    get("k", write)
    assert time.monotonic() - start < 1
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.3)
    with cache._single_flight(home / "j.lock"):
        start = time.monotonic()
        assert get("j", write) == (b"one", False)
        assert 0.3 <= time.monotonic() - start < 3


def test_a_file_system_without_locks(home, monkeypatch):
    def no_locks(fd, how):
        raise OSError(38, "not here")

    monkeypatch.setattr(cache.fcntl, "flock", no_locks)
    write, _ = make()
    start = time.monotonic()
    assert get("k", write) == (b"one", False) and time.monotonic() - start < 5


def test_size_cap_drops_the_least_recently_used_and_old_leavings(home):
    def big(path: Path) -> None:
        path.write_bytes(b"x" * 300_000)

    with config.patch(cache_size_mb=1):
        for k in range(3):
            get(f"k{k}", big)
            os.utime(home / f"k{k}.so", (k, k))
        (home / "making-old").write_text("left by a process that was killed")
        os.utime(home / "making-old", (0, 0))
        get("k0", big)  # a hit: used just now
        get("k3", big)
        assert sorted(p.name for p in home.iterdir()) == ["k0.so", "k2.so", "k3.so"]


def test_old_leavings_of_killed_processes_go(home, tmp_path, monkeypatch):
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    for name, age in (("making-minicompile-old", 0), ("making-minicompile-new", time.time()), ("other", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (age, age))
    get("k", make()[0])
    assert {p.name for p in tmp_path.iterdir()} == {"making-minicompile-new", "other", "cache"}


def test_a_killed_compiler_leaves_no_files_of_its_own(tmp_path, monkeypatch):
    fake = tmp_path / "cc"
    fake.write_text('#!/bin/sh\ntouch "$TMPDIR/left"\nkill -9 $$\n')
    fake.chmod(0o755)
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(ToolchainError, match="signal 9"):
        toolchain.build(toolchain.find(), [tmp_path / "a.cpp"], tmp_path / "work" / "a.so", (), tmp_path)
    assert (tmp_path / "work" / "left").exists()


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
        toolchain.build(toolchain.find(), [source], tmp_path / "a.so", ("-shared",), tmp_path)


def test_a_slow_compiler_is_stopped(tmp_path, monkeypatch):
    fake = tmp_path / "slow"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo slow 1 && exit 0\nexec sleep 30\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with config.patch(compile_timeout_s=0.3), pytest.raises(ToolchainError, match=r"more than 0\.3 s"):
        toolchain.build(toolchain.find(), [tmp_path / "a.cpp"], tmp_path / "a.so", (), tmp_path)


def alive(group: int) -> bool:
    """Whether a process of the group runs (a zombie does not)."""
    for stat_ in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat_.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if words[2] == str(group) and words[0] != "Z":
            return True
    return False


def test_a_stopped_compiler_takes_its_children_along(tmp_path, monkeypatch):
    fake, group = tmp_path / "slow", tmp_path / "group"
    fake.write_text(f"#!/bin/sh\necho $$ > {group}\nsleep 30 &\nsleep 30\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with config.patch(compile_timeout_s=0.5), pytest.raises(ToolchainError):
        toolchain.build(toolchain.find(), [tmp_path / "a.cpp"], tmp_path / "a.so", (), tmp_path)
    deadline = time.monotonic() + 5
    while alive(int(group.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(group.read_text()))


def test_a_changed_compiler_has_another_identity_and_is_not_run_to_find_it(tmp_path, monkeypatch):
    fake = tmp_path / "cc"
    fake.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\necho version 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", f"env {fake}")
    before = toolchain.find()
    assert not (tmp_path / "ran").exists() and before.version == "version 1"
    os.utime(fake, (1, 1))
    assert toolchain.find().identity != before.identity


def test_isa_choice():
    assert toolchain.machine_isas()[-1] == "scalar"
    with config.patch(isa="scalar"):
        assert toolchain.detect_isa() == "scalar"
