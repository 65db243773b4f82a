"""A contest between a compiled graph and eager mode, on the caller's own first calls.

Takes the native graph and the captured one as eager mode runs it; `pipeline` starts it, `explain` shows it.
While it lasts, calls of the graph come here (`Graph.instead`); afterwards they go to the winner, at no cost.
"""
from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

TURNS = 6                # calls in which both sides are timed; eager mode has to win twice as many
MARGIN = 1.15            # how much faster eager mode has to be
CALL_SECONDS = 0.03      # where one call takes longer, trying both would be felt
SHORT_SECONDS = 1e-4     # shorter calls are run REPEATS times a turn: one of them alone measures the clock
REPEATS = 4


class Contest:
    """Times both sides in turn and keeps the least time of each: noise only ever adds. The caller gets what
    the compiled graph gave. Graphs that write to inputs or draw random numbers take no part, so nothing else
    shows that both ran; and only one side holds memory at a time.

    seconds   least seconds of a call so far: (compiled, eager mode)
    verdict   "" while it lasts, else what was found, in words
    """

    def __init__(self, graph: Any, eager: Callable[..., Any], say: Callable[[str], None]):
        self.graph, self.eager, self.say = graph, eager, say
        self.turns, self.verdict, self.seconds = 0, "", (math.inf, math.inf)
        self._free = threading.Lock()
        graph.instead = self

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        if self.verdict or not self._free.acquire(blocking=False):   # another thread's call is being timed
            return self.graph.run(*inputs)
        try:
            return self._turn(inputs)
        finally:
            self._free.release()

    def __str__(self) -> str:
        return self.verdict or f"not decided after {self.turns} calls"

    def finish(self, inputs: Sequence[Any]) -> None:
        """Holds it to its end at once."""
        while not self.verdict:
            self(*inputs)

    def _turn(self, inputs: Sequence[Any]) -> Sequence[Any]:
        if self.turns < 2:                   # the first touches memory for the first time; neither is counted
            seconds, result = _timed(self.graph.run, inputs)
            self.turns += 1
            if self.turns == 2 and seconds > CALL_SECONDS:
                self._settle(f"not compared with eager mode: a call takes {seconds * 1e3:.0f} ms")
            return result
        best, repeats = list(self.seconds), REPEATS if max(self.seconds) < SHORT_SECONDS else 1
        self.graph.rest()                                    # eager mode needs memory of its own
        try:
            for _ in range(repeats):
                best[1] = min(best[1], _timed(self.eager, inputs)[0])
        except Exception as e:
            self._settle(f"not compared with eager mode, which raised {type(e).__name__}: {e}")
            return self.graph.run(*inputs)
        self.graph.run(*inputs)                              # takes its memory again
        for _ in range(repeats):
            result = None                                    # goes before the next is made
            seconds, result = _timed(self.graph.run, inputs)
            best[0] = min(best[0], seconds)
        self.turns, self.seconds = self.turns + 1, (best[0], best[1])
        wins = best[1] * MARGIN < best[0]
        if self.turns > (2 * TURNS if wins else TURNS) + 1:
            text = f"a call takes {best[0] * 1e6:.1f} us compiled, {best[1] * 1e6:.1f} us in eager mode"
            self._settle(f"{text}, which runs from now on" if wins else text, wins)
        return result

    def _settle(self, verdict: str, eager_wins: bool = False) -> None:
        self.verdict = verdict
        self.graph.instead = self.eager if eager_wins else None
        self.say(verdict)


def _timed(call: Callable[..., Any], inputs: Sequence[Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call(*inputs)
    return time.perf_counter() - start, result
