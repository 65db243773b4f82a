"""Cross compilation: the Triton kernels of a function, compiled for a GPU that is not in this machine.

Takes a function and arguments (its graphs, through `api`), gives `Crossed`: cubins, what each kernel costs
(from the plan: bytes, operations; from the machine code: registers, shared memory, spills, instructions),
and a folder with the kernels' text, the cubins and a script that loads and launches them.
"""
from __future__ import annotations

import functools
import importlib
import json
import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..api import compile_anew
from ..codegen import triton
from ..codegen.source import Source
from ..codegen.triton import TritonLaunch
from ..codegen.triton_driver import functions, helpers
from ..errors import MinicompileError, ToolchainError
from ..loops.ir import Apply, Buffer, Extern, walk
from ..pipeline import Compilation
from ..schedule.plan import Kernel
from ..schedule.space import total

TARGETS = {"sm_70": 70, "sm_75": 75, "sm_80": 80, "sm_86": 86, "sm_89": 89, "sm_90": 90}
# name -> (capability, bytes per second of its memory, float32 operations per second)
GPUS = {"V100": (70, 0.90e12, 15.7e12), "A100": (80, 2.04e12, 19.5e12), "H100": (90, 3.35e12, 66.9e12)}
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64",
            torch.int8: "*i8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
            torch.uint8: "*u8", torch.uint16: "*u16", torch.uint32: "*u32", torch.uint64: "*u64",
            torch.bool: "*i1"}
# what a SASS instruction counts as; the first that matches
CLASSES = {"async copies": "LDGSTS|UBLKCP|UTMALDG", "128-bit loads": r"LDG\S*\.128", "other loads": "LDG",
           "128-bit stores": r"STG\S*\.128", "other stores": "STG", "atomics": "ATOM|RED",
           "wgmma": "HGMMA|IGMMA|QGMMA", "mma": "HMMA|IMMA|DMMA", "fma": "FFMA|HFMA|DFMA", "math": "MUFU",
           "shared": "LDS|STS|LDSM", "barriers": "BAR", "local": "LDL|STL"}
# the same in PTX, for GPUs that the disassembler no longer knows
PTX_CLASSES = {"128-bit loads": r"ld\.global\S*\.(v4\.b32|v2\.b64)", "other loads": r"ld\.global",
               "128-bit stores": r"st\.global\S*\.(v4\.b32|v2\.b64)", "other stores": r"st\.global",
               "atomics": r"atom|red\.", "async copies": r"cp\.async\.c", "wgmma": r"wgmma\.mma",
               "mma": r"mma\.sync", "fma": r"fma\.", "math": r"\w+\.approx",
               "shared": r"(ld|st)\.shared|ldmatrix", "barriers": r"bar\.", "local": r"(ld|st)\.local"}


@dataclass(frozen=True, slots=True)
class Binary:
    """One kernel, compiled. Sizes are bytes; `spills` are the compiler's own, not arrays in local
    memory; `loop` counts the instructions of its longest loop."""

    cubin: bytes
    ptx: str
    registers: int
    shared: int
    spills: int
    instructions: dict[str, int]
    loop: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figures:
    """One launch: what it must move and compute, what its code needs, and the time no GPU can go below.

    microseconds  GPU name -> the larger of bytes over bandwidth and operations over peak
    """

    kernel: str
    does: str
    programs: int
    warps: int
    bytes: int
    flops: int
    registers: int
    shared: int
    spills: int
    instructions: dict[str, int]
    microseconds: dict[str, float] = field(default_factory=dict)
    loop: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        mix, loop = (", ".join(f"{n} {k}" for k, n in part.items() if n)
                     for part in (self.instructions, self.loop))
        least = ", ".join(f"{gpu} {us:.1f} us" for gpu, us in self.microseconds.items())
        return (f"{self.kernel}  {self.does}\n    {self.programs} programs of {self.warps} warps; "
                f"{self.bytes} bytes, {self.flops} operations: at least {least}\n"
                f"    {self.registers} registers, {self.shared} bytes shared, {self.spills} spilled; {mix}"
                + f"; in its loop {loop}" * bool(loop))


@dataclass(frozen=True, slots=True)
class Crossed:
    """All graphs of a function for one target: sources, binaries by (graph, kernel), figures per launch."""

    target: str
    sources: tuple[Source, ...]
    binaries: dict[tuple[int, str], Binary]
    figures: tuple[Figures, ...]
    libraries: tuple[str, ...] = ()

    def __str__(self) -> str:
        moved = sum(f.bytes for f in self.figures)
        head = (f"{self.target}: {len(self.sources)} graphs, {len(self.figures)} kernel launches of "
                f"{len(self.binaries)} kernels, {moved} bytes, {len(self.libraries)} library calls")
        return "\n".join([head, *map(str, self.figures)])

    def write(self, folder: str | Path) -> Path:
        """Writes graphN.py (kernels and the graph's function), cubins, report.json and load.py."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for n, source in enumerate(self.sources):
            (path / f"graph{n}.py").write_text(source.text)
        manifest = []
        for (n, name), b in self.binaries.items():
            (path / f"graph{n}_{name}.cubin").write_bytes(b.cubin)
            manifest.append({"graph": n, "kernel": name, "shared": b.shared,
                             "cubin": f"graph{n}_{name}.cubin", "warps": self.launch(n, name).warps,
                             "programs": self.launch(n, name).programs,
                             "pointers": [str(d) for d in self.launch(n, name).dtypes]})
        (path / "kernels.json").write_text(json.dumps(manifest, indent=1))
        (path / "report.json").write_text(json.dumps([asdict(f) for f in self.figures], indent=1))
        (path / "load.py").write_text(LOADER.format(target=self.target))
        return path

    def launch(self, graph: int, kernel: str) -> TritonLaunch:
        calls = (c for c in self.sources[graph].calls if isinstance(c, TritonLaunch))
        return next(c for c in calls if c.function == kernel)


LOADER = '''"""Loads the cubins beside this file on a GPU ({target}) and launches each once on zeros.

    python load.py              checks that every kernel loads and runs
    from load import kernels    kernels[graph, name](programs, *tensors) launches one on the current stream
"""
import ctypes
import json
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
cuda = ctypes.CDLL("libcuda.so.1")


def check(status):
    if status:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(text.value.decode())


class Kernel:
    def __init__(self, entry):
        self.entry, module, self.function = entry, ctypes.c_void_p(), ctypes.c_void_p()
        check(cuda.cuModuleLoadData(ctypes.byref(module), (HERE / entry["cubin"]).read_bytes()))
        check(cuda.cuModuleGetFunction(ctypes.byref(self.function), module, entry["kernel"].encode()))
        if entry["shared"] > 48 * 1024:  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(cuda.cuFuncSetAttribute(self.function, 8, entry["shared"]))

    def __call__(self, programs, *tensors):
        assert all(t.data_ptr() % 16 == 0 for t in tensors), "pointers are aligned to 16 bytes"
        # two more pointers: Triton's scratch memories, which these kernels do not use
        values = [ctypes.c_void_p(t.data_ptr()) for t in tensors] + [ctypes.c_void_p(0)] * 2
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        check(cuda.cuLaunchKernel(self.function, programs, 1, 1, 32 * self.entry["warps"], 1, 1,
                                  self.entry["shared"], stream, pointers, None))


torch.cuda.init()
torch.zeros(1, device="cuda")  # makes the context current
ENTRIES = json.loads((HERE / "kernels.json").read_text())
kernels = {{(e["graph"], e["kernel"]): Kernel(e) for e in ENTRIES}}

if __name__ == "__main__":
    for e in ENTRIES:
        dtypes = [getattr(torch, d.split(".")[1]) for d in e["pointers"]]
        given = [torch.zeros(1 << 20, dtype=d, device="cuda") for d in dtypes]
        kernels[e["graph"], e["kernel"]](1, *given)
        torch.cuda.synchronize()
        print("ok", e["graph"], e["kernel"])
'''


def cross(fn: Any, target: str = "sm_80") -> Callable[..., Crossed]:
    """`cross(fn, "sm_80")(*args, **kwargs)` compiles the kernels of fn, called so, for that GPU.

    The call runs once, as in eager mode. Raises MinicompileError for a target that is not known or where
    nothing of fn can be compiled, ToolchainError without Triton."""
    if target not in TARGETS:
        raise MinicompileError(f"target {target!r} is not known; there are {', '.join(TARGETS)}")

    def crossed(*args: Any, **kwargs: Any) -> Crossed:
        compiled, handle = compile_anew(fn, backend="triton", options={"stop": "aten"})
        compiled(*args, **kwargs)
        parts = [part for c in handle.compilations for part in (c, c.backward) if part is not None]
        if not parts:
            raise MinicompileError("nothing was compiled: " + "; ".join(map(str, handle.refusals)))
        return cross_sources(sources_of(parts), target)

    return crossed


def sources_of(parts: Sequence[Compilation]) -> list[Source]:
    """The Triton sources of graphs compiled by backend "triton", with the blocks a GPU gets."""
    return [triton.emit(part.reach("plan"), triton.heuristic) for part in parts]


def cross_sources(sources: Sequence[Source], target: str) -> Crossed:
    """Every kernel of these sources, compiled for the target; equal kernels once."""
    binaries: dict[tuple[int, str], Binary] = {}
    figures, done = [], {}
    for n, source in enumerate(sources):
        kernels = functions(source)
        for step, call in zip(source.plan.steps, source.calls):
            if not isinstance(call, TritonLaunch) or not isinstance(step, Kernel) or not call.programs:
                continue
            key = (n, call.function)
            if key not in binaries:
                text = _text(source.text, call.function), call.constants, call.warps, call.dtypes
                if text not in done:
                    done[text] = compile_kernel(kernels[call.function], call, target)
                binaries[key] = done[text]
            figures.append(figures_of(step, source.plan.buffers, call, binaries[key]))
    libraries = [str(s.op) for source in sources for s in source.plan.steps if isinstance(s, Extern)]
    return Crossed(target, tuple(sources), binaries, tuple(figures), tuple(libraries))


def _text(text: str, name: str) -> str:
    """A kernel's text, without its name."""
    found = re.search(rf"^def {name}(\(.*?)(?=^\S|\Z)", text, re.S | re.M)
    assert found is not None
    return found.group(1)


def compile_kernel(kernel: Any, call: TritonLaunch, target: str, disassemble: bool = True) -> Binary:
    """One kernel by Triton's compiler, ahead of time; its instructions from PTX unless disassembled."""
    constants = dict(call.constants)
    names = [n for n in kernel.arg_names if n not in constants]
    signature = dict.fromkeys(constants, "constexpr") | {n: POINTERS[d] for n, d in zip(names, call.dtypes)}
    return compile_function(kernel, signature, constants, target, call.warps, disassemble=disassemble)


def compile_function(kernel: Any, signature: dict[str, str], constants: dict[str, Any], target: str,
                     warps: int, stages: int = 3, disassemble: bool = True) -> Binary:
    """Any triton.jit function for a target; pointers are aligned to 16 bytes.

    signature  parameter -> "*fp32", "i32", "constexpr", …; with a "*" or ":16" it is a multiple of 16"""
    helpers("ops")                                          # says what to install where Triton is missing
    compiler = importlib.import_module("triton.compiler")
    gpu = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", TARGETS[target], 32)
    attrs = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names)
             if signature[n].startswith("*") or signature[n].endswith(":16")}
    signature = {n: kind.removesuffix(":16") for n, kind in signature.items()}
    source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    made = compiler.compile(source, target=gpu, options={"num_warps": warps, "num_stages": stages,
                                                         "enable_fp_fusion": False})
    cubin, ptx = made.asm["cubin"], made.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", str(path))
        if disassemble and TARGETS[target] >= 75:           # older ones are no longer known to it
            code, mix_of = _tool("nvdisasm", "-c", str(path)), instruction_mix
        else:
            code, mix_of = ptx, ptx_mix
    registers, stack = re.search(r"REG:(\d+)", usage), re.search(r"STACK:(\d+)", usage)
    assert registers is not None and stack is not None, usage
    spills = spilled(ptx, target) if stack.group(1) != "0" else 0
    return Binary(cubin, ptx, int(registers.group(1)), made.metadata.shared, spills, mix_of(code),
                  mix_of(main_loop(code)))


def instruction_mix(sass: str) -> dict[str, int]:
    """How many instructions of each class of `CLASSES` the code has."""
    return _classified(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass), CLASSES)


def ptx_mix(ptx: str) -> dict[str, int]:
    """The same of PTX, where registers do not spill yet."""
    return _classified(re.findall(r"^\s*(?:@!?%\w+\s+)?([a-z]\S*)", ptx, re.M), PTX_CLASSES)


def main_loop(code: str) -> str:
    """The longest loop of PTX or disassembled code: the lines from a label to the last jump to it."""
    lines, labels, spans = code.splitlines(), {}, [(0, 0)]
    for n, line in enumerate(lines):
        if label := re.match(r"\s*([.$]L_\w+):", line):
            labels[label.group(1)] = n
        elif (jump := re.search(r"\b(?:bra|BRA)\b.*?([.$]L_\w+)", line)) and jump.group(1) in labels:
            spans.append((labels[jump.group(1)], n + 1))
    start, end = max(spans, key=lambda span: span[1] - span[0])
    return "\n".join(lines[start:end])


def _classified(operations: Iterable[str], classes: dict[str, str]) -> dict[str, int]:
    found = Counter(dict.fromkeys(classes, 0))
    for op in operations:
        found.update([next((k for k, pattern in classes.items() if re.match(pattern, op)), "")])
    del found[""]
    return dict(found)


def spilled(ptx: str, target: str) -> int:
    """Bytes of registers that ptxas spills, by its own account."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        arch = re.search(r"\.target (sm_\w+)", ptx)
        told = _tool("ptxas", "-v", f"--gpu-name={arch.group(1) if arch else target}", str(path), "-o",
                     str(path.with_suffix(".cubin")))
    return sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", told)))


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([str(_tools() / name), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolchainError(f"{name} failed: {done.stderr.strip()[-300:]}")
    return done.stdout + done.stderr


@functools.lru_cache(maxsize=1)
def _tools() -> Path:
    """The folder of the CUDA tools that Triton brings."""
    backend = importlib.import_module("triton.backends.nvidia")
    return Path(str(backend.__file__)).parent / "bin"


# ---- what a kernel must do -----------------------------------------------------------------------


def figures_of(kernel: Kernel, buffers: dict[str, Buffer], call: TritonLaunch, binary: Binary) -> Figures:
    moved, flops = traffic(kernel, buffers), operations(kernel)
    least = {gpu: round(max(moved / bandwidth, flops / peak) * 1e6, 2)
             for gpu, (_, bandwidth, peak) in GPUS.items()}
    return Figures(call.function, kernel.where or kernel.name, call.programs, call.warps, moved, flops,
                   binary.registers, binary.shared, binary.spills, binary.instructions, least, binary.loop)


def traffic(kernel: Kernel, buffers: dict[str, Buffer]) -> int:
    """Bytes that must cross the GPU's memory: every element loaded or stored, once."""
    read: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    seen = set()                                            # a load that several stages share is made once
    for stage in kernel.stages:
        extents = {a.var: int(a.size) for a in (*kernel.par, *stage.inner)}
        points = total((*kernel.par, *stage.inner))
        for loop in stage.loops:
            for table, x in (*((read, x) for x in loop.loads()), (stored, loop.out)):
                if table is read and (x, stage.inner) in seen:
                    continue
                seen.add((x, stage.inner))
                free: Iterable[Any] = () if isinstance(x.index, int) else x.index.vars
                table[x.buffer] += points if x.indirect else math.prod(extents.get(v, 1) for v in free)
    return sum(min(n, buffers[name].spec.numel) * buffers[name].spec.dtype.itemsize
               for table in (read, stored) for name, n in table.items() if name not in kernel.local)


def operations(kernel: Kernel) -> int:
    """Prims and combinations per point, times points."""
    count = 0
    for stage in kernel.stages:
        values = {x for loop in stage.loops for v in loop.values() for x in walk(v)}
        prims = sum(isinstance(x, Apply) and x.prim not in ("cast", "bitcast", "where") for x in values)
        prims += sum(loop.combine is not None for loop in stage.loops)
        count += prims * total((*kernel.par, *stage.inner))
    return count
