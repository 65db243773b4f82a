"""The pages of documentation that the code itself says: the prims, what becomes of each ATen operator, and
the public names.

Takes `ir.prims`, the rules of `lower` and docstrings, gives Markdown. A test holds the committed pages
against it.

    python -m minicompile.testing.catalogue          # writes docs/prims.md, docs/coverage.md and docs/api.md
"""
from __future__ import annotations

import inspect
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

import minicompile

from ..config import Config
from ..ir.prims import PRIMS, Prim
from ..lower import decompose
from ..lower.builder import RULES
from ..lower.composite import has_kernel, is_composite
from .opinfo_report import KEPT

DOCS = Path(__file__).parents[2] / "docs"
TITLES = {"elementwise": "Elementwise", "reduce": "Reductions", "scan": "Scans", "view": "Views",
          "create": "Creation", "gather": "Gather and scatter"}
assert decompose          # it registers the rules


# ---- prims ----------------------------------------------------------------------------------------

PRIMS_PAGE = """# The prims

Written by `python -m minicompile.testing.catalogue` from the prim table in `minicompile/ir/prims.py`: {}
rows (at most 100). Everything behind the lowering is one of these, or a library call. A row also holds its
reference (eager torch) and its shape rule; `{{0}}`, `{{1}}` … are operands. Every row's C++ and Triton text
is run against its reference over NaN, infinities, both zeros, denormals, the extremes of each dtype and
what the column *edges* adds, over all pairs of these for two operands, and over no elements at all.
Low-precision floats are computed in float32: the lowering casts."""
COVERAGE_PAGE = """# What becomes of each ATen operator

Written by `python -m minicompile.testing.catalogue` for torch {}: {} operators by name; in-place and `out=`
forms are lowered as the functional ones. A rule may leave special cases (a dtype, an argument) to the
library; `docs/opinfo.md` says what was measured. The {} overloads with a rule share {} decompositions,
whose median length is {:.0f} lines.

| | operators | |
|---|--:|---|"""


def prims_page() -> str:
    """docs/prims.md."""
    lines = [PRIMS_PAGE.format(len(PRIMS))]
    for kind, title in TITLES.items():
        rows = [p for p in PRIMS.values() if p.kind == kind]
        text = kind == "elementwise"
        more = (" C++ | Triton | edges |", "---|---|---|") if text else ("", "")
        lines += ["", f"## {title}", "", "| prim | meaning | dtypes | result |" + more[0],
                  "|---|---|---|---|" + more[1]]
        for p in rows:
            cells = [f"`{p.name}`", p.doc, _dtypes(p), p.result]
            if text:
                cells += [f"`{p.cpp}`", f"`{p.triton}`", ", ".join(map(str, p.edges))]
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _dtypes(p: Prim) -> str:
    if not p.dtypes:
        return "any"
    sets = {"float": (torch.float32, torch.float64), "bool": (torch.bool,),
            "int": (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)}
    return ", ".join(name for name, members in sets.items() if set(members) <= set(p.dtypes))


# ---- ATen operators -------------------------------------------------------------------------------

# (what becomes of an operator, what that means)
FATES = {
    "decomposed": "a rule turns it into prims",
    "composed": "torch composes it of other operators, for every device; these are lowered",
    "taken apart": "torch's dispatcher takes it apart before it is recorded",
    "product": "a matrix product, a convolution or attention: a library call on purpose",
    "random": "draws random numbers: the library's draw, so that eager's numbers come out",
    "library": "a library call",
    "refused": "its result's geometry depends on data, or is no tensor: no part of a graph",
    "other layouts": "for sparse, quantised, nested or opaque tensors, which are refused as inputs",
}
OTHER = tuple("""sparse quantize quantized nested mkldnn coalesce csr csc bsr bsc coo fbgemm xnnpack vulkan
cudnn miopen cslt dense_dim crow_indices col_indices jagged fw_primal cuda cufft mps hip xpu padded_dense
qlinear qscheme q_ test_ dequantize""".split())


def fate(overloads: list[Any]) -> str:
    """What becomes of an operator, judged by its functional overloads."""
    name = overloads[0]._schema.name.split("::")[1].lstrip("_")
    if any(o in RULES for o in overloads) and not name.startswith("rand"):
        return "decomposed"
    if any(part in name for part in OTHER):
        return "other layouts"
    tags = {t for o in overloads for t in o.tags}
    if torch.Tag.nondeterministic_seeded in tags or name.startswith(("rand", "bernoulli")):
        return "random"
    if torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags:
        return "refused"
    if not any("Tensor" in str(r.type) for o in overloads for r in o._schema.returns):
        return "refused"
    if any(is_composite(o) for o in overloads):
        return "composed"
    if any(has_kernel(o.name(), "CompositeImplicitAutograd") for o in overloads):
        return "taken apart"
    return "product" if name.startswith(KEPT) else "library"


def operators() -> dict[str, list[Any]]:
    """Name -> overloads of every ATen operator; in-place and out= forms are lowered as their functional
    ones, and count only where there is no other."""
    found: dict[str, list[Any]] = defaultdict(list)
    mutable: dict[str, list[Any]] = defaultdict(list)
    for full in sorted(torch._C._dispatch_get_all_op_names()):
        namespace, _, rest = full.partition("::")
        name, _, overload = rest.partition(".")
        op = getattr(getattr(torch.ops.aten, name, None), overload or "default", None)
        if namespace == "aten" and op is not None and not name.startswith("__"):
            (mutable if op._schema.is_mutable else found)[name].append(op)
    for name, overloads in mutable.items():
        if name not in found and name.rstrip("_") not in found and f"_{name}" not in found:
            found[name] = overloads
    return found


def coverage_page() -> str:
    """docs/coverage.md."""
    fates: dict[str, list[str]] = defaultdict(list)
    for name, overloads in operators().items():
        fates[fate(overloads)].append(name)
    n = sum(map(len, fates.values()))
    sizes = lengths().values()
    lines = [COVERAGE_PAGE.format(torch.__version__.split("+")[0], n, len(RULES), len(sizes),
                                  statistics.median(sizes))]
    lines += [f"| {f} | {len(fates[f])} | {meaning} |" for f, meaning in FATES.items()]
    for f in FATES:
        lines += ["", f"## {f.capitalize()}", "", ", ".join(f"`{x}`" for x in sorted(fates[f]))]
    return "\n".join(lines) + "\n"


def lengths() -> dict[Any, int]:
    """Lines of code of each decomposition: the function itself, without its head and docstring."""
    sizes: Counter[Any] = Counter()
    for f in RULES.values():
        while inner := [c.cell_contents for c in f.__closure__ or ()
                        if isinstance(c.cell_contents, FunctionType)]:
            f = inner[0]
        sizes[f.__code__] = len({line for _, _, line in f.__code__.co_lines() if line}) - 1 or 1
    return dict(sizes)


# ---- public names ---------------------------------------------------------------------------------

API_PAGE = """# The public names

Written by `python -m minicompile.testing.catalogue` from docstrings. All else may change without notice."""
MODULES = {"minicompile": minicompile.__all__, "minicompile.testing": ("check",),
           "minicompile.viz.cross": ("cross",)}


def api_page() -> str:
    """docs/api.md."""
    lines = [API_PAGE]
    for module, names in MODULES.items():
        lines += ["", f"## {module}"]
        for name in sorted(names, key=str.lower):
            obj = getattr(import_module(module), name)
            lines += ["", f"### {name}", "", *(settings() if name == "config" else entry(name, obj))]
    return "\n".join(lines) + "\n"


def entry(name: str, obj: Any) -> list[str]:
    """A name, as it is called, and its docstring."""
    head = f"{name}{signature(obj)}" if callable(obj) else name
    return ["```python", head, "```", "", *text_of(inspect.getdoc(obj) or "")]


def settings() -> list[str]:
    """The fields of `minicompile.config`."""
    doc = inspect.getdoc(sys.modules["minicompile.config"]) or ""
    rows = [f"| `{field}` | `{value}` | {meaning} |" for field, value, _, meaning in Config().describe()]
    return [*text_of(doc), "| setting | default | meaning |", "|---|---|---|", *rows]


def signature(obj: Any) -> str:
    """As written; exceptions are named by what they are raised with."""
    try:
        return str(inspect.signature(obj)).replace("'", "")
    except ValueError:                                  # a C type's
        return ""


def text_of(doc: str) -> Iterator[str]:
    """A docstring as Markdown: what is indented, or a table of arguments in two columns, is kept as it is."""
    for paragraph in doc.split("\n\n"):
        lines = paragraph.splitlines()
        fixed = any(line.startswith(" ") or re.match(r"\w+   *\S", line) for line in lines)
        yield from ("```text", *lines, "```", "") if fixed else (*lines, "")


PAGES = {"prims": prims_page, "coverage": coverage_page, "api": api_page}


def main() -> int:
    """Writes all pages."""
    for name, page in PAGES.items():
        (DOCS / f"{name}.md").write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
