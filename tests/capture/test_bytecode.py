"""The normaliser on a few thousand code objects of the standard library."""

import argparse
import collections
import contextlib
import dataclasses
import dis
import inspect
import typing
from types import CodeType

import pytest

from minicompile.capture.bytecode import normalise
from minicompile.capture.interp import HANDLERS

JUMPS = ("JUMP", "FOR_ITER", "SEND") + tuple(
    f"POP_JUMP_IF_{k}" for k in ("TRUE", "FALSE", "NONE", "NOT_NONE")
)


def codes(code):
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from codes(const)


@pytest.mark.parametrize("module", [argparse, collections, contextlib, dataclasses, inspect, typing, dis])
def test_every_code_object(module):
    with open(module.__file__) as source:
        root = compile(source.read(), module.__file__, "exec")
    for raw in codes(root):
        code = normalise(raw)
        assert len(code.ops) == len(code.offsets) == len(code.handlers)
        assert tuple(raw._varname_from_oparg(i) for i in range(len(code.locals))) == code.locals
        for op, arg in code.ops:
            assert op in HANDLERS
            if op in JUMPS:
                target = arg[0] if op == "SEND" else arg
                assert 0 <= target < len(code.ops)
            if op == "UNSUPPORTED":
                assert raw.co_flags & 0x280, "only coroutines have instructions without a rule"
        for h in code.handlers:
            assert h is None or 0 <= h.target < len(code.ops)


def test_the_dialect_is_small():
    assert len(HANDLERS) <= 100


def test_positions():
    def f(x):
        y = x + 1
        return y.attribute

    code = normalise(f.__code__)
    index = next(i for i, (op, arg) in enumerate(code.ops) if op == "LOAD_ATTR")
    first = f.__code__.co_firstlineno
    assert code.line(index) == first + 2
    line, _, start, end = code.position(index)
    assert line == first + 2 and end - start == len("y.attribute")


def test_it_prints():
    text = str(normalise(test_positions.__code__))
    assert "LOAD_CONST" in text and text.startswith("test_positions(")
