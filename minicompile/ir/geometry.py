"""Geometries for any sizes: the shapes and strides of an operator's results as expressions of those of its
arguments.

Takes an ATen call whose tensors are specs with `Size`s, gives specs; `ir.fake` asks. The kernels on the meta
device compute with numbers, so they are run for several values of the sizes, the *witnesses*, and each number
in their results is looked for among simple expressions of what went in. One that fits all witnesses is taken,
and if there is none, the sizes are constants. What such expressions are not made of is said for the operator
(`EXTRA`), and checked in the same way. This is inference: what is decomposed is computed once more by the
rules of the prims, exactly.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import combinations, combinations_with_replacement
from math import lcm, prod
from typing import Any

import torch

from .forms import atoms
from .spec import TensorSpec
from .sym import Condition, Mod, NeedsSizes, Size, Sym, asked, evaluate, same, substitute

aten = torch.ops.aten
Env = dict[str, int]
Int = Sym | int
Results = tuple["tuple[tuple[Int, ...], tuple[Int, ...], Int] | None", ...]
FEWEST = 4          # witnesses that have to agree


def flat(x: Any) -> Iterator[Any]:
    """What nested tuples and lists hold."""
    if isinstance(x, (tuple, list)):
        for e in x:
            yield from flat(e)
    else:
        yield x


def sizes_in(*args: Any) -> tuple[Size, ...]:
    """The sizes that specs and integers among `args` are made of."""
    found: dict[Any, None] = {}
    for x in flat(args):
        for n in (*x.shape, *x.stride, x.offset) if isinstance(x, TensorSpec) else (x,):
            if isinstance(n, Sym):
                found.update(dict.fromkeys(n.vars))
    return tuple(sorted(found, key=lambda v: (len(v.name), v.name)))


def geometries(call: Callable[..., Any], func: Any, args: tuple, kwargs: dict) -> Results:
    """(shape, stride, offset) of each tensor in what func(*args, **kwargs) gives, None for anything else.
    `call` computes it on meta tensors. Raises NeedsSizes."""
    given = (args, *kwargs.values())
    extra = EXTRA[func](*args) if func in EXTRA else ()
    found = None
    for again in (False, True):
        if again:
            if not _unify(given):          # what must be equal, and is so in this call
                break
        found = _inferred(call, func, _frozen(args), tuple(kwargs.items()), tuple(extra), frozenset(asked()))
        if found is not None:
            return found
    raise NeedsSizes(sum(_fixed(call, func, args, kwargs)), f"no rule says what {func} gives")


def _fixed(call: Callable[..., Any], func: Any, args: tuple, kwargs: dict) -> tuple[Size, ...]:
    """The sizes that cannot vary, with all others as they are in this call; all where each of them could."""
    sizes, stuck = sizes_in(args, *kwargs.values()), []
    for v in sizes:
        others: dict[Any, Any] = {w: w.hint for w in sizes if w is not v}
        put = partial(_substituted, others=others)
        left = [Condition(c.relation, s) for c in asked() if isinstance(s := substitute(c.sym, others), Sym)]
        try:
            alone = put(args)
            extra = EXTRA[func](*alone) if func in EXTRA else ()
            found = _inferred(call, func, _frozen(alone), tuple((k, put(a)) for k, a in kwargs.items()),
                              tuple(extra), frozenset(left))
        except NeedsSizes:
            found = None
        if found is None:
            stuck.append(v)
    return tuple(stuck) or sizes


def _substituted(x: Any, others: dict[Any, Any]) -> Any:
    if isinstance(x, TensorSpec):
        return x.mapped(lambda n: substitute(n, others))
    if isinstance(x, (tuple, list)):
        return tuple([_substituted(e, others) for e in x])
    return substitute(x, others) if isinstance(x, Sym) else x


def _unify(given: tuple) -> bool:
    """Asks whether dimensions that are equal in this call always are; says if there are any."""
    dims = [n for x in flat(given) if isinstance(x, TensorSpec) for n in x.shape if isinstance(n, Sym)]
    pairs = [(a, b) for a, b in combinations(dict.fromkeys(dims), 2) if _at(a, None) == _at(b, None)]
    return bool([a == b for a, b in pairs])


def _frozen(x: Any) -> Any:
    return tuple(map(_frozen, x)) if isinstance(x, (tuple, list)) else x


def _at(x: Any, env: Env | None) -> Any:
    """`x` for sizes with these values, their hints if there are none: specs become meta tensors."""
    if isinstance(x, TensorSpec):
        return meta_of(x.with_(shape=_at(x.shape, env), stride=_at(x.stride, env), offset=_at(x.offset, env)))
    if isinstance(x, Sym):
        return evaluate(x, env if env is not None else {v.name: v.hint for v in x.vars})
    return tuple([_at(e, env) for e in x]) if isinstance(x, tuple) else x


def meta_of(spec: TensorSpec) -> torch.Tensor:
    """A meta tensor of this geometry (storage just large enough, storage offset kept)."""
    if not spec.offset:
        return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta")
    flat = torch.empty(spec.offset + spec.storage_numel, dtype=spec.dtype, device="meta")
    return flat.as_strided(spec.shape, spec.stride, spec.offset)


@lru_cache(4096)
def _inferred(call: Callable[..., Any], func: Any, args: tuple, kwargs: tuple, extra: tuple[Int, ...],
              conditions: frozenset[Condition]) -> Results | None:
    sizes = sizes_in(args, tuple(v for _, v in kwargs))
    envs = [{v.name: v.hint for v in sizes}, *witnesses(sizes, conditions)]
    if len(envs) < FEWEST:
        return None
    runs = [_run(call, func, args, dict(kwargs), env) for env in envs]
    if any(r is None or list(map(_kind, r)) != list(map(_kind, runs[0])) for r in runs):
        return None
    pool = _Pool(envs)
    for n in (*extra, *_integers((args, kwargs))):
        pool.add(n)
    out: list[Any] = []
    for each in zip(*runs):
        out.append(each[0] if each[0] is None else pool.geometry(each))
        if each[0] is not None and out[-1] is None:
            return None
    return tuple(out)


def _kind(geometry: Any) -> int:
    return -1 if geometry is None else len(geometry[0])


def _run(call: Callable[..., Any], func: Any, args: tuple, kwargs: dict, env: Env) -> list | None:
    """The geometries of the results for these sizes; None where the operator does not take them."""
    metas, options = _at(args, env), {k: _at(v, env) for k, v in kwargs.items()}
    tensors = [x for x in flat((metas, *options.values())) if isinstance(x, torch.Tensor)]
    before = [t.shape for t in tensors]
    try:
        out = call(func, metas, options)
    except Exception:          # whatever it says: these sizes are not for this operator
        return None
    results = [(tuple(t.shape), t.stride(), t.storage_offset()) if isinstance(t, torch.Tensor) else None
               for t in flat(out)]
    fixed = torch.Tag.inplace_view in func.tags or [t.shape for t in tensors] == before
    return results if fixed else None


def _integers(given: Any) -> Iterator[Int]:
    for x in flat(given):
        if isinstance(x, TensorSpec):
            yield from (*x.shape, *x.stride, x.offset, x.numel)
        elif isinstance(x, (int, Sym)) and not isinstance(x, bool):
            yield x


class _Pool:
    """Expressions by the values they have for the witnesses."""

    def __init__(self, envs: list[Env]):
        self.envs = envs
        self.known: dict[tuple[int, ...], Int] = {}

    def add(self, n: Int) -> None:
        if isinstance(n, Sym):
            self.known.setdefault(tuple([evaluate(n, env) for env in self.envs]), n)

    def find(self, values: tuple[int, ...], scaled: bool = True) -> Int | None:
        """The expression that has these values."""
        if len(set(values)) == 1:
            return values[0]
        if values in self.known:
            return self.known[values]
        affine = ((s, p) for p, s in self.known.items())
        for s, p in affine:
            i = next((i for i in range(1, len(p)) if p[i] != p[0]), 0)
            if i and (values[i] - values[0]) % (p[i] - p[0]) == 0:
                a = (values[i] - values[0]) // (p[i] - p[0])
                b = values[0] - a * p[0]
                if all(v == a * n + b for v, n in zip(values, p)):
                    return a * s + b
        for (p, s), (q, t) in combinations_with_replacement(self.known.items(), 2):
            for made, at in ((s + t, [m + n for m, n in zip(p, q)]), (s - t, [m - n for m, n in zip(p, q)]),
                             (s * t, [m * n for m, n in zip(p, q)])):
                step = values[0] - at[0]
                if all(v == n + step for v, n in zip(values, at)):
                    return made + step
        return None

    def geometry(self, each: Sequence[Any]) -> Any:
        """One result's, from what it is for each witness."""
        shape = [self.find(n) for n in zip(*(g[0] for g in each))]
        if None in shape:
            return None
        for count in range(2, len(shape) + 1):
            for chosen in combinations([n for n in shape if not same(n, 1)][:6], count):
                self.add(prod(chosen))
        stride = [self.find(n) for n in zip(*(g[1] for g in each))]
        offset = self.find(tuple(g[2] for g in each))
        return None if None in stride or offset is None else (tuple(shape), tuple(stride), offset)


# ---- witnesses ------------------------------------------------------------------------------------

KINDS = ((200, 1500), (200, 1500), (2, 7), (2, 7), (2, 70))          # between which values are drawn


def witnesses(sizes: Sequence[Size], conditions: frozenset[Condition]) -> list[Env]:
    """Values for the sizes for which all conditions hold, large and small ones."""
    everything = dict.fromkeys((*sizes, *(v for c in conditions for v in sorted(c.sym.vars, key=str))))
    draws = random.Random(0)
    steps = {v: lcm(*(int(a.den) for c in conditions for a in atoms(c.sym)
                      if isinstance(a, Mod) and isinstance(a.den, int) and v in a.vars)) for v in everything}
    found = []
    for low, high in KINDS:
        for i in range(150):
            env = {}
            for v in everything:          # conditions may want sizes like this call's, or rests
                n = draws.randint(*((v.hint // 2, 2 * v.hint + 9) if i % 3 else (low, high)))
                n = n if i < 50 else n // steps[v] * steps[v] + v.hint % steps[v]
                env[v.name] = min(max(n, int(v.lo)), int(v.hi))
            for c in conditions:
                _solve(c, env)
            if all(v.lo <= env[v.name] <= v.hi for v in everything) and all(c.holds(env) for c in conditions):
                found.append(env)
                break
    return found


def _solve(c: Condition, env: Env) -> None:
    """Makes an equation hold by changing one size."""
    if c.relation == "eq":
        for v, k in reversed(c.sym.terms):
            if isinstance(v, Size) and abs(k) == 1 and sum(v in a.vars for a, _ in c.sym.terms) == 1:
                env[v.name] -= k * evaluate(c.sym, env)
                return


# ---- what operators compute -----------------------------------------------------------------------

def ceil_div(n: Int, d: Int) -> Int:
    return -(-n // d)


def _view(x: TensorSpec, shape: Sequence[Int], *_: Any) -> Iterator[Int]:
    """The one size that is left to be computed."""
    rest = [n for n in shape if isinstance(n, Sym) or n >= 0]
    if len(rest) < len(shape):
        yield x.numel // prod(rest)


def _slice(x: TensorSpec, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Iterator[Int]:
    first, last = sliced(x.shape[dim], start, end)
    yield ceil_div(last - first, step)
    yield x.offset + first * x.stride[dim]


def sliced(size: Int, start: Int | None, end: Int | None) -> tuple[Int, Int]:
    """Where x[start:end] begins and ends, as slice.indices says it."""
    def within(n: Int) -> Int:
        n = n + size if n < 0 else n
        return 0 if n < 0 else size if n > size else n
    first = within(0 if start is None else start)
    last = size if end is None or isinstance(end, int) and end >= 2**62 else within(end)
    return first, last if last > first else first


def _select(x: TensorSpec, dim: int, index: Int) -> Iterator[Int]:
    size = x.shape[dim]
    if -size <= index < size:          # else the kernel raises, for any witness
        yield x.offset + (index + size if index < 0 else index) * x.stride[dim]


def _arange(*args: Any) -> Iterator[Int]:
    start, end, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
    if not any(isinstance(n, float) for n in (start, end, step)):
        yield ceil_div(end - start, step)


def _cat(xs: Sequence[TensorSpec], dim: int = 0) -> Iterator[Int]:
    yield sum(x.shape[dim] for x in xs if len(x.shape) == len(xs[-1].shape))


def _window(x: TensorSpec, kernel: Any, stride: Any, padding: Any, dilation: Any = 1,
            ceil_mode: bool = False) -> Iterator[Int]:
    n = len(kernel) if isinstance(kernel, (tuple, list)) else 1
    for size, k, s, p, d in zip(x.shape[len(x.shape) - n:], *(_repeated(v, n) for v in (
            kernel, stride or kernel, padding, dilation))):
        room = size + 2 * p - d * (k - 1) - 1
        if isinstance(size, Sym) and (room < 0 or ceil_mode):
            raise NeedsSizes(size, "a window that may not fit")
        yield room // s + 1


def _repeated(v: Any, n: int) -> tuple:
    v = tuple(v) if isinstance(v, (tuple, list)) else (v,)
    return v * n if len(v) == 1 else v


def _convolution(x: TensorSpec, weight: TensorSpec, bias: Any, stride: Any, padding: Any, dilation: Any,
                 transposed: bool, *_: Any) -> Iterator[Int]:
    if not transposed:
        yield from _window(x, weight.shape[2:], stride, padding, dilation)


def _pool(x: TensorSpec, kernel: Any, stride: Any = (), padding: Any = 0, *rest: Any) -> Iterator[Int]:
    """max_pool: (dilation, ceil_mode); avg_pool: (ceil_mode, …)"""
    dilation, ceil_mode = (1, rest[0]) if rest and isinstance(rest[0], bool) else (*rest, 1, False)[:2]
    yield from _window(x, kernel, stride, padding, dilation, ceil_mode)


EXTRA: dict[Any, Callable[..., Iterator[Int]]] = {
    aten.view.default: _view, aten._unsafe_view.default: _view, aten.reshape.default: _view,
    aten._reshape_alias.default: _view, aten.view_copy.default: _view,
    aten.slice.Tensor: _slice, aten.select.int: _select, aten.cat.default: _cat,
    aten.arange.default: _arange, aten.arange.start: _arange, aten.arange.start_step: _arange,
    aten.convolution.default: _convolution,
    aten.max_pool2d_with_indices.default: _pool, aten.avg_pool2d.default: _pool,
    aten.max_pool3d_with_indices.default: _pool, aten.avg_pool3d.default: _pool,
    aten.avg_pool1d.default: _pool}
