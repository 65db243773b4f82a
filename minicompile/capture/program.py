"""Programs: the Python text that stands in for a captured frame.

Takes the captured frame's result and effects as in-trace objects and gives text: a function of the fetched
inputs that calls the graph, commits the effects, builds the result anew and returns it. What the text
cannot spell is a named constant.
"""

from __future__ import annotations

import builtins
import functools
import itertools
import keyword
import re
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CellType, FunctionType, MethodType, ModuleType, NoneType, SimpleNamespace
from typing import Any

import torch
from torch.nn import Parameter

from ..errors import Refusal
from ..ir.fake import Fake
from . import policy
from .attributes import fact
from .frame import NULL
from .reads import IDENTITIES, LEAVES, lookup
from .sources import Source
from .speculation import DataGuard, require
from .varying import VARYING, settled
from .world import _BUILTIN_METHODS, _C_METHODS, CaptureWorld, Routed
from .writes import Effect


@dataclass(slots=True)
class Program:
    """A program's text, what it fetches (its parameters, in order), and its named constants. `outputs` are
    the graph's results it uses."""

    text: str
    fetches: tuple[tuple[str, Source], ...]
    constants: dict[str, Any]
    outputs: tuple[Fake, ...]

    def compile(self, graph: Callable[..., Any], filename: str, check: Callable[..., Any] | None = None,
                rest: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """The function, calling `graph` (tensors -> tuple of tensors), before it `check` where the program's
        data guards need a graph of their own, and at its end `rest` where it ends at a break."""
        scope = dict(self.constants, graph=graph, check=check, require=require, rest=rest)
        exec(compile(self.text, filename, "exec"), scope)
        return scope["program"]

    def __str__(self) -> str:
        return self.text


def _identifier(text: str) -> str:
    name = re.sub(r"\W+", "_", text).strip("_") or "x"
    return f"_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name


@dataclass(slots=True)
class Builder:
    """Turns in-trace objects into expressions, keeping identity: a mutable object met twice is built
    once."""

    world: CaptureWorld
    inputs: list[str] = field(default_factory=list)
    fetches: dict[Source, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    constant_names: dict[int, str] = field(default_factory=dict)
    outputs: dict[int, tuple[str, Fake]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    built: dict[int, str] = field(default_factory=dict)
    open: dict[int, bool] = field(default_factory=dict)  # being built: whether it contains itself
    taken: set[str] = field(
        default_factory=lambda: {"graph", "check", "require", "rest", "program", *dir(builtins)})
    keep: list[Any] = field(default_factory=list)

    def name(self, hint: str) -> str:
        base = name = _identifier(hint)[-40:].lstrip("_0123456789") or "x"
        i = 1
        while name in self.taken or keyword.iskeyword(name):
            name, i = f"{base}_{i}", i + 1
        self.taken.add(name)
        return name

    def fetch(self, source: Source) -> str:
        if source not in self.fetches:
            self.fetches[source] = self.name(str(source).removeprefix("self."))
        return self.fetches[source]

    def constant(self, value: Any) -> str:
        known = self.constant_names.get(id(value))
        if known is None:
            if id(value) in self.world.born:
                raise Refusal("escapes", f"a {type(value).__name__} made by the call outlives it")
            known = self.constant_names[id(value)] = self.name(getattr(value, "__name__",
                                                                       type(value).__name__))
            self.constants[known] = value
        return known

    def expression(self, value: Any) -> str:
        """An expression for an in-trace value; lines that must run before it are added to `lines`."""
        kind = type(value)
        value = self.world.real(value)
        if kind is torch.Size and any(type(n) in VARYING for n in value):
            return f"{self.constant(kind)}({self.made(tuple(value), tuple)})"
        if kind in LEAVES:
            return self.leaf(value)
        if kind in VARYING:
            value = settled(value)
            return self.fetch(value.source) if type(value) is kind else self.leaf(value)
        if issubclass(type(value), Fake):
            return self.tensor(value)
        source = self.world.source_of(value)
        if source is not None:
            return self.fetch(source)
        known = self.built.get(id(value))
        if known is not None:
            if id(value) in self.open:
                self.open[id(value)] = True
            return known
        if issubclass(type(value), MethodType):
            parts = self.sequence((value.__func__, value.__self__))
            return f"{self.constant(MethodType)}({parts})"
        if issubclass(type(value), FunctionType) and id(value) in self.world.born:
            return self.function(value)
        if kind in _BUILTIN_METHODS and type(value.__self__) not in (NoneType, type, ModuleType):
            return self.builtin_method(value)
        if issubclass(type(value), IDENTITIES):
            return self.constant(value)
        return self.cell(value) if kind is CellType else self.made(value, kind)

    def leaf(self, value: Any) -> str:
        if issubclass(type(value), (bool, int, str, bytes)) or value is None or value is Ellipsis:
            return repr(value)
        if type(value) is float and value == value and abs(value) != float("inf"):
            return repr(value)
        return self.constant(value)

    def tensor(self, fake: Fake) -> str:
        i = self.world.input_of.get(id(fake))
        if i is not None:
            return self.fetch(self.world.inputs[i][0])
        if id(fake) not in self.outputs:
            name = self.built[id(fake)] = self.name(f"out{len(self.outputs)}")
            self.outputs[id(fake)] = (name, fake)
            if is_leaf(fake):
                self.lines.append(f"{name} = {self.constant(leaf)}({name}, {isinstance(fake, Parameter)})")
        return self.outputs[id(fake)][0]

    def data_guard(self, index: int, guard: DataGuard) -> str:
        """The line that checks what the captured program learned from a tensor's data."""
        for fake in guard.fakes:
            self.outputs[id(fake)] = (self.name(f"seen{index}"), fake)
        args = [self.expression(a) for a in guard.args]
        args += [f"{k}={self.expression(v)}" for k, v in guard.kwargs.items()]
        name = guard.function.__name__
        if name in _CONVERSIONS:
            found = f"{_CONVERSIONS[name]}({args[0]})"
        elif getattr(torch.Tensor, name, None) is guard.function:
            found = f"{args[0]}.{name}({', '.join(args[1:])})"
        else:
            found = f"{self.constant(guard.function)}({', '.join(args)})"
        where = f"  # {guard.where}" if guard.where is not None else ""
        plain = type(guard.expected) in LEAVES
        expected = self.leaf(guard.expected) if plain else self.constant(guard.expected)
        return f"require({index}, {found}, {expected}){where}"

    def made(self, value: Any, kind: type) -> str:
        """An object made while capturing."""
        self.keep.append(value)
        if kind is tuple:
            items = [self.expression(v) for v in value]
            return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
        if issubclass(kind, tuple):
            cls, items = self.constant(kind), self.made(tuple(value), tuple)
            return f"tuple.__new__({cls}, {items})" if maker_of(kind) is tuple else f"{cls}({items})"
        if kind is frozenset:
            return f"frozenset({self.made(tuple(value), tuple)})"
        if kind in _COPIED:
            return self.copied(value)
        builder = next((b for k, b in _BUILDERS if kind is k), None)
        if builder is None:
            return self.instance(value, kind)
        name = self.built[id(value)] = self.name(kind.__name__ + "0")
        self.open[id(value)] = False
        start = len(self.lines)
        text = builder(self, value)
        if not self.open.pop(id(value)):
            self.lines.append(f"{name} = {text}")
            return name
        if kind not in _FILLERS:
            raise Refusal("escapes", f"a {kind.__name__} that contains itself outlives the call")
        self.lines.insert(start, f"{name} = {kind.__name__}()")
        self.lines.append(f"{name}.{_FILLERS[kind]}({text})")
        return name

    def instance(self, value: Any, kind: type) -> str:
        """An instance of a user's class: made bare, then given its state, so that no __init__ or
        __setattr__ runs again."""
        maker = maker_of(kind)
        made_in_c = not {maker, policy.native_base(kind)}.issubset(_MAKERS)
        if made_in_c and not issubclass(kind, BaseException) or issubclass(kind, _UNBUILDABLE):
            raise Refusal("escapes", f"a {kind.__name__} made while capturing outlives the call")
        name = self.built[id(value)] = self.name(kind.__name__.lower())
        args = ""
        if issubclass(kind, BaseException):
            args = "".join(f", {self.expression(a)}" for a in value.args)
        self.lines.append(f"{name} = {self.constant(maker)}.__new__({self.constant(kind)}{args})")
        base = next((b for b in (OrderedDict, dict, list, set, deque) if issubclass(kind, b)), object)
        self.content(name, value, base)
        state = getattr(value, "__dict__", None)
        if state:
            self.lines.append(f"{name}.__dict__.update({self.mapping(state)})")
        for slot in (s for cls in kind.__mro__ for s in _slots(cls)):
            if (v := getattr(value, slot, NULL)) is not NULL:
                self.lines.append(f"object.__setattr__({name}, {slot!r}, {self.expression(v)})")
        return name

    def content(self, name: str, value: Any, base: type) -> None:
        if base is OrderedDict or base is dict:
            cls = self.constant(OrderedDict) if base is OrderedDict else "dict"
            for k, v in base.items(value):
                self.lines.append(f"{cls}.__setitem__({name}, {self.expression(k)}, {self.expression(v)})")
        elif base in (list, set, deque):
            adder = "add" if base is set else "append"
            for v in base.__iter__(value):
                self.lines.append(f"{self.constant(base)}.{adder}({name}, {self.expression(v)})")

    def mapping(self, d: dict) -> str:
        return "{" + ", ".join(f"{self.expression(k)}: {self.expression(v)}" for k, v in d.items()) + "}"

    def sequence(self, values: Any) -> str:
        return ", ".join(self.expression(v) for v in values)

    def cell(self, cell: CellType) -> str:
        if id(cell) in self.world.world_cells:
            return self.constant(cell)
        name = self.built[id(cell)] = self.name("cell0")
        self.keep.append(cell)
        self.lines.append(f"{name} = {self.constant(CellType)}()")
        content = self.world.load_cell(cell)
        if content is not NULL:
            self.lines.append(f"{name}.cell_contents = {self.expression(content)}")
        return name

    def builtin_method(self, method: Any) -> str:
        owner, name = method.__self__, method.__name__
        found, _ = lookup(type(owner), name)
        if type(found) not in _C_METHODS:
            raise Refusal("escapes", f"{method.__qualname__} of an object outlives the call")
        return f"{self.expression(owner)}.{name}"

    def copied(self, value: Any) -> str:
        """An iterator, or another object that knows how to be made again: where it is."""
        name = self.built[id(value)] = self.name(type(value).__name__)
        maker, args, *state = value.__reduce__()
        line = f"{name} = {self.constant(maker)}({self.sequence(args)})"
        self.lines.append(line)
        if state and state[0] is not None:
            self.lines.append(f"{name}.__setstate__({self.expression(state[0])})")
        return name

    def function(self, f: FunctionType) -> str:
        """A function made while capturing that outlives the call: made again, over cells made again."""
        cells = [self.expression(cell) for cell in f.__closure__ or ()]
        name = self.built[id(f)] = self.name(f.__name__)
        closure = f"({''.join(c + ', ' for c in cells)})" if cells else "None"
        self.lines.append(
            f"{name} = {self.constant(FunctionType)}({self.constant(f.__code__)}, "
            f"{self.constant(f.__globals__)}, {f.__name__!r}, {self.expression(f.__defaults__)}, {closure})"
        )
        for attribute in ("__kwdefaults__", "__qualname__", "__annotations__", "__module__", "__doc__"):
            content = getattr(f, attribute)
            if content:
                self.lines.append(f"{name}.{attribute} = {self.expression(content)}")
        if f.__dict__:
            self.lines.append(f"{name}.__dict__.update({self.mapping(f.__dict__)})")
        return name

    def effect(self, effect: Effect) -> None:
        """Adds the line that commits one effect."""
        if effect.kind == "call":
            words = [self.expression(v) for v in effect.value]
            words += [f"{k}={self.expression(v)}" for k, v in (effect.key or {}).items()]
            self.lines.append(f"{self.constant(effect.target)}({', '.join(words)})")
            return
        target = self.target(effect.target)
        if effect.kind == "cell" and effect.value is NULL:
            self.lines.append(f"del {target}.cell_contents")
            return
        value = self.expression(effect.value) if effect.kind not in ("delattr", "delitem", "fill") else ""
        if effect.kind == "fill":
            self.fill(target, effect.value)
            return
        key = effect.key if effect.kind.endswith("attr") else self.expression(effect.key)
        holder = self.holder(type(effect.target))
        base = "type" if issubclass(type(effect.target), type) else "object"
        plain = (type(effect.target).__setattr__ in (object.__setattr__, type.__setattr__)
                 and str(key).isidentifier())
        self.lines.append({"cell": f"{target}.cell_contents = {value}",
                           "setattr": f"{target}.{key} = {value}" if plain
                           else f"{base}.__setattr__({target}, {key!r}, {value})",
                           "delattr": f"{base}.__delattr__({target}, {key!r})",
                           "setitem": f"{holder}.__setitem__({target}, {key}, {value})" if holder
                           else f"{target}[{key}] = {value}",
                           "delitem": f"{holder}.__delitem__({target}, {key})" if holder
                           else f"del {target}[{key}]"}[effect.kind])

    def holder(self, kind: type) -> str:
        """The built-in class whose methods store items of a container, where the container's own class may
        have others."""
        if kind is dict or not issubclass(kind, dict):
            return ""
        return self.constant(OrderedDict) if issubclass(kind, OrderedDict) else "dict"

    def target(self, real: Any) -> str:
        if issubclass(type(real), Fake):
            return self.tensor(real)
        source = self.world.source_of(real)
        return self.constant(real) if source is None else self.fetch(source)

    def fill(self, target: str, copy: Any) -> None:
        if issubclass(type(copy), list):
            self.lines.append(f"list.__setitem__({target}, slice(None), [{self.sequence(copy)}])")
        elif issubclass(type(copy), dict):
            cls = self.constant(OrderedDict) if issubclass(type(copy), OrderedDict) else "dict"
            self.lines += [f"{cls}.clear({target})", f"{cls}.update({target}, {self.mapping(copy)})"]
        else:
            cls = "set" if issubclass(type(copy), set) else self.constant(deque)
            method = "update" if issubclass(type(copy), set) else "extend"
            self.lines += [f"{cls}.clear({target})", f"{cls}.{method}({target}, [{self.sequence(copy)}])"]


def is_leaf(fake: Fake) -> bool:
    """Whether a tensor made while capturing is where gradients are collected. Refuses a view that was changed
    where the engine forbids it: that does not say."""
    try:
        return fake.requires_grad and fact(fake, "is_leaf")
    except RuntimeError:
        return False


def leaf(t: torch.Tensor, parameter: bool) -> torch.Tensor:
    """A tensor like `t`, over its memory, where gradients are collected."""
    return Parameter(t) if parameter else t.detach().requires_grad_()


def maker_of(kind: type) -> type:
    """The built-in class whose `__new__` makes instances of `kind`, Python's own `__new__` left aside."""
    return next(c for c in kind.__mro__ if not isinstance(c.__dict__.get("__new__", _NO_NEW), staticmethod))


_NO_NEW = staticmethod(object)
_COPIED = frozenset(
    map(type, (iter([]), iter(()), iter({}), iter({}.values()), iter({}.items()), iter(range(0)), iter(set()),
               iter(""), reversed([]), iter(int, 0)))
) | {enumerate, zip, map, filter, functools.partial} | {
    t for t in vars(itertools).values() if type(t) is type}
_CONVERSIONS = {"__bool__": "bool", "__int__": "int", "__float__": "float", "__complex__": "complex"}
_MAKERS = (object, dict, OrderedDict, list, set, deque, defaultdict)
_FILLERS = {list: "extend", dict: "update"}
_UNBUILDABLE = (CellType, Routed)


def _slots(cls: type) -> tuple[str, ...]:
    names = cls.__dict__.get("__slots__", ())
    return tuple(n for n in ((names,) if issubclass(type(names), str) else names)
                 if n not in ("__dict__", "__weakref__"))


_BUILDERS: list[tuple[type, Callable[[Builder, Any], str]]] = [
    (list, lambda b, v: f"[{b.sequence(v)}]"),
    (dict, lambda b, v: b.mapping(v)),
    (set, lambda b, v: f"{{{b.sequence(v)}}}" if v else "set()"),
    (OrderedDict, lambda b, v: f"{b.constant(OrderedDict)}({b.mapping(v)})"),
    (
        defaultdict,
        lambda b, v: f"{b.constant(defaultdict)}({b.expression(v.default_factory)}, {b.mapping(v)})",
    ),
    (deque, lambda b, v: f"{b.constant(deque)}([{b.sequence(v)}], {v.maxlen})"),
    (SimpleNamespace, lambda b, v: f"{b.constant(SimpleNamespace)}(**{b.mapping(v.__dict__)})"),
]


def build_program(world: CaptureWorld, result: Any, effects: list[Effect], inputs: list[tuple[Source, str]],
                  calls: bool, data_guards: Sequence[DataGuard] = (), apart: bool = False,
                  ambient: tuple[Callable[[Any], None], Any] | None = None, breaks: bool = False) -> Program:
    """The program that calls the graph (if it has `calls`) on `inputs`, checks `data_guards`, commits
    `effects` and returns `result`.

    apart     a graph of their own, `check`, computes the data guards' tensors, before the graph is called
    ambient   how to set torch's thread state, and to what, where the program leaves it changed
    breaks    `result` is a list of what is handed over to `rest`, whose result is returned
    """
    b = Builder(world)
    for source, hint in inputs if calls else ():
        b.fetches[source] = b.name(hint)
    for effect in effects:
        b.effect(effect)
    returned = f"rest({b.sequence(result)})" if breaks else b.expression(result)
    if ambient is not None:
        b.lines.append(f"{b.constant(ambient[0])}({b.constant(ambient[1])})")
    b.lines.append(f"return {returned}")
    args = ", ".join(b.fetches[s] for s, _ in inputs) if calls else ""
    used = dict(b.outputs)
    built, b.lines = b.lines, []
    checks = [b.data_guard(i, g) for i, g in enumerate(data_guards)]
    checks = [*b.lines, *checks]
    flags = {i: o for i, o in b.outputs.items() if apart and i not in used}
    outputs = {i: o for i, o in b.outputs.items() if i not in flags}
    call = [_call("graph", outputs, args)] if calls else []
    first = [_call("check", flags, args), *checks, *call] if flags else [*call, *checks]
    body = "".join(f"    {line}\n" for line in [*first, *built])
    text = f"def program({', '.join(b.fetches.values())}):\n{body}"
    return Program(
        text, tuple((n, s) for s, n in b.fetches.items()), b.constants, tuple(f for _, f in outputs.values()))


def _call(name: str, outputs: dict[int, tuple[str, Fake]], args: str) -> str:
    names = [n for n, _ in outputs.values()]
    return f"{', '.join(names)}{',' if len(names) == 1 else ''}{' = ' * bool(names)}{name}({args})"
