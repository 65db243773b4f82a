"""The README's example prints what the README says it prints. `python tests/test_readme.py` brings it up to date."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minicompile.errors import CLASSES

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
EXAMPLE = re.compile(r"## An example\n\n```python\n(.*?)```\n\nprints\n\n```\n(.*?)```", re.S)


def run_example(folder: Path) -> str:
    """What the example prints, run as example.py in `folder`, without the folder's name."""
    found = EXAMPLE.search(README.read_text())
    assert found, "README.md has no example"
    file = folder / "example.py"
    file.write_text(found[1])
    done = subprocess.run([sys.executable, file.name], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(f"{folder}/", "")


def without_estimates(text: str) -> str:
    """Times depend on the machine's vector width."""
    return re.sub(r"~[\d.]+ us", "~ us", text)


def test_the_example_prints_what_it_says(tmp_path: Path) -> None:
    said = EXAMPLE.search(README.read_text())[2]
    assert without_estimates(run_example(tmp_path)) == without_estimates(said)


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.search(README.read_text())[1].splitlines()) <= 20


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_links_and_names_exist(page: str) -> None:
    import minicompile
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target
    for name in re.findall(r"minicompile\.(\w+)\(", text):
        assert hasattr(minicompile, name), name
    for name in re.findall(r"MINICOMPILE_([A-Z_]+)", text):
        assert hasattr(minicompile.config, name.lower()), name
    for command in re.findall(r"python -m minicompile (\w+)", text):
        from minicompile.cli import COMMANDS
        assert command in COMMANDS, command


def test_every_refusal_is_documented() -> None:
    sources = [f.read_text() for f in (ROOT / "minicompile").rglob("*.py")]
    used = {code for text in sources for code in re.findall(r"""(?:Refusal|refuse)\(\s*"([a-z-]+)\"""", text)}
    rows = re.findall(r"^\| `([a-z-]+)` \| R(\d+) \|", (ROOT / "docs/refusals.md").read_text(), re.M)
    assert used <= set(CLASSES)
    assert rows == [(code, f"{i:02}") for i, code in enumerate(CLASSES, 1)]


if __name__ == "__main__":
    import tempfile
    with tempfile.TemporaryDirectory() as temporary:
        printed = run_example(Path(temporary))
    text = README.read_text()
    start, end = EXAMPLE.search(text).span(2)
    README.write_text(text[:start] + printed + text[end:])
