"""The value of a prim graph's node at an index, as a Val: what loops are filled with.

Takes prim nodes and the buffers of those that are realised (`build` decides when), gives expressions. Views
become index maps, everything else that has no buffer is computed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..ir.forms import alike, less, running
from ..ir.graph import Node
from ..ir.prims import BAD_INDEX
from ..ir.sym import Div, Mod, Prod, Sym, Var, bounds, free_vars
from .fold import fold
from .nest import Buffer
from .val import Checked, Const, Index, Val, apply, checked, const, index, load, walk
from .views import VIEWS, Indices, argument, kind_of, name_of, offset_of, source_index

INT_DIVISIONS = ("floordiv", "truncdiv", "remainder", "fmod")


class Undecided(Exception):
    """A concatenation is met at an index that lies in several of its parts: the loop over `var` must be
    split at `point`."""

    def __init__(self, var: Var, point: Sym | int):
        super().__init__(f"{var} at {point}")
        self.var, self.point = var, point


class Context:
    """How a place is reached: `mask` says when it is read at all, `indirect` binds the variables read from
    memory."""

    __slots__ = ("mask", "indirect", "key")

    def __init__(self, mask: Val | None = None, indirect: tuple[tuple[Var, Val], ...] = ()):
        self.mask, self.indirect = mask, indirect
        self.key = (mask, indirect)


TOP = Context()


class Values:
    """Evaluates nodes of one graph. `buffers` maps realised nodes to their memory and grows as loops are
    built."""

    def __init__(self) -> None:
        self.buffers: dict[Node, Buffer] = {}
        self.errors: dict[tuple[str, str], int] = {}
        self.memo: dict[tuple, Val] = {}
        self.splits = False

    def of(self, node: Node, idx: Indices, ctx: Context = TOP) -> Val:
        """node[idx]. Raises Undecided (only while `splits`) where a concatenation leaves it open."""
        found = self.buffers.get(node)
        if found is not None:
            return load(found.name, offset_of(idx, found.spec.stride), found.spec.dtype, ctx.indirect,
                        ctx.mask)
        return self.compute(node, idx, ctx)

    def compute(self, node: Node, idx: Indices, ctx: Context = TOP) -> Val:
        """node[idx] from its operands, even if node has memory (the body of its own loop)."""
        key = (node, idx, ctx.key)
        found = self.memo.get(key)
        if found is None:
            self.memo[key] = found = self._compute(node, idx, ctx)
        return found

    def _compute(self, node: Node, idx: Indices, ctx: Context) -> Val:
        name, kind = name_of(node), kind_of(node)
        if kind == "elementwise":
            return self._elementwise(node, name, idx, ctx)
        if name in VIEWS:
            src, where = source_index(node, idx)
            return self.of(src, where, ctx)
        if name == "full":
            return number(argument(node, 1, "value"), node.tensor.dtype)
        if name == "iota":
            return self._iota(node, idx, ctx)
        if name == "pad":
            return self._pad(node, idx, ctx)
        if name == "cat":
            return self._cat(node, idx, ctx)
        if name == "gather":
            return self._gather(node, idx, ctx)
        raise TypeError(f"{node.name}: {name} must be realised before it is read")

    # ---- elementwise ----

    def _elementwise(self, node: Node, name: str, idx: Indices, ctx: Context) -> Val:
        dtype = node.tensor.dtype
        if name in ("cast", "bitcast"):
            x = self._operand(node.args[0], idx, ctx, dtype, node)
            if x.dtype is dtype and name == "cast":
                return x
            return fold(name, (x,), dtype) or apply(name, (x,), dtype)
        args = node.args
        tensors = [a.tensor.dtype for a in (args[1:] if name == "where" else args) if isinstance(a, Node)]
        scalar = tensors[0] if tensors else dtype
        vals = [self._operand(a, idx, ctx, torch.bool if name == "where" and k == 0 else scalar, node)
                for k, a in enumerate(args)]
        if ctx.mask is not None and name in INT_DIVISIONS and not scalar.is_floating_point:
            vals[1] = apply("where", (ctx.mask, vals[1], const(1, scalar)), scalar)  # masked loads give 0
        return fold(name, tuple(vals), dtype) or apply(name, tuple(vals), dtype)

    def _operand(self, a: Any, idx: Indices, ctx: Context, dtype: torch.dtype, user: Node) -> Val:
        if not isinstance(a, Node):
            return number(a, dtype)
        shape = a.tensor.shape
        if alike(shape, user.tensor.shape):
            return self.of(a, idx, ctx)
        tail = idx[len(idx) - len(shape) :]
        return self.of(a, tuple(0 if n == 1 else i for n, i in zip(shape, tail)), ctx)

    # ---- creation ----

    def _iota(self, node: Node, idx: Indices, ctx: Context) -> Val:
        start, step = argument(node, 1, "start", 0), argument(node, 2, "step", 1)
        dtype = node.tensor.dtype
        if isinstance(start, (int, Sym)) and isinstance(step, (int, Sym)):
            return sym_value(idx[0] * step + start, ctx, dtype)
        wide = torch.float64
        scaled = apply("mul", (sym_value(idx[0], ctx, wide), number(step, wide)), wide)
        total = apply("add", (scaled, number(start, wide)), wide)
        return total if dtype is wide else apply("cast", (total,), dtype)

    # ---- views that choose ----

    def _pad(self, node: Node, idx: Indices, ctx: Context) -> Val:
        src: Node = node.args[0]
        low = argument(node, 1, "low")
        where = tuple(i - n for i, n in zip(idx, low))
        mask = inside(where, src.tensor.shape, ctx)
        if mask is None:
            return self.of(src, where, ctx)
        value = number(argument(node, 3, "value", 0), node.tensor.dtype)
        if isinstance(mask, Const):
            return value
        x = self.of(src, where, Context(both(ctx.mask, mask), ctx.indirect))
        return apply("where", (mask, x, value), x.dtype)

    def _cat(self, node: Node, idx: Indices, ctx: Context) -> Val:
        dim = argument(node, 1, "dim", 0)
        at = idx[dim]
        parts = []
        start = 0
        for part in node.args[0]:
            stop = start + part.tensor.shape[dim]
            if less(at, start) is not True and less(at, stop) is not False and less(start, stop) is not False:
                parts.append((part, start, stop))
            start = stop
        if len(parts) > 1 and self.splits and not isinstance(at, int):
            split_at(at, parts[0][2], ctx)
        chosen = None
        for part, start, stop in reversed(parts):
            where = (*idx[:dim], at - start, *idx[dim + 1 :])
            if len(parts) == 1:
                return self.of(part, where, ctx)
            mask = inside((at - start,), (stop - start,), ctx) or const(True, torch.bool)
            x = self.of(part, where, Context(both(ctx.mask, mask), ctx.indirect))
            chosen = x if chosen is None else apply("where", (mask, x, chosen), x.dtype)
        return const(0, node.tensor.dtype) if chosen is None else chosen

    def _gather(self, node: Node, idx: Indices, ctx: Context) -> Val:
        src: Node = node.args[0]
        where, pairs = self.indirect(argument(node, 1, "indices"), src.tensor.shape, idx, ctx, node)
        x = self.of(src, where, Context(ctx.mask, pairs))
        tested = [v for _, v in pairs[len(ctx.indirect):] if isinstance(v, Checked)]
        seen = set(walk(x)) if tested else ()
        for v in tested:
            if v not in seen:          # the place does not depend on the index, which is to be checked yet
                x = apply("where", (apply("ge", (v, const(0, v.dtype)), torch.bool), x, x), x.dtype)
        return x

    def indirect(self, indices: Sequence[Node], shape: Sequence[int], idx: Indices, ctx: Context,
                 node: Node) -> tuple[Indices, tuple[tuple[Var, Val], ...]]:
        """The place that index tensors (read at idx) point to, and the variables that stand for what was
        read."""
        pairs = list(ctx.indirect)
        where: list[Sym | int] = []
        first = 4 if name_of(node) == "scatter" else 2
        check = argument(node, first, "checked", True)
        error = tuple(argument(node, first + 1, "error", BAD_INDEX))
        read = [self._operand(a, idx, ctx, torch.int64, node) for a in indices]
        read = [index(int(v.value), torch.int64) if isinstance(v, Const) else v for v in read]
        # a place may come twice: the loop of a scatter keeps its order, which shows by what is indirect
        ordered = check and first == 4 and all(isinstance(v, Index) for v in read)
        for v, n in zip(read, shape):
            known = isinstance(v, Const) or (isinstance(v, Index) and less(v.sym, 0) is False and
                                             less(v.sym, n) is True)
            if ctx.mask is not None and not known:  # what is masked away must not raise
                v = apply("where", (ctx.mask, v, const(0, v.dtype)), v.dtype)
            if check:
                v = checked(v, 0, n, self.errors.setdefault(error, len(self.errors)))
            if isinstance(v, Const) and not ordered:
                where.append(int(v.value))
            elif isinstance(v, Index) and not ordered:
                where.append(v.sym)
            else:
                var = running(f"t{len(pairs)}", n)
                pairs.append((var, v))
                where.append(var)
        return tuple(where), tuple(pairs)


def number(value: Any, dtype: torch.dtype) -> Val:
    """A literal, or a size as a value."""
    return index(value, dtype) if isinstance(value, Sym) else const(value, dtype)


def split_at(at: Sym, boundary: Sym | int, ctx: Context) -> None:
    """Raises Undecided if `at` runs over one loop variable with coefficient 1."""
    (var, k), *more = at.terms
    if not more and k == 1 and isinstance(var, Var) and all(var is not v for v, _ in ctx.indirect):
        raise Undecided(var, boundary - at.const)


def both(a: Val | None, b: Val) -> Val:
    return b if a is None or a is b else apply("and", (a, b), torch.bool)


def inside(where: Indices, shape: Sequence[int], ctx: Context) -> Val | None:
    """A bool Val that is true where every index lies in its dimension; None if that is certain, False if
    never."""
    mask: Val | None = None
    for i, n in zip(where, shape):
        below, within = less(i, 0), less(i, n)
        if below is True or within is False:
            return const(False, torch.bool)
        lo, hi = bounds(i)
        read = any(v in dict(ctx.indirect) for v in free_vars(i))
        wide = read or max(-lo, hi, bounds(n)[1]) >= 2**31
        kind = torch.int64 if wide else torch.int32             # narrow: more lanes
        if below is None:
            mask = both(mask, apply("ge", (sym_value(i, ctx, kind), const(0, kind)), torch.bool))
        if within is None:
            mask = both(mask, apply("lt", (sym_value(i, ctx, kind), index(n, kind)), torch.bool))
    return mask


def sym_value(s: Sym | int, ctx: Context, dtype: torch.dtype = torch.int64) -> Val:
    """A Sym as a Val; variables that stand for indices read from memory become those reads."""
    bound = dict(ctx.indirect)
    if not any(v in bound for v in free_vars(s)):
        return index(s, dtype)

    def value(x: Sym | int) -> Val:
        if isinstance(x, int) or not any(v in bound for v in x.vars):
            return index(x)
        total: Val | None = None if x.const == 0 else const(x.const, torch.int64)
        for a, c in x.terms:
            term = atom(a)
            if c != 1:
                term = apply("mul", (term, const(c, torch.int64)), torch.int64)
            total = term if total is None else apply("add", (total, term), torch.int64)
        assert total is not None
        return total

    def atom(a: Sym) -> Val:
        if isinstance(a, Var):
            return bound[a] if a in bound else index(a)
        if isinstance(a, (Div, Mod)):
            prim = "floordiv" if isinstance(a, Div) else "remainder"
            return apply(prim, (value(a.num), value(a.den)), torch.int64)
        if isinstance(a, Prod):
            out = value(a.factors[0])
            for f in a.factors[1:]:
                out = apply("mul", (out, value(f)), torch.int64)
            return out
        raise TypeError(f"not an atom: {a!r}")

    total = value(s)
    return total if dtype is torch.int64 else apply("cast", (total,), dtype)
