"""`check(fn, *args)`: a function run by eager mode, torch.compile and minicompile; who is wrong, if anyone.

Takes a callable and the arguments of a call; gives a `Verdict`. Every engine (see `ladder`) gets its own copy
of function and arguments and makes the same calls: one, and one more after all values changed in place,
forward and backward. All of it is compared with eager mode (see `observe`), floats also with a run in
float64, which is what says who is wrong. For what is wrong the ladder is walked and the graph shrunk.
"""
from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import shrink
from .compare import units
from .ladder import LADDERS, Ran, Step, runs, walk
from .observe import (
    Arguments,
    Difference,
    Noise,
    Observation,
    Session,
    Widening,
    differences,
    disturb,
    permute_in_place,
    reachable,
    widened,
)

Fresh = Callable[..., Session]          # fresh(wide=False, noise=0.0): a session with state of its own
FAR = 256                               # units in the last place beyond which eager itself is suspected
LADDER_OF = {"minicompile": "minicompile", "cpp": "minicompile", "loops": "reference", "triton": "triton",
             **{name: name for name in LADDERS if name != "reference"}}
ENGINE_OF = {"minicompile": "cpp"}


# -------------------------------------------------------------------------------------------------- judging

@dataclass(frozen=True)
class Measured:
    """The largest error of one result over all calls, in units of the last place of its largest element."""

    engine: str
    path: str
    units: float
    eager: float

    def __str__(self) -> str:
        times = f", {self.units / self.eager:.2g} x eager's" if self.eager else ""
        return f"{self.engine:<16} {self.path:<24} {self.units:10.3g} ulp{times}"


@dataclass(frozen=True)
class Verdict:
    """Who is wrong, and how that is known.

    wrong       names of engines, "eager" among them; empty if nobody is
    found       engine -> what of it is not as it should be, the worst first
    notes       engine -> messages and warnings that differ: nobody is wrong for these
    undecided   why something that differs can't be held against anyone ("" if there is no such thing)
    errors      each engine's rounding error against float64, where there is a float64 run
    step        where minicompile is wrong: the first wrong stage and node
    script      a program that shows it, on its own; "" if nobody is wrong
    """

    wrong: tuple[str, ...] = ()
    found: Mapping[str, Sequence[Difference]] = field(default_factory=dict)
    notes: Mapping[str, Sequence[Difference]] = field(default_factory=dict)
    undecided: str = ""
    errors: tuple[Measured, ...] = ()
    steps: Mapping[str, Step] = field(default_factory=dict)
    script: str = ""
    engines: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Nobody is wrong."""
        return not self.wrong

    @property
    def step(self) -> Step | None:
        return self.steps.get("minicompile")

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [f"{' and '.join(self.wrong)} {'is' if len(self.wrong) == 1 else 'are'} wrong" if self.wrong
                 else f"undecidable: {self.undecided}" if self.undecided
                 else f"nobody is wrong: {', '.join(self.engines)} do as eager mode"]
        for engine in self.wrong:
            lines += [f"  {engine}: {d}" for d in list(self.found.get(engine, ()))[:5]]
        lines += [f"  {engine}: {step}" for engine, step in self.steps.items()]
        lines += [f"  note: {engine} {d}" for engine, all_ in self.notes.items() for d in list(all_)[:2]]
        lines += [f"  undecided: {self.undecided}"] if self.undecided and self.wrong else []
        lines += [f"  runs as in eager mode: {r}" for r in self.refusals]
        lines += [f"  {e}" for e in self.errors]
        return "\n".join(lines)

    def write(self, path: str | Path) -> Path:
        """Writes the script; gives its path. Raises ValueError where nobody is wrong."""
        if not self.script:
            raise ValueError("nobody is wrong: there is nothing to reproduce")
        Path(path).write_text(self.script)
        return Path(path)


class Judge:
    """Compares engines with eager mode on one program; what may not be needed is run when it is."""

    def __init__(self, fresh: Fresh) -> None:
        self.fresh = fresh
        self.eager = runs(fresh, "eager")
        self._precise: list[Observation | None] | None = None
        self._noisy: list[list[Observation]] | None = None

    @property
    def precise(self) -> list[Observation | None]:
        """The calls in float64; None where that says nothing, because random numbers are drawn."""
        if self._precise is None:
            try:
                wide = runs(partial(self.fresh, wide=True), "eager", in_float64).calls
            except (TypeError, RuntimeError, NotImplementedError):      # no copy of it in float64
                wide = []
            plain = torch.Generator().manual_seed(5).get_state()
            self._precise = [p if p.raised is None and e.random is not None and torch.equal(e.random, plain)
                             else None for p, e in zip(wide, self.eager.calls)]
        return self._precise

    def differences(self, ran: Ran) -> tuple[list[Difference], str]:
        """What `ran` does differently, and why some of it can't be held against it."""
        found = ran.differs(self.eager)
        if not any(d.is_rounding for d in found):
            return found, ""
        found = ran.differs(self.eager, self.precise)
        rounding = [d for d in found if d.is_rounding]
        if not rounding:
            return found, ""
        reason = self.excuse(rounding)
        return ([d for d in found if not d.is_rounding], reason) if reason else (found, "")

    def excuse(self, found: Sequence[Difference]) -> str:
        """Why values that differ are nobody's fault; "" if they are somebody's."""
        again = differences(runs(self.fresh, "eager").calls, self.eager.calls)
        if any(d.is_rounding for d in again):
            return "eager mode doesn't give the same result twice"
        if self._noisy is None:
            self._noisy = [runs(partial(self.fresh, noise=n), "eager").calls for n in (1.0, 4.0)]
        for other in self._noisy:
            if any(d.is_rounding and not d.path.startswith("args")
                   for d in differences(other, self.eager.calls)):
                return "eager mode's own result changes as much when its inputs change in the last place"
        inside = differences(runs(self.fresh, "eager", noisy).calls, self.eager.calls)
        shaken = {d.path for d in inside if d.is_float}
        if found and all(d.is_float and d.path in shaken for d in found):
            return "eager mode's own result changes as much when operators round otherwise"
        return ""

    def errors(self, rans: Sequence[Ran]) -> list[Measured]:
        """Each engine's error for each result and gradient."""
        worst: dict[tuple[str, str], list[float]] = {}
        for ran in (self.eager, *rans):
            for got, eager, true in zip(ran.calls, self.eager.calls, self.precise):
                if true is None or got.raised is not None or eager.raised is not None:
                    continue
                for path, g, e, p in _floats(got, eager, true):
                    old = worst.setdefault((ran.engine, path), [0.0, 0.0])
                    old[:] = max(old[0], units(g, p)), max(old[1], units(e, p))
        return [Measured(engine, path, *both) for (engine, path), both in worst.items()]

    def eager_is_wrong(self, errors: Sequence[Measured]) -> list[Difference]:
        """Results of eager mode that are far from float64 while another engine's are not, and that rounding
        of the inputs does not explain."""
        best: dict[str, float] = {}
        for m in errors:
            if m.engine != "eager":
                best[m.path] = min(m.units, best.get(m.path, float("inf")))
        far = [m for m in errors if m.engine == "eager" and m.units > FAR
               and m.units > 16 * best.get(m.path, m.units)]
        if not far or self.excuse([]):
            return []
        return [Difference(0, m.path, "value", f"of eager mode is {m.units:.3g} ulp off, another engine's "
                                               f"{best[m.path]:.3g}") for m in far]


def _floats(got: Observation, eager: Observation, true: Observation) -> Any:
    for path, seen in eager.seen.items():
        comparable = seen.value is not None and path in got.seen and path in true.seen
        if comparable and seen.value.is_floating_point():
            if not path.startswith("args") or eager.written.get(path, (False, False))[1]:
                yield path, got.seen[path].value, seen.value, true.seen[path].value
    for path, value in eager.gradients.items():
        if value is not None:
            yield path, got.gradients.get(path), value, true.gradients.get(path)


def in_float64(fn: Callable) -> Callable:
    """An engine: eager mode in float64."""
    def wide(*args: Any, **kwargs: Any) -> Any:
        with Widening():
            return fn(*args, **kwargs)
    return wide


def noisy(fn: Callable) -> Callable:
    """An engine: eager mode whose operators take numbers that are off by a unit in the last place."""
    def off(*args: Any, **kwargs: Any) -> Any:
        with Noise(1.0):
            return fn(*args, **kwargs)
    return off


def judge(fresh: Fresh, engines: Sequence[str] = ("minicompile",), explain: bool = True) -> Verdict:
    """The verdict on one program; `explain` also measures errors, and walks the ladders of who is wrong."""
    with torch.random.fork_rng(devices=[]):
        case = Judge(fresh)
        rans = [Ran(name, done.calls, done.failed, done.handle) for name in engines
                for done in [runs(fresh, ENGINE_OF.get(name, name))]]
        found, notes, undecided = {}, {}, ""
        for ran in rans:
            differs, excuse = case.differences(ran)
            found[ran.engine] = [d for d in differs if not d.is_note]
            notes[ran.engine] = [d for d in differs if d.is_note]
            undecided = undecided or excuse
        errors = tuple(case.errors(rans)) if explain else ()
        off = case.eager_is_wrong(errors)
        if off:                                    # then who differs from it in these places is right
            paths = {d.path for d in off}
            found = {"eager": off, **{name: [d for d in all_ if not (d.is_rounding and d.path in paths)]
                                      for name, all_ in found.items()}}
        wrong = tuple(name for name, all_ in found.items() if all_)
        steps = {}
        for name in wrong if explain else ():
            step = walk(fresh, LADDER_OF[name], case.eager, case.precise) if name in LADDER_OF else None
            steps.update({name: step} if step else {})
        refused = {str(r).splitlines()[0]: None for ran in rans for r in ran.refusals}
        found, notes = ({k: v for k, v in some.items() if v} for some in (found, notes))
        return Verdict(wrong, found, notes, undecided, errors, steps, "", tuple(engines), tuple(refused))


# ------------------------------------------------------------------------------------- a function of anyone's

@dataclass(frozen=True)
class Check:
    """How to check: `Check(torch_compile=False)(fn, *args)`.

    torch_compile   run torch.compile, too (seconds, and needs a C++ compiler)
    train           with grad mode and a backward; None: if anything that can be reached requires gradients
    calls           how many calls; from the second on, after all values have changed in place
    swap            more engines of `ladder.ENGINES`: stages of torch's in place of ours
    shrink_seconds  how long to look for a smaller program that goes wrong in the same way
    """

    torch_compile: bool = True
    train: bool | None = None
    calls: int = 2
    swap: tuple[str, ...] = ()
    shrink_seconds: float = 20.0

    def __call__(self, fn: Any, /, *args: Any, **kwargs: Any) -> Verdict:
        fresh = partial(self.session, fn, args, kwargs)
        engines = ("minicompile", *(["torch.compile"] if self.torch_compile else []), *self.swap)
        verdict = judge(fresh, engines)
        return Verdict(**{**vars(verdict), "script": self.script(verdict, fresh, fn, args, kwargs)})

    def session(self, fn: Any, args: tuple, kwargs: dict, wide: bool = False, noise: float = 0.0) -> Session:
        """The calls, on a copy of everything. Raises what copying raises."""
        parts = {"fn": fn, "args": args, "kwargs": kwargs}
        twin, args, kwargs, tensors = copied(parts, wide, noise)
        train = self.train
        if train is None:
            train = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        state = {"fn": twin}
        leaves = [t for t in tensors if t.is_leaf and t.requires_grad]

        def prepare(call: int) -> Arguments:
            if call:
                with torch.no_grad():
                    permute_in_place([t.detach() for t in tensors])
            return Arguments(args, kwargs, state, leaves)
        return Session(twin, prepare, self.calls, train)

    def script(self, verdict: Verdict, fresh: Fresh, fn: Any, args: tuple, kwargs: dict) -> str:
        """A program of its own that shows what is wrong: the shrunk graph where that goes wrong, too, else
        the function as it is written."""
        if verdict.ok:
            return ""
        about = "\n".join(f"# {line}" for line in str(verdict).splitlines())
        engine = next((name for name in verdict.wrong if name != "eager"), "minicompile")
        small = None
        if engine in verdict.steps:
            small = shrink.smallest(fresh, engine, verdict.steps[engine], self, self.shrink_seconds)
        body = small.text() if small is not None else shrink.source_text(fn, args, kwargs)
        more = [] if engine == "minicompile" else [f"swap=({engine!r},)"]
        how = ", ".join(["torch_compile=False", *more])
        return f"{about}\n{body}\n\nif __name__ == \"__main__\":\n    print(Check({how})(fn, *args))\n"


def check(fn: Any, /, *args: Any, **kwargs: Any) -> Verdict:
    """Runs fn(*args, **kwargs) by eager mode, torch.compile and minicompile: values, dtypes, shapes, strides,
    aliasing, writes to inputs, gradients, state, exceptions, warnings and random state must be eager mode's.

    Function and arguments are left as they are: copies are used. Gives a `Verdict`; print it. Raises what
    copying raises. `Check(...)` takes settings, for instance Check(torch_compile=False)(fn, *args).
    """
    return Check()(fn, *args, **kwargs)


# -------------------------------------------------------------------------------------------------- copying

def copied(parts: Mapping[str, Any], wide: bool = False,
           noise: float = 0.0) -> tuple[Any, tuple, dict, list[torch.Tensor]]:
    """fn, args and kwargs with all they reach copied once, so that what shared memory still does; and the
    tensors of the copy. Results of other calls among the arguments become leaves."""
    tensors = [t for t in reachable(parts).values() if t.layout is torch.strided]
    plain = [t.detach() for t in tensors]
    twins = widened(plain) if wide else _copies(plain)
    disturb(twins, noise) if noise else None
    memo: dict[int, Any] = {}
    for t, twin in zip(tensors, twins):
        twin = twin.requires_grad_(t.requires_grad)
        if isinstance(t, torch.nn.Parameter):
            twin = torch.nn.Parameter(twin.detach(), t.requires_grad)
        memo[id(t)] = twin
    fn = _function(parts["fn"], memo)
    args, kwargs = copy.deepcopy((parts["args"], parts["kwargs"]), memo)
    return fn, args, kwargs, [memo[id(t)] for t in tensors]


def _copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    bases: dict[int, torch.UntypedStorage] = {}
    for t in tensors:
        bases.setdefault(t.untyped_storage()._cdata, t.untyped_storage().clone())
    return [torch.empty(0, dtype=t.dtype).set_(bases[t.untyped_storage()._cdata], t.storage_offset(), t.shape,
                                               t.stride()) for t in tensors]


def _function(fn: Any, memo: dict[int, Any]) -> Any:
    """A copy of a callable: of a function with cells, defaults and the data among the globals that it
    names."""
    fn = getattr(fn, "__wrapped__", fn) if getattr(fn, "__minicompile__", None) is not None else fn
    if not isinstance(fn, types.FunctionType):
        return copy.deepcopy(fn, memo)
    if id(fn) in memo:
        return memo[id(fn)]
    named = [n for n in fn.__code__.co_names
             if isinstance(fn.__globals__.get(n), (torch.Tensor, list, dict, set))]
    twin = types.FunctionType(fn.__code__, {**fn.__globals__}, fn.__name__, None,
                              tuple(types.CellType() for _ in fn.__closure__ or ()))
    memo[id(fn)] = twin
    twin.__globals__.update((n, copy.deepcopy(fn.__globals__[n], memo)) for n in named)
    twin.__defaults__, twin.__kwdefaults__ = copy.deepcopy((fn.__defaults__, fn.__kwdefaults__), memo)
    twin.__module__, twin.__qualname__ = fn.__module__, fn.__qualname__
    for new, old in zip(twin.__closure__ or (), fn.__closure__ or ()):
        if old != types.CellType():
            inside = old.cell_contents
            new.cell_contents = (_function(inside, memo) if isinstance(inside, types.FunctionType)
                                 else copy.deepcopy(inside, memo))
    return twin
