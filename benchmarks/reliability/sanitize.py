"""F6: every kernel under AddressSanitizer and UndefinedBehaviorSanitizer, parallel ones under ThreadSanitizer.

    python benchmarks/reliability/sanitize.py --tool address      # or: thread; --samples, --dtype, --seeds, --isa

A copy of the package gets a sanitized kernel library and a compiler that sanitizes what is emitted; in a process with the
sanitizer's runtime it runs PyTorch's operator database, programs of the fuzzer and some models, forward and backward.
Under "address" every temporary gets memory of its own, so that reading past one of them is seen as well. Under "thread"
every kernel is parallel, however small, four threads run it, and OpenMP is `gomp.cpp`'s. `--plant` breaks a header of the
copy, to see that the sanitizer notices. Prints what was run and the reports; status 1 if there is one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SANITIZE = {"address": ("-fsanitize=address,undefined", "-fsanitize-recover=address,undefined"),
            "thread": ("-fsanitize=thread",)}
RUNTIME = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
# header, what stands there, what goes there: faults for --plant
FAULTS = {"address": ("run.h", "begin = n * t / k, end = n * (t + 1) / k;", "begin = n * t / k, end = n * (t + 1) / k + 1;"),
          "thread": ("run.h", "begin = n * t / k, end = n * (t + 1) / k;", "begin = 0, end = n;")}


def prepared(folder: Path, tool: str, isa: str, plant: bool) -> dict[str, str]:
    """The environment of a process whose minicompile is the copy in `folder`."""
    ignored = shutil.ignore_patterns("_kernels_*", "__pycache__")
    shutil.copytree(ROOT / "minicompile", folder / "minicompile", ignore=ignored)
    shutil.copytree(ROOT / "kernels", folder / "kernels")
    if plant:
        name, right, wrong = FAULTS[tool]
        header = folder / "kernels" / "cpp" / name
        text = header.read_text()
        assert right in text
        header.write_text(text.replace(right, wrong))
    extra = [*SANITIZE[tool], "-g", "-O1", "-fno-omit-frame-pointer"]
    if tool == "thread":
        shim = folder / "gomp.o"
        subprocess.run(["g++", "-c", "-fPIC", *extra, str(HERE / "gomp.cpp"), "-o", str(shim)], check=True)
        extra.append(str(shim))
    compiler = folder / "cxx"
    compiler.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec g++ "$@" {" ".join(extra)}\n')
    compiler.chmod(0o755)
    code = ("from minicompile.runtime import toolchain as t; from pathlib import Path; import sys; "
            "from minicompile.config import config; config.compile_timeout_s = 900.0; "
            "t.build(t.find(), *map(Path, sys.argv[1:3]), t.flags_for(sys.argv[4]), Path(sys.argv[3]))")
    cpp = folder / "kernels" / "cpp"
    env = {k: v for k, v in os.environ.items() if not k.startswith("MINICOMPILE_")}
    env |= {"PYTHONPATH": str(folder), "CXX": str(compiler), "MINICOMPILE_CACHE_DIR": str(folder / "cache"),
            "MINICOMPILE_ISA": isa, "MINICOMPILE_COMPILE_TIMEOUT_S": "600",
            "MINICOMPILE_CONTEST": "0"}
    library = folder / "minicompile" / f"_kernels_{isa}.so"
    subprocess.run([sys.executable, "-c", code, str(cpp / "library.cpp"), str(library), str(cpp), isa], env=env, check=True)
    preload = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in RUNTIME[tool]]
    log = f"log_path={folder / 'report'}"
    env |= {"LD_PRELOAD": " ".join(preload), "UBSAN_OPTIONS": f"print_stacktrace=1:{log}",
            "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=0:detect_odr_violation=0:{log}",
            "TSAN_OPTIONS": f"die_after_fork=0:ignore_noninstrumented_modules=1:report_bugs=1:{log}"}
    return env


# ---- inside the sanitized process -----------------------------------------------------------------------

def inside(given: argparse.Namespace) -> None:
    import torch  # here: the outer process needs neither, and the inner one has the copy

    from minicompile.codegen import driver
    from minicompile.schedule import tiling
    from minicompile.testing import fuzz, opinfo
    threads = 4 if given.tool == "thread" else 2
    torch.set_num_threads(threads)
    torch.set_num_threads = lambda n: None
    tiling.FORK_NS = 0
    assert "sanitize" in str(Path(driver.__file__)), "the copy is not what runs"
    usual = driver._buffer
    if given.tool == "address":
        driver._buffer = lambda b, plan, *rest: ((driver.OUTPUT, 0, driver._geometry(b.spec))
                                                 if b.kind == "temp" and b.name in plan.arena
                                                 else usual(b, plan, *rest))
    print("programs:", fuzz.fuzz(range(4_000_000, 4_000_000 + 4 * given.seeds, 4)), flush=True)
    print("models:", models(), flush=True)
    for grad in ((False, True) if given.samples else ()):
        options = ["--backend", "cpp", "--samples", str(given.samples), "--quiet", "--seconds", "300"]
        options += [word for d in given.dtype for word in ("--dtype", d)] + ["--grad"] * grad
        options += [word for o in given.op for word in ("--op", o)]
        print("operators, gradients:" if grad else "operators:", end=" ", flush=True)
        opinfo.main(options)


def models() -> str:
    """Some models, forward and backward, in sizes that are no multiples of anything."""
    import torch
    from torch import nn

    import minicompile
    nets = {
        "mlp": (nn.Sequential(nn.Linear(37, 53), nn.GELU(), nn.LayerNorm(53), nn.Linear(53, 11)), (19, 37)),
        "convolutions": (nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(), nn.MaxPool2d(2),
                                       nn.Conv2d(7, 5, 3, 2), nn.AdaptiveAvgPool2d(3), nn.Flatten()), (3, 3, 21, 17)),
        "transformer": (nn.TransformerEncoderLayer(36, 3, 70, 0.0, batch_first=True), (2, 13, 36)),
        "embedding": (nn.Sequential(nn.Embedding(31, 19), nn.GroupNorm(1, 13), nn.Softmax(-1)), (5, 13)),
        "transposes": (Transposes(), (67, 71)),
    }
    done = 0
    for name, (net, shape) in nets.items():
        torch.manual_seed(0)
        x = torch.randint(0, 31, shape) if name == "embedding" else torch.randn(shape)
        compiled = minicompile.compile(net)
        for training in (False, True):
            with torch.set_grad_enabled(training):
                got, want = compiled(x), net(x)
                torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
                if training and got.requires_grad:
                    got.square().sum().backward()
                done += 1
    return f"{done} right"


def Transposes() -> object:
    from torch import nn

    class Net(nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            t = x.t().contiguous() * 2
            return t + t.flip(0).roll(3, 1), t.cumsum(0).t().contiguous().softmax(0)[:, :5].sum(0)
    net = Net()
    net.forward = lambda x, f=net.forward: sum(y.sum() for y in f(x))  # type: ignore[method-assign]
    return net


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tool", choices=list(SANITIZE), default="address")
    p.add_argument("--samples", type=int, default=1, help="of each operator and dtype; 0 leaves operators out")
    p.add_argument("--dtype", action="append", default=[], help="float32 and int64 by default")
    p.add_argument("--op", action="append", default=[], help="only these operators")
    p.add_argument("--seeds", type=int, default=40, help="programs of the fuzzer")
    p.add_argument("--isa", default="avx2")
    p.add_argument("--plant", action="store_true")
    p.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = p.parse_args()
    given.dtype = given.dtype or ["float32", "int64"]
    if given.inside:
        inside(given)
        return 0
    with tempfile.TemporaryDirectory(prefix="sanitize-") as name:
        env = prepared(Path(name), given.tool, given.isa, given.plant)
        words = [sys.executable, str(Path(__file__).resolve()), "--inside", *sys.argv[1:]]
        if given.tool == "thread":
            words = ["setarch", "-R", *words]     # its shadow memory has fixed places
        status = subprocess.run(words, env=env, cwd=name).returncode
        reports = sorted(Path(name).glob("report.*"))
        for report in reports[:5]:
            print(report.read_text()[:4000])
        print(f"{given.tool}, {given.isa}: status {status}, {len(reports)} reports")
        return 1 if status or reports else 0


if __name__ == "__main__":
    sys.exit(main())
