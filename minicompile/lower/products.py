"""Decompositions around matrix products and convolutions: the product stays a library kernel, the bias
becomes a prim.

Takes a builder and operands, gives an extern and an `add` that can fuse with what follows. A convolution's
derivative by its image is a convolution, of the gradient with the weight turned over.
"""
from __future__ import annotations

from typing import Any

import torch

from ..ir.graph import Node
from ..ir.spec import TensorSpec
from ..ir.sym import Sym
from .builder import Builder, rule, wide
from .reduction import reduce

aten = torch.ops.aten
LIBRARY = frozenset((aten.bmm.default,))     # what loops can do, but a CPU's library does faster
# what a library does with its bias in one pass: for targets without products of our own to fuse the bias with
WITH_BIAS = frozenset((aten.addmm.default, aten.baddbmm.default, aten.convolution.default))


def _biased(b: Builder, product: Any, bias: Node, *operands: Node, beta: Any, alpha: Any) -> Any:
    """alpha * product + beta * bias; whole in the ATen kernel unless both factors are 1, and in float32."""
    if alpha != 1 or beta != 1 or any(x.tensor.dtype is not torch.float32 for x in (bias, *operands)):
        return NotImplemented
    return b.add(b.call(product, *operands), b.expand(bias, b.out.shape))


@rule(aten.addmm.default)
def _addmm(b: Builder, bias: Node, x: Node, y: Node, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return _biased(b, aten.mm.default, bias, x, y, beta=beta, alpha=alpha)


@rule(aten.baddbmm.default)
def _baddbmm(b: Builder, bias: Node, x: Node, y: Node, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return _biased(b, aten.bmm.default, bias, x, y, beta=beta, alpha=alpha)


@rule(aten.addmv.default)
def _addmv(b: Builder, bias: Node, x: Node, y: Node, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """`mv`: a product with one column."""
    if alpha != 1 or beta != 0 or any(n.tensor.dtype is not torch.float32 for n in (x, y)):
        return NotImplemented
    return b.reshape(b.call(aten.mm.default, x, b.reshape(y, (y.tensor.shape[0], 1))), b.out.shape)


@rule(aten.bmm.default)
def _bmm(b: Builder, x: Node, y: Node) -> Any:
    """With one row or one column it is a sum of products, which reads its operands where they are."""
    (n, rows, k), columns, dtype = x.tensor.shape, y.tensor.shape[2], x.tensor.dtype
    if not (rows == 1 or columns == 1) or not dtype.is_floating_point:
        return NotImplemented
    turned = b.permute(y if columns == 1 else x, (0, 2, 1))
    factors = (x, turned) if columns == 1 else (turned, y)
    shape, wider = (n, rows, k) if columns == 1 else (n, k, columns), wide(dtype)
    product = b.mul(*(b.expand(b.cast(a, wider), shape) for a in factors))
    return b.reshape(b.cast(reduce(b, "sum", product, (2 if columns == 1 else 1,)), dtype), b.out.shape)


@rule(aten._trilinear.default)
def _trilinear(b: Builder, x: Node, weight: Node, y: Node, *how: Any) -> Any:
    """What `bilinear` makes: x[n, i] weight[o, i, j] y[n, j], the first product by the library."""
    if how[:4] != BILINEAR or b.out.dtype not in (torch.float32, torch.float64):
        return NotImplemented
    n, features = x.tensor.shape
    product = b.call(aten.bmm.default, b.expand(x, (weight.tensor.shape[0], n, features)), weight)
    product = b.mul(product, b.expand(y, product.tensor.shape))
    return b.permute(reduce(b, "sum", product, (2,)), (1, 0))


BILINEAR = ((1, 3), (0,), (1, 2), (2, 3))


@rule(aten.convolution.default)
def _convolution(b: Builder, x: Node, weight: Node, bias: Node | None, *rest: Any) -> Any:
    transposed = rest[3]
    fused = x.tensor.ndim == 4 and (b.out.is_contiguous or b.out.is_channels_last) and not transposed
    if bias is None or x.tensor.dtype is not torch.float32 or not fused:
        return NotImplemented                              # the library adds it in passing
    args = (x, weight, None, *rest)
    product = b.extern(aten.convolution.default, args, {}, b.out)
    channels = b.reshape(bias, (bias.tensor.shape[0],) + (1,) * (len(b.out.shape) - 2))
    return b.add(product, b.expand(channels, b.out.shape))


@rule(aten.convolution_backward.default)
def _convolution_backward(b: Builder, g: Node, x: Node, weight: Node, bias_sizes: Any, *rest: Any) -> Any:
    """(gradient of x, of the weight, of the bias), each None if rest[-1] doesn't ask for it: a convolution of
    our own where there is one, the library's, and a sum."""
    *geometry, mask = rest
    if not g.tensor.numel:
        return NotImplemented
    dims, device = tuple(d for d in range(g.tensor.ndim) if d != 1), g.tensor.device
    own = [None, None, b.cast(reduce(b, "sum", b.widen(g), dims), b.out[2].dtype) if mask[2] else None]
    turned = _turned(b, g, weight, *geometry) if mask[0] else None
    if turned is not None:
        spec = TensorSpec.contiguous(torch.float32, x.tensor.shape, device)
        own[0] = b.extern(aten.convolution.default, (g, *turned), {}, spec)
    left = tuple(wanted and one is None for wanted, one in zip(mask, own))
    if left == tuple(mask):
        return NotImplemented
    if any(left):
        specs = tuple(s if wanted else None for s, wanted in zip(b.out, left))
        args = (g, x, weight, None, *geometry, left)
        several = b.extern(aten.convolution_backward.default, args, {}, specs)
        own = [b.item(several, i) if wanted else one for i, (one, wanted) in enumerate(zip(own, left))]
    return tuple(own)


def _turned(b: Builder, g: Node, weight: Node, stride: Any, padding: Any, dilation: Any, transposed: bool,
            _: Any, groups: int) -> tuple | None:
    """What g is convolved with to give the gradient of the image: the arguments after it, for kernels of our
    own. None where it is no convolution, or not one of those."""
    plain = all(n.tensor.ndim == 4 and n.tensor.dtype is torch.float32 and n.tensor.is_contiguous
                for n in (g, weight))
    if transposed or not plain or aten.convolution.default in b.whole or any(n != 1 for n in stride):
        return None
    o, c, *kernel = weight.tensor.shape
    steps = [dilation[0], dilation[-1]]
    around = [d * (k - 1) - p for d, k, p in zip(steps, kernel, (padding[0], padding[-1]))]
    if any(isinstance(n, Sym) or n < 0 for n in around):
        return None
    turned = b.permute(b.reshape(b.flip(weight, (2, 3)), (groups, o // groups, c, *kernel)), (0, 2, 1, 3, 4))
    shape = (groups * c, o // groups, *kernel)
    spec = TensorSpec.contiguous(torch.float32, shape, weight.tensor.device)
    turned = b.laid_out(b.reshape(turned, shape), spec)
    return turned, None, [1, 1], around, steps, False, [0, 0], groups
