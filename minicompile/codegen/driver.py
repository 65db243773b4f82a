"""Driver: from emitted text to something that runs.

Takes `Source`, compiles it (or finds it in the disk cache), binds it to libtorch and builds the native
`Graph`; gives `Executable`. The last stage before the program is called.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import ToolchainError
from ..ir.forms import alike
from ..ir.graph import restride, seen
from ..ir.spec import TensorSpec, at
from ..ir.sym import NeedsSizes, Size, Sym, same
from ..loops.ir import Buffer, Extern, View
from ..loops.sizes import syms_in
from ..runtime import cache, toolchain
from ..runtime.library import GraphLibrary, Library, kernel_library
from ..schedule.cores import TYPES
from ..schedule.liveness import touched
from ..schedule.plan import Plan
from .cpp import units
from .externs import call_of
from .source import Source

try:
    _launch: Any = importlib.import_module("minicompile._launch")
except ImportError:  # not built: `load` says so, and the caller runs the reference
    _launch = None

INPUT, CONSTANT, TEMP, OUTPUT, EXTERN, LOCAL, LENT = range(7)
KINDS = {"input": INPUT, "constant": CONSTANT, "temp": TEMP, "output": OUTPUT, "extern": EXTERN}
Number = Callable[[Any], Any]    # how a size or number is given to the launcher
RELEASE_NS = 5000.0  # a call estimated shorter than this keeps the interpreter lock


@dataclass(frozen=True)
class Executable:
    """A compiled graph. `call(*tensors)` is native and gives a tuple of tensors; inputs with write-backs
    are changed.

    seconds   what loading took: "compile" (0 on a cache hit) and "load"
    cached    whether the library came from the disk cache
    externs   how each library call is made: "direct", "dispatcher", "python: why"; or "kernel library"
    """

    source: Source
    call: Callable[..., tuple[torch.Tensor, ...]]
    cached: bool
    seconds: dict[str, float] = field(default_factory=dict)
    externs: dict[str, str] = field(default_factory=dict)

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.call(*inputs)

    run = __call__


def load(source: Source) -> Executable:
    """Compiles and binds. Raises ToolchainError where there is no compiler, it fails, or this machine cannot
    run the code."""
    start = time.perf_counter()
    _bind()
    if source.isa not in toolchain.machine_isas():
        raise ToolchainError(f"this machine cannot run code for {source.isa}; it has "
                             f"{', '.join(toolchain.machine_isas())}")
    try:
        library, cached = _library(source)
    except OSError:
        # what the cache gave went between its check and its use; the next try makes it
        library, cached = _library(source)
    built = time.perf_counter()
    graph, externs = _graph(source, library)
    seconds = {"compile": 0.0 if cached else built - start, "load": time.perf_counter() - built}
    return Executable(source, graph, cached, seconds, externs)


def _library(source: Source) -> tuple[GraphLibrary, bool]:
    """The library of a source, bound, and whether it came from the cache."""
    kernels, tool, missing = _kernels_of(source), None, None
    try:
        tool = toolchain.find()
    except ToolchainError as e:  # code that was imported needs none
        missing = e

    def make(path: Path) -> None:
        if tool is None:
            raise missing
        texts = units(source.text)
        files = [path.with_suffix(f".{i}.cpp") for i in range(len(texts))]
        try:
            for file, text in zip(files, texts):
                file.write_text(text)
        except OSError as e:
            raise ToolchainError(f"the C++ text cannot be written: {e}") from e
        toolchain.build(tool, files, path, source.flags, headers_folder())

    with cache.get_or_make(cache_key(source, tool), make) as (path, cached):
        try:
            library = GraphLibrary(path)
            library.function("mc_bind")(ctypes.c_void_p(_launch.lookup_address()), ctypes.byref(kernels))
        except (OSError, AttributeError) as e:
            if cached:
                raise OSError(str(e)) from e
            raise ToolchainError(f"the compiled library does not load: {e}; {toolchain.HELP}") from e
    return library, cached


def cache_key(source: Source, tool: toolchain.Toolchain | None) -> str:
    """Of everything that goes into a source's library: what it is on every machine, and what compiles it."""
    code = cache.key_of(__version__, torch.__version__, source.text, " ".join(source.flags), source.isa,
                        _headers_hash(headers_folder()))
    return code if tool is None else f"{code}-{cache.key_of(' '.join(tool.command), tool.identity)}"


def facts() -> dict[str, str]:
    """What machines must have in common to share compiled code."""
    return {"minicompile": __version__, "headers": _headers_hash(headers_folder())[:12],
            "torch": torch.__version__, "system": f"{platform.system()} {platform.machine()}",
            "isa": toolchain.detect_isa()}


def core_types(isa: str) -> tuple[torch.dtype, ...]:
    """Element types of the products that the kernel library does here. A CPU with tiles for bfloat16 (AMX)
    multiplies that several times faster than with vectors: there it stays the library's."""
    if kernel_library(isa) is None:
        return ()
    return TYPES[:1] if "amx_bf16" in toolchain.cpu_flags() else TYPES


def _kernels_of(source: Source) -> Library:
    found = kernel_library(source.isa)
    cores = [s for s in source.plan.steps if not isinstance(s, Extern) and s.core is not None]
    if found is None and cores:
        raise ToolchainError(
            f"the kernel library for {source.isa} is not built, but {cores[0].name} needs it"
        )
    return found or Library()


@functools.lru_cache(maxsize=1)
def headers_folder() -> Path:
    """kernels/cpp: inside the package once installed, beside it in the repository."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "kernels" / "cpp", package.parent / "kernels" / "cpp"):
        if folder.is_dir():
            return folder
    raise ToolchainError(f"the C++ headers of minicompile are missing (looked beside {package})")


@functools.lru_cache(maxsize=1)
def _headers_hash(folder: Path) -> str:
    return cache.key_of(*(p.read_bytes() for p in sorted(folder.glob("*.h"))))


@functools.lru_cache(maxsize=1)
def _bind() -> None:
    """Binds the launcher to libtorch once, and checks that it reads tensors rightly."""
    if _launch is None:
        raise ToolchainError(
            "the native launcher is not built: install minicompile, or run setup.py build_ext --inplace"
        )
    try:
        _launch.bind(torch.Tensor, torch._C.TensorBase)
    except ImportError as e:
        raise ToolchainError(str(e)) from e
    t = torch.zeros(3, 5, dtype=torch.float64)[1:]
    if _launch.probe(t)[0] != t.data_ptr() or _launch.probe(t)[2] != tuple(t.shape):
        raise ToolchainError(f"torch {torch.__version__} lays out its tensor objects differently")
    os.register_at_fork(after_in_child=_use_one_thread)


def _use_one_thread() -> None:
    """In a forked process, where OpenMP waits for ever for the threads that the fork left behind (as eager
    mode does there); torch's own DataLoader does the same in its workers."""
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


@functools.lru_cache(maxsize=None)
def dtype_code(dtype: torch.dtype) -> int:
    """libtorch's integer for a dtype."""
    return int(_launch.probe(torch.empty(0, dtype=dtype))[1])


def _geometry(spec: TensorSpec, number: Number = int) -> tuple:
    return (dtype_code(spec.dtype), tuple(map(number, spec.shape)), tuple(map(number, spec.stride)),
            number(spec.offset))


def _graph(source: Source, library: GraphLibrary) -> tuple[Any, dict[str, str]]:
    """The native Graph of a source's plan, and how it makes each library call."""
    plan = source.plan
    number = {name: i for i, name in enumerate(plan.buffers)}
    lent = dict.fromkeys(n for n in plan.hosts.values() if plan.buffers[n].kind == "input")
    home = {**number, **{name: len(number) + i for i, name in enumerate(lent)}}     # of who lends: its number
    views: list[tuple] = []
    known: dict[tuple, int] = {}
    sizes = [size for size, _, _ in plan.loops.sizes]
    place = {n: (k,) for k, n in enumerate(source.sizes)}

    def count(n: Sym | int) -> Any:
        return place[n] if isinstance(n, Sym) else int(n)

    def view(v: View) -> int:
        key = (v.buffer, v.spec)
        if key not in known:
            known[key] = len(views)
            views.append((number[v.buffer], _is_whole(v, plan.buffers[v.buffer]), _geometry(v.spec, count)))
        return known[key]

    how: dict[str, str] = {}
    steps: list[tuple] = []
    buffers = [_buffer(plan.buffers[name], plan, count, home) for name in number]
    buffers += [(LENT, number[n], _geometry(plan.buffers[n].spec.flat, count)) for n in lent]
    made: set[int] = set()
    instead = {i: (team, None) for team in plan.teams for i in team}
    instead.update((team[-1], (team, launch)) for team, launch in zip(plan.teams, source.teams))
    for i, (step, launch) in enumerate(zip(plan.steps, source.calls)):
        team, launch = instead.get(i, (range(i, i + 1), launch))
        if launch is None and i in instead:
            continue
        frees = tuple(x for j in team for b in plan.frees.get(j, ())
                      for x in dict.fromkeys((home[b], number[b])))
        first = [n for n in _memory(plan, team, home, number) if n not in made]
        made.update(first)
        makes = tuple(n for n in first if launch is not None or buffers[n][0] != EXTERN)
        if launch is None:
            assert isinstance(step, Extern)
            call = call_of(step, view, dtype_code, count, sizes)
            how[step.name] = call.how
            address = _launch.symbol(call.function) if call.function else 0
            steps.append((1, address, (), makes, frees, call.template))
        else:
            function = library.address(launch.function)
            if isinstance(step, Extern):
                how[step.name] = "kernel library"
            steps.append((0, function, tuple(number[b] for b in launch.buffers), makes, frees, None))
    results = [_result(r, plan.buffers, number, count) for r in _returned(plan)]
    work = sum(step.tiling.work for step in plan.steps if not isinstance(step, Extern))
    release = work > RELEASE_NS or any(isinstance(step, Extern) for step in plan.steps)
    stored = written(plan)
    compute = library.address("mc_sizes") if source.sizes else 0
    graph = _launch.Graph(len(plan.loops.inputs), count(plan.arena_bytes), release, buffers, views, steps,
                          results, functools.partial(raise_error, plan.loops.errors), _see, library,
                          (*stored, *(i for i, _ in plan.loops.restrides)), _after(plan, len(stored)),
                          tuple(x for _, i, d in plan.loops.sizes for x in (i, d)), compute,
                          len(source.sizes))
    return graph, how


def _after(plan: Plan, stored: int) -> Callable[[list[torch.Tensor]], None]:
    """What is done to inputs after the steps: the first `stored` get a new version, the rest their new
    geometry."""
    specs = [spec for _, spec in plan.loops.restrides]
    for s in syms_in(specs):
        raise NeedsSizes(s)

    def after(tensors: list[torch.Tensor]) -> None:
        torch._C._increment_version(tensors[:stored])
        restride(tensors[stored:], enumerate(specs))
    return after if specs else torch._C._increment_version


def written(plan: Plan) -> tuple[int, ...]:
    """Numbers of the inputs that kernels store to, or would if it changed them."""
    kernels = (step for step in plan.steps if not isinstance(step, Extern))
    stored = {loop.out.buffer for k in kernels for loop in k.loops}
    inputs = [b for b in plan.buffers.values() if b.kind == "input"]
    return tuple(b.index for b in inputs if b.name in stored or b.index in plan.loops.kept)


def _returned(plan: Plan) -> Sequence[Any]:
    n = getattr(plan.loops, "returned", -1)
    return plan.loops.results[:n] if n >= 0 else plan.loops.results


def _memory(plan: Plan, team: range, home: dict[str, int], number: dict[str, int]) -> dict[int, None]:
    """Numbers of the buffers that these steps need to have memory of its own, or to lend it."""
    names = dict.fromkeys(n for i in team for part in touched(plan.steps[i]) for n in part)
    found = (home[plan.hosts[n]] if n in plan.hosts else number[n] for n in names
             if n in plan.hosts or plan.buffers[n].kind in ("output", "extern"))
    return dict.fromkeys(found)


def _buffer(b: Buffer, plan: Plan, count: Number, home: dict[str, int]) -> tuple[int, Any, Any]:
    """(kind, number, payload) as _launch.c reads it."""
    if b.kind == "constant":
        return CONSTANT, 0, plan.loops.constants[b.index]
    if b.kind == "temp":
        if b.name not in plan.arena:
            return LOCAL, 0, None
        return TEMP, count(plan.arena[b.name]), home[plan.hosts[b.name]] if b.name in plan.hosts else None
    if b.kind == "output":
        return OUTPUT, 0, _geometry(b.spec, count)
    if b.kind == "extern":
        return EXTERN, 0, _geometry(b.spec, count)
    return KINDS[b.kind], b.index, None


def _is_whole(v: View, b: Buffer) -> bool:
    return (alike(v.spec.shape, b.spec.shape) and alike(v.spec.stride, b.spec.stride)
            and v.spec.dtype == b.spec.dtype and same(v.spec.offset, 0))


@dataclass(frozen=True, slots=True)
class _Views:
    """Calls that make a result from its base. `dims` are those of the base and of the result, which tell what
    sizes are; `start` is where the base began when this was compiled."""

    calls: tuple
    dims: tuple[Sym | int, ...]
    start: Sym | int


def _result(r: Any, buffers: Mapping[str, Buffer], number: dict[str, int],
            count: Number) -> tuple[int, tuple | None]:
    if not r.alias:
        return number[r.buffer], None           # an alias is a tensor of its own, also of the same geometry
    base, views = buffers[r.buffer].spec, None
    if r.views:
        views = _Views(r.views, (*base.shape, *r.spec.shape), base.offset)
        unknown = [v for s in syms_in((r.views, base.offset)) for v in s.vars if v not in views.dims]
        if unknown:
            raise NeedsSizes(sum(unknown), "a view of another kind than geometry alone makes")
    return number[r.buffer], (_geometry(r.spec.with_(offset=r.spec.offset - base.offset), count), views)


def _see(base: torch.Tensor, shape: tuple, stride: tuple, how: Any) -> torch.Tensor:
    """An alias of `base`: a window that begins `how` elements behind its beginning, or what `_Views` say."""
    if isinstance(how, int):
        return base.as_strided(shape, stride, base.storage_offset() + how)
    env = {d.name: n for d, n in zip(how.dims, (*base.shape, *shape)) if isinstance(d, Size)}
    return seen(base, base, at(how.calls, env), at(how.start, env))


def raise_error(errors: Sequence[tuple[str, str]], which: int, found: int) -> None:
    """Eager's exception for a failed index check."""
    kind, message = errors[which]
    types: dict[str, type[Exception]] = {"IndexError": IndexError, "RuntimeError": RuntimeError,
                                         "ValueError": ValueError}
    raise types.get(kind, RuntimeError)(message.replace("{index}", str(found)))
