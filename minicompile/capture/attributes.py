"""Attributes: `obj.name`, read and written, on objects of the world.

`Attributes` is the third part of the capture world. It follows Python's own lookup order to decide which
guard to leave and which method runs; methods, properties and `__getattr__` written in Python are then
called as any function is, so that their own reads are seen. Objects made while capturing need none of this:
the host's getattr and setattr serve them.
"""

from __future__ import annotations

from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch

from ..ir.fake import Fake
from . import policy
from .frame import NULL
from .reads import CONTAINERS, FIXED, IDENTITIES, LEAVES, lookup, python_method
from .varying import VARYING, known
from .writes import Writes

HEAP_TYPE = 1 << 9  # tp_flags: a class made by a class statement
UNSAFE_TENSOR_ATTRIBUTES = frozenset({"grad", "_base", "_grad", "names", "grad_fn", "_version",
                                      "is_inference", "_backward_hooks", "_cdata"})


def fact(t: torch.Tensor, name: str) -> Any:
    """A property of a real tensor, or what a method gives, unseen by the recorder."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        value = getattr(t, name)
        return value() if callable(value) else value


def _order(cls: type) -> tuple[type, ...]:
    return cls.__mro__


class Attributes(Writes):
    """Attribute access."""

    lookups: dict[tuple[type, str], tuple[Any, type | None]]
    classes_changed: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.data_read: set[int] = set()        # ids of fakes whose `.data` was read
        self.ordinary: set[type] = set()        # classes whose instances' lookup is guarded

    def find(self, kind: type, name: str) -> tuple[Any, type | None]:
        """`lookup`, remembered for this capture."""
        key = (kind, name)
        found = self.lookups.get(key)
        if found is None:
            found = self.lookups[key] = (self.find_changed(kind, name) if self.classes_changed
                                         else lookup(kind, name))
        return found

    def find_changed(self, kind: type, name: str) -> tuple[Any, type | None]:
        for cls in kind.__mro__:
            if (id(cls), name) in self.slots:
                return self.slots[(id(cls), name)][1], cls
            if name in cls.__dict__:
                return cls.__dict__[name], cls
        return NULL, None

    def own_entry(self, owner: type, name: str) -> bool:
        """Whether a class entry was made while capturing."""
        return id(owner) in self.born or (id(owner), name) in self.slots

    def getattr(self, obj: Any, name: str) -> Any:  # type: ignore[override]
        source = self.origin.get(id(obj))
        if source is None:
            return self.getattr_unknown(obj, name)
        if issubclass(type(obj), ModuleType):
            return self.getattr_module(obj, name)
        if issubclass(type(obj), type):
            return self.getattr_class(obj, name)
        if issubclass(type(obj), IDENTITIES):
            value = getattr(obj, name)
            fixed = name in FIXED and (source.parent is not None or name == "__code__")
            return (value if fixed else self.read_constant(getattr(obj, "__module__", None),
                                                                   source.attr(name), value))
        if name == "__class__":
            return type(obj)
        own = python_method(type(obj), "__getattribute__")
        if own is not None:
            return self.call(self.current, own, [obj, name])
        self.looks_up(type(obj))
        return self.getattr_instance(obj, name, True)

    def looks_up(self, kind: type) -> None:
        """Guards that instances of `kind` find their attributes in no other way than now."""
        if kind in self.ordinary or id(kind) in self.born or policy.trusted(kind.__module__):
            return
        self.ordinary.add(kind)
        self.guard(self.const(kind).attr("__getattribute__"), "id", kind.__getattribute__)
        if self.find(kind, "__getattr__")[0] is NULL:
            self.absent_from_class(kind, "__getattr__")

    def getattr_unknown(self, obj: Any, name: str) -> Any:
        """An attribute of a leaf, a fake, an object made while capturing, or a constant of a trusted
        module."""
        if issubclass(type(obj), Fake):
            return self.getattr_tensor(obj, name)
        obj = known(obj)
        if issubclass(type(obj), ModuleType):
            return self.getattr_module(obj, name)
        if issubclass(type(obj), type):
            return self.getattr_class(obj, name)
        if issubclass(type(obj), FunctionType) and id(obj) not in self.born and name not in FIXED:
            return self.read_constant(obj.__module__, self.const(obj).attr(name), getattr(obj, name))
        if type(obj) is super:
            return self.getattr_super(obj, name)
        kind = type(obj)
        found, owner = self.find(kind, name)
        if kind.__flags__ & HEAP_TYPE and id(kind) not in self.born and not policy.trusted(kind.__module__):
            self.looks_up(kind)  # made by the call, of a class that was there before
            if owner is None:
                self.absent_from_class(kind, name)
            elif not policy.trusted(owner.__module__):
                self.read_class_entry(kind, owner, name, found)
        if type(found) is property and issubclass(type(found.fget), FunctionType):
            return self.call(self.current, found.fget, [obj])
        if found is NULL:
            method = python_method(type(obj), "__getattr__")
            if method is not None and name not in getattr(obj, "__dict__", ()):
                return self.call(self.current, method, [obj, name])
        return getattr(obj, name)

    def getattr_super(self, obj: Any, name: str) -> Any:
        """What super() finds: entries of the classes behind its own, in the order of the instance's class."""
        kind, behind = obj.__self_class__, False
        if id(kind) not in self.born and not policy.trusted(kind.__module__):
            self.guard(self.const(kind).call(_order), "id", kind.__mro__)
        for cls in kind.__mro__ if kind is not None else ():
            if behind and id(cls) not in self.born and not policy.trusted(cls.__module__):
                found, owner = self.find(cls, name)
                if owner is None:
                    self.absent_from_class(cls, name)
                else:
                    self.read_class_entry(cls, owner, name, found)
            if behind and name in cls.__dict__:
                break
            behind |= cls is obj.__thisclass__
        return getattr(obj, name)

    def getattr_tensor(self, fake: Fake, name: str) -> Any:
        i = self.input_of.get(id(fake))
        if name in ("grad_fn", "is_leaf", "storage_offset"):
            return self.getattr_history(fake, name, i)
        if name == "grad" and (id(fake), name) in self.slots:
            return self.slots[(id(fake), name)][1]
        if name == "grad" and i is not None and fact(self.inputs[i][1], "is_leaf"):
            source, t, _ = self.inputs[i]
            self.guard(source.attr("is_leaf"), "id", True)
            return self.read(source.attr("grad"), fact(t, "grad"))
        if name == "data":
            self.data_read.add(id(fake))
            return self.call(self.current, torch.Tensor.detach, [fake])
        if name in UNSAFE_TENSOR_ATTRIBUTES:
            raise self.refuse("tensor-attribute", f"Tensor.{name} is read")
        if name == "__class__":
            return self.type_of(fake)
        if name == "__deepcopy__" and isinstance(fake, torch.nn.Parameter):
            return MethodType(torch.nn.Parameter.__deepcopy__, fake)
        if name in ("meta", "known", "spec", "from_spec"):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        if i is not None and not hasattr(torch.Tensor, name) and name != "_is_param":
            source, t, _ = self.inputs[i]
            if name in t.__dict__:
                return self.read(source.dict_attr(name), t.__dict__[name])
            self.guard(source.dict_attr(name), "absent")
        return getattr(fake, name)

    def getattr_history(self, fake: Fake, name: str, i: int | None) -> Any:
        """What tensor guards leave open: an input may be a leaf or not, and a view of anything."""
        if name == "storage_offset":
            for source, t, _ in self.inputs:
                self.guard(source.call(torch.Tensor.storage_offset), "equals", fact(t, "storage_offset"))
            return getattr(fake, name)
        if i is not None and fake.requires_grad:
            source, t, _ = self.inputs[i]
            leaf = fact(t, "is_leaf")
            self.guard(source.attr("is_leaf"), "id", leaf)
            if name == "is_leaf" or leaf:
                return leaf if name == "is_leaf" else None
        elif name == "is_leaf" or torch.Tensor.grad_fn.__get__(fake) is None:
            return getattr(fake, name)
        raise self.refuse("history", f"Tensor.{name} is read")

    def getattr_module(self, module: ModuleType, name: str) -> Any:
        changes = self.changed.get(id(module.__dict__))
        if changes is not None and changes.get(name, NULL) is not NULL:
            return changes[name]
        if name in module.__dict__:
            source = self.const(module.__dict__).item(name)
            return self.read_constant(module.__name__, source, module.__dict__[name])
        trusted = policy.trusted(module.__name__)       # its __getattr__ may load a module
        value = self.unseen(getattr, module, name) if trusted else getattr(module, name)
        return self.read_constant(module.__name__, self.const(module).attr(name), value)

    def getattr_class(self, cls: type, name: str) -> Any:
        found, owner = self.find(cls, name)
        if self.classes_changed and (id(owner), name) in self.slots and not hasattr(type(found), "__get__"):
            return found
        meta, meta_owner = self.find(type(cls), name)
        if owner is None and meta_owner is None and name not in FIXED:
            self.absent_from_class(cls, name)
        if issubclass(type(meta), property) or name in FIXED or owner is None and meta_owner is None:
            return getattr(cls, name)
        if owner is None:
            if issubclass(type(meta), FunctionType):
                return MethodType(meta, cls)
            self.absent_from_class(cls, name)
            value = getattr(cls, name)
            if type(value) in LEAVES and not policy.trusted(cls.__module__):
                return self.read(self.const(cls).attr(name), value)
            return value
        if type(found) is classmethod:
            self.read_class_entry(cls, owner, name, found)
            inner = found.__func__
            return MethodType(inner, cls) if issubclass(type(inner), FunctionType) else getattr(cls, name)
        if type(found) is staticmethod:
            return self.read_class_entry(cls, owner, name, found).__func__
        value = found if issubclass(type(found), FunctionType) else getattr(cls, name)
        if self.own_entry(owner, name):
            return value
        return self.read_constant(owner.__module__,
                                  self.const(owner if id(cls) in self.born else cls).attr(name), value)

    def read_class_entry(self, cls: type, owner: type, name: str, entry: Any) -> Any:
        """An entry of a class's own dict (a function, property, class or static method, or plain value),
        guarded."""
        if self.own_entry(owner, name):
            return entry
        if issubclass(type(entry), FunctionType | property):
            return self.read_constant(owner.__module__,
                                      self.const(owner if id(cls) in self.born else cls).attr(name), entry)
        seen = owner if id(cls) in self.born else cls  # a subclass may come to hide the owner's entry
        return self.read_constant(owner.__module__, self.const(seen).type_attr(name), entry)

    def getattr_instance(self, obj: Any, name: str, fallback: bool) -> Any:
        """What object.__getattribute__ does, then `__getattr__` if `fallback`."""
        kind = type(obj)
        found, owner = self.find(kind, name)
        if owner is not None and hasattr(type(found), "__set__"):
            return self.get_data_descriptor(obj, kind, name, found, owner)
        own = self.instance_dict(obj)
        if own is not None:
            value = self.dict_get(own, name)
            if value is not NULL:  # a property of this name would go before it
                if owner is None:
                    self.absent_from_class(kind, name)
                else:
                    self.read_class_entry(kind, owner, name, found)
                return value
        if owner is not None:
            return self.get_from_class(obj, kind, name, found, owner)
        self.absent_from_class(kind, name)
        method, _ = self.find(kind, "__getattr__")
        if fallback and issubclass(type(method), FunctionType):
            return self.call(self.current, method, [obj, name])
        if method is not NULL and fallback:
            return getattr(obj, name)
        raise AttributeError(f"{kind.__name__!r} object has no attribute {name!r}", name=name, obj=obj)

    def absent_from_class(self, cls: type, name: str) -> None:
        if not policy.trusted(cls.__module__) and id(cls) not in self.born:
            self.guard(self.const(cls).attr(name), "absent")

    def get_data_descriptor(self, obj: Any, kind: type, name: str, found: Any, owner: type) -> Any:
        if name == "__dict__":
            return self.instance_dict(obj)
        if issubclass(type(found), property):
            self.read_class_entry(kind, owner, name, found)
            if issubclass(type(found.fget), FunctionType):
                return self.call(self.current, found.fget, [obj])
            return found.__get__(obj, kind)
        if issubclass(type(found), MemberDescriptorType | GetSetDescriptorType):
            slot = self.slots.get((id(obj), name))
            if slot is not None:
                if slot[1] is NULL:
                    raise AttributeError(name)
                return slot[1]
            source = self.origin[id(obj)].attr(name)
            try:
                return self.read(source, found.__get__(obj, kind))
            except AttributeError:
                self.guard(source, "absent")
                raise
        get = python_method(type(found), "__get__")
        if get is None:
            raise self.refuse("descriptor", f"{kind.__name__}.{name} is a {type(found).__name__}")
        self.read_class_entry(kind, owner, name, found)
        return self.call(self.current, get, [found, obj, kind])

    def get_from_class(self, obj: Any, kind: type, name: str, found: Any, owner: type) -> Any:
        if issubclass(type(found), FunctionType):
            self.read_class_entry(kind, owner, name, found)
            return MethodType(found, obj)
        if type(found) is classmethod and issubclass(type(found.__func__), FunctionType):
            self.read_class_entry(kind, owner, name, found)
            return MethodType(found.__func__, kind)
        if type(found) is staticmethod:
            return self.read_class_entry(kind, owner, name, found).__func__
        get = python_method(type(found), "__get__")
        if get is not None:
            self.read_class_entry(kind, owner, name, found)
            return self.call(self.current, get, [found, obj, kind])
        if hasattr(type(found), "__get__"):
            return found.__get__(obj, kind)  # a C method of a builtin base
        return self.read_class_entry(kind, owner, name, found)

    # Writing

    def setattr(self, obj: Any, name: str, value: Any) -> None:  # type: ignore[override]
        if issubclass(type(obj), Fake):
            return self.setattr_tensor(obj, name, value)
        kind = type(obj)
        method, _ = self.find(kind, "__setattr__")
        if kind.__flags__ & HEAP_TYPE and id(kind) not in self.born and not policy.trusted(kind.__module__):
            self.guard(self.const(kind).attr("__setattr__"), "id", kind.__setattr__)
            if self.find(kind, name)[1] is None:  # a property of this name would be set
                self.absent_from_class(kind, name)
        if issubclass(type(method), FunctionType):
            self.call(self.current, method, [obj, name, value])
        elif id(obj) in self.origin or issubclass(type(obj), type | ModuleType):
            self.setattr_instance(obj, name, value)
        else:
            setattr(obj, name, value)

    def delattr(self, obj: Any, name: str) -> None:  # type: ignore[override]
        method, _ = self.find(type(obj), "__delattr__")
        if issubclass(type(method), FunctionType):
            self.call(self.current, method, [obj, name])
        elif id(obj) in self.origin or issubclass(type(obj), type | ModuleType):
            self.setattr_instance(obj, name, NULL)
        else:
            delattr(obj, name)

    def setattr_tensor(self, fake: Fake, name: str, value: Any) -> None:
        if name == "grad" and id(fake) in self.input_of:
            with torch._C.DisableTorchFunction():
                fake.grad = value                       # torch's own checks of what a gradient may be
            self.slots[(id(fake), name)] = (fake, value)
            return
        raise self.refuse("tensor-attribute", f"Tensor.{name} is set")

    def setattr_instance(self, obj: Any, name: str, value: Any) -> None:
        """What object.__setattr__ (object.__delattr__ for NULL) does, on an object of the world: nothing
        real changes yet."""
        if issubclass(type(obj), ModuleType):
            if policy.trusted(obj.__name__):
                raise self.refuse("module-write", f"{obj.__name__}.{name} is set")
            self.dicts.setdefault(id(obj.__dict__), (obj.__dict__, None))
            return self.dict_set(obj.__dict__, name, value)
        if issubclass(type(obj), type):
            if id(obj) in self.born:
                return type.__delattr__(obj, name) if value is NULL else type.__setattr__(obj, name, value)
            if not obj.__flags__ & HEAP_TYPE or value is NULL:
                raise self.refuse("class-write", f"{obj.__name__}.{name} is set")
            self.keep.append(obj)
            self.slots[(id(obj), name)] = (obj, value)
            self.classes_changed = True
            self.lookups.clear()
            return None
        kind = type(obj)
        if id(obj) not in self.origin:
            return object.__delattr__(obj, name) if value is NULL else object.__setattr__(obj, name, value)
        found, _ = self.find(kind, name)
        if issubclass(type(found), property):
            accessor = found.fdel if value is NULL else found.fset
            missing = "deleter" if value is NULL else "setter"
            if accessor is None:
                raise AttributeError(f"property {name!r} of {kind.__name__!r} object has no {missing}")
            self.call(self.current, accessor, [obj] if value is NULL else [obj, value])
            return None
        if issubclass(type(found), MemberDescriptorType):
            self.slots[(id(obj), name)] = (obj, value)
            return None
        if found is not NULL and hasattr(type(found), "__set__"):
            return self.set_by_descriptor(obj, name, found, value)
        own = self.instance_dict(obj)
        if own is None:
            raise AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")
        if value is NULL and not self.dict_has(own, name):
            raise AttributeError(name)
        return self.dict_set(own, name, value)

    def set_by_descriptor(self, obj: Any, name: str, found: Any, value: Any) -> None:
        method = python_method(type(found), "__delete__" if value is NULL else "__set__")
        if method is None:
            raise self.refuse("descriptor", f"{type(obj).__name__}.{name} is a {type(found).__name__}")
        self.call(self.current, method, [found, obj] if value is NULL else [found, obj, value])

    def type_of(self, value: Any) -> type:
        """type(value) as the program would see it."""
        if not issubclass(type(value), Fake):
            return value.__class__ if type(value) in VARYING else type(value)
        i = self.input_of.get(id(value))
        if i is not None:
            return type(self.inputs[i][1])
        return torch.nn.Parameter if isinstance(value, torch.nn.Parameter) else torch.Tensor


__all__ = ["CONTAINERS", "Attributes", "policy"]
