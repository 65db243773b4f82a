"""Small programs, one language feature each. Each takes nothing, gives something whose repr can be compared, and may raise.

They need no torch and run on 3.11, 3.12 and 3.13: plainly by CPython, by the interpreter in its plain mode, and captured.
"""
# ruff: noqa
import collections
import contextlib
import copy
import dataclasses
import enum
import functools
import itertools
import math
import operator
import typing

PROGRAMS = []


def program(f):
    PROGRAMS.append(f)
    return f


G = 10
counter = 0


@program
def arithmetic(): return 7 // 2, -7 // 2, 7 % -3, 2 ** 10, 7 / 2, -3, +3, ~3, 1 << 4, 255 >> 2, 6 & 3, 6 | 3, 6 ^ 3
@program
def inplace():
    x = 5; x += 1; x -= 2; x *= 3; x //= 2; x **= 2; x %= 7; x <<= 3; x >>= 1; x |= 1; x &= 7; x ^= 2
    y = [1]; z = y; y += [2]
    return x, y, z is y
@program
def comparisons(): return 1 < 2 <= 2 != 3, 1 == 1.0, 'a' < 'b', not 1 > 2, 3 in [1, 2, 3], 4 not in (1,), None is None, [] is not None
@program
def chained(): 
    log = []
    def t(x): log.append(x); return x
    return t(1) < t(3) < t(2), log
@program
def boolean_ops(): return (0 or 'a'), (1 and 'b'), (None or [] or {}), (1 and 0 and 2), not [], (1 if [] else 2)
@program
def globals_read(): return G + 1
@program
def builtins_read(): return len([1, 2]), max(3, 4), sorted([3, 1, 2], reverse=True), sum(range(5)), abs(-2), min([4, 2])
@program
def missing_global(): return not_defined_anywhere
@program
def unbound_local():
    if G < 0: x = 1
    return x
@program
def deleted_local():
    x = 1
    del x
    return x
@program
def strings(): return 'a' + 'b' * 3, 'abc'[1], 'abc'[::-1], 'a,b'.split(','), '-'.join(['x', 'y']), 'x'.upper(), b'ab'[0]
@program
def fstrings():
    x, y = 3.14159, 'q'
    return f'{x:.2f} {y!r:>6} {y!s} {x=} {1 + 1:{4}d} {"nested"!a} {{}}'
@program
def percent_format(): return '%s-%d-%5.1f' % ('a', 3, 2.5), '{} {k}'.format(1, k=2)
@program
def slices():
    x = list(range(10)); x[2:4] = ['a', 'b', 'c']; del x[0]; del x[-2:]
    return x, x[1:5:2], x[::-1], (1, 2, 3)[slice(1, None)]
@program
def unpacking():
    a, b = 1, 2
    a, b = b, a
    c, *d, e = range(6)
    (f, [g, h]), i = (1, [2, 3]), 4
    *j, = 'ab'
    return a, b, c, d, e, f, g, h, i, j
@program
def unpack_short(): a, b, c = [1, 2]
@program
def unpack_long(): a, b = [1, 2, 3]
@program
def unpack_star_short(): a, *b, c = [1]
@program
def unpack_not_iterable(): a, b = 5
@program
def star_displays(): return [*range(3), *'ab'], (*[1], 2), {*[1, 2], 3}, {**{'a': 1}, 'b': 2, **{'a': 3}}
@program
def list_comprehension(): return [x * y for x in range(3) for y in range(x) if (x + y) % 2]
@program
def nested_comprehension(): return [[j for j in range(i)] for i in range(4)], {i: {j for j in range(i)} for i in range(3)}
@program
def comprehension_scope():
    x = 'outer'
    y = [x for x in range(3)]
    return x, y, [x for _ in range(1)]
@program
def comprehension_closure():
    fs = [lambda: i for i in range(3)]
    k = 2
    return [f() for f in fs], [i * k for i in range(3)], sorted({i % k for i in range(5)})
@program
def walrus():
    out = [y for x in range(5) if (y := x * x) > 3]
    return out, y
@program
def generator_expression(): return sum(x * x for x in range(5)), list(x for x in 'abc' if x != 'b'), any(x > 2 for x in range(9))
@program
def for_else():
    r = []
    for i in range(3):
        if i == 5: break
    else: r.append('else')
    for i in range(3):
        if i == 1: continue
        if i == 2: break
        r.append(i)
    else: r.append('no')
    return r
@program
def while_loop():
    n, r = 10, []
    while n:
        n -= 3
        if n < 0: break
        if n == 4: continue
        r.append(n)
    else: r.append('end')
    return r
@program
def enumerate_zip(): return [(i, a, b) for i, (a, b) in enumerate(zip('ab', [1, 2]), start=1)]
@program
def call_kinds():
    def f(a, b=2, *args, c, d=4, **kw): return a, b, args, c, d, kw
    return f(1, c=3), f(1, 5, 6, 7, c=3, e=9), f(*[1, 2, 3], **{'c': 1, 'z': 2}), f(c=0, a=1)
@program
def positional_only():
    def f(a, /, b, *, c): return a, b, c
    return f(1, 2, c=3), f(1, b=2, c=3)
@program
def positional_only_error():
    def f(a, /, b): return a, b
    return f(a=1, b=2)
@program
def positional_only_into_kwargs():
    def f(a, /, **kw): return a, kw
    return f(1, a=2)
@program
def missing_argument():
    def f(a, b): pass
    f(1)
@program
def missing_keyword_only():
    def f(*, k): pass
    f()
@program
def too_many_arguments():
    def f(a): pass
    f(1, 2)
@program
def unexpected_keyword():
    def f(a): pass
    f(1, zz=2)
@program
def double_argument():
    def f(a): pass
    f(1, a=2)
@program
def double_keyword():
    def f(**k): pass
    f(**{'a': 1}, **{'a': 2})
@program
def star_not_iterable():
    def f(*a): pass
    f(*5)
@program
def star_star_not_mapping():
    def f(**a): pass
    f(**5)
@program
def not_callable(): x = 5; x(1)
@program
def mutable_default():
    def f(x=[]):
        x.append(len(x)); return list(x)
    return f(), f(), f([9])
@program
def lambdas(): return (lambda x, *y, z=3: (x, y, z))(1, 2), (lambda: None)(), (lambda **k: k)(a=1)
@program
def closures():
    def make(n):
        def add(x): return x + n
        return add
    return make(1)(2), make(10)(2)
@program
def nonlocal_write():
    def make():
        n = 0
        def inc(by=1):
            nonlocal n
            n += by
            return n
        return inc, lambda: n
    inc, get = make()
    inc(); inc(5)
    return get()
@program
def nested_closures():
    def a(x):
        def b(y):
            def c(z): return x + y + z
            return c
        return b
    return a('1')('2')('3')
@program
def empty_cell():
    def f(): return later
    try: f()
    except NameError as e: r = str(e)
    later = 1
    return r, f()
@program
def cell_deleted():
    x = 1
    def f(): return x
    del x
    try: return f()
    except NameError as e: return type(e).__name__, str(e)
@program
def argument_in_cell():
    def f(a, *b, c=1, **d):
        return (lambda: (a, b, c, d))()
    return f(1, 2, 3, c=4, e=5)
@program
def global_write():
    global counter
    old = counter
    counter += 5
    new = counter
    counter = old
    return new - old
@program
def recursion():
    def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
    return [fib(i) for i in range(10)]
@program
def mutual_recursion():
    def even(n): return True if n == 0 else odd(n - 1)
    def odd(n): return False if n == 0 else even(n - 1)
    return even(10), odd(7)
@program
def try_except():
    try: 1 / 0
    except (ValueError, ZeroDivisionError) as e: return type(e).__name__, str(e)
@program
def except_name_is_deleted():
    try: raise ValueError
    except ValueError as e: pass
    try: e
    except NameError as n: return str(n)
@program
def try_else_finally():
    r = []
    try: r.append(1)
    except ValueError: r.append('no')
    else: r.append('else')
    finally: r.append('fin')
    return r
@program
def finally_order():
    r = []
    def f():
        try:
            try: return r.append('body') or 'value'
            finally: r.append('inner')
        finally: r.append('outer')
    return f(), r
@program
def finally_overrides():
    def f():
        try: raise ValueError
        finally: return 'swallowed'
    return f()
@program
def finally_in_loop():
    r = []
    for i in range(4):
        try:
            if i == 1: continue
            if i == 3: break
            r.append(i)
        finally: r.append(-i)
    return r
@program
def reraise():
    try:
        try: raise KeyError('k')
        except KeyError: raise
    except KeyError as e: return repr(e)
@program
def raise_from():
    try:
        try: 1 / 0
        except Exception as e: raise ValueError('v') from e
    except ValueError as v: return repr(v.__cause__), repr(v.__context__), v.__suppress_context__
@program
def raise_from_none():
    try:
        try: 1 / 0
        except Exception: raise ValueError('v') from None
    except ValueError as v: return v.__cause__, repr(v.__context__), v.__suppress_context__
@program
def implicit_context():
    try:
        try: [][1]
        except IndexError: {}['x']
    except KeyError as e: return repr(e), repr(e.__context__)
@program
def raise_nothing(): raise
@program
def raise_not_exception(): raise 5
@program
def uncaught(): {}['missing']
@program
def custom_exception():
    class E(Exception):
        def __init__(self, n): super().__init__(f'n={n}'); self.n = n
    try: raise E(3)
    except E as e: return e.n, str(e), e.args
@program
def nested_try_calls():
    def f(n):
        try:
            if n == 0: raise RuntimeError('bottom')
            return f(n - 1)
        except RuntimeError as e: raise RuntimeError(f'{n}') from e
    try: f(2)
    except RuntimeError as e:
        out = []
        while e: out.append(str(e)); e = e.__cause__
        return out
@program
def exception_group():
    r = []
    try: raise ExceptionGroup('g', [ValueError(1), TypeError(2), ExceptionGroup('h', [ValueError(3)])])
    except* ValueError as e: r.append(repr(e))
    except* TypeError as e: r.append(repr(e))
    return r
@program
def exception_group_rest():
    try:
        try: raise ExceptionGroup('g', [ValueError(1), OSError(2)])
        except* ValueError: pass
    except ExceptionGroup as e: return repr(e)
@program
def exception_star_naked():
    r = []
    try: raise ValueError('x')
    except* ValueError as e: r.append(repr(e))
    return r
@program
def assertion():
    try: assert 1 == 2, 'message'
    except AssertionError as e: return str(e)
@program
def with_statement():
    log = []
    class C:
        def __enter__(self): log.append('in'); return 5
        def __exit__(self, *a): log.append(a[0].__name__ if a[0] else None); return True
    with C() as x: log.append(x)
    with C(), C() as y: raise ValueError
    return log
@program
def with_not_swallowed():
    class C:
        def __enter__(self): return self
        def __exit__(self, *a): return False
    with C(): raise KeyError('through')
@program
def with_return_inside():
    log = []
    class C:
        def __enter__(self): return 1
        def __exit__(self, *a): log.append(a)
    def f():
        with C() as c: return c
    return f(), log
@program
def with_not_a_manager():
    with 5: pass
@program
def with_in_loop():
    log = []
    @contextlib.contextmanager
    def cm(i):
        log.append(i)
        try: yield i * 2
        finally: log.append(-i)
    for i in range(4):
        with cm(i) as v:
            if i == 1: continue
            if i == 3: break
            log.append(v)
    return log
@program
def contextmanager_exception():
    @contextlib.contextmanager
    def cm():
        try: yield
        except ValueError as e: seen.append(str(e))
    seen = []
    with cm(): raise ValueError('x')
    with contextlib.suppress(KeyError): {}['a']
    return seen
@program
def exit_stack():
    log = []
    with contextlib.ExitStack() as s:
        s.callback(log.append, 'cb')
        s.enter_context(contextlib.nullcontext())
        log.append('body')
    return log
@program
def simple_generator():
    def g(n):
        for i in range(n): yield i
        return 'done'
    it = g(2)
    r = [next(it), next(it)]
    try: next(it)
    except StopIteration as e: r.append(e.value)
    return r
@program
def generator_send():
    def acc():
        t = 0
        while True:
            x = yield t
            if x is None: return t
            t += x
    g = acc(); next(g)
    r = [g.send(2), g.send(3)]
    try: g.send(None)
    except StopIteration as e: r.append(e.value)
    return r
@program
def generator_throw():
    def g():
        while True:
            try: yield 1
            except ValueError as e: yield str(e)
    it = g(); next(it)
    return it.throw(ValueError('v')), next(it)
@program
def generator_close():
    log = []
    def g():
        try: yield 1
        finally: log.append('closed')
    it = g(); next(it); it.close()
    return log, list(it)
@program
def generator_close_ignored():
    def g():
        try: yield 1
        except GeneratorExit: yield 2
    it = g(); next(it)
    it.close()
@program
def yield_from():
    def inner():
        x = yield 1
        y = yield x
        return x, y
    def outer():
        r = yield from inner()
        yield r
        yield from [7, 8]
    g = outer()
    return [next(g), g.send('a'), g.send('b'), *g]
@program
def yield_from_throw():
    def inner():
        try: yield 1
        except KeyError: yield 'caught'
        return 'ret'
    def outer():
        v = yield from inner()
        yield v
    g = outer(); next(g)
    return g.throw(KeyError('k')), next(g)
@program
def yield_from_throw_through():
    def inner(): yield 1
    def outer():
        try: yield from inner()
        except KeyError as e: yield repr(e)
    g = outer(); next(g)
    return g.throw(KeyError('k'))
@program
def yield_from_list_throw():
    def outer():
        try: yield from [1, 2]
        except KeyError as e: yield repr(e)
    g = outer(); next(g)
    return g.throw(KeyError('k')), list(g)
@program
def yield_from_close():
    log = []
    def inner():
        try: yield 1
        finally: log.append('inner')
    def outer():
        try: yield from inner()
        finally: log.append('outer')
    g = outer(); next(g); g.close()
    return log
@program
def stop_iteration_in_generator():
    def g():
        yield 1
        next(iter([]))
    try: list(g())
    except RuntimeError as e: return str(e), type(e.__cause__).__name__
@program
def generator_names():
    def g(): yield
    return g().__name__, g().__qualname__
@program
def generator_in_finally():
    def g():
        for i in range(3):
            try: yield i
            finally: r.append(i)
    r = []
    for x in g():
        if x == 1: break
    return r[:1]
@program
def generators_interleaved():
    def g(n):
        for i in range(3): yield (n, i)
    a, b = g('a'), g('b')
    return [x for pair in zip(a, b) for x in pair]
@program
def classes():
    class A:
        x = 1
        def __init__(self, y): self.y = y
        def m(self): return self.x + self.y
        @classmethod
        def c(cls): return cls.__name__
        @staticmethod
        def s(q): return q
        @property
        def p(self): return self.y * 2
        @p.setter
        def p(self, v): self.y = v
    a = A(3); a.p = 10
    return a.m(), A.c(), a.c(), A.s(1), a.p, A.x
@program
def inheritance():
    class A:
        def f(self): return ['A']
    class B(A):
        def f(self): return super().f() + ['B']
    class C(A):
        def f(self): return super().f() + ['C']
    class D(B, C):
        def f(self): return super().f() + ['D']
    return D().f(), [k.__name__ for k in D.__mro__]
@program
def super_forms():
    class A:
        def __init__(self): self.a = 1
        @classmethod
        def make(cls): return cls()
    class B(A):
        def __init__(self):
            super(B, self).__init__()
            self.b = [super(B, type(self)).make for _ in range(1)] and 2
        @classmethod
        def make(cls): return super().make()
    b = B.make()
    return b.a, b.b
@program
def super_in_closure():
    class A:
        def f(self): return 'A.f'
    class B(A):
        def f(self):
            def inner(): return super(B, self).f()
            return inner()
    return B().f()
@program
def dunder_methods():
    class V:
        def __init__(self, x): self.x = x
        def __add__(self, o): return V(self.x + (o.x if isinstance(o, V) else o))
        __radd__ = __add__
        def __eq__(self, o): return self.x == o.x
        def __hash__(self): return hash(self.x)
        def __lt__(self, o): return self.x < o.x
        def __repr__(self): return f'V({self.x})'
        def __len__(self): return self.x
        def __getitem__(self, k): return k
        def __contains__(self, k): return k == self.x
        def __call__(self, *a): return a
        def __bool__(self): return self.x > 1
        def __iter__(self): return iter([self.x])
        def __neg__(self): return V(-self.x)
    v = V(2)
    return v + v, 1 + v, v == V(2), sorted([V(3), V(1)]), len(v), v[1:2], v['k'], 2 in v, v(1), bool(V(0)), [*v], -v, {V(1), V(1)}
@program
def reflected_and_notimplemented():
    class A:
        def __add__(self, o): return NotImplemented
    class B:
        def __radd__(self, o): return 'radd'
    return A() + B()
@program
def unsupported_operand(): return 'a' + 1
@program
def getattr_hooks():
    class A:
        def __getattr__(self, n):
            if n.startswith('x'): return n
            raise AttributeError(n)
        def __setattr__(self, n, v): object.__setattr__(self, n, v * 2)
    a = A(); a.y = 4
    return a.xa, a.y, hasattr(a, 'z'), getattr(a, 'z', 'default')
@program
def getattribute_hook():
    class A:
        v = 1
        def __getattribute__(self, n): return ('got', n) if n != '__class__' else super().__getattribute__(n)
    return A().anything
@program
def descriptors():
    class D:
        def __set_name__(self, owner, name): self.name = name
        def __get__(self, o, k=None): return self if o is None else o.__dict__.get(self.name, 'unset')
        def __set__(self, o, v): o.__dict__[self.name] = ('set', v)
        def __delete__(self, o): del o.__dict__[self.name]
    class A: d = D()
    a = A(); r = [a.d]; a.d = 3; r.append(a.d); del a.d; r.append(a.d)
    return r, type(A.d).__name__
@program
def slots():
    class S:
        __slots__ = ('a', 'b')
        def __init__(self): self.a = 1
    s = S()
    try: s.b
    except AttributeError as e: r = str(e)
    try: s.c = 1
    except AttributeError: r2 = 'no c'
    return s.a, r, r2
@program
def metaclass():
    class M(type):
        def __new__(m, n, b, d, **k): d['added'] = k.get('flag'); return super().__new__(m, n, b, d)
        def __init__(c, n, b, d, **k): super().__init__(n, b, d)
        def __call__(c, *a): o = super().__call__(*a); o.made = True; return o
        def __len__(c): return 42
    class A(metaclass=M, flag=7): pass
    return A.added, A().made, len(A), type(A).__name__
@program
def init_subclass():
    class Base:
        subs = []
        def __init_subclass__(cls, tag=None, **k): Base.subs.append((cls.__name__, tag)); super().__init_subclass__(**k)
    class A(Base, tag=1): pass
    class B(Base): pass
    return Base.subs
@program
def class_body():
    x = 'enclosing'
    class A:
        y = x
        x = 'class'
        z = x
        w = [i for i in range(2)]
        def f(self): return x
    return A.y, A.z, A.w, A().f()
@program
def class_annotations():
    class A:
        a: int = 1
        b: 'str'
    return A.__annotations__
@program
def decorators():
    def twice(f):
        @functools.wraps(f)
        def w(*a, **k): return f(*a, **k), f(*a, **k)
        return w
    def arg(n):
        def deco(f): return lambda *a: (n, f(*a))
        return deco
    @arg(5)
    @twice
    def g(x): 'doc'; return x + 1
    return g(1)
@program
def wraps_metadata():
    def d(f):
        @functools.wraps(f)
        def w(): return f()
        return w
    @d
    def named(): 'docstring'; return 1
    return named.__name__, named.__doc__, named.__wrapped__()
@program
def function_attributes():
    def f(a: int, b: str = 'x', *, c=1) -> float: 'doc'
    f.extra = 5
    return f.__name__, f.__defaults__, f.__kwdefaults__, f.__annotations__, f.__doc__, f.extra, f.__qualname__
@program
def partials(): return functools.partial(pow, 2)(5), functools.partial(int, base=2)('101'), functools.reduce(operator.add, [1, 2, 3], 10)
@program
def partial_method():
    class A:
        def f(self, a, b): return a, b
        g = functools.partialmethod(f, 1)
    return A().g(2)
@program
def lru_cache():
    calls = []
    @functools.lru_cache
    def f(x): calls.append(x); return x * 2
    return f(1) + f(1) + f(2)
@program
def cached_property():
    class A:
        n = 0
        @functools.cached_property
        def p(self): self.n += 1; return self.n
    a = A()
    return a.p, a.p, a.n, 'p' in a.__dict__
@program
def singledispatch():
    @functools.singledispatch
    def f(x): return 'object'
    @f.register
    def _(x: int): return 'int'
    @f.register(list)
    def _(x): return 'list'
    return f(1), f([]), f('s')
@program
def dataclass():
    @dataclasses.dataclass(order=True)
    class P:
        x: int
        y: int = 2
        z: list = dataclasses.field(default_factory=list)
        def __post_init__(self): self.z.append(self.x)
    p = P(1)
    return p, p == P(1), P(1) < P(2), dataclasses.asdict(p), dataclasses.replace(p, x=5).x, [f.name for f in dataclasses.fields(P)]
@program
def frozen_dataclass():
    @dataclasses.dataclass(frozen=True)
    class P: x: int
    try: P(1).x = 2
    except dataclasses.FrozenInstanceError as e: return str(e), hash(P(1)) == hash(P(1))
@program
def named_tuples():
    P = collections.namedtuple('P', 'x y', defaults=[5])
    class Q(typing.NamedTuple):
        a: int
        b: str = 'q'
    return P(1), P(1)._replace(y=2), P(1).y, Q(3), [*Q(3)], Q(1)._asdict()
@program
def enums():
    class C(enum.Enum):
        R = 1
        G = 2
    class F(enum.IntFlag):
        A = 1
        B = 2
    return C.R, C(2), C['R'].value, [c.name for c in C], F.A | F.B, C.R is C.R, C.R == C.G
@program
def match_values():
    def f(x):
        match x:
            case 0: return 'zero'
            case 1 | 2: return 'few'
            case 'a': return 'str'
            case None: return 'none'
            case True: return 'never'
            case int() if x > 100: return 'big'
            case int(): return 'int'
            case _: return 'other'
    return [f(x) for x in (0, 2, 'a', None, 500, 7, 2.5)]
@program
def match_sequences():
    def f(x):
        match x:
            case []: return 'empty'
            case [a]: return a
            case [1, *rest]: return rest
            case (a, [b, c]): return a, b, c
            case [*_, last]: return last
            case str(): return 'str'
    return [f(x) for x in ([], [9], (1, 2, 3), [5, [6, 7]], [5, 6, 8], 'abc')]
@program
def match_mappings():
    def f(x):
        match x:
            case {'k': v, **rest} if rest: return v, rest
            case {'k': [a, b]}: return a + b
            case {'k': v}: return v
            case {}: return 'any'
    return [f(x) for x in ({'k': 1, 'j': 2}, {'k': [1, 2]}, {'k': 5}, {'z': 1})]
@program
def match_classes():
    class P:
        __match_args__ = ('x', 'y')
        def __init__(self, x, y): self.x, self.y = x, y
    def f(p):
        match p:
            case P(0, y): return 'origin', y
            case P(x=a, y=b) if a == b: return 'diag', a
            case P(x, y): return x, y
            case int(n) | float(n): return n
            case {'p': P(x=q)}: return q
    return f(P(0, 1)), f(P(2, 2)), f(P(3, 4)), f(5), f({'p': P(8, 9)})
@program
def match_as():
    match [1, [2, 3]]:
        case [int() as a, [*_] as b] as whole: return a, b, whole
@program
def dictionaries():
    d = {'a': 1}; d['b'] = 2; d |= {'c': 3}; del d['a']; d.setdefault('z', []).append(1)
    return d, d.pop('b'), list(d.items()), 'c' in d, d.get('q', 0), {**d, 'x': 1}, dict(a=1), {k: v for k, v in zip('ab', [1, 2])}
@program
def sets():
    s = {1, 2}; s.add(3); s |= {4}; s -= {1}
    return sorted(s), s & {2, 9}, s ^ {2, 5} == {3, 4, 5}, frozenset([1]) | {2}, {1} <= {1, 2}
@program
def deques():
    d = collections.deque([1, 2, 3], maxlen=3); d.append(4); d.appendleft(0); d.rotate(1)
    return d, d[0], collections.Counter('aab').most_common(1), collections.defaultdict(list, {'a': [1]})['b'], collections.ChainMap({'a': 1}, {'a': 2, 'b': 3})['b']
@program
def ordered_dict():
    o = collections.OrderedDict(a=1, b=2); o.move_to_end('a')
    return o, list(o), o.popitem()
@program
def itertools_use(): return list(itertools.chain([1], [2])), list(itertools.accumulate([1, 2, 3])), [(k, list(g)) for k, g in itertools.groupby('aab')], list(itertools.islice(itertools.count(), 3)), list(itertools.product('ab', repeat=2))[:3], list(itertools.starmap(pow, [(2, 3)])), list(itertools.zip_longest([1], [2, 3]))
@program
def callbacks_from_c():
    seen = []
    def key(x): seen.append(x); return -x
    return sorted([1, 3, 2], key=key), list(map(lambda x: x + 1, [1, 2])), list(filter(lambda x: x % 2, range(5))), max([1, 5, 3], key=lambda x: -x), seen
@program
def iterators():
    class It:
        def __init__(self): self.n = 0
        def __iter__(self): return self
        def __next__(self):
            self.n += 1
            if self.n > 3: raise StopIteration
            return self.n
    class Seq:
        def __getitem__(self, i):
            if i > 2: raise IndexError
            return i * 10
    return list(It()), [*Seq()], 20 in Seq(), next(iter([]), 'default'), list(iter(lambda: 1, 1)), list(reversed([1, 2]))
@program
def iteration_error():
    class It:
        def __iter__(self): return self
        def __next__(self): raise ValueError('in next')
    return [x for x in It()]
@program
def imports_inside():
    import math as m
    from os.path import join, basename as base
    import collections.abc
    import xml.dom
    return m.floor(2.5), join('a', 'b'), base('x/y'), issubclass(list, collections.abc.Sequence)
@program
def import_missing():
    from math import not_there
@program
def import_no_module():
    import no_such_module_at_all
@program
def locals_builtin():
    a = 1
    def f(x):
        y = 2
        return sorted(locals()), vars() == locals()
    return f(0)
@program
def exc_info_builtin():
    import sys
    try: 1 / 0
    except ZeroDivisionError:
        r = sys.exc_info()[0].__name__
    return r, sys.exc_info()
@program
def attribute_errors():
    class A: pass
    try: A().x
    except AttributeError as e: return str(e), e.name
@program
def setattr_delattr():
    class A: pass
    a = A(); setattr(a, 'x', 1); r = [a.x, hasattr(a, 'x')]; delattr(a, 'x'); r.append(hasattr(a, 'x'))
    a.y = 2; del a.y
    return r, vars(a), a.__dict__
@program
def isinstance_abc():
    from collections.abc import Iterable, Mapping, Callable
    class A:
        def __iter__(self): return iter(())
    return isinstance(A(), Iterable), isinstance({}, Mapping), isinstance(len, Callable), issubclass(bool, int), isinstance(1, (str, int)), isinstance(1, int | str)
@program
def protocols():
    @typing.runtime_checkable
    class P(typing.Protocol):
        def go(self): ...
    class A:
        def go(self): pass
    return isinstance(A(), P), isinstance(1, P)
@program
def copies():
    class A:
        def __init__(self): self.l = [1]
    a = A(); b = copy.copy(a); c = copy.deepcopy(a); a.l.append(2)
    return b.l, c.l, copy.deepcopy([[1], {'a': (1, [2])}])
@program
def string_methods(): return 'abc'.replace('b', 'x').center(7, '*').strip('*').encode().decode().title(), 'a-b'.partition('-'), str(1) + repr('q') + chr(65) + hex(255)
@program
def numbers(): return divmod(7, 2), round(2.5), round(2.567, 2), int('12'), float('1.5'), complex(1, 2) * 2, math.sqrt(16), math.isnan(float('nan')), 10 ** 20, 0.1 + 0.2, -0.0
@program
def ternary_and_lambda_default():
    fs = [lambda x=i: x for i in range(3)]
    return [f() for f in fs], 'yes' if fs else 'no'
@program
def ellipsis_and_none(): return ..., None, [][0:...] if False else Ellipsis
@program
def nested_functions_loops():
    def outer(n):
        total = 0
        for i in range(n):
            def add(k):
                nonlocal total
                total += k * i
            add(2)
        return total
    return outer(4)
@program
def varargs_forwarding():
    def a(*x, **k): return b(*x, **k)
    def b(p, q=0, *r, s=1, **t): return p, q, r, s, t
    return a(1), a(1, 2, 3, s=4, u=5)
@program
def bound_methods():
    class A:
        def f(self, x): return x
    a = A(); m = a.f
    return m(1), A.f(a, 2), m.__self__ is a, m.__func__ is A.f, a.f == a.f
@program
def callable_instances():
    class Add:
        def __init__(self, n): self.n = n
        def __call__(self, x, *, k=0): return x + self.n + k
    return Add(1)(2), [*map(Add(10), [1, 2])], Add(0)(1, k=5)
@program
def type_builtin():
    T = type('T', (), {'x': 5, 'f': lambda self: self.x})
    return T().f(), type(T()).__name__, type(1) is int
@program
def del_items():
    l = [1, 2, 3]; del l[1]
    d = {'a': 1}; del d['a']
    try: del d['zz']
    except KeyError as e: return l, d, repr(e)
@program
def multiple_assignment():
    a = b = c = []
    a.append(1)
    x, y = z = 1, 2
    return b, c is a, x, z
@program
def augmented_subscript():
    d = {'k': [1]}; d['k'] += [2]
    l = [1, 2]; l[0] *= 10
    class A: n = 1
    a = A(); a.n += 5
    return d, l, a.n, A.n
@program
def long_loop():
    t = 0
    for i in range(500):
        if i % 3 == 0: continue
        t += i
    return t
@program
def many_locals():
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = a8 = a9 = a10 = a11 = a12 = a13 = a14 = a15 = a16 = a17 = 1
    b = a17 + a16
    return [a0 + a17 for _ in range(2)], b
@program
def exception_in_comprehension():
    try: return [1 // x for x in (1, 0)]
    except ZeroDivisionError as e: return str(e)
@program
def generator_expression_late_error():
    g = (1 // x for x in (1, 0))
    r = [next(g)]
    try: next(g)
    except ZeroDivisionError: r.append('zde')
    return r, list(g)
@program
def conditional_import_error():
    try: import nope_nope
    except ImportError as e: return type(e).__name__, e.name
@program
def eval_builtin():
    x = 3
    return eval('x + 1'), eval('G'), eval('1 + y', {'y': 5})
@program
def global_declared_function():
    def f():
        global made_here
        made_here = 1
        return made_here
    r = f()
    del globals()['made_here']
    return r
@program
def typing_runtime(): return typing.get_type_hints(lambda: 0), typing.Optional[int], list[int], dict[str, int] | None
@program
def simple_namespace():
    import types
    n = types.SimpleNamespace(a=1); n.b = 2
    return n, types.MappingProxyType({'a': 1})['a']
@program
def operator_helpers(): return operator.itemgetter(1, 0)([1, 2]), operator.attrgetter('real')(5), operator.methodcaller('upper')('a')
@program
def str_join_generator(): return ','.join(str(i) for i in range(4)), ''.join(c for c in 'hello' if c in 'aeiou')
@program
def try_in_while():
    n, r = 0, []
    while True:
        try:
            n += 1
            if n == 2: continue
            if n == 4: raise StopIteration
            r.append(n)
        except StopIteration: break
        finally: r.append('f')
    return r
@program
def deep_finally_return():
    def f():
        for i in range(3):
            try:
                try:
                    if i == 1: return ('ret', i)
                finally: log.append(('in', i))
            finally: log.append(('out', i))
    log = []
    return f(), log
@program
def class_with_closure_cell():
    def make(n):
        class A:
            k = n
            def get(self): return n, __class__.__name__
        return A
    return make(3)().get(), make(4).k
