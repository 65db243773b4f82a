"""Reality: the real values of a graph that is being recorded, computed from the call's real inputs.

Takes the torch.fx graph so far and its placeholders' tensors; gives any node's value, and the part of the
graph that a few nodes depend on. The world stays as it is: inputs that the graph writes are copied before,
generators are put back. `speculation` asks it for what fakes cannot say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import Refusal
from ..ir.fake import facts_of

# Operators that write arguments though their schemas do not say so.
HIDDEN_WRITES = {torch.ops.aten.native_batch_norm.default: (3, 4)}


class _InputWritten(Exception):
    """The graph is about to write to these storages of inputs."""

    def __init__(self, storages: set[int]):
        super().__init__()
        self.storages = storages


class _Watch(TorchDispatchMode):
    """Runs ATen calls on real tensors, and reports what they write and whether they draw random numbers."""

    def __init__(self, reality: Reality):
        super().__init__()
        self.reality = reality

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # as in ir.fake
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        facts = facts_of(func)
        if facts.composite:
            with self:
                return func.decompose(*args, **kwargs)
        hidden = ((i, "") for i in HIDDEN_WRITES.get(func, ()))
        for i, name in (*facts.writes, *hidden):
            self.reality.note_writes(storages_of(args[i] if i < len(args) else kwargs.get(name)))
        if not facts.follow:
            self.reality.draws.add(self.reality.running)
        with torch._C._DisableTorchDispatch():
            return func(*args, **kwargs)


class Reality:
    """`inputs` maps placeholders to tensors of the call. `ambient` is (read, restore) of torch's thread
    state, of which the graph's own changes are kept apart from the capture's."""

    def __init__(self, graph: fx.Graph, inputs: dict[fx.Node, torch.Tensor],
                 ambient: tuple[Callable[[], Any], Callable[[Any], None]]):
        self.graph, self.inputs = graph, inputs
        self.read_state, self.restore_state = ambient
        self.first_state = self.read_state()
        self.copied: dict[int, torch.UntypedStorage] = {}     # storage of an input -> its copy
        self.originals: dict[int, torch.UntypedStorage] = {}
        self.seen = 0                                         # inputs that `originals` knows
        self.restart()

    def restart(self) -> None:
        self.values: dict[fx.Node, Any] = {}
        self.homes: dict[fx.Node, set[int]] = {}              # the storages of a node's tensors
        self.writes: dict[fx.Node, set[int]] = {}             # the storages a node writes
        self.draws: set[fx.Node] = set()                      # nodes that draw random numbers
        self.varying: set[int] = set()                        # storages of what depends on inputs or chance
        self.running: Any = self.graph._root
        self.random: torch.Tensor | None = None               # the generator's state after `running`
        self.state = self.first_state

    def note_writes(self, storages: set[int]) -> None:
        if self.seen != len(self.inputs):
            self.seen = len(self.inputs)
            tensors = (t for t in self.inputs.values() if isinstance(t, torch.Tensor))
            self.originals = {s._cdata: s for s in (t.untyped_storage() for t in tensors)}
        if storages & self.originals.keys():
            raise _InputWritten(storages & self.originals.keys())
        self.writes.setdefault(self.running, set()).update(storages)

    def value(self, node: fx.Node) -> Any:
        """The value of a node, after all nodes before it have run."""
        if node.op == "placeholder" and node not in self.values:
            with torch._C._DisableTorchDispatch():
                self.put(node, self.input(self.inputs[node]))
                self.varying |= self.homes[node]
        return self.values[node]

    def input(self, t: Any) -> Any:
        """A tensor over the input's storage, or over its copy if the graph writes to it; a number as it
        is."""
        if not isinstance(t, torch.Tensor):
            return t
        copy = self.copied.get(t.untyped_storage()._cdata)
        if copy is None:
            return t.detach()
        bare = torch.empty(0, dtype=t.dtype, device=t.device)
        return bare.set_(copy, t.storage_offset(), t.shape, t.stride())

    def put(self, node: fx.Node, value: Any) -> None:
        self.values[node] = value
        self.homes[node] = storages_of(value)

    def call(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """run(*args, **kwargs), with real values for the nodes among the arguments."""
        while True:
            try:
                with self.outside():
                    self.advance()
                    with _Watch(self):
                        return run(*fx.node.map_arg(args, self.value), **fx.node.map_arg(kwargs, self.value))
            except _InputWritten as written:
                with torch._C._DisableTorchDispatch():      # all: a run so far has written to older copies
                    self.copied = {s: self.originals[s].clone() for s in {*self.copied, *written.storages}}
                self.restart()

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """The graph's own thread state and random numbers; the capture's come back afterwards."""
        state, before = self.read_state(), generator_state()
        self.restore_state(self.state)
        if self.random is not None:
            set_generator_state(self.random)
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                yield
        finally:
            self.random = generator_state()
            set_generator_state(before)
            self.restore_state(state)

    def advance(self) -> None:
        """Runs the nodes added since."""
        while self.running.next is not self.graph._root:
            node = self.running = self.running.next
            if node.op == "placeholder":
                continue
            if any(isinstance(a, torch.Generator) for a in (*node.args, *node.kwargs.values())):
                raise Refusal("data-dependent", "a value depends on a generator of the program's own")
            args = fx.node.map_arg(node.args, self.value)
            target = getattr(args[0], node.target) if node.op == "call_method" else node.target
            with _Watch(self):
                out = target(*args[node.op == "call_method":], **fx.node.map_arg(node.kwargs, self.value))
            self.put(node, out)
            if node in self.draws or any(self.varies(n) for n in node.all_input_nodes):
                self.varying |= self.homes[node] | self.writes.get(node, set())
        self.state = self.read_state() if self.values else self.state

    def varies(self, node: fx.Node) -> bool:
        """Whether a node's value depends on the inputs or on random numbers."""
        number = node in self.inputs and not isinstance(self.inputs[node], torch.Tensor)
        return number or not self.varying.isdisjoint(self.homes[node])

    def slice(self, wanted: Sequence[fx.Node]) -> fx.GraphModule:
        """The part of the graph that `wanted` depend on, from all inputs to a tuple of them; it draws the
        random numbers the graph would have drawn, and changes no input."""
        kept = self.needed(set(wanted))
        if kept & self.draws:
            kept = self.needed(set(wanted) | self.draws)
        written = set().union(*(self.writes.get(n, ()) for n in kept))
        graph, new = fx.Graph(), {}
        for node in self.graph.nodes:
            if node.op == "placeholder" or node in kept:
                new[node] = graph.node_copy(node, new.__getitem__)
        first = next((n for n in graph.nodes if n.op != "placeholder"), None)
        for node in [n for n in new if n.op == "placeholder" and self.homes.get(n, set()) & written]:
            with graph.inserting_before(first):
                copy = graph.call_method("clone", (new[node],))
            new[node].replace_all_uses_with(copy, lambda user, copy=copy: user is not copy)
        graph.output(tuple(new[n] for n in wanted))
        return fx.GraphModule(torch.nn.Module(), graph)

    def needed(self, wanted: set[fx.Node]) -> set[fx.Node]:
        """`wanted` and all they depend on: what they are computed from, what was written there before, and
        changes of torch's thread state."""
        storages: set[int] = set()
        kept: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if node.op in ("placeholder", "output"):
                continue
            ambient = node in self.values and not node.all_input_nodes and not self.homes[node]
            if node in wanted or ambient or self.writes.get(node, set()) & storages:
                kept.add(node)
                wanted |= set(node.all_input_nodes)
                storages |= self.homes.get(node, set())
                for source in node.all_input_nodes:
                    storages |= self.homes.get(source, set())
        return kept


def storages_of(value: Any) -> set[int]:
    """The storages of the tensors in a value."""
    if isinstance(value, torch.Tensor):
        while torch._C._functorch.is_functorch_wrapped_tensor(value):
            value = torch._C._functorch.get_unwrapped(value)
        return {value.untyped_storage()._cdata}
    if isinstance(value, (tuple, list)):
        return set().union(*map(storages_of, value))
    return set()


def generator_state() -> torch.Tensor:
    """The state of torch's default generator."""
    with torch._C._DisableTorchDispatch():
        return torch.default_generator.get_state()


def set_generator_state(state: torch.Tensor) -> None:
    with torch._C._DisableTorchDispatch():
        torch.default_generator.set_state(state)
