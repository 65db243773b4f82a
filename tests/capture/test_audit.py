"""Python functions that the interpreter calls on its own, while something is captured: audit and trace functions are no part
of the program. In processes of their own, as an audit hook stays for ever."""
from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
import minicompile

seen = []
level = 1

def watch(event, args):
    if level and event in ("builtins.id", "compile", "exec", "code.__new__", "sys._getframe", "import"):
        seen.append(event)

def helper(x, n):
    return x * len([id(x), n])

def f(x):
    return helper(x, level).sum() + eval("x.mean()", {"x": x})

SETUP
x = torch.randn(3, 4)
c = minicompile.compile(f)
for level in (1, 1, 2):
    torch.testing.assert_close(c(x), f(x))
told = minicompile.explain(f)(x)
assert told.graph_count == 1 and not told.break_reasons, str(told)
assert any("level" in str(g) for g in told.guards[0]) and not any("seen" in str(g) for g in told.guards[0])
"""
SETUPS = {"audit": "sys.addaudithook(watch)", "trace": "sys.settrace(lambda frame, event, arg: watch(event, arg))",
          "profile": "sys.setprofile(lambda frame, event, arg: watch(event, arg))"}


@pytest.mark.parametrize("kind", SETUPS)
def test_what_the_interpreter_calls_is_not_captured(kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.replace("SETUP", SETUPS[kind])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
