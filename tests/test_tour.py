"""The pages of docs/ that are run: each block of Python, in order, prints what the block of text behind it says.
`python tests/test_tour.py` brings them up to date."""
from __future__ import annotations

import contextlib
import io
import linecache
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ["tour", "exercises", *sorted(f"stages/{f.stem}" for f in (DOCS / "stages").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.S)


def machine(text: str) -> str:
    """Without what depends on the machine: vector widths, estimated times."""
    text = re.sub(r"(<(?:float, )?)\d+(?=>)", r"\1N", text)
    return re.sub(r"(work=|~)[\d.]+ ?us", r"\1", text)


def written_anew(page: str) -> tuple[str, str]:
    """The page as it is, and as it would be if its blocks were run now."""
    text = (DOCS / f"{page}.md").read_text()
    names: dict[str, object] = {"__name__": page}
    number = 0

    def run(block: re.Match) -> str:
        nonlocal number
        number += 1
        file = f"{page}{number}.py"
        linecache.cache[file] = (len(block[1]), None, block[1].splitlines(True), file)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block[1], file, "exec"), names)
        said = "".join(line.rstrip() + "\n" for line in printed.getvalue().strip("\n").splitlines())
        return f"```python\n{block[1]}```\n" + (f"\n```text\n{said}```\n" if said else "")

    return text, BLOCK.sub(run, text)


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str) -> None:
    if not (DOCS / f"{page}.md").exists():
        pytest.skip("no such page")
    said, found = written_anew(page)
    assert machine(found) == machine(said)


if __name__ == "__main__":
    for page in sys.argv[1:] or PAGES:
        (DOCS / f"{page}.md").write_text(written_anew(page)[1])
