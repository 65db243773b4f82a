"""Shape rules of ATen's elementwise operators: type promotion, broadcasting, and the strides eager mode
gives the result.

Takes tensors (or specs: anything with dtype, shape, stride) and numbers, gives a dtype and a geometry.
`ir.fake` uses it in place of torch's own Python rules, which import sympy and take 0.2 ms a call;
`lower.decompose` uses the promotion. Operators or dtypes this table does not know go to torch's rules,
errors included.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .spec import contiguous_stride
from .sym import NeedsSizes, Sym

aten = torch.ops.aten
NUMBER = {bool: torch.bool, int: torch.int64}


def promote(*operands: Any) -> torch.dtype:
    """The dtype eager arithmetic gives for these tensors and numbers (tensors of >= 1 dimension outrank 0-d
    ones, which outrank numbers)."""
    ranks: list[torch.dtype | None] = [None, None, None]
    for o in operands:
        if isinstance(o, (bool, int, float, complex)):
            rank, dtype = (2, NUMBER.get(type(o))
                           or (torch.get_default_dtype() if isinstance(o, float) else torch.complex64))
        else:
            rank, dtype = (0 if len(o.shape) else 1), o.dtype
        best = ranks[rank]
        ranks[rank] = dtype if best is None or best is dtype else torch.promote_types(best, dtype)
    result = _outrank(ranks[0], _outrank(ranks[1], ranks[2]))
    assert result is not None, "no operands"
    return result


def _outrank(high: torch.dtype | None, low: torch.dtype | None) -> torch.dtype | None:
    if high is None or low is None:
        return high or low
    if high.is_complex or (high.is_floating_point and not low.is_complex):
        return high
    if high is torch.bool or low.is_floating_point or low.is_complex:
        return torch.promote_types(high, low)
    return high


def broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The common shape, None where there is none."""
    ndim = max(map(len, shapes))
    out = [1] * ndim
    for shape in shapes:
        for i, n in enumerate(shape, ndim - len(shape)):
            if n != 1:
                if out[i] not in (1, n):
                    return None
                out[i] = n
    return tuple(out)


def result_stride(shape: tuple[int, ...], operands: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """The strides eager mode gives a fresh elementwise result: contiguous operands make it contiguous, like
    strides are kept, and otherwise dimensions are ordered by the operands' strides, earlier operands
    first."""
    plain = contiguous_stride(shape)
    if all(o.shape == shape for o in operands):
        strides = [o.stride() for o in operands]
        if all(s == plain for s in strides) or all(o.is_contiguous() for o in operands):
            return plain
        if len(shape) == 4 and all(o.is_contiguous(memory_format=torch.channels_last) for o in operands):
            _, c, h, w = shape
            return (c * h * w, 1, c * w, c)
        if all(s == strides[0] for s in strides) and _dense(shape, strides[0]):
            return strides[0]
    if len(shape) < 2:
        return plain
    return ordered_stride(shape, [_spread(o, shape) for o in operands])


def is_last(x: torch.Tensor) -> bool:
    """Whether eager mode takes x for channels last, where it lays out a result like its input: by the order
    of the strides, holes or not (c10/core/MemoryFormat.h, is_channels_last_strides_2d_s4)."""
    if x.dim() != 4 or x.stride(1) == 0:
        return False
    least = 0
    for d in (1, 3, 2, 0):
        if not x.shape[d] or x.stride(d) < least or d == 0 and least == x.stride(1):
            return False
        least = x.stride(d) * x.shape[d]
    return True


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expect = 1
    for s, n in sorted((s, n) for n, s in zip(shape, stride, strict=True) if n != 1):
        if s != expect:
            return False
        expect *= n
    return True


def _spread(o: torch.Tensor, shape: tuple[int, ...]) -> list[int]:
    """The operand's strides in bytes over the common shape, 0 where it is broadcast."""
    lead = len(shape) - o.dim()
    size = o.element_size()
    own = [0 if n == 1 and shape[lead + i] != 1 else s * size
           for i, (n, s) in enumerate(zip(o.shape, o.stride()))]
    return [0] * lead + own


def ordered_stride(shape: tuple[int, ...], strides: list[list[int]]) -> tuple[int, ...]:
    """Insertion sort of the dimensions, fastest first; pairs no operand can decide keep their order."""
    order = list(range(len(shape)))[::-1]
    for i in range(1, len(order)):
        at = i
        for before in range(i - 1, -1, -1):
            sign = _compare(order[before], order[at], shape, strides)
            if sign > 0:
                order[before], order[at] = order[at], order[before]
                at = before
            elif sign < 0:
                break
    out, step = [0] * len(shape), 1
    for dim in order:
        out[dim] = step
        step *= max(shape[dim], 1)
    return tuple(out)


def _compare(a: int, b: int, shape: tuple[int, ...], strides: list[list[int]]) -> int:
    for s in strides:
        if s[a] == 0 or s[b] == 0:
            continue
        if s[a] != s[b]:
            return -1 if s[a] < s[b] else 1
        if shape[a] > shape[b]:
            return 1
    return 0


# Which overloads the rule below serves: (kind of result, takes bools, takes integers, names). Kinds: "same"
# promotes, "float" promotes to a floating dtype, "bool" is bool. All else, and complex, goes to torch's rule.
KINDS = [
    (
        "same",
        True,
        True,
        """mul.Tensor add.Tensor maximum minimum bitwise_not bitwise_and.Tensor bitwise_or.Tensor
        bitwise_xor.Tensor bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar where.self
        where.ScalarOther where.ScalarSelf where.Scalar pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar""",
    ),
    (
        "same",
        False,
        True,
        """sub.Tensor rsub.Scalar rsub.Tensor neg abs sign sgn floor ceil trunc round relu clamp clamp_min
        clamp_max clamp.Tensor clamp_min.Tensor clamp_max.Tensor
        remainder.Scalar remainder.Tensor fmod.Scalar fmod.Tensor add.Scalar div.Tensor_mode div.Scalar_mode
        sub.Scalar mul.Scalar floor_divide square threshold fmax fmin heaviside frac""",
    ),
    (
        "same",
        False,
        False,
        """gelu silu mish hardswish hardsigmoid leaky_relu elu softplus hardtanh addcmul addcdiv lerp.Scalar
        lerp.Tensor celu hardshrink softshrink _prelu_kernel logaddexp logaddexp2 hypot nextafter
        gelu_backward silu_backward threshold_backward sigmoid_backward tanh_backward
        leaky_relu_backward elu_backward hardtanh_backward hardswish_backward hardsigmoid_backward
        softplus_backward""",
    ),
    (
        "float",
        True,
        True,
        """div.Tensor div.Scalar exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh
        tanh asinh acosh atanh erf erfc erfinv sqrt rsqrt reciprocal sigmoid atan2 lgamma digamma
        sinc logit xlogy.Tensor copysign.Tensor deg2rad rad2deg""",
    ),
    (
        "bool",
        True,
        True,
        """eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor eq.Scalar ne.Scalar lt.Scalar
        le.Scalar gt.Scalar ge.Scalar logical_and logical_or logical_xor logical_not isnan isinf
        isposinf isneginf signbit""",
    ),
]


def _rows() -> dict[Any, tuple[str, bool, bool]]:
    rows: dict[Any, tuple[str, bool, bool]] = {}
    for kind, masks, ints, names in KINDS:
        for name in names.split():
            packet, _, overload = name.partition(".")
            overload = overload or "default"
            for p in (packet, packet + "_"):          # in place too
                if hasattr(aten, p) and overload in getattr(aten, p).overloads():
                    rows[getattr(getattr(aten, p), overload)] = (kind, masks, ints)
    return rows


ROWS = _rows()
ALPHA = (aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar)


def elementwise(func: Any, args: tuple, kwargs: dict) -> torch.Tensor | None:
    """The meta result of an elementwise operator on meta tensors and numbers; None if this table does not
    decide it."""
    row = ROWS.get(func)
    if row is None:
        return None
    kind, masks, ints = row
    if kwargs.get("rounding_mode", "") is None:
        kind = "float"
    if func in ALPHA and len(args) > 2:
        if type(args[2]) is not int or args[2] != 1:
            return None
        args = args[:2]
    tensors = [a for a in args if isinstance(a, torch.Tensor)] + [a for a in kwargs.values()
                                                                  if isinstance(a, torch.Tensor)]
    numbers = [a for a in args if isinstance(a, (int, float, complex))]
    numbers += [kwargs[k] for k in ("min", "max", "other", "exponent")
                if isinstance(kwargs.get(k), (int, float, complex))]
    if not tensors:          # numbers alone, which torch takes for tensors
        sizes = [a for a in args if isinstance(a, Sym)]
        if sizes:
            raise NeedsSizes(sum(sizes), "as a tensor")
        return func(*args, **kwargs).to("meta")
    _check_dtypes(func._overloadpacket.__name__.rstrip("_"), tensors, numbers)
    for t in tensors:
        d = t.dtype
        if (d.is_complex or (d is torch.bool and not masks) or (not ints and not d.is_floating_point)
            or d.itemsize < 1):
            return None
    if len(tensors) == 1:
        shape: tuple[int, ...] | None = tuple(tensors[0].shape)
    else:
        shape = broadcast([tuple(t.shape) for t in tensors])
    if shape is None:
        return None
    return _result(func, kind, shape, tensors, numbers, args)


def _check_dtypes(name: str, tensors: list, numbers: list) -> None:
    """Raises RuntimeError for operands that eager mode refuses, and torch's rules for meta tensors do not."""
    if name in ("sub", "rsub") and (any(t.dtype is torch.bool for t in tensors)
                                    or any(isinstance(n, bool) for n in numbers)):
        raise RuntimeError("Subtraction, the `-` operator, with a bool tensor is not supported.")
    if name == "heaviside" and len({t.dtype for t in tensors}) > 1:
        raise RuntimeError("heaviside is not yet implemented for tensors with different dtypes.")


def _result(func: Any, kind: str, shape: tuple[int, ...], tensors: list, numbers: list,
            args: tuple) -> torch.Tensor | None:
    name = func._overloadpacket.__name__
    if name.startswith("where"):
        dtype = promote(*args[1:])
        if tensors[0].dtype is not torch.bool:
            return None
    elif name in FIRST_DECIDES:
        dtype = tensors[0].dtype
        if any(t.dtype != dtype for t in tensors):
            return None
    else:
        dtype = promote(*tensors, *numbers)
    if name.startswith("pow") and (dtype is torch.bool and not isinstance(args[-1], bool)
                                   or not dtype.is_floating_point and any(n < 0 for n in numbers)):
        return None
    masked = dtype is torch.bool and bool(numbers) and kind == "same" and not name.startswith("pow")
    if dtype.is_complex or masked or (name.startswith("bitwise") and dtype.is_floating_point):
        return None
    if kind == "float" and not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    if kind == "bool":
        dtype = torch.bool
    if func._schema.is_mutable:
        target = args[0]
        return target if tuple(target.shape) == shape and torch.can_cast(dtype, target.dtype) else None
    row_major = func is aten.pow.Scalar          # on the CPU, whatever the meta kernel says
    stride = contiguous_stride(shape) if row_major else result_stride(shape, tensors)
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


# numbers are parameters, not operands: they take no part in promotion
FIRST_DECIDES = frozenset(
    """gelu silu mish hardswish hardsigmoid leaky_relu elu softplus hardtanh addcmul addcdiv lerp
        threshold relu celu hardshrink softshrink _prelu_kernel logit gelu_backward silu_backward
        threshold_backward sigmoid_backward tanh_backward leaky_relu_backward elu_backward
        hardtanh_backward hardswish_backward hardsigmoid_backward softplus_backward""".split()
)
FIRST_DECIDES |= frozenset(name + "_" for name in FIRST_DECIDES)
