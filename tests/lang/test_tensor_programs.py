"""Each small program with tensors does the same by CPython, by the interpreter in plain mode, and captured: results, changes to its
state, what it prints, and exceptions, in two calls, the second on a state that differs."""

import collections
import contextlib
import io
import os
import sys
import warnings

import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))
from tensor_programs import PROGRAMS, State

from minicompile.capture.compiled import Compiled
from minicompile.capture.interp import World

# Programs that break or are refused today, with the codes. All of them behave as in eager mode.
REFUSED = {
    "total_ordering": ["descriptor"],
    "redirected_print": ["external-iterator", "impure-call", "module-write"],
    "named_tuple": ["frame-access"],
    "no_grad_inside": ["tensor-attribute"],         # an input is given requires_grad
    "typing_at_run_time": ["frame-access"],
    "optional_type": ["frame-access"],
    "copying_tensors": ["external-iterator", "no-meta"],
    "printed_tensor": ["data-dependent"],
    "evaluated_in_state": ["guard"],
}
if sys.version_info >= (3, 12):
    del REFUSED["named_tuple"]
    REFUSED["grad_decorator"] = ["hidden-state"]  # functools.wraps copies __type_params__
if sys.version_info >= (3, 13):                   # typing asks no frame any more
    del REFUSED["typing_at_run_time"], REFUSED["optional_type"]


def shown(value):
    """A value as comparable text: tensors by dtype and numbers, containers by their parts."""
    if isinstance(value, torch.Tensor):
        return f"tensor({value.dtype}, {value.requires_grad}, {value.detach().tolist()})"
    if isinstance(value, dict):
        inner = ", ".join(f"{shown(k)}: {shown(v)}" for k, v in value.items())
        return f"{type(value).__name__}({inner})"
    if isinstance(value, (list, tuple, collections.deque)):
        return f"{type(value).__name__}({', '.join(map(shown, value))})"
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}({sorted(map(shown, value))})"
    if hasattr(value, "__dict__") and type(value).__module__ == "tensor_programs":
        return f"{type(value).__name__}({shown(vars(value))})"
    return getattr(value, "__qualname__", None) or repr(value)


def outcome(f, x, state):
    """What a call gave or raised, printed and warned, and what its state is then."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            result = "gave " + shown(f(x, state))
        except Exception as e:
            result = f"raised {type(e).__name__}: {e}"
    mine = [str(w.message) for w in warned]
    return result, out.getvalue(), mine, shown(state), shown(x)


def calls(f):
    """Three calls: two alike, one on another state and another tensor."""
    other = State()
    other.items.append(7)
    other.table["a"] = 1.5
    other.count, other.text = 2, "other"
    x = torch.arange(6.0).reshape(2, 3)
    return [outcome(f, x.clone(), State()), outcome(f, x.clone(), State()), outcome(f, x + 1.5, other)]


def refusals(compiled, events):
    found = (p if kind == "refusal" else p.refusal for kind, p in events if kind in ("refusal", "break"))
    return sorted({r.code for r in found})


@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
def test_plain(f):
    assert calls(lambda *args: World().run_function(f, args, None)) == calls(f)


@pytest.mark.parametrize("f", PROGRAMS, ids=lambda f: f.__name__)
def test_captured(f):
    expected, events = calls(f), []

    def checked(capture, examples):
        capture.check()
        return capture.gm

    compiled = Compiled(f, checked, on_event=lambda kind, payload: events.append((kind, payload)))
    assert calls(compiled) == expected
    if not any(e[0].startswith("raised") for e in expected):
        assert refusals(compiled, events) == REFUSED.get(f.__name__, [])
