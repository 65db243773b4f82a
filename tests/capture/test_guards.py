"""Whatever a captured program has read may change between calls; the next call gives what eager mode
gives."""

import linecache
import math

import pytest
import torch
from torch import nn

import minicompile
from minicompile.capture.capture import capture_call
from minicompile.capture.guards import first_failure

from .common import compiled

X = torch.randn(3, 4)
SCALE = 2.0
TABLE = {"a": 1, "b": [1, 2]}


class Config:
    factor = 3
    limits = (1, 2)

    def __init__(self):
        self.bias, self.items, self.nested = 0.5, [1, 2], {"k": {"deep": 1}}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.config = Config()
        self.drop = nn.Dropout(0.5)
        self.register_buffer("shift", torch.ones(4))
        self.flag = True
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def scale(self, x):
        return x * 2

    def forward(self, x, k=1.0):
        y = self.scale(self.drop(self.inner(x)) + self.shift) * k
        for layer in self.layers:
            y = layer(y)
        if self.flag:
            y = (
                y
                + self.config.bias * self.config.factor
                + sum(self.config.items)
                + self.config.nested["k"]["deep"]
            )
        return y * len(self.config.limits)


def root(module, *args, **kwargs):
    return module(*args, **kwargs)


def swap_hook(m):
    m.inner.register_forward_hook(lambda module, args, out: out + 1)


def swap_pre_hook(m):
    m.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def set_class_factor(m):
    m.config.__class__ = type("Config", (Config,), {"factor": 7})


CHANGES = {
    "attribute": lambda m: setattr(m, "flag", False),
    "attribute of another type": lambda m: setattr(m, "flag", 1),
    "nested attribute": lambda m: setattr(m.config, "bias", 0.75),
    "list item": lambda m: m.config.items.__setitem__(0, 5),
    "list length": lambda m: m.config.items.append(3),
    "nested dict": lambda m: m.config.nested["k"].update(deep=9),
    "class attribute": set_class_factor,
    "instance hides class attribute": lambda m: setattr(m.config, "factor", 11),
    "instance hides method": lambda m: setattr(m, "scale", lambda x: x * 5),
    "instance hides forward": lambda m: setattr(m.inner, "forward", lambda x: x),
    "forward hook": swap_hook,
    "pre hook": swap_pre_hook,
    "training": lambda m: m.layers.train(),
    "parameter replaced": lambda m: setattr(m.inner, "weight", nn.Parameter(torch.zeros(4, 4))),
    "parameter changed in place": lambda m: m.inner.weight.data.add_(1),
    "parameter frozen": lambda m: m.inner.weight.requires_grad_(False),
    "bias removed": lambda m: setattr(m.inner, "bias", None),
    "buffer replaced by another dtype": lambda m: setattr(m, "shift", torch.ones(4, dtype=torch.bfloat16)),
    "module replaced": lambda m: setattr(m, "inner", nn.Identity()),
    "module appended": lambda m: m.layers.append(nn.Linear(4, 4)),
    "module removed": lambda m: m.layers.__delitem__(0),
    "weights tied": lambda m: setattr(m.layers[1], "weight", m.layers[0].weight),
}


@pytest.mark.parametrize("name", CHANGES)
def test_module_state(name):
    torch.manual_seed(0)
    m = Net().eval()
    c = compiled(root)
    with torch.no_grad():
        assert torch.equal(c(m, X), root(m, X))
        assert torch.equal(c(m, X), root(m, X))
        assert [e.hits for e in c.entries] == [1]
        CHANGES[name](m)
        assert torch.equal(c(m, X), root(m, X))
        assert torch.equal(c(m, X, k=2.0), root(m, X, k=2.0))
    assert not any(kind == "refusal" for kind, _ in c.events), c.events
    same_program = name in ("parameter replaced", "parameter changed in place", "training", "weights tied")
    assert any(kind == "recompile" for kind, _ in c.events)
    if not same_program:
        assert len(c.entries) >= 3


def test_nothing_changes_nothing_recompiles():
    m, c = Net().eval(), compiled(root)
    with torch.no_grad():
        for _ in range(5):
            c(m, torch.randn(3, 4))
    assert [e.hits for e in c.entries] == [4]


ARGUMENTS = [
    (X, torch.randn(5, 4)),
    (X, X.double()),
    (X, X.t()),
    (X, X[:, :2]),
    (X, X.clone().requires_grad_()),
    (X, nn.Parameter(X)),
    (X, 3),
    (1, True),
    (1, 2),
    (1, 1.0),
    (0.0, -0.0),
    (float("nan"), 1.0),
    ("a", "b"),
    (None, 0),
    ([1], [1, 2]),
    ([1], (1,)),
    ([1, 2], [1, 3]),
    ({"a": 1}, {"b": 1}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ((1, X), (1, 2)),
    ((1, (2, 3)), (1, (2, 4))),
    ({"k": [X]}, {"k": [X, X]}),
    (torch.float32, torch.float64),
    (Config(), Net()),
    (slice(1), slice(2)),
]


@pytest.mark.parametrize("first, second", ARGUMENTS, ids=lambda v: type(v).__name__)
def test_arguments(first, second):
    def f(v, x):
        if isinstance(v, torch.Tensor):
            return x.sum() + v.sum().to(x.dtype), v.shape, v.requires_grad
        if isinstance(v, dict):
            return x + 1, list(v.items())
        return x + 1, [v], type(v)

    c = compiled(f)
    for v in (first, second, first, second):
        got, expected = c(v, X), f(v, X)
        assert torch.equal(got[0], expected[0])
        assert repr(got[1:]) == repr(expected[1:])
    if (
        type(first) is not list or type(second) is not list
    ):  # a list that only passes through is not looked into
        assert len(c.entries) == 2


def test_nan_is_not_a_miss():
    c = compiled(lambda v, x: x + (1 if math.isnan(v) else 2))
    c(float("nan"), X), c(float("nan"), X)
    assert [e.hits for e in c.entries] == [1]


def read_global(x):
    return x * SCALE + TABLE["a"] + TABLE["b"][1]


@pytest.mark.parametrize("change", ["SCALE", "TABLE", "item", "nested"])
def test_globals(change, monkeypatch):
    c = compiled(read_global)
    assert torch.equal(c(X), read_global(X))
    if change == "SCALE":
        monkeypatch.setitem(globals(), "SCALE", 3.0)
    elif change == "TABLE":
        monkeypatch.setitem(globals(), "TABLE", {"a": 5, "b": [0, 0]})
    elif change == "item":
        monkeypatch.setitem(TABLE, "a", 8)
    else:
        monkeypatch.setitem(TABLE, "b", [1, 9])
    assert torch.equal(c(X), read_global(X))
    assert len(c.entries) == 2


def test_cells():
    n, t = 1, torch.ones(4)

    def f(x):
        return x * n + t

    c = compiled(f)
    assert torch.equal(c(X), f(X))
    n = 5
    assert torch.equal(c(X), f(X))
    t = torch.zeros(4)
    assert torch.equal(c(X), f(X))
    assert len(c.entries) == 2


def test_defaults():
    def inner(x, k=2, *, j=3):
        return x * k + j

    def f(x):
        return inner(x)

    c = compiled(f)
    assert torch.equal(c(X), f(X))
    inner.__defaults__ = (7,)
    assert torch.equal(c(X), f(X))
    inner.__kwdefaults__ = {"j": 9}
    assert torch.equal(c(X), f(X))


def test_function_replaced(monkeypatch):
    def f(x):
        return helper(x)

    c = compiled(f)
    assert torch.equal(c(X), X + 1)
    monkeypatch.setitem(globals(), "helper", lambda x: x - 1)
    assert torch.equal(c(X), X - 1)


def helper(x):
    return x + 1


def test_builtin_hidden_by_a_global(monkeypatch):
    def f(x):
        return x + len([1, 2])

    c = compiled(f)
    assert torch.equal(c(X), X + 2)
    monkeypatch.setitem(globals(), "len", lambda s: 10)
    assert torch.equal(c(X), X + 10)


def test_method_replaced_on_class(monkeypatch):
    m, c = Net().eval(), compiled(root)
    with torch.no_grad():
        c(m, X)
        monkeypatch.setattr(Net, "scale", lambda self, x: x * 100)
        assert torch.equal(c(m, X), root(m, X))


def mode_sensitive(x):
    y = x.relu() if torch.is_grad_enabled() else x
    return y + torch.tensor(1.5)


def test_grad_mode_and_default_dtype():
    c = compiled(mode_sensitive)
    assert torch.equal(c(X), mode_sensitive(X))
    with torch.no_grad():
        assert torch.equal(c(X), mode_sensitive(X))
    assert len(c.entries) == 2
    torch.set_default_dtype(torch.float64)
    try:
        got, expected = c(X.double()), mode_sensitive(X.double())
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, expected)


def test_identity_among_arguments():
    def f(a, b):
        return a + b, a is b

    c, y = compiled(f), torch.randn(3, 4)
    for a, b in ((X, y), (X, X), (y, y), (y, X)):
        assert torch.equal(c(a, b)[0], a + b)
        assert c(a, b)[1] is (a is b)


def test_aliasing_inputs_that_are_written():
    def f(a, b):
        a.add_(1)
        return a + b

    c = compiled(f)
    a, b = torch.randn(4), torch.randn(4)
    assert torch.equal(c(a.clone(), b), f(a.clone(), b))
    base = torch.randn(8)
    other = base.clone()
    assert torch.equal(c(base[:4], base[2:6]), f(other[:4], other[2:6]))
    assert torch.equal(base, other)


def test_limit_drops_the_least_recently_used():
    c = compiled(lambda x, k: x * len(k), limit=3)
    for k in range(5):
        assert torch.equal(c(X, "k" * k), X * k)
    assert len(c.entries) == 3
    assert sum(kind == "evicted" for kind, _ in c.events) == 2


def test_a_miss_names_the_guard():
    def f(x, k):
        return x * k

    c = compiled(f)
    c(X, 1), c(X, 2)
    ((_, reasons),) = [e for e in c.events if e[0] == "recompile"]
    assert "k == 1" in reasons[0] and "found int 2" in reasons[0] and "test_guards.py" in reasons[0]


def test_slow_check_agrees_with_the_native_one():
    m = Net().eval()
    for change in CHANGES.values():
        capture = capture_call(root, m, X)
        assert first_failure(capture.guards[1:], [m, (X,), {}]) is None
        change(m)
    assert first_failure(capture.guards[1:], [m, (X.double(),), {}]) is not None


def test_guards_are_printed_with_their_line():
    text = str(capture_call(root, Net().eval(), X))
    assert "module.flag is" in text and "module.inner.weight: Parameter float32[4, 4]" in text
    assert "test_guards.py" in text


def test_evicted_and_reset_variants_are_let_go():
    def f(x, k):
        return x * k

    c = compiled(f, limit=2)
    before = {name for name in linecache.cache if name.startswith("<minicompile")}
    for k in range(6):
        c(X, k)
    assert len({name for name in linecache.cache if name.startswith("<minicompile")} - before) == 2
    c.reset()
    assert {name for name in linecache.cache if name.startswith("<minicompile")} == before
    assert c.entries == []


def test_tangents_are_not_lost():
    """Forward-mode differentiation: a tensor's tangent is nowhere in what guards compare."""
    forward_ad = torch.autograd.forward_ad

    def f(x):
        return x * x

    x, c = torch.randn(4), compiled(f)
    c(x)
    for call in (c, compiled(f)):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones(4))
            torch.testing.assert_close(forward_ad.unpack_dual(call(dual)).tangent, 2 * x)
    torch.testing.assert_close(c(x), f(x))


def test_transforms_of_torch_func_around_a_compiled_function():
    c = compiled(lambda x: (x * x).sum())
    x, rows = torch.randn(4), torch.randn(3, 4)
    c(x)
    torch.testing.assert_close(torch.func.grad(c)(x), 2 * x)
    torch.testing.assert_close(torch.func.vmap(c)(rows), (rows * rows).sum(1))
    torch.testing.assert_close(torch.func.jvp(c, (x,), (torch.ones(4),))[1], (2 * x).sum())


def test_tensors_made_in_inference_mode_are_not_written_outside():
    c = compiled(lambda x: x.add_(1))
    with torch.inference_mode():
        x = torch.zeros(3)
        y = c(x).clone()
    with torch.no_grad():
        for f, t in ((c, x), (lambda x: x.add_(1), y)):
            with pytest.raises(RuntimeError, match="inference tensor"):
                f(t)
    assert torch.equal(x, y)          # eager mode says so after it has written


@pytest.mark.parametrize("backend", ["aot_eager", "reference"])
@pytest.mark.parametrize("f", [lambda x: x.mul_(1), lambda x: x.add_(0), lambda x: x.neg_().neg_(), lambda x: x * 1])
def test_writes_that_change_no_value_are_writes(f, backend):
    """What saved the tensor for its backward is told, as in eager mode."""
    c = minicompile.compile(f, backend=backend)
    x = torch.randn(3)
    for _ in range(2):
        before = x._version
        c(x)
        assert (x._version > before) == (f(torch.randn(3))._version > 0)
