"""Verifier of plans."""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import Plan


def check_plan(plan: Plan) -> None:
    """To be filled."""
