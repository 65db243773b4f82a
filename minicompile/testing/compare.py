"""How results are compared: values up to rounding, in units of the last place; everything else exactly.

Takes two results (and, where there is one, the true result in float64); gives what differs, in words. Comes
first in `testing`: bisecting, `observe` and `check` all judge by these rules.
"""
from __future__ import annotations

from typing import Any

import torch

from ..ir.spec import TensorSpec

EAGER_ERRORS, UNITS = 16, 64    # a float may be off by so many of eager's own errors, plus so many units in
                                # the last place of the largest element: what another order of adding explains


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal, NaN for NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) or (torch.equal(a.isnan(), b.isnan())
                                 and torch.equal(a.nan_to_num(), b.nan_to_num()))


def value_differs(got: Any, eager: Any, precise: Any = None) -> str:
    """What differs, or "". Floats may differ by what reassociation explains; see EAGER_ERRORS."""
    if not isinstance(eager, torch.Tensor):
        return "" if got == eager or eager is None else f"is {got!r}, not {eager!r}"
    if not isinstance(got, torch.Tensor) or got.shape != eager.shape or got.dtype != eager.dtype:
        what = str(TensorSpec.of(got)) if isinstance(got, torch.Tensor) else repr(got)
        return f"is {what}, not {TensorSpec.of(eager)}"
    if eager.is_complex():
        exact = isinstance(precise, torch.Tensor) and precise.is_complex()
        return value_differs(*(torch.view_as_real(t.resolve_conj()) for t in (got, eager)),
                             torch.view_as_real(precise.resolve_conj()) if exact else None)
    if not eager.is_floating_point():
        wrong = int((got != eager).sum())
        return f"differs in {wrong} of {eager.numel()} elements" if wrong else ""
    known = precise is not None and precise.shape == eager.shape
    if known and not value_differs(got, precise.to(eager.dtype)):
        return ""                                       # it is what it should be, whatever eager's own error
    finite = eager.isfinite()
    other = got[~finite].nan_to_num(), eager[~finite].nan_to_num()
    if not torch.equal(*other) or not got[finite].isfinite().all():
        return "has NaN or infinity at other places"
    g, e = got[finite].double(), eager[finite].double()
    if not e.numel():
        return ""
    exact = precise is not None and precise.shape == eager.shape and bool(precise[finite].isfinite().all())
    p = precise[finite].double() if exact else e
    allowed = EAGER_ERRORS * (e - p).abs().max() + UNITS * torch.finfo(eager.dtype).eps * p.abs().max()
    error = (g - p).abs().max()
    return f"differs by {float(error):.2e}; rounding explains {float(allowed):.2e}" if error > allowed else ""


def units(got: Any, true: Any) -> float:
    """The largest error of `got` in units of the last place of the largest element of `true` (float64, of
    the same shape); 0 for what has no rounding, NaN where the two can't be compared."""
    if not isinstance(got, torch.Tensor) or not got.is_floating_point():
        return 0.0
    if not isinstance(true, torch.Tensor) or true.shape != got.shape or not true.is_floating_point():
        return float("nan")
    finite = got.isfinite() & true.isfinite()
    if not finite.any():
        return 0.0
    g, p = got[finite].double(), true[finite].double()
    info = torch.finfo(got.dtype)
    return float((g - p).abs().max() / (p.abs().max().clamp_min(info.tiny) * info.eps))
