"""Builds the C extensions; everything else about the package is in pyproject.toml."""
import glob
import os

from setuptools import Extension, setup

CAPTURE = "minicompile/capture"
FLAGS = ["-O2", "-std=c11", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]

setup(
    ext_modules=[
        Extension(
            "minicompile._native",
            sources=[f"{CAPTURE}/{name}.c" for name in ("_hook", "_function", "_guards", "_guardbuild", "_tensor")],
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
