"""Policy: what capture does with a piece of Python, as pure functions of code objects and callables.

INTERPRET   run its frames in our interpreter: everything it reads is guarded, everything it writes is
            redirected
NATIVE      let CPython run it: torch's internals, whose calls arrive at the recorder anyway, and pure parts
            of the standard library
FORBID      refuse: it looks at or changes the world in a way that cannot be replayed

Takes code objects and callables, gives one of these with a reason; used by `world`.
"""

from __future__ import annotations

import functools
import os
import sys
from enum import Enum
from types import CodeType, ModuleType
from typing import Any

import torch


class Policy(Enum):
    INTERPRET = 0
    NATIVE = 1
    FORBID = 2


_TORCH = os.path.dirname(torch.__file__) + os.sep
_STDLIB = os.path.dirname(os.__file__) + os.sep
_SITE = os.path.join(_STDLIB, "site-packages") + os.sep
OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep

# Python parts of torch that run user code or read module state.
_TORCH_INTERPRETED = tuple(
    _TORCH + p.replace("/", os.sep)
    for p in (
        "nn/modules/",
        "nn/utils/",
        "utils/hooks.py",
        "amp/autocast_mode.py",
        "utils/_contextlib.py",
        "autograd/grad_mode.py",
    )
)
# Standard library modules that call back into user code or read its objects.
_STDLIB_INTERPRETED = frozenset(
    _STDLIB + p.replace("/", os.sep)
    for p in (
        "contextlib.py",
        "functools.py",
        "collections/__init__.py",
        "_collections_abc.py",
        "dataclasses.py",
        "copy.py",
        "types.py",
        "operator.py",
        "heapq.py",
        "bisect.py",
        "warnings.py",
    )
)
# Parts of torch that only pass a call on to the recorder: nothing below them is the program's own.
SUSPENDED = frozenset(
    _TORCH + p.replace("/", os.sep)
    for p in ("overrides.py", "_ops.py", "_jit_internal.py", "utils/_device.py")
)
_STDLIB_FORBIDDEN = frozenset(
    _STDLIB + p.replace("/", os.sep)
    for p in (
        "random.py",
        "threading.py",
        "subprocess.py",
        "socket.py",
        "tempfile.py",
        "shutil.py",
        "pathlib.py",
        "asyncio/",
    )
)

COROUTINE, OPTIMIZED = 0x80 | 0x200, 0x1
# Attributes and names of these top-level modules are constants as far as functions, classes and modules go.
_TRUSTED = frozenset(
    {"torch", "numpy", "builtins", "minicompile", "typing_extensions"}
) | sys.stdlib_module_names - {"__main__"}
# C functions of these modules have no effect but on their arguments.
_PURE = frozenset(
    {
        "builtins", "_operator", "operator", "math", "cmath", "itertools", "_functools", "functools",
        "_collections", "collections", "_abc", "abc", "_heapq", "_bisect", "_struct", "copyreg",
        "_weakref", "weakref", "_contextvars", "typing", "_typing", "_thread_local", "types",
        "_statistics", "unicodedata", "binascii", "_json", "_string", "enum", "_warnings", "inspect"}
)
# C functions that change torch's thread state: recorded, so that the graph changes it at the same places.
STATE_SETTERS = frozenset(
    {
        torch.set_autocast_enabled, torch.set_autocast_dtype, torch.set_autocast_cache_enabled,
        torch.autocast_increment_nesting, torch.autocast_decrement_nesting, torch.clear_autocast_cache}
)
_PURE_FUNCTIONS = (sys.intern, sys.getrecursionlimit)
_IMPURE_BUILTINS = frozenset({"input", "open", "exec", "compile", "breakpoint", "__import__"})


@functools.lru_cache(maxsize=None)
def of_file(filename: str) -> Policy:
    """The policy for code of a file. A pure function, remembered."""
    if filename.startswith(OWN):
        return Policy.NATIVE
    if filename.startswith(_TORCH):
        return Policy.INTERPRET if filename.startswith(_TORCH_INTERPRETED) else Policy.NATIVE
    if filename.startswith(_STDLIB) and not filename.startswith(_SITE):
        if filename in _STDLIB_INTERPRETED:
            return Policy.INTERPRET
        return Policy.FORBID if filename in _STDLIB_FORBIDDEN else Policy.NATIVE
    return Policy.NATIVE if filename.startswith("<frozen") else Policy.INTERPRET


def of_code(code: CodeType) -> Policy:
    """The policy for frames of `code`. Class bodies and module bodies run natively; coroutines are
    refused."""
    policy = of_file(code.co_filename)
    if policy is Policy.INTERPRET and code.co_flags & COROUTINE:
        return Policy.FORBID
    return policy if code.co_flags & OPTIMIZED else Policy.NATIVE


@functools.lru_cache(maxsize=None)
def is_user_file(filename: str) -> bool:
    """Whether a line of this file may stand for a place in the user's program."""
    return not filename.startswith((_TORCH, OWN, "<frozen")) and not (
        filename.startswith(_STDLIB) and not filename.startswith(_SITE)
    )


def trusted(module: str | None) -> bool:
    """Whether functions, classes and modules found in this module are taken as constants, without a
    guard."""
    return module is not None and module.partition(".")[0] in _TRUSTED


def why_not_native(f: Any) -> str | None:
    """Why a callable that is not a Python function must not be called while capturing, or None."""
    module = getattr(f, "__module__", None)
    owner = getattr(f, "__self__", None)
    if module is None and owner is not None and type(owner) is not ModuleType:
        module = type(owner).__module__ if not issubclass(type(owner), type) else owner.__module__
    if module is None:
        module = getattr(getattr(f, "__objclass__", None), "__module__", "builtins")
    name = getattr(f, "__name__", type(f).__name__)
    if f in _PURE_FUNCTIONS:
        return None
    if f is torch._C._InferenceMode:
        return "inference mode is entered inside the call"
    if module == "builtins":
        return f"{name}() acts on the outside world" if name in _IMPURE_BUILTINS else None
    top = module.partition(".")[0]
    if top in _PURE or top == "torch" or top not in sys.stdlib_module_names:
        return None
    if issubclass(type(f), type):
        return None
    return f"{module}.{name}() acts on the outside world or is not known to be free of effects"
