"""Guard programs: each opcode, strict equality, misses that never raise, tapes against Python. No torch."""

import gc
import math
import random
import sys
import types
from collections import OrderedDict, defaultdict

import pytest

from minicompile import _native as native


def function(*args):
    return args


def check(instructions, *values, fn=function):
    program = native.GuardProgram(instructions)
    first, second = program.check(fn, list(values)), program.check(fn, list(values))
    assert first == second  # the second is replayed where that can be
    return first


def holds(instructions, *values, fn=function):
    return check(instructions, *values, fn=fn) is None


class Plain:
    kind = "class attribute"

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Evil:
    def __eq__(self, other):
        raise RuntimeError("eq")

    __hash__ = None

    @property
    def bad(self):
        raise RuntimeError("property")

    def __bool__(self):
        raise RuntimeError("bool")


NAN = float("nan")
DIFFERENT = [
    0,
    1,
    True,
    False,
    0.0,
    -0.0,
    1.0,
    NAN,
    None,
    "a",
    b"a",
    (),
    (1,),
    (1.0,),
    (True,),
    ((NAN,),),
    2**70,
    1j,
    0j,
    complex(0.0, -0.0),
    slice(1, 2),
    slice(1, None),
    slice(1.0, 2),
    range(3),
    frozenset({1}),
    Ellipsis,
    int,
    len,
]


@pytest.mark.parametrize("i", range(len(DIFFERENT)))
def test_equals_is_strict(i):
    for j, value in enumerate(DIFFERENT):
        assert holds([("LOCAL", 0), ("EQUALS", 0, DIFFERENT[i])], value) == (i == j)
    assert holds([("LOCAL", 0), ("EQUALS", 0, 10**30)], 10**29 * 10)
    assert holds([("LOCAL", 0), ("EQUALS", 0, (1.5, "ab"))], (3.0 / 2, "".join(["a", "b"])))
    assert holds([("LOCAL", 0), ("EQUALS", 0, math.nan)], float("nan"))


def cell_function():
    content = "content"

    def inner():
        return content

    return inner


HOLD = {
    "CONST": ([("CONST", 5), ("EQUALS", 0, 5)], ()),
    "FUNC": ([("FUNC",), ("ID", 0, function)], ()),
    "GLOBAL": ([("GLOBAL", "Plain"), ("ID", 0, Plain)], ()),
    "BUILTIN": ([("BUILTIN", "len"), ("ID", 0, len)], ()),
    "ATTR": ([("LOCAL", 0), ("ATTR", 0, "kind"), ("EQUALS", 1, "class attribute")], (Plain(),)),
    "DICT": (
        [("LOCAL", 0), ("DICT", 0), ("KEYS", 1, ("a",)), ("ITEM", 1, "a"), ("EQUALS", 3, 1)],
        (Plain(a=1),),
    ),
    "DICT_ATTR": (
        [("LOCAL", 0), ("DICT_ATTR", 0, "a"), ("EQUALS", 1, 1), ("DICT_ATTR", 0, "b")],
        (Plain(a=1, b=2),),
    ),
    "DICT of an empty one": ([("LOCAL", 0), ("DICT", 0), ("LEN", 1, 0)], (Plain(),)),
    "TYPE_ATTR": (
        [("LOCAL", 0), ("TYPE_OF", 0), ("TYPE_ATTR", 1, "kind"), ("EQUALS", 2, "class attribute")],
        (Plain(),),
    ),
    "ITEM": ([("LOCAL", 0), ("ITEM", 0, (1, 2)), ("EQUALS", 1, 3)], ({(1, 2): 3},)),
    "INDEX": ([("LOCAL", 0), ("INDEX", 0, 1), ("EQUALS", 1, 3)], ([2, 3],)),
    "GETITEM": ([("LOCAL", 0), ("GETITEM", 0, 1), ("EQUALS", 1, 1)], (range(3),)),
    "CALL": ([("LOCAL", 0), ("CALL", len, 0), ("EQUALS", 1, 3)], (range(3),)),
    "TYPE": ([("LOCAL", 0), ("TYPE", 0, Plain)], (Plain(),)),
    "NOT_ID": ([("LOCAL", 0), ("NOT_ID", 0, None)], (1,)),
    "LEN": ([("LOCAL", 0), ("LEN", 0, 2)], ([1, 2],)),
    "LEN of str": ([("LOCAL", 0), ("LEN", 0, 2)], ("ab",)),
    "LEN of set": ([("LOCAL", 0), ("LEN", 0, 2)], ({1, 2},)),
    "KEYS": ([("LOCAL", 0), ("KEYS", 0, (1, "b"))], ({1: 0, "b": 1},)),
    "NOT_PRESENT": ([("LOCAL", 0), ("NOT_PRESENT", 0, "x")], ({},)),
    "NOT_PRESENT in a class": ([("CONST", Plain), ("NOT_PRESENT", 0, "x")], ()),
    "NO_ATTR": ([("LOCAL", 0), ("NO_ATTR", 0, "x")], (Plain(),)),
    "TRUTH": ([("LOCAL", 0), ("TRUTH", 0, False)], ([],)),
    "RANGE": ([("LOCAL", 0), ("RANGE", 0, 2, 5)], (5,)),
    "SAME": ([("LOCAL", 0), ("LOCAL", 1), ("SAME", 0, 1)], (Plain, Plain)),
    "DISTINCT": ([("LOCAL", 0), ("LOCAL", 1), ("DISTINCT", (0, 1))], ([], [])),
    "PREDICATE": ([("PREDICATE", lambda: 3, 3)], ()),
}

MISS = {
    "no such local": ([("LOCAL", 3)], (), 0),
    "no such global": ([("GLOBAL", "len")], (), 0),
    "no such builtin": ([("BUILTIN", "Plain")], (), 0),
    "no closure": ([("CELL", 0)], (), 0),
    "not a cell": ([("LOCAL", 0), ("CONTENTS", 0)], (1,), 1),
    "attribute": ([("LOCAL", 0), ("ATTR", 0, "x")], (1,), 1),
    "property raises": ([("LOCAL", 0), ("ATTR", 0, "bad")], (Evil(),), 1),
    "eq raises": ([("LOCAL", 0), ("EQUALS", 0, Evil())], (Evil(),), 1),
    "bool raises": ([("LOCAL", 0), ("TRUTH", 0, True)], (Evil(),), 1),
    "no dict": ([("LOCAL", 0), ("DICT", 0)], (1,), 1),
    "no attribute in the dict": ([("LOCAL", 0), ("DICT_ATTR", 0, "kind")], (Plain(),), 1),
    "no dict for an attribute": ([("LOCAL", 0), ("DICT_ATTR", 0, "kind")], (1,), 1),
    "not a class": ([("LOCAL", 0), ("TYPE_ATTR", 0, "kind")], (Plain(),), 1),
    "no class attribute": ([("CONST", Plain), ("TYPE_ATTR", 0, "x")], (), 1),
    "key": ([("LOCAL", 0), ("ITEM", 0, "x")], (defaultdict(int),), 1),
    "unhashable key": ([("LOCAL", 0), ("ITEM", 0, [])], ({},), 1),
    "not a dict": ([("LOCAL", 0), ("ITEM", 0, 0)], ([1],), 1),
    "index": ([("LOCAL", 0), ("INDEX", 0, 2)], ([1, 2],), 1),
    "negative index": ([("LOCAL", 0), ("INDEX", 0, -1)], ([1, 2],), 1),
    "getitem": ([("LOCAL", 0), ("GETITEM", 0, 2)], (3,), 1),
    "call": ([("LOCAL", 0), ("CALL", len, 0)], (3,), 1),
    "type": ([("LOCAL", 0), ("TYPE", 0, int)], (True,), 1),
    "length": ([("LOCAL", 0), ("LEN", 0, 1)], ([],), 1),
    "length of no container": ([("LOCAL", 0), ("LEN", 0, 1)], (1,), 1),
    "keys in another order": ([("LOCAL", 0), ("KEYS", 0, ("a", "b"))], ({"b": 1, "a": 2},), 1),
    "keys of another type": ([("LOCAL", 0), ("KEYS", 0, (1,))], ({True: 1},), 1),
    "present": ([("LOCAL", 0), ("NOT_PRESENT", 0, "x")], ({"x": 1},), 1),
    "present in a class": ([("CONST", Plain), ("NOT_PRESENT", 0, "kind")], (), 1),
    "neither dict nor class": ([("LOCAL", 0), ("NOT_PRESENT", 0, "kind")], (Plain(),), 1),
    "attribute is there": ([("LOCAL", 0), ("NO_ATTR", 0, "kind")], (Plain(),), 1),
    "another error than AttributeError": ([("LOCAL", 0), ("NO_ATTR", 0, "bad")], (Evil(),), 1),
    "range": ([("LOCAL", 0), ("RANGE", 0, 2, 5)], (6,), 1),
    "range of a float": ([("LOCAL", 0), ("RANGE", 0, 2, 5)], (3.0,), 1),
    "range of a bool": ([("LOCAL", 0), ("RANGE", 0, 0, 5)], (True,), 1),
    "range of a big int": ([("LOCAL", 0), ("RANGE", 0, 0, 5)], (2**80,), 1),
    "same": ([("LOCAL", 0), ("LOCAL", 1), ("SAME", 0, 1)], ([], []), 2),
    "distinct": ([("LOCAL", 0), ("LOCAL", 1), ("DISTINCT", (0, 1))], (Plain, Plain), 2),
    "predicate": ([("PREDICATE", lambda: 3, True)], (), 0),
    "predicate raises": ([("PREDICATE", lambda: 1 / 0, 0)], (), 0),
}


@pytest.mark.parametrize("name", HOLD)
def test_holds(name):
    instructions, values = HOLD[name]
    assert check(instructions, *values) is None


@pytest.mark.parametrize("name", MISS)
def test_misses(name):
    instructions, values, index = MISS[name]
    assert check(instructions, *values)[0] == index
    assert sys.exc_info() == (None, None, None)


def test_cells():
    inner = cell_function()
    assert holds([("CELL", 0), ("EQUALS", 0, "content")], fn=inner)
    assert holds([("CONST", inner.__closure__[0]), ("CONTENTS", 0), ("EQUALS", 1, "content")], fn=inner)
    inner.__closure__[0].cell_contents = "other"
    assert not holds([("CELL", 0), ("EQUALS", 0, "content")], fn=inner)
    del inner.__closure__[0].cell_contents
    assert check([("CELL", 0)], fn=inner) == (0, native.NULL, "")


def test_raw_lookups_ignore_overrides():
    class Lies(dict):
        def __getitem__(self, key):
            return "lie"

        def __len__(self):
            return 99

    class ListLies(list):
        def __getitem__(self, key):
            return "lie"

    assert holds([("LOCAL", 0), ("ITEM", 0, "a"), ("EQUALS", 1, 1), ("LEN", 0, 1)], Lies(a=1))
    assert holds([("LOCAL", 0), ("INDEX", 0, 0), ("EQUALS", 1, 1)], ListLies([1]))


def test_found_and_fetch():
    program = native.GuardProgram([("LOCAL", 0), ("DICT_ATTR", 0, "a"), ("EQUALS", 1, 1)], [1, 0])
    thing = Plain(a=1)
    assert len(program) >= 3 and program.fetch(function, [thing]) == (1, thing)
    thing.a = [2]
    assert program.fetch(function, [thing]) is None
    index, found, detail = program.check(function, [thing])
    assert (index, detail) == (2, "") and found is thing.a
    del thing.a
    assert program.check(function, [thing]) == (1, native.NULL, "")


@pytest.mark.parametrize(
    "bad",
    [
        [("NOPE", 1)],
        ["LOCAL"],
        [()],
        [("LOCAL",)],
        [("LOCAL", "a")],
        [("LOCAL", 0, 1)],
        [("ATTR", 0, "a")],
        [("LOCAL", 0), ("ATTR", 1, "a")],
        [("LOCAL", 0), ("ATTR", 0, 3)],
        [("LOCAL", 0), ("ID", 0, 1), ("ID", 1, 1)],
        [("LOCAL", 0), ("DISTINCT", (0, 5))],
        [("LOCAL", 2**70)],
        [("LOCAL", 0), ("SAME", 0, 7)],
        [("CALL", len, 0)],
        [3],
    ],
)
def test_bad_programs(bad):
    with pytest.raises(ValueError, match=r"guard instruction \d+ \("):
        native.GuardProgram(bad)


def test_bad_arguments():
    with pytest.raises(ValueError):
        native.GuardProgram([("LOCAL", 0)], [1])
    with pytest.raises(TypeError):
        native.GuardProgram(3)
    with pytest.raises(TypeError):
        native.GuardProgram([("LOCAL", 0), ("DISTINCT", 3)])
    program = native.GuardProgram([])
    with pytest.raises(TypeError):
        program.check(len, [])
    assert program.check(function, []) is None and program.fetch(function, []) == ()


def test_values_survive_code_that_drops_them():
    class Drops:
        @property
        def hook(self):
            self.__dict__.clear()
            gc.collect()
            return 1

    thing = Drops()
    thing.child = Plain(grandchild=Plain(value=[1, 2]))
    program = native.GuardProgram(
        [
            ("LOCAL", 0),
            ("DICT_ATTR", 0, "child"),
            ("DICT_ATTR", 1, "grandchild"),
            ("DICT_ATTR", 2, "value"),
            ("ATTR", 0, "hook"),
            ("LEN", 3, 2),
            ("TYPE", 2, Plain),
        ],
        [1, 2, 3],
    )
    child, grandchild, value = program.fetch(function, [thing])
    assert value == [1, 2] and child.grandchild is grandchild


# --- tapes: random trees, random changes, against Python's own answer


class Node:
    tag = 0


class Other(Node):
    pass


class Slotted:
    __slots__ = ("x",)


def make_tree(rng, depth=3):
    node = rng.choice((Node, Other))()
    node.flag = rng.random() < 0.5
    node.number = rng.choice((1, 2.5, "s", None, (1, "a"), NAN))
    node.hooks = OrderedDict()
    node.names = {"a": 1, "b": 2} if rng.random() < 0.5 else OrderedDict(a=1, b=2)
    node.items = [1, 2]
    node.children = {f"c{i}": make_tree(rng, depth - 1) for i in range(2)} if depth else {}
    return node


class Guards:
    """Guards for all of a tree, with their meaning in Python beside them."""

    def __init__(self, tree):
        self.instructions, self.meaning, self.fetch = [("LOCAL", 0)], [], []
        self.node(0, tree, lambda root: root)
        self.program = native.GuardProgram(self.instructions, self.fetch)

    def add(self, *instruction, meaning=None):
        self.instructions.append(instruction)
        if meaning is not None:
            self.meaning.append(meaning)
        return len(self.instructions) - 1

    def node(self, slot, node, get):
        kind, tag = type(node), type(node).tag
        self.add("TYPE", slot, kind, meaning=lambda root: type(get(root)) is kind)
        of = self.add("TYPE_OF", slot)
        self.add("NOT_PRESENT", of, "flag", meaning=lambda root: not hasattr(type(get(root)), "flag"))
        self.add(
            "EQUALS", self.add("TYPE_ATTR", of, "tag"), tag, meaning=lambda root: type(get(root)).tag is tag
        )
        attributes = dict(vars(node))
        for name in ("flag", "number"):
            value = attributes[name]
            item = self.add("DICT_ATTR", slot, name)
            self.add("EQUALS", item, value, meaning=lambda root, n=name, v=value: vars(get(root))[n] is v)
        self.add(
            "NOT_PRESENT",
            self.add("DICT", slot),
            "extra",
            meaning=lambda root: "extra" not in vars(get(root)),
        )
        hooks = self.add("DICT_ATTR", slot, "hooks")
        self.add(
            "TYPE", hooks, OrderedDict, meaning=lambda root: type(vars(get(root))["hooks"]) is OrderedDict
        )
        self.add("LEN", hooks, 0, meaning=lambda root: len(vars(get(root))["hooks"]) == 0)
        names = self.add("DICT_ATTR", slot, "names")
        self.add(
            "KEYS",
            names,
            tuple(node.names),
            meaning=lambda root: list(vars(get(root))["names"]) == ["a", "b"],
        )
        self.add(
            "EQUALS", self.add("ITEM", names, "b"), 2, meaning=lambda root: vars(get(root))["names"]["b"] == 2
        )
        items = self.add("DICT_ATTR", slot, "items")
        self.add("LEN", items, 2, meaning=lambda root: len(vars(get(root))["items"]) == 2)
        self.fetch += [items, self.add("DICT_ATTR", slot, "children")]
        children = self.fetch[-1]
        for key, child in node.children.items():
            self.node(
                self.add("ITEM", children, key), child, lambda root, key=key: vars(get(root))["children"][key]
            )

    def expected(self, root):
        for meaning in self.meaning:
            try:
                if not meaning(root):
                    return False
            except (KeyError, AttributeError):
                return False
        return True

    def fetched(self, root):
        found = []

        def walk(node):
            found.extend((node.items, node.children))
            for child in node.children.values():
                walk(child)

        walk(root)
        return found


def nodes_of(tree):
    yield tree
    for child in tree.children.values():
        yield from nodes_of(child)


def swap_dict(node):
    node.__dict__ = dict(node.__dict__)


def swap_child(node):
    if node.children:
        node.children["c0"] = make_tree(random.Random(1), 0)


CHANGES = [
    lambda n: setattr(n, "flag", not n.flag),
    lambda n: setattr(n, "number", 3),
    lambda n: setattr(n, "extra", 1),
    lambda n: n.hooks.update(a=1),
    lambda n: n.hooks.clear(),
    lambda n: n.names.update(b=3),
    lambda n: n.names.update(c=3),
    lambda n: n.names.pop("a", None),
    lambda n: n.names.move_to_end("a") if isinstance(n.names, OrderedDict) else None,
    lambda n: n.items.append(1),
    lambda n: setattr(n, "items", [3, 4]),
    lambda n: setattr(n, "hooks", {}),
    lambda n: setattr(n, "__class__", Other if type(n) is Node else Node),
    lambda n: delattr(n, "flag"),
    lambda n: vars(n).pop("number"),
    lambda n: n.__dict__.__setitem__("flag", 0),
    lambda n: vars(n).clear(),
    swap_dict,
    swap_child,
    lambda n: setattr(n, "children", dict(n.children)),
    lambda n: setattr(Node, "tag", Node.tag + 1),
    lambda n: setattr(Other, "tag", 7),
    lambda n: setattr(Node, "flag", 1),
    lambda n: None,
    lambda n: gc.collect() and None,
    lambda n: setattr(n, "unrelated", object()),
    lambda n: vars(n).pop("unrelated", None),
    lambda n: n.names.setdefault("b", 5),
    lambda n: vars(n).update(unrelated=1),
]


def reset_classes():
    Node.tag = 0
    for cls, name in ((Other, "tag"), (Node, "flag")):
        if name in vars(cls):
            delattr(cls, name)


@pytest.mark.parametrize("seed", range(120))
def test_tapes_agree_with_python(seed):
    rng = random.Random(seed)
    reset_classes()
    tree = make_tree(rng)
    guards = Guards(tree)
    assert guards.expected(tree)
    outcomes = set()
    for _ in range(12):
        for _ in range(rng.randrange(3)):
            answer = guards.program.fetch(function, [tree])
            assert (answer is not None) == guards.expected(tree)
            if answer is not None:
                assert all(a is b for a, b in zip(answer, guards.fetched(tree), strict=True))
        outcomes.add(guards.program.check(function, [tree]) is None)
        node = rng.choice(list(nodes_of(tree)))
        try:
            rng.choice(CHANGES)(node)
        except (AttributeError, KeyError, RuntimeError):
            pass
        if rng.random() < 0.1:
            reset_classes()
        try:
            list(nodes_of(tree))
        except AttributeError:
            assert guards.program.check(function, [tree]) is not None
            return
    reset_classes()


def test_fuzz_can_fail():
    """The changes really break guards, and unbroken trees really pass by replay."""
    reset_classes()
    tree = make_tree(random.Random(5))
    guards = Guards(tree)
    broken = 0
    for change in CHANGES:
        tree = make_tree(random.Random(5))
        guards = Guards(tree)
        assert guards.program.check(function, [tree]) is None
        try:
            change(tree)
        except KeyError:
            continue
        broken += guards.program.check(function, [tree]) is not None
        reset_classes()
    assert broken >= 18


def test_freed_roots_are_not_taken_for_new_ones():
    program = None
    for round_ in range(200):
        thing = Plain(a=Plain(b=round_ % 2))
        if program is None:
            program = native.GuardProgram(
                [("LOCAL", 0), ("DICT_ATTR", 0, "a"), ("DICT_ATTR", 1, "b"), ("EQUALS", 2, 0)]
            )
        assert (program.check(function, [thing]) is None) == (round_ % 2 == 0)
        del thing


def test_instance_attributes_without_materialised_dict():
    class Light:
        def __init__(self):
            self.a = 1
            self.b = 2

    program = native.GuardProgram([("LOCAL", 0), ("DICT_ATTR", 0, "a"), ("EQUALS", 1, 1)])
    thing = Light()

    def store(value):
        thing.a = value

    for i in range(200):
        store(1 if i % 3 else 2)
        for _ in range(2):
            assert (program.check(function, [thing]) is None) == (i % 3 != 0)


def test_modules_and_functions_as_parents():
    module = types.ModuleType("m")
    module.x = 1
    program = native.GuardProgram([("CONST", module), ("DICT_ATTR", 0, "x"), ("EQUALS", 1, 1)])
    assert program.check(function, []) is None
    module.x = 2
    assert program.check(function, []) == (2, 2, "")
    module.__dict__["x"] = 1
    assert program.check(function, []) is None
    namespace = vars(module)
    program = native.GuardProgram([("CONST", namespace), ("ITEM", 0, "x"), ("EQUALS", 1, 1)], [1])
    for i in range(300):
        namespace["other"] = i
        assert program.fetch(function, []) == (1,)


def test_large_programs():
    things = [Plain(value=i) for i in range(3000)]
    instructions, fetch = [], []
    for i, thing in enumerate(things):
        instructions += [("CONST", thing), ("DICT_ATTR", 3 * i, "value"), ("EQUALS", 3 * i + 1, i)]
        fetch.append(3 * i + 1)
    program = native.GuardProgram(instructions, fetch)
    for _ in range(3):
        assert program.fetch(function, []) == tuple(range(3000))
    things[1234].value = -1
    assert program.check(function, [])[:2] == (3 * 1234 + 2, -1)
