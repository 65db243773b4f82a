"""The ladder: every way there is to run a program, from eager mode to machine code, one stage at a time.

Takes the name of an `Engine`, gives what to call in a function's place. Each rung of a ladder adds one stage
to the rung below it, so the first rung that differs from eager mode names the stage that is wrong. Stages of
torch's can take the place of ours: our capture before Inductor or AOTAutograd, Dynamo's capture before our
stages, Triton (interpreted) in place of C++. `check`, the fuzzer and the planted faults all walk it.
"""
from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import api
from ..config import config
from ..errors import CheckError, MinicompileError, Where
from .bisection import bisect
from .observe import Difference, Observation, Session, differences, run

Make = Callable[[Callable], Callable]


def ours(**settings: Any) -> Make:
    """An engine that is minicompile with these settings; every border object is verified."""
    options = {"check": True, **settings.pop("options", {})}
    return lambda fn: api.compile(fn, options=options, **settings)


def up_to(stage: str) -> Make:
    """minicompile up to the border object of a stage, which its slow reference runs."""
    return ours(options={"stop": stage})


def torchs(backend: Any = "inductor") -> Make:
    """An engine that is torch.compile, with nothing left from before."""
    def make(fn: Callable) -> Callable:
        torch.compiler.reset()
        return torch.compile(fn, backend=backend)
    return make


def inductor(gm: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable:
    """Inductor behind our capture: a backend for `minicompile.compile`."""
    from torch._inductor.compile_fx import compile_fx  # torch's compiler is loaded only where it is asked for
    return compile_fx(gm, list(examples))


def aot_eager(gm: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable:
    """torch's own tracing of forward and backward behind our capture, run op by op."""
    from torch._dynamo.backends.debugging import aot_eager  # torch's compiler: only where it is asked for
    return aot_eager(gm, list(examples))


ENGINES: dict[str, tuple[str, Make]] = {
    "eager": ("PyTorch as it is", lambda fn: fn),
    "capture": ("our captured graph, run by PyTorch", up_to("capture")),
    "aten": ("our ATen graph (in training cut in two, as prims)", up_to("aten")),
    "prims": ("our prims, one reference at a time", up_to("prims")),
    "loops": ("our loop nests, by the loop IR's reference", up_to("loops")),
    "plan": ("our scheduled kernels, by the plan's reference", up_to("plan")),
    "cpp": ("our C++: minicompile as it is", ours(backend="cpp")),
    "triton": ("our Triton kernels, interpreted", ours(backend="triton")),
    "dynamo": ("Dynamo's captured graph, run by PyTorch", torchs("eager")),
    "dynamo+aot_eager": ("Dynamo's graph traced by AOTAutograd, run op by op", torchs("aot_eager")),
    "torch.compile": ("torch.compile as it is: Dynamo, AOTAutograd, Inductor", torchs()),
    "dynamo+minicompile": ("our stages behind Dynamo's capture", torchs(api.torch_backend)),
    "minicompile+inductor": ("Inductor behind our capture", ours(backend=inductor)),
    "minicompile+aot_eager": ("AOTAutograd behind our capture", ours(backend=aot_eager)),
}
LADDERS: dict[str, tuple[str, ...]] = {"minicompile": ("capture", "aten", "prims", "loops", "plan", "cpp"),
                                       "reference": ("capture", "aten", "prims", "loops"),
                                       "triton": ("capture", "aten", "prims", "loops", "plan", "triton"),
                                       "torch.compile": ("dynamo", "dynamo+aot_eager", "torch.compile"),
                                       "dynamo+minicompile": ("dynamo", "dynamo+minicompile"),
                                       "minicompile+inductor": ("capture", "minicompile+aot_eager",
                                                                "minicompile+inductor")}


@dataclass(frozen=True)
class Ran:
    """What an engine made of a session: its observations, or the error of the compiler's own."""

    engine: str
    calls: list[Observation] = field(default_factory=list)
    failed: str = ""
    handle: Any = None

    def differs(self, eager: Ran, precise: Sequence[Observation | None] = ()) -> list[Difference]:
        """What is not as in eager mode; notes (see `observe.NOTES`) come last."""
        if self.failed:
            return [Difference(0, "", "fails", self.failed)]
        internal = next((r.reason for r in self.refusals if r.code == "internal"), "")
        if internal:
            return [Difference(0, "", "internal", f"internal error: {internal}")]
        return sorted(differences(self.calls, eager.calls, precise), key=lambda d: d.is_note)

    @property
    def refusals(self) -> list[Any]:
        return self.handle.refusals if self.handle is not None else []


@dataclass(frozen=True)
class Step:
    """The first rung of a ladder that differs, and from what.

    stage   the rung; "guards" where our capture is right for a call on its own, but not after others
    node    the first wrong node of the stage's graph, as far as it could be told
    agreed  the rungs before it
    """

    stage: str
    difference: Difference
    node: str = ""
    where: Where | None = None
    agreed: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = (f" at {self.node}" if self.node else "") + (f" ({self.where})" if self.where else "")
        agreed = f"; right: {', '.join(self.agreed)}" if self.agreed else ""
        return f"{self.stage} is the first that differs{at}: {self.difference}{agreed}"


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, and no log lines of programs that run as in eager mode."""
    loggers = [logging.getLogger(name) for name in ("minicompile", "torch._dynamo", "torch._inductor")]
    levels = [x.level for x in loggers]
    for x in loggers:
        x.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for x, level in zip(loggers, levels):
            x.setLevel(level)


def runs(fresh: Callable[[], Session], engine: str, make: Make | None = None) -> Ran:
    """The session as an engine runs it. What a compiler raises on its own account is a failure of it."""
    compiled: list[Any] = []

    def remembered(fn: Callable) -> Callable:
        compiled.append((make or ENGINES[engine][1])(fn))
        return compiled[0]
    with quiet():
        try:
            done = run(fresh(), remembered)
        except CheckError as e:
            return Ran(engine, failed=f"{e.stage} breaks its own rules at {e.node}: {e.reason}")
        except MinicompileError as e:
            return Ran(engine, failed=f"{type(e).__name__}: {e}")
        finally:
            if engine in LADDERS["torch.compile"]:
                torch.compiler.reset()
    return Ran(engine, done, handle=api.handle_of(compiled[0]))


def walk(fresh: Callable[[], Session], ladder: str = "minicompile", eager: Ran | None = None,
         precise: Sequence[Observation | None] = (), name_node: bool = True) -> Step | None:
    """The first rung of a ladder that differs from eager mode; None if none does."""
    eager = eager or runs(fresh, "eager")
    agreed: list[str] = []
    for rung in LADDERS[ladder]:
        found = [d for d in runs(fresh, rung).differs(eager, precise) if not d.is_note]
        if found:
            stage = rung
            if rung == "capture" and found[0].call and not _alone_differs(fresh, found[0].call):
                stage = "guards"
            known = name_node and stage in LADDERS["minicompile"]
            node, where = first_bad_node(fresh, rung) if known else ("", None)
            return Step(stage, found[0], node, where, tuple(agreed))
        agreed.append(rung)
    return None


def _alone_differs(fresh: Callable[[], Session], call: int) -> bool:
    """Whether capture is wrong for one call of a session by itself, with nothing compiled before it."""
    def only() -> Session:
        session = fresh()
        first = session.prepare

        def prepare(_: int) -> Any:
            given = None
            for i in range(call + 1):
                given = first(i)
            return given
        session.prepare, session.calls = prepare, 1
        return session
    return any(not d.is_note for d in runs(only, "capture").differs(runs(only, "eager")))


def first_bad_node(fresh: Callable[[], Session], rung: str) -> tuple[str, Where | None]:
    """What bisecting the first call's graph says; ("", None) if that finds nothing."""
    session = fresh()
    given = session.prepare(0)
    with quiet(), torch.set_grad_enabled(session.grad), config.patch(check=False):
        try:
            finding = bisect(session.fn, *given.args, **given.kwargs)
        except Exception as e:  # naming the node is a help, not the verdict
            return f"(no node: {type(e).__name__}: {e})".splitlines()[0], None
    return finding.node, finding.where
