"""Decompositions of elementwise ATen operators.

Takes a builder and operands, gives nodes. `point` does what they share: operands are promoted, broadcast,
computed in float32 if they are narrower, and the result is rounded to its dtype once, as eager mode does;
what remains of most operators is one line, most of them rows of `FORMULAS`.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..ir.graph import Node
from ..ir.prims import need
from .builder import Builder, Operand, as_dtype, rule, wide

aten = torch.ops.aten
Formula = Callable[..., Any]


def point(*overloads: Any, operands: int = 1, kind: str = "value") -> Callable[[Formula], Formula]:
    """Registers a formula over `operands` promoted tensors (the ATen call's first arguments; further ones
    are passed on).

    kind "value"     operands are computed in the result's dtype
         "precise"   likewise, but numbers are not rounded to it first: so do eager's products and quotients
         "promoted"  operands are computed in their common dtype; the formula's result is cast to the
                     result's dtype
    """
    def register(f: Formula) -> Formula:
        def decompose(b: Builder, *args: Any, **kwargs: Any) -> Any:
            given = args[:operands]
            if any(not isinstance(a, (Node, bool, int, float)) for a in given):
                return NotImplemented
            common = b.promoted(*given) if kind == "promoted" else b.out.dtype
            xs = [operand(b, a, common, b.out.shape, kind) for a in given]
            y = f(b, *xs, *args[operands:], **kwargs)
            return y if y is NotImplemented else b.to(y, b.out.dtype, b.out.shape)
        rule(*overloads)(decompose)
        return f
    return register


def operand(b: Builder, x: Operand, dtype: torch.dtype, shape: tuple[int, ...], kind: str = "value") -> Node:
    """x in the dtype prims compute in for values of `dtype`, rounded to that first; "precise": unless it is a
    number or has no dimensions."""
    target = wide(dtype)
    if not isinstance(x, Node):
        return b.full(shape, as_dtype(x if kind == "precise" else as_dtype(x, dtype), target), target)
    if x.tensor.dtype is not dtype and (x.tensor.ndim or kind != "precise"):
        x = b.cast(x, dtype)
    return b.cast(b.expand(x, shape), target)


def const(b: Builder, like: Node, value: Any) -> Node:
    """A constant of the same shape and dtype."""
    return b.full(like.tensor.shape, as_dtype(value, like.tensor.dtype), like.tensor.dtype)


def dtype_of(x: Node) -> torch.dtype:
    return x.tensor.dtype


def is_float(x: Node) -> bool:
    return x.tensor.dtype.is_floating_point


def is_bool(x: Node) -> bool:
    return x.tensor.dtype is torch.bool


# ---- one prim each --------------------------------------------------------------------------------

for name in (
    "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf "
    "erfc erfinv lgamma digamma sqrt rsqrt reciprocal"
).split():
    overloads = [getattr(aten, name).default]
    for other in (f"special_{name}", f"special_{name}".replace("lgamma", "gammaln").replace("digamma",
        "psi")):
        if hasattr(aten, other):
            overloads.append(getattr(aten, other).default)
    point(*overloads)(lambda b, x, name=name: b.emit_named(name, x))

for name in ("floor", "ceil", "trunc", "round"):
    point(getattr(aten, name).default)(lambda b, x, name=name: b.emit_named(name, x) if is_float(x) else x)

for name, prim in {"eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}.items():
    point(getattr(aten, name).Tensor, getattr(aten, name).Scalar, operands=2, kind="promoted")(
        lambda b, x, y, prim=prim: b.emit_named(prim, x, y))

for name, prim in {"maximum": "maximum", "minimum": "minimum"}.items():
    point(getattr(aten, name).default, operands=2)(
        lambda b, x, y, prim=prim: b.emit_named(prim, x, y) if not is_bool(x) else
        (b.or_(x, y) if prim == "maximum" else b.and_(x, y)))

for name in ("atan2", "nextafter", "copysign", "hypot"):
    for overload in getattr(aten, name).overloads():
        if overload in ("default", "Tensor", "Scalar"):
            point(getattr(getattr(aten, name), overload), operands=2)(
                lambda b, x, y, name=name: b.emit_named(name, x, y))

for name in ("and", "or", "xor"):
    point(getattr(aten, f"bitwise_{name}").Tensor, getattr(aten, f"bitwise_{name}").Scalar, operands=2)(
        lambda b, x, y, name=name: b.emit_named(name, x, y))


def _truth(b: Builder, x: Node) -> Node:
    return x if is_bool(x) else b.ne(x, 0)


for name in ("and", "or", "xor"):
    point(getattr(aten, f"logical_{name}").default, operands=2, kind="promoted")(
        lambda b, x, y, name=name: b.emit_named(name, _truth(b, x), _truth(b, y)))


@point(aten.logical_not.default, kind="promoted")
def _logical_not(b: Builder, x: Node) -> Node:
    return b.not_(_truth(b, x))


# ---- arithmetic -----------------------------------------------------------------------------------

def scaled(b: Builder, x: Node, factor: Operand) -> Node:
    """x times a number, which may be one that varies."""
    if isinstance(factor, Node):
        return b.mul(x, operand(b, factor, dtype_of(x), x.tensor.shape))
    return x if factor == 1 else b.mul(x, factor)


@point(aten.add.Tensor, aten.add.Scalar, operands=2)
def _add(b: Builder, x: Node, y: Node, alpha: Any = 1) -> Node:
    if is_bool(x):
        return b.or_(x, y) if alpha else x
    return b.add(x, scaled(b, y, alpha))


@point(aten.sub.Tensor, aten.sub.Scalar, operands=2)
def _sub(b: Builder, x: Node, y: Node, alpha: Any = 1) -> Node:
    return b.sub(x, scaled(b, y, alpha))


@point(aten.rsub.Tensor, aten.rsub.Scalar, operands=2)
def _rsub(b: Builder, x: Node, y: Node, alpha: Any = 1) -> Node:
    return b.sub(y, scaled(b, x, alpha))


@point(aten.mul.Tensor, aten.mul.Scalar, operands=2, kind="precise")
def _mul(b: Builder, x: Node, y: Node) -> Node:
    return b.and_(x, y) if is_bool(x) else b.mul(x, y)


@point(aten.div.Tensor, aten.div.Scalar, operands=2, kind="precise")
def _div(b: Builder, x: Node, y: Node) -> Node:
    return b.div(x, y)


@point(aten.div.Tensor_mode, aten.div.Scalar_mode, operands=2, kind="precise")
def _div_mode(b: Builder, x: Node, y: Node, rounding_mode: str | None = None) -> Any:
    if is_float(x):
        divisor = b.source.args[1] if len(b.source.args) > 1 else y
        by_number = isinstance(divisor, (int, float)) or isinstance(divisor, Node) and not divisor.tensor.ndim
        step: Any = (lambda n: n) if by_number else (lambda n: b.widen(b.cast(n, b.out.dtype)))
        if rounding_mode == "floor":
            return floor_divide(b, x, y, step)
        ratio = b.div(x, y)
        return b.trunc(step(ratio)) if rounding_mode == "trunc" else ratio
    if not divides(y):
        return NotImplemented
    return b.floordiv(x, y) if rounding_mode == "floor" else b.truncdiv(x, y)


def divides(y: Node) -> bool:
    """An integer divisor that is a constant other than 0; for any other one the ATen kernel is called,
    which may raise."""
    return getattr(y.op, "name", "") == "full" and y.args[1] != 0


def floor_divide(b: Builder, x: Node, y: Node, step: Formula) -> Node:
    """Python's // on floats, with eager's corrections where x / y rounds up to a whole number; by a tensor of
    narrow floats eager rounds after each `step`."""
    rest = b.fmod(x, y)
    whole = step(b.div(step(b.sub(x, rest)), y))
    below = b.and_(b.ne(rest, 0.0), b.ne(b.lt(y, 0.0), b.lt(rest, 0.0)))
    whole = b.where(below, step(b.sub(whole, 1.0)), whole)
    floor = b.floor(whole)
    floor = b.where(b.gt(step(b.sub(whole, floor)), 0.5), step(b.add(floor, 1.0)), floor)
    ratio = step(b.div(x, y))
    floor = b.where(b.eq(whole, 0.0), b.copysign(b.full(x.tensor.shape, 0.0, dtype_of(x)), ratio), floor)
    return b.where(b.eq(y, 0.0), ratio, floor)


@point(aten.floor_divide.default, operands=2, kind="precise")
def _floor_divide(b: Builder, x: Node, y: Node) -> Any:
    return _div_mode(b, x, y, "floor")


@point(aten.remainder.Tensor, aten.remainder.Scalar, operands=2)
def _remainder(b: Builder, x: Node, y: Node) -> Any:
    return b.remainder(x, y) if is_float(x) or divides(y) else NotImplemented


@point(aten.fmod.Tensor, aten.fmod.Scalar, operands=2)
def _fmod(b: Builder, x: Node, y: Node) -> Any:
    return b.fmod(x, y) if is_float(x) or divides(y) else NotImplemented


@point(aten.neg.default)
def _neg(b: Builder, x: Node) -> Node:
    return b.neg(x)


@point(aten.abs.default)
def _abs(b: Builder, x: Node) -> Node:
    return x if dtype_of(x) in (torch.bool, torch.uint8) else b.abs(x)


@point(aten.sign.default)
def _sign(b: Builder, x: Node) -> Node:
    return x if is_bool(x) else b.sign(x)


@point(aten.sgn.default)
def _sgn(b: Builder, x: Node) -> Node:
    return x if is_bool(x) else b.sign(x)


@point(aten.bitwise_not.default)
def _bitwise_not(b: Builder, x: Node) -> Node:
    return b.not_(x)


@point(aten.bitwise_left_shift.Tensor, aten.bitwise_left_shift.Tensor_Scalar, aten.__lshift__.Tensor,
       aten.__lshift__.Scalar, operands=2)
def _shl(b: Builder, x: Node, y: Node) -> Any:
    return b.shl(x, y) if not is_float(x) and not is_bool(x) else NotImplemented


@point(aten.bitwise_right_shift.Tensor, aten.bitwise_right_shift.Tensor_Scalar, aten.__rshift__.Tensor,
       aten.__rshift__.Scalar, operands=2)
def _shr(b: Builder, x: Node, y: Node) -> Any:
    return b.shr(x, y) if not is_float(x) and not is_bool(x) else NotImplemented


@rule(aten.pow.Tensor_Scalar)
def _pow_scalar(b: Builder, x: Node, exponent: Any) -> Any:
    """Eager computes small whole exponents by multiplication."""
    y = operand(b, x, b.out.dtype, b.out.shape)
    if is_float(y):
        special = {0.5: b.sqrt, -0.5: b.rsqrt, -1.0: b.reciprocal}.get(float(exponent))
        if special is not None:
            return b.cast(special(y), b.out.dtype)
        if exponent == -2:
            return b.cast(b.reciprocal(b.mul(y, y)), b.out.dtype)
    if exponent in (0, 1, 2, 3):
        one = b.full(b.out.shape, as_dtype(1, dtype_of(y)), dtype_of(y))
        result = {0: lambda: one, 1: lambda: y, 2: lambda: b.mul(y, y), 3: lambda: b.mul(b.mul(y, y), y)}[
            exponent
        ]()
    elif is_float(y):
        result = b.pow(y, as_dtype(exponent, b.out.dtype))
    else:
        return NotImplemented
    return b.cast(result, b.out.dtype)


@point(aten.pow.Tensor_Tensor, aten.pow.Scalar, operands=2)
def _pow(b: Builder, x: Node, y: Node) -> Any:
    return b.pow(x, y) if is_float(x) else NotImplemented


@point(aten.lerp.Scalar, aten.lerp.Tensor, operands=3, kind="precise")
def _lerp(b: Builder, x: Node, end: Node, weight: Node) -> Node:
    span = b.sub(end, x)
    far = b.sub(end, b.mul(span, b.sub(1.0, weight) if isinstance(weight, Node) else 1 - weight))
    return b.where(b.lt(b.abs(weight), 0.5), b.add(x, b.mul(weight, span)), far)


@point(aten.addcmul.default, operands=3)
def _addcmul(b: Builder, x: Node, y: Node, z: Node, value: Any = 1) -> Node:
    return b.add(x, b.mul(scaled(b, y, value), z))


@point(aten.addcdiv.default, operands=3)
def _addcdiv(b: Builder, x: Node, y: Node, z: Node, value: Any = 1) -> Node:
    return b.add(x, b.div(scaled(b, y, value), z))


@rule(aten.addr.default)
def _addr(b: Builder, x: Node, column: Node, row: Node, *, beta: Any = 1, alpha: Any = 1) -> Any:
    dtype, shape = wide(b.out.dtype), b.out.shape
    if dtype is torch.bool or dtype is not b.out.dtype:
        return NotImplemented
    p, q = b.broadcast_like(b.cast(column, dtype), (1,), shape), b.expand(b.cast(row, dtype), shape)
    product = b.mul(b.mul(p, as_dtype(alpha, dtype)), q)
    own = b.mul(b.expand(b.cast(x, dtype), shape), as_dtype(beta, dtype))
    return b.cast(b.add(own, product) if beta else product, b.out.dtype)


@point(aten.round.decimals)
def _round_decimals(b: Builder, x: Node, *, decimals: int) -> Any:
    if not is_float(x) or b.out.dtype.itemsize < 4:
        return x if not is_float(x) else NotImplemented
    scale = as_dtype(10.0 ** abs(decimals), dtype_of(x))
    if decimals < 0:
        return b.mul(b.round(b.div(x, scale)), scale)
    return b.div(b.round(b.mul(x, scale)), scale) if decimals else b.round(x)


@point(aten.angle.default)
def _angle(b: Builder, x: Node) -> Node:
    return b.where(b.isnan(x), x, b.where(b.lt(x, 0.0), const(b, x, math.pi), 0.0))


@rule(aten.frexp.Tensor)
def _frexp(b: Builder, x: Node) -> Any:
    """Mantissa and exponent from the bits; what is denormal is made normal first."""
    y = b.widen(x)
    dtype, info = dtype_of(y), torch.finfo(dtype_of(y))
    ints, digits = (torch.int32, 23) if dtype is torch.float32 else (torch.int64, 52)
    small = b.lt(b.abs(y), info.tiny)
    bits = b.bitcast(b.where(small, b.mul(y, 2.0 ** digits), y), ints)
    field = (1 << (8 if digits == 23 else 11)) - 1
    raised = b.sub(b.and_(b.shr(bits, digits), field), field // 2 - 1)
    exponent = b.sub(raised, b.mul(b.cast(small, ints), digits))
    half = b.bitcast(b.or_(b.and_(bits, ~(field << digits)), (field // 2 - 1) << digits), dtype)
    plain = b.or_(b.eq(y, 0.0), b.not_(b.lt(b.abs(y), math.inf)))
    return b.cast(b.where(plain, y, half), b.out[0].dtype), b.cast(b.where(plain, 0, exponent), torch.int32)


# ---- selection ------------------------------------------------------------------------------------

@rule(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(b: Builder, condition: Node, x: Operand, y: Operand) -> Node:
    return b.where(b.to(condition, torch.bool, b.out.shape), b.to(x, b.out.dtype, b.out.shape),
                   b.to(y, b.out.dtype, b.out.shape))


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(b: Builder, x: Node, mask: Node, value: Operand) -> Node:
    need(not isinstance(value, Node) or not value.tensor.ndim, "the value has dimensions")
    return _where(b, mask, value, x)


@rule(aten.clamp.default, aten.clamp.Tensor)
def _clamp(b: Builder, x: Node, min: Any = None, max: Any = None) -> Any:
    y = operand(b, x, b.out.dtype, b.out.shape)
    if is_bool(y):
        return NotImplemented
    if min is not None:
        y = b.maximum(y, operand(b, min, b.out.dtype, b.out.shape))
    if max is not None:
        y = b.minimum(y, operand(b, max, b.out.dtype, b.out.shape))
    return b.cast(y, b.out.dtype)


@rule(aten.clamp_min.default, aten.clamp_min.Tensor)
def _clamp_min(b: Builder, x: Node, min: Any) -> Any:
    return _clamp(b, x, min)


@rule(aten.clamp_max.default, aten.clamp_max.Tensor)
def _clamp_max(b: Builder, x: Node, max: Any) -> Any:
    return _clamp(b, x, None, max)


def _pick(b: Builder, x: Node, y: Node, prim: str) -> Node:
    """fmax, fmin: a NaN loses against a number."""
    best = b.emit_named(prim, x, y)
    return b.where(b.isnan(x), y, b.where(b.isnan(y), x, best)) if is_float(x) else best


point(aten.fmax.default, operands=2)(
    lambda b, x, y: NotImplemented if is_bool(x) else _pick(b, x, y, "maximum")
)
point(aten.fmin.default, operands=2)(
    lambda b, x, y: NotImplemented if is_bool(x) else _pick(b, x, y, "minimum")
)


@point(aten.threshold.default)
def _threshold(b: Builder, x: Node, threshold: Any, value: Any) -> Node:
    return b.where(b.le(x, threshold), b.full(b.out.shape, as_dtype(value, dtype_of(x)), dtype_of(x)), x)


@point(aten.heaviside.default, operands=2)
def _heaviside(b: Builder, x: Node, y: Node) -> Any:
    if is_bool(x):
        return NotImplemented
    return b.where(b.eq(x, 0), y, b.where(b.ne(x, x), b.full(b.out.shape, 0.0, dtype_of(x)),
                                          b.cast(b.gt(x, 0), dtype_of(x))))


@point(aten.nan_to_num.default)
def _nan_to_num(b: Builder, x: Node, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Node:
    if not is_float(x):
        return x
    limits = torch.finfo(b.out.dtype)
    y = b.where(b.isnan(x), 0.0 if nan is None else float(nan), x)
    y = b.where(b.eq(x, math.inf), limits.max if posinf is None else float(posinf), y)
    return b.where(b.eq(x, -math.inf), limits.min if neginf is None else float(neginf), y)


@point(aten.isnan.default, kind="promoted")
def _isnan(b: Builder, x: Node) -> Node:
    return b.isnan(x) if is_float(x) else b.full(b.out.shape, False, torch.bool)


@point(aten.isinf.default, kind="promoted")
def _isinf(b: Builder, x: Node) -> Node:
    return b.isinf(x) if is_float(x) else b.full(b.out.shape, False, torch.bool)


@point(aten.isposinf.default, kind="promoted")
def _isposinf(b: Builder, x: Node) -> Node:
    return b.eq(x, math.inf) if is_float(x) else b.full(b.out.shape, False, torch.bool)


@point(aten.isneginf.default, kind="promoted")
def _isneginf(b: Builder, x: Node) -> Node:
    return b.eq(x, -math.inf) if is_float(x) else b.full(b.out.shape, False, torch.bool)


@point(aten.signbit.default, kind="promoted")
def _signbit(b: Builder, x: Node) -> Node:
    if is_bool(x):
        return b.full(b.out.shape, False, torch.bool)
    return b.signbit(x) if is_float(x) else b.lt(x, 0)


# ---- functions of mathematics and of neural networks ----------------------------------------------

def sigmoid(b: Builder, x: Node) -> Node:
    return b.div(1.0, b.add(b.exp(b.neg(x)), 1.0))


def softplus(b: Builder, x: Node) -> Node:
    return b.log1p(b.exp(x))


@point(aten.gelu.default)
def _gelu(b: Builder, x: Node, approximate: str = "none") -> Node:
    need(approximate in ("none", "tanh"), "no such approximation")
    if approximate == "tanh":
        beta = math.sqrt(2) * (2 / math.sqrt(math.pi)) * 0.5
        cube = b.mul(b.mul(x, x), x)
        inner = b.mul(b.add(x, b.mul(cube, 0.044715)), beta)
        return b.mul(b.mul(x, 0.5), b.add(b.tanh(inner), 1.0))
    return b.mul(b.mul(x, 0.5), b.add(b.erf(b.mul(x, math.sqrt(0.5))), 1.0))


@point(aten.elu.default)
def _elu(b: Builder, x: Node, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Node:
    low = b.mul(b.expm1(b.mul(x, input_scale)), alpha * scale)
    return b.where(b.lt(x, 0.0), low, b.mul(x, scale))


@point(aten.softplus.default)
def _softplus(b: Builder, x: Node, beta: Any = 1, threshold: Any = 20) -> Node:
    scaled = b.mul(x, beta)
    return b.where(b.gt(scaled, threshold), x, b.div(softplus(b, scaled), beta))


@rule(aten.log_sigmoid_forward.default)
def _log_sigmoid(b: Builder, x: Node) -> Any:
    dtype, y = dtype_of(x), b.widen(x)
    small = b.exp(b.neg(b.abs(y)))
    value = b.sub(b.minimum(y, 0.0), b.log1p(small))
    empty = b.out[1].numel == 0 and b.out[0].numel != 0
    buffer = b.full(b.out[1].shape, 0.0, dtype) if empty else b.cast(small, dtype)
    return b.cast(value, dtype), buffer


@point(aten.hardtanh.default)
def _hardtanh(b: Builder, x: Node, min_val: Any = -1, max_val: Any = 1) -> Node:
    return b.minimum(b.maximum(x, min_val), max_val)


@point(aten.logit.default, aten.special_logit.default)
def _logit(b: Builder, x: Node, eps: float | None = None) -> Node:
    y = x if eps is None else b.where(b.lt(x, eps), eps, b.where(b.gt(x, 1 - eps), 1 - eps, x))
    return b.log(b.div(y, b.sub(1.0, y)))


@point(aten.logaddexp.default, operands=2)
def _logaddexp(b: Builder, x: Node, y: Node) -> Node:
    sure = b.and_(b.isinf(x), b.eq(x, y))
    return b.where(sure, x, b.add(b.maximum(x, y), b.log1p(b.exp(b.neg(b.abs(b.sub(x, y)))))))


@point(aten.logaddexp2.default, operands=2)
def _logaddexp2(b: Builder, x: Node, y: Node) -> Node:
    sure = b.and_(b.isinf(x), b.eq(x, y))
    small = b.log1p(b.exp2(b.neg(b.abs(b.sub(x, y)))))
    return b.where(sure, x, b.add(b.maximum(x, y), b.mul(small, 1 / math.log(2))))


def _xlogy(b: Builder, x: Node, y: Node, log: Callable[[Node], Node]) -> Node:
    product = b.where(b.eq(x, 0.0), 0.0, b.mul(x, log(y)))
    return b.where(b.isnan(y), y, product)


point(aten.xlogy.Tensor, aten.xlogy.Scalar_Self, aten.xlogy.Scalar_Other, operands=2)(
    lambda b, x, y: _xlogy(b, x, y, b.log))
point(
    aten.special_xlog1py.default,
    aten.special_xlog1py.self_scalar,
    aten.special_xlog1py.other_scalar,
    operands=2,
)(lambda b, x, y: _xlogy(b, x, y, b.log1p))


@point(aten.sinc.default)
def _sinc(b: Builder, x: Node) -> Node:
    angle = b.mul(x, math.pi)
    return b.where(b.eq(x, 0.0), 1.0, b.div(b.sin(angle), angle))


@point(aten.mish.default)
def _mish(b: Builder, x: Node) -> Node:
    return b.mul(x, b.tanh(softplus(b, x)))


@point(aten._prelu_kernel.default, operands=2)
def _prelu(b: Builder, x: Node, weight: Node) -> Node:
    return b.where(b.gt(x, 0.0), x, b.mul(x, weight))


def _hard(b: Builder, x: Node) -> Node:
    return b.minimum(b.maximum(b.add(x, 3.0), 0.0), 6.0)


FORMULAS: dict[Any, Formula] = {
    aten.sigmoid.default: sigmoid,
    aten.silu.default: lambda b, x: b.div(x, b.add(b.exp(b.neg(x)), 1.0)),
    aten.relu.default: lambda b, x: b.maximum(x, 0),
    aten.relu6.default: lambda b, x: b.minimum(b.maximum(x, 0), 6),
    aten.square.default: lambda b, x: b.mul(x, x),
    aten.frac.default: lambda b, x: b.sub(x, b.trunc(x)),
    aten.celu.default: lambda b, x, alpha=1.0: _elu(b, x, alpha, 1, 1 / alpha),
    aten.positive.default: lambda b, x: x,
    aten.conj_physical.default: lambda b, x: x,
    aten.hardsigmoid.default: lambda b, x: b.div(_hard(b, x), 6.0),
    aten.hardswish.default: lambda b, x: b.div(b.mul(x, _hard(b, x)), 6.0),
    aten.leaky_relu.default: lambda b, x, slope=0.01: b.where(b.gt(x, 0.0), x, b.mul(x, slope)),
    aten.hardshrink.default: lambda b, x, lambd=0.5: b.where(b.and_(b.ge(x, -lambd), b.le(x, lambd)), 0.0, x),
    aten.softshrink.default: lambda b, x, lambd=0.5: NotImplemented if lambd < 0 else b.where(
        b.gt(x, lambd), b.sub(x, lambd), b.where(b.lt(x, -lambd), b.add(x, lambd), b.mul(x, 0.0))
    ),
    aten.deg2rad.default: lambda b, x: b.mul(x, math.pi / 180),
    aten.rad2deg.default: lambda b, x: b.mul(x, 180 / math.pi),
    aten.special_entr.default: lambda b, x: b.where(
        b.isnan(x),
        x,
        b.where(b.gt(x, 0.0), b.neg(b.mul(x, b.log(x))), b.where(b.eq(x, 0.0), 0.0, const(b, x, -math.inf))),
    ),
}
for op, formula in FORMULAS.items():
    point(op)(formula)


# ---- losses and gates that are pointwise but for their end ----------------------------------------

@rule(aten.glu.default)
def _glu(b: Builder, x: Node, dim: int = -1) -> Node:
    dim %= x.tensor.ndim
    half = x.tensor.shape[dim] // 2
    y = b.widen(x)
    gate = b.slice(y, dim, half, 2 * half, 1)
    return b.cast(b.mul(b.slice(y, dim, 0, half, 1), sigmoid(b, gate)), dtype_of(x))
