"""What emitted Triton kernels call beside `tl`: arithmetic with eager's meaning, reductions and scans that
carry NaN, checked indices.

Takes blocks, gives blocks. Every function is element type generic: branches on `x.dtype` are decided while
Triton compiles. `interpreted` gives the few that Triton's interpreter lacks.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

# ---- arithmetic ----------------------------------------------------------------------------------


@triton.jit
def neg(x):
    """-x; of 0.0, too: Triton's own minus is 0.0 - x, and it takes a literal -0.0 for 0.0."""
    if x.dtype.is_floating():
        return x * -1.0
    else:
        return -x


@triton.jit
def div(a, b):
    """a / b, rounded as IEEE 754 says (`/` on float32 is an approximation)."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def reciprocal(x):
    """1 / x, rounded as IEEE 754 says."""
    return div(tl.full([], 1, x.dtype), x)


@triton.jit
def sqrt(x):
    """The square root, rounded as IEEE 754 says."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def philox(key, stream, index):
    """32 random bits: Philox 2x32 with ten rounds, the counter being (stream, index)."""
    k, b = key.to(tl.uint32, bitcast=True), stream.to(tl.uint32, bitcast=True)
    a = index.to(tl.uint32, bitcast=True)
    for _ in tl.static_range(10):
        product = a.to(tl.uint64) * tl.full([], 0xD256D193, tl.uint64)
        a = (product >> 32).to(tl.uint32) ^ k ^ b
        b = product.to(tl.uint32)
        k = k + tl.full([], 0x9E3779B9, tl.uint32)
    return a.to(tl.int32, bitcast=True)


@triton.jit
def maximum(a, b):
    """The larger; NaN wins. Of bools: or."""
    if a.dtype == tl.int1:
        return a | b
    else:
        return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    """The smaller; NaN wins. Of bools: and."""
    if a.dtype == tl.int1:
        return a & b
    else:
        return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def floordiv(a, b):
    """Integers: a / b rounded down."""
    q = a // b
    return tl.where((a % b != 0) & ((a < 0) != (b < 0)), q - 1, q).to(a.dtype)


@triton.jit
def remainder(a, b):
    """a mod b with b's sign."""
    r = fmod(a, b)
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r).to(a.dtype)


@triton.jit
def fmod(a, b):
    """a mod b with a's sign."""
    if a.dtype.is_floating():
        return libdevice.fmod(a, b)
    else:
        return a % b


@triton.jit
def signbit(x):
    """Is the sign bit set: of -0.0 and of negative NaN, too."""
    if x.dtype == tl.float64:
        return x.to(tl.int64, bitcast=True) < 0
    else:
        return x.to(tl.int32, bitcast=True) < 0


@triton.jit
def digamma(x):
    """The derivative of lgamma: reflected to x > 0, raised to x >= 10 by its recurrence, then its
    series."""
    pi = 3.14159265358979323846
    y = tl.where(x < 0, 1 - x, x)
    small = tl.full([], 0, x.dtype)
    for _ in tl.static_range(10):
        low = y < 10
        small = tl.where(low, small - 1 / y, small)
        y = tl.where(low, y + 1, y)
    z = 1 / (y * y)
    tail = 1 / 240 - z * (1 / 132 - z * (691 / 32760 - z / 12))
    tail = z * (1 / 12 - z * (1 / 120 - z * (1 / 252 - z * tail)))
    value = libdevice.log(y) - 0.5 / y - tail + small
    value = tl.where(x < 0, value - pi / libdevice.tan(pi * (x - libdevice.trunc(x))), value)
    pole = tl.where(x < 0, libdevice.floor(x) == x, False)
    value = tl.where(pole, float("nan"), value)
    return tl.where(x == 0, libdevice.copysign(x + float("inf"), neg(x)), value)


# ---- reductions ----------------------------------------------------------------------------------


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def _mul(a, b):
    return a * b


@triton.jit
def _or(a, b):
    return a | b


@triton.jit
def _and(a, b):
    return a & b


@triton.jit
def sum(x, axis: tl.constexpr):
    return tl.reduce(x, axis, _add)


@triton.jit
def prod(x, axis: tl.constexpr):
    return tl.reduce(x, axis, _mul)


@triton.jit
def amax(x, axis: tl.constexpr):
    if x.dtype == tl.int1:
        return any(x, axis)
    else:
        return tl.reduce(x, axis, maximum)


@triton.jit
def amin(x, axis: tl.constexpr):
    if x.dtype == tl.int1:
        return all(x, axis)
    else:
        return tl.reduce(x, axis, minimum)


@triton.jit
def any(x, axis: tl.constexpr):
    return tl.reduce(x.to(tl.int32), axis, _or) != 0


@triton.jit
def all(x, axis: tl.constexpr):
    return tl.reduce(x.to(tl.int32), axis, _and) != 0


@triton.jit
def later_max(a, i, b, j):
    """Whether (b, j) comes before (a, i) as the first largest: NaN wins, then the larger, the first."""
    wins = (b > a) | ((b != b) & (a == a))
    same = (a == b) | ((a != a) & (b != b))
    return wins | (same & (j < i))


@triton.jit
def later_min(a, i, b, j):
    """Whether (b, j) comes before (a, i) as the first smallest: NaN wins, then the smaller, the first."""
    wins = (b < a) | ((b != b) & (a == a))
    same = (a == b) | ((a != a) & (b != b))
    return wins | (same & (j < i))


@triton.jit
def _argmax(a, i, b, j):
    better = later_max(a, i, b, j)
    return tl.where(better, b, a), tl.where(better, j, i)


@triton.jit
def _argmin(a, i, b, j):
    better = later_min(a, i, b, j)
    return tl.where(better, b, a), tl.where(better, j, i)


@triton.jit
def argmax(x, at, axis: tl.constexpr):
    """The element of `at` where x is largest."""
    _, best = tl.reduce((x, at), axis, _argmax)
    return best


@triton.jit
def argmin(x, at, axis: tl.constexpr):
    """The element of `at` where x is smallest."""
    _, best = tl.reduce((x, at), axis, _argmin)
    return best


# ---- running reductions --------------------------------------------------------------------------


@triton.jit
def scan_sum(x, axis: tl.constexpr):
    return tl.associative_scan(x, axis, _add)


@triton.jit
def scan_prod(x, axis: tl.constexpr):
    return tl.associative_scan(x, axis, _mul)


@triton.jit
def scan_amax(x, axis: tl.constexpr):
    return tl.associative_scan(x, axis, maximum)


@triton.jit
def scan_amin(x, axis: tl.constexpr):
    return tl.associative_scan(x, axis, minimum)


# ---- indices -------------------------------------------------------------------------------------


@triton.jit
def checked(index, low, high, errors, number, active):
    """`index` clamped into [low, high). One that lies outside, at an active point, is reported:
    errors[number] becomes (1, index)."""
    bad = ((index < low) | (index >= high)) & active
    tl.store(errors + 2 * number + 0 * bad.to(tl.int32), 1, bad)
    tl.store(errors + 2 * number + 1 + 0 * bad.to(tl.int32), index, bad)
    return tl.minimum(tl.maximum(index, low), high - 1)
