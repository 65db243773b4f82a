"""The Triton text of one kernel.

Takes a `Kernel`, the plan's buffers and the kernel's `Blocks`; gives `KernelText.emit()` for
`codegen.triton`. The par axes are one block dimension (two in a transposing kernel), the inner axes
another. Whatever depends on an axis is a block along that dimension; blocks broadcast, so a value is
printed once, in the outermost scope that has its variables, and its shape follows from its operands.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ..errors import Refusal
from ..ir.forms import children
from ..ir.sym import Sym, Var, bounds
from ..loops.ir import Apply, Axis, Buffer, Checked, Const, Index, Load, Loop, Store, Val, load, walk
from ..schedule.plan import Kernel, Stage
from ..schedule.space import total
from .triton_blocks import Blocks, inner_axes, turned
from .triton_values import apply_text, bare, cast_text, element, literal, repeats
from .walk import TRITON, Scope, forget, index_text

# how two partial results are joined, and what joining starts from
STEP = {"sum": "{0} + {1}", "prod": "{0} * {1}", "amax": "ops.maximum({0}, {1})",
        "amin": "ops.minimum({0}, {1})", "any": "{0} | {1}", "all": "{0} & {1}"}
JOIN = {"add": "{0} + {1}", "mul": "{0} * {1}", "amax": STEP["amax"], "amin": STEP["amin"]}
ATOMIC = {"add": "tl.atomic_add", "amax": "tl.atomic_max", "amin": "tl.atomic_min"}
LINE = 88               # a single-use value is written into its user up to this length
NOWHERE = 2**31 - 1     # a position behind every other


def identity(combine: str, dtype: torch.dtype) -> str:
    """What a reduction starts from."""
    if combine in ("any", "all"):
        return str(combine == "all")
    if combine in ("sum", "prod"):
        return bare(int(combine == "prod"), dtype)
    low = combine in ("amax", "argmax")
    if dtype is torch.bool:
        return str(not low)
    info = torch.iinfo(dtype) if not dtype.is_floating_point else None
    return f'float("{"-" if low else ""}inf")' if info is None else str(info.min if low else info.max)
# what later stages take from a register: its scope, the load it stands for, its text
Kept = tuple[Scope, Val, str]


@dataclass(slots=True)
class Text:
    """A printed kernel.

    parameters  names in the text, in order: of `buffers` first, then of `rows`, then "errors" if it checks
    rows        elements of each row kept in memory, as (dtype, elements in all)
    """

    body: str
    parameters: list[str] = field(default_factory=list)
    buffers: tuple[str, ...] = ()
    rows: tuple[tuple[torch.dtype, int], ...] = ()
    checks: bool = False


class KernelText:
    """Prints one kernel. State: the open scopes, and for every variable its name and block dimension."""

    def __init__(self, kernel: Kernel, buffers: Mapping[str, Buffer], blocks: Blocks,
                 overlap: Callable[[str, str], bool] = lambda a, b: a == b):
        if kernel.core is not None:
            raise Refusal("core", f"{kernel.name}: matrix products are library calls")
        self.kernel, self.buffers, self.blocks, self.overlap = kernel, buffers, blocks, overlap
        self.inner = inner_axes(kernel)
        self.dim: dict[Var, str] = {}                    # variables that are blocks -> "x", "y" or "r"
        self.named: dict[str, str] = {}                  # variable -> its text, where that is not its name
        self.masks: dict[str, str] = {}                  # dimension -> mask, where its end may not fit
        self.point = "0"                                 # number of the par point
        self.par = frozenset(a.var for a in kernel.par)
        self.scopes = [Scope(frozenset() if blocks.serial else self.par, 1)]
        self.kept = {axes: Scope(self.par | {a.var for a in axes}, 1) for axes in self.inner}
        self.printed: set[tuple[Axis, ...]] = set()      # inner axes whose variables have been printed
        self.full = frozenset(d for d in "xy" if getattr(blocks, d) > 1)       # the tile's dimensions, now
        self.size = "R"                                  # the name of its extent along r
        self.pointers: dict[str, str] = {}
        self.registers: dict[str, tuple[str, frozenset[str]]] = {}
        self.rows: dict[str, str] = {}                   # local rows kept in memory -> their pointer
        self.reads: dict[Val, frozenset[str]] = {}
        self.known_dims: dict[Val, frozenset[str]] = {}
        self.uses: dict[Val, int] = {}
        self.dirty: set[str] = set()                     # stored to since the last barrier
        self.stored = {loop.out.buffer for loop in kernel.loops}
        self.loaded = {x.buffer for loop in kernel.loops for x in loop.loads()}
        self.count, self.checks = 0, False
        syms = [loop.out.index for loop in kernel.loops]
        syms += [s for loop in kernel.loops for v in loop.values() for x in walk(v)
                 for s in ([x.index] if isinstance(x, Load) else [x.sym] if isinstance(x, Index) else [])]
        most = 2**31 - 1 - 2 * blocks.x * max((*blocks.r, blocks.y))
        self.wide = total(kernel.par) * max(map(total, self.inner), default=1) > most or any(
            abs(b) > most for s in syms for part in _parts(s) for b in bounds(part))

    # ---- names and scopes --------------------------------------------------------------------------

    @property
    def here(self) -> Scope:
        return self.scopes[-1]

    def put(self, text: str) -> None:
        self.here.put(text)

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def pointer(self, name: str) -> str:
        if name not in self.pointers:
            stem = "out" if name in self.stored else "in"
            self.pointers[name] = f"{stem}{sum(p.startswith(stem) for p in self.pointers.values())}"
        return self.pointers[name]

    @contextmanager
    def block(self, scope: Scope, opening: str = "") -> Iterator[None]:
        """An inner scope; its text goes to the outer one when it closes, behind what was hoisted
        meanwhile."""
        scope.depth, scope.lines = self.here.depth + bool(opening), []
        self.scopes.append(scope)
        yield
        self.scopes.pop()
        if opening:
            self.put(opening)
        self.here.lines += scope.lines

    def shape(self, dims: frozenset[str]) -> str:
        """Text of a tile's shape: dimensions outside `dims` have one element; without any, a scalar's."""
        size = {"x": "X", "y": "Y", "r": self.size}
        return "[" + ", ".join(size[d] if d in dims else "1" for d in self.order if dims) + "]"

    @property
    def order(self) -> list[str]:
        """The tile's dimensions, outermost first."""
        inner = {r for r in self.blocks.r if r > 1}
        return [d for d, there in (("y", self.blocks.y > 1), ("x", self.blocks.x > 1), ("r", inner)) if there]

    def spread(self, d: str) -> str:
        """How a one-dimensional block becomes a column or row of the tile."""
        if len(self.order) < 2:
            return ""
        return "[:, None]" if self.order[0] == d else "[None, :]"

    # ---- the whole function ------------------------------------------------------------------------

    def emit(self) -> Text:
        roots = [v for loop in self.kernel.loops for v in loop.values()]
        for v in (*roots, *(a for x in {x for root in roots for x in walk(root)} for a in x.args)):
            self.uses[v] = self.uses.get(v, 0) + 1
        if self.blocks.serial:
            with self.block(Scope(self.par, 0), f"for n in range({total(self.kernel.par)}):"):
                self.linear("n + tl.program_id(0)")
                self.stages()
        else:
            self.tile() if self.blocks.y > 1 else self.linear(self.program())
            self.stages()
        rows = tuple((self.buffers[b].spec.dtype, total(self.kernel.par) * self.buffers[b].spec.storage_numel)
                     for b in self.rows)
        # scopes count two blanks per level; Python text has four
        lines = [" " * (len(line) - len(line.lstrip(" "))) + line for line in self.here.lines]
        return Text("\n".join(lines) + "\n", [*self.pointers.values(), *self.rows.values(),
                    *(["errors"] if self.checks else [])], tuple(self.pointers), rows, self.checks)

    def program(self) -> str:
        start = "tl.program_id(0)" + (".to(tl.int64)" if self.wide else "")
        return start if self.blocks.x == 1 else f"{start} * X + tl.arange(0, X){self.spread('x')}"

    def linear(self, text: str) -> None:
        """The par axes, all along dimension x."""
        n, par = total(self.kernel.par), self.kernel.par
        if not par:
            return
        self.point = par[0].var.name if len(par) == 1 else "x"
        self.put(f"{self.point} = {text}")
        if self.blocks.x > 1:
            self.dim.update((a.var, "x") for a in par)
            if n % self.blocks.x:
                self.put(f"xmask = {self.point} < {n}")
                self.masks["x"] = "xmask"
        if len(par) > 1:
            self.unravel(par, "x")

    def unravel(self, axes: tuple[Axis, ...], text: str) -> None:
        """Each axis' variable from the number of the point."""
        step = 1
        for k, a in reversed(list(enumerate(axes))):
            part = text if step == 1 else f"{text} // {step}"
            name = self.named.get(a.var.name, a.var.name)
            self.put(f"{name} = {part}" + (f" % {a.size}" if k else ""))
            step *= int(a.size)

    def tile(self) -> None:
        """Two par axes along y and x, the others one point per program."""
        self.put("n = tl.program_id(0)" + (".to(tl.int64)" if self.wide else ""))
        for k, a in reversed(list(enumerate(self.kernel.par))):
            d = "x" if a is self.kernel.par[-1] else "y" if a.var.name == turned(self.kernel) else ""
            size = self.blocks.x if d == "x" else self.blocks.y if d else 1
            pieces = -(-int(a.size) // size)
            part = f"n % {pieces}" if k else "n"
            if d:
                part = f"({part}) * {d.upper()} + tl.arange(0, {d.upper()}){self.spread(d)}"
                self.dim[a.var] = d
            self.put(f"{a.var} = {part}")
            if d and int(a.size) % size:
                self.put(f"{d}mask = {a.var} < {a.size}")
                self.masks[d] = f"{d}mask"
            if k:
                self.put(f"n = n // {pieces}")

    # ---- stages ------------------------------------------------------------------------------------

    def stages(self) -> None:
        for stage in self.kernel.stages:
            self.barrier_before(stage)
            results = self.stage(stage)
            written = frozenset(loop.out.buffer for loop in stage.loops)
            forget([*self.scopes, *self.kept.values()], written, self.reads)
            self.dirty |= written - set(self.kernel.local) | written & set(self.rows)
            for scope, value, text in results:
                scope.memo[value] = text

    def stage(self, stage: Stage) -> list[Kept]:
        """Prints one pass. Gives what later stages may take from registers: (scope, value, text)."""
        if not stage.inner:
            return self.body(stage, {}, True)
        number, n = self.inner.index(stage.inner), total(stage.inner)
        block = self.blocks.r[number]
        self.size = size = "R" if len(self.inner) == 1 else f"R{number}"
        points = self.full
        self.full |= {"r"} if block > 1 else set()
        whole = block >= n and not self.blocks.serial
        if n == 0 and not any(loop.is_reduction for loop in stage.loops):
            return []
        totals: dict[Loop, tuple[str, ...]] = {}
        if whole and n:
            with self.block(self.kept[stage.inner]):
                self.inner_axes(stage, number, f"tl.arange(0, {size})", n, block)
                kept = self.body(stage, totals, True)
        else:
            totals = {loop: self.accumulator(loop) for loop in stage.loops if loop.combine}
            kept = []
            if n:
                with self.block(Scope(self.kept[stage.inner].names, 0),
                                f"for start in range(0, {n}, {size}):"):
                    at = "start + " + (f"tl.arange(0, {size})" if block > 1 else "tl.program_id(0)")
                    self.printed.discard(stage.inner)
                    self.inner_axes(stage, number, at, n, block)
                    self.body(stage, totals, False)
        self.masks.pop("r", None)
        self.full = points
        for loop in (x for x in stage.loops if x.is_reduction):
            value = self.finish(loop, totals[loop], whole and n > 0)
            kept += self.store(loop, value, self.full, True)
        return kept

    def inner_axes(self, stage: Stage, number: int, text: str, n: int, block: int) -> None:
        """The stage's inner axes, all along dimension r: their names, and their text where not printed
        yet."""
        letter = "jklmnopq"[number]
        for k, a in enumerate(stage.inner):
            self.named[a.var.name] = f"{letter}{k}"
            if block > 1:
                self.dim[a.var] = "r"
        one = len(stage.inner) == 1
        self.row = f"{letter}0" if one else f"r{number}"
        if block > 1 and n % block:
            self.masks["r"] = f"{letter}mask"
        if stage.inner in self.printed:
            return
        self.printed.add(stage.inner)
        text += self.spread("r") if block > 1 else ""
        self.put(f"{self.row} = {text}" + (".to(tl.int64)" if self.wide and block > 1 else ""))
        if "r" in self.masks:
            self.put(f"{self.masks['r']} = {self.row} < {n}")
        if not one:
            self.unravel(stage.inner, self.row)

    def body(self, stage: Stage, totals: dict[Loop, tuple[str, ...]], whole: bool) -> list[Kept]:
        """All values of the stage first, then all stores: a kernel may store to the place it loads from."""
        stores = []
        for loop in stage.loops:
            if loop.is_scan:
                stores.append((loop, self.scan(loop, totals, whole)))
            elif loop.combine and whole:
                totals[loop] = self.whole_tile(loop)
            elif loop.combine:
                self.accumulate(loop, totals[loop])
            else:
                stores.append((loop, self.text(loop.body)))
        self.barrier_between(stage)
        kept = []
        for loop, value in stores:
            value = cast_text(value, loop.body.dtype, loop.store_dtype)
            kept += self.store(loop, value, self.full, whole)
        return kept

    # ---- reductions and scans ----------------------------------------------------------------------

    def masked(self, text: str, v: Val, neutral: str) -> str:
        """The value as a full tile, with `neutral` where the row has ended."""
        if isinstance(v, Const):
            text = f"tl.full({self.shape(self.full)}, {bare(v.value, v.dtype)}, {element(v.dtype)})"
        elif self.dims(v) != self.full:
            text = f"tl.broadcast_to({self.named_value(v)}, {self.shape(self.full)})"
        mask = self.masks.get("r")
        return f"tl.where({mask}, {text}, {neutral})" if mask else text

    def whole_tile(self, loop: Loop) -> tuple[str, ...]:
        """What `finish` reduces, for a row that is one tile."""
        neutral = identity(loop.combine or "", loop.body.dtype)
        tile = self.masked(self.text(loop.body), loop.body, neutral)
        if not (loop.combine or "").startswith("arg"):
            return (tile,)
        at = f"tl.broadcast_to({self.row}, {self.shape(self.full)})"
        mask = self.masks.get("r")
        return tile, f"tl.where({mask}, {at}, {NOWHERE})" if mask else at

    def accumulator(self, loop: Loop) -> tuple[str, ...]:
        """Declares what a looped reduction or scan accumulates in."""
        shape = self.shape(self.full - {"r"} if loop.is_scan else self.full)
        dtype = element(loop.body.dtype)
        combine = (loop.combine or "").removeprefix("scan_")
        acc = self.fresh("acc")
        self.put(f"{acc} = tl.full({shape}, {identity(combine, loop.body.dtype)}, {dtype})")
        if not combine.startswith("arg"):
            return (acc,)
        at = self.fresh("at")
        self.put(f"{at} = tl.full({shape}, {NOWHERE}, {'tl.int64' if self.wide else 'tl.int32'})")
        return acc, at

    def accumulate(self, loop: Loop, acc: tuple[str, ...]) -> None:
        """Takes one block of a row into the accumulator."""
        text, mask = self.text(loop.body), self.masks.get("r")
        if (loop.combine or "").startswith("arg"):
            better = self.fresh("better")
            later = f"ops.later_{(loop.combine or '')[3:]}"
            value = self.named_value(loop.body)
            self.put(f"{better} = {later}({acc[0]}, {acc[1]}, {value}, {self.row})"
                     + (f" & {mask}" if mask else ""))
            self.put(f"{acc[0]} = tl.where({better}, {value}, {acc[0]})")
            self.put(f"{acc[1]} = tl.where({better}, {self.row}, {acc[1]})")
            return
        step = STEP[loop.combine or ""].format(acc[0], text)
        self.put(f"{acc[0]} = " + (f"tl.where({mask}, {step}, {acc[0]})" if mask else step))

    def finish(self, loop: Loop, acc: tuple[str, ...], whole: bool) -> str:
        """The reduction's result, cast to what is stored."""
        combine, dtype = loop.combine or "", loop.body.dtype
        across = "r" in self.order
        text = ", ".join(acc) if across else acc[-1]
        if across:
            axis = len(self.order) - 1
            text = f"ops.{combine}({text}, {axis})" + ("[:, None]" if axis else "")
        if combine.startswith("arg"):
            dtype = torch.int32
        name = self.fresh("v")
        self.put(f"{name} = {cast_text(text, dtype, loop.store_dtype)}")
        return name

    def scan(self, loop: Loop, totals: dict[Loop, tuple[str, ...]], whole: bool) -> str:
        """The running reduction of a tile, with what came before it taken in."""
        combine = (loop.combine or "").removeprefix("scan_")
        value, name = self.named_value(loop.body), self.fresh("v")
        tile = self.masked(value, loop.body, identity(combine, loop.body.dtype))
        axis = len(self.order) - 1
        if "r" not in self.order:                       # one element at a time
            self.put(f"{totals[loop][0]} = {STEP[combine].format(totals[loop][0], value)}")
            return totals[loop][0]
        run = f"ops.scan_{combine}({tile}, {axis})"
        if whole:
            self.put(f"{name} = {run}")
            return name
        acc = totals[loop][0]
        part = f"ops.{combine}({tile}, {axis})" + ("[:, None]" if axis else "")
        self.put(f"{name} = {STEP[combine].format(acc, run)}")
        self.put(f"{acc} = {STEP[combine].format(acc, part)}")
        return name

    # ---- values ------------------------------------------------------------------------------------

    def dims(self, v: Val) -> frozenset[str]:
        """The tile dimensions that v has."""
        if v not in self.known_dims:
            own: frozenset[str] = frozenset()
            if isinstance(v, Load) and v.buffer in self.registers:
                own = self.registers[v.buffer][1]
            elif isinstance(v, Load):
                own = self.index_dims(v.index, v.indirect)
                if v.buffer in self.kernel.local:
                    own |= {"x"} & self.full
            elif isinstance(v, Index):
                own = frozenset(self.dim[x] for x in v.vars if x in self.dim)
            self.known_dims[v] = own.union(*(self.dims(a) for a in v.args))
        return self.known_dims[v]

    def index_dims(self, index: Sym | int, indirect: tuple[tuple[Var, Val], ...]) -> frozenset[str]:
        free = () if isinstance(index, int) else index.vars
        own = frozenset(self.dim[x] for x in free if x in self.dim)
        return own.union(*(self.dims(x) for _, x in indirect))

    def home(self, v: Val) -> Scope:
        """The outermost scope where v can be computed."""
        return next(s for s in self.scopes if v.vars <= s.names)

    def text(self, v: Val) -> str:
        """Text of v: a name, a literal, or, for what is used once and here, the expression itself."""
        if isinstance(v, Const):
            return literal(v)
        for scope in reversed(self.scopes):
            if v in scope.memo:
                return scope.memo[v]
        if isinstance(v, Load) and v.buffer in self.registers:
            return self.registers[v.buffer][0]
        home = self.home(v)
        open_scopes, self.scopes = self.scopes, self.scopes[:self.scopes.index(home) + 1]
        text = self.expression(v)
        self.scopes = open_scopes
        if isinstance(v, Apply) and self.uses.get(v) == 1 and home is self.here and len(text) <= LINE:
            return text
        return self.name(v, text, home)

    def name(self, v: Val, text: str, home: Scope) -> str:
        name = self.fresh("v")
        home.put(f"{name} = {_bared(text)}")
        home.memo[v] = name
        return name

    def named_value(self, v: Val) -> str:
        """A name (or a typed literal) for v."""
        text = self.text(v)
        return text if text.isidentifier() or isinstance(v, Const) else self.name(v, text, self.home(v))

    def expression(self, v: Val) -> str:
        element(v.dtype)
        if isinstance(v, Load):
            return self.load(v)
        if isinstance(v, Index):
            return f"{self.index(v.sym)}.to({element(v.dtype)})"
        if isinstance(v, Checked):
            self.checks = True
            active = self.mask(self.dims(v.args[0])) or "True"
            return (f"ops.checked({self.text(v.args[0])}, {v.lo}, {self.index(v.hi)}, errors, {v.error}, "
                    f"{active})")
        assert isinstance(v, Apply), v
        names = [self.named_value(a) if repeats(v) else self.text(a) for a in v.args]
        return apply_text(v, names)

    def index(self, s: Sym | int, indirect: Mapping[str, str] | None = None) -> str:
        return index_text(s, {**self.named, **(indirect or {})}, TRITON)

    def mask(self, dims: frozenset[str], own: str | None = None) -> str:
        """Which points of a block with these dimensions are there; "" where all are."""
        parts = [self.masks[d] for d in self.order if d in dims and d in self.masks]
        return " & ".join([*parts, *([own] if own else [])])

    def place(self, buffer: str, index: Sym | int, indirect: tuple[tuple[Var, Val], ...],
              dims: frozenset[str]) -> str:
        """Text of the address, a block of at least these dimensions."""
        names = {}
        for var, x in indirect:
            names[var.name] = self.named_value(x) + ("" if self.wide else ".to(tl.int32)")
        at = self.index(index, names)
        have = self.index_dims(index, indirect)
        base = self.rows.get(buffer)
        if base is None:
            base = self.pointer(buffer)
        elif self.par:
            at = f"{self.point} * {self.buffers[buffer].spec.storage_numel} + {at}"
            have |= {"x"} & self.full
        if not dims <= have:
            start = f"tl.full([], {at}, tl.int32)" if isinstance(index, int) and not have else at
            at = f"tl.broadcast_to({start}, {self.shape(dims | have)})"
        return base if at == "0" else f"{base} + {at}"

    def load(self, v: Load) -> str:
        if not self.buffers[v.buffer].spec.storage_numel:       # nothing to load: a check of the index fails
            for _, x in v.indirect:
                self.named_value(x)
            return f"tl.full([], 0, {element(v.dtype)})"
        dims, own = self.dims(v), self.text(v.mask) if v.mask is not None else None
        place = self.place(v.buffer, v.index, v.indirect, dims)
        mask = self.mask(dims, own)
        return f"tl.load({place}" + (f", {mask}" if mask else "") + (", other=0)" if own else ")")

    # ---- stores ------------------------------------------------------------------------------------

    def store(self, loop: Loop, value: str, dims: frozenset[str], whole: bool) -> list[Kept]:
        """One store. Gives what a later load of the same place may take from a register instead."""
        out, dtype = loop.out, loop.store_dtype
        spec = self.buffers[out.buffer].spec
        local = out.buffer in self.kernel.local
        if local and not spec.ndim:
            self.registers[out.buffer] = self.as_name(value), self.full
            return []
        plain = out.mode == "set" and not out.indirect
        kept: list[Kept] = []
        again = load(out.buffer, out.index, dtype)
        if whole and plain and not self.blocks.serial and again in self.uses:
            value = self.as_name(value)
            kept = [(self.here, again, value)]
        if local:
            if whole and plain and self.only_here(out, loop):
                return kept
            self.rows.setdefault(out.buffer, f"row{len(self.rows)}")
        place = self.place(out.buffer, out.index, out.indirect, dims)
        mask = self.mask(dims)
        tail = f", {mask}" if mask else ""
        if out.mode == "set":
            self.put(f"tl.store({place}, {value}{tail})")
        elif self.blocks.serial:
            self.put(f"at = {place}")
            joined = JOIN[out.mode].format("tl.load(at)", value)
            self.put(f"tl.store(at, {joined})")
        else:
            self.put(f'{ATOMIC[out.mode]}({place}, {value}{tail}, sem="relaxed")')
        return kept

    def as_name(self, text: str) -> str:
        if text.isidentifier():
            return text
        name = self.fresh("v")
        self.put(f"{name} = {text}")
        return name

    def only_here(self, out: Store, loop: Loop) -> bool:
        """Whether every load of a local row is of the element that this point stores."""
        mine = next(s.inner for s in self.kernel.stages if loop in s.loops)
        return all(s.inner == mine and x.index == out.index and not x.indirect and x.mask is None
                   for s in self.kernel.stages for other in s.loops for x in other.loads()
                   if x.buffer == out.buffer)

    # ---- order of memory accesses ------------------------------------------------------------------

    def barrier_before(self, stage: Stage) -> None:
        """Threads wait where the stage loads what others have stored."""
        known = [s.memo for s in (*self.scopes, *self.kept.values())]
        fresh = {x.buffer for loop in stage.loops for x in loop.loads() if not any(x in m for m in known)}
        if any(self.overlap(a, b) for a in fresh for b in self.dirty):
            self.put("tl.debug_barrier()")
            self.dirty.clear()

    def barrier_between(self, stage: Stage) -> None:
        """Threads wait before the stage stores over what others may still have to load."""
        until = self.kernel.stages.index(stage) + 1
        for loop in stage.loops:
            for other in (x for s in self.kernel.stages[:until] for x in s.loops):
                for x in other.loads():
                    same = x.buffer == loop.out.buffer and x.index == loop.out.index and other in stage.loops
                    outside = x.buffer not in self.kernel.local
                    if outside and not same and self.overlap(x.buffer, loop.out.buffer):
                        self.put("tl.debug_barrier()")
                        return


def _parts(s: Sym | int) -> list[Sym | int]:
    """A sum, its terms, and what is divided in them: none may leave the index type."""
    if isinstance(s, int):
        return [s]
    return [s, *(a * c for a, c in s.terms), *(p for a, _ in s.terms for c in children(a) for p in _parts(c))]


def _bared(text: str) -> str:
    """The text without brackets around all of it."""
    depth = [0]
    for c in text:
        depth.append(depth[-1] + (c == "(") - (c == ")"))
    return text[1:-1] if text[0] == "(" and all(depth[1:-1]) and text[-1] == ")" else text
