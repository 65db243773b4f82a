"""Decompositions of special functions that have no prim: Chebyshev series of the host's own.

Takes a builder and operands, gives nodes. A function is cut where its nature changes (a power series, an
asymptotic one); each piece, made smooth by taking its singular factor off, is interpolated once from torch's
float64 values, to a few units in the last place. So no coefficients are kept here.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..ir.graph import Node
from .builder import Builder, rule
from .pointwise import const, dtype_of, operand, point

aten, host = torch.ops.aten, torch.special
Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Piece:
    """A smooth function of x on a range that t in [-1, 1] stands for.

    f      float64 tensor to float64 tensor
    x_of   t -> x, likewise; `t_of` the inverse on nodes: (builder, x) -> t
    """

    f: Callable[[Tensor], Tensor]
    x_of: Callable[[Tensor], Tensor]
    t_of: Callable[[Builder, Node], Node]
    degree: int = 32

    @lru_cache(maxsize=None)          # noqa: B019  pieces live as long as the program
    def coefficients(self, degree: int) -> tuple[float, ...]:
        """The Chebyshev series of f."""
        def at(t: np.ndarray) -> np.ndarray:
            return self.f(self.x_of(torch.from_numpy(t))).numpy()
        return tuple(np.polynomial.chebyshev.chebinterpolate(at, degree).tolist())

    def __call__(self, b: Builder, x: Node) -> Node:
        """f(x) by Clenshaw's recurrence; float32 needs fewer terms."""
        t = self.t_of(b, x)
        c = self.coefficients(self.degree if dtype_of(t) is torch.float64 else self.degree // 2)
        twice, last, before = b.mul(t, 2.0), const(b, t, c[-1]), const(b, t, 0.0)
        for value in c[-2:0:-1]:
            last, before = b.add(b.sub(b.mul(twice, last), before), const(b, t, value)), last
        return b.add(b.sub(b.mul(t, last), before), const(b, t, c[0]))


def below(edge: float, f: Any, degree: int = 32) -> Piece:
    """f on [0, edge]."""
    return Piece(f, lambda t: (t + 1) * (edge / 2), lambda b, x: b.sub(b.mul(x, 2 / edge), 1.0), degree)


def even(edge: float, f: Any, degree: int = 24) -> Piece:
    """An even f on [0, edge]: a function of x²."""
    return Piece(f, lambda t: ((t + 1) / 2).sqrt() * edge,
                 lambda b, x: b.sub(b.mul(b.mul(x, x), 2 / edge ** 2), 1.0), degree)


def beyond(edge: float, f: Any, power: int = 1, degree: int = 32) -> Piece:
    """f on [edge, infinity): a function of 1 / x^power."""
    def t_of(b: Builder, x: Node) -> Node:
        part = b.div(edge, x)
        return b.sub(b.mul(part if power == 1 else b.mul(part, part), 2.0), 1.0)
    return Piece(f, lambda t: edge / ((t + 1) / 2) ** (1 / power), t_of, degree)


def chosen(b: Builder, x: Node, edge: float, low: Node, high: Node) -> Node:
    return b.where(b.le(x, edge), low, high)


# ---- modified Bessel functions --------------------------------------------------------------------

I_NEAR = (below(8.0, host.i0e, 40), below(8.0, lambda x: host.i1e(x) / x, 40))
I_FAR = tuple(beyond(8.0, lambda x, f=f: f(x) * x.sqrt(), degree=40) for f in (host.i0e, host.i1e))


def bessel_i(b: Builder, x: Node, order: int, scaled: bool) -> Node:
    """I(x), or e^-|x| I(x)."""
    size = b.abs(x)
    near, far = I_NEAR[order](b, size), b.div(I_FAR[order](b, size), b.sqrt(size))
    value = chosen(b, size, 8.0, b.mul(near, size) if order else near, far)
    value = value if scaled else b.mul(value, b.exp(size))
    return b.where(b.lt(x, 0.0), b.neg(value), value) if order else value


def _k_near(x: Tensor, order: int) -> Tensor:
    """What is left of K when its logarithm and its pole are taken off; even in x."""
    if order:
        return (host.modified_bessel_k1(x) - (x / 2).log() * host.i1(x)) * x
    return host.modified_bessel_k0(x) + (x / 2).log() * host.i0(x)


K_NEAR = tuple(even(2.0, lambda x, n=n: _k_near(x, n)) for n in (0, 1))
K_FAR = tuple(beyond(2.0, lambda x, f=f: f(x) * x.sqrt(), degree=48)
              for f in (host.scaled_modified_bessel_k0, host.scaled_modified_bessel_k1))


def bessel_k(b: Builder, x: Node, order: int, scaled: bool) -> Node:
    """K(x), or e^x K(x); infinite at 0, NaN below."""
    log, near = b.log(b.mul(x, 0.5)), K_NEAR[order](b, x)
    i = bessel_i(b, x, order, False)
    near = b.add(b.mul(log, i), b.div(near, x)) if order else b.sub(near, b.mul(log, i))
    far, grown = b.div(K_FAR[order](b, x), b.sqrt(x)), b.exp(x)
    value = chosen(b, x, 2.0, b.mul(near, grown) if scaled else near, far if scaled else b.div(far, grown))
    value = b.where(b.eq(x, 0.0), const(b, x, math.inf), value)
    return b.where(b.lt(x, 0.0), const(b, x, math.nan), value)


for name, f in {"i": bessel_i, "k": bessel_k}.items():
    for order in (0, 1):
        plain = [getattr(aten, f"special_modified_bessel_{name}{order}").default]
        scaled = [getattr(aten, f"special_i{order}e" if name == "i" else
                          f"special_scaled_modified_bessel_k{order}").default]
        if name == "i":
            plain.append((aten.special_i1 if order else aten.i0).default)
        for overloads, s in ((plain, False), (scaled, True)):
            point(*overloads)(lambda b, x, f=f, order=order, s=s: f(b, x, order, s))


# ---- Bessel functions -----------------------------------------------------------------------------

J, Y = (host.bessel_j0, host.bessel_j1), (host.bessel_y0, host.bessel_y1)
J_NEAR = (even(5.0, J[0]), even(5.0, lambda x: J[1](x) / x))
Y_NEAR = (even(5.0, lambda x: Y[0](x) - 2 / math.pi * x.log() * J[0](x)),
          even(5.0, lambda x: (Y[1](x) - 2 / math.pi * (x.log() * J[1](x) - 1 / x)) / x))


def _phase(order: int) -> float:
    return math.pi / 4 + order * math.pi / 2


def _amplitude(x: Tensor, order: int, part: int) -> Tensor:
    """J and Y are sqrt(2 / pi x) (P cos - Q sin) and (P sin + Q cos) of x less the phase: P, and Q x."""
    angle, root = x - _phase(order), (x * (math.pi / 2)).sqrt()
    j, y = J[order](x) * root, Y[order](x) * root
    return j * angle.cos() + y * angle.sin() if part == 0 else (y * angle.cos() - j * angle.sin()) * x


PARTS = [[beyond(5.0, lambda x, n=n, k=k: _amplitude(x, n, k), 2, 24) for k in (0, 1)] for n in (0, 1)]


def bessel(b: Builder, x: Node, order: int, second: bool) -> Node:
    """J(x), or Y(x): infinite at 0, NaN below."""
    size = b.abs(x)
    near = J_NEAR[order](b, size)
    near = b.mul(near, size) if order else near
    p, q = (f(b, size) for f in PARTS[order])
    angle, q = b.sub(size, _phase(order)), b.div(q, size)
    sine, cosine = b.sin(angle), b.cos(angle)
    far = b.add(b.mul(p, sine), b.mul(q, cosine)) if second else b.sub(b.mul(p, cosine), b.mul(q, sine))
    far = b.mul(far, b.sqrt(b.div(2 / math.pi, size)))
    if not second:
        value = chosen(b, size, 5.0, near, far)
        return b.where(b.lt(x, 0.0), b.neg(value), value) if order else value
    rest, log = Y_NEAR[order](b, size), b.mul(b.log(size), near)
    if order:
        rest, log = b.mul(rest, size), b.sub(log, b.div(1.0, size))
    value = chosen(b, size, 5.0, b.add(rest, b.mul(log, 2 / math.pi)), far)
    value = b.where(b.eq(x, 0.0), const(b, x, -math.inf), value)
    return b.where(b.lt(x, 0.0), const(b, x, math.nan), value)


for order in (0, 1):
    for letter, second in (("j", False), ("y", True)):
        point(getattr(aten, f"special_bessel_{letter}{order}").default)(
            lambda b, x, order=order, second=second: bessel(b, x, order, second))


@point(aten.special_spherical_bessel_j0.default)
def _spherical(b: Builder, x: Node) -> Node:
    """sin(x) / x, whose first terms do near 0."""
    square = b.mul(x, x)
    near: Any = const(b, x, 1.0)
    for n in (12, 10, 8, 6, 4, 2):
        near = b.sub(1.0, b.mul(b.div(square, float(n * (n + 1))), near))
    value = b.where(b.lt(b.abs(x), 0.5), near, b.div(b.sin(x), x))
    return b.where(b.isinf(x), 0.0, value)


# ---- error functions, polygamma -------------------------------------------------------------------

ROOT_PI = math.sqrt(math.pi)
# all of [0, infinity) as one interval; the factor keeps it from vanishing
ERFCX = Piece(lambda x: host.erfcx(x) * (x * ROOT_PI + 1), lambda t: 3.75 * (1 + t) / (1 - t),
              lambda b, x: b.sub(1.0, b.div(7.5, b.add(x, 3.75))), 40)


@point(aten.special_erfcx.default)
def _erfcx(b: Builder, x: Node) -> Node:
    """e^(x²) erfc(x); below 0 by its symmetry."""
    size = b.abs(x)
    value = b.div(ERFCX(b, size), b.add(b.mul(size, ROOT_PI), 1.0))
    return b.where(b.lt(x, 0.0), b.sub(b.mul(b.exp(b.mul(x, x)), 2.0), value), value)


@point(aten.special_log_ndtr.default)
def _log_ndtr(b: Builder, x: Node) -> Node:
    scaled = b.mul(x, math.sqrt(0.5))
    tail = b.sub(b.log(b.mul(_erfcx(b, b.neg(scaled)), 0.5)), b.mul(scaled, scaled))
    return b.where(b.lt(x, -1.0), tail, b.log1p(b.mul(b.erfc(scaled), -0.5)))


@rule(aten.polygamma.default, aten.special_polygamma.default)
def _polygamma(b: Builder, n: int, x: Node) -> Node:
    y = operand(b, x, b.out.dtype, b.out.shape)
    value = _derivative_of_digamma(b, n, y) if n > 1 else _trigamma(b, y) if n else b.digamma(y)
    return b.cast(value, b.out.dtype)


BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730)


def _derivative_of_digamma(b: Builder, n: int, x: Node) -> Node:
    """The n-th derivative for n > 1: at x >= 1/2 a sum by Euler and Maclaurin, below by reflection, where the
    n-th derivative of the cotangent is a polynomial of it."""
    low = b.lt(x, 0.5)
    y = b.where(low, b.sub(1.0, x), x)

    def power(base: Node, k: int) -> Node:
        return base if k == 1 else b.mul(power(base, k - 1), base)
    total, start = power(b.div(1.0, y), n + 1), y
    for _ in range(9):
        start = b.add(start, 1.0)
        total = b.add(total, power(b.div(1.0, start), n + 1))
    r = b.div(1.0, b.add(start, 1.0))
    square, last = b.mul(r, r), power(r, n)
    tail = b.add(b.mul(last, 1 / n), b.mul(b.mul(last, r), 0.5))
    rising, term = float(n + 1), b.mul(b.mul(last, r), r)
    for j, c in enumerate(BERNOULLI, 1):
        tail = b.add(tail, b.mul(term, c * rising / math.factorial(2 * j)))
        rising, term = rising * (n + 2 * j) * (n + 2 * j + 1), b.mul(term, square)
    sign = -1.0 if n % 2 == 0 else 1.0
    value = b.mul(b.add(total, tail), sign * math.factorial(n))
    cotangent = np.polynomial.Polynomial([0.0, 1.0])          # of pi x: its derivative is -pi (1 + cot²)
    for _ in range(n):
        cotangent = cotangent.deriv() * np.polynomial.Polynomial([-math.pi, 0.0, -math.pi])
    off = b.sub(b.round(x), x)
    size, angle = b.abs(off), b.mul(off, math.pi)
    steep = b.copysign(b.tan(b.mul(b.sub(0.5, size), math.pi)), off)          # exact where the cotangent is 0
    c = b.where(b.lt(size, 0.25), b.div(b.cos(angle), b.sin(angle)), steep)
    slope: Any = const(b, x, 0.0)
    for k in cotangent.coef[::-1]:
        slope = b.add(b.mul(slope, c), float(k))
    mirrored = b.mul(b.add(value, b.mul(slope, math.pi)), -sign)
    pole = b.and_(b.le(x, 0.0), b.eq(x, b.floor(x)))
    value = b.where(b.isinf(x), const(b, x, math.nan), b.where(low, mirrored, value))
    return b.where(pole, const(b, x, sign * math.inf), value)


def _trigamma(b: Builder, x: Node) -> Node:
    """Reflected to x >= 1/2, moved up by six, then its asymptotic series."""
    low = b.lt(x, 0.5)
    sine = b.sin(b.mul(x, math.pi))
    y, total = b.where(low, b.sub(1.0, x), x), const(b, x, 0.0)
    for _ in range(6):
        total, y = b.add(total, b.div(1.0, b.mul(y, y))), b.add(y, 1.0)
    square = b.div(1.0, b.mul(y, y))
    tail: Any = const(b, x, 1 / 42)
    for c in (1 / 30, 1 / 6):
        tail = b.sub(c, b.mul(square, tail))
    tail = b.add(b.add(b.div(1.0, b.mul(y, 2.0)), 1.0), b.mul(square, tail))
    total = b.add(total, b.div(tail, y))
    return b.where(low, b.sub(b.div(math.pi ** 2, b.mul(sine, sine)), total), total)
