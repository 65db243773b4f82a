"""Attention in one pass over keys and values, forward and backward: no buffer has queries times keys
elements.

Takes q [B, H, M, D], k and v [B, HK, N, D] with H a multiple of HK (grouped queries), an optional additive
mask that broadcasts to [B, H, M, N], and gives the result with its log-sum-exp per row, from which the
backward computes probabilities again. Rows of a mask that forbid everything give 0.
"""

import math

import torch
import triton
import triton.language as tl

from . import ops

TILE = (64, 64, 4, 2)               # queries, keys, warps, stages
BACKWARD = (64, 32, 4, 2)           # smaller, as more of it is in registers


@triton.jit
def scores(q, k, scale, mask, rows, cols, smm, smn, M, N, CAUSAL: tl.constexpr, MASK: tl.constexpr,
           PRECISION: tl.constexpr):
    """A tile of scaled scores, -inf where a query may not see a key; k is [D, keys]."""
    s = tl.dot(q, k, input_precision=PRECISION) * scale
    inside = (rows[:, None] < M) & (cols[None, :] < N)
    if MASK:
        s += tl.load(mask + rows[:, None] * smm + cols[None, :] * smn, inside, other=0).to(tl.float32)
    if CAUSAL:
        inside = inside & (rows[:, None] >= cols[None, :])
    return tl.where(inside, s, float("-inf"))


@triton.jit
def attention_forward_kernel(q, k, v, mask, out, lse, scale, sqb, sqh, sqm, skb, skh, skn, svb, svh, svn,
                             smb, smh, smm, smn, sob, soh, som, H, G, M, N, D: tl.constexpr, BM: tl.constexpr,
                             BN: tl.constexpr, BD: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr,
                             PRECISION: tl.constexpr):
    """One tile of queries of one head; G query heads share a key head."""
    b, h = (tl.program_id(1) // H).to(tl.int64), (tl.program_id(1) % H).to(tl.int64)
    rows, depth = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BD)
    there = (rows[:, None] < M) & (depth[None, :] < D)
    x = tl.load(q + b * sqb + h * sqh + rows[:, None] * sqm + depth[None, :], there, other=0)
    k += b * skb + h // G * skh
    v += b * svb + h // G * svh
    mask += b * smb + h * smh
    top = tl.full([BM], float("-inf"), tl.float32)          # the largest score so far
    total = tl.full([BM], 0.0, tl.float32)                  # the sum of exp(score - top)
    acc = tl.full([BM, BD], 0.0, tl.float32)
    last = tl.minimum(N, (tl.program_id(0) + 1) * BM) if CAUSAL else N
    for start in range(0, last, BN):
        cols = start + tl.arange(0, BN)
        inside = (cols[:, None] < N) & (depth[None, :] < D)
        keys = tl.load(k + cols[:, None] * skn + depth[None, :], inside, other=0)
        s = scores(x, tl.trans(keys), scale, mask, rows, cols, smm, smn, M, N, CAUSAL, MASK, PRECISION)
        high = ops.maximum(top, ops.amax(s, 1))
        safe = tl.where(high == float("-inf"), 0.0, high)
        p = ops.libdevice.exp(s - safe[:, None])
        shrink = ops.libdevice.exp(top - safe)
        total = total * shrink + ops.sum(p, 1)
        values = tl.load(v + cols[:, None] * svn + depth[None, :], inside, other=0)
        acc = acc * shrink[:, None] + tl.dot(p.to(values.dtype), values, input_precision=PRECISION)
        top = high
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    out += b * sob + h * soh
    tl.store(out + rows[:, None] * som + depth[None, :], acc.to(out.dtype.element_ty), there)
    tl.store(lse + (b * H + h) * M + rows, top + ops.libdevice.log(total), rows < M)


@triton.jit
def attention_delta_kernel(out, grad, delta, count, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr):
    """delta = sum(out * grad) per row; both are contiguous."""
    rows, depth = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BD)
    at, there = rows[:, None] * D + depth[None, :], (rows[:, None] < count) & (depth[None, :] < D)
    x = tl.load(out + at, there, other=0).to(tl.float32) * tl.load(grad + at, there, other=0).to(tl.float32)
    tl.store(delta + rows, ops.sum(x, 1), rows < count)


@triton.jit
def attention_keys_kernel(q, k, v, mask, grad, lse, delta, dk, dv, scale, sqb, sqh, sqm, skb, skh, skn, svb,
                          svh, svn, smb, smh, smm, smn, sgb, sgh, sgm, H, G, M, N, D: tl.constexpr,
                          BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, CAUSAL: tl.constexpr,
                          MASK: tl.constexpr, PRECISION: tl.constexpr):
    """Gradients of one tile of keys and values of one key head: from all queries of the G heads that share
    it."""
    heads = H // G
    b, hk = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    cols, depth = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BD)
    there = (cols[:, None] < N) & (depth[None, :] < D)
    keys = tl.load(k + b * skb + hk * skh + cols[:, None] * skn + depth[None, :], there, other=0)
    values = tl.load(v + b * svb + hk * svh + cols[:, None] * svn + depth[None, :], there, other=0)
    gk, gv = tl.full([BN, BD], 0.0, tl.float32), tl.full([BN, BD], 0.0, tl.float32)
    first = tl.program_id(0) * BN // BM * BM if CAUSAL else 0
    for g in range(0, G):
        h = hk * G + g
        for start in range(first, M, BM):
            rows = start + tl.arange(0, BM)
            inside = (rows[:, None] < M) & (depth[None, :] < D)
            x = tl.load(q + b * sqb + h * sqh + rows[:, None] * sqm + depth[None, :], inside, other=0)
            dy = tl.load(grad + b * sgb + h * sgh + rows[:, None] * sgm + depth[None, :], inside, other=0)
            s = scores(x, tl.trans(keys), scale, mask + b * smb + h * smh, rows, cols, smm, smn, M, N, CAUSAL,
                       MASK, PRECISION)
            norm = tl.load(lse + (b * H + h) * M + rows, rows < M, other=0)
            p = tl.where(s == float("-inf"), 0.0, ops.libdevice.exp(s - norm[:, None]))
            gv += tl.dot(tl.trans(p.to(dy.dtype)), dy, input_precision=PRECISION)
            dp = tl.dot(dy, tl.trans(values), input_precision=PRECISION)
            ds = p * (dp - tl.load(delta + (b * H + h) * M + rows, rows < M, other=0)[:, None])
            gk += tl.dot(tl.trans(ds.to(x.dtype)), x, input_precision=PRECISION)
    at = ((b * heads + hk) * N + cols[:, None]) * D + depth[None, :]
    tl.store(dk + at, (gk * scale).to(dk.dtype.element_ty), there)
    tl.store(dv + at, gv.to(dv.dtype.element_ty), there)


@triton.jit
def attention_queries_kernel(q, k, v, mask, grad, lse, delta, dq, scale, sqb, sqh, sqm, skb, skh, skn, svb,
                             svh, svn, smb, smh, smm, smn, sgb, sgh, sgm, H, G, M, N, D: tl.constexpr,
                             BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, CAUSAL: tl.constexpr,
                             MASK: tl.constexpr, PRECISION: tl.constexpr):
    """Gradient of one tile of queries of one head."""
    b, h = (tl.program_id(1) // H).to(tl.int64), (tl.program_id(1) % H).to(tl.int64)
    rows, depth = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BD)
    there = (rows[:, None] < M) & (depth[None, :] < D)
    x = tl.load(q + b * sqb + h * sqh + rows[:, None] * sqm + depth[None, :], there, other=0)
    dy = tl.load(grad + b * sgb + h * sgh + rows[:, None] * sgm + depth[None, :], there, other=0)
    norm = tl.load(lse + (b * H + h) * M + rows, rows < M, other=0)
    rest = tl.load(delta + (b * H + h) * M + rows, rows < M, other=0)
    gq = tl.full([BM, BD], 0.0, tl.float32)
    last = tl.minimum(N, (tl.program_id(0) + 1) * BM) if CAUSAL else N
    for start in range(0, last, BN):
        cols = start + tl.arange(0, BN)
        inside = (cols[:, None] < N) & (depth[None, :] < D)
        keys = tl.load(k + b * skb + h // G * skh + cols[:, None] * skn + depth[None, :], inside, other=0)
        values = tl.load(v + b * svb + h // G * svh + cols[:, None] * svn + depth[None, :], inside, other=0)
        s = scores(x, tl.trans(keys), scale, mask + b * smb + h * smh, rows, cols, smm, smn, M, N, CAUSAL,
                   MASK, PRECISION)
        p = tl.where(s == float("-inf"), 0.0, ops.libdevice.exp(s - norm[:, None]))
        ds = p * (tl.dot(dy, tl.trans(values), input_precision=PRECISION) - rest[:, None])
        gq += tl.dot(ds.to(keys.dtype), keys, input_precision=PRECISION)
    at = ((b * H + h) * M + rows[:, None]) * D + depth[None, :]
    tl.store(dq + at, (gq * scale).to(dq.dtype.element_ty), there)


def _given(q, k, v, mask, scale, tile):
    """(mask, scale, sizes, constants, options): what all launches share. The last dimension must be
    dense."""
    (batch, heads, m, d), (_, key_heads, n, _) = q.shape, k.shape
    if heads % key_heads or any(t.stride(-1) != 1 for t in (q, k, v)):
        raise ValueError("query heads are a multiple of key heads, and the last dimension is dense")
    spread = None if mask is None else mask.expand(batch, heads, m, n)
    bm, bn, warps, stages = tile
    constants = {"D": d, "BM": bm, "BN": bn, "BD": max(triton.next_power_of_2(d), 16),
                 "MASK": mask is not None, "PRECISION": "ieee"}
    return (q if spread is None else spread, [0] * 4 if spread is None else list(spread.stride()),
            scale if scale is not None else 1 / math.sqrt(d), (heads, heads // key_heads, m, n), constants,
            {"num_warps": warps, "num_stages": stages})


def attention(q, k, v, mask=None, causal=False, scale=None, tile=TILE, kernel=attention_forward_kernel):
    """(result, log-sum-exp [B, H, M] in float32). Causal: query i sees keys 0 … i.

    Raises ValueError for shapes that do not fit."""
    given, steps, scale, sizes, constants, options = _given(q, k, v, mask, scale, tile)
    heads, _, m, _ = sizes
    out, lse = torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(q.shape[:3], device=q.device)
    kernel[triton.cdiv(m, tile[0]), q.shape[0] * heads](
        q, k, v, given, out, lse, scale, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *steps,
        *out.stride()[:3], *sizes, CAUSAL=causal, **constants, **options)
    return out, lse


def attention_backward(grad, q, k, v, out, lse, mask=None, causal=False, scale=None, tile=BACKWARD,
                       kernels=(attention_delta_kernel, attention_keys_kernel, attention_queries_kernel)):
    """Gradients of q, k and v; `out` and `lse` are what `attention` gave."""
    given, steps, scale, sizes, constants, options = _given(q, k, v, mask, scale, tile)
    (batch, heads, m, d), (key_heads, n), (bm, bn) = q.shape, k.shape[1:3], tile[:2]
    grad = grad.contiguous()
    delta = torch.empty_like(lse)
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    kernels[0][(triton.cdiv(batch * heads * m, bm),)](out, grad, delta, batch * heads * m, D=d, BM=bm,
                                                      BD=constants["BD"])
    shared = [scale, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *steps, *grad.stride()[:3], *sizes]
    kernels[1][triton.cdiv(n, bn), batch * key_heads](q, k, v, given, grad, lse, delta, dk, dv, *shared,
                                                      CAUSAL=causal, **constants, **options)
    kernels[2][triton.cdiv(m, bm), batch * heads](q, k, v, given, grad, lse, delta, dq, *shared,
                                                  CAUSAL=causal, **constants, **options)
    return dq, dk, dv
