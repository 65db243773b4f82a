"""Differential fuzzing: random programs, compiled and compared with eager mode in all that can be observed.

Takes a seed and minutes, gives `Failure`s: each with a standalone script, shrunk, and the first bad stage.
Compared are values (against the program in float64), dtypes, strides, what is an input or shares memory with
what, writes to inputs (and versions, where a value changed), gradients, exceptions, and the random state
afterwards; for a first call, a call after the inputs' values changed in place, and a call with other shapes.

    python -m minicompile fuzz --minutes 2 --seed 0
"""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from .. import api
from ..errors import MinicompileError
from ..ir.spec import TensorSpec
from ..lower.graphs import same_strides
from .bisection import bisect, value_differs
from .programs import Program, generate

log = logging.getLogger("minicompile.fuzz")
RANDOM = re.compile(r"rand|dropout|bernoulli|multinomial|normal|uniform_|exponential_|rrelu")
NARROW = re.compile(r"torch\.(float32|float16|bfloat16)\b")
CPP_ONE_IN = 4
SHRINK_SECONDS = 25.0


@dataclass
class Observation:
    """All that one call did. Tensors are copies made at once; `specs` and `shared` are those of the results
    and, after them, the inputs."""

    raised: BaseException | None = None
    values: list[Any] = field(default_factory=list)
    results: int = 0
    specs: list[Any] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    identical: list[int] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    unchanged: list[bool] = field(default_factory=list)
    gradients: list[torch.Tensor | None] = field(default_factory=list)
    random: torch.Tensor | None = None


@dataclass(frozen=True)
class Failure:
    """A program that does not do what eager mode does: how, and the first bad stage."""

    program: Program
    reason: str
    seed: int = -1
    stage: str = ""

    @property
    def kind(self) -> str:
        """The reason without its numbers: failures of one kind are taken for one fault while shrinking."""
        return re.sub(r"[-+]?[\d.]+(e[-+]\d+)?|nan|inf", "#", self.reason.split(" (")[0])[:70]

    @property
    def key(self) -> tuple[str, str, str]:
        ops = sorted(set(re.findall(r"\.(\w+)\(", " ".join(self.program.statements))))
        return self.kind, self.stage.split(":")[0], ",".join(ops)

    def __str__(self) -> str:
        about = "\n".join(f"# {line}" for line in f"{self.reason}\n{self.stage}".splitlines() if line)
        return f"{about}\n# seed {self.seed}\n{self.program}\n\n" + (
            'if __name__ == "__main__":\n    from minicompile.testing.fuzz import replay\n\n'
            '    print(replay(__file__) or "as in eager mode")\n'
        )


# ---- running --------------------------------------------------------------------------------------


def observe(fn: Callable, inputs: Sequence[Any], leaves: Sequence[Any], grad: bool) -> Observation:
    """fn(*inputs) from a fixed random state; with gradients for `leaves`."""
    torch.manual_seed(5)
    tensors = [t for t in inputs if isinstance(t, torch.Tensor)]
    versions, before = [t._version for t in tensors], [t.detach().clone() for t in tensors]
    with torch.set_grad_enabled(grad):
        try:
            results = tree_leaves(fn(*inputs))
            gradients = _gradients(results, leaves) if grad else []
        except MinicompileError:
            raise
        except Exception as e:
            return Observation(raised=e)
    both = [*results, *tensors]
    storages = [x.untyped_storage()._cdata if isinstance(x, torch.Tensor) else 0 for x in both]
    return Observation(
        None,
        [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in both],
        len(results),
        [(TensorSpec.of(x), x.requires_grad) if isinstance(x, torch.Tensor) else type(x) for x in both],
        [storages.index(s) for s in storages],
        [next(i for i, y in enumerate(both) if y is x) for x in both],
        [t._version != v for t, v in zip(tensors, versions)],
        [same(t.detach(), b) for t, b in zip(tensors, before)],
        gradients,
        torch.get_rng_state(),
    )


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal, NaN for NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return (
        torch.equal(a, b) or torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
    )


def _gradients(results: list[Any], leaves: Sequence[Any]) -> list[torch.Tensor | None]:
    ends = [r for r in results if isinstance(r, torch.Tensor) and r.requires_grad]
    wanted = [t for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad]
    if not ends or not wanted:
        return []
    state, generator = torch.get_rng_state(), torch.Generator().manual_seed(3)
    seeds = [torch.randn(r.shape, generator=generator).to(torch.bfloat16).to(r.dtype) for r in ends]
    found = torch.autograd.grad(ends, wanted, seeds, allow_unused=True)
    torch.set_rng_state(state)
    return list(found)


def session(
    fn: Callable, program: Program, make: Callable, wide: bool = False, noise: float = 0.0, calls: int = 3
) -> list[Observation]:
    """A first call, a call after values changed in place, a call with other shapes."""
    inputs = _widened(make(*program.sizes[0])) if wide else make(*program.sizes[0])
    done = []
    for call in range(calls):
        if call == 1:
            _change_in_place(inputs)
        elif call == 2:
            inputs = _widened(make(*program.sizes[1])) if wide else make(*program.sizes[1])
        if noise:
            _disturb(inputs, noise)
        leaves, given = _with_grad(inputs, program.grad)
        done.append(observe(fn, given, leaves, with_engine(program)))
    return done


def with_engine(program: Program) -> bool:
    """Whether it runs in grad mode."""
    return program.grad in ("leaf", "computed")


def _with_grad(inputs: list[Any], how: str) -> tuple[list[Any], list[Any]]:
    """The leaves, and what is passed: they, or what was computed of them."""
    if not how:
        return inputs, inputs
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    given = [t.mul(1) if t.requires_grad else t for t in leaves] if how == "computed" else leaves
    return leaves, [t if t.requires_grad else i for t, i in zip(given, inputs)]


def _flat_storages(inputs: list[Any]) -> Iterator[torch.Tensor]:
    """Every storage behind the inputs, once, as a flat tensor."""
    seen = {}
    for t in inputs:
        s = t.untyped_storage()
        seen[s._cdata] = torch.empty(0, dtype=t.dtype).set_(s, 0, (s.nbytes() // t.dtype.itemsize,))
    yield from seen.values()


def _change_in_place(inputs: list[Any]) -> None:
    for flat in _flat_storages(inputs):
        flat.copy_(
            flat.logical_not()
            if flat.dtype is torch.bool
            else (flat * 2 if flat.dtype.is_floating_point else (flat + 1) % 7)
        )


def _disturb(inputs: list[Any], noise: float) -> None:
    generator = torch.Generator().manual_seed(11)
    for flat in _flat_storages(inputs):
        if flat.is_floating_point():
            flat.mul_(1 + noise * torch.finfo(flat.dtype).eps * torch.randn(flat.shape, generator=generator))


def _widened(inputs: list[Any]) -> list[Any]:
    """The inputs in float64, sharing storage as the originals do."""
    bases = {
        t.untyped_storage()._cdata: flat.double() if flat.is_floating_point() else flat
        for t, flat in zip(inputs, [next(_flat_storages([t])) for t in inputs])
    }
    return [
        torch.empty(0, dtype=bases[c].dtype).set_(
            bases[c].untyped_storage(), t.storage_offset(), t.shape, t.stride()
        )
        for t, c in ((t, t.untyped_storage()._cdata) for t in inputs)
    ]


# ---- judging --------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines of programs that run as in eager mode."""
    logger = logging.getLogger("minicompile")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def judge(program: Program, refusals: Counter | None = None, keep_dead: bool = False) -> str:
    """What of `program`, compiled, is not as in eager mode; "" if nothing. Counts refusals by code."""
    with quiet():
        space = program.module()
        make, fn = space["inputs"], space["fn"]
        eager = session(fn, program, make)
        compiled = api.compile(fn, backend=program.backend)
        try:
            got = session(compiled, program, make)
        except MinicompileError as e:
            return f"fails: {type(e).__name__}: {e}"
        handle = api.handle_of(compiled)
        refused = Counter(r.code for r in handle.refusals)
        if refusals is not None:
            refusals.update(refused)
        internal = next((r.reason for r in handle.refusals if r.code == "internal"), "")
        if internal:
            return f"internal error: {internal}"
        found = _difference(got, eager, [None] * 3)
        if found.startswith("raises None") and program.statements and not keep_dead:
            # an error in what nothing uses may go with it: but the rest must be right
            names = {
                n
                for s in program.statements
                for n in re.findall(r"^(a\d+)|^a\d+, (b\d+) =", s)
                for n in n
                if n
            }
            return judge(replace(program, returns=(*program.returns, *sorted(names))), None, True)
        if found and "differs" in found:
            found = _difference(got, eager, _precise(program))
            if found and "differs" in found and _unstable(program, make, fn, eager):
                found = ""
    return found


def _precise(program: Program) -> list[Observation | None]:
    """The program's calls in float64; where random numbers are drawn that says nothing."""
    text = str(program)
    if RANDOM.search(text):
        return [None] * 3
    head, _, body = text.partition("def fn")
    body = NARROW.sub("torch.float64", body).replace(".float()", ".double()")
    space = program.module(f"{head}def fn{body}")
    return session(space["fn"], program, space["inputs"], wide=True)


def _unstable(program: Program, make: Callable, fn: Callable, eager: list[Observation]) -> bool:
    """Whether eager's own results change as much when the inputs change by a unit in the last place."""
    for noise in (1.0, 4.0):
        other = session(fn, program, make, noise=noise)
        if _difference(other, eager, [None] * 3).replace("input", "") and _values_differ(other, eager):
            return True
    return False


def _values_differ(other: list[Observation], eager: list[Observation]) -> bool:
    """Whether any result moved by more than a compiled program's may."""
    for a, b in zip(other, eager):
        pairs = list(zip(a.values[: a.results] + a.gradients, b.values[: b.results] + b.gradients))
        if any(isinstance(x, torch.Tensor) and value_differs(x, y) for x, y in pairs):
            return True
    return False


def _difference(
    got: list[Observation], eager: list[Observation], precise: Sequence[Observation | None]
) -> str:
    for call, (g, e, p) in enumerate(zip(got, eager, precise)):
        reason = _call_difference(g, e, p)
        if reason:
            return f"{reason} (call {call})"
    return ""


def _call_difference(got: Observation, eager: Observation, precise: Observation | None) -> str:
    if got.raised or eager.raised:
        if type(got.raised) is type(eager.raised):
            return ""
        if got.raised is None and "modified by an inplace operation" in str(eager.raised):
            return ""           # eager kept the tensor itself for its backward, we what the gradient needs
        return f"raises {got.raised!r}, eager {eager.raised!r}".splitlines()[0]
    if got.results != eager.results:
        return f"gives {got.results} results, not {eager.results}"
    exact = precise is not None and not precise.raised and len(precise.values) == len(eager.values)
    for i in range(len(eager.values)):
        what = f"result {i}" if i < eager.results else f"input {i - eager.results}"
        alone = eager.shared.count(eager.shared[i]) == 1  # then where its memory begins is nobody's business
        reason = _spec_difference(got.specs[i], eager.specs[i], alone)
        reason = reason or _value_difference(
            got.values[i], eager.values[i], precise.values[i] if exact else None
        )
        if reason:
            return f"{what} {reason}"
    got.written[:] = [
        w or e and unchanged for w, e, unchanged in zip(got.written, eager.written, eager.unchanged)
    ]
    for what in ("shared", "identical", "written"):
        if getattr(got, what) != getattr(eager, what):
            return f"{what}: {getattr(got, what)}, not {getattr(eager, what)}"
    for i, (a, b) in enumerate(zip(got.gradients, eager.gradients)):
        p = precise.gradients[i] if exact and len(precise.gradients) == len(eager.gradients) else None
        reason = _value_difference(a, b, p)
        if reason:
            return f"gradient {i} {reason}"
    if len(got.gradients) != len(eager.gradients):
        return "other gradients"
    return "" if torch.equal(got.random, eager.random) else "random state is another"


def _spec_difference(got: Any, eager: Any, alone: bool) -> str:
    if not isinstance(got, tuple) or not isinstance(eager, tuple):
        return "" if got == eager else f"is {got}, not {eager}"
    (a, grad), (b, wanted) = got, eager
    moved = a.offset != b.offset and not alone and a.numel
    if (a.dtype, a.shape) != (b.dtype, b.shape) or moved or not same_strides(a, b):
        return f"is {a}, not {b}"
    return "" if grad == wanted else f"has requires_grad {grad}"


def _value_difference(got: Any, eager: Any, precise: Any) -> str:
    if not isinstance(got, torch.Tensor) or not isinstance(eager, torch.Tensor):
        return (
            "" if type(got) is type(eager) and (got == eager or got != got) else f"is {got!r}, not {eager!r}"
        )
    if same(got, eager):
        return ""
    return value_differs(got, eager, precise if isinstance(precise, torch.Tensor) else None)


def first_bad_stage(program: Program) -> str:
    """What bisecting the first call says; "" if no stage of the pipeline is to blame for it."""
    with quiet(), torch.set_grad_enabled(with_engine(program)):
        try:
            space = program.module()
            _, given = _with_grad(space["inputs"](*program.sizes[0]), program.grad)
            torch.manual_seed(5)
            finding = bisect(space["fn"], *given)
        except Exception as e:  # bisecting is a help, not the verdict
            return f"not bisected: {type(e).__name__}: {e}".splitlines()[0]
    return "" if finding.agrees else str(finding)


# ---- shrinking ------------------------------------------------------------------------------------


def shrink(failure: Failure) -> Failure:
    """The same kind of failure with as few results, statements and oddities as it takes."""
    deadline, best, progress = time.monotonic() + SHRINK_SECONDS, failure, True
    while progress:
        progress = False
        for smaller in _smaller(best.program):
            if time.monotonic() > deadline:
                return best
            try:
                found = Failure(smaller, judge(smaller), failure.seed)
            except Exception as error:
                log.debug("shrinking: no longer a program: %s", error)
                continue
            if found.reason and found.kind.split(",")[0] == best.kind.split(",")[0]:
                best, progress = found, True
                break
    return best


def _smaller(p: Program) -> Iterator[Program]:
    """Programs a step simpler, most promising first."""
    if len(p.returns) > 1:
        for i in range(len(p.returns)):
            yield replace(p, returns=p.returns[:i] + p.returns[i + 1 :])
    for i in reversed(range(len(p.statements))):
        yield replace(p, statements=p.statements[:i] + p.statements[i + 1 :])
    for i in reversed(range(len(p.statements))):
        made = re.match(r"(\w+) = ", p.statements[i])
        for name in set(re.findall(r"\b[axb]\d+\b", p.statements[i][len(made.group(0)) :] if made else "")):
            rename = re.compile(rf"\b{made.group(1)}\b")
            rest = tuple(rename.sub(name, s) for s in p.statements[i + 1 :])
            yield replace(
                p, statements=p.statements[:i] + rest, returns=tuple(rename.sub(name, r) for r in p.returns)
            )
    last = len(p.inputs) - 1
    if last > 0 and not re.search(rf"\bx{last}\b", " ".join((*p.statements, *p.returns))):
        yield replace(p, inputs=p.inputs[:-1])
    if p.backend != "reference":
        yield replace(p, backend="reference")
    if p.grad:
        yield replace(p, grad="")
    for i, e in enumerate(p.inputs):
        plain = re.sub(r"'\w+'", "'contiguous'", e)
        if plain != e:
            yield replace(p, inputs=p.inputs[:i] + (plain,) + p.inputs[i + 1 :])


# ---- the loop -------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a run of the fuzzer did."""

    programs: int = 0
    compiled: int = 0
    refusals: Counter = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    kinds: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        refused = ", ".join(f"{code} {n}" for code, n in self.refusals.most_common()) or "none"
        lines = [f"{self.programs} programs, {len(self.failures)} faults that differ; refusals: {refused}"]
        lines += [f"  seed {f.seed}: {f.reason}\n    {f.stage}" for f in self.failures]
        return "\n".join(lines)


def program_of(seed: int) -> Program:
    """The program of a seed; one in CPP_ONE_IN is for the compiled backend."""
    return replace(generate(seed), backend="cpp" if seed % CPP_ONE_IN == 0 else "reference")


def fuzz(
    seeds: Iterator[int] | Sequence[int],
    seconds: float = 1e9,
    out: Path | None = None,
    tell: Callable[[str], None] = print,
) -> Report:
    """Judges the programs of `seeds` until the time is up. Scripts go into `out`, together with the program
    that is running: a crash of the process leaves it there."""
    report, end, seen = Report(), time.monotonic() + seconds, set()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        if time.monotonic() > end:
            break
        program = program_of(seed)
        if out is not None:
            (out / "running.py").write_text(str(Failure(program, "running", seed)))
        reason = judge(program, report.refusals)
        report.programs += 1
        if reason:
            failure = Failure(program, reason, seed)
            report.kinds[failure.kind] += 1
            if report.kinds[failure.kind] <= 3:
                failure = shrink(failure)
                failure = replace(failure, stage=first_bad_stage(failure.program))
            if failure.key not in seen:
                seen.add(failure.key)
                report.failures.append(failure)
                tell(f"seed {seed}: {failure.reason}\n    {failure.stage}")
                if out is not None:
                    (out / f"seed{seed}.py").write_text(str(failure))
        api.reset()
    return report


def replay(path: str | Path) -> str:
    """What the program in a file written by `fuzz` does differently; "" if nothing."""
    return judge(load(path))


def load(path: str | Path) -> Program:
    """The program in a file. Its `inputs` and `fn` are run as they are; the rest is data."""
    text = Path(path).read_text()
    space: dict[str, Any] = {"__name__": "fuzzed", "__file__": str(path)}
    exec(compile(text, str(path), "exec"), space)
    return Written(text, space)


class Written(Program):
    """A program that was read from a file."""

    def __init__(self, text: str, space: dict[str, Any]) -> None:
        fields = {
            "inputs": (),
            "statements": (),
            "returns": (),
            "sizes": space["SIZES"],
            "grad": space["GRAD"],
            "backend": space["BACKEND"],
            "text": text,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return self.text  # type: ignore[attr-defined]
