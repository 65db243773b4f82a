"""Speculation: what Python learns from a tensor's data is taken as a constant, and checked at run time.

Takes a torch call that fakes refuse as "data-dependent"; gives the Python value it has for this call's real
inputs (see `reality`) and notes a `DataGuard`, which the program checks before it commits anything. A call
whose result's shape depends on data becomes torch calls of known shapes, given its size as such a value.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FunctionType, NoneType
from typing import Any

import torch

from ..errors import Refusal, Where
from ..ir.fake import Fake
from .guards import same_value
from .reads import LEAVES
from .reality import Reality, storages_of

Site = tuple[str, int]                  # a line of the user's program


@dataclass(frozen=True, slots=True)
class DataGuard:
    """`function(*args, **kwargs)` gave `expected`; the fakes among the arguments are results of the graph,
    copied where the program looked."""

    function: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    expected: Any
    where: Where | None

    @property
    def fakes(self) -> list[Fake]:
        return [a for a in (*self.args, *self.kwargs.values()) if issubclass(type(a), Fake)]

    @property
    def site(self) -> Site:
        return site_of(self.where)

    def require(self, index: int, tensors: Iterator[torch.Tensor]) -> None:
        """Checks the guard for the next of `tensors`. Raises Missed."""
        def given(a: Any) -> Any:
            return next(tensors) if issubclass(type(a), Fake) else a

        args, kwargs = [given(a) for a in self.args], {k: given(v) for k, v in self.kwargs.items()}
        require(index, self.function(*args, **kwargs), self.expected)

    def __str__(self) -> str:
        name = _SPELLED.get(name := self.function.__name__, name)
        return f"the data's {name}() == {self.expected!r}" + (f"  # {self.where}" if self.where else "")


_SPELLED = {"__bool__": "bool", "__int__": "int", "__float__": "float"}


class Missed(Exception):
    """A data guard of a running program does not hold; nothing has been committed."""

    def __init__(self, index: int, found: Any):
        super().__init__()
        self.index, self.found = index, found


def require(index: int, found: Any, expected: Any) -> None:
    """What programs check their data guards with. Raises Missed."""
    if found is not expected and not same(found, expected):
        raise Missed(index, found)


def same(a: Any, b: Any) -> bool:
    """`same_value`, through lists too."""
    if type(a) is list:
        return type(b) is list and len(a) == len(b) and all(map(same, a, b))
    return same_value(a, b)


def plain(value: Any) -> bool:
    """Whether a value is made of numbers and strings, in lists and tuples."""
    if type(value) in (list, tuple):
        return all(map(plain, value))
    return type(value) in LEAVES


def site_of(where: Where | None) -> Site:
    return (where.file, where.line) if where is not None else ("", 0)


@dataclass(slots=True)
class Speculation:
    """The speculations of one capture. At the sites in `volatile` values have changed too often: those
    refuse."""

    recorder: Any
    reality: Reality
    volatile: frozenset[Site] = frozenset()
    guards: list[DataGuard] = field(default_factory=list)
    opening: list[Any] = field(default_factory=list)

    def call(self, func: Any, args: tuple, kwargs: dict[str, Any], refusal: Refusal) -> Any:
        """The result of a torch call that fakes refused. Raises `refusal` where it cannot be had."""
        inside = torch._C._functorch.get_dynamic_layer_stack_depth()     # a transform of torch.func
        if site_of(refusal.where) in self.volatile or func in self.opening or inside:
            raise refusal
        if func in BY_VALUE:
            return self.value(func, args, kwargs, refusal)
        rewritten = STATIC.get(func)
        if rewritten is None and type(func) is FunctionType:
            rewritten = opened(func)
        if rewritten is None:
            return self.with_numbers(func, args, kwargs, refusal)
        self.opening.append(func)
        try:
            with self.recorder:
                out = rewritten(*args, **kwargs)
        finally:
            self.opening.pop()
        if out is NotImplemented:
            raise refusal
        return out

    def confirm(self, func: Any, args: tuple, kwargs: dict[str, Any], error: Exception,
                where: Where | None) -> Exception:
        """What to raise for a call that raises `error` on fakes: what it raises for the call's real inputs;
        a Refusal where that is another error or none."""
        if not torch._C._functorch.get_dynamic_layer_stack_depth():
            try:
                self.really(func, args, kwargs)
            except Refusal:
                raise
            except Exception as real:
                if type(real) is type(error):
                    return real
        return Refusal("no-meta", f"{getattr(func, '__name__', func)}() on fakes raises {error!r}", where)

    def really(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The call on the real tensors behind its fakes. Raises what it raises, or Refusal."""
        arg = self.recorder.arg
        return self.reality.call(func, tuple(map(arg, args)), {k: arg(v) for k, v in kwargs.items()})

    def with_numbers(self, func: Any, args: tuple, kwargs: dict[str, Any], refusal: Refusal) -> Any:
        """The call with numbers in the place of tensors that it takes for numbers."""
        own = 1 if issubclass(torch.Tensor, getattr(func, "__objclass__", NoneType)) else 0

        with self.recorder:
            given = (*args[:own], *map(number, args[own:])), {k: number(v) for k, v in kwargs.items()}
            before, after = (*args, *kwargs.values()), (*given[0], *given[1].values())
            if all(a is b for a, b in zip(before, after)):
                raise refusal
            self.opening.append(func)
            try:
                return func(*given[0], **given[1])
            finally:
                self.opening.pop()

    def value(self, func: Any, args: tuple, kwargs: dict[str, Any], refusal: Refusal) -> Any:
        """The Python value of a call, noted as a guard."""
        given = (*args, *kwargs.values())
        if not all(issubclass(type(a), Fake) or type(a) in LEAVES for a in given):
            raise refusal
        try:
            found = self.really(func, args, kwargs)
        except Refusal:
            raise
        except Exception as error:
            raise Refusal(refusal.code, f"{refusal.reason}, and computing them raises {error!r}",
                          refusal.where) from error
        if storages_of(found) or not plain(found):
            raise refusal
        if not any(self.reality.varies(self.recorder.arg(a)) for a in given if issubclass(type(a), Fake)):
            return found
        with self.recorder:
            kept = [a.detach().clone() if issubclass(type(a), Fake) else a for a in given]
        self.guards.append(DataGuard(
            func, tuple(kept[:len(args)]), dict(zip(kwargs, kept[len(args):])), copy.deepcopy(found),
            refusal.where))  # a list is the program's to change
        return found


def number(x: Any) -> Any:
    """`x`, a number in the place of each tensor without dimensions."""
    if type(x) in (tuple, list):
        return type(x)(map(number, x))
    if type(x) is slice:
        return slice(number(x.start), number(x.stop), number(x.step))
    return x.item() if issubclass(type(x), torch.Tensor) and not x.dim() else x


def opened(func: FunctionType) -> Callable[..., Any]:
    """A function of torch written in Python, made so that the torch calls inside are seen one by one."""
    names = {n: _no_override for n in func.__globals__ if n.startswith("has_torch_function")}
    copy = FunctionType(
        func.__code__, {**func.__globals__, **names}, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _no_override(*args: Any) -> bool:
    return False


# Calls whose result's shape depends on data, as calls of known shapes, once the counts are known. Each
# gives NotImplemented for what it does not cover.


def nonzero(x: torch.Tensor, *, as_tuple: bool = False) -> Any:
    found = torch.nonzero_static(x, size=torch.count_nonzero(x).item(), fill_value=0)
    if not x.dim():
        return NotImplemented if as_tuple else found
    columns = torch.stack(found.unbind(1))      # one dimension after the other in memory, as in eager mode
    if as_tuple:                                # columns without elements all begin where the memory does
        return columns.unbind(0) if columns.numel() else tuple(columns.select(0, 0) for _ in columns)
    return columns.t()


def where(condition: torch.Tensor, *rest: Any) -> Any:
    return NotImplemented if rest else nonzero(condition, as_tuple=True)


def getitem(x: torch.Tensor, index: Any) -> Any:
    parts: list[Any] = []
    dim = 0
    for i, part in enumerate(index := index if type(index) is tuple else (index,)):
        if part is Ellipsis:
            dim = x.dim() - sum(map(_consumed, index[i + 1:]))
        is_tensor = issubclass(type(part), torch.Tensor)
        is_mask = is_tensor and part.dtype in (torch.bool, torch.uint8)
        if not is_mask:
            part = number(part)         # so does eager mode, which then gives a view
        if is_mask:
            shape = x.shape[dim:dim + part.dim()]
            if part.dtype is torch.uint8 or not part.dim() or part.shape != shape:
                return NotImplemented
        parts += nonzero(part, as_tuple=True) if is_mask else (part,)
        dim += _consumed(part)
    return x[tuple(parts)]


def _consumed(part: Any) -> int:
    """How many dimensions an index uses up; an Ellipsis counts for none here."""
    if part is None or part is Ellipsis or type(part) is bool:
        return 0
    is_mask = issubclass(type(part), torch.Tensor) and part.dtype is torch.bool
    return part.dim() if is_mask else 1


def masked_select(x: torch.Tensor, mask: torch.Tensor) -> Any:
    x, mask = torch.broadcast_tensors(x, mask)
    return x[mask] if x.dim() else NotImplemented


def repeat_interleave(x: torch.Tensor, repeats: Any = None, dim: int | None = None, *,
                      output_size: int | None = None) -> Any:
    counts = x if repeats is None else repeats
    if counts.dim() != 1 or not counts.numel() or bool((counts < 0).any()):
        return NotImplemented
    if repeats is not None:
        x, dim = (x.flatten(), 0) if dim is None else (x, dim)
        if counts.numel() != x.shape[dim]:
            if counts.numel() != 1:
                return NotImplemented
            counts = counts.expand(x.shape[dim])
    ends = counts.cumsum(0)
    places = torch.arange(ends[-1].item(), device=ends.device)
    which = torch.searchsorted(ends, places, right=True).clamp(max=counts.numel() - 1)
    return which.to(counts.dtype) if repeats is None else x.index_select(dim, which)


def unique(x: torch.Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False,
           dim: int | None = None) -> Any:
    if dim is not None or not sorted or not x.numel():
        return NotImplemented
    values, order = x.flatten().sort()
    values, runs, counts = _runs(values)
    inverse = torch.zeros_like(order).scatter(0, order, runs).view(x.shape)
    return _chosen(values, inverse, counts, return_inverse, return_counts)


def unique_consecutive(x: torch.Tensor, return_inverse: bool = False, return_counts: bool = False,
                       dim: int | None = None) -> Any:
    if dim is not None or not x.numel():
        return NotImplemented
    values, runs, counts = _runs(x.flatten())
    return _chosen(values, runs.view(x.shape), counts, return_inverse, return_counts)


def _runs(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The values of the runs of equal elements, each element's run, and the runs' lengths."""
    first = torch.cat([torch.ones_like(flat[:1], dtype=torch.bool), flat[1:] != flat[:-1]])
    starts = nonzero(first)[:, 0]
    ends = torch.cat([starts[1:], torch.full_like(starts[:1], flat.numel())])
    return flat[starts], first.cumsum(0) - 1, ends - starts


def _chosen(values: Any, inverse: Any, counts: Any, wants_inverse: bool, wants_counts: bool) -> Any:
    if not wants_inverse and not wants_counts:
        return values
    return (values, *((inverse,) if wants_inverse else ()), *((counts,) if wants_counts else ()))


def one_hot(x: torch.Tensor, num_classes: int = -1) -> Any:
    """Torch's own rule for fakes compares, and does not see a class that there is not; a scatter does."""
    if x.dtype is not torch.int64 or not x.numel():
        return NotImplemented
    n = num_classes if num_classes > 0 else x.max().item() + 1
    return x.new_zeros(*x.shape, n).scatter(-1, x.unsqueeze(-1), 1)


def ctc_loss(log_probs: torch.Tensor, targets: torch.Tensor, lengths: Any, target_lengths: Any,
             blank: int = 0, reduction: str = "mean", zero_infinity: bool = False) -> Any:
    lengths, counts = (n.tolist() if issubclass(type(n), torch.Tensor) else n
                       for n in (lengths, target_lengths))
    loss = torch.nn.functional.ctc_loss(log_probs, targets, lengths, counts, blank, "none", zero_infinity)
    if reduction == "mean":
        return (loss / torch.tensor(counts, dtype=loss.dtype, device=loss.device).clamp_min(1)).mean()
    return loss.sum() if reduction == "sum" else loss


def tensor(data: list, *, dtype: Any = None, device: Any = None) -> torch.Tensor:
    """The elements side by side: no data is looked at."""
    parts = [
        x.detach() if issubclass(type(x), torch.Tensor) else tensor(x) if type(x) is list else torch.tensor(x)
        for x in data]
    return torch.stack(parts).to(device=device, dtype=dtype)


T = torch.Tensor
BY_VALUE = frozenset({T.item, T.tolist, T.__bool__, T.__int__, T.__float__, T.__complex__, T.__index__,
                      T.__format__, T.is_nonzero, torch.is_nonzero, T.equal, torch.equal, T.allclose,
                      torch.allclose})
STATIC: dict[Any, Callable[..., Any]] = {
    torch.nonzero: nonzero, T.nonzero: nonzero, torch.where: where,
    torch.argwhere: nonzero, T.argwhere: nonzero,
    T.__getitem__: getitem,
    torch.masked_select: masked_select, T.masked_select: masked_select,
    torch.repeat_interleave: repeat_interleave, T.repeat_interleave: repeat_interleave,
    torch.unique: unique, T.unique: unique,
    torch.unique_consecutive: unique_consecutive, T.unique_consecutive: unique_consecutive,
    torch.nn.functional.one_hot: one_hot, torch.nn.functional.ctc_loss: ctc_loss,
    torch.tensor: tensor, torch.as_tensor: tensor}
