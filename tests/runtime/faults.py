"""What the tests of faults share: programs run in processes of their own, with compilers that go wrong."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minicompile.config import config, from_environment

ROOT = Path(__file__).resolve().parents[2]
# f(x) is compiled as g; right() says whether the compiled function's answer is eager's, runs() what runs it
HEAD = """
import os, signal, sys, threading, time
import torch, minicompile
from minicompile.api import handle_of
def f(x): return torch.softmax(x.sin() + {number}, -1) * 2
def f2(x): return torch.tanh(x) * 3 + x.cos()
g, g2 = minicompile.compile(f), minicompile.compile(f2)
x = torch.linspace(-3, 3, 6400).reshape(64, 100)
def right(g=g, f=f): return torch.allclose(g(x), f(x), atol=1e-6)
def runs(g=g): return ",".join(c.runs for c in handle_of(g).compilations)
"""
BOTH = "print(right(), runs())\nprint(right(g2, f2), runs(g2))\n"
# each is a program called as the compiler; GROUP is a file that names its process group
COMPILERS = {
    "fails": "#!/bin/sh\necho 'internal error: out of cheese' >&2\nexit 1\n",
    "killed": "#!/bin/sh\nkill -9 $$\n",
    "prints garbage": "#!/bin/sh\nhead -c 3000 /dev/urandom\nhead -c 3000 /dev/urandom >&2\nexit 0\n",
    "writes garbage": '#!/bin/sh\nfor last; do :; done\nhead -c 3000 /dev/urandom > "$last"\n',
    "writes an empty library": '#!/bin/sh\nfor last; do :; done\nprintf "\\177ELF" > "$last"\n',
    "hangs": "#!/bin/sh\necho $$ > $GROUP\nsleep 60 &\nsleep 60\n",
}


def compiler(folder: Path, text: str) -> Path:
    path = folder / "cxx"
    path.write_text(text)
    path.chmod(0o755)
    return path


def counting(folder: Path, seconds: float = 0) -> Path:
    """g++, which writes a line to folder/compiles for each run."""
    return compiler(folder, f"#!/bin/sh\necho x >> {folder}/compiles\nsleep {seconds}\n"
                            f'exec {shutil.which("g++")} "$@"\n')


def compiles(folder: Path) -> int:
    file = folder / "compiles"
    return len(file.read_text().splitlines()) if file.exists() else 0


def environment(folder: Path, **more: str | None) -> dict[str, str]:
    """That of a fresh user whose cache is folder/cache; None takes a variable out."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MINICOMPILE_", "XDG_")) and k != "CXX"}
    env |= {"PYTHONPATH": str(ROOT), "MINICOMPILE_CACHE_DIR": str(folder / "cache"),
            "GROUP": str(folder / "group"), "TMPDIR": str(folder / "temporary")}
    (folder / "temporary").mkdir(exist_ok=True)
    for name, value in more.items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    return env


# one process imports torch, and is copied for each program: an import takes seconds, a copy does not
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "minicompile.api"])


class Child:
    """A process that runs `body` after HEAD, with `env`, in a session of its own."""

    def __init__(self, body: str, env: dict[str, str], number: int = 1):
        self.folder = Path(tempfile.mkdtemp(prefix="child-", dir=Path(env["GROUP"]).parent))
        program = HEAD.format(number=number) + body
        self.process = FORKS.Process(target=_body, args=(program, env, str(self.folder)))
        self.process.start()

    def finish(self, status: int = 0, seconds: float = 50) -> tuple[str, str]:
        """(stdout, stderr); the process must end with `status`."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
        out, err = ((self.folder / name).read_text().strip() for name in ("out", "err"))
        assert self.process.exitcode == status, f"status {self.process.exitcode}\n{out}\n{err}"
        return out, err


def _body(text: str, env: dict[str, str], folder: str) -> None:
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY), number)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None
    vars(config).update(vars(from_environment(env)))
    exec(compile(text, "<program>", "exec"), {"__name__": "program"})


def run(body: str, env: dict[str, str], number: int = 1, status: int = 0, seconds: float = 50) -> tuple[str, str]:
    """(stdout, stderr) of a Child, which must end with `status`."""
    return Child(body, env, number).finish(status, seconds)


def run_fresh(body: str, env: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    """A new interpreter that runs `body` after HEAD, or, without a body, `python *words`."""
    words = ("-c", HEAD.format(number=1) + body) if body else words
    return subprocess.run([sys.executable, *words], env=env, text=True, capture_output=True, timeout=150)


def alive(group: int) -> bool:
    """Whether a process of the group runs; zombies do not."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if words[2] == str(group) and words[0] != "Z":
            return True
    return False


def ends(group: int, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while alive(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(group)
