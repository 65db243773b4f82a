"""Random draws into memory that is not contiguous.

Gives a functional operator for `functionalise`: what a draw puts where depends on the strides it fills, in
ways that differ between processors, so the in-place kernel is run on memory of just these strides.
"""
from __future__ import annotations

from typing import Any

import torch

_library = torch.library.Library("minicompile", "FRAGMENT")
_library.define("draw(Tensor like, str op, SymInt[] stride, Scalar[] args, *, Generator? generator=None) -> "
                "Tensor", tags=(torch.Tag.nondeterministic_seeded,))


def _draw(like: torch.Tensor, op: str, stride: list[int], args: list, *,
          generator: Any = None) -> torch.Tensor:
    drawn = torch.empty_strided(like.shape, stride, dtype=like.dtype, device=like.device)
    return getattr(drawn, op)(*args, generator=generator).clone()


_library.impl("draw", _draw, "CompositeExplicitAutograd")
draw = torch.ops.minicompile.draw.default
