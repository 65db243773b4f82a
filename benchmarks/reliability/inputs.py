"""F4, F5 and F26: writes and views, errors, and inputs that nobody means to give.

    python benchmarks/reliability/inputs.py [--system torch.compile] [--backend reference] [--every 5] [effects errors bad huge]

Each case is called as it is and compiled, twice; results, inputs, exceptions, shared memory and versions must be eager mode's.
`huge` needs 5 GB of memory.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import SYSTEMS, Case, report

# ---- F4: what is written to, through which view ---------------------------------------------------------

VIEWS = {
    "all": lambda t: t, "slice": lambda t: t[1:3], "step": lambda t: t[::2], "column": lambda t: t[:, 1:2],
    "transposed": lambda t: t.t(), "row": lambda t: t[1], "diagonal": lambda t: t.diagonal(), "flat": lambda t: t.view(-1),
    "strided": lambda t: t.as_strided((2, 2), (4, 2), 1), "narrow": lambda t: t.narrow(1, 1, 2),
    "unflattened": lambda t: t.view(2, 2, 4), "split": lambda t: t.split(2)[1], "reshaped": lambda t: t.t().reshape(-1),
}
WRITES = {
    "add_": lambda v: v.add_(1), "mul_ by itself": lambda v: v.mul_(v), "zero_": lambda v: v.zero_(),
    "fill_": lambda v: v.fill_(3), "copy_": lambda v: v.copy_(v.sin() + 1), "set all": lambda v: v.__setitem__(..., 2),
    "set one": lambda v: v.__setitem__(0, 5), "relu_": lambda v: v.relu_(), "clamp_": lambda v: v.clamp_(-0.5, 0.5),
    "masked_fill_": lambda v: v.masked_fill_(v > 0, -1), "index_fill_": lambda v: v.index_fill_(0, torch.tensor([0]), 7.0),
    "index_add_": lambda v: v.index_add_(0, torch.tensor([0]), torch.ones_like(v[:1])),
    "masked set": lambda v: v.__setitem__(v < 0, 0), "indexed set": lambda v: v.__setitem__(torch.tensor([1, 0]), 1.5),
    "squeeze_": lambda v: v.squeeze_(), "unsqueeze_": lambda v: v.unsqueeze_(0), "uniform_": lambda v: v.uniform_(),
    "cumsum_": lambda v: v.cumsum_(0), "+=": lambda v: v.__iadd__(v), "foreach": lambda v: torch._foreach_add_([v], 1),
    "out=": lambda v: torch.add(v.clone(), 1, out=v), "lerp_": lambda v: v.lerp_(torch.ones_like(v), 0.5),
    "swap": lambda v: v.__setitem__((0,), v[-1].clone()), "detach": lambda v: v.detach().add_(1), "sort into": lambda v: v.copy_(v.sort(0)[0]),
}
GIVEN = {"the view": lambda x, v, w: v, "the result": lambda x, v, w: w, "the input": lambda x, v, w: x,
         "a value": lambda x, v, w: x * 2, "views": lambda x, v, w: (x[0], v)}


def effects() -> list[Case]:
    def case(view: str, write: str, given: str) -> Case:
        def call(x: torch.Tensor) -> Any:
            v = VIEWS[view](x)
            w = WRITES[write](v)
            return GIVEN[given](x, v, w)
        return Case(f"{write} through {view}, gives {given}", "writes",
                    lambda: (torch.linspace(-1, 1, 16).reshape(4, 4).clone(),), call)
    kinds = list(GIVEN)
    written = [case(v, w, kinds[(i + j) % len(kinds)]) for i, v in enumerate(VIEWS) for j, w in enumerate(WRITES)]
    views = [Case(f"{v} of {u}", "views", lambda: (torch.arange(16.0).reshape(4, 4).clone(),),
                  lambda x, u=u, v=v: VIEWS[v](VIEWS[u](x))) for u in VIEWS for v in ("all", "flat", "row", "slice")]
    return written + views


# ---- F5: errors -----------------------------------------------------------------------------------------

# known: dtypes that one kernel of eager mode lacks and ours has, and which of two errors comes first
LENIENT = ("round decimals", "lerp of int", "cross_entropy by int32", "layer_norm mixed", "meta mixed")


def errors() -> list[Case]:
    cases: list[Case] = []

    def add(name: str, group: str, call: Any, *shapes: Any) -> None:
        for size in (3, 60_000):
            def make(size: int = size) -> tuple:
                given = [tuple(size if n == "n" else n for n in s) if isinstance(s, tuple) else s for s in shapes]
                return tuple(torch.linspace(-1, 1, int(np.prod(s))).reshape(s) if isinstance(s, tuple) else
                             s(size) if callable(s) else s for s in given)
            cases.append(Case(f"{name}, {size}", group, make, call))
    high = lambda n: torch.cat([torch.zeros(n - 1, dtype=torch.long), torch.tensor([99])])
    low = lambda n: torch.cat([torch.zeros(n - 1, dtype=torch.long), torch.tensor([-99])])
    for name, ids in (("high", high), ("low", low)):
        for op, call in {
            "x[ids]": lambda x, i: x[i] * 2, "x[ids] unused": lambda x, i: (x[i], x + 1)[1],
            "gather": lambda x, i: x.gather(0, i[:, None]), "index_select": lambda x, i: x.index_select(0, i),
            "embedding": lambda x, i: F.embedding(i, x), "take": lambda x, i: x.take(i),
            "scatter": lambda x, i: x.new_zeros(10, 4).scatter(0, i[:, None].expand(-1, 4), 1.0),
            "scatter_add": lambda x, i: x.new_zeros(10, 4).scatter_add(0, i[:, None], torch.ones(i.shape[0], 1)),
            "index_add": lambda x, i: x.index_add(0, i, torch.ones(i.shape[0], 4)),
            "index_put": lambda x, i: x.index_put((i,), torch.tensor(1.0)), "index_copy": lambda x, i: x.index_copy(0, i[-1:], torch.ones(1, 4)),
            "take_along_dim": lambda x, i: x.take_along_dim(i[:, None], 0), "one_hot": lambda x, i: F.one_hot(i, 10),
            "nll_loss": lambda x, i: F.nll_loss(torch.zeros(i.shape[0], 4), i), "cross_entropy": lambda x, i: F.cross_entropy(torch.zeros(i.shape[0], 4), i),
            "write x[ids]": lambda x, i: x.__setitem__(i, 0.0), "bincount": lambda x, i: i.bincount(minlength=5),
            "index_fill": lambda x, i: x.index_fill(0, i, 2.0), "embedding_bag": lambda x, i: F.embedding_bag(i[None], x),
        }.items():
            add(f"{op}, {name}", "index", call, (10, 4), ids)
    shape = {"add": lambda x, y: x + y, "mm": lambda x, y: x @ y, "cat": lambda x, y: torch.cat([x, y]),
             "where": lambda x, y: torch.where(x > 0, x, y), "view": lambda x, y: x.view(7, -1), "expand": lambda x, y: x.expand(5, 9),
             "bmm": lambda x, y: torch.bmm(x[None], y[None]), "linear": lambda x, y: F.linear(x, y), "dot": lambda x, y: torch.dot(x[0], y[0]),
             "layer_norm": lambda x, y: F.layer_norm(x, (9,)), "conv": lambda x, y: F.conv1d(x[None], y[None]), "squeeze": lambda x, y: x.sum(5),
             "stack": lambda x, y: torch.stack([x, y]), "permute": lambda x, y: x.permute(0, 0), "chunk": lambda x, y: x.split([1, 1], 1),
             "select": lambda x, y: x.select(1, 9), "index": lambda x, y: x[:, 9], "copy_": lambda x, y: x.copy_(y), "lerp": lambda x, y: x.lerp(y, y),
             "addmm": lambda x, y: torch.addmm(y, x, x), "softmax": lambda x, y: x.softmax(3), "flip": lambda x, y: x.flip(4), "diag": lambda x, y: x[None].diag(),
             "group_norm": lambda x, y: F.group_norm(x, 3), "max_pool": lambda x, y: F.max_pool2d(x[None, None], 0), "mse": lambda x, y: F.cosine_similarity(x, y),
             "einsum": lambda x, y: torch.einsum("ij,jk->ik", x, y), "unflatten": lambda x, y: x.unflatten(1, (3, 3)), "masked": lambda x, y: x[y > 0],
             "attention": lambda x, y: F.scaled_dot_product_attention(x[None], y[None], y[None]), "roll": lambda x, y: x.roll((1, 2), (0,))}
    for op, call in shape.items():
        add(op, "shape", call, ("n", 4), ("n", 5))
    kinds = {"and": lambda x: x & x, "shift": lambda x: x << 1, "invert": lambda x: ~x, "index by float": lambda x: x[x[:, 0]],
             "mm of mixed": lambda x: x @ x.t().double(), "softmax of int": lambda x: x.long().softmax(0), "mean of int": lambda x: x.long().mean(),
             "embedding by float": lambda x: F.embedding(x, x), "add_ double to int": lambda x: x.long().add_(x.double()), "gcd": lambda x: x.gcd(x),
             "neg of bool": lambda x: -(x > 0), "sub of bools": lambda x: (x > 0) - (x > 0), "std of int": lambda x: x.long().std(), "pow of ints": lambda x: x.long() ** -1,
             "gather by int32": lambda x: x.gather(0, x.int()), "where by float": lambda x: torch.where(x, x, x), "round decimals": lambda x: x.long().round(decimals=1),
             "lerp of int": lambda x: x.long().lerp(x.long(), 0.5), "cross_entropy by int32": lambda x: F.cross_entropy(x, x[:, 0].int()), "division by zero": lambda x: x.long() // 0,
             "remainder by zero": lambda x: x.long() % (x.long() * 0), "layer_norm mixed": lambda x: F.layer_norm(x, (4,), torch.ones(4).double()), "out dtype": lambda x: torch.add(x, x, out=x.long()),
             "cholesky": lambda x: torch.linalg.cholesky(-x[:4, :4] @ x[:4, :4].t() - torch.eye(min(4, x.shape[0]))[:x.shape[0], :x.shape[0]]),
             "inverse": lambda x: torch.linalg.inv(torch.zeros(3, 3)), "multinomial": lambda x: torch.multinomial(x[:2] * 0 - 1, 1), "normal": lambda x: torch.normal(x, -1.0),
             "dropout p": lambda x: F.dropout(x, 2.0), "arange": lambda x: torch.arange(3, 0, 1) + x.sum(), "to cuda": lambda x: x.to("cuda"),
             "meta mixed": lambda x: x + x.to("meta"), "int() of many": lambda x: int(x), "bool() of many": lambda x: 1 if x else 2, "item of many": lambda x: x.item(),
             "attribute": lambda x: x.nothing, "call": lambda x: x(), "index by str": lambda x: x["a"], "too many indices": lambda x: x[0, 0, 0], "leaf": lambda x: x.requires_grad_().add_(1),
             "backward twice": lambda x: x.sum().backward(), "numpy of grad": lambda x: x.requires_grad_().numpy(), "division of python": lambda x: x * (1 / (x.dim() - 2)), "key": lambda x: {}[1], "assert": lambda x: (_ for _ in ()).throw(ValueError("mine"))}
    for op, call in kinds.items():
        add(op, "dtype, device, Python", call, ("n", 4))
    return cases


# ---- F26: inputs nobody means to give -------------------------------------------------------------------

class Sub(torch.Tensor):
    """A subclass with the default behaviour."""


class Logging(torch.Tensor):
    """A subclass that counts calls."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        Logging.calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def grid() -> torch.Tensor:
    return torch.linspace(-2, 2, 24).reshape(4, 6).clone()


THING, ENDED = object(), iter(())


def special(dtype: torch.dtype) -> torch.Tensor:
    big = torch.finfo(dtype).max ** 0.5 / 4
    return torch.tensor([0.0, -0.0, 1, -1, float("nan"), float("inf"), -float("inf"), 1e-40, -1e-45, big, -big, 0.5], dtype=dtype).reshape(3, 4)


BASE = {
    "None": lambda: None, "str": lambda: "abc", "list": lambda: [1.0, 2.0], "list of tensors": lambda: [grid(), grid()], "dict": lambda: {"a": grid()}, "object": lambda: THING,
    "int": lambda: 3, "float": lambda: 2.5, "nan": lambda: float("nan"), "complex": lambda: 1j, "bool": lambda: True, "huge int": lambda: 1 << 70, "bytes": lambda: b"x", "ellipsis": lambda: ...,
    "numpy": lambda: np.ones((4, 6), np.float32), "numpy scalar": lambda: np.float64(2), "type": lambda: torch.Tensor, "exhausted": lambda: ENDED, "tuple": lambda: (grid(), 2),
    "0-d": lambda: torch.tensor(1.5), "rank 7": lambda: torch.ones(1, 2, 1, 2, 1, 2, 3), "rank 20": lambda: torch.ones([1] * 19 + [6]),
    "no elements": lambda: torch.empty(0), "0 rows": lambda: torch.empty(0, 6), "0 columns": lambda: torch.empty(4, 0), "0 in the middle": lambda: torch.empty(3, 0, 6),
    "expanded": lambda: torch.linspace(-1, 1, 6).expand(4, 6), "expanded 0-d": lambda: torch.tensor(2.0).expand(4, 6), "overlapping": lambda: torch.arange(9.0).as_strided((4, 6), (1, 1)),
    "unfolded": lambda: torch.arange(9.0).unfold(0, 6, 1), "flipped": lambda: grid().flip(1), "transposed": lambda: grid().t(), "with holes": lambda: torch.arange(96.0).as_strided((4, 6), (24, 3), 5),
    "offset": lambda: torch.arange(30.0)[6:].view(4, 6), "unaligned": lambda: torch.arange(25.0)[1:].view(4, 6), "negated view": lambda: torch._neg_view(grid()), "conjugated": lambda: torch.complex(grid(), grid()).conj(),
    "imaginary part": lambda: torch.complex(grid(), grid()).conj().imag, "channels last": lambda: torch.ones(2, 3, 4, 6).to(memory_format=torch.channels_last),
    "meta": lambda: grid().to("meta"), "sparse": lambda: grid().to_sparse(), "csr": lambda: grid().to_sparse_csr(), "mkldnn": lambda: grid().to_mkldnn(),
    "quantized": lambda: torch.quantize_per_tensor(grid(), 0.1, 0, torch.qint8), "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "subclass": lambda: grid().as_subclass(Sub), "counting subclass": lambda: grid().as_subclass(Logging), "parameter": lambda: torch.nn.Parameter(grid()), "buffer": lambda: torch.nn.Buffer(grid()),
    "uninitialised": lambda: torch.nn.UninitializedParameter(), "frozen parameter": lambda: torch.nn.Parameter(grid(), requires_grad=False), "requires grad": lambda: grid().requires_grad_(),
    "not a leaf": lambda: grid().requires_grad_() * 2, "inference": lambda: inference(), "freed storage": lambda: freed(), "masked": lambda: torch.masked.masked_tensor(grid(), grid() > 0),
    "undefined geometry": lambda: torch.empty(2, 0, 6).expand(2, 0, 6), "own memory": lambda: torch.from_numpy(np.arange(24.0).reshape(4, 6)), "read-only numpy": lambda: torch.from_numpy(readonly()),
    "negative step numpy": lambda: np.arange(6.0)[::-1], "memory mapped": lambda: torch.from_numpy(np.arange(24, dtype=np.float32)).view(4, 6),
    **{f"special {str(d)[6:]}": (lambda d=d: special(d)) for d in (torch.float32, torch.float64, torch.bfloat16, torch.float16)},
    **{str(d)[6:]: (lambda d=d: grid().to(d)) for d in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float64, torch.complex64,
                                                       torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64, torch.complex32)},
}
ROUTINES = {
    "arithmetic": lambda x: x * 2 + x, "softmax": lambda x: torch.softmax(x, -1), "sum": lambda x: (x.sum(), x.sum(0)), "reshape": lambda x: (x.reshape(-1), x.t()), "product": lambda x: x @ x.t(),
    "write": lambda x: x.add_(1), "norm": lambda x: F.layer_norm(x, x.shape[-1:]), "index": lambda x: (x[0], x[..., -1:]), "compare": lambda x: torch.where(x > 0, x, -x), "max": lambda x: (x.max(), x.argmax()),
    "returns": lambda x: x, "asks": lambda x: (x.shape, x.dtype, x.dim(), x.numel()), "casts": lambda x: x.to(torch.float32).exp(), "sort": lambda x: x.sort()[0], "view": lambda x: x.view(-1)[:2].mul_(2),
}


def inference() -> torch.Tensor:
    with torch.inference_mode():
        return grid()


def freed() -> torch.Tensor:
    t = grid()
    t.untyped_storage().resize_(0)
    return t.new_empty(0)


def readonly() -> np.ndarray:
    a = np.arange(24.0)
    a.flags.writeable = False
    return a


def bad() -> list[Case]:
    return [Case(f"{op} of {name}", "odd inputs", lambda make=make: (make(),), call)
            for name, make in BASE.items() for op, call in ROUTINES.items()]


N = 2**31 + 96


def huge() -> list[Case]:
    wide = lambda: (torch.arange(3, dtype=torch.int8)[:1].expand(N),)
    rows = lambda: (torch.arange(4, dtype=torch.int8).expand(2**29 + 24, 4),)
    full = lambda: (torch.ones(N, dtype=torch.int8),)
    return [
        Case("sum of expanded", "2^31 elements", wide, lambda x: x.sum()), Case("max of expanded", "2^31 elements", wide, lambda x: x.max()),
        Case("last of expanded", "2^31 elements", wide, lambda x: x[-3:] + 1), Case("view of expanded", "2^31 elements", wide, lambda x: x[2**31:]),
        Case("sum of rows", "2^31 elements", rows, lambda x: x.sum(0)), Case("transposed rows", "2^31 elements", rows, lambda x: x.t()[1, -5:] * 2),
        Case("index of expanded", "2^31 elements", lambda: (*wide(), torch.tensor([2**31 + 5, 0, -1])), lambda x, i: x[i] + 1),
        Case("any", "2^31 elements", wide, lambda x: (x > 5).any()), Case("written", "2^31 elements", full, lambda x: x.add_(1)),
        Case("written at the end", "2^31 elements", full, lambda x: x[2**31 + 3:].mul_(5)), Case("copied", "2^31 elements", full, lambda x: x + 1),
        Case("argmax", "2^31 elements", full, lambda x: x.argmax()), Case("mean of float", "2^31 elements", wide, lambda x: x[:2**31].float().mean() if x.numel() < 9 else x.sum(dtype=torch.float32)),
    ]


FIGURES = {"effects": ("F4 effects", effects), "errors": ("F5 errors", errors), "bad": ("F26 inputs", bad), "huge": ("F26 huge", huge)}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", nargs="*", choices=[*FIGURES, []], default=[])
    p.add_argument("--system", choices=list(SYSTEMS), default="minicompile")
    p.add_argument("--backend", default="auto", help="auto: compiled code; reference: the loops' slow executor, aot_eager for torch.compile")
    p.add_argument("--every", type=int, default=1, help="take one case of so many")
    p.add_argument("--only", default="", help="cases whose name has this in it")
    given = p.parse_args()
    found = 0
    for what in given.what or ("effects", "errors", "bad"):
        title, cases = FIGURES[what]
        chosen = [c for c in cases() if given.only in c.name][::given.every]
        found += report(title, chosen, given.system, given.backend)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
