"""Capture: one call of a Python function turned into a graph, guards and a program.

Takes a function and the values of its parameters; gives a `Capture`, or raises Refusal. While it runs, the
world does not change. The stage after this is `lower.trace`, which takes the graph; `compiled` puts guards,
graph and program to work.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch.utils import _python_dispatch

from .. import _native, errors
from ..errors import CheckError, Refusal, Where
from ..ir import fake as fake_module
from ..ir import scalar as scalar_module
from ..ir import spec as spec_module
from ..ir.fake import Fake, FakeMode, facts_of
from ..ir.scalar import Number, like_number, number_spec, symbol
from ..ir.spec import TensorSpec
from ..ir.sym import NeedsSizes, Size, asked
from . import (
    attributes,
    bytecode,
    frame,
    functions,
    guards,
    handlers,
    interp,
    optimizers,
    outside,
    policy,
    program,
    reads,
    record,
    resume,
    sizes,
    sources,
    varying,
    world,
    writes,
)
from .guards import Guard, first_failure
from .program import Program, build_program, is_leaf
from .reality import HIDDEN_WRITES, Reality
from .record import Recorder
from .sizes import Sizes
from .sources import Source
from .speculation import DataGuard, Site, Speculation
from .varying import NO_NUMBERS, VARYING, Numbers, as_input
from .world import CaptureWorld
from .writes import Effect

VARARGS, VARKEYWORDS = 0x4, 0x8
RECURSION = 8


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor or number the graph takes: where it is found, what it is like, and its placeholder's name."""

    source: Source
    spec: TensorSpec
    name: str
    requires_grad: bool = False
    is_param: bool = False
    size: Size | None = None        # the number is one, which the graph has only for its calls' arguments


@dataclass(frozen=True, slots=True)
class Capture:
    """What was captured.

    gm        the torch calls: inputs (tensors, in order of `inputs`) -> tuple of tensors, those that
              `program` uses
    guards    what must hold of a call for this capture to stand for it
    effects   what the program changes after the graph has run
    program   the text that replaces the call
    where     the user's line of each node of gm
    data_guards   what the program was found to do with tensors' values; `program` checks them
    check_graph   computes the tensors of the data guards, and nothing else; None if there are none
    point     where the program ends early: it hands over to what does the next operation and goes on
    broken    why: what capture refused there
    sizes     those of inputs that are open, and where they are found
    handled   where the graph raises, the call has to be made in eager mode: the program handles errors
    """

    name: str
    gm: torch.fx.GraphModule
    inputs: tuple[Input, ...]
    guards: tuple[Guard, ...]
    effects: tuple[Effect, ...]
    program: Program
    where: dict[torch.fx.Node, Where] = field(default_factory=dict)
    data_guards: tuple[DataGuard, ...] = ()
    check_graph: torch.fx.GraphModule | None = None
    point: resume.Point | None = None
    broken: Refusal | None = None
    handled: bool = False
    sizes: Sizes | None = None

    def __str__(self) -> str:
        listed = "\n".join(f"#   {i.name}: {i.source}, {i.spec}" for i in self.inputs)
        checks = "\n".join(f"#   {g}" for g in (*self.guards, *self.data_guards))
        graph = self.gm.code.strip() if self.has_graph else "# no tensor is computed"
        return f"# {self.name}\n# inputs:\n{listed}\n# guards:\n{checks}\n{graph}\n\n{self.program}"

    @property
    def has_graph(self) -> bool:
        return any(n.op not in ("placeholder", "output") for n in self.gm.graph.nodes)

    def check(self) -> None:
        """Raises CheckError unless the graph is well formed, takes the inputs and gives what the program
        uses."""
        try:
            self.gm.graph.lint()
        except RuntimeError as error:
            raise CheckError("capture", "graph", str(error)) from error
        names = [n.name for n in self.gm.graph.nodes if n.op == "placeholder"]
        if len(names) != len(self.inputs):
            raise CheckError("capture", "inputs",
                             f"the graph takes {len(names)} tensors, {len(self.inputs)} are fetched")
        returned = next(n for n in self.gm.graph.nodes if n.op == "output").args[0]
        if len(returned) != len(self.program.outputs):  # type: ignore[arg-type]
            raise CheckError(
                "capture", "output",
                f"the graph gives {returned}, the program uses {len(self.program.outputs)}")
        guarded = {g.source for g in self.guards if g.check in ("tensor", "type")}
        for i in self.inputs:
            if i.source not in guarded:
                raise CheckError("capture", i.name, f"the input {i.source} is not guarded")
        for node in self.gm.graph.nodes:
            if node.op not in ("placeholder", "output") and node not in self.where:
                raise CheckError("capture", node.name, "has no place in the user's program")

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The graph, eagerly."""
        return self.gm(*inputs)

    def examples(self) -> list[Any]:
        """Fakes like the inputs, fresh for each call, and numbers."""
        return [symbol(Number.of_size(i.size)) if i.size is not None else
                like_number(i.spec) if i.spec.number else
                Fake.from_spec(i.spec, i.requires_grad, i.is_param) for i in self.inputs]


class Partial(Exception):
    """Carries a Refusal out of capture with the guards recorded until then, the frames it left, and the
    sources of the sizes that must be known."""

    def __init__(self, refusal: Refusal, guards: tuple[Guard, ...], tensors: dict[Source, Any],
                 frames: Sequence[frame.Frame] = (), needed: Sequence[Source] = ()):
        super().__init__(str(refusal))
        self.refusal, self.guards, self.tensors, self.frames = refusal, guards, tensors, frames
        self.needed = needed


class _DeepStack:
    """Raises the process's recursion limit while anyone captures: several of our frames stand for one of
    the program's."""

    def __init__(self) -> None:
        self.lock, self.users, self.limit = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.limit = sys.getrecursionlimit()
                sys.setrecursionlimit(RECURSION * self.limit)
            self.users += 1

    def __exit__(self, *exc: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                sys.setrecursionlimit(self.limit)


_deep_stack = _DeepStack()  # of the process, as the limit is


# Tangents of forward-mode differentiation lie where no guard on a tensor sees them; they need a level.
NO_TANGENTS = Guard(
    Source.const(vars(torch.autograd.forward_ad), "forward_ad").item("_current_level"), "equals", -1)


class _CaptureMode(FakeMode):
    """Notes whether a second run of the captured calls would not be like the first: what random numbers and
    running statistics do to a program that no input's version shows."""

    unrepeatable = False

    def record(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        if not facts_of(func).follow or func in HIDDEN_WRITES:
            self.unrepeatable = True


class Capturer:
    """One capture in progress."""

    def __init__(self, function: FunctionType, slots: Sequence[Any], volatile: frozenset[Site] = frozenset(),
                 stop: resume.Stop | None = None, numbers: Numbers = NO_NUMBERS):
        _exclude_own_code()
        self.function, self.slots = function, slots
        self.ambient = Guard(None, "ambient", _native.ambient())    # not what a `with` left half-way has
        self.world = CaptureWorld()
        self.world.stop = stop
        code = function.__code__
        self.world.inference = torch.is_inference_mode_enabled()
        self.world.root = Where(code.co_filename, code.co_firstlineno, code.co_qualname)
        self.recorder = Recorder(self.place)
        self.handled = False                            # a torch call stands in the program's own `try`
        self.mode = _CaptureMode()
        reality = Reality(
            self.recorder.graph, self.recorder.reals, (torch_state, restore_torch_state))
        self.speculation = Speculation(self.recorder, reality, volatile)
        self.recorder.speculate, self.recorder.confirm = self.speculation.call, self.speculation.confirm
        self.names: dict[str, int] = {}
        self.world.new_input = self.add_input
        self.world.record_call = lambda f, args, *more: self.recorder.append(f, tuple(args), *more)
        self.world.one_node = self.one_node
        self.versions: list[tuple[Fake, int]] = []
        self.input_names: list[str] = []
        self.world.numbers = numbers
        self.world.sizes.conditions = asked()
        self.world.sizes.conditions.clear()             # an earlier attempt's
        self.world.numbers_vary = self.numbers_vary
        self.recorder.number, self.recorder.seen, self.recorder.needed = self.number, self.seen, self.needed
        self.number_nodes: dict[Source, torch.fx.Node] = {}

    def numbers_vary(self) -> None:
        self.mode.scalars = True

    def needed(self) -> None:
        if self.world.needed is not None:
            raise self.world.needed

    def seen(self, x: Any) -> Any:
        self.world.sizes.placed()
        return self.world.sizes.seen(x) if self.world.sizes.dims else x

    def size(self, s: Any) -> Any:
        """What the graph has for an expression of sizes: placeholders for these, and what computes it."""
        def call(function: Callable[..., Any], *args: Any) -> torch.fx.Node:
            node = self.recorder.graph.call_function(function, args)
            self.recorder.places[node] = self.world.where() or self.world.root
            return node

        return sizes.computed(s, lambda v: self.placeholder(self.world.sizes.source(v), v.hint), call)

    def number(self, value: Any) -> Any:
        """What the graph has for a number that varies: a placeholder, or the value if it is guarded."""
        if value.node.sym is not None:
            return self.size(value.node.sym)
        value = as_input(value)
        if type(value) not in VARYING:
            return value
        return self.placeholder(value.source, value.node.value)

    def placeholder(self, source: Source, value: int | float) -> torch.fx.Node:
        node = self.number_nodes.get(source)
        if node is None:
            node = self.number_nodes[source] = self.recorder.add_number(self.input_name(source), value)
        return node

    def input_name(self, source: Source) -> str:
        base = re.sub(r"\W+", "_", str(source).removeprefix("self.")).strip("_") or "x"
        base = f"_{base}" if base[0].isdigit() else base
        count = self.names.get(base, 0)
        self.names[base] = count + 1
        return f"{base}_{count}" if count else base

    def add_input(self, source: Source, t: torch.Tensor, fake: Fake) -> None:
        node = self.recorder.add_input(self.input_name(source), fake, t)
        self.input_names.append(node.name)
        self.versions.append((fake, fake._version))

    def place(self) -> Where | None:
        """The user's line of a torch call that is recorded; notes whether an error of it would be handled
        there."""
        at = self.world.current
        while at is not None and not self.handled:
            handler = at.code.handlers[at.pc - 1]
            self.handled = handler is not None and at.code.ops[handler.target + 1][0] != "WITH_EXCEPT_START"
            at = at.back
        return self.world.where()

    @contextlib.contextmanager
    def one_node(self, target: Callable[..., Any]) -> Iterator[Callable[..., None]]:
        """What is recorded inside gives way to one call of `target`, whose arguments and result are handed
        to what this gives."""
        graph, nodes = self.recorder.graph, self.recorder.nodes
        before = set(graph.nodes)

        def record(args: Sequence[Any], out: Any) -> None:
            gone = [n for n in graph.nodes if n not in before and n.op != "placeholder"]
            for key in [k for k, n in nodes.items() if n in gone]:
                del nodes[key]
            for node in reversed(gone):
                graph.erase_node(node)
                self.recorder.places.pop(node, None)
            self.recorder.append(target, tuple(args), {}, out)

        yield record

    def run(self) -> Capture:
        state = torch_state()
        try:
            with _deep_stack:
                return self.captured(state)
        except Refusal as refusal:
            cause = refusal.__cause__ if refusal.code == "raises" else refusal
            frames = resume.inlined(cause or refusal)
            sizes = refusal.sizes if isinstance(refusal, NeedsSizes) else ()
            needed = [refusal.source] if isinstance(refusal, varying.NeedsNumber) else [
                s for size in sizes for s in self.world.sizes.dims[size]]
            raise Partial(refusal, self.all_guards(), self.tensors(), frames, needed) from refusal
        finally:
            self.world.dead = True
            self.speculation.reality.restart()
            restore_torch_state(state)

    def captured(self, state: dict[str, Any]) -> Capture:
        if not NO_TANGENTS.holds(()):
            raise Refusal("forward-mode", "tensors may have tangents (torch.autograd.forward_ad)")
        depths = _mode_depths()
        leave = contextlib.ExitStack()
        if state["inference"]:  # no version counters there; what it means for results is the runtime's matter
            leave.enter_context(torch.inference_mode(False))
            leave.enter_context(torch.no_grad())
        self.mode.__enter__()
        self.recorder.__enter__()
        values = None
        try:
            result = contextvars.copy_context().run(_native.capture, self.world.offered, self.top)
        except resume.Stopped as stopped:
            result, values = resume.break_at(stopped.frames)
            self.check_modes(depths)
        except Refusal:
            raise
        except Exception as error:
            raise Refusal("raises", f"{type(error).__name__}: {error}", self.world.where()) from error
        finally:
            _leave_modes(depths)
            leave.close()
        now = torch_state()
        if _autocast(now) != _autocast(state):
            raise self.world.refuse("ambient-state", "autocast stays changed where a graph ends")
        effects = self.world.effects()
        program = build_program(
            self.world, result if values is None else values, effects,
            [*((s, n) for (s, _, _), n in zip(self.world.inputs, self.input_names)),
             *((s, n.name) for s, n in self.number_nodes.items())],
            any(n.op != "placeholder" for n in self.recorder.graph.nodes),
            self.speculation.guards, self.lasting,
            (restore_torch_state, now) if now != state else None, values is not None)
        self.guard_aliasing()
        self.guard_windows()
        return self.assemble(effects, program, None if values is None else result)

    def check_modes(self, depths: tuple[int, int]) -> None:
        """Raises Refusal where the program is inside a torch mode of its own, which cannot be handed over."""
        if _mode_depths() != (depths[0] + 1, depths[1] + 1):
            raise self.world.refuse("ambient-state", "a graph ends inside a torch function or dispatch mode")

    def top(self) -> Any:
        """Runs the captured function's own frame: parameters are read, *args and **kwargs are made anew
        from what they hold."""
        f, world, raw = self.function, self.world, self.function.__code__
        world.enter_function(f)
        world.keep.append(f)
        code = world.code_of(raw)
        slots = [frame.NULL] * len(code.locals)
        plain = raw.co_argcount + raw.co_kwonlyargcount
        for i in range(plain):
            slots[i] = world.read(Source.local(i, raw.co_varnames[i]), self.slots[i])
        if raw.co_flags & VARARGS:
            slots[plain] = world.read(Source.local(plain, raw.co_varnames[plain]), self.slots[plain])
        if raw.co_flags & VARKEYWORDS:
            i = plain + bool(raw.co_flags & VARARGS)
            source = Source.local(i, raw.co_varnames[i])
            world.guard(source, "keys", tuple(self.slots[i]))
            slots[i] = {k: world.read(source.item(k), v) for k, v in self.slots[i].items()}
        return world.run_slots(code, f, slots)

    @property
    def lasting(self) -> bool:
        """Whether a run of the graph leaves traces, so that a second one would not be like it."""
        return self.mode.unrepeatable or bool(self.written())

    def written(self) -> list[Fake]:
        """The inputs the graph writes to."""
        return [fake for fake, version in self.versions if fake._version != version]

    def guard_windows(self) -> None:
        """`as_strided` alone counts from where a storage begins, all else from where its tensor does."""
        targets = (getattr(n.target, "__name__", str(n.target)) for n in self.recorder.graph.nodes)
        for source, t, _ in self.world.inputs if any("as_strided" in name for name in targets) else ():
            self.world.guard(source.call(torch.Tensor.storage_offset), "equals", t.storage_offset())

    def guard_aliasing(self) -> None:
        """A graph that writes into an input stands only for calls whose inputs share no storage."""
        if not self.written():
            return
        if not self.world.inference and any(t.is_inference() for _, t, _ in self.world.inputs):
            raise Refusal("inference-mode", "a tensor made in inference mode may be written to outside it",
                          self.world.where())
        if any(id(f) in self.world.data_read for f in self.written()):
            raise Refusal("tensor-attribute", "what Tensor.data gave is written to", self.world.where())
        tensors = [t for _, t, _ in self.world.inputs]
        storages = {t.untyped_storage()._cdata for t in tensors}
        if len(storages) != len(tensors):
            raise Refusal(
                "aliased-inputs", "a tensor is written that shares storage with another input",
                self.world.where())
        if len(tensors) > 1:
            self.world.guard(None, "none_alias", tuple(s for s, _, _ in self.world.inputs))

    def all_guards(self) -> tuple[Guard, ...]:
        """All guards but those that others imply: whoever looks further along a path has seen that it
        exists."""
        listed = list(self.world.guards.values())
        walked: set[Source | None] = set()
        for g in listed:
            source = g.source if g.check != "present" else g.source.parent if g.source is not None else None
            while source is not None and source not in walked:
                walked.add(source)
                source = source.parent
        kept = (g for g in listed if g.check != "present" or g.source not in walked)
        return (self.ambient, NO_TANGENTS, *kept)

    def tensors(self) -> dict[Source, Any]:
        numbers = {s: self.recorder.reals[n] for s, n in self.number_nodes.items()}
        return numbers | {s: t for s, t, _ in self.world.inputs}

    def assemble(self, effects: list[Effect], program: Program, point: resume.Point | None) -> Capture:
        recorder = self.recorder
        missing = [f for f in program.outputs if id(f) not in recorder.nodes]
        if missing:
            raise Refusal("untracked-tensor", "a tensor that was made unseen outlives the call")
        self.check_gradients(program.outputs)
        guards = tuple(self.speculation.guards)
        check_graph = (self.speculation.reality.slice([recorder.nodes[id(f)] for g in guards
                                                       for f in g.fakes]) if guards else None)
        recorder.graph.output(tuple(recorder.nodes[id(f)] for f in program.outputs))
        gm = torch.fx.GraphModule(torch.nn.Module(), recorder.graph)
        open_ = self.world.sizes
        inputs = [Input(source, open_.specs.get(source) or TensorSpec.of(t), name, t.requires_grad,
                        isinstance(t, torch.nn.Parameter))
                  for (source, t, _), name in zip(self.world.inputs, self.input_names)]
        inputs += [Input(source, number_spec(recorder.reals[node]), node.name, size=open_.at(source))
                   for source, node in self.number_nodes.items()]
        return Capture(
            self.function.__qualname__, gm, tuple(inputs), self.all_guards(), tuple(effects), program,
            recorder.places, guards, check_graph, point, handled=self.handled and not self.lasting,
            sizes=open_ if open_.dims else None)


    def check_gradients(self, outputs: Sequence[Fake]) -> None:
        """Refuses results whose gradients would not go where they go in eager mode: into tensors made
        inside."""
        free = [f for f in outputs if f.requires_grad and id(f) not in self.world.input_of]
        attached = [f for f in free if not is_leaf(f)]
        needed = any(t.requires_grad for _, t, _ in self.world.inputs)
        if attached and (len(attached) < len(free) or not needed):
            raise Refusal("escapes", "gradients of a result are collected in a tensor made inside the call")


def capture(function: FunctionType, slots: Sequence[Any], volatile: frozenset[Site] = frozenset(),
            stop: resume.Stop | None = None, numbers: Numbers = NO_NUMBERS,
            survey: list[Refusal] | None = None) -> tuple[Capture, dict[Source, Any]]:
    """Captures one call of `function`.

    slots   values of the parameters in the order of co_varnames (positional, keyword-only, *args tuple,
            **kwargs dict)
    volatile   lines whose use of tensors' values is refused, since the values change too often
    stop       where the capture ends, with a program that hands over
    numbers    which ones vary
    survey     gets what is refused in calls whose results are not used; the capture leaves those out
    Gives the Capture and the real tensors and numbers by source. Raises Partial (a Refusal with the guards so
    far).
    """
    capturer = Capturer(function, slots, volatile, stop, numbers)
    capturer.world.survey = survey
    done = capturer.run()
    return done, capturer.tensors()


def capture_call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Capture:
    """Captures the call function(*args, **kwargs), for tests and tools. Raises Refusal."""
    if not isinstance(function, FunctionType):
        args = (function, *args)
        function = lambda callee, *args, **kwargs: callee(*args, **kwargs)
    plain = interp.World()
    slots = interp.bind(plain, plain.code_of(function.__code__), function, args, kwargs)
    try:
        return capture(function, slots)[0]
    except Partial as partial:
        raise partial.refusal from None


# Torch's thread state. It is not part of the world that capture may change: what a captured `with` changes,
# it changes back.


def torch_state() -> dict[str, Any]:
    with torch._C.DisableTorchFunction():
        return {
            "grad": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled(),
            "dtype": torch.get_default_dtype(), "autocast": torch.is_autocast_enabled("cpu"),
            "autocast_dtype": torch.get_autocast_dtype("cpu"),
            "autocast_cache": torch.is_autocast_cache_enabled(),
            "transforms": torch._C._functorch.get_dynamic_layer_stack_depth()}


def _autocast(state: dict[str, Any]) -> list[Any]:
    return [v for k, v in state.items() if k.startswith("autocast")]


def _mode_depths() -> tuple[int, int]:
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()


def _leave_modes(depths: tuple[int, int]) -> None:
    """Leaves all modes entered since: ours, and those of the user's `with` blocks that a Refusal cut
    short."""
    while torch._C._len_torch_function_stack() > depths[0]:
        torch.overrides._pop_mode()
    while torch._C._len_torch_dispatch_stack() > depths[1]:
        _python_dispatch._pop_mode()


def restore_torch_state(state: dict[str, Any]) -> None:
    torch._C._set_grad_enabled(state["grad"])
    torch.set_default_dtype(state["dtype"])
    torch.set_autocast_enabled("cpu", state["autocast"])
    torch.set_autocast_dtype("cpu", state["autocast_dtype"])
    torch.set_autocast_cache_enabled(state["autocast_cache"])
    if torch._C._functorch.get_dynamic_layer_stack_depth() > state["transforms"]:
        torch._C._functorch.set_inplace_requires_grad_allowed(False)
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(state["transforms"])
        with contextlib.suppress(RuntimeError):     # there may be none
            torch._C._exit_dual_level(level=0)


_MODULES: tuple[ModuleType, ...] = (
    attributes, bytecode, frame, functions, guards, handlers, interp, optimizers, outside, policy,
    program, reads, record, resume, sizes, sources, varying, world,
    writes, fake_module, scalar_module, spec_module, errors)
_excluded: list[bool] = []
resume.passing(CaptureWorld.call, CaptureWorld.call_function)


def _exclude_own_code() -> None:
    """Tells the hook, once, which frames are the capturer's own."""
    if _excluded:
        return
    _excluded.append(True)
    for module in _MODULES:
        for code in _codes(module):
            _native.set_policy(code, _native.NATIVE, nested=True)
    for method in (Recorder.__torch_function__, Capturer.add_input, torch.overrides.handle_torch_function,
                   varying.derive, varying.vary, reads.Reads.read_tensor, Sizes.number):
        _native.set_policy(method.__code__, _native.SUSPEND)
    for method in (Capturer.run, Capturer.captured, Capturer.top, _CaptureMode.record):
        _native.set_policy(method.__code__, _native.NATIVE)


def _codes(module: ModuleType) -> list[CodeType]:
    found: list[CodeType] = []
    for value in vars(module).values():
        if isinstance(value, FunctionType):
            found += [value.__code__] if value.__code__.co_filename.startswith(policy.OWN) else []
        elif isinstance(value, type) and value.__module__ == module.__name__:
            for entry in vars(value).values():
                inner = getattr(entry, "__func__", None) or getattr(entry, "fget", None) or entry
                inner = getattr(inner, "func", inner)
                if isinstance(inner, FunctionType):
                    found.append(inner.__code__)
    for table in (v for v in vars(module).values() if isinstance(v, dict)):
        found += [f.__code__ for f in table.values() if isinstance(f, FunctionType)]
    return found


__all__ = ["Capture", "Input", "Partial", "capture", "capture_call", "first_failure"]
