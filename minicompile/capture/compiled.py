"""Compiled: a Python function whose calls are captured, compiled once per set of guards, and served by a
native cache.

Takes a function and `compile_graph(capture, examples) -> callable(*tensors) -> sequence of tensors`; gives
a callable with the function's behaviour. The last part of capture; the API wraps it.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import linecache
import logging
import reprlib
import textwrap
import threading
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch

from .. import _native
from ..collector import paused
from ..config import config
from ..errors import MinicompileError, Refusal
from ..ir.scalar import Specialise
from ..ir.sym import NeedsSizes, asking
from .capture import Capture, Partial, capture, restore_torch_state, torch_state
from .guards import Guard
from .native_guards import lower_guards
from .reality import generator_state, set_generator_state
from .resume import Point, stops
from .sizes import learned
from .sources import Source
from .speculation import Missed, Site
from .varying import Numbers

log = logging.getLogger("minicompile.guards")
_numbers = itertools.count()
_live: weakref.WeakSet[Compiled] = weakref.WeakSet()
PATIENCE = 2  # variants made for other values of a tensor that one line looks at
UNBROKEN = frozenset({"history", "backward-hook"})  # of what would see a compiled graph's own history
FAILED = -1   # in place of a data guard's number: the graph itself raised
IDLE = 8      # breaks in a row with no graph between them, after which no more are tried


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

    def missed(self, function: FunctionType, slots: Sequence[Any]) -> Miss:
        """The guard that fails for these arguments, with what was found."""
        miss = self.native.guards.check(function, slots)
        return NO_MISS if miss is None else Miss(self.owner.get(miss[0]), *miss[1:])


class Miss(NamedTuple):
    """Why an entry does not stand for a call: the guard that fails, what was found in the place of what it
    expects, and the checker's words for that, if it has any."""

    guard: Guard | None
    found: Any
    text: str | None

    def __str__(self) -> str:
        if self is NO_MISS:
            return "no guard failed"
        kind = type(self.found).__name__
        found = "nothing" if self.found is _native.NULL else f"{kind} {_short(self.found)}"
        return f"{self.guard}: found {self.text or found}"


NO_MISS = Miss(None, None, None)


def _short(x: Any) -> str:
    return repr(x)[:60] if isinstance(x, (int, float, str, bool, bytes, type(None))) else ""


class Compiled:
    """The compiled function. `native` is what callers should call; it goes through `entries`, most recently
    hit first."""

    def __init__(self, function: FunctionType,
                 compile_graph: Callable[[Capture, list[Any]], Callable[..., Sequence[Any]]], *,
                 fullgraph: bool = False, limit: int = 8, on_event: Callable[[str, Any], None] | None = None,
                 before: Resumption | None = None, dynamic: bool | None = None):
        self.function, self.compile_graph, self.fullgraph, self.limit = (
            function, compile_graph, fullgraph, limit)
        self.on_event = on_event or (lambda kind, payload: None)
        self.before = before                            # the break after which the function goes on
        self.breaks: dict[Point, Resumption] = before.compiled.breaks if before is not None else {}
        self.capture_seconds = 0.0                      # of the last capture
        self.lock = threading.RLock()                   # held while a variant is made
        self.changes: Counter[Site] = Counter()         # variants made because a value differed there
        self.numbers = Numbers(sizes=dynamic)           # which ones vary
        self.why_constant: dict[str, str] = {}          # the size at a source, which might have varied
        self.spent = False                              # too many variants: no more, nor those
        self.warned = False
        self.native = _native.CompiledFunction(function, self.miss)
        _live.add(self)
        self.settle()

    def settle(self) -> None:
        """Lets calls go to what is compiled, or to the function itself."""
        self.native.enabled = not self.spent and config.stance != "force_eager"

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
        self.breaks.clear()
        self.spent = self.warned = False
        self.settle()

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
            misses = [e.missed(self.function, slots) for e in self.entries]
            self.on_event("recompile", list(map(str, misses)))
            for entry in self.entries:
                self.numbers = learned(self.numbers, entry.guards, slots)
        hooks = torch._C._autograd._saved_tensors_hooks_set_tracing(True)     # they are not for fakes
        try:
            with paused():
                return self.add(slots)
        finally:
            torch._C._autograd._saved_tensors_hooks_set_tracing(hooks)

    def add(self, slots: list[Any]) -> tuple[Callable[..., Any], tuple]:
        """Adds the entry for these arguments; gives its program and what to call it with."""
        if config.stance != "default":
            return self.not_added(slots)
        try:
            with asking():
                built = self.build(slots)
            self.enter(*built)
        except Partial as partial:
            built = self.refused(partial.refusal, partial.guards, partial.tensors, slots)
            self.enter(*built)
        except MinicompileError:
            raise
        except Exception as error:
            if config.strict:
                raise
            if self.numbers.sizes is not False and self.numbers.changing:
                log.warning("%s is compiled for one size at a time after an internal error, a bug of "
                            "minicompile:\n%s", self.function.__qualname__, traceback.format_exc())
                self.numbers = self.numbers.closed()
                return self.add(slots)
            log.warning(
                "%s runs as in eager mode after an internal error, a bug of minicompile; to report:\n%s\n%s",
                self.function.__qualname__, reproducer(self.function, slots), traceback.format_exc())
            built = self.refused(Refusal("internal", f"{type(error).__name__}: {error}"), (), {})
            self.enter(*built)
        entry, program, sources, _ = built
        if entry.refusal is not None:
            return program, tuple(slots)
        return program, tuple(s.get(slots) for s in sources)

    def not_added(self, slots: list[Any]) -> tuple[Callable[..., Any], tuple]:
        """What a call runs that the stance forbids to compile."""
        if config.stance == "fail_on_recompile":
            reasons = [str(e.missed(self.function, slots)) for e in self.entries]
            reasons = reasons or ["nothing is compiled yet"]
            raise MinicompileError(f"{self.function.__qualname__} would be compiled anew, and the stance is "
                                   "'fail_on_recompile':\n" + "\n".join(reasons))
        return eager(self.function), tuple(slots)

    def build(self, slots: list[Any]) -> tuple[Entry, Callable[..., Any], list[Source], dict[Source, Any]]:
        start = time.perf_counter()
        volatile = frozenset(site for site, n in self.changes.items() if n > PATIENCE)
        done, tensors = self.captured(slots, volatile)
        self.capture_seconds = time.perf_counter() - start
        self.on_event("capture", done)
        state = torch_state()
        try:
            examples = done.examples() if done.sizes else [tensors[i.source] for i in done.inputs]
            graph = self.compile_graph(done, examples) if done.has_graph else _no_graph
        except NeedsSizes as needed:
            assert done.sizes is not None
            self.pin(needed, [s for size in needed.sizes for s in done.sizes.dims[size]])
            return self.build(slots)
        except Specialise as needed:
            self.numbers = self.numbers.pin(done.inputs[needed.index].source)
            return self.build(slots)
        except Refusal as refusal:
            raise Partial(refusal, done.guards, tensors) from refusal
        finally:
            restore_torch_state(state)  # graphs that switch modes may be left half-way
        name = f"<minicompile {self.function.__qualname__} {next(_numbers)}>"
        linecache.cache[name] = (len(done.program.text), None, done.program.text.splitlines(True), name)
        sources = [s for _, s in done.program.fetches]
        if done.sizes is not None:
            done = replace(done, guards=(*done.guards, *done.sizes.guards()))
        entry = Entry(done, None, done.guards, {})
        rest = self.resumption(done) if done.point is not None else None
        if not done.data_guards and not done.handled:
            return entry, done.program.compile(graph, name, rest=rest), sources, tensors
        speculative = Speculative(self, entry, graph, name, rest)
        return entry, speculative, sources + _slot_sources(self.function), tensors

    def captured(self, slots: list[Any], volatile: frozenset[Site]) -> tuple[Capture, dict[Source, Any]]:
        """The call captured, or its beginning, up to an operation that capture refuses. Raises Partial."""
        refused: Any = None
        for closed in (False, True):
            numbers = self.numbers.closed() if closed else self.numbers
            if closed and numbers == self.numbers:
                break
            try:
                done, tensors = capture(self.function, slots, volatile, numbers=numbers)
            except Partial as partial:
                if partial.needed:
                    self.pin(partial.refusal, partial.needed)
                    return self.captured(slots, volatile)
                refused = refused or partial
                continue
            if closed:
                self.constant(refused.refusal, self.numbers.changing - self.numbers.pinned)
            met = done.sizes.met() if done.sizes is not None else numbers.met
            self.numbers = replace(numbers, sizes=self.numbers.sizes, met=met)
            return done, tensors
        idle = self.before.idle if self.before is not None else 0
        breaks = not self.fullgraph and idle < IDLE and refused.refusal.code not in UNBROKEN
        for stop in stops(refused.frames) if breaks else ():
            try:
                done, tensors = capture(self.function, slots, volatile, stop, self.numbers)
            except Partial as partial:
                log.debug("%s: no break there: %s", self.function.__qualname__, partial.refusal)
                continue
            return replace(done, broken=refused.refusal), tensors
        raise refused

    def pin(self, why: Refusal, sources: Sequence[Source]) -> None:
        """Makes what must be known a constant."""
        before = self.numbers.pinned
        self.numbers = self.numbers.pin(*sources)
        self.constant(why, self.numbers.pinned - before)

    def constant(self, why: Refusal, sources: Iterable[str]) -> None:
        """Notes why numbers at these sources are constants."""
        reasons = dict.fromkeys(sources, f"{why.reason} ({why.where})" if why.where else why.reason)
        self.why_constant |= reasons
        self.on_event("static", reasons)

    def resumption(self, done: Capture) -> Callable[..., Any]:
        """What the program of `done` hands over to."""
        point, refusal = done.point, done.broken
        assert point is not None and refusal is not None
        known = self.breaks.get(point)
        if known is None:
            idle = 0 if done.has_graph or self.before is None else self.before.idle + 1
            known = self.breaks[point] = Resumption(self, point, refusal, idle)
            self.on_event("break", known)
        return known if self.before is None else lambda *values: Handover(known, values)

    def refused(self, refusal: Refusal, guards: tuple[Guard, ...], tensors: dict[Source, Any],
                slots: list[Any] | None = None) -> tuple[Entry, Callable[..., Any], list[Source],
                                                         dict[Source, Any]]:
        """An entry that runs the function as it is, for calls like this one."""
        if self.fullgraph:
            raise refusal if slots is None else self.all_refusals(refusal, slots)
        self.on_event("refusal", refusal)
        return Entry(None, refusal, guards, {}), eager(self.function), _slot_sources(self.function), tensors

    def all_refusals(self, refusal: Refusal, slots: list[Any]) -> Refusal:
        """`refusal`, telling also what else the call would break at, as far as can be seen when nothing is
        done for real: what is behind calls whose results are not used."""
        found: list[Refusal] = []
        try:
            capture(self.function, slots, survey=found)
        except Partial as partial:
            found.append(partial.refusal)
        if len(found) < 2:
            return refusal
        rest = "\n".join(f"{i}. {r.describe()}" for i, r in enumerate(found, 1))
        return Refusal(refusal.code, f"{refusal.reason}; the call breaks at {len(found)} places:\n{rest}\n",
                       refusal.where)

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
                if other.index == FAILED:
                    return eager(self.function)(*slots)
                guard = program.guards[other.index]
        self.on_event("recompile", [f"{guard}: found {_short(missed.found)}"])
        with self.lock:
            if entry.native.program.fresh:  # what was compiled computes another value than eager mode does
                self.changes[guard.site] = PATIENCE
            self.changes[guard.site] += 1
            program, fetched = self.add(slots)
        return program(*fetched)

    def enter(self, entry: Entry, program: Callable[..., Any], sources: list[Source],
              tensors: dict[Source, Any]) -> None:
        try:
            guard_program, entry.owner = lower_guards(entry.guards, sources, tensors)
        except Refusal as refusal:
            raise Partial(refusal, (), {}) from refusal
        native = entry.native = _native.Entry(guard_program, program, entry)
        entries = self.native.entries
        entries.insert(0, native)
        if len(entries) <= self.limit:
            return
        if self.before is not None:                     # more would come with every turn of a loop
            self.spent, fate = True, f"what comes after line {self.before.line} runs as in eager mode now"
            self.settle()
        else:
            gone, fate = entries.pop(), "the least recently used one is dropped for each new one"
            gone.data.forget()
            self.on_event("evicted", gone.data)
        if not self.warned:
            log.warning("%s: more than %d variants; %s", self.function.__qualname__, self.limit, fate)
        self.warned = True


class Speculative:
    """The program of an entry with data guards, or whose graph's errors the program handles. It is called
    with what the program fetches, then the function's slots, with which another entry is found or made where
    a data guard fails."""

    def __init__(self, compiled: Compiled, entry: Entry, graph: Callable[..., Sequence[Any]], name: str,
                 rest: Callable[..., Any] | None):
        done = entry.capture
        assert done is not None
        self.compiled, self.entry, self.graph, self.guards = compiled, entry, graph, done.data_guards
        self.check_graph, self.width, self.handled = done.check_graph, len(done.program.fetches), done.handled
        self.program = done.program.compile(self.run, name, self.check, rest)
        self.__code__ = self.program.__code__
        self.fresh = True  # has not run to its end

    def __call__(self, *values: Any) -> Any:
        try:
            return self.attempt(values)
        except Missed as missed:
            found = missed
        slots = list(values[self.width:])
        if found.index == FAILED:
            return eager(self.compiled.function)(*slots)
        return self.compiled.retry(self.entry, found, slots)

    def attempt(self, values: tuple) -> Any:
        """The call, or Missed."""
        result = self.program(*values[:self.width])
        self.fresh = False
        return result

    def run(self, *tensors: Any) -> Sequence[Any]:
        """The graph. Where it raises because the values it was captured for are not these, or where the
        program handles that, Missed."""
        try:
            return self.graph(*tensors)
        except Exception as error:
            raised = error
        if self.guards:
            self.verify(tensors)
        if self.handled:
            raise Missed(FAILED, raised)
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


class Handover(NamedTuple):
    """What is left to do: returned by programs that go on after a break, so that breaks in a loop don't
    nest."""

    to: Resumption
    values: Any


class Resumption:
    """A break at work. Called with what a program hands over: does the operation that capture refused, then
    all that comes after, compiled.

    idle   how many breaks, this one included, had no graph before them since the last that had
    """

    def __init__(self, compiled: Compiled, point: Point, refusal: Refusal, idle: int):
        self.compiled, self.point, self.refusal, self.idle = compiled, point, refusal, idle
        self.operation = point.operation()
        self.after: dict[bool, Compiled] = {}           # by whether the operation jumped
        at = point.frames[-1]
        self.line = at.code.line(at.code.offsets.index(at.op))

    def __call__(self, *values: Any) -> Any:
        result: Any = Handover(self, values)
        del values
        while type(result) is Handover:
            to, given = result
            result = to.step(given)
        return result

    def step(self, values: tuple) -> Any:
        """Does the operation and what comes after it, up to the next break."""
        state = values[:self.point.width]
        start, raised = time.perf_counter(), None
        try:
            left = self.operation(*state[self.point.slots], *values[self.point.width:])
        except BaseException as error:                  # raised below, in the frames that wait
            raised = error.with_traceback(error.__traceback__.tb_next.tb_next)  # type: ignore[union-attr]
        self.refusal.calls += 1
        self.refusal.seconds += time.perf_counter() - start
        if raised is None:
            return self.rest(type(left) is list)(*state, *left)
        try:
            return self.point.raising()(*state, raised)
        finally:
            del raised, values, state

    def rest(self, jumped: bool) -> Compiled:
        """What comes after the operation."""
        known = self.after.get(jumped)
        if known is None:
            of = self.compiled
            known = self.after[jumped] = Compiled(
                self.point.rest(jumped), of.compile_graph, limit=of.limit, on_event=of.on_event, before=self,
                dynamic=of.numbers.sizes)
        return known


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


def reproducer(function: FunctionType, slots: Sequence[Any]) -> str:
    """The source of a function and what it was called with, as a comment and code."""
    code = function.__code__
    try:
        source = textwrap.dedent(inspect.getsource(code))
    except OSError:
        source = f"# {code.co_qualname} of {code.co_filename}:{code.co_firstlineno}, without its source\n"
    return source + "".join(f"# {n} = {_described(v)}\n" for n, v in zip(code.co_varnames, slots))


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return (f"torch.empty_strided({tuple(value.shape)}, {value.stride()}, dtype={value.dtype}, "
                f"device={str(value.device)!r}, requires_grad={value.requires_grad})")
    shown = reprlib.repr(value) if type(value) in (list, tuple, dict, set) else _short(value)
    return shown or f"a {type(value).__qualname__}"


def set_stance(stance: str) -> None:
    """Makes all compiled functions of the process follow `config.stance` = `stance`."""
    config.stance = stance
    for compiled in list(_live):
        compiled.settle()


def graph_break() -> None:
    """Does nothing; ends the graph where a captured function calls it."""


graph_break.__minicompile_disabled__ = "graph-break"  # type: ignore[attr-defined]


def force_eager(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, wrapped so that it always runs natively; where capture meets it, it refuses ("disabled")."""

    @functools.wraps(fn)
    def disabled_function(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    disabled_function.__minicompile_disabled__ = "disabled"  # type: ignore[attr-defined]
    return disabled_function
