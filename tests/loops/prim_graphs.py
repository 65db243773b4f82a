"""Prim graphs by hand and at random, for the tests of the loop and schedule stages."""

from __future__ import annotations

import random
from typing import Any

import torch

from minicompile.ir.graph import Graph, Node, Output, map_arg
from minicompile.ir.prims import PRIMS
from minicompile.ir.spec import TensorSpec

f32, f64, i64, i32, boolean = torch.float32, torch.float64, torch.int64, torch.int32, torch.bool


class Make:
    """Builds an ir.Graph: `m.add(x, y)` appends a prim, `m.call(op, …)` a library kernel."""

    def __init__(self) -> None:
        self.inputs: list[Node] = []
        self.nodes: list[Node] = []
        self.outputs: list[Output] = []
        self.writes: list[tuple[int, Node]] = []

    def input(self, *shape: int, dtype: torch.dtype = f32, stride: tuple[int, ...] | None = None) -> Node:
        spec = TensorSpec.contiguous(dtype, shape)
        n = Node(
            f"arg{len(self.inputs)}",
            "input",
            (len(self.inputs),),
            {},
            spec.with_(stride=stride) if stride else spec,
        )
        self.inputs.append(n)
        return n

    def constant(self, t: torch.Tensor) -> Node:
        return self._append("constant", (t,), {}, TensorSpec.of(t), "constant")

    def __getattr__(self, name: str) -> Any:
        prim = PRIMS[name.rstrip("_")]
        return lambda *args, stride=None, **kwargs: self._prim(prim, args, kwargs, stride)

    def _prim(self, prim: Any, args: tuple, kwargs: dict, stride: tuple | None) -> Node:
        dtype, shape = prim.meta(*map_arg(args, lambda a: a.spec), **kwargs)
        spec = TensorSpec.contiguous(dtype, shape)
        return self._append(
            prim, args, kwargs, spec.with_(stride=tuple(stride)) if stride else spec, prim.text_name
        )

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Node:
        out = op(*map_arg(args, lambda a: a.spec and empty(a.spec)), **kwargs)
        many = isinstance(out, (tuple, list))
        spec = tuple(map(TensorSpec.of, out)) if many else TensorSpec.of(out)
        return self._append(op, args, kwargs, spec, op.overloadpacket.__name__)

    def item(self, n: Node, i: int) -> Node:
        return self._append("getitem", (n, i), {}, n.spec[i], "getitem")

    def _append(self, op: Any, args: tuple, kwargs: dict, spec: Any, name: str) -> Node:
        n = Node(f"{name}_{len(self.nodes)}", op, args, kwargs, spec)
        self.nodes.append(n)
        return n

    def output(self, *nodes: Node) -> Make:
        self.outputs += [Output(n, n.tensor.with_(offset=0)) for n in nodes]
        return self

    def graph(self) -> Graph:
        used = {n for n in [o.node for o in self.outputs] + [n for _, n in self.writes]}
        nodes = []
        for n in reversed(self.nodes):
            if n in used:
                used.update(n.operands)
                nodes.append(n)
        g = Graph(
            tuple(self.inputs),
            tuple(reversed(nodes)),
            tuple(self.outputs),
            tuple(self.writes),
            len(self.outputs),
        )
        g.check("test")
        return g


def empty(spec: TensorSpec) -> torch.Tensor:
    t = torch.zeros(max(spec.storage_numel, 1), dtype=spec.dtype)
    return t.as_strided(spec.shape, spec.stride)


def fill(spec: TensorSpec, seed: int) -> torch.Tensor:
    """A tensor of this geometry with values small enough to stay finite in any chain."""
    g = torch.Generator().manual_seed(seed)
    t = torch.zeros(spec.storage_numel + spec.offset, dtype=spec.dtype)
    if spec.dtype.is_floating_point:
        t.copy_(torch.rand(t.shape, generator=g) * 2 - 1)
    else:
        t.copy_(torch.randint(0, 2 if spec.dtype is boolean else 5, t.shape, generator=g))
    return t.as_strided(spec.shape, spec.stride, spec.offset)


def inputs_of(g: Graph, seed: int = 0) -> list[torch.Tensor]:
    return [fill(n.tensor, seed + i) for i, n in enumerate(g.inputs)]


def run_graph(g: Graph, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The meaning of a prim graph, prim by prim; writes are done last."""
    env: dict[Node, Any] = dict(zip(g.inputs, inputs))
    for n in g.nodes:
        args, kwargs = map_arg(n.args, env.__getitem__), map_arg(n.kwargs, env.__getitem__)
        if n.op == "constant":
            env[n] = args[0]
        elif n.op == "getitem":
            env[n] = args[0][args[1]]
        elif (
            getattr(n.op, "kind", "") == "elementwise"
            and len(args) > 1
            and n.op.name not in ("cast", "bitcast")
        ):
            dtype = next(a.dtype for a in args[n.op.name == "where" :] if isinstance(a, torch.Tensor))
            env[n] = n.op.ref(
                *[a if isinstance(a, torch.Tensor) else torch.tensor(a, dtype=dtype) for a in args]
            )
        else:
            env[n] = (n.op.ref if hasattr(n.op, "ref") else n.op)(*args, **kwargs)
    outs = []
    for o in g.outputs:
        fresh = torch.empty(max(o.spec.storage_numel, 1), dtype=o.spec.dtype).as_strided(
            o.spec.shape, o.spec.stride
        )
        outs.append(env[o.node] if o.alias else fresh.copy_(env[o.node]))
    values = [env[n].clone() for _, n in g.writes]
    for (i, _), v in zip(g.writes, values):
        inputs[i].copy_(v)
    return [inputs[o.alias[1]] if o.alias and o.alias[0] == "input" else t for o, t in zip(g.outputs, outs)]


def random_graph(seed: int, size: int = 14) -> Graph:
    """A random prim graph: elementwise prims, views, reductions, gathers, over small shapes."""
    r = random.Random(seed)
    m = Make()
    pool = [
        m.input(*[r.choice([1, 2, 3, 4, 6]) for _ in range(r.randint(0, 3))])
        for _ in range(r.randint(1, 3))
    ]
    for _ in range(size):
        x = r.choice(pool[-6:])
        made = r.choice(STEPS)(m, r, x, pool)
        if made is not None and made.tensor.numel <= 4000:
            pool.append(made)
    outs = r.sample(pool, min(len(pool), r.randint(1, 3)))
    for n in [*outs, pool[-1]]:
        m.output(n) if n.tensor.is_dense else m.output(m.add(n, 0.0))
    for i, n in enumerate(m.inputs):
        same = [v for v in pool if v.tensor.shape == n.tensor.shape]
        if r.random() < 0.3 and same:
            m.writes.append((i, r.choice(same)))
    return m.graph()


def _unary(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    return getattr(m, r.choice(["neg", "abs", "sin", "tanh", "exp2"]))(x)


def _binary(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    same = [y for y in pool if y.tensor.shape == x.tensor.shape]
    y = r.choice([*same, r.choice([2.0, -0.5])])
    return getattr(m, r.choice(["add", "sub", "mul", "maximum", "minimum"]))(x, y)


def _where(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    same = [y for y in pool if y.tensor.shape == x.tensor.shape]
    return m.where(
        m.lt(x, r.choice([0.1, r.choice(same)])), r.choice(same), r.choice([0.0, r.choice(same)])
    )


def _expand(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    shape = [r.choice([2, 3]) if n == 1 else n for n in x.tensor.shape]
    return m.expand(x, tuple([r.choice([1, 2, 3])] * r.randint(0, 1) + shape)) if len(shape) < 4 else None


def _permute(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    dims = tuple(r.sample(range(x.tensor.ndim), x.tensor.ndim))
    return m.permute(x, dims)


def _reshape(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    factors, shape = [], [1] * r.randint(1, 3)
    n = x.tensor.numel
    for p in (2, 3, 5, 7):
        while n and n % p == 0:
            factors.append(p)
            n //= p
    for f in factors:
        shape[r.randrange(len(shape))] *= f
    return m.reshape(x, tuple(shape)) if n == 1 else None


def _slice(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    if not x.tensor.ndim:
        return None
    d = r.randrange(x.tensor.ndim)
    start = r.randrange(x.tensor.shape[d])
    return m.slice(x, d, start, r.randint(start + 1, x.tensor.shape[d]), r.choice([1, 1, 2]))


def _flip(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    return m.flip(x, tuple(d for d in range(x.tensor.ndim) if r.random() < 0.5))


def _pad(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    pads = [tuple(r.choice([0, 0, 1, 2]) for _ in x.tensor.shape) for _ in range(2)]
    return m.pad(x, *pads, r.choice([0.0, 1.5])) if x.tensor.ndim else None


def _cat(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    if not x.tensor.ndim:
        return None
    d = r.randrange(x.tensor.ndim)

    def rest(n: Node) -> tuple:
        return (n.tensor.ndim, n.tensor.shape[:d], n.tensor.shape[d + 1 :])

    fits = [y for y in pool if rest(y) == rest(x)]
    return m.cat(tuple(r.choice(fits) for _ in range(r.randint(1, 3))), d)


def _reduce(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    if not x.tensor.ndim:
        return None
    dims = tuple(d for d in range(x.tensor.ndim) if r.random() < 0.5)
    n = getattr(m, r.choice(["sum", "amax", "amin"]))(x, dims)
    shape = tuple(1 if d in dims else k for d, k in enumerate(x.tensor.shape))
    return m.reshape(n, shape) if r.random() < 0.7 else n


def _argmax(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    if not x.tensor.ndim:
        return None
    d = r.randrange(x.tensor.ndim)  # of a rounded value: ties must not hang on the last bit
    return m.cast(m.argmax(m.round(m.mul(x, 2.0)), (d,)), f32)


def _scan(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    return (
        getattr(m, r.choice(["scan_sum", "scan_amax"]))(x, r.randrange(x.tensor.ndim))
        if x.tensor.ndim
        else None
    )


def _gather(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    if not x.tensor.ndim:
        return None
    shape = (r.choice([2, 3]), *x.tensor.shape[1:])
    n = x.tensor.shape[0]
    raw = m.cast(
        m.mul(
            m.abs(
                m.sin(
                    m.expand(
                        m.reshape(
                            m.cast(m.iota(shape[0], r.randint(0, 3), 1, i64), f32),
                            (shape[0],) + (1,) * (len(shape) - 1),
                        ),
                        shape,
                    )
                )
            ),
            0.999 * n,
        ),
        i64,
    )
    indices = [raw]
    for d in range(1, len(shape)):
        i = m.reshape(
            m.iota(shape[d], 0, 1, i64), tuple(shape[d] if k == d else 1 for k in range(len(shape)))
        )
        indices.append(m.expand(i, shape))
    if r.random() < 0.5:
        return m.gather(x, tuple(indices), True)
    src = m.add(m.cast(raw, f32), 0.5)
    return m.scatter(x, tuple(indices), src, r.choice(["set", "add", "amax"]), True)


def _matmul(m: Make, r: random.Random, x: Node, pool: list[Node]) -> Node | None:
    if x.tensor.ndim != 2:
        return None
    return m.call(torch.ops.aten.mm.default, x, m.permute(x, (1, 0), stride=(1, x.tensor.shape[1])))


STEPS = [
    _unary,
    _unary,
    _binary,
    _binary,
    _binary,
    _where,
    _expand,
    _permute,
    _reshape,
    _slice,
    _flip,
    _pad,
    _cat,
    _reduce,
    _reduce,
    _argmax,
    _scan,
    _gather,
    _matmul,
]
