"""What benchmarks/reliability/inputs.py tries at length (F4, F5, F26), in part: writes through views, errors, odd inputs. And
that its judge sees a difference."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

import minicompile

HERE = Path(__file__).resolve().parents[2] / "benchmarks" / "reliability"


@pytest.fixture(scope="module")
def inputs(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    sys.path.insert(0, str(HERE))
    request.addfinalizer(lambda: sys.path.remove(str(HERE)))
    return importlib.import_module("inputs")


@pytest.mark.parametrize("what, first, step", [("effects", 0, 9), ("errors", 2, 7), ("bad", 0, 17)])
def test_a_part(inputs, what: str, first: int, step: int, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    cases = [c for c in inputs.FIGURES[what][1]() if not c.name.startswith(inputs.LENIENT)][first::step]
    found = inputs.report(what, cases, "minicompile", "reference")
    assert found == 0 and len(cases) > 20, capsys.readouterr().out


@pytest.mark.parametrize("op", ["one_hot", "softmax", "embedding", "scatter"])
def test_what_torch_does_not_check_on_fakes(inputs, op: str) -> None:  # type: ignore[no-untyped-def]
    cases = [c for c in inputs.errors() if op in c.name]
    assert cases and inputs.report(op, cases, "minicompile", "reference") == 0


@pytest.mark.parametrize("wrong, says", [
    (lambda x: x.add_(2), "other values"), (lambda x: x + 1, "first call"), (lambda x: x.t().contiguous().t().add_(1), "first call"),
    (lambda x: {}[1], "raises KeyError")])
def test_the_judge_sees(inputs, wrong, says: str) -> None:  # type: ignore[no-untyped-def]
    case = inputs.Case("", "", lambda: (torch.ones(2, 3),), lambda x: x.add_(1))
    common = importlib.import_module("common")
    assert common.judge(case, lambda f: f) == ""
    assert says in common.judge(case, lambda f: wrong)


def test_a_crash_is_a_line(inputs) -> None:  # type: ignore[no-untyped-def]
    import os
    common = importlib.import_module("common")
    said = dict(common.in_processes([1, 2, 3], lambda i: os.kill(os.getpid(), 11) if i == 2 else "fine"))
    assert said == {1: "fine", 2: "CRASH: SIGSEGV", 3: "fine"}


@pytest.mark.parametrize("given", ["plain", "leaf", "not a leaf"])
@pytest.mark.parametrize("change", ["requires_grad_", "requires_grad_(False)", "detach_", "retain_grad"])
@pytest.mark.parametrize("used", [False, True])
def test_what_autograd_knows_of_an_input(given: str, change: str, used: bool) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        if change == "requires_grad_(False)":
            x.requires_grad_(False)
        else:
            getattr(x, change)()
        return x * 2 if used else torch.ones(3)

    def outcome(call) -> tuple:  # type: ignore[no-untyped-def]
        x = torch.ones(3)
        if given != "plain":
            x.requires_grad_()
        x = x * 2 if given == "not a leaf" else x
        try:
            y, error = call(x), None
        except RuntimeError as e:
            y, error = x, str(e)
        return y.requires_grad, x.requires_grad, x.is_leaf, x.retains_grad, error
    want = outcome(f)
    compiled = minicompile.compile(f, backend="reference")
    assert outcome(compiled) == outcome(compiled) == want
