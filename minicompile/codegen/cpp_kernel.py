"""The C++ text of one kernel.

Takes a `Kernel` and the plan's buffers, gives (body text, buffer names in order of the pointers it takes) for `codegen.cpp`.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ..ir.sym import Var
from ..loops.ir import Apply, Axis, Buffer, Checked, Const, Index, Load, Loop, Store, Val
from ..schedule.plan import Kernel, Stage
from .cpp_values import REGISTER, apply_text, element, literal, raw_vector
from .walk import Scope, buffers_read, forget, index_text, lane_step, widest

VECTOR_BYTES = {"avx512": 64, "avx2": 32, "scalar": 0}
STACK_BYTES = 64 * 1024                      # rows of one thread that may lie on its stack
OPERATION = {"sum": "Sum", "prod": "Prod", "amax": "Amax", "amin": "Amin", "any": "Any", "all": "All",
             "scan_sum": "Sum", "scan_prod": "Prod", "scan_amax": "Amax", "scan_amin": "Amin",
             "add": "Sum", "mul": "Prod"}
INLINED = "__attribute__((always_inline))"


class KernelText:
    """Prints one kernel. State: the open scopes, and which axis currently runs over lanes (`lane_var`, with `lanes` lanes)."""

    def __init__(self, kernel: Kernel, buffers: Mapping[str, Buffer], isa: str):
        self.kernel, self.buffers, self.bytes = kernel, buffers, VECTOR_BYTES[isa]
        self.scopes: list[Scope] = [Scope(frozenset(), 1)]
        self.pointers: dict[str, str] = {}               # buffer -> its name in the text
        self.reads: dict[Val, frozenset[str]] = {}
        self.stored = frozenset(loop.out.buffer for loop in kernel.loops)
        self.registers: dict[str, str] = {}              # local scalar -> its variable
        self.lane_var: Var | None = None
        self.lanes = 1
        self.count = 0
        self.point_depth = 0                             # index of the par point's scope

    # ---- names and scopes -------------------------------------------------------------------------------------------

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    @property
    def here(self) -> Scope:
        return self.scopes[-1]

    @contextmanager
    def block(self, opening: str, names: frozenset[Var] = frozenset(), closing: str = "}") -> Iterator[Scope]:
        """A nested scope; its text is appended to the outer one when it closes, so that hoisted lines come before it."""
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

    # ---- the whole function -------------------------------------------------------------------------------------------

    def emit(self) -> tuple[str, tuple[str, ...]]:
        """(text of the function's body, buffers whose addresses it takes, in order)."""
        k = self.kernel
        flat = k.tiling.vector not in (None, "inner") and self.bytes > 0
        if flat:
            self.lane_var = k.par[-1].var
            roots = [v for loop in k.loops for v in loop.values()]
            self.lanes = self.bytes // widest(roots, k.loops, lambda v: self.lane_var in v.vars)
            if self.lanes < 2 or int(k.par[-1].size) < 2:
                self.lane_var, self.lanes, flat = None, 1, False
        if all(int(a.size) > 0 for a in k.par):
            self.par_axes(flat)
        top = []
        for name, p in self.pointers.items():
            ctype = element(self.buffers[name].spec.dtype)
            top.append(f"  auto {p} = ({ctype}*)b[{len(top)}];")
        return "\n".join([*top, *self.here.lines]) + "\n", tuple(self.pointers)

    def par_axes(self, flat: bool) -> None:
        par, t = self.kernel.par, self.kernel.tiling
        depth = t.parallel
        blocks = flat and depth == len(par)              # the lane axis itself is shared out among threads
        if blocks and depth > 1 and _size(par[:-1]) >= 64:
            depth, blocks = depth - 1, False
        shared = par[:depth]
        counts = [-(-int(a.size) // self.lanes) if blocks and a is par[-1] else int(a.size) for a in shared]
        if not shared:
            self.rows_then(lambda: self.inner_par(par, flat))
            return
        total = 1
        for n in counts:
            total *= n
        with self.block(f"parallel(env->threads, {total}, [=](i64 begin, i64 end) {{", closing="});"):
            self.rows_then(lambda: self.shared_axes(shared, counts, blocks, flat))

    def shared_axes(self, shared: tuple[Axis, ...], counts: list[int], blocks: bool, flat: bool) -> None:
        """for at in [begin, end): the shared axes' variables, then the other par axes."""
        names = frozenset(a.var for a in shared if not (blocks and a is shared[-1]))
        with self.block("for (i64 at = begin; at < end; ++at) {", names):
            rest = "at"
            for n, (a, count) in enumerate(reversed(list(zip(shared, counts)))):
                last = n == len(shared) - 1
                text = rest if last else f"{rest} % {count}"
                name = "block" if blocks and a is shared[-1] else a.var.name
                self.here.put(f"const i64 {name} = {text};")
                if not last:
                    after = self.fresh("rest")
                    self.here.put(f"const i64 {after} = {rest} / {count};")
                    rest = after
            if blocks:
                self.lane_block(shared[-1])
            else:
                self.inner_par(self.kernel.par[len(shared):], flat)

    def lane_block(self, a: Axis) -> None:
        """One block of lanes of the shared lane axis."""
        size, n = int(a.size), self.lanes
        with self.block(f"auto point = [&](i64 {a.var}, auto m) {INLINED} {{", frozenset((a.var,)), "};"):
            self.point()
        full = f"point(block * {n}, Full{{}});"
        if size % n == 0:
            self.here.put(full)
        elif size < n:
            self.here.put(f"point(0, Tail{{{size}}});")
        else:
            self.here.put(f"if (block < {size // n}) {full}")
            self.here.put(f"else point({size // n * n}, Tail{{{size % n}}});")

    def inner_par(self, axes: tuple[Axis, ...], flat: bool) -> None:
        """The par axes that are not shared among threads, as nested loops."""
        if not axes:
            self.point()
            return
        a = axes[0]
        if flat and len(axes) == 1:
            with self.block(f"auto point = [&](i64 {a.var}, auto m) {INLINED} {{", frozenset((a.var,)), "};"):
                self.point()
            self.lane_loop("point", a, 1, False)
            return
        with self.block(f"for (i64 {a.var} = 0; {a.var} < {a.size}; ++{a.var}) {{", frozenset((a.var,))):
            self.inner_par(axes[1:], flat)

    def lane_loop(self, function: str, a: Axis, unroll: int, numbered: bool) -> None:
        """Calls `function` for every block of lanes of an axis: whole ones first, then the tail."""
        size, n, v = int(a.size), self.lanes, a.var
        whole = size // n * n
        tag = (lambda u: f", {u}") if numbered else (lambda u: "")
        if whole:
            calls = " ".join(f"{function}({v}{f' + {u * n}' if u else ''}, Full{{}}{tag(u)});" for u in range(unroll))
            if whole == n * unroll:
                calls = calls.replace(f"({v}", "(0")
                self.here.put(calls)
            else:
                self.here.put(f"for (i64 {v} = 0; {v} < {whole}; {v} += {n * unroll}) {{ {calls} }}")
        if size > whole:
            self.here.put(f"{function}({whole}, Tail{{{size - whole}}}{tag(0)});")

    def rows_then(self, rest) -> None:  # type: ignore[no-untyped-def]
        """Scratch rows of one thread, then `rest`."""
        at = 0
        rows = [(name, self.buffers[name].spec) for name in self.kernel.local if self.buffers[name].spec.ndim]
        offsets = []
        for _, spec in rows:
            offsets.append(at)
            at += -(-max(spec.storage_numel, 1) * spec.dtype.itemsize * self.lanes // 64) * 64
        if rows:
            if at <= STACK_BYTES:
                self.here.put(f"alignas(64) char rows[{at}];")
            else:
                self.here.put(f"Scratch scratch({at}); char* const rows = scratch.get();")
        for n, ((name, spec), offset) in enumerate(zip(rows, offsets)):
            self.registers[name] = f"row{n}"
            self.here.put(f"auto row{n} = ({element(spec.dtype)}*)(rows + {offset});")
        rest()

    # ---- one par point ------------------------------------------------------------------------------------------------

    def point(self) -> None:
        """All stages, at one point (or, with lanes along the last par axis, one block of points)."""
        self.point_depth = len(self.scopes) - 1
        for stage in self.kernel.stages:
            self.stage(stage)
            written = frozenset(loop.out.buffer for loop in stage.loops)
            forget(self.scopes, written, self.reads)

    def stage(self, stage: Stage) -> None:
        if any(int(a.size) == 0 for a in stage.inner) and not any(loop.is_reduction for loop in stage.loops):
            return
        outer = (self.lane_var, self.lanes)
        scan = any(loop.is_scan for loop in stage.loops)
        inner_lanes = self.kernel.tiling.vector == "inner" and stage.inner and self.bytes and not scan
        if inner_lanes:
            self.lane_var = stage.inner[-1].var
            roots = [v for loop in stage.loops for v in loop.values()]
            self.lanes = self.bytes // widest(roots, stage.loops, lambda v: self.lane_var in v.vars)
            if self.lanes < 2 or int(stage.inner[-1].size) < 2:
                (self.lane_var, self.lanes), inner_lanes = outer, False
        unroll = self.unroll(stage) if inner_lanes else 1
        accumulators = {loop: self.accumulator(loop, unroll) for loop in stage.loops if loop.combine}
        self.inner_axes(stage, stage.inner, accumulators, bool(inner_lanes), unroll)
        inner_var = self.lane_var if inner_lanes else None
        finished = [(loop, self.finish(loop, acc, unroll, inner_var)) for loop, acc in accumulators.items()
                    if loop.is_reduction]
        if inner_lanes:
            self.lane_var, self.lanes = outer
        for loop, value in finished:
            self.store(loop.out, loop.store_dtype, value, self.lane_var is not None)

    def unroll(self, stage: Stage) -> int:
        """How many accumulators a vector reduction keeps: hides the latency of additions, and sums more exactly."""
        whole = int(stage.inner[-1].size) // self.lanes
        if not any(loop.is_reduction for loop in stage.loops):
            return 1
        return next((u for u in (4, 3, 2) if whole % u == 0 and whole >= u), 1)

    def inner_axes(self, stage: Stage, axes: tuple[Axis, ...], accumulators: dict[Loop, str], lanes: bool,
                   unroll: int) -> None:
        if not axes:
            self.body(stage, accumulators, "0")
            return
        a = axes[0]
        if int(a.size) == 0:
            return
        if lanes and len(axes) == 1:
            function = self.fresh("body")
            with self.block(f"auto {function} = [&](i64 {a.var}, auto m, int u) {INLINED} {{", frozenset((a.var,)), "};"):
                self.body(stage, accumulators, "u")
            self.lane_loop(function, a, unroll, True)
            return
        with self.block(f"for (i64 {a.var} = 0; {a.var} < {a.size}; ++{a.var}) {{", frozenset((a.var,))):
            self.inner_axes(stage, axes[1:], accumulators, lanes, unroll)

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
        """Whether a loop's value is a vector at this place (it is printed as one even where all lanes are equal)."""
        return self.lane_var is not None and any(a.var is self.lane_var for a in (*self.kernel.par, *stage.inner))

    # ---- reductions ---------------------------------------------------------------------------------------------------

    def types(self, dtype: torch.dtype, vector: bool) -> str:
        if not vector:
            return REGISTER[dtype]
        return raw_vector(dtype, self.lanes)

    def accumulator(self, loop: Loop, unroll: int) -> str:
        acc = self.fresh("acc")
        vector = self.lane_var is not None
        t = self.types(loop.body.dtype, vector)
        if loop.combine in ("argmax", "argmin"):
            i64 = self.types(torch.int64, vector)
            best = f"Best<{str(loop.combine == 'argmax').lower()}, {t}, {i64}>"
            self.here.put(f"auto {acc} = {best}::start<void>();")
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
                position = f"({position} * {a.size} + {a.var})" if position != "0" else a.var.name
            if vector:
                position = f"ramp<i64, {self.lanes}>({position})" if inner_lanes else f"splat<i64, {self.lanes}>({position})"
            else:
                position = f"i64({position})"
            self.here.put(f"{acc}.step({value}, {position}, {'m' if inner_lanes else 'Full{}'});")
            return acc
        op = OPERATION[loop.combine or ""]
        if inner_lanes:
            scalar = "i8" if loop.body.dtype is torch.bool else REGISTER[loop.body.dtype]
            if loop.body.dtype is torch.bool:
                value = f"mask_as<vec<i8, {self.lanes}>>({value})"
            value = f"present({value}, {op}::identity<{scalar}>(), m)"
        self.here.put(f"{acc}[{u}] = {op}::step({acc}[{u}], {value});")
        return f"{acc}[{u}]"

    def finish(self, loop: Loop, acc: str, unroll: int, inner: Var | None) -> str:
        """The finished reduction, cast to what is stored."""
        if loop.combine in ("argmax", "argmin"):
            if inner is None and self.lane_var is not None:
                return f"{acc}.index"
            return f"{acc}.finish()"
        op = OPERATION[loop.combine or ""]
        parts = [f"{acc}[{u}]" for u in range(unroll)]
        while len(parts) > 1:
            parts = [f"{op}::step({a}, {b})" for a, b in zip(parts[::2], parts[1::2])] + parts[len(parts) // 2 * 2:]
        text = parts[0]
        dtype = loop.body.dtype
        if inner is not None:
            text = f"across<{op}>({text})" + (" != 0" if dtype is torch.bool else "")
        return self.cast(self.named(f"({text})", dtype, inner is None and self.lane_var is not None), dtype, loop.store_dtype)

    def named(self, text: str, dtype: torch.dtype, vector: bool) -> str:
        name = self.fresh("v")
        self.here.put(f"const {'auto' if vector else REGISTER[dtype]} {name} = {text};")
        return name

    # ---- values ---------------------------------------------------------------------------------------------------------

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
        open_scopes, self.scopes = self.scopes, self.scopes[:self.scopes.index(home) + 1]
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
            return f"checked(env, {self.value(v.args[0], vector)}, {v.lo}L, i64({index_text(v.hi)}), {v.error}, {m})"
        assert isinstance(v, Apply), v
        args = [self.value(a, vector and not (i == 0 and v.prim == "where" and v.dtype is not torch.bool))
                for i, a in enumerate(v.args)]
        return apply_text(v, args)

    def index(self, v: Index, vector: bool) -> str:
        kind = REGISTER[v.dtype]
        if not vector:
            return f"{kind}({index_text(v.sym)})"
        step = lane_step(v.sym, self.lane_var)
        if step is not None:
            return f"ramp<{kind}, {self.lanes}>({kind}({index_text(v.sym)}), {kind}({step}))"
        var = self.lane_var
        return (f"each<{kind}, {self.lanes}>([&, first = {var}](int l) {{ const i64 {var} = first + l; "
                f"return {kind}({index_text(v.sym)}); }})")

    def load(self, v: Load, vector: bool) -> str:
        at, step, bound = self.place(v.buffer, v.index, v.indirect)
        mask = self.scalar_or_lanes(v.mask) if v.mask is not None else None
        if not vector:
            return f"load({at})" if mask is None else f"({mask} ? load({at}) : {REGISTER[v.dtype]}(0))"
        assert step != 0 or mask is not None or bound or self.buffers[v.buffer].name in self.kernel.local
        if step == 1:
            if mask is None:
                return f"load<{self.lanes}>({at}, m)"
            if v.mask is not None and self.varies(v.mask):
                return f"load_if<{self.lanes}>({mask}, {at}, m)"
            return f"({mask} ? load<{self.lanes}>({at}, m) : {raw_vector(v.dtype, self.lanes)}{{}})"
        function = self.lane_address(at, bound)
        ctype = element(v.dtype)
        if mask is None:
            return f"gather<{self.lanes}, {ctype}>({function}, m)"
        if v.mask is not None and not self.varies(v.mask):
            mask = f"splat_mask<{self.lanes}>({mask})"
        return f"gather_if<{self.lanes}, {ctype}>({mask}, {function}, m)"

    def place(self, buffer: str, index, indirect) -> tuple[str, int | None, dict[str, str]]:  # type: ignore[no-untyped-def]
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
        elif any(a.var is self.lane_var for a in self.kernel.par):        # each lane has its own row: rows are interleaved
            return f"{base} + {self.lanes} * ({at})", 1, bound
        return f"{base} + {at}", step, bound

    def lane_address(self, at: str, bound: Mapping[str, str]) -> str:
        """A lambda from lane number to address."""
        var = self.lane_var
        inner = "".join(f"const i64 {name} = {text}[l]; " for name, text in bound.items())
        return f"[&, first = {var}](int l) {{ const i64 {var} = first + l; (void){var}; {inner}return {at}; }}"

    # ---- stores -----------------------------------------------------------------------------------------------------------

    def store(self, out: Store, dtype: torch.dtype, value: str, vector: bool) -> None:
        spec = self.buffers[out.buffer].spec
        if out.buffer in self.kernel.local and not spec.ndim:
            name = self.fresh("s")
            self.here.put(f"const {'auto' if vector else REGISTER[dtype]} {name} = {value};")
            self.registers[out.buffer] = name
            return
        at, step, bound = self.place(out.buffer, out.index, out.indirect)
        if out.mode != "set":
            self.here.put(f"{{ auto at_ = {at}; store(at_, {OPERATION.get(out.mode) or out.mode.capitalize()}"
                          f"::step(load(at_), {value})); }}")
        elif not vector:
            self.here.put(f"store({at}, {value});")
        elif step == 1:
            self.here.put(f"store<{self.lanes}>({at}, {value}, m);")
        else:
            self.here.put(f"scatter<{self.lanes}, {element(dtype)}>({self.lane_address(at, bound)}, {value}, m);")


def _size(axes: tuple[Axis, ...]) -> int:
    n = 1
    for a in axes:
        n *= int(a.size)
    return n
