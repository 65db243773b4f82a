"""Random numbers by a counter, with `config.random = "philox"`: drawn inside kernels and drawn again in the
backward, so that no mask is kept.

Takes a builder and a call that draws, gives nodes. The graph draws one number from torch's generator, its
seed (so `torch.manual_seed` decides, and every call draws others); call k of the graph has the key seed + k,
and an element's counter is its position. What has a generator of its own, or needs more than 24 random bits,
draws as eager mode does. Used by `decompose`.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..config import config
from ..ir.graph import Node
from ..ir.prims import PRIMS
from .builder import RULES, Builder, rule
from .draws import draw

aten = torch.ops.aten
BITS = 24          # what float32 holds exactly
Draw = Callable[..., Node]


def uniform(b: Builder, shape: Any) -> Node:
    """Float32 numbers from 0 to 1, without 1."""
    if uniform not in b.shared:
        b.shared[uniform] = b.call(aten.randint.low, 0, 2**63 - 1, (), dtype=torch.int64)
    seed = b.add(b.shared[uniform], sum(n.op is PRIMS["philox"] for n in b.nodes))
    key, stream = (b.to(b.cast(s, torch.int32), torch.int32, shape) for s in (seed, b.shr(seed, 32)))
    place = b.reshape(b.iota(math.prod(shape), 0, 1, torch.int32), shape)
    bits = b.and_(b.philox(key, stream, place), 2**BITS - 1)
    return b.mul(b.cast(bits, torch.float32), 2.0**-BITS)


def _bernoulli(b: Builder, shape: Any, p: Any = 0.5) -> Node:
    return b.lt(uniform(b, shape), b.cast(p, torch.float32) if isinstance(p, Node) else p)


def _between(b: Builder, shape: Any, low: float = 0.0, high: float = 1.0) -> Node:
    return b.add(b.mul(uniform(b, shape), high - low), low)


def _normal(b: Builder, shape: Any, mean: float = 0.0, std: float = 1.0) -> Node:
    """Box and Muller's."""
    away = b.sqrt(b.mul(b.log1p(b.neg(uniform(b, shape))), -2.0))
    return b.add(b.mul(b.mul(away, b.cos(b.mul(uniform(b, shape), 2 * math.pi))), std), mean)


def _exponential(b: Builder, shape: Any, rate: float = 1.0) -> Node:
    return b.mul(b.log1p(b.neg(uniform(b, shape))), -1.0 / rate)


IN_PLACE = {"bernoulli_": _bernoulli, "uniform_": _between, "normal_": _normal, "exponential_": _exponential}
# operator → (what it draws, how many leading arguments only say what the result is like)
TABLE: dict[Any, tuple[Draw, int]] = {
    aten.bernoulli.p: (_bernoulli, 1), aten.bernoulli.default: (_bernoulli, 0),
    aten.rand.default: (_between, 1), aten.rand_like.default: (_between, 1),
    aten.randn.default: (_normal, 1), aten.randn_like.default: (_normal, 1),
    aten.uniform.default: (_between, 1), aten.normal_functional.default: (_normal, 1),
    aten.exponential.default: (_exponential, 1), draw: (_between, 1)}


def _by_counter(op: Any, drawn: Draw, skip: int, otherwise: Any) -> Any:
    def decompose(b: Builder, *args: Any, generator: Any = None, **kwargs: Any) -> Any:
        spec, one, given = b.out, drawn, args[skip:]
        if op is draw:
            one, given = IN_PLACE.get(args[1]), args[3]
        exact = one is _bernoulli or spec.dtype in (torch.float32, torch.bfloat16, torch.float16)
        if config.random == "eager" or generator is not None or one is None or not exact:
            return otherwise(b, *args, generator=generator, **kwargs)
        return b.cast(one(b, spec.shape, *given), spec.dtype)
    return decompose


def _as_eager(*args: Any, **kwargs: Any) -> Any:
    return NotImplemented


def _like(name: str) -> Any:
    """Draws like an operand with holes go to places by the strides eager mode gives them, not by those that
    the operand's values are kept with."""
    def decompose(b: Builder, x: Node, *, generator: Any = None, **kwargs: Any) -> Any:
        if x.tensor.is_dense or b.out.dtype is not x.tensor.dtype:
            return NotImplemented
        return b.extern(draw, (x, name, b.out.stride, []), {"generator": generator}, b.out)
    return decompose


HOLES = {aten.rand_like.default: _like("uniform_"), aten.randn_like.default: _like("normal_")}
for _op, (_drawn, _skip) in TABLE.items():
    rule(_op)(_by_counter(_op, _drawn, _skip, HOLES.get(_op) or RULES.get(_op, _as_eager)))
