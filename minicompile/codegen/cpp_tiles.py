"""The C++ text of a kernel that reads along one axis and writes along another: square tiles, turned in
registers.

Takes a `Kernel` whose tiling says `transpose`; gives its text as `cpp_kernel` does. Without tiles a vector of
such a read would touch as many cache lines as it has lanes.
"""

from __future__ import annotations

from math import prod

from ..ir.forms import coefficient
from ..ir.sym import Sym, Var, hint, same
from ..loops.ir import Axis, Load
from .cpp_kernel import INLINED, KernelText, ceildiv, tail_text
from .cpp_values import element
from .walk import count_text, index_text, lane_step

# tiles that lie side by side: across, so that whole cache lines are written; down, so that lines that were
# read are used up before they are dropped
ACROSS, DOWN = 2, 8


class TileText(KernelText):
    """A tile is LANES points of the axis that reads walk by LANES points of the last axis. Lanes run along
    the last axis as ever; the loads of `tile` come from columns that were turned into lanes beforehand."""

    tile: dict[Load, str]

    def par_axes(self, flat: bool) -> None:
        t = self.kernel.tiling.transpose
        down = next((a for a in self.kernel.par if t and a.var.name == t[0]), None)
        self.tile = {v: f"tile{i}" for i, v in enumerate(self.columns(down.var))} if flat and down else {}
        if down is None or not self.tile:
            super().par_axes(flat)
            return
        last, n = self.kernel.par[-1], self.lanes
        outer = [a for a in self.kernel.par if a is not down and a is not last]
        counts = [*(a.size for a in outer), ceildiv(down.size, DOWN * n), ceildiv(last.size, ACROSS * n)]
        tiles = count_text(prod(counts))
        shared = self.kernel.tiling.parallel > 0
        opening = f"parallel(env, {tiles}, [=](i64 begin, i64 end) {{" if shared else "{"
        with self.block(opening, closing=self.enough() if shared else "}"):
            if not shared:
                self.here.put(f"const i64 begin = 0, end = {tiles};")
            with self.block("for (i64 at = begin; at < end; ++at) {", frozenset(a.var for a in outer)):
                self.unravel([*(a.var.name for a in outer), "band", "block"], counts)
                self.tiles(down, last)

    def columns(self, down: Var) -> list[Load]:
        """The loads that walk `down` with stride 1, and the lanes' axis with a greater one."""
        loads = dict.fromkeys(v for loop in self.kernel.loops for v in loop.loads())
        kept = self.stored | set(self.kernel.local)
        return [v for v in loads if not v.indirect and v.mask is None and v.buffer not in kept
                and same(coefficient(v.index, down), 1)
                and hint(lane_step(v.index, self.lane_var) or 0) > 1]

    def tiles(self, down: Axis, last: Axis) -> None:
        """The tiles of one block: `tile(first, last, rows, m)` is one of them."""
        n, rows, size = self.lanes, down.size, last.size
        head = f"auto tile = [&](i64 first, i64 {last.var}, auto rows, auto m) {INLINED} {{"
        with self.block(head, frozenset((last.var,)), "};"):
            for v, name in self.tile.items():
                at = index_text(v.index, {down.var.name: "first"})
                step = index_text(lane_step(v.index, self.lane_var) or 0)
                ctype = element(v.dtype)
                self.here.put(f"vec<raw<{ctype}>, {n}> {name}[{n}];")
                place = f"{self.pointer(v.buffer)} + {at}"
                self.here.put(f"load_columns<{ctype}>({name}, {place}, {step}, rows, m);")
            with self.block(f"for (int u = 0; u < least({n}, rows.n); ++u) {{", frozenset((down.var,))):
                self.here.put(f"const i64 {down.var} = first + u;")
                self.point()
        with self.block(_steps("first", "band", DOWN * n, rows, n)), self.block(
                _steps("l", "block", ACROSS * n, size, n)):
            cases = [([c, d], f"tile(first, l, {r}, {m});") for c, r in _ends("first", rows, n)
                     for d, m in _ends("l", size, n)]
            for i, (conditions, call) in enumerate(cases):
                when = " && ".join(c for c in conditions if c)
                self.here.put("else " * (i > 0) + f"if ({when}) " * bool(when) + call)

    def load(self, v: Load, vector: bool) -> str:
        if v in self.tile:
            return f"from_raw<{element(v.dtype)}>({self.tile[v]}[u])"
        return super().load(v, vector)


def _steps(var: str, part: str, width: int, size: Sym | int, n: int) -> str:
    """Opens the loop in steps of n over part number `part`, `width` wide, of an axis."""
    start = f"{part} * {width}"
    return f"for (i64 {var} = {start}; {var} < least({start} + {width}, {count_text(size)}); {var} += {n}) {{"


def _ends(var: str, size: Sym | int, n: int) -> list[tuple[str, str]]:
    """(condition, how much of a vector there is) of a step of n along an axis: whole ones, then the tail."""
    rest = size % n
    tail = [] if same(rest, 0) else [("", tail_text(rest))]
    whole = [(f"{var} + {n} <= {count_text(size)}" if tail else "", "Full{}")]
    return tail if isinstance(size, int) and size < n else whole + tail
