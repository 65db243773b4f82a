"""TensorSpec: what a compiler knows about a tensor without its data.

Takes nothing from other stages; every border object is made of specs.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .sym import Size, Sym, asking, evaluate, hint, same


def contiguous_stride(shape: Sequence[int], order: Sequence[int] | None = None) -> tuple[int, ...]:
    """Row-major strides in elements, as `torch.empty(shape)` has them (a size of 0 counts as 1); or those of
    a dense tensor whose dimensions lie in `order`, outermost first."""
    stride, step = [0] * len(shape), 1
    for d in reversed(range(len(shape)) if order is None else order):
        stride[d] = step
        step *= max(shape[d], 1)
    return tuple(stride)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """dtype, shape, stride (in elements), storage offset (in elements) and device of one tensor.

    number   it is a Python number, held by a tensor without dimensions; promoted as one
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    device: str = "cpu"
    offset: int = 0
    number: bool = False

    @classmethod
    def contiguous(cls, dtype: torch.dtype, shape: Sequence[int], device: str = "cpu") -> TensorSpec:
        return cls(dtype, tuple(shape), contiguous_stride(shape), device)

    @classmethod
    def of(cls, t: torch.Tensor) -> TensorSpec:
        return cls(t.dtype, tuple(t.shape), tuple(t.stride()), str(t.device), int(t.storage_offset()))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def storage_numel(self) -> int:
        """Elements that must exist from the offset on, for this shape and stride to be in bounds."""
        if self._dense_by_form or self.numel == 0:
            return self.numel
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride))

    @property
    def flat(self) -> TensorSpec:
        """The memory from the storage's beginning to the last element, in one dimension."""
        return TensorSpec.contiguous(self.dtype, (self.offset + self.storage_numel,), self.device)

    @property
    def is_contiguous(self) -> bool:
        row_major = list(zip(self.shape, self.stride, contiguous_stride(self.shape)))
        return all(same(n, 1) or same(s, c) for n, s, c in row_major) or self.numel == 0 or all(
            n == 1 or s == c for n, s, c in row_major)

    @property
    def is_channels_last(self) -> bool:
        """An image's channels lie side by side, its pixels in rows after each other."""
        order = (0, *range(2, self.ndim), 1)
        return self.ndim > 2 and self.with_(shape=tuple(self.shape[d] for d in order),
                                            stride=tuple(self.stride[d] for d in order)).is_contiguous

    @property
    def may_overlap(self) -> bool:
        """False if each dimension's stride is beyond what the faster ones reach."""
        if self._dense_by_form:
            return False
        reach = 0
        dims = [(s, n) for n, s in zip(self.shape, self.stride) if n != 1]
        for s, n in sorted(dims, key=lambda dim: dim[0]):
            if s <= reach:
                return self.numel > 0
            reach += s * (n - 1)
        return False

    @property
    def is_dense(self) -> bool:
        """No two elements share memory and there are no holes: a permutation of a contiguous tensor."""
        dims = zip(self.stride, self.shape)
        return self._dense_by_form or self._permuted([(s, n) for s, n in dims if n != 1], lambda a, b: a == b)

    @property
    def _dense_by_form(self) -> bool:
        """The same without asking anything of sizes."""
        return self._permuted([(s, n) for n, s in zip(self.shape, self.stride) if not same(n, 1)], same)

    def _permuted(self, dims: list[tuple[Any, Any]], equal: Callable[[Any, Any], bool]) -> bool:
        """Whether (stride, size) pairs, in some order, are those of a contiguous tensor."""
        expect: Any = 1
        while dims:
            at = next((i for i, (s, _) in enumerate(dims) if same(s, expect)), None)
            if at is None:
                at = next((i for i, (s, _) in enumerate(dims) if equal(s, expect)), None)
            if at is None:
                return False
            expect *= dims.pop(at)[1]
        return True

    @property
    def varies(self) -> bool:
        """Whether the geometry depends on sizes that vary."""
        return any(isinstance(n, Sym) for n in (*self.shape, *self.stride, self.offset))

    def mapped(self, f: Callable[[Any], Any]) -> TensorSpec:
        """The spec with f of each number of its geometry."""
        return replace(self, shape=tuple(map(f, self.shape)), stride=tuple(map(f, self.stride)),
                       offset=f(self.offset)) if self.varies else self

    @property
    def at_hints(self) -> TensorSpec:
        """The spec in the call that is being compiled."""
        return self.mapped(hint)

    def with_(self, **changes: object) -> TensorSpec:
        return replace(self, **changes)  # type: ignore[arg-type]

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        text = f"{name}[{', '.join(map(str, self.shape))}]" + " number" * self.number
        with asking():          # of sizes that vary, as it is in this call
            contiguous = self.is_contiguous
        if not contiguous:
            text += f" stride({', '.join(map(str, self.stride))})"
        if self.offset:
            text += f" offset({self.offset})"
        return text


def copies(inputs: Sequence[Any]) -> list[Any]:
    """Copies of the tensors among `inputs` that share storage, and have the geometry and requires_grad,
    exactly as the originals do; anything else as it is."""
    storages: dict[int, torch.UntypedStorage] = {}
    copied = []
    for t in inputs:
        if isinstance(t, torch.Tensor):
            storage = t.untyped_storage()
            if storage._cdata not in storages:
                storages[storage._cdata] = storage.clone()
            twin = torch.empty(0, dtype=t.dtype, device=t.device).set_(
                storages[storage._cdata], t.storage_offset(), t.shape, t.stride())
            t = twin.requires_grad_(t.requires_grad)
        copied.append(t)
    return copied


def bind(specs: Sequence[Any], tensors: Sequence[Any]) -> dict[str, int]:
    """The values of the sizes that are dimensions of these specs, for tensors that fit them; a spec that is a
    size itself stands for an int."""
    env: dict[str, int] = {}
    for spec, t in zip(specs, tensors):
        pairs = zip(spec.shape, t.shape) if isinstance(spec, TensorSpec) else ((spec, t),)
        env.update({n.name: int(found) for n, found in pairs if isinstance(n, Size)})
    return env


def at(x: Any, env: Mapping[str, int] | None, other: Callable[[Any], Any] | None = None) -> Any:
    """`x` with values in place of sizes: specs, integers, nested tuples and dicts of them; `other` of what is
    inside of those, which may be anything else."""
    if not env:
        return x
    if isinstance(x, Sym):
        return evaluate(x, env)
    if isinstance(x, TensorSpec):
        return x.mapped(lambda n: evaluate(n, env))
    each = other or (lambda e: at(e, env))
    if isinstance(x, dict):
        return {k: each(v) for k, v in x.items()}
    return type(x)([each(e) for e in x]) if type(x) in (tuple, list) else x
