"""Instruction handlers of the interpreter, named as the dialect's opcodes (see `bytecode`).

Takes a `Frame` and the instruction's argument, gives None, or (value, is a yield) to leave the loop in
`interp.run`. State outside the frame is reached only through `frame.world`.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from types import CellType, FunctionType
from typing import Any

from ..errors import Refusal
from .frame import NULL, Frame

HANDLERS: dict[str, Callable[[Frame, Any], Any]] = {}


def handler(function: Callable[[Frame, Any], Any]) -> Callable[[Frame, Any], Any]:
    HANDLERS[function.__name__] = function
    return function


@handler
def POP_TOP(f, a): f.stack.pop()
@handler
def PUSH_NULL(f, a): f.stack.append(NULL)
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
def JUMP(f, a): f.pc = a
@handler
def LOAD_ASSERTION_ERROR(f, a): f.stack.append(AssertionError)
@handler
def LOAD_BUILD_CLASS(f, a): f.stack.append(f.builtins["__build_class__"])
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
def UNARY_NEGATIVE(f, a): f.stack[-1] = f.world.operate(operator.neg, f.stack[-1])
@handler
def UNARY_POSITIVE(f, a): f.stack[-1] = f.world.operate(operator.pos, f.stack[-1])
@handler
def UNARY_INVERT(f, a): f.stack[-1] = f.world.operate(operator.invert, f.stack[-1])
@handler
def UNARY_NOT(f, a): f.stack[-1] = not f.world.truth(f.stack[-1])
@handler
def GET_ITER(f, a): f.stack[-1] = f.world.iter(f.stack[-1])
@handler
def GET_LEN(f, a): f.stack.append(f.world.len(f.stack[-1]))
@handler
def LIST_TO_TUPLE(f, a): f.stack[-1] = tuple(f.stack[-1])
@handler
def CONVERT_VALUE(f, a): f.stack[-1] = f.world.operate(a, f.stack[-1])
@handler
def FORMAT_SIMPLE(f, a): f.stack[-1] = f.world.operate(format, f.stack[-1], "")
@handler
def LIST_APPEND(f, a): v = f.stack.pop(); f.stack[-a].append(v)
@handler
def SET_ADD(f, a): v = f.stack.pop(); f.stack[-a].add(v)
@handler
def SET_UPDATE(f, a): v = f.stack.pop(); f.stack[-a].update(f.world.iter(v))
@handler
def SETUP_ANNOTATIONS(f, a): f.names.setdefault("__annotations__", {})


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


HANDLERS["COMPARE_OP"] = BINARY_OP


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


def _call(f: Frame, args: list, kwargs: dict[str, Any] | None) -> None:
    a, b = _two(f)
    if a is NULL:
        a = b
    elif b is not NULL:
        args.insert(0, b)
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
    try:
        args = list(f.world.iter(args))
    except TypeError:
        if hasattr(type(args), "__iter__"):
            raise
        name = _called_name(f)
        raise TypeError(f"{name} argument after * must be an iterable, not {type(args).__name__}") from None
    _call(f, args, f.world.operate(dict, kwargs) if kwargs is not None else None)


def _called_name(f: Frame) -> str:
    return _callee_name(f.stack[-1] if f.stack[-1] is not NULL else f.stack[-2])


def _callee_name(target: Any) -> str:
    """How CPython's messages name what is called."""
    name = getattr(target, "__qualname__", None)
    if name is None:
        return repr(target)
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
    made.__qualname__, made.__kwdefaults__ = code.co_qualname, keyword
    if annotations is not None:
        if type(annotations) is tuple:
            annotations = dict(zip(annotations[::2], annotations[1::2]))
        made.__annotations__ = annotations
    if code.co_consts and isinstance(code.co_consts[0], str):
        made.__doc__ = code.co_consts[0]
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
    f.stack[-a][key] = value


@handler
def LIST_EXTEND(f, a):
    values = f.stack.pop()
    try:
        f.stack[-a].extend(f.world.iter(values))
    except TypeError:
        if hasattr(type(values), "__iter__") or hasattr(type(values), "__getitem__"):
            raise
        raise TypeError(f"Value after * must be an iterable, not {type(values).__name__}") from None


@handler
def DICT_UPDATE(f, a):
    values = f.stack.pop()
    if not hasattr(values, "keys"):
        raise TypeError(f"{type(values).__name__!r} object is not a mapping")
    f.stack[-a].update(f.world.operate(dict, values))


@handler
def DICT_MERGE(f, a):
    values = f.stack.pop()
    into = f.stack[-a]
    if not hasattr(values, "keys"):
        name = _merged_name(f, a)
        raise TypeError(f"{name} argument after ** must be a mapping, not {type(values).__name__}")
    for key, value in f.world.operate(dict, values).items():
        if key in into:
            raise TypeError(f"{_merged_name(f, a)} got multiple values for keyword argument {key!r}")
        into[key] = value


def _merged_name(f: Frame, a: int) -> str:
    return _callee_name(f.stack[-a - 2] if f.stack[-a - 2] is not NULL else f.stack[-a - 3])


@handler
def UNPACK_SEQUENCE(f, a):
    values = f.stack.pop()
    if not hasattr(type(values), "__iter__") and not hasattr(type(values), "__getitem__"):
        raise TypeError(f"cannot unpack non-iterable {type(values).__name__} object")
    it, items = f.world.iter(values), []
    for _ in range(a + 1):
        try:
            items.append(f.world.next(it))
        except StopIteration:
            break
    if len(items) < a:
        raise ValueError(f"not enough values to unpack (expected {a}, got {len(items)})")
    if len(items) > a:
        got = f", got {len(values)}" if sys.version_info >= (3, 14) else ""
        raise ValueError(f"too many values to unpack (expected {a}{got})")
    f.stack.extend(reversed(items))


@handler
def UNPACK_EX(f, a):
    before, after = a & 255, a >> 8
    values = f.stack.pop()
    if not hasattr(type(values), "__iter__") and not hasattr(type(values), "__getitem__"):
        raise TypeError(f"cannot unpack non-iterable {type(values).__name__} object")
    items = list(f.world.iter(values))
    if len(items) < before + after:
        least = before + after
        raise ValueError(f"not enough values to unpack (expected at least {least}, got {len(items)})")
    end = len(items) - after
    f.stack.extend(reversed([*items[:before], items[before:end], *items[end:]]))


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
def DELETE_NAME(f, a):
    if a not in f.names:
        raise NameError(f"name {a!r} is not defined", name=a)
    del f.names[a]


@handler
def LOAD_FROM_DICT_OR_DEREF(f, a):
    names = f.stack.pop()
    if f.code.locals[a] in names:
        f.stack.append(names[f.code.locals[a]])
    else:
        LOAD_DEREF(f, a)


@handler
def LOAD_FROM_DICT_OR_GLOBALS(f, a):
    names = f.stack.pop()
    f.stack.append(names[a] if a in names else f.world.load_global(f, a))


@handler
def LOAD_SUPER_ATTR(f, a):
    instance = f.stack.pop()
    made, cls = f.stack[-2], f.stack.pop()
    made = f.world.call(f, f.stack.pop(), [cls, instance])
    f.stack.append(f.world.getattr(made, a))


@handler
def IMPORT_NAME(f, a):
    level, names = _two(f)
    f.stack.append(f.world.import_name(f, a, level, names))


@handler
def IMPORT_FROM(f, a):
    module = f.stack[-1]
    try:
        f.stack.append(f.world.getattr(module, a))
    except AttributeError:
        name = module.__name__
        if f"{name}.{a}" in sys.modules:
            f.stack.append(sys.modules[f"{name}.{a}"])
            return
        where = getattr(module, "__file__", None) or "unknown location"
        text = f"cannot import name {a!r} from {name!r} ({where})"
        raise ImportError(text, name=name, path=where) from None


@handler
def IMPORT_STAR(f, a):
    module = f.stack.pop()
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    f.names.update({n: getattr(module, n) for n in names})


# Exceptions, with, match, generators

@handler
def RAISE_VARARGS(f, a):
    cause = f.stack.pop() if a == 2 else NULL
    if a == 0:
        if f.exc is None:
            raise RuntimeError("No active exception to reraise")
        raise f.exc
    e = f.stack.pop()
    if isinstance(e, type) and issubclass(e, BaseException):
        e = f.world.call(f, e, [])
    if not isinstance(e, BaseException):
        raise TypeError("exceptions must derive from BaseException")
    if cause is not NULL:
        if isinstance(cause, type) and issubclass(cause, BaseException):
            cause = f.world.call(f, cause, [])
        if cause is not None and not isinstance(cause, BaseException):
            raise TypeError("exception causes must derive from BaseException")
        e.__cause__ = cause
    raise e


@handler
def RERAISE(f, a):
    raise f.stack.pop()


@handler
def CHECK_EXC_MATCH(f, a):
    kind = f.stack.pop()
    for k in kind if isinstance(kind, tuple) else (kind,):
        if not (isinstance(k, type) and issubclass(k, BaseException)):
            raise TypeError("catching classes that do not inherit from BaseException is not allowed")
    f.stack.append(isinstance(f.stack[-1], kind))


@handler
def CHECK_EG_MATCH(f, a):
    kind, e = f.stack.pop(), f.stack.pop()
    if isinstance(e, kind):
        if not isinstance(e, BaseExceptionGroup):
            group = ExceptionGroup if isinstance(e, Exception) else BaseExceptionGroup
            f.stack += (None, group("", (e,)))
        else:
            f.stack += (None, e)
        f.exc = f.stack[-1]
    elif isinstance(e, BaseExceptionGroup):
        match, rest = e.split(kind)
        f.stack += (e, None) if match is None else (rest, match)
        if match is not None:
            f.exc = match
    else:
        f.stack += (e, None)


@handler
def PREP_RERAISE_STAR(f, a):
    original, raised = _two(f)
    raised = [e for e in raised if e is not None]
    if not raised:
        f.stack.append(None)
        return
    if not isinstance(original, BaseExceptionGroup):
        f.stack.append(raised[0])
        return
    new = [e for e in raised if e is not original and not (
        isinstance(e, BaseExceptionGroup) and e.__traceback__ is original.__traceback__
        and e.__context__ is original.__context__)]
    kept = [e for e in raised if not any(e is n for n in new)]
    if kept:
        leaves = {id(x) for e in kept for x in _leaves(e)}
        rest = original.subgroup(lambda x: id(x) in leaves)
        if not new:
            f.stack.append(rest)
            return
        new.append(rest)
    f.stack.append(BaseExceptionGroup("", new) if len(new) > 1 or kept else ExceptionGroup("", new))


def _leaves(e: BaseException) -> list[BaseException]:
    return [x for inner in e.exceptions for x in _leaves(inner)] if isinstance(e, BaseExceptionGroup) else [e]


@handler
def BEFORE_WITH(f, a):
    manager = f.stack.pop()
    kind = type(manager)
    for name in ("__enter__", "__exit__"):
        if not hasattr(kind, name):
            missed = " (missed __exit__ method)" if name == "__exit__" else ""
            raise TypeError(f"{kind.__name__!r} object does not support the context manager protocol{missed}")
    enter, leave = f.world.getattr(manager, "__enter__"), f.world.getattr(manager, "__exit__")
    f.stack.append(leave)
    f.stack.append(f.world.call(f, enter, []))


@handler
def WITH_EXCEPT_START(f, a):
    e = f.stack[-1]
    f.stack.append(f.world.call(f, f.stack[-4], [type(e), e, e.__traceback__]))


@handler
def GET_YIELD_FROM_ITER(f, a):
    if type(f.stack[-1]).__name__ != "generator":
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
def STOPITERATION_ERROR(f, a):
    e = f.stack[-1]
    if isinstance(e, StopIteration):
        new = RuntimeError("generator raised StopIteration")
        new.__cause__ = new.__context__ = e
        f.stack[-1] = new


@handler
def MATCH_MAPPING(f, a):
    f.stack.append(isinstance(f.stack[-1], Mapping) if not isinstance(f.stack[-1], dict) else True)


@handler
def MATCH_SEQUENCE(f, a):
    subject = f.stack[-1]
    f.stack.append(isinstance(subject, Sequence) and not isinstance(subject, (str, bytes, bytearray)))


@handler
def MATCH_KEYS(f, a):
    subject, keys = f.stack[-2], f.stack[-1]
    values = []
    for key in keys:
        if not f.world.contains(subject, key):
            f.stack.append(None)
            return
        values.append(f.world.getitem(subject, key))
    f.stack.append(tuple(values))


_SELF_MATCHING = (bool, bytearray, bytes, dict, float, frozenset, int, list, set, str, tuple)


@handler
def MATCH_CLASS(f, a):
    names, cls, subject = f.stack.pop(), f.stack.pop(), f.stack.pop()
    if not isinstance(cls, type):
        raise TypeError("called match pattern must be a class")
    if not f.world.operate(isinstance, subject, cls):
        f.stack.append(None)
        return
    values: list[Any] = []
    try:
        args = getattr(cls, "__match_args__", ())
        if a and not hasattr(cls, "__match_args__") and issubclass(cls, _SELF_MATCHING):
            if a > 1:
                raise TypeError(f"{cls.__name__}() accepts 1 positional sub-pattern ({a} given)")
            values.append(subject)
            args = ()
        elif a > len(args):
            pattern = "sub-pattern" if len(args) == 1 else "sub-patterns"
            raise TypeError(f"{cls.__name__}() accepts {len(args)} positional {pattern} ({a} given)")
        values += [f.world.getattr(subject, n) for n in (*args[:a], *names)]
    except AttributeError:
        f.stack.append(None)
        return
    f.stack.append(tuple(values))


@handler
def UNSUPPORTED(f, a):
    raise Refusal("bytecode", f"{a} is not supported", f.where)
