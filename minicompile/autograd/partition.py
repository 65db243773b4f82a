"""Partition: which values the forward graph saves for the backward graph, by a minimum cut.

Takes the joint prim graph of `joint`, gives two prim graphs and, for every saved value, the reason it is
saved. `loops` builds each half.

The cut: every value is an edge whose capacity is the cost of keeping it; what the forward must compute and
the backward may not compute again hangs on the source, what depends on the incoming gradients hangs on the
sink. The cheapest set of edges that separates the two is what is saved; everything after the cut is
computed again (Chen et al., "Training deep nets with sublinear memory cost", 2016; the min-cut form is
AOTAutograd's).
"""
from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..errors import CheckError
from ..ir.geometry import sizes_in
from ..ir.graph import Graph, Node, Output, map_arg
from ..ir.prims import Prim
from ..ir.spec import TensorSpec
from ..ir.sym import Size, hint
from .joint import dense

INF = float("inf")
SINK = "sink"
CHEAPER = "keeping it costs fewer bytes than keeping what it is computed from"

# prim kind → how computing it again in the backward is judged
RECOMPUTE = {"elementwise": "cheap", "view": "free", "create": "free", "gather": "cheap", "reduce": "pass",
             "scan": "pass"}
# why a value of that class is never computed twice
BANNED = {"pass": "a reduction would read everything again",
          "library": "a library kernel costs more than its result's bytes",
          "random": "drawing again would give other numbers",
          "input": "it is an input"}


@dataclass(frozen=True, slots=True)
class Saved:
    """One value that lives from forward to backward: its bytes, and why it is kept instead of computed
    again."""

    node: Node
    bytes: int
    reason: str

    def __str__(self) -> str:
        return f"{self.node.name}: {self.bytes} bytes, {self.reason}"


@dataclass(frozen=True, slots=True)
class Split:
    """forward: primals → (outputs, saved); backward: (saved, tangents) → gradients.

    outputs     how many of `forward`'s outputs are the user's; then come saved values, last the hidden
                bases of aliases
    saved       in the order `backward` takes them: primal number from_input[i], or (None) the next saved
                output
    tangents    which of the user's outputs have an incoming gradient; `backward` takes them after the saved
                values
    again       values that only a memory budget makes the backward compute again
    sizes       sizes that `backward` takes as numbers, last: no tensor it takes has them
    """

    forward: Graph
    backward: Graph
    outputs: int
    saved: tuple[Saved, ...]
    from_input: tuple[int | None, ...]
    tangents: tuple[int, ...]
    again: tuple[Node, ...] = ()
    sizes: tuple[Size, ...] = ()

    @property
    def saved_bytes(self) -> int:
        return sum(s.bytes for s in self.saved)

    def __str__(self) -> str:
        kept = "\n".join([f"# saved {s}" for s in self.saved] + [
            f"# computed again to stay within the memory budget: {n.name}" for n in self.again])
        return f"{kept}\n# forward\n{self.forward}\n# backward\n{self.backward}"

    def check(self) -> None:
        """The type equation: forward: a → (b, saved), backward: (saved, b̄) → ā. Raises CheckError."""
        self.forward.check("forward")
        self.backward.check("backward")
        given = self.forward.outputs[self.outputs:self.forward.returned]
        kept = [s for s, i in zip(self.saved, self.from_input) if i is None]
        if len(given) != len(kept):
            raise CheckError("forward", "outputs", f"gives {len(given)} saved values, not {len(kept)}")
        for o, s in zip(given, kept):
            if (o.spec.dtype, o.spec.shape) != (s.node.tensor.dtype, s.node.tensor.shape):
                raise CheckError("forward", s.node.name, f"is saved as {o.spec}, expected as {s.node.spec}")
        taken = self.backward.inputs[:len(self.saved)]
        for n, s in zip(taken, self.saved):
            if (n.tensor.dtype, n.tensor.shape) != (s.node.tensor.dtype, s.node.tensor.shape):
                raise CheckError("backward", n.name, f"takes {n.spec}, was saved as {s.node.spec}")


def recompute_class(n: Node) -> str:
    """How a node is judged as a candidate for recomputation: "free", "cheap", "pass", "library", "random",
    "input"."""
    if isinstance(n.op, Prim):
        return RECOMPUTE[n.op.kind]
    if isinstance(n.op, str):
        return "input" if n.op == "input" else "free"
    return "random" if torch.Tag.nondeterministic_seeded in n.op.tags else "library"


def saving_cost(n: Node, lasts: bool = True) -> float:
    """The capacity of a value's edge: its bytes. What is no plain tensor cannot be kept; a constant is in
    both graphs; an input that lasts is alive anyway until its owner lets go, so among equals it costs
    least."""
    if n.op == "constant":
        return 0
    if not isinstance(n.spec, TensorSpec):
        return INF
    return max(hint(n.spec.nbytes), 1) * (0.5 if n.op == "input" and lasts else 1.0)


def split(joint: Graph, primals: int, outputs: int, tangents: tuple[int, ...], budget: float = 1.0,
          held: Sequence[frozenset[int]] | None = None) -> Split:
    """Cuts the joint graph, whose inputs are `primals` of the user's, then one tangent for each output in
    `tangents`, and whose outputs are `outputs` of the forward's, then the gradients, then hidden bases of
    aliases. `budget` is the part of the bytes that may be kept, of those that the cheapest cut without a
    library call or reduction done twice keeps; where that is too little, as few as can be are. `held` has for
    each tangent the inputs that eager mode keeps for it (None: all); a smaller budget asks for more of them
    not to change."""
    results, gradients = joint.outputs[:outputs], joint.outputs[outputs:joint.returned]
    after = dependents(joint, joint.inputs[primals:])
    writes = tuple((i, n) for i, n in joint.writes if n not in after)
    needed = ancestors([o.node for o in gradients])
    order = [n for n in (*joint.inputs, *joint.nodes) if n in needed and n not in after]
    changed = {joint.inputs[i] for i, _ in writes}          # these are saved as they were
    if held is not None and budget >= 1:
        changed |= _unheld(joint, primals, needed, [o.node for o in gradients], held)
    lasting = set(joint.inputs) - changed
    cost = {n: saving_cost(n, n in lasting) for n in order}
    saved, free = _within(budget, order, lasting, lambda free: _cut(joint, cost, after, needed, gradients,
                                                                    free))
    at = [n.args[0] if n in lasting else None for n in saved]
    kept = [Output(n, dense(n.tensor)) for n, i in zip(saved, at) if i is None]
    forward = _forward(joint, primals, results, kept, writes, after)
    backward = _backward(joint, primals, gradients, saved, [o.node for o in kept])
    reasons = tuple(Saved(n, hint(n.tensor.nbytes), BANNED.get(recompute_class(n), CHEAPER)) for n in saved)
    inside = {n.name for n in backward.nodes}
    return Split(forward, backward, outputs, reasons, tuple(at), tangents,
                 tuple(n for n in order if n in free and n.name in inside),
                 tuple(n.spec for n in backward.inputs if isinstance(n.spec, Size)))


def redo_cost(n: Node) -> float:
    """What computing a reduction or library call again costs: bytes read and written, and for products and
    convolutions a multiply-add per element of the result and of a row of the second operand."""
    read = [a for a in n.operands if isinstance(a.spec, TensorSpec)]
    cost = float(sum(map(_bytes, read)) + _bytes(n))
    if recompute_class(n) == "library" and len(read) > 1 and isinstance(n.spec, TensorSpec):
        second = read[1].tensor
        if second.ndim > 1:
            row = hint(second.shape[-1 if second.ndim < 4 else 0])
            cost += hint(n.tensor.numel * second.numel) / max(row, 1)
    return cost


def _bytes(n: Node) -> int:
    specs = n.spec if isinstance(n.spec, tuple) else (n.spec,)
    return sum(hint(s.nbytes) for s in specs if isinstance(s, TensorSpec))


def _within(budget: float, order: list[Node], lasting: set[Node],
            cut: Callable[[frozenset[Node]], list[Node]]) -> tuple[list[Node], frozenset[Node]]:
    """(values to save, banned values that may be computed again for that): as few of the latter as the budget
    asks for, those first that free the most bytes for their cost."""
    def kept(saved: list[Node]) -> int:
        return sum(_bytes(n) for n in saved if n not in lasting)

    saved: list[Node] = cut(frozenset())
    if budget >= 1:
        return saved, frozenset()
    goal = budget * kept(saved)
    banned = [n for n in order if recompute_class(n) in ("library", "pass")]
    banned.sort(key=lambda n: redo_cost(n) / max(_bytes(n), 1))
    low, high = 0, len(banned)
    while low < high:          # the first that is enough
        half = (low + high) // 2
        low, high = (low, half) if kept(cut(frozenset(banned[:half]))) <= goal else (half + 1, high)
    free = frozenset(banned[:low])
    return cut(free), free


def dependents(graph: Graph, roots: Sequence[Node]) -> set[Node]:
    """`roots` and everything computed from them."""
    seen = set(roots)
    for n in graph.nodes:
        if any(a in seen for a in n.operands):
            seen.add(n)
    return seen


def ancestors(roots: Sequence[Node], known: set[Node] = frozenset()) -> set[Node]:
    """`roots` and everything they are computed from, up to what is `known`."""
    seen: set[Node] = set()
    stack = list(roots)
    while stack:
        n = stack.pop()
        if n not in seen and n not in known:
            seen.add(n)
            stack.extend(n.operands)
    return seen


def _unheld(joint: Graph, primals: int, needed: set[Node], gradients: list[Node],
            held: Sequence[frozenset[int]]) -> set[Node]:
    """The inputs that the gradients of some tangent need here, but not in eager mode. So a program may change
    them before the backward."""
    flow = {n: 1 << k for k, n in enumerate(joint.inputs[primals:])}          # tangents it is computed from
    for n in joint.nodes:
        bits = functools.reduce(operator.or_, [flow.get(a, 0) for a in n.operands], 0)
        if bits and n in needed:
            flow[n] = bits
    # tangents whose gradients need it; one that is zeros may be any's
    reads = {n: (1 << len(held)) - 1 for n in gradients if n not in flow}
    for n in reversed(joint.nodes):
        bits = flow.get(n) or reads.get(n, 0)
        for a in n.operands if bits else ():
            if a not in flow:
                reads[a] = reads.get(a, 0) | bits
    return {n for i, n in enumerate(joint.inputs[:primals]) if n in reads and isinstance(n.spec, TensorSpec)
            and not n.spec.number and any(reads[n] >> k & 1 and i not in kept for k, kept in enumerate(held))}


def _cut(joint: Graph, cost: dict[Node, float], after: set[Node], needed: set[Node],
         gradients: tuple[Output, ...], free: frozenset[Node]) -> list[Node]:
    """The values to save, in graph order: a minimum cut of the part of the joint graph that the gradients
    need (what has a cost, in that order), where `free` may be computed again; of several, the one nearest to
    the gradients, which computes least again."""
    readers, fixed = _candidates(joint, cost, after, needed, gradients, free)
    saved = {n for n in fixed if readers.get(n) == {SINK}}          # no choice there
    import networkx  # takes 0.15 s to import, which only training should pay

    flow = networkx.DiGraph()
    for n in cost:
        if n in readers and n not in saved:
            flow.add_edge("source" if n in fixed else (n, 0), (n, 1), capacity=cost[n])
            for r in readers[n]:
                if r is SINK or r not in fixed:
                    flow.add_edge((n, 1), SINK if r is SINK else (r, 0), capacity=INF)
    if "source" in flow and SINK in flow:
        _, (left, _) = networkx.minimum_cut(flow, "source", SINK)
        here = {n for n in readers if n in fixed or (n, 0) in left}
        saved |= {n for n in here if (n, 1) in flow and (n, 1) not in left}
    return [n for n in cost if n in saved]


def _candidates(joint: Graph, cost: dict[Node, float], after: set[Node], needed: set[Node],
                gradients: tuple[Output, ...], free: frozenset[Node]) -> tuple[dict[Node, set], set[Node]]:
    """(values that a minimum cut may hold → the next such values they are needed for, or SINK; those of
    them that are not computed again, so that saving what is before them is of no use).

    Left out: what is computed from one candidate that is smaller, and what one candidate that is no larger
    is all that needs it.
    """
    fixed = {n for n in cost if recompute_class(n) in BANNED and n not in free}
    rep: dict[Node, Node] = {}          # value → the candidate it is as good as
    for n in cost:
        sources = {rep[a] for a in n.operands if a in rep}
        if n in fixed or len(sources) > 1:
            rep[n] = n
        elif sources:          # what has no source is made of constants
            (only,) = sources
            rep[n] = only if cost[only] < cost[n] else n
    readers: dict[Node, set] = {n: set() for n in cost if rep.get(n) is n}
    for n in joint.nodes:
        if n in needed and n not in fixed:
            reader = SINK if n in after else rep.get(n)
            for a in n.operands:
                if a in rep and rep[a] is not reader:
                    readers[rep[a]].add(reader)
    for o in gradients:
        if o.node in rep:
            readers[rep[o.node]].add(SINK)
    into: dict[Node, Node] = {}          # left-out value → the candidate that needs it
    for n in reversed(list(readers)):
        readers[n] = then = {into.get(r, r) for r in readers[n] if r is SINK or r in into or r in readers}
        if not then:
            del readers[n]
        elif len(then) == 1 and SINK not in then:
            (only,) = then
            if cost[only] <= cost[n]:
                into[n] = only
                if n in fixed:
                    fixed.add(only)
                del readers[n]
    return readers, fixed


def _forward(joint: Graph, primals: int, results: tuple[Output, ...], kept: list[Output],
             writes: tuple[tuple[int, Node], ...], after: set[Node]) -> Graph:
    """What the user's results, the saved values and the writes need, every random draw, in order, and what is
    there only because it may raise: nothing needs its value; but not what comes `after` tangents."""
    hidden = [j for j in dict.fromkeys(o.alias[1] for o in results if o.alias and o.alias[0] == "output")
              if j >= len(results)]
    moved = {j: len(results) + len(kept) + i for i, j in enumerate(hidden)}
    shown = [replace(o, alias=("output", moved[o.alias[1]])) if o.alias and o.alias[1] in moved
             and o.alias[0] == "output" else o for o in results]
    outputs = (*shown, *kept, *(joint.outputs[j] for j in hidden))
    used = ancestors([o.node for o in joint.outputs] + [n for _, n in joint.writes])
    effects = [n for n in joint.nodes if (n not in used or recompute_class(n) == "random") and n not in after]
    needed = ancestors([o.node for o in outputs] + [n for _, n in writes] + effects)
    nodes = tuple(n for n in joint.nodes if n in needed)
    return Graph(joint.inputs[:primals], nodes, outputs, writes, len(shown) + len(kept), joint.restrides)


def _backward(joint: Graph, primals: int, gradients: tuple[Output, ...], saved: list[Node],
              kept: list[Node]) -> Graph:
    """The nodes between (saved, tangents) and the gradients, on new input nodes; `kept` are copies made by
    the forward, which are the backward's own. Gradients are fresh tensors."""
    new: dict[Node, Node] = {}
    for i, n in enumerate((*saved, *joint.inputs[primals:])):
        spec = n.tensor if n.op == "input" and n not in kept else dense(n.tensor)
        new[n] = Node(n.name, "input", (i,), {}, spec, n.where)
    needed = ancestors([o.node for o in gradients], set(new))
    bound = {size for n in new.values() for size in n.tensor.shape if isinstance(size, Size)}
    used = sizes_in(*((n.args, tuple(n.kwargs.values()), n.spec) for n in joint.nodes if n in needed),
                    *(o.spec for o in gradients), *(n.spec for n in new.values()))
    for size in used:
        if size not in bound:
            node = Node(f"size_{size.name}", "input", (len(new),), {}, size)
            new[node] = node
    inputs = tuple(new.values())
    for n in joint.nodes:
        if n in needed:
            args, kwargs = map_arg((n.args, n.kwargs), new.__getitem__)
            new[n] = Node(n.name, n.op, args, kwargs, n.spec, n.where)
    nodes = tuple(new.values())[len(inputs):]
    outputs = tuple(Output(new[o.node], dense(o.spec)) for o in gradients)
    consumed = tuple(i for i, n in enumerate(saved) if n in kept)
    return Graph(inputs, nodes, outputs, (), len(outputs), consumed=consumed)
