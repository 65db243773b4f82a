"""Configuration: every knob as a typed, documented, validated field.

Takes the environment: MINICOMPILE_<FIELD> overrides a field's default. Comes before every stage but `errors`.
`minicompile.config.numerics = "fast"` sets a field for the process, `with
minicompile.config.patch(numerics="fast"):` for a block. Thread count is not here: it is read from torch at
every call.
"""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .errors import MinicompileError

STAGES = ("capture", "aten", "prims", "loops", "plan", "source")      # the border objects, in pipeline order
BACKENDS = ("auto", "cpp", "triton", "reference", "eager", "aot_eager", "inductor")
STANCES = ("default", "force_eager", "eager_on_recompile", "fail_on_recompile")
MODES = ("default", "reduce-overhead", "max-autotune")
PASSES = ("rewrite", "fuse", "cores", "tiles", "vectors", "memory")
LOG_TOPICS = ("graphs", "breaks", "guards", "prims", "schedule", "code", "time", "cache")


class ConfigError(MinicompileError, ValueError):
    """A field was given a value it does not take, or does not exist; the message lists what is valid."""


Parse = Callable[[Any], Any]


def one_of(*choices: str) -> Parse:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(map(repr, choices))}")
        return value
    return parse


def several_of(*choices: str) -> Parse:
    """A tuple of `choices`, also given as one comma-separated string; "all" is all of them."""
    def parse(value: Any) -> tuple[str, ...]:
        words = [w.strip() for w in value.split(",")] if isinstance(value, str) else list(value)
        words = [w for w in words if w]
        if words == ["all"] or words == ["1"]:
            return choices
        if any(w not in choices for w in words):
            raise ValueError(f"'all' or a comma-separated list of {', '.join(map(repr, choices))}")
        return tuple(words)
    return parse


def flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("1", "true", "yes", "on", "0", "false", "no", "off", ""):
        return value.lower() in ("1", "true", "yes", "on")
    raise ValueError("True or False (in the environment: 1 or 0)")


def number(kind: type[int] | type[float], low: float) -> Parse:
    def parse(value: Any) -> Any:
        try:
            got = kind(value) if isinstance(value, str) or (kind is float and type(value) is int) else value
        except ValueError:
            got = None
        if got is None or type(got) is not kind or not got >= low:
            raise ValueError(f"{'an integer' if kind is int else 'a number'} of at least {low}")
        return got
    return parse


def fraction(value: Any) -> float:
    got = number(float, 0)(value)
    if got > 1:
        raise ValueError("a number from 0 to 1")
    return got


def path(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError("a path, or '' for the default")
    return os.path.expanduser(os.fspath(value))


def _field(default: Any, parse: Parse, doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"parse": parse, "doc": doc})


@dataclasses.dataclass
class Config:
    """All fields. Setting one validates it, and raises ConfigError naming what is valid."""

    backend: str = _field("auto", one_of(*BACKENDS),
                          "what compile(backend='auto') means; 'auto': cpp on the CPU, triton on CUDA")
    stop: str = _field("", one_of("", *STAGES[:-1]),
                       "run this stage's border object by its slow reference and go no further")
    log: tuple[str, ...] = _field((), several_of(*LOG_TOPICS), "what to log to stderr while compiling")
    dump: str = _field("", path, "folder to write every stage's object to, one file each; '' writes nothing")
    cache_dir: str = _field("", path, "folder of the on-disk cache; '' is the user's cache folder")
    cache_size_mb: int = _field(1024, number(int, 0), "size cap of the on-disk cache; 0 turns it off")
    strict: bool = _field(False, flag,
                          "raise refusals and a missing C++ compiler, where the program would run eager")
    check: bool = _field(False, flag, "verify every border object while compiling")
    isa: str = _field("auto", one_of("auto", "avx512", "avx2", "scalar"),
                      "instruction set of emitted C++; 'auto': the best this machine has")
    mode: str = _field("default", one_of(*MODES),
                       "on a GPU: 'reduce-overhead' replays CUDA graphs, 'max-autotune' times blocks")
    numerics: str = _field("eager", one_of("eager", "fast"),
                           "'eager': eager's result up to reassociation; 'fast': also approximations")
    random: str = _field("eager", one_of("eager", "philox"),
                         "'eager': eager mode's numbers; 'philox': others, by a counter, computed inside "
                         "kernels and again in the backward, so that no mask is kept")
    activation_memory_budget: float = _field(
        1.0, fraction, "training: bytes kept for the backward, as a part of what costs no library call or "
                       "reduction to be computed again; 0: as few as can be")
    disable_passes: tuple[str, ...] = _field(
        (), several_of(*PASSES), "optimisations to leave out; results are the same up to the order of sums")
    stance: str = _field("default", one_of(*STANCES),
                         "'force_eager': compiled functions run as they are; 'eager_on_recompile': nothing "
                         "more is compiled; 'fail_on_recompile': that is an error")
    recompile_limit: int = _field(8, number(int, 1),
                                  "compiled variants kept per function; past it the oldest goes, loudly")
    contest: bool = _field(True, flag, "time first calls in eager mode, too, and run that from then "
                                       "on where it is clearly faster")
    compile_timeout_s: float = _field(300.0, number(float, 0.1),
                                      "seconds the C++ compiler may take for one graph")

    def __setattr__(self, name: str, value: Any) -> None:
        spec = self.__dataclass_fields__.get(name)
        if spec is None:
            fields = ", ".join(self.__dataclass_fields__)
            raise ConfigError(f"minicompile.config has no field {name!r}; it has {fields}")
        object.__setattr__(self, name, _parsed(name, spec.metadata["parse"], value))

    @contextmanager
    def patch(self, **changes: Any) -> Iterator[Config]:
        """The fields in `changes` set inside a with block, all or none."""
        self.validate(changes)
        before = {name: getattr(self, name) for name in changes}
        try:
            for name, value in changes.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    @staticmethod
    def validate(options: Mapping[str, Any]) -> None:
        """Raises ConfigError unless every key is a field and every value one it takes."""
        fresh = Config()
        for name, value in options.items():
            setattr(fresh, name, value)

    def describe(self) -> list[tuple[str, str, str, str]]:
        """Rows (field, value now, environment variable, meaning) for `doctor` and the documentation."""
        return [(f.name, repr(getattr(self, f.name)), variable(f.name), f.metadata["doc"])
                for f in dataclasses.fields(self)]


def _parsed(name: str, parse: Parse, value: Any) -> Any:
    try:
        return parse(value)
    except ValueError as e:
        raise ConfigError(f"minicompile.config.{name} = {value!r} is not valid: it takes {e}") from None


def variable(name: str) -> str:
    """The environment variable of a field."""
    return f"MINICOMPILE_{name.upper()}"


def from_environment(environ: Mapping[str, str]) -> Config:
    """A Config with the MINICOMPILE_* variables of `environ` applied. Raises ConfigError for a bad value."""
    names = (f.name for f in dataclasses.fields(Config))
    given: dict[str, Any] = {name: environ[variable(name)] for name in names if variable(name) in environ}
    return Config(**given)


config = from_environment(os.environ)
