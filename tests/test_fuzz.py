"""The fuzzer: programs of fixed seeds and the corpus of what it found agree with eager mode; planted faults
are found, named and shrunk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minicompile import api
from minicompile.testing import fuzz, programs

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.py"))
PROGRAM = programs.Program(
    ("tensor(1, (m, n), torch.float32, 'transposed')", "tensor(2, (n,), torch.int64)"),
    ("a0 = x0 + 1", "a1 = x1.cumsum(0)", "a2 = a0[1:]", "a2.mul_(2)", "a3 = a0.sum(0) + a1"),
    ("a3", "a2"),
    ((3, 5, 2), (7, 5, 2)),
    "leaf",
)


@pytest.mark.parametrize("path", CORPUS, ids=[p.stem for p in CORPUS])
def test_corpus(path: Path) -> None:
    assert fuzz.replay(path) == ""


@pytest.mark.parametrize("first", [300_000, 300_100, 300_200])
def test_fixed_seeds(first: int) -> None:
    report = fuzz.fuzz(range(first, first + 12), tell=lambda text: None)
    assert report.programs == 12 and not report.failures, str(report)


def test_seeds_give_the_same_program_always_and_different_ones() -> None:
    texts = [str(programs.generate(s)) for s in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize("layout", programs.LAYOUTS)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 1, 4)])
def test_layouts_give_what_was_asked_for(layout: str, shape: tuple[int, ...]) -> None:
    for name in ("float16", "uint8", "bool"):
        t = programs.tensor(3, shape, getattr(torch, name), layout)
        assert (t.shape, t.dtype) == (torch.Size(shape), getattr(torch, name))
        assert torch.equal(t, programs.tensor(3, shape, getattr(torch, name), layout))


FAULTS = {
    "a value": (lambda out: [out[0] + 1, *out[1:]], "result 0 differs"),
    "a stride": (lambda out: [*out[:-1], out[-1].contiguous() + 0], "result 1 is"),
    "a dtype": (lambda out: [out[0].double(), *out[1:]], "result 0 is float64"),
    "a random draw": (lambda out: [torch.rand(1) * 0 + out[0], *out[1:]], "random state"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_shrunk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    damage, reason = FAULTS[name]

    def compile_wrongly(fn, **settings):
        compiled = api.compile(fn, **settings)

        def wrong(*args):
            out = list(compiled(*args))
            return tuple(damage(out) if len(out) > 1 or name != "a stride" else out)

        wrong.__minicompile__ = compiled.__minicompile__
        return wrong

    monkeypatch.setattr(fuzz, "api", type("Api", (), {**vars(api), "compile": staticmethod(compile_wrongly)}))
    program = replace(PROGRAM, grad="") if name == "a stride" else PROGRAM
    found = fuzz.Failure(program, fuzz.judge(program))
    assert found.reason.startswith(reason)
    if name == "a value":
        small = fuzz.shrink(found)
        assert len(small.program.statements) < len(program.statements) and small.kind == found.kind


def test_a_lost_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    program = replace(PROGRAM, statements=("x0.add_(1)",), returns=("x0.sum()",), grad="")
    assert fuzz.judge(program) == ""
    real = fuzz.session

    def without_write(fn, program, make, **more):
        done = real(fn, program, make, **more)
        if api.handle_of(fn):
            done[0].values[1] = done[0].values[1] - 1
        return done

    monkeypatch.setattr(fuzz, "session", without_write)
    assert fuzz.judge(program).startswith("input 0 differs")


def test_scripts_run_alone_and_load_again(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text(str(fuzz.Failure(PROGRAM, "reason", 3, "stage")))
    loaded = fuzz.load(path)
    assert loaded.sizes == PROGRAM.sizes and loaded.grad == "leaf" and fuzz.judge(loaded) == ""
