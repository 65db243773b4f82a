"""The kernel library: matrix product, convolution and attention, built once per instruction set.

Takes an instruction set, gives the functions' addresses for `codegen.driver`; knows nothing of plans.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

log = logging.getLogger("minicompile.code")


class Library(ctypes.Structure):
    """The functions of the kernel library, as in kernels/cpp/abi.h."""

    _fields_ = [("gemm", ctypes.c_void_p), ("conv2d", ctypes.c_void_p), ("attention", ctypes.c_void_p)]


_loaded: list[ctypes.CDLL] = []  # keeps the libraries that graphs point into


@functools.lru_cache(maxsize=4)
def kernel_library(isa: str) -> Library | None:
    """The prebuilt kernels for an instruction set; None where they were not built, and plans must then be
    scheduled without cores."""
    for path in sorted(Path(__file__).resolve().parent.parent.glob(f"_kernels_{isa}.*")):
        try:
            loaded = ctypes.CDLL(str(path))
            names = ("mc_gemm", "mc_conv2d", "mc_attention")
            found = Library(*(ctypes.cast(getattr(loaded, n), ctypes.c_void_p).value for n in names))
        except (OSError, AttributeError) as e:
            log.warning("the kernel library %s is not usable: %s", path, e)
            continue
        _loaded.append(loaded)
        return found
    return None
