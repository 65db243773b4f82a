"""Configuration: validation, the environment, patching; and the topics that debug logs."""
from __future__ import annotations

import dataclasses
import logging

import pytest

import minicompile
from minicompile import debug
from minicompile.config import Config, ConfigError, config, from_environment, variable


@pytest.mark.parametrize("field, value, says", [
    ("backend", "cuda", "'reference'"), ("numerics", "fastest", "'eager', 'fast'"), ("stop", "kernels", "'prims'"),
    ("isa", "sse", "'avx2'"), ("strict", "maybe", "True or False"), ("strict", 2, "True or False"),
    ("recompile_limit", 0, "at least 1"), ("recompile_limit", 2.5, "an integer"), ("recompile_limit", True, "an integer"),
    ("compile_timeout_s", "soon", "a number"), ("log", "graphs,noise", "'guards'"), ("cache_dir", 3, "a path"),
])
def test_bad_values_name_the_valid_ones(field: str, value: object, says: str) -> None:
    before = getattr(config, field)
    with pytest.raises(ConfigError, match=says):
        setattr(config, field, value)
    assert getattr(config, field) == before


def test_an_unknown_field_lists_the_fields() -> None:
    with pytest.raises(ConfigError, match="recompile_limit"):
        config.recompiles = 3  # type: ignore[attr-defined]


def test_every_field_has_a_default_it_accepts_and_a_meaning() -> None:
    for f in dataclasses.fields(Config):
        assert len(f.metadata["doc"]) > 10
        fresh = Config()
        setattr(fresh, f.name, f.default)
        assert getattr(fresh, f.name) == f.default


def test_environment() -> None:
    got = from_environment({"MINICOMPILE_LOG": "graphs, time", "MINICOMPILE_STRICT": "1", "MINICOMPILE_RECOMPILE_LIMIT": "3",
                            "MINICOMPILE_COMPILE_TIMEOUT_S": "12.5", "HOME": "/"})
    assert (got.log, got.strict, got.recompile_limit, got.compile_timeout_s) == (("graphs", "time"), True, 3, 12.5)
    with pytest.raises(ConfigError, match="stop"):
        from_environment({variable("stop"): "everywhere"})


def test_patch_restores_and_is_all_or_nothing() -> None:
    before = dataclasses.astuple(config)
    with config.patch(numerics="fast", strict=True):
        assert (config.numerics, config.strict) == ("fast", True)
    with pytest.raises(ConfigError), config.patch(numerics="fast", isa="none"):
        pass
    with pytest.raises(KeyError), config.patch(strict=True):
        raise KeyError
    assert dataclasses.astuple(config) == before


def test_validate_changes_nothing() -> None:
    before = dataclasses.astuple(config)
    config.validate({"numerics": "fast"})
    with pytest.raises(ConfigError):
        config.validate({"numeric": "fast"})
    assert dataclasses.astuple(config) == before


def test_it_is_the_attribute_of_the_package() -> None:
    assert minicompile.config is config
    assert "bisect" in dir(minicompile)
    with pytest.raises(AttributeError, match="compyle"):
        minicompile.compyle


def test_only_topics_that_are_on_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    def costly() -> str:
        raise AssertionError("was called although its topic is off")

    with config.patch(log="graphs"):
        debug.configure()
        debug.log("graphs", lambda: "a graph")
        debug.log("code", costly)
        logging.getLogger("minicompile.schedule").info("a plan")
        logging.getLogger("minicompile.cache").warning("a fault")
    debug.configure()
    debug.log("graphs", "no more")
    assert capsys.readouterr().err.splitlines() == ["[minicompile.graphs] a graph", "[minicompile.cache] a fault"]
    with pytest.raises(ValueError, match="they are graphs"):
        debug.log("graph", "misspelt")
