"""Small programs with tensors in them: the language as models use it. Each takes a tensor x (2, 3) and a State s, gives a result, and
may change s, print, or raise. Captured, and run by the interpreter in plain mode, it must do what CPython does, twice.
"""
# ruff: noqa
import abc
import collections
import contextlib
import copy
import dataclasses
import enum
import functools
import inspect
import itertools
import logging
import math
import operator
import re
import types
import typing
import warnings

import torch

PROGRAMS = []


def program(f):
    PROGRAMS.append(f)
    return f


class Point:
    scale = 2.0

    def __init__(self, a): self.a = a
    def moved(self, d): return self.a + d
    @property
    def double(self): return self.a * 2
    @staticmethod
    def plus(a, b): return a + b
    @classmethod
    def make(cls, a): return cls(a)


class State:
    """What a program may read and change; fresh for each run."""

    def __init__(self):
        self.items, self.table, self.names = [1, 2, 3], {"a": 1.0, "b": 2.0}, {"p", "q"}
        self.count, self.flag, self.text, self.none = 0, True, "word", None
        self.t, self.w = torch.ones(2, 3), torch.full((3,), 2.0)
        self.pair, self.point = (1.0, torch.ones(3)), Point(torch.ones(3))
        self.queue = collections.deque([1, 2, 3], maxlen=4)
        self.counter, self.default = collections.Counter("aab"), collections.defaultdict(list)
        self.ordered = collections.OrderedDict(a=1, b=2)
        self.tensors = [torch.ones(3), torch.zeros(3)]
        self.named = {"u": torch.ones(3), "v": torch.full((3,), 3.0)}
        self.log = []


G = 3.0
counter = 0
box = [0]


def outer_function(x, k=2.0, *args, bias=0.5, **kw):
    return x * k + bias + sum(args) + sum(kw.values())


# Scopes, functions, arguments

@program
def closure(x, s):
    k = 2.0
    def f(v): return v * k + G
    return f(x)
@program
def closure_counts(x, s):
    n = 0
    def f(v):
        nonlocal n
        n += 1
        return v + n
    return f(f(x)), n
@program
def closures_share_a_cell(x, s):
    acc = x
    def add(v):
        nonlocal acc
        acc = acc + v
    def get(): return acc
    add(1); add(x)
    return get(), acc
@program
def closure_per_iteration(x, s):
    fs = [lambda v, i=i: v * i for i in range(3)]
    late = [lambda v: v * i for i in range(3)]
    return [f(x) for f in fs], [f(x) for f in late]
@program
def returned_closure(x, s):
    def make(k): return lambda v: v * k
    return make(2)(x), make(x)(3)
@program
def global_counter(x, s):
    global counter
    counter = counter + 1
    out = x * counter
    counter = 0
    return out
@program
def global_list(x, s):
    box[0] = box[0] + 1
    out = x + box[0]
    box[0] = 0
    return out, list(box)
@program
def defaults_and_keywords(x, s): return outer_function(x), outer_function(x, 3, 1, 2, bias=1.0, z=4.0), outer_function(x, **{"k": 1.0})
@program
def unpacked_arguments(x, s):
    args, kw = (x, 2.0), {"bias": 1.5}
    return outer_function(*args, **kw), outer_function(*[x], *(1,), **kw, q=1)
@program
def mutable_default(x, s):
    def f(v, seen=[]):
        seen.append(v)
        return len(seen)
    return f(x), f(x), f(x, []), x + 1
@program
def keyword_only(x, s):
    def f(a, /, b, *, c=x): return a - b * c
    return f(x, 2), f(x, b=3, c=1)
@program
def wrong_call(x, s):
    def f(a, b): return a + b
    return f(x)
@program
def unknown_keyword(x, s): return outer_function(x, **{"k": 1, 3: 4})
@program
def lambda_in_dict(x, s):
    ops = {"add": lambda a, b: a + b, "mul": operator.mul}
    return {k: f(x, 2.0) for k, f in ops.items()}
@program
def recursion(x, s):
    def power(v, n): return v if n == 1 else v * power(v, n - 1)
    return power(x, 4)
@program
def mutual_recursion(x, s):
    def even(v, n): return v if n == 0 else odd(v + 1, n - 1)
    def odd(v, n): return v if n == 0 else even(v * 2, n - 1)
    return even(x, 5)
@program
def deep_recursion(x, s):
    def down(v, n): return v if n == 0 else down(v, n - 1) + 1
    return down(x, 60)
@program
def tree_recursion(x, s):
    def total(t): return sum(map(total, t)) if isinstance(t, (list, tuple)) else t
    return total([x, (x, [1, x]), 2.0])
@program
def function_attributes(x, s):
    def f(v): return v * f.k
    f.k = 3.0
    return f(x)
@program
def decorated(x, s):
    def twice(g):
        @functools.wraps(g)
        def inner(*a, **k): return g(g(*a, **k), **k)
        return inner
    @twice
    def f(v, k=2): "doc"; return v + k
    return f(x), f(x, k=5), f.__name__, f.__doc__
@program
def decorator_with_arguments(x, s):
    def scaled(k):
        def wrap(g): return lambda v: g(v) * k
        return wrap
    @scaled(2)
    @scaled(3)
    def f(v): return v + 1
    return f(x)
@program
def partials(x, s):
    f = functools.partial(outer_function, k=4.0)
    g = functools.partial(f, bias=x)
    return f(x), g(x), functools.partial(torch.add, x)(1), g.keywords["k"]
@program
def partial_method(x, s):
    class A:
        def f(self, v, k): return v * k
        double = functools.partialmethod(f, k=2)
    return A().double(x)
@program
def reduce_tensors(x, s): return functools.reduce(torch.add, [x, x, 1.0]), functools.reduce(lambda a, b: a @ b.t() @ b, [x, x], x)
@program
def cached_function(x, s):
    @functools.lru_cache(maxsize=None)
    def f(n): return n if n < 2 else f(n - 1) + f(n - 2)
    return x * f(10), f.cache_info().hits
@program
def cached_property(x, s):
    class A:
        calls = 0
        @functools.cached_property
        def v(self):
            A.calls += 1
            return x * 2
    a = A()
    return a.v + a.v, A.calls
@program
def single_dispatch(x, s):
    @functools.singledispatch
    def f(v): return v
    @f.register
    def _(v: int): return v + 1
    @f.register(torch.Tensor)
    def _(v): return v * 2
    return f(x), f(3), f("s")
@program
def single_dispatch_method(x, s):
    class A:
        @functools.singledispatchmethod
        def f(self, v): return v
        @f.register
        def _(self, v: list): return [self.f(i) for i in v]
        @f.register(torch.Tensor)
        def _(self, v): return v + 1
    return A().f([x, [x, 2]])
@program
def total_ordering(x, s):
    @functools.total_ordering
    class A:
        def __init__(self, v): self.v = v
        def __lt__(self, o): return self.v < o.v
        def __eq__(self, o): return self.v == o.v
    return x if A(1) >= A(0) else -x
@program
def cmp_to_key(x, s): return [x * i for i in sorted([3, 1, 2], key=functools.cmp_to_key(lambda a, b: b - a))]
@program
def starred_everything(x, s):
    a, *b, c = [x, 1, 2, x]
    (d, (e, *f)), g = (1, (x, 2)), 3
    return a + c, b, d, e, f, g, [*b, *f], {**s.table, "c": 3}, (*b, x)
@program
def unpack_tensor_rows(x, s):
    a, b = x
    p, *q = x.t()
    return a + b, p, q
@program
def unpack_wrong(x, s):
    a, b, c = x
    return a
@program
def walrus(x, s):
    if (n := x.shape[0]) > 1 and (y := x * n) is not None: return y, n
@program
def conditional_chain(x, s): return x if s.count > 5 else -x if s.flag else x * 2
@program
def chained_comparison(x, s): return x + (1 < x.shape[1] <= 3), (x > 1) & (x < 4)
@program
def unbound(x, s):
    if not s.flag: y = 1
    return x + y
@program
def deleted(x, s):
    y = x + 1
    del y
    return y
@program
def missing_global(x, s): return x + not_there
@program
def missing_attribute(x, s): return x + s.not_there
@program
def locals_used(x, s):
    a = x + 1
    return sorted(locals()), locals()["a"]
@program
def evaluated(x, s):
    k = 2.0
    return eval("x * k + G"), eval("[v for v in s.items]")
@program
def executed(x, s):
    names = {"x": x}
    exec("y = x + 1\ndef f(v): return v * 2", names)
    return names["y"], names["f"](x)

@program
def evaluated_in_state(x, s): return eval("a * 2", s.table) + x
@program
def evaluated_in_made_dict(x, s): return eval("lambda: x * k", {"x": x, "k": s.table["a"]})(), eval("y", {}, {"y": x})
@program
def executed_with_global(x, s):
    names = {"x": x}
    exec("def f(v):\n    global z\n    z = v + x\n    return z * 2", names)
    return names["f"](1), names["z"], sorted(k for k in names if k[0] != "_")
@program
def executed_in_frame(x, s):
    y = 1
    exec("y = 2")
    return x * y


# Control flow

@program
def for_over_list(x, s):
    for i in s.items: x = x + i
    return x
@program
def for_else(x, s):
    for i in s.items:
        if i > 10: break
    else: return x * 10
    return x
@program
def for_break_continue(x, s):
    for i in range(10):
        if i % 2: continue
        if i > 6: break
        x = x + i
    return x, i
@program
def while_loop(x, s):
    n = 5
    while n:
        n -= 1
        if n == 3: continue
        x = x * 1.5
    else: x = x - 1
    return x
@program
def nested_loops(x, s):
    out = []
    for i in range(3):
        for j in range(i):
            out.append(x[0, j] * i)
    return torch.stack(out)
@program
def loop_over_rows(x, s):
    total = 0
    for row in x: total = total + row.sum()
    return total
@program
def zipped(x, s): return [a * b for a, b in zip(x, [1, 2])], [(i, v + 1) for i, v in enumerate(x, 1)], list(zip(*[[1, 2], [3, 4]]))
@program
def strict_zip(x, s): return [a * b for a, b in zip(x, [1, 2, 3], strict=True)]
@program
def comprehensions(x, s):
    return [x * i for i in range(3) if i], {k: x * v for k, v in s.table.items()}, sum(x[i].sum() for i in range(2)), {i % 2 for i in s.items}
@program
def nested_comprehension(x, s): return [[x[i, j] for j in range(3)] for i in range(2)]
@program
def comprehension_scope(x, s):
    i = 7
    y = [i * x for i in range(2)]
    return i, y, [i for _ in range(2)]
@program
def match_statement(x, s):
    def f(v):
        match v:
            case torch.Tensor(): return v + 1
            case [a, *rest]: return a, len(rest)
            case {"k": k, **more}: return k, more
            case int() | float() as n if n > 2: return n
            case None: return "none"
            case str(t): return t
            case _: return "other"
    return f(x), f([x, 1]), f({"k": x, "m": 1}), f(3.0), f(1), f(None), f("s")
@program
def match_class(x, s):
    @dataclasses.dataclass
    class P:
        a: object
        b: int = 1
    match P(x, 3):
        case P(a, b=3): return a * 2
@program
def match_shape(x, s):
    match x.shape:
        case (2, n): return x.sum() + n
        case _: return x
@program
def ternary_truth(x, s): return [x + 1 if v else x for v in ([], [0], "", "a", None, 0.0, (1,))]
@program
def short_circuit(x, s):
    def never(): s.log.append("called"); return True
    return x + (s.flag or never()), s.none and never(), s.log
@program
def any_all(x, s): return x if all(i > 0 for i in s.items) and any(i == 2 for i in s.items) else -x


# Exceptions

@program
def caught(x, s):
    try: {}["k"]
    except KeyError as e: return x + len(str(e))
@program
def caught_from_torch(x, s):
    try: return x @ x
    except RuntimeError as e: return x.sum(), type(e).__name__
@program
def else_and_finally(x, s):
    try: y = x + 1
    except ValueError: y = x
    else: y = y * 2
    finally: s.log.append("f")
    return y, s.log
@program
def finally_runs_on_return(x, s):
    try: return x + s.count
    finally: s.count += 1
@program
def finally_in_loop(x, s):
    for i in range(3):
        try:
            if i == 1: continue
            x = x + i
        finally: s.log.append(i)
    return x, s.log
@program
def raises(x, s): raise ValueError(f"no {s.text}")
@program
def raises_after_effect(x, s):
    s.items.append(4)
    s.t.add_(1)
    raise KeyError("late")
@program
def raise_from(x, s):
    try:
        try: int("x")
        except ValueError as e: raise TypeError("worse") from e
    except TypeError as e: return x + 1, str(e), type(e.__cause__).__name__, e.__context__ is e.__cause__
@program
def reraise(x, s):
    try:
        try: [][0]
        except IndexError:
            s.log.append("seen")
            raise
    except LookupError as e: return x * 2, s.log, str(e)
@program
def implicit_context(x, s):
    try:
        try: 1 / 0
        except ZeroDivisionError: {}[1]
    except KeyError as e: return x, type(e.__context__).__name__, e.__suppress_context__
@program
def own_exception(x, s):
    class Stop(Exception):
        def __init__(self, v): super().__init__("stop"); self.v = v
    try: raise Stop(x * 3)
    except Stop as e: return e.v, e.args
@program
def exception_across_frames(x, s):
    def inner(v):
        if v.shape[0] == 2: raise ValueError("two")
        return v
    def middle(v):
        try: return inner(v)
        finally: s.log.append("middle")
    try: return middle(x)
    except ValueError as e: return x - 1, str(e), s.log
@program
def assertion(x, s):
    assert x.dim() == 2, "dims"
    try: assert x.dim() == 3, f"{x.dim()} dims"
    except AssertionError as e: return x, str(e)
@program
def failing_assertion(x, s):
    assert x.shape[0] > 5, f"shape {tuple(x.shape)}"
    return x
@program
def exception_group(x, s):
    out = []
    try: raise ExceptionGroup("g", [ValueError(1), TypeError(2), ExceptionGroup("h", [ValueError(3)])])
    except* ValueError as g: out.append([str(e) for e in g.exceptions])
    except* TypeError as g: out.append(len(g.exceptions))
    return x + len(out), out
@program
def exception_group_rest(x, s):
    try:
        try: raise ExceptionGroup("g", [ValueError(1), OSError(2)])
        except* ValueError: s.log.append("v")
    except ExceptionGroup as g: return x, s.log, [type(e).__name__ for e in g.exceptions]
@program
def exception_note(x, s):
    try:
        try: raise ValueError("v")
        except ValueError as e:
            e.add_note("note")
            raise
    except ValueError as e: return x, e.__notes__
@program
def key_error_default(x, s): return x * s.table.get("z", 4.0), s.table.setdefault("y", 5.0), s.table.pop("a"), s.table
@program
def stop_iteration(x, s):
    it = iter([x])
    a = next(it)
    try: next(it)
    except StopIteration: return a + 1, next(it, "end")
@program
def suppress(x, s):
    with contextlib.suppress(ZeroDivisionError):
        x = x + 1
        1 / 0
        x = x * 100
    return x
@program
def try_in_loop(x, s):
    done = 0
    for v in (1, 0, "a", 2):
        try: x = x * (2 / v)
        except (ZeroDivisionError, TypeError) as e: s.log.append(type(e).__name__)
        else: done += 1
    return x, done, s.log
@program
def nested_finally(x, s):
    def f():
        try:
            try: raise ValueError
            finally: s.log.append(1)
        except ValueError: return x + 1
        finally: s.log.append(2)
    return f(), s.log


# Context managers

@program
def own_manager(x, s):
    class M:
        def __init__(self, log): self.log = log
        def __enter__(self): self.log.append("in"); return self
        def __exit__(self, kind, value, tb): self.log.append(kind.__name__ if kind else None); return True
    with M(s.log) as m:
        x = x + len(m.log)
        raise KeyError
    return x, s.log
@program
def generator_manager(x, s):
    @contextlib.contextmanager
    def scaled(k):
        s.log.append("enter")
        try: yield k * 2
        finally: s.log.append("exit")
    with scaled(3) as k: x = x * k
    return x, s.log
@program
def manager_as_decorator(x, s):
    @contextlib.contextmanager
    def noted():
        s.log.append("a")
        yield
        s.log.append("b")
    @noted()
    def f(v): return v + 1
    return f(x), f(x), s.log
@program
def exit_stack(x, s):
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.nullcontext())
        stack.callback(s.log.append, "callback")
        stack.push(lambda *e: s.log.append(e[0]))
        x = x * 2
    return x, s.log
@program
def exit_stack_swallows(x, s):
    with contextlib.ExitStack() as stack:
        stack.push(lambda kind, e, tb: kind is ValueError)
        raise ValueError
    return x + 1
@program
def exit_stack_pop_all(x, s):
    with contextlib.ExitStack() as stack:
        stack.callback(s.log.append, 1)
        kept = stack.pop_all()
    kept.close()
    return x, s.log
@program
def two_managers(x, s):
    with contextlib.nullcontext(x) as a, contextlib.nullcontext(2) as b: return a * b
@program
def no_grad_inside(x, s):
    w = s.w.requires_grad_()
    with torch.no_grad(): a = x * w
    return a.requires_grad, (x * w).requires_grad, torch.is_grad_enabled()
@program
def grad_decorator(x, s):
    @torch.no_grad()
    def f(v): return v * 2, torch.is_grad_enabled()
    return f(x), torch.is_grad_enabled()
@program
def manager_over_loop(x, s):
    for i in range(3):
        with contextlib.nullcontext(i) as k:
            if k == 1: continue
            x = x + k
    return x
@program
def return_inside_with(x, s):
    class M:
        def __enter__(self): return 2
        def __exit__(self, *e): s.log.append("out")
    with M() as k: return x * k
@program
def redirected_print(x, s):
    import io
    out = io.StringIO()
    with contextlib.redirect_stdout(out): y = x + 1
    return y


# Generators and iterators

@program
def generator(x, s):
    def rows():
        for i in range(2): yield x[i] * i
    return list(rows()), torch.stack(list(rows()))
@program
def generator_send(x, s):
    def acc():
        total = 0
        while True:
            got = yield total
            if got is None: return
            total = total + got
    g = acc(); next(g)
    return g.send(x), g.send(x * 2)
@program
def generator_throw(x, s):
    def f():
        try: yield x
        except ValueError as e: yield x * 2, str(e)
        finally: s.log.append("closed")
    g = f(); a = next(g); b = g.throw(ValueError("t")); g.close()
    return a, b, s.log
@program
def generator_return(x, s):
    def inner():
        yield x
        return x + 5
    def outer():
        got = yield from inner()
        yield got
    return list(outer())
@program
def yield_from_list(x, s):
    def f():
        yield from [x, 1]
        yield from range(2)
    return list(f())
@program
def generator_pipeline(x, s):
    def source():
        for v in x: yield v
    doubled = (v * 2 for v in source())
    return sum(v.sum() for v in doubled)
@program
def generator_in_finally(x, s):
    def f():
        try:
            yield x
            yield x + 1
        finally: s.log.append("end")
    for v in f(): break
    del v
    return x, len(s.log) >= 0
@program
def infinite_generator(x, s):
    def powers():
        v = x
        while True:
            yield v
            v = v * x
    return list(itertools.islice(powers(), 3))
@program
def generator_escapes(x, s):
    def f():
        yield 1
        yield 2
    g = f()
    next(g)
    return x + next(g)
@program
def iterator_class(x, s):
    class Count:
        def __init__(self, n): self.n = n
        def __iter__(self): return self
        def __next__(self):
            if not self.n: raise StopIteration
            self.n -= 1
            return x * self.n
    return list(Count(3)), sum(Count(2))
@program
def getitem_protocol(x, s):
    class Seq:
        def __getitem__(self, i):
            if i > 2: raise IndexError
            return x * i
    return [v for v in Seq()], x in [1] if False else None
@program
def iter_with_sentinel(x, s):
    it = iter(s.items)
    return [x * v for v in iter(lambda: next(it), 3)]
@program
def itertools_use(x, s):
    return ([x * a * b for a, b in itertools.product([1, 2], [3])], list(itertools.accumulate([x, x, x], torch.add))[-1],
            [list(g) for _, g in itertools.groupby([1, 1, 2])], list(itertools.chain.from_iterable([[1], [2, 3]])),
            [x + i for i in itertools.takewhile(lambda v: v < 3, s.items)], list(itertools.pairwise(s.items)),
            list(itertools.starmap(torch.add, [(x, 1), (x, 2)])), list(itertools.zip_longest([1], [2, 3])))
@program
def itertools_cycle(x, s):
    c = itertools.cycle([1.0, 2.0])
    return [x * next(c) for _ in range(3)], next(itertools.count(5))
@program
def map_filter(x, s): return list(map(lambda v: v * 2, x)), list(filter(None, [0, 1, 2])), list(map(torch.add, [x, x], [1, 2]))
@program
def reversed_sorted(x, s): return list(reversed(s.items)), sorted(s.items, reverse=True), [v for v in reversed([x, x + 1])], sorted(s.table, key=s.table.get)
@program
def min_max(x, s): return max(s.items), min(s.items, key=lambda v: -v), max([1, 2], [0, 9]), x * max(s.table.values()), min([], default=x)
@program
def dict_iteration(x, s):
    for k in s.table: x = x + len(k)
    for k, v in s.table.items(): x = x * v
    return x, next(iter(s.table)), next(reversed(s.table))


# Data structures

@program
def list_methods(x, s):
    a = s.items
    a.append(4); a.extend([5, 6]); a.insert(0, 0); a.remove(2); b = a.pop(); a.reverse(); a.sort(); a += [7]
    return x + a[-1], a.index(3), a.count(1), b, a[1:3], a
@program
def list_of_tensors(x, s):
    s.tensors.append(x * 2)
    s.tensors[0] = s.tensors[0] + 1
    return s.tensors[-1] + s.tensors[0]
@program
def list_slices(x, s):
    a = [x, x + 1, x + 2, x + 3]
    a[1:3] = [x * 0]
    del a[0]
    return a, a[::-1]
@program
def dict_methods(x, s):
    d = s.table
    d["c"] = 3.0; d.update(a=5.0); d |= {"e": 1}; v = d.pop("b"); d.setdefault("f", []).append(1); del d["c"]
    return x * v, list(d), list(d.values()), "a" in d, len(d), {**d}
@program
def dict_of_tensors(x, s):
    s.named["w"] = x + 1
    s.named["u"] = s.named["u"] * 2
    return {k: v + 1 for k, v in s.named.items()}
@program
def dict_keyed_by_objects(x, s):
    p = s.point
    d = {p: x, (1, 2): x + 1, None: 3}
    return d[p] * d[None], d[(1, 2)]
@program
def dict_views(x, s): return s.table.keys() & {"a"}, sorted(s.table.items() - {("a", 1.0)}), x + len(s.table.values())
@program
def nested_containers(x, s):
    d = {"l": [x, {"t": (x + 1, 2)}]}
    d["l"][1]["t"][0].add_(1)
    return d
@program
def sets(x, s):
    s.names.add("r"); s.names.discard("p")
    return sorted(s.names | {"z"}), x + len(s.names & {"q"}), frozenset([1, 2]) <= {1, 2, 3}
@program
def deque_use(x, s):
    s.queue.append(4); s.queue.append(5); s.queue.popleft(); s.queue.rotate(1)
    return x * s.queue[0], list(s.queue), s.queue.maxlen
@program
def deque_of_tensors(x, s):
    d = collections.deque([x], maxlen=2)
    for i in range(3): d.append(d[-1] + i)
    return list(d)
@program
def counter_use(x, s):
    s.counter.update("bc"); s.counter["z"] += 2
    return x + s.counter["a"], s.counter.most_common(2), s.counter["nothing"]
@program
def default_dict(x, s):
    s.default["a"].append(1); s.default["b"]
    return x, dict(s.default)
@program
def default_dict_of_tensors(x, s):
    d = collections.defaultdict(lambda: torch.zeros(2, 3))
    d["k"] += x
    return d["k"], d["new"]
@program
def ordered_dict(x, s):
    s.ordered.move_to_end("a"); s.ordered["c"] = 3
    return x, list(s.ordered), s.ordered.popitem(last=False)
@program
def chain_map(x, s):
    m = collections.ChainMap({"a": x}, s.table)
    m["q"] = 1
    return m["a"] * m["b"], sorted(m), m.maps[0]["q"]
@program
def named_tuple(x, s):
    P = collections.namedtuple("P", "a b", defaults=[2])
    p = P(x)
    return p.a * p.b, p._replace(b=3).b, P._fields, tuple(p)[1]
@program
def typed_named_tuple(x, s):
    class P(typing.NamedTuple):
        a: torch.Tensor
        b: float = 2.0
        def scaled(self): return self.a * self.b
    return P(x).scaled()
@program
def dataclass_in_call(x, s):
    @dataclasses.dataclass
    class C:
        a: torch.Tensor
        k: float = 2.0
        log: list = dataclasses.field(default_factory=list)
        def __post_init__(self): self.log.append(self.k)
    c = C(x)
    return c.a * c.k, c.log, dataclasses.replace(c, k=3.0).k, [f.name for f in dataclasses.fields(c)]
@dataclasses.dataclass
class Config:
    size: int = 3
    scale: float = 0.5
    names: list = dataclasses.field(default_factory=lambda: ["a"])
@program
def dataclass_outside(x, s):
    c = Config(scale=2.0)
    c.names.append("b")
    return x * c.scale + c.size, c.names, dataclasses.asdict(c), c == Config(scale=2.0)
@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    v: float = 1.5
@program
def frozen_dataclass(x, s):
    f = Frozen(2.0)
    try: f.v = 3
    except dataclasses.FrozenInstanceError as e: return x * f.v, hash(f) == hash(Frozen(2.0))
class Color(enum.Enum):
    RED = 1
    BLUE = 2
    @property
    def twice(self): return self.value * 2
class Bits(enum.IntFlag):
    A = 1
    B = 2
class Name(str, enum.Enum):
    X = "x"
@program
def enum_members(x, s): return x * Color.RED.value, Color(2).name, Color["BLUE"] is Color.BLUE, [c.name for c in Color], Color.RED.twice
@program
def enum_flags(x, s): return x + (Bits.A | Bits.B), Bits.A in (Bits.A | Bits.B), Name.X == "x", f"{Name.X.value}"
@program
def enum_dispatch(x, s):
    table = {Color.RED: lambda v: v + 1, Color.BLUE: lambda v: v - 1}
    return table[Color.RED](x), table[Color(2)](x)
@program
def enum_in_call(x, s):
    class E(enum.Enum):
        A = 1
        B = enum.auto()
    return x * E.B.value
@program
def simple_namespace(x, s):
    n = types.SimpleNamespace(a=x, b=2)
    n.c = n.a * n.b
    return n.c, vars(n)["b"]
@program
def mapping_proxy(x, s):
    m = types.MappingProxyType(s.table)
    return x * m["a"], list(m)
@program
def heap(x, s):
    import heapq
    h = [3, 1, 2]
    heapq.heapify(h); heapq.heappush(h, 0)
    return x * heapq.heappop(h), heapq.nlargest(2, h), h
@program
def bisected(x, s):
    import bisect
    return x[0, bisect.bisect([1, 3, 5], 3) - 1], bisect.insort(s.items, 2), s.items


# Classes and attributes

@program
def methods(x, s): return s.point.moved(x), s.point.double, Point.plus(x, 1), Point.make(x).a, type(s.point).scale * x
@program
def attribute_write(x, s):
    s.point.a = x
    s.point.extra = x + 1
    s.count += 5
    return s.point.moved(1), s.point.extra
@program
def attribute_delete(x, s):
    del s.text
    return hasattr(s, "text"), getattr(s, "text", x), x
@program
def setattr_builtin(x, s):
    setattr(s, "made", x * 2)
    delattr(s, "none")
    return getattr(s, "made"), hasattr(s, "none"), "made" in vars(s)
@program
def class_in_call(x, s):
    class A:
        k = 2.0
        def __init__(self, v): self.v = v
        def f(self): return self.v * self.k
    class B(A):
        k = 3.0
        def f(self): return super().f() + 1
    return B(x).f(), A(x).f()
@program
def multiple_inheritance(x, s):
    class A:
        def f(self, v): return v + 1
    class B(A):
        def f(self, v): return super().f(v) * 2
    class C(A):
        def f(self, v): return super().f(v) * 3
    class D(B, C):
        def f(self, v): return super().f(v) - 1
    return D().f(x), [c.__name__ for c in D.__mro__]
@program
def operators(x, s):
    class V:
        def __init__(self, t): self.t = t
        def __add__(self, o): return V(self.t + (o.t if isinstance(o, V) else o))
        __radd__ = __add__
        def __mul__(self, k): return V(self.t * k)
        def __iadd__(self, o): self.t = self.t + o; return self
        def __neg__(self): return V(-self.t)
        def __len__(self): return 7
        def __getitem__(self, i): return self.t[i]
        def __contains__(self, v): return v == 1
        def __call__(self, v): return self.t + v
        def __bool__(self): return False
        def __matmul__(self, o): return self.t @ o.t.t()
        def __eq__(self, o): return isinstance(o, V)
        def __hash__(self): return 3
    v = V(x)
    v += 1
    return (v + 2).t, (1 + v).t, (v * 2).t, (-v).t, len(v), v[0], 1 in v, v(3), not v, v @ v, v == V(x), {v: 1}[V(x)]
@program
def reflected_with_tensor(x, s):
    class K:
        def __radd__(self, o): return "radd"
        def __rmul__(self, o): return o + 100
    return 1 + K(), 2 * K()
@program
def not_implemented(x, s):
    class A:
        def __add__(self, o): s.log.append("A"); return NotImplemented
        def __eq__(self, o): s.log.append("eq"); return NotImplemented
    class B:
        def __radd__(self, o): s.log.append("B"); return x
    return A() + B(), A() == A(), s.log
@program
def unsupported_operand(x, s): return x + object()
@program
def descriptors(x, s):
    class D:
        def __set_name__(self, owner, name): self.name = "_" + name
        def __get__(self, obj, cls=None): return self if obj is None else getattr(obj, self.name) * 2
        def __set__(self, obj, v): setattr(obj, self.name, v + 1)
    class A: d = D()
    a = A(); a.d = x
    return a.d, a._d, type(A.d).__name__
@program
def property_setter(x, s):
    class A:
        def __init__(self): self._v = 0
        @property
        def v(self): return self._v
        @v.setter
        def v(self, value): self._v = value * 2
        @v.deleter
        def v(self): self._v = None
    a = A(); a.v = x; b = a.v
    del a.v
    return b, a.v
@program
def read_only_property(x, s): s.point.double = x
@program
def getattr_hook(x, s):
    class A:
        def __getattr__(self, name):
            if name.startswith("_"): raise AttributeError(name)
            return x if name == "t" else len(name)
    a = A()
    return a.t + a.four, hasattr(a, "_no")
@program
def setattr_hook(x, s):
    class A:
        def __setattr__(self, name, v): object.__setattr__(self, name, (name, v))
        def __delattr__(self, name): s.log.append(name); object.__delattr__(self, name)
    a = A(); a.q = x
    got = a.q
    del a.q
    return got, s.log
@program
def getattribute_hook(x, s):
    class A:
        v = 1
        def __getattribute__(self, name):
            s.log.append(name)
            return object.__getattribute__(self, name)
    return x + A().v, s.log
@program
def slots(x, s):
    class A:
        __slots__ = ("v", "u")
    a = A(); a.v = x
    try: a.other = 1
    except AttributeError: return a.v * 2, hasattr(a, "u")
@program
def metaclass(x, s):
    class M(type):
        def __new__(m, name, bases, ns, k=1): return super().__new__(m, name, bases, {**ns, "k": k})
        def __init__(cls, name, bases, ns, k=1): super().__init__(name, bases, ns)
        def __call__(cls, *a): return super().__call__(*a), cls.k
        def __len__(cls): return 9
    class A(metaclass=M, k=4):
        def __init__(self, v): self.v = v
    a, k = A(x)
    return a.v * k, len(A)
@program
def init_subclass(x, s):
    class Base:
        kinds = {}
        def __init_subclass__(cls, /, kind, **kw): super().__init_subclass__(**kw); Base.kinds[kind] = cls
    class A(Base, kind="a"):
        def f(self, v): return v + 1
    return Base.kinds["a"]().f(x)
@program
def class_by_type(x, s):
    A = type("A", (Point,), {"scale": 5.0, "more": lambda self: self.a + 1})
    return A(x).more() * A.scale, A.__name__, A.__module__
@program
def new_method(x, s):
    class One:
        made = None
        def __new__(cls, *a):
            if cls.made is None: cls.made = super().__new__(cls)
            return cls.made
        def __init__(self, v=None): self.v = v
    return One(x) is One(x + 1), One(x * 2).v
@program
def class_method_state(x, s):
    class A:
        n = 0
        @classmethod
        def add(cls, v): cls.n += 1; return v + cls.n
    class B(A): pass
    return A.add(x), B.add(x), A.n, B.n
@program
def abstract_class(x, s):
    class A(abc.ABC):
        @abc.abstractmethod
        def f(self, v): ...
    class B(A):
        def f(self, v): return v * 2
    try: A()
    except TypeError: return B().f(x), isinstance(B(), A)
@program
def registered_abc(x, s):
    return isinstance([], collections.abc.Sequence), isinstance(s.table, collections.abc.Mapping), isinstance(x, collections.abc.Iterable), isinstance(len, collections.abc.Callable)
class HasF(typing.Protocol):
    def f(self, v): ...
RuntimeHasA = typing.runtime_checkable(type("RuntimeHasA", (typing.Protocol,), {"__annotations__": {"a": object}}))
@program
def protocols(x, s):
    return x + isinstance(s.point, RuntimeHasA), isinstance(3, RuntimeHasA)
@program
def isinstance_of_tensor(x, s): return isinstance(x, torch.Tensor), isinstance(x, (int, torch.Tensor)), type(x) is torch.Tensor, issubclass(type(x), torch.Tensor), callable(x)
@program
def bound_methods(x, s):
    f, g = s.point.moved, x.add
    return f(1), g(2), f.__self__ is s.point, f.__name__
@program
def method_replaced_on_instance(x, s):
    s.point.moved = lambda d: d * 10
    return s.point.moved(x)
@program
def nested_class(x, s):
    class A:
        class B:
            k = 3
        def f(self, v): return v * self.B.k
    return A().f(x), A.B.__qualname__
@program
def class_body_runs(x, s):
    class A:
        vals = [i * 2 for i in range(3)]
        total = sum(vals)
        if total > 5: big = True
        for _i in range(2): exec  # noqa
    return x * A.total, A.big
@program
def repr_and_format(x, s):
    class A:
        def __repr__(self): return "A()"
        def __str__(self): return "a"
        def __format__(self, spec): return f"<{spec}>"
    a = A()
    return f"{a} {a!r} {a:>3} {a!s:>4}", "%s %r" % (a, a), "{:q}".format(a), x
@program
def super_in_init(x, s):
    class A:
        def __init__(self, v): self.v = v
    class B(A):
        def __init__(self, v):
            super().__init__(v + 1)
            self.u = self.v * 2
    return B(x).u
@program
def annotations(x, s):
    class A:
        a: int = 1
        b: "float"
    def f(v: torch.Tensor, k: int = 2) -> float: return v * k
    return f(x), sorted(A.__annotations__), list(f.__annotations__)


# Standard library

@program
def typing_at_run_time(x, s):
    T = typing.TypeVar("T")
    class Box(typing.Generic[T]):
        def __init__(self, v: T): self.v = v
    return Box[torch.Tensor](x).v + 1, typing.cast(int, 3), typing.get_origin(list[int]) is list
@program
def optional_type(x, s): return x, typing.Optional[int] == typing.Union[int, None], typing.get_args(dict[str, int])
@program
def regular_expressions(x, s):
    m = re.match(r"(\w+)-(\d+)", "layer-12")
    return x + int(m.group(2)), re.sub(r"\d", "#", "a1b2"), re.findall("[ab]", "cab"), re.compile("w(.)").search(s.text).group(1)
@program
def copying(x, s):
    a = copy.copy(s.items); a.append(9)
    b = copy.deepcopy(s.table); b["z"] = 1
    return x, a, s.items, b, s.table
@program
def copying_tensors(x, s):
    d = copy.deepcopy(s.named)
    d["u"].add_(1)
    p = copy.copy(s.point); p.a = x
    return d["u"], s.named["u"], s.point.a
@program
def signatures(x, s):
    p = inspect.signature(outer_function).parameters
    return x * len(p), list(p), p["k"].default, "bias" in inspect.signature(outer_function).parameters
@program
def signature_bind(x, s):
    b = inspect.signature(outer_function).bind(x, 3)
    b.apply_defaults()
    return outer_function(*b.args, **b.kwargs), list(b.arguments)
@program
def inspected(x, s): return inspect.isfunction(outer_function), inspect.isclass(Point), inspect.getdoc(State) is not None, x
@program
def warned(x, s):
    warnings.warn("careful")
    return x + 1
@program
def logged(x, s):
    logging.getLogger("lang").info("message %d", 3)
    return x + 1
@program
def printed(x, s):
    print("before", s.count, sep="-")
    y = x + 1
    print("after", end="!\n")
    return y
@program
def printed_tensor(x, s):
    print(x)
    return x + 1
@program
def string_work(x, s):
    t = f"{s.text:>6}|{s.count:03d}|{math.pi:.3f}|{s.table['a']!r}|{x.shape}"
    return t, ",".join(map(str, s.items)), s.text.upper().split("O"), x, "w" in s.text, s.text[::-1], "%5.2f" % 1.5
@program
def math_work(x, s): return x * math.sqrt(2), math.prod(s.items), math.ceil(1.2), math.isclose(0.1 + 0.2, 0.3), x / math.sqrt(x.shape[-1]), divmod(7, 3), round(2.567, 2)
@program
def integer_work(x, s): return x + (7 // 2) + (-7 % 3) + (1 << 3) + (6 ^ 3), 2 ** 10, int("12"), bin(5), hex(255), (5).bit_length(), abs(-3)
@program
def operator_module(x, s): return operator.add(x, 1), operator.itemgetter(1)(s.items), operator.attrgetter("point.a")(s), operator.methodcaller("sum")(x), operator.getitem(x, 0)
@program
def sorting_with_key(x, s):
    rows = sorted([(2, "b"), (1, "a")], key=lambda r: r[0])
    s.items.sort(key=lambda v: -v)
    return x * rows[0][0], s.items
@program
def sum_of_tensors(x, s): return sum([x, x]), sum(s.tensors), sum([x], start=1), sum(p.sum() for p in s.tensors)
@program
def type_names(x, s): return type(x).__name__, x.__class__.__name__, type(s).__qualname__, type(s.items) == list, x
@program
def bytes_and_bits(x, s): return x + b"ab"[0], bytearray(b"xy")[1], bytes([1, 2]).hex(), int.from_bytes(b"\x01\x00", "big")
@program
def import_inside(x, s):
    import math as m
    from functools import reduce
    from torch.nn import functional as F
    return F.relu(x - 2) * m.pi, reduce(operator.add, s.items)
@program
def context_variable(x, s):
    import contextvars
    v = contextvars.ContextVar("v", default=2.0)
    token = v.set(3.0)
    a = x * v.get()
    v.reset(token)
    return a, x * v.get()
@program
def weak_reference(x, s):
    import weakref
    r = weakref.ref(s.point)
    return r().moved(x), r() is s.point
@program
def identity_checks(x, s): return x is x, s.t is s.t, s.none is None, s.items is not s.tensors, (x + 1) is x, id(s) == id(s)
@program
def hashing(x, s): return {x: 1}[x], x in {x: 2}, hash((1, "a")) == hash((1, "a")), len({s.t, s.t, s.w})
@program
def globals_builtin(x, s): return x * globals()["G"], "Point" in globals()


# Tensors as values of the language

@program
def in_place_on_state(x, s):
    s.t.add_(x); s.t[0] = 5; s.t[:, 1] *= 2
    s.w.mul_(2)
    return s.t + s.w
@program
def augmented(x, s):
    y = x.clone()
    y += 1; y *= 2; y -= x; y /= 4; y **= 2
    z = y
    z += 1
    return y, z is y
@program
def index_assignment(x, s):
    y = torch.zeros(3, 3)
    y[0] = x[0]; y[1, 1] = 7; y[2, ::2] = x[1, :2]; y[y > 6] = -1
    return y
@program
def mixed_indexing(x, s): return x[0], x[-1, 1:], x[..., 0], x[None], x[:, [0, 2]], x[torch.tensor([1, 0])], x[x > 100].shape
@program
def shape_arithmetic(x, s):
    b, n = x.shape
    return x.reshape(b * n), x.view(-1, 1) * b, x.size(0) + x.dim(), x.numel() // n, torch.zeros(b + 1, n * 2).shape, len(x)
@program
def tuple_of_results(x, s):
    v, i = x.max(dim=1)
    r = torch.topk(x, 2)
    return v, i, r.values, r.indices, x.split(1), torch.chunk(x, 3, 1)[1]
@program
def tensor_methods_by_name(x, s): return getattr(x, "mean")(dim=0), getattr(torch, "exp")(x), x.__add__(1), torch.Tensor.sub(x, 1)
@program
def tensor_in_condition_on_shape(x, s): return x if x.shape == (2, 3) and x.dtype == torch.float32 and x.ndim == 2 else None
@program
def data_dependent_branch(x, s): return x + 1 if x.sum() > 3 else x - 1
@program
def data_dependent_value(x, s): return x * x.max().item(), int(x.sum()), x[0].tolist()
@program
def data_dependent_loop(x, s):
    while x.sum() < 100: x = x * 2
    return x
@program
def data_dependent_raise(x, s):
    if (x > 4).any(): raise ValueError(f"too large: {float(x.max())}")
    return x
@program
def tensor_as_dict_key_order(x, s): return list({"z": x, "a": x + 1})[0], {k: v.sum() for k, v in sorted(s.named.items())}
@program
def swap(x, s):
    a, b = x, x + 1
    a, b = b, a
    s.tensors[0], s.tensors[1] = s.tensors[1], s.tensors[0]
    return a, b, s.tensors[0]
@program
def multiple_targets(x, s):
    a = b = c = x + 1
    a = a * 2
    return a, b is c
@program
def aliased_state(x, s):
    y = s.t
    y.mul_(3)
    s.alias = y
    return s.alias is s.t, s.t
@program
def list_equality(x, s): return [1, 2, 3] == s.items, (1, "a") < (1, "b"), s.table == {"a": 1.0, "b": 2.0}, x
@program
def conversion(x, s): return list(range(3)), tuple(s.items), dict(zip("ab", s.items)), set("aa"), float(3), str(4), bool([]), list("ab"), x
@program
def long_expression(x, s): return ((x + 1) * (x - 1) / (x ** 2 + 1)).sin().cos().sum(dim=-1, keepdim=True).squeeze(-1).unsqueeze(0)
