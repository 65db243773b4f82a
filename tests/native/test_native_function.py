"""CompiledFunction: argument binding as CPython's, entries, misses, life time, threads. Needs no torch."""

import gc
import inspect
import itertools
import os
import random
import sys
import threading
import weakref

import pytest

from minicompile import _native as native


def resident():
    """Bytes of memory in use now (not the highest so far, which would hide a leak)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def never(*args):
    raise AssertionError("no miss was expected")


def entry(instructions, fetch, program, data=None):
    return native.Entry(native.GuardProgram(instructions, fetch), program, data)


def outcome(function, args, kwargs):
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        return str(error)


SIGNATURES = [
    lambda: 0,
    lambda a: (a,),
    lambda a, b=2: (a, b),
    lambda a, /, b, *, c: (a, b, c),
    lambda a, /, b=2, *, c=3: (a, b, c),
    lambda *a: (a,),
    lambda **k: (k,),
    lambda a, *b, c=4, **d: (a, c, b, d),
    lambda a, b=1, /, *, c: (a, b, c),
    lambda a=1, /, **k: (a, k),
]


@pytest.mark.parametrize("index", range(len(SIGNATURES)))
def test_binding_is_cpythons(index):
    function = SIGNATURES[index]
    names = inspect.getfullargspec(function)
    parameters = names.args + names.kwonlyargs + [name for name in (names.varargs, names.varkw) if name]
    bound = []
    compiled = native.CompiledFunction(
        function, lambda self, args, kwargs, values: bound.append(values) or "bound"
    )
    for count, keys in itertools.product(
        range(5),
        itertools.chain.from_iterable(itertools.combinations(("a", "b", "c", "z"), n) for n in range(4)),
    ):
        args, kwargs = tuple(range(10, 10 + count)), {key: key for key in keys}
        expected, found = outcome(function, args, kwargs), outcome(compiled, args, kwargs)
        if isinstance(expected, str):
            assert found == expected
        else:
            assert found == "bound"
            by_name = dict(zip(parameters, bound[-1], strict=True))
            values = expected if isinstance(expected, tuple) else ()
            order = [name for name in function.__code__.co_varnames if name in by_name]
            assert [by_name[name] for name in order] == list(values)


def test_str_subclasses_as_keywords():
    class Name(str):
        pass

    compiled = native.CompiledFunction(lambda a, **k: (a, k), lambda self, args, kwargs, values: values)
    assert compiled(**{Name("a"): 1, Name("b"): 2}) == [1, {"b": 2}]


def test_changed_defaults_are_seen():
    def function(a=1, *, b=2):
        return a, b

    compiled = native.CompiledFunction(function, lambda self, args, kwargs, values: values)
    assert compiled() == [1, 2]
    function.__defaults__, function.__kwdefaults__ = (5,), {"b": 6}
    assert compiled() == [5, 6]
    function.__kwdefaults__ = None
    with pytest.raises(TypeError, match="keyword-only argument: 'b'"):
        compiled()


def test_entries_and_misses():
    calls = []

    def on_miss(compiled, args, kwargs, values):
        calls.append((args, kwargs, values))
        compiled.entries.append(entry([("LOCAL", 0), ("EQUALS", 0, args[0])], [0], lambda x: ("program", x)))
        return "compiled"

    def function(x, y=0):
        raise AssertionError("the function itself must not run")

    compiled = native.CompiledFunction(function, on_miss)
    assert [compiled(1), compiled(1), compiled(2, y=3), compiled(2), compiled(1)] == [
        "compiled",
        ("program", 1),
        "compiled",
        ("program", 2),
        ("program", 1),
    ]
    assert calls == [((1,), {}, [1, 0]), ((2,), {"y": 3}, [2, 3])]
    first, second = compiled.entries
    assert (first.hits, first.misses, second.hits, second.misses) == (2, 2, 1, 1)
    assert first.guards.check(function, [1, 0]) is None and second.last_miss == 1
    assert first.guards.check(function, [5, 0]) == (1, 5, "")
    compiled.entries.clear()
    assert compiled(7) == "compiled"
    compiled.enabled = False
    with pytest.raises(AssertionError, match="must not run"):
        compiled(7)


def test_last_hit_is_tried_first():
    compiled = native.CompiledFunction(lambda x: None, never)
    compiled.entries.extend(entry([("LOCAL", 0), ("EQUALS", 0, i)], [], lambda i=i: i, i) for i in range(5))
    for i in (3, 3, 1, 4, 0, 0, 2):
        assert compiled(i) == i and compiled.entries[0].data == i
    assert sorted(e.data for e in compiled.entries) == list(range(5))


def test_exceptions_of_program_and_miss():
    def fail(*args):
        raise KeyError("why")

    compiled = native.CompiledFunction(lambda x: None, fail)
    with pytest.raises(KeyError):
        compiled(1)
    compiled.entries.append(entry([], [], fail))
    with pytest.raises(KeyError):
        compiled(1)
    assert compiled.entries[0].hits == 1


def test_guards_and_programs_may_reenter():
    compiled = native.CompiledFunction(lambda n: None, never)

    class Odd:
        depth = 0

        @property
        def value(self):
            Odd.depth += 1
            if Odd.depth < 20:
                compiled(Odd())
                compiled.entries.reverse()
            return 5

    def program(value):
        return value

    compiled.entries.append(entry([("LOCAL", 0), ("ATTR", 0, "value"), ("EQUALS", 1, 6)], [1], program))
    compiled.entries.append(entry([("LOCAL", 0), ("ATTR", 0, "value"), ("EQUALS", 1, 5)], [1], program))
    assert compiled(Odd()) == 5

    def count(n):
        return 0 if n == 0 else 1 + recursive(n - 1)

    recursive = native.CompiledFunction(lambda n: None, never)
    recursive.entries.append(entry([("LOCAL", 0), ("TYPE", 0, int)], [0], count))
    assert recursive(100) == 100
    with pytest.raises(RecursionError):
        recursive(100_000)


def test_entries_cleared_by_a_guard():
    class Clears:
        @property
        def value(self):
            compiled.entries.clear()
            gc.collect()
            return 1

    compiled = native.CompiledFunction(lambda n: None, lambda *a: "miss")
    compiled.entries.append(
        entry([("LOCAL", 0), ("ATTR", 0, "value"), ("EQUALS", 1, 1)], [0, 1], lambda a, b: b)
    )
    assert compiled(Clears()) == 1
    compiled.entries.append(
        entry([("LOCAL", 0), ("ATTR", 0, "value"), ("EQUALS", 1, 2)], [0, 1], lambda a, b: b)
    )
    assert compiled(Clears()) == "miss"


def test_inside_capture_the_frame_is_offered():
    def function(x):
        return x + 1

    def handler(code, function, localsplus, namespace, resumed):
        return "offered" if code.co_name == "function" else NotImplemented

    compiled = native.CompiledFunction(function, never)
    compiled.entries.append(entry([], [], lambda: "program"))
    assert compiled(1) == "program" and native.capture(handler, compiled, 1) == "offered"


def test_it_behaves_as_a_function():
    class Model:
        forward = native.CompiledFunction(lambda self, x: None, lambda self, args, kwargs, values: args)

    model = Model()
    assert model.forward(3) == (model, 3) and Model.forward(model, 3) == (model, 3)
    compiled = Model.forward
    compiled.note = 1
    assert (
        compiled.note == 1
        and compiled.__dict__ == {"note": 1}
        and callable(compiled)
        and "entries" in repr(compiled)
    )
    for bad in (
        lambda: native.CompiledFunction(len, never),
        lambda: native.CompiledFunction(never),
        lambda: native.Entry(1, 2),
    ):
        with pytest.raises(TypeError):
            bad()


def test_cycles_are_collected():
    def make():
        def function():
            return compiled

        compiled = native.CompiledFunction(function, never)
        compiled.self = compiled
        compiled.entries.append(entry([("CONST", compiled), ("ID", 0, compiled)], [0], lambda c: c, compiled))
        assert compiled() is compiled
        return weakref.ref(compiled)

    reference = make()
    gc.collect()
    assert reference() is None


def test_no_leaks():
    marker, keyword = object(), {"k": 1}

    def function(a, b=marker, *rest, c=marker, **more):
        return None

    compiled = native.CompiledFunction(function, lambda *a: None)
    guards = [("LOCAL", i) for i in range(5)] + [
        ("TYPE", 0, object),
        ("CONST", keyword),
        ("ITEM", 6, "k"),
        ("ATTR", 0, "__class__"),
        ("INDEX", 3, 0),
    ]
    compiled.entries.append(entry(guards, [0, 1, 2, 3, 4, 7, 8, 9], lambda *fetched: fetched[0]))

    def loop(count):
        before = sys.getrefcount(marker), sys.getrefcount(object), sys.getrefcount(1)
        for _ in range(count):
            compiled(marker, marker, marker, c=marker, d=marker)
            compiled(1)
            compiled(marker)
        after = sys.getrefcount(marker), sys.getrefcount(object), sys.getrefcount(1)
        return [abs(a - b) for a, b in zip(after, before, strict=True)]

    loop(1000)
    before = resident()
    assert max(loop(100_000)) < 10
    assert resident() - before < 2 << 20


def test_many_fetched_and_many_parameters():
    source = "def f(" + ", ".join(f"a{i}" for i in range(200)) + "): pass"
    namespace = {}
    exec(source, namespace)
    compiled = native.CompiledFunction(namespace["f"], never)
    compiled.entries.append(entry([("LOCAL", i) for i in range(200)], range(200), lambda *fetched: fetched))
    values = tuple(object() for _ in range(200))
    assert compiled(*values) == values
    many = 5000
    compiled.entries[:] = [
        entry([("CONST", i) for i in range(many)], range(many), lambda *fetched: sum(fetched))
    ]
    assert compiled(*values) == sum(range(many))


def test_threads():
    compiled = native.CompiledFunction(lambda x: None, lambda self, args, kwargs, values: args[0])

    class Slow:
        def __init__(self, value):
            self.value = value

        @property
        def key(self):
            return sum([self.value] * 3)  # some bytecode, so that threads are switched here

    for i in range(4):
        compiled.entries.append(
            entry(
                [("LOCAL", 0), ("ATTR", 0, "key"), ("EQUALS", 1, 3 * i), ("ATTR", 0, "value")],
                [0, 3],
                lambda thing, value: (thing, value),
            )
        )
    wrong = []

    def run(seed):
        rng = random.Random(seed)
        for _ in range(2000):
            thing = Slow(rng.randrange(4))
            if compiled(thing) != (thing, thing.value):
                wrong.append(thing.value)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert wrong == []
