"""Runs programs.py by CPython and by the interpreter in plain mode; prints each difference.

Needs no torch: `python runner.py`."""

import os
import sys
import types

HERE = os.path.dirname(os.path.abspath(__file__))


def outcome(f):
    """What a program did: its result, or its exception, as comparable text."""
    try:
        return "returned " + repr(f())
    except Exception as e:
        return f"raised {type(e).__name__}: {e}"


def differences():
    root = types.ModuleType("minicompile")  # the package itself may want torch; these parts do not
    root.__path__ = [os.path.join(os.path.dirname(os.path.dirname(HERE)), "minicompile")]
    sys.modules.setdefault("minicompile", root)
    sys.path.insert(0, HERE)
    from programs import PROGRAMS

    from minicompile.capture.interp import World

    found = []
    for f in PROGRAMS:
        expected, got = outcome(f), outcome(lambda: World().run_function(f, (), None))
        if expected != got:
            found.append((f.__name__, expected, got))
    return len(PROGRAMS), found


if __name__ == "__main__":
    count, found = differences()
    for name, expected, got in found:
        print(f"{name}\n  CPython:     {expected}\n  interpreter: {got}")
    print(f"{sys.version.split()[0]}: {count - len(found)} of {count} agree")
    sys.exit(bool(found))
