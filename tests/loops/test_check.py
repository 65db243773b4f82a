"""Planted faults in loops: the verifier names the step and the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from prim_graphs import Make, i64

from minicompile.errors import CheckError
from minicompile.ir.sym import Var
from minicompile.loops.axes import rename
from minicompile.loops.build import build_loops
from minicompile.loops.ir import Axis, Extern, Load, Loop, Loops, Store, View, apply, const, load, rewrite


def right() -> Loops:
    """Steps: exp (realised), its row sums, a product with a window, a write-back, a scatter."""
    m = Make()
    x, w, i = m.input(64, 96), m.input(96, 8), m.input(64, dtype=i64)
    e = m.exp(x)
    y = m.call(torch.ops.aten.mm.default, e, w)
    s = m.sum(e, (1,))
    m.output(m.neg(y), s, m.scatter(s, (i,), m.neg(s), "add", True), m.cat((s, s), 0))
    m.writes.append((1, m.add(w, 1.0)))
    loops = build_loops(m.graph())
    loops.check()
    return loops


def step(loops: Loops, want: Callable[[Any], bool], change: Callable[[Any], Any]) -> Loops:
    steps = list(loops.steps)
    k = next(k for k, s in enumerate(steps) if want(s))
    steps[k] = change(steps[k])
    return replace(loops, steps=tuple(steps))


def is_loop(s: Any) -> bool:
    return isinstance(s, Loop) and not s.combine and not s.out.indirect


def is_sum(s: Any) -> bool:
    return isinstance(s, Loop) and s.combine == "sum"


def is_call(s: Any) -> bool:
    return isinstance(s, Extern)


def body(change: Callable[[Load], Any]) -> Callable[[Loop], Loop]:
    return lambda s: replace(
        s, body=rewrite(s.body, {}, lambda v: change(v) if isinstance(v, Load) else None)
    )


def shorter(s: Loop) -> Loop:
    a = s.axes[0]
    b = Axis(Var(a.var.name, 0, a.size - 2), a.size - 1)
    return rename(s, {a.var: b.var}, (b, *s.axes[1:]), s.reduce_axes)


def view(s: Extern, **changes: Any) -> Extern:
    v = s.args[0]
    return replace(s, args=(View(v.buffer, v.spec.with_(**changes)), *s.args[1:]))


FAULTS = [
    (
        "load out of bounds",
        lambda x: step(x, is_loop, body(lambda v: load(v.buffer, v.index + 1, v.dtype))),
        "reaches",
    ),
    (
        "load before the start",
        lambda x: step(x, is_loop, body(lambda v: load(v.buffer, v.index - 1, v.dtype))),
        "reaches",
    ),
    (
        "store out of bounds",
        lambda x: step(x, is_loop, lambda s: replace(s, out=replace(s.out, index=s.out.index + 1))),
        "reaches",
    ),
    (
        "load of another dtype",
        lambda x: step(x, is_loop, body(lambda v: load(v.buffer, v.index, torch.float64))),
        "loads",
    ),
    (
        "load of nothing",
        lambda x: step(x, is_loop, body(lambda v: load("nowhere", v.index, v.dtype))),
        "not exist",
    ),
    (
        "store of another dtype",
        lambda x: step(x, is_loop, lambda s: replace(s, store_dtype=torch.float64)),
        "stores",
    ),
    (
        "store to nothing",
        lambda x: step(x, is_loop, lambda s: replace(s, out=Store("nowhere", s.out.index))),
        "not exist",
    ),
    ("half the elements", lambda x: step(x, is_loop, shorter), "fills"),
    (
        "one element for all",
        lambda x: step(x, is_loop, lambda s: replace(s, out=Store(s.out.buffer, 0))),
        "fills",
    ),
    (
        "free variable",
        lambda x: step(x, is_sum, lambda s: replace(s, out=Store(s.out.buffer, Var("z", 0, 3)))),
        "does not run",
    ),
    (
        "reduction without axes",
        lambda x: step(x, is_sum, lambda s: replace(s, reduce_axes=())),
        "over 0 axes",
    ),
    ("unknown combine", lambda x: step(x, is_sum, lambda s: replace(s, combine="mean")), "unknown combine"),
    (
        "unknown prim",
        lambda x: step(x, is_loop, lambda s: replace(s, body=apply("cube", (s.body,), s.body.dtype))),
        "cube",
    ),
    (
        "mixed dtypes",
        lambda x: step(
            x,
            is_loop,
            lambda s: replace(s, body=apply("add", (s.body, const(1, torch.int64)), s.body.dtype)),
        ),
        "mixes",
    ),
    ("error number", lambda x: replace(x, errors=()), "error number"),
    ("window too far", lambda x: step(x, is_call, lambda s: view(s, offset=1)), "window"),
    ("window of another dtype", lambda x: step(x, is_call, lambda s: view(s, dtype=torch.int32)), "sees"),
    ("kernel's own memory", lambda x: step(x, is_call, lambda s: replace(s, into=None)), "puts its result"),
    ("a step gone", lambda x: replace(x, steps=x.steps[1:]), "before anything"),
    ("steps reversed", lambda x: replace(x, steps=x.steps[::-1]), None),
    (
        "write-back gone",
        lambda x: replace(x, steps=tuple(s for s in x.steps if is_call(s) or s.out.buffer != "in1")),
        "never written",
    ),
    (
        "write-back too early",
        lambda x: replace(
            x, steps=tuple(sorted(x.steps, key=lambda s: is_call(s) or s.out.buffer != "in1"))
        ),
        "overwritten",
    ),
    ("stored twice", lambda x: replace(x, steps=(*x.steps, x.steps[0])), None),
    (
        "result of another shape",
        lambda x: replace(
            x, results=(replace(x.results[0], spec=x.results[0].spec.with_(stride=(1, 64))), *x.results[1:])
        ),
        "promised",
    ),
    (
        "result that is ours",
        lambda x: replace(x, results=(replace(x.results[0], buffer="exp_0"), *x.results[1:])),
        "memory",
    ),
]


@pytest.mark.parametrize("name, plant, reason", FAULTS, ids=[f[0] for f in FAULTS])
def test_fault_is_found(name: str, plant: Callable[[Loops], Loops], reason: str | None) -> None:
    with pytest.raises(CheckError, match=reason):
        plant(right()).check()
