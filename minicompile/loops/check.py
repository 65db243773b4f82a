"""Verifier of loops."""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ir import Loops


def check_loops(loops: Loops) -> None:
    """To be filled."""
