"""Resume: code that goes on where a captured program had to stop, in every frame of its inline stack.

Takes the frames of a stopped interpreter (see `Stop`); gives a `Point`, which names the values that must be
handed over, and plain Python functions made from the frames' own bytecode: one does the operation that
capture refused, one does all that comes after it, one raises what the operation raised. Each is the user's
code object with a beginning of ours, which puts the frame's state back and jumps in: so loops, `with`, `try`
and tracebacks are CPython's matter. Comes after `interp`; knows nothing of torch. `capture` stops at points,
`compiled` runs them.
"""

from __future__ import annotations

import dis
import itertools
import opcode
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CellType, CodeType, FunctionType
from typing import Any

from ..errors import Refusal
from . import handlers
from .bytecode import VERSION, Code, decode, ranges
from .frame import NULL, Frame
from .interp import World, run

OPTIMIZED, VARIADIC, GENERATOR = 0x1, 0x4 | 0x8, 0x20 | 0x80 | 0x100 | 0x200  # co_flags


class Stopped(Refusal):
    """The interpreter has come to the instruction it was to stop at; `frames` are its frames, outermost
    first."""

    def __init__(self, frames: list[Frame]):
        super().__init__("break", "capture ends here")
        self.frames = frames


@dataclass(frozen=True, slots=True)
class Stop:
    """The place of an instruction in a run that will be the same again: the number of its frame, its index
    there, and how often the frame jumped back before."""

    serial: int
    index: int
    laps: int

    def arm(self, frame: Frame) -> None:
        """Makes the frame stop here, if it is the one that is meant."""
        if frame.serial != self.serial:
            return
        op, arg = frame.ops[self.index]

        def reached(f: Frame, a: Any) -> Any:
            if f.laps != self.laps:
                return op(f, arg)
            f.pc -= 1
            frames: list[Frame] = []
            at: Frame | None = f
            while at is not None:
                frames.insert(0, at)
                at = at.back
            raise Stopped(frames)

        frame.ops = (*frame.ops[:self.index], (reached, None), *frame.ops[self.index + 1:])


# What the instructions that can be done for real take from the stack. What they leave follows from their
# net effect.
_POPS: dict[str, Callable[[int], int]] = {
    **dict.fromkeys(
        ("LOAD_ATTR", "LOAD_METHOD", "DELETE_ATTR", "UNARY_NEGATIVE", "UNARY_NOT", "UNARY_INVERT",
         "UNARY_POSITIVE", "GET_ITER", "FOR_ITER", "UNPACK_SEQUENCE", "UNPACK_EX", "IMPORT_FROM",
         "BEFORE_WITH",
         "JUMP_IF_TRUE_OR_POP", "JUMP_IF_FALSE_OR_POP",
         "STORE_GLOBAL", "CONVERT_VALUE", "FORMAT_SIMPLE", "GET_LEN", "STORE_DEREF"), lambda a: 1),
    **dict.fromkeys(
        ("STORE_ATTR", "BINARY_OP", "COMPARE_OP", "BINARY_SUBSCR", "CONTAINS_OP", "DELETE_SUBSCR",
         "IMPORT_NAME", "FORMAT_WITH_SPEC", "IS_OP"), lambda a: 2),
    **dict.fromkeys(("STORE_SUBSCR", "BINARY_SLICE"), lambda a: 3),
    **dict.fromkeys(
        (f"POP_JUMP_{d}IF_{k}" for d in ("", "FORWARD_", "BACKWARD_")
         for k in ("TRUE", "FALSE", "NONE", "NOT_NONE")), lambda a: 1),
    "STORE_SLICE": lambda a: 4, "FORMAT_VALUE": lambda a: 1 + bool(a & 4), "RAISE_VARARGS": lambda a: a,
    "CALL": lambda a: a + 2, "CALL_KW": lambda a: a + 3, "CALL_FUNCTION_EX": lambda a: 3 + (a & 1),
    **dict.fromkeys(("LIST_EXTEND", "SET_UPDATE", "DICT_UPDATE"), lambda a: a + 1),
    "DICT_MERGE": lambda a: a + 3, "BUILD_STRING": lambda a: a}
_KEEPING = frozenset({"LIST_EXTEND", "SET_UPDATE", "DICT_UPDATE", "DICT_MERGE"})
_CALLS = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX"})
_BEFORE = frozenset({"KW_NAMES", "PRECALL", "TO_BOOL"})  # belong to the instruction behind them
_SLOTS = frozenset(
    {"LOAD_FAST", "STORE_FAST", "DELETE_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_AND_CLEAR", "LOAD_CLOSURE",
     "LOAD_DEREF", "STORE_DEREF", "DELETE_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF", "MAKE_CELL"})
_LOOK_AT_LOCALS = frozenset({"locals", "vars", "dir", "eval", "exec", "_getframe", "currentframe", "stack"})


# Assembling


@dataclass(slots=True)
class Ins:
    """An instruction to assemble. `to` and `label` name places: byte offsets of the original, or ours.
    Position and exception handler are those of the original instruction at offset `at`."""

    op: str
    arg: int = 0
    to: Any = None
    at: int | None = None
    label: Any = None
    size: int = 1


def _jumps(name: str) -> bool:
    return dis.opmap[name] in dis.hasjrel


def _caches(name: str) -> int:
    entries: Any = opcode._inline_cache_entries  # type: ignore[attr-defined]
    return entries.get(name, 0) if isinstance(entries, dict) else entries[dis.opmap[name]]


def original(code: CodeType) -> Iterator[Ins]:
    """The instructions of a code object; 3.13's pairs of loads and stores are taken apart."""
    for offset, behind, name, arg in decode(code):
        to = None
        if _jumps(name):
            to = behind + 2 * arg * (-1 if "BACKWARD" in name else 1)
        first, _, second = name.partition("_FAST_")
        if second in ("LOAD_FAST", "STORE_FAST"):
            yield Ins(f"{first}_FAST", arg >> 4, at=offset, label=offset)
            yield Ins(second, arg & 15, at=offset)
        else:
            yield Ins(name, arg, to, offset, offset)


def assemble(code: CodeType, body: list[Ins], **changes: Any) -> CodeType:
    """`code` with the instructions of `body`, and other `changes`."""
    places: dict[Any, int] = {}
    while True:                                         # until no argument outgrows its instruction
        at = 0
        for ins in body:
            if ins.label is not None:
                places[ins.label] = at
            at += ins.size + _caches(ins.op)
        grown = False
        at = 0
        for ins in body:
            at += ins.size + _caches(ins.op)
            if ins.to is not None:
                ins.arg = abs(places[ins.to] - at)
            need = max(1, (ins.arg.bit_length() + 7) // 8)
            grown, ins.size = grown or need > ins.size, max(need, ins.size)
        if not grown:
            break
    raw = bytearray()
    for ins in body:
        for shift in range(8 * (ins.size - 1), 0, -8):
            raw += bytes((dis.opmap["EXTENDED_ARG"], ins.arg >> shift & 255))
        raw += bytes((dis.opmap[ins.op], ins.arg & 255)) + bytes(2 * _caches(ins.op))
    return code.replace(
        co_code=bytes(raw), co_exceptiontable=_handler_table(code, body, places),
        co_linetable=_line_table(code, body), **changes)


def _handler_table(code: CodeType, body: list[Ins], places: dict[Any, int]) -> bytes:
    table, at = ranges(code), 0
    spans: list[tuple[int, int, int, int]] = []         # start, size, handler, how
    for ins in body:
        size = ins.size + _caches(ins.op)
        for start, end, to, depth, lasti in table:
            if ins.at is not None and start <= ins.at < end and to in places:
                handler = (places[to], depth << 1 | lasti)
                if spans and spans[-1][2:] == handler and spans[-1][0] + spans[-1][1] == at:
                    before, length, *_ = spans.pop()
                    spans.append((before, length + size, *handler))
                else:
                    spans.append((at, size, *handler))
                break
        at += size
    out = bytearray()
    for span in spans:
        for n, mark in zip(span, (128, 0, 0, 0)):
            digits = [n & 63]
            while n := n >> 6:
                digits.insert(0, n & 63 | 64)
            out += bytes((digits[0] | mark, *digits[1:]))
    return bytes(out)


def _line_table(code: CodeType, body: list[Ins]) -> bytes:
    """The position table: every entry in its long form, or as having no position."""
    positions, line, out = list(code.co_positions()), code.co_firstlineno, bytearray()
    for ins in body:
        first, last, start, end = positions[ins.at // 2] if ins.at is not None else (None,) * 4
        left = ins.size + _caches(ins.op)
        while left:
            length = min(left, 8)
            left -= length
            if first is None:
                out.append(0x80 | 15 << 3 | length - 1)
                continue
            delta, line = first - line, first
            numbers = [abs(delta) << 1 | (delta < 0)]
            if last is not None and start is not None and end is not None:
                numbers += [last - first, start + 1, end + 1]
            out.append(0x80 | (14 if len(numbers) > 1 else 13) << 3 | length - 1)
            for n in numbers:
                while n > 63:
                    out.append(n & 63 | 64)
                    n >>= 6
                out.append(n)
    return bytes(out)


# Liveness

_LIVE: dict[int, tuple[Code, list[int]]] = {}  # a pure cache: code -> live slots before each instruction
_ENDS = frozenset({"JUMP", "RETURN_VALUE", "RAISE_VARARGS", "RERAISE"})


def live_slots(code: Code, index: int) -> int:
    """The slots (as bits) that a frame may still look at before it sets them, from instruction `index` on."""
    known = _LIVE.get(id(code))
    if known is None:
        known = _LIVE[id(code)] = (code, _live(code))
    return known[1][index]


def _live(code: Code) -> list[int]:
    count = len(code.ops)
    live = [0] * (count + 1)
    changed = True
    while changed:
        changed = False
        for i in range(count - 1, -1, -1):
            op, arg = code.ops[i]
            now = 0 if op in _ENDS else live[i + 1]
            if op == "JUMP" or op == "FOR_ITER" or op.startswith("POP_JUMP"):
                now |= live[arg]
            elif op == "SEND":
                now |= live[arg[0]]
            if op == "STORE_FAST":
                now &= ~(1 << arg)
            elif op in _SLOTS:
                now |= 1 << arg
            handler = code.handlers[i]
            now |= live[handler.target] if handler is not None else 0
            if now != live[i]:
                live[i], changed = now, True
    return live


# Frames


@dataclass(frozen=True, slots=True)
class At:
    """Where one frame waits: at the instructions of its code from byte offset `first` to `behind`, which do
    one operation together, the one at `op`.

    live    the slots that are handed over: variables, and cells as such
    stack   what lies below the operation's operands: True for a value, which is handed over, False for an
            empty slot
    """

    raw: int                                            # id of the code object
    first: int
    live: tuple[int, ...]
    stack: tuple[bool, ...]
    code: Code = field(compare=False, repr=False)
    op: int = field(compare=False)
    behind: int = field(compare=False)
    globals: Any = field(compare=False, repr=False)

    @property
    def width(self) -> int:
        return len(self.live) + sum(self.stack)


@dataclass(frozen=True, slots=True)
class Point:
    """A place to break at: the frames that wait, the innermost in front of an operation. Equal points have
    equal functions.

    frames     outermost first
    operands   of the operation: True for a value, which is handed over behind the frames', False for an
               empty slot
    name       of the operation's instruction
    pushes     how many values the operation leaves on the stack, and how many where it jumps
    jump       byte offset to go on at where it jumps; None if it never does
    """

    frames: tuple[At, ...]
    operands: tuple[bool, ...]
    name: str = field(compare=False)
    pushes: tuple[int, int] = field(compare=False)
    jump: int | None = field(compare=False)

    @property
    def width(self) -> int:
        """How many values are handed over for the frames."""
        return sum(f.width for f in self.frames)

    @property
    def slots(self) -> slice:
        """Those of the values that are the innermost frame's slots."""
        start = self.width - self.frames[-1].width
        return slice(start, start + len(self.frames[-1].live))

    def operation(self) -> FunctionType:
        """Does the operation: (the innermost frame's slots, operands) -> what it leaves on the stack, as a
        tuple, or as a list where it jumps. Raises what the operation raises."""
        at = self.frames[-1]
        ins = [i for i in original(at.code.code) if i.at is not None and at.first <= i.at < at.behind]
        for i in ins:
            i.label = None
            if i.to is not None:
                i.op, i.to = i.op.replace("BACKWARD", "FORWARD"), "jumped"
            if i.at == at.op and self.name == "LOAD_METHOD":
                i.op, i.arg = "LOAD_ATTR", i.arg if VERSION < (3, 12) else i.arg & ~1
        ins += [Ins("BUILD_TUPLE", self.pushes[0], at=at.op), Ins("RETURN_VALUE", at=at.op)]
        if self.jump is not None:
            ends = [Ins("END_FOR"), Ins("POP_TOP")][:_LOOP_ENDS] if self.name == "FOR_ITER" else []
            ends += [Ins("BUILD_LIST", self.pushes[1]), Ins("RETURN_VALUE")]
            ends[0].label = "jumped"
            ins += ends
        return _function(at, self.operands, 0, ins)

    def rest(self, jumped: bool = False) -> FunctionType:
        """Does all that comes after: (what was handed over, what the operation left on the stack) -> the
        outermost frame's result."""
        at, count = self.frames[-1], self.pushes[jumped]
        middle = [Ins("LOAD_FAST", -i) for i in range(count, 0, -1)]
        if self.name == "LOAD_METHOD":                  # an empty slot beside what was found
            middle.insert(VERSION >= (3, 13), Ins("PUSH_NULL"))
        return self._nested(_function(at, at.stack, count, middle, self.jump if jumped else at.behind))

    def raising(self) -> FunctionType:
        """Raises where the operation is: (what was handed over, exception) -> the outermost frame's
        result."""
        at = self.frames[-1]
        middle = [Ins("LOAD_FAST", -1), Ins("RAISE_VARARGS", 1, at=at.op)]
        return self._nested(_function(at, at.stack, 1, middle, at.first))

    def _nested(self, inner: FunctionType) -> FunctionType:
        """The frames around the innermost one, each calling the next one where it called before."""
        for at in reversed(self.frames[:-1]):
            count = inner.__code__.co_argcount
            head = [Ins("PUSH_NULL"), Ins("LOAD_CONST", len(at.code.code.co_consts))]
            loads = [Ins("LOAD_FAST", -i) for i in range(count, 0, -1)]
            call = [Ins("PRECALL", count, at=at.op)] if VERSION < (3, 12) else []
            middle = [*head[::1 if VERSION < (3, 13) else -1], *loads, *call, Ins("CALL", count, at=at.op)]
            inner = _function(at, at.stack, count, middle, at.behind, (inner,))
        return inner


_LOOP_ENDS = VERSION[1] - 11  # instructions behind a loop that an exhausted iterator jumps over


def _function(at: At, pushed: tuple[bool, ...], extra: int, middle: list[Ins], to: int | None = None,
              constants: tuple = ()) -> FunctionType:
    """A function of the code of `at`: its parameters are the live slots, the values `pushed` on its stack and
    `extra` ones. It puts slots and stack back, runs `middle`, where LOAD_FAST of -1 is the last of the
    extra values, and goes on at `to`, if anywhere."""
    code, raw = at.code, at.code.code
    free = len(code.locals) - code.free
    own = [code.locals[i] for i in at.live if i < free]
    count = len(at.live) + sum(pushed) + extra
    added = [f".on_stack{i}" for i in range(len(own), count)]
    names = (*own, *added, *(n for n in raw.co_varnames if n not in own))
    order = (*names, *(n for n in raw.co_cellvars if n not in names), *raw.co_freevars)
    slot = [order.index(n) for n in code.locals]
    given = iter(range(len(own), count))
    cells = [Ins("MAKE_CELL", slot[i]) for i, n in enumerate(code.locals) if n in raw.co_cellvars]
    body = [Ins("COPY_FREE_VARS", code.free)] if code.free else []
    body += [Ins("RESUME"), Ins("JUMP_FORWARD", to="made"), *cells, Ins("NOP", label="made")]  # for f_locals
    for i, n in zip(at.live[len(own):], given):
        body += [Ins("LOAD_FAST", n), Ins("DELETE_FAST", n), Ins("STORE_FAST", slot[i])]
    for present in pushed:
        n = next(given) if present else 0
        body += [Ins("LOAD_FAST", n), Ins("DELETE_FAST", n)] if present else [Ins("PUSH_NULL")]
    for ins in middle:
        given_here = ins.arg < 0                        # one of the extra values
        if ins.op in _SLOTS:
            ins.arg = count + ins.arg if given_here else slot[ins.arg]
        if ins.at is None and to is not None:           # 3.13 looks for a handler in front of a call
            ins.at = at.op
        body += [ins, Ins("DELETE_FAST", ins.arg, at=ins.at)] if given_here else [ins]
    own_part = len(body) + 1
    if to is not None:
        body += [Ins("JUMP_FORWARD", to=to), *original(raw)]
    for ins in body[own_part:]:
        ins.arg = slot[ins.arg] if ins.op in _SLOTS else ins.arg
    made = assemble(
        raw, body, co_argcount=count, co_kwonlyargcount=0, co_posonlyargcount=0, co_nlocals=len(names),
        co_varnames=names, co_flags=raw.co_flags & ~VARIADIC, co_stacksize=raw.co_stacksize + extra + 4,
        co_consts=(*raw.co_consts, *constants))
    sizes = [2 * (ins.size + _caches(ins.op)) for ins in body]
    offsets = {place: ins.at for place, ins in zip(itertools.accumulate(sizes, initial=0), body)}
    _HOMES[id(made)] = Home(code, offsets, tuple(slot), sum(sizes[:own_part]))
    weakref.finalize(made, _HOMES.pop, id(made), None)
    return FunctionType(made, at.globals, raw.co_name, None, tuple(CellType() for _ in raw.co_freevars))


@dataclass(frozen=True, slots=True)
class Home:
    """What a code object of ours was made from: `offsets` maps its instructions' to the original's, `slots`
    the original's slots to its own. The original begins behind the first `own` bytes."""

    code: Code
    offsets: dict[int, int | None]
    slots: tuple[int, ...]
    own: int


_HOMES: dict[int, Home] = {}  # by id of the code object made


def group(code: Code, index: int) -> tuple[int, tuple[int, int, str, int]]:
    """The instructions that belong to the operation of instruction `index` of the dialect: the first one's
    byte offset, and (offset, offset behind, name, argument) of the last."""
    listed = list(decode(code.code))
    first = last = next(i for i, (offset, *_) in enumerate(listed) if offset == code.offsets[index])
    while listed[last][2] in _BEFORE:
        last += 1
    while first and listed[first - 1][2] in _BEFORE:
        first -= 1
    return listed[first][0], listed[last]


def _index(code: Code, offset: int) -> int:
    return next((i for i, o in enumerate(code.offsets) if o >= offset), len(code.ops))


def why_not(frame: Frame, calling: bool) -> str | None:
    """Why a frame cannot be resumed where it is, or None. `calling`: in a call that led to further frames."""
    raw = frame.code.code
    op = frame.code.ops[frame.pc - 1][0]
    if raw.co_flags & GENERATOR or not raw.co_flags & OPTIMIZED:
        return f"{raw.co_qualname}() is a generator, a coroutine or a class body"
    if frame.exc is not None:
        return f"{raw.co_qualname}() is handling an exception"
    if calling and op not in _CALLS:
        return f"{raw.co_qualname}() is inside {op}"
    return None


def inlined(error: BaseException) -> list[Frame]:
    """The frames of the interpreter that `error` has left, outermost first, as far as each was entered by a
    plain call in the one before, which gives its caller what the frame returns."""
    frames: list[Frame] = []
    plain, trace = True, error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code is run.__code__:
            frame = trace.tb_frame.f_locals["frame"]
            if not frames or frames[-1] is not frame:
                if not plain:
                    break
                frames.append(frame)
            plain = True
        elif frames and code not in _PASSING:
            plain = False
        trace = trace.tb_next
    return frames


def passing(*functions: Callable[..., Any]) -> None:
    """Tells which of our functions only lead from a call to the frame that is called."""
    _PASSING.update(f.__code__ for f in functions)


_PASSING: set[CodeType] = set()
passing(*(handlers.HANDLERS[name] for name in _CALLS), handlers._call, World.call, World.run_slots)


def stops(frames: Sequence[Frame]) -> Iterator[Stop]:
    """Where to stop so that the operation that went wrong in the last of `frames` is done for real: in front
    of it, else of the call that led there, and so on."""
    reach = next((i + 1 for i, f in enumerate(frames) if why_not(f, True)), len(frames))
    for frame in reversed(frames[:reach]):
        first, (_, _, name, _) = group(frame.code, frame.pc - 1)
        if name in _POPS and not why_not(frame, False):
            yield Stop(frame.serial, _index(frame.code, first), frame.laps)


def break_at(frames: Sequence[Frame]) -> tuple[Point, list[Any]]:
    """The point where `frames` (outermost first) wait, the innermost in front of an operation, and the
    interpreter's values to hand over."""
    waiting: list[At] = []
    values: list[Any] = []
    for frame in frames[:-1]:
        code, offset, slots = at_home(frame, group(frame.code, frame.pc - 1)[1][0])
        at, kept = _wait(code, offset, slots, frame, frame.stack)
        waiting.append(at)
        values += kept
    frame = frames[-1]
    stack = frame.stack
    code, op, slots = at_home(frame, group(frame.code, frame.pc)[1][0], own=False)
    listed = list(decode(code.code))
    first, (_, behind, name, arg) = group(code, code.offsets.index(op))
    jump = next((i.to for i in original(code.code) if i.at == op), None)
    if jump is not None and name == "FOR_ITER":
        jump += 2 * _LOOP_ENDS
    if VERSION >= (3, 12) and name == "LOAD_ATTR" and arg & 1:
        name = "LOAD_METHOD"
    pops = _POPS[name](arg)
    operands = stack[len(stack) - pops:]
    effect = sum(dis.stack_effect(dis.opmap[n], a if dis.opmap[n] >= dis.HAVE_ARGUMENT else None, jump=False)
                 for o, _, n, a in listed if first <= o <= op)
    pushes = pops + effect - (name == "LOAD_METHOD")
    unused = next((b for o, b, n, _ in listed if o == behind and n == "POP_TOP" and name in _CALLS), None)
    at, kept = _wait(code, op, slots, frame, stack[:len(stack) - pops], jump, unused)
    if name in _KEEPING and any(v is NULL for v in operands):
        raise Refusal("break", f"{name} keeps an empty slot", frame.where)
    given = tuple(v is not NULL for v in operands)
    left = (0 if unused else pushes, pops if name.endswith("_OR_POP") else 0)
    point = Point((*waiting, at), given, name, left, jump)
    return point, [*values, *kept, *(v for v in operands if v is not NULL)]


def at_home(frame: Frame, offset: int, own: bool = True) -> tuple[Code, int, list[Any]]:
    """The code a frame's was made from, if it is one of ours, with the instruction at `offset` and the slots
    as they are there. `own`: also for instructions that do not come from there, but stand for one."""
    home = _HOMES.get(id(frame.code.code))
    if home is None or offset < home.own and not own:
        return frame.code, offset, frame.locals
    there = home.offsets[offset]
    assert there is not None
    return home.code, there, [frame.locals[i] for i in home.slots]


def _wait(code: Code, op: int, slots: list[Any], frame: Frame, stack: list[Any], jump: int | None = None,
          behind: int | None = None) -> tuple[At, list[Any]]:
    """Where a frame waits in the operation at `op`, or else `behind` it, and its values to hand over."""
    index = code.offsets.index(op)
    first, (_, end, name, arg) = group(code, index)
    live = 1 << arg if name == "STORE_DEREF" else 0
    for target in (behind or end, jump):
        live |= live_slots(code, _index(code, target)) if target is not None else 0
    handler = code.handlers[index]
    live |= live_slots(code, handler.target) if handler is not None else 0
    names = set(code.code.co_names)
    if not _LOOK_AT_LOCALS.isdisjoint(names):
        live = -1
    if "super" in names:                                # it finds its arguments in the frame
        live |= 1 | (1 << code.locals.index("__class__") if "__class__" in code.locals else 0)
    kept = tuple(i for i, v in enumerate(slots) if v is not NULL and live >> i & 1)
    shape = tuple(v is not NULL for v in stack)
    at = At(id(code.code), first, kept, shape, code, op, behind or end, frame.globals)
    return at, [slots[i] for i in kept] + [v for v in stack if v is not NULL]
