"""Fakes against eager mode: shapes, dtypes and strides of results; values of constants; what is refused;
what is not imported."""
from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minicompile.errors import Refusal
from minicompile.ir.elementwise import promote
from minicompile.ir.fake import Fake, FakeMode

Tensor = torch.Tensor
I64 = torch.int64


def same_geometry(real: object, fake: object) -> None:
    if isinstance(real, (tuple, list)):
        for r, f in zip(real, fake, strict=True):
            same_geometry(r, f)
    elif isinstance(real, Tensor):
        assert (real.dtype, real.shape) == (fake.dtype, fake.shape)
        assert (
            all(n <= 1 or s == t for n, s, t in zip(real.shape, real.stride(), fake.stride(), strict=True))
            or not real.numel()
        ), (real.stride(), fake.stride())


def compare(f: Callable, *args: object) -> None:
    with torch.no_grad():
        real = f(*args)
        with FakeMode():
            fake = f(*(Fake.of(a) if isinstance(a, Tensor) else a for a in args))
    same_geometry(real, fake)


LAYOUTS: dict[str, Callable[[Tensor], object]] = {
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "masked attention": lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(4, 4, dtype=torch.bool)),
    "conv": lambda x: F.conv2d(x, torch.randn(5, 3, 2, 2)),
    "grouped conv": lambda x: F.conv2d(x, torch.randn(6, 1, 2, 2), groups=3),
    "channels-last conv": lambda x: F.conv2d(
        x, torch.randn(5, 3, 2, 2).to(memory_format=torch.channels_last)
    ),
    "transposed conv": lambda x: F.conv_transpose2d(x, torch.randn(3, 6, 2, 2), stride=2, output_padding=1),
    "max_pool": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "softmax": lambda x: F.softmax(x, 1),
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "batch_norm": lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3)),
    "training batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "group_norm": lambda x: F.group_norm(x, 3),
    "sum": lambda x: (x.sum(1), x.sum((1, 3), True), x.mean(), x.mean(2)),
    "cumsum": lambda x: x.cumsum(1),
    "extremes": lambda x: (x.amax(2), x.max(2), x.argmax(1), x.argmin()),
    "var": lambda x: (x.var(2), x.std((0, 2)), torch.var_mean(x, 1)),
    "any": lambda x: (x > 0).any(1),
    "logsumexp": lambda x: x.logsumexp(1),
    "cat": lambda x: torch.cat([x, x], 1),
    "cat with nothing": lambda x: (torch.cat([torch.zeros(0), x, x], 1), torch.cat([x, torch.zeros(0)], 2),
                                   torch.cat([torch.zeros(0, dtype=torch.float64), x]), torch.cat([torch.zeros(0)])),
    "stack": lambda x: torch.stack([x, x], 1),
    "index": lambda x: (
        x[:, torch.tensor([0, 1])],
        x[torch.tensor([0]), :, torch.tensor([1])],
        x[:, :, torch.zeros(5, 2, dtype=I64)],
    ),
    "index_select": lambda x: x.index_select(1, torch.tensor([0, 1])),
    "gather": lambda x: x.gather(1, torch.zeros(2, 2, 4, 8, dtype=I64)),
    "pad": lambda x: (F.pad(x, (1, 1, 1, 1)), F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "sort": lambda x: (x.sort(1), x.topk(2, 1), x.sort(-1, True), x.sort(stable=True, dim=0), x.sum().sort()),
    "histogram": lambda x: (x.histc(7), x.histc(3, -1, 1)),
    "fill in place": lambda x: x.clone().masked_fill_(x[:, :1] > 0, 2),
    "convolution's gradients": lambda x: torch.ops.aten.convolution_backward(
        x, torch.randn(2, 5, 6, 10), torch.randn(3, 5, 3, 3), [3], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True] * 3),
    "divided and rounded": lambda x: (x.div(x[:1], rounding_mode="floor"), x.long().div(2, rounding_mode="trunc"),
                                      x.div(x, rounding_mode=None), x.long().div_(2, rounding_mode="floor")),
    "flip": lambda x: (x.flip(1), x.roll(1, 1), x.repeat(1, 2, 1, 1), x.tril()),
    "clone": lambda x: (x.clone(), x.double(), x.contiguous()),
    "like": lambda x: (
        torch.zeros_like(x),
        torch.rand_like(x),
        torch.empty_like(x, memory_format=torch.channels_last),
    ),
    "scatter": lambda x: (
        x.index_put((torch.tensor([0]),), torch.tensor(1.0)),
        x.scatter(1, torch.zeros(2, 1, 4, 8, dtype=I64), 1.0),
    ),
    "products": lambda x: (
        x @ x.transpose(-1, -2),
        F.linear(x, torch.randn(5, 8)),
        torch.einsum("abcd,abed->abce", x, x),
    ),
    "embedding": lambda x: F.embedding(x.abs().long().clamp(0, 3), torch.randn(4, 5)),
    "dropout": lambda x: F.dropout(x),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_strides_are_eagers(name: str) -> None:
    """Under every order of dimensions in memory."""
    for order in itertools.permutations(range(4)):
        sizes = (2, 3, 4, 8)
        x = torch.randn([sizes[d] for d in order]).permute([order.index(d) for d in range(4)])
        compare(LAYOUTS[name], x)


DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
    torch.bool,
]
OPERATORS = [
    torch.add,
    torch.mul,
    torch.div,
    torch.maximum,
    torch.eq,
    torch.lt,
    torch.logical_and,
    torch.atan2,
    torch.pow,
    lambda x, y: torch.pow(y, x),
    lambda x, y: torch.where(x == x, x, y),
    lambda x, y: torch.ops.aten.add.Scalar(x, y, 1),
    lambda x, y: torch.ops.aten.rsub.Scalar(x, y, 2),
]


@st.composite
def operand(draw: st.DrawFn) -> Tensor:
    """A tensor of random dtype and rank, permuted, sliced or expanded; every size fits 1, 2 or 3 by
    position."""
    full = (2, 1, 3, 2)
    n = draw(st.integers(0, 4))
    shape = [draw(st.sampled_from([1, s])) for s in full[4 - n:]]
    order = draw(st.permutations(range(n)))
    steps = [draw(st.integers(1, 2)) for _ in range(n)]
    base = torch.ones(
        [shape[d] * s for d, s in zip(order, steps, strict=True)], dtype=draw(st.sampled_from(DTYPES))
    )
    view = base[tuple(slice(None, None, s) for s in steps)] if n else base
    return view.permute([order.index(d) for d in range(n)])


@settings(max_examples=300, deadline=None)
@given(operand(), st.one_of(operand(), st.sampled_from([2, 1.5, True])), st.integers(0, len(OPERATORS) - 1))
def test_elementwise_dtype_shape_and_stride(x: Tensor, y: Tensor | float, which: int) -> None:
    f = OPERATORS[which]
    try:
        with torch.no_grad():
            real = f(x, y)
    except (RuntimeError, TypeError, NotImplementedError):  # eager refuses some dtypes; so may we, elsewhere
        return
    with torch.no_grad(), FakeMode():
        fake = f(Fake.of(x), Fake.of(y) if isinstance(y, Tensor) else y)
    same_geometry(real, fake)


@given(st.integers(-1, 4), st.integers(-1, 4), st.integers(-6, 6))
def test_triangles(rows: int, columns: int, offset: int) -> None:
    for f in (torch.tril_indices, torch.triu_indices):
        if min(rows, columns) < 0:
            with pytest.raises(RuntimeError), FakeMode():
                f(rows, columns, offset)
            continue
        with FakeMode():
            fake = f(rows, columns, offset)
        same_geometry(f(rows, columns, offset), fake)


@given(st.lists(st.one_of(operand(), st.sampled_from([2, 1.5, True])), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_promotion(operands: list) -> None:
    if len(operands) == 2:
        assert promote(*operands) == torch.result_type(*operands)
    if len(operands) == 1 and isinstance(operands[0], Tensor):
        assert promote(operands[0]) == operands[0].dtype


def test_constants_are_known_until_written() -> None:
    x = Fake.of(torch.randn(3))
    with FakeMode():
        c = torch.tensor(3.0)
        assert (c * 2 + 1).item() == 7.0 and int(torch.tensor(4)) == 4
        c.add_(1)
        assert c.item() == 4.0
        view = c.view(1)
        view.add_(x.sum())
        with pytest.raises(Refusal):
            c.item()


def test_data_is_refused() -> None:
    x = Fake.of(torch.randn(3, 4))
    with FakeMode():
        for f in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: bool(x.any()), lambda: x[x > 0]):
            with pytest.raises(Refusal) as caught:
                f()
            assert caught.value.code == "data-dependent"


def test_fakes_behave_as_tensors() -> None:
    x = Fake.of(torch.nn.Parameter(torch.randn(3, 4)))
    assert isinstance(x, torch.nn.Parameter) and x.requires_grad and x.device.type == "cpu"
    with FakeMode():
        (x * 2).sum().backward()
        assert x.grad.shape == (3, 4)
        with torch.no_grad():
            y = x + 1
            y.t_().unsqueeze_(0)
            assert y.shape == (1, 4, 3) and y.stride() == (4, 1, 4)
        with torch.inference_mode():
            assert F.linear(x, x).shape == (3, 3)
        assert torch.zeros(2, device="cpu").shape == (2,) and type(torch.ones(1)) is Fake


def test_tracing_imports_neither_sympy_nor_dynamo() -> None:
    program = """
import sys, torch
from torch import nn
from minicompile.lower.decompose import decompose
from minicompile.lower.trace import trace_callable
m = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
nn.Linear(72, 16), nn.GELU(),
                  nn.LayerNorm(16), nn.Softmax(-1)).eval()
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 16)
    def forward(self, i):
        h = self.table(i + torch.arange(4)).view(2, 4, 2, 8).transpose(1, 2)
        a = nn.functional.scaled_dot_product_attention(h, h, h, torch.ones(4, 4, dtype=torch.bool).tril())
        return torch.cat([a, h], -1).cumsum(-1).sum(1), h.var(-1), h.argmax(-1), h[:, :, i[0]],
        torch.stack([h, h])
with torch.no_grad():
    decompose(trace_callable(m, torch.randn(2, 3, 8, 8)))
    decompose(trace_callable(Block(), torch.randint(0, 6, (2, 4)))).check()
print([name for name in ("sympy", "torch._dynamo", "torch._inductor", "torch._functorch.aot_autograd") if
name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


IMAGES: list[Callable] = [
    lambda x: F.max_pool2d(x, 2, return_indices=True), lambda x: F.avg_pool2d(x, 2),
    lambda x: F.adaptive_avg_pool2d(x, 2), lambda x: F.conv2d(x, torch.ones(3, x.shape[1], 2, 2)),
    lambda x: F.conv_transpose2d(x, torch.ones(x.shape[1], 2, 2, 2)), lambda x: torch.cat([x, x], 1),
    lambda x: F.batch_norm(x, torch.zeros(x.shape[1]), torch.ones(x.shape[1])),
    lambda x: F.batch_norm(x, None, None, training=True), lambda x: F.group_norm(x, 1),
    lambda x: F.pad(x, [1, 1, 1, 1], mode="reflect"), lambda x: F.pad(x, [1, 1, 1, 1], mode="replicate"),
    lambda x: F.interpolate(x, scale_factor=2), lambda x: F.pixel_shuffle(x, 2), lambda x: x.roll(1, 2),
    lambda x: x.clone(), lambda x: torch.zeros_like(x) + x]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(IMAGES), st.tuples(*[st.sampled_from(n) for n in ((1, 2), (4, 8), (4, 6), (4, 6))]),
       st.permutations(range(4)), st.tuples(*[st.integers(0, 1)] * 4))
def test_images_in_any_layout(f, shape, order, holes):
    """Dimensions in any order in memory, with holes: eager mode takes some of them for channels last."""
    whole = torch.randn([shape[d] + holes[d] for d in order]).permute([order.index(d) for d in range(4)])
    compare(f, whole[tuple(slice(n) for n in shape)])
