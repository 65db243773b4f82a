"""Builds the C extensions; everything else about the package is in pyproject.toml."""
import compileall
import glob
import os
import platform
from py_compile import PycInvalidationMode

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CAPTURE = "minicompile/capture"
FLAGS = ["-O2", "-std=c11", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
NATIVE = ("_hook", "_function", "_guards", "_guardbuild", "_tape", "_tensor")

# The kernel library, once per instruction set: shared libraries that generated code calls, no Python modules.
MACHINES = {"x86_64": {"avx512": ["-march=x86-64-v4"], "avx2": ["-march=x86-64-v3"], "scalar": []}}
KERNEL_FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fwrapv",
                "-fno-strict-aliasing", "-fopenmp", "-fno-exceptions", "-fno-rtti", "-Wno-psabi",
                "-fvisibility=hidden"]
KERNELS = [
    Extension(
        f"minicompile._kernels_{isa}",
        sources=["kernels/cpp/library.cpp"],
        depends=sorted(glob.glob("kernels/cpp/*.h")),
        include_dirs=["kernels/cpp"],
        extra_compile_args=KERNEL_FLAGS + march,
        extra_link_args=["-fopenmp"],
        language="c++",
    )
    for isa, march in MACHINES.get(platform.machine(), {"scalar": []}).items()
]

class BuildInPlace(build_ext):
    """Compiles the Python files of an installation that stays in the repository, too, as pip does with
    others: at every start it would take 0.2 s, where Python may not keep what it compiled."""

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for folder in ("minicompile", "kernels"):
            compileall.compile_dir(folder, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


setup(
    cmdclass={"build_ext": BuildInPlace},
    ext_modules=[
        *KERNELS,
        Extension(
            "minicompile._native",
            sources=[f"{CAPTURE}/{name}.c" for name in NATIVE],
            depends=sorted(glob.glob(os.path.join(CAPTURE, "*.h"))),
            extra_compile_args=FLAGS,
            libraries=["dl"],
        ),
        Extension(
            "minicompile._launch",
            sources=["minicompile/runtime/_launch.c", "minicompile/runtime/_externs.c"],
            depends=["minicompile/runtime/_launch.h"],
            extra_compile_args=FLAGS,
            libraries=["dl"],
        ),
    ]
)
