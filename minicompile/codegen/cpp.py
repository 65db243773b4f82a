"""C++ emitter: one function per distinct kernel, explicit SIMD, OpenMP over the outer axes.

Takes `schedule.plan.Plan`, gives `Source` for `codegen.driver`. The tiling is read from the plan; nothing
is decided here but the number of lanes. A kernel's text depends on shapes and positions of buffers only, so
kernels that differ in buffers alone (the layers of a transformer) become one function that is called many
times.

How a kernel looks:

    MC_EXPORT void k0_softmax(char* const* b, Env* env) {     // b: the buffers' addresses
      const float* p0 = ...;
      parallel(env, 8, [=](i64 begin, i64 end) {      // par axes
        for (i64 at = begin; at < end; ++at) {
          const i64 i0 = at;
          vec<float, 8> acc0[4] = ...;                         // one stage: accumulators, body, loop,
          finish auto body = [&](i64 j0, auto m, int u) { ... };      // m: Full, or Tail with the number of
          lanes left for (i64 j0 = 0; j0 < 128; j0 += 32) { body(j0, Full{}, 0); ... }
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config import config
from ..ir.sym import Size, Sym
from ..loops.ir import Extern
from ..loops.sizes import syms_in
from ..runtime.library import kernel_library
from ..runtime.toolchain import detect_isa, flags_for
from ..schedule.plan import Kernel, Plan
from .cpp_attention import attention_text, why_not_attention
from .cpp_core import CoreText
from .cpp_kernel import KernelText
from .cpp_tiles import TileText
from .source import Launch, Source
from .walk import index_text

HEADER = """\
#include "run.h"
#include "reduce.h"
#include "abi.h"

#define MC_EXPORT extern "C" __attribute__((visibility("default")))
inline mc::Library library;
"""
BIND = """\
MC_EXPORT void mc_bind(mc::Lookup lookup, const mc::Library* kernels) {
  mc::bind_math(lookup);
  library = *kernels;
}
"""
OPEN, END, CLOSE = "\nnamespace mc {\n\n", "\n}\n\n", "}  // namespace mc\n"
SMALL = 5000      # characters of C++ that are compiled before a second compiler has read its headers
UNITS = 2


def emit(plan: Plan, isa: str | None = None) -> Source:
    """The C++ of a plan. `isa` is "avx512", "avx2" or "scalar"; None takes config.isa, by default the
    machine's best.

    Raises Refusal for a dtype or prim that has no C++ form.
    """
    isa = isa or detect_isa()
    functions: dict[str, str] = {}  # body text -> function name
    shown: list[str] = []
    calls: list[Launch | None] = []
    for step in plan.steps:
        printed = _print(step, plan, isa)
        if printed is None:
            calls.append(None)
            continue
        body, buffers = printed
        name = functions.get(body)
        if name is None:
            functions[body] = name = _function_name(step)
            shown.append(
                f"// {(not isinstance(step, Extern) and step.where) or step.name}: {', '.join(buffers)}\n"
                f"MC_EXPORT void {name}(char* const* b, Env* env) {{\n{body}}}\n"
            )
        calls.append(Launch(name, buffers))
    teams = [_team(f"team_{t.start}", [plan.steps[i] for i in t], [calls[i] for i in t]) for t in plan.teams]
    hosts = [plan.buffers[n].spec.flat for n in plan.hosts.values()]
    known = (list(plan.buffers.values()), hosts, plan.arena, plan.arena_bytes, plan.loops.results,
             [s for s in plan.steps if isinstance(s, Extern)])
    sizes = tuple(syms_in(known) if plan.loops.sizes else ())
    shown += [_sizes(sizes, [size for size, _, _ in plan.loops.sizes])] if sizes else []
    shown += [body for _, body in teams]
    return Source(_unit(HEADER + BIND, shown), "c++", isa, flags_for(isa), tuple(functions.values()),
                  tuple(calls), plan, tuple(launch for launch, _ in teams), sizes)


def _unit(head: str, functions: Sequence[str]) -> str:
    """A translation unit. Every function ends in a brace at the beginning of a line."""
    return f"{head}{OPEN}" + "\n".join(functions) + "\n" + CLOSE


def units(text: str) -> tuple[str, ...]:
    """A text as translation units of about equal length, where that is worth a compiler for each; the first
    has what binds the library."""
    head, _, rest = text.partition(OPEN)
    *functions, last = rest.removesuffix("\n" + CLOSE).split(END)
    functions = [*(f + END[:-1] for f in functions), last]
    if len(rest) < SMALL or len(functions) < UNITS:
        return (text,)
    shares: list[list[str]] = [[] for _ in range(UNITS)]
    for f in sorted(functions, key=len, reverse=True):
        min(shares, key=lambda share: sum(map(len, share))).append(f)
    return tuple(_unit(head if i == 0 else HEADER, share) for i, share in enumerate(shares))


def _sizes(computed: Sequence[Sym], sizes: Sequence[Size]) -> str:
    """The text of the function that computes what the launcher needs to know of the sizes."""
    given = "".join(f"  const i64 {index_text(s)} = given[{k}];\n" for k, s in enumerate(sizes))
    lines = "".join(f"  out[{k}] = {index_text(s)};\n" for k, s in enumerate(computed))
    return f"MC_EXPORT void mc_sizes(const i64* given, i64* out) {{\n{given}{lines}}}\n"


def _team(name: str, steps: Sequence[Any], calls: Sequence[Any]) -> tuple[Launch, str]:
    """The launch and the text of kernels that run as one parallel region."""
    works = [max(round(s.tiling.work), 1) for s in steps]
    splits = ["true" if s.tiling.parallel else "false" for s in steps]
    members = ",\n    ".join(f"{{{c.function}, {len(c.buffers)}, {split}, {work}}}"
                            for c, split, work in zip(calls, splits, works))
    known = "".join(f"MC_EXPORT void {f}(char* const* b, Env* env);\n"
                    for f in dict.fromkeys(c.function for c in calls))
    text = (f"{known}MC_EXPORT void {name}(char* const* b, Env* env) {{\n"
            f"  static const Member members[] = {{\n    {members}}};\n"
            f"  team(members, {sum(works)}, b, env);\n}}\n")
    return Launch(name, tuple(b for c in calls for b in c.buffers)), text


def _print(step: Kernel | Extern, plan: Plan, isa: str) -> tuple[str, tuple[str, ...]] | None:
    """(body, buffers) of a step; None for a library call that torch makes."""
    sizes = [size for size, _, _ in plan.loops.sizes]
    if isinstance(step, Extern):
        wanted = kernel_library(isa) is not None and "cores" not in config.disable_passes
        ours = wanted and why_not_attention(step) is None
        return attention_text(step, sizes) if ours else None
    printer = CoreText if step.core is not None else TileText if step.tiling.transpose else KernelText
    return printer(step, plan.buffers, isa, sizes).emit()


def _function_name(step: Kernel | Extern) -> str:
    return "".join(c if c.isalnum() else "_" for c in step.name)
