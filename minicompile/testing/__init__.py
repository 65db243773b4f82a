"""For testing compilers, this one and others. May look at every stage; no stage imports it.

    from minicompile.testing import check
    print(check(fn, *args))         # eager mode, torch.compile, minicompile: who is wrong

In order: `compare` (what "equal" means), `bisection` (the first wrong stage and node of one graph), `observe`
(all that a call does), `ladder` (every way to run a program), `shrink`, `checker`, `programs` and `fuzz`.
"""
from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {**dict.fromkeys(("check", "Check", "Verdict"), "checker"), "bisect": "bisection",
         **dict.fromkeys(("inductor", "aot_eager", "ENGINES", "LADDERS"), "ladder")}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
