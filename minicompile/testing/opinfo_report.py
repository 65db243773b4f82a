"""The report of `testing.opinfo`: rows kept as JSON, shown as Markdown.

Takes rows as dicts (the fields of `opinfo.Row`), gives the text of docs/opinfo.md. Nothing comes after it.
"""
from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

Row = dict
KINDS = ("ok", "break", "refused", "wrong", "crash")
# library kernels that are meant to stay: products, convolution, attention, random numbers
KEPT = tuple("""mm bmm addmm baddbmm mv dot vdot addmv addbmm convolution scaled_dot_product rand bernoulli
multinomial dropout uniform normal exponential cauchy geometric log_normal random poisson binomial
draw""".split())
# operators of linear algebra, Fourier transforms and sorting by their first words, and those of the first
# kind that are sums and products all the same
APART = tuple("""linalg fft stft istft cholesky geqrf lu logdet matrix_exp norm.nuc ormqr pinverse qr svd pca
triangular_solve sort argsort msort topk kthvalue median nanmedian masked.median mode quantile nanquantile
unique""".split())
PLAIN = tuple("linalg." + name for name in "cross diagonal multi_dot norm vander vecdot vector_norm".split())


def merge(path: Path | None, rows: Iterable[Row]) -> list[Row]:
    """`rows` and what `path` holds besides; written there."""
    kept: dict[tuple, Row] = {}
    if path is not None and path.exists():
        kept = {_key(r): r for r in json.loads(path.read_text())}
    kept.update((_key(r), r) for r in rows)
    result = [kept[k] for k in sorted(kept)]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    return result


def _key(r: Row) -> tuple[str, str, str]:
    return r["mode"], r["dtype"], r["op"]


def markdown(rows: list[Row]) -> str:
    """The whole report."""
    parts = ["# Operators against eager mode", "", INTRODUCTION, ""]
    for mode, title in MODES.items():
        mine = [r for r in rows if r["mode"] == mode]
        if mine:
            parts += [f"## {title}", "", *_totals(mine), "", *(_prims(mine) if mode == "forward" else ()),
                      *_faults(mine), *_refusals(mine)]
    return "\n".join(parts).rstrip() + "\n"


MODES = {"forward": "Forward", "gradient": "Gradients",
         "forward, cpp": "Forward, values from compiled kernels",
         "module forward": "Modules, forward (train and eval)", "module gradient": "Modules, gradients"}
INTRODUCTION = """Written by `python -m minicompile.testing.opinfo --results build/opinfo.json --report
docs/opinfo.md` (and `--grad`). Each operator of PyTorch's `op_db` runs on samples of that database: as they
are, with non-contiguous inputs, in place, and on the inputs that must raise. Compared with eager mode:
values in the database's tolerances, dtype, shape, stride, shared memory, lazy conjugates, written inputs,
exception type and message. The numbers count samples, spread over the database's, with the variants of
some and the inputs that must raise. Each row is of its own last run; the column *tree* says of which commits.
Values come from the loops' reference executor where nothing else is said.

"One graph": compiled whole, from the lowering on, or with capture where data has to be guarded. "Break": the
operator itself runs in eager mode, between graphs, because its result depends on data in a way that no guard
can hold; what comes out is compared all the same. "Refused": all of the sample runs as in eager mode, for the
reasons below. "Equal" is one graph and break."""


def status(r: Row) -> str:
    return next((k for k in ("crash", "wrong", "refused") if r["counts"][k]), "ok")


def _totals(rows: list[Row]) -> list[str]:
    lines = ["| dtype | rows | all samples ok | one graph | break | refused | wrong | crash | equal | tree |",
             "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"]
    by_dtype: dict[str, list[Row]] = defaultdict(list)
    for r in rows:
        by_dtype[r["dtype"]].append(r)
    for dtype, mine in [*by_dtype.items(), ("all", rows)]:
        n = Counter[str]()
        for r in mine:
            n.update(r["counts"])
        whole = sum(status(r) == "ok" for r in mine)
        share = 100 * (n["ok"] + n["break"]) / max(1, sum(n.values()))
        trees = ", ".join(sorted({r.get("commit") or "earlier" for r in mine}))
        lines.append(f"| {dtype} | {len(mine)} | {whole} | " + " | ".join(str(n[k]) for k in KINDS)
                     + f" | {share:.1f}% | {trees} |")
    return lines


def _prims(rows: list[Row]) -> list[str]:
    """How many operators need no library kernel but those that are meant to stay, and which do."""
    ops: dict[str, set[str]] = defaultdict(set)
    for r in rows:
        if r["dtype"] == "float32" and not r["counts"]["break"] and not apart(r["op"]):
            stays = {e for e in r["externs"] if not e.split(".")[1].lstrip("_").startswith(KEPT)}
            ops[r["op"]] |= stays if r["counts"]["ok"] else {"(refused)"}
    free = sum(not e for e in ops.values())
    if not ops:
        return []
    rest = (f"`{op}` ({', '.join(sorted(e))})" for op, e in sorted(ops.items()) if e)
    return ["### Down to prims", "",
            f"In float32, {free} of {len(ops)} operators ({100 * free / len(ops):.1f}%) reach prims with no "
            "library kernel but products, convolutions, attention and random numbers. Left out of the count: "
            "linear algebra, Fourier transforms, sorting, and shapes that depend on data. The others, with "
            f"what some of their samples call: {', '.join(rest)}.", ""]


def apart(op: str) -> bool:
    """Whether an operator is one of linear algebra, Fourier transforms or sorting."""
    first = op.replace("_", ".").split(".")
    own = any(first[:len(words)] == words for words in (a.replace("_", ".").split(".") for a in APART))
    return own and not op.startswith(PLAIN)


def _faults(rows: list[Row]) -> list[str]:
    bad = [r for r in rows if status(r) in ("wrong", "crash")]
    lines = ["### Wrong or crashing", ""]
    for r in bad:
        for why, n in r["why"].items():
            if why.startswith(("wrong", "crash")):
                lines.append(f"- `{r['op']}` {r['dtype']} ({n}): {_cell(why)}")
    return [*lines, ""] if bad else [*lines, "None.", ""]


def _refusals(rows: list[Row]) -> list[str]:
    lines = []
    for kind, title in (("refused", "Refused"), ("break", "With a break")):
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for r in rows:
            for why, n in r["why"].items():
                if why.startswith(kind):
                    found[why.split(":")[1].strip()][r["op"]] += n
        lines += [f"### {title}", "", "| reason | samples | operators |", "|---|--:|---|"]
        for code, ops in sorted(found.items(), key=lambda kv: -sum(kv[1].values())):
            names = ", ".join(f"`{op}`" for op in sorted(ops))
            lines.append(f"| {code} | {sum(ops.values())} | {names} |")
        lines.append("")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:300]
