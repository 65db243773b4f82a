"""Driver of Triton code: from emitted text to something that runs, on a GPU or, interpreted, on the CPU.

Takes `Source` from `codegen.triton`, gives `Executable`, as `codegen.driver` does for C++. Library calls go
to ATen; the arena, fresh outputs, write-backs and results that are views are as in the plan. Triton is an
optional dependency, imported when the first source is loaded.
"""
from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import linecache
import logging
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from ..config import config
from ..errors import ToolchainError
from ..ir.graph import restride
from ..loops.ir import Extern
from .driver import Executable, headers_folder, raise_error, written
from .source import Source
from .triton import TritonLaunch, emit
from .triton_calls import graph_text
from .triton_modes import Recorded, tuned, why_not_recorded

log = logging.getLogger("minicompile.code")
HELP = "install it with `pip install minicompile[triton]`"


def load(source: Source) -> Executable:
    """Binds a Triton source. Its kernels are compiled by Triton at the first call.

    Raises ToolchainError where Triton is not installed."""
    begin = time.perf_counter()
    devices = [str(b.spec.device) for b in source.plan.buffers.values() if b.kind != "temp"]
    gpu = next((d for d in devices if d.startswith("cuda")), None)
    if gpu and config.mode == "max-autotune":
        source = emit(source.plan, tuned(source.plan, functools.partial(_time, gpu)))
    graph = _graph(source, _scope(source, gpu is None), gpu or "cpu")
    if gpu and config.mode == "reduce-overhead":
        why = why_not_recorded(source.plan, written(source.plan))
        log.info("a graph is no CUDA graph: %s", why) if why else None
        graph = graph if why else Recorded(graph)
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


def _scope(source: Source, interpreted: bool) -> dict[str, Any]:
    """What the text defines; interpreted kernels in place of compiled ones where asked."""
    helpers("ops")
    name = f"<triton {hashlib.sha256(source.text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(source.text), None, source.text.splitlines(True), name)
    scope: dict[str, Any] = {"__name__": name, "__file__": name}
    exec(compile(source.text, name, "exec"), scope)
    if interpreted:
        own = helpers("interpreted")
        wrap = importlib.import_module("triton.runtime.interpreter").InterpretedFunction
        scope.update(ops=own.ops, libdevice=own.libdevice)
        scope.update({k: wrap(getattr(scope[k], "fn", scope[k])) for k in source.kernels})
    return scope


def _time(device: str, source: Source, call: TritonLaunch) -> float:
    """Milliseconds of one launch, on zeros."""
    sizes = [source.plan.buffers[b].spec.storage_numel for b in call.buffers] + [n for _, n in call.rows]
    sizes += [2 * len(source.plan.loops.errors)] * call.checks
    given = [torch.zeros(n, dtype=d, device=device) for n, d in zip(sizes, call.dtypes)]
    kernel, options = _scope(source, False)[call.function], {**dict(call.constants), "num_warps": call.warps}
    bench = importlib.import_module("triton.testing").do_bench
    return float(bench(lambda: kernel[(call.programs,)](*given, enable_fp_fusion=False, **options)))


def functions(source: Source) -> dict[str, Any]:
    """The kernels of a source by name, to be compiled by Triton."""
    scope = _scope(source, False)
    return {k: scope[k] for k in source.kernels}


def _graph(source: Source, scope: dict[str, Any], device: str) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The call of a whole graph: the text's function, with index checks and write-backs reported."""
    plan, extras, graph = source.plan, [], scope["graph"]
    graph_text(plan, source.calls, extras)                   # the same text; this time its extras are wanted
    stored, count = written(plan), len(plan.loops.errors)

    @torch.no_grad()
    def call(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        errors = torch.zeros(2 * count, dtype=torch.int64, device=device) if count else None
        got: tuple[torch.Tensor, ...] = graph(device, inputs, plan.loops.constants, extras, errors)
        found = errors.tolist() if errors is not None else []
        if any(found[::2]):
            number = found[::2].index(1)
            raise_error(plan.loops.errors, number, found[2 * number + 1])
        for i in stored:
            torch._C._increment_version([inputs[i]])
        restride(inputs, plan.loops.restrides)
        return got
    return call
