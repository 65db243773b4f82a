"""Prim graphs whose shapes hold sizes: by hand and at random, and what they mean at given numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import torch
from prim_graphs import Make, inputs_of, run_graph

from minicompile.ir.forms import alike
from minicompile.ir.graph import Graph, Node, Output
from minicompile.ir.spec import TensorSpec
from minicompile.ir.sym import Size, Sym, Var, asking, hint, same, substitute
from minicompile.loops.sizes import specialise

f32, i64 = torch.float32, torch.int64
S0, S1 = Size("s0", 6), Size("s1", 10)


class Sized(Make):
    """Make, for shapes with sizes."""

    def size(self, s: Size) -> None:
        """A size that is an input."""
        self.inputs.append(Node(f"arg{len(self.inputs)}", "input", (len(self.inputs),), {}, s))

    def mm(self, x: Node, y: Node) -> Node:
        shape = (x.tensor.shape[0], y.tensor.shape[1])
        return self.library(torch.ops.aten.mm.default, TensorSpec.contiguous(x.tensor.dtype, shape), x, y)

    def library(self, op, spec, *args, **kwargs) -> Node:
        return self._append(op, args, kwargs, spec, op.overloadpacket.__name__)


def numbered(g: Graph, sizes: Mapping[Var, int]) -> Graph:
    """The graph at these sizes."""
    known: dict[Node, Node] = {}

    def number(a):
        if isinstance(a, Node):
            return known[a]
        return substitute(a, sizes) if isinstance(a, Sym) else a

    def deep(a):
        if isinstance(a, (tuple, list)):
            return tuple(map(deep, a))
        return {k: deep(v) for k, v in a.items()} if isinstance(a, dict) else number(a)
    for n in (*g.inputs, *g.nodes):
        known[n] = replace(n, args=deep(n.args), kwargs=deep(n.kwargs), spec=specialise(n.spec, sizes))
    outs = tuple(Output(known[o.node], specialise(o.spec, sizes), o.alias, o.views) for o in g.outputs)
    return Graph(tuple(known[n] for n in g.inputs), tuple(known[n] for n in g.nodes), outs,
                 tuple((i, known[n]) for i, n in g.writes), g.returned)


def expected(g: Graph, sizes: Mapping[Var, int], seed: int = 0):
    """(inputs, results, inputs after the call) of a graph at these sizes."""
    plain = numbered(g, sizes)
    inputs = [x.spec if isinstance(x.spec, int) else t for x, t in zip(plain.inputs, tensors(plain, seed))]
    after = [t.clone() if isinstance(t, torch.Tensor) else t for t in inputs]
    return inputs, run_graph(plain, after), after


def tensors(g: Graph, seed: int):
    real = replace(g, inputs=tuple(n for n in g.inputs if isinstance(n.spec, TensorSpec)))
    given = iter(inputs_of(real, seed))
    return [next(given) if isinstance(n.spec, TensorSpec) else n.spec for n in g.inputs]


def random_sized(seed: int, steps: int = 14, a: Size = S0, b: Size = S1) -> tuple[Graph, dict]:
    """A random prim graph over dims of which some are sizes, and the conditions found while it was made."""
    r = random.Random(seed)
    with asking() as conditions:
        m = Sized()
        m.a, m.b = a, b
        dims = [m.a, m.a, m.b, m.b, 1, 3, 4]
        pool = [m.input(m.a, m.b), m.input(m.a, 1), m.input(m.b),
                m.input(*[r.choice(dims) for _ in range(r.randint(1, 3))])]
        for _ in range(steps):
            x = r.choice(pool[-6:])
            made = r.choice(STEPS)(m, r, x, pool)
            if made is not None and hint(made.tensor.numel) <= 40_000:
                pool.append(made)
        for n in [*r.sample(pool, min(len(pool), 2)), pool[-1]]:
            m.output(n) if n.tensor.is_dense else m.output(m.add(n, 0.0))
        for i, n in enumerate(m.inputs):
            fits = [v for v in pool if alike(v.tensor.shape, n.tensor.shape)]
            if r.random() < 0.2 and fits:
                m.writes.append((i, r.choice(fits)))
        return m.graph(), conditions


def _like(x, pool):
    return [y for y in pool if alike(y.tensor.shape, x.tensor.shape)]


def _unary(m, r, x, pool):
    return getattr(m, r.choice(["neg", "abs", "sin", "tanh"]))(x)


def _binary(m, r, x, pool):
    y = r.choice([*_like(x, pool), r.choice([2.0, m.a, m.b + m.a])])
    return getattr(m, r.choice(["add", "sub", "mul", "maximum", "minimum"]))(x, y)


def _where(m, r, x, pool):
    same_ = _like(x, pool)
    return m.where(m.lt(x, r.choice([0.1, r.choice(same_)])), r.choice(same_), r.choice([0.0, r.choice(same_)]))


def _expand(m, r, x, pool):
    shape = [r.choice([2, m.a, m.b]) if same(n, 1) else n for n in x.tensor.shape]
    return m.expand(x, tuple([r.choice([1, 2, m.a])] * r.randint(0, 1) + shape)) if len(shape) < 4 else None


def _permute(m, r, x, pool):
    return m.permute(x, tuple(r.sample(range(x.tensor.ndim), x.tensor.ndim)))


def _reshape(m, r, x, pool):
    shape = list(x.tensor.shape)
    if len(shape) >= 2 and r.random() < 0.7:
        k = r.randrange(len(shape) - 1)
        return m.reshape(x, (*shape[:k], shape[k] * shape[k + 1], *shape[k + 2:]))
    for k, n in enumerate(shape):
        for d in r.sample([m.a, m.b, 3, 2], 4):
            if same(n % d, 0) and not same(n, d):
                return m.reshape(x, (*shape[:k], *r.choice([(d, n // d), (n // d, d)]), *shape[k + 1:]))
    return m.reshape(x, tuple(shape[::-1]))


def _slice(m, r, x, pool):
    if not x.tensor.ndim:
        return None
    d = r.randrange(x.tensor.ndim)
    n = x.tensor.shape[d]
    start, stop, step = r.choice([(0, n, 2), (1, n, 1), (0, n - 1, 1), (n - 1, n, 1), (n // 2, n, 1)])
    return m.slice(x, d, start, stop, step) if not same(n, 1) else None


def _flip(m, r, x, pool):
    return m.flip(x, tuple(d for d in range(x.tensor.ndim) if r.random() < 0.5))


def _pad(m, r, x, pool):
    pads = [tuple(r.choice([0, 0, 1, 2]) for _ in x.tensor.shape) for _ in range(2)]
    return m.pad(x, *pads, r.choice([0.0, 1.5])) if x.tensor.ndim else None


def _cat(m, r, x, pool):
    if not x.tensor.ndim:
        return None
    d = r.randrange(x.tensor.ndim)
    fits = [y for y in pool if y.tensor.ndim == x.tensor.ndim and all(
        k == d or same(a, b) for k, (a, b) in enumerate(zip(x.tensor.shape, y.tensor.shape)))]
    return m.cat(tuple(r.choice(fits) for _ in range(r.randint(1, 3))), d)


def _reduce(m, r, x, pool):
    if not x.tensor.ndim:
        return None
    dims = tuple(d for d in range(x.tensor.ndim) if r.random() < 0.5)
    n = getattr(m, r.choice(["sum", "amax", "amin"]))(x, dims)
    return m.reshape(n, tuple(1 if d in dims else k for d, k in enumerate(x.tensor.shape)))


def _argmax(m, r, x, pool):
    if not x.tensor.ndim:
        return None
    return m.cast(m.argmax(m.round(m.mul(x, 2.0)), (r.randrange(x.tensor.ndim),)), f32)


def _scan(m, r, x, pool):
    return m.scan_sum(x, r.randrange(x.tensor.ndim)) if x.tensor.ndim else None


def _iota(m, r, x, pool):
    n = x.tensor.shape[-1] if x.tensor.ndim else m.a
    return m.cast(m.iota(n, r.choice([0, 2, m.b]), r.choice([1, 2]), i64), f32)


def _gather(m, r, x, pool):
    if x.tensor.ndim != 1:
        return None
    n = x.tensor.shape[0]
    raw = m.cast(m.mul(m.abs(m.sin(m.cast(m.iota(n, 0, 1, i64), f32))), m.mul(m.full((n,), n, f32), 0.999)), i64)
    if r.random() < 0.5:
        return m.gather(x, (raw,), True)
    return m.scatter(x, (raw,), m.add(m.cast(raw, f32), 0.5), r.choice(["set", "add", "amax"]), True)


def _matmul(m, r, x, pool):
    return m.mm(x, m.permute(x, (1, 0), stride=(1, x.tensor.shape[1]))) if x.tensor.ndim == 2 else None


STEPS = [_unary, _binary, _binary, _where, _expand, _permute, _reshape, _reshape, _slice, _flip, _pad, _cat,
         _reduce, _reduce, _argmax, _scan, _iota, _gather, _matmul]
