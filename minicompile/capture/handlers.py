"""Instruction handlers of the interpreter, named as the dialect's opcodes (see `bytecode`).

Takes a `Frame` and the instruction's argument, gives None, or (value, is a yield) to leave the loop in
`interp.run`. State outside the frame is reached only through `frame.world`. What an instruction does to its
operands alone, error messages included, is left to the host where it can be: `on_host`.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable, Sequence
from types import CellType, CodeType, CoroutineType, FunctionType, GeneratorType
from typing import Any

from ..errors import Refusal
from .frame import NULL, Frame

HANDLERS: dict[str, Callable[[Frame, Any], Any]] = {}


def handler(function: Callable[[Frame, Any], Any]) -> Callable[[Frame, Any], Any]:
    HANDLERS[function.__name__] = function
    return function


@functools.lru_cache(maxsize=None)
def _host_code(op: str, inputs: int, outputs: int, arg: int, name: str) -> CodeType:
    steps = [("RESUME", 0), *(("LOAD_FAST", i) for i in range(inputs)), (op, arg)]
    caches = dis._inline_cache_entries  # type: ignore[attr-defined]
    count = caches.get(op, 0) if isinstance(caches, dict) else caches[dis.opmap[op]]
    steps += [*[("CACHE", 0)] * count, ("BUILD_TUPLE", outputs), ("RETURN_VALUE", 0)]
    raw = b"".join(
        bytes((dis.opmap[o if n == 0 else "EXTENDED_ARG"], a >> n & 255))
        for o, a in steps for n in (24, 16, 8, 0) if a >> n or n == 0)
    units = len(raw) // 2  # without a position: a table of runs of at most 8 units
    table = b"".join(bytes([0xF8 | min(8, units - i) - 1]) for i in range(0, units, 8))
    names = tuple(f"s{i}" for i in range(inputs))
    return (lambda: None).__code__.replace(
        co_code=raw, co_linetable=table, co_stacksize=inputs + outputs + 2, co_argcount=inputs,
        co_nlocals=inputs, co_varnames=names, co_names=(name,))


def on_host(f: Frame, op: str, args: Sequence[Any], outputs: int = 1, arg: int = 0, name: str = "") -> tuple:
    """Runs one instruction of the host's own bytecode on a stack of `args`, as code of the frame's module.
    Gives the `outputs` values on top of the stack then."""
    return FunctionType(_host_code(op, len(args), outputs, arg, name), f.globals)(*args)


@handler
def POP_TOP(f, a): f.stack.pop()
@handler
def PUSH_NULL(f, a): f.stack.append(NULL)
@handler
def NULL_BELOW(f, a): f.stack.insert(-1, NULL)
@handler
def COPY(f, a): f.stack.append(f.stack[-a])
@handler
def SWAP(f, a): f.stack[-1], f.stack[-a] = f.stack[-a], f.stack[-1]
@handler
def LOAD_CONST(f, a): f.stack.append(a)
@handler
def STORE_FAST(f, a): f.locals[a] = f.stack.pop()
@handler
def END_SEND(f, a): del f.stack[-2]
@handler
def RETURN_VALUE(f, a): return f.stack.pop(), False
@handler
def YIELD_VALUE(f, a): return f.stack.pop(), True
@handler
def JUMP(f, a): f.laps += a < f.pc; f.pc = a
@handler
def LOAD_ASSERTION_ERROR(f, a): f.stack.append(AssertionError)
@handler
def MAKE_CELL(f, a): f.locals[a] = CellType() if f.locals[a] is NULL else CellType(f.locals[a])
@handler
def LOAD_GLOBAL(f, a): f.stack.append(f.world.load_global(f, a))
@handler
def STORE_GLOBAL(f, a): f.world.store_global(f, a, f.stack.pop())
@handler
def DELETE_GLOBAL(f, a): f.world.delete_global(f, a)
@handler
def LOAD_ATTR(f, a): f.stack[-1] = f.world.getattr(f.stack[-1], a)
@handler
def DELETE_ATTR(f, a): f.world.delattr(f.stack.pop(), a)
@handler
def UNARY_NOT(f, a): f.stack[-1] = not f.world.truth(f.stack[-1])
@handler
def GET_ITER(f, a): f.stack[-1] = f.world.iter(f.stack[-1])
@handler
def GET_LEN(f, a): f.stack.append(f.world.len(f.stack[-1]))
@handler
def LIST_TO_TUPLE(f, a): f.stack[-1] = tuple(f.world.resolve(f.stack[-1]))
@handler
def PRINT_EXPR(f, a): f.stack[-1] = f.world.call(f, sys.displayhook, f.stack[-1:])
@handler
def UNARY_OP(f, a): f.stack[-1] = f.world.operate(a, f.stack[-1])
@handler
def FORMAT_SIMPLE(f, a): f.stack[-1] = f.world.operate(format, f.stack[-1], "")
@handler
def LIST_APPEND(f, a): v = f.stack.pop(); f.world.resolve(f.stack[-a]).append(v)
@handler
def SET_ADD(f, a): v = f.stack.pop(); f.world.resolve(f.stack[-a]).add(v)
@handler
def SET_UPDATE(f, a): v = f.stack.pop(); f.world.resolve(f.stack[-a]).update(f.world.iter(v))


@handler
def POP_EXCEPT(f, a):
    f.exc = f.stack.pop()


@handler
def PUSH_EXC_INFO(f, a):
    e = f.stack.pop()
    f.stack += (f.exc, e)
    f.exc = e


def _two(f: Frame) -> tuple[Any, Any]:
    b = f.stack.pop()
    return f.stack.pop(), b


@handler
def BINARY_OP(f, a):
    right = f.stack.pop()
    f.stack[-1] = f.world.operate(a, f.stack[-1], right)


@handler
def BINARY_SUBSCR(f, a):
    key = f.stack.pop()
    f.stack[-1] = f.world.getitem(f.stack[-1], key)


@handler
def IS_OP(f, a):
    x, y = _two(f)
    f.stack.append(f.world.is_(x, y) != bool(a))


@handler
def CONTAINS_OP(f, a):
    x, y = _two(f)
    f.stack.append(f.world.contains(y, x) != bool(a))


@handler
def STORE_SUBSCR(f, a):
    container, key = _two(f)
    f.world.setitem(container, key, f.stack.pop())


@handler
def DELETE_SUBSCR(f, a):
    f.world.delitem(*_two(f))


@handler
def STORE_ATTR(f, a):
    value, obj = _two(f)
    f.world.setattr(obj, a, value)


@handler
def FORMAT_WITH_SPEC(f, a):
    f.stack.append(f.world.operate(format, *_two(f)))


@handler
def POP_JUMP_IF_TRUE(f, a):
    if f.world.truth(f.stack.pop()):
        f.pc = a


@handler
def POP_JUMP_IF_FALSE(f, a):
    if not f.world.truth(f.stack.pop()):
        f.pc = a


@handler
def POP_JUMP_IF_NONE(f, a):
    if f.stack.pop() is None:
        f.pc = a


@handler
def POP_JUMP_IF_NOT_NONE(f, a):
    if f.stack.pop() is not None:
        f.pc = a


@handler
def FOR_ITER(f, a):
    try:
        f.stack.append(f.world.next(f.stack[-1]))
    except StopIteration:
        f.stack.pop()
        f.pc = a


def _unbound(name: str) -> UnboundLocalError:
    return UnboundLocalError(f"cannot access local variable {name!r} where it is not associated with a value")


@handler
def LOAD_FAST(f, a):
    value = f.locals[a]
    if value is NULL:
        raise _unbound(f.code.locals[a])
    f.stack.append(value)


@handler
def DELETE_FAST(f, a):
    LOAD_FAST(f, a)
    f.stack.pop()
    f.locals[a] = NULL


@handler
def LOAD_FAST_AND_CLEAR(f, a):
    f.stack.append(f.locals[a])
    f.locals[a] = NULL


@handler
def LOAD_DEREF(f, a):
    value = f.world.load_cell(f.locals[a])
    if value is NULL:
        name = f.code.locals[a]
        if a >= len(f.locals) - f.code.free:
            text = f"cannot access free variable {name!r} where it is not associated with a value"
            raise NameError(text + " in enclosing scope", name=name)
        raise _unbound(name)
    f.stack.append(value)


@handler
def STORE_DEREF(f, a):
    f.world.store_cell(f.locals[a], f.stack.pop())


@handler
def DELETE_DEREF(f, a):
    LOAD_DEREF(f, a)
    f.stack.pop()
    f.world.store_cell(f.locals[a], NULL)


def _pop(f: Frame, n: int) -> list:
    if not n:
        return []
    values = f.stack[-n:]
    del f.stack[-n:]
    return values


def _call(f: Frame, args: Sequence[Any], kwargs: dict[str, Any] | None) -> None:
    a, b = _two(f)
    if a is NULL:
        a = b
    elif b is not NULL:
        args = [b, *args]
    f.stack.append(f.world.call(f, a, args, kwargs))


@handler
def CALL(f, a):
    _call(f, _pop(f, a), None)


@handler
def CALL_KW(f, a):
    names = f.stack.pop()
    args = _pop(f, a)
    split = len(args) - len(names)
    _call(f, args[:split], dict(zip(names, args[split:])))


@handler
def CALL_FUNCTION_EX(f, a):
    kwargs = f.stack.pop() if a & 1 else None
    args = f.stack.pop()
    if type(args) is not tuple:
        if not _iterable(args):
            name = _callee_name(f.stack[-1] if f.stack[-1] is not NULL else f.stack[-2])
            kind = type(args).__name__
            raise TypeError(f"{name} argument after * must be an iterable, not {kind}") from None
        args = list(f.world.iter(args))
    _call(f, args, kwargs)


def _iterable(values: Any) -> bool:
    return hasattr(type(values), "__iter__") or hasattr(type(values), "__getitem__")


def _callee_name(target: Any) -> str:
    """How CPython's messages name what is called."""
    name = getattr(target, "__qualname__", None)
    if name is None:
        return str(target)
    module = getattr(target, "__module__", None)
    return (f"{module}.{name}" if module not in (None, "builtins") else name) + "()"


@handler
def MAKE_FUNCTION(f, a):
    code = f.stack.pop()
    closure = f.stack.pop() if a & 8 else None
    annotations = f.stack.pop() if a & 4 else None
    keyword = f.stack.pop() if a & 2 else None
    defaults = f.stack.pop() if a & 1 else None
    made = FunctionType(code, f.globals, code.co_name, defaults, closure)
    made.__kwdefaults__ = keyword
    if annotations is not None:
        if type(annotations) is tuple:
            annotations = dict(zip(annotations[::2], annotations[1::2]))
        made.__annotations__ = annotations
    f.world.made_function(made)
    f.stack.append(made)


# Building and taking apart

@handler
def BUILD_TUPLE(f, a): f.stack.append(tuple(_pop(f, a)))
@handler
def BUILD_LIST(f, a): f.stack.append(_pop(f, a))
@handler
def BUILD_SET(f, a): f.stack.append(set(_pop(f, a)))
@handler
def BUILD_STRING(f, a): f.stack.append("".join(_pop(f, a)))
@handler
def BUILD_SLICE(f, a): f.stack.append(slice(*_pop(f, a)))


@handler
def BUILD_MAP(f, a):
    flat = _pop(f, 2 * a)
    f.stack.append(dict(zip(flat[::2], flat[1::2])))


@handler
def BUILD_CONST_KEY_MAP(f, a):
    keys = f.stack.pop()
    f.stack.append(dict(zip(keys, _pop(f, a))))


@handler
def MAP_ADD(f, a):
    key, value = _two(f)
    f.world.resolve(f.stack[-a])[key] = value


def _iterated(f: Frame, values: Any) -> Any:
    """What to hand the host in place of something that it would iterate."""
    return f.world.iter(values) if _iterable(values) else values


@handler
def LIST_EXTEND(f, a):
    values = f.stack.pop()
    on_host(f, "LIST_EXTEND", (f.world.resolve(f.stack[-a]), _iterated(f, values)), 1, 1)


@handler
def DICT_UPDATE(f, a):
    values, into = f.stack.pop(), f.world.resolve(f.stack[-a])
    f.world.operate(lambda v: on_host(f, "DICT_UPDATE", (into, v), 1, 1), values)


@handler
def DICT_MERGE(f, a):
    values, into = f.stack.pop(), f.world.resolve(f.stack[-a])
    target = f.stack[-a - 2] if f.stack[-a - 2] is not NULL else f.stack[-a - 3]
    f.world.operate(lambda v: on_host(f, "DICT_MERGE", (target, target, None, into, v), 1, 1), values)


@handler
def UNPACK_SEQUENCE(f, a):
    f.stack += on_host(f, "UNPACK_SEQUENCE", [_iterated(f, f.stack.pop())], a, a)


@handler
def UNPACK_EX(f, a):
    f.stack += on_host(f, "UNPACK_EX", [_iterated(f, f.stack.pop())], (a & 255) + 1 + (a >> 8), a)


# Names of class bodies and modules

def _lookup(f: Frame, name: str) -> Any:
    try:
        return f.names[name]
    except KeyError:
        return f.world.load_global(f, name)


@handler
def LOAD_NAME(f, a): f.stack.append(_lookup(f, a))
@handler
def STORE_NAME(f, a): f.names[a] = f.stack.pop()
@handler
def LOAD_LOCALS(f, a): f.stack.append(f.names)


@handler
def LOAD_BUILD_CLASS(f, a):
    try:
        f.stack.append(f.builtins["__build_class__"])
    except KeyError:
        raise NameError("__build_class__ not found") from None


@handler
def SETUP_ANNOTATIONS(f, a):
    try:
        f.names["__annotations__"]
    except KeyError:
        f.names["__annotations__"] = {}


@handler
def DELETE_NAME(f, a):
    try:
        del f.names[a]
    except KeyError:
        raise NameError(f"name {a!r} is not defined", name=a) from None


@handler
def LOAD_FROM_DICT_OR_DEREF(f, a):
    try:
        f.stack[-1] = f.stack[-1][f.code.locals[a]]
    except KeyError:
        f.stack.pop()
        LOAD_DEREF(f, a)


@handler
def LOAD_FROM_DICT_OR_GLOBALS(f, a):
    try:
        f.stack[-1] = f.stack[-1][a]
    except KeyError:
        f.stack[-1] = f.world.load_global(f, a)


@handler
def LOAD_SUPER_ATTR(f, a):
    made, *args = _pop(f, 3)
    name, given = a
    made = f.world.call(f, made, args if given or made is super else [])
    f.stack.append(f.world.getattr(made, name))


@handler
def IMPORT_NAME(f, a):
    level, names = _two(f)
    f.stack.append(f.world.import_name(f, a, level, names))


@handler
def IMPORT_FROM(f, a):
    try:
        f.stack.append(f.world.getattr(f.stack[-1], a))
    except AttributeError:  # a module in the making, or the error
        f.stack += on_host(f, "IMPORT_FROM", f.stack[-1:], 1, 0, a)


@handler
def IMPORT_STAR(f, a):
    module = f.stack.pop()
    names = getattr(module, "__all__", None)
    for n in [n for n in vars(module) if not n.startswith("_")] if names is None else names:
        f.names[n] = getattr(module, n)
    f.stack.append(None)


# Exceptions, with, match, generators

@handler
def LOAD_HANDLED(f, a):
    e = f.handled
    if e is None:
        raise RuntimeError("No active exception to reraise")
    f.stack.append(e)


@handler
def RAISE_VARARGS(f, a):
    cause = f.stack.pop() if a == 2 else NULL
    e = _exception(f, f.stack.pop(), "exceptions must")
    if cause is not NULL:
        e.__cause__ = None if cause is None else _exception(f, cause, "exception causes must")
    try:
        raise e
    finally:
        del e, cause  # this function is in the traceback


def _exception(f: Frame, e: Any, what: str) -> BaseException:
    if isinstance(e, type) and issubclass(e, BaseException):
        made = f.world.call(f, e, [])
        if not isinstance(made, BaseException):
            kind = type(made)
            raise TypeError(f"calling {e} should have returned an instance of BaseException, not {kind}")
        return made
    if not isinstance(e, BaseException):
        raise TypeError(f"{what} derive from BaseException")
    return e


@handler
def CHECK_EG_MATCH(f, a):
    kind, e = f.stack.pop(), f.stack.pop()
    on_host(f, "CHECK_EXC_MATCH", (e, kind))  # its errors
    if any(issubclass(k, BaseExceptionGroup) for k in (kind if type(kind) is tuple else (kind,))):
        raise TypeError("catching ExceptionGroup with except* is not allowed. Use except instead.")
    rest, match = e, None
    if isinstance(e, kind):
        rest, match = None, e
        if not isinstance(e, BaseExceptionGroup):
            match = BaseExceptionGroup("", (e,))
            match.__traceback__ = e.__traceback__
    elif isinstance(e, BaseExceptionGroup):
        match, rest = e.split(kind)
        if match is None:
            rest = e
    if match is not None:
        f.exc = match
    f.stack += (rest, match)


@handler
def BEFORE_WITH(f, a):
    manager = f.stack.pop()
    enter, leave = f.world.special_method(manager, "__enter__"), f.world.special_method(manager, "__exit__")
    if enter is NULL or leave is NULL:
        on_host(f, "BEFORE_WITH", [manager], 2)  # its error
    f.stack.append(leave)
    f.stack.append(f.world.call(f, enter, []))


@handler
def WITH_EXCEPT_START(f, a):
    e = f.stack[-1]
    f.stack.append(f.world.call(f, f.stack[-4], [type(e), e, e.__traceback__]))


@handler
def GET_YIELD_FROM_ITER(f, a):
    kind = type(f.stack[-1])
    if kind is CoroutineType:
        on_host(f, "GET_YIELD_FROM_ITER", f.stack[-1:])  # its error
    if kind is not GeneratorType:
        f.stack[-1] = f.world.iter(f.stack[-1])


@handler
def SEND(f, a):
    value = f.stack.pop()
    receiver = f.stack[-1]
    try:
        result = f.world.next(receiver) if value is None else receiver.send(value)
    except StopIteration as stop:
        if not a[1]:
            f.stack.pop()
        f.stack.append(stop.value)
        f.pc = a[0]
        return
    f.stack.append(result)


@handler
def CLEANUP_THROW(f, a):
    e = f.stack.pop()
    if not isinstance(e, StopIteration):
        raise e
    f.stack[-2:] = [None, e.value]


@handler
def MATCH_KEYS(f, a):
    subject, keys = f.stack[-2], f.stack[-1]
    values: list[Any] = []
    get = f.world.getattr(subject, "get") if keys else None
    for i, key in enumerate(keys):
        if key in keys[:i]:
            raise ValueError(f"mapping pattern checks duplicate key ({key!r})")
        values.append(f.world.call(f, get, [key, NULL]))
        if values[-1] is NULL:
            f.stack.append(None)
            return
    f.stack.append(tuple(values))


_SELF_MATCHING = (bool, bytearray, bytes, dict, float, frozenset, int, list, set, str, tuple)


@handler
def MATCH_CLASS(f, a):
    names, cls, subject = f.stack.pop(), f.stack.pop(), f.stack.pop()
    if not isinstance(cls, type):
        raise TypeError("called match pattern must be a class")
    matched: tuple | None = None
    if f.world.operate(isinstance, subject, cls):
        matched = _matched(f, cls, subject, a, names)
    f.stack.append(matched)


def _matched(f: Frame, cls: type, subject: Any, count: int, names: tuple[str, ...]) -> tuple | None:
    """The values of the sub-patterns of a class pattern, or None."""
    values: list[Any] = []
    positional: tuple = ()
    if count:
        given = getattr(cls, "__match_args__", NULL)
        myself = given is NULL and issubclass(cls, _SELF_MATCHING)
        given = () if given is NULL else given
        if type(given) is not tuple:
            raise TypeError(f"{cls.__name__}.__match_args__ must be a tuple (got {type(given).__name__})")
        allowed = 1 if myself else len(given)
        if count > allowed:
            plural = "" if allowed == 1 else "s"
            raise TypeError(
                f"{cls.__name__}() accepts {allowed} positional sub-pattern{plural} ({count} given)")
        values += [subject] * myself
        positional = given[:count]
    seen: set[Any] = set()
    for name in (*positional, *names):
        if type(name) is not str:
            raise TypeError(f"__match_args__ elements must be strings (got {type(name).__name__})")
        if name in seen:
            raise TypeError(f"{cls.__name__}() got multiple sub-patterns for attribute {name!r}")
        seen.add(name)
        try:
            values.append(f.world.getattr(subject, name))
        except AttributeError:
            return None
    return tuple(values)


def _operands_only(op: str, inputs: int, outputs: int = 1) -> None:
    HANDLERS[op] = lambda f, a: f.stack.extend(on_host(f, op, _pop(f, inputs), outputs, a or 0))


for _op, _inputs, _outputs in (
    ("PREP_RERAISE_STAR", 2, 1), ("CHECK_EXC_MATCH", 2, 2), ("MATCH_MAPPING", 1, 2), ("MATCH_SEQUENCE", 1, 2),
    ("GET_AITER", 1, 1), ("CALL_INTRINSIC_1", 1, 1), ("CALL_INTRINSIC_2", 2, 1)
):
    _operands_only(_op, _inputs, _outputs)


@handler
def UNSUPPORTED(f, a):
    raise Refusal("bytecode", f"{a} is not supported", f.where)
