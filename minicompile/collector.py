"""The garbage collector, paused while many objects are made that stay: it would look through all of torch's.

Takes nothing; importing the compiler (70 ms of looking) and compiling (`capture.compiled`) happen inside.
"""
from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """No collection inside; afterwards as before."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
