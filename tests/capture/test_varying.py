"""Numbers that vary become inputs: one more variant, not one per value; and never another answer than eager
mode's."""

from __future__ import annotations

import math
import random

import pytest
import torch

import minicompile

BACKENDS = ("eager", "aot_eager", "reference")


def entries(compiled):
    return compiled.__minicompile__.compiled.entries


def agree(got, expected):
    if isinstance(expected, torch.Tensor):
        assert isinstance(got, torch.Tensor), got
        assert got.dtype == expected.dtype and got.shape == expected.shape
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    elif isinstance(expected, (tuple, list)):
        assert type(got) is type(expected) and len(got) == len(expected)
        for g, e in zip(got, expected):
            agree(g, e)
    else:
        assert type(got) is type(expected) and (got == expected or got != got and expected != expected)


def outcome(f, *args):
    try:
        return f(*args)
    except Exception as error:
        return type(error), str(error)


def same_as_eager(f, calls, backend="eager", variants=None, **options):
    compiled = minicompile.compile(f, backend=backend, **options)
    results = []
    for args in calls:
        args = args if isinstance(args, tuple) else (args,)
        again = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
        results.append((outcome(compiled, *args), outcome(f, *again)))
        agree(*results[-1])
        for a, b in zip(args, again):
            agree(a, b)
    for got, expected in results:          # later calls have left earlier results alone
        agree(got, expected)
    if variants is not None:
        assert len(entries(compiled)) <= variants, [str(g) for e in entries(compiled) for g in e.guards]
    return compiled


X = torch.randn(4, 5)
FLOATS = [0.1, 0.2, -0.5, 2.0, 1.0, 0.0, 7.25]

# name → a function of a tensor and a number; in the graph, or beside it, no value of the number is needed
OPEN = {
    "mul": lambda x, s: x * s,
    "rmul": lambda x, s: s * x,
    "add": lambda x, s: x + s,
    "sub": lambda x, s: x - s,
    "rsub": lambda x, s: s - x,
    "div": lambda x, s: x / (s + 10),
    "rdiv": lambda x, s: s / (x.abs() + 1),
    "alpha": lambda x, s: torch.add(x, x.cos(), alpha=s),
    "sub alpha": lambda x, s: torch.sub(x, x.cos(), alpha=s),
    "in place": lambda x, s: x.clone().mul_(s).add_(x, alpha=s),
    "lerp": lambda x, s: x.lerp(x.cos(), s),
    "addcmul": lambda x, s: torch.addcmul(x, x.cos(), x.sin(), value=s),
    "addcdiv": lambda x, s: torch.addcdiv(x, x.cos(), x.exp(), value=s),
    "clamp": lambda x, s: x.clamp(min=s) + x.clamp(max=s) + x.clamp(s, s + 1),
    "compare": lambda x, s: (x > s, x <= s, x == s),
    "where": lambda x, s: torch.where(x > 0, x, s),
    "masked fill": lambda x, s: x.masked_fill(x > 0, s),
    "fill": lambda x, s: x.clone().fill_(s),
    "full": lambda x, s: torch.full((3,), s) + x[0, 0],
    "foreach": lambda x, s: torch._foreach_add(torch._foreach_mul([x, x.sin()], s), [x, x.cos()], alpha=s),
    "foreach list": lambda x, s: torch._foreach_addcdiv([x, x], [x, x], [x.exp(), x.exp()], [s, 2.0 * s]),
    "integers": lambda x, s: (torch.arange(4) * s, torch.arange(4) + s, torch.arange(4) > s),
    "no dimensions": lambda x, s: (torch.tensor(2.5) * s, x.sum() + s, torch.tensor(3) * s),
    "bfloat16": lambda x, s: (x.bfloat16() * s, x.bfloat16() > s),
    "double": lambda x, s: (x.double() * s, x.double() > s),
    "arithmetic": lambda x, s: x * (1 - s * 0.3) + (s - 4) * -s,
    "derived": lambda x, s: x * math.exp(s) + math.sqrt(abs(s)) + s ** 2 + max(s, 0.5) + min(s, 0.5),
    "returned": lambda x, s: (x + 1, s, s * 2, [s, {"a": s + 1}], -s),
    "no tensor": lambda x, s: (s + 1) * 3,
    "tensor of it": lambda x, s: (torch.scalar_tensor(s, dtype=torch.float64),
                                  torch.full((), s, dtype=torch.float64)),
    "reduction": lambda x, s: (x * s).softmax(-1).sum(),
    "isinstance": lambda x, s: x * s if isinstance(s, (int, float)) and type(s) is not str else x,
    "sum": lambda x, s: x + sum([s, s, 1]),
    "closure": lambda x, s: (lambda: x * s)(),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPEN)
def test_open(name, backend):
    same_as_eager(OPEN[name], [(X, s) for s in FLOATS], backend, variants=2)


@pytest.mark.parametrize("name", [n for n in OPEN if n not in ("lerp", "foreach list", "derived")])
def test_ints(name):
    same_as_eager(OPEN[name], [(X, s) for s in (3, 4, -2, 0, 1, 7)], "aot_eager", variants=2)


# name → (function, values, most variants): the value is needed, wholly or for an outcome
ASKED = {
    "branch": (lambda x, s: x * s if s > 0.3 else x - s, FLOATS, 3),
    "truth": (lambda x, s: x * s if s else x, FLOATS, 3),
    "equal": (lambda x, s: x if s == 1 else x * s, [2.0, 3.0, 1.0, 4.0], 3),
    "modulus": (lambda x, n: x + 1 if n % 3 == 0 else x * n, [1, 2, 3, 4, 5, 6], 4),
    "division": (lambda x, s: x * (1 / s), [1.0, 2.0, 0.0, 4.0], 3),
    "pow": (lambda x, s: x * (s ** 0.5), [1.0, 2.0, -1.0, 4.0], 3),
    "overflow": (lambda x, s: x * (s ** 400), [1.0, 2.0, 1e300, 1.5], 4),
    "size": (lambda x, n: x[:n] + n, [1, 2, 3, 1, 2, 3], 4),
    "reshape": (lambda x, n: x.reshape(n, -1), [1, 2, 4, 5], 8),
    "int": (lambda x, s: x * int(s), [1.0, 1.5, 2.5, 3.0], 4),
    "string": (lambda x, s: (x + s, f"{s:.2f}", str(s), repr(s)), FLOATS[:4], 8),
    "key": (lambda x, s: x * {0.1: 2.0, 0.2: 3.0}.get(s, 4.0), FLOATS[:4], 8),
    "loop": (lambda x, n: [x := x + i for i in range(n)][-1], [1, 2, 3, 2, 1], 4),
    "index": (lambda x, n: [x, x + 1, x + 2][n], [0, 1, 2, 0], 4),
    "tensor": (lambda x, s: torch.tensor(s) * x, FLOATS[:4], 8),
    "dropout": (lambda x, p: torch.nn.functional.dropout(x, p, training=False), [0.1, 0.2, 0.3], 8),
    "power": (lambda x, s: x.abs() ** s, [2.0, 3.0, 0.5, 2.5], 8),
    "single": (lambda x, s: x * s, [1.0, 2.0, 1e39, 3.0, float("inf"), float("nan"), -0.0], 4),
    "huge": (lambda x, n: x + n, [1, 2, 1 << 40, 3], 4),
    "half": (lambda x, s: x.half() * s, [1.0, 2.0, 3.0], 8),
    "cut": (lambda x, s: torch.arange(3).fill_(s), [1.5, 2.5, 3.5], 8),
    "hash": (lambda x, s: x + hash(s) % 7, [1.5, 2.5, 3.5], 8),
    "methods": (lambda x, s: (x, s.is_integer(), s.hex(), s.real), [1.5, 2.0, 3.5], 8),
    "arange": (lambda x, s: torch.arange(0, s, 0.5), [1.5, 2.0, 3.5], 8),
    "math": (lambda x, s: x + math.floor(s) + math.log(s + 8), FLOATS, 8),
    "complex": (lambda x, s: (x, s * 1j), [1.5, 2.0], 8),
    "round": (lambda x, s: x * round(s), [1.5, 2.5, 2.4], 8),
    "type changes": (lambda x, s: x.long() * s, [1.5, 2.5, 2, 3, True, 4], 8),
    "item": (lambda x, s: x + (torch.full((), s) + 1).item(), [1.5, 2.5, 2.4], 8),
    "identity": (lambda x, s: (s is s, s is None, x), [1.5, 2.5], 8),
    "interpolate": (lambda x, s: torch.nn.functional.interpolate(x[None, None], scale_factor=s), [1.5, 2.0], 8),
    "int bits": (lambda x, n: x + (n & 3) + (n << 2), [1, 2, 5, 6], 8),
    "str times": (lambda x, n: (x, "ab" * n, [1] * n), [1, 2, 3], 8),
    "swallowed": (lambda x, s: _swallow(x, s), [1.0, 2.0, 0.0, 4.0], 3),
}


def _swallow(x, s):
    try:
        return x * (1 / s)
    except ZeroDivisionError as error:
        return x, str(error)


@pytest.mark.parametrize("backend", ("eager", "aot_eager"))
@pytest.mark.parametrize("name", ASKED)
def test_asked(name, backend):
    f, values, variants = ASKED[name]
    same_as_eager(f, [(X, s) for s in values], backend, variants=variants)


def test_attributes_and_dicts():
    class Thing:
        rate = 0.5

    thing, table, box = Thing(), {"lr": 0.1}, [1.0]

    def f(x):
        table["lr"] = table["lr"] * 0.9
        thing.rate += 1
        return x * thing.rate + table["lr"] * box[0]

    compiled = minicompile.compile(f, backend="aot_eager")
    rate, lr = thing.rate, table["lr"]
    for i in range(6):
        box[0] = float(i)
        rate, lr = rate + 1, lr * 0.9
        agree(compiled(X), X * rate + lr * box[0])
        assert (thing.rate, table["lr"]) == (rate, lr)
    assert len(entries(compiled)) <= 4


def test_gradients():
    def f(x, s):
        return (x * s).sin().sum() * s

    compiled = minicompile.compile(f, backend="aot_eager")
    for s in FLOATS:
        a, b = X.clone().requires_grad_(), X.clone().requires_grad_()
        compiled(a, s).backward()
        f(b, s).backward()
        agree(a.grad, b.grad)
    assert len(entries(compiled)) == 2


def test_native():
    def f(x, y, s, n):
        return (x * s + y * (1 - s)).tanh() + n, x.add(y, alpha=n)

    calls = [(X, X.cos(), s, n) for s, n in zip(FLOATS, range(3, 99))]
    same_as_eager(f, calls, "cpp", variants=3)


@pytest.mark.parametrize("name", ["tensor of it", "foreach list", "bfloat16", "clamp", "where"])
def test_open_native(name):
    same_as_eager(OPEN[name], [(X, s) for s in FLOATS], "cpp", variants=2)


@pytest.mark.parametrize("seed", range(20))
def test_random_arithmetic(seed):
    """Random expressions of two numbers and a tensor, with branches on them."""
    rng = random.Random(seed)

    def expression(depth):
        if not depth:
            return rng.choice(["s", "n", "2", "0.5", "-1.25", "s", "n"])
        a, b = expression(depth - 1), expression(depth - 1)
        return rng.choice([f"({a} + {b})", f"({a} * {b})", f"({a} - {b})", f"({a} / {b})", f"({a} // {b})",
                           f"({a} % {b})", f"(-{a})", f"abs({a})", f"max({a}, {b})", f"({a} if {a} < {b} else {b})",
                           f"math.floor({a})", f"float({a})", f"round({a}, 2)"])

    e, g = expression(3), expression(2)
    f = eval(f"lambda x, s, n: (x * ({e}) + ({g}), {g}, ({e}) > 0)", {"math": math, "torch": torch})
    calls = [(X, rng.choice([0.0, 1.0, rng.uniform(-3, 3)]), rng.randint(-3, 3)) for _ in range(12)]
    same_as_eager(f, calls, rng.choice(BACKENDS))


def test_fullgraph_and_modules():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.scale, self.step = torch.nn.Linear(5, 5), 1.0, 0

        def forward(self, x):
            self.step += 1
            return self.linear(x) * self.scale / self.step

    model = Scaled()
    compiled = minicompile.compile(model, backend="aot_eager", fullgraph=True)
    for i in range(1, 8):
        model.scale = 0.5 * i
        expected = model.linear(X) * model.scale / i
        agree(compiled(X), expected)
    assert len(entries(compiled)) <= 4


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.1), lambda p: torch.optim.RMSprop(p, lr=0.1),
    lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)])
def test_schedulers(make):
    """A learning rate that a scheduler changes makes one more variant."""
    torch.manual_seed(0)
    start = [torch.randn(3, 4), torch.randn(5)]
    results = []
    for compiled in (False, True):
        params = [torch.nn.Parameter(p.clone()) for p in start]
        optimizer = make(params)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        step = minicompile.compile(optimizer.step, backend="aot_eager") if compiled else optimizer.step
        for i in range(10):
            for p in params:
                p.grad = p.detach().cos() * i
            step()
            scheduler.step()
        results.append([p.detach() for p in params])
        if compiled:
            assert len(entries(step)) <= 4
    agree(results[1], results[0])
