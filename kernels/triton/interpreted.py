"""`ops` and `libdevice` for Triton's interpreter, which runs kernels on numpy arrays.

The interpreter has no libdevice, reduces element by element in Python where the combining function is not
one of its own, lets NaN lose in maxima, cuts where bfloat16 rounds, and cannot invert unsigned numbers.
Here libdevice, reductions and conversions to bfloat16 are torch's, and every other function of `ops` is its
own Python text.
"""

import importlib
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


_dot = InterpreterBuilder.create_dot


def dot(self, a, b, d, *rest):
    """The builder's product, of bfloat16 in float32."""
    a, b = (cast(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _dot(self, a, b, d, *rest)


def bf16(self, value):
    return TensorHandle(torch.tensor([value], dtype=torch.bfloat16).view(torch.uint16).numpy(), tl.bfloat16)


InterpreterBuilder.get_bf16 = bf16
InterpreterBuilder.cast_impl = cast
InterpreterBuilder.create_dot = dot
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
    "log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh exp exp2 expm1 erf "
    "erfc erfinv lgamma sqrt rsqrt floor ceil trunc rint pow fmod atan2 nextafter copysign hypot").split()})


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


_reductions = {
    "sum": reduction(lambda x, d: x.sum(d, dtype=x.dtype)),
    "prod": reduction(lambda x, d: x.prod(d, dtype=x.dtype)),
    "amax": reduction(torch.amax), "amin": reduction(torch.amin), "any": reduction(torch.any),
    "all": reduction(torch.all), "argmax": place(torch.argmax), "argmin": place(torch.argmin),
    "scan_sum": reduction(lambda x, d: x.cumsum(d, dtype=x.dtype)),
    "scan_prod": reduction(lambda x, d: x.cumprod(d, dtype=x.dtype)),
    "scan_amax": reduction(lambda x, d: x.cummax(d).values),
    "scan_amin": reduction(lambda x, d: x.cummin(d).values),
}


def python_of(module):
    """The names of a module of kernels with triton.jit undone, and what is torch's here put in its
    place."""
    scope = dict(vars(module))
    for name, value in vars(module).items():
        python = getattr(value, "fn", None)             # what triton.jit decorated
        if isinstance(python, types.FunctionType) and type(value).__module__.startswith("triton"):
            scope[name] = types.FunctionType(python.__code__, scope, name, python.__defaults__)
            scope[name].__annotations__ = python.__annotations__
    scope.update({k: v for k, v in (("libdevice", libdevice), ("ops", ops)) if k in scope})
    return scope


ops: types.SimpleNamespace | None = None
ops = types.SimpleNamespace(**(_scope := python_of(compiled)))
_scope.update(_reductions)
vars(ops).update(_reductions)
ops.libdevice = libdevice


def kernel_of(kernel):
    """A triton.jit function of kernels/triton, interpreted: launched in the same way."""
    scope = python_of(importlib.import_module(kernel.fn.__module__))
    return interpreter.InterpretedFunction(scope[kernel.fn.__name__])
