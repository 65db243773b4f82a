"""C++ text of attention by the kernel library: a library call that is made from emitted code.

Takes the `Extern` of an attention operator, gives (body text, buffers) as `cpp_kernel` does for kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..ir.sym import Size, Sym
from ..loops.ir import Extern, View
from .cpp_kernel import sizes_of
from .externs import bound_arguments
from .walk import count_text

OP = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def why_not_attention(e: Extern) -> str | None:
    """Why a call is left to torch, or None if the kernel library computes it."""
    if e.op is not OP:
        return "not attention"
    q, k, v, dropout, _, mask, _ = bound_arguments(e.op._schema, e.args, e.kwargs)
    given = [x for x in (q, k, v, mask, *e.outs) if x is not None]
    if any(x.spec.dtype is not torch.float32 for x in given):
        return "not float32"
    if dropout:
        return "dropout"
    if e.outs[0] is None or any(x.spec.ndim != 4 or x.spec.stride[3] != 1 for x in (q, k, v, e.outs[0])):
        return "last dimension is not dense"
    if mask is not None and (mask.spec.ndim not in (2, 4) or mask.spec.stride[-1] not in (0, 1)):
        return "mask is laid out unusually"
    return "nothing to compute" if any(0 in x.spec.shape for x in given) else None


def attention_text(e: Extern, sizes: Sequence[Size] = ()) -> tuple[str, tuple[str, ...]]:
    """The body of the function that makes the call, and the buffers it takes."""
    q, k, v, _, causal, mask, scale = bound_arguments(e.op._schema, e.args, e.kwargs)
    out, lse = e.outs[0], e.outs[1] if len(e.outs) > 1 else None
    buffers: list[str] = []

    def at(x: View | None) -> str:
        if x is None:
            return "nullptr"
        if x.buffer not in buffers:
            buffers.append(x.buffer)
        return f"(float*)b[{buffers.index(x.buffer)}] + {count_text(x.spec.offset)}"

    def strides(x: View | None, n: int) -> str:
        steps: list[Sym | int] = [0] * n
        if x is not None:
            own = [0 if size == 1 else s for size, s in zip(x.spec.shape, x.spec.stride)]
            lead = max(0, 4 - len(own)) if n == 4 else 0
            steps = [0] * lead + own[: n - lead]
        return "{" + ", ".join(map(count_text, steps)) + "}"

    assert out is not None
    batch, heads, queries, dim = q.spec.shape
    extents = (batch, heads, k.spec.shape[1], queries, k.spec.shape[2], dim, v.spec.shape[3])
    factor = scale if scale is not None else 1 / math.sqrt(dim)
    fields = [
        *map(count_text, extents), at(q), at(k), at(v), at(mask),
        strides(q, 3), strides(k, 3), strides(v, 3), strides(mask, 4),
        at(out), at(lse), strides(out, 3), strides(lse, 3),
        f"float({factor!r})", "true" if causal else "false",
    ]  # fmt: skip
    text = ",\n    ".join([", ".join(fields[:7]), ", ".join(fields[7:11]), ", ".join(fields[11:])])
    task = [f"  const Attention task{{\n    {text}}};", "  library.attention(&task, env->threads);", ""]
    body = "\n".join([*sizes_of(sizes, e), *task])
    return body, tuple(buffers)
