"""What the scripts for docs/reliability.md share: the two systems, cases that run in processes of their own, and tables.

A case is a function that makes its inputs anew, and one that is called with them, as it is and compiled; all that can be
observed of the two calls must be the same.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

import minicompile  # noqa: E402

logging.getLogger("minicompile").setLevel(logging.CRITICAL)     # that something runs as in eager mode


def ours(fn: Callable, backend: str = "auto") -> Callable:
    return minicompile.compile(fn, backend=backend)


def torchs(fn: Callable, backend: str = "auto") -> Callable:
    torch._dynamo.reset()
    return torch.compile(fn, backend="inductor" if backend == "auto" else "aot_eager")


SYSTEMS = {"minicompile": ours, "torch.compile": torchs}


@dataclass(frozen=True)
class Case:
    """`call(*make())`, as it is and compiled. `group` is what it counts for."""

    name: str
    group: str
    make: Callable[[], tuple]
    call: Callable[..., Any]


ODD = (torch.masked.MaskedTensor, torch.nn.parameter.UninitializedTensorMixin)


def plain(t: torch.Tensor) -> bool:
    """Whether it has strides and memory of its own."""
    return t.layout is torch.strided and not t.is_nested and not isinstance(t, ODD)


def tensor_facts(t: torch.Tensor) -> tuple:
    shape = tuple(t.shape) if plain(t) or t.layout is not torch.strided else ()
    stride = tuple(s for s, n in zip(t.stride(), shape) if n > 1) if plain(t) else ()
    shape = shape if all(type(n) is int for n in shape) else ()
    return type(t).__name__, t.dtype, shape, stride, str(t.device), t.layout, t.requires_grad


def same(a: Any, b: Any) -> bool:
    """Values, close: what rounds differently is not what is looked for here."""
    if isinstance(a, (np.ndarray, np.generic)):
        return type(a) is type(b) and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if not isinstance(a, torch.Tensor):
        return type(a) is type(b) and (bool(a == b) or a != a or isinstance(a, torch.SymInt))
    if isinstance(a, ODD):
        return type(a) is type(b)
    if a.is_nested:
        return all(map(same, a.unbind(), b.unbind()))
    if a.is_meta or a.numel() == 0 and a.layout is torch.strided:
        return True
    if a.is_quantized:
        a, b = a.dequantize(), b.dequantize()
    if a.layout is not torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if a.numel() > 1 << 22:         # an expanded tensor: look at its memory, and at both ends
        ends = [t.flatten()[i] if t.dim() != 1 else t[i] for t in (a, b) for i in (slice(5), slice(-5, None))]
        return torch.equal(ends[0], ends[2]) and torch.equal(ends[1], ends[3])
    with torch.no_grad():
        return torch.allclose(a.detach().to(torch.complex128), b.detach().to(torch.complex128), 1e-3, 1e-4, True)


def observed(call: Callable, given: tuple) -> tuple[list, list, Any]:
    """(facts, values, exception) of one call: results, and inputs after it, with who shares memory with whom."""
    torch.manual_seed(0)
    error, results = None, []
    counted = [t for t in tree_leaves(given) if isinstance(t, torch.Tensor) and plain(t) and not t.is_inference()]
    versions, before = [t._version for t in counted], [t.detach().clone() if t.numel() < 99 else t for t in counted]
    try:
        results = tree_leaves(call(*given))
    except Exception as e:
        error = e
    both = [*results, *tree_leaves(given)]
    tensors = [t for t in both if isinstance(t, torch.Tensor)]
    facts: list = [tensor_facts(t) if isinstance(t, torch.Tensor) else type(t) for t in both]
    facts.append([next(i for i, u in enumerate(tensors) if u is t) for t in tensors])
    storages = [t.untyped_storage()._cdata if plain(t) and not t.is_meta else id(t) for t in tensors]
    facts.append([storages.index(s) for s in storages])
    # a version that rises though nothing changed is not missed
    changed = [t.shape != b.shape or not same(t, b) for t, b in zip(counted, before)]
    facts.append([t._version != v for t, v, c in zip(counted, versions, changed) if c])
    return facts, both, error


def judge(case: Case, compile_: Callable[[Callable], Callable]) -> str:
    """"" if the compiled call does what the call does, the first and the second time."""
    compiled = compile_(case.call)
    for turn in ("first", "second"):
        want, got = observed(case.call, case.make()), observed(compiled, case.make())
        if type(want[2]) is not type(got[2]):
            return f"{turn} call raises {said(got[2])}, eager mode {said(want[2])}"
        if want[2] is None and want[0] != got[0]:
            return f"{turn} call: " + next(f"{g}, eager mode {w}" for g, w in zip(got[0], want[0]) if g != w)
        if want[2] is None and not all(map(same, got[1], want[1])):   # how far a write gets that raises is nobody's business
            return f"{turn} call: other values"
    return ""


def said(e: BaseException | None) -> str:
    return "nothing" if e is None else f"{type(e).__name__}: {str(e).strip().splitlines()[0][:160] if str(e).strip() else ''}"


def in_processes(todo: Sequence[Any], do: Callable[[Any], str], limit: int = 120) -> Iterator[tuple[Any, str]]:
    """(item, what `do` says of it), each in a forked process that goes on until it dies."""
    todo = list(todo)
    while todo:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            warnings.simplefilter("ignore")
            with os.fdopen(write, "w") as out, contextlib.suppress(BrokenPipeError):
                for item in todo:
                    signal.alarm(limit)
                    try:
                        text = do(item)
                    except BaseException:
                        text = "the judge failed: " + traceback.format_exc(limit=-2).replace("\n", " ")
                    print(json.dumps(text), file=out, flush=True)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as lines:
            for line in lines:
                yield todo.pop(0), json.loads(line)
        status = os.waitpid(child, 0)[1]
        if todo:
            yield todo.pop(0), f"CRASH: {signal.Signals(status & 0x7f).name if status & 0x7f else status >> 8}"


def report(title: str, cases: Sequence[Case], system: str, backend: str = "auto") -> int:
    """Judges the cases, prints what differs and the counts; gives the number of those that do."""
    begin, bad, counts = time.monotonic(), Counter[str](), Counter(c.group for c in cases)
    for case, text in in_processes(cases, lambda c: judge(c, lambda f: SYSTEMS[system](f, backend))):
        if text:
            bad[case.group] += 1
            bad["crashes"] += text.startswith("CRASH")
            print(f"    {case.group}: {case.name}: {text}", flush=True)
    rows = ", ".join(f"{g} {n - bad[g]} of {n}" for g, n in counts.items())
    total = sum(bad[g] for g in counts)
    print(f"{title} | {system} | {len(cases) - total} of {len(cases)} as in eager mode, {bad['crashes']} crashes | {rows} | "
          f"{time.monotonic() - begin:.0f} s", flush=True)
    return total
