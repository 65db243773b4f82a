"""Random draws that ATen has only in place.

Gives functional operators for `functionalise`, which keep the memory layout of their argument: what a draw
puts where depends on the layout, in ways that differ between processors, so the in-place kernel is run.
"""
from __future__ import annotations

from typing import Any

import torch

_library = torch.library.Library("minicompile", "FRAGMENT")
_library.define("bernoulli_like(Tensor self, float p=0.5, *, Generator? generator=None) -> Tensor",
                tags=(torch.Tag.nondeterministic_seeded,))


def _bernoulli_like(like: torch.Tensor, p: float = 0.5, *, generator: Any = None) -> torch.Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype,
                               device=like.device).bernoulli_(p, generator=generator)


for _key in ("CPU", "CUDA", "Meta"):
    _library.impl("bernoulli_like", _bernoulli_like, _key)

# functional operator → the one to use instead for what is not contiguous
LAYOUT_KEPT = {torch.ops.aten.bernoulli.p: torch.ops.minicompile.bernoulli_like.default}
