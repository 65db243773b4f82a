"""Loop axes: splitting one where its index is divided, and splitting long reductions so that several
threads can share them.

Takes one Loop, gives equal loops; used by `build` on every loop it makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ..ir.forms import atoms, coefficient, divides
from ..ir.spec import TensorSpec, contiguous_stride
from ..ir.sym import Div, Mod, Size, Sym, Var, bounds, free_vars, hint, same, substitute
from .nest import Axis, Buffer, Loop, Store, axis
from .val import Index, Load, Val, load, rewrite, walk

FEW_ROWS, LONG, PARTS = 64, 1 << 16, 64  # split reductions with so few results over so many elements
BLOCK = 64  # elements of a scattered row that one thread takes at least


def syms(loop: Loop) -> Iterator[Sym | int]:
    """Every index expression of a loop."""
    yield loop.out.index
    for v in loop.values():
        for x in walk(v):
            if isinstance(x, Load):
                yield x.index
            elif isinstance(x, Index):
                yield x.sym


def divisors_of(loop: Loop) -> dict[Var, set[Sym | int]]:
    """Variable -> the numbers and sizes it is divided by (// or %)."""
    found: dict[Var, set[Sym | int]] = {}
    for s in syms(loop):
        if isinstance(s, int) or ("/" not in s.text and "%" not in s.text):
            continue
        for a in atoms(s):
            if isinstance(a, (Div, Mod)) and isinstance(a.num, Var) and all(
                    isinstance(v, Size) for v in free_vars(a.den)):
                found.setdefault(a.num, set()).add(a.den)
    return found


def factor(size: Sym | int, divisors: Iterable[Sym | int]) -> list[Sym | int] | None:
    """Sizes, outermost first, of the axes to split `size` into so that every division falls between two of
    them."""
    cuts = sorted((d for d in divisors if not same(d, 1) and hint(d) < hint(size)), key=hint)
    chain = [1, *cuts, size]
    if not cuts or not all(map(divides, chain, chain[1:])):
        return None
    return [b // a for a, b in zip(chain, chain[1:])][::-1]


def split_axes(loop: Loop) -> Loop:
    """The same loop with axis i split into (hi, lo) wherever indices use i // d or i % d: then all is
    affine again, and the fast axis stays a plain stride-1 walk."""
    for _ in range(3):  # a split may uncover the next division
        env: dict[Var, Sym | int] = {}
        axes: dict[Axis, tuple[Axis, ...]] = {}
        divisors = divisors_of(loop)
        if not divisors:
            break
        for a in loop.axes if loop.is_scan else loop.axes + loop.reduce_axes:  # a scan runs along one axis
            sizes = factor(a.size, divisors.get(a.var, ()))
            if sizes:
                parts = axes[a] = tuple(axis(f"{a.var.name}{'abcdefgh'[k]}", n) for k, n in enumerate(sizes))
                env[a.var] = _joined(parts)
        if not env:
            break
        loop = rename(loop, env, _expand(loop.axes, axes), _expand(loop.reduce_axes, axes))
    return loop


def _joined(parts: tuple[Axis, ...]) -> Sym | int:
    total: Sym | int = 0
    for p in parts:
        total = total * p.size + p.var
    return total


def _expand(axes: tuple[Axis, ...], split: dict[Axis, tuple[Axis, ...]]) -> tuple[Axis, ...]:
    return tuple(p for a in axes for p in split.get(a, (a,)))


def rename(loop: Loop, env: dict[Var, Sym | int], axes: tuple[Axis, ...], reduce_axes: tuple[Axis, ...],
           memo: dict[Val, Val] | None = None) -> Loop:
    """The loop over other axes; env says what its old variables are in terms of the new ones."""
    memo = {} if memo is None else memo
    out = Store(loop.out.buffer, substitute(loop.out.index, env), loop.out.mode,
                tuple((v, rewrite(x, env, memo=memo)) for v, x in loop.out.indirect))
    return replace(loop, axes=axes, reduce_axes=reduce_axes, body=rewrite(loop.body, env, memo=memo), out=out)


def split_reduction(loop: Loop, buffers: dict[str, Buffer]) -> list[Loop]:
    """[loop], or, for few results of a long reduction, two loops: partial results, then their reduction.

    Adds the buffer of the partial results to `buffers`. Shorter partial sums are also more accurate.
    """
    if not loop.is_reduction or (loop.combine or "").startswith("arg") or loop.body.dtype is torch.bool:
        return [loop]
    rows, length = hint(_product(loop.axes)), hint(_product(loop.reduce_axes))
    first = loop.reduce_axes[0]
    parts = max((k for k in range(1, PARTS + 1) if divides(k, first.size)), default=1)
    if rows > FEW_ROWS or length < LONG or parts < 4:
        return [loop]
    outer, inner, env = _in_blocks(first, parts)
    name = loop.out.buffer + "_parts"
    sizes = [*(a.size for a in loop.axes), parts]
    spec = TensorSpec.contiguous(loop.body.dtype, sizes)
    buffers[name] = Buffer(name, "temp", spec)
    place: Sym | int = outer.var
    for a, step in zip(loop.axes, contiguous_stride(sizes)):
        place = place + a.var * step
    partial = rename(loop, env, (*loop.axes, outer), (inner, *loop.reduce_axes[1:]))
    partial = replace(partial, name=loop.name + "_parts", out=Store(name, place), store_dtype=loop.body.dtype)
    total = replace(loop, reduce_axes=(outer,), body=load(name, place, loop.body.dtype))
    return [partial, total]


def _in_blocks(a: Axis, parts: int) -> tuple[Axis, Axis, dict[Var, Sym | int]]:
    """An axis as `parts` blocks: the blocks, one block's points, and what the axis is in terms of these."""
    outer, inner = axis("p", parts), axis("q", a.size // parts)
    return outer, inner, {a.var: outer.var * inner.size + inner.var}


def separate(loop: Loop, a: Axis) -> bool:
    """Whether points that differ along `a` never store to one place: nothing else in the index of the store
    reaches the digit that `a` is in it."""
    step = coefficient(loop.out.index, a.var)
    if step is None or isinstance(step, Sym) or isinstance(a.size, Sym) or step <= 0:
        return False
    below = 0
    for v in free_vars(loop.out.index) - {a.var}:
        k, (lo, hi) = coefficient(loop.out.index, v), bounds(v)
        if not isinstance(k, int) or k < 0 or lo != 0:
            return False
        if k % (step * a.size):
            below += k * hi
    return below < step


def share_scatter(loop: Loop) -> Loop:
    """The loop of a scatter, whose points have an order, with an axis first along which they need none, so
    that threads can share it: one of those, or blocks of the last one."""
    first = next((a for a in loop.axes if separate(loop, a)), None)
    if first is None:
        return loop
    rest = tuple(a for a in loop.axes if a is not first)
    if first is not loop.axes[-1] or not rest:
        return replace(loop, axes=(first, *rest))
    parts = max(k for k in range(1, PARTS + 1) if k == 1 or first.size % k == 0 and first.size // k >= BLOCK)
    if parts == 1:
        return loop
    outer, inner, env = _in_blocks(first, parts)
    return rename(loop, env, (outer, *rest, inner), ())


def _product(axes: tuple[Axis, ...]) -> Sym | int:
    n: Sym | int = 1
    for a in axes:
        n *= a.size
    return n
