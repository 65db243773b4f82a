"""Library calls as data: argument templates for the native launcher, chosen from an operator's schema.

Takes `loops.ir.Extern`, gives what `runtime/_launch` reads, for `codegen.driver`. In order of preference: a
direct C function of libtorch (the hot ones, by the table), the boxed dispatcher call of the out overload
(writing into the plan's memory) or of the functional one, and a call from Python where the C interface
cannot pass an argument's type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ir.sym import Size, Sym, evaluate
from ..loops.ir import Extern, View
from ..loops.sizes import syms_in

DISPATCH, PYTHON, OUT_TT, OUT_TTT_DD, CONVOLUTION, ATTENTION = range(6)

aten = torch.ops.aten
# op -> (C function, calling convention of _externs.c); the ones that write need an `into`
DIRECT: dict[Any, tuple[str, int]] = {
    aten.mm.default: ("aoti_torch_cpu_mm_out", OUT_TT),
    aten.bmm.default: ("aoti_torch_cpu_bmm_out", OUT_TT),
    aten.addmm.default: ("aoti_torch_cpu_addmm_out", OUT_TTT_DD),
    aten.baddbmm.default: ("aoti_torch_cpu_baddbmm_out", OUT_TTT_DD),
    aten.convolution.default: ("aoti_torch_cpu_convolution", CONVOLUTION),
    aten._scaled_dot_product_flash_attention_for_cpu.default: (
        "aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu",
        ATTENTION,
    ),
}


@dataclass(frozen=True, slots=True)
class Call:
    """A library call for the launcher: `template` is the tuple that _externs.c reads, `function` the symbol
    of a direct
    call or "", `how` says it for people ("direct", "dispatcher", "python: why")."""

    template: tuple
    function: str
    how: str


class Unsupported(Exception):
    """The C interface has no form for an argument; the reason is shown to the user."""


def call_of(e: Extern, view: Callable[[View], int], codes: Callable[[Any], int],
            number: Callable[[Any], Any] = int, sizes: Sequence[Size] = ()) -> Call:
    """The call of `e`.

    view    gives the launcher's number of a view
    codes   gives libtorch's integer for a dtype
    number  gives what stands for a number that depends on `sizes`
    """
    tensors = tuple(e.views())
    numbers = tuple(view(v) for v in tensors)
    outs = tuple(view(v) if v is not None else -1 for v in e.outs)
    returns = len((e.into or e.op)._schema.returns)
    python = from_python(e, tensors, sizes)

    def template(mode: int, op: Any, args: tuple) -> tuple:
        name, overload = op._schema.name, op._schema.overload_name
        return (mode, name, overload, e.into is not None, args, returns, outs, numbers, python)

    direct = DIRECT.get(e.op)
    try:
        values = bound_arguments(e.op._schema, e.args, e.kwargs)
        if e.op.namespace == "minicompile":
            raise Unsupported("it is written in Python")
        if any(r.real_type.kind() != "TensorType" for r in e.op._schema.returns):
            raise Unsupported("it does not return plain tensors")
        varies = syms_in([x for x in values if not isinstance(x, View)])    # direct calls take only numbers
        if direct and not varies and (e.into is not None) == (direct[1] in (OUT_TT, OUT_TTT_DD)):
            # beta and alpha go as doubles
            numbers_last = len(values) - 2 if direct[1] == OUT_TTT_DD else len(values)
            args = [_arg(a.real_type, x, view, codes, a.name, number)
                    for a, x in zip(e.op._schema.arguments, values[:numbers_last])]
            args += [("float", float(x)) for x in values[numbers_last:]]
            if direct[1] in (OUT_TT, OUT_TTT_DD):
                args.insert(0, ("tensor", outs[0]))
            return Call(template(direct[1], e.into or e.op, tuple(args)), direct[0], "direct")
        op = e.into or e.op
        if e.into is not None:
            values = [*values, *e.outs]
        args = [_arg(a.real_type, x, view, codes, a.name, number)
                for a, x in zip(op._schema.arguments, values, strict=True)]
        return Call(template(DISPATCH, op, tuple(args)), "", "dispatcher")
    except Unsupported as why:
        return Call(template(PYTHON, e.op, ()), "", f"python: {why}")


def bound_arguments(schema: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The value of every argument in schema order, defaults filled in."""
    values = []
    for i, a in enumerate(schema.arguments):
        if i < len(args):
            values.append(args[i])
        elif a.name in kwargs:
            values.append(kwargs[a.name])
        elif a.has_default_value():
            values.append(a.default_value)
        else:
            raise Unsupported(f"argument {a.name} is missing")
    return values


def _arg(kind: Any, x: Any, view: Callable[[View], int], codes: Callable[[Any], int], name: str,
         number: Callable[[Any], Any]) -> tuple:
    """The template of one argument of schema type `kind`."""
    what = kind.kind()
    if what == "OptionalType":
        return ("none",) if x is None else (
            "optional", _arg(kind.getElementType(), x, view, codes, name, number))
    if what == "TensorType" and isinstance(x, View):
        return ("tensor", view(x))
    if what == "ListType":
        inner = kind.getElementType()
        items = x if isinstance(x, (tuple, list)) else [x]
        return ("list", *(_arg(inner, i, view, codes, name, number) for i in items))
    if what in ("IntType", "SymIntType") and isinstance(x, (int, Sym)):
        return ("bits", int(x)) if isinstance(x, int) else ("size", number(x))
    if what == "BoolType" and isinstance(x, (bool, int)):
        return ("bits", int(x))
    if what == "FloatType" and isinstance(x, (int, float)):
        return ("float", float(x))
    if what == "StringType" and isinstance(x, str):
        return ("string", x)
    if what == "ScalarTypeType" and isinstance(x, torch.dtype):
        return ("bits", codes(x))
    raise Unsupported(f"{name} is a {what.removesuffix('Type')}, which libtorch's C interface does not take")


def from_python(e: Extern, views: Sequence[View],
                sizes: Sequence[Size] = ()) -> Callable[[list, list | None, tuple[int, ...]],
                                                        Sequence[torch.Tensor] | None]:
    """The same call through torch's own Python: for what C cannot pass, and to raise eager's exception when
    C fails."""

    def call(tensors: list[torch.Tensor], outs: list | None,
             given: tuple[int, ...] = ()) -> Sequence[torch.Tensor] | None:
        at = iter(tensors)
        env = {s.name: n for s, n in zip(sizes, given)}

        def fill(arg: Any) -> Any:
            if isinstance(arg, View):
                return next(at)
            if isinstance(arg, (tuple, list)):
                return [fill(a) for a in arg]
            return evaluate(arg, env) if isinstance(arg, Sym) else arg

        args = [fill(a) for a in e.args]
        kwargs = {k: fill(v) for k, v in e.kwargs.items()}
        with torch.no_grad():
            got = e.op(*args, **kwargs)
        results = list(got) if isinstance(got, (tuple, list)) else [got]
        if outs is None:
            return results
        for out, result in zip(outs, results):
            if out is not None:
                out.copy_(result)
        return None

    return call
