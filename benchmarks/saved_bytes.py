"""Bytes that the forward keeps for the backward: minicompile's split beside torch's min-cut partitioner.

    python benchmarks/saved_bytes.py WORKLOADS.py [NAME …]

WORKLOADS.py has WORKLOADS: name → function giving ("train", make, (module, args, kwargs)). Values made by
the forward are counted; inputs and parameters that are kept are alive anyway and shown apart. Torch's
partitioner gets the decompositions that its own compiler uses, and, as here, dropout masks are eager's: no
seeds.
"""
from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._inductor.lowering  # decompositions look at it
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table

import minicompile
from minicompile.autograd.joint import trace_joint
from minicompile.autograd.partition import split
from minicompile.lower.decompose import decompose

Count = dict[str, float]


def first(out: Any) -> torch.Tensor:
    if isinstance(out, torch.Tensor):
        return out
    return first((out.to_tuple() if hasattr(out, "to_tuple") else out)[0])


def ours(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[Count, list[str]]:
    """Bytes and seconds of our split, and its largest saved values."""
    count: Count = {"made": 0, "inputs": 0, "seconds": 0.0}
    largest: list[Any] = []

    def backend(gm: torch.fx.GraphModule, examples: list) -> Callable[..., Any]:
        joint = trace_joint(gm, examples)
        if joint.tangents:
            prims = decompose(joint.aten).graph
            start = time.perf_counter()
            halves = split(prims, joint.primals, joint.outputs, joint.tangents, held=joint.held)
            count["seconds"] += time.perf_counter() - start
            for s, i in zip(halves.saved, halves.from_input):
                count["made" if i is None else "inputs"] += s.bytes
                largest.extend([s] if i is None else [])
        return gm
    minicompile.compile(module, backend=backend)(*args, **kwargs)
    return count, [str(s) for s in sorted(largest, key=lambda s: -s.bytes)]


def theirs(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[Count, list[str]]:
    """The same of torch's partitioner: storages that the forward half hands to the backward."""
    count: Count = {"made": 0, "inputs": 0, "seconds": 0.0}
    kept: list[int] = []
    largest: list[tuple[int, str]] = []

    def partition(joint: Any, inputs: Any, *, num_fwd_outputs: int, **rest: Any) -> Any:
        start = time.perf_counter()
        halves = min_cut_rematerialization_partition(joint, inputs, num_fwd_outputs=num_fwd_outputs, **rest)
        count["seconds"] += time.perf_counter() - start
        kept.append(num_fwd_outputs)
        return halves

    def forward(gm: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        returned, names = kept.pop(), [str(a) for a in gm.graph.find_nodes(op="output")[0].args[0]]

        def run(*inputs: Any) -> Any:
            out = gm(*inputs)
            given = {t.untyped_storage()._cdata for t in inputs if isinstance(t, torch.Tensor)}
            seen: set[int] = set()
            for t, name in zip(out[returned:], names[returned:]):
                if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in seen:
                    key = t.untyped_storage()._cdata
                    seen.add(key)
                    count["inputs" if key in given else "made"] += t.untyped_storage().nbytes()
                    if key not in given:
                        largest.append((t.nbytes, f"{name}: {t.nbytes} bytes {t.dtype} {tuple(t.shape)}"))
            return out
        return run
    backend = aot_autograd(fw_compiler=forward, bw_compiler=lambda gm, _: gm, partition_fn=partition,
                           decompositions=select_decomp_table())
    torch._dynamo.reset()
    torch.compile(module, backend=backend)(*args, **kwargs)
    return count, [text for _, text in sorted(largest, reverse=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the largest saved values")
    given = parser.parse_args()
    spec = importlib.util.spec_from_file_location("workloads", given.workloads)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    print(f"{'workload':24} {'ours MB':>9} {'torch MB':>9} {'ratio':>6}   {'inputs MB':>18}   seconds")
    for name, make in found.WORKLOADS.items():
        if given.names and name not in given.names or not given.names and not name.endswith("train"):
            continue
        module, args, kwargs = make()[2]
        (a, mine), (b, other) = ours(module, args, kwargs), theirs(module, args, kwargs)
        ratio = a["made"] / max(b["made"], 1)
        print(f"{name:24} {a['made'] / 1e6:9.3f} {b['made'] / 1e6:9.3f} {ratio:6.3f}   "
              f"{a['inputs'] / 1e6:9.3f}{b['inputs'] / 1e6:9.3f}   {a['seconds']:.3f} {b['seconds']:.3f}")
        if given.verbose:
            for title, texts in (("ours", mine), ("torch", other)):
                print(f"  {title}:", *texts[:40], sep="\n    ")


if __name__ == "__main__":
    main()
