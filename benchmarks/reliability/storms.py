"""F12 and F13: many processes on one cache, and processes killed at random moments of a compile.

    python benchmarks/reliability/storms.py rounds --count 300          # 16 processes each; about 3 s a round
    python benchmarks/reliability/storms.py kills --count 300           # about 1 s each

rounds   16 processes start at once on a cold cache and compile one function; in every third round the folder is deleted
         under them. Counted: wrong answers, errors, compiles beyond one, what is left besides the entry.
kills    a process is killed (SIGKILL, its compiler with it or not) at a random moment of two compiles, again and again on one
         cache; then a clean run must be right, without waiting, and every entry must be good.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "runtime")]
from faults import BOTH, Child, compiles, counting, environment, run  # noqa: E402  (tests/runtime/faults.py)

from minicompile.runtime import cache  # noqa: E402


def rounds(count: int, folder: Path) -> int:
    env = environment(folder, CXX=str(counting(folder, 0)), MINICOMPILE_ISA="scalar")
    wrong = extra = left = 0
    begin = time.monotonic()
    for i in range(count):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        before, deleted = compiles(folder), i % 3 == 2
        children = [Child("print(right(), runs())", env) for _ in range(16)]
        if deleted:
            time.sleep(random.uniform(0.05, 0.6))
            shutil.rmtree(folder / "cache", ignore_errors=True)
        for child in children:
            try:
                out, err = child.finish(seconds=120)
                wrong += out != "True executable" or bool(err and not deleted)
            except AssertionError as e:
                wrong += 1
                print(e)
        extra += (compiles(folder) - before != 1) and not deleted
        left += sum(p.suffix != ".so" for p in (folder / "cache").glob("*"))
        for child in children:
            shutil.rmtree(child.folder)
    print(f"F12 | {count} rounds of 16 processes: {wrong} wrong or errors, {extra} rounds with other than 1 compile "
          f"(of {count - count // 3}), {left} files left behind | {time.monotonic() - begin:.0f} s")
    return wrong + extra + left


def kills(count: int, folder: Path) -> int:
    env = environment(folder, MINICOMPILE_ISA="scalar")
    run("", env)
    begin = time.monotonic()
    run(BOTH, env, number=-1, seconds=120)
    whole, bad = time.monotonic() - begin, 0
    for i in range(count):
        child = Child("right(); right(g2, f2)", env, number=i)
        time.sleep(random.uniform(0, 1.2 * whole))
        with contextlib.suppress(ProcessLookupError):          # it may have come to its end by itself
            os.killpg(child.process.pid, signal.SIGKILL) if i % 2 else child.process.kill()
        child.process.join()
        shutil.rmtree(child.folder)
        bad += sum(e.fault is not None for e in cache.entries(folder / "cache", verify=True))
    begin, slow = time.monotonic(), 0
    for number in range(max(count - 10, 0), count):
        start = time.monotonic()
        out, err = run(BOTH, env, number, seconds=120)
        bad += (out, err) != ("True executable\nTrue executable", "")
        slow += time.monotonic() - start > 30
    locks = len(list((folder / "cache").glob("*.lock")))
    print(f"F13 | {count} kills in {whole:.1f} s of work: {bad} bad entries or wrong answers, {slow} runs that waited for a lock, "
          f"{locks} lock files without holder, {len(cache.entries(folder / 'cache'))} entries | {time.monotonic() - begin:.0f} s")
    return bad + slow


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("rounds", "kills"))
    p.add_argument("--count", type=int, default=100)
    given = p.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory(prefix="storm") as folder:
        return 1 if {"rounds": rounds, "kills": kills}[given.what](given.count, Path(folder)) else 0


if __name__ == "__main__":
    sys.exit(main())
