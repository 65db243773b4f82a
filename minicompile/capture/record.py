"""Record: torch calls made while capturing become nodes of a torch.fx graph.

Takes each call as torch's function mode offers it (public torch functions and Tensor methods, before any of
their own Python runs), computes its result on fakes and appends a node. Gives the graph and the user's
place of each node. No operator is known here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import FunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..errors import Refusal, Where
from ..ir.composites import of_sizes
from ..ir.fake import Fake
from ..ir.scalar import Specialise, ask, numbers_in
from ..ir.sym import NeedsSizes
from . import varying
from .varying import VARYING

# Tensor's operators, so that the graph reads as the user wrote it.
_OPERATORS: dict[str, Callable[..., Any]] = {f"__{n}__": getattr(operator, n) for n in """
    add sub mul truediv floordiv mod pow matmul neg invert eq ne lt le gt ge getitem setitem lshift rshift xor
    iadd isub imul itruediv ifloordiv iand ior ixor""".split()}
_OPERATORS |= {"__and__": operator.and_, "__or__": operator.or_}
# Methods of Tensor that are written in Python, or wrapped so.
_TENSOR_FUNCTIONS: dict[Any, str] = {f: n for n, f in vars(torch.Tensor).items()
                                     if isinstance(f, FunctionType)}

_NEEDS_DATA = frozenset({torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__,
                         torch.Tensor.__repr__, torch.Tensor.__format__, torch.Tensor.data_ptr,
                         torch.nn.functional.one_hot})
_QUANTIZE = frozenset({torch.quantize_per_tensor, torch.quantize_per_channel,
                       torch.quantize_per_tensor_dynamic})
_HISTORY = frozenset({torch.Tensor.requires_grad_, torch.Tensor.detach_, torch.detach_,
                      torch.Tensor.retain_grad})
_READ_ELEMENTS = frozenset({torch.tensor, torch.as_tensor})  # of lists, without a call for each
_NOT_SPECULATED = _NEEDS_DATA - {torch.Tensor.tolist, torch.Tensor.__format__, torch.nn.functional.one_hot}


def holds_tensor(x: Any) -> bool:
    """Whether a call's result has a tensor in it."""
    if issubclass(type(x), torch.Tensor):
        return True
    return issubclass(type(x), (tuple, list)) and any(map(holds_tensor, x))


class Recorder(TorchFunctionMode):
    """The function mode. `where` gives the user's current place."""

    def __init__(self, where: Callable[[], Where | None]) -> None:
        super().__init__()
        self.graph = torch.fx.Graph()
        self.nodes: dict[int, torch.fx.Node] = {}  # id of a fake -> its node
        self.reals: dict[torch.fx.Node, Any] = {}  # the inputs' tensors and numbers
        self.speculate: Callable[..., Any] = _refuse_speculation
        self.confirm: Callable[..., BaseException] = lambda f, args, kwargs, error, where: error
        self.last_input: torch.fx.Node | None = None
        self.keep: list[Any] = []
        self.places: dict[torch.fx.Node, Where] = {}
        self.where = where
        self.number: Callable[[Any], Any] = varying.known
        self.needed: Callable[[], None] = lambda: None      # raises what C code made an error of its own of
        self.seen: Callable[[Any], Any] = lambda x: x       # what the program gets that is no tensor

    def add_number(self, name: str, value: int | float) -> torch.fx.Node:
        """A placeholder for a number, put behind all others."""
        first = next((n for n in self.graph.nodes if n.op != "placeholder"), self.graph._root)
        with self.graph.inserting_before(first):
            node = self.graph.placeholder(name)
        self.reals[node] = value
        return node

    def add_input(self, name: str, fake: Fake, real: torch.Tensor) -> torch.fx.Node:
        """A placeholder, put behind the other tensors' placeholders."""
        last = self.last_input
        with (self.graph.inserting_after(last) if last is not None
              else self.graph.inserting_before(next(iter(self.graph.nodes), None))):
            node = self.graph.placeholder(name)
        self.nodes[id(fake)] = self.last_input = node
        self.reals[node] = real
        self.keep.append(fake)
        return node

    def __torch_function__(self, func: Any, types: Any, args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _HISTORY and self.changes_history(func, *args, **kwargs):
            raise Refusal("tensor-attribute", f"{func.__name__}() is about an input's history", self.where())
        if func in _QUANTIZE:
            raise Refusal("tensor-layout", f"{func.__name__}() gives no strided tensor", self.where())
        if func in _NEEDS_DATA or func in _READ_ELEMENTS and type(args[0]) is list and holds_tensor(args[0]):
            refusal = Refusal("data-dependent", f"{func.__name__}() needs the values of a tensor",
                              self.where())
            if func in _NOT_SPECULATED:
                raise refusal
            return self.speculate(func, args, kwargs, refusal)
        try:
            out = of_sizes(func, args, kwargs)(*args, **kwargs)
        except Specialise as needed:          # torch itself would compute with a scalar
            if not any(numbers_in((*args, *kwargs.values()))):
                raise Refusal("varying", needed.reason, self.where()) from needed
            return self.__torch_function__(func, types, ask(args), {k: ask(v) for k, v in kwargs.items()})
        except NeedsSizes as needed:
            needed.where = needed.where or self.where()
            raise
        except Refusal as error:
            refusal = Refusal(error.code, error.reason, error.where or self.where())
            if error.code == "data-dependent":
                return self.speculate(func, args, kwargs, refusal)
            raise refusal from error
        except Exception as error:
            self.needed()
            if "its data is not allocated" in str(error):       # C++ reads it
                refusal = Refusal("data-dependent", f"{func.__name__}() reads memory", self.where())
                return self.speculate(func, args, kwargs, refusal)
            raise self.confirm(func, args, kwargs, error, self.where()) from None
        if out is None and (args or kwargs) or holds_tensor(out):
            self.append(func, args, kwargs, out)
            return out
        return self.seen(out)

    def changes_history(self, func: Any, t: Any, requires_grad: bool = True) -> bool:
        """Whether a call of `_HISTORY` changes what autograd knows of an input, which no graph does to it."""
        node = self.nodes.get(id(t))
        if node is None or node.op != "placeholder":
            return False
        if func is torch.Tensor.retain_grad:
            return t.requires_grad and not self.reals[node].is_leaf
        return t.requires_grad != (requires_grad and func is torch.Tensor.requires_grad_)

    def append(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        kind, target = target_of(func)
        if kind == "getattr":
            kind, target, args = "call_function", getattr, (args[0], target)
        node = self.graph.create_node(
            kind, target, tuple(self.arg(a) for a in args), {k: self.arg(v) for k, v in kwargs.items()}
        )
        where = self.where()
        if where is not None:
            self.places[node] = where
        self.name_results(node, out)

    def name_results(self, node: torch.fx.Node, out: Any) -> None:
        if issubclass(type(out), torch.Tensor):
            if id(out) not in self.nodes:  # an in-place call gives a tensor that has its node already
                self.nodes[id(out)] = node
                self.keep.append(out)
        elif issubclass(type(out), (tuple, list)):
            for i, x in enumerate(out):
                if holds_tensor(x) and id(x) not in self.nodes:
                    part = self.graph.call_function(operator.getitem, (node, i))
                    self.places[part] = self.places.get(node)  # type: ignore[assignment]
                    self.name_results(part, x)

    def arg(self, x: Any) -> Any:
        """A call's argument as the graph has it: nodes for fakes, through nested containers."""
        if issubclass(type(x), torch.Tensor):
            node = self.nodes.get(id(x))
            if node is None:
                raise Refusal(
                    "untracked-tensor", "a tensor that capture has not seen being read is used",
                    self.where())
            return node
        kind = type(x)
        if kind in VARYING:
            return self.number(x)
        if kind is tuple or kind is list:
            return kind([self.arg(e) for e in x])
        if kind is dict:
            return {k: self.arg(v) for k, v in x.items()}
        if kind is slice:
            return slice(self.arg(x.start), self.arg(x.stop), self.arg(x.step))
        if kind is torch.Generator:
            raise Refusal("impure-call", "a generator of the program's own draws", self.where())
        if kind.__module__ == "numpy" and hasattr(x, "item"):
            if getattr(x, "ndim", 0):
                raise Refusal("numpy", "a numpy array meets a tensor", self.where())
            return x.item()
        if issubclass(type(x), tuple):
            return tuple(self.arg(e) for e in x)
        if kind is not bool:
            for plain, exact in ((int, int.__int__), (float, float.__float__), (str, str.__str__)):
                if issubclass(kind, plain):
                    return exact(x)  # of a member of an enum, say
        return x


def _refuse_speculation(func: Any, args: tuple, kwargs: dict[str, Any], refusal: Refusal) -> Any:
    raise refusal


def target_of(func: Any) -> tuple[str, Any]:
    """The kind and target of the node for a torch function, Tensor method or property getter."""
    name = getattr(func, "__name__", "")
    if issubclass(type(func), MethodWrapperType) and name == "__get__":
        return "getattr", func.__self__.__name__
    owner = getattr(func, "__objclass__", None)
    if issubclass(type(func), FunctionType):
        name = _TENSOR_FUNCTIONS.get(func, "")
    elif (
        not issubclass(type(func), (MethodDescriptorType, WrapperDescriptorType))
        or not owner
        or not issubclass(torch.Tensor, owner)
    ):
        name = ""
    if name in _OPERATORS:
        return "call_function", _OPERATORS[name]
    if name:
        return "call_method", name
    return "call_function", func
