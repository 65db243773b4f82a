"""Any state that a captured program has read may change between two calls: the next call gives eager's answer.

Programs are put together from reads; a state machine calls them in turn and changes what they read in between. MINICOMPILE_FUZZ
sets the number of examples.
"""

import collections
import dataclasses
import enum
import functools
import os
import types

import hypothesis
import torch
from hypothesis import stateful
from hypothesis import strategies as st
from torch import nn

from minicompile.capture.compiled import Compiled

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


class Other(Base):
    kind = 0.5


class Mode(enum.Enum):
    A = 1
    B = 2


@dataclasses.dataclass
class Config:
    scale: float = 2.0


class Reader:
    """A descriptor with state."""

    value = 1.0

    def __get__(self, obj, owner=None):
        return self.value


def mutable(v, table=[1.0]):  # noqa: B006
    return v + table[0]


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
        self.mutable = types.FunctionType(mutable.__code__, {}, "mutable", ([1.0],))
        self.part = functools.partial(self.helper, scale=2.0)
        self.queue, self.counts = collections.deque([1.0, 2.0]), collections.Counter("aab")
        self.mods = nn.ModuleDict({"a": nn.ReLU(), "b": nn.Linear(3, 3)})
        self.config, self.mode, self.none, self.key = Config(), Mode.A, None, "k"
        self.Base.reader = self.reader = Reader()
        self.Child.above = lambda self, v, cls=self.Child: super(cls, self).method(v) + super(cls, self).kind
        self.Base.__call__ = lambda self, v: v + 3
        self.space = types.SimpleNamespace(a=1.0, inner=types.SimpleNamespace(b=2.0))
        self.handles = []


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
    "global": "v = v + GLOBAL",
    "global function": "v = function(v)",
    "dict order": "v = v * 2 + list(w.obj.table.values())[0]",
    "class of": "v = v + isinstance(w.obj, w.Child)",
    "bases": "v = v + len(type(w.obj).__mro__)",
    "mutable default": "v = w.mutable(v)",
    "kept partial": "v = w.part(v)",
    "deque": "v = v + sum(w.queue)",
    "counter": "v = v + w.counts['a'] + w.counts['z']",
    "module dict": "v = w.mods['a'](v)",
    "modules named": "v = v + sum(len(n) for n, _ in w.mods.named_children())",
    "parameters": "v = v + sum(p.sum() for p in w.net.parameters())",
    "needs gradient": "v = v + w.net[0].weight.requires_grad",
    "hooks": "v = v + len(w.net[0]._forward_hooks)",
    "config": "v = v * w.config.scale",
    "replaced": "v = v + dataclasses.replace(w.config).scale",
    "enum": "v = v + (1 if w.mode is Mode.A else 2)",
    "enum value": "v = v + w.mode.value",
    "none": "v = v + (1 if w.none is None else 2)",
    "key": "v = v + w.obj.table[w.key]",
    "gradient": "v = v + (0 if w.y.grad is None else w.y.grad)",
    "contiguous": "v = v + w.x.is_contiguous()",
    "deterministic": "v = v + torch.are_deterministic_algorithms_enabled()",
    "descriptor": "v = v + w.obj.reader",
    "called": "v = w.obj(v)",
    "namespace": "v = v + w.space.a + w.space.inner.b",
    "default of getattr": "v = v + getattr(w.space, 'c', 4.0)",
    "evaluated": "v = v + eval('GLOBAL + w.obj.own')",
    "matched": "match w.obj.items:\n            case [a, b]: v = v + a\n            case [a, *_]: v = v - a",
    "caught": "try: v = v + w.obj.table['z']\n        except KeyError: v = v * 2",
    "generated": "v = v + sum(i * 2 for i in w.obj.items)",
    "enumerated": "for i, p in enumerate(w.net): v = v + i * p.training",
    "joined": "v = v + len(', '.join(sorted(w.obj.names)))",
    "super": "v = w.obj.above(v)",
    "made": "v = v + type(w.obj)().kind + type(w.obj)().reader",
    "made lacks": "v = v + getattr(type(w.obj)(), 'extra', 0.25) + hasattr(type(w.obj)(), 'more')",
    "made computes": "v = type(w.obj)().method(v) + type(w.obj)().prop",
    "loop": "for k, e in w.obj.table.items(): v = v * e + len(k)",
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
    "dict shrinks": lambda w: w.obj.table.pop("m", None),
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
    "global": lambda w: w.scope.update(GLOBAL=w.scope["GLOBAL"] + 1),
    "global gone": lambda w: w.scope.pop("GLOBAL", None) and w.scope.update(GLOBAL=7),
    "global function": lambda w: w.scope.update(function=lambda v: v * 11),
    "code of global function": lambda w: setattr(w.scope["function"], "__code__", (lambda v: v - 6).__code__),
    "dict order": lambda w: w.obj.table.update(k=w.obj.table.pop("k")),
    "list order": lambda w: w.obj.items.reverse(),
    "new class": lambda w: setattr(w.obj, "__class__", Other),
    "bases": lambda w: setattr(w.Child, "__bases__", (Other,)),
    "mutable default": lambda w: w.mutable.__defaults__[0].__setitem__(0, 5.0),
    "partial's keywords": lambda w: w.part.keywords.update(scale=4.0),
    "deque": lambda w: w.queue.append(5.0),
    "counter": lambda w: w.counts.update("az"),
    "module dict": lambda w: w.mods.update({"a": nn.Tanh()}),
    "module added": lambda w: w.mods.update({"c": nn.Tanh()}),
    "module gone": lambda w: w.mods.pop("b") if "b" in w.mods else None,
    "frozen weight": lambda w: w.net[0].weight.requires_grad_(False),
    "hook before": lambda w: w.net[0].register_forward_pre_hook(lambda m, a: (a[0] * 2,)),
    "hook for all": lambda w: w.handles.append(
        nn.modules.module.register_module_forward_hook(lambda m, a, out: out + 1)),
    "hooks gone": lambda w: w.net[0]._forward_hooks.clear(),
    "forward": lambda w: setattr(w.net[0], "forward", lambda v: v * 2),
    "config": lambda w: setattr(w.config, "scale", 6.0),
    "new config": lambda w: setattr(w, "config", Config(9.0)),
    "config's class": lambda w: setattr(w, "config", types.SimpleNamespace(scale=3.0)),
    "mode": lambda w: setattr(w, "mode", Mode.B),
    "something": lambda w: setattr(w, "none", 0),
    "key": lambda w: setattr(w, "key", "m" if "m" in w.obj.table else "k"),
    "gradient": lambda w: setattr(w.y, "grad", torch.ones_like(w.y)),
    "deterministic": lambda w: torch.use_deterministic_algorithms(True),
    "descriptor's state": lambda w: setattr(w.reader, "value", 3.0),
    "descriptor": lambda w: setattr(w.Base, "reader", 8.0),
    "hides descriptor": lambda w: w.obj.__dict__.update(reader=6.0),
    "call": lambda w: setattr(w.Base, "__call__", lambda self, v: v - 1),
    "property over own": lambda w: setattr(w.Base, "own", property(lambda self: 13.0, lambda self, v: None)),
    "property over child": lambda w: setattr(w.Base, "items", property(lambda self: [1.5, 2.5])),
    "method between": lambda w: setattr(w.Child, "method", lambda self, v: v * 4),
    "getattribute": lambda w: setattr(w.Base, "__getattribute__",
                                      lambda self, name: 14.0 if name == "own" else object.__getattribute__(self, name)),
    "getattr": lambda w: setattr(w.Base, "__getattr__", lambda self, name: 12.0),
    "namespace": lambda w: setattr(w.space.inner, "b", 5.0),
    "new namespace": lambda w: setattr(w.space, "inner", types.SimpleNamespace(b=6.0)),
    "in namespace": lambda w: setattr(w.space, "c", 5.0),
    "weight's storage": lambda w: setattr(w.net[0].weight, "data", torch.ones(3, 3)),
    "parameter swapped": lambda w: setattr(w.net[0], "weight", nn.Parameter(torch.ones(3, 3))),
    "double net": lambda w: w.net.double() and setattr(w, "x", w.x.double()),
}


def compiled(f, **settings):
    """As the others' `compiled`, but the graph is no module when it runs: hooks for all modules would see it."""
    events = []
    c = Compiled(f, checked, on_event=lambda kind, payload: events.append((kind, payload)), **settings)
    c.events = events
    return c


def checked(capture, examples):
    capture.check()
    return capture.gm.forward


def program(lines, w=None):
    """(f, w): a function of a World made of these reads, over one cell and globals of its own."""
    body = "".join(f"        {line}\n" for line in lines)
    text = f"def outer():\n    cell = 1.0\n    def f(w):\n        v = w.x * 1\n{body}        return v\n"
    text += "    def rebind(value):\n        nonlocal cell\n        cell = value\n    return f, rebind\n"
    text += "def function(v): return v + 5\n"
    scope = {"GLOBAL": 2.0, "Mode": Mode}
    exec("import copy, dataclasses, functools, operator, torch\n" + text, scope)
    w = w or World()
    f, w.rebind = scope["outer"]()
    w.scope = scope
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


def undo(w):
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_autocast_enabled("cpu", False)
    torch.use_deterministic_algorithms(False)
    for handle in w.handles:
        handle.remove()


class Mutations(stateful.RuleBasedStateMachine):
    """A program, called again and again, with changes in between, and none at times."""

    def __init__(self):
        super().__init__()
        self.w = None

    @stateful.initialize(reads=st.lists(st.sampled_from(sorted(READS)), min_size=1, max_size=5))
    def capture(self, reads):
        self.f, self.w = program([READS[r] for r in reads])
        self.compiled = compiled(self.f)
        self.agree("first call")
        self.agree("second call")

    @stateful.rule(changes=st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=2))
    def change(self, changes):
        for change in changes:
            CHANGES[change](self.w)
        self.agree(changes)

    def agree(self, when):
        got, expected = outcome(self.compiled, self.w), outcome(self.f, self.w)
        assert same(got, expected), (when, got, expected, self.compiled.events)

    def teardown(self):
        if self.w is not None:
            undo(self.w)


TestMutations = Mutations.TestCase
TestMutations.settings = hypothesis.settings(
    max_examples=EXAMPLES, stateful_step_count=4, deadline=None, derandomize=EXAMPLES < 1000, database=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),  # shrinking takes longer than reading
    suppress_health_check=list(hypothesis.HealthCheck))


def check(read, change):
    f, w = program([READS[read]])
    c = compiled(f)
    try:
        assert same(outcome(c, w), outcome(f, w)), "before"
        CHANGES[change](w)
        got, expected = outcome(c, w), outcome(f, w)
        assert same(got, expected), (got, expected, c.events)
    finally:
        undo(w)


def test_each_read_against_each_change():
    """All pairs, one by one; a part of them by default."""
    escapes = []
    for n, read in enumerate(READS):
        for change in CHANGES if EXAMPLES >= 1000 else list(CHANGES)[n % 13 :: 13]:
            try:
                check(read, change)
            except AssertionError as e:
                escapes.append((read, change, str(e)[:300]))
    assert not escapes


def test_the_fuzzer_can_fail():
    f, w = program([READS["own"]])
    stale = compiled(f)
    outcome(stale, w)
    w.obj.own = 7.0
    assert not same((torch.float32, False, torch.zeros(2, 3)), outcome(f, w))
    assert same(outcome(stale, w), outcome(f, w))
