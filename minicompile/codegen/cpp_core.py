"""C++ text of kernels with a core: a matrix product or convolution by the kernel library, and the epilogue
that is applied to each of its finished tiles.

Takes a `Kernel` whose `core` is set, gives the same as `cpp_kernel.KernelText`. How it looks:

    struct Context { char* const* b; Env* env; } context{b, env};
    auto epilogue = [](void* given, i64 i0, i64 row, i64 col, i64 rows, i64 cols, float* tile, i64 ld) {
      ...                                    // for rows and vectors of columns of the tile: values, stores
    };
    const Gemm task{1, 512, 256, 1024, p0, p1, 0, 1024, 1, 0, 1, 1024, epilogue, &context};
    library.gemm(&task, env->threads);
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import Refusal
from ..ir.spec import TensorSpec
from ..ir.sym import Sym, hint, same
from ..loops.ir import Axis, View
from .cpp_kernel import INLINED, KernelText
from .cpp_values import element
from .walk import count_text, widest

SIGNATURE = "[](void* given, i64 {batch}, i64 row, i64 col, i64 rows, i64 cols, float* tile, i64 ld)"


class CoreText(KernelText):
    """Prints one kernel with a core. The outermost scope is the epilogue function's body."""

    def emit(self) -> tuple[str, tuple[str, ...]]:
        k = self.kernel
        core = k.core
        assert core is not None and core.outs[0] is not None
        self.stored |= {core.outs[0].buffer}
        operands = [self.view(v) for v in core.views()]
        batch = k.par[0] if len(k.par) == 3 else None
        row, column = k.par[-2:]
        self.here.depth = 2
        if batch is not None:
            self.here.names |= {batch.var}
        self.tile_rows(row, column)
        task, function = self.task(operands)
        pointers = [
            f"auto {p} = ({element(self.buffers[name].spec.dtype)}*)b[{n}];"
            for n, (name, p) in enumerate(self.pointers.items())
        ]
        name = batch.var.name if batch is not None else "batch"
        lines = [
            *self.sizes,
            "  struct Context { char* const* b; Env* env; } context{b, env};",
            f"  auto epilogue = {SIGNATURE.format(batch=name)} {{",
            "    char* const* b = ((Context*)given)->b; Env* env = ((Context*)given)->env; (void)env;",
            *("  " + p for p in self.sizes),
            *("    " + p for p in pointers),
            *self.here.lines,
            "  };",
            *("  " + p for p in pointers[: len(operands)]),
            f"  const {task};",
            f"  library.{function}(&task, env->threads);",
        ]
        return "\n".join(lines) + "\n", tuple(self.pointers)

    def view(self, v: View) -> tuple[str, TensorSpec]:
        """(text of the address of an operand's first element, its geometry)."""
        p = self.pointer(v.buffer)
        return (p if same(v.spec.offset, 0) else f"{p} + {count_text(v.spec.offset)}"), v.spec

    def tile_rows(self, row: Axis, column: Axis) -> None:
        """The epilogue over one tile: vectors of columns where there are lanes, else column by column."""
        k = self.kernel
        register = k.core.outs[0].buffer  # type: ignore[union-attr]
        j = column.var.name
        roots = [v for loop in k.loops for v in loop.values()]
        if self.bytes:
            self.lane_var = column.var
            self.lanes = self.bytes // max(4, widest(roots, k.loops, lambda v: column.var in v.vars))
            if self.lanes < 2 or hint(column.size) < 2:
                self.lane_var, self.lanes = None, 1
        with self.block("for (i64 r = 0; r < rows; ++r) {", frozenset((row.var,))):
            self.here.put(f"const i64 {row.var} = row + r;")
            self.here.put("const float* const values = tile + r * ld - col;")
            self.registers[register] = "value"
            if self.lane_var is None:
                with self.block(f"for (i64 {j} = col; {j} < col + cols; ++{j}) {{", frozenset((column.var,))):
                    self.here.put(f"const float value = values[{j}];")
                    self.point()
                return
            n = self.lanes
            with self.block(
                f"auto point = [&](i64 {j}, auto m) {INLINED} {{", frozenset((column.var,)), "};"
            ):
                self.here.put(f"const auto value = load<{n}>(values + {j}, m);")
                self.point()
            self.here.put(f"i64 {j} = col;")
            self.here.put(f"for (; {j} + {n} <= col + cols; {j} += {n}) point({j}, Full{{}});")
            self.here.put(f"if ({j} < col + cols) point({j}, Tail{{int(col + cols - {j})}});")

    def task(self, operands: Sequence[tuple[str, TensorSpec]]) -> tuple[str, str]:
        """(declaration of the task struct, function of the library that does it)."""
        core = self.kernel.core
        assert core is not None
        (x, xs), (w, ws) = operands
        if core.op is torch.ops.aten.convolution.default:
            assert core.outs[0] is not None
            return _conv2d(core.args, x, xs, w, ws, core.outs[0].spec), "conv2d"
        if core.op not in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            raise Refusal("core", f"no kernel for {core.op}")
        batch, (m, kk), n = xs.shape[0] if xs.ndim == 3 else 1, xs.shape[-2:], ws.shape[-1]
        a = [xs.stride[0] if xs.ndim == 3 else 0, *xs.stride[-2:]]
        b = [ws.stride[0] if ws.ndim == 3 else 0, *ws.stride[-2:]]
        numbers = ", ".join(map(count_text, (batch, m, n, kk)))
        strides = ", ".join(map(count_text, (*a, *b)))
        half = [spec.dtype is torch.bfloat16 for spec in (xs, ws)]
        kind = 0 if core.outs[0].spec.dtype is torch.float32 else half[0] + 2 * half[1] + 4
        return f"Gemm task{{{numbers}, {x}, {w}, {strides}, epilogue, &context, {kind}}}", "gemm"


def _conv2d(args: tuple, x: str, xs: TensorSpec, w: str, ws: TensorSpec, out: TensorSpec) -> str:
    """The Conv2d struct of a convolution's arguments (schedule.cores says which come here)."""

    def pair(value: int | Sequence[int]) -> str:
        both = [value, value] if isinstance(value, int) else [*value] * (2 if len(value) == 1 else 1)
        return f"{{{both[0]}, {both[1]}}}"

    def size(d: int, value: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Sym | int:
        at = d if len(value) > 1 else 0
        reach = dilation[at if len(dilation) > 1 else 0] * (ws.shape[2 + d] - 1) + 1
        pad = padding[d if len(padding) > 1 else 0]
        return (xs.shape[2 + d] + 2 * pad - reach) // value[at] + 1

    stride, padding, dilation = args[3], args[4], args[5]
    oh, ow = size(0, stride, padding, dilation), size(1, stride, padding, dilation)
    assert oh * ow == out.shape[2] * out.shape[3], (oh, ow, out)
    last = ["false" if spec.is_contiguous else "true" for spec in (out, ws)]
    groups = args[8]
    sizes = (xs.shape[0], ws.shape[1], *xs.shape[2:], ws.shape[0] // groups, oh, ow, *ws.shape[2:], groups)
    return (
        f"Conv2d task{{{', '.join(map(count_text, sizes))}, "
        f"{pair(stride)}, {pair(padding)}, {pair(dilation)}, {x}, {w}, "
        f"{{{', '.join(map(count_text, xs.stride))}}}, epilogue, &context, {', '.join(last)}}}"
    )
