"""C++ text of values: element types, literals, and one expression per prim.

Takes Vals (loops.ir), gives text for `codegen.cpp`. Every function here is pure.
"""

from __future__ import annotations

import math

import torch

from ..errors import Refusal
from ..ir.prims import PRIMS
from ..loops.ir import Apply, Const

# element types in memory; `b8`, `bf16` and `f16` are tags of kernels/cpp/vec.h
ELEMENT = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.uint16: "u16",
    torch.int32: "i32",
    torch.uint32: "u32",
    torch.int64: "i64",
    torch.uint64: "u64", torch.complex64: "u64",          # complex numbers are only moved
    torch.bool: "b8",
}
# a scalar in a register: bool is bool, half types are their raw bits
REGISTER = {**ELEMENT, torch.bool: "bool", torch.bfloat16: "u16", torch.float16: "u16"}

# prims whose meaning on bool is a logical operation; on vectors bools are masks, where `<` or `*` would
# mean something else
LOGICAL = {"and": "mask_and({0}, {1})", "or": "mask_or({0}, {1})", "xor": "mask_xor({0}, {1})",
           "not": "mask_not({0})", "eq": "mask_not(mask_xor({0}, {1}))", "ne": "mask_xor({0}, {1})",
           "lt": "mask_and(mask_not({0}), {1})", "le": "mask_or(mask_not({0}), {1})",
           "gt": "mask_and({0}, mask_not({1}))", "ge": "mask_or({0}, mask_not({1}))",
           "maximum": "mask_or({0}, {1})", "minimum": "mask_and({0}, {1})", "mul": "mask_and({0}, {1})",
           "add": "mask_or({0}, {1})"}


def element(dtype: torch.dtype) -> str:
    """The C++ element type. Raises Refusal for types the emitter has no arithmetic or storage for (complex,
    float8)."""
    if dtype not in ELEMENT:
        raise Refusal("dtype", f"no C++ element type for {dtype}")
    return ELEMENT[dtype]


def raw_vector(dtype: torch.dtype, lanes: int) -> str:
    """The vector type a load of `dtype` gives (bools come as byte masks)."""
    element(dtype)
    return f"vec<{'i8' if dtype is torch.bool else REGISTER[dtype]}, {lanes}>"


def literal(v: Const) -> str:
    """A scalar literal of exactly the register type, so that templates deduce it."""
    x, dtype = v.value, v.dtype
    element(dtype)
    if dtype is torch.bool:
        return "true" if x else "false"
    if dtype in (torch.bfloat16, torch.float16):
        return f"u16({int(torch.tensor(x, dtype=dtype).view(torch.int16).item()) & 0xFFFF})"
    if dtype in (torch.float32, torch.float64):
        suffix = "f" if dtype is torch.float32 else ""
        real = float(torch.tensor(x, dtype=dtype).item())  # rounded; what is too large becomes infinite
        if not math.isfinite(real):
            name = f'__builtin_nan{suffix}("")' if math.isnan(real) else f"__builtin_inf{suffix}()"
            return f"-{name}" if real < 0 else name
        return f"{real!r}{suffix}"
    assert isinstance(x, int)
    bits = 8 * dtype.itemsize
    unsigned = not dtype.is_signed
    if x == -(1 << 63):
        return "i64(1UL << 63)"
    x = x & ((1 << bits) - 1) if unsigned else x
    return f"{ELEMENT[dtype]}({x}{'UL' if unsigned else 'L'})"


def apply_text(v: Apply, args: list[str]) -> str:
    """The expression of a prim on operand texts of one form (all scalars or all vectors)."""
    source = v.args[0].dtype if v.args else v.dtype
    if v.prim == "cast":
        return f"cast<{element(v.dtype)}, {element(source)}>({args[0]})"
    if v.prim == "bitcast":
        return f"bitcast<{element(v.dtype)}>({args[0]})"
    if v.prim == "where":
        return f"{'mask_where' if v.dtype is torch.bool else 'where'}({', '.join(args)})"
    if source is torch.bool:
        if v.prim not in LOGICAL:
            raise Refusal("prim", f"{v.prim} has no C++ form on bool")
        return LOGICAL[v.prim].format(*args)
    row = PRIMS.get(v.prim)
    if row is None or not row.cpp:
        raise Refusal("prim", f"{v.prim} has no C++ text")
    return row.cpp.format(*args)
