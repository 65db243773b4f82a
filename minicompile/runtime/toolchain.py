"""The C++ compiler: finding it, choosing the instruction set, running it.

Takes C++ text and flags, gives a shared library file for `codegen.driver`; knows nothing of kernels or
torch.
"""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..config import config
from ..errors import ToolchainError

# -ffp-contract=off: a*b+c must round twice, as eager mode's two kernels do (fused multiply-adds in
# kernels/cpp are written out). -fno-math-errno, -fno-trapping-math: nobody reads errno or the floating
# point flags; values are unaffected. -fwrapv: integer arithmetic wraps, as eager's does.
COMMON = ("-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fwrapv",
          "-fno-strict-aliasing", "-fPIC", "-shared", "-fopenmp", "-fno-exceptions", "-fno-rtti",
          "-Wno-psabi", "-fno-plt", "-fvisibility=hidden")
MARCH = {"avx512": ("-march=x86-64-v4",), "avx2": ("-march=x86-64-v3",), "scalar": ()}
NEEDS = {"avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "fma", "bmi2"),
         "avx2": ("avx2", "fma", "f16c", "bmi2")}
MISSING = ("no C++ compiler was found: install g++ (Debian and Ubuntu: apt-get install g++) or clang++ with "
           "OpenMP, or set CXX to one")
HELP = ("check that it works (`g++ --version`), install g++ (Debian and Ubuntu: apt-get install g++), or set "
        "CXX to another compiler")
VERSION_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler: the command (words of CXX), and what tells its files from those of any other version.

    identity   path, size and time of change of each program in the command: a new version of the compiler
               has another one. It is read without running the compiler, which a warm start doesn't need
    """

    command: tuple[str, ...]
    identity: str

    @property
    def version(self) -> str:
        """The first line it says of itself. Raises ToolchainError where it does not answer."""
        return _version(self.command, self.identity)

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
    """The compiler named by CXX (which may hold options), else g++, else clang++; it is not run.

    Raises ToolchainError where there is none.
    """
    cxx = os.environ.get("CXX", "").strip()
    for command in [tuple(shlex.split(cxx))] if cxx else [("g++",), ("clang++",)]:
        program = shutil.which(command[0])
        if program is not None:
            return Toolchain((program, *command[1:]), _identity((program, *command[1:])))
    raise ToolchainError(f"CXX={cxx!r} is not a program; {MISSING}" if cxx else MISSING)


def _identity(command: Sequence[str]) -> str:
    """Of every word that names a program, so that "ccache g++" changes with g++."""
    found = []
    for program in filter(None, map(shutil.which, command)):
        real = os.path.realpath(program)
        info = os.stat(real)
        found.append(f"{real} {info.st_size} {info.st_mtime_ns}")
    return "; ".join(found)


@functools.lru_cache(maxsize=8)
def _version(command: tuple[str, ...], identity: str) -> str:
    ((code, out, err),) = _run([(*command, "--version")], VERSION_SECONDS)
    if code != 0:
        raise ToolchainError(f"the C++ compiler {shlex.join(command)} {_ending(code)}: {err[:500]}; {HELP}")
    return out.splitlines()[0] if out else "unknown"


def build(tool: Toolchain, sources: Sequence[Path], output: Path, flags: tuple[str, ...],
          include: Path) -> None:
    """Compiles `sources`, all at the same time, into the shared library `output`.

    Raises ToolchainError with the compiler's own words, or after config.compile_timeout_s.
    """
    def command(taken: Sequence[Path], made: Path, *more: str) -> tuple[str, ...]:
        return (*tool.command, *flags, f"-I{include}", *more, *map(str, taken), "-o", str(made))

    objects = [source.with_suffix(".o") for source in sources]
    linked = command(sources if len(sources) == 1 else objects, output)
    if len(sources) > 1:
        _compile([command([source], made, "-c") for source, made in zip(sources, objects)], output.parent)
    _compile([linked], output.parent)
    try:
        with output.open("rb") as file:
            is_library = file.read(4) == b"\x7fELF"
    except OSError:
        is_library = False
    if not is_library:
        raise ToolchainError(f"the C++ compiler wrote no shared library; {HELP}\n{shlex.join(linked)}")


def _compile(commands: Sequence[Sequence[str]], temporary: Path) -> None:
    """Runs commands of the compiler side by side; their own temporary files go into a folder of ours, which
    goes also when they are killed."""
    ended = _run(commands, config.compile_timeout_s, {**os.environ, "TMPDIR": str(temporary)})
    for command, (code, _, err) in zip(commands, ended):
        if code != 0:
            raise ToolchainError(f"the C++ compiler {_ending(code)}; {HELP}\n{shlex.join(command)}\n"
                                 f"{err[:4000]}")


def _ending(code: int) -> str:
    return f"failed with status {code}" if code > 0 else f"was killed by signal {-code}"


_running: set[tuple[int, int]] = set()  # (our process, compiler's process group): see _stop_all
_exiting = threading.Event()            # the interpreter is


def _run(commands: Sequence[Sequence[str]], limit: float,
         env: Mapping[str, str] | None = None) -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) of each of the commands, which run at the same time."""
    with ExitStack() as stack:
        children = [stack.enter_context(_started(command, env)) for command in commands]
        try:
            said = [child.communicate(timeout=limit) for child in children]
        except subprocess.TimeoutExpired as e:
            raise ToolchainError(f"the C++ compiler took more than {limit:g} s "
                                 f"(MINICOMPILE_COMPILE_TIMEOUT_S); {HELP}") from e
        return [(child.returncode, out.strip(), err.strip()) for child, (out, err) in zip(children, said)]


@contextmanager
def _started(command: Sequence[str], env: Mapping[str, str] | None) -> Iterator[subprocess.Popen]:
    """A command in a process group of its own, none of which outlives the block: a compiler has children,
    and Ctrl-C must raise one KeyboardInterrupt here, not end them one by one."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True, errors="replace",
                                 start_new_session=True, env=env)
    except OSError as e:
        raise ToolchainError(f"the C++ compiler {command[0]} does not run: {e}; {HELP}") from e
    entry = (os.getpid(), child.pid)
    _running.add(entry)
    try:
        yield child
    finally:
        if child.returncode != 0:
            _stop(child.pid)
            child.wait()
        _running.discard(entry)
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        if _exiting.is_set() and threading.current_thread().daemon:
            threading.Event().wait()    # for the end: torch must not be called while the interpreter goes


def _stop(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # ended already, which is what is wanted
        os.killpg(group, signal.SIGKILL)


@atexit.register
def _stop_all() -> None:
    """The interpreter ends while a thread compiles: its compiler ends too. A forked process leaves its
    parent's alone."""
    _exiting.set()
    for owner, group in list(_running):
        if owner == os.getpid():
            _stop(group)
