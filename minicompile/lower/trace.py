"""Trace: one run of the captured graph on fakes, recording ATen calls below autograd.

Takes a torch.fx graph of torch-level calls and example inputs (from `capture`), gives an `AtenGraph`: ATen
calls in order, functional, which `decompose` turns into prims. Torch's dispatcher does the canonicalising:
composite operators arrive taken apart, and choices that depend on the device or on autograd are those eager
mode makes.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ..errors import Refusal, Where
from ..ir.composites import of_sizes
from ..ir.fake import Fake, FakeMode, fake_of_real
from ..ir.scalar import DTYPES, SYMBOLS, Number, Specialise, number_spec, symbol, unbound
from ..ir.spec import TensorSpec
from .functionalise import Functionaliser
from .graphs import AtenGraph


class Recorder(FakeMode):
    """A fake mode that hands every ATen call to a functionaliser; real tensors it meets become
    constants."""

    def __init__(self, into: Functionaliser):
        super().__init__()
        self.into = into
        self.numbers: dict[Number, Fake] = {}

    def record(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        if isinstance(out, (bool, int, float)):         # of geometry: known by now
            return
        for a in (*args, *kwargs.values()):
            for t in tensors_in(a):
                self.fake(t)
        self.into.call(func, self.faked(args), {k: self.faked(v) for k, v in kwargs.items()}, out)

    def fake(self, t: torch.Tensor) -> Fake:
        """t itself if it is a fake, else the constant that stands for it."""
        if isinstance(t, Fake):
            return t
        fake = fake_of_real(t, self.real)
        if id(fake) not in self.into.aliases:
            with torch._C._DisableTorchDispatch():
                self.into.add_constant(fake, t.detach())
        return fake

    def faked(self, x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return self.fake(x)
        if isinstance(x, SYMBOLS):
            return self.numbers[x.node] if x.node.sym is None else x.node.sym
        return tuple([self.faked(e) for e in x]) if isinstance(x, (tuple, list)) else x

    def scalar(self, value: int | float, index: int, name: str) -> tuple[Any, Fake]:
        """What stands for a number in calls, and the input that holds it."""
        def asked(number: Number) -> int | float:
            raise Specialise(f"the line {self.into.where}", index)

        number = Number(value, asked)
        fake = self.numbers[number] = Fake.from_spec(number_spec(value))
        self.into.add_input(fake, name, number=True)
        self.scalars = True
        return symbol(number), fake


def tensors_in(x: Any) -> Iterator[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for e in x:
            yield from tensors_in(e)
    elif isinstance(x, dict):
        for e in x.values():
            yield from tensors_in(e)


def trace(gm: fx.GraphModule, inputs: Sequence[Any],
          where: Mapping[fx.Node, Where] | None = None) -> AtenGraph:
    """The ATen graph of `gm` for inputs like these, one per placeholder: tensors, fakes or TensorSpecs for
    tensors, ints and floats for numbers that vary, anything else for constants (the graph then has no such
    input). gm returns tensors, nested in
    tuples, lists or dicts.

    Raises Refusal "needs-grad" where grad mode is on and a result needs a gradient, and what fakes refuse.
    """
    into = Functionaliser()
    return _trace(runner(gm, into, where), inputs, input_names(gm), into)


def input_names(gm: fx.GraphModule) -> list[str]:
    return [n.name for n in gm.graph.nodes if n.op == "placeholder"]


def runner(gm: fx.GraphModule, into: Functionaliser,
           where: Mapping[fx.Node, Where] | None = None) -> Callable[..., Any]:
    """gm as a function that tells `into` which of the user's lines it is at."""
    places = where or {}

    def run(*fakes: Any) -> Any:
        values: dict[fx.Node, Any] = {}
        given = iter(fakes)
        for n in gm.graph.nodes:
            into.where = places.get(n, into.where)
            if n.op == "output":
                return fx.map_arg(n.args[0], values.__getitem__)
            values[n] = next(given) if n.op == "placeholder" else _run_node(gm, n, values)
        return ()
    return run


def trace_callable(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> AtenGraph:
    """The ATen graph of fn(*args, **kwargs) as called with fakes of these tensors (nested in tuples, lists
    and dicts). For a module, its parameters and buffers are inputs too, after the arguments: see
    `callable_inputs`. For tests and tools: no frame is captured, nothing is guarded."""
    inputs, names, rebuild = _flatten_call(fn, args, kwargs)
    return _trace(rebuild, inputs, names, Functionaliser())


def callable_inputs(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> list[torch.Tensor]:
    """The tensors to run what `trace_callable` gave for the same arguments with."""
    return _flatten_call(fn, args, kwargs)[0]


def _flatten_call(fn: Any, args: tuple, kwargs: dict) -> tuple[list, list[str], Callable[..., Any]]:
    flat = list(tensors_in((args, kwargs)))
    module = fn if isinstance(fn, torch.nn.Module) else None
    state = list(_state(module))
    inputs = flat + [t for _, _, t in state]
    names = [f"arg_{i}" for i in range(len(flat))] + [f"state_{i}" for i in range(len(state))]

    def rebuild(*fakes: Any) -> Any:
        given = iter(fakes)
        new_args, new_kwargs = _replace((args, kwargs), given)
        for table, key, _ in state:
            table[key] = next(given)
        try:
            return fn(*new_args, **new_kwargs)
        finally:
            for table, key, t in state:
                table[key] = t
    return inputs, names, rebuild


def _state(module: torch.nn.Module | None) -> Iterator[tuple[dict, str, torch.Tensor]]:
    for m in module.modules() if module is not None else ():
        for table in (m._parameters, m._buffers):
            for key, t in table.items():
                if t is not None:
                    yield table, key, t


def _replace(x: Any, given: Iterator[Any]) -> Any:
    if isinstance(x, torch.Tensor):
        return next(given)
    if isinstance(x, (tuple, list)):
        return type(x)([_replace(e, given) for e in x])
    return {k: _replace(v, given) for k, v in x.items()} if isinstance(x, dict) else x


def _run_node(gm: fx.GraphModule, n: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg(n.args, values.__getitem__), fx.map_arg(n.kwargs, values.__getitem__)
    if n.op == "call_function":
        return of_sizes(n.target, args, kwargs)(*args, **kwargs)
    if n.op == "call_method":
        return getattr(args[0], n.target)(*args[1:], **kwargs)
    target: Any = gm
    for part in n.target.split("."):
        target = getattr(target, part)
    return target if n.op == "get_attr" else target(*args, **kwargs)


def _trace(run: Callable[..., Any], inputs: Sequence[Any], names: Sequence[str],
           into: Functionaliser) -> AtenGraph:
    _, fakes, results = record(run, inputs, names, into)
    _check_grad(results, fakes)
    return AtenGraph(into.finish(results))


def record(run: Callable[..., Any], inputs: Sequence[Any], names: Sequence[str],
           into: Functionaliser) -> tuple[Recorder, list[Any], list[Fake]]:
    """Runs `run` on fakes of the inputs under a recorder that feeds `into`: (recorder, fakes of the inputs,
    results)."""
    fakes: list[Any] = []
    given: list[Any] = []
    recorder = Recorder(into)
    sizes = unbound(inputs)
    for i, (name, x) in enumerate(zip(names, inputs, strict=True)):
        if type(x) in DTYPES:
            symbolic, fake = recorder.scalar(x, i, name)
            given.append(symbolic)
            fakes.append(fake)
            continue
        if i in sizes:
            into.add_size(x.node.sym, name)
            fakes.append(x.node.sym)
            given.append(x)
            continue
        if isinstance(x, TensorSpec):
            fakes.append(Fake.from_spec(x))
        elif isinstance(x, torch.Tensor):
            fakes.append(_fake_input(x))
        else:
            fakes.append(x)
        given.append(fakes[-1])
        if isinstance(x, (TensorSpec, torch.Tensor)):
            into.add_input(fakes[-1], name)
    with recorder:
        try:
            out = run(*given)
        except Refusal as e:
            if e.where is None and into.where is not None:
                raise Refusal(e.code, e.reason, into.where) from e
            raise
        except RuntimeError as e:
            if "its data is not allocated" in str(e) or "doesn't have storage" in str(e):
                raise Refusal("data-dependent", "torch reads the memory of a tensor while compiling",
                              into.where) from e
            raise
        results = [recorder.fake(t) for t in tensors_in(out)]
    return recorder, fakes, results


def _fake_input(x: torch.Tensor) -> Fake:
    with torch._C._DisableTorchDispatch():
        if type(x) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer, Fake):
            raise Refusal("subclass", f"an input is a {type(x).__name__}")
        if x.layout != torch.strided or x.is_quantized or x.is_conj() or x.is_neg():
            raise Refusal("layout", "an input is sparse, quantised or lazily conjugated")
        return Fake.of(x)


def _check_grad(results: Sequence[Fake], fakes: Sequence[Any]) -> None:
    """The one place that decides about training."""
    given = {id(f) for f in fakes}
    touched = [*results, *(f for f in fakes if isinstance(f, Fake) and f.grad_fn is not None)]
    if torch.is_grad_enabled() and any(t.requires_grad and (t.grad_fn is not None or id(t) not in given)
                                       for t in touched):
        raise Refusal("needs-grad", "a result needs a gradient, and training graphs are not compiled yet")
