"""The pipeline: every stage in order, for one captured graph, with every border object kept.

Takes a `Capture` (or a bare torch.fx graph), gives `Compilation.call`, which computes the graph's outputs
from its inputs. `api` puts it behind the captured frame; `viz` and `testing` read the border objects.
"""
from __future__ import annotations

import ctypes
import functools
import logging
import operator
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .autograd.function import Backward, Halves, viewed
from .autograd.joint import Joint, trace_joint
from .autograd.narrow import Narrowed, narrow
from .autograd.partition import recompute_class, split
from .codegen import cpp, driver, triton, triton_driver
from .collector import paused
from .config import config
from .debug import configure, dump_stage, log
from .errors import MinicompileError, Refusal, ToolchainError
from .ir.fake import Fake
from .ir.scalar import DTYPES, unbound
from .ir.spec import copies
from .ir.sym import NeedsSizes, Sym
from .loops.build import build_loops
from .lower.decompose import decompose
from .lower.graphs import Prims
from .lower.products import WITH_BIAS
from .lower.trace import trace
from .runtime.contest import Contest
from .runtime.toolchain import detect_isa
from .schedule.fuse import schedule

Call = Callable[..., Sequence[torch.Tensor]]
ELEMENTS: dict[torch.dtype, Any] = {torch.float64: ctypes.c_double, torch.int64: ctypes.c_int64}

# border object → the stage that makes the next one; each a pure function
STAGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "prims": ("aten", decompose),
    "loops": ("prims", build_loops),
    "plan": ("loops", lambda loops: schedule(loops, driver.core_types(detect_isa()), lend=True)),
    "source": ("plan", cpp.emit),
    "executable": ("source", driver.load),
}
# the same for GPUs: matrix products and convolutions stay library calls, their bias included
TRITON: dict[str, tuple[str, Callable[[Any], Any]]] = {
    **STAGES,
    "prims": ("aten", lambda aten: decompose(aten, WITH_BIAS)),
    "plan": ("loops", lambda loops: schedule(loops)),
    "source": ("plan", triton.emit),
    "executable": ("source", triton_driver.load),
}
# what each backend runs: the border object whose `run` it is, or the executable
BACKENDS = {"eager": "capture", "aot_eager": "aten", "reference": "loops", "cpp": "executable",
            "triton": "executable"}

_warned: set[str] = set()


@dataclass
class Compilation:
    """One graph on its way through the stages. Stages that were not reached are None.

    capture      what was captured: `.gm` is the torch-level graph
    joint        forward and backward in one graph, where the graph is trained through
    split        the joint graph's two halves
    backward     the second half's own Compilation, from its prims on; where the graph has several
                 differentiable results, the other stages come when all are differentiated, or asked for
    call         computes the outputs: call(*tensors) -> sequence of tensors
    inputs       copies of the first call's inputs, where they were asked for (bisecting)
    seconds      stage -> seconds it took
    stages       how border objects are made: STAGES or TRITON
    contest      how compiled code does against eager mode, where both can be tried
    runs         the name of what `call` runs: a border object's reference, "executable", or a user's
                 backend
    """

    name: str
    capture: Any
    aten: Any = None
    prims: Any = None
    loops: Any = None
    plan: Any = None
    source: Any = None
    executable: Any = None
    joint: Any = None
    split: Any = None
    backward: Compilation | None = None
    inputs: tuple = ()
    call: Call | None = None
    contest: Contest | None = None
    runs: str = ""
    stages: Mapping[str, tuple[str, Callable[[Any], Any]]] = field(default_factory=lambda: STAGES)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def run(self) -> Call:
        """`call`, once it is there."""
        assert self.call is not None, "compile_graph has not finished"
        return self.call

    def reach(self, stage: str) -> Any:
        """The border object (or "executable") of `stage`, made from the ones before it where need be."""
        if getattr(self, stage) is None:
            before, make = self.stages[stage]
            given = self.reach(before)
            self.put(stage, lambda: make(given))
        return getattr(self, stage)

    def put(self, stage: str, make: Callable[[], Any]) -> Any:
        """Runs `make`, keeps its result as the object of `stage`, times, checks and dumps it."""
        start = time.perf_counter()
        border = make()
        self.seconds[stage] = time.perf_counter() - start
        setattr(self, stage, border)
        if stage != "executable":
            if config.check:
                border.check()
            dump_stage(self.name, stage, border)
        log("time", f"{self.name}: {stage} {self.seconds[stage] * 1e3:.1f} ms")
        return border


def compile_graph(name: str, capture: Any, examples: Sequence[Any], backend: str | Callable = "auto",
                  where: Mapping | None = None, keep_inputs: bool = False) -> Compilation:
    """All stages for one captured graph.

    capture   has `.gm`, the torch.fx.GraphModule
    examples  the inputs of the call that is being compiled, one per placeholder
    backend   a name of `BACKENDS`, or a function (gm, example_inputs) -> callable
    where     torch.fx.Node -> Where, the user's lines
    Raises Refusal for what a stage cannot do, MinicompileError for a bad backend.
    """
    configure()
    done = Compilation(name, capture)
    if keep_inputs and not any(isinstance(x, Fake) for x in examples):
        done.inputs = tuple(copies(examples))
    dump_stage(name, "capture", capture)
    log("graphs", lambda: f"{name}:\n{capture}")
    if callable(backend):
        _only_constants(examples)
        done.call, done.runs = backend(capture.gm, list(examples)), getattr(backend, "__name__", "user")
        return done
    backend = _resolve(backend, examples)
    target = config.stop or BACKENDS.get(backend)
    done.stages = TRITON if backend == "triton" else STAGES
    if target is None:
        raise MinicompileError(f"backend {backend!r} is not available; there are {', '.join(BACKENDS)} "
                               "and any callable(gm, example_inputs)")
    if target == "capture":
        done.call, done.runs = capture.gm, "capture"
        return done
    if any(isinstance(x, torch.Tensor) and x.requires_grad for x in examples):   # with no grad mode, too: a
        # result may have been detached
        joint = done.put("joint", lambda: trace_joint(capture.gm, examples, where))
        if joint.tangents:
            _finish_training(done, joint, "prims" if target == "aten" else target)
            done.call = taking_numbers(done.run, examples, keeps=True)
            return done
        done.aten = joint.aten
        outputs = joint.aten.graph.outputs[:joint.outputs]
    else:
        done.put("aten", lambda: trace(capture.gm, examples, where))
        outputs = ()
    call = _finish(done, target)
    if any(o.alias is not None for o in outputs) or outputs and joint.spent:
        def seen(*primals: torch.Tensor) -> Sequence[torch.Tensor]:
            env = joint.sizes(primals) if joint.varies else {}          # before inputs get another geometry
            return viewed(list(call(*primals)), outputs, primals, joint, env)
        done.call = taking_numbers(seen, examples)
    else:
        done.call = taking_numbers(call, examples)
        fixed = not any(isinstance(x, Fake) for x in examples)
        if config.contest and fixed and done.call is call and why_no_contest(done) is None:
            done.contest = Contest(call, capture.gm.forward, lambda text: log("code", f"{name}: {text}"))
    return done


def _only_constants(examples: Sequence[Any]) -> None:
    """Raises NeedsSizes if there are open sizes, which functions that users give know nothing of."""
    fakes = [x for x in examples if isinstance(x, Fake)]
    sizes: list[Any] = [n for x in fakes for n in x.spec.shape if isinstance(n, Sym)]
    if sizes:
        raise NeedsSizes(functools.reduce(operator.add, sizes))


def _finish(done: Compilation, target: str) -> Call:
    """What runs the object of stage `target`, which is made; the loops' reference where there is no C++
    compiler."""
    try:
        border = done.reach(target)
    except ToolchainError as e:
        if config.strict:
            raise
        _warn_once("toolchain", f"{e}\nminicompile runs its slow reference instead of compiled code.")
        target, border = "loops", done.reach("loops")
    done.runs = target
    return border.call if target == "executable" else border.run


def _finish_training(done: Compilation, joint: Joint, target: str) -> None:
    """Cuts the joint graph and compiles both halves."""
    prims = done.stages["prims"][1](joint.aten)
    halves = done.put("split", lambda: split(prims.graph, joint.primals, joint.outputs, joint.tangents,
                                             config.activation_memory_budget, joint.held))
    done.prims = Prims(halves.forward)
    done.backward = Compilation(f"{done.name}_backward", done.capture, prims=Prims(halves.backward),
                                stages=done.stages)
    forward, settings = _finish(done, target), asdict(config)
    everything = frozenset(range(len(halves.tangents)))

    def made(arrived: frozenset[int]) -> Backward:
        with config.patch(**settings), paused():
            part, mine = narrow(joint, halves, arrived), done.backward
            if mine is None or part.graph is not halves.backward:
                name = f"{done.name}_backward_{'_'.join(map(str, sorted(arrived)))}"
                mine = Compilation(name, done.capture, prims=Prims(part.graph), stages=done.stages)
            return _backward(mine, part, target)

    # Which of several results are differentiated, the first backward tells; the sizes it asks for, this one.
    ready = {everything: made(everything)} if len(everything) == 1 or joint.varies else {}

    @functools.cache
    def narrowed(arrived: frozenset[int]) -> Backward:
        try:
            return ready.get(arrived) or made(arrived)
        except Exception:       # too late to run the forward in eager mode; the graph itself can still be run
            if config.strict:
                raise
            _warn_once(done.name, f"a backward of {done.name} runs slowly after an internal error, a bug of "
                                  f"minicompile:\n{traceback.format_exc()}")
            part = narrow(joint, halves, arrived)
            return Backward(part, Prims(part.graph).run)
    done.call = Halves(forward, halves, joint, done.capture.gm, narrowed, joint.varies)


def _backward(done: Compilation, part: Narrowed, target: str) -> Backward:
    """What runs a backward graph, which is compiled."""
    call, plan = _finish(done, target), done.plan
    lenders = [plan.buffers[n] for n in plan.hosts.values()] if plan is not None else []
    return Backward(part, call, frozenset(b.index for b in lenders if b.kind == "input"))


def taking_numbers(call: Call, examples: Sequence[Any], keeps: bool = False) -> Call:
    """`call`, given tensors without dimensions in place of Python numbers, and no sizes but those that
    no tensor has.

    keeps   whether what it is given may live on after the call (in a backward)
    """
    sizes = unbound(examples)
    taken = [i for i, x in enumerate(examples) if not isinstance(x, torch.SymInt) or i in sizes]
    if len(taken) < len(examples):
        rest = taking_numbers(call, [examples[i] for i in taken], keeps)
        return lambda *inputs: rest(*[inputs[i] for i in taken])
    at = [i for i, x in enumerate(examples) if type(x) in DTYPES]
    kinds = [DTYPES[type(examples[i])] for i in at]
    spare: list[list[tuple[torch.Tensor, Any]]] = []      # tensors and their elements; one list per call

    def made() -> list[tuple[torch.Tensor, Any]]:
        tensors = [torch.empty((), dtype=d) for d in kinds]
        return [(t, ELEMENTS[d].from_address(t.data_ptr())) for t, d in zip(tensors, kinds)]

    def run(*inputs: Any) -> Sequence[torch.Tensor]:
        given = list(inputs)
        try:
            held = spare.pop()
        except IndexError:
            held = made()
        for i, (tensor, element) in zip(at, held):
            element.value = given[i]
            given[i] = tensor
        results = call(*given)
        if not keeps:
            spare.append(held)
        return results

    return run if at else call


def _resolve(backend: str, examples: Sequence[Any]) -> str:
    if backend == "auto":
        backend = config.backend
    if backend == "eager":
        return backend
    devices = {str(x.device) for x in examples if isinstance(x, torch.Tensor)}
    if len(devices) > 1 or any(not d.startswith(("cpu", "cuda")) for d in devices):
        raise Refusal("device", f"tensors on {', '.join(sorted(devices))}: one device is supported")
    return backend if backend != "auto" else "triton" if devices - {"cpu"} else "cpp"


def _warn_once(key: str, text: str) -> None:
    if key not in _warned:
        _warned.add(key)
        logging.getLogger("minicompile").warning("%s", text)


def why_no_contest(done: Compilation) -> str | None:
    """Why a graph cannot run in eager mode as well, with nothing to show for it; None if it can."""
    if done.runs != "executable" or done.stages is not STAGES:
        return "it runs no compiled C++"
    if torch.are_deterministic_algorithms_enabled():
        return "equal calls give equal bits"
    if done.aten.graph.writes or any(recompute_class(n) == "random" for n in done.aten.graph.nodes):
        return "it writes to inputs or draws random numbers"
    return None
