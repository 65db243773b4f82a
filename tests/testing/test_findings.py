"""docs/findings.md: each script still shows what it says."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "findings.md").read_text()
FOUND = re.findall(r"^## (.*?)$.*?^```python\n(.*?)^```$", PAGE, re.M | re.S)


def test_each_has_a_script_and_says_who_is_wrong() -> None:
    sections = re.split(r"^## ", PAGE, flags=re.M)[1:]
    assert len(sections) == len(FOUND) >= 5
    for section in sections:
        assert re.search(r"\*\*(Eager mode|The meta rule|torch.compile|Nobody) is wrong\*\*|is wrong\.\*\*", section), section[:60]


@pytest.mark.parametrize("title, script", FOUND, ids=[t for t, _ in FOUND])
def test_still_so(title: str, script: str) -> None:
    exec(compile(script, f"<{title}>", "exec"), {})
