"""Fake tensors: shape, dtype, stride, device and autograd state without data.

Takes ATen calls from the dispatcher, gives fakes. `capture` computes torch calls on them, `lower.trace`
records ATen calls on them; nothing before this module knows them. A `Fake` is a wrapper subclass that says
it lives on its real device (so that composite operators choose as they do in eager mode) and holds a tensor
on the `meta` device, whose kernels compute geometry. Views of a fake share the storage of its meta tensor,
so aliasing is torch's own.
"""
from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import CellType, FunctionType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import Refusal
from . import shapes_nn
from .elementwise import ROWS
from .geometry import EXTRA, flat, geometries, meta_of, sizes_in
from .scalar import OPEN, Number, ask, fits, numbers_in, plain, sym_of, symint
from .shapes import shape_rule
from .spec import TensorSpec
from .sym import NeedsSizes, Sym, hint

assert shapes_nn          # imported for the rules it adds to shapes
EMPTY_CELL = CellType()
META, CPU = torch.device("meta"), torch.device("cpu")
MASKS = (torch.bool, torch.uint8)
STATIC = (torch.ops.aten.index.Tensor, torch.ops.aten._ctc_loss.default)    # though torch says otherwise
KNOWN_LIMIT = (
    1  # values are followed for tensors of at most this many elements: enough for .item() on a constant
)


class Known:
    """The value of a small constant, shared by nothing; `valid` is shared by all aliases of one storage."""

    __slots__ = ("value", "valid")

    def __init__(self, value: torch.Tensor, valid: list[bool]):
        self.value, self.valid = value, valid


class Fake(torch.Tensor):
    """A tensor without data. `meta` computes its geometry; `known` is its value where that is a
    compile-time constant. Where its geometry depends on sizes, it is in `varying` ((shape, stride, offset)),
    and meta has it for their hints."""

    meta: torch.Tensor
    known: Known | None
    varying: Any
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, meta: torch.Tensor, device: torch.device = CPU, requires_grad: bool = False,
                known: Known | None = None, varying: Any = None) -> Fake:
        shape, stride, offset = ((meta.shape, meta.stride(), meta.storage_offset()) if varying is None else
                                 (*(tuple(map(symint, n)) for n in varying[:2]), symint(varying[2])))
        fake = torch.Tensor._make_wrapper_subclass(cls, shape, strides=stride, storage_offset=offset,
                                                   dtype=meta.dtype, device=device,
                                                   requires_grad=requires_grad)
        fake.meta = meta
        fake.known = known
        fake.varying = varying
        if meta.is_conj():                  # what handles these bits in eager mode does so here, too
            torch._C._set_conj(fake, True)
        if meta.is_neg():
            torch._C._set_neg(fake, True)
        return fake

    @classmethod
    def from_spec(cls, spec: TensorSpec, requires_grad: bool = False, is_param: bool = False) -> Fake:
        """A fresh fake of this geometry that shares storage with no other."""
        if spec.varies:
            varying = (spec.shape, spec.stride, spec.offset)
            fake = cls(meta_of(spec.at_hints), torch.device(spec.device), requires_grad, varying=varying)
        else:
            fake = cls(meta_of(spec), torch.device(spec.device), requires_grad)
        if is_param:
            fake._is_param = True
        return fake

    @classmethod
    def of(cls, t: torch.Tensor) -> Fake:
        """A fake of a real tensor's geometry, requires_grad and Parameterness; not of its value."""
        spec = t.spec if isinstance(t, Fake) else TensorSpec.of(t)
        return cls.from_spec(spec, t.requires_grad, isinstance(t, torch.nn.Parameter))

    @property
    def spec(self) -> TensorSpec:
        meta = self.meta
        shape, stride, offset = self.varying or (tuple(meta.shape), meta.stride(), meta.storage_offset())
        return TensorSpec(meta.dtype, shape, stride, str(self.device), offset)

    def __repr__(self, *_: Any, **__: Any) -> str:
        if torch._C._len_torch_function_stack():  # a captured program asks: the recorder answers
            return torch.overrides.handle_torch_function(torch.Tensor.__repr__, (self,), self)
        return f"Fake({self.spec})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _fixed(args[0]) if func in GEOMETRY else fake_call(func, args, kwargs or {}, {})


def storage_key(fake: Fake) -> int:
    """Equal for fakes that share storage (while both are alive)."""
    return fake.meta.untyped_storage()._cdata


class Facts:
    """What `fake_call` needs to know of an operator, read off its schema once."""

    __slots__ = ("composite", "refuse", "device_arg", "writes", "inplace_view", "follow", "sizes")

    def __init__(self, func: Any):
        schema, tags = func._schema, func.tags
        self.composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(),
                                                                        "CompositeImplicitAutograd")
        self.refuse = torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags
        self.device_arg = any(a.name == "device" for a in schema.arguments)
        self.writes = [(i, a.name) for i, a in enumerate(schema.arguments) if a.alias_info is not None
                       and a.alias_info.is_write]
        self.inplace_view = torch.Tag.inplace_view in tags
        self.follow = torch.Tag.nondeterministic_seeded not in tags
        self.sizes = frozenset(re.findall(r"SymInt\S* (\w+)", str(schema)))          # arguments that may vary


_facts: dict[Any, Facts] = {}          # a pure function of the operator, remembered


def facts_of(func: Any) -> Facts:
    known = _facts.get(func)
    if known is None:
        if not _facts and "torch._dynamo" not in sys.modules:
            _unshield()
        known = _facts[func] = Facts(func)
    return known


def _unshield() -> None:
    """Let torch's Python shape rules run without torch._dynamo.

    Those behind torch._disable_dynamo import it at their first call (0.7 s and sympy) only to say that it
    should keep away from them. They look for an answer kept from an earlier call; the answer "the function
    itself" is right as long as nothing is compiling them.
    """
    shield = torch._disable_dynamo(_unshield).__code__
    packets = [p for p in vars(torch.ops.aten).values() if isinstance(p, torch._ops.OpOverloadPacket)]
    overloads = [o for p in packets for o in vars(p).values() if isinstance(o, torch._ops.OpOverload)]
    todo = [o.py_kernels[torch._C.DispatchKey.Meta] for o in overloads
            if torch._C.DispatchKey.Meta in o.py_kernels]
    seen: set[int] = set()
    while todo:
        rule = todo.pop()
        if id(rule) in seen or not isinstance(rule, FunctionType):
            continue
        seen.add(id(rule))
        inner = [cell.cell_contents for cell in rule.__closure__ or () if cell != EMPTY_CELL]
        if rule.__code__ is shield and not hasattr(inner[0], "__dynamo_disable"):
            inner[0].__dynamo_disable = inner[0]          # outside a class, so the name is not mangled
        todo += inner


def fake_call(func: Any, args: tuple, kwargs: dict, real: dict[int, tuple[torch.Tensor, Fake]],
              follow: bool = True) -> Any:
    """The result of an ATen operator on fakes: fakes that alias what the real result would alias.

    `real` remembers the fakes of real tensors met in calls (by id, keeping the tensor alive). Values are
    followed only if `follow`. Raises
    Refusal "data-dependent" where the result's shape or Python value depends on data, "no-meta" where torch
    has no shape rule for the operator, and what the meta kernel raises for bad arguments (as eager mode
    would).
    """
    facts = facts_of(func)
    fakes = Met()
    unwrapped = _unwrap(args, fakes, real)
    unwrapped_kwargs = {k: _unwrap(v, fakes, real) for k, v in kwargs.items()} if kwargs else {}
    values = _follow(func, facts, args, kwargs, fakes, real, follow)
    if facts.refuse and (func not in STATIC or any(f.dtype in MASKS for f in fakes[1:])):
        return _scalar(func, values)
    if func in OPAQUE and torch.is_grad_enabled() and any(f.requires_grad for f in fakes):
        raise Refusal("no-meta", f"no rule says what {func} keeps for its backward")
    device = unwrapped_kwargs.get("device")
    if facts.device_arg:
        unwrapped_kwargs["device"] = META
    if device is None:
        device = fakes[0].device if fakes else torch.device("cpu")
        if len(fakes) > 1 and device.type == "cpu":  # 0-d CPU tensors may meet tensors of another device
            device = next((f.device for f in fakes if f.device.type != "cpu"), device)
    try:
        out = meta_call(func, unwrapped, unwrapped_kwargs)
    except (NotImplementedError, ZeroDivisionError) as error:      # a rule in Python, for an empty tensor
        raise Refusal("no-meta",
                      f"torch has no shape rule for {func}: {str(error).splitlines()[0]}") from error
    varying = _varying(func, args, {**kwargs, "device": META} if facts.device_arg else kwargs, out,
                       real) if fakes.varying else None
    if facts.inplace_view:
        return _regeometry(fakes[0], device, varying[0] if varying else None)
    if facts.writes:
        _check_sizes(fakes)
        for i, _ in facts.writes:        # torch counts writes to tensors, not to lists of them
            if i < len(args) and type(args[i]) in (list, tuple):
                torch.autograd.graph.increment_version(args[i])
    return _wrap(out, {id(f.meta): f for f in fakes}, torch.device(device), values, varying)


def meta_call(func: Any, args: tuple, kwargs: dict) -> Any:
    """What func gives for meta tensors."""
    out = _probe(func, args, kwargs) if func in PROBED else shape_rule(func, args, kwargs)
    return func(*args, **kwargs) if out is None else out


# What torch's C++ asks of a tensor, where it wants numbers.
GEOMETRY = frozenset(getattr(torch.ops.aten, name).default for name in "size stride numel".split())


def _fixed(fake: Fake) -> None:
    raise NeedsSizes(sum(sizes_in(fake.spec)), "torch computes with it")


def _varying(func: Any, args: tuple, kwargs: dict, out: Any, real: dict) -> list[Any]:
    """What `Fake.varying` is for each result, of sizes that vary among the arguments."""
    def described(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return (x if isinstance(x, Fake) else fake_of_real(x, real)).spec
        return tuple(map(described, x)) if isinstance(x, (tuple, list)) else sym_of(x)
    def taken(name: str, x: Any) -> Any:
        x = described(x)
        if not isinstance(x, Sym) or name in facts.sizes or func in EXTRA:
            return x
        if name not in OPEN.get(func, ()) or not all(fits(Number.of_size(x), r.dtype) for r in results):
            raise NeedsSizes(x, f"as the number {name} of {func}")
        return hint(x)
    facts, names = facts_of(func), [a.name for a in func._schema.arguments]
    results = [r for r in flat(out) if isinstance(r, torch.Tensor)]
    found = geometries(meta_call, func, tuple(map(taken, names, args)),
                       {k: taken(k, v) for k, v in kwargs.items()})
    return [g if g is not None and any(isinstance(n, Sym) for n in (*g[0], *g[1], g[2])) else None
            for g in found]


def _check_sizes(fakes: list[Fake]) -> None:
    """Meta kernels give what they write to the result's size; eager mode does so for `out=` only."""
    for f in fakes:
        if f.meta.shape != (f.shape if f.varying is None else tuple(map(hint, f.varying[0]))):
            raise RuntimeError(f"output with shape {list(f.shape)} doesn't match the broadcast shape "
                               f"{list(f.meta.shape)}")


class Met(list[Fake]):
    """The fakes among the arguments of a call, and whether it depends on sizes that vary."""

    varying = False


def _unwrap(x: Any, fakes: Met, real: dict) -> Any:
    if isinstance(x, Fake):
        fakes.append(x)
        if x.varying is not None:
            fakes.varying = True
        return x.meta
    if isinstance(x, torch.Tensor):
        return _unwrap(fake_of_real(x, real), fakes, real)
    if isinstance(x, (tuple, list)):
        return type(x)([_unwrap(e, fakes, real) for e in x]) if type(x) in (tuple, list) else x
    if isinstance(x, (Sym, torch.SymInt)):
        x = sym_of(x)
        fakes.varying |= isinstance(x, Sym)
        return hint(x)
    return x


def fake_of_real(t: torch.Tensor, real: dict[int, tuple[torch.Tensor, Fake]]) -> Fake:
    """The fake that stands for a real tensor met in a call: a constant, whose value is followed if it is
    small."""
    entry = real.get(id(t))
    if entry is None:
        with torch._C._DisableTorchDispatch():
            fake = Fake.of(t)
            if t.numel() <= KNOWN_LIMIT and t.device.type == "cpu":
                fake.known = Known(t.detach().clone(), [True])
        entry = real[id(t)] = (t, fake)
    return entry[1]


def _follow(func: Any, facts: Facts, args: tuple, kwargs: dict, fakes: list[Fake], real: dict,
            follow: bool) -> Any:
    """The result on known values, None where an operand is unknown; writes of unknown values make what they
    write to unknown. Numbers alone, which torch takes for tensors, are known."""
    if not any(f.known for f in fakes) and (fakes or func not in ROWS):
        return None
    if follow and facts.follow and all(f.known and f.known.valid[0] for f in fakes):
        def value(x: Any) -> Any:
            if isinstance(x, torch.Tensor):
                return (x if isinstance(x, Fake) else real[id(x)][1]).known.value
            return type(x)(map(value, x)) if type(x) in (tuple, list) else x
        with torch._C._DisableTorchDispatch(), torch.no_grad():
            return func(*map(value, args), **{k: value(v) for k, v in kwargs.items()})
    for i, name in facts.writes:
        written = args[i] if i < len(args) else kwargs.get(name)
        for w in written if isinstance(written, (list, tuple)) else (written,):
            if isinstance(w, Fake) and w.known:
                w.known.valid[0] = False
    return None


def _scalar(func: Any, value: Any) -> Any:
    if value is not None and not isinstance(value, torch.Tensor):
        return value
    raise Refusal("data-dependent", f"{func} needs the values of a tensor while compiling")


def _regeometry(fake: Fake, device: torch.device, varying: Any) -> Fake:
    """An operator changed its argument's geometry in place (t_, squeeze_, …): give the wrapper what its
    meta tensor has now."""
    fake.data = Fake(fake.meta, torch.device(device), varying=varying)
    fake.varying = varying
    return fake


def _wrap(out: Any, inputs: dict[int, Fake], device: torch.device, values: Any, varying: Any) -> Any:
    here = varying.pop(0) if varying and not isinstance(out, (tuple, list)) else None
    if isinstance(out, torch.Tensor):
        same = inputs.get(id(out))
        if same is not None:
            return same
        known = None
        if isinstance(values, torch.Tensor) and values.numel() <= KNOWN_LIMIT:
            shared = [f.known.valid for f in inputs.values()
                      if f.known and f.meta.untyped_storage()._cdata == out.untyped_storage()._cdata]
            known = Known(values, shared[0] if shared else [True])
        return Fake(out, device, known=known, varying=here)
    if isinstance(out, (tuple, list)):
        known_parts: Sequence = values if isinstance(values, (tuple, list)) else [None] * len(out)
        return type(out)([_wrap(o, inputs, device, v, varying) for o, v in zip(out, known_parts)])
    return out


class FakeMode(TorchDispatchMode):
    """While entered, ATen calls compute on fakes: factories make fakes, real tensors met in calls are
    constants.

    `record` is called after each ATen call with what it was called with and gave; subclasses override it.
    """

    scalars = False          # whether calls may take `scalar` numbers

    def __init__(self) -> None:
        super().__init__()
        self.real: dict[int, tuple[torch.Tensor, Fake]] = {}

    @classmethod
    def _should_skip_dynamo(
        cls,
    ) -> bool:  # True would wrap __torch_dispatch__ so that its first call imports torch._dynamo
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._conj.default and isinstance(args[0], complex):
            args = (torch.tensor(args[0]),)          # a number in a tensor's place, which this does not take
        if func in GEOMETRY:
            _fixed(args[0])
        if facts_of(func).composite:          # reaches us only where autograd keys are off (inference mode)
            with self:
                return func.decompose(*args, **kwargs)
        if self.scalars:
            args, kwargs, out = self.call_with_scalars(func, args, kwargs)
        else:
            out = fake_call(func, args, kwargs, self.real)
        self.record(func, args, kwargs, out)
        return out

    def call_with_scalars(self, func: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict, Any]:
        """The call, with scalars among its arguments: (args, kwargs, result). Scalars whose values decide
        about more than values are asked for them."""
        args, kwargs = sym_of(args), sym_of(kwargs)
        taken = OPEN.get(func, frozenset())
        names = [a.name for a in func._schema.arguments]
        args = tuple([a if names[i] in taken else ask(a) for i, a in enumerate(args)])
        kwargs = {k: v if k in taken else ask(v) for k, v in kwargs.items()}
        numbers = [*numbers_in(args), *numbers_in(tuple(kwargs.values()))]
        out = fake_call(func, plain(args), {k: plain(v) for k, v in kwargs.items()}, self.real, not numbers)
        results = out if isinstance(out, (tuple, list)) else (out,)
        if out is None:          # of operators on lists, in place
            results = args[0]
        if all(fits(n, r.dtype) for n in numbers for r in results):
            return args, kwargs, out
        return ask(args), {k: ask(v) for k, v in kwargs.items()}, out

    def record(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        """Nothing here; see `lower.trace`."""


# Operators whose results' geometry torch has no rule for, or a rule that the CPU kernel does not follow. It
# is a function of the arguments' geometry alone, so the kernel is asked, with zeros.
PROBED = frozenset(getattr(getattr(torch.ops.aten, name), overload) for name, _, overload in (
    text.partition(".") for text in """_fft_c2c.default _fft_c2r.default _fft_r2c.default
    _linalg_svd.default linalg_eig.default frexp.Tensor ormqr.default geqrf.default max_unpool2d.default
    _histogramdd_bin_edges.default _histogramdd_from_bin_cts.default histogram.bin_ct
    _embedding_bag.default
    _embedding_bag_forward_only.default _native_batch_norm_legit.default _native_batch_norm_legit.no_stats
    _batch_norm_with_update.default _batch_norm_with_update_functional.default
    multi_margin_loss_backward.default fractional_max_pool3d_backward.default
    multilabel_margin_loss_backward.default nonzero_static.default
    multilabel_margin_loss_forward.default log_sigmoid_forward.default""".split()))

# Operators that give their backward a workspace, whose size is known to the kernel alone.
OPAQUE = frozenset({torch.ops.aten.mkldnn_rnn_layer.default})


def _probe(func: Any, args: Any, kwargs: dict) -> Any:
    """What func gives for zeros, on the meta device."""
    def zeros(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).zero_()
        return type(x)(map(zeros, x)) if type(x) in (tuple, list) else x

    def meta(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=META)
        return type(x)(map(meta, x)) if type(x) in (tuple, list) else tuple(map(meta, x))
    with torch._C._DisableTorchDispatch(), torch.no_grad():
        kwargs = {k: CPU if k == "device" else zeros(v) for k, v in kwargs.items()}
        return meta(func(*zeros(args), **kwargs))


def history(results: Iterable[torch.Tensor]) -> Iterator[Any]:
    """The engine's nodes that these results come from."""
    with torch._C.DisableTorchFunction():
        seen = dict.fromkeys(r.grad_fn for r in results)
    todo = list(seen)
    while todo:
        node = todo.pop()
        if node is not None:
            yield node
            after = dict.fromkeys(n for n, _ in node.next_functions if n not in seen)
            seen |= after
            todo += after


def engine_gradients(outputs: Sequence[Fake], inputs: Sequence[Fake], seeds: Sequence[Fake],
                     keep_graph: bool = False) -> list[Fake | None]:
    """torch.autograd.grad(outputs, inputs, seeds, keep_graph, allow_unused=True), by the engine itself: the
    public function imports sympy for its check of the seeds' shapes."""
    engine = torch.autograd.Variable._execution_engine
    return list(engine.run_backward(tuple(outputs), tuple(seeds), keep_graph, False, tuple(inputs),
                                    allow_unreachable=True, accumulate_grad=False))
