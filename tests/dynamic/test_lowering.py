"""Functions and modules traced once with sizes that vary, and run at others: ATen graph, prims and training halves
give what eager mode gives, under the conditions that were noted."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.testing._internal.common_methods_invocations import op_db

from minicompile.autograd.function import Backward, Halves
from minicompile.autograd.joint import trace_joint
from minicompile.autograd.narrow import narrow
from minicompile.autograd.partition import split
from minicompile.errors import Refusal
from minicompile.ir.fake import Fake
from minicompile.ir.scalar import symint
from minicompile.ir.spec import TensorSpec, at
from minicompile.ir.sym import NeedsSizes, Size, asking
from minicompile.lower.decompose import decompose
from minicompile.lower.graphs import Prims
from minicompile.lower.trace import callable_inputs, tensors_in, trace, trace_callable

S, T = Size("s0", 7), Size("s1", 5)
OTHERS = ({"s0": 11, "s1": 3}, {"s0": 2, "s1": 2}, {"s0": 30, "s1": 64})


def fake(*shape: object, dtype: torch.dtype = torch.float32, grad: bool = False) -> Fake:
    return Fake.from_spec(TensorSpec.contiguous(dtype, shape), grad)


def ints(*shape: object) -> Fake:
    return fake(*shape, dtype=torch.int64)


def real(x: Any, env: dict[str, int]) -> Any:
    if not isinstance(x, Fake):
        return x
    spec = at(x.spec, env)
    values = torch.randn(spec.shape) if spec.dtype.is_floating_point else torch.randint(0, 2, spec.shape)
    made = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype).copy_(values)
    return made.requires_grad_(x.requires_grad)


def same(got: Any, want: Any, tolerance: float = 1e-4) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) and a.stride() == b.stride(), (a.stride(), b.stride())
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def check(fn: Callable[..., Any], *args: Any, conditions: int | None = 0) -> None:
    """Traces fn for these fakes, and compares with eager mode at other sizes. `conditions`: how many at most."""
    with asking() as asked, torch.no_grad():
        aten = trace_callable(fn, *args)
        prims = decompose(aten)
        aten.check()
        prims.check()
    assert conditions is None or len(asked) <= conditions, [str(c) for c in asked]
    envs = [env for env in OTHERS if all(c.holds(env) for c in asked)]
    assert envs, [str(c) for c in asked]
    for env in envs:
        given = [real(a, env) for a in args]
        state = callable_inputs(fn, *given)[len(given):] if isinstance(fn, nn.Module) else []
        for program in (aten, prims):
            mine, theirs = ([g.clone() for g in given] for _ in range(2))
            with torch.no_grad():
                want = list(tensors_in(fn(*theirs)))
            same(program.run(*mine, *state), want)
            same(mine, theirs)


def assigned(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[:, 1:] = y[:, 1:]
    x[0] += 1
    x.t().mul_(2)
    return x


A, B, C = fake(S, T, 4), fake(T, 4), fake(S, T)
# function, arguments, how many conditions it may leave
FUNCTIONS: dict[str, tuple] = {
    "pointwise": (lambda a, b: torch.relu(a + b) * 2, (A, B), 0),
    "sums": (lambda a: (a.sum(1), a.mean((0, 1)), a.var(1), a.std(0, correction=0)), (A,), 0),
    "softmax": (lambda a: (a.softmax(1), a.log_softmax(0)), (A,), 0),
    "norms": (lambda a, w: (F.layer_norm(a, (4,), w, w), F.normalize(a, dim=1)), (A, fake(4)), 0),
    "products": (lambda a, b: (a @ b.t(), a.transpose(1, 2) @ a, torch.einsum("ijk,lk->il", a, b)), (A, B), 0),
    "views": (lambda a: (a.reshape(-1, 4), a.view(a.shape[0], -1), a.flatten(1), a.transpose(0, 1).contiguous()),
              (A,), 0),
    "slices": (lambda a: (a[:, 0], a[:, -1], a[1:, :-1], a[::2]), (A,), 2),
    "putting together": (lambda a, b: (torch.cat([a, b.expand(a.shape[0], -1, -1)], 1), torch.stack([a, a], 1)),
                         (A, B), 0),
    "repeating": (lambda a: (a.repeat(2, 1, 3), torch.roll(a, 1, 0), a.flip(1)), (A,), 1),
    "scans and orders": (lambda a: (a.cumsum(0), a.argmax(1), a.sort(0).values, a.topk(2, 0).values), (A,), 0),
    "a size as a value": (lambda a: (a * a.shape[0], a / a.shape[1], torch.full((2,), a.shape[0]),
                                     a.sum() / a.numel()), (A,), 0),
    "made of sizes": (lambda a: (torch.arange(a.shape[1]), torch.ones(a.shape[1], a.shape[0]),
                                 torch.eye(a.shape[0])), (A,), 0),
    "triangles": (lambda a: (a.tril(), a.masked_fill(torch.ones_like(a).triu(1).bool(), 0.0)), (C,), 0),
    "padding": (lambda a: F.pad(a, (1, 2, 0, 3)), (A,), 0),
    "lookups": (lambda i, w: (F.embedding(i, w), w[i[:, 0]]), (ints(S, T), fake(10, 4)), 0),
    "picked": (lambda a, i: a[torch.arange(a.shape[0]), i], (C, ints(S)), 0),
    "attention": (lambda q, k: (F.scaled_dot_product_attention(q, k, k),
                                F.scaled_dot_product_attention(k, k, k, is_causal=True)),
                  (fake(S, 2, 3, 8), fake(S, 2, T, 8)), 0),
    "growing cache": (lambda k, new: torch.cat([k, new], 2) @ new.transpose(2, 3), (
        fake(S, 2, T, 8), fake(S, 2, 1, 8)), 0),
    "convolution": (lambda x, w: F.relu(F.conv2d(x, w, padding=1)), (fake(S, 3, T, T), fake(6, 3, 3, 3)), 0),
    "strided convolution": (lambda x, w: F.conv1d(x, w, stride=2, padding=1), (fake(3, 2, S), fake(4, 2, 3)), 1),
    "pools": (lambda x: (F.max_pool2d(x, 3, 1, 1), F.avg_pool2d(x, 2), F.adaptive_avg_pool2d(x, 1)),
              (fake(S, 3, T, T),), 2),
    "statistics": (lambda x: F.batch_norm(x, None, None, None, None, True), (fake(S, 3, T, T),), 0),
    "windows on memory": (lambda a: a.as_strided((a.shape[0], 3), (a.shape[1], 1), 1), (fake(S, T),), 2),
    "writes": (assigned, (C, C), 2),
    "written input": (lambda a: a.add_(1).transpose(0, 1), (A,), 0),
    "halves": (lambda a: a.chunk(2, 1)[1], (A,), 3),
    "asked to be equal": (lambda a, b: a + b, (C, fake(Size("s2", 7), T)), None),
}


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "asked to be equal"])
def test_functions(name: str) -> None:
    fn, args, conditions = FUNCTIONS[name]
    check(fn, *args, conditions=conditions)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.names, self.places = nn.Embedding(50, 16), nn.Embedding(64, 16)
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.names(x) + self.places(torch.arange(x.shape[1]))
        for layer in self.layers:
            h = h + layer.linear2(torch.relu(layer.linear1(layer.norm1(h))))
            b, t, _ = h.shape
            q = h.view(b, t, 4, 4).transpose(1, 2)
            h = layer.norm2(h + F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(b, t, 16))
        return h.mean(1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.last = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.last(F.adaptive_avg_pool2d(torch.relu(x + self.block(x)), 1).flatten(1))


def test_encoder() -> None:
    check(Encoder().eval(), ints(S, T))


def test_residual() -> None:
    check(Residual().eval(), fake(S, 3, 16, 16))
    check(Residual().eval(), fake(2, 3, Size("s0", 16), Size("s1", 24)), conditions=None)


def train(fn: Callable[..., Any], *args: Any) -> None:
    gm = fx.symbolic_trace(fn)
    with asking() as asked:
        joint = trace_joint(gm, args)
        joint.check()
        prims = decompose(joint.aten)
        prims.check()
        cut = split(prims.graph, joint.primals, joint.outputs, joint.tangents, held=joint.held)
        cut.check()
    halves = Halves(Prims(cut.forward).run, cut, joint, gm, lambda arrived: Backward(
        narrow(joint, cut, arrived), Prims(narrow(joint, cut, arrived).graph).run), joint.varies)
    envs = [env for env in OTHERS if all(c.holds(env) for c in asked)]
    assert len(envs) >= 2, [str(c) for c in asked]
    for env in envs:
        mine = [real(a, env) for a in args]
        theirs = [a.detach().clone().requires_grad_(a.requires_grad) for a in mine]
        got, want = ([*tensors_in(f(*given))] for f, given in ((halves, mine), (gm, theirs)))
        same(got, want)
        for results in (got, want):
            sum((r * r).sum() for r in results if r.requires_grad).backward()
        same([a.grad for a in mine if a.requires_grad], [a.grad for a in theirs if a.requires_grad], 1e-3)


X, W, V = fake(S, T, 4, grad=True), fake(4, 8, grad=True), fake(8, grad=True)
TRAINED: dict[str, tuple] = {
    "linear": (lambda x, w, v: torch.relu(x @ w + v).mean(), X, W, V),
    "softmax": (lambda x, w, v: torch.softmax(x @ w + v, -1).sum(1), X, W, V),
    "norm": (lambda x, w, v: F.layer_norm(x @ w, (8,), v, v), X, W, V),
    "cut": (lambda x: torch.cat([x, x * 2], 1)[:, 1:], X),
    "sum": (lambda x: x.sum(), X),
    "gelu": (lambda x: F.gelu(x).transpose(0, 1).reshape(-1, 4), X),
    "attention": (lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True), X),
    "classes": (lambda x, w, t: F.cross_entropy(x.sum(1) @ w, t), X, W, ints(S)),
    "lookup": (lambda w, i: F.embedding(i, w), fake(10, 4, grad=True), ints(S, T)),
    "convolution": (lambda x, w: F.max_pool2d(F.conv2d(x, w, padding=1), 2), fake(S, 3, 8, 8, grad=True),
                    fake(6, 3, 3, 3, grad=True)),
    "statistics": (lambda x: F.batch_norm(x, None, None, None, None, True), fake(S, 3, 4, 4, grad=True)),
    "error": (lambda x, y: F.mse_loss(x, y), fake(S, 3, grad=True), fake(S, 3)),
    "most": (lambda x: x.amax(1), X),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training(name: str) -> None:
    train(*TRAINED[name])


def test_a_backward_takes_sizes_that_no_tensor_has() -> None:
    with asking():
        joint = trace_joint(fx.symbolic_trace(lambda x: x.sum()), [X])
        cut = split(decompose(joint.aten).graph, joint.primals, joint.outputs, joint.tangents, held=joint.held)
    assert cut.sizes == (S, T) and [n.spec for n in cut.backward.inputs[-2:]] == [S, T]
    (gradient,) = Prims(cut.backward).run(torch.tensor(2.0), 3, 6)
    assert torch.equal(gradient, torch.full((3, 6, 4), 2.0))


def test_a_size_without_a_tensor_is_an_input() -> None:
    gm = fx.symbolic_trace(lambda x, n: x[:n] * n)
    with asking() as asked:
        graph = trace(gm, [fake(20, 3), symint(S)])
        prims = decompose(graph)
    assert [n.spec for n in graph.graph.inputs][1] is S
    x = torch.randn(20, 3)
    for n in (3, 19):
        assert all(c.holds({"s0": n}) for c in asked)
        for program in (graph, prims):
            same(program.run(x, n), [x[:n] * n])


# ---- torch's own samples ---------------------------------------------------------------------------

def samples() -> Iterator[tuple[str, Callable[..., Any], list[torch.Tensor]]]:
    """Every sixth operator's first sample that has a dimension to vary, as (name, function, tensors)."""
    for op in op_db[::6]:
        if torch.float32 not in op.dtypes or op.name in ("empty_like", "new_empty", "empty"):
            continue
        for sample in list(op.sample_inputs("cpu", torch.float32, requires_grad=False))[:4]:
            flat = list(tensors_in((sample.input, sample.args, sample.kwargs)))
            if flat and all(t.layout == torch.strided and t.is_contiguous() for t in flat) and any(
                    n > 1 for t in flat for n in t.shape):
                def fn(*tensors: Any, op: Any = op, sample: Any = sample) -> Any:
                    given = iter(tensors)

                    def put(x: Any) -> Any:
                        if isinstance(x, torch.Tensor):
                            return next(given)
                        return type(x)(map(put, x)) if type(x) in (tuple, list) else x
                    first = put(sample.input)
                    return op(first, *map(put, sample.args), **{k: put(v) for k, v in sample.kwargs.items()})
                yield op.name, fn, flat
                break


def tried(fn: Callable[..., Any], flat: list[torch.Tensor]) -> str:
    """What becomes of fn where the largest dimension of its tensors varies: "right", "static", "refused"."""
    most = max(n for t in flat for n in t.shape)
    size = Size("s0", most)
    fakes = [Fake.from_spec(TensorSpec.contiguous(t.dtype, [size if n == most else n for n in t.shape])) for t in flat]
    with torch.no_grad():
        try:
            trace_callable(fn, *flat)
        except Exception:          # not for other reasons, either
            return "refused"
        try:
            with asking() as asked:
                aten = trace_callable(fn, *fakes)
                prims = decompose(aten)
        except NeedsSizes:
            return "static"
        except Refusal as e:
            assert e.code == "varying", e
            return "static"
        envs = [{"s0": n} for n in (most + 1, 2 * most) if all(c.holds({"s0": n}) for c in asked)]
        for env in envs:
            given = flat
            for d in range(max(t.dim() for t in flat)):
                given = [t.index_select(d, torch.arange(env["s0"]) % most) if d < t.dim() and t.shape[d] == most
                         else t for t in given]
            for program in (aten, prims):
                torch.manual_seed(0)
                try:
                    want = list(tensors_in(fn(*[t.clone() for t in given])))
                except Exception:          # not an input that this operator takes
                    return "raises"
                if any(torch.Tag.nondeterministic_seeded in getattr(n.op, "tags", ()) for n in aten.graph.nodes):
                    return "random"
                same(program.run(*[t.clone() for t in given]), want, 1e-3)
        return "right" if envs else "static"


def test_torch_samples() -> None:
    """None is wrong, and most stay open."""
    found: Counter[str] = Counter()
    for name, fn, flat in samples():
        try:
            found[tried(fn, flat)] += 1
        except Exception as e:
            raise AssertionError(f"{name}: {e}") from e
    print(dict(found))
    assert found["right"] > 4 * found["static"] and found["right"] > 50, found
