"""Models at other batch sizes and lengths than the one they were compiled for: eager mode's results, and how many
programs it took.

    python benchmarks/sizes.py --entries FILE.py [--only REGEX] [--out results.jsonl]

FILE.py has `REGISTRY`, name -> an object with `make() -> (module, args, kwargs)`; or `WORKLOADS`, name -> a function giving
(kind, make, (callable, args, kwargs)). Each entry runs in a forked child with a time limit. A batch is
the commonest first dimension of the arguments' tensors; a length, the second dimension of their integer matrices. Each is
changed to two other values, in a compiled copy of its own: "right" if all results agree with eager mode's, "programs" is how
many were compiled for each graph of the first call.
"""
from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import minicompile
from minicompile import api


def tensors(x: Any) -> Iterator[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for e in x:
            yield from tensors(e)
    elif isinstance(x, dict) or hasattr(x, "items"):
        for e in dict(x.items()).values():
            yield from tensors(e)
    elif hasattr(x, "__dict__"):
        yield from tensors(vars(x))


def mapped(x: Any, f: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(x, torch.Tensor):
        return f(x)
    if isinstance(x, (tuple, list)):
        return type(x)([mapped(e, f) for e in x])
    return {k: mapped(v, f) for k, v in x.items()} if isinstance(x, dict) else copy.deepcopy(x)


def resized(x: Any, dims: tuple[int, ...], old: int, new: int) -> Any:
    """`x` with every of these dimensions of its tensors that has size `old` repeated or cut to `new`."""
    def change(t: torch.Tensor) -> torch.Tensor:
        for d in dims:
            if t.dim() > d and t.shape[d] == old:
                t = t.index_select(d, torch.arange(new) % old)
        return t.clone()
    return mapped(x, change)


def variants(given: Any) -> Iterator[tuple[str, list[Any]]]:
    """What to call a model with: ("batch" or "length", the calls, the first as given)."""
    found = list(tensors(given))
    batches = Counter(t.shape[0] for t in found if t.dim() > 1)
    if batches:
        (b, _), = batches.most_common(1)
        yield "batch", [given, *(resized(given, (0,), b, n) for n in (b + 1, 2 * b + 3))]
    lengths = Counter(t.shape[1] for t in found if t.dim() == 2 and not t.is_floating_point() and t.shape[1] > 3)
    if lengths:
        (n, _), = lengths.most_common(1)
        yield "length", [given, *(resized(given, (1, 2, 3), n, m) for m in (n - 1, n // 2 + 1))]


def call(f: Any, given: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    args, kwargs = mapped(given, torch.clone)
    with torch.no_grad():
        return list(tensors(f(*args, **kwargs)))


def differs(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> str:
    if len(mine) != len(theirs):
        return f"{len(mine)} results for {len(theirs)}"
    for i, (a, b) in enumerate(zip(mine, theirs)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"result {i} is {a.dtype}{list(a.shape)} for {b.dtype}{list(b.shape)}"
        a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
        scale = b[torch.isfinite(b)].abs().max().item() if torch.isfinite(b).any() else 1.0
        if not torch.allclose(a, b, rtol=2e-3, atol=2e-4 * max(scale, 1e-3), equal_nan=True):
            return f"result {i} is off by {(a - b).abs().max():.3g} at a scale of {scale:.3g}"
    return ""


def measure(make: Callable[[], tuple]) -> Iterator[dict[str, Any]]:
    module, args, kwargs = make()
    if isinstance(module, torch.nn.Module):
        module.eval()
    for what, calls in variants((args, kwargs)):
        row: dict[str, Any] = {"what": what, "right": True, "programs": None, "message": ""}
        try:
            eager = copy.deepcopy(module) if isinstance(module, torch.nn.Module) else module
            expected = [call(eager, given) for given in calls]
        except Exception as error:          # whatever the model raises at this size, it is not ours
            yield {**row, "right": None, "message": f"eager mode: {type(error).__name__}: {error}"[:200]}
            continue
        ours = copy.deepcopy(module) if isinstance(module, torch.nn.Module) else module
        compiled = minicompile.compile(ours)
        handle = api.handle_of(compiled)
        assert handle is not None
        graphs, start = 1, time.perf_counter()
        for i, (given, theirs) in enumerate(zip(calls, expected)):
            message = differs(call(compiled, given), theirs)
            if message:
                row |= {"right": False, "message": f"call {i}: {message}"}
                break
            graphs = max(len(handle.compilations), 1) if i == 0 else graphs
        row |= {"programs": len(handle.compilations) / graphs, "seconds": round(time.perf_counter() - start, 2),
                "refusals": [str(r)[:200] for r in handle.refusals][:3],
                "constant": {k: v[:200] for k, v in list(handle.compiled.why_constant.items())[:4]},
                "misses": [m[:200] for m in handle.misses[-3:]]}
        yield row


def entries_of(path: str) -> Iterator[tuple[str, Callable[[], tuple]]]:
    sys.path.insert(0, str(Path(path).parent))
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if hasattr(module, "REGISTRY"):
        yield from ((name, e.make) for name, e in module.REGISTRY.items())
        return
    for name, build in module.WORKLOADS.items():
        def make(build: Callable = build) -> tuple:
            return build()[2]
        yield name, make


def _child(make: Callable[[], tuple], pipe: Any) -> None:
    torch.set_num_threads(1)
    try:
        for row in measure(make):
            pipe.send(row)
    except Exception as error:
        pipe.send({"what": "all", "right": None, "message": f"{type(error).__name__}: {error}"[:300]})
    pipe.send(None)


def run(name: str, make: Callable[[], tuple], limit: float) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(make, theirs))
    child.start()
    theirs.close()
    rows, end = [], time.monotonic() + limit
    try:
        while mine.poll(max(end - time.monotonic(), 0)):
            row = mine.recv()
            if row is None:
                break
            rows.append({"name": name, **row})
        else:
            rows.append({"name": name, "what": "all", "right": None, "message": "time limit"})
    except EOFError:
        rows.append({"name": name, "what": "all", "right": False, "message": "the process died"})
    child.kill()
    child.join()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--names", help="FILE:KEY:GROUP, a JSON file whose KEY says of which GROUP each name is")
    parser.add_argument("--out", default="sizes.jsonl")
    parser.add_argument("--limit", type=float, default=120)
    options = parser.parse_args()
    wanted = None
    if options.names:
        file, key, group = options.names.split(":")
        wanted = {name for name, g in json.loads(Path(file).read_text())[key].items() if g == group}
    out = Path(options.out)
    done = {json.loads(line)["name"] for line in out.read_text().splitlines()} if out.exists() else set()
    with out.open("a") as file:
        for name, make in entries_of(options.entries):
            if name in done or not re.search(options.only, name) or wanted is not None and name not in wanted:
                continue
            for row in run(name, make, options.limit):
                file.write(json.dumps(row) + "\n")
                file.flush()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for what in ("batch", "length"):
        mine = [r for r in rows if r["what"] == what and r["right"] is not None]
        few = sum(r["right"] and r["programs"] <= 2 for r in mine)
        print(f"{what}: {len(mine)} models, {sum(r['right'] for r in mine)} right, {few} of them with at most 2 programs")
    for r in rows:
        if r["right"] is not True or r["programs"] > 2:
            print(f"  {r['name']} {r['what']}: {r['message'] or (r['programs'], r.get('constant'), r.get('refusals'))}")


if __name__ == "__main__":
    main()
