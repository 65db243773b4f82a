"""minicompile: the whole of what torch.compile does, in code that one person can read in a weekend.

    import minicompile
    f = minicompile.compile(function_or_module)

Names are fetched on first use, so that `import minicompile` costs nothing and the torch-free parts (the
bytecode normaliser and the interpreter's plain mode) can be imported where torch is not installed.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .collector import paused
from .config import config
from .errors import CheckError, MinicompileError, Refusal, ToolchainError

if TYPE_CHECKING:
    from .api import (
        compile,
        disable,
        graph_break,
        is_compiling,
        mark_dynamic,
        mark_static,
        recompiles,
        reset,
        set_stance,
    )
    from .testing.bisection import bisect
    from .viz.explanation import Explanation, explain

__version__ = "0.1.0"

_HOME = {**dict.fromkeys(
    "compile disable graph_break is_compiling mark_dynamic mark_static recompiles reset set_stance".split(),
    "api"),
         **dict.fromkeys(("explain", "Explanation"), "viz.explanation"), "bisect": "testing.bisection"}

__all__ = ["CheckError", "Explanation", "MinicompileError", "Refusal", "ToolchainError", "bisect", "compile",
           "config", "disable", "explain", "graph_break", "is_compiling", "mark_dynamic", "mark_static",
           "recompiles", "reset", "set_stance"]


def __getattr__(name: str) -> Any:
    if name in ("testing", "viz"):
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with paused():
        return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "testing", "viz"})
