"""What a call changes outside itself, and what it gives back, is as in eager mode, served or not."""

import collections
import copy
import dataclasses
import enum

import pytest
import torch
from torch import nn

from .common import compiled, refusals

X = torch.arange(6.0).reshape(2, 3)
LOG = []
COUNT = 0


class Box:
    def __init__(self, **state):
        self.__dict__.update(state)


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = a


class Proud(Box):
    def __setattr__(self, name, value):
        object.__setattr__(self, name, ("set", value))


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(3))
        self.calls = 0

    def forward(self, x):
        self.total += x.sum(0)
        self.last = x * 2
        self.calls += 1
        return self.last + self.calls


def set_attribute(box, x):
    box.value = x + 1
    box.n = 5
    del box.old


def append(box, x):
    box.items.append(x * 2)
    box.items.insert(0, "first")
    box.items.sort(key=lambda v: isinstance(v, str))


def change_dict(box, x):
    box.table["new"] = x
    box.table["old"] = 3
    del box.table["gone"]
    box.table |= {"more": [x, x]}
    box.table.setdefault("set", []).append(1)


def reorder_dict(box, x):
    value = box.table.pop("old")
    box.table["old"] = value


def change_nested(box, x):
    box.nested["a"]["b"].append(x)
    box.nested["a"]["c"] = box.nested


def change_set(box, x):
    box.kinds.add("new")
    box.kinds.discard("a")


def change_ordered(box, x):
    box.ordered["z"] = x
    box.ordered.move_to_end("a")
    box.queue.append(1)
    box.queue.rotate(1)
    box.counter.update("ab")


def change_global(box, x):
    global COUNT
    COUNT += 1
    LOG.append(COUNT)


def through_setattr(box, x):
    box.proud.value = 1
    setattr(box, "dynamic" + str(1), x)


def use_slots(box, x):
    box.slotted.a, box.slotted.b = x, box.slotted.a


def nothing_in_the_end(box, x):
    box.n = 5
    box.n = 1
    box.items.append(1)
    box.items.pop()
    box.table["t"] = 1
    del box.table["t"]


def new_objects(box, x):
    box.fresh = Box(inner=Box(x=x), shared=[1])
    box.fresh.again = box.fresh
    box.fresh.inner.list = box.fresh.shared


CHANGES = [
    set_attribute,
    append,
    change_dict,
    reorder_dict,
    change_nested,
    change_set,
    change_ordered,
    change_global,
    through_setattr,
    use_slots,
    nothing_in_the_end,
    new_objects,
]


def make_box():
    return Box(
        n=1,
        old=2,
        items=[1, "x"],
        table={"old": 1, "gone": 2},
        nested={"a": {"b": []}},
        kinds={"a", "b"},
        ordered=collections.OrderedDict(a=1, b=2),
        queue=collections.deque([1, 2], maxlen=4),
        counter=collections.Counter("aa"),
        proud=Proud(),
        slotted=Slotted(1),
    )


def shown(value, seen=None):
    """A value as comparable text, cycles and sharing included."""
    seen = {} if seen is None else seen
    if isinstance(value, torch.Tensor):
        return f"tensor {value.tolist()}"
    if isinstance(value, (int, float, str, type(None), enum.Enum)):
        return repr(value)
    if id(value) in seen:
        return f"<{seen[id(value)]}>"
    seen[id(value)] = len(seen)
    if isinstance(value, dict):
        inner = [f"{shown(k, seen)}: {shown(v, seen)}" for k, v in value.items()]
    elif isinstance(value, (set, frozenset)):
        inner = sorted(map(repr, value))
    elif isinstance(value, (list, tuple, collections.deque)):
        inner = [shown(v, seen) for v in value]
    else:
        inner = []
    state = {
        **getattr(value, "__dict__", {}),
        **{
            s: getattr(value, s)
            for s in getattr(type(value), "__slots__", ())
            if hasattr(value, s) and s not in ("__dict__", "__weakref__")
        },
    }
    inner += [f"{k}={shown(v, seen)}" for k, v in state.items()]
    return f"{type(value).__name__}({', '.join(inner)})"


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_changes(change):
    c = compiled(change)
    for _ in range(3):
        real, expected, counts = make_box(), make_box(), []
        identities = {
            k: id(v) for k, v in vars(real).items() if isinstance(v, (list, dict, set, collections.deque))
        }
        for function, box in ((c, real), (change, expected)):
            global COUNT
            COUNT, LOG[:] = 0, []
            function(box, X)
            counts.append((COUNT, list(LOG)))
        assert shown(real) == shown(expected)
        assert counts[0] == counts[1]
        assert all(id(vars(real)[k]) == i for k, i in identities.items() if k in vars(expected))
    assert not refusals(c)
    assert [e.hits for e in c.entries] == [2]


def test_no_effect_where_nothing_changed_in_the_end():
    c = compiled(nothing_in_the_end)
    box = make_box()
    c(box, X)
    assert [e.key for e in c.entries[0].capture.effects] == ["n"]         # it was not read: it may differ next time
    box.n = 7
    c(box, X)
    assert box.n == 1 and len(c.entries) == 1


def test_what_was_there_already_is_written_again():
    """Values that the capture found in their places are no constants: nothing was read."""
    box, table, cell = make_box(), {"k": 1}, None

    def f(x):
        nonlocal cell
        box.n, table["k"], box.last, cell = 5, 1, x, x
        return x + 1
    c = compiled(f)
    box.n, box.last, cell = 5, X, X
    c(X)
    other = X + 1
    box.n, table["k"] = 7, 2
    c(other)
    assert box.n == 5 and table == {"k": 1} and box.last is other and cell is other


def test_module_buffers_and_attributes():
    m = Counted()
    reference = copy.deepcopy(m)
    c = compiled(lambda module, x: module(x))
    with torch.no_grad():
        for _ in range(4):
            assert torch.equal(c(m, X), reference(X))
            assert torch.equal(m.total, reference.total) and m.calls == reference.calls
            assert torch.equal(m.last, reference.last)
    assert m.total is m._buffers["total"]
    assert not refusals(c)


def test_input_written_in_place_comes_back_itself():
    def f(x, y):
        x.mul_(2)
        y[0] = 7
        return x, y, x.add_(1) is x

    c = compiled(f)
    for _ in range(2):
        a, b = X.clone(), X.clone()
        out = c(a, b)
        assert out[0] is a and out[1] is b and out[2] is True
        assert torch.equal(a, X * 2 + 1) and b[0].tolist() == [7.0] * 3


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Data:
    a: object
    b: list = dataclasses.field(default_factory=list)


class Color(enum.Enum):
    RED = 1


class Mapping(collections.OrderedDict):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = "extra"

    def __setitem__(self, key, value):
        super().__setitem__(key, ("seen", value))


class Items(list):
    pass


def shared(x):
    inner = [x]
    return [inner, inner, {"k": inner}]


def cyclic(x):
    a = [x]
    a.append(a)
    return a


OUTPUTS = {
    "nothing": lambda x: None,
    "tensor": lambda x: x + 1,
    "input": lambda x: x,
    "twice": lambda x: (x + 1, x) * 2,
    "view": lambda x: x[0],
    "list": lambda x: [x + 1, [x * 2]],
    "dict": lambda x: {"a": x + 1, 2: (x, None)},
    "named tuple": lambda x: Point(x + 1, 3),
    "dataclass": lambda x: Data(x * 2, [x]),
    "instance": lambda x: Box(x=x, y=[1]),
    "slots": lambda x: Slotted(x),
    "dict subclass": lambda x: Mapping(a=x, b=2),
    "list subclass": lambda x: Items([x, 1]),
    "default dict": lambda x: collections.defaultdict(list, a=[x]),
    "deque": lambda x: collections.deque([x], maxlen=2),
    "set": lambda x: {1, 2, "a"},
    "floats": lambda x: (float("nan"), -0.0, 1e300, float("-inf"), 1 + 2j),
    "constants": lambda x: (
        torch.float16,
        x.shape,
        x.dtype,
        x.device,
        ...,
        b"b",
        Color.RED,
        int,
        len,
        slice(1, 2),
    ),
    "shared": shared,
    "cyclic": cyclic,
    "exception": lambda x: ValueError("v", 1),
    "torch tuple": lambda x: x.max(0),
    "function": lambda x: lambda y, k=2: (x, y, k),
    "bound method": lambda x: Box(n=3).__init__,
    "class": lambda x: Box,
    "split": lambda x: x.split(1),
    "shape only": lambda x: x.shape[0] * 2,
    "range": lambda x: range(3),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(name):
    f = OUTPUTS[name]
    c = compiled(f)
    for _ in range(2):
        got, expected = c(X), f(X)
        assert type(got) is type(expected)
        if name == "function":
            got, expected = got(5), expected(5)
        assert shown(got) == shown(expected)
    assert not refusals(c)
    assert [e.hits for e in c.entries] == [1]


def test_results_of_two_calls_are_different_objects():
    c = compiled(lambda x: ([x], {"a": Box()}))
    one, two = c(X), c(X)
    assert one[0] is not two[0] and one[1]["a"] is not two[1]["a"]


def test_objects_of_the_world_come_back_themselves():
    box, lst = make_box(), [1]
    c = compiled(lambda b, items: (b, items, b.nested["a"], (b,)))
    for _ in range(2):
        out = c(box, lst)
        assert out[0] is box and out[1] is lst and out[2] is box.nested["a"] and out[3][0] is box


def test_nothing_happens_when_capture_refuses():
    def f(box, x):
        box.n += 1
        box.items.append(2)
        LOG.append(1)
        return float(x.sum().numpy()) + 1

    c, box = compiled(f), make_box()
    LOG.clear()
    assert c(box, X) == 16.0
    assert box.n == 2 and box.items == [1, "x", 2] and LOG == [1]
    assert refusals(c)[0] == "data-dependent"


def test_counters_recompile_but_stay_right():
    box, c = Box(n=0), compiled(lambda b, x: setattr(b, "n", b.n + 1) or x * b.n, limit=3)
    for i in range(6):
        assert torch.equal(c(box, X), X * (i + 1))
    assert box.n == 6 and len(c.entries) == 2      # the counter varies from the second on


def test_the_program_reads_well():
    c = compiled(set_attribute)
    c(make_box(), X)
    text = c.entries[0].capture.program.text
    assert text.splitlines() == [
        "def program(x, box):",
        "    out0, = graph(x)",
        "    box.value = out0",
        "    box.n = 5",
        "    object.__delattr__(box, 'old')",
        "    return None",
    ]
