"""Compiled: a Python function whose calls are captured, compiled once per set of guards, and served by a
native cache.

Takes a function and `compile_graph(capture, examples) -> callable(*tensors) -> sequence of tensors`; gives
a callable with the function's behaviour. The last part of capture; the API wraps it.
"""

from __future__ import annotations

import functools
import gc
import itertools
import linecache
import logging
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import torch

from .. import _native
from ..config import config
from ..errors import MinicompileError, Refusal
from .capture import Capture, Partial, capture, restore_torch_state, torch_state
from .guards import Guard
from .native_guards import lower_guards
from .reality import generator_state, set_generator_state
from .sources import Source
from .speculation import Missed, Site

log = logging.getLogger("minicompile.guards")
_numbers = itertools.count()
PATIENCE = 2  # variants made for other values of a tensor that one line looks at


@dataclass(eq=False)
class Entry:
    """One compiled variant: a capture with its program, or a refusal, whose program is the function
    itself."""

    capture: Capture | None
    refusal: Refusal | None
    guards: tuple[Guard, ...]
    owner: dict[int, Guard]
    native: Any = None

    @property
    def program(self) -> Callable[..., Any]:
        return self.native.program

    @property
    def hits(self) -> int:
        return self.native.hits

    def forget(self) -> None:
        """Lets go of the program's source, which tracebacks read."""
        linecache.cache.pop(self.program.__code__.co_filename, None)

    def why_missed(self, function: FunctionType, slots: Sequence[Any]) -> str:
        """Which guard fails for these arguments, with what was found."""
        miss = self.native.guards.check(function, slots)
        if miss is None:
            return "no guard failed"
        guard = self.owner.get(miss[0])
        found = "nothing" if miss[1] is _native.NULL else f"{type(miss[1]).__name__} {_short(miss[1])}"
        return f"{guard}: found {miss[2] or found}"


def _short(x: Any) -> str:
    return repr(x)[:60] if isinstance(x, (int, float, str, bool, bytes, type(None))) else ""


class Compiled:
    """The compiled function. `native` is what callers should call; it goes through `entries`, most recently
    hit first."""

    def __init__(
        self,
        function: FunctionType,
        compile_graph: Callable[[Capture, list[Any]], Callable[..., Sequence[Any]]],
        *,
        fullgraph: bool = False,
        limit: int = 8,
        on_event: Callable[[str, Any], None] | None = None,
    ):
        self.function, self.compile_graph, self.fullgraph, self.limit = (
            function, compile_graph, fullgraph, limit)
        self.on_event = on_event or (lambda kind, payload: None)
        self.capture_seconds = 0.0                      # of the last capture
        self.lock = threading.RLock()                   # held while a variant is made
        self.changes: Counter[Site] = Counter()         # variants made because a value differed there
        self.native = _native.CompiledFunction(function, self.miss)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.native(*args, **kwargs)

    @property
    def entries(self) -> list[Entry]:
        return [e.data for e in self.native.entries]

    def reset(self) -> None:
        for entry in self.entries:
            entry.forget()
        self.native.entries.clear()
        self.changes.clear()

    def miss(self, native: Any, args: tuple, kwargs: dict[str, Any] | None, slots: list[Any]) -> Any:
        """A call that no entry stands for: capture and compile it, then run what was compiled."""
        with self.lock:
            program, fetched = self.known(slots) or self.added(slots)
        return program(*fetched)

    def known(self, slots: list[Any]) -> tuple[Callable[..., Any], tuple] | None:
        """The program of an entry that stands for these arguments, with what to call it with. A miss may
        find one: another thread's."""
        for native in self.native.entries:
            fetched = native.guards.fetch(self.function, slots)
            if fetched is not None:
                return native.program, fetched
        return None

    def added(self, slots: list[Any]) -> tuple[Callable[..., Any], tuple]:
        """`add`, reported."""
        if self.entries:
            self.on_event("recompile", [e.why_missed(self.function, slots) for e in self.entries])
        collects = gc.isenabled()
        gc.disable()  # compiling makes many objects that stay, and few cycles
        try:
            return self.add(slots)
        finally:
            if collects:
                gc.enable()

    def add(self, slots: list[Any]) -> tuple[Callable[..., Any], tuple]:
        """Adds the entry for these arguments; gives its program and what to call it with."""
        try:
            entry, program, sources, tensors = self.build(slots)
        except Partial as partial:
            entry, program, sources, tensors = self.refused(
                partial.refusal, partial.guards, partial.tensors)
        except MinicompileError:
            raise
        except Exception as error:
            if config.strict:
                raise
            log.warning(
                "%s runs as in eager mode after an internal error\n%s", self.function.__qualname__,
                traceback.format_exc())
            refusal = Refusal("internal", f"{type(error).__name__}: {error}")
            entry, program, sources, tensors = self.refused(refusal, (), {})
        self.enter(entry, program, sources, tensors)
        if entry.refusal is not None:
            return program, tuple(slots)
        return program, tuple(s.get(slots) for s in sources)

    def build(self, slots: list[Any]) -> tuple[Entry, Callable[..., Any], list[Source], dict[Source, Any]]:
        start = time.perf_counter()
        volatile = frozenset(site for site, n in self.changes.items() if n > PATIENCE)
        done, tensors = capture(self.function, slots, volatile)
        self.capture_seconds = time.perf_counter() - start
        self.on_event("capture", done)
        state = torch_state()
        try:
            graph = (
                self.compile_graph(done, [tensors[i.source] for i in done.inputs])
                if done.has_graph
                else _no_graph
            )
        except Refusal as refusal:
            raise Partial(refusal, done.guards, tensors) from refusal
        finally:
            restore_torch_state(state)  # graphs that switch modes may be left half-way
        name = f"<minicompile {self.function.__qualname__} {next(_numbers)}>"
        linecache.cache[name] = (len(done.program.text), None, done.program.text.splitlines(True), name)
        sources = [s for _, s in done.program.fetches]
        entry = Entry(done, None, done.guards, {})
        if not done.data_guards:
            return entry, done.program.compile(graph, name), sources, tensors
        speculative = Speculative(self, entry, graph, name)
        return entry, speculative, sources + _slot_sources(self.function), tensors

    def refused(
        self, refusal: Refusal, guards: tuple[Guard, ...], tensors: dict[Source, Any]
    ) -> tuple[Entry, Callable[..., Any], list[Source], dict[Source, Any]]:
        """An entry that runs the function as it is, for calls like this one."""
        if self.fullgraph:
            raise refusal
        self.on_event("refusal", refusal)
        return Entry(None, refusal, guards, {}), eager(self.function), _slot_sources(self.function), tensors

    def retry(self, entry: Entry, missed: Missed, slots: list[Any]) -> Any:
        """A call whose data guards fail in an entry that its other guards allow: the other entries are
        tried, then a new one is made."""
        assert entry.capture is not None
        guard = entry.capture.data_guards[missed.index]
        for native in list(self.native.entries):
            fetched = native.guards.fetch(self.function, slots) if native.data is not entry else None
            if fetched is None:
                continue
            program = native.program
            try:
                return program.attempt(fetched) if type(program) is Speculative else program(*fetched)
            except Missed as other:
                if type(program) is not Speculative:
                    raise
                guard = program.guards[other.index]
        self.on_event("recompile", [f"{guard}: found {_short(missed.found)}"])
        with self.lock:
            if entry.program.fresh:  # what was compiled computes another value than eager mode does
                self.changes[guard.site] = PATIENCE
            self.changes[guard.site] += 1
            program, fetched = self.add(slots)
        return program(*fetched)

    def enter(
        self, entry: Entry, program: Callable[..., Any], sources: list[Source], tensors: dict[Source, Any]
    ) -> None:
        guard_program, entry.owner = lower_guards(entry.guards, sources, tensors)
        native = entry.native = _native.Entry(guard_program, program, entry)
        entries = self.native.entries
        entries.insert(0, native)
        if len(entries) > self.limit:
            gone = entries.pop()
            gone.data.forget()
            log.warning(
                "%s: more than %d variants; the least recently used one is dropped",
                self.function.__qualname__, self.limit)
            self.on_event("evicted", gone.data)


class Speculative:
    """The program of an entry with data guards. It is called with what the program fetches, then the
    function's slots, with which another entry is found or made where a data guard fails."""

    def __init__(self, compiled: Compiled, entry: Entry, graph: Callable[..., Sequence[Any]], name: str):
        done = entry.capture
        assert done is not None
        self.compiled, self.entry, self.graph, self.guards = compiled, entry, graph, done.data_guards
        self.check_graph, self.width = done.check_graph, len(done.program.fetches)
        self.program = done.program.compile(self.run, name, self.check)
        self.__code__ = self.program.__code__
        self.fresh = True  # has not run to its end

    def __call__(self, *values: Any) -> Any:
        try:
            return self.attempt(values)
        except Missed as missed:
            found = missed
        return self.compiled.retry(self.entry, found, list(values[self.width:]))

    def attempt(self, values: tuple) -> Any:
        """The call, or Missed."""
        result = self.program(*values[:self.width])
        self.fresh = False
        return result

    def run(self, *tensors: Any) -> Sequence[Any]:
        """The graph. Where it raises because the values it was captured for are not these, Missed."""
        try:
            return self.graph(*tensors)
        except Exception as error:
            raised = error
        self.verify(tensors)
        raise raised

    def check(self, *tensors: Any) -> Sequence[Any]:
        """The tensors of the data guards, without any effect."""
        assert self.check_graph is not None
        state = generator_state()
        try:
            with torch.no_grad():
                return self.check_graph(*tensors)
        finally:
            set_generator_state(state)

    def verify(self, tensors: tuple) -> None:
        """Raises Missed unless the data guards hold."""
        found = iter(self.check(*tensors))
        for i, guard in enumerate(self.guards):
            guard.require(i, found)


def _slot_sources(function: FunctionType) -> list[Source]:
    code = function.__code__
    return [Source.local(i, code.co_varnames[i]) for i in range(parameters(code))]


def parameters(code: CodeType) -> int:
    """How many slots a frame's parameters take, *args and **kwargs included."""
    return code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)


def eager(function: FunctionType) -> Callable[..., Any]:
    """`function` called with the values of its slots, whose frame packs *args and **kwargs."""
    code = function.__code__
    positional, keyword = code.co_argcount, code.co_kwonlyargcount
    has_args, has_kwargs = bool(code.co_flags & 4), bool(code.co_flags & 8)
    names = code.co_varnames[positional : positional + keyword]

    def run(*slots: Any) -> Any:
        rest = slots[positional + keyword :]
        args = rest[0] if has_args else ()
        kwargs = dict(rest[-1]) if has_kwargs else {}
        return function(*slots[:positional], *args, **dict(zip(names, slots[positional:])), **kwargs)

    return run


def _no_graph(*tensors: Any) -> tuple:
    return ()


def force_eager(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, wrapped so that it always runs natively; where capture meets it, it refuses ("disabled")."""

    @functools.wraps(fn)
    def disabled_function(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    disabled_function.__minicompile_disabled__ = True  # type: ignore[attr-defined]
    return disabled_function
