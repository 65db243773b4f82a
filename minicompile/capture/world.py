"""The capture world: what a frame meets instead of CPython's own state while its program is captured.

Takes the operations of `interp`'s frames (calls, items, iteration, truth, operators) and decides what C
code may be handed: leaves, fakes and objects made while capturing as they are, containers of the world as
shadows. Python frames that C code starts come back through `offered`, the native hook's handler. Built from
`reads`, `writes` and `attributes`; `capture` drives it.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import functools
import operator
import sys
import types
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from .. import _native
from ..errors import Refusal
from ..ir.fake import Fake
from . import backward, functions, optimizers, outside, policy, varying
from .attributes import Attributes
from .frame import NULL, Frame
from .interp import World, bind
from .policy import OPTIMIZED, Policy
from .reads import CONTAINERS, IDENTITIES, LEAVES, python_method
from .sources import Source

# C functions that look only at an object's identity or class.
_LOOKS_AT_TYPE = {id(f): f for f in (isinstance, issubclass, callable, id, object.__new__, super,
                                     operator.is_, operator.is_not)}
_KEYS = LEAVES | {Fake}
# Torch loads rules for torch.vmap when it is first called.
_VMAP_RULES = torch.vmap.__globals__["vmap_impl"].__globals__["lazy_load_decompositions"]
_LOOKS_AT_IDENTITY = {id(f): f for f in (id, hash, str, repr, format, ascii)}
_SEARCHES = frozenset({"index", "remove", "count"})  # methods of sequences
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_C_METHODS = (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)
_BUILTIN_METHODS = (BuiltinFunctionType, types.MethodWrapperType)


class CaptureWorld(Attributes):
    """One capture's world. `special` routes the few functions that must not run as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.lookups = {}
        self.record_call: Callable[..., None] = lambda f, args, kwargs, out: None
        self.one_node: Callable[..., Any] = contextlib.nullcontext
        self.inference = False  # the mode around the capture
        self.survey: list[Refusal] | None = None  # what was refused and passed over
        self.names_read: set[FunctionType] = set()
        self.draws: tuple = ()  # what was drawn from Python's random numbers
        self.policies: dict[int, Policy] = {}  # by id of the code object
        self.special |= {id(f): h for table in (
            SPECIAL, outside.SPECIAL, optimizers.SPECIAL, functions.SPECIAL, backward.SPECIAL)
                         for f, h in table.items()}

    def passes_over(self, frame: Frame, refusal: Refusal) -> bool:
        """In a survey of all that is refused: a call whose result is not used counts, and is left out."""
        (op, _), (after, _) = frame.code.ops[frame.pc - 1:frame.pc + 1]
        if self.survey is None or not op.startswith("CALL") or after != "POP_TOP":
            return False
        self.survey.append(refusal)
        frame.stack.append(None)
        return True

    # Calls

    def call(self, frame: Frame | None, f: Any, args: Sequence[Any],
             kwargs: dict[str, Any] | None = None) -> Any:
        kind = type(f)
        if kind is MethodType:
            args, f = (f.__self__, *args), f.__func__
            kind = type(f)
        special = self.special.get(id(f))
        if special is not None:
            return special(frame, *args, **kwargs or {})
        if kind is FunctionType:
            if f is functions.APPLY:
                return functions.call_apply(self, args[0], args[1:], kwargs or {})
            return self.call_function(f, args, kwargs)
        if issubclass(type(f), type):
            return self.call_class(frame, f, args, kwargs)
        if kind in _BUILTIN_METHODS:
            return self.call_builtin(f, args, kwargs)
        if kind is functools._lru_cache_wrapper:
            return self.call_cached(frame, f, args, kwargs)
        if issubclass(type(f), functools.partial):
            kept = self.consumed(self.getattr(f, "keywords"))
            merged = {**kept, **(kwargs or {})} if f.keywords or kwargs else None
            return self.call(frame, self.getattr(f, "func"), (*self.iter(self.getattr(f, "args")), *args),
                             merged)
        if kind in _GETTERS:
            return _GETTERS[kind](self, frame, f, *args)
        if kind is weakref.ref and id(f) in self.origin:
            return self.read(self.origin[id(f)].call(_dereference), f())
        method = python_method(kind, "__call__")
        if issubclass(kind, _OPERATORS):
            return self.call_native(f, args, kwargs)
        if method is not None:
            self.read_method(f, "__call__")
            return self.call(frame, method, (f, *args), kwargs)
        return self.call_native(f, args, kwargs)

    def read_method(self, obj: Any, name: str) -> None:
        """Guards the class attribute that an implicit special method call finds."""
        found, owner = self.find(type(obj), name)
        if owner is not None and id(obj) in self.origin:
            self.read_class_entry(type(obj), owner, name, found)

    def call_function(self, f: FunctionType, args: Sequence[Any], kwargs: dict[str, Any] | None) -> Any:
        if f.__dict__ and (code := policy.marked(f)) is not None:
            raise self.refuse(code, f"{f.__qualname__}() is marked to run as in eager mode")
        if f.__dict__ and (original := policy.behind(f)) is not None:
            return self.call(self.current, original, args, kwargs)
        if f.__code__ is policy.UNSEEN:
            if f.__wrapped__ is functions.CHECKPOINT:
                return functions.call_checkpoint(self, args[0], args[1:], dict(kwargs or {}))
            return self.call(self.current, f.__wrapped__, args, kwargs)
        chosen = self.policy_of(f.__code__)
        if chosen is Policy.INTERPRET or chosen is Policy.NATIVE and args and self.is_method(f, args[0]):
            self.enter_function(f)
            code = self.code_of(f.__code__)
            return self.run_slots(code, f, bind(self, code, f, args, kwargs))
        if chosen is Policy.FORBID:
            raise self.refuse(*policy.why_forbidden(f.__code__))
        return self.call_native(f, args, kwargs)

    def is_method(self, f: FunctionType, obj: Any) -> bool:
        """Whether f is a method of an object of the world whose attributes it may read unseen."""
        if id(obj) not in self.origin or issubclass(type(obj), IDENTITIES):
            return False
        return f.__code__.co_flags & OPTIMIZED and self.find(type(obj), f.__name__)[0] is f

    def policy_of(self, code: CodeType) -> Policy:
        known = self.policies.get(id(code))
        if known is None:
            known = self.policies[id(code)] = _native.suspend(policy.of_code, code)
            self.keep.append(code)
        return known

    def interprets(self, code: CodeType) -> bool:
        return self.policy_of(code) is Policy.INTERPRET

    def call_class(self, frame: Frame | None, cls: type, args: Sequence[Any],
                   kwargs: dict[str, Any] | None) -> Any:
        """cls(*args): `__new__` and `__init__` are called as any function is."""
        if cls is type and len(args) == 1:
            return self.type_of(args[0])
        meta = python_method(type(cls), "__call__")
        if meta is not None:
            return self.call(frame, meta, (cls, *args), kwargs)
        if type(cls).__call__ is not type.__call__:
            return self.call_native(cls, args, kwargs)
        new, _ = self.find(cls, "__new__")
        init = python_method(cls, "__init__")
        if issubclass(type(new), staticmethod) and issubclass(type(new.__func__), FunctionType):
            obj = self.call(frame, new.__func__, (cls, *args), kwargs)
            if issubclass(type(obj), cls) and (init is not None or cls.__init__ is not object.__init__):
                self.call(frame, init or cls.__init__, (obj, *args), kwargs)
            return obj
        if (init is None or cls.__new__ is not object.__new__
            and not issubclass(cls, dict | list | set | BaseException)):
            return self.call_native(cls, args, kwargs)
        if issubclass(cls, torch.Tensor):
            raise self.refuse("tensor-subclass", f"a {cls.__name__} is made")
        obj = cls.__new__(cls, *args, **kwargs or {})
        self.call(frame, init, (obj, *args), kwargs)
        return obj

    def call_builtin(self, f: Any, args: Sequence[Any], kwargs: dict[str, Any] | None) -> Any:
        """A C function, or a C method bound to an object: a method of a container of the world acts on its
        shadow or overlay."""
        owner = f.__self__
        name = f.__name__
        if name in optimizers.METHODS and optimizers.concerns(self.current, owner):
            return optimizers.METHODS[name](self.current, owner, *args, **kwargs or {})
        if owner is not None and not issubclass(type(owner), ModuleType) and id(owner) in self.origin:
            if issubclass(type(owner), CONTAINERS):
                keyed = _KEYED.get(name) if issubclass(type(owner), dict) and not kwargs else None
                if keyed is not None and id(owner) not in self.shadows:
                    return keyed(self, owner, *args)
                found = next(b.__dict__[name] for b in type(owner).__mro__
                             if type(b.__dict__.get(name)) in _C_METHODS)
                f = found.__get__(self.shadow(owner))
            elif name in _OBJECT_METHODS and issubclass(type(f), types.MethodWrapperType):
                return _OBJECT_METHODS[name](self, owner, *args)
            elif issubclass(type(owner), Iterator):
                raise self.refuse("external-iterator", f"{self.origin[id(owner)]} would be advanced")
            elif issubclass(type(owner), contextvars.ContextVar):
                return self.context_variable(owner, name, f, args)
            else:
                self.consumed(owner)
        if owner is not None and type(owner).__module__ == "_thread" and name in _LOCKING:
            return _LOCKING[name]  # nobody else sees what happens while capturing
        if id(f) in _LOOKS_AT_TYPE:
            return f(*args, **kwargs or {})
        return self.call_native(f, args, kwargs)

    def call_cached(self, frame: Frame | None, f: Any, args: Sequence[Any],
                    kwargs: dict[str, Any] | None) -> Any:
        """A function behind functools.lru_cache. Its result for constants is one itself, once known; it is
        asked as eager mode would ask it. With anything else its cache must not keep what we pass, so the
        function inside is called."""
        given = (*args, *(kwargs or {}).values())
        if not all(type(a) in LEAVES or id(a) in self.origin for a in given):
            return self.call(frame, f.__wrapped__, args, kwargs)
        self.identify_all(given)
        out = self.unseen(f, *args, **kwargs or {})
        if type(out) in LEAVES or issubclass(type(out), IDENTITIES) or id(out) in self.origin:
            return out
        return self.read(self.const(out), out)

    def context_variable(self, variable: contextvars.ContextVar, name: str, f: Any,
                         args: Sequence[Any]) -> Any:
        """get is guarded; set and reset act on this capture's copy of the context."""
        if name != "get" or id(variable) in self.context_set:
            self.context_set.add(id(variable))
            return f(*args)
        source = self.const(variable).call(_context_value)
        value = _context_value(variable)
        if value is NULL:
            self.guard(source, "id", NULL)
            return f(*args)
        return self.read(source, value)

    @functools.cached_property
    def context_set(self) -> set[int]:
        return set()

    def call_native(self, f: Any, args: Sequence[Any], kwargs: dict[str, Any] | None) -> Any:
        if self.scalars or self.sizes.dims:
            if id(f) in varying.NUMERIC and not kwargs and varying.numbers(args):
                return varying.derive(f, *args)
            if not policy.takes_scalars(f):
                args = [varying.known(a) for a in args]
                kwargs = kwargs and {k: varying.known(v) for k, v in kwargs.items()}
        if not issubclass(type(f), FunctionType):
            reason = policy.why_not_native(f)
            if reason is not None:
                raise self.refuse("impure-call", reason)
        if id(f) in _LOOKS_AT_IDENTITY or getattr(f, "__name__", "") in _SEARCHES:
            self.identify_all(args)
            self.identify_all([getattr(f, "__self__", None)])
        if id(f) not in _LOOKS_AT_TYPE:
            args = [self.consumed(a) for a in args]
            if kwargs:
                kwargs = {k: self.consumed(v) for k, v in kwargs.items()}
        if type(f) is BuiltinFunctionType and f in policy.RECORDED or type(f) is torch.jit.ScriptFunction:
            with torch._C.DisableTorchFunction():
                out = f(*args, **kwargs or {})
            self.record_call(f, args, kwargs or {}, out)
            return out
        out = f(*args, **kwargs) if kwargs else f(*args)
        if (f is builtins.__build_class__ or f is type) and issubclass(type(out), type):
            self.born.add(id(out))
            self.keep.append(out)
            self.lookups.clear()
        return out

    def consumed(self, value: Any) -> Any:
        """What C code is handed for a value: containers of the world as shadows, also inside a tuple or a
        bound method."""
        kind = type(value)
        if kind in LEAVES:
            return value
        if kind in _GETTERS or kind is BuiltinFunctionType and id(value) in self.special:
            return Routed(self, value)
        if kind is MethodType or kind in _BUILTIN_METHODS:
            owner = value.__self__
            if issubclass(type(owner), CONTAINERS) and id(owner) in self.origin:
                return getattr(self.shadow(owner), value.__name__)
            return value
        if id(value) not in self.origin:
            if kind is tuple or kind is list:
                items = [self.consumed(v) for v in value]
                if any(a is not b for a, b in zip(items, value)):
                    return tuple(items) if kind is tuple else self.refill(value, items)
            return value
        if issubclass(type(value), CONTAINERS):
            return self.shadow(value)
        if issubclass(type(value), IDENTITIES):
            return value
        if (issubclass(type(value), types.GeneratorType) or issubclass(type(value), Iterator)
            and not issubclass(type(value), IDENTITIES)):
            raise self.refuse("external-iterator", f"{self.origin[id(value)]} would be advanced")
        if issubclass(kind, functools.partial):
            return Routed(self, value)
        if policy.state_of(kind) == "hidden":
            reason = f"{self.origin[id(value)]} is a {kind.__name__}: guards cannot see its state"
            raise self.refuse("hidden-state", reason)
        if policy.native_base(kind) is object:
            self.instance_dict(value)  # C code may hand it out
        return value

    @staticmethod
    def refill(value: list, items: list) -> list:
        value[:] = items
        return value

    # Frames that C code starts

    def offered(self, code: CodeType, f: FunctionType | None, slots: list, namespace: Any,
                resumed: bool) -> Any:
        """The hook's handler: runs an offered frame in the interpreter, or tells the hook never to offer
        its code again."""
        if f is not None and f.__dict__ and policy.marked(f):
            return self.call_function(f, (), None)      # which refuses
        if code.co_filename.startswith(policy.OWN):  # met before `policy_of`, which is our own Python too
            _native.set_policy(code, _native.NATIVE)
            return NotImplemented
        if namespace is not None and id(f) in self.born:  # the body of a class made while capturing
            normal = self.code_of(code)
            return self.run_slots(normal, f, [NULL] * len(normal.locals), namespace)
        if f is functions.APPLY:
            return functions.call_apply(self, *slots[:3])
        if code is policy.UNSEEN and f is not None:
            return self.call_function(f, *slots[:2])
        chosen = self.policy_of(code)
        if chosen is Policy.NATIVE or f is None or namespace is not None:
            _native.set_policy(code, _native.SUSPEND if code.co_filename in policy.SUSPENDED
                               else _native.NATIVE)
            return NotImplemented
        if chosen is Policy.FORBID:
            raise self.refuse(*policy.why_forbidden(code))
        if resumed:
            if id(f) in self.born:
                return NotImplemented
            raise self.refuse("external-iterator",
                              f"a generator of {code.co_qualname}() made before capture is resumed")
        self.enter_function(f)
        normal = self.code_of(code)
        out = self.run_slots(normal, f, [NULL if s is _native.NULL else s for s in slots])
        return _native.NULL if out is NotImplemented else out

    # Items, iteration, truth

    def namespace(self, names: Any, written: bool) -> Any:
        if names is None or id(names) in self.born:
            return names
        module = not written and sys.modules.get(names.get("__name__"))
        if module and vars(module) is names:  # only read, and guarded as any globals are
            return names
        if id(names) in self.origin or names.get("__builtins__"):
            raise self.refuse("guard", "a text is evaluated in a dict that was there before the call")
        self.born.add(id(names))  # functions that the text makes must not outlive the call
        self.keep.append(names)
        return names

    def special_method(self, obj: Any, name: str) -> Any:
        if super().special_method(obj, name) is NULL:
            return NULL
        if name in getattr(obj, "__dict__", ()):
            raise self.refuse("descriptor", f"an instance has {name}, which its class has too")
        return self.getattr(obj, name)

    def getitem(self, obj: Any, key: Any) -> Any:  # type: ignore[override]
        source = self.origin.get(id(obj))
        if source is None:
            method = python_method(type(obj), "__getitem__") if not issubclass(type(obj), Fake) else None
            if method is not None:
                return self.call(self.current, method, (obj, key))
            return operator.getitem(obj, self.consumed(key))
        method = python_method(type(obj), "__getitem__")
        if method is not None:
            self.read_method(obj, "__getitem__")
            return self.call(self.current, method, (obj, key))
        if not issubclass(type(obj), CONTAINERS) or id(obj) in self.shadows:
            return operator.getitem(self.consumed(obj), key)
        if issubclass(type(obj), dict):
            return self.item_of_dict(obj, key)
        if issubclass(type(obj), list) and type(key) is int and -len(obj) <= key < len(obj):
            if key < 0:
                self.guard(source, "len", len(obj))
                key += len(obj)
            return self.read(source.index(key), obj[key])
        return operator.getitem(self.shadow(obj), key)

    def item_of_dict(self, d: dict, key: Any) -> Any:
        value = self.dict_get(d, key)
        if value is NULL and issubclass(type(key), Fake) and issubclass(type(d), defaultdict):
            value = self.call(self.current, self.getattr(d, "default_factory"), [])
            self.dict_set(d, key, value)
        return operator.getitem(self.shadow(d), key) if value is NULL else value

    def setitem(self, obj: Any, key: Any, value: Any) -> None:  # type: ignore[override]
        method = python_method(type(obj), "__setitem__") if not issubclass(type(obj), Fake) else None
        if method is not None:
            self.call(self.current, method, (obj, key, value))
        elif issubclass(type(obj), dict) and id(obj) in self.origin and type(key) in _KEYS:
            self.dict_set(obj, key, value)
        else:
            operator.setitem(self.resolve(obj), key,
                             self.consumed(value) if issubclass(type(obj), Fake) else value)

    def delitem(self, obj: Any, key: Any) -> None:  # type: ignore[override]
        method = python_method(type(obj), "__delitem__")
        if method is not None:
            self.call(self.current, method, (obj, key))
        elif (
            issubclass(type(obj), dict)
            and id(obj) in self.origin
            and type(key) in _KEYS
            and self.dict_has(obj, key)
        ):
            self.dict_set(obj, key, NULL)
        else:
            operator.delitem(self.resolve(obj), key)

    def contains(self, obj: Any, key: Any) -> bool:  # type: ignore[override]
        method = python_method(type(obj), "__contains__") if not issubclass(type(obj), Fake) else None
        if method is not None:
            self.read_method(obj, "__contains__")
            return self.truth(self.call(self.current, method, (obj, key)))
        if issubclass(type(obj), dict) and id(obj) in self.origin:
            return self.dict_has(obj, key)
        if issubclass(type(obj), list | tuple) and any(issubclass(type(v), Fake) for v in self.resolve(obj)):
            return any(v is key or self.truth(self.operate(operator.eq, v, key)) for v in self.resolve(obj))
        if issubclass(type(obj), list | tuple | set):
            self.identify_all((obj, key))
        if (id(obj) in self.origin and not issubclass(type(obj), CONTAINERS)
            and python_method(type(obj), "__iter__")):
            return any(v is key or v == key for v in self.iter(obj))
        return operator.contains(self.consumed(obj), self.real(key))

    def iter(self, obj: Any, *sentinel: Any) -> Any:  # type: ignore[override]
        if sentinel:
            return iter(obj, *sentinel)
        method = python_method(type(obj), "__iter__") if not issubclass(type(obj), Fake) else None
        if method is not None:
            self.read_method(obj, "__iter__")
            return self.call(self.current, method, (obj,))
        return iter(self.consumed(obj))

    def next(self, it: Any, *default: Any) -> Any:  # type: ignore[override]
        if id(it) in self.origin:
            raise self.refuse("external-iterator", f"{self.origin[id(it)]} would be advanced")
        if not default:
            return next(it)
        try:
            return next(it)
        except StopIteration:
            return default[0]

    def len(self, obj: Any) -> Any:  # type: ignore[override]
        if isinstance(obj, Fake) and obj.dim():
            return obj.shape[0]          # len() itself would ask for a number
        source = self.origin.get(id(obj))
        if source is None:
            return len(obj)
        method = python_method(type(obj), "__len__")
        if method is not None:
            self.read_method(obj, "__len__")
            return self.call(self.current, method, (obj,))
        if not issubclass(type(obj), CONTAINERS):
            return len(self.consumed(obj))
        if id(obj) in self.shadows or id(obj) in self.changed or not issubclass(type(obj), list | dict):
            return len(self.shadow(obj))
        self.guard(source, "len", len(obj))
        return len(obj)

    def truth(self, obj: Any) -> bool:  # type: ignore[override]
        if obj is True or obj is False or obj is None:
            return obj is True
        if id(obj) in self.origin and not issubclass(type(obj), IDENTITIES):
            method = python_method(type(obj), "__bool__")
            if method is not None:
                return bool(self.call(self.current, method, (obj,)))
            if issubclass(type(obj), CONTAINERS) or python_method(type(obj), "__len__"):
                return self.len(obj) != 0
            self.consumed(obj)
        return operator.truth(obj)

    def is_(self, a: Any, b: Any) -> bool:  # type: ignore[override]
        a, b = self.real(a), self.real(b)
        if a is b:
            return True
        first, second = self.place(a), self.place(b)
        if (first is not None and second is not None and type(a) is type(b)
            and not issubclass(type(a), IDENTITIES)):
            self.guard(first, f"distinct {second}", second)
        return False

    def place(self, value: Any) -> Source | None:
        """Where a tensor or object of the world was found."""
        i = self.input_of.get(id(value))
        return self.inputs[i][0] if i is not None else self.origin.get(id(value))

    def operate(self, function: Callable[..., Any], *args: Any) -> Any:
        for a in args:
            if type(a) not in LEAVES:
                if function in _COMPARES:
                    self.identify_all(args)
                return function(*[self.consumed(a) for a in args])
        return function(*args)

    def import_name(self, frame: Frame, name: str, level: int, names: Any) -> Any:
        """Importing what is loaded already is a read of sys.modules; loading a module of the program's own
        while capturing is refused."""
        if not level and name not in sys.modules and not policy.trusted(name):
            raise self.refuse("import", f"module {name} would be loaded")
        return self.unseen(World.import_name, self, frame, name, level, names)


class Routed:
    """A callable that C code is handed in place of one that must be called through the world."""

    __slots__ = ("function", "world")

    def __init__(self, world: CaptureWorld, function: Any):
        self.world, self.function = world, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.world.call(self.world.current, self.function, args, kwargs)


def _attributes(world: CaptureWorld, frame: Frame | None, f: operator.attrgetter, obj: Any) -> Any:
    paths = f.__reduce__()[1]
    found = tuple(functools.reduce(world.getattr, path.split("."), obj) for path in paths)
    return found if len(found) > 1 else found[0]


def _method(world: CaptureWorld, frame: Frame | None, f: operator.methodcaller, obj: Any) -> Any:
    maker, args = f.__reduce__()
    name, args = (maker.args[0], args) if type(maker) is functools.partial else (args[0], args[1:])
    return world.call(frame, world.getattr(obj, name), args, getattr(maker, "keywords", None))


_GETTERS: dict[type, Callable[..., Any]] = {operator.attrgetter: _attributes, operator.methodcaller: _method}
_COMPARES = frozenset({operator.eq, operator.ne, str, repr, format, ascii})


def _dereference(reference: weakref.ref) -> Any:
    return reference()


def _context_value(variable: contextvars.ContextVar) -> Any:
    return variable.get(NULL)


def _refuse_frame(frame: Frame, *args: Any) -> Any:
    raise Refusal("frame-access", "the program looks at its own frame", frame.where)


def _globals(frame: Frame) -> dict[str, Any]:
    world: Any = frame.world
    if id(frame.globals) not in world.origin:
        world.remember(frame.globals, world.const(frame.globals))
    return frame.globals


def _is_compiling(frame: Frame) -> bool:
    return frame.code.code.co_qualname != _NESTS


def _get(world: CaptureWorld, d: dict, key: Any, default: Any = None) -> Any:
    value = world.dict_get(d, key)
    return default if value is NULL else value


def _object_getattr(world: CaptureWorld, obj: Any, name: str) -> Any:
    return world.getattr_instance(obj, name, False)


def _copy_parameter(frame: Frame, p: Fake, memo: dict) -> Fake:
    if id(p) not in memo:
        memo[id(p)] = torch.nn.Parameter(p.detach().clone(), p.requires_grad)
    return memo[id(p)]


# With padding it gives other values where it believes to be compiled.
_NESTS = torch.nn.TransformerEncoder.forward.__qualname__
_LOCKING = {"acquire": True, "__enter__": True, "release": None, "__exit__": None}
_KEYED: dict[str, Callable[..., Any]] = {
    "get": _get, "__getitem__": lambda w, d, k: w.item_of_dict(d, k),
    "__contains__": lambda w, d, k: w.dict_has(d, k)}
_OBJECT_METHODS: dict[str, Callable[..., Any]] = {
    "__setattr__": lambda w, obj, name, value: w.setattr_instance(obj, name, value),
    "__delattr__": lambda w, obj, name: w.setattr_instance(obj, name, NULL),
    "__getattribute__": _object_getattr}

SPECIAL: dict[Any, Callable[..., Any]] = {
    torch.compiler.is_compiling: _is_compiling,
    torch._utils.is_compiling
    if hasattr(torch._utils, "is_compiling")
    else torch.compiler.is_compiling: _is_compiling,
    object.__setattr__: lambda frame, obj, name, value: frame.world.setattr_instance(obj, name, value),
    object.__delattr__: lambda frame, obj, name: frame.world.setattr_instance(obj, name, NULL),
    object.__getattribute__: lambda frame, obj, name: (
        _object_getattr(frame.world, obj, name)
        if id(obj) in frame.world.origin
        else object.__getattribute__(obj, name)
    ),
    sys._getframe: _refuse_frame, globals: _globals,
    torch.compiler.cudagraph_mark_step_begin: lambda frame: None,
    torch.overrides._get_current_function_mode_stack: lambda frame: (
        torch.overrides._get_current_function_mode_stack()[:-1]
    ),
    torch.autograd.profiler.record_function: lambda frame, *a: contextlib.nullcontext(),
    torch.overrides.has_torch_function: lambda frame, args: (
        _is_compiling(frame) and torch.overrides.has_torch_function(args)),
    torch.nn.Parameter.__deepcopy__: _copy_parameter,
    torch.set_default_dtype: lambda frame, d: (
        frame.world.call_native(torch._C._set_default_dtype, (d,), None)),
    _VMAP_RULES: lambda frame: frame.world.unseen(_VMAP_RULES),
    torch.is_inference_mode_enabled: lambda frame: frame.world.inference,
    operator.is_: lambda frame, a, b: frame.world.is_(a, b),
    bool: lambda frame, *a: frame.world.truth(*a) if a else False,
    vars: lambda frame, *a: (
        frame.world.getattr(a[0], "__dict__") if a else World().special[id(vars)](frame)
    ),
}
