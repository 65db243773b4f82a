"""The public surface: `compile` and its companions.

Takes the user's callable or module, puts `capture.Compiled` around it and `pipeline.compile_graph` behind it,
and keeps what was compiled and refused, for `viz` and `testing`. The last stage of the library;
they and the command line sit on top.
"""
from __future__ import annotations

import copy
import functools
import itertools
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import nn

from .capture.compiled import Compiled, force_eager
from .capture.compiled import graph_break as graph_break
from .capture.compiled import set_stance as change_stance
from .capture.sizes import mark_sizes
from .config import MODES, config
from .debug import log
from .errors import MinicompileError, Refusal
from .ir.sym import LARGEST_SIZE
from .pipeline import BACKENDS, Compilation, compile_graph

_live: weakref.WeakSet[Handle] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Settings:
    """What `compile` was called with; validated on creation."""

    fullgraph: bool = False
    dynamic: bool | None = None
    backend: str | Callable = "auto"
    mode: str = "default"
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not callable(self.backend) and self.backend != "auto" and self.backend not in BACKENDS:
            raise MinicompileError(f"backend {self.backend!r} is not available; there are 'auto', "
                                   f"{', '.join(map(repr, BACKENDS))} and any callable(gm, example_inputs)")
        if self.mode not in MODES:
            raise MinicompileError(f"mode {self.mode!r} is not available; there are {', '.join(MODES)}")
        config.validate(self.options or {})


@dataclass(eq=False)
class Handle:
    """What stands behind one `compile` call: the captured function, its graphs, and what was refused."""

    name: str
    function: types.FunctionType
    settings: Settings
    compilations: list[Compilation] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)
    keep_inputs: bool = False
    numbers: Iterator[int] = field(default_factory=itertools.count)
    compiled: Compiled = field(init=False)

    def __post_init__(self) -> None:
        self.compiled = Compiled(self.function, self._compile, fullgraph=self.settings.fullgraph,
                                 limit=config.recompile_limit, on_event=self._event,
                                 dynamic=self.settings.dynamic)
        _live.add(self)

    def _compile(self, capture: Any, examples: Sequence[Any]) -> Callable:
        mode = {"mode": self.settings.mode} if self.settings.mode != "default" else {}
        with config.patch(**mode, **(self.settings.options or {})):
            name = f"{self.name}_{next(self.numbers)}"
            done = compile_graph(name, capture, examples, self.settings.backend, capture.where,
                                 self.keep_inputs)
        done.seconds = {"capture": self.compiled.capture_seconds, **done.seconds}
        self.compilations.append(done)
        return done.run

    def _event(self, kind: str, payload: Any) -> None:
        if kind in ("refusal", "break"):
            refusal = payload if kind == "refusal" else payload.refusal
            self.refusals.append(refusal)
            how = "runs as in eager mode" if kind == "refusal" else "breaks"
            log("breaks", lambda: f"{self.name} {how}: {refusal}")
            return
        if kind == "recompile":
            self.misses += payload[:1]
        if kind == "evicted":  # nothing else holds its code and plan
            self.compilations[:] = [c for c in self.compilations if c.capture is not payload.capture]
        log("guards", lambda: f"{self.name}: {kind}: {payload}")

    def reset(self) -> None:
        self.compiled.reset()
        self.compilations.clear()
        self.numbers = itertools.count()
        self.refusals.clear()
        self.misses.clear()


def compile(model: Any = None, *, fullgraph: bool = False, dynamic: bool | None = None,
            backend: str | Callable = "auto", mode: str = "default",
            options: dict[str, Any] | None = None) -> Any:
    """A faster stand-in for a function, method, callable object or nn.Module; also usable as a decorator.

    fullgraph   raise Refusal where a part cannot be compiled, instead of running it as in eager mode
    dynamic     which sizes of tensors one compiled program serves all values of: None, those that were seen
                to differ between calls; True, all; False, none
    backend     "auto" (compiled C++), "reference" (the loop IR's slow executor), "aot_eager", "eager", or any
                callable(gm: torch.fx.GraphModule, example_inputs) -> callable
    mode        on a GPU: "reduce-overhead" replays CUDA graphs, "max-autotune" times block shapes
    options     fields of `minicompile.config` that hold while this function is compiled

    A compiled module shares its state with the original: same parameters, `state_dict` keys, hooks and
    attributes, isinstance of the same class; it pickles as the original and deep-copies as a compiled copy.
    Raises MinicompileError for settings that do not exist.
    """
    settings = Settings(fullgraph, dynamic, backend, mode, options)
    if model is None:
        return functools.partial(compile, fullgraph=fullgraph, dynamic=dynamic, backend=backend, mode=mode,
                                 options=options)
    if isinstance(model, nn.Module):
        return _compile_module(model, settings)
    if not callable(model):
        raise MinicompileError(f"compile takes a callable or an nn.Module, not {type(model).__name__}")
    return _compile_callable(model, settings)


def _private(function: Any) -> types.FunctionType:
    """`function` with a code object of its own, so that what one `compile` call compiles stays there."""
    copy_ = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__,
                               function.__defaults__, function.__closure__)
    copy_.__kwdefaults__ = function.__kwdefaults__
    copy_.__qualname__, copy_.__module__ = function.__qualname__, function.__module__
    copy_.__dict__.update(function.__dict__)
    return copy_


def _compile_callable(fn: Callable, settings: Settings) -> Callable:
    function: Any
    bound: tuple = ()
    if isinstance(fn, types.FunctionType):
        function = fn
    elif isinstance(fn, types.MethodType) and isinstance(fn.__func__, types.FunctionType):
        function, bound = fn.__func__, (fn.__self__,)
    elif isinstance(getattr(type(fn), "__call__", None), types.FunctionType):  # noqa: B004
        function, bound = type(fn).__call__, (fn,)
    else:                            # builtins, functools.partial: a frame of our own that calls it
        function, bound = (lambda callee, *args, **kwargs: callee(*args, **kwargs)), (fn,)
    handle = Handle(getattr(fn, "__name__", type(fn).__name__), _private(function), settings)
    call = handle.compiled

    if bound:
        def compiled(*args: Any, **kwargs: Any) -> Any:
            return call(*bound, *args, **kwargs)
    else:
        def compiled(*args: Any, **kwargs: Any) -> Any:
            return call(*args, **kwargs)
    functools.update_wrapper(compiled, fn, updated=())
    compiled.__minicompile__ = handle  # type: ignore[attr-defined]
    return compiled


class _CompiledModule:
    """What a compiled module's class adds to the original's; first among its bases."""

    def __init_subclass__(cls) -> None:
        """The user's `__init_subclass__` ran for the original class; a stand-in must not repeat it."""


def _compile_module(module: nn.Module, settings: Settings) -> nn.Module:
    """A module of a one-off subclass that shares `module.__dict__`: neither can lag behind the other."""
    cls = type(module)

    def __deepcopy__(self: Any, memo: dict) -> Any:
        return _compile_module(copy.deepcopy(module, memo), settings)

    members = {
        **_compiled_call(module, settings),
        "__deepcopy__": __deepcopy__,
        "__reduce_ex__": lambda self, protocol: module.__reduce_ex__(protocol),
        "__class__": property(lambda self: cls),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    metaclass: Any = type(cls)
    stand_in = object.__new__(metaclass(cls.__name__, (_CompiledModule, cls), members))
    object.__setattr__(stand_in, "__dict__", module.__dict__)
    return stand_in


def _compiled_call(module: nn.Module, settings: Settings) -> dict[str, Any]:
    """What makes calls of a module's stand-in run compiled code, and the Handle behind it. What data parallel
    does around its module is between processes, and no part of any graph."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        inner: Any = _compile_module(module.module, settings)
        return {"module": property(lambda self: inner), "__minicompile__": inner.__minicompile__}
    handle = Handle(type(module).__name__, _private(nn.Module._call_impl), settings)
    call = handle.compiled

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(module, *args, **kwargs)
    return {"__call__": __call__, "__minicompile__": handle}


def handle_of(fn: Any) -> Handle | None:
    """The Handle behind a compiled function or module; None for anything else."""
    found = getattr(fn, "__minicompile__", None)
    return found if isinstance(found, Handle) else None


def compile_anew(fn: Any, **settings: Any) -> tuple[Any, Handle]:
    """A compiled version of `fn` with empty caches, whatever was compiled before."""
    known = handle_of(fn)
    if known is not None:
        known.reset()
        return fn, known
    compiled = compile(fn, **settings)
    handle = handle_of(compiled)
    if handle is None:
        raise MinicompileError(f"{fn!r} cannot be compiled")
    return compiled, handle


def reset() -> None:
    """Forgets everything compiled in this process; compiled functions stay usable and compile anew."""
    for handle in list(_live):
        handle.reset()


def disable(fn: Callable) -> Callable:
    """`fn`, always run as in eager mode, also where a compiled function calls it; usable as a decorator."""
    return force_eager(fn)


class set_stance:                                       # reads as a function
    """How all compiled functions behave from now on; as a context manager or decorator: inside.

    "default"             what is not compiled yet is compiled
    "force_eager"         compiled functions run as they are
    "eager_on_recompile"  what is compiled is used; a call that would compile runs as in eager mode
    "fail_on_recompile"   a call that would compile raises MinicompileError, with the guards that failed

    As torch's, the stance is the process's. Raises ConfigError for another word.
    """

    def __init__(self, stance: str):
        self.stance, self.before = stance, config.stance
        change_stance(stance)

    def __enter__(self) -> None:
        change_stance(self.stance)

    def __exit__(self, *exc: object) -> None:
        change_stance(self.before)

    def __call__(self, fn: Callable) -> Callable:
        change_stance(self.before)

        @functools.wraps(fn)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with set_stance(self.stance):
                return fn(*args, **kwargs)
        return inside


def recompiles(fn: Any) -> list[str]:
    """Why a compiled function or module was compiled again: for each time the guard that failed, with its
    place in the program, what it expects and what was found."""
    handle = handle_of(fn)
    if handle is None:
        raise MinicompileError(f"{fn!r} is not compiled")
    return list(handle.misses)


def mark_dynamic(t: torch.Tensor, dim: int | Sequence[int], *, min: int = 2, max: int = LARGEST_SIZE) -> None:
    """Has what is compiled for `t` serve any size of this dimension (or these) from min to max, from the
    first call on. Raises MinicompileError for bounds that are none, IndexError for what is no dimension."""
    if not 2 <= min <= max:
        raise MinicompileError(f"a size that varies is from 2 to {LARGEST_SIZE}, not from {min} to {max}")
    mark_sizes(t, dim, (min, max))


def mark_static(t: torch.Tensor, dim: int | Sequence[int] | None = None) -> None:
    """Has each size of this dimension of `t` (or these, or all) compiled anew. Raises IndexError for what is
    no dimension."""
    mark_sizes(t, range(t.dim()) if dim is None else dim, None)


is_compiling = torch.compiler.is_compiling              # true while minicompile or torch.compile captures


def torch_backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable:
    """The backend `torch.compile(model, backend="minicompile")` finds by its entry point: our stages behind
    torch's own capture. What they refuse runs as `gm` does. A graph for sizes that vary is captured once
    more, by us: what our stages ask of a size has to be guarded."""
    if any(isinstance(n, torch.SymInt) for x in example_inputs for n in (x, *getattr(x, "shape", ()))):
        return compile(torch.fx.GraphModule(gm, gm.graph))     # its text is made now, not when it is called
    from_torch = types.SimpleNamespace(gm=gm)
    try:
        return compile_graph("torch", from_torch, example_inputs).run
    except Refusal as refusal:
        log("breaks", f"graph from torch.compile runs as in eager mode: {refusal}")
        return gm.forward


def allow_in_accelerate() -> None:
    """Makes `accelerate`, and so Hugging Face's `Trainer`, take the name of our backend
    (`torch_compile_backend="minicompile"`): its list of backends is closed."""
    DynamoBackend: Any = import_module("accelerate.utils.dataclasses").DynamoBackend    # optional
    if (name := "MINICOMPILE") not in DynamoBackend.__members__:
        member = str.__new__(DynamoBackend, name)
        member._name_ = member._value_ = name
        DynamoBackend._member_map_[name] = DynamoBackend._value2member_map_[name] = member
