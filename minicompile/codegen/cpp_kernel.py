"""The C++ text of one kernel.

Takes a `Kernel` and the plan's buffers, gives (body text, buffer names in order of the pointers it takes)
for `codegen.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch

from ..ir.sym import Size, Sym, Var, bounds, hint, same
from ..loops.ir import Apply, Axis, Buffer, Checked, Const, Index, Load, Loop, Store, Val
from ..loops.sizes import sizes_in
from ..schedule.plan import Kernel, Stage
from ..schedule.space import total
from ..schedule.tiling import FORK_NS
from .cpp_values import REGISTER, apply_text, element, literal, raw_vector
from .walk import Scope, buffers_read, count_text, forget, index_text, lane_step, widest

VECTOR_BYTES = {"avx512": 64, "avx2": 32, "scalar": 0}
STACK_BYTES = 64 * 1024  # rows of one thread that may lie on its stack
OPERATION = {"sum": "Sum", "prod": "Prod", "amax": "Amax", "amin": "Amin", "any": "Any", "all": "All",
             "scan_sum": "Sum", "scan_prod": "Prod", "scan_amax": "Amax", "scan_amin": "Amin", "add": "Sum",
             "mul": "Prod"}
# additions per accumulator before it is taken into a total: keeps long sums exact
CHUNK = 256
WIDE = 4
INLINED = "__attribute__((always_inline))"


class KernelText:
    """Prints one kernel. State: the open scopes, and which axis currently runs over lanes (`lane_var`, with
    `lanes` lanes)."""

    def __init__(self, kernel: Kernel, buffers: Mapping[str, Buffer], isa: str, sizes: Sequence[Size] = ()):
        self.kernel, self.buffers, self.bytes = kernel, buffers, VECTOR_BYTES[isa]
        self.sizes = sizes_of(sizes, kernel, [buffers[name].spec for name in kernel.local])
        self.scopes: list[Scope] = [Scope(frozenset(sizes), 1)]
        self.pointers: dict[str, str] = {}  # buffer -> its name in the text
        self.reads: dict[Val, frozenset[str]] = {}
        self.stored = frozenset(loop.out.buffer for loop in kernel.loops)
        self.registers: dict[str, str] = {}  # local scalar -> its variable
        self.lane_var: Var | None = None
        self.lanes = 1
        self.count = 0
        self.point_depth = 0  # index of the par point's scope

    # ---- names and scopes --------------------------------------------------------------------------

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    @property
    def here(self) -> Scope:
        return self.scopes[-1]

    @contextmanager
    def block(self, opening: str, names: frozenset[Var] = frozenset(), closing: str = "}") -> Iterator[Scope]:
        """A nested scope; its text is appended to the outer one when it closes, so that hoisted lines come
        before it."""
        outer = self.here
        inner = Scope(outer.names | names, outer.depth + 1)
        self.scopes.append(inner)
        yield inner
        self.scopes.pop()
        outer.put(opening)
        outer.lines += inner.lines
        outer.put(closing)

    def pointer(self, name: str) -> str:
        if name not in self.pointers:
            self.pointers[name] = f"p{len(self.pointers)}"
        return self.pointers[name]

    # ---- the whole function ------------------------------------------------------------------------

    def emit(self) -> tuple[str, tuple[str, ...]]:
        """(text of the function's body, buffers whose addresses it takes, in order)."""
        k = self.kernel
        flat = k.tiling.vector not in (None, "inner") and self.bytes > 0
        if flat:
            self.lane_var = k.par[-1].var
            roots = [v for loop in k.loops for v in loop.values()]
            self.lanes = self.bytes // widest(roots, k.loops, lambda v: self.lane_var in v.vars)
            if self.lanes < 2 or hint(k.par[-1].size) < 2:
                self.lane_var, self.lanes, flat = None, 1, False
        if not any(same(a.size, 0) for a in k.par):
            self.par_axes(bool(flat))
        top = [f"  auto {p} = ({element(self.buffers[name].spec.dtype)}*)b[{i}];"
               for i, (name, p) in enumerate(self.pointers.items())]
        empty = [f"  if ({count_text(a.size)} < 1) return;" for a in k.par
                 if isinstance(a.size, Sym) and a.size.lo < 1]
        return "\n".join([*self.sizes, *top, *empty, *self.here.lines]) + "\n", tuple(self.pointers)

    def par_axes(self, flat: bool) -> None:
        par, t = self.kernel.par, self.kernel.tiling
        depth = t.parallel
        blocks = flat and depth == len(par)  # the lane axis itself is shared out among threads
        if blocks and depth > 1 and hint(total(par[:-1])) >= 64:
            depth, blocks = depth - 1, False
        shared = par[:depth]
        counts = [self.block_count(a) if blocks and a is par[-1] else a.size for a in shared]
        if not shared:
            self.rows_then(lambda: self.inner_par(par, flat))
            return
        with self.block(f"parallel(env, {count_text(prod(counts))}, [=](i64 begin, i64 end) {{",
                        closing=self.enough()):
            self.rows_then(lambda: self.shared_axes(shared, counts, blocks, flat))

    def shared_axes(self, shared: tuple[Axis, ...], counts: list[Sym | int], blocks: bool,
                    flat: bool) -> None:
        """for at in [begin, end): the shared axes' variables, then the other par axes."""
        names = frozenset(a.var for a in shared if not (blocks and a is shared[-1]))
        with self.block("for (i64 at = begin; at < end; ++at) {", names):
            self.unravel(["block" if blocks and a is shared[-1] else a.var.name for a in shared], counts)
            if blocks:
                self.lane_block(shared[-1])
            else:
                self.inner_par(self.kernel.par[len(shared) :], flat)

    def unravel(self, names: list[str], counts: list[Sym | int]) -> None:
        """The variables `names`, which count up to `counts`, from the position `at`, last one fastest."""
        rest = "at"
        for name, count in reversed(list(zip(names[1:], counts[1:]))):
            after = self.fresh("rest")
            n = count_text(count)
            self.here.put(f"const i64 {name} = {rest} % {n}, {after} = {rest} / {n};")
            rest = after
        self.here.put(f"const i64 {names[0]} = {rest};")

    def enough(self) -> str:
        """The end of a parallel region: what sizes leave open is shared out where it is worth a team."""
        k = self.kernel
        counts = [total(k.par), *(total((*k.par, *s.inner)) for s in k.stages)]
        points = max(counts, key=hint)
        if isinstance(points, int):
            return "});"
        least = round(FORK_NS * hint(points) / max(k.tiling.work, 1.0))
        return f"}}, {count_text(points)} >= {least});"

    def block_count(self, a: Axis) -> Sym | int:
        """Blocks of the lane axis that are shared out: wide ones, whole ones, the tail."""
        n, wide = self.lanes, self.wide()
        many = a.size // (n * wide) if wide > 1 else 0
        return many + ceildiv(a.size - many * n * wide, n)

    def lane_block(self, a: Axis) -> None:
        """Block number `block` of the shared lane axis."""
        size, n, wide = a.size, self.lanes, self.wide()
        many = size // (n * wide) if wide > 1 else 0
        done = many * n * wide
        whole, tail = (size - done) // n, size % n
        cases: list[tuple[Sym | int, str]] = []
        if not same(many, 0):
            self.wide_point(a)
            cases.append((many, f"wide(block * {n * wide});"))
        if not same(whole, 0) or not same(tail, 0):
            with self.block(f"auto point = [&](i64 {a.var}, auto m) {INLINED} {{", frozenset((a.var,)), "};"):
                self.point()
        if not same(whole, 0):
            at = "block" if same(many, 0) else f"{count_text(done)} + (block - {count_text(many)})"
            cases.append((whole, f"point({at} * {n}, Full{{}});"))
        if not same(tail, 0):
            cases.append((1, f"point({count_text(size - tail)}, {tail_text(tail)});"))
        until: Sym | int = 0
        for i, (count, text) in enumerate(cases):
            until += count
            when = f"if (block < {count_text(until)}) " if i < len(cases) - 1 else ""
            self.here.put(("else " if i else "") + when + text)

    def inner_par(self, axes: tuple[Axis, ...], flat: bool) -> None:
        """The par axes that are not shared among threads, as nested loops."""
        if not axes:
            self.point()
            return
        a = axes[0]
        if flat and len(axes) == 1:
            with self.block(f"for (i64 block = 0; block < {count_text(self.block_count(a))}; ++block) {{"):
                self.lane_block(a)
            return
        with self.block(f"for (i64 {a.var} = 0; {a.var} < {count_text(a.size)}; ++{a.var}) {{",
                        frozenset((a.var,))):
            self.inner_par(axes[1:], flat)

    def lane_loop(self, function: str, a: Axis, unroll: int, numbered: bool, flush: str = "") -> None:
        """Calls `function` for every block of lanes of an axis: whole ones first, then the tail. `flush` is
        a statement to
        run now and then (see `totals`)."""
        size, n, v = a.size, self.lanes, a.var
        whole, step = size // n * n, n * unroll
        main = whole // step * step
        open_ = isinstance(main, Sym)
        until = count_text(main)
        tag = (lambda u: f", {u}") if numbered else (lambda u: "")
        calls = " ".join(f"{function}({v}{f' + {u * n}' if u else ''}, Full{{}}{tag(u)});"
                         for u in range(unroll))
        if flush and (open_ or main > step * CHUNK):
            self.here.put(f"for (i64 chunk = 0; chunk < {until}; chunk += {step * CHUNK}) {{")
            self.here.put(
                f"  for (i64 {v} = chunk; {v} < least(chunk + {step * CHUNK}, {until}); {v} += {step})"
                f" {{ {calls} }}"
            )
            more = f"if (chunk + {step * CHUNK} < {until}) " if open_ else ""     # none for short rows
            self.here.put(f"  {more}{{ {flush} }}" if open_ else f"  {flush}")
            self.here.put("}")
        elif open_ or main > step:
            self.here.put(f"for (i64 {v} = 0; {v} < {until}; {v} += {step}) {{ {calls} }}")
        elif main:
            self.here.put(calls.replace(f"({v}", "(0"))
        if not same(whole, main):
            self.here.put(f"for (i64 {v} = {until}; {v} < {count_text(whole)}; {v} += {n}) "
                          f"{function}({v}, Full{{}}{tag(0)});")
        if not same(size, whole):
            rest = f"{function}({count_text(whole)}, {tail_text(size - whole)}{tag(0)});"
            self.here.put(f"if ({count_text(size - whole)}) {rest}" if isinstance(size, Sym) else rest)

    def rows_then(self, rest: Callable[[], None]) -> None:
        """Scratch rows of one thread, then `rest`."""
        at: Sym | int = 0
        rows = [(name, self.buffers[name].spec) for name in self.kernel.local if self.buffers[name].spec.ndim]
        offsets = []
        for _, spec in rows:
            offsets.append(at)
            n = spec.storage_numel if isinstance(spec.storage_numel, Sym) else max(spec.storage_numel, 1)
            at += ceildiv(n * spec.dtype.itemsize * self.lanes, 64) * 64
        if rows:
            if isinstance(at, Sym):
                self.here.put(f"Rows<{STACK_BYTES}> scratch({index_text(at)});")
                self.here.put("char* const rows = scratch.get();")
            elif at <= STACK_BYTES:
                self.here.put(f"alignas(64) char rows[{at}];")
            else:
                self.here.put(f"Scratch scratch({at}); char* const rows = scratch.get();")
        for n, ((name, spec), offset) in enumerate(zip(rows, offsets)):
            self.registers[name] = f"row{n}"
            self.here.put(f"auto row{n} = ({element(spec.dtype)}*)(rows + {count_text(offset)});")
        rest()

    # ---- column reductions -------------------------------------------------------------------------

    def wide(self) -> int:
        """How many blocks of lanes a column reduction takes at once: 4, so that each row is read a cache
        line or two at a
        time. 1 for every other kernel."""
        k = self.kernel
        first, *rest = k.stages
        if self.lane_var is None or not first.inner or any(s.inner for s in rest):
            return 1
        rows = any(self.buffers[name].spec.ndim for name in k.local)
        if rows or not all(loop.is_reduction for loop in first.loops):
            return 1
        return WIDE if hint(k.par[-1].size) >= WIDE * self.lanes else 1

    def wide_point(self, a: Axis) -> None:
        """`wide(i)`: the first stage for WIDE blocks of lanes from i on, and what comes of its results. The
        lane axis exists only inside `body` and `done`."""
        (stage, *rest), n = self.kernel.stages, self.lanes
        with self.block(f"auto wide = [&](i64 {a.var}) {INLINED} {{", closing="};"):
            self.point_depth = len(self.scopes) - 1
            accumulators = {loop: self.accumulator(loop, WIDE) for loop in stage.loops}
            flush = self.totals(accumulators, stage, WIDE, False)
            self.inner_axes(stage, stage.inner, accumulators, False, WIDE, flush)
            if flush:
                self.here.put(flush.replace(".take(", ".give("))
            with self.block(f"auto done = [&](i64 {a.var}, auto m, int u) {INLINED} {{", frozenset((a.var,)),
                            "};"):
                for loop, acc in accumulators.items():
                    text, dtype = self.lanes_of(loop, f"{acc}[u]")
                    self.store(loop.out, loop.store_dtype,
                               self.cast(self.named(text, dtype, True), dtype, loop.store_dtype), True)
                for after in rest:
                    self.stage(after)
            self.here.put(" ".join(f"done({a.var}{f' + {u * n}' if u else ''}, Full{{}}, {u});"
                                   for u in range(WIDE)))

    # ---- one par point -----------------------------------------------------------------------------

    def point(self) -> None:
        """All stages, at one point (or, with lanes along the last par axis, one block of points)."""
        self.point_depth = len(self.scopes) - 1
        for stage in self.kernel.stages:
            self.stage(stage)
            written = frozenset(loop.out.buffer for loop in stage.loops)
            forget(self.scopes, written, self.reads)

    def stage(self, stage: Stage) -> None:
        if any(same(a.size, 0) for a in stage.inner) and not any(loop.is_reduction for loop in stage.loops):
            return
        outer = (self.lane_var, self.lanes)
        scan = any(loop.is_scan for loop in stage.loops)
        inner_lanes = self.kernel.tiling.vector == "inner" and stage.inner and self.bytes and not scan
        if inner_lanes:
            self.lane_var = stage.inner[-1].var
            roots = [v for loop in stage.loops for v in loop.values()]
            self.lanes = self.bytes // widest(roots, stage.loops, lambda v: self.lane_var in v.vars)
            if self.lanes < 2 or hint(stage.inner[-1].size) < 2:
                (self.lane_var, self.lanes), inner_lanes = outer, False
        unroll = self.unroll(stage) if inner_lanes else 1
        accumulators = {loop: self.accumulator(loop, unroll) for loop in stage.loops if loop.combine}
        flush = self.totals(accumulators, stage, unroll, bool(inner_lanes))
        self.inner_axes(stage, stage.inner, accumulators, bool(inner_lanes), unroll, flush)
        if flush:
            self.here.put(flush.replace(".take(", ".give("))
        inner_var = self.lane_var if inner_lanes else None
        finished = [(loop, self.finish(loop, acc, unroll, inner_var)) for loop, acc in accumulators.items()
                    if loop.is_reduction]
        if inner_lanes:
            self.lane_var, self.lanes = outer
        for loop, value in finished:
            self.store(loop.out, loop.store_dtype, value, self.lane_var is not None)

    def unroll(self, stage: Stage) -> int:
        """How many accumulators a vector reduction keeps: hides the latency of additions, and sums more
        exactly."""
        whole = hint(stage.inner[-1].size) // self.lanes
        if not any(loop.is_reduction for loop in stage.loops):
            return 1
        return 4 if whole >= 4 else max(whole, 1)

    def totals(self, accumulators: dict[Loop, str], stage: Stage, unroll: int, lanes: bool) -> str:
        """Declares totals for long floating-point sums; gives the statement that moves the accumulators
        into them."""
        per = self.lanes * unroll if lanes else 1
        sums = [acc for loop, acc in accumulators.items() if loop.combine == "sum"
                and loop.body.dtype.is_floating_point]
        if not sums or bounds(total(stage.inner))[1] <= CHUNK * per:
            return ""
        for acc in sums:
            self.here.put(f"auto {acc}_total = Totals<{unroll}>::of({acc});")
        return " ".join(f"{acc}_total.take({acc});" for acc in sums)

    def inner_axes(self, stage: Stage, axes: tuple[Axis, ...], accumulators: dict[Loop, str], lanes: bool,
                   unroll: int, flush: str = "") -> None:
        # a wide column reduction: the body once per block of lanes
        if not axes and unroll > 1 and not lanes:
            a, n = self.kernel.par[-1], self.lanes
            with self.block(f"auto body = [&](i64 {a.var}, auto m, int u) {INLINED} {{", frozenset((a.var,)),
                            "};"):
                self.body(stage, accumulators, "u")
            self.here.put(" ".join(f"body({a.var}{f' + {u * n}' if u else ''}, Full{{}}, {u});"
                                   for u in range(unroll)))
            return
        if not axes:
            self.body(stage, accumulators, "0")
            return
        a = axes[0]
        if same(a.size, 0):
            return
        if lanes and len(axes) == 1:
            function = self.fresh("body")
            with self.block(f"auto {function} = [&](i64 {a.var}, auto m, int u) {INLINED} {{",
                            frozenset((a.var,)), "};"):
                self.body(stage, accumulators, "u")
            self.lane_loop(function, a, unroll, True, flush)
            return
        v, size = a.var, count_text(a.size)
        last = len(axes) == 1
        deeper = flush if not last and (lanes or bounds(axes[1].size)[1] > CHUNK) else ""
        if flush and last and bounds(a.size)[1] > CHUNK:
            with self.block(f"for (i64 chunk = 0; chunk < {size}; chunk += {CHUNK}) {{"):
                with self.block(f"for (i64 {v} = chunk; {v} < least(chunk + {CHUNK}, {size}); ++{v}) {{",
                                frozenset((v,))):
                    self.inner_axes(stage, axes[1:], accumulators, lanes, unroll)
                self.here.put(flush)
            return
        with self.block(f"for (i64 {v} = 0; {v} < {size}; ++{v}) {{", frozenset((v,))):
            self.inner_axes(stage, axes[1:], accumulators, lanes, unroll, deeper)
            if flush and not last:
                self.here.put(flush)

    def body(self, stage: Stage, accumulators: dict[Loop, str], u: str) -> None:
        """All values of the stage first, then all stores: a kernel may store to the place it loads from."""
        stores = []
        for loop in stage.loops:
            varying = self.varying_loop(loop, stage)
            value = self.value(loop.body, varying)
            if loop.combine is None:
                stores.append((loop, self.cast(value, loop.body.dtype, loop.store_dtype), varying))
            else:
                step = self.step(loop, accumulators[loop], value, stage, varying, u)
                if loop.is_scan:
                    stores.append((loop, self.cast(step, loop.body.dtype, loop.store_dtype), varying))
        for loop, value, varying in stores:
            self.store(loop.out, loop.store_dtype, value, varying)

    def varying_loop(self, loop: Loop, stage: Stage) -> bool:
        """Whether a loop's value is a vector at this place (it is printed as one even where all lanes are
        equal)."""
        return self.lane_var is not None and any(a.var is self.lane_var
                                                 for a in (*self.kernel.par, *stage.inner))

    # ---- reductions --------------------------------------------------------------------------------

    def types(self, dtype: torch.dtype, vector: bool) -> str:
        if not vector:
            return REGISTER[dtype]
        return raw_vector(dtype, self.lanes)

    def accumulator(self, loop: Loop, unroll: int) -> str:
        acc = self.fresh("acc")
        vector = self.lane_var is not None
        t = self.types(loop.body.dtype, vector)
        if loop.combine in ("argmax", "argmin"):
            position = self.types(_position_dtype(loop), vector)
            best = f"Best<{str(loop.combine == 'argmax').lower()}, {t}, {position}>"
            self.here.put(f"{best} {acc}[{unroll}];")
            return acc
        scalar = "i8" if vector and loop.body.dtype is torch.bool else REGISTER[loop.body.dtype]
        start = f"{OPERATION[loop.combine or '']}::identity<{scalar}>()"
        if vector:
            start = f"splat<{scalar}, {self.lanes}>({start})"
        if unroll == 1:
            self.here.put(f"{t} {acc}[1] = {{{start}}};")
        else:
            self.here.put(f"{t} {acc}[{unroll}] = {{{', '.join([start] * unroll)}}};")
        return acc

    def step(self, loop: Loop, acc: str, value: str, stage: Stage, vector: bool, u: str) -> str:
        """Takes the value into the accumulator; gives the accumulator's text."""
        inner_lanes = any(a.var is self.lane_var for a in stage.inner)
        if loop.combine in ("argmax", "argmin"):
            position = "0"
            for a in stage.inner:
                position = f"({position} * {count_text(a.size)} + {a.var})" if position != "0" else a.var.name
            kind = REGISTER[_position_dtype(loop)]
            spread = "ramp" if inner_lanes else "splat"
            position = (f"{spread}<{kind}, {self.lanes}>({kind}({position}))" if vector
                        else f"{kind}({position})")
            self.here.put(f"{acc}[{u}].step({value}, {position}, {'m' if inner_lanes else 'Full{}'});")
            return acc
        op = OPERATION[loop.combine or ""]
        if inner_lanes:
            scalar = "i8" if loop.body.dtype is torch.bool else REGISTER[loop.body.dtype]
            if loop.body.dtype is torch.bool:
                value = f"mask_as<vec<i8, {self.lanes}>>({value})"
            value = f"present({value}, {op}::identity<{scalar}>(), m)"
        self.here.put(f"{acc}[{u}] = {op}::step({acc}[{u}], {value});")
        return f"{acc}[{u}]"

    def lanes_of(self, loop: Loop, acc: str) -> tuple[str, torch.dtype]:
        """What an accumulator with a result in each lane holds, and its type."""
        if loop.combine in ("argmax", "argmin"):
            return f"{acc}.index", _position_dtype(loop)
        return acc, loop.body.dtype

    def finish(self, loop: Loop, acc: str, unroll: int, inner: Var | None) -> str:
        """The finished reduction, cast to what is stored."""
        if loop.combine in ("argmax", "argmin"):
            if inner is None and self.lane_var is not None:
                return self.cast(*self.lanes_of(loop, f"{acc}[0]"), loop.store_dtype)
            return f"best_of({acc})"
        op = OPERATION[loop.combine or ""]
        parts = [f"{acc}[{u}]" for u in range(unroll)]
        while len(parts) > 1:
            parts = [f"{op}::step({a}, {b})" for a, b in zip(parts[::2],
                                                             parts[1::2])] + parts[len(parts) // 2 * 2 :]
        text = parts[0]
        dtype = loop.body.dtype
        if inner is not None:
            text = f"across<{op}>({text})" + (" != 0" if dtype is torch.bool else "")
        return self.cast(self.named(f"({text})", dtype, inner is None and self.lane_var is not None), dtype,
                         loop.store_dtype)

    def named(self, text: str, dtype: torch.dtype, vector: bool) -> str:
        name = self.fresh("v")
        self.here.put(f"const {'auto' if vector else REGISTER[dtype]} {name} = {text};")
        return name

    # ---- values ------------------------------------------------------------------------------------

    def cast(self, text: str, source: torch.dtype, target: torch.dtype) -> str:
        return text if source is target else f"cast<{element(target)}, {element(source)}>({text})"

    def varies(self, v: Val) -> bool:
        """Whether lanes hold different values of v."""
        if self.lane_var is None:
            return False
        if self.lane_var in v.vars:
            return True
        par = any(a.var is self.lane_var for a in self.kernel.par)
        return par and not self.local_reads(v).isdisjoint(self.kernel.local)

    def local_reads(self, v: Val) -> frozenset[str]:
        return buffers_read(v, self.reads)

    def home(self, v: Val) -> Scope:
        """The outermost scope where v can be computed."""
        first = self.point_depth if self.local_reads(v) & self.stored else 0
        if self.lane_var is not None and self.varies(v):
            first = max(first, next(i for i, s in enumerate(self.scopes) if self.lane_var in s.names))
        for scope in self.scopes[first:]:
            if v.vars <= scope.names:
                return scope
        raise AssertionError(f"{v} uses variables that no loop binds")

    def value(self, v: Val, vector: bool) -> str:
        """Text of v, as a vector where asked (a value equal in all lanes is then spread)."""
        text = self.scalar_or_lanes(v)
        if not vector or self.varies(v):
            return text
        if v.dtype is torch.bool:
            return f"splat_mask<{self.lanes}>({text})"
        return f"splat<{REGISTER[v.dtype]}, {self.lanes}>({text})"

    def scalar_or_lanes(self, v: Val) -> str:
        if isinstance(v, Const):
            return literal(v)
        for scope in reversed(self.scopes):
            if v in scope.memo:
                return scope.memo[v]
        if isinstance(v, Load) and self.registers.get(v.buffer) and not self.buffers[v.buffer].spec.ndim:
            return self.registers[v.buffer]
        home = self.home(v)
        open_scopes, self.scopes = self.scopes, self.scopes[: self.scopes.index(home) + 1]
        text = self.expression(v)
        vector = self.varies(v)
        name = self.fresh("v")
        home.put(f"const {'auto' if vector else REGISTER[v.dtype]} {name} = {text};")
        home.memo[v] = name
        self.scopes = open_scopes
        return name

    def expression(self, v: Val) -> str:
        element(v.dtype)
        vector = self.varies(v)
        if isinstance(v, Load):
            return self.load(v, vector)
        if isinstance(v, Index):
            return self.index(v, vector)
        if isinstance(v, Checked):
            m = "m" if vector else "Full{}"
            value, hi = self.value(v.args[0], vector), index_text(v.hi)
            return f"checked(env, {value}, {v.lo}L, i64({hi}), {v.error}, {m})"
        assert isinstance(v, Apply), v
        rounded = rounds_bf16(v)
        if rounded is not None:
            return f"rounded_bf16({self.value(rounded, vector)})"
        args = [self.value(a, vector and not (i == 0 and v.prim == "where" and v.dtype is not torch.bool))
                for i, a in enumerate(v.args)]
        return apply_text(v, args)

    def index(self, v: Index, vector: bool) -> str:
        kind = REGISTER[v.dtype]
        if not vector:
            return f"{kind}({index_text(v.sym)})"
        step = lane_step(v.sym, self.lane_var)
        if step is not None:
            return f"ramp<{kind}, {self.lanes}>({kind}({index_text(v.sym)}), {kind}({count_text(step)}))"
        var = self.lane_var
        return (
            f"each<{kind}, {self.lanes}>([&, first = {var}](int l) {{ const i64 {var} = first + l; "
            f"return {kind}({index_text(v.sym)}); }})"
        )

    def load(self, v: Load, vector: bool) -> str:
        at, step, bound = self.place(v.buffer, v.index, v.indirect)
        mask = self.scalar_or_lanes(v.mask) if v.mask is not None else None
        if not vector:
            return f"load({at})" if mask is None else f"({mask} ? load({at}) : {REGISTER[v.dtype]}(0))"
        assert not same(step, 0) or mask is not None or bound or v.buffer in self.kernel.local
        if same(step, 1):
            if mask is None:
                return f"load<{self.lanes}>({at}, m)"
            if v.mask is not None and self.varies(v.mask):
                return f"load_if<{self.lanes}>({mask}, {at}, m)"
            return f"({mask} ? load<{self.lanes}>({at}, m) : {raw_vector(v.dtype, self.lanes)}{{}})"
        if mask is None and same(step, -1):
            return f"load_back<{self.lanes}>({at}, m)"
        function = self.lane_address(at, bound)
        ctype = element(v.dtype)
        if same(step, 2):
            lanes = mask if v.mask is not None and self.varies(v.mask) else "Each{}"
            text = f"load_even<{self.lanes}>({lanes}, {at}, m)"
            return text if mask is None or lanes == mask else (
                f"({mask} ? {text} : {raw_vector(v.dtype, self.lanes)}{{}})")
        if mask is None:
            return f"gather<{self.lanes}, {ctype}>({function}, m)"
        if v.mask is not None and not self.varies(v.mask):
            mask = f"splat_mask<{self.lanes}>({mask})"
        return f"gather_if<{self.lanes}, {ctype}>({mask}, {function}, m)"

    def place(self, buffer: str, index: Sym | int, indirect: tuple[tuple[Var, Val], ...]) -> tuple[str,
            Sym | int | None, dict[str, str]]:
        """(address text, lane step, variables that differ from lane to lane: name -> vector text)."""
        names: dict[str, str] = {}
        bound: dict[str, str] = {}
        for var, x in indirect:
            text = self.scalar_or_lanes(x)
            if self.varies(x):
                bound[var.name] = text
            else:
                names[var.name] = f"i64({text})"
        at = index_text(index, names)
        step = None if bound else lane_step(index, self.lane_var)
        base = self.registers.get(buffer)
        if base is None:
            base = self.pointer(buffer)
        # each lane has its own row: rows are interleaved
        elif any(a.var is self.lane_var for a in self.kernel.par):
            return f"{base} + {self.lanes} * ({at})", 1, bound
        return f"{base} + {at}", step, bound

    def lane_address(self, at: str, bound: Mapping[str, str]) -> str:
        """A lambda from lane number to address."""
        var = self.lane_var
        inner = "".join(f"const i64 {name} = {text}[l]; " for name, text in bound.items())
        return (
            f"[&, first = {var}](int l) {{ const i64 {var} = first + l; (void){var}; {inner}return {at}; }}"
        )

    # ---- stores ------------------------------------------------------------------------------------

    def store(self, out: Store, dtype: torch.dtype, value: str, vector: bool) -> None:
        spec = self.buffers[out.buffer].spec
        if out.buffer in self.kernel.local and not spec.ndim:
            name = self.fresh("s")
            self.here.put(f"const {'auto' if vector else REGISTER[dtype]} {name} = {value};")
            self.registers[out.buffer] = name
            return
        at, step, bound = self.place(out.buffer, out.index, out.indirect)
        if out.mode != "set":
            assert not vector or same(step, 1), out
            n, m = (f"<{self.lanes}>", ", m") if vector else ("", "")
            self.here.put(
                f"{{ auto at_ = {at}; store{n}(at_, {OPERATION.get(out.mode) or out.mode.capitalize()}"
                f"::step(load{n}(at_{m}), {value}){m}); }}"
            )
        elif not vector:
            self.here.put(f"store({at}, {value});")
        elif same(step, 1):
            self.here.put(f"store<{self.lanes}>({at}, {value}, m);")
        else:
            self.here.put(
                f"scatter<{self.lanes}, {element(dtype)}>({self.lane_address(at, bound)}, {value}, m);"
            )


def ceildiv(n: Sym | int, d: int) -> Sym | int:
    """n / d, rounded up."""
    return (n + (d - 1)) // d


def tail_text(n: Sym | int) -> str:
    """How much of a vector there is at the end of an axis."""
    return f"Tail{{{n}}}" if isinstance(n, int) else f"Tail{{int({index_text(n)})}}"


def sizes_of(sizes: Sequence[Size], *things: Any) -> list[str]:
    """The declarations of those sizes that emitted code uses: `env` holds all of a graph's, in order."""
    used = set(sizes_in(things)) if sizes else ()
    return [f"  const i64 {index_text(s)} = env->sizes[{k}];" for k, s in enumerate(sizes) if s in used]


def rounds_bf16(v: Apply) -> Val | None:
    """The float32 that v casts to bfloat16 and back; None if v is something else."""
    inner = v.args[0] if v.prim == "cast" and v.dtype is torch.float32 else None
    if isinstance(inner, Apply) and inner.prim == "cast" and inner.dtype is torch.bfloat16:
        return inner.args[0] if inner.args[0].dtype is torch.float32 else None
    return None


def _position_dtype(loop: Loop) -> torch.dtype:
    """The integer type an argmax counts positions in: as wide as its values where that is enough."""
    small = loop.body.dtype.itemsize <= 4 and bounds(total(loop.reduce_axes))[1] < 2**31
    return torch.int32 if small else torch.int64
