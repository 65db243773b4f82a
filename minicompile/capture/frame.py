"""Frame: one running call of the interpreter, and NULL, the empty slot.

Takes a `Code` (from `bytecode`), its bound handlers and local slots; `handlers` and `interp` work on it.
"""

from __future__ import annotations

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
    """One running call: `locals` has a slot per variable, cell and free variable; `exc` is the exception that
    it handles itself. `serial` numbers the frames of a world, `laps` the jumps back."""

    __slots__ = (
        "code", "func", "globals", "builtins", "locals", "stack", "pc", "exc", "world", "back", "ops",
        "names", "yielded", "serial", "laps")

    def __init__(
        self, code: Code, ops: tuple, func: FunctionType, slots: list, world: Any, back: Frame | None
    ):
        self.code, self.func, self.locals, self.world, self.back = code, func, slots, world, back
        self.globals, self.builtins = func.__globals__, func.__builtins__
        self.stack: list[Any] = []
        self.pc = self.laps = self.serial = 0
        self.exc: BaseException | None = None
        self.ops = ops
        self.names: dict[str, Any] | None = None
        self.yielded: bool = False
        if code.free:
            slots[-code.free :] = func.__closure__

    @property
    def handled(self) -> BaseException | None:
        """The exception being handled here, or in the frames that called."""
        frame: Frame | None = self
        while frame is not None and frame.exc is None:
            frame = frame.back
        return None if frame is None else frame.exc

    @property
    def where(self) -> Where:
        """The user's line, and the columns of the expression where it lies on that line alone."""
        raw, index = self.code.code, max(self.pc - 1, 0)
        line, last, start, end = self.code.position(index)
        known = line is not None and line == last and start is not None and end is not None
        return Where(raw.co_filename, self.code.line(index), raw.co_qualname, (start, end) if known else None)
