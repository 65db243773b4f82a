"""Lowering: from torch-level graphs to prims (`trace`, `functionalise`, `decompose`, `rewrite`; border
objects in `graphs`).

Takes what `capture` recorded, gives what `loops` builds from.
"""
from .graphs import AtenGraph, Prims

__all__ = ["AtenGraph", "Prims"]
