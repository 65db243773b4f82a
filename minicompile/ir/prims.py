"""THE prim table: every operation behind the lowering is one row here, or an extern call of an ATen kernel.

Takes nothing; `lower` produces nodes whose op is a row, `loops` and both emitters read the rows' columns. At most 100 rows.
A new prim is one row here and nothing else: its meta rule, its reference, its C++ and Triton text and its test's edge values are columns.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

FLOAT = (torch.float32, torch.float64)          # what elementwise float prims compute in; narrower floats are cast by the lowering
INT = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
BOOL = (torch.bool,)


@dataclass(frozen=True, slots=True, eq=False)
class Prim:
    """One row.

    name     the name in graphs, in Val Apply nodes, and (by default) of the C++ function mc::name
    kind     "elementwise" | "reduce" | "scan" | "view" | "create" | "gather"
    doc      the meaning in one line
    ref      reference on tensors (eager torch), called with the node's args; defines the prim
    arity    number of tensor operands for elementwise prims
    result   dtype of the result: "same" as the operands, "bool", "param" (an argument says), "int64"
    dtypes   operand dtypes it is defined for
    cpp      C++ text, `{0}`, `{1}` … are operands; the same text must serve scalars and SIMD vectors (overloads in kernels/cpp)
    triton   Triton text, likewise
    edges    extra operand values its generated test walks, beside the ones every dtype gets (NaN, ±inf, -0.0, denormals, extremes)
    """

    name: str
    kind: str
    doc: str
    ref: Callable[..., Any]
    arity: int = 0
    result: str = "same"
    dtypes: tuple = FLOAT
    cpp: str = ""
    triton: str = ""
    edges: tuple = ()

    def __repr__(self) -> str:
        return self.name


PRIMS: dict[str, Prim] = {}
