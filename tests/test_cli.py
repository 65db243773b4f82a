"""The command line, run as a user runs it."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

USER_FILE = '''
import torch

def good(x, y):
    return torch.softmax(x * y, -1)

def decides(x):
    z = x * 2
    if z.sum() > 0:
        return z
    return -z
'''


def cli(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    import os
    return subprocess.run([sys.executable, "-m", "minicompile", *args], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **env})


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(USER_FILE)
    return file


def test_help_lists_every_command() -> None:
    done = cli("--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("demo", "explain", "cache", "doctor"))


def test_version() -> None:
    import minicompile
    assert cli("--version").stdout.strip() == minicompile.__version__


def test_doctor_shows_findings_and_settings() -> None:
    done = cli("doctor", MINICOMPILE_NUMERICS="fast")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"numerics\s*│ 'fast'\s*│ MINICOMPILE_NUMERICS", done.stdout)
    assert all(word in done.stdout for word in ("C++ compiler", "frame hook", "vector units", "compile_timeout_s"))


def test_doctor_says_what_is_missing() -> None:
    done = cli("doctor", CXX="no-such-compiler")
    assert done.returncode == 1
    assert "MISSING" in done.stdout and "no-such-compiler" in done.stdout


def test_a_bad_setting_is_named() -> None:
    done = cli("doctor", MINICOMPILE_ISA="mmx")
    assert done.returncode != 0
    assert "isa" in done.stderr and "'avx2'" in done.stderr


def test_explain_shows_graph_guards_and_kernels(user_file: Path) -> None:
    done = cli("explain", f"{user_file}:good", "torch.randn(4, 8)", "torch.randn(8)")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "graphs 1, breaks 0, torch calls 2" in done.stdout
    assert re.search(r"^guards of graph 0\n    .*x", done.stdout, re.M)
    assert re.search(r"^kernels\n    \w+", done.stdout, re.M)


def test_explain_shows_a_refusal_with_the_line_and_a_caret(user_file: Path) -> None:
    done = cli("explain", f"{user_file}:decides", "torch.randn(4, 8)")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "[data-dependent]" in done.stdout
    assert f"{user_file}:9" in done.stdout
    assert re.search(r"if z\.sum\(\) > 0:\n\s+\^+", done.stdout)


@pytest.mark.parametrize("target, says", [("nofile.py:f", "no file"), ("f", "is not FILE.py:NAME"),
                                          ("no_module_here:f", "no module"), ("math:nothing", "has no 'nothing'")])
def test_explain_names_a_bad_target(target: str, says: str) -> None:
    done = cli("explain", target)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr


def test_stages_are_dumped(user_file: Path, tmp_path: Path) -> None:
    done = cli("explain", f"{user_file}:good", "torch.randn(4, 8)", "torch.randn(8)", MINICOMPILE_DUMP=str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    files = sorted(f.name for f in (tmp_path / "out").rglob("*.*"))
    assert files == ["0_capture.py", "1_aten.py", "2_prims.py", "3_loops.txt", "4_plan.txt", "5_source.cpp"]


def test_log_topics_go_to_stderr(user_file: Path) -> None:
    done = cli("explain", f"{user_file}:decides", "torch.randn(4)", MINICOMPILE_LOG="breaks")
    assert re.search(r"\[minicompile\.breaks\] .*data-dependent", done.stderr)
    assert "[minicompile.graphs]" not in done.stderr


def test_cache_counts_and_clears(user_file: Path, tmp_path: Path) -> None:
    env = {"MINICOMPILE_CACHE_DIR": str(tmp_path / "cache")}
    assert cli("explain", f"{user_file}:good", "torch.randn(4, 8)", "torch.randn(8)", **env).returncode == 0
    assert "1 compiled graphs" in cli("cache", **env).stdout
    assert "0 compiled graphs" in cli("cache", "--clear", **env).stdout
    assert "0 compiled graphs" in cli("cache", **env).stdout


def test_demo(tmp_path: Path) -> None:
    done = cli("demo", "--rounds", "2", "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"graphs\s*│\s*│\s*1 │", done.stdout) and re.search(r"graph breaks\s*│\s*│\s*0 │", done.stdout)
    assert "the same from all" in done.stdout
    difference = float(re.search(r"largest difference\s*│\s*\S+ │\s*(\S+) │", done.stdout)[1])
    assert difference < 1e-5
    assert (tmp_path / "out" / "graph0" / "5_source.cpp").stat().st_size > 1000
    assert (tmp_path / "out" / "explanation.txt").exists()
