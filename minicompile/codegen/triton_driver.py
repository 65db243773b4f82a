"""Driver of Triton code: from emitted text to something that runs, on a GPU or, interpreted, on the CPU.

Takes `Source` from `codegen.triton`, gives `Executable`, as `codegen.driver` does for C++. Library calls go to
ATen; the arena, fresh outputs, write-backs and results that are views are as in the plan. Triton is an optional
dependency, imported when the first source is loaded.
"""
from __future__ import annotations

import hashlib
import importlib
import importlib.util
import linecache
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from ..errors import ToolchainError
from ..ir.spec import TensorSpec
from ..loops.ir import Extern
from ..loops.reference import Memory, raise_faults, results, run_extern, start
from .driver import Executable, headers_folder, written
from .source import Source
from .triton import TritonLaunch

HELP = "install it with `pip install minicompile[triton]`"


def load(source: Source) -> Executable:
    """Binds a Triton source. Its kernels are compiled by Triton at the first call.

    Raises ToolchainError where Triton is not installed."""
    begin = time.perf_counter()
    device = next((b.spec.device for b in source.plan.buffers.values() if b.kind != "temp"), "cpu")
    interpreted = not str(device).startswith("cuda")
    kernels = functions(source, interpreted)
    graph = Graph(source, kernels, str(device))
    how = {s.name: "python: Triton's driver is Python" for s in source.plan.steps if isinstance(s, Extern)}
    return Executable(source, graph, False, {"compile": 0.0, "load": time.perf_counter() - begin}, how)


def helpers(name: str) -> ModuleType:
    """A module of kernels/triton, also where the package is used from the repository."""
    try:
        importlib.import_module("triton")
    except ImportError as e:
        raise ToolchainError(f"Triton is not installed ({e}); {HELP}") from e
    folder = headers_folder().parent
    for package, path in (("minicompile.kernels", folder), ("minicompile.kernels.triton", folder / "triton")):
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            spec = importlib.util.spec_from_file_location(package, path / "__init__.py",
                                                          submodule_search_locations=[str(path)])
            assert spec is not None and spec.loader is not None
            sys.modules[package] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
    return importlib.import_module(f"minicompile.kernels.triton.{name}")


def functions(source: Source, interpreted: bool) -> dict[str, Any]:
    """The kernels of a source by name: what triton.jit gives, or the interpreter's form of them."""
    ops = helpers("ops")
    name = f"<triton {hashlib.sha256(source.text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(source.text), None, source.text.splitlines(True), name)
    scope: dict[str, Any] = {"__name__": name, "__file__": name}
    exec(compile(source.text, name, "exec"), scope)
    assert scope["ops"] is ops
    if not interpreted:
        return {k: scope[k] for k in source.kernels}
    own = helpers("interpreted")
    scope.update(ops=own.ops, libdevice=own.libdevice)
    wrap = importlib.import_module("triton.runtime.interpreter").InterpretedFunction
    return {k: wrap(getattr(scope[k], "fn", scope[k])) for k in source.kernels}


class Graph:
    """The call of a whole graph: memory, launches and library calls in the plan's order."""

    def __init__(self, source: Source, kernels: dict[str, Any], device: str):
        plan = self.plan = source.plan
        self.device = device
        self.written = written(plan)
        self.steps: list[tuple[Callable[[Memory], None], Sequence[str]]] = []
        for i, (step, call) in enumerate(zip(plan.steps, source.calls)):
            run = self._library(step) if isinstance(step, Extern) else self._kernel(kernels, call)
            self.steps.append((run, plan.frees.get(i, ())))

    @torch.no_grad()
    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        plan = self.plan
        memory = start(plan.buffers, plan.loops.inputs, inputs, plan.loops.constants)
        arena = torch.empty(plan.arena_bytes, dtype=torch.uint8, device=self.device)
        for b in plan.buffers.values():
            if b.name in plan.arena:
                memory.flat[b.name] = _window(arena, plan.arena[b.name], b.spec)
            elif b.kind == "output":
                memory.flat[b.name] = torch.empty(b.spec.storage_numel, dtype=b.spec.dtype, device=self.device)
        self.errors = torch.zeros(2 * max(len(plan.loops.errors), 1), dtype=torch.int64, device=self.device)
        for run, frees in self.steps:
            run(memory)
            for name in frees:
                del memory.flat[name]
        if plan.loops.errors:
            found = self.errors.tolist()
            memory.faults = [(n, found[2 * n + 1]) for n in range(len(plan.loops.errors)) if found[2 * n]]
            raise_faults(plan.loops, memory)
        for i in self.written:
            torch._C._increment_version([inputs[i]])
        return tuple(results(plan.loops, memory))

    def _library(self, step: Extern) -> Callable[[Memory], None]:
        return lambda memory: run_extern(step, memory)

    def _kernel(self, kernels: dict[str, Any], call: Any) -> Callable[[Memory], None]:
        assert isinstance(call, TritonLaunch)
        kernel = kernels[call.function]
        options = {**dict(call.constants), "num_warps": call.warps, "enable_fp_fusion": False}

        def launch(memory: Memory) -> None:
            if not call.programs:
                return
            pointers = [memory.get(b) for b in call.buffers]
            pointers += [torch.empty(n, dtype=d, device=self.device) for d, n in call.rows]
            kernel[(call.programs,)](*pointers, *([self.errors] if call.checks else []), **options)
        return launch


def _window(arena: torch.Tensor, at: int, spec: TensorSpec) -> torch.Tensor:
    return arena[at:at + spec.storage_numel * spec.dtype.itemsize].view(spec.dtype)

