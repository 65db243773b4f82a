"""The eval-frame hook: which frames are offered, what the handler may answer, what is left. No torch."""

import gc
import os
import sys
import threading
import traceback

import pytest

from minicompile import _native as native


def resident():
    """Bytes of memory in use now (not the highest so far, which would hide a leak)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Recorder:
    """A handler that notes the names of the frames it is offered and gives back what `answers` says."""

    def __init__(self, **answers):
        self.answers, self.seen = answers, []

    def __call__(self, code, function, localsplus, namespace, resumed):
        self.seen.append(code.co_name + ("*" if resumed else ""))
        return self.answers.get(code.co_name, NotImplemented)


native.set_policy(Recorder.__call__.__code__, native.NATIVE)


def add(a, b=3):
    return a + b


class Thing:
    def __init__(self, value=0):
        self.value = value

    @property
    def doubled(self):
        return 2 * self.value

    def __getattr__(self, name):
        return name

    def __getitem__(self, key):
        return add(key, 1)

    def __len__(self):
        return 3

    def __lt__(self, other):
        return self.value < other.value

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False

    def __call__(self):
        return "called"


def numbers():
    yield 1
    yield add(1)


C_STARTED = {
    "init": (lambda: type("T", (Thing,), {})(1).value, "__init__"),
    "property": (lambda: Thing(2).doubled, "doubled"),
    "getattr": (lambda: Thing().missing, "__getattr__"),
    "getitem": (lambda: Thing()[1], "__getitem__"),
    "len": (lambda: len(Thing()), "__len__"),
    "lt": (lambda: sorted([Thing(2), Thing(1)])[0].value, "__lt__"),
    "key": (lambda: max([1, 2], key=lambda x: -x), "<lambda>"),
    "hash": (lambda: {Thing(): 1} and None, "__hash__"),
    "eq": (lambda: Thing() in [Thing()], "__eq__"),
    "with": (lambda: Thing().__enter__() and None, "__enter__"),
    "call": (lambda: Thing()(), "__call__"),
    "map": (lambda: list(map(add, [1, 2])), "add"),
    "class": (lambda: type("K", (), {}) and [c for c in [1]], "<lambda>"),
    "generator": (lambda: sum(numbers()), "numbers*"),
    "genexpr": (lambda: sum(add(i) for i in range(3)), "<genexpr>*"),
}


@pytest.mark.parametrize("name", C_STARTED)
def test_frames_started_by_c_are_offered(name):
    function, expected = C_STARTED[name]
    recorder = Recorder()
    assert native.capture(recorder, function) == function()
    assert expected in recorder.seen
    assert native.mode() == 0 and not native.installed()


def test_class_body_has_its_namespace():
    spaces = {}

    def handler(code, function, localsplus, namespace, resumed):
        spaces[code.co_name] = namespace
        return NotImplemented

    def make():
        class Inner:
            x = 1

        return Inner

    native.capture(handler, make)
    assert spaces["make"] is None and spaces["Inner"]["x"] == 1


def test_result_replaces_the_frame():
    assert native.capture(Recorder(add=42), lambda: (add(1), list(map(add, [1, 2])))) == (42, [42, 42])
    assert native.capture(Recorder(numbers=[7, 8]), lambda: list(numbers())) == [7, 8]
    assert native.capture(Recorder(add=None), lambda: add(1)) is None
    assert native.capture(Recorder(add=native.NULL), lambda: add(1)) is NotImplemented


def test_localsplus():
    seen = {}

    def handler(code, function, localsplus, namespace, resumed):
        seen[code.co_name] = (function, localsplus)
        return NotImplemented

    free = "free"

    def f(a, b=2, *args, c=3, **kwargs):
        def inner():
            return a, free

        local = inner()
        return local

    native.capture(handler, f, 1, 5, 6, d=7)
    function, localsplus = seen["f"]
    names = f.__code__.co_varnames
    assert function is f and dict(zip(names, localsplus))["a"] == 1
    assert localsplus[:5] == [1, 5, 3, (6,), {"d": 7}]
    assert all(value is native.NULL for value in localsplus[5:])
    assert len(localsplus) == len(set(names + f.__code__.co_cellvars)) + len(f.__code__.co_freevars)


def test_exceptions_propagate_and_clear_the_frame():
    def handler(code, function, localsplus, namespace, resumed):
        if code is add.__code__:
            raise KeyError("stop")
        return NotImplemented

    def outer(value):
        try:
            add(value)
        except KeyError as error:
            return error

    marker = object()
    before = sys.getrefcount(marker)
    error = native.capture(handler, outer, marker)
    assert error.args == ("stop",)
    assert next(frame.name for frame in traceback.extract_tb(error.__traceback__)) == "outer"
    del error
    gc.collect()
    assert sys.getrefcount(marker) == before
    with pytest.raises(KeyError):
        native.capture(handler, add, 1)
    assert native.mode() == 0 and not native.installed()


def test_policies():
    inner = compile("def outer():\n def helper(): return add(1)\n return helper()", "<t>", "exec").co_consts[
        0
    ]
    recorder = Recorder()
    function = type(add)(inner, {"add": add})
    native.capture(recorder, function)
    assert recorder.seen == ["outer", "helper", "add"]
    native.set_policy(inner, native.NATIVE)
    recorder.seen.clear()
    native.capture(recorder, function)
    assert recorder.seen == ["helper", "add"]
    native.set_policy(inner, native.NATIVE, nested=True)
    recorder.seen.clear()
    native.capture(recorder, function)
    assert recorder.seen == ["add"]
    native.set_policy(inner, native.SUSPEND)
    recorder.seen.clear()
    native.capture(recorder, function)
    assert recorder.seen == [] and native.get_policy(inner) == native.SUSPEND
    with pytest.raises(TypeError):
        native.set_policy(3, native.NATIVE)
    with pytest.raises(ValueError):
        native.set_policy(inner, 9)


def test_suspend_and_nested_capture():
    outer, inner = Recorder(), Recorder()

    def work():
        native.suspend(add, 1)
        native.suspend(native.capture, inner, add, 2)
        return native.capture(inner, add, 4)

    assert native.capture(outer, work) == 7
    assert outer.seen == ["work"] and inner.seen == ["add", "add"]


def test_handler_may_call_what_it_was_offered():
    def handler(code, function, localsplus, namespace, resumed):
        if code is add.__code__:
            return native.suspend(function, *localsplus) + 100
        return NotImplemented

    assert native.capture(handler, lambda: add(1)) == 104


def test_live_generators():
    def handler(code, function, localsplus, namespace, resumed):
        if resumed:
            raise ValueError("live")
        return NotImplemented

    live = numbers()
    next(live)
    with pytest.raises(ValueError):
        native.capture(handler, next, live)
    with pytest.raises(RuntimeError, match="resumed"):
        native.capture(Recorder(numbers=1), next, numbers())
    closed = []

    def guarded():
        try:
            yield 1
        finally:
            closed.append(1)

    def use():
        first, second = guarded(), guarded()
        next(first), next(second)
        first.close()
        with pytest.raises(KeyError):
            second.throw(KeyError())

    native.capture(Recorder(), use)
    assert closed == [1, 1]


def test_coroutines_run():
    async def work():
        return add(2)

    def drive():
        try:
            work().send(None)
        except StopIteration as stop:
            return stop.value

    assert native.capture(Recorder(), drive) == 5


def test_deep_recursion():
    def down(n):
        return 0 if n == 0 else 1 + down(n - 1)

    def forever(n):
        return forever(n + 1)

    assert native.capture(Recorder(), down, 200) == 200
    with pytest.raises(RecursionError):
        native.capture(Recorder(), forever, 0)

    def handler(code, function, localsplus, namespace, resumed):
        return function(localsplus[0]) if code is forever.__code__ else NotImplemented

    with pytest.raises(RecursionError):
        native.capture(handler, forever, 0)
    assert native.mode() == 0 and not native.installed()


def test_other_threads_are_untouched():
    seen, stop, ready = [], threading.Event(), threading.Event()
    me = threading.get_ident()

    def handler(code, function, localsplus, namespace, resumed):
        seen.append(threading.get_ident())
        return 1000 if code is add.__code__ else NotImplemented

    results = []

    def other():
        while not stop.is_set():
            results.append(add(1))
            ready.set()

    def work():
        total = 0
        for _ in range(20000):
            total += add(1)
        return total

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait(10)
    assert native.capture(handler, work) == 20_000_000
    stop.set()
    thread.join()
    assert set(seen) == {me} and set(results) == {4}


def test_two_threads_capture_at_once():
    def run(answer, out):
        recorder = Recorder(add=answer)
        out.append(sum(native.capture(recorder, lambda: [add(1) for _ in range(3000)])))

    outs = [[] for _ in range(4)]
    threads = [threading.Thread(target=run, args=(i, outs[i])) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [out[0] for out in outs] == [3000 * i for i in range(4)] and not native.installed()


def test_no_leaks():
    def big(x, *args, k=1, **kwargs):
        def inner():
            return x

        return inner

    def handler(code, function, localsplus, namespace, resumed):
        return None if code.co_name in ("big", "numbers", "add") else NotImplemented

    def loop(count):
        marker = object()
        before = sys.getrefcount(marker)
        for _ in range(count):
            big(marker, marker, k=marker, z=marker)
            add(marker)
            numbers()
        return sys.getrefcount(marker) - before

    native.capture(handler, loop, 1000)
    before = resident()
    assert native.capture(handler, loop, 100_000) == 0
    assert resident() - before < 2 << 20


def test_code_is_freed_with_its_policy():
    def make():
        namespace = {}
        exec("def f(): return 1", namespace)
        native.set_policy(namespace["f"].__code__, native.NATIVE)
        native.set_entries(namespace["f"].__code__, native.CompiledFunction(add, add))

    def alive():
        gc.collect()
        return sum(type(thing) is native.CompiledFunction for thing in gc.get_objects())

    before = alive()
    for _ in range(1000):
        make()
    assert alive() <= before


def test_divert():
    def slow(x, y=2):
        return "slow", x, y

    def again(x, y=2):
        return "again", x, y

    missed = []

    def on_miss(compiled, args, kwargs, values):
        missed.append((args, kwargs, values))
        return "missed"

    compiled = native.CompiledFunction(again, on_miss)
    guards = native.GuardProgram([("LOCAL", 0), ("EQUALS", 0, 1), ("LOCAL", 1)], [0, 2])
    compiled.entries.append(native.Entry(guards, lambda *fetched: fetched))
    native.set_entries(slow.__code__, compiled)
    try:
        assert slow(1) == ("slow", 1, 2)
        work = lambda: (slow(1), list(map(slow, [1, 5])))
        assert native.divert(work) == ((1, 2), [(1, 2), "missed"])
        assert missed == [((5, 2), {}, [5, 2])]
    finally:
        native.set_entries(slow.__code__, None)
    assert native.divert(slow, 1) == ("slow", 1, 2)
    assert not native.installed()


def test_bad_calls():
    for bad in (
        lambda: native.capture(1),
        lambda: native.capture(1, add),
        lambda: native.suspend(),
        lambda: native.divert(),
        lambda: native.set_entries(add.__code__, 3),
    ):
        with pytest.raises(TypeError):
            bad()
