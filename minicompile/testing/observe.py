"""What a call does, as far as a program can see it: the one notion of "the same" in all of `testing`.

Takes a `Session` (a callable, and what its calls are given), gives one `Observation` per call: everything
that can be reached from the arguments, the function's own state and the result, walked in one order. Each
tensor has its value, geometry, requires_grad, the first path to the same storage and to the same object;
each container its kind and keys; besides that gradients, writes, exception, warnings and the random state.
So aliasing, mutation and state need no cases of their own: they are paths that differ. `differences` compares
two observations; `check`, the ladder and the fuzzer stand on it.
"""
from __future__ import annotations

import re
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import MinicompileError
from ..ir.spec import TensorSpec
from ..lower.graphs import same_strides
from .compare import same, value_differs

SEED = 5                        # of the random state every call begins with
NARROW = (torch.float32, torch.float16, torch.bfloat16)
ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type, range, slice)
NOTES = frozenset({"message", "warnings"})       # differences that are told, but make nobody wrong


@dataclass(frozen=True, slots=True)
class Seen:
    """What is at one path. `text` tells the kind, and what of it must be the same; a tensor has its value."""

    text: str
    value: torch.Tensor | None = None
    spec: TensorSpec | None = None
    requires_grad: bool = False
    storage: str = ""           # the first path whose tensor has the same storage
    same_as: str = ""           # the first path of this very object


@dataclass
class Observation:
    """All that one call did."""

    raised: BaseException | None = None
    seen: dict[str, Seen] = field(default_factory=dict)
    written: dict[str, tuple[bool, bool]] = field(default_factory=dict)     # version bumped, value changed
    gradients: dict[str, torch.Tensor | None] = field(default_factory=dict)
    random: torch.Tensor | None = None
    warned: frozenset[str] = frozenset()


@dataclass
class Session:
    """A program that is about to be called: with state of its own, so that every run begins alike.

    fn       the callable as written; an engine of the ladder gives what is called in its place
    prepare  (number of the call) -> what it is given
    calls    how many calls there are
    grad     whether they run in grad mode
    """

    fn: Callable
    prepare: Callable[[int], Arguments]
    calls: int = 3
    grad: bool = False


@dataclass
class Arguments:
    """What one call is given. `state` is watched besides; gradients are taken for `leaves`."""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    leaves: Sequence[Any] = ()


# ------------------------------------------------------------------------------------------------- walking

class Walk:
    """Looks at everything that can be reached, each object once."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        self.objects: dict[int, str] = {}
        self.storages: dict[int, str] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.alive: list[Any] = []                       # so that no id is used twice

    def visit(self, path: str, x: Any) -> None:
        if isinstance(x, ATOMS):
            name = x.__qualname__ if isinstance(x, type) else repr(x)
            self.seen[path] = Seen(f"{type(x).__qualname__} {name}")
            return
        first = self.objects.setdefault(id(x), path)
        if first != path:
            self.seen[path] = Seen("", same_as=first)
            return
        self.alive.append(x)
        if isinstance(x, torch.Tensor):
            return self.tensor(path, x)
        parts = dict(_parts(x))
        self.seen[path] = Seen(f"{type(x).__qualname__} of {', '.join(parts) or 'nothing'}", same_as=first)
        for name, part in parts.items():
            self.visit(path + name, part)

    def tensor(self, path: str, t: torch.Tensor) -> None:
        self.tensors[path] = t
        if t.layout is not torch.strided:
            self.seen[path] = Seen(f"{t.layout} tensor", same_as=path)
            return
        key = t.untyped_storage()._cdata
        self.seen[path] = Seen(
            type(t).__qualname__, t.detach().clone(), TensorSpec.of(t), t.requires_grad,
            self.storages.setdefault(key, path), path)
        if _is_leaf(t) and t.grad is not None:
            self.visit(f"{path}.grad", t.grad)


def _is_leaf(t: torch.Tensor) -> bool:
    """Whether a tensor is a leaf. A view whose base was written to in another grad mode refuses to say: it is
    none."""
    try:
        return t.is_leaf
    except RuntimeError:
        return False


def _parts(x: Any) -> Iterator[tuple[str, Any]]:
    """The names and values of what an object holds."""
    if isinstance(x, Mapping):
        for k, v in x.items():
            yield f"[{k!r}]" if isinstance(k, ATOMS) else f"[{type(k).__qualname__} key]", v
    elif isinstance(x, (set, frozenset)):
        yield from ((f"{{{text}}}", None) for text in sorted(map(repr, x)))
    elif isinstance(x, (list, tuple)):
        yield from ((f"[{i}]", v) for i, v in enumerate(x))
    elif isinstance(x, types.FunctionType):
        for name, cell in zip(x.__code__.co_freevars, x.__closure__ or ()):
            if cell != types.CellType():
                yield f".<{name}>", cell.cell_contents
    elif isinstance(x, types.MethodType):
        yield ".__self__", x.__self__
    if not isinstance(x, (types.FunctionType, types.ModuleType)):
        attributes = getattr(x, "__dict__", {})
        yield from ((f".{k}", v) for k, v in attributes.items() if not k.startswith("__"))


def reachable(roots: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor that can be reached, with a path to it."""
    walk = Walk()
    for name, x in roots.items():
        walk.visit(name, x)
    return walk.tensors


# ------------------------------------------------------------------------------------------------ observing

def observe(fn: Callable, given: Arguments, grad: bool) -> Observation:
    """One call, from a fixed random state; with gradients for the leaves."""
    torch.manual_seed(SEED)
    roots = {**{f"args[{i}]": a for i, a in enumerate(given.args)},
             **{f"kwargs[{k!r}]": a for k, a in given.kwargs.items()}, **given.state}
    tensors = reachable(roots)
    before = {p: (t._version, t.detach().clone()) for p, t in tensors.items() if t.layout is torch.strided}
    done = Observation()
    with torch.set_grad_enabled(grad), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = fn(*given.args, **given.kwargs)
            walk = Walk()
            for name, x in (*roots.items(), ("result", result)):
                walk.visit(name, x)
            done.gradients = _gradients(reachable({"result": result}), given.leaves) if grad else {}
        except MinicompileError:
            raise
        except Exception as e:
            done.raised = e
            return done
    done.seen = walk.seen
    done.written = {p: (tensors[p]._version != version, not same(tensors[p].detach(), old))
                    for p, (version, old) in before.items()}
    done.random = torch.get_rng_state()
    done.warned = frozenset(f"{w.category.__name__}: {w.message}" for w in caught)
    return done


def _gradients(tensors: Mapping[str, torch.Tensor], leaves: Sequence[Any]) -> dict[str, torch.Tensor | None]:
    """The gradients of the results' tensors, with fixed incoming ones in several layouts, for the leaves."""
    ends = [t for t in tensors.values() if t.requires_grad]
    wanted = [t for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad]
    if not ends or not wanted:
        return {}
    state, generator = torch.get_rng_state(), torch.Generator().manual_seed(3)

    def incoming(shape: torch.Size, dtype: torch.dtype, layout: int) -> torch.Tensor:
        drawn = {1: shape[::-1], 2: (1, *shape[1:])}.get(layout, shape) if shape else shape
        t = torch.randn(drawn, generator=generator).to(torch.bfloat16).to(dtype)
        return t.permute(tuple(range(len(shape)))[::-1]) if layout == 1 else t.expand(shape)
    seeds = [incoming(r.shape, r.dtype, (i + len(ends)) % 3) for i, r in enumerate(ends)]
    found = torch.autograd.grad(ends, wanted, seeds, allow_unused=True)
    torch.set_rng_state(state)
    return {f"gradient of leaf {i}": g for i, g in enumerate(found)}


def run(session: Session, engine: Callable[[Callable], Callable] = lambda fn: fn) -> list[Observation]:
    """The calls of a session, made by an engine."""
    called = engine(session.fn)
    done = []
    for call in range(session.calls):
        given = session.prepare(call)
        done.append(observe(called, given, session.grad))
    return done


# ------------------------------------------------------------------------------------ changing what is given

def flat_storages(tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Every storage behind the tensors, once, as a flat tensor."""
    seen = set()
    for t in tensors:
        s = t.untyped_storage()
        if s._cdata not in seen:
            seen.add(s._cdata)
            yield torch.empty(0, dtype=t.dtype).set_(s, 0, (s.nbytes() // t.dtype.itemsize,))


def change_in_place(tensors: Sequence[torch.Tensor]) -> None:
    """Other values in every storage: small, and not the same as before."""
    for flat in flat_storages(tensors):
        flat.copy_(flat.logical_not() if flat.dtype is torch.bool
                   else flat * 2 if flat.is_floating_point() or flat.is_complex() else (flat + 1) % 7)


def permute_in_place(tensors: Sequence[torch.Tensor]) -> None:
    """Other values in every storage, of the same range: what indexes stays in bounds, what is positive stays
    so."""
    for flat in flat_storages(tensors):
        turned = flat.flip(0)
        flat.copy_(turned * 0.75 if flat.is_floating_point() or flat.is_complex() else turned)


def disturb(tensors: Sequence[torch.Tensor], noise: float) -> None:
    """Every float off by about `noise` units in the last place."""
    generator = torch.Generator().manual_seed(11)
    for flat in flat_storages(tensors):
        if flat.is_floating_point():
            flat.mul_(1 + noise * torch.finfo(flat.dtype).eps * torch.randn(flat.shape, generator=generator))


def widened(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors with floats in float64, sharing storage as the originals do."""
    bases = {t.untyped_storage()._cdata: flat.double() if flat.is_floating_point() else flat
             for t, flat in ((t, next(flat_storages([t]))) for t in tensors)}
    return [torch.empty(0, dtype=bases[c].dtype).set_(
        bases[c].untyped_storage(), t.storage_offset(), t.shape, t.stride())
        for t, c in ((t, t.untyped_storage()._cdata) for t in tensors)]


class Noise(TorchDispatchMode):
    """Every float that an operator takes is off by about `noise` units in the last place, where it is not a
    whole number: so what rounding inside of a program may do to its results is seen."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise, self.generator = noise, torch.Generator().manual_seed(13)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False                    # else torch imports its compiler to wrap this

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if all(a.alias_info is None for a in (*func._schema.arguments, *func._schema.returns)):
            args = [self.off(a) for a in args]
        return func(*args, **(kwargs or {}))

    def off(self, x: Any) -> Any:
        if isinstance(x, (tuple, list)):
            return type(x)(map(self.off, x))
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        off = torch.randn(x.shape, generator=self.generator).to(x.dtype) * torch.finfo(x.dtype).eps
        return torch.where(x == x.round(), x, x * (1 + self.noise * off))


class Widening(TorchFunctionMode):
    """Runs a program in float64, whatever narrower float dtype it asks for."""

    METHODS = {torch.Tensor.float: torch.Tensor.double, torch.Tensor.half: torch.Tensor.double,
               torch.Tensor.bfloat16: torch.Tensor.double}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(x: Any) -> Any:
            if isinstance(x, torch.dtype):
                return torch.float64 if x in NARROW else x
            return type(x)(map(wide, x)) if type(x) in (tuple, list) else x
        if func is torch.Tensor.view and any(isinstance(a, torch.dtype) for a in args):
            raise TypeError("bits have no float64 version")
        kwargs = {k: wide(v) for k, v in (kwargs or {}).items()}
        return self.METHODS.get(func, func)(*map(wide, args), **kwargs)

    def __enter__(self) -> Any:
        self.default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        torch.set_default_dtype(self.default)


# ------------------------------------------------------------------------------------------------ comparing

@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be."""

    call: int
    path: str
    kind: str
    text: str

    @property
    def is_note(self) -> bool:
        return self.kind in NOTES

    @property
    def is_rounding(self) -> bool:
        """Whether more precise numbers may explain it."""
        return self.kind in ("value", "gradient")

    @property
    def is_float(self) -> bool:
        """Whether it is that two floats differ, both finite."""
        return self.is_rounding and self.text.startswith("differs by")

    @property
    def group(self) -> str:
        """The difference without its numbers: those of one group are taken for one fault while shrinking."""
        return re.sub(r"[-+]?[\d.]+(e[-+]\d+)?|nan|inf", "#", f"{self.kind} {self.path} {self.text}")[:70]

    def __str__(self) -> str:
        return f"{self.path} {self.text} (call {self.call})"


def differences(got: Sequence[Observation], eager: Sequence[Observation],
                precise: Sequence[Observation | None] = ()) -> list[Difference]:
    """What of `got` is not as in `eager`, first things first."""
    found = []
    for call, (g, e) in enumerate(zip(got, eager)):
        p = precise[call] if call < len(precise) else None
        found += [Difference(call, *d) for d in _of_call(g, e, p)]
    return found


def _of_call(got: Observation, eager: Observation, precise: Observation
             | None) -> Iterator[tuple[str, str, str]]:
    if got.raised is not None or eager.raised is not None:
        yield from _raised(got.raised, eager.raised)
        return
    if precise is not None and (precise.raised is not None or precise.seen.keys() != eager.seen.keys()):
        precise = None
    sharing = Counter(s.storage for s in eager.seen.values())
    for path in [*eager.seen, *(p for p in got.seen if p not in eager.seen)]:
        g, e = got.seen.get(path), eager.seen.get(path)
        if g is None or e is None:
            text = f"is {g.text}, not there in eager mode" if g else f"is not there, but {e and e.text}"
            yield path, "type", text
            continue
        alone = sharing[e.storage] == 1                 # then where its memory begins is nobody's business
        yield from ((path, *d) for d in _of_place(g, e, precise.seen[path].value if precise else None, alone))
    for path, (bumped, changed) in eager.written.items():
        more = got.written.get(path, (bumped,))[0]      # counting `.data.mul_()`, too, is only more careful
        if more != bumped and changed == bumped:
            yield path, "version", f"is {'not ' * bumped}counted as written to"
    for path in eager.gradients.keys() | got.gradients.keys():
        p = precise.gradients.get(path) if precise else None
        text = _value(got.gradients.get(path), eager.gradients.get(path), p)
        if text:
            yield path, "gradient", text
    if not torch.equal(got.random, eager.random):
        yield "", "random", "random state is another"
    if got.warned != eager.warned:
        yield "", "warnings", f"warns {sorted(got.warned)}, not {sorted(eager.warned)}"


def _raised(got: BaseException | None, eager: BaseException | None) -> Iterator[tuple[str, str, str]]:
    if type(got) is not type(eager):
        late = got is None and ("modified by an inplace operation" in str(eager)
                                or "A view was created in no_grad mode" in str(eager))
        if not late:               # else: eager kept the tensor itself for its backward, we what it needs
            yield "", "raises", f"raises {got!r}, eager {eager!r}".splitlines()[0]
    elif str(got) != str(eager):
        yield "", "message", f"says {str(got).splitlines()[:1]}, eager {str(eager).splitlines()[:1]}"


def _of_place(got: Seen, eager: Seen, precise: torch.Tensor | None,
              alone: bool) -> Iterator[tuple[str, str]]:
    if got.same_as != eager.same_as:
        yield "identity", f"is {got.same_as}, not {eager.same_as}"
    elif got.text != eager.text:
        yield "type", f"is {got.text}, not {eager.text}"
    if got.spec is None or eager.spec is None:
        return
    a, b = got.spec, eager.spec
    if got.storage != eager.storage:
        yield "alias", f"shares memory with {got.storage}, not {eager.storage}"
    for kind in ("dtype", "shape"):
        if getattr(a, kind) != getattr(b, kind):
            yield kind, f"is {a}, not {b}"
            return
    if not same_strides(a, b):
        yield "stride", f"is {a}, not {b}"
    elif a.offset != b.offset and a.numel and not alone:
        yield "offset", f"is {a}, not {b}"
    if got.requires_grad != eager.requires_grad:
        yield "requires_grad", f"has requires_grad {got.requires_grad}"
    text = _value(got.value, eager.value, precise)
    if text:
        yield "value", text


def _value(got: Any, eager: Any, precise: Any) -> str:
    if not isinstance(got, torch.Tensor) or not isinstance(eager, torch.Tensor):
        return "" if got is eager else f"is {got!r}, not {eager!r}"
    return "" if same(got, eager) else value_differs(got, eager, precise)
