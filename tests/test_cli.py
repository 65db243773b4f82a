"""The command line: most commands in this process, and a few as a user runs them."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import minicompile
from minicompile import cli
from minicompile.config import config

ROOT = Path(__file__).resolve().parent.parent

USER_FILE = '''
import torch

def good(x, y):
    return torch.softmax(x * y, -1)

def decides(x):
    z = x * 2
    if open("/dev/null").read() == "":
        return z
    return -z
'''

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """One command in this process: its status, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: str) -> tuple[int, str, str]:
        minicompile.reset()
        status = cli.main(args)
        out = capsys.readouterr()
        return status, out.out, out.err
    return call


def process(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "minicompile", *args], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **env})


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(USER_FILE)
    return file


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and all(word in out for word in ("demo", "explain", "cache", "doctor"))


def test_version() -> None:
    assert process("--version").stdout.strip() == minicompile.__version__


def test_doctor_shows_findings_and_settings() -> None:
    done = process("doctor", MINICOMPILE_NUMERICS="fast")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"numerics\s*│ 'fast'\s*│ MINICOMPILE_NUMERICS", done.stdout)
    assert all(word in done.stdout for word in ("C++ compiler", "frame hook", "vector units", "compile_timeout_s"))


def test_doctor_says_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    status, out, _ = run("doctor")
    assert status == 1 and "MISSING" in out and "no-such-compiler" in out


def test_a_bad_setting_is_named() -> None:
    done = process("doctor", MINICOMPILE_ISA="mmx")
    assert done.returncode != 0
    assert "isa" in done.stderr and "'avx2'" in done.stderr


def test_explain_shows_graph_guards_and_kernels(run: Run, user_file: Path) -> None:
    status, out, err = run("explain", f"{user_file}:good", "torch.randn(4, 8)", "torch.randn(8)")
    assert status == 0, out + err
    assert "graphs 1, breaks 0, torch calls 2, kernels emitted 1, library calls 0" in out
    assert re.search(r"^guards of graph 0\n(    .*\n)*    x: .*float32\[4, 8\]", out, re.M)
    assert re.search(r"^kernels\n    \w+", out, re.M)


def test_explain_shows_one_stage_and_what_was_measured(run: Run, user_file: Path) -> None:
    given = (f"{user_file}:good", "torch.randn(4, 8)", "torch.randn(8)")
    _, out, _ = run("explain", *given, "--stage", "prims")
    assert "prims.amax(" in out and "guards of" not in out
    _, out, _ = run("explain", *given, "--profile", "--errors")
    assert "of the memory roof" in out and re.search(r"^error against float64, graph 0\n    mul ", out, re.M)


def test_explain_shows_a_refusal_with_the_line_and_a_caret(run: Run, user_file: Path) -> None:
    status, out, err = run("explain", f"{user_file}:decides", "torch.randn(4, 8)")
    assert status == 0, out + err
    assert "[impure-call]" in out and "in eager mode: ~" in out and "hint: " in out
    assert f"{user_file}:9" in out
    assert re.search(r'if open\("/dev/null"\)\.read\(\) == "":\n\s+\^+', out)


@pytest.mark.parametrize("target, says", [("nofile.py:f", "no file"), ("f", "is not FILE.py:NAME"),
                                          ("no_module_here:f", "no module"), ("math:nothing", "has no 'nothing'")])
def test_explain_names_a_bad_target(run: Run, target: str, says: str) -> None:
    status, _, err = run("explain", target)
    assert status == 2 and says in err and "Traceback" not in err


def test_stages_are_dumped(run: Run, user_file: Path, tmp_path: Path) -> None:
    with config.patch(dump=str(tmp_path / "out")):
        assert run("explain", f"{user_file}:good", "torch.randn(4, 8)", "torch.randn(8)")[0] == 0
    files = sorted(f.name for f in (tmp_path / "out").rglob("*.*"))
    assert files == ["0_capture.py", "1_aten.py", "2_prims.py", "3_loops.txt", "4_plan.txt", "5_source.cpp"]


def test_stages_of_training_are_dumped(tmp_path: Path) -> None:
    import torch
    model = minicompile.compile(torch.nn.Linear(4, 3))
    with config.patch(dump=str(tmp_path), check=True):
        model(torch.randn(2, 4)).sum().backward()
    files = {f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*.*")}
    assert {"Linear_0/1_joint.py", "Linear_0/2_split.txt", "Linear_0/5_source.cpp",
            "Linear_0_backward/5_source.cpp"} <= files


@pytest.mark.parametrize("stage", ["capture", "aten", "prims", "loops", "plan"])
def test_stop_runs_the_stage_by_its_reference(stage: str) -> None:
    import torch

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x.sin(), -1) @ x.T

    compiled, x = minicompile.compile(f), torch.randn(5, 7)
    with config.patch(stop=stage), torch.no_grad():
        got = compiled(x)
    assert torch.allclose(got, f(x), atol=1e-6)
    done = compiled.__minicompile__.compilations[0]
    assert done.runs == stage and done.executable is None


def test_log_topics_go_to_stderr(run: Run, user_file: Path) -> None:
    with config.patch(log="breaks"):
        _, _, err = run("explain", f"{user_file}:decides", "torch.randn(4)")
    assert re.search(r"\[minicompile\.breaks\] .*impure-call", err)
    assert "[minicompile.graphs]" not in err


def test_cache_counts_and_clears(run: Run, user_file: Path, tmp_path: Path) -> None:
    with config.patch(cache_dir=str(tmp_path / "cache")):
        assert run("explain", f"{user_file}:good", "torch.randn(4, 8)", "torch.randn(8)")[0] == 0
        assert "1 compiled graphs" in run("cache")[1]
        assert run("cache", "verify")[:2] == (0, run("cache", "info")[1].strip() + "; 0 bad\n")
        entry = next((tmp_path / "cache").glob("*.so"))
        entry.write_bytes(entry.read_bytes()[:-1])
        status, out, _ = run("cache", "verify")
        assert status == 1 and "cut short" in out and "1 bad" in out
        assert "1 compiled graphs removed" in run("cache", "clear")[1]
        assert "0 compiled graphs" in run("cache")[1]
    with config.patch(cache_size_mb=0):
        assert run("cache")[0] == 1


def test_demo(tmp_path: Path) -> None:
    done = process("demo", "--rounds", "2", "--epochs", "2", "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"graphs\s*│\s*│\s*1 │", done.stdout) and re.search(r"graph breaks\s*│\s*│\s*0 │", done.stdout)
    assert "the same from all" in done.stdout
    difference = float(re.search(r"largest difference\s*│\s*\S+ │\s*(\S+) │", done.stdout)[1])
    assert difference < 1e-5
    apart = float(re.search(r"largest difference, first 50 losses\s*│\s*│\s*(\S+) │", done.stdout)[1])
    assert apart < 1e-4 and "LOSSES DIFFER" not in done.stdout
    assert (tmp_path / "out" / "graph0" / "5_source.cpp").stat().st_size > 1000
    assert (tmp_path / "out" / "explanation.txt").exists()
