"""Guards for the native check: one flat instruction list in which each source stands once.

Takes the guard list and the sources to fetch; gives a `_native.GuardProgram` (which checks and fetches in
one pass, in C) and a map from its instruction numbers back to the guards, for saying why a call missed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import CellType
from typing import Any

from .. import _native
from ..errors import Refusal
from .guards import Guard
from .sources import Source

Instruction = tuple[Any, ...]


class Lowering:
    """Builds the instruction list. `number` maps a source to its instruction; `owner` an instruction to its
    guard."""

    def __init__(self, tensors: dict[Source, Any]):
        self.instructions: list[Instruction] = []
        self.number: dict[Source, int] = {}
        self.owner: dict[int, Guard] = {}
        self.tensors = tensors

    def add(self, *instruction: Any) -> int:
        self.instructions.append(instruction)
        return len(self.instructions) - 1

    def source(self, s: Source) -> int:
        known = self.number.get(s)
        if known is None:
            known = self.number[s] = self.add(*_SOURCES[s.kind](self, s))
        return known

    def operand(self, o: Any) -> int:
        return self.source(o) if type(o) is Source else self.add("CONST", o)

    def guard(self, g: Guard) -> None:
        start = len(self.instructions)
        _CHECKS[g.check](self, g)
        for i in range(start, len(self.instructions)):
            self.owner[i] = g

    def tensor(self, g: Guard) -> None:
        assert g.source is not None
        open_ = [tuple([n if type(n) is int else None for n in ns]) for ns in (g.expected.shape,
                                                                              g.expected.stride)]
        exact = None not in open_[0]
        self.add("TENSOR", self.source(g.source), self.tensors[g.source], *(() if exact else open_))

    def absent(self, g: Guard) -> None:
        s = g.source
        assert s is not None and s.parent is not None
        parent = s.parent
        if s.kind == "dict_attr":
            self.add("NOT_PRESENT", self.instance_dict(parent), s.key)
        elif s.kind == "item" or s.kind == "attr" and isinstance(parent.value, type):
            self.add("NOT_PRESENT", self.source(parent), s.key)
        elif s.kind == "attr" and not isinstance(parent.value, CellType):
            self.add("NO_ATTR", self.source(parent), s.key)
        else:
            raise Refusal("guard", f"the absence of {s} cannot be guarded", g.where)

    def instance_dict(self, parent: Source) -> int:
        """The number of the instance dict of a parent; shared by all absence checks on it."""
        key = parent.attr("__dict__")
        known = self.number.get(key)
        if known is None:
            known = self.number[key] = self.add("DICT", self.source(parent))
        return known


def _same_or_dict(low: Lowering, s: Source) -> Instruction:
    if s.key == "__dict__":
        return ("DICT", low.source(s.parent))  # type: ignore[arg-type]
    if s.key == "cell_contents" and s.parent is not None and isinstance(s.parent.value, CellType):
        return ("CONTENTS", low.source(s.parent))
    return ("ATTR", low.source(s.parent), s.key)  # type: ignore[arg-type]


_SOURCES: dict[str, Callable[[Lowering, Any], Instruction]] = {
    "local": lambda low, s: ("LOCAL", s.key), "const": lambda low, s: ("CONST", s.value),
    "attr": _same_or_dict, "dict_attr": lambda low, s: ("DICT_ATTR", low.source(s.parent), s.key),
    "type_attr": lambda low, s: ("TYPE_ATTR", low.source(s.parent), s.key),
    "item": lambda low, s: ("ITEM", low.source(s.parent), s.key),
    "index": lambda low, s: ("INDEX", low.source(s.parent), s.key),
    "size": lambda low, s: ("SIZE", low.source(s.parent), s.key),
    "stride": lambda low, s: ("STRIDE", low.source(s.parent), s.key),
    "call": lambda low, s: ("CALL", s.value, low.source(s.parent)),
    "derived": lambda low, s: ("APPLY", s.value, tuple(map(low.operand, s.key)))}

_CHECKS: dict[str, Callable[[Lowering, Any], Any]] = {
    "id": lambda low, g: low.add("ID", low.source(g.source), g.expected),
    "type": lambda low, g: low.add("TYPE", low.source(g.source), g.expected),
    "equals": lambda low, g: low.add("EQUALS", low.source(g.source), g.expected),
    "len": lambda low, g: low.add("LEN", low.source(g.source), g.expected),
    "keys": lambda low, g: low.add("KEYS", low.source(g.source), g.expected),
    "present": lambda low, g: low.source(g.source),
    "single": lambda low, g: low.add("SINGLE", low.source(g.source)),
    "range": lambda low, g: low.add("RANGE", low.source(g.source), *g.expected),
    "same": lambda low, g: low.add("SAME", low.source(g.source), low.source(g.expected)),
    "distinct": lambda low, g: low.add("DISTINCT", (low.source(g.source), low.source(g.expected))),
    "none_alias": lambda low, g: low.add("NO_ALIAS", tuple(low.source(s) for s in g.expected)),
    "state": lambda low, g: low.add("PREDICATE", *g.expected),
    "ambient": lambda low, g: low.add("AMBIENT"), "tensor": Lowering.tensor, "absent": Lowering.absent}


def lower_guards(guards: Sequence[Guard], fetch: Sequence[Source], tensors: dict[Source, Any]) -> tuple[Any,
        dict[int, Guard]]:
    """(GuardProgram, instruction number -> Guard). `tensors` has an example for each tensor source. Build
    it in the state to be guarded."""
    low = Lowering(tensors)
    for g in guards:
        low.guard(g)
    fetched = [low.source(s) for s in fetch]
    return _native.GuardProgram(low.instructions, fetched), low.owner
