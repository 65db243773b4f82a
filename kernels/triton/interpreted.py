"""`ops` and `libdevice` for Triton's interpreter, which runs kernels on numpy arrays.

The interpreter has no libdevice, reduces element by element in Python where the combining function is not one
of its own, lets NaN lose in maxima, cuts where bfloat16 rounds, and cannot invert unsigned numbers. Here
libdevice, reductions and conversions to bfloat16 are torch's, and every other function of `ops` is its own
Python text.
"""

import types

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from . import ops as compiled

TORCH = {"rint": "round", "fmod": "fmod"}               # libdevice's name -> torch's, where they differ


def array(x):
    """The numpy array of a block, a scalar, or a number."""
    return x.handle.data if isinstance(x, tl.tensor) else np.asarray(x)


def block(data, dtype):
    """A block of numpy data; the interpreter's scalars are arrays of one element."""
    kind = tl.block_type(dtype, list(np.shape(data))) if np.ndim(data) else dtype
    return tl.tensor(TensorHandle(np.ascontiguousarray(data), dtype), kind)


_cast = InterpreterBuilder.cast_impl


def cast(self, src, dst_type):
    """The builder's conversion of numbers, with bfloat16 (kept as uint16) rounded as hardware rounds it."""
    source, target = src.dtype.scalar, dst_type.scalar
    if target == tl.bfloat16 and source != target:
        bits = torch.from_numpy(src.data.astype(np.float32)).bfloat16().view(torch.int16).numpy()
        return TensorHandle(bits.view(np.uint16), target)
    if source == tl.bfloat16 and source != target:
        real = (src.data.astype(np.uint32) << 16).view(np.float32)
        return TensorHandle(real, tl.float32) if target == tl.float32 else _cast(
            self, TensorHandle(real, tl.float32), dst_type)
    return _cast(self, src, dst_type)


def all_ones(self, type):
    dtype = interpreter._get_np_dtype(type)
    return TensorHandle(np.ones(1, dtype) if dtype == np.bool_ else ~np.zeros(1, dtype), type.scalar)


InterpreterBuilder.cast_impl = cast
InterpreterBuilder.get_all_ones_value = all_ones


def elementwise(name):
    f = getattr(torch, TORCH.get(name, name), None) or getattr(torch.special, name)

    def call(*args):
        first = next(a for a in args if isinstance(a, tl.tensor))
        tensors = [torch.from_numpy(np.array(array(a))).to(_TYPES[first.dtype]) for a in args]
        scalar = all(not a.shape for a in args if isinstance(a, tl.tensor))
        data = f(*tensors).numpy()
        return block(data.reshape(()) if scalar else data, first.dtype)

    return call


_TYPES = {tl.float32: torch.float32, tl.float64: torch.float64}
libdevice = types.SimpleNamespace(**{name: elementwise(name) for name in (
    "log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh exp exp2 expm1 erf erfc "
    "erfinv lgamma sqrt rsqrt floor ceil trunc rint pow fmod atan2 nextafter copysign hypot").split()})


def reduction(f):
    """f(tensor, axis) on numpy data; bools stay bools."""
    def call(x, axis):
        data = np.asarray(f(torch.from_numpy(np.array(array(x))), axis).numpy())
        return block(data.astype(array(x).dtype), x.dtype)

    return call


def place(f):
    """The element of `at` where f, an argmax or argmin that takes the first, finds the extreme."""
    def call(x, at, axis):
        data, where = torch.from_numpy(np.array(array(x))), torch.from_numpy(np.array(array(at)))
        order = where.argsort(dim=axis, stable=True)        # the first in the order of `at` wins
        found = f(data.gather(axis, order), axis, keepdim=True)
        return block(where.gather(axis, order).gather(axis, found).squeeze(axis).numpy(), at.dtype)

    return call


ops = types.SimpleNamespace()
_scope = {**vars(compiled), "libdevice": libdevice}
_reductions = {
    "sum": reduction(lambda x, d: x.sum(d, dtype=x.dtype)), "prod": reduction(lambda x, d: x.prod(d, dtype=x.dtype)),
    "amax": reduction(torch.amax), "amin": reduction(torch.amin), "any": reduction(torch.any),
    "all": reduction(torch.all), "argmax": place(torch.argmax), "argmin": place(torch.argmin),
    "scan_sum": reduction(lambda x, d: x.cumsum(d, dtype=x.dtype)),
    "scan_prod": reduction(lambda x, d: x.cumprod(d, dtype=x.dtype)),
    "scan_amax": reduction(lambda x, d: x.cummax(d).values), "scan_amin": reduction(lambda x, d: x.cummin(d).values),
}
for _name, _value in list(vars(compiled).items()):
    _python = getattr(_value, "fn", None)               # what triton.jit decorated
    if isinstance(_python, types.FunctionType) and _value.__class__.__module__.startswith("triton"):
        _scope[_name] = types.FunctionType(_python.__code__, _scope, _name, _python.__defaults__)
        setattr(ops, _name, _scope[_name])
for _name, _value in _reductions.items():
    _scope[_name] = _value
    setattr(ops, _name, _value)
