"""Breaks lose nothing: whatever the depth and the context of an operation that capture refuses, the program's values,
effects (in order, once), exceptions and gradients are eager mode's, and what lies around it is compiled."""

import contextlib
import functools
import random
import traceback

import pytest
import torch
from torch import nn

from minicompile.capture.compiled import Compiled, force_eager
from minicompile.errors import Refusal

from .common import checked, compiled, refusals

PROGRAMS = []
COUNT = 0


def program(f):
    PROGRAMS.append(f)
    return f


@force_eager
def note(log, *values):
    """Says in eager mode what it is given, and gives the sum of the last."""
    log.append([v.tolist() if isinstance(v, torch.Tensor) else v for v in values])
    last = values[-1] if values else 0
    return float(last.sum()) if isinstance(last, torch.Tensor) else last


@force_eager
def fail(log, kind=ValueError, text="failed"):
    log.append("failing")
    raise kind(text)


# Depths


@program
def at_the_start(x, log): note(log, x); return x + 1
@program
def at_the_end(x, log): y = x * 2; return note(log, y)
@program
def in_an_expression(x, log): return x * 2 + note(log, x + 1) * (x - note(log, x))
@program
def unused_result(x, log): y = x + 1; note(log, "a", y); z = y * 2; note(log, "b", z); return z - y


def one(x, log): y = x + 1; n = note(log, y); return y * n
def two(x, log): return one(x * 2, log) + x
def three(x, log): y = two(x - 1, log); return y, two(y, log)


@program
def depth_one(x, log): return one(x, log) + 1
@program
def depth_two(x, log): a = x.exp(); return two(a, log) + a
@program
def depth_three(x, log): a, b = three(x, log); return a - b, a is b
@program
def recursive(x, log):
    def down(n, x):
        if n == 0:
            return note(log, x) + x
        return down(n - 1, x + n) * n
    return down(3, x)


@program
def keywords(x, log):
    def f(a, /, b=2, *args, c, d=4, **more):
        note(log, a, b, args, c, d, sorted(more))
        return a * b + sum(args) + c * d + sum(more.values())
    return f(x, 3, 4, 5, c=6, e=7) + f(x, c=1) + f(*[x, 2], **{"c": 3, "z": 4})


# Loops


@program
def in_for(x, log):
    for i in range(4):
        x = x + i
        note(log, i, x)
        x = x * 2
    return x


@program
def in_nested_loops(x, log):
    for i, name in enumerate(["a", "b"]):
        for y in (x, x * 2):
            if i and y is x:
                continue
            note(log, name, y)
            x = x + y
        else:
            x = x - 1
    return x


@program
def in_while(x, log):
    n = 0
    while n < 3:
        n += 1
        x = x + note(log, n)
        if n == 2:
            note(log, "two")
            continue
        x = x * 1.5
    return x, n


@program
def break_out_of_loop(x, log):
    for i in range(10):
        if note(log, i) > 2:
            break
        x = x + i
    else:
        x = x * 0
    return x


@program
def over_a_dict(x, log):
    d = {"a": x, "b": x + 1, "c": 3}
    for k, v in d.items():
        note(log, k, v)
        x = x + v
    return x, d


@program
def over_zip_and_map(x, log):
    out = []
    for a, b in zip([1, 2, 3], map(lambda i: x * i, (4, 5, 6))):
        note(log, a, b)
        out.append(a * b)
    return out


@program
def list_comprehension(x, log): return [note(log, i, x * i) + x for i in range(3)]
@program
def nested_comprehension(x, log): return {i: [x + note(log, i, j) for j in range(2)] for i in "ab"}
@program
def sum_of_generator(x, log): return sum(x * note(log, i) for i in range(1, 4))


@program
def many_turns(x, log):
    for i in range(60):
        note(log)
        x = x + 1
    return x


# Contexts


class Manager:
    def __init__(self, log, swallow=False): self.log, self.swallow = log, swallow
    def __enter__(self): self.log.append("enter"); return self
    def __exit__(self, kind, e, trace): self.log.append(("exit", kind and kind.__name__, str(e))); return self.swallow


@contextlib.contextmanager
def managed(log):
    log.append("begin")
    try:
        yield 3
    finally:
        log.append("end")


@program
def in_with(x, log):
    with Manager(log) as m:
        x = x + 1
        note(log, x)
        x = x * 2
    return x, m.swallow


@program
def in_two_withs(x, log):
    with Manager(log), Manager(log, True):
        note(log, x)
        x = x / 2
        fail(log)
    note(log, "after")
    return x


@program
def in_a_generator_context(x, log):
    with managed(log) as n:
        x = x * n
        note(log, x)
        x = x + 1
    return x


@program
def without_gradients(x, log):
    with torch.no_grad():
        y = x * 2
        note(log, torch.is_grad_enabled())
        z = y + x
    note(log, torch.is_grad_enabled())
    return y, z, z.requires_grad, (x * z)


@program
def gradients_on_and_off(x, log):
    torch.set_grad_enabled(False)
    note(log, torch.is_grad_enabled())
    y = x * 2
    with torch.enable_grad():
        z = x * 3
        note(log, torch.is_grad_enabled())
        w = z * 2
    torch.set_grad_enabled(True)
    return y, w


@program
def in_autocast(x, log):
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.stack([x, x]) @ torch.stack([x, x]).t()
        note(log, torch.is_autocast_enabled("cpu"), y.float())
        z = y @ y
    return z


@program
def entering_breaks(x, log):
    class Breaking:
        def __enter__(self): note(log, "in"); return x * 2
        def __exit__(self, *exc): note(log, "out")
    with Breaking() as y:
        z = y + 1
    return z


# Exceptions


@program
def caught(x, log):
    try:
        y = x + 1
        fail(log)
        y = y + 100
    except ValueError as e:
        log.append(str(e))
        y = y * 2
    finally:
        log.append("finally")
    return y


@program
def caught_further_out(x, log):
    def inner(y):
        try:
            fail(log, KeyError, "k")
        finally:
            log.append("inner")
        return y
    try:
        x = inner(x * 2)
    except KeyError as e:
        x = x - 1
        note(log, repr(e), e.__context__)
    return x


@program
def not_caught(x, log):
    def inner(y): y = y * 2; fail(log, RuntimeError, "through"); return y
    return inner(x + 1)


@program
def raised_by_itself(x, log):
    log.append("before")
    if x.sum() > -1e9:
        raise ArithmeticError(f"sum {x.sum().item():.1f}")
    return x


@program
def fails_in_torch(x, log): log.append(1); y = x + 1; return y @ torch.ones(3, 5, 7)
@program
def assertion(x, log): y = x + 1; note(log, y); assert y is None, "not none"; return y


@program
def in_a_handler(x, log):
    try:
        [][1]
    except IndexError as e:
        note(log, str(e))
        x = x + 1
        note(log, "again")
    return x * 2


@program
def in_finally(x, log):
    try:
        x = x + 1
    finally:
        note(log, x)
    return x


@program
def retry(x, log):
    for attempt in range(3):
        try:
            if attempt < 2:
                fail(log, OSError, str(attempt))
            note(log, "fine")
            x = x + attempt
            break
        except OSError as e:
            log.append(str(e))
            x = x * 2
    return x


@program
def raise_from(x, log):
    try:
        try:
            fail(log)
        except ValueError as e:
            raise TypeError("other") from e
    except TypeError as e:
        return x + 1, str(e), str(e.__cause__)


# Closures, objects


@program
def nonlocal_variable(x, log):
    total, calls = x, 0
    def add(y):
        nonlocal total, calls
        calls += 1
        total = total + y
        note(log, calls, total)
        total = total * 2
        return calls
    return add(1) + add(x), total, calls


@program
def closures_are_shared(x, log):
    y = x
    def get(): return y * 2
    def put(v):
        nonlocal y
        y = v
    note(log, get())
    put(x + 5)
    note(log, get())
    return get(), y


@program
def closure_over_argument(x, log):
    f = lambda n: x * n
    note(log, f(2))
    x = x + 1
    return f(3), [f(i) for i in range(2)]


@program
def unbound_and_deleted(x, log):
    a = 1
    note(log, a)
    del a
    if log is None:
        b = 2
    note(log, "x")
    try:
        return x + b
    except UnboundLocalError as e:
        return str(e), x


class Base:
    def __init__(self, log, scale): note(log, "made", scale); self.log, self.scale = log, scale
    def run(self, x): note(self.log, self.scale, x); return x * self.scale
    @property
    def size(self): return note(self.log, self.scale)
    def __getitem__(self, i): return note(self.log, i) + self.scale
    def __add__(self, other): return note(self.log, "add") or other + self.scale
    def __len__(self): note(self.log, "len"); return 3


class Derived(Base):
    def run(self, x):
        y = super().run(x + 1)
        self.last = y
        return super().run(y) + self.scale


@program
def objects(x, log):
    d = Derived(log, 3)
    y = d.run(x)
    return y + d.size + d[4] + len(d), d.last, d.scale


@program
def operators(x, log): return (Base(log, 2) + x), bool(Base(log, 1))
@program
def sort_key(x, log): return sorted([3, 1, 2], key=lambda v: note(log, v)), x + 1
@program
def partial_call(x, log): return functools.partial(one, log=log)(x) + functools.reduce(lambda a, b: a + note(log, b), [1, 2, x])


@program
def mutation_around(x, log):
    items, table = [x], {"n": 0}
    for i in range(3):
        items.append(items[-1] * 2)
        table["n"] += 1
        note(items, i)
        note(log, len(items), table)
    return items, table


@program
def appended_result(x, log): out = [0]; out.append(note(log, x)); out.insert(0, note(log, x + 1) * x); return out
@program
def global_counter(x, log):
    global COUNT
    COUNT += 1
    note(log, COUNT)
    COUNT += 10
    note(log, COUNT)
    return x + 1


@program
def aliases(x, log):
    a = [x]
    b = {"a": a, "again": a}
    note(log, len(b))
    b["a"].append(x + 1)
    return b, b["a"] is b["again"] is a, a[0] is x


@program
def locals_are_seen(x, log):
    y = x + 1
    note(log, sorted(locals()))
    z = 3
    return sorted(locals()), y * z


@program
def in_place(x, log):
    y = x.clone()
    y.add_(1)
    view = y[1:]
    note(log, y)
    view.mul_(2)
    note(log, y)
    return y, view


@program
def numbers_from_data(x, log):
    y = x * 2
    n = int(y.numpy().argmax())
    z = y[n] if y.numpy().sum() > 1 else y
    return z + random.random() * 0, n


@program
def random_numbers(x, log):
    a = torch.rand(3)
    note(log, a)
    b = torch.randn(2)
    note(log, torch.rand(()))
    return a, b, torch.rand(1)


@program
def generator_in_caller(x, log):
    def numbers():
        for i in range(3):
            log.append(("yield", i))
            yield x * i
        log.append("done")
    for y in numbers():
        note(log, y)
        x = x + y
    return x


@program
def breaking_generator(x, log):
    def numbers():
        for i in range(3):
            note(log, "inside", i)
            yield x * i
    return [y + 1 for y in numbers()], list(zip(numbers(), "ab"))


@program
def conditional(x, log): return (note(log, 0) or note(log, x)) and (x if note(log, 1) else x + 1)
@program
def chained(x, log): return 0 < note(log, 1) < note(log, 3) <= note(log, 3) < 2, x * 2
@program
def unpacking(x, log): (a, *b), c = note(log, [1, 2, 3]), x; return a, b, *note(log, (4, 5)), c
@program
def formatted(x, log): return f"{note(log, 3)!r:>5} {note(log, 1.5):.2f}", x


@program
def matched(x, log):
    match note(log, {"kind": [1, 2]}):
        case {"kind": [a, b]}:
            return x * a + b
    return x


# The tests


def outcome(f, x, seed=0):
    """What a call did, comparable: result or exception with the functions of its traceback, effects, state after."""
    global COUNT
    torch.manual_seed(seed)
    random.seed(seed)
    COUNT, log = 0, []
    try:
        result = ("returned", f(x, log))
    except Exception as e:
        names = [s.name for s in traceback.extract_tb(e.__traceback__) if s.filename == __file__]
        result = ("raised", type(e), str(e), names[1:])
    mode, _ = torch.is_grad_enabled(), torch.set_grad_enabled(True)
    return plain(result), plain(log), COUNT, mode, torch.rand(1).item(), random.random()


def plain(value):
    if isinstance(value, torch.Tensor):
        return value.tolist(), value.dtype, value.requires_grad
    if isinstance(value, (list, tuple)):
        return [type(value), *map(plain, value)]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


X = torch.tensor([0.5, -1.0, 2.0])


@pytest.mark.parametrize("grad", [False, True], ids=["", "grad"])
@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
def test_as_eager(f, grad):
    c = compiled(f)
    for k in (0, 0, 1, 0):
        x = (X + k).requires_grad_(grad)
        assert outcome(c, x, k) == outcome(f, x, k)
    assert refusals(c), "something breaks"


DIFFERENTIABLE = [depth_two, in_for, in_with, without_gradients, nonlocal_variable, objects, list_comprehension, retry, in_place]


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []


@pytest.mark.parametrize("f", DIFFERENTIABLE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", ["eager", "cpp"])
def test_gradients_flow_through_breaks(f, backend):
    import minicompile

    grads = []
    for call in (f, minicompile.compile(f, backend=backend)):
        x = X.clone().requires_grad_()
        for _ in range(2):
            sum(t.sum() for t in tensors(call(x, [])) if t.requires_grad).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.log = []

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
            note(self.log, x.shape[0])
        return x


def test_module():
    net = Net()
    events = []
    c = Compiled(nn.Module._call_impl, checked, on_event=lambda kind, payload: events.append(kind))
    expected = net(X)
    for _ in range(3):
        assert torch.equal(c(net, X), expected)
    assert len(net.log) == 12 and "refusal" not in events


def test_a_loop_is_compiled_once():
    c = compiled(many_turns)
    c(X, [])
    assert len(c.breaks) == 2, "the operation, and the loop's own iterator"
    captured = [kind for kind, _ in c.events].count("capture")
    assert captured <= 6
    c(X, [])
    assert [kind for kind, _ in c.events].count("capture") == captured


def test_breaks_know_what_they_cost():
    c = compiled(unused_result)
    c(X, [])
    c(X, [])
    assert [(r.refusal.calls, r.refusal.seconds > 0) for r in c.breaks.values()] == [(2, True)] * 2
    lines = [r.refusal.where.line for r in c.breaks.values()]
    assert set(lines) == {unused_result.__code__.co_firstlineno + 1}


def test_the_rest_of_all_frames_is_one_graph():
    c = compiled(depth_three)
    c(X, [])
    graphs = [p for kind, p in c.events if kind == "capture" and p.has_graph]
    assert len(graphs) == 3 and len(c.breaks) == 2


def test_fullgraph_raises_with_all_reasons_and_does_nothing():
    log = []

    def f(x):
        log.append(1)
        y = x + 1
        note(log, y)
        for _ in range(2):
            y = y * 2
            fail(log)
        return y.numpy()

    with pytest.raises(Refusal) as raised:
        compiled(f, fullgraph=True)(X)
    text = str(raised.value)
    assert text.startswith("[disabled]") and "breaks at 4 places" in text and log == []
    assert text.count("[disabled]") == 4 and "4. R" in text and "y.numpy()\n" in text and "^^^" in text and "hint" in text


def test_nothing_happens_twice_when_values_change():
    def f(x, log):
        log.append("a")
        y = x + 1
        if y.sum() > 0:
            note(log, "positive")
            log.append("b")
            return y * 2
        note(log, "negative")
        return y

    c = compiled(f)
    for x in (X, X - 10, X, X - 10, X + 3, X - 9):
        assert outcome(c, x) == outcome(f, x)
