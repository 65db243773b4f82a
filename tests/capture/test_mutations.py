"""Any state that a captured program has read may change between two calls: the second call gives eager's
answer.

A program is put together from reads; then one of the things they read is changed. MINICOMPILE_FUZZ sets the
number of examples.
"""

import os
import types

import hypothesis
import torch
from hypothesis import strategies as st
from torch import nn

from .common import compiled

EXAMPLES = int(os.environ.get("MINICOMPILE_FUZZ", "150"))


class Slotted:
    __slots__ = ("a", "b")


class Meta(type):
    level = 3


class Base(metaclass=Meta):
    kind = 1.5

    def __init__(self):
        self.own, self.items, self.table = 2.0, [1.0, 2.0], {"k": 3.0, "m": 4.0}
        self.names, self.fixed, self.pair = {"a", "b"}, frozenset({1, 2}), (1, [2.0])
        self.slotted, self.proxied = Slotted(), None
        self.slotted.a = 5.0

    def method(self, v):
        return v + 1

    @property
    def prop(self):
        return self.own * 3


class Child(Base):
    pass


def helper(v, scale=2.0, *, shift=1.0):
    return v * scale + shift


class World:
    """What a program can read. Fresh for each example."""

    def __init__(self):
        torch.manual_seed(0)
        self.Base = type("Base", (Base,), {})
        self.Child = type("Child", (self.Base,), {})
        self.obj = self.Child()
        self.helper = types.FunctionType(helper.__code__, {"G": 1.0}, "helper", helper.__defaults__)
        self.helper.__kwdefaults__ = dict(helper.__kwdefaults__)
        self.net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.ReLU()).eval()
        self.net.register_buffer("shift", torch.ones(3))
        self.x, self.y = torch.randn(2, 3), torch.randn(2, 3)
        self.number, self.text, self.objects = 3, "ab", [Slotted(), Slotted()]
        self.chosen = self.objects[0]
        self.weak, self.flag, self.cell = {}, True, 1.0


READS = {
    "own": "v = v + w.obj.own",
    "missing": "v = v + getattr(w.obj, 'extra', 0.25)",
    "has": "v = v + (1 if hasattr(w.obj, 'extra') else 2)",
    "class": "v = v * w.Base.kind",
    "class by instance": "v = v * w.obj.kind",
    "metaclass": "v = v + w.Base.level",
    "method": "v = w.obj.method(v)",
    "property": "v = v + w.obj.prop",
    "slot": "v = v + w.obj.slotted.a",
    "unset slot": "v = v + (1 if hasattr(w.obj.slotted, 'b') else 2)",
    "list": "v = v + sum(w.obj.items)",
    "index": "v = v + w.obj.items[-1]",
    "dict": "v = v + w.obj.table['k']",
    "keys": "v = v + len(''.join(w.obj.table))",
    "values": "v = v + sum(w.obj.table.values())",
    "get": "v = v + w.obj.table.get('z', 0.5)",
    "set": "v = v + ('a' in w.obj.names)",
    "frozen": "v = v + sum(w.obj.fixed)",
    "pair": "v = v + w.obj.pair[1][0]",
    "vars": "v = v + len(vars(w.obj))",
    "dir": "v = v + sum(isinstance(a, float) for a in w.obj.__dict__.values())",
    "attrgetter": "v = v + operator.attrgetter('slotted.a')(w.obj)",
    "methodcaller": "v = operator.methodcaller('method', v)(w.obj)",
    "mapped getattr": "v = v + sum(map(getattr, [w.obj], ['own']))",
    "copied": "v = v + copy.copy(w.obj).own",
    "deep": "v = v + copy.deepcopy(w.obj.table)['k']",
    "helper": "v = w.helper(v)",
    "partial": "v = functools.partial(w.helper, scale=w.obj.own)(v)",
    "net": "v = w.net(v)",
    "buffer": "v = v + w.net.shift",
    "parameter": "v = v @ w.net[0].weight",
    "requires": "v = v + w.x.requires_grad",
    "shape": "v = v + w.x.shape[0] * w.x.stride(0)",
    "dtype": "v = v + (1 if w.x.dtype is torch.float32 else 2)",
    "tensor": "v = v + w.y",
    "same": "v = v + (1 if w.x is w.y else 2)",
    "leaf": "v = v + w.y.is_leaf",
    "offset": "v = v + w.y.storage_offset()",
    "isinstance": "v = v + isinstance(w.number, bool)",
    "type": "v = v + len(type(w.number).__name__)",
    "number": "v = v * w.number",
    "text": "v = v + len(f'{w.text!r}')",
    "default dtype": "v = v + torch.ones(3)",
    "grad mode": "v = v + torch.is_grad_enabled()",
    "autocast": "v = v + torch.is_autocast_enabled('cpu')",
    "matmul": "v = (v @ v.t() @ v).float()",
    "member": "v = v + (w.chosen in w.objects)",
    "where": "v = v + w.objects.index(w.chosen)",
    "equal": "v = v + (w.chosen == w.objects[1])",
    "keyed": "v = v + w.weak.get(w.chosen, 7)",
    "callable": "v = v + callable(w.cell)",
    "training": "v = v + w.net.training",
    "children": "v = v + len(list(w.net.modules()))",
    "state": "v = v + len(w.net.state_dict())",
    "sorted": "v = v + sorted([w.obj], key=operator.attrgetter('own'))[0].own",
    "text of": "v = v + len(str(w.obj.items))",
    "unpack": "a, *rest = w.obj.items; v = v + a + len(rest)",
    "nonlocal": "v = v + cell",
}

CHANGES = {
    "own": lambda w: setattr(w.obj, "own", 7.0),
    "own type": lambda w: setattr(w.obj, "own", 2),
    "extra": lambda w: setattr(w.obj, "extra", 9.0),
    "extra of class": lambda w: setattr(w.Base, "extra", 8.0),
    "class": lambda w: setattr(w.Base, "kind", 4.0),
    "child class": lambda w: setattr(w.Child, "kind", 5.0),
    "hides class": lambda w: setattr(w.obj, "kind", 6.0),
    "hides meta": lambda w: setattr(w.Base, "level", 4),
    "method": lambda w: setattr(w.Base, "method", lambda self, v: v * 9),
    "own method": lambda w: setattr(w.obj, "method", lambda v: v * 8),
    "property": lambda w: setattr(w.Child, "prop", property(lambda self: 11.0)),
    "slot": lambda w: setattr(w.obj.slotted, "a", 6.0),
    "set slot": lambda w: setattr(w.obj.slotted, "b", 6.0),
    "list": lambda w: w.obj.items.__setitem__(1, 9.0),
    "list grows": lambda w: w.obj.items.append(9.0),
    "dict": lambda w: w.obj.table.update(k=8.0),
    "dict grows": lambda w: w.obj.table.update(z=8.0),
    "dict shrinks": lambda w: w.obj.table.pop("m"),
    "set": lambda w: w.obj.names.clear(),
    "frozen": lambda w: setattr(w.obj, "fixed", frozenset({1.0, 2.5})),
    "pair": lambda w: w.obj.pair[1].__setitem__(0, 9.0),
    "defaults": lambda w: setattr(w.helper, "__defaults__", (5.0,)),
    "keyword defaults": lambda w: w.helper.__kwdefaults__.update(shift=9.0),
    "code": lambda w: setattr(w.helper, "__code__", (lambda v, scale=1, *, shift=0: v * 100).__code__),
    "hook": lambda w: w.net[0].register_forward_hook(lambda m, a, out: out * 5),
    "train": lambda w: w.net[2].train(),
    "net trains": lambda w: setattr(w.net, "training", True),
    "swap": lambda w: w.net.__setitem__(2, nn.Tanh()),
    "add": lambda w: w.net.append(nn.Linear(3, 3)),
    "buffer": lambda w: w.net.shift.add_(1),
    "new buffer": lambda w: setattr(w.net, "shift", torch.full((3,), 4.0)),
    "no bias": lambda w: setattr(w.net[0], "bias", None),
    "weight": lambda w: w.net[0].weight.data.mul_(3),
    "x": lambda w: setattr(w, "x", torch.randn(2, 3, 1).squeeze(-1) * 2),
    "x grad": lambda w: w.x.requires_grad_(),
    "x longer": lambda w: setattr(w, "x", torch.randn(4, 3)),
    "x strided": lambda w: setattr(w, "x", torch.randn(3, 2).t()),
    "x double": lambda w: setattr(w, "x", w.x.double()),
    "y is x": lambda w: setattr(w, "y", w.x),
    "y no leaf": lambda w: setattr(w, "y", w.y.requires_grad_() * 1),
    "y offset": lambda w: setattr(w, "y", torch.randn(3, 3)[1:]),
    "number": lambda w: setattr(w, "number", 4),
    "number type": lambda w: setattr(w, "number", True),
    "negative zero": lambda w: setattr(w.obj, "own", -0.0),
    "text": lambda w: setattr(w, "text", "abc"),
    "chosen": lambda w: setattr(w, "chosen", w.objects[1]),
    "stranger": lambda w: setattr(w, "chosen", Slotted()),
    "keyed": lambda w: w.weak.update({w.chosen: 1}),
    "cell": lambda w: setattr(w, "cell", len),
    "default dtype": lambda w: torch.set_default_dtype(torch.float64),
    "no grad": lambda w: torch.set_grad_enabled(False),
    "autocast": lambda w: torch.set_autocast_enabled("cpu", True),
    "rebind": lambda w: w.rebind(42.0),
    "nothing": lambda w: None,
}


def program(lines):
    """(f, w): a function of a World made of these reads, over one cell."""
    body = "".join(f"        {line}\n" for line in lines)
    text = f"def outer():\n    cell = 1.0\n    def f(w):\n        v = w.x * 1\n{body}        return v\n"
    text += "    def rebind(value):\n        nonlocal cell\n        cell = value\n    return f, rebind\n"
    scope = {}
    exec("import copy, functools, operator, torch\n" + text, scope)
    w = World()
    f, w.rebind = scope["outer"]()
    return f, w


def outcome(f, w):
    try:
        out = f(w)
        return out.dtype, out.requires_grad, out.detach().clone()
    except Exception as e:
        return type(e), None, str(e)


def same(a, b):
    exact = a[:2] == b[:2]
    return exact and (a[2] == b[2] if isinstance(a[2], str) else torch.equal(a[2], b[2]))


def undo():
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_autocast_enabled("cpu", False)


def check(reads, changes):
    f, w = program([READS[r] for r in reads])
    c = compiled(f)
    try:
        assert same(outcome(c, w), outcome(f, w)), "before"
        assert same(outcome(c, w), outcome(f, w)), "cached"
        for change in changes:
            CHANGES[change](w)
            got, expected = outcome(c, w), outcome(f, w)
            assert same(got, expected), (change, got, expected, c.events)
    finally:
        undo()


@hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 1000, database=None)
@hypothesis.given(
    st.lists(st.sampled_from(sorted(READS)), min_size=1, max_size=5),
    st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=3),
)
def test_no_change_escapes(reads, changes):
    check(reads, changes)


def test_each_read_against_each_change():
    """All pairs at once: one program per read; each change is made to a fresh world that passed once."""
    escapes = []
    for read in READS:
        f, w = program([READS[read]])
        c = compiled(f, limit=100)
        outcome(c, w)
        for change in CHANGES if EXAMPLES >= 1000 else list(CHANGES)[hash_of(read) % 3 :: 3]:
            f2, w2 = program([READS[read]])
            try:
                check([read], [change])
            except AssertionError as e:
                escapes.append((read, change, str(e)[:300]))
    assert not escapes


def hash_of(text):
    return sum(map(ord, text))


def test_the_fuzzer_can_fail():
    f, w = program([READS["own"]])
    stale = compiled(f)
    outcome(stale, w)
    w.obj.own = 7.0
    assert not same((torch.float32, False, torch.zeros(2, 3)), outcome(f, w))
    assert same(outcome(stale, w), outcome(f, w))
