"""Hash-consing: one object per key, for as long as anybody holds it.

Takes nothing; `sym` and `loops.val` make their expressions through it, so that equal means identical.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary


def interner() -> Callable[[tuple, Callable[[], Any]], Any]:
    """A function (key, make) -> the one object with this key, made where there is none. Keys hold ids of
    sub-objects, which the object keeps alive. Safe to call from several threads."""
    objects: WeakValueDictionary[tuple, Any] = WeakValueDictionary()
    lock = Lock()

    def intern(key: tuple, make: Callable[[], Any]) -> Any:
        found = objects.get(key)
        if found is None:
            with lock:
                found = objects.get(key)
                if found is None:
                    objects[key] = found = make()
        return found

    return intern
