"""Disk cache of compiled libraries: private to the user, checksummed, safe to share between processes,
never trusted.

Takes a key (a hash of everything that goes into a file: what the code is, "-", and what compiles it) and a
function that makes the file; gives its path. An entry that was imported from another machine is named by
the first half alone. Any fault - wrong owner, wrong permissions, bad checksum, full disk - is a miss: the
file is then made in a private temporary folder. An entry is one file, `<key>.so`: the library and, behind its
end, where loaders don't look, a checksum of key and library. It appears and goes in one step; nothing is
unpickled. What `export` writes is one line of JSON, the libraries, and a checksum of all that.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_dir

from ..config import config
from ..errors import MinicompileError, ToolchainError

log = logging.getLogger("minicompile.cache")
# another process may be making the same file; after this, we make it too
LOCK_SECONDS = 60.0
STALE_SECONDS = 3600.0  # a temporary file of a process that was killed is removed after this
MARK = b"minicompile-1\n"
ARTEFACTS = b"minicompile artefacts 1\n"
SUM_BYTES = 32
KEY = re.compile("[0-9a-f]{40}")


def key_of(*parts: str | bytes) -> str:
    """A hash of all parts; lengths are hashed too, so that moving text between parts changes it."""
    h = hashlib.sha256()
    for p in parts:
        data = p.encode() if isinstance(p, str) else p
        h.update(str(len(data)).encode() + b":" + data)
    return h.hexdigest()[:40]


def folder() -> Path | None:
    """The cache folder, made with mode 0700; None where it is turned off or cannot be used, which is logged
    once."""
    if config.cache_size_mb == 0:
        return None
    path = Path(config.cache_dir or user_cache_dir("minicompile"))
    reason = _why_not(path)
    if reason is None:
        return path
    _say_once(f"no disk cache in {path}: {reason}")
    return None


def _why_not(path: Path) -> str | None:
    """Why `path`, which is made if need be, is no cache folder."""
    if not path.is_absolute() and not config.cache_dir:
        return "this user has no home folder"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.stat(follow_symlinks=False)
    except OSError as e:
        return str(e)
    if stat.S_ISLNK(info.st_mode):
        return "it is a symbolic link"
    return _not_private(info, stat.S_ISDIR)


def _not_private(info: os.stat_result, kind: Callable[[int], bool]) -> str | None:
    if not kind(info.st_mode):
        return "it is of another kind"
    if info.st_uid != os.getuid():
        return "it belongs to another user"
    return "others may write to it" if info.st_mode & 0o022 else None


_said: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        log.warning("%s", text)


@contextmanager
def get_or_make(key: str, make: Callable[[Path], None]) -> Iterator[tuple[Path, bool]]:
    """(path of the file for `key`, whether it was there), to be loaded inside the with block: after it, a
    file that could not be put into the cache is gone. `make` writes the file to the path it is given; what
    it raises passes through. What raises inside the block takes the entry with it: it is no good.
    Raises ToolchainError where no folder can be written to."""
    home = folder()
    path = _found(home, key) if home else None
    if path is None:
        with _making(home, key, make) as (path, cached):
            yield path, cached
        return
    try:
        yield path, True
    except Exception:
        _remove(path)
        raise


@contextmanager
def _making(home: Path | None, key: str, make: Callable[[Path], None]) -> Iterator[tuple[Path, bool]]:
    """get_or_make after a miss. The file is loaded from where it was made, and published when it has
    been."""
    with _single_flight(home / f"{key}.lock") if home else nullcontext():
        path = _found(home, key) if home else None  # somebody else may have made it meanwhile
        if path is not None:
            yield path, True
            return
        with _workshop(home) as work:
            made = work / f"{key}.so"
            make(made)
            yield made, False
            if home:
                try:
                    _publish(home, key, made.read_bytes())
                    _trim(home)
                except OSError as e:
                    _say_once(f"cannot write to the disk cache in {home}: {e.strerror}")


@contextmanager
def _workshop(home: Path | None) -> Iterator[Path]:
    """A private temporary folder, outside the cache if possible: a full cache is no reason not to compile."""
    work, why = None, None
    for place in (None, home):
        try:
            work = Path(tempfile.mkdtemp(dir=place, prefix="making-minicompile-"))
            break
        except OSError as e:
            why = e
    if work is None:
        raise ToolchainError(f"there is no folder to compile in: {why}; set TMPDIR to one") from why
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(home: Path, key: str, data: bytes) -> None:
    """Puts a library into the cache: written beside its place, flushed to disk, then renamed. Raises
    OSError."""
    fd, temporary = tempfile.mkstemp(dir=home, prefix="making-")  # mode 0600
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data + _sum(key, data) + MARK)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, home / f"{key}.so")
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _sum(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b":" + data).digest()


def fault(path: Path) -> str | None:
    """What is wrong with the entry `path`; None if nothing. Raises OSError where it cannot be read."""
    return _checked(path)[1]


def _checked(path: Path) -> tuple[bytes, str | None]:
    """(library of the entry `path`, what is wrong with it)."""
    whole, why = _private_bytes(path)
    end = len(whole) - SUM_BYTES - len(MARK)
    if why is None and (end < 0 or whole[end + SUM_BYTES:] != MARK):
        why = "it is no entry, or cut short"
    elif why is None and whole[end:end + SUM_BYTES] != _sum(path.stem, whole[:end]):
        why = "it does not match its checksum"
    return whole[:max(end, 0)], why


def _private_bytes(path: Path) -> tuple[bytes, str | None]:
    """(content of a file, "") or (nothing, why it may not be trusted)."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        why = _not_private(os.fstat(fd), stat.S_ISREG)
        return (b"", why) if why is not None else (file.read(), None)


def _found(home: Path, key: str) -> Path | None:
    """The entry of a key; else the imported one for the same code."""
    return _read(home, key) or ("-" in key and _read(home, key.partition("-")[0])) or None


def _read(home: Path, key: str) -> Path | None:
    path = home / f"{key}.so"
    try:
        why = fault(path)
    except FileNotFoundError:
        return None
    except OSError as e:
        why = str(e.strerror)
    if why is not None:
        _say_once(f"{path} is not used: {why}")
        return None
    with suppress(OSError):  # a folder that can only be read
        os.utime(path)  # for the size cap: the least recently used goes first
    return path


@contextmanager
def _single_flight(path: Path) -> Iterator[None]:
    """Only one process makes an entry; the others wait, at most LOCK_SECONDS, and then go on without the
    lock. The lock of a process that died is free."""
    fd = _locked(path)
    try:
        yield
    finally:
        if fd is not None:
            with suppress(OSError):
                path.unlink()
            fcntl.flock(fd, fcntl.LOCK_UN)  # a forked process may hold the descriptor, too
            os.close(fd)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock; None where it cannot be had."""
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        except OSError:
            return None
        held = False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # who held it before has removed the file: then ours is the lock of nothing
            held = _is_at(fd, path)
            if held:
                return fd
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:
            return None  # a file system without locks
        finally:
            if not held:
                os.close(fd)
    return None


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def export(home: Path, facts: Mapping[str, str], target: Path) -> int:
    """Writes every good entry into one file for other machines; gives their number.

    facts   what a machine must have in common with this one to use them
    """
    good = {e.path.stem.partition("-")[0]: _checked(e.path)[0] for e in entries(home, verify=True)
            if e.fault is None}
    head = {"facts": dict(facts), "entries": [[key, len(data)] for key, data in good.items()]}
    whole = ARTEFACTS + json.dumps(head).encode() + b"\n" + b"".join(good.values())
    target.touch(0o600)
    target.write_bytes(whole + hashlib.sha256(whole).digest())
    return len(good)


def import_(home: Path, facts: Mapping[str, str], isas: Sequence[str], source: Path) -> int:
    """Takes over what `export` wrote, all or nothing; gives the number of entries.

    facts, isas   this machine's, and the instruction sets it has: another version or a wider set is refused
    Raises MinicompileError with the reason, OSError where a file cannot be read or written.
    """
    whole, why = _private_bytes(source)
    if why is not None:
        raise MinicompileError(f"{source} is not imported: {why}")
    body, checksum = whole[:-SUM_BYTES], whole[-SUM_BYTES:]
    if not body.startswith(ARTEFACTS) or hashlib.sha256(body).digest() != checksum:
        raise MinicompileError(f"{source} is not imported: it is no export of minicompile, or damaged")
    line, _, rest = body[len(ARTEFACTS):].partition(b"\n")
    head = json.loads(line)
    if not all(KEY.fullmatch(key) for key, _ in head["entries"]):
        raise MinicompileError(f"{source} is not imported: it holds names that are no keys")
    others = [f"{name} {there}, here {facts.get(name, 'unknown')}" for name, there in head["facts"].items()
              if there not in (isas if name == "isa" else [facts.get(name)])]
    if others:
        raise MinicompileError(f"{source} is not imported: it was made for {'; '.join(others)}")
    for key, size in head["entries"]:
        _publish(home, key, rest[:size])
        rest = rest[size:]
    _trim(home)
    return len(head["entries"])


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the cache, for people: its path, bytes, time of last use, and what is wrong with it."""

    path: Path
    size: int
    used: float
    fault: str | None = None


def entries(home: Path, verify: bool = False) -> list[Entry]:
    """All entries, least recently used first; `verify` reads each and says what is wrong with it."""
    found = []
    for path in home.glob("*.so"):
        try:
            info = path.stat(follow_symlinks=False)
            why = fault(path) if verify else None
        except FileNotFoundError:
            continue  # another process removed it
        except OSError as e:
            why = str(e.strerror)
        found.append(Entry(path, info.st_size, info.st_mtime, why))
    return sorted(found, key=lambda e: (e.used, e.path))


def clear(home: Path) -> int:
    """Removes everything this module writes, also what killed processes left; gives the number of
    entries."""
    gone = sum(_remove(e.path) for e in entries(home))
    for left in (*home.glob("*.lock"), *home.glob("making-*")):
        _remove(left)
    return gone


def _remove(path: Path) -> bool:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        return True
    except OSError:
        return False  # gone already, or not ours to remove


def _trim(home: Path) -> None:
    """Removes the least recently used entries beyond config.cache_size_mb, and temporary files nobody will
    finish."""
    kept = entries(home)
    total = sum(e.size for e in kept)
    for e in kept:
        if total <= config.cache_size_mb * 2**20:
            break
        _remove(e.path)
        total -= e.size
    for left in (*home.glob("making-*"), *Path(tempfile.gettempdir()).glob("making-minicompile-*")):
        with suppress(OSError):
            info = left.stat(follow_symlinks=False)
            if time.time() - info.st_mtime > STALE_SECONDS and info.st_uid == os.getuid():
                _remove(left)
