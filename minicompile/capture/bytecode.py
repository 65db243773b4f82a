"""Bytecode of CPython 3.11, 3.12 and 3.13, normalised into one dialect.

Takes a code object and gives a `Code`: a flat tuple of (name, argument) instructions whose arguments are
values (a name, a constant, an operator function, an instruction index) instead of numbers, with the
exception table beside it. Nothing behind this file knows about versions. Comes before `interp`; imports
nothing of torch.

The dialect, where it differs from every version:
- CALL n, CALL_KW n (keyword names on top) and CALL_FUNCTION_EX find (a, b) below the arguments, one of
which may be NULL: NULL, f or f, NULL
  or method, self. So LOAD_METHOD is LOAD_ATTR; NULL_BELOW: the stack is CPython's own, but for bound methods.
- jumps name the index of an instruction; those that may pop or keep are spelled out with COPY and POP_TOP.
- FOR_ITER pops the exhausted iterator and jumps behind the loop. SEND (target, keeps_receiver) as 3.11 or
as 3.12 do. - YIELD_VALUE's argument tells whether the frame is suspended inside a `yield from`.
"""

from __future__ import annotations

import dis
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

VERSION = sys.version_info[:2]


@dataclass(frozen=True, slots=True)
class Handler:
    """Where an exception raised at an instruction goes: unwind the stack to `depth`, push the position if
    `lasti`, push the exception."""

    target: int
    depth: int
    lasti: bool


@dataclass(frozen=True, slots=True)
class Code:
    """One code object in the dialect.

    ops        (name, argument) per instruction
    offsets    byte offset of each instruction in the original (several may share one)
    handlers   exception handler of each instruction, or None
    locals     names of all slots: variables, then cells, then free variables, of which the last `free` come
               from the closure
    """

    code: CodeType
    ops: tuple[tuple[str, Any], ...]
    offsets: tuple[int, ...]
    handlers: tuple[Handler | None, ...]
    locals: tuple[str, ...]
    free: int

    def position(self, index: int) -> tuple[int | None, int | None, int | None, int | None]:
        """(line, end line, column, end column) of instruction `index` in the user's source."""
        want = self.offsets[index] // 2
        for i, position in enumerate(self.code.co_positions()):
            if i == want:
                return position
        return (None, None, None, None)

    def line(self, index: int) -> int:
        """The source line of instruction `index`."""
        want = self.offsets[index]
        for start, end, line in self.code.co_lines():
            if start <= want < end:
                return line or self.code.co_firstlineno
        return self.code.co_firstlineno

    def __str__(self) -> str:
        lines = [f"{self.code.co_qualname}({', '.join(self.locals)})"]
        for i, (op, arg) in enumerate(self.ops):
            h = self.handlers[i]
            lines.append(
                f"{i:4} {op:24} {'' if arg is None else arg!r:30}"
                + (f" on error {h.target}, {h.depth}" if h else "")
            )
        return "\n".join(lines)


_BINARY = (
    "add", "and_", "floordiv", "lshift", "matmul", "mul", "mod", "or_", "pow", "rshift", "sub", "truediv",
    "xor")
BINARY_OPS: tuple[Callable[[Any, Any], Any], ...] = tuple(getattr(operator, n) for n in _BINARY) + tuple(
    getattr(operator, "i" + n.rstrip("_")) for n in _BINARY
)
COMPARE_OPS = {
    "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt,
    ">=": operator.ge}
CONVERSIONS = (None, str, repr, ascii)


@dataclass(slots=True)
class _Context:
    """What the rules need besides the instruction: the code, the jump base, and a keyword-names flag for
    3.11 and 3.12."""

    code: CodeType
    next: int = 0  # byte offset behind this instruction and its caches
    keywords: bool = False
    following: list[tuple[str, int]] = field(default_factory=list)  # the instructions behind this one


@dataclass(frozen=True, slots=True)
class _Label:
    offset: int


Ops = list[tuple[str, Any]]


def _name(op: str) -> Callable[[int, _Context], Ops]:
    return lambda a, c: [(op, c.code.co_names[a])]


def _same(op: str) -> Callable[[int, _Context], Ops]:
    return lambda a, c: [(op, a)]


def _jump(op: str, direction: int = 1) -> Callable[[int, _Context], Ops]:
    return lambda a, c: [(op, _Label(c.next + direction * 2 * a))]


def _jump_back_if(opposite: str) -> Callable[[int, _Context], Ops]:
    """JUMP is the only instruction that goes back: laps of loops are counted there."""
    return lambda a, c: [(f"POP_JUMP_IF_{opposite}", _Label(c.next)), ("JUMP", _Label(c.next - 2 * a))]


def _jump_or_pop(op: str) -> Callable[[int, _Context], Ops]:
    return lambda a, c: [("COPY", 1), (op, _Label(c.next + 2 * a)), ("POP_TOP", None)]


def _fixed(*ops: tuple[str, Any]) -> Callable[[int, _Context], Ops]:
    return lambda a, c: list(ops)


_NULL_BESIDE = "PUSH_NULL" if VERSION >= (3, 13) else "NULL_BELOW"


def _load_global(a: int, c: _Context) -> Ops:
    load = ("LOAD_GLOBAL", c.code.co_names[a >> 1])
    if not a & 1:
        return [load]
    return [("PUSH_NULL", None), load] if VERSION < (3, 13) else [load, ("PUSH_NULL", None)]


def _load_attr(a: int, c: _Context) -> Ops:
    if VERSION < (3, 12):
        return [("LOAD_ATTR", c.code.co_names[a])]
    load = ("LOAD_ATTR", c.code.co_names[a >> 1])
    return [load, (_NULL_BESIDE, None)] if a & 1 else [load]


def _load_super_attr(a: int, c: _Context) -> Ops:
    load = ("LOAD_SUPER_ATTR", (c.code.co_names[a >> 2], bool(a & 2)))
    return [load, (_NULL_BESIDE, None)] if a & 1 else [load]


def _kw_names(a: int, c: _Context) -> Ops:
    c.keywords = True
    return [("LOAD_CONST", c.code.co_consts[a])]


def _call(a: int, c: _Context) -> Ops:
    keywords, c.keywords = c.keywords, False
    return [("CALL_KW" if keywords else "CALL", a)]


def _compare(a: int, c: _Context) -> Ops:
    shift = {(3, 11): 0, (3, 12): 4}.get(VERSION, 5)
    return [("BINARY_OP", COMPARE_OPS[dis.cmp_op[a >> shift]])]


def _format_value(a: int, c: _Context) -> Ops:
    convert: Ops = [("UNARY_OP", CONVERSIONS[a & 3])] if a & 3 else []
    if not a & 4:
        return [*convert, ("FORMAT_SIMPLE", None)]
    return [*([("SWAP", 2), *convert, ("SWAP", 2)] if convert else []), ("FORMAT_WITH_SPEC", None)]


def _make_function(a: int, c: _Context) -> Ops:
    for op, arg in c.following:  # 3.13 sets defaults and closure afterwards; the stack below is the same
        if op != "SET_FUNCTION_ATTRIBUTE":
            break
        a |= arg
    return [("MAKE_FUNCTION", a)]


def _yield(a: int, c: _Context) -> Ops:
    resume = next((arg for op, arg in c.following if op == "RESUME"), 1)
    return [("YIELD_VALUE", resume & 3 >= 2)]


def _for_iter(a: int, c: _Context) -> Ops:
    skip = {(3, 11): 0, (3, 12): 2}.get(VERSION, 4)  # END_FOR, and in 3.13 the POP_TOP behind it
    return [("FOR_ITER", _Label(c.next + 2 * a + skip))]


def _intrinsic(op: str, known: dict[int, tuple[str, Any]]) -> Callable[[int, _Context], Ops]:
    return lambda a, c: [known.get(a, (op, a))]


_NAMES = (
    "LOAD_NAME STORE_NAME DELETE_NAME STORE_GLOBAL DELETE_GLOBAL STORE_ATTR DELETE_ATTR IMPORT_NAME "
    "IMPORT_FROM"
).split()
_COUNTS = (
    "COPY SWAP BUILD_TUPLE BUILD_LIST BUILD_SET BUILD_MAP BUILD_STRING BUILD_SLICE UNPACK_SEQUENCE "
    "UNPACK_EX LIST_EXTEND SET_UPDATE DICT_UPDATE DICT_MERGE LIST_APPEND SET_ADD MAP_ADD LOAD_FAST "
    "STORE_FAST DELETE_FAST LOAD_FAST_AND_CLEAR MAKE_CELL LOAD_DEREF STORE_DEREF DELETE_DEREF "
    "MATCH_CLASS CALL_FUNCTION_EX IS_OP CONTAINS_OP BUILD_CONST_KEY_MAP CALL_KW"
).split()
_PLAIN = (
    "POP_TOP PUSH_NULL UNARY_NOT BINARY_SUBSCR STORE_SUBSCR "
    "DELETE_SUBSCR GET_LEN MATCH_MAPPING MATCH_SEQUENCE MATCH_KEYS PUSH_EXC_INFO CHECK_EXC_MATCH "
    "CHECK_EG_MATCH WITH_EXCEPT_START BEFORE_WITH GET_ITER GET_YIELD_FROM_ITER LOAD_BUILD_CLASS "
    "LOAD_ASSERTION_ERROR LIST_TO_TUPLE RETURN_VALUE SETUP_ANNOTATIONS PREP_RERAISE_STAR "
    "POP_EXCEPT LOAD_LOCALS CLEANUP_THROW GET_AITER END_SEND FORMAT_SIMPLE FORMAT_WITH_SPEC "
    "RERAISE"
).split()
_DROPPED = (
    "CACHE RESUME NOP PRECALL EXTENDED_ARG COPY_FREE_VARS RETURN_GENERATOR TO_BOOL END_FOR "
    "SET_FUNCTION_ATTRIBUTE INTERPRETER_EXIT"
).split()

_CONDITIONS = {"TRUE": "FALSE", "FALSE": "TRUE", "NONE": "NOT_NONE", "NOT_NONE": "NONE"}

RULES: dict[str, Callable[[int, _Context], Ops]] = {
    **{n: _name(n) for n in _NAMES},
    **{n: _same(n) for n in _COUNTS},
    **{n: _fixed((n, None)) for n in _PLAIN},
    **{n: _fixed() for n in _DROPPED},
    **{f"POP_JUMP_{d}IF_{k}": _jump(f"POP_JUMP_IF_{k}") for d in ("", "FORWARD_") for k in _CONDITIONS},
    **{f"POP_JUMP_BACKWARD_IF_{k}": _jump_back_if(_CONDITIONS[k]) for k in _CONDITIONS},
    "JUMP_FORWARD": _jump("JUMP"),
    "JUMP_BACKWARD": _jump("JUMP", -1),
    "JUMP_BACKWARD_NO_INTERRUPT": _jump("JUMP", -1),
    "JUMP_IF_TRUE_OR_POP": _jump_or_pop("POP_JUMP_IF_TRUE"),
    "JUMP_IF_FALSE_OR_POP": _jump_or_pop("POP_JUMP_IF_FALSE"),
    "FOR_ITER": _for_iter,
    "SEND": lambda a, c: [("SEND", (_Label(c.next + 2 * a), VERSION >= (3, 12)))],
    "YIELD_VALUE": _yield,
    "LOAD_CONST": lambda a, c: [("LOAD_CONST", c.code.co_consts[a])],
    "RETURN_CONST": lambda a, c: [("LOAD_CONST", c.code.co_consts[a]), ("RETURN_VALUE", None)],
    "LOAD_FAST_CHECK": lambda a, c: [("LOAD_FAST", a)],
    "LOAD_CLOSURE": lambda a, c: [("LOAD_FAST", a)],
    "LOAD_FAST_LOAD_FAST": lambda a, c: [("LOAD_FAST", a >> 4), ("LOAD_FAST", a & 15)],
    "STORE_FAST_LOAD_FAST": lambda a, c: [("STORE_FAST", a >> 4), ("LOAD_FAST", a & 15)],
    "STORE_FAST_STORE_FAST": lambda a, c: [("STORE_FAST", a >> 4), ("STORE_FAST", a & 15)],
    "LOAD_GLOBAL": _load_global,
    "LOAD_ATTR": _load_attr,
    "LOAD_METHOD": lambda a, c: [("LOAD_ATTR", c.code.co_names[a]), (_NULL_BESIDE, None)],
    "LOAD_SUPER_ATTR": _load_super_attr,
    "LOAD_CLASSDEREF": lambda a, c: [("LOAD_LOCALS", None), ("LOAD_FROM_DICT_OR_DEREF", a)],
    "LOAD_FROM_DICT_OR_DEREF": _same("LOAD_FROM_DICT_OR_DEREF"),
    "LOAD_FROM_DICT_OR_GLOBALS": _name("LOAD_FROM_DICT_OR_GLOBALS"),
    "KW_NAMES": _kw_names,
    "CALL": _call,
    "UNARY_NEGATIVE": _fixed(("UNARY_OP", operator.neg)),
    "UNARY_POSITIVE": _fixed(("UNARY_OP", operator.pos)),
    "UNARY_INVERT": _fixed(("UNARY_OP", operator.invert)),
    "PRINT_EXPR": _fixed(("PRINT_EXPR", None), ("POP_TOP", None)),
    "IMPORT_STAR": _fixed(("IMPORT_STAR", None), ("POP_TOP", None)),
    "COMPARE_OP": _compare,
    "RAISE_VARARGS": lambda a, c: [("RAISE_VARARGS", a)] if a else [("LOAD_HANDLED", None), ("RERAISE", 0)],
    "BINARY_OP": lambda a, c: [("BINARY_OP", BINARY_OPS[a])],
    "BINARY_SLICE": _fixed(("BUILD_SLICE", 2), ("BINARY_SUBSCR", None)),
    "STORE_SLICE": _fixed(("BUILD_SLICE", 2), ("STORE_SUBSCR", None)),
    "FORMAT_VALUE": _format_value,
    "CONVERT_VALUE": lambda a, c: [("UNARY_OP", CONVERSIONS[a])],
    "MAKE_FUNCTION": _make_function,
    "CALL_INTRINSIC_1": _intrinsic("CALL_INTRINSIC_1", {
        1: ("PRINT_EXPR", None), 2: ("IMPORT_STAR", None), 5: ("UNARY_OP", operator.pos),
        6: ("LIST_TO_TUPLE", None)}),
    "CALL_INTRINSIC_2": _intrinsic("CALL_INTRINSIC_2", {}),
}


def decode(code: CodeType) -> Iterator[tuple[int, int, str, int]]:
    """(offset, offset behind the caches, name, argument) of each instruction, EXTENDED_ARG folded in and
    caches skipped."""
    raw, names, i, extended = code.co_code, dis.opname, 0, 0
    cache, extend = dis.opmap["CACHE"], dis.opmap["EXTENDED_ARG"]
    start = 0
    while i < len(raw):
        op, arg = raw[i], raw[i + 1] | extended
        i += 2
        if op == extend:
            extended = arg << 8
            continue
        while i < len(raw) and raw[i] == cache:
            i += 2
        yield start, i, names[op], arg
        start, extended = i, 0


def _varints(table: bytes) -> Iterator[int]:
    it = iter(table)
    for byte in it:
        value = byte & 63
        while byte & 64:
            byte = next(it)
            value = value << 6 | byte & 63
        yield value


def ranges(code: CodeType) -> list[tuple[int, int, int, int, bool]]:
    """The exception table, in byte offsets: (start, end, handler, stack depth, whether the position is
    pushed). Ranges do not overlap."""
    found, numbers = [], _varints(code.co_exceptiontable)
    for start in numbers:
        length, target, depth_lasti = next(numbers), next(numbers), next(numbers)
        found.append((start * 2, (start + length) * 2, target * 2, depth_lasti >> 1, bool(depth_lasti & 1)))
    return found


def _handlers(code: CodeType, offsets: list[int], index: dict[int, int]) -> tuple[Handler | None, ...]:
    """The handler of each instruction."""
    table = [(start, end, Handler(index[to], depth, lasti)) for start, end, to, depth, lasti in ranges(code)]
    return tuple(next((h for start, end, h in table if start <= offset < end), None) for offset in offsets)


def _resolve(arg: Any, index: dict[int, int]) -> Any:
    if isinstance(arg, _Label):
        return index[arg.offset]
    if type(arg) is tuple and arg and isinstance(arg[0], _Label):
        return (index[arg[0].offset], *arg[1:])
    return arg


def normalise(code: CodeType) -> Code:
    """`code` in the dialect. Instructions that have no rule (those of coroutines) become UNSUPPORTED, which
    raises when it is reached."""
    decoded = list(decode(code))
    context, ops, offsets, index = _Context(code), [], [], {}
    for i, (offset, behind, name, arg) in enumerate(decoded):
        context.next = behind
        if name in ("MAKE_FUNCTION", "YIELD_VALUE"):
            context.following = [(n, a) for _, _, n, a in decoded[i + 1 : i + 6]]
        index[offset] = len(ops)
        rule = RULES.get(name)
        new = rule(arg, context) if rule else [("UNSUPPORTED", name)]
        ops += new
        offsets += [offset] * len(new)
    index[len(code.co_code)] = len(ops)
    names = _local_names(code)
    return Code(
        code, tuple((op, _resolve(arg, index)) for op, arg in ops), tuple(offsets),
        _handlers(code, offsets, index), names, len(code.co_freevars))


def _local_names(code: CodeType) -> tuple[str, ...]:
    own = code.co_varnames
    return (*own, *(c for c in code.co_cellvars if c not in own), *code.co_freevars)
