"""Frame: one running call of the interpreter, and NULL, the empty slot.

Takes a `Code` (from `bytecode`), its bound handlers and local slots; `handlers` and `interp` work on it.
"""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType
from typing import Any

from ..errors import Where
from .bytecode import Code


class _Null:
    """The empty stack slot and the unbound variable."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NULL"


NULL = _Null()


class Frame:
    """One running call: `locals` has a slot per variable, cell and free variable; `exc` is the exception
    being handled."""

    __slots__ = (
        "code", "func", "globals", "builtins", "locals", "stack", "pc", "exc", "world", "back", "ops",
        "names", "yielded")

    def __init__(
        self, code: Code, ops: tuple, func: FunctionType, slots: list, world: Any, back: Frame | None
    ):
        self.code, self.func, self.locals, self.world, self.back = code, func, slots, world, back
        self.globals, self.builtins = func.__globals__, func.__builtins__
        self.stack: list[Any] = []
        self.pc = 0
        self.exc: BaseException | None = back.exc if back is not None else None
        self.ops = ops
        self.names: dict[str, Any] | None = None
        self.yielded: bool = False
        if code.free:
            slots[-code.free :] = func.__closure__

    @property
    def where(self) -> Where:
        raw = self.code.code
        return Where(raw.co_filename, self.code.line(max(self.pc - 1, 0)), raw.co_qualname)

    @property
    def exact(self) -> Where:
        """`where` with the columns of the expression; slower."""
        line, last, start, end = self.code.position(max(self.pc - 1, 0))
        if line is None or line != last or start is None or end is None:
            return self.where
        return replace(self.where, columns=(start, end))
