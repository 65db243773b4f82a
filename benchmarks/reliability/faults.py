"""F7, F9 to F11 and F14 to F18: what goes wrong around a compile, for both systems, each in a fresh process.

    python benchmarks/reliability/faults.py [--system torch.compile] [--only compiler]      # about 4 minutes; torch.compile 15

A line per fault: what the call gave ("right", "raises ...", "wrong", "hangs", "killed"), seconds, lines on stderr.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "runtime")]
from faults import COMPILERS, compiler, counting, ends, environment  # noqa: E402  (tests/runtime/faults.py)

HEAD = """
import ctypes, os, signal, sys, threading, time
import torch
if os.environ["SYSTEM"] == "minicompile":
    import minicompile; compile_ = minicompile.compile
else:
    compile_ = torch.compile
def f(x): return torch.softmax(x.sin() + 1, -1) * 2
def f2(x): return torch.tanh(x) * 3 + x.cos()
g, g2 = compile_(f), compile_(f2)
x = torch.linspace(-3, 3, 6400).reshape(64, 100)
def right(g=g, f=f, x=x): return torch.allclose(g(x), f(x), atol=1e-6)
def tell(ok): print("right" if ok else "wrong", flush=True)
"""
LIMIT = 150.0


def env_of(system: str, folder: Path, **more: str | None) -> dict[str, str]:
    env = environment(folder, **more)
    return env | {"SYSTEM": system, "TORCHINDUCTOR_CACHE_DIR": env.get("MINICOMPILE_CACHE_DIR", str(folder / "cache")),
                  "MINICOMPILE_COMPILE_TIMEOUT_S": "5"}


def start(body: str, env: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", HEAD + body], env=env, text=True, errors="replace", stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True)


def finish(child: subprocess.Popen, limit: float = LIMIT) -> str:
    """What it did, in words."""
    begin = time.monotonic()
    try:
        out, err = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return f"hangs (more than {limit:.0f} s)"
    lines = [line for line in err.splitlines() if line.strip()]
    said = out.strip().replace("\n", ", ") or "nothing"
    if child.returncode < 0:
        said += f"; killed by {signal.Signals(-child.returncode).name}"
    elif child.returncode:
        said += f"; raises {lines[-1][:110] if lines else child.returncode}"
    return f"{said} ({time.monotonic() - begin:.1f} s, {len(lines)} lines on stderr)"


def runs(body: str, env: dict[str, str]) -> str:
    return finish(start(body, env))


FAULTS: dict[str, Callable[[str, Path], str]] = {}


def fault(name: str) -> Callable:
    def register(f: Callable) -> Callable:
        FAULTS[name] = f
        return f
    return register


@fault("nothing wrong")
def nothing(system: str, folder: Path) -> str:
    return runs("tell(right() and right(g2, f2))", env_of(system, folder))


def bad_compiler(how: str) -> Callable[[str, Path], str]:
    def run(system: str, folder: Path) -> str:
        more = {"PATH": str(folder), "CXX": None} if how == "absent" else {"CXX": str(compiler(folder, COMPILERS[how]))}
        return runs("tell(right() and right(g2, f2))", env_of(system, folder, **more))
    return run


for how in ("absent", *COMPILERS):
    FAULTS[f"compiler: {how}"] = bad_compiler(how)


@fault("disk: no HOME")
def no_home(system: str, folder: Path) -> str:
    env = env_of(system, folder, MINICOMPILE_CACHE_DIR=None, HOME="/dev/null")
    env.pop("TORCHINDUCTOR_CACHE_DIR", None)
    return runs("tell(right())", env)


def mounted(options: str) -> Callable[[str, Path], str]:
    def run(system: str, folder: Path) -> str:
        place = folder / "cache"
        place.mkdir(mode=0o700)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"{options},mode=0700", "tmpfs", str(place)], capture_output=True).returncode:
            return "not tried: this user cannot mount"
        try:
            return runs("tell(right() and right(g2, f2))", env_of(system, folder))
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)
    return run


FAULTS |= {"disk: read-only": mounted("ro"), "disk: full": mounted("size=12k"), "disk: no inodes": mounted("nr_inodes=3")}


@fault("disk: no file can grow")
def no_file(system: str, folder: Path) -> str:
    env, body = env_of(system, folder), "tell(right())"
    child = subprocess.Popen([sys.executable, "-c", HEAD + body], env=env, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             start_new_session=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    return finish(child)


def corrupt(change: Callable[[Path, random.Random], None]) -> Callable[[str, Path], str]:
    def run(system: str, folder: Path) -> str:
        env, rng, n = env_of(system, folder), random.Random(0), 0
        runs("tell(right())", env)
        for path in sorted((folder / "cache").rglob("*")):
            if path.is_file() and path.stat().st_size:
                change(path, rng)
                n += 1
        return f"{n} files; " + runs("tell(right())", env)
    return run


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(max(1, len(data) // 500)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


FAULTS |= {"cache: bits flipped": corrupt(flip), "cache: cut in half": corrupt(lambda p, r: os.truncate(p, p.stat().st_size // 2)),
           "cache: emptied": corrupt(lambda p, r: os.truncate(p, 0))}


@fault("cache: others may write to it")
def open_to_others(system: str, folder: Path) -> str:
    env = env_of(system, folder)
    (folder / "cache").mkdir()
    (folder / "cache").chmod(0o777)
    said = runs("tell(right())", env)
    return said + ("; refused" if not any((folder / "cache").iterdir()) else "; used")


@fault("cache: a link")
def linked(system: str, folder: Path) -> str:
    (folder / "real").mkdir(mode=0o700)
    (folder / "cache").symlink_to(folder / "real")
    said = runs("tell(right())", env_of(system, folder))
    return said + ("; refused" if not any((folder / "real").iterdir()) else "; used")


@fault("Ctrl-C while the compiler runs")
def interrupted(system: str, folder: Path) -> str:
    slow = counting(folder, 4)
    child = start("try: g(x)\nexcept KeyboardInterrupt: print('one KeyboardInterrupt', flush=True)\nos.environ.pop('CXX')\ntell(right())",
                  env_of(system, folder, CXX=str(slow)))
    deadline = time.monotonic() + 90
    while not (folder / "compiles").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(child.pid, signal.SIGINT)
    said = finish(child)
    return said + ("" if ends(child.pid) else "; leaves processes behind")


@fault("compiler killed while it runs")
def helper_killed(system: str, folder: Path) -> str:
    path = compiler(folder, f"#!/bin/sh\necho $$ > {folder}/pid\nsleep 3\nexec g++ \"$@\"\n")
    child = start("try: ok = right()\nexcept Exception as e: print(type(e).__name__, flush=True); ok = True\n"
                  "os.environ['CXX'] = 'g++'\ntell(ok and right(g2, f2))", env_of(system, folder, CXX=str(path)))
    deadline = time.monotonic() + 90
    while not (folder / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    if (folder / "pid").exists():
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    return finish(child)


@fault("32 threads call first")
def threads(system: str, folder: Path) -> str:
    return runs("""
others = [compile_(lambda x, i=i: f(x + i) - i) for i in range(4)]
wrong, errors, start = [], [], threading.Barrier(32)
def work(i):
    y = x if i % 4 < 2 else x[:, :50]
    start.wait()
    for _ in range(5):
        try:
            got, want = (g(y), f(y)) if i % 2 else (others[i % 4](y), f(y + i % 4) - i % 4)
            if not torch.allclose(got, want, atol=1e-5): wrong.append(i)
        except BaseException as e: errors.append(type(e).__name__ + ": " + str(e)[:80])
ts = [threading.Thread(target=work, args=(i,)) for i in range(32)]
for t in ts: t.start()
for t in ts: t.join()
print(len(wrong), "wrong,", len(errors), "errors", set(errors) or "")
""", env_of(system, folder))


@fault("fork after compile")
def fork(system: str, folder: Path) -> str:
    return runs("""
big = torch.linspace(-3, 3, 600_000).reshape(600, 1000)
h = compile_(lambda x: torch.relu(x @ x.T).sum(0))
want = h(big); right()
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    fresh = compile_(lambda x: x.exp() + 1)
    good = torch.allclose(h(big), want) and torch.allclose(fresh(x), x.exp() + 1)
    os._exit(0 if good else 3)
status = os.waitpid(pid, 0)[1]
print("child:", {0: "right", 3 << 8: "wrong", 14: "hangs"}.get(status, status), flush=True); tell(right())
""", env_of(system, folder))


@fault("the interpreter ends while a thread compiles")
def ending(system: str, folder: Path) -> str:
    return runs(f"""
threading.Thread(target=lambda: g(x), daemon=True).start()
end = time.monotonic() + 60
while not os.path.exists({str(folder / "compiles")!r}) and time.monotonic() < end: time.sleep(0.05)
print("ends", flush=True)
""", env_of(system, folder, CXX=str(counting(folder, 5))))


@fault("floating point environment")
def denormals(system: str, folder: Path) -> str:
    return runs("""
tiny = torch.full((8,), 1e-40)
before = (tiny * 0.5).tolist()
ok = right() and torch.equal(compile_(lambda x: x * 0.5)(tiny), tiny * 0.5)
tell(ok and before == (tiny * 0.5).tolist() and before[0] > 0)
""", env_of(system, folder))


@fault("code for another CPU")
def other_cpu(system: str, folder: Path) -> str:
    if system != "minicompile":
        return "not tried: its choice of instructions cannot be overridden"
    return runs("from minicompile.runtime import toolchain\ntoolchain.cpu_flags = lambda: frozenset()\ntell(right())",
                env_of(system, folder, MINICOMPILE_ISA="avx2"))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--system", choices=("minicompile", "torch.compile"), default="minicompile")
    p.add_argument("--only", default="")
    given = p.parse_args()
    good = True
    for name, what in FAULTS.items():
        if given.only in name:
            with tempfile.TemporaryDirectory(prefix="f") as folder:
                said = what(given.system, Path(folder))
            good &= "wrong" not in said.replace("0 wrong", "") and "raises" not in said and "hangs" not in said
            print(f"{given.system} | {name} | {said}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
