"""Matrix products on tensor cores: batched, with a bias, an activation and a residual in the same kernel,
and with weights in 8 or 4 bits.

Takes blocks of A and B by plain pointers; Triton's pipeliner makes asynchronous copies of them (sm_80 and
later) and `tl.dot` becomes mma, or wgmma on sm_90. float16 and bfloat16 accumulate in float32, float32
multiplies as `precision` says ("ieee": as cuBLAS does by default; "tf32": on tensor cores).
"""

import torch
import triton
import triton.language as tl

from . import ops

# (rows, columns, depth of a tile; warps, stages): the largest that fills the GPU
TILES = ((128, 256, 64, 8, 3), (128, 128, 64, 8, 3), (128, 64, 32, 4, 4), (64, 64, 32, 4, 4),
         (32, 32, 32, 2, 4), (16, 16, 32, 1, 4))
ACTIVATIONS = ("", "relu", "gelu", "gelu_tanh", "silu")


@triton.jit
def tile_of(n, m_tiles, n_tiles, GROUP: tl.constexpr):
    """(row, column) of tile n: GROUP rows of tiles at a time, so that neighbours share operands in
    cache."""
    span = GROUP * n_tiles
    first = n // span * GROUP
    rows = tl.minimum(m_tiles - first, GROUP)
    return first + n % span % rows, n % span // rows


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return ops.maximum(x, tl.full([], 0.0, x.dtype))
    elif ACTIVATION == "gelu":
        return x * 0.5 * (1.0 + ops.libdevice.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x * 0.5 * (1.0 + ops.libdevice.tanh(inner))
    elif ACTIVATION == "silu":
        return x / (1.0 + ops.libdevice.exp(-x))
    else:
        return x


@triton.jit
def store_tile(acc, out, bias, residual, rows, cols, M, N, som, son, srm, srn, BIAS: tl.constexpr,
               RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr):
    """The epilogue: activation(acc + bias) + residual, stored where the tile lies inside the result."""
    inside = (rows[:, None] < M) & (cols[None, :] < N)
    if BIAS:
        acc += tl.load(bias + cols, cols < N, other=0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION)
    if RESIDUAL:
        acc += tl.load(residual + rows[:, None] * srm + cols[None, :] * srn, inside, other=0).to(tl.float32)
    tl.store(out + rows[:, None] * som + cols[None, :] * son, acc.to(out.dtype.element_ty), inside)


@triton.jit
def load_step(px, py, depth, left, EVEN: tl.constexpr):
    """The next BK columns at px and rows at py, of which `left` exist; EVEN: all of them do."""
    if EVEN:
        return tl.load(px), tl.load(py)
    else:
        return tl.load(px, depth[None, :] < left, other=0), tl.load(py, depth[:, None] < left, other=0)


@triton.jit
def matmul_kernel(a, b, out, bias, residual, M, N, K, sab, sam, sak, sbb, sbk, sbn, sob, som, son, srb, srm,
                  srn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
                  EVEN: tl.constexpr, PRECISION: tl.constexpr, PROLOGUE: tl.constexpr, BIAS: tl.constexpr,
                  RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr):
    """out[z] = ACTIVATION(PROLOGUE(a[z]) @ b[z] + bias) + residual[z]; EVEN: BK divides K."""
    z = tl.program_id(1).to(tl.int64)
    m, n = tile_of(tl.program_id(0), (M + BM - 1) // BM, (N + BN - 1) // BN, GROUP)
    rows, cols, depth = m * BM + tl.arange(0, BM), n * BN + tl.arange(0, BN), tl.arange(0, BK)
    # rows and columns outside wrap instead of being masked: they are not stored
    pa = a + z * sab + (rows % M)[:, None] * sam + depth[None, :] * sak
    pb = b + z * sbb + depth[:, None] * sbk + (cols % N)[None, :] * sbn
    acc = tl.full([BM, BN], 0.0, tl.float32)
    for k in range(0, K, BK):
        x, y = load_step(pa, pb, depth, K - k, EVEN)
        acc = tl.dot(activate(x, PROLOGUE), y, acc, input_precision=PRECISION)
        pa += BK * sak
        pb += BK * sbk
    store_tile(acc, out + z * sob, bias, residual + z * srb, rows, cols, M, N, som, son, srm, srn, BIAS,
               RESIDUAL, ACTIVATION)


@triton.jit
def quantised_kernel(a, w, scale, out, bias, M, N, K, sam, sak, swn, swk, ssn, ssg, som, son,
                     BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
                     EVEN: tl.constexpr, BITS: tl.constexpr, SPAN: tl.constexpr, BIAS: tl.constexpr,
                     ACTIVATION: tl.constexpr):
    """out = ACTIVATION(a @ (w * scale).T + bias). 8 bits: w is int8 [N, K], one scale per row. 4 bits: w is
    uint8 [N, K / 2], even columns in the low half, both offset by 8; one scale per row and SPAN columns."""
    m, n = tile_of(tl.program_id(0), (M + BM - 1) // BM, (N + BN - 1) // BN, GROUP)
    rows, cols, depth = m * BM + tl.arange(0, BM), n * BN + tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.full([BM, BN], 0.0, tl.float32)
    if BITS == 8:
        pa = a + (rows % M)[:, None] * sam + depth[None, :] * sak
        pw = w + (cols % N)[None, :] * swn + depth[:, None] * swk
        for k in range(0, K, BK):
            x, y = load_step(pa, pw, depth, K - k, EVEN)
            acc = tl.dot(x, y.to(x.dtype), acc, input_precision="ieee")
            pa += BK * sak
            pw += BK * swk
        acc *= tl.load(scale + cols * ssn, cols < N, other=0).to(tl.float32)[None, :]
    else:
        pa = a + (rows % M)[:, None] * sam + 2 * depth[None, :] * sak
        pw = w + (cols % N)[None, :] * swn + depth[:, None] * swk
        for k in range(0, K, 2 * BK):                       # BK bytes hold 2 * BK columns, all of one span
            y = tl.load(pw)
            low, high = tl.load(pa), tl.load(pa + sak)
            part = tl.dot(low, ((y & 15).to(tl.int8) - 8).to(low.dtype), input_precision="ieee")
            part = tl.dot(high, ((y >> 4).to(tl.int8) - 8).to(low.dtype), part, input_precision="ieee")
            s = tl.load(scale + (cols % N) * ssn + k // SPAN * ssg).to(tl.float32)
            acc += part * s[None, :]
            pa += 2 * BK * sak
            pw += BK * swk
    store_tile(acc, out, bias, out, rows, cols, M, N, som, son, som, son, BIAS, False, ACTIVATION)


def tile_for(m, n, batch=1, programs=132):
    """The largest tile that still gives every multiprocessor something to do."""
    return next((t for t in TILES if batch * -(-m // t[0]) * -(-n // t[1]) >= programs), TILES[-1])


def matmul(a, b, bias=None, residual=None, activation="", prologue="", precision="ieee", tile=None,
           kernel=matmul_kernel):
    """activation(prologue(a) @ b + bias) + residual.

    a [..., M, K] and b [..., K, N] with at most one batch dimension, bias [N], residual like the result,
    whose dtype is a's. `tile` is a row of TILES, `kernel` another form of matmul_kernel (interpreted).
    Raises ValueError for an activation that is not in ACTIVATIONS."""
    if activation not in ACTIVATIONS or prologue not in ACTIVATIONS:
        raise ValueError(f"activations are {ACTIVATIONS}")
    x, y = (t if t.dim() == 3 else t[None] for t in (a, b))
    batch, (m, k), n = max(x.shape[0], y.shape[0]), x.shape[1:], y.shape[2]
    out = torch.empty(batch, m, n, dtype=a.dtype, device=a.device)
    r = out if residual is None else residual.expand(out.shape) if residual.dim() == 3 else residual[None]
    bm, bn, bk, warps, stages = tile or tile_for(m, n, batch)
    step = lambda t: [0 if t.shape[0] == 1 else t.stride(0), *t.stride()[1:]]
    grid = (triton.cdiv(m, bm) * triton.cdiv(n, bn), batch)
    kernel[grid](x, y, out, out if bias is None else bias, r, m, n, k, *step(x), *step(y), *step(out),
                 *step(r), BM=bm, BN=bn, BK=bk, GROUP=8, EVEN=k % bk == 0, PRECISION=precision,
                 PROLOGUE=prologue, BIAS=bias is not None, RESIDUAL=residual is not None,
                 ACTIVATION=activation, num_warps=warps, num_stages=stages)
    return out if a.dim() == 3 or b.dim() == 3 else out[0]


def quantised(a, w, scale, bias=None, activation="", tile=None, kernel=quantised_kernel):
    """activation(a @ weight.T + bias) with a weight of 8 or 4 bits.

    a     [M, K]
    w     int8 [N, K] with scale [N], or uint8 [N, K / 2] with scale [N, K / span]: see quantised_kernel
    Raises ValueError where a span of 4-bit columns is not a multiple of the tile's depth."""
    (m, k), n = a.shape, w.shape[0]
    bits = 8 if w.dtype == torch.int8 else 4
    bm, bn, bk, warps, stages = tile or tile_for(m, n)
    span = k // scale.shape[1] if bits == 4 else k
    bk = bk if bits == 8 else min(bk, span // 2)
    if bits == 4 and (span % (2 * bk) or k % span):
        raise ValueError(f"a span of {span} columns is not a multiple of {2 * bk}")
    out = torch.empty(m, n, dtype=a.dtype, device=a.device)
    ssn, ssg = (scale.stride(0), scale.stride(1)) if bits == 4 else (scale.stride(0), 0)
    grid = (triton.cdiv(m, bm) * triton.cdiv(n, bn),)
    kernel[grid](a, w, scale, out, out if bias is None else bias, m, n, k, *a.stride(), *w.stride(), ssn, ssg,
                 *out.stride(), BM=bm, BN=bn, BK=bk, GROUP=8, EVEN=k % bk == 0, BITS=bits, SPAN=span,
                 BIAS=bias is not None, ACTIVATION=activation, num_warps=warps, num_stages=stages)
    return out


def quantise(weight, bits=8, span=128):
    """(w, scale) of a weight [N, K] as `quantised` takes them: symmetric, to the nearest."""
    n, k = weight.shape
    if bits == 8:
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        return (weight / scale[:, None]).round().to(torch.int8), scale
    groups = weight.reshape(n, k // span, span)
    scale = groups.abs().amax(2).clamp(min=1e-12) / 7
    q = ((groups / scale[:, :, None]).round() + 8).to(torch.uint8).reshape(n, k)
    return (q[:, ::2] | q[:, 1::2] << 4).contiguous(), scale
