"""`minicompile.testing.check`: who is wrong, and the script that shows it; stages of torch's in place of ours."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minicompile.testing import Check, ladder, mutants, observe
from minicompile.testing.compare import units

ROOT = Path(__file__).resolve().parents[2]
quick = Check(torch_compile=False)


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls, self.seen = torch.nn.Linear(4, 3), 0, []

    def forward(self, x, scale=2.0):
        self.calls += 1
        self.seen.append(x.shape[0])
        y = self.layer(x) * scale
        return {"sum": y.relu().sum(0), "rows": y, "turned": y.t()}


def two(x, y):
    a = (x.sin() + 1).sum(0)
    b = torch.softmax(y - a, -1)
    return b.exp().t(), a


def arguments():
    g = torch.Generator().manual_seed(0)
    return torch.randn(5, 7, generator=g), torch.randn(6, 7, generator=g)


def fault(name: str) -> mutants.Mutant:
    return next(m for m in mutants.MUTANTS if m.name == name)


def test_nobody_is_wrong() -> None:
    module = Counting()
    verdict = quick(module, torch.randn(5, 4), scale=3.0)
    assert verdict.ok and verdict and verdict.script == "" and "nobody is wrong" in str(verdict), str(verdict)
    assert {m.path for m in verdict.errors} >= {"result['sum']", "gradient of leaf 0"}
    assert module.calls == 0 and module.seen == []          # a copy was called
    with pytest.raises(ValueError, match="nothing to reproduce"):
        verdict.write("nowhere")


def test_state_in_cells_and_globals_is_copied_too() -> None:
    total = [0]

    def fn(x):
        total[0] += 1
        return x * total[0]
    assert quick(fn, torch.ones(3)).ok and total == [0]


def test_inputs_that_share_memory_still_do() -> None:
    base = torch.randn(8)

    def fn(x, y):
        x.add_(1)
        return y * 2
    assert quick(fn, base[:4], base[2:6]).ok


@pytest.mark.parametrize("swap", ["loops", "triton", "minicompile+aot_eager", "dynamo+minicompile"])
def test_stages_can_be_swapped(swap: str) -> None:
    verdict = Check(torch_compile=False, swap=(swap,))(two, *arguments())
    assert verdict.ok and swap in verdict.engines, str(verdict)


def test_minicompile_is_wrong(tmp_path: Path) -> None:
    """The stage and the node are named, and the script is a few lines that show it alone."""
    with mutants.planted(fault("prims: swapped operands")):
        verdict = quick(two, *arguments())
    assert verdict.wrong == ("minicompile",), str(verdict)
    assert verdict.step.stage == "prims" and verdict.step.node.startswith("sub"), str(verdict)
    assert verdict.step.agreed == ("capture", "aten")
    body = verdict.script[verdict.script.index("def fn"):verdict.script.index("args =")]
    assert len(body.strip().splitlines()) == 3, verdict.script          # def, one operation, return
    path = verdict.write(tmp_path / "repro.py")
    done = subprocess.run([sys.executable, str(path)], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
                          capture_output=True, text=True)
    assert "nobody is wrong" in done.stdout, done.stderr          # there without the fault


def test_eager_mode_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of eager mode that is far off, where another engine gives what float64 gives."""
    def fn(x):
        return (x * 2).sum(0)

    def off(fn):
        return lambda x: fn(x) * (1 + 1e-3 * (x.dtype is torch.float32))
    right = ladder.ENGINES["eager"]
    monkeypatch.setitem(ladder.ENGINES, "eager", ("off", off))
    verdict = quick(fn, torch.rand(4, 3))
    assert verdict.wrong == ("eager",), str(verdict)
    monkeypatch.setitem(ladder.ENGINES, "eager", right)


def test_undecidable() -> None:
    """What follows from rounding is nobody's fault."""
    def fn(x):
        return torch.where(torch.softmax(x, -1).sum(-1) > 1, 1.0, 0.0)
    verdict = quick(fn, torch.randn(40, 33))
    assert verdict.ok, str(verdict)


def test_exceptions_are_compared() -> None:
    def fn(x):
        if x.shape[0] > 2:
            raise ValueError(f"{x.shape[0]} rows")
        return x
    assert quick(fn, torch.ones(3)).ok
    with pytest.raises(TypeError):
        Check(torch_compile=False)()


def test_units() -> None:
    x = torch.tensor([1.0, 2.0])
    assert units(x, x.double()) == 0
    assert units(torch.nextafter(x, x + 1), x.double()) == pytest.approx(1.0)
    assert units(torch.tensor([1]), torch.tensor([2])) == 0


def test_capture_is_blamed_for_guards() -> None:
    box = SimpleNamespace(n=2)

    def session():
        box.n = 2

        def prepare(call):
            box.n += 1
            return observe.Arguments([torch.ones(2)])
        return observe.Session(lambda x: x * box.n, prepare, 2)
    with mutants.planted(fault("guards: missing guard on a number or string")):
        step = ladder.walk(session, "reference", name_node=False)
    assert step.stage == "guards" and step.difference.call == 1
    assert ladder.walk(session, "reference") is None
