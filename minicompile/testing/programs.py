"""Random programs as Python source, for `fuzz`: op graphs, and Python around them.

Takes a seed, gives a `Program`: the expressions of its inputs, statements, what it returns, and what happens
to its state between calls. Statements are drawn from `templates`; each is run in eager mode as it is drawn,
and kept if that works. So templates need no typing rules, and every program runs. Comes before
`testing.fuzz`, which compiles programs and judges them.
"""
from __future__ import annotations

import contextlib
import random
import re
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import templates
from .observe import Arguments, Session, change_in_place, disturb, reachable, widened
from .templates import RANDOM_WRITES, WRITES

SIZES = (0, 1, 2, 3, 3, 5, 5, 16, 17, 33, 65)
DTYPES = ("float32",) * 6 + ("float64", "bfloat16", "bfloat16", "float16", "int64", "int64", "int32", "uint8",
                             "bool",)
LAYOUTS = ("contiguous",) * 4 + ("transposed", "steps", "expanded", "offset", "channels")
MOST_ELEMENTS, MOST_DIMS = 30_000, 5

KINDS = ((templates.EXPRESSIONS, 10), (templates.VIEWS, 5), (WRITES, 3), (templates.RANDOM, 1),
         (RANDOM_WRITES, 0.6), (templates.SEVERAL, 1))
PYTHON_KINDS = ((templates.BLOCKS, 12), (templates.EXPRESSIONS, 5), (templates.VIEWS, 2), (WRITES, 2),
                (templates.SEVERAL, 0.5))


def tensor(seed: int, shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous",
           whole: bool = False) -> torch.Tensor:
    """A tensor of small values (`whole`: that meet zeros, ties and bounds) in a memory layout of LAYOUTS."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(*sizes: int) -> torch.Tensor:
        if dtype is torch.bool:
            return torch.rand(sizes, generator=generator) > 0.5
        if not dtype.is_floating_point:
            return torch.randint(0 if dtype is torch.uint8 else -9, 10, sizes, generator=generator).to(dtype)
        values = torch.randn(sizes, generator=generator)
        return (values.mul(2).round() if whole else values).to(dtype)

    if layout == "transposed" and shape:
        return fresh(*shape[::-1]).permute(*range(len(shape))[::-1])
    if layout == "steps" and shape:
        return fresh(*shape[:-1], 2 * shape[-1])[..., ::2]
    if layout == "expanded" and shape:
        return fresh(1, *shape[1:]).expand(shape)
    if layout == "offset":
        return fresh(3 + torch.Size(shape).numel())[3:].view(shape)
    if layout == "channels" and len(shape) > 2:
        return fresh(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    return fresh(*shape)


@dataclass(frozen=True)
class Program:
    """A program and how it is called.

    inputs      one expression each, over the sizes m, n, k and earlier inputs
    statements  the function's body
    returns     expressions of what it returns
    sizes       m, n, k of the first call, and of a call with another shape
    grad        "leaf": floating inputs require gradients; "computed": and are not leaves; "unused": they do,
                but it runs under no_grad, as with "", where they do not
    backend     the engine (see `ladder`) that it is for
    prelude     what stands before the function: classes, functions, and state (WATCHED names it)
    changes     statements that change that state before the second call, and before the third
    twins       two inputs that are one tensor in the second call
    """

    inputs: tuple[str, ...]
    statements: tuple[str, ...]
    returns: tuple[str, ...]
    sizes: tuple[tuple[int, int, int], ...]
    grad: str = ""
    backend: str = "reference"
    prelude: str = ""
    changes: tuple[str, ...] = ()
    twins: tuple[int, int] | None = None

    def __str__(self) -> str:
        names = ", ".join(f"x{i}" for i in range(len(self.inputs)))
        made = "\n".join(f"    x{i} = {e}" for i, e in enumerate(self.inputs))
        body = "\n".join(textwrap.indent(s, "    ") for s in self.statements)
        text = (f"import torch\nimport torch.nn.functional as F\n\n"
                f"from minicompile.testing.programs import tensor\n\nSIZES = {self.sizes!r}\n"
                f"GRAD = {self.grad!r}\nBACKEND = {self.backend!r}\nTWINS = {self.twins!r}\n"
                f"{self.prelude}\n\n"
                f"def inputs(m, n, k):\n{made}\n    return [{names}]\n\n\n"
                f"def fn({names}):\n{body}\n    return ({', '.join(self.returns)},)\n")
        if self.changes:
            changes = "\n".join(f"        {c}" for c in self.changes)
            text += f"\n\ndef change(call):\n    with torch.no_grad():\n{changes}\n"
        return text.replace("\n    \n", "\n")

    def module(self) -> dict[str, Any]:
        """The namespace that running the source gives."""
        namespace: dict[str, Any] = {"__name__": "fuzzed"}
        torch.manual_seed(7)                # for the layers of the prelude
        exec(compile(str(self), "<fuzzed>", "exec"), namespace)
        return namespace

    def session(self, wide: bool = False, noise: float = 0.0) -> Session:
        """A first call, a call after values (and state) changed in place, a call with other shapes."""
        space = self.module()
        make, change = space["inputs"], space.get("change")
        inputs: list[Any] = []
        state = {name: space[name] for name in space.get("WATCHED", ())}
        for t in reachable(state).values() if wide else ():
            t.data = t.data.double() if t.is_floating_point() else t.data

        def prepare(call: int) -> Arguments:
            if call == 1:
                change_in_place(inputs)
                if self.twins is not None:
                    inputs[self.twins[1]] = inputs[self.twins[0]]
            else:
                made = make(*self.sizes[call > 1])
                inputs[:] = widened(made) if wide else made
            if call and change is not None:
                with contextlib.suppress(Exception):            # a change of what another one has taken away
                    change(call)
            if noise:
                disturb(inputs, noise)
            state.update((name, space[name]) for name in state)
            leaves, given = _with_grad(inputs, self.grad)
            return Arguments(given, {}, state, leaves)
        return Session(space["fn"], prepare, 3, self.grad in ("leaf", "computed"))

    @property
    def engine(self) -> str:
        return {"reference": "loops"}.get(self.backend, self.backend)


def _with_grad(inputs: list[Any], how: str) -> tuple[list[Any], list[Any]]:
    """The leaves, and what is passed: they, or what was computed of them."""
    if not how:
        return [], list(inputs)
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    given = [t.mul(1) if t.requires_grad else t for t in leaves] if how == "computed" else leaves
    return leaves, [t if t.requires_grad else i for t, i in zip(given, inputs)]


class Written(Program):
    """A program that was read from a file: its `inputs` and `fn` are run as they are, the rest is data."""

    def __init__(self, path: str | Path) -> None:
        text = Path(path).read_text()
        space: dict[str, Any] = {"__name__": "fuzzed", "__file__": str(path)}
        exec(compile(text, str(path), "exec"), space)
        super().__init__((), (), (), space["SIZES"], space["GRAD"], space["BACKEND"],
                         twins=space.get("TWINS"))
        object.__setattr__(self, "text", text)

    def __str__(self) -> str:
        return self.text  # type: ignore[attr-defined]


class Generator:
    """Draws one program; `python`: one with control flow, containers, closures and state."""

    def __init__(self, seed: int, python: bool = False) -> None:
        self.r = random.Random(seed)
        self.python = python
        self.kinds = PYTHON_KINDS if python else KINDS
        self.values: dict[str, torch.Tensor] = {}
        self.statements: list[str] = []
        self.inputs: list[str] = []
        self.anchor = ""
        self.dim = 0

    def program(self) -> Program:
        r = self.r
        sizes = tuple(r.choice(SIZES) if r.random() < 0.5 else r.choice((2, 3, 5)) for _ in "mnk")
        other = (r.choice(SIZES), *sizes[1:])
        grad = r.choice(("", "", "leaf", "computed", "computed", "unused"))
        for i in range(r.randint(1, 3)):
            self.inputs.append(self._input())
            namespace = {"torch": torch, "tensor": tensor, **dict(zip("mnk", sizes)), **self.values}
            t = eval(self.inputs[-1], namespace)
            if grad and t.is_floating_point():
                t = t.requires_grad_().mul(1) if grad == "computed" else t.requires_grad_()
            self.values[f"x{i}"] = t
        self.scope = {"torch": torch, "F": torch.nn.functional, "tensor": tensor}
        if self.python:
            exec(templates.PRELUDE, self.scope)
        with torch.set_grad_enabled(grad not in ("", "unused")), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = r.randint(1, 10)
            for _ in range(8 * wanted):
                if len(self.statements) < wanted:
                    self._statement()
        names = list(self.values)
        returns = sorted({r.choice(names[-4:]) for _ in range(r.randint(1, 3))} | {names[-1]})
        if r.random() < 0.2:
            returns.append(r.choice(names))
        if r.random() < 0.2:
            returns.append(f"{r.choice(returns)}[None]")
        if r.random() < 0.1:
            returns.append(f"{r.choice(names)}.shape[-1:]")
        more: dict[str, Any] = {}
        if self.python:
            returns += [t.replace("{r}", r.choice(returns))
                        for t in r.sample(templates.RETURNS, r.choice((0, 0, 1, 2)))]
            more = {"prelude": templates.PRELUDE, "changes": self._changes()}
        return Program(tuple(self.inputs), tuple(self.statements), tuple(returns), (sizes, other), grad,
                       twins=self._twins(), **more)

    def _twins(self) -> tuple[int, int] | None:
        """Two inputs that could be one."""
        def kind(i: int) -> Any:
            t = self.values[f"x{i}"]
            return t.shape, t.dtype, t.stride()
        pairs = [(i, j) for j in range(len(self.inputs)) for i in range(j) if kind(i) == kind(j)]
        return self.r.choice(pairs) if pairs and self.r.random() < 0.7 else None

    def _changes(self) -> tuple[str, ...]:
        """What happens to the state between calls: mostly to what the program looks at."""
        r, read = self.r, _touched("\n".join(self.statements))
        near = [c for c in templates.CHANGES if _touched(c) & read]
        found = r.sample(near, min(len(near), r.choice((0, 1, 2, 3, 4))))
        return tuple(dict.fromkeys([*found, *r.sample(templates.CHANGES, r.choice((0, 0, 1)))]))

    def _input(self) -> str:
        r = self.r
        if self.inputs and r.random() < 0.2:
            of = f"x{r.randrange(len(self.inputs))}"
            if not self.values[of].requires_grad and self.values[of].dim():
                return r.choice((f"{of}[...]", f"{of}.mT" if self.values[of].dim() > 1 else f"{of}[:]",
                                 f"{of}[1:]", of))
        if self.inputs and r.random() < 0.25:
            return re.sub(r"tensor\(\d+", f"tensor({r.randrange(1000)}", r.choice(self.inputs))
        dims = ("mnk"[: r.choice((0, 1, 2, 2, 2, 3))] if r.random() < 0.7
                else r.choice(("n", "nk", "nm", "kmn")))
        dims = [d if r.random() < 0.8 else r.choice("1234") for d in dims]
        dims += ["2"] * (r.random() < 0.1)
        shape = f"({', '.join(dims)}{',' * (len(dims) == 1)})"
        return (f"tensor({r.randrange(1000)}, {shape}, torch.{r.choice(DTYPES)}, {r.choice(LAYOUTS)!r}"
                f"{', True' * (r.random() < 0.25)})")

    def _statement(self) -> None:
        lists, weights = zip(*self.kinds)
        templates = self.r.choices(lists, weights)[0]
        text = self._filled(self.r.choice(templates))
        if text is None:
            return
        write = templates in (WRITES, RANDOM_WRITES)
        name = f"a{len(self.values)}"
        if not write and "{v}" not in text:
            text = f"{name} = {text}"
        text = text.replace("{v}", name).replace("{w}", f"b{len(self.values)}")
        made = self._run(text)
        if made is not None:
            self.values.update(made)
            self.statements.append(text)

    def _run(self, text: str) -> dict[str, torch.Tensor] | None:
        """What a statement defines, or None if it is no good."""
        scope = {**self.scope, **self.values}
        try:
            exec(text, scope)
        except Exception:
            return None
        made = {k: v for k, v in scope.items() if k not in self.scope and k != "__builtins__"
                and isinstance(v, torch.Tensor)}
        for t in made.values():
            if t.numel() > MOST_ELEMENTS or t.dim() > MOST_DIMS or t.is_complex():
                return None
            if t.is_floating_point() and self.r.random() < 0.9 and not t.detach().isfinite().all():
                return None
        return made

    def _filled(self, template: str) -> str | None:
        """The template with operands; None if there are none that fit."""
        self.anchor = ""
        self.dim = 0

        def fill(match: re.Match) -> str:
            slot = match.group(1)
            return match.group(0) if slot in "vw" else SLOTS[slot](self)

        try:
            return re.sub(r"\{(\w+)\}", fill, template)
        except LookupError:
            return None

    def pick(self, fits: Callable[[torch.Tensor], bool]) -> str:
        names = [n for n, t in self.values.items() if fits(t)]
        if not names:
            raise LookupError
        return self.r.choice(names[-self.r.choice((1, 1, 5, 5, len(names))):])          # chains, too

    def first(self, fits: Callable[[torch.Tensor], bool]) -> str:
        """The first operand; where a template names the slot again, mostly the same."""
        if self.anchor and fits(self.values[self.anchor]):
            return self.anchor
        self.anchor = self.pick(fits)
        self.dim = self.r.randrange(max(1, self.values[self.anchor].dim()))
        return self.anchor

    def broadcasting(self) -> str:
        shape = self.values[self.anchor].shape

        def fits(t: torch.Tensor) -> bool:
            try:
                torch.broadcast_shapes(shape, t.shape)
            except RuntimeError:
                return False
            return True

        return self.pick(fits)

    def like(self) -> str:
        a = self.values[self.anchor]
        return self.pick(lambda t: t.shape == a.shape and t.dtype == a.dtype)

    def with_dims(self, dims: int) -> str:
        """A float tensor of `dims` dimensions, made so by a view where it is not."""
        name = self.first(torch.is_floating_point)
        have = self.values[name].dim()
        if have > dims:
            return f"{name}.flatten(0, {have - dims})"
        return name if have == dims else f"{name}[{'None, ' * (dims - have)}...]"

    def along(self) -> str:
        """An index tensor of the first operand's shape."""
        a = self.anchor
        return f"(torch.arange({a}.numel()).view({a}.shape) * 7 % {a}.shape[{self.dim}])"

    def positions(self, dim: int) -> str:
        """A short index tensor into a dimension of the first operand."""
        if self.r.random() < 0.5:
            return (f"torch.tensor([0, -1, 0])[:{self.r.randint(1, 3)}] % {self.anchor}.shape[{dim}]"
                    if self.r.random() < 0.5
                    else f"torch.tensor({self.r.choice(([0], [1, 0], [0, -1], [2]))})")
        name = self.pick(lambda t: t.dtype in (torch.int64, torch.int32) and t.dim() == 1)
        return f"({name}.long() % {self.anchor}.shape[{dim}])"

    def number(self) -> str:
        return self.r.choice(("0", "1", "2", "-1", "0.5", "-1.5", "3", "1e-3", "2.0"))


def _touched(text: str) -> set[str]:
    """The names of the prelude's state that a text speaks of."""
    found = re.findall(r"'\w+'|(?:BOX|Box)\.\w+|helper|STEP|TICKS|LAYER", text.replace("tick()", "TICKS"))
    return {name.strip("'").removeprefix("Box.").removeprefix("BOX.") for name in found}


Slot = Callable[[Generator], str]
SLOTS: dict[str, Slot] = {
    "t": lambda g: g.first(lambda t: True),
    "f": lambda g: g.first(torch.is_floating_point),
    "x": lambda g: g.pick(lambda t: any(t is g.values[f"x{i}"] for i in range(len(g.inputs)))),
    "i": lambda g: g.first(lambda t: not t.is_floating_point() and t.dtype != torch.bool),
    "b": lambda g: (
        g.first(lambda t: t.dtype == torch.bool)
        if not g.anchor
        else g.pick(lambda t: t.dtype == torch.bool and t.shape == g.values[g.anchor].shape)
    ),
    "u": lambda g: g.broadcasting(),
    "s": lambda g: g.like(),
    "f2": lambda g: g.with_dims(2),
    "f3": lambda g: g.with_dims(3),
    "f4": lambda g: g.with_dims(4),
    "d": lambda g: str(g.dim if g.r.random() < 0.7 else g.dim - max(1, g.values[g.anchor].dim())),
    "I": lambda g: g.along(),
    "j": lambda g: g.positions(g.dim),
    "j0": lambda g: g.positions(0),
    "j1": lambda g: g.positions(1),
    "c": lambda g: g.number(),
    "k": lambda g: str(g.r.randint(1, 3)),
    "P": lambda g: ", ".join(map(str, g.r.sample(range(n := g.values[g.anchor].dim()), n))),
    "D": lambda g: "torch." + g.r.choice(DTYPES),
}


def generate(seed: int) -> Program:
    """The program of a seed; every third has Python around its tensors."""
    return Generator(seed, python=seed % 3 == 2).program()
