"""PyTorch's operator database against minicompile: every operator, on PyTorch's own samples, compared with
eager mode.

Takes names of operators and dtypes (all of them by default), gives `Row`s: per operator and dtype, how many
samples are ok, refused, wrong, or crash. A sample is run as it is, with non-contiguous inputs, and through
the operator's in-place form; error inputs must raise eager's exception. Compared are values (in the
database's own tolerances), dtype, shape, stride, what shares memory with what, and what was written to the
inputs.

    python -m minicompile.testing.opinfo --op add --dtype float32 --grad
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn.utils.stateless import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from .. import api
from ..autograd.joint import dense, trace_joint
from ..errors import Refusal
from ..ir.spec import TensorSpec, copies
from ..lower.graphs import lay_out, same_strides
from ..lower.trace import tensors_in, trace
from ..pipeline import Compilation, compile_graph
from . import opinfo_report

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8,
          torch.bool, torch.complex64)
KINDS = ("ok", "break", "refused", "wrong", "crash")
# what is supported by a break in the graph: the operator runs in eager mode, what is around it is compiled
BREAKS = frozenset(("data-dependent",))
# the values these give are whatever the memory held
UNINITIALISED = frozenset(("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty",
                           "new_empty_strided", "resize_", "resize_as_"))
NOT_CLOSE = "not close"
WIDER = {torch.float32: torch.float64, torch.bfloat16: torch.float64, torch.float16: torch.float64,
         torch.complex64: torch.complex128}
# test classes of PyTorch whose tolerances hold here
TOLERANCES = (None, "TestCommon", "TestDecomp", "TestInductorOpInfo")
GRADIENT_TOLERANCES = (*TOLERANCES, "TestOperators", "TestBwdGradients")


@dataclass
class Row:
    """One operator in one dtype. `why` counts the reasons of what is not ok; `externs` are the library
    kernels that its prims still call; `commit` is the tree that was tested."""

    op: str
    dtype: str
    mode: str = "forward"
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    why: dict[str, int] = field(default_factory=dict)
    externs: list[str] = field(default_factory=list)
    skipped: int = 0
    commit: str = ""

    @property
    def status(self) -> str:
        return next((k for k in ("crash", "wrong", "refused") if self.counts[k]), "ok")

    def add(self, kind: str, reason: str = "") -> None:
        self.counts[kind] += 1
        if kind != "ok":
            text = f"{kind}: {reason}"
            self.why[text] = self.why.get(text, 0) + 1


@dataclass(frozen=True)
class Case:
    """One call: `fn(*args, **kwargs)`, whose inputs are the tensors in args and kwargs."""

    label: str
    fn: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    grad: bool = False
    expects_error: bool = False

    def flat(self) -> tuple[list[torch.Tensor], Callable[..., Any]]:
        """The input tensors, and the call as a function of them that returns the result."""
        leaves, tree = tree_flatten((self.args, self.kwargs))
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]

        def run(*given: torch.Tensor) -> Any:
            rest = iter(given)
            filled = [next(rest) if isinstance(x, torch.Tensor) else x for x in leaves]
            args, kwargs = tree_unflatten(filled, tree)
            return self.fn(*args, **kwargs)
        return tensors, run


@dataclass
class Outcome:
    """What a call did: its tensors and what else it gave, the inputs afterwards, gradients; or what it
    raised."""

    outputs: list[torch.Tensor] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    gradients: list[torch.Tensor | None] = field(default_factory=list)
    others: list[Any] = field(default_factory=list)
    raised: BaseException | None = None


@dataclass(frozen=True)
class How:
    """How a sample is run.

    backend     "reference" (the loops' slow executor), "cpp", or another name of `pipeline.BACKENDS`
    capture     through `minicompile.compile`, instead of from the lowering on
    samples     per operator and dtype, spread over the database's; 0 for all
    seconds     of a processor, per operator and dtype, after which further samples are skipped
    """

    backend: str = "reference"
    capture: bool = False
    grad: bool = False
    samples: int = 12
    seconds: float = 20.0


# ---- one call -------------------------------------------------------------------------------------

def plain(t: torch.Tensor) -> bool:
    """Whether a tensor is one that can be copied by its memory."""
    return (type(t) in (torch.Tensor, torch.nn.Parameter) and t.layout is torch.strided and not t.is_quantized
            and not t.is_conj() and not t.is_neg())


def observe(run: Callable[..., Any], inputs: Sequence[torch.Tensor], grad: bool) -> Outcome:
    """run(*inputs) from a fixed state of the random generators; with gradients of its results."""
    torch.manual_seed(7)
    if grad:                                # leaves stay leaves, but may be written to
        leaves, inputs = inputs, [torch.ops.aten.alias(t) if t.requires_grad else t for t in inputs]
    try:
        given = run(*inputs)
        outputs = list(tensors_in(given))
        gradients = _gradients(outputs, leaves) if grad else []
    except Exception as e:
        return Outcome(raised=e)
    others = [x for x in tree_flatten(given)[0] if not isinstance(x, torch.Tensor)]
    return Outcome(outputs, list(inputs), gradients, others)


def _gradients(outputs: list[torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    results, wanted = [o for o in outputs if o.requires_grad], [t for t in inputs if t.requires_grad]
    if not results or not wanted:
        return []
    generator = torch.Generator().manual_seed(3)
    seeds = [lay_out(torch.randn(o.shape, generator=generator).to(torch.bfloat16), dense(TensorSpec.of(o)))
             for o in results]
    return list(torch.autograd.grad(results, wanted, seeds, allow_unused=True))


def lowered(case: Case, how: How, done: list[Compilation]) -> Callable[..., Any]:
    """The call, compiled from the lowering on: a function of its input tensors. Its compilation goes into
    `done`."""
    inputs, run = case.flat()
    gm = graph_of(run, len(inputs))
    done.append(compile_graph("opinfo", SimpleNamespace(gm=gm, check=lambda: None), inputs, how.backend))
    assert done[0].call is not None
    return done[0].call


def graph_of(run: Callable[..., Any], count: int) -> fx.GraphModule:
    """A torch.fx graph of one call."""
    def call(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensors_in(run(*given)))
    graph = fx.Graph()
    graph.output(graph.call_function(call, tuple(graph.placeholder(f"x{i}") for i in range(count))))
    return fx.GraphModule(torch.nn.Module(), graph)


def captured(case: Case, how: How, done: list[Compilation], fullgraph: bool = True) -> Callable[..., Any]:
    """The call through `minicompile.compile`. With `fullgraph`, raises Refusal where it would have run as in
    eager mode."""
    fn = case.fn
    compiled = api.compile(lambda *args, **kwargs: fn(*args, **kwargs), backend=how.backend,
                           fullgraph=fullgraph)
    _, run = Case(case.label, compiled, case.args, case.kwargs).flat()
    return run


def judge(case: Case, how: How, limits: tuple[float, float] | None, values: bool) -> tuple[str, str, Any]:
    """(kind, reason, compilation) of one call: from the lowering on; if that refuses, with capture, which
    knows more (data it may guard, inputs that share memory); if that does, too, with breaks."""
    inputs, run = case.flat()
    with torch.set_grad_enabled(case.grad):
        usual = all(map(plain, inputs))
        expected = observe(run, copies(inputs), case.grad) if usual else Outcome()
        shared = usual and len({_storage(t) for t in inputs}) < len(inputs)          # capture's business

        def attempt(call_of: Callable[..., Any]) -> tuple[str, str, Any]:
            done: list[Compilation] = []
            try:
                call = call_of(case, how, done)
                if not usual:
                    return "crash", "an input that is not a plain tensor is compiled", None
                got = observe(call, copies(inputs), case.grad)
                if isinstance(got.raised, Refusal):
                    raise got.raised
            except Refusal as e:
                return _refused(e, expected)
            except Exception as e:
                if not traces(case):            # eager mode is asked then, which raises what it raises
                    same = expected.raised is not None
                    return ("ok", "", None) if same else ("refused", f"raises: {_short(e)}", None)
                return "crash", _short(e, True), None
            reason = difference(got, expected, limits, values)
            if NOT_CLOSE in reason and not rounds_worse(got, expected, run, inputs, case.grad):
                reason = ""
            done = done if got.raised is None else []          # there, the library is asked what to raise
            return ("wrong", reason, done) if reason else ("ok", "", done)

        kind, reason, done = attempt(captured if how.capture or shared else lowered)
        if kind == "refused" and usual and not how.capture and not shared:
            kind, later, done = attempt(captured)
            reason = reason if later.startswith("raises") or reason.split(":")[0] in BREAKS else later
        if kind == "refused" and usual and (expected.raised or reason.split(":")[0] in BREAKS):
            kind, later, done = attempt(partial(captured, fullgraph=False))
            known = "ok" if expected.raised else "break"          # what is asked of errors is to be raised
            kind, reason = (known, reason) if kind == "ok" else (kind, later)
    return kind, reason, done


def rounds_worse(got: Outcome, expected: Outcome, run: Callable[..., Any], inputs: list, grad: bool) -> bool:
    """Whether `got` is further from the result in float64 than twice eager's own distance."""
    wide = [t.detach().to(WIDER[t.dtype]).requires_grad_(t.requires_grad) if t.dtype in WIDER else t
            for t in copies(inputs)]
    torch.set_default_dtype(torch.float64)          # what integers become
    try:
        precise = observe(run, wide, grad)
    finally:
        torch.set_default_dtype(torch.float32)
    parts = [[*o.outputs, *o.inputs, *o.gradients] for o in (got, expected, precise)]
    if precise.raised is not None or len(parts[1]) != len(parts[2]):
        return True
    return any(x is not None and _worse(a, b, x) for a, b, x in zip(*parts))


def _worse(got: torch.Tensor, eager: torch.Tensor, precise: torch.Tensor) -> bool:
    if torch.equal(got, eager):
        return False
    if eager.dtype not in WIDER or precise.shape != eager.shape or precise.dtype != WIDER[eager.dtype]:
        return True
    off, usual = ((t.detach().to(precise.dtype) - precise.detach()).abs().nan_to_num(0.0)
                  for t in (got, eager))
    same_special = torch.equal(got.isnan(), eager.isnan()) and torch.equal(got.isinf(), eager.isinf())
    return not same_special or bool(off.max() > 2 * usual.max())


def _refused(e: Refusal, expected: Outcome) -> tuple[str, str, Any]:
    if e.code == "raises" and expected.raised is not None:
        return "ok", "", None
    return "refused", f"{e.code}: {_line(e.reason)}", None


def traces(case: Case) -> bool:
    """Whether the call runs on fakes."""
    inputs, run = case.flat()
    try:
        (trace_joint if case.grad else trace)(graph_of(run, len(inputs)), inputs)
    except Exception:
        return False
    return True


def _line(text: str) -> str:
    return text.strip().split("\n")[0][:160]


def _short(e: BaseException, with_place: bool = False) -> str:
    frame = traceback.extract_tb(e.__traceback__)[-1]
    place = f" ({Path(frame.filename).name}:{frame.lineno})" if with_place else ""
    return f"{type(e).__name__}: {_line(str(e))}{place}"


# ---- comparison -----------------------------------------------------------------------------------

def difference(got: Outcome, expected: Outcome, limits: tuple[float, float] | None, values: bool) -> str:
    """How `got` differs from `expected`; "" if it does not."""
    if got.raised is not None or expected.raised is not None:
        a, b = (f"{type(o.raised).__name__}: {o.raised}" if o.raised else "no exception"
                for o in (got, expected))
        return "" if a == b else f"raises {_line(a)}, not {_line(b)}"
    found = _list_difference("output", got.outputs, expected.outputs, limits, values)
    found = found or _list_difference("input", got.inputs, expected.inputs, limits, values)
    if got.others and str(got.others) != str(expected.others):          # a lowered graph gives only tensors
        return f"gives {got.others}, not {expected.others}"
    a, b = aliasing(got), aliasing(expected)
    if not found and a != b:
        return f"memory is shared as {a}, not {b}"
    return found or _list_difference("gradient", got.gradients, expected.gradients, limits, values, False)


def _list_difference(what: str, got: list, expected: list, limits: Any, values: bool,
                     exact: bool = True) -> str:
    if len(got) != len(expected):
        return f"{len(got)} {what}s, not {len(expected)}"
    for i, (a, b) in enumerate(zip(got, expected)):
        reason = tensor_difference(a, b, limits, values, exact)
        if reason:
            return f"{what} {i}: {reason}"
    return ""


def tensor_difference(a: torch.Tensor | None, b: torch.Tensor | None, limits: Any, values: bool,
                      exact: bool = True) -> str:
    """How two tensors differ in geometry, requires_grad or value; `exact`: also where they are expanded,
    have holes or an offset (gradients may; what `.grad` then holds does not)."""
    if a is None or b is None:
        return "" if a is b else "one of the two is None"
    if a.layout is not torch.strided or b.layout is not torch.strided:
        return "" if a.layout is b.layout else f"is {a.layout}, not {b.layout}"
    if exact and (a.is_conj(), a.is_neg()) != (b.is_conj(), b.is_neg()):
        return "only one of the two is lazily conjugated or negated"
    one, two = TensorSpec.of(a), TensorSpec.of(b)
    laid_out = same_strides(one, two) and (one.offset == two.offset or not exact)
    same = laid_out or not exact and not (one.is_dense and two.is_dense)
    if (one.dtype, one.shape) != (two.dtype, two.shape) or not same:
        return f"is {one}, not {two}"
    if a.requires_grad != b.requires_grad:
        return f"requires_grad is {a.requires_grad}"
    if not values or torch.equal(a, b):
        return ""
    rtol, atol = limits or (None, None)
    try:
        torch.testing.assert_close(a.detach(), b.detach(), rtol=rtol, atol=atol, equal_nan=True)
    except AssertionError as e:
        lines = [x for x in str(e).splitlines() if x.strip()]
        return "; ".join([lines[0], *(x for x in lines[1:] if "difference" in x or "Expected" in x)])
    return ""


def aliasing(o: Outcome) -> list[str]:
    """For each output: the first input or earlier output with which it shares memory."""
    found = []
    for i, t in enumerate(o.outputs):
        others = [(f"in{k}", x) for k, x in enumerate(o.inputs)] + [(f"out{k}", x) for k, x in
                                                                   enumerate(o.outputs[:i])]
        shared = (name for name, x in others
                  if x.layout is t.layout is torch.strided and _storage(x) == _storage(t))
        found.append(next(shared, "-"))
    return found


def _storage(t: torch.Tensor) -> int:
    return t.untyped_storage()._cdata


def tolerances(info: Any, dtype: torch.dtype, grad: bool) -> tuple[float, float] | None:
    """(rtol, atol) where the database loosens the usual ones for this dtype on the CPU."""
    widest = None
    for rule in info.decorators or ():
        if getattr(rule, "cls_name", "") not in (GRADIENT_TOLERANCES if grad else TOLERANCES):
            continue
        if rule.device_type not in (None, "cpu"):
            continue
        for d in rule.decorators:
            given = getattr(d, "d", {}).get(dtype)
            if given is not None:
                widest = (max(given.rtol, widest[0]), max(given.atol, widest[1])) if widest else (given.rtol,
                                                                                                   given.atol)
    return widest


# ---- the database ---------------------------------------------------------------------------------

def database() -> list[Any]:
    """PyTorch's operators; importing it takes some seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db  # optional: needs expecttest
    # Operators with random numbers are wrapped to set the seed, which happens while tracing; `observe` sets
    # it.
    for module in [m for name, m in sys.modules.items() if name.startswith("torch.testing._internal")]:
        if "wrapper_set_seed" in vars(module):
            module.wrapper_set_seed = unseeded
    return op_db


def modules() -> list[Any]:
    """PyTorch's modules, each in train and eval mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_modules import module_db  # optional: needs expecttest
    return [Module(i, training) for i in module_db for training in (True, False)]


@dataclass(frozen=True)
class Module:
    """One of PyTorch's modules, with what `examine` asks of an operator. Its parameters and buffers are
    inputs."""

    info: Any
    training: bool

    @property
    def name(self) -> str:
        return f"{self.info.name}.{'train' if self.training else 'eval'}"

    variant_test_name, decorators, supports_autograd = "", (), True

    def supported_dtypes(self, device: str) -> tuple[torch.dtype, ...]:
        return self.info.dtypes

    supported_backward_dtypes = supported_dtypes

    def cases(self, dtype: torch.dtype, how: How) -> Iterator[Case]:
        found = self.info.module_inputs_func(self.info, device="cpu", dtype=dtype, requires_grad=how.grad,
                                             training=self.training)
        for i, given in enumerate(spread(found, how.samples)):
            ctor, call = given.constructor_input, given.forward_input
            module = self.info.module_cls(*ctor.args, **ctor.kwargs).to(dtype).train(self.training)
            if call is None:
                continue
            if self.info.is_lazy:
                module(*call.args, **call.kwargs)
            state = {**dict(module.named_parameters()), **dict(module.named_buffers())}

            def run(state: dict, args: tuple, kwargs: dict, module: torch.nn.Module = module) -> Any:
                return functional_call(module, state, args, kwargs)
            state = {k: t.detach().requires_grad_(how.grad and t.requires_grad) for k, t in state.items()}
            yield Case(f"sample {i}", run, (state, call.args, call.kwargs), {}, how.grad)


def unseeded(op: Any, *args: Any, **kwargs: Any) -> Any:
    return op(*args, **kwargs)


def name_of(info: Any) -> str:
    return f"{info.name}.{info.variant_test_name}" if info.variant_test_name else info.name


def seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def spread(items: Iterable[Any], count: int) -> list[Any]:
    """`count` of them, evenly chosen (0: all)."""
    found = list(items)
    if not count or len(found) <= count:
        return found
    return [found[i * len(found) // count] for i in range(count)]


def cases(info: Any, dtype: torch.dtype, how: How) -> Iterator[Case]:
    """The calls to try. Raises what the database's generator raises."""
    seeded()
    if isinstance(info, Module):
        yield from info.cases(dtype, how)
        return
    samples = spread(info.sample_inputs("cpu", dtype, requires_grad=how.grad), how.samples)
    for i, s in enumerate(samples):
        yield _case(info, s, info.op, f"sample {i}", how)
    for i, s in enumerate(samples[:max(2, how.samples // 4) if how.samples != 1 else 0]):
        if isinstance(s.input, torch.Tensor) and plain(s.input):
            with contextlib.suppress(RuntimeError):          # some inputs have no non-contiguous form
                yield _case(info, s.noncontiguous(), info.op, f"sample {i}, not contiguous", how)
        if info.inplace_variant is not None and not how.grad:
            yield _case(info, s, info.inplace_variant, f"sample {i}, in place", how)
    if info.error_inputs_func is not None and dtype is torch.float32 and not how.grad:
        for i, e in enumerate(spread(info.error_inputs("cpu"), how.samples)):
            yield _case(info, e.sample_input, info.op, f"error input {i}", how, True)


def _case(info: Any, s: Any, op: Any, label: str, how: How, error: bool = False) -> Case:
    if not how.grad:
        return Case(label, op, (s.input, *s.args), s.kwargs, False, error)

    wrap = info.gradcheck_wrapper
    wrap = unseeded if wrap.__name__ == "wrapper_set_seed" else wrap

    def differentiable(*args: Any, **kwargs: Any) -> Any:
        return s.output_process_fn_grad(wrap(op, *args, **kwargs))
    return Case(label, differentiable, (s.input, *s.args), s.kwargs, True)


def supports(info: Any, dtype: torch.dtype, grad: bool) -> bool:
    if grad:
        return info.supports_autograd and dtype in info.supported_backward_dtypes("cpu")
    return dtype in info.supported_dtypes("cpu")


def empty_row(info: Any, dtype: torch.dtype, how: How) -> Row:
    mode = "module " * isinstance(info, Module) + ("gradient" if how.grad else "forward")
    mode += f", {how.backend}" * (how.backend != "reference")
    return Row(name_of(info), str(dtype).removeprefix("torch."), mode)


def examine(info: Any, dtype: torch.dtype, how: How, show: bool = False) -> Row:
    """The row of one operator in one dtype."""
    row = empty_row(info, dtype, how)
    limits, start, externs = tolerances(info, dtype, how.grad), time.process_time(), set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for case in cases(info, dtype, how):
                if time.process_time() - start > how.seconds:
                    row.skipped += 1
                    continue
                kind, reason, done = judge(case, how, limits, info.name not in UNINITIALISED)
                row.add(kind, reason)
                called = {str(n.op) for c in done or () for n in (c.prims.graph.nodes if c.prims else ())
                          if isinstance(n.op, torch._ops.OpOverload)}
                externs |= called if not case.expects_error else set()      # there the library raises
                if show and kind != "ok":
                    print(f"{row.op} {row.dtype} {case.label}: {kind}: {reason}", flush=True)
        except Exception as e:                     # a generator that does not take the dtype after all
            row.skipped += 1
            row.why[f"no samples: {_short(e)}"] = 1
    row.externs = sorted(externs)
    return row


# ---- the run: a worker process per job, replaced if it dies ---------------------------------------

def _work(todo: list[tuple[Any, torch.dtype]], how: How, show: bool, pipe: int) -> None:
    torch.set_num_threads(1)
    with os.fdopen(pipe, "w") as out:
        for info, dtype in todo:
            signal.alarm(60 + 30 * int(how.seconds))          # it ends the process, which is a row then
            print(json.dumps(asdict(examine(info, dtype, how, show))), file=out, flush=True)


def rows_of(todo: list[tuple[Any, torch.dtype]], how: How, show: bool = False) -> Iterator[Row]:
    """The rows of `todo`, computed in a child process, so that a dying one is a row and not the end."""
    while todo:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            with contextlib.suppress(BrokenPipeError):
                _work(todo, how, show, write)
            sys.stdout.flush()
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as lines:
            for line in lines:
                yield Row(**json.loads(line))
                todo = todo[1:]
        status = os.waitpid(child, 0)[1]
        if todo:
            signalled = os.WIFSIGNALED(status)
            reason = signal.Signals(os.WTERMSIG(status)).name if signalled else f"exit {status >> 8}"
            row = empty_row(*todo[0], how)
            row.add("crash", f"the process died ({reason})")
            yield row
            todo = todo[1:]


def shared_out(todo: list[tuple[Any, torch.dtype]], how: How, show: bool, jobs: int) -> Iterator[Row]:
    """`rows_of` in `jobs` processes."""
    if jobs <= 1:
        yield from rows_of(todo, how, show)
        return
    with selectors.DefaultSelector() as pipes:
        for j in range(jobs):
            read, write = os.pipe()
            if not os.fork():
                os.close(read)
                with os.fdopen(write, "w") as out:
                    for row in rows_of(todo[j::jobs], how, show):
                        print(json.dumps(asdict(row)), file=out, flush=True)
                os._exit(0)
            os.close(write)
            pipes.register(os.fdopen(read), selectors.EVENT_READ)
        while pipes.get_map():
            for key, _ in pipes.select():
                line = key.fileobj.readline()
                if line:
                    yield Row(**json.loads(line))
                else:
                    pipes.unregister(key.fileobj)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m minicompile.testing.opinfo",
                                description="PyTorch's operators, compiled, against eager mode.")
    p.add_argument("--op", action="append", default=[], help="a name in the database (again for more)")
    p.add_argument("--dtype", action="append", default=[], help="float32, … (again for more); all by default")
    p.add_argument("--modules", action="store_true", help="PyTorch's modules instead of its operators")
    p.add_argument("--grad", action="store_true", help="gradients too")
    p.add_argument("--backend", default="reference", help="reference (default) or cpp")
    p.add_argument("--compile", action="store_true", help="through minicompile.compile, capture included")
    p.add_argument("--samples", type=int, help="per operator and dtype, 0 for all (default 12; 1 with cpp)")
    p.add_argument("--seconds", type=float, default=20.0, help="per operator and dtype")
    p.add_argument("--jobs", type=int, default=1)
    p.add_argument("--results", type=Path, help="JSON file that keeps rows from run to run")
    p.add_argument("--report", type=Path, help="Markdown file to write, of all rows kept")
    p.add_argument("--quiet", action="store_true", help="do not print each sample that is not ok")
    return p.parse_args(arguments)


def _commit() -> str:
    """The commit of the tree that is tested; "" outside of a repository."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


SAVED = 50          # rows after which results are written, for who can't wait


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if something is wrong or crashes."""
    given = parse(arguments)
    samples = given.samples if given.samples is not None else 1 if given.backend == "cpp" else 12
    how = How(given.backend, given.compile, given.grad, samples, given.seconds)
    dtypes = [getattr(torch, d) for d in given.dtype] or list(DTYPES)
    infos = [i for i in (modules if given.modules else database)()
             if not given.op or i.name in given.op or name_of(i) in given.op]
    todo = [(i, d) for d in dtypes for i in infos if supports(i, d, how.grad)]
    rows, total, commit = [], Counter[str](), _commit()
    for row in shared_out(todo, how, not given.quiet, given.jobs):
        rows.append(replace(row, commit=commit))
        total.update(row.counts)
        if len(rows) % SAVED == 0:
            opinfo_report.merge(given.results, map(asdict, rows))
    kept = opinfo_report.merge(given.results, map(asdict, rows))
    if given.report:
        given.report.write_text(opinfo_report.markdown(kept))
    print(f"{len(rows)} rows: " + ", ".join(f"{total[k]} {k}" for k in KINDS))
    return 1 if total["wrong"] or total["crash"] else 0


if __name__ == "__main__":
    sys.exit(main())
