"""Sources: where a value was read from, as a tree whose roots are a call's arguments and constants.

Takes nothing; `world` makes a Source for each read, `guards` checks values at sources and fetches inputs by
them. Sources are interned by path, so one path is one object, and its identity can key tables.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

_REGISTRIES = frozenset(
    {"_modules", "_parameters", "_buffers"}
)  # of nn.Module; printed as the user writes the attribute


class Source:
    """One step of a path. `kind` says how `key` leads from the parent's value to this one:

    local      no parent; slot number `key` of the captured function's frame
    const      no parent; the object `value` itself, kept alive
    attr       getattr(parent, key)
    dict_attr  parent.__dict__[key], without descriptors and __getattr__
    type_attr  the entry `key` that the class parent finds in its own or its bases' __dict__
    item       parent[key] for a dict; the key is a constant
    index      parent[key] for a list or tuple, with type(parent)'s own lookup
    size       parent.size(key) for a tensor
    stride     parent.stride(key) for a tensor
    call       value(parent)
    derived    value(*key), where the sources among `key` (the parent is the first) give numbers
    """

    __slots__ = ("kind", "parent", "key", "value", "children", "text")

    def __init__(self, kind: str, parent: Source | None, key: Any, value: Any, text: str):
        self.kind, self.parent, self.key, self.value, self.text = kind, parent, key, value, text
        self.children: dict[tuple[str, Any, Hashable], Source] = {}

    @classmethod
    def local(cls, slot: int, name: str) -> Source:
        return cls("local", None, slot, None, name)

    @classmethod
    def const(cls, value: Any, text: str) -> Source:
        return cls("const", None, None, value, text)

    def _child(self, kind: str, key: Any, text: str, value: Any = None) -> Source:
        name = (kind, type(key), key)
        child = self.children.get(name)
        if child is None:
            child = self.children[name] = Source(kind, self, key, value, text)
        return child

    def attr(self, name: str) -> Source:
        return self._child("attr", name, f"{self.text}.{name}")

    def dict_attr(self, name: str) -> Source:
        return self._child("dict_attr", name, f"{self.text}.{name}")

    def type_attr(self, name: str) -> Source:
        return self._child("type_attr", name, f"{self.text}.{name}")

    def item(self, key: Any) -> Source:
        if (self.kind == "dict_attr" and self.key in _REGISTRIES and isinstance(key, str)
            and self.parent is not None):
            own = self.parent.text
            return self._child("item", key, f"{own}[{key}]" if key.isdigit() else f"{own}.{key}")
        text = (key if self.kind == "const" and isinstance(key, str) and isinstance(self.value, dict)
                else f"{self.text}[{_show(key)}]")
        return self._child("item", key, text)

    def index(self, i: int) -> Source:
        return self._child("index", i, f"{self.text}[{i}]")

    def size(self, dim: int) -> Source:
        return self._child("size", dim, f"{self.text}.size({dim})")

    def stride(self, dim: int) -> Source:
        return self._child("stride", dim, f"{self.text}.stride({dim})")

    def call(self, function: Callable[[Any], Any]) -> Source:
        return self._child("call", function, f"{getattr(function, '__name__', function)}({self.text})",
                           function)

    def derived(self, function: Callable[..., Any], operands: tuple) -> Source:
        """What a function of numbers gives; `operands` are sources and constants."""
        name = ("derived", function, tuple(o if type(o) is Source else (type(o), repr(o)) for o in operands))
        child = self.children.get(name)
        if child is None:
            text = f"{function.__name__}({', '.join(map(str, operands))})"
            if function in _INFIX and len(operands) == 2:
                text = f"({operands[0]} {_INFIX[function]} {operands[1]})"
            child = self.children[name] = Source("derived", self, operands, function, text)
        return child

    def get(self, slots: Sequence[Any]) -> Any:
        """The value here for a call with these frame slots. Raises LookupError, AttributeError, … where the
        path does not lead anywhere."""
        if self.parent is None:
            return self.value if self.kind == "const" else slots[self.key]
        if self.kind == "derived":
            return self.value(*[o.get(slots) if type(o) is Source else o for o in self.key])
        return _STEPS[self.kind](self.parent.get(slots), self.key)

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def _show(key: Any) -> str:
    return (repr(key) if isinstance(key, (str, int, float, bytes, bool, type(None)))
            else getattr(key, "__name__", type(key).__name__))


_INFIX = {operator.add: "+", operator.sub: "-", operator.mul: "*", operator.floordiv: "//", operator.mod: "%",
          operator.truediv: "/", operator.pow: "**", operator.eq: "==", operator.ne: "!=", operator.lt: "<",
          operator.le: "<=", operator.gt: ">", operator.ge: ">="}


def _dict_attr(obj: Any, name: str) -> Any:
    return object.__getattribute__(obj, "__dict__")[name]


def _item(container: Any, key: Any) -> Any:
    return dict.__getitem__(container, key)


def _index(container: Any, i: int) -> Any:
    return (tuple if isinstance(container, tuple) else list).__getitem__(container, i)


_STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "attr": getattr, "dict_attr": _dict_attr,
    "type_attr": lambda cls, name: next(vars(c)[name] for c in cls.__mro__ if name in vars(c)), "item": _item,
    "index": _index, "size": lambda t, dim: t.size(dim),
    "stride": lambda t, dim: t.stride(dim), "call": lambda value, function: function(value)}
