"""Reads: every way in which a captured program learns something about the world, each leaving a guard.

`Reads` is the first part of the capture world (see `world`). It takes real values met at a `Source` and
gives what the captured program works with: leaves become constants, tensors become fakes, and every other
object stays itself, with its source remembered by identity.
"""

from __future__ import annotations

import enum
import functools
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from .. import _native
from ..errors import Refusal, Where
from ..ir.fake import Fake
from . import policy, varying
from .frame import NULL, Frame
from .guards import Guard, TensorFact
from .interp import World
from .sizes import Sizes
from .sources import Source

NONE = type(None)
LEAVES = frozenset({int, float, complex, str, bytes, bool, NONE, type(Ellipsis), type(NotImplemented),
                    torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, range, slice})
IDENTITIES = (
    FunctionType, BuiltinFunctionType, type, ModuleType, types.MethodDescriptorType,
    types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
    types.MethodWrapperType, types.CodeType, MethodType, functools._lru_cache_wrapper, property, classmethod,
    staticmethod, enum.Enum, types.GenericAlias, types.UnionType, torch._ops.OpOverload,
    torch._ops.OpOverloadPacket)
_BOUND = (MethodType, BuiltinFunctionType, types.MethodWrapperType)
CONTAINERS = (list, dict, set, deque)
EXACT = frozenset({list, dict, set, deque, OrderedDict, defaultdict})
# Facts of a class or function that follow from its identity.
FIXED = frozenset({"__name__", "__qualname__", "__module__", "__mro__", "__bases__", "__base__", "__doc__",
                   "__dict__", "__code__", "__class__", "__init_subclass__", "__subclasshook__",
                   "__globals__", "__builtins__", "__flags__", "__dataclass_fields__", "__new__",
                   "__members__", "__wrapped__", "__func__", "__self__", "__abstractmethods__"})


class Reads(World):
    """Sources by identity, guards, and reading of values, globals, cells and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.origin: dict[int, Source] = {}
        self.keep: list[Any] = []  # ids stay valid while their objects live
        self.numbers = varying.Numbers()
        self.scalars: dict[Source, varying.Varying] = {}
        self.numbers_vary: Callable[[], None] = lambda: None
        self.sizes = Sizes(self)
        self.needed: Refusal | None = None      # the value that was asked for last, which C code may not tell
        self.guards: dict[tuple[Source | None, str], Guard] = {}
        self.fakes: dict[int, Fake] = {}  # id of a real tensor -> its fake
        self.inputs: list[tuple[Source, torch.Tensor, Fake]] = []
        self.input_of: dict[int, int] = {}  # id of an input's fake -> its index
        self.new_input: Callable[[Source, torch.Tensor, Fake], None] = lambda source, t, fake: None
        self.places: dict[tuple[int, int], Where] = {}
        self.root: Where | None = None  # the captured function itself
        self.constants: dict[int, Source] = {}
        self.globals_read: dict[tuple[int, str], Any] = {}
        self.changed: dict[
            int, dict[Any, Any]
        ] = {}  # id of a real dict -> {key: value or NULL}; see `writes`
        self.cells: dict[int, Any] = {}  # id of a cell of the world -> its new content
        self.world_cells: dict[int, CellType] = {}
        self.born: set[int] = set()  # ids of functions made while capturing
        self.tuples: dict[int, tuple] = {}  # id of a real tuple -> the tuple that stands for it

    # Places and guards

    def user_frame(self) -> Frame | None:
        frame = self.current
        while frame is not None and not policy.is_user_file(frame.code.code.co_filename):
            frame = frame.back
        return frame or self.current

    def where(self) -> Where | None:
        frame = self.user_frame()
        if frame is None:
            return self.root
        key = (id(frame.code), frame.pc)
        place = self.places.get(key)
        if place is None:
            place = self.places[key] = frame.where
        return place

    def refuse(self, code: str, reason: str) -> Refusal:
        return Refusal(code, reason, self.where())

    def guard(self, source: Source | None, check: str, expected: Any = None) -> None:
        key = (source, check)
        if key not in self.guards:
            self.guards[key] = Guard(source, check.partition(" ")[0], expected, self.where())

    def const(self, value: Any) -> Source:
        """The source of an object that the captured function reaches by an identity that is already
        guarded."""
        source = self.constants.get(id(value))
        if source is None:
            name = (value.get("__name__", "globals") if issubclass(type(value), dict)
                    else getattr(value, "__qualname__", None))
            source = self.constants[id(value)] = Source.const(
                value, name or getattr(value, "__name__", type(value).__name__)
            )
            self.keep.append(value)
        return source

    def source_of(self, value: Any) -> Source | None:
        return self.origin.get(id(value))

    def remember(self, value: Any, source: Source) -> None:
        self.origin[id(value)] = source
        self.keep.append(value)

    def identify(self, value: Any) -> None:
        """Guards that `value`, an object of the world, stays the same one: its identity is about to
        matter."""
        source = self.origin.get(id(value))
        if source is not None and not issubclass(type(value), IDENTITIES) and type(value) not in LEAVES:
            self.guard(source, "id", value)

    def identify_all(self, values: Any) -> None:
        """`identify` for each value and for what is in it, one level deep."""
        for value in values:
            self.identify(value)
            if issubclass(type(value), (list, tuple, set, deque)):
                for inner in value:
                    self.identify(inner)

    # Values

    def unseen(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """f called as if nothing was captured."""
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            return _native.suspend(f, *args, **kwargs)

    def read(self, source: Source, value: Any) -> Any:
        """The in-trace form of `value`, found at `source`. This is the only way in for the state of the
        world."""
        kind = type(value)
        if kind in LEAVES:
            if kind is NONE or kind is bool:
                self.guard(source, "id", value)
            elif self.numbers.changing and str(source) in self.numbers.changing and kind in varying.KINDS:
                return varying.vary(self, source, value)
            else:
                self.guard(source, "equals", value)
            return value
        if issubclass(type(value), torch.Tensor):
            return self.read_tensor(source, value)
        known = self.origin.get(id(value))
        if known is not None:
            if known is not source and not issubclass(type(value), IDENTITIES):
                self.read_twice(source, known, value)
            elif known is not source:
                self.guard(source, *(("same", known) if kind in (FunctionType, *_BOUND) else ("id", value)))
            return value
        if kind in _BOUND and type(value.__self__) not in (NONE, ModuleType):
            return self.read_bound(source, value)
        if kind is FunctionType and source.parent is None and "<locals>" in value.__qualname__:
            return self.read_made(source, value)
        if issubclass(type(value), IDENTITIES):
            self.guard(source, "id", value)
            self.remember(value, source)
            return value
        if issubclass(type(value), tuple):
            return self.read_tuple(source, value)
        self.guard(source, "type", kind)
        self.remember(value, source)
        if kind is CellType:
            self.world_cells[id(value)] = value
        if kind is frozenset and all(type(v) in LEAVES for v in value):
            self.guard(source.call(tuple), "equals", tuple(value))
        elif policy.state_of(kind) == "fixed":
            self.guard(source, "id", value)
        return value

    def constant_number(self, source: Source, value: int | float) -> int | float:
        self.guard(source, "equals", value)
        return value

    def read_bound(self, source: Source, value: Any) -> Any:
        """A bound method, of which every look-up makes a new one: it is what it binds."""
        self.guard(source, "type", type(value))
        owner = self.read(source.attr("__self__"), value.__self__)
        if type(value) is MethodType:
            self.read(source.attr("__func__"), value.__func__)
        else:
            self.guard(source.attr("__name__"), "equals", value.__name__)
        if owner is not value.__self__:
            if type(value) is MethodType:
                return MethodType(value.__func__, owner)
            return getattr(owner, value.__name__)
        self.remember(value, source)
        return value

    def read_made(self, source: Source, value: FunctionType) -> FunctionType:
        """A function that each call may make anew: it is its code, cells and defaults."""
        self.guard(source, "type", FunctionType)
        self.guard(source.attr("__code__"), "id", value.__code__)
        self.remember(value, source)
        for i, cell in enumerate(value.__closure__ or ()):
            self.read(source.attr("__closure__").index(i), cell)
        return value

    def home(self, value: Any) -> Source:
        """Where an object was found, or the object itself as a constant."""
        return self.origin.get(id(value)) or self.const(value)

    def read_twice(self, source: Source, known: Source, value: Any) -> None:
        """One object at two sources: the program sees one object, so both must lead to the same one."""
        self.guard(source, "same", known)

    def read_tuple(self, source: Source, value: tuple) -> tuple:
        """A tuple is immutable, so all of it is read at once; the stand-in differs only if something inside
        does."""
        done = self.tuples.get(id(value))
        if done is not None:
            return done
        kind = type(value)
        self.guard(source, "type", kind)
        self.guard(source, "len", len(value))
        items = [self.read(source.index(i), v) for i, v in enumerate(value)]
        same = all(a is b for a, b in zip(items, value))
        done = value if same else tuple.__new__(kind, items)
        if same:
            self.origin[id(value)] = source
        self.keep += (value, done)
        self.tuples[id(value)] = done
        return done

    def read_tensor(self, source: Source, t: torch.Tensor) -> Any:
        fake = self.fakes.get(id(t))
        if fake is not None:
            first = self.inputs[self.input_of[id(fake)]][0]
            if first is not source:
                self.guard(source, "same", first)
            return fake
        if issubclass(type(t), Fake):
            raise self.refuse("nested-capture", "a tensor of another capture is met")
        if type(t) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            raise self.refuse("tensor-subclass", f"{source} is a {type(t).__name__}")
        if torch._C._functorch.is_functorch_wrapped_tensor(t):
            raise self.refuse("tensor-subclass", f"{source} is inside a transform of torch.func")
        if t.layout is not torch.strided or t.is_quantized or t.is_nested:
            raise self.refuse("tensor-layout", f"{source} is not a strided tensor")
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            spec = self.sizes.spec(source, t)
            fake = Fake.from_spec(spec, t.requires_grad, isinstance(t, torch.nn.Parameter))
            self.guard(source, "tensor", TensorFact.of(t, spec.shape, spec.stride))
        self.fakes[id(t)] = fake
        self.keep += (t, fake)
        self.input_of[id(fake)] = len(self.inputs)
        self.inputs.append((source, t, fake))
        self.new_input(source, t, fake)
        return fake

    def read_constant(self, module: str | None, source: Source, value: Any) -> Any:
        """A name found in a module or class: identities in trusted modules need no guard."""
        if issubclass(type(value), IDENTITIES) and policy.trusted(module):
            if type(value) in _BOUND and type(value.__self__) not in (NONE, ModuleType):
                self.remember(value, source)
            return value
        return self.read(source, value)

    # Names

    def load_global(self, frame: Frame, name: str) -> Any:
        names = frame.globals
        key = (id(names), name)
        value = self.globals_read.get(key, NULL)
        if value is not NULL:
            return value
        if id(names) in self.born:  # a dict made by the call, in which it evaluates a text
            return super().load_global(frame, name)
        changes = self.changed.get(id(names))
        if changes is not None and name in changes:
            value = changes[name]
            if value is not NULL:
                return value
        source = self.const(names).item(name)
        if name in names and (changes is None or name not in changes):
            value = self.read_constant(names.get("__name__"), source, names[name])
        else:
            if changes is None or name not in changes:
                if not policy.trusted(names.get("__name__")):
                    self.guard(source, "absent")
            value = frame.builtins.get(name, NULL)
            if value is NULL:
                raise NameError(f"name {name!r} is not defined", name=name)
        self.globals_read[key] = value
        return value

    def load_cell(self, cell: CellType) -> Any:
        if id(cell) not in self.world_cells:
            return super().load_cell(cell)
        if id(cell) in self.cells:
            return self.cells[id(cell)]
        value = super().load_cell(cell)
        source = self.home(cell).attr("cell_contents")
        if value is NULL and id(cell) in self.origin:
            raise self.refuse("guard", "a variable that an inner function uses is not bound yet")
        if value is NULL:
            self.guard(source, "absent")
            return value
        return self.read(source, value)

    def store_cell(self, cell: CellType, value: Any) -> None:
        if id(cell) in self.world_cells:
            self.cells[id(cell)] = value
        else:
            super().store_cell(cell, value)

    def made_function(self, function: FunctionType) -> None:
        self.born.add(id(function))
        self.keep.append(function)

    def enter_function(self, f: FunctionType) -> None:
        """A function of the world is about to run: the cells of its closure belong to the world."""
        if id(f) not in self.born and policy.is_editable(f.__code__.co_filename):
            self.guard(self.home(f).attr("__code__"), "id", f.__code__)
        if f.__closure__ and id(f) not in self.born:
            for cell in f.__closure__:
                if id(cell) not in self.world_cells:
                    self.world_cells[id(cell)] = cell
                    self.keep.append(cell)

    def default(self, function: FunctionType, where: str, key: Any, value: Any) -> Any:
        if id(function) in self.born or policy.trusted(function.__module__):
            return value
        source = self.home(function).attr(where)
        return self.read(source.index(key) if where == "__defaults__" else source.item(key), value)


def lookup(kind: type, name: str) -> tuple[Any, type | None]:
    """The entry `name` on the method resolution order of `kind` and the class that has it; (NULL, None) if
    there is none."""
    for cls in kind.__mro__:
        found = cls.__dict__.get(name, NULL)
        if found is not NULL:
            return found, cls
    return NULL, None


def python_method(kind: type, name: str) -> FunctionType | None:
    """The method `name` of a class where it is written in Python."""
    found, _ = lookup(kind, name)
    return found if issubclass(type(found), FunctionType) else None


__all__ = [
    "CONTAINERS", "EXACT", "FIXED", "IDENTITIES", "LEAVES", "Reads", "lookup", "python_method"]
