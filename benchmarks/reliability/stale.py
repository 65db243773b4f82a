"""F3: state that a function reads changes between two calls; the next call must see it. For both systems.

    python benchmarks/reliability/stale.py [--system torch.compile] [--pairs 2]

The reads and changes are those of tests/capture/test_mutations.py. Of all pairs, those count whose change eager mode sees; of
each kind of change, the first few (`--pairs`). Capture and guards are what is tried: the graph runs as it is.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import Any

from common import ROOT, in_processes

sys.path.insert(0, str(ROOT))
import torch

import minicompile
from tests.capture.test_mutations import CHANGES, READS, outcome, program, same, undo


def seen(read: str, change: str) -> bool:
    """Whether eager mode's result changes."""
    f, w = program([READS[read]])
    try:
        before = outcome(f, w)
        CHANGES[change](w)
        return not same(before, outcome(f, w))
    except Exception:       # a change that this read's world does not allow
        return False
    finally:
        undo(w)


def escape(read: str, change: str, compile_: Callable[[Any], Any]) -> str:
    f, w = program([READS[read]])
    c = compile_(f)
    try:
        for when in ("before", "after"):
            got, want = outcome(c, w), outcome(f, w)
            if not same(got, want):
                return f"{when}: {str(got)[:120]}, eager mode {str(want)[:120]}".replace("\n", " ")
            if when == "before":
                CHANGES[change](w)
        return ""
    finally:
        undo(w)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--system", choices=("minicompile", "torch.compile"), default="minicompile")
    p.add_argument("--pairs", type=int, default=2)
    given = p.parse_args()
    warnings.simplefilter("ignore")

    def compile_(f: Any) -> Any:
        if given.system == "minicompile":
            return minicompile.compile(f, backend="eager")
        torch._dynamo.reset()
        return torch.compile(f, backend="eager")
    todo = []
    for change in CHANGES:
        found = [(read, change) for read in READS if seen(read, change)]
        todo += found[:: max(1, len(found) // given.pairs)][: given.pairs]
    bad = before = crashed = 0
    for (read, change), text in in_processes(todo, lambda pair: escape(*pair, compile_)):
        if text:
            bad, before = bad + text.startswith("after"), before + text.startswith("before")
            crashed += not text.startswith(("after", "before"))
            print(f"    {read} / {change}: {text}", flush=True)
    kinds = len({change for _, change in todo})
    print(f"F3 | {given.system} | {len(todo)} pairs, {kinds} kinds of change that eager mode sees: {bad} stale, "
          f"{before} wrong before the change, {crashed} crashes")
    return 1 if bad or before or crashed else 0


if __name__ == "__main__":
    sys.exit(main())
