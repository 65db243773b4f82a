"""Errors and refusals, the vocabulary of every stage.

Takes nothing and gives the exception types; sits before the first stage. A `Refusal` is a value *and* an
exception: stages raise it, the API turns it into "run as in eager mode" and records it;
`fullgraph=True` and `MINICOMPILE_STRICT=1` raise it to the user.
"""
from __future__ import annotations

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


class MinicompileError(Exception):
    """Base of everything minicompile raises on its own account."""


class Refusal(MinicompileError):
    """A stage says no, with a reason; the program then runs as it would have in eager mode.

    `code` is a short stable word per reason class (`"data-dependent"`, `"needs-grad"`), used for counting
    and for documentation pages.
    """

    def __init__(self, code: str, reason: str, where: Where | None = None):
        super().__init__(f"[{code}] {reason}" + (f" at {where}" if where else ""))
        self.code, self.reason, self.where = code, reason, where


class CheckError(MinicompileError):
    """A verifier found a border object that breaks its own rules: a bug in minicompile, named by stage and
    node."""

    def __init__(self, stage: str, node: str, reason: str):
        super().__init__(f"{stage}: {node}: {reason}")
        self.stage, self.node, self.reason = stage, node, reason


class ToolchainError(MinicompileError):
    """The C++ compiler is missing, failed, or took too long; the message says what to install or what it
    printed."""
