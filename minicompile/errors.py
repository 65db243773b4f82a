"""Errors and refusals, the vocabulary of every stage.

Takes nothing and gives the exception types; sits before the first stage. A `Refusal` is a value *and* an
exception: stages raise it, the API turns it into "run as in eager mode" and records it;
`fullgraph=True` and `MINICOMPILE_STRICT=1` raise it to the user.
"""
from __future__ import annotations

import linecache
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Where:
    """A place in the user's program (innermost user frame); `columns` is (start, end) there, if known."""

    file: str
    line: int
    function: str = ""
    columns: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" in {self.function}" if self.function else "")

    def excerpt(self) -> list[str]:
        """The user's line with a caret line under the part that is meant; nothing without the source."""
        line = linecache.getline(self.file, self.line).rstrip("\n")
        if not line.strip():
            return []
        start, end = self.columns or (len(line) - len(line.lstrip()), len(line))
        if not start < end <= len(line):                # an expression over several lines: to this one's end
            end = len(line)
        cut = len(line) - len(line.lstrip())
        return ["    " + line[cut:], "    " + " " * (start - cut) + "^" * (end - start)]


class MinicompileError(Exception):
    """Base of everything minicompile raises on its own account."""


class Refusal(MinicompileError):
    """A stage says no, with a reason; the program then runs as it would have in eager mode.

    `code` is a short stable word per reason class (`"data-dependent"`, `"needs-grad"`), used for counting
    and for documentation pages. `calls` and `seconds` count what ran as in eager mode instead, at a break.
    """

    calls, seconds = 0, 0.0

    def __init__(self, code: str, reason: str, where: Where | None = None):
        super().__init__(f"[{code}] {reason}" + (f" at {where}" if where else ""))
        self.code, self.reason, self.where = code, reason, where

    @property
    def number(self) -> str:
        """The number of the reason class, as in docs/refusals.md."""
        return f"R{[*CLASSES].index(self.code) + 1:02}" if self.code in CLASSES else "R00"

    def describe(self) -> str:
        """Number, code and reason; the user's line with a caret; what can be done; what it costs."""
        lines = [f"{self.number} [{self.code}] {self.reason}"]
        if self.where:
            lines += [f"  at {self.where}", *self.where.excerpt()]
        lines += [f"  hint: {hint}"] if (hint := CLASSES.get(self.code)) else []
        if self.calls:
            each = self.seconds / self.calls * 1e6
            lines.append(f"  in eager mode: ~{each:.1f} us per call, {self.calls} calls")
        return "\n".join(lines)


# Reason classes in the order of their numbers (new ones go to the end), with what the user can do.
CLASSES: dict[str, str] = dict(line.partition(": ")[::2] for line in """\
alias-grad
aliased-inputs
aliasing
ambient-state: end the torch mode or autocast block before the operation that breaks, or begin it after
as-strided
autograd-function: pass what forward and backward need as arguments of apply()
bytecode
class-write: set the attribute on the instance
constant-write: make the tensor an argument, an attribute or a buffer
core
data-dependent: keep values in tensors (torch.where, masks) instead of .item(), .numpy() and if
descriptor
device: move the tensors to the CPU
disabled: it is marked with disable(); take the mark away, or call it outside the hot path
dtype
escapes: make the object before the call, or of a class that Python code can make again
external-iterator: hand in a list or range, or make the iterator inside
frame-access: look at locals() and frames outside the compiled function
forward-mode
geometry-write
guard: hand the value in as an argument
hidden-state: hand in what is inside the object as arguments
huge-container: hand in only the elements that are used
import: import the module at the top of the file
impure-call: move the call out of the compiled function, or hand its result in as an argument
in-place
inference-mode
internal: a bug of minicompile: please report it with what the log says
layout
module-write: keep the value in an object of your own
needs-grad
nested-capture
no-meta
numpy: use torch functions in place of numpy's
out
overlap
prim
raises: the exception leaves the call as in eager mode; nothing to do
set: use a dict or a list of the objects
subclass
tensor-attribute: read or set the attribute outside the compiled function
tensor-key
tensor-layout
tensor-subclass: pass plain tensors
untracked-tensor: use the public torch function in place of a private one
varying
view-write
break
history: read grad_fn outside the compiled function
graph-break: take the call of graph_break() away
autograd-inside: call backward() and grad() outside the compiled function
backward-hook: hooks of the backward make a module run as in eager mode; register them on tensors outside
forbidden
""".splitlines())


class CheckError(MinicompileError):
    """A verifier found a border object that breaks its own rules: a bug in minicompile, named by stage and
    node."""

    def __init__(self, stage: str, node: str, reason: str):
        super().__init__(f"{stage}: {node}: {reason}")
        self.stage, self.node, self.reason = stage, node, reason


class ToolchainError(MinicompileError):
    """The C++ compiler is missing, failed, or took too long; the message says what to install or what it
    printed."""
