"""Writes: changes of the world are kept beside it while capturing, and become effects to commit at the end.

`Writes` is the second part of the capture world. A dict (an instance's `__dict__`, a module's globals, any
other) keeps single changed keys in an overlay; a container that C code is about to read or change as a
whole gets a shadow, a copy whose children are in their in-trace form, with a snapshot. What differs at the
end is an `Effect`; how it came about does not matter.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import torch

from ..ir.fake import Fake
from .frame import NULL, Frame
from .guards import same_value
from .reads import CONTAINERS, EXACT, LEAVES, Reads
from .sources import Source
from .varying import known

LARGEST = 20_000  # elements of a container that may be read as a whole


def put(d: dict, key: Any, value: Any) -> None:
    """d[key] = value, or del d[key] for NULL, as the built-in class does it."""
    base = OrderedDict if issubclass(type(d), OrderedDict) else dict
    if value is NULL:
        base.__delitem__(d, key)
    else:
        base.__setitem__(d, key, value)


def items(d: dict) -> Any:
    """d.items() as the built-in class has them."""
    return OrderedDict.items(d) if issubclass(type(d), OrderedDict) else dict.items(d)


def ordered_keys(d: OrderedDict) -> tuple:
    return tuple(OrderedDict.keys(d))


@dataclass(slots=True)
class Shadow:
    """A container of the world, the copy that the captured program works on, and the copy's first state."""

    real: Any
    copy: Any
    source: Source
    before: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Effect:
    """One change to commit after the graph has run.

    kind      "setattr", "delattr", "setitem", "delitem" (target, key, value); "cell" (target, value);
              "fill" (target: a container that gets the whole content of `value`); "call" (target: a function,
              called with the arguments `value` and the keywords `key`)
    target    the real object that changes
    """

    kind: str
    target: Any
    key: Any = None
    value: Any = None

    def __str__(self) -> str:
        if self.kind == "call":
            return f"call {getattr(self.target, '__qualname__', self.target)}"
        key = "" if self.key is None else repr(self.key)
        return f"{self.kind} {type(self.target).__name__} {key}".rstrip()


class Writes(Reads):
    """Overlays and shadows."""

    def __init__(self) -> None:
        super().__init__()
        self.shadows: dict[int, Shadow] = {}  # id of the real container -> its shadow
        self.shadow_of_copy: dict[int, Shadow] = {}
        self.calls: list[Effect] = []  # acts on the outside world, in order
        self.dicts: dict[
            int, tuple[dict, Any]
        ] = {}  # id of a changed or instance dict -> (dict, its instance or None)
        self.slots: dict[
            tuple[int, str], tuple[Any, Any]
        ] = {}  # changed attributes that live in no dict: (object, value)

    # Dicts, key by key

    def instance_dict(self, obj: Any) -> dict | None:
        """The `__dict__` of an instance of the world, known as such from now on."""
        try:
            d = object.__getattribute__(obj, "__dict__")
        except AttributeError:
            return None
        if id(d) not in self.dicts:
            self.dicts[id(d)] = (d, obj)
            self.remember(d, self.origin[id(obj)].attr("__dict__"))
        return d

    def item_source(self, d: dict, key: Any) -> Source:
        owner = self.dicts.get(id(d))
        if owner is not None and owner[1] is not None and issubclass(type(key), str):
            return self.origin[id(owner[1])].dict_attr(key)
        return self.origin[id(d)].item(key)

    def real_key(self, key: Any) -> Any:
        """What a dict of the world has for a key; an object's identity is guarded."""
        self.identify(key)
        if not issubclass(type(key), Fake):
            return known(key)
        i = self.input_of.get(id(key))
        if i is None:
            raise self.refuse("tensor-key", "a tensor that was computed is the key of a dict from outside")
        source, t, _ = self.inputs[i]
        self.guard(source, "id", t)
        return t

    def unknown(self, key: Any) -> bool:
        """Whether a key is none that guards can name."""
        named = type(key) in LEAVES or id(key) in self.origin or id(key) in self.fakes
        return not named and not issubclass(type(key), type)

    def dict_get(self, d: dict, key: Any) -> Any:
        """The value at a key of a dict of the world, guarded; NULL (guarded as absent) if there is none."""
        key = self.real_key(key)
        shadow = self.shadows.get(id(d))
        if shadow is not None:
            return dict.get(shadow.copy, key, NULL)
        changes = self.changed.get(id(d))
        if changes is not None and key in changes:
            return changes[key]
        value = dict.get(d, key, NULL)
        if self.unknown(key):
            return dict.get(self.shadow(d), key, NULL)
        source = self.item_source(d, key)
        if value is NULL:
            self.guard(source, "absent")
            return NULL
        return self.read(source, value)

    def dict_has(self, d: dict, key: Any) -> bool:
        """Whether a dict of the world has a key, guarded, without looking at the value."""
        key = self.real_key(key)
        shadow = self.shadows.get(id(d))
        if shadow is not None:
            return dict.__contains__(shadow.copy, key)
        changes = self.changed.get(id(d))
        if changes is not None and key in changes:
            return changes[key] is not NULL
        if self.unknown(key):
            return dict.__contains__(self.shadow(d), key)
        here = dict.__contains__(d, key)
        self.guard(self.item_source(d, key), "present" if here else "absent")
        return here

    def dict_set(self, d: dict, key: Any, value: Any) -> None:
        """Changes (NULL: removes) one key of a dict of the world, in the overlay."""
        key = self.real_key(key)
        shadow = self.shadows.get(id(d))
        if shadow is not None:
            put(shadow.copy, key, value)
            return
        self.dicts.setdefault(id(d), (d, None))
        self.changed.setdefault(id(d), {})[key] = value
        self.keep += (d, value)
        self.globals_read.pop((id(d), key), None)

    def store_global(self, frame: Frame, name: str, value: Any) -> None:
        self.change_global(frame, name, value)

    def delete_global(self, frame: Frame, name: str) -> None:
        self.load_global(frame, name)
        self.change_global(frame, name, NULL)

    def change_global(self, frame: Frame, name: str, value: Any) -> None:
        names = frame.globals
        if id(names) in self.born:
            if value is NULL:
                super().delete_global(frame, name)
            else:
                super().store_global(frame, name, value)
            return
        if id(names) not in self.origin:
            self.remember(names, self.const(names))
        self.dict_set(names, name, value)

    # Containers as a whole

    def shadow(self, real: Any) -> Any:
        """The copy that stands for a container of the world from now on. All of its structure is
        guarded."""
        known = self.shadows.get(id(real))
        if known is not None:
            return known.copy
        source = self.origin[id(real)]
        if len(real) > LARGEST:
            raise self.refuse("huge-container", f"{source} has {len(real)} elements")
        base = next(b for b in CONTAINERS if issubclass(type(real), b))
        copy = self.empty_like(real)
        shadow = Shadow(real, copy, source)
        self.shadows[id(real)] = self.shadow_of_copy[id(copy)] = shadow
        self.keep += (real, copy)
        self.fill(base, real, copy, source)
        shadow.before = shadow.before or self.state(copy)
        return copy

    def empty_like(self, real: Any) -> Any:
        kind = type(real)
        if issubclass(type(real), defaultdict):
            return (defaultdict.__new__(kind, real.default_factory) if kind is not defaultdict
                    else defaultdict(real.default_factory))
        if kind is deque:
            return deque(maxlen=real.maxlen)
        if kind in EXACT:
            return kind()
        copy = kind.__new__(kind)
        own = getattr(real, "__dict__", None)
        if own:
            copy.__dict__.update({k: self.read(self.origin[id(real)].dict_attr(k), v)
                                  for k, v in own.items()})
        return copy

    def fill(self, base: type, real: Any, copy: Any, source: Source) -> None:
        if base is dict:
            if any(issubclass(type(k), torch.Tensor) for k in real):
                raise self.refuse("tensor-key", f"{source}, whose keys are tensors, is read as a whole")
            self.guard_keys(source, real)
            changes = self.changed.pop(id(real), {})
            for key, value in items(real):
                put(copy, key, self.inside(self.read(self.item_source(real, key), value)))
            self.pending_before(copy, changes)
            return
        if base is set:
            if not all(type(v) in LEAVES or id(v) in self.origin for v in real):
                raise self.refuse("set", f"{source} is a set of objects")
            self.guard(source.call(tuple), "equals", tuple(real))
            set.update(copy, real)
            return
        if base is deque:
            source = source.call(tuple)
        self.guard(source, "len", len(real))
        for i, value in enumerate(base.__iter__(real)):
            base.append(copy, self.inside(self.read(source.index(i), value)))

    def guard_keys(self, source: Source, real: dict) -> None:
        if not real:
            self.guard(source, "len", 0)
        elif issubclass(type(real), OrderedDict):  # its order is its own, apart from the dict's
            self.guard(source.call(ordered_keys), "equals", ordered_keys(real))
        else:
            self.guard(source, "keys", tuple(dict.keys(real)))

    def pending_before(self, copy: dict, changes: dict[Any, Any]) -> None:
        """Single keys changed before the dict got its shadow: the shadow's first state has them already,
        its snapshot must not."""
        if not changes:
            return
        shadow = self.shadow_of_copy[id(copy)]
        shadow.before = self.state(copy)
        for key, value in changes.items():
            if value is not NULL or dict.__contains__(copy, key):
                put(copy, key, value)

    def inside(self, value: Any) -> Any:
        """What stands for a container's child: nested containers are read as a whole too, since C code may
        look into them."""
        return self.resolve(value, deep=True)

    def resolve(self, value: Any, deep: bool = False) -> Any:
        """What C code may be handed for `value`: the shadow of a container of the world, anything else as
        it is."""
        if issubclass(type(value), CONTAINERS) and id(value) in self.origin:
            return self.shadow(value)
        return value

    def real(self, value: Any) -> Any:
        """The object of the world that a shadow's copy stands for; anything else as it is."""
        shadow = self.shadow_of_copy.get(id(value))
        return shadow.real if shadow is not None else value

    @staticmethod
    def state(copy: Any) -> list[Any]:
        if issubclass(type(copy), dict):
            return [list(items(copy))]
        return [set(copy)] if issubclass(type(copy), set) else [list(copy)]

    # What changed

    def effects(self) -> list[Effect]:
        """The changes to commit, in an order in which they may be made."""
        out = self.calls + [Effect("cell", self.world_cells[i], None, v) for i, v in self.cells.items()
                            if not self.unchanged(v, super(Reads, self).load_cell(self.world_cells[i]),
                                                  self.home(self.world_cells[i]).attr("cell_contents"))]
        for i, changes in self.changed.items():
            d, owner = self.dicts[i]
            for key, value in changes.items():
                if self.unchanged(value, dict.get(d, key, NULL), self.item_source(d, key)):
                    continue
                how, target = ("attr", owner) if owner is not None else ("item", d)
                out.append(Effect(("del" if value is NULL else "set") + how, target,
                                  self.fakes.get(id(key), key), None if value is NULL else value))
        for (_, name), (obj, value) in self.slots.items():
            out.append(Effect("delattr" if value is NULL else "setattr", obj, name,
                              None if value is NULL else value))
        for shadow in list(self.shadows.values()):
            out += self.shadow_effects(shadow)
        return out

    def unchanged(self, new: Any, old: Any, source: Source) -> bool:
        """Whether the in-trace value `new` is what the world has already at `source`, in every call that the
        guards let through: what was not read may differ in the next one."""
        if new is NULL and old is NULL:
            self.guard(source, "absent")
            return True
        if type(new) in LEAVES:
            return same_value(new, old) and any((source, check) in self.guards for check in ("id", "equals"))
        i = self.input_of.get(id(new))
        home = self.inputs[i][0] if i is not None else self.origin.get(id(old))
        same = new is old or self.real(new) is old or id(old) in self.fakes and self.fakes[id(old)] is new
        return same and home is source

    def shadow_effects(self, shadow: Shadow) -> list[Effect]:
        before, after = shadow.before or self.state(shadow.copy), self.state(shadow.copy)
        if issubclass(type(shadow.copy), set):
            same = before == after
        elif issubclass(type(shadow.copy), dict):
            return self.dict_effects(shadow, dict(before[0]), dict(after[0]))
        else:
            same = len(before[0]) == len(after[0]) and all(a is b for a, b in zip(before[0], after[0]))
        return [] if same else [Effect("fill", shadow.real, None, shadow.copy)]

    def dict_effects(self, shadow: Shadow, before: dict, after: dict) -> list[Effect]:
        kept = [k for k in before if k in after]
        new = [k for k in after if k not in before]
        if [k for k in after] != kept + new:
            return [Effect("fill", shadow.real, None, shadow.copy)]
        owner = self.dicts.get(id(shadow.real), (None, None))[1]
        how, target = ("attr", owner) if owner is not None else ("item", shadow.real)
        gone = [Effect("del" + how, target, k) for k in before if k not in after]
        return gone + [Effect("set" + how, target, k, v) for k, v in after.items() if k not in before
                       or v is not before[k]]
