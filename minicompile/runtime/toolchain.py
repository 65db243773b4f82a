"""The C++ compiler: finding it, choosing the instruction set, running it.

Takes C++ text and flags, gives a shared library file for `codegen.driver`; knows nothing of kernels or
torch.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..config import config
from ..errors import ToolchainError

# -ffp-contract=off: a*b+c must round twice, as eager mode's two kernels do (fused multiply-adds in
# kernels/cpp are written out). -fno-math-errno, -fno-trapping-math: nobody reads errno or the floating
# point flags; values are unaffected. -fwrapv: integer arithmetic wraps, as eager's does.
COMMON = (
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-fno-exceptions",
    "-fno-rtti",
    "-Wno-psabi",
    "-fno-plt",
    "-fvisibility=hidden",
)
MARCH = {"avx512": ("-march=x86-64-v4",), "avx2": ("-march=x86-64-v3",), "scalar": ()}
NEEDS = {
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "fma", "bmi2"),
    "avx2": ("avx2", "fma", "f16c", "bmi2"),
}
MISSING = (
    "no C++ compiler was found: install g++ (Debian and Ubuntu: apt-get install g++) or clang++ with OpenMP, "
    "or set CXX to one"
)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A working compiler: the command (words of CXX) and what it says its version is."""

    command: tuple[str, ...]
    version: str

    def __str__(self) -> str:
        return f"{self.version} ({shlex.join(self.command)}), {detect_isa()}"


@functools.lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Instruction set extensions of this machine; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    found = next((line for line in lines if line.startswith("flags")), ":")
    return frozenset(found.partition(":")[2].split())


def machine_isas() -> tuple[str, ...]:
    """The instruction sets this machine can run, best first."""
    flags = cpu_flags()
    return (*(isa for isa, needs in NEEDS.items() if flags.issuperset(needs)), "scalar")


def detect_isa() -> str:
    """config.isa, or the best instruction set of this machine."""
    return machine_isas()[0] if config.isa == "auto" else config.isa


def flags_for(isa: str) -> tuple[str, ...]:
    """Compiler flags for an instruction set."""
    return (*COMMON, *MARCH[isa])


def find() -> Toolchain:
    """The compiler named by CXX (which may hold options), else g++, else clang++.

    Raises ToolchainError where there is none, or it does not answer.
    """
    return _find(os.environ.get("CXX", ""), os.environ.get("PATH", ""))


@functools.lru_cache(maxsize=8)
def _find(cxx: str, path: str) -> Toolchain:
    candidates = [tuple(shlex.split(cxx))] if cxx.strip() else [("g++",), ("clang++",)]
    for command in candidates:
        program = shutil.which(command[0], path=path)
        if program is None:
            continue
        words = (program, *command[1:])
        try:
            said = subprocess.run([*words, "--version"], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as e:
            raise ToolchainError(f"the C++ compiler {' '.join(words)} does not run: {e}") from e
        if said.returncode != 0:
            raise ToolchainError(f"the C++ compiler {' '.join(words)} fails: {said.stderr.strip()[:500]}")
        return Toolchain(words, said.stdout.splitlines()[0] if said.stdout else "unknown")
    raise ToolchainError(f"CXX={cxx!r} is not a program; {MISSING}" if cxx.strip() else MISSING)


def build(tool: Toolchain, source: Path, output: Path, flags: tuple[str, ...], include: Path) -> None:
    """Compiles `source` into the shared library `output`.

    Raises ToolchainError with the compiler's own words, or after config.compile_timeout_s.
    """
    command = [*tool.command, *flags, f"-I{include}", str(source), "-o", str(output)]
    limit = config.compile_timeout_s
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as e:
        raise ToolchainError(
            f"the C++ compiler took more than {limit:g} s (MINICOMPILE_COMPILE_TIMEOUT_S)"
        ) from e
    except OSError as e:
        raise ToolchainError(f"the C++ compiler {tool.command[0]} does not run: {e}") from e
    if done.returncode != 0:
        raise ToolchainError(f"the C++ compiler failed:\n{shlex.join(command)}\n{done.stderr.strip()[:4000]}")
