"""How tests run and compile the templates of kernels/triton."""

from __future__ import annotations

from typing import Any

from minicompile.codegen.triton_driver import helpers
from minicompile.viz.cross import Binary, compile_function

template = helpers


def interpreted(kernel: Any) -> Any:
    return helpers("interpreted").kernel_of(kernel)


def compiled(kernel: Any, pointers: dict[str, str], constants: dict[str, Any], target: str, warps: int,
             numbers: dict[str, str] | None = None) -> Binary:
    """`pointers` say the types of pointers; a parameter that is in `constants` is one; others are int32, and
    multiples of 16."""
    signature = {n: "constexpr" if n in constants else pointers.get(n) or (numbers or {}).get(n, "i32:16")
                 for n in kernel.arg_names}
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    return compile_function(kernel, signature, constants, target, warps)
