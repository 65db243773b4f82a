"""Shrinking: the smallest graph and the smallest inputs that still go wrong, and a script of them.

Takes a session in which a rung of the ladder is wrong (see `ladder`); gives a `Small`, a torch.fx graph with
inputs. Delta debugging: outputs are dropped, ever shorter runs of nodes are cut out (what they computed
becomes an input), nodes are passed by, and the inputs made smaller, contiguous and plain; each change stays
if eager mode still runs it and the same rung is still wrong in the same way. Stands before `check`.
"""
from __future__ import annotations

import inspect
import operator
import re
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from .. import api
from .ladder import ENGINES, Ran, Step, quiet, runs
from .observe import Session

SHOWN = 64              # elements of a tensor that a script spells out


@dataclass(frozen=True)
class Small:
    """A graph and its inputs."""

    gm: fx.GraphModule
    inputs: tuple[Any, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """Nodes, then results and inputs, then elements of inputs."""
        nodes = [n for n in self.gm.graph.nodes if n.op not in ("placeholder", "output")]
        ends = len(_returned(self.gm.graph)) + len(self.inputs)
        return len(nodes), ends, sum(t.numel() for t in self.inputs if isinstance(t, torch.Tensor))

    def text(self) -> str:
        """A script that defines `fn` and `args`."""
        graph = self.gm.graph.python_code("self")
        body = graph.src.replace("def forward(self, ", "def fn(").replace("def forward(self)", "def fn()")
        body = "\n".join(line.partition(";  ")[0] for line in body.splitlines() if line.strip())
        known = {"torch", "device", "inf", "nan"}
        loads = [f"{name} = {_name(value)}" for name, value in graph.globals.items()
                 if name not in known and re.search(rf"\b{name}\b", body)]
        head = ["import torch", "from torch import device, inf, nan", "",
                "from minicompile.testing import Check", ""]
        return "\n".join([*head, *loads, "", "", body, "", "", f"args = [{_inputs_text(self.inputs)}]"])


def _name(value: Any) -> str:
    module = getattr(value, "__module__", "") or ""
    name = getattr(value, "__name__", None)
    if module == "_operator":
        return f"__import__('operator').{name}"
    return f"__import__({module!r}, fromlist=['']).{name}" if name else repr(value)


def _inputs_text(inputs: Sequence[Any]) -> str:
    return "".join(f"\n    {input_text(x)}," for x in inputs) + "\n"


def input_text(x: Any) -> str:
    """An expression for an input: its values where they are few, else others of the same kind."""
    if not isinstance(x, torch.Tensor):
        return repr(x)
    t = x.detach()
    shape, dtype = tuple(t.shape), t.dtype
    if not t.numel() or bool((t == 0).all()):
        text = f"torch.zeros({shape}, dtype={dtype})"
    elif bool((t == 1).all()):
        text = f"torch.ones({shape}, dtype={dtype})"
    elif t.numel() <= SHOWN:
        text = f"torch.tensor({t.tolist()}, dtype={dtype})"
    elif dtype.is_floating_point or dtype.is_complex:
        text = f"torch.randn({shape}, dtype={dtype})"
    else:
        text = f"torch.randint(0, 2, {shape}).to({dtype})"
    if not t.is_contiguous():
        text = f"torch.empty_strided({shape}, {tuple(t.stride())}, dtype={dtype}).copy_({text})"
        if any(s == 0 for s in t.stride()):
            once = t[tuple(slice(None, 1) if s == 0 else slice(None) for s in t.stride())]
            text = f"{input_text(once)}.expand({shape})"
    return text + (".requires_grad_()" if x.requires_grad else "")


def source_text(fn: Any, args: Sequence[Any], kwargs: Any) -> str:
    """A script of a function as it is written; what it needs of its module has to be added by hand."""
    try:
        lines = textwrap.dedent(inspect.getsource(fn if inspect.isroutine(fn) else type(fn)))
    except (OSError, TypeError):
        lines = f"# the source of {fn!r} is not to be had\n"
    name = getattr(fn, "__name__", type(fn).__name__)
    known = {"torch": "import torch"}
    head = "\n".join([*known.values(), "", "from minicompile.testing import Check", "", ""])
    called = f"\nfn = {name}\n" if name.isidentifier() else ""
    given = f"args = [{_inputs_text(args)}]" + (f"\nkwargs = {kwargs!r}" if kwargs else "")
    return f"{head}\n{lines}{called}\n\n{given}\n"


# ------------------------------------------------------------------------------------------------ shrinking

def captured(fresh: Callable[..., Session]) -> Small | None:
    """The graph that our capture makes of a session's first call, if it is one graph."""
    session = fresh()
    given = session.prepare(0)
    with quiet(), torch.set_grad_enabled(session.grad):
        compiled, handle = api.compile_anew(session.fn, backend="eager")
        handle.keep_inputs = True
        torch.manual_seed(5)
        try:
            compiled(*given.args, **given.kwargs)
        except Exception:  # the program raises: there is no graph to make smaller
            return None
    if len(handle.compilations) != 1 or handle.refusals:
        return None
    done = handle.compilations[0]
    return Small(done.capture.gm, tuple(done.inputs))


def smallest(fresh: Callable[..., Session], engine: str, step: Step, check: Any,
             seconds: float = 20.0) -> Small | None:
    """The smallest graph found in which `step`'s rung is wrong in the same way; None if the captured graph
    alone is not wrong."""
    best = captured(fresh)
    rung = step.stage if step.stage in ENGINES else engine
    deadline = time.monotonic() + seconds

    def wrong(small: Small) -> bool:
        def again() -> Session:
            return check.session(small.gm.forward if not small.inputs else as_function(small.gm),
                                 small.inputs, {})
        try:
            eager = runs(again, "eager")
            if not eager.calls or eager.calls[0].raised is not None and step.difference.kind != "raises":
                return False
            return _like(runs(again, rung), eager, step.difference.kind)
        except Exception:  # no longer a program
            return False
    if best is None or not wrong(best):
        return None
    progress = True
    while progress and time.monotonic() < deadline:
        progress = False
        for smaller in candidates(best):
            if time.monotonic() > deadline:
                break
            if smaller.size < best.size and wrong(smaller):
                best, progress = smaller, True
                break
    return plain(best, wrong)


def _like(ran: Ran, eager: Ran, kind: str) -> bool:
    found = [d for d in ran.differs(eager) if not d.is_note]
    return bool(found) and (found[0].kind == kind or {found[0].kind, kind} <= {"value", "gradient"})


def as_function(gm: fx.GraphModule) -> Callable:
    """The graph's code as a plain function of its inputs."""
    code = gm.graph.python_code("self")
    space = dict(code.globals)
    exec(code.src.replace("def forward(self, ", "def forward(").replace("def forward(self)", "def forward()"),
         space)
    return space["forward"]


def candidates(small: Small) -> Iterator[Small]:
    """Smaller graphs, most promising first."""
    nodes = [n.name for n in small.gm.graph.nodes if n.op not in ("placeholder", "output")]
    for i in range(len(_returned(small.gm.graph))):
        yield from _edited(small, partial(_return_only, i=i))
    values = _values(small)
    length = len(nodes)
    while length >= 1 and len(nodes) > 1:
        for start in range(0, len(nodes), length):
            yield from _edited(small, partial(_cut, names=set(nodes[start:start + length])), values)
        length //= 2
    for name in reversed(nodes):
        for k in range(3):
            yield from _edited(small, partial(_passed_by, name=name, k=k))
    yield from _narrower(small)


def _edited(small: Small, edit: Callable[[fx.Graph], bool], values: dict[str, Any]
            | None = None) -> Iterator[Small]:
    """`small` with an edited copy of its graph, unused nodes and inputs gone; nothing where that can't be."""
    graph = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(small.gm.graph, mapped))
    given = {m.name: x for n, x in zip((n for n in small.gm.graph.nodes if n.op == "placeholder"),
                                       small.inputs)
             for m in [mapped[n]]}
    known = {mapped[n].name: values[n.name] for n in mapped if values and n.name in values}
    if not edit(graph):
        return
    used = _needed(graph)
    for n in reversed(list(graph.nodes)):
        if n not in used and not n.users and n.op != "output":
            graph.erase_node(n)
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    everything = {**known, **given}
    if any(n.target not in everything and n.name not in everything for n in inputs):
        return
    values_of = tuple(everything[n.target if n.target in everything else n.name] for n in inputs)
    for n in inputs:
        n.target = n.name                                   # else it is printed under both names
    holders = {n.target: getattr(small.gm, n.target) for n in graph.nodes if n.op == "get_attr"}
    try:
        gm = fx.GraphModule(holders, graph)
    except Exception:  # an edit that leaves no legal graph
        return
    yield Small(gm, values_of)


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """Nodes the output depends on, writes included: a call that writes to what is needed is needed."""
    needed = {n for n in graph.nodes if n.op == "output"}
    grown = True
    while grown:
        before = len(needed)
        for n in reversed(graph.nodes):
            if n in needed:
                needed.update(n.all_input_nodes)
            elif _writes(n) and needed.intersection(n.all_input_nodes):
                needed.add(n)
        grown = len(needed) > before
    return needed


def _writes(n: fx.Node) -> bool:
    name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
    return name.endswith("_") or name in ("setitem",
                                          "__setitem__") or "out" in n.kwargs or n.target is operator.setitem


def _returned(graph: fx.Graph) -> list[Any]:
    values = next(n for n in graph.nodes if n.op == "output").args[0]
    return list(values) if isinstance(values, (tuple, list)) else [values]


def _return_only(graph: fx.Graph, i: int) -> bool:
    out = next(n for n in graph.nodes if n.op == "output")
    values = _returned(graph)
    out.args = ((values[i],),)
    return len(values) > 1


def _cut(graph: fx.Graph, names: set[str]) -> bool:
    """Nodes become inputs."""
    hit = False
    first = next(iter(graph.nodes))
    for n in list(graph.nodes):
        if n.name in names:
            with graph.inserting_before(first):
                new = graph.placeholder(n.name)
            n.replace_all_uses_with(new)
            hit = True
    return hit


def _passed_by(graph: fx.Graph, name: str, k: int) -> bool:
    """What uses a node uses its k-th operand instead."""
    n = next((n for n in graph.nodes if n.name == name), None)
    if n is None or len(n.all_input_nodes) <= k:
        return False
    n.replace_all_uses_with(n.all_input_nodes[k])
    return True


class _Recording(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.values[n.name] = value.detach().clone().requires_grad_(value.requires_grad)
        return value


def _values(small: Small) -> dict[str, Any]:
    """Every tensor the graph computes."""
    recording = _Recording(small.gm)
    torch.manual_seed(5)
    try:
        recording.run(*deepcopy([x.detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor)
                                 else x
                                 for x in small.inputs]))
    except Exception:  # as far as it got
        return recording.values
    return recording.values


def _narrower(small: Small) -> Iterator[Small]:
    """Every size of the inputs halved, or less by one, wherever it occurs."""
    sizes = sorted({n for t in small.inputs if isinstance(t, torch.Tensor) for n in t.shape if n > 1},
                   reverse=True)
    for size in sizes:
        for new in dict.fromkeys((1, 2, size // 2, size - 1)):
            if 0 < new < size:
                yield Small(small.gm, tuple(_narrowed(x, size, new) for x in small.inputs))


def _narrowed(x: Any, size: int, new: int) -> Any:
    if not isinstance(x, torch.Tensor) or size not in x.shape:
        return x
    t = x.detach()[tuple(slice(0, new) if n == size else slice(None) for n in x.shape)]
    return t.clone().requires_grad_(x.requires_grad)


def plain(small: Small, wrong: Callable[[Small], bool]) -> Small:
    """Inputs contiguous, without gradients, of ones or small whole numbers, where that is wrong as well."""
    for i, x in enumerate(small.inputs):
        if not isinstance(x, torch.Tensor):
            continue
        for simpler in _simpler(x):
            candidate = Small(small.gm, (*small.inputs[:i], simpler, *small.inputs[i + 1:]))
            if wrong(candidate):
                small = candidate
                break
    return small


def _simpler(x: torch.Tensor) -> Iterator[torch.Tensor]:
    grad = x.requires_grad and x.is_floating_point()
    count = torch.arange(x.numel()).view(x.shape)
    for values in (torch.ones(x.shape), count, count % 3):
        yield values.to(x.dtype).requires_grad_(grad)
    yield x.detach().contiguous().clone().requires_grad_(grad)
