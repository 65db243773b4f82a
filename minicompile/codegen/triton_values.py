"""Triton text of values: element types, literals, and one expression per prim.

Takes Vals (loops.ir), gives text for `codegen.triton`. Every function here is pure.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..errors import Refusal
from ..ir.prims import PRIMS
from ..loops.ir import Apply, Const, Val

ELEMENT = {getattr(torch, name): f"tl.{name}" for name in
           "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()}
ELEMENT[torch.bool] = "tl.int1"
HALF = (torch.float16, torch.bfloat16)
PLAIN = (torch.float32, torch.int32, torch.bool)            # types a bare literal has by itself

# prims whose meaning on bool is a logical operation; int1 compares as a signed number
LOGICAL = {"and": "({0} & {1})", "or": "({0} | {1})", "xor": "({0} ^ {1})", "not": "(~{0})",
           "eq": "({0} == {1})", "ne": "({0} != {1})", "lt": "(~{0} & {1})", "le": "(~{0} | {1})",
           "gt": "({0} & ~{1})", "ge": "({0} | ~{1})", "maximum": "({0} | {1})", "minimum": "({0} & {1})",
           "mul": "({0} & {1})", "add": "({0} | {1})"}


def element(dtype: torch.dtype) -> str:
    """The Triton element type. Raises Refusal for types without one (complex, float8)."""
    if dtype not in ELEMENT:
        raise Refusal("dtype", f"no Triton element type for {dtype}")
    return ELEMENT[dtype]


def bare(value: bool | int | float | complex, dtype: torch.dtype) -> str:
    """A literal that takes its type from what it meets."""
    element(dtype)
    if not dtype.is_floating_point:
        return str(bool(value) if dtype is torch.bool else value)
    real = float(torch.tensor(value, dtype=dtype).item())   # rounded; what is too large becomes infinite
    if real == 0 and math.copysign(1, real) < 0:            # Triton takes a literal -0.0 for 0.0
        return f"(tl.full([], 0.0, {element(dtype)}) * -1.0)"
    if math.isfinite(real):
        return repr(real) if real >= 0 else f"({real!r})"
    return 'float("nan")' if math.isnan(real) else f'float("{real}")'


def literal(v: Const, typed: bool = False) -> str:
    """A literal of exactly v's type; `typed`: a block of its own, which has a dtype to ask for."""
    text = bare(v.value, v.dtype)
    return text if v.dtype in PLAIN and not typed else f"tl.full([], {text}, {element(v.dtype)})"


def cast_text(text: str, source: torch.dtype, target: torch.dtype) -> str:
    """torch's conversion: to half types by way of float32, to bool by comparison with 0."""
    if source is target:
        return text
    if target is torch.bool:
        return f"({text} != 0)"
    if target in HALF and source not in (torch.float32, torch.bool):
        text = f"{text}.to(tl.float32)"
    return f"{text}.to({element(target)})"


def template(v: Apply) -> str:
    """The text of v's prim, with {0}, {1} … for its operands. Raises Refusal for a prim without one."""
    source = v.args[0].dtype if v.args else v.dtype
    if v.prim == "cast":
        return cast_text("{0}", source, v.dtype)
    if v.prim == "bitcast":
        return f"{{0}}.to({element(v.dtype)}, bitcast=True)"
    if source is torch.bool and v.prim != "where":
        if v.prim not in LOGICAL:
            raise Refusal("prim", f"{v.prim} has no Triton form on bool")
        return LOGICAL[v.prim]
    row = PRIMS.get(v.prim)
    if row is None or not row.triton:
        raise Refusal("prim", f"{v.prim} has no Triton text")
    return row.triton


def apply_text(v: Apply, args: Sequence[str]) -> str:
    """The expression of a prim. An operator gets bare literals: they take the other operand's type."""
    text = template(v)
    if all(isinstance(a, Const) for a in v.args):
        args = [literal(a, True) for a in v.args if isinstance(a, Const)]
    elif text.startswith("("):
        args = [bare(a.value, a.dtype) if isinstance(a, Const) else x for a, x in zip(v.args, args)]
    elif text.startswith("ops.") and isinstance(v.args[0], Const):
        args = [literal(v.args[0], True), *args[1:]]
    return text.format(*args)


def repeats(v: Val) -> bool:
    """Whether the text of v's prim names an operand twice: such operands need names."""
    return isinstance(v, Apply) and any(template(v).count(f"{{{i}}}") > 1 for i in range(len(v.args)))
