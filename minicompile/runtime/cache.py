"""Disk cache of compiled libraries: private to the user, checksummed, safe to share between processes,
never trusted.

Takes a key (a hash of everything that goes into a file) and a function that makes the file; gives its path.
Any fault - wrong owner, wrong permissions, bad checksum, full disk - is a miss: the file is then made in a
private temporary folder. Entries are `<key>.so` and `<key>.sum`; nothing is unpickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_dir

from ..config import config

log = logging.getLogger("minicompile.cache")
# another process may be making the same file; after this, we make it too
LOCK_SECONDS = 60.0


def key_of(*parts: str | bytes) -> str:
    """A hash of all parts; lengths are hashed too, so that moving text between parts changes it."""
    h = hashlib.sha256()
    for p in parts:
        data = p.encode() if isinstance(p, str) else p
        h.update(str(len(data)).encode() + b":" + data)
    return h.hexdigest()[:40]


def folder() -> Path | None:
    """The cache folder, made with mode 0700; None where it cannot be used (the reason is logged)."""
    if config.cache_size_mb == 0:
        return None
    path = Path(config.cache_dir or user_cache_dir("minicompile"))
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.stat(follow_symlinks=False)
    except OSError as e:
        log.warning("no disk cache in %s: %s", path, e)
        return None
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
        log.warning("no disk cache in %s: it is not a folder that only this user can write to", path)
        return None
    return path


def get_or_make(key: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
    """(path of the file for `key`, whether it was there). `make` writes the file to the path it is given;
    what it
    raises passes through. The file stays for the life of the process."""
    home = folder()
    if home is None:
        return _private(key, make), False
    found = _read(home, key)
    if found is not None:
        return found, True
    with _single_flight(home / f"{key}.lock"):
        found = _read(home, key)  # somebody else may have made it meanwhile
        if found is not None:
            return found, True
        return _write(home, key, make)


def _read(home: Path, key: str) -> Path | None:
    path, sums = home / f"{key}.so", home / f"{key}.sum"
    try:
        info = path.stat(follow_symlinks=False)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
            log.warning("%s is not a private file of this user; it is not used", path)
            return None
        if sums.read_text() != _checksum(path):
            log.warning("%s does not match its checksum; it is made again", path)
            return None
        os.utime(path)  # for the size cap: the oldest used goes first
        return path
    except OSError:
        return None


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(home: Path, key: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
    try:
        work = Path(tempfile.mkdtemp(dir=home, prefix="making-"))
    except OSError as e:
        log.warning("cannot write to the disk cache: %s", e)
        return _private(key, make), False
    try:
        made = work / f"{key}.so"
        make(made)
        try:
            made.chmod(0o600)
            (work / "sum").write_text(_checksum(made))
            _sync(made)
            os.replace(work / "sum", home / f"{key}.sum")
            os.replace(made, home / f"{key}.so")
        except OSError as e:
            log.warning("cannot write to the disk cache: %s", e)
            return _private(key, make), False
        _trim(home)
        return home / f"{key}.so", False
    finally:
        for left in work.iterdir():
            left.unlink(missing_ok=True)
        work.rmdir()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _private(key: str, make: Callable[[Path], None]) -> Path:
    """A file outside the cache, removed with the folder at exit."""
    holder = tempfile.TemporaryDirectory(prefix="minicompile-")
    _held.append(holder)
    path = Path(holder.name) / f"{key}.so"
    make(path)
    return path


_held: list[tempfile.TemporaryDirectory] = []  # keeps private folders until the process ends


@contextmanager
def _single_flight(path: Path) -> Iterator[None]:
    """Only one process makes an entry; the others wait, at most LOCK_SECONDS, and then go on without the
    lock."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.02)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _trim(home: Path) -> None:
    """Removes the least recently used entries beyond config.cache_size_mb."""
    entries = []
    for path in home.glob("*.so"):
        try:
            info = path.stat()
            entries.append((info.st_mtime, info.st_size, path))
        except OSError:
            continue  # another process removed it
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= config.cache_size_mb * 2**20:
            break
        path.unlink(missing_ok=True)
        path.with_suffix(".sum").unlink(missing_ok=True)
        total -= size
