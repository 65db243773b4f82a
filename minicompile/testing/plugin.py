"""The pytest plugin: other projects check their own functions for being compiled rightly.

Found by pytest through its entry point (pyproject.toml). Gives the fixture `compiled_rightly`, which calls a
function by every engine and fails with the verdict if one is wrong, and the marker of the same name, which
makes a test's own body be called so: its fixtures are the arguments. Options: --torch-compile, --repro.
"""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

MARKER = "compiled_rightly"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("minicompile")
    group.addoption("--torch-compile", action="store_true", help="check torch.compile, too")
    group.addoption("--repro", metavar="FOLDER", help="write a script for each function that goes wrong")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers",
                            f"{MARKER}(**settings): the test's body is run by eager mode and compiled; "
                                       "settings are those of minicompile.testing.Check")


class Checker:
    """What the fixture gives: call it with a function and arguments; keywords of `Check` go to `using`."""

    def __init__(self, request: pytest.FixtureRequest, **settings: Any) -> None:
        self.request, self.settings = request, settings

    def using(self, **settings: Any) -> Checker:
        """The same with other settings of `minicompile.testing.Check`."""
        return Checker(self.request, **{**self.settings, **settings})

    def __call__(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Fails the test if an engine, or eager mode itself, is wrong; gives the verdict."""
        from .checker import Check  # importing the plugin must not import torch
        option = self.request.config.getoption
        verdict = Check(**{"torch_compile": option("--torch-compile"), **self.settings})(fn, *args, **kwargs)
        if not verdict.ok:
            where = ""
            if folder := option("--repro"):
                name = re.sub(r"\W+", "_", self.request.node.name)
                Path(folder).mkdir(parents=True, exist_ok=True)
                where = f"\nwritten to {verdict.write(Path(folder) / f'{name}.py')}"
            pytest.fail(f"{verdict}{where}\n\n{verdict.script}", pytrace=False)
        return verdict


@pytest.fixture
def compiled_rightly(request: pytest.FixtureRequest) -> Checker:
    """Call it with a function and its arguments: the test fails unless minicompile (with --torch-compile also
    torch.compile) does all that eager mode does."""
    return Checker(request)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A marked test's body goes through the checker."""
    marker = pyfuncitem.get_closest_marker(MARKER)
    if marker is None:
        return None
    names = pyfuncitem._fixtureinfo.argnames
    args = {name: pyfuncitem.funcargs[name] for name in names}
    Checker(pyfuncitem._request, **marker.kwargs)(pyfuncitem.obj, **args)
    return True
