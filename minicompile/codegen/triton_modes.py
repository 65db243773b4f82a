"""What `mode=` adds on a GPU: block shapes chosen by timing, and CUDA graphs.

Takes a `Plan` or the call of a graph, gives a choice of blocks for `codegen.triton`, or the call recorded;
used by `triton_driver`.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..loops.ir import Buffer
from ..schedule.plan import Kernel, Plan
from .source import Source
from .triton import Choice, TritonLaunch, emit
from .triton_blocks import Blocks, candidates

Call = Callable[..., tuple[torch.Tensor, ...]]


def tuned(plan: Plan, timer: Callable[[Source, TritonLaunch], float]) -> Choice:
    """The blocks of each kernel that `timer` (a source and one of its launches → a time) finds fastest."""
    best: dict[str, tuple[float, Blocks]] = {}
    kernels = [s for s in plan.steps if isinstance(s, Kernel)]
    shapes = {k.name: candidates(k, plan.buffers) for k in kernels}
    for n in range(max((len(s) for s in shapes.values()), default=0)):
        chosen = {name: s[n] for name, s in shapes.items() if n < len(s)}
        source = emit(plan, lambda k, _, c=chosen: c.get(k.name, shapes[k.name][0]))
        for step, call in zip(plan.steps, source.calls):
            if isinstance(call, TritonLaunch) and call.programs and step.name in chosen:
                took = timer(source, call)
                best[step.name] = min(best.get(step.name, (took, chosen[step.name])),
                                      (took, chosen[step.name]), key=lambda pair: pair[0])

    def choose(kernel: Kernel, buffers: Mapping[str, Buffer]) -> Blocks:
        return best[kernel.name][1] if kernel.name in best else candidates(kernel, buffers)[0]
    return choose


class Recorded:
    """The call of a graph as a CUDA graph: recorded at the second call, replayed while the same tensors
    come.

    Inputs that come at another address are copied to where the recorded ones were; results are copies, as
    the next replay writes over its own."""

    def __init__(self, call: Call):
        self.call, self.graph, self.calls = call, None, 0
        self.inputs: tuple[torch.Tensor, ...] = ()
        self.results: tuple[torch.Tensor, ...] = ()

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        if self.calls == 1:                             # compiles the kernels, warms up libraries
            return self.call(*inputs)
        if self.graph is None:
            self._record(inputs)
        for mine, given in zip(self.inputs, inputs):
            if mine.data_ptr() != given.data_ptr():
                mine.copy_(given)
        graph: Any = self.graph
        graph.replay()
        return tuple(t.clone() for t in self.results)

    def _record(self, inputs: tuple[torch.Tensor, ...]) -> None:
        # parameters keep their place; what moves from call to call gets one of its own
        self.inputs = tuple(t.detach() if isinstance(t, torch.nn.Parameter) else t.detach().clone()
                            for t in inputs)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = self.call(*self.inputs)


def why_not_recorded(plan: Plan, stored: tuple[int, ...]) -> str | None:
    """Why a graph is launched step by step also under mode="reduce-overhead", or None."""
    if stored or plan.loops.restrides:
        return "it writes to its inputs"
    if any(r.alias for r in plan.loops.results):
        return "a result is a view"
    return "it checks indices, which waits for the GPU" if plan.loops.errors else None
