"""Policy: what capture does with a piece of Python, as pure functions of code objects and callables.

INTERPRET   run its frames in our interpreter: everything it reads is guarded, everything it writes is
            redirected
NATIVE      let CPython run it: torch's internals, whose calls arrive at the recorder anyway, and pure parts
            of the standard library
FORBID      refuse: it looks at or changes the world in a way that cannot be replayed

Takes code objects and callables, gives one of these with a reason; used by `world`.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import operator
import os
import re
import sys
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from contextvars import ContextVar
from decimal import Decimal
from enum import Enum
from threading import Lock, RLock
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any, Generic

import torch


class Policy(Enum):
    INTERPRET = 0
    NATIVE = 1
    FORBID = 2


_TORCH = os.path.dirname(torch.__file__) + os.sep
_STDLIB = os.path.dirname(os.__file__) + os.sep
_SITE = os.path.join(_STDLIB, "site-packages") + os.sep
_DISTRIBUTED = (_TORCH + "distributed" + os.sep, _TORCH + os.path.join("nn", "parallel") + os.sep)
OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep


def _files(folder: str, names: str) -> frozenset[str]:
    return frozenset(folder + name.replace("/", os.sep) for name in names.split())


# Python parts of torch that run user code or read module state.
_TORCH_INTERPRETED = tuple(_files(_TORCH, """
    nn/modules/ nn/utils/ optim/ distributions/ utils/hooks.py amp/autocast_mode.py utils/_contextlib.py
    autograd/grad_mode.py autograd/forward_ad.py
    _functorch/apis.py _functorch/vmap.py _functorch/predispatch.py _functorch/eager_transforms.py"""))
# Standard library modules that call back into user code or read its objects.
_STDLIB_INTERPRETED = _files(_STDLIB, """
    contextlib.py functools.py collections/__init__.py _collections_abc.py dataclasses.py copy.py types.py
    operator.py heapq.py bisect.py logging/__init__.py weakref.py _weakrefset.py""")
# Parts of torch that only pass a call on to the recorder: nothing below them is the program's own.
SUSPENDED = _files(_TORCH, "overrides.py _ops.py _jit_internal.py utils/_device.py") | {
    "<frozen importlib._bootstrap>"}
# Standard library modules that only look at their arguments. Those in neither table are refused.
_STDLIB_PURE = _files(_STDLIB, """
    abc.py enum.py typing.py inspect.py re sre_compile.py sre_parse.py keyword.py numbers.py fractions.py
    decimal.py _pydecimal.py statistics.py textwrap.py string.py json copyreg.py reprlib.py pprint.py
    colorsys.py ast.py dis.py opcode.py traceback.py linecache.py hashlib.py base64.py datetime.py
    posixpath.py ntpath.py genericpath.py importlib graphlib.py difflib.py calendar.py __future__.py
    _weakref.py codecs.py encodings""")
# Functions that act on the autograd engine, on hooks or on the outside world: (refusal, reason).
_HOOKS = (torch.utils.hooks.BackwardHook.__init__, torch.Tensor.register_hook,
          torch.Tensor.register_post_accumulate_grad_hook, torch.autograd.graph.saved_tensors_hooks.__init__,
          torch.autograd.graph.register_multi_grad_hook)
_OUTSIDE = (torch.manual_seed, torch.seed, torch.initial_seed, torch.save, torch.load, torch.set_printoptions,
            torch.set_default_device, torch.get_rng_state, torch.set_rng_state, torch.random.fork_rng,
            torch.use_deterministic_algorithms, torch.set_deterministic_debug_mode,
            torch.set_float32_matmul_precision)
_REFUSED = {
    inspect.unwrap(f).__code__: (code, f"{f.__qualname__}() is called")
    for code, functions in (("backward-hook", _HOOKS), ("impure-call", _OUTSIDE),
                            ("autograd-inside", (torch.Tensor.backward, torch.autograd.backward)))
    for f in functions}


_C_METHODS = (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)
# The wrapper of functions that torch's own compiler is kept out of. It would put our hook out of place.
UNSEEN = torch._compile._disable_dynamo(lambda: None).__code__
COROUTINE, OPTIMIZED = 0x80 | 0x200, 0x1
# Attributes and names of these top-level modules are constants as far as functions, classes and modules go.
_TRUSTED = frozenset({"torch", "numpy", "builtins", "minicompile",
                      "typing_extensions"}) | sys.stdlib_module_names - {"__main__"}
# C functions of these modules have no effect but on their arguments; those of any other module are refused.
_PURE = frozenset({"builtins", "operator", "math", "cmath", "itertools", "functools", "collections", "abc",
                   "heapq", "bisect", "struct", "copyreg", "weakref", "weakrefset", "contextvars", "typing",
                   "types", "statistics", "unicodedata", "binascii", "json", "string", "enum", "inspect",
                   "re", "sre", "decimal", "fractions", "numbers", "copy", "dataclasses", "textwrap",
                   "hashlib", "base64", "zlib", "datetime", "contextlib", "array", "pprint", "reprlib",
                   "typing_extensions", "torch", "numpy", "minicompile"})
_IMPURE = frozenset({"input", "open", "exec", "compile", "breakpoint", "__import__", "now", "today", "utcnow",
                     "manual_seed", "seed", "get_state", "clone_state", "initial_seed", "set_state",
                     "set_rng_state", "set_num_threads", "set_num_interop_threads", "set_flush_denormal",
                     "tofile", "fromfile", "save", "load", "from_file"})
_PURE_OF = {"sys": {"intern", "getrecursionlimit", "exc_info", "getdefaultencoding"}, "_warnings": set(),
            "_thread": {"lock", "RLock", "allocate_lock", "get_ident"}}
# C functions that change torch's thread state, or take tensors through a transform of torch.func: recorded,
# so that the graph does the same at the same places.
RECORDED = frozenset({
    torch.set_autocast_enabled, torch.set_autocast_dtype, torch.set_autocast_cache_enabled,
    torch.autocast_increment_nesting, torch.autocast_decrement_nesting, torch.clear_autocast_cache,
    torch._C._set_default_dtype, torch._C._set_fwd_grad_enabled, torch._C._enter_dual_level,
    torch._C._exit_dual_level,
    *(getattr(torch._C._functorch, name) for name in """
        _add_batch_dim _remove_batch_dim _unwrap_batched _vmap_increment_nesting _vmap_decrement_nesting
        _grad_increment_nesting _grad_decrement_nesting _wrap_for_grad _unwrap_for_grad
        _jvp_increment_nesting _jvp_decrement_nesting set_inplace_requires_grad_allowed""".split())})


@functools.lru_cache(maxsize=None)
def of_file(filename: str) -> Policy:
    """The policy for code of a file. A pure function, remembered."""
    if filename.startswith(OWN):
        return Policy.NATIVE
    if filename.startswith(_DISTRIBUTED):
        return Policy.FORBID
    if filename.startswith(_TORCH):
        return Policy.INTERPRET if filename.startswith(_TORCH_INTERPRETED) else Policy.NATIVE
    if filename.startswith(_STDLIB) and not filename.startswith(_SITE):
        if filename in _STDLIB_INTERPRETED:
            return Policy.INTERPRET
        first = _STDLIB + filename.removeprefix(_STDLIB).partition(os.sep)[0]
        return Policy.NATIVE if first in _STDLIB_PURE else Policy.FORBID
    return Policy.NATIVE if filename.startswith("<frozen") else Policy.INTERPRET


def of_code(code: CodeType) -> Policy:
    """The policy for frames of `code`. Class bodies and module bodies run natively; coroutines are
    refused."""
    policy = of_file(code.co_filename) if code not in _REFUSED else Policy.FORBID
    if policy is Policy.INTERPRET and code.co_flags & COROUTINE:
        return Policy.FORBID
    return policy if code.co_flags & OPTIMIZED else Policy.NATIVE


@functools.lru_cache(maxsize=None)
def is_user_file(filename: str) -> bool:
    """Whether a line of this file may stand for a place in the user's program."""
    return not filename.startswith((_TORCH, OWN, "<frozen")) and not (filename.startswith(_STDLIB)
                                                                      and not filename.startswith(_SITE))


@functools.lru_cache(maxsize=None)
def is_editable(filename: str) -> bool:
    """Whether functions of this file may be given other code while the process runs: not those
    installed."""
    return is_user_file(filename) and "site-packages" not in filename


def marked(f: FunctionType) -> str | None:
    """The refusal's code for a function that is to run as in eager mode by its author's mark, ours or
    torch's."""
    if f.__dict__.get("_torchdynamo_disable") and f.__code__ is not UNSEEN and not _of_torch(f):
        return "disabled"
    return f.__dict__.get("__minicompile_disabled__")


def _of_torch(f: FunctionType) -> bool:
    return str(f.__module__).startswith("torch.")


def behind(f: FunctionType) -> Any:
    """The function that torch put a mark around when its compiler was first used, since only that cannot
    take it; None for any other."""
    return f.__dict__.get("_torchdynamo_orig_callable") if _of_torch(f) else None


def trusted(module: str | None) -> bool:
    """Whether functions, classes and modules found in this module are taken as constants, without a
    guard."""
    return module is not None and module.partition(".")[0] in _TRUSTED


def why_forbidden(code: CodeType) -> tuple[str, str]:
    """The refusal's code and reason for a frame that must not run while capturing."""
    return _REFUSED.get(code, ("forbidden", f"{code.co_qualname}() is not captured"))


def why_not_native(f: Any) -> str | None:
    """Why a callable that is not a Python function must not be called while capturing, or None."""
    if f is torch._C._InferenceMode:
        return "inference mode is entered inside the call"
    owner, module = getattr(f, "__self__", None), getattr(f, "__module__", None)
    if issubclass(type(f), type):
        module = native_base(f).__module__
    elif module is None and owner is not None:
        module = native_base(owner if issubclass(type(owner), type) else type(owner)).__module__
    elif not issubclass(type(module), str):
        module = getattr(getattr(f, "__objclass__", None), "__module__", None) or type(f).__module__
    name = getattr(f, "__name__", type(f).__name__)
    top = module.partition(".")[0]
    if module.startswith("torch._C._distributed"):
        return f"{module}.{name} acts on other processes"
    pure = name in _PURE_OF[top] if top in _PURE_OF else top.lstrip("_") in _PURE and name not in _IMPURE
    return None if pure and not module.startswith("numpy.random") else f"impure native call {module}.{name}"


def takes_scalars(f: Any) -> bool:
    """Whether a function that is not interpreted asks a number of ours for what it needs to know; any other
    gets a real one."""
    module = getattr(f, "__module__", None)
    if not issubclass(type(module), str):
        module = type(getattr(f, "__self__", f)).__module__
    return module.partition(".")[0].lstrip("_") in _ASKING


_ASKING = frozenset(
    {"builtins", "torch", "minicompile", "operator", "itertools", "functools", "collections", "typing"})
# What instances of a class written in C may be used for. Their state is Python's, or what shadows copy:
_OPEN = frozenset(
    {object, list, dict, set, tuple, deque, OrderedDict, defaultdict, types.SimpleNamespace, Generic,
     type(Lock()), type(RLock())})
# it never changes, so that identity stands for it:
_FIXED = frozenset({int, float, complex, str, bytes, frozenset, re.Pattern, re.Match, ContextVar,
                    operator.attrgetter, operator.itemgetter, operator.methodcaller, datetime.date,
                    datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone, weakref.ref,
                    torch.Generator, torch.finfo, torch.iinfo, Decimal})


def state_of(kind: type) -> str:
    """"open": guards see all state of instances of `kind`; "fixed": their identity stands for it; "hidden":
    it lies in C, where guards cannot see it change."""
    base = native_base(kind)
    if base in _OPEN:
        return "open"
    scalar = base.__module__ == "numpy" and base.__name__ != "ndarray"
    enumeration = type(kind).__name__ == "pybind11_type" and hasattr(kind, "__members__")
    return "fixed" if base in _FIXED or scalar or enumeration else "hidden"


@functools.lru_cache(maxsize=None)
def native_base(kind: type) -> type:
    """The class written in C that lays out instances of `kind`: `object` if all their state is in
    `__dict__` and slots."""
    return next(c for c in kind.__mro__ if c is object or any(_in_c(c, *entry) for entry in vars(c).items()))


def _in_c(kind: type, name: str, value: Any) -> bool:
    if issubclass(type(value), BuiltinFunctionType):
        return name == "__new__" and value.__self__ is kind
    return type(value) in _C_METHODS and value.__objclass__ is kind
