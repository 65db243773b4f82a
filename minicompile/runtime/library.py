"""Loaded libraries: those of graphs, unloaded with them, and the kernel library (matrix product, convolution
and attention), built once per instruction set.

Takes a file or an instruction set, gives functions' addresses for `codegen.driver`; knows nothing of plans.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger("minicompile.code")


class Library(ctypes.Structure):
    """The functions of the kernel library, as in kernels/cpp/abi.h."""

    _fields_ = [("gemm", ctypes.c_void_p), ("conv2d", ctypes.c_void_p), ("attention", ctypes.c_void_p)]


class GraphLibrary:
    """A graph's compiled code, mapped while this object lives. The graph must hold it.

    Raises OSError where the file is no library, AttributeError from `function` for a name it lacks.
    """

    def __init__(self, path: Path):
        self.path = str(path)
        self._library = ctypes.CDLL(self.path)

    def function(self, name: str) -> Any:
        """Not kept: a function of ctypes holds its library, and would keep it mapped."""
        return self._library[name]

    def address(self, name: str) -> int:
        return int(ctypes.cast(self._library[name], ctypes.c_void_p).value or 0)

    def __del__(self, close: Callable[[int], None] = _ctypes.dlclose,
                ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # while the interpreter ends, a thread may still run the code
        if hasattr(self, "_library") and not ending():
            close(self._library._handle)


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
