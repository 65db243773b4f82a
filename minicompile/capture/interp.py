"""The interpreter: runs one frame of the dialect, with the host's own objects on its stack.

Takes a `Code` (from `bytecode`) and arguments, gives the frame's result or raises its exception. A frame
reaches state only through its `World`: the plain one below does what CPython does (used to test the
interpreter against CPython, with no torch); `world.CaptureWorld` also notes reads, redirects writes and
records tensor calls. Handlers are named as their opcodes; most are one line over `operator`.

Comes after `bytecode`, before `world`.
"""

from __future__ import annotations

import operator
import sys
import typing
from collections.abc import Callable, Generator, Sequence
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

from ..errors import Refusal
from .bytecode import Code, normalise
from .frame import NULL, Frame
from .handlers import HANDLERS

GENERATOR, COROUTINE = 0x20, 0x80 | 0x100 | 0x200  # co_flags
OPTIMIZED, VARARGS, VARKEYWORDS = 0x1, 0x4, 0x8


class World:
    """State as CPython has it. Each method is one way of reading or changing it; a frame has no other
    way."""

    getattr: Callable[..., Any] = staticmethod(getattr)
    setattr: Callable[..., Any] = staticmethod(setattr)
    delattr: Callable[..., Any] = staticmethod(delattr)
    getitem: Callable[..., Any] = staticmethod(operator.getitem)
    setitem: Callable[..., Any] = staticmethod(operator.setitem)
    delitem: Callable[..., Any] = staticmethod(operator.delitem)
    contains: Callable[..., bool] = staticmethod(operator.contains)
    iter: Callable[..., Any] = staticmethod(iter)
    next: Callable[..., Any] = staticmethod(next)
    len: Callable[..., int] = staticmethod(len)
    truth: Callable[..., bool] = staticmethod(operator.truth)
    is_: Callable[..., bool] = staticmethod(operator.is_)
    resolve: Callable[..., Any] = staticmethod(lambda value: value)  # what stands for a container
    type_of: Callable[[Any], type] = staticmethod(type)

    def __init__(self) -> None:
        self.current: Frame | None = None
        self.leaving: BaseException | None = None  # has just left an interpreted frame
        self.frames = 0
        self.stop: Any = None  # see `resume.Stop`
        self.special: dict[int, Callable[..., Any]] = {id(f): h for f, h in SPECIAL.items()}

    dead = False  # set when its frames must not run on: generators that outlive a capture just end

    def interprets(self, code: CodeType) -> bool:
        """Whether frames of `code` are ours to run (the plain world runs all but coroutines and class
        bodies)."""
        return not code.co_flags & COROUTINE and bool(code.co_flags & OPTIMIZED)

    def operate(self, function: Callable[..., Any], *args: Any) -> Any:
        """An operator, comparison, conversion or formatting."""
        return function(*args)

    def special_method(self, obj: Any, name: str) -> Any:
        """A method that an instruction looks up on the class only."""
        found = next((c.__dict__[name] for c in type(obj).__mro__ if name in c.__dict__), NULL)
        bind = getattr(type(found), "__get__", None)
        return found if bind is None else bind(found, obj, type(obj))

    def namespace(self, names: Any, written: bool) -> Any:
        """A mapping that a text is to be evaluated in, and whether the text may set variables there."""
        return names

    def load_global(self, frame: Frame, name: str) -> Any:
        for names in (frame.globals, frame.builtins):
            try:
                return names[name]
            except KeyError:
                continue
        raise NameError(f"name {name!r} is not defined", name=name)

    def store_global(self, frame: Frame, name: str, value: Any) -> None:
        frame.globals[name] = value

    def delete_global(self, frame: Frame, name: str) -> None:
        if name not in frame.globals:
            raise NameError(f"name {name!r} is not defined", name=name)
        del frame.globals[name]

    def load_cell(self, cell: CellType) -> Any:
        """The content of a cell, or NULL."""
        try:
            return cell.cell_contents
        except ValueError:
            return NULL

    def store_cell(self, cell: CellType, value: Any) -> None:
        if value is NULL:
            del cell.cell_contents
        else:
            cell.cell_contents = value

    def import_name(self, frame: Frame, name: str, level: int, names: Any) -> Any:
        try:
            load = frame.builtins["__import__"]
        except KeyError:
            raise ImportError("__import__ not found") from None
        return load(name, frame.globals, None, names, level)

    def passes_over(self, frame: Frame, refusal: Refusal) -> bool:
        """Whether the frame goes on behind an operation that was refused."""
        return False

    def made_function(self, function: FunctionType) -> None:
        """Told of every function object that a frame makes."""

    def default(self, function: FunctionType, where: str, key: Any, value: Any) -> Any:
        """A value that a call takes from the function's defaults."""
        return value

    def call(self, frame: Frame, f: Any, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Any:
        kind = type(f)
        if kind is MethodType:
            args, f = (f.__self__, *args), f.__func__
            kind = type(f)
        if kind is FunctionType and self.interprets(f.__code__):
            return self.run_function(f, args, kwargs)
        special = self.special.get(id(f))
        if special is not None:
            return special(frame, *args, **kwargs or {})
        return self.call_native(f, args, kwargs)

    def call_native(self, f: Any, args: Sequence[Any], kwargs: dict[str, Any] | None) -> Any:
        return f(*args, **kwargs) if kwargs else f(*args)

    def run_function(self, f: FunctionType, args: Sequence[Any], kwargs: dict[str, Any] | None) -> Any:
        """Calls a Python function in the interpreter."""
        code = self.code_of(f.__code__)
        return self.run_slots(code, f, bind(self, code, f, args, kwargs))

    def code_of(self, raw: CodeType) -> Code:
        return normalised(raw)

    def run_slots(
        self, code: Code, f: FunctionType, slots: list, names: dict[str, Any] | None = None
    ) -> Any:
        """Runs a frame whose arguments are bound; a generator function gives a generator that drives the
        frame. `names` is the namespace of a class body."""
        generator = code.code.co_flags & GENERATOR
        frame = Frame(code, bound_ops(code), f, slots, self, None if generator else self.current)
        frame.names = names
        frame.serial = self.frames = self.frames + 1
        if self.stop is not None:
            self.stop.arm(frame)
        if generator:
            return named_generator(frame)
        self.current = frame
        try:
            return run(frame)
        finally:
            self.current = frame.back


_NORMALISED: dict[int, tuple[CodeType, Code]] = {}  # a pure cache: code object -> dialect


def normalised(raw: CodeType) -> Code:
    """`normalise`, remembered per code object."""
    hit = _NORMALISED.get(id(raw))
    if hit is None:
        hit = _NORMALISED[id(raw)] = (raw, normalise(raw))
    return hit[1]


_BOUND: dict[int, tuple[Code, tuple]] = {}


def bound_ops(code: Code) -> tuple[tuple[Callable[[Frame, Any], Any], Any], ...]:
    """(handler function, argument) per instruction, remembered per `Code`."""
    hit = _BOUND.get(id(code))
    if hit is None:
        hit = _BOUND[id(code)] = (code, tuple((HANDLERS[op], arg) for op, arg in code.ops))
    return hit[1]


def bind(
    world: World, code: Code, f: FunctionType, args: Sequence[Any], kwargs: dict[str, Any] | None
) -> list:
    """Local slots for a call, as CPython binds them. A call that does not fit is made for real, so that
    CPython raises its own error."""
    raw = f.__code__
    positional, keyword_only, flags = raw.co_argcount, raw.co_kwonlyargcount, raw.co_flags
    slots = [NULL] * len(code.locals)
    given = len(args)
    if given > positional and not flags & VARARGS:
        _misfit(f, args, kwargs)
    slots[: min(given, positional)] = args[:positional]
    n = positional + keyword_only
    if flags & VARARGS:
        slots[n] = tuple(args[positional:])
    extra: dict[str, Any] = {}
    if kwargs:
        names = raw.co_varnames
        for name, value in kwargs.items():
            i = next((i for i in range(raw.co_posonlyargcount, n) if names[i] == name), None)
            if i is not None and slots[i] is NULL:
                slots[i] = value
            elif i is None and flags & VARKEYWORDS and isinstance(name, str):
                extra[name] = value
            else:
                _misfit(f, args, kwargs)
    if flags & VARKEYWORDS:
        slots[n + bool(flags & VARARGS)] = extra
    if given < positional or keyword_only:
        _fill_defaults(world, f, slots, given, args, kwargs)
    return slots


def _fill_defaults(
    world: World,
    f: FunctionType,
    slots: list,
    given: int,
    args: Sequence[Any],
    kwargs: dict[str, Any] | None,
) -> None:
    raw, defaults, keyword = f.__code__, f.__defaults__ or (), f.__kwdefaults__ or {}
    positional = raw.co_argcount
    for i in range(min(given, positional), positional + raw.co_kwonlyargcount):
        if slots[i] is not NULL:
            continue
        name, j = raw.co_varnames[i], i - positional + len(defaults)
        if i < positional and j >= 0:
            slots[i] = world.default(f, "__defaults__", j, defaults[j])
        elif i >= positional and name in keyword:
            slots[i] = world.default(f, "__kwdefaults__", name, keyword[name])
        else:
            _misfit(f, args, kwargs)


def _misfit(f: FunctionType, args: Sequence[Any], kwargs: dict[str, Any] | None) -> None:
    """Raises the TypeError that CPython raises for these arguments. The body cannot run: an empty stand-in
    of the same signature is called."""

    def stand_in() -> None: ...

    blank = stand_in.__code__
    raw = f.__code__
    code = blank.replace(
        co_argcount=raw.co_argcount, co_posonlyargcount=raw.co_posonlyargcount,
        co_kwonlyargcount=raw.co_kwonlyargcount, co_varnames=raw.co_varnames, co_nlocals=raw.co_nlocals,
        co_flags=blank.co_flags | raw.co_flags & 0xC, co_name=raw.co_name, co_qualname=raw.co_qualname)
    fake = FunctionType(code, {}, f.__name__, f.__defaults__)
    fake.__kwdefaults__, fake.__qualname__ = f.__kwdefaults__, f.__qualname__
    fake(*args, **kwargs or {})
    raise TypeError(f"{f.__qualname__}() cannot be called with these arguments")


def run(frame: Frame) -> Any:
    """Runs until the frame returns or yields (`frame.yielded` tells which); an exception goes to the
    frame's handlers, else out."""
    ops = frame.ops
    while True:
        try:
            while True:
                op, arg = ops[frame.pc]
                frame.pc += 1
                result = op(frame, arg)
                if result is not None:
                    frame.yielded = result[1]
                    return result[0]
        except Refusal as refusal:
            if not frame.world.passes_over(frame, refusal):
                raise
        except BaseException as e:
            catch(frame, e)


def catch(frame: Frame, e: BaseException) -> None:
    """Unwinds to the handler of the current instruction, or raises `e` out of the frame."""
    if e is not frame.world.leaving:
        set_context(frame, e)
    frame.world.leaving = None
    handler = frame.code.handlers[frame.pc - 1]
    if handler is None:
        frame.world.leaving = e if frame.back is not None else None
        frame.stack.clear()
        try:
            raise e
        finally:
            del e  # this function is in the traceback
    del frame.stack[handler.depth :]
    if handler.lasti:
        frame.stack.append(frame.pc - 1)
    frame.stack.append(e)
    frame.pc = handler.target


def _reraise(frame: Frame, arg: Any) -> None:
    catch(frame, frame.stack.pop())  # not raised by the host: the traceback stays as it is


HANDLERS["RERAISE"] = _reraise


def set_context(frame: Frame, e: BaseException) -> None:
    """What `raise` does to `__context__`: the host's own raise does not know what the frames here handle."""
    op, context = frame.code.ops[frame.pc - 1][0], frame.handled
    if context is None or context is e or op == "RERAISE":
        return
    if op != "RAISE_VARARGS" and e.__context__ is not None:
        return
    seen, inner = set(), context
    while inner.__context__ is not None and id(inner) not in seen:
        seen.add(id(inner))
        if inner.__context__ is e:  # would be a cycle
            inner.__context__ = None
            break
        inner = inner.__context__
    e.__context__ = context


# Generators: a real generator object drives the frame, so next, send, throw, close and `yield from` are
# CPython's.


def named_generator(frame: Frame) -> Generator[Any, Any, Any]:
    generator = drive(frame)
    generator.__name__, generator.__qualname__ = frame.func.__name__, frame.func.__qualname__
    return generator


def drive(frame: Frame) -> Generator[Any, Any, Any]:
    """The body of a generator: resumes the interpreted frame with what is sent or thrown."""
    come: list[Any] = [None, None]  # what is sent and thrown
    while True:
        value = resume(frame, come)
        if not frame.yielded:
            return value
        try:
            come += (yield value), None
        except BaseException as e:
            come += None, e


def resume(frame: Frame, come: list[Any]) -> Any:
    thrown, sent, world = come.pop(), come.pop(), frame.world
    if world.dead:
        raise thrown or GeneratorExit
    delegating = frame.yielded and frame.code.ops[frame.pc - 1][1]
    world.current, frame.back, frame.yielded = frame, world.current, False
    try:
        if thrown is None:
            frame.stack.append(sent)
            return run(frame)
        try:
            if not delegating:
                raise thrown
            value = throw_into_delegate(frame, thrown)
            frame.yielded = value is not NULL
        except BaseException as e:
            if frame.exc is not None and frame.exc is not e:
                e.__context__ = frame.exc
            world.leaving, value = e, NULL
            catch(frame, e)
        return run(frame) if value is NULL else value
    finally:
        world.current, frame.back, thrown = frame.back, None, None
        if not frame.yielded:  # it has ended
            frame.exc = None
            frame.locals.clear()


def throw_into_delegate(frame: Frame, e: BaseException) -> Any:
    """An exception thrown while the frame waits in `yield from`: the inner iterator gets it first. What it
    yields, or NULL if it has ended and the frame goes on."""
    inner = frame.stack[-1]
    if isinstance(e, GeneratorExit):
        close = getattr(inner, "close", None)
        if close is not None:
            close()
        raise e
    throw = getattr(inner, "throw", None)
    if throw is None:
        raise e
    try:
        return throw(e)  # the inner one yields again; the frame stays where it is
    except StopIteration as stop:
        send = next(a for op, a in frame.code.ops[frame.pc - 2 :: -1] if op == "SEND")
        frame.stack.pop()
        if send[1]:
            frame.stack.append(inner)
        frame.stack.append(stop.value)
        frame.pc = send[0]
    return NULL


# Functions that look at the frame that calls them.
FUTURE = 0x1FE0000  # co_flags of `from __future__ import`, which a text compiled in the frame has too


def _super(frame: Frame, *args: Any) -> Any:
    if args:
        return super(*args)
    raw, names, first = frame.code.code, frame.code.locals, NULL
    if not raw.co_argcount:
        raise RuntimeError("super(): no arguments")
    first = frame.locals[0]
    if names[0] in raw.co_cellvars and type(first) is CellType:
        first = frame.world.load_cell(first)
    if first is NULL:
        raise RuntimeError("super(): arg[0] deleted")
    if "__class__" not in raw.co_freevars:
        raise RuntimeError("super(): __class__ cell not found")
    cls = frame.world.load_cell(frame.locals[names.index("__class__")])
    if cls is NULL:
        raise RuntimeError("super(): empty __class__ cell")
    return super(cls, first)


def _locals(frame: Frame) -> Any:
    """The frame's variables; in a class or module body, its namespace (in which comprehensions that the
    compiler has put in line have their own)."""
    out: dict[str, Any] = {}
    for name, value in zip(frame.code.locals, frame.locals):
        value = frame.world.load_cell(value) if type(value) is CellType else value
        if value is not NULL:
            out[name] = value
    if frame.names is None:
        return out
    return {**frame.names, **out} if out and not frame.code.free else frame.names


def _vars(frame: Frame, *args: Any) -> Any:
    return vars(*args) if args else _locals(frame)


def _dir(frame: Frame, *args: Any) -> Any:
    return dir(*args) if args else sorted(_locals(frame).keys())


def _exc_info(frame: Frame) -> tuple:
    e = frame.handled
    return (None, None, None) if e is None else (type(e), e, e.__traceback__)


def _getattr(frame: Frame, obj: Any, name: str, *default: Any) -> Any:
    try:
        return frame.world.getattr(obj, name)
    except AttributeError:
        if default:
            return default[0]
        raise


def _hasattr(frame: Frame, obj: Any, name: str) -> bool:
    try:
        frame.world.getattr(obj, name)
    except AttributeError:
        return False
    return True


def _compile(frame: Frame, source: Any, filename: Any, mode: Any, flags: int = 0,
             dont_inherit: bool = False, optimize: int = -1, **more: Any) -> Any:
    if not dont_inherit:
        flags, dont_inherit = operator.index(flags) | frame.code.code.co_flags & FUTURE, True
    return frame.world.call_native(compile, (source, filename, mode, flags, dont_inherit, optimize), more)


def _text(function: Callable[..., Any]) -> Callable[..., Any]:
    """eval or exec: the text's frame is run as any other."""
    mode = function.__name__

    def run_text(frame: Frame, source: Any, /, globals: Any = None, locals: Any = None, **more: Any) -> Any:
        globals = frame.world.namespace(globals, locals is None)
        locals = frame.world.namespace(locals, True)
        if globals is None:
            globals, locals = frame.globals, _locals(frame) if locals is None else locals
        locals = globals if locals is None else locals
        if isinstance(source, (str, bytes)):
            text = source.lstrip(" \t" if type(source) is str else b" \t") if mode == "eval" else source
            source = compile(text, "<string>", mode, frame.code.code.co_flags & FUTURE, True)
        ours = isinstance(source, CodeType) and not source.co_freevars and isinstance(globals, dict)
        if not ours or more or source.co_flags & (OPTIMIZED | GENERATOR | COROUTINE):
            return function(source, globals, locals, **more)
        globals.setdefault("__builtins__", frame.builtins)
        code = frame.world.code_of(source)
        slots = [NULL] * len(code.locals)
        value = frame.world.run_slots(code, FunctionType(source, globals), slots, locals)
        return value if mode == "eval" else None

    return run_text


def _type(frame: Frame, *args: Any, **kwargs: Any) -> Any:
    """A class made by hand is of the module whose code makes it."""
    if len(args) == 1 and not kwargs:
        return frame.world.type_of(args[0])
    return frame.world.call_native(type, _of_module(frame, args), kwargs)


def _of_module(frame: Frame, args: tuple) -> tuple:
    names = args[-1] if len(args) > 2 else None
    if isinstance(names, dict) and "__module__" not in names and "__name__" in frame.globals:
        return (*args[:-1], {**names, "__module__": frame.globals["__name__"]})
    return args


def _as_caller(function: Callable[..., Any]) -> Callable[..., Any]:
    """C code that looks at the module of the function that calls it."""
    code = (lambda f, args, kwargs: f(*args, **kwargs)).__code__
    return lambda frame, *args, **kwargs: FunctionType(code, frame.globals)(function, args, kwargs)


class FrameView:
    """What sys._getframe gives for an interpreted frame."""

    def __init__(self, frame: Frame):
        self.f_globals, self.f_builtins, self.f_code = frame.globals, frame.builtins, frame.code.code
        self.f_locals, self.f_lineno = _locals(frame), frame.where.line
        self.f_lasti = frame.code.offsets[frame.pc - 1]
        self._back = frame.back

    @property
    def f_back(self) -> Any:
        return FrameView(self._back) if self._back is not None else None


def _getframe(frame: Frame, depth: int = 0) -> FrameView:
    wanted: Frame | None = frame
    for _ in range(depth):
        wanted = wanted.back if wanted is not None else None
    if wanted is None:
        raise ValueError("call stack is not deep enough")
    return FrameView(wanted)


SPECIAL: dict[Any, Callable[..., Any]] = {
    super: _super, locals: _locals, vars: _vars, dir: _dir, eval: _text(eval), exec: _text(exec),
    compile: _compile, type: _type,
    type.__new__: lambda frame, *a, **kw: frame.world.call_native(type.__new__, _of_module(frame, a), kw),
    sys.exception: lambda frame: frame.handled,
    globals: lambda frame: frame.globals, sys.exc_info: _exc_info, getattr: _getattr, hasattr: _hasattr,
    setattr: lambda frame, *a: frame.world.setattr(*a), delattr: lambda frame, *a: frame.world.delattr(*a),
    iter: lambda frame, *a: frame.world.iter(*a), next: lambda frame, *a: frame.world.next(*a),
    len: lambda frame, *a: frame.world.len(*a), sys._getframe: _getframe}
if sys.version_info >= (3, 12):
    SPECIAL[sys._getframemodulename] = lambda frame, n=0: _getframe(frame, n).f_globals.get("__name__")
    SPECIAL |= {
        f: _as_caller(f)
        for f in (typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple, typing.TypeAliasType)}
