"""THE prim table: every operation behind the lowering is one row here, or an extern call of an ATen kernel.

Takes nothing; `lower` produces nodes whose op is a row, `loops` and both emitters read the rows' columns.
At most 100 rows. A new prim is one row here and nothing else: its meta rule, its reference, its C++ and
Triton text and its test's edge values are columns.
"""
from __future__ import annotations

import keyword
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from .spec import TensorSpec

Tensor = torch.Tensor
FLOAT = (torch.float32, torch.float64)          # what float prims compute in: narrower ones are cast before
INT = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
BOOL = (torch.bool,)
ANY: tuple[torch.dtype, ...] = ()               # no restriction
Shape = tuple[int, ...]
Meta = Callable[..., tuple[torch.dtype, Shape]]


@dataclass(frozen=True, slots=True, eq=False)
class Prim:
    """One row.

    name     the name in graphs, in Val Apply nodes, and (by default) of the C++ function mc::name
    kind     "elementwise" | "reduce" | "scan" | "view" | "create" | "gather"
    doc      the meaning in one line
    ref      reference on tensors (eager torch), called with the node's args; defines the prim
    meta     (dtype, shape) of the result from the node's args, with TensorSpecs in place of tensors; raises
             ValueError
    arity    number of tensor operands for elementwise prims
    result   dtype of the result: "same" as the operands, "bool", "param" (an argument says), "int64"
    dtypes   operand dtypes it is defined for; () for all
    cpp      C++ text, `{0}`, `{1}` … are operands; the same text must serve scalars and SIMD vectors
             (kernels/cpp)
    triton   Triton text, likewise
    edges    extra operand values its generated test walks, beside the ones every dtype gets (NaN, ±inf,
             -0.0, extremes)
    """

    name: str
    kind: str
    doc: str
    ref: Callable[..., Any]
    meta: Meta
    arity: int = 0
    result: str = "same"
    dtypes: tuple = ANY
    cpp: str = ""
    triton: str = ""
    edges: tuple = ()

    @property
    def text_name(self) -> str:
        """The name as Python text may use it (`and_` for `and`)."""
        return self.name + "_" if keyword.iskeyword(self.name) else self.name

    def __repr__(self) -> str:
        return self.name


PRIMS: dict[str, Prim] = {}


class Misfit(ValueError):
    """Operands that a row does not take."""


def need(condition: bool, reason: str) -> None:
    if not condition:
        raise Misfit(reason)


# ---- elementwise rows -----------------------------------------------------------------------------

def _pointwise(result: str, dtypes: tuple, conditions: int = 0) -> Meta:
    """The meta rule of an elementwise row whose first `conditions` operands are bool and whose others share
    a dtype."""
    def meta(*args: Any) -> tuple[torch.dtype, Shape]:
        tensors = [a for a in args if isinstance(a, TensorSpec)]
        need(bool(tensors), "no tensor among its operands")
        values = [a for a in args[conditions:] if isinstance(a, TensorSpec)]
        need(bool(values), "no tensor says its dtype")
        dtype = values[0].dtype
        need(all(a.shape == tensors[0].shape for a in tensors),
             f"shapes differ: {[a.shape for a in tensors]}")
        need(all(v.dtype == dtype for v in values), f"dtypes differ: {[v.dtype for v in values]}")
        need(all(a.dtype == torch.bool for a in args[:conditions]), "the condition is not bool")
        need(not dtypes or dtype in dtypes, f"is not defined for {dtype}")
        return torch.bool if result == "bool" else dtype, tensors[0].shape
    return meta


def _elementwise(name: str, arity: int, dtypes: tuple, ref: Any, doc: str, cpp: str = "", triton: str = "",
                 result: str = "same", edges: tuple = ()) -> None:
    slots = ", ".join(f"{{{i}}}" for i in range(arity))
    conditions = 1 if name == "where" else 0
    if arity > 1:
        ref = _numbers_too(ref, conditions)
    PRIMS[name] = Prim(name, "elementwise", doc, ref, _pointwise(result, dtypes, conditions), arity, result,
                       dtypes, cpp or f"mc::{name}({slots})", triton or f"libdevice.{name}({slots})", edges)


def _numbers_too(f: Any, conditions: int) -> Any:
    """`f` for operands of which some are Python numbers: they have the dtype of the others."""
    def ref(*args: Any) -> Tensor:
        dtype = next(a.dtype for a in args[conditions:] if isinstance(a, Tensor))
        return f(*(a if isinstance(a, Tensor) else torch.tensor(a, dtype=dtype) for a in args))
    return ref


def _unary_rows() -> None:
    for name in (
        "log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh exp exp2 expm1 erf "
        "erfc erfinv lgamma digamma"
    ).split():
        _elementwise(name, 1, FLOAT, getattr(torch, name), f"{name}(x)",
                     triton="ops.digamma({0})" if name == "digamma" else "",
                     edges=(0.5, -0.5, 1.0, -1.0, 2.0, 100.0, -100.0))
    _elementwise("sqrt", 1, FLOAT, torch.sqrt, "square root", triton="ops.sqrt({0})")
    _elementwise("rsqrt", 1, FLOAT, torch.rsqrt, "1 / sqrt(x)")
    _elementwise("reciprocal", 1, FLOAT, torch.reciprocal, "1 / x", triton="ops.reciprocal({0})")
    for name in ("floor", "ceil", "trunc", "round"):
        _elementwise(name, 1, FLOAT, getattr(torch, name), "rounds; `round` to the even of two neighbours",
                     triton=f"libdevice.{name.replace('round', 'rint')}({{0}})", edges=(0.5, 1.5, -0.5, 2.5))
    _elementwise("neg", 1, FLOAT + INT, torch.neg, "-x", "mc::neg({0})", "ops.neg({0})")
    _elementwise("abs", 1, FLOAT + INT, torch.abs, "magnitude", triton="tl.abs({0})")
    _elementwise("sign", 1, FLOAT + INT, torch.sign, "-1, 0 or 1; 0 for NaN",
                 triton="(({0} > 0).to({0}.dtype) - ({0} < 0).to({0}.dtype))")
    _elementwise("not", 1, INT + BOOL, torch.bitwise_not, "every bit; of a bool: the other one",
                 "mc::not_({0})", "(~{0})")
    _elementwise("isnan", 1, FLOAT, torch.isnan, "is it NaN", triton="({0} != {0})", result="bool")
    _elementwise("isinf", 1, FLOAT, torch.isinf, "is it an infinity", triton="(tl.abs({0}) == float('inf'))",
                 result="bool")
    _elementwise("signbit", 1, FLOAT, torch.signbit, "is the sign bit set (-0.0 too)",
                 triton="ops.signbit({0})", result="bool")


def _binary_rows() -> None:
    number = FLOAT + INT
    for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*")):
        _elementwise(name, 2, number, getattr(torch, name), f"a {sign} b; integers wrap",
                     f"mc::{name}({{0}}, {{1}})", f"({{0}} {sign} {{1}})")
    _elementwise("div", 2, FLOAT, torch.true_divide, "a / b", triton="ops.div({0}, {1})")
    _elementwise("floordiv", 2, INT, lambda a, b: torch.div(a, b, rounding_mode="floor"),
                 "a / b rounded down; b != 0", triton="ops.floordiv({0}, {1})")
    _elementwise("truncdiv", 2, INT, lambda a, b: torch.div(a, b, rounding_mode="trunc"),
                 "a / b rounded to 0; b != 0", triton="({0} // {1})")
    _elementwise("remainder", 2, number, torch.remainder, "a mod b with b's sign; integers: b != 0",
                 triton="ops.remainder({0}, {1})", edges=(3.0, -3.0))
    _elementwise("fmod", 2, number, torch.fmod, "a mod b with a's sign; integers: b != 0",
                 triton="ops.fmod({0}, {1})", edges=(3.0, -3.0))
    _elementwise("pow", 2, FLOAT, torch.pow, "a to the power b", edges=(2.0, 0.5, -1.0, 3.0))
    _elementwise("maximum", 2, number, torch.maximum, "the larger; NaN wins",
                 triton="ops.maximum({0}, {1})")
    _elementwise("minimum", 2, number, torch.minimum, "the smaller; NaN wins",
                 triton="ops.minimum({0}, {1})")
    for name in ("atan2", "nextafter", "copysign", "hypot"):
        _elementwise(name, 2, FLOAT, getattr(torch, name), f"{name}(a, b)")
    for name, sign in (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")):
        _elementwise(name, 2, number + BOOL, getattr(torch, name), f"a {sign} b", f"mc::{name}({{0}}, {{1}})",
                     f"({{0}} {sign} {{1}})", "bool")
    for name, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
        _elementwise(name, 2, INT + BOOL, getattr(torch, f"bitwise_{name}"), f"a {sign} b on bits or bools",
                     f"mc::{name}_({{0}}, {{1}})", f"({{0}} {sign} {{1}})")
    _elementwise("philox", 3, (torch.int32,), _philox,
                 "32 random bits: Philox 2x32-10 of the key a and the counter (b, c)",
                 triton="ops.philox({0}, {1}, {2})")
    _elementwise("shl", 2, INT, torch.bitwise_left_shift, "a << b", triton="({0} << {1})")
    _elementwise("shr", 2, INT, torch.bitwise_right_shift, "a >> b, copies of the sign come in",
                 triton="({0} >> {1})")


def _philox(key: Tensor, stream: Tensor, index: Tensor) -> Tensor:
    """Ten rounds on words of 32 bits, held in int64."""
    k, b, a = (x.long() & 0xFFFFFFFF for x in (key, stream, index))
    for _ in range(10):
        product = a * 0xD256D193
        a, b, k = (product >> 32 & 0xFFFFFFFF) ^ k ^ b, product & 0xFFFFFFFF, k + 0x9E3779B9 & 0xFFFFFFFF
    return a.to(torch.int32)


def _cast_meta(x: TensorSpec, dtype: torch.dtype) -> tuple[torch.dtype, Shape]:
    return dtype, x.shape


def _bitcast_meta(x: TensorSpec, dtype: torch.dtype) -> tuple[torch.dtype, Shape]:
    need(x.dtype.itemsize == dtype.itemsize, f"{x.dtype} and {dtype} differ in size")
    return dtype, x.shape


# ---- creation, views ------------------------------------------------------------------------------

def _iota(n: int, start: Any, step: Any, dtype: torch.dtype) -> Tensor:
    """start + i * step, in integers for integer dtypes."""
    i = torch.arange(n, dtype=torch.float64 if dtype.is_floating_point else torch.int64)
    return (i * step + start).to(dtype)


def _iota_meta(n: int, start: Any, step: Any, dtype: torch.dtype) -> tuple[torch.dtype, Shape]:
    need(dtype not in (torch.bfloat16, torch.float16), f"is not defined for {dtype}")
    return dtype, (n,)


def _expand_meta(x: TensorSpec, shape: Shape) -> tuple[torch.dtype, Shape]:
    lead = len(shape) - len(x.shape)
    need(lead >= 0 and all(a in (b, 1) for a, b in zip(x.shape, shape[lead:])),
         f"{x.shape} does not expand to {shape}")
    return x.dtype, tuple(shape)


def _permute_meta(x: TensorSpec, dims: Shape) -> tuple[torch.dtype, Shape]:
    need(sorted(dims) == list(range(x.ndim)), f"{dims} is no permutation of {x.ndim} dimensions")
    return x.dtype, tuple(x.shape[d] for d in dims)


def _reshape_meta(x: TensorSpec, shape: Shape) -> tuple[torch.dtype, Shape]:
    numel = 1
    for n in shape:
        numel *= n
    need(numel == x.numel, f"{x.shape} does not reshape to {shape}")
    return x.dtype, tuple(shape)


def _slice(x: Tensor, dim: int, start: int, stop: int, step: int) -> Tensor:
    return x[(slice(None),) * dim + (slice(start, stop, step),)]


def _slice_meta(x: TensorSpec, dim: int, start: int, stop: int, step: int) -> tuple[torch.dtype, Shape]:
    need(0 <= dim < x.ndim and 0 <= start <= stop <= x.shape[dim] and step > 0, "slice out of range")
    return x.dtype, (*x.shape[:dim], (stop - start + step - 1) // step, *x.shape[dim + 1:])


def _flip_meta(x: TensorSpec, dims: Shape) -> tuple[torch.dtype, Shape]:
    need(all(0 <= d < x.ndim for d in dims) and len(set(dims)) == len(dims), f"cannot flip {dims}")
    return x.dtype, x.shape


def _pad(x: Tensor, low: Shape, high: Shape, value: Any) -> Tensor:
    out = x.new_full([n + a + b for n, a, b in zip(x.shape, low, high)], value)
    out[tuple(slice(a, a + n) for a, n in zip(low, x.shape))] = x
    return out


def _pad_meta(x: TensorSpec, low: Shape, high: Shape, value: Any) -> tuple[torch.dtype, Shape]:
    need(len(low) == len(high) == x.ndim and min((*low, *high, 0)) >= 0, f"cannot pad by {low}, {high}")
    return x.dtype, tuple(n + a + b for n, a, b in zip(x.shape, low, high))


def _cat_meta(xs: tuple[TensorSpec, ...], dim: int) -> tuple[torch.dtype, Shape]:
    first = xs[0]
    need(0 <= dim < first.ndim and all(x.dtype == first.dtype for x in xs),
         "parts differ in dtype, or bad dimension")
    rest = [(*x.shape[:dim], *x.shape[dim + 1:]) for x in xs]
    need(all(r == rest[0] for r in rest), f"parts do not fit: {[x.shape for x in xs]}")
    return first.dtype, (*first.shape[:dim], sum(x.shape[dim] for x in xs), *first.shape[dim + 1:])


def _rows_without_arithmetic() -> None:
    rows = [
        ("full", "create", "every element is `value`",
         lambda shape, value, dtype: torch.full(shape, value, dtype=dtype),
         lambda shape, value, dtype: (dtype, tuple(shape))),
        ("iota", "create", "start + i * step, one dimension of n; not in narrow floats", _iota, _iota_meta),
        ("expand", "view", "numpy broadcasting, new leading dimensions included",
         lambda x, shape: x.expand(shape), _expand_meta),
        ("permute", "view", "dimensions in another order", lambda x, dims: x.permute(dims), _permute_meta),
        ("reshape", "view", "the same elements in row-major order", lambda x, shape: x.reshape(shape),
         _reshape_meta),
        ("slice", "view", "elements start, start+step, … < stop along dim", _slice, _slice_meta),
        ("flip", "view", "dims in reverse", lambda x, dims: x.flip(dims), _flip_meta),
        ("pad", "view", "`value` put around", _pad, _pad_meta),
        ("cat", "view", "one after another along dim", lambda xs, dim: torch.cat(xs, dim), _cat_meta),
        ("gather", "gather",
         "out[o] = x[indices[0][o], indices[1][o], …]; checked: out of range raises `error`", _gather,
         _gather_meta),
        ("scatter", "gather", "x, but out[indices[o]] (mode)= src[o] in order; mode set add mul amin amax",
         _scatter, _scatter_meta),
    ]
    for name, kind, doc, ref, meta in rows:
        PRIMS[name] = Prim(name, kind, doc, ref, meta)


# ---- gather and scatter ---------------------------------------------------------------------------

BAD_INDEX = ("IndexError", "index out of range")


def _checked(x: Tensor, indices: tuple[Tensor, ...], checked: bool,
             error: tuple[str, str]) -> tuple[Tensor, ...]:
    for n, i in zip(x.shape, indices):
        bad = (i < 0) | (i >= n)
        if checked and bool(bad.any()):
            kinds = {"IndexError": IndexError, "RuntimeError": RuntimeError}
            raise kinds[error[0]](error[1].replace("{index}", str(int(i[bad].reshape(-1)[0]))))
    return indices


def _gather(x: Tensor, indices: tuple[Tensor, ...], checked: bool = True,
            error: tuple[str, str] = BAD_INDEX) -> Tensor:
    return x[_checked(x, indices, checked, error)] if indices else x.clone()


def _gather_meta(x: TensorSpec, indices: tuple[TensorSpec, ...], checked: bool = True,
                 error: tuple[str, str] = BAD_INDEX) -> tuple[torch.dtype, Shape]:
    need(len(indices) == x.ndim, f"{len(indices)} indices for {x.ndim} dimensions")
    need(all(i.dtype == torch.int64 and i.shape == indices[0].shape for i in indices),
         "indices differ, or are not int64")
    return x.dtype, indices[0].shape if indices else ()


def _scatter(x: Tensor, indices: tuple[Tensor, ...], src: Tensor, mode: str, checked: bool = True,
             error: tuple[str, str] = BAD_INDEX) -> Tensor:
    out = x.contiguous().clone().reshape(-1)
    where = torch.zeros_like(src, dtype=torch.int64)
    for n, i in zip(x.shape, _checked(x, indices, checked, error)):
        where = where * n + i
    where, src = where.reshape(-1), src.reshape(-1)
    if mode == "set":
        for w, s in zip(where.tolist(), src):          # in order: the last one stays
            out[w] = s
    else:
        reduce = {"add": "sum", "mul": "prod", "amin": "amin", "amax": "amax"}[mode]
        out.scatter_reduce_(0, where, src, reduce)
    return out.reshape(x.shape)


def _scatter_meta(x: TensorSpec, indices: tuple[TensorSpec, ...], src: TensorSpec, mode: str,
                  checked: bool = True, error: tuple[str, str] = BAD_INDEX) -> tuple[torch.dtype, Shape]:
    _gather_meta(x, indices, checked, error)
    need(src.dtype == x.dtype and all(i.shape == src.shape for i in indices), "src does not fit")
    need(mode in ("set", "add", "mul", "amin", "amax"), f"no mode {mode}")
    return x.dtype, x.shape


# ---- reductions and scans -------------------------------------------------------------------------

def _reduction(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Shape], Tensor]:
    """ref for a function that reduces the last dimension."""
    def ref(x: Tensor, dims: Shape) -> Tensor:
        kept = [d for d in range(x.dim()) if d not in dims]
        flat = x.permute([*kept, *dims])
        count = 1
        for d in dims:
            count *= x.shape[d]
        return f(flat.reshape([x.shape[d] for d in kept] + [count]))
    return ref


def _reduce_rows() -> None:
    def meta_of(result: str, dtypes: tuple, name: str) -> Meta:
        def meta(x: TensorSpec, dims: Shape) -> tuple[torch.dtype, Shape]:
            need(all(0 <= d < x.ndim for d in dims) and tuple(sorted(set(dims))) == tuple(dims),
                 f"bad dims {dims}")
            need(not dtypes or x.dtype in dtypes, f"is not defined for {x.dtype}")
            empty = name not in ("sum", "prod", "any", "all") and any(x.shape[d] == 0 for d in dims)
            need(not empty or x.numel != 0 or 0 in [x.shape[d] for d in range(x.ndim) if d not in dims],
                 "nothing to reduce")
            dtype = torch.int64 if result == "int64" else x.dtype
            return dtype, tuple(n for d, n in enumerate(x.shape) if d not in dims)
        return meta

    number = FLOAT + INT
    rows = [
        ("sum", "same", number, lambda x: x.sum(-1, dtype=x.dtype)),
        ("prod", "same", number, lambda x: x.prod(-1, dtype=x.dtype)),
        ("amax", "same", number + BOOL, lambda x: x.amax(-1)),
        ("amin", "same", number + BOOL, lambda x: x.amin(-1)),
        ("any", "same", BOOL, lambda x: x.any(-1)),
        ("all", "same", BOOL, lambda x: x.all(-1)),
        ("argmax", "int64", number, lambda x: x.argmax(-1)),
        ("argmin", "int64", number, lambda x: x.argmin(-1)),
    ]
    for name, result, dtypes, f in rows:
        PRIMS[name] = Prim(name, "reduce", f"{name} over dims, which go", _reduction(f),
                           meta_of(result, dtypes, name), result=result, dtypes=dtypes)
    scans: dict[str, Callable[[Tensor, int], Tensor]] = {
        "sum": lambda x, dim: x.cumsum(dim, dtype=x.dtype),
        "prod": lambda x, dim: x.cumprod(dim, dtype=x.dtype),
        "amax": lambda x, dim: x.cummax(dim).values, "amin": lambda x, dim: x.cummin(dim).values}
    for name, ref in scans.items():
        doc = f"running {name} along dim, this element included"
        PRIMS["scan_" + name] = Prim("scan_" + name, "scan", doc, ref, lambda x, dim: (x.dtype, x.shape),
                                     dtypes=number)


_unary_rows()
_binary_rows()
_elementwise("where", 3, ANY, torch.where, "a where the condition holds, else b",
             triton="tl.where({0}, {1}, {2})")
for name, doc, ref, meta, triton in (
        ("cast", "torch's .to(dtype)", lambda x, dtype: x.to(dtype), _cast_meta, "{0}.to({dtype})"),
        ("bitcast", "the same bits as another dtype", lambda x, dtype: x.view(dtype), _bitcast_meta,
         "{0}.to({dtype}, bitcast=True)")):
    PRIMS[name] = Prim(name, "elementwise", doc, ref, meta, 1, "param", cpp=f"mc::{name}({{0}})",
                       triton=triton)
_rows_without_arithmetic()
_reduce_rows()
prims = SimpleNamespace(**{p.text_name: p.ref for p in PRIMS.values()})          # what printed programs call
