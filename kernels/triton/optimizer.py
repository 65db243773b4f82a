"""Optimizer steps over many tensors in one launch: a table of addresses instead of one kernel per
parameter.

Takes lists of float32 tensors of equal lengths. A program updates one piece of one tensor; `pieces` says
which.
"""

import torch
import triton
import triton.language as tl

from . import ops

PIECE = 1024


@triton.jit
def element(table, tensor, offset):
    """The address of an element of the table's tensor."""
    return tl.load(table + tensor).to(tl.pointer_type(tl.float32)) + offset


@triton.jit
def adamw_kernel(params, grads, means, squares, owners, starts, sizes, lr, beta1, beta2, eps, decay,
                 correction1, correction2, X: tl.constexpr):
    """One piece of: p *= 1 - lr * decay; m = lerp(m, g, 1 - beta1); v = beta2 * v + (1 - beta2) * g * g;
    p -= lr / correction1 * m / (sqrt(v) / sqrt(correction2) + eps)."""
    n = tl.program_id(0)
    tensor = tl.load(owners + n)
    at = tl.load(starts + n) + tl.arange(0, X)
    there = at < tl.load(sizes + tensor)
    p, m, v = element(params, tensor, at), element(means, tensor, at), element(squares, tensor, at)
    g = tl.load(element(grads, tensor, at), there)
    old = tl.load(m, there)
    mean = old + (1 - beta1) * (g - old)
    square = tl.load(v, there) * beta2 + (1 - beta2) * g * g
    below = ops.div(ops.sqrt(square), correction2) + eps
    tl.store(p, tl.load(p, there) * (1 - lr * decay) - lr / correction1 * ops.div(mean, below), there)
    tl.store(m, mean, there)
    tl.store(v, square, there)


@triton.jit
def sgd_kernel(params, grads, momenta, owners, starts, sizes, lr, momentum, decay, X: tl.constexpr,
               FIRST: tl.constexpr):
    """One piece of: g += decay * p; b = g the first time, else momentum * b + g; p -= lr * b."""
    n = tl.program_id(0)
    tensor = tl.load(owners + n)
    at = tl.load(starts + n) + tl.arange(0, X)
    there = at < tl.load(sizes + tensor)
    p, b = element(params, tensor, at), element(momenta, tensor, at)
    value = tl.load(p, there)
    g = tl.load(element(grads, tensor, at), there) + decay * value
    step = g if FIRST else momentum * tl.load(b, there) + g
    tl.store(b, step, there)
    tl.store(p, value - lr * step, there)


def pieces(tensors, size=PIECE):
    """(owner of each piece, where it starts in it, lengths), for tensors of these shapes."""
    device = tensors[0].device
    counts = [-(-t.numel() // size) for t in tensors]
    owners = [i for i, n in enumerate(counts) for _ in range(n)]
    starts = [k * size for n in counts for k in range(n)]
    return (torch.tensor(owners, dtype=torch.int32, device=device),
            torch.tensor(starts, dtype=torch.int64, device=device),
            torch.tensor([t.numel() for t in tensors], dtype=torch.int64, device=device))


def addresses(tensors):
    """A table of where tensors lie. Raises ValueError for one that is not dense float32."""
    if any(t.dtype != torch.float32 or not t.is_contiguous() for t in tensors):
        raise ValueError("tensors are float32 and contiguous")
    return torch.tensor([t.data_ptr() for t in tensors], dtype=torch.int64, device=tensors[0].device)


def adamw(params, grads, means, squares, step, lr, betas=(0.9, 0.999), eps=1e-8, decay=0.01, size=PIECE,
          kernel=adamw_kernel):
    """Step number `step` (from 1) of AdamW, in place."""
    split = pieces(params, size)
    kernel[(len(split[0]),)](*map(addresses, (params, grads, means, squares)), *split, lr, *betas, eps, decay,
                             1 - betas[0] ** step, (1 - betas[1] ** step) ** 0.5, X=size)


def sgd(params, grads, momenta, lr, momentum=0.9, decay=0.0, first=False, size=PIECE, kernel=sgd_kernel):
    """A step of SGD with momentum, in place; `first`: the momenta hold nothing yet."""
    split = pieces(params, size)
    kernel[(len(split[0]),)](*map(addresses, (params, grads, momenta)), *split, lr, momentum, decay, X=size,
                             FIRST=first)
