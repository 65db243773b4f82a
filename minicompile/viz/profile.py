"""Profile: what a graph's steps cost on this machine, and what they look like as instructions.

Takes a `Compilation` and the inputs of its first call; gives measured times per step, the error of each
captured node against float64, and the disassembly of each kernel. The compiled program is not touched: the
plan's buffers are allocated as the reference executor does (`loops.reference`), and each kernel's C
function is called by itself.
"""
from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..codegen import driver
from ..codegen.source import Launch
from ..errors import CheckError, ToolchainError, Where
from ..loops.ir import Extern
from ..loops.reference import Memory, allocate, results, run_extern, start
from ..pipeline import Compilation
from ..schedule.deps import reads_of, writes_of
from ..schedule.execute import run_kernel
from ..schedule.plan import Plan
from ..testing.bisection import captured_values, is_float, tensors_of, wide, widened

ROUNDS = 5          # a step's time is the least of so many


class Env(ctypes.Structure):
    """What a kernel gets beside its buffers, as in kernels/cpp/run.h."""

    _fields_ = [("threads", ctypes.c_int), ("error", ctypes.c_int), ("found", ctypes.c_int64),
                ("sizes", ctypes.c_void_p)]


@dataclass(frozen=True, slots=True)
class Timed:
    """One step of a plan by itself: the least time of a few calls, the bytes of the buffers it reads and
    writes, and the part of the time that moving so many bytes takes at the rate of a large copy (the memory
    roof; more than 1 means that they come from cache). `seconds` is None for what has no function of its own.
    """

    graph: str
    name: str
    bytes: int
    seconds: float | None
    roof: float | None

    def __str__(self) -> str:
        if self.seconds is None or self.roof is None:
            return f"{self.name:<28} has no function of its own"
        return (f"{self.name:<28} {self.seconds * 1e6:9.1f} us {self.bytes:12} bytes, "
                f"{self.roof:4.0%} of the memory roof")


@dataclass(frozen=True, slots=True)
class NodeError:
    """How far a captured node's value, in the program's own dtypes, is from a run in float64."""

    name: str
    where: Where | None
    absolute: float
    relative: float

    def __str__(self) -> str:
        return f"{self.name:<28} {self.absolute:.1e} (relative {self.relative:.1e})"


def profile(done: Compilation) -> list[Timed]:
    """The measured time of each step, for the graph and its backward, given ones for incoming gradients.

    Empty for what has no compiled C++, or sizes or numbers that vary. Changes `done.inputs` if the graph
    does.
    """
    inputs = tensors_of(done.inputs)
    if not _can_run(done, len(inputs)):
        return []
    timed, given = run_steps(done, inputs)
    if done.backward is not None and done.split is not None:
        s = done.split
        kept = iter(given[s.outputs:])
        saved = [next(kept) if i is None else inputs[i] for i in s.from_input]
        incoming = [*saved, *(torch.ones_like(given[i]) for i in s.tangents)]
        if _can_run(done.backward, len(incoming)):
            timed += run_steps(done.backward, incoming)[0]
    return timed


def _can_run(done: Compilation, inputs: int) -> bool:
    return (isinstance(done.executable, driver.Executable) and not done.plan.loops.sizes
            and len(done.plan.loops.inputs) == inputs)


@torch.no_grad()
def run_steps(done: Compilation, inputs: Sequence[torch.Tensor]) -> tuple[list[Timed], list[torch.Tensor]]:
    """Every step in order, each timed alone; and the graph's results, which are the graph's own only where no
    step adds to what it finds. Raises CheckError where a kernel reports a bad index."""
    plan: Plan = done.plan
    library = driver._library(done.source)[0]
    memory = start(plan.buffers, plan.loops.inputs, inputs, plan.loops.constants)
    for b in plan.buffers.values():
        if b.kind != "extern" and b.name not in memory.flat:
            memory.flat[b.name] = allocate(b.spec)
    timed = []
    for step, launch in zip(plan.steps, done.source.calls):
        parts = [step] if isinstance(step, Extern) else [*([step.core] if step.core else []), *step.loops]
        touched = {n for p in parts for n in (*reads_of(p), *writes_of(p))} - set(getattr(step, "local", ()))
        size = sum(int(plan.buffers[n].spec.nbytes) for n in touched if n in plan.buffers)
        call = _native(launch, library, memory) if launch else functools.partial(run_extern, step, memory)
        if launch is None and not isinstance(step, Extern):       # only its team has a function
            run_kernel(step, memory)
            timed.append(Timed(done.name, step.name, size, None, None))
            continue
        seconds = min(_seconds(call) for _ in range(ROUNDS))
        timed.append(Timed(done.name, step.name, size, seconds, size / copy_rate() / seconds))
    return timed, results(plan.loops, memory)


def _native(launch: Launch, library: Any, memory: Memory) -> Callable[[], None]:
    """A call of a kernel's C function on the memory's buffers."""
    for name in launch.buffers:
        if name not in memory.flat:
            memory.flat[name] = allocate(memory.buffers[name].spec)
    pointers = (ctypes.c_void_p * len(launch.buffers))(*(memory.flat[n].data_ptr() for n in launch.buffers))
    env, function = Env(torch.get_num_threads()), library.function(launch.function)
    function.restype = None

    def call() -> None:
        function(pointers, ctypes.byref(env))
        if env.error:
            raise CheckError("profile", launch.function, f"reports index {env.found}")
    return call


def _seconds(call: Callable[[], None]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@functools.lru_cache(maxsize=1)
def copy_rate() -> float:
    """Bytes per second, read and written, of copying 64 MiB: the roof that memory sets."""
    a = torch.ones(2**24)
    b = torch.empty_like(a)
    return 2 * a.nbytes / min(_seconds(lambda: b.copy_(a)) for _ in range(5))


def errors(done: Compilation) -> list[NodeError]:
    """Each captured node's largest error against the same graph run in float64, in graph order."""
    gm, places = done.capture.gm, getattr(done.capture, "where", {})
    precise = {c.name: c.value for c in captured_values(widened(gm), {}, [
        wide(x) if isinstance(x, torch.Tensor) else x for x in done.inputs])}
    found = []
    for c in captured_values(gm, places, done.inputs):
        exact = precise[c.name]
        if is_float(c.value) and c.value.numel():
            off = (c.value.double() - exact).abs().max().item()
            found.append(NodeError(c.name, c.where, off, off / max(exact.abs().max().item(), 1e-300)))
    return found


def assembly(source: Any) -> str:
    """The kernels' instructions by objdump; "" where there is no objdump or no compiled library."""
    tool = shutil.which("objdump")
    if tool is None or getattr(source, "language", "") != "c++":
        return ""
    try:
        library = driver._library(source)[0]
        told = subprocess.run([tool, "-d", "-C", "--no-show-raw-insn", library.path], capture_output=True,
                              text=True, check=True).stdout
    except (ToolchainError, OSError, subprocess.CalledProcessError):
        return ""
    parts = re.findall(r"^[0-9a-f]+ <(\w+)[^>]*>:\n((?:.+\n)*)", told, re.M)
    wanted = {call.function for call in source.calls if call}
    return "\n".join(f"{name}:\n{_plain(body)}" for name, body in parts if name in wanted)


def _plain(body: str) -> str:
    """Without the white space that objdump puts before addresses."""
    return re.sub(r"^\s+([0-9a-f]+):\s+", r"  \1  ", body.expandtabs(), flags=re.M)
