"""The fuzzer: programs of fixed seeds and the corpus of what it found agree with eager mode; planted faults
are found, named and shrunk."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minicompile.testing import fuzz, ladder, observe, programs

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
    stages = Counter(stage for _, _, stage in report.pairs)
    assert all(stages[s] > 3 for s in ("aten", "prims", "loops", "plan", "cpp")), report.coverage()


def test_programs_have_python_around_their_tensors() -> None:
    made = [programs.generate(s) for s in range(2, 600, 3)]
    text = "\n".join(map(str, made))
    for word in ("for ", "while ", "try:", "match ", "nonlocal", "BOX.", "SHARED[", "with torch", "lambda", "def change"):
        assert word in text, word
    assert all(p.prelude for p in made) and not programs.generate(0).prelude


def test_torch_s_stages_run_in_place_of_ours() -> None:
    for engine in ("dynamo+minicompile", "minicompile+aot_eager", "triton"):
        assert fuzz.judge(PROGRAM, engine) is None


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
    "a value": (lambda out: [out[0] + 1, *out[1:]], "value", "result[0]"),
    "a stride": (lambda out: [*out[:-1], out[-1].contiguous()], "stride", "result[3]"),
    "a dtype": (lambda out: [out[0].double(), *out[1:]], "dtype", "result[0]"),
    "a random draw": (lambda out: [torch.rand(1) * 0 + out[0], *out[1:]], "random", ""),
    "an alias": (lambda out: [*out[:2], out[2].clone(), out[3]], "alias", "result[2]"),
    "an identity": (lambda out: [*out[:3], out[2]], "identity", "result[3]"),
    "a container": (lambda out: [*out, 1], "type", "result"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_shrunk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    damage, kind, path = FAULTS[name]
    make = ladder.ENGINES["loops"][1]

    def wrong(fn):
        compiled = make(fn)

        def damaged(*args):
            out = compiled(*args)
            return tuple(damage(list(out)) if len(out) > 1 or name == "a value" else out)
        damaged.__minicompile__ = compiled.__minicompile__
        return damaged
    monkeypatch.setitem(ladder.ENGINES, "loops", ("wrong", wrong))
    program = replace(PROGRAM, grad="", returns=("a3", "a2", "a0", "x0 * 1"))
    found = fuzz.judge(program)
    assert (found.kind, found.path) == (kind, path), found
    if name == "a value":
        small = fuzz.shrink(fuzz.Failure(program, found, engine="loops"))
        assert len(small.program.statements) < len(program.statements) and small.difference.kind == kind
        step = ladder.walk(small.program.session, "reference")
        assert step.stage == "loops" and step.agreed == ("capture", "aten", "prims")
    assert fuzz.judge(program, "capture") is None


def test_a_lost_write_and_lost_state_are_found() -> None:
    box = [1]

    def session() -> observe.Session:
        x, state = torch.ones(2), [*box]
        return observe.Session(lambda t: state.append(t.add_(1).shape[0]),
                               lambda call: observe.Arguments([x], state={"S": state}), 1)
    eager = ladder.runs(session, "eager")
    for lost, path in ((lambda fn: lambda t: fn(t.clone()), "args[0]"), (lambda fn: lambda t: t.add_(1).sum() and None, "S")):
        found = ladder.runs(session, "broken", lost).differs(eager)
        assert found and found[0].path == path, found


def test_scripts_run_alone_and_load_again(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text(str(fuzz.Failure(PROGRAM, observe.Difference(0, "result", "value", "differs"), 3, "loops")))
    loaded = fuzz.load(path)
    assert loaded.sizes == PROGRAM.sizes and loaded.grad == "leaf" and fuzz.judge(loaded) is None


def test_failures_of_one_stage_operator_and_dtype_are_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make = ladder.ENGINES["loops"][1]

    def wrong(fn):
        compiled = make(fn)
        return lambda *args: tuple(x + 1 for x in compiled(*args))
    monkeypatch.setitem(ladder.ENGINES, "loops", ("wrong", wrong))
    monkeypatch.setattr(fuzz, "program_of", lambda seed: replace(PROGRAM, grad="", backend="loops"))
    report = fuzz.fuzz(range(3), out=tmp_path, tell=lambda text: None)
    assert report.programs == 3 and len(report.failures) == 1 and report.failures[0].stage == "loops"
    assert report.table().row_count == 1 and len(list(tmp_path.glob("seed*.py"))) == 1
