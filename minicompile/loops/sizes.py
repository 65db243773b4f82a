"""Sizes of a graph: which there are, where a call's inputs say them, and an object with numbers in their
place.

Takes `Loops` or a `Plan` (anything made of dataclasses, tuples and Syms), gives the same without sizes, for
references and verifiers. `build` and `codegen` ask for the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ..ir.forms import running
from ..ir.spec import TensorSpec
from ..ir.sym import NeedsSizes, Size, Sym, Var, Walk, substitute
from .val import Checked, Index, Load, Val, rewrite, walk

Source = tuple[Size, int, int]      # (size, input, dimension); -1: the input is the number itself


def sources(specs: Sequence[Any], used: Sequence[Size]) -> tuple[Source, ...]:
    """Where the inputs of these specs say the sizes used. Raises NeedsSizes for one that none says."""
    found: dict[Size, Source] = {}
    for i, spec in enumerate(specs):
        for d, n in enumerate(spec.shape if isinstance(spec, TensorSpec) else ()):
            if isinstance(n, Size):
                found.setdefault(n, (n, i, d))
        if isinstance(spec, Size):
            found[spec] = (spec, i, -1)
    for size in used:
        if size not in found:
            raise NeedsSizes(size)
    wanted = set(used)
    return tuple(s for size, s in found.items() if size in wanted or s[2] < 0)


def bind(sizes: Sequence[Source], inputs: Sequence[Any]) -> dict[Var, int]:
    """The sizes of a call with these inputs."""
    return {size: inputs[i] if d < 0 else int(inputs[i].shape[d]) for size, i, d in sizes}


def hints(sizes: Sequence[Source]) -> dict[Var, int]:
    """The sizes of the call that is being compiled."""
    return {size: size.hint for size, _, _ in sizes}


class _Numbers(dict):
    """Sizes and their numbers, as a substitution; loop variables come to run over numbers, too."""

    def __contains__(self, v: object) -> bool:
        return isinstance(v, Walk) or super().__contains__(v)

    def get(self, v: Any, default: Any = None) -> Any:
        return running(v.name, substitute(v.extent, self)) if isinstance(v, Walk) else super().get(v, default)


def specialise(thing: Any, numbers: Mapping[Var, int]) -> Any:
    """The same object with numbers in place of sizes."""
    env, memo = _Numbers(numbers), {}

    def change(x: Any) -> Any:
        if isinstance(x, Sym):
            return substitute(x, env)
        return rewrite(x, env, memo=memo) if isinstance(x, Val) else _map(x, change)
    return change(thing)


def _map(x: Any, f: Callable[[Any], Any]) -> Any:
    """x with f applied to its parts."""
    if isinstance(x, (tuple, list)):
        return type(x)(map(f, x))
    if isinstance(x, dict):
        return {k: f(v) for k, v in x.items()}
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{a.name: f(getattr(x, a.name)) for a in fields(x) if a.name != "sizes"})
    return x


def syms_in(thing: Any) -> dict[Sym, None]:
    """Every Sym that is a part of an object, in order."""
    found: dict[Sym, None] = {}
    seen: set[Val] = set()

    def look(x: Any) -> Any:
        if isinstance(x, Sym):
            found[x] = None
        elif isinstance(x, Val):
            for v in walk(x) if x not in seen else ():
                seen.add(v)
                look(v.index if isinstance(v, Load) else v.sym if isinstance(v, Index) else
                     v.hi if isinstance(v, Checked) else None)
        else:
            _map(x, look)
        return x
    look(thing)
    return found


def sizes_in(thing: Any) -> list[Size]:
    """Every size that an object depends on, by name."""
    found: set[Size] = set()
    todo = list(syms_in(thing))
    while todo:
        for v in todo.pop().vars:
            if isinstance(v, Walk):
                todo.append(v.extent)
            elif isinstance(v, Size):
                found.add(v)
    return sorted(found, key=lambda v: (len(v.name), v.name))
