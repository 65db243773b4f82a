"""Random op-graph programs as Python source, for `fuzz`.

Takes a seed, gives a `Program`: the expressions of its inputs, statements, and what it returns. Statements
are drawn from templates with slots for operands; each is run in eager mode as it is drawn, and kept if that
works. So templates need no typing rules, and every program runs. Comes before `testing.fuzz`, which compiles
programs and judges them.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

SIZES = (0, 1, 2, 3, 3, 5, 5, 16, 17, 33, 65)
DTYPES = ("float32",) * 6 + (
    "float64",
    "bfloat16",
    "bfloat16",
    "float16",
    "int64",
    "int64",
    "int32",
    "uint8",
    "bool",
)
LAYOUTS = ("contiguous",) * 4 + ("transposed", "steps", "expanded", "offset", "channels")
MOST_ELEMENTS, MOST_DIMS = 30_000, 5

UNARY = """abs neg exp sin cos tanh sigmoid relu sign floor ceil round trunc sqrt rsqrt log1p expm1 erf square
    reciprocal isnan isfinite log2 atan asinh sinh frac logical_not exp2 erfc deg2rad positive nan_to_num
    signbit logsumexp(0) lgamma digamma""".split()
ACTIVATIONS = """gelu silu elu selu softplus hardswish hardtanh mish leaky_relu logsigmoid relu6 celu
    hardsigmoid tanhshrink softsign softshrink""".split()
BINARY = """add sub mul maximum minimum fmod remainder atan2 eq ne lt le gt ge div true_divide floor_divide
    logical_and logical_xor hypot copysign pow fmax fmin heaviside nextafter xlogy logaddexp""".split()
REDUCE = "sum mean amax amin prod var std argmax argmin any all logsumexp nansum count_nonzero".split()

# Slots: see SLOTS. {f} float, {i} integer, {b} bool, {t} any tensor; {u} broadcasts with the first operand.
EXPRESSIONS = [
    *(("{t}.%s" % n if "(" in n else "torch.%s({t})" % n) for n in UNARY),
    *("F.%s({f})" % n for n in ACTIVATIONS),
    *["torch.%s({t}, {u})" % n for n in BINARY] * 2,
    *["{t} + {u}", "{t} * {u}", "{t} - {c}", "{c} - {t}", "{t} / {c}", "{t} // {u}", "{t} % {c}", "{t} ** 2"]
    * 2,
    *["{i} & {u}", "{i} | {u}", "{i} ^ {u}", "~{i}", "{i} << {k}", "{i} >> {k}", "{b} & {u}", "~{b}"],
    "torch.div({t}, {u}, rounding_mode='floor')",
    "torch.div({t}, {u}, rounding_mode='trunc')",
    *["torch.where({b}, {u}, {u})", "torch.where({t} > 0, {u}, {u})", "torch.where({t} > {c}, {u}, {c})"] * 2,
    "torch.clamp({t}, {c}, {c})",
    "torch.clamp({t}, min={u})",
    "torch.lerp({f}, {s}, {c})",
    "torch.addcmul({f}, {u}, {u}, value={c})",
    "torch.addcdiv({f}, {u}, {s}.abs() + 1)",
    "{t}.masked_fill({t} > 0, {c})",
    *["{t}.to({D})"] * 4,
    "{f}.double().to({f}.dtype)",
    "{t}.type_as({u})",
    "{t}.float()",
    "{t}.bool()",
    # reductions and scans
    *["{t}.%s({d})" % n for n in REDUCE],
    *["{t}.%s({d}, keepdim=True)" % n for n in REDUCE],
    *["{t}.%s()" % n for n in REDUCE],
    *["{t}.sum({d}, dtype={D})", "{f}.mean((0, -1))", "{t}.amax((0, -1))"] * 2,
    "{t}.cumsum({d})",
    "{t}.cumprod({d})",
    "{t}.cummax({d}).values",
    "{t}.cummin({d})[0]",
    "{f}.logcumsumexp({d})",
    "torch.std_mean({f}, {d})[1]",
    "{t}.max({d}).values",
    "{t}.min({d})[1]",
    "{f}.norm(dim={d})",
    "{f}.norm()",
    "torch.linalg.vector_norm({f}, 1, {d})",
    "{t}.median({d}).values",
    "torch.aminmax({t}, dim={d})[0]",
    *["F.softmax({f}, {d})", "F.log_softmax({f}, {d})", "{f}.softmax(-1)"] * 2,
    *["F.layer_norm({f}, {f}.shape[-1:])", "F.layer_norm({f}, {f}.shape[1:])", "F.normalize({f}, dim={d})"]
    * 2,
    "F.layer_norm({f}, {f}.shape[-1:], {f}.new_ones({f}.shape[-1]), {f}[..., 0].new_zeros({f}.shape[-1]))",
    "F.batch_norm({f2}, None, None, training=True)",
    "F.group_norm({f4}, 1)",
    "F.mse_loss({f}, {s})",
    "F.rms_norm({f}, {f}.shape[-1:])",
    "F.cosine_similarity({f}, {s}, dim={d})",
    "F.smooth_l1_loss({f}, {s})",
    "F.cross_entropy({f2}, torch.arange({f2}.shape[0]) % {f2}.shape[1])",
    "F.glu(torch.cat([{f}, {f}], {d}), {d})",
    # matrix products, convolution, pooling
    *["{f} @ {f}.mT", "{f} @ {f}.new_ones({f}.shape[-1], {k})", "torch.matmul({f}, {s}.mT)"] * 2,
    "torch.bmm({f3}, {f3}.transpose(1, 2))",
    "F.linear({f}, {f}.new_ones({k}, {f}.shape[-1]))",
    "torch.einsum('...i,...i->...', {f}, {s})",
    "torch.addmm({c} * {f2}.new_ones({k}), {f2}, {f2}.new_ones({f2}.shape[1], {k}))",
    "torch.outer({f}.flatten(), {f}.flatten()[:{k}])",
    "torch.mv({f2}, {f2}[0])",
    "F.conv1d({f3}, {f3}.new_ones(2, {f3}.shape[1], {k}), padding=1)",
    "F.conv2d({f4}, torch.arange({f4}.shape[1] * 8.).sin().to({f4}.dtype).view(2, -1, 2, 2), stride={k})",
    "F.max_pool2d({f4}, 2, 1, 1)",
    "F.avg_pool2d({f4}, 2, padding=1)",
    "F.adaptive_avg_pool2d({f4}, 2)",
    "F.max_pool1d({f3}, 2)",
    "F.interpolate({f4}, scale_factor=2)",
    "F.avg_pool1d({f3}, 2, 1)",
    "F.scaled_dot_product_attention({f4}, {f4}, {f4})",
    "F.interpolate({f4}, (3, 4), mode='bilinear')",
    # indexing
    *[
        "torch.gather({t}, {d}, {I})",
        "{t}.index_select({d}, {j})",
        "{t}[{j0}]",
        "torch.take_along_dim({t}, {I}, {d})",
        "{t}[:, {j1}]",
        "{t}.scatter({d}, {I}, {s})",
        "{t}.scatter_add({d}, {I}, {s})",
        "{t}.index_add({d}, {j}, {t}.index_select({d}, {j}))",
    ],
    "{t}.scatter_reduce({d}, {I}, {s}, 'amax')",
    "{t}.index_put(({j0},), {t}[0])",
    "{t}[{j0}, ..., 0]",
    "{t}[{j0}, {j1}]",
    "{t}.index_copy({d}, {j}.unique(), {t}.index_select({d}, {j}.unique()))",
    "{t}.index_fill({d}, {j}, {k})",
    "F.embedding({j0}, {f2})",
    "F.one_hot({j0})",
    "F.embedding({j0}.view(-1, 1), {f2}, padding_idx=0)",
    "torch.take({t}, {j0})",
    "{t}.sort({d}, stable=True).values",
    "{t}.argsort({d}, stable=True)",
    "{f}.topk(1, {d}).values",
    "torch.searchsorted({t}.flatten().sort().values, {t})",
    "torch.bucketize({t}, torch.arange(-2, 3))",
    "{t}.masked_select({b})",
    "{t}.nonzero()",
    "{t}[{t} > 0]",
    # making and joining
    *[
        "torch.cat([{t}, {s}], {d})",
        "torch.stack([{t}, {s}], {d})",
        "F.pad({t}, (1, 2))",
        "F.pad({t}, (0, 1, 2, -1), value={c})",
        "torch.cat([{t}, {s}[:1], {s}])",
    ]
    * 2,
    "F.pad({f3}, (1, 1), mode='reflect')",
    "F.pad({f3}, (1, 1), mode='replicate')",
    "{t}.roll(1, {d})",
    "{t}.flip({d})",
    "{t}.repeat_interleave(2, {d})",
    "{t}.tile(2)",
    "{t}.repeat(2, *[1] * {t}.dim())",
    "{t}.tril()",
    "{t}.triu(1)",
    "torch.diag_embed({t})",
    "{t}.rot90()",
    "{t}.diff(dim={d})",
    "torch.zeros_like({t})",
    "torch.full_like({t}, {c})",
    "{t}.new_full(({k}, 3), 2)",
    "torch.arange({t}.shape[{d}]) * {k}",
    "torch.ones({k}, 3)",
    "{t}.clone()",
    "torch.tensor([1, 2, {k}])",
    "torch.linspace(0, 1, {t}.shape[{d}])",
    "torch.eye({k})",
    "{t}.contiguous()",
    "{t}.detach()",
    # control flow on shapes, Python numbers
    "{t} * {t}.shape[{d}]",
    "{t} + len({t})",
    "({t} + 1) if {t}.shape[{d}] > 3 else {t}.sum({d})",
    "torch.stack([row * n for n, row in enumerate({t})])",
    "sum([row.sum() for row in {t}], {c})",
    "{t}.numel() * {t}.sum()",
    "{t}.reshape(-1) if {t}.dim() > 1 else {t}[None]",
    "max({t}.shape) - {t}",
    "{t} if {t}.is_contiguous() else {t} * 2",
    "{f} * (2.0 if {t}.is_floating_point() else 1)",
]
VIEWS = [
    "{t}.view(-1)",
    "{t}.reshape({t}.shape[0], -1)",
    "{t}.reshape(-1)",
    "{t}.transpose(0, -1)",
    "{t}.mT",
    "{t}.permute(*range({t}.dim())[::-1])",
    "{t}.expand(2, *{t}.shape)",
    "{t}.unsqueeze({d})",
    "{t}.squeeze()",
    "{t}[1:]",
    "{t}[..., ::2]",
    "{t}[:, 1:-1]",
    "{t}[0]",
    "{t}[..., -1]",
    "{t}[None]",
    "{t}.select({d}, -1)",
    "{t}.narrow({d}, 1, 1)",
    "{t}.split(2, {d})[0]",
    "{t}.chunk(2, {d})[-1]",
    "{t}.unbind({d})[0]",
    "{t}.diagonal()",
    "{t}.unfold({d}, 2, 1)",
    "{t}.flatten()",
    "{t}.unflatten({d}, (1, -1))",
    "{t}.movedim(0, -1)",
    "{t}.view_as({t})",
    "{t}.detach()",
    "{t}.expand_as({t})",
    "{f}.view(torch.int32)",
    "{t}.swapaxes(0, -1)",
    "{t}.squeeze({d})",
    "{t}.T",
    "{t}.diagonal(1)",
    "{t}.tensor_split(3)[1]",
    "{t}.as_strided((2,), (1,), 1)",
    "{t}.ravel()",
    "{t}.view({t}.shape[::-1])",
    "{t}.contiguous()",
    "{t}.real",
    "{t}.view(-1, *{t}.shape[1:])",
    "{t}.data",
    "{t}.alias_copy()",
    "{t}.unbind()[-1]",
    "{t}.repeat(1, 1)[0]",
]
WRITES = [
    *["{t}.add_({u})", "{t}.mul_({c})", "{t}.sub_({u})", "{t}.copy_({u})", "{t}.fill_({c})", "{t}.zero_()"]
    * 2,
    *[
        "{t}[1:].mul_({c})",
        "{t}[0] = {c}",
        "{t}[..., ::2] = {c}",
        "{t}.select({d}, 0).add_({c})",
        "{t}.diagonal().fill_({c})",
        "{t}.view(-1)[::2].add_(1)",
        "{t}[{t} > 0] = {c}",
        "{t}[{j0}] = {c}",
        "{t}[:, :1].copy_({t}[:, -1:])",
        "{t} += {u}",
        "{t} *= {u}",
    ],
    "{t}.relu_()",
    "{f}.sigmoid_()",
    "{t}.clamp_({c}, 2)",
    "{t}.masked_fill_({b}, {c})",
    "{t}.scatter_({d}, {I}, {c})",
    "{t}.index_add_({d}, {j}, {t}.index_select({d}, {j}))",
    "{t}.index_fill_({d}, {j}, 1)",
    "{t}.t_()",
    "{t}.unsqueeze_(0)",
    "{t}.squeeze_()",
    "{t}.index_put_(({j0},), {t}[0], accumulate=True)",
    "{t}.unbind()[0].neg_()",
    "{t}.mT.add_({c})",
    "{f}.div_({c})",
    "{t}.floor_()",
    "torch.add({t}, {u}, out={t})",
    "{t}.transpose(0, -1)[..., 0] = {c}",
    "{t}[0], {t}[-1] = {t}[-1], {t}[0]",
    "{f}.exp_()",
    "{t}.logical_not_()",
    "{t}.addcmul_({u}, {u})",
    "{t}.unfold(0, 2, 2).add_(1)",
    "{t}.cumsum_(0)",
    "{t}[..., 0] += {t}[..., -1]",
    "{t}.flip(0).add_(1)",
    "{t}.data.mul_(2)",
    "{t}.detach().add_({c})",
    "{t}.swapaxes_(0, -1)",
    "{t}.expand_as({t}).add_(1)",
    "{f}.tanh_()",
    "{t}.clamp_min_({u})",
    "{t}.narrow({d}, 0, 1).fill_({c})",
    "{t}.reshape(-1).mul_(2)",
    "{t}.index_copy_(0, {j0}[:1], {t}[:1])",
    "{t}.as_strided((2,), (1,)).add_(1)",
]
RANDOM = [
    "F.dropout({f}, 0.5)",
    "torch.rand_like({f})",
    "torch.randn({k}, 3)",
    "torch.bernoulli(torch.sigmoid({f}))",
    "torch.randperm({t}.shape[0])",
    "torch.randint(0, 5, ({k}, 2))",
    "{f} + torch.rand(1)",
    "torch.randn_like({f}) * {f}",
    "F.dropout({f}, 0.3, training=False)",
    "torch.normal(0., 1., (3,))",
    "torch.multinomial({f}.flatten().abs() + 1, 2)",
    "F.rrelu({f}, training=True)",
    "F.dropout1d({f3}, 0.5)",
]
RANDOM_WRITES = [
    "{f}.normal_()",
    "{f}.uniform_()",
    "{f}.bernoulli_(0.5)",
    "{f}.exponential_()",
    "F.dropout({f}, 0.5, inplace=True)",
]
SEVERAL = [
    "{v}, {w} = {t}.split([1, {t}.shape[{d}] - 1], {d})",
    "{v}, {w} = {t}.chunk(2, {d})",
    "{v}, {w} = {t}.unbind({d})",
    "{v}, {w} = {t}.max({d})",
    "{v}, {w} = torch.var_mean({f}, {d})",
    "{v}, {w} = {t}.sort({d}, stable=True)",
    "{v}, {w} = torch.frexp({f})",
    "{v}, {w} = {t}, {t}[...]",
    "{v}, {w} = torch.broadcast_tensors({t}, {u})",
    "{v}, {w} = {t}.mode({d})",
    "{v}, {w} = {f}.kthvalue(1, {d})",
    "{v}, {w} = torch.aminmax({t})",
]
KINDS = ((EXPRESSIONS, 10), (VIEWS, 5), (WRITES, 3), (RANDOM, 1), (RANDOM_WRITES, 0.3), (SEVERAL, 1))


def tensor(seed: int, shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous") -> torch.Tensor:
    """A tensor of small values in a memory layout: one of LAYOUTS."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(*sizes: int) -> torch.Tensor:
        if dtype is torch.bool:
            return torch.rand(sizes, generator=generator) > 0.5
        if not dtype.is_floating_point:
            return torch.randint(0 if dtype is torch.uint8 else -9, 10, sizes, generator=generator).to(dtype)
        return torch.randn(sizes, generator=generator).to(dtype)

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
    sizes       m, n, k of the first call, and of a call with another shape
    grad        "leaf": floating inputs require gradients; "computed": and are not leaves; "unused": they do,
                but it runs under no_grad, as with "", where they do not
    """

    inputs: tuple[str, ...]
    statements: tuple[str, ...]
    returns: tuple[str, ...]
    sizes: tuple[tuple[int, int, int], ...]
    grad: str = ""
    backend: str = "reference"

    def __str__(self) -> str:
        names = ", ".join(f"x{i}" for i in range(len(self.inputs)))
        made = "\n".join(f"    x{i} = {e}" for i, e in enumerate(self.inputs))
        body = "\n".join(f"    {s}" for s in self.statements)
        return (
            f"import torch\nimport torch.nn.functional as F\n\n"
            f"from minicompile.testing.programs import tensor\n\n"
            f"SIZES = {self.sizes!r}\nGRAD = {self.grad!r}\nBACKEND = {self.backend!r}\n\n\n"
            f"def inputs(m, n, k):\n{made}\n    return [{names}]\n\n\n"
            f"def fn({names}):\n{body}\n    return ({', '.join(self.returns)},)\n"
        ).replace("\n    \n", "\n")

    def module(self, source: str = "") -> dict[str, Any]:
        """The namespace that running the source gives."""
        namespace: dict[str, Any] = {"__name__": "fuzzed"}
        exec(compile(source or str(self), "<fuzzed>", "exec"), namespace)
        return namespace


class Generator:
    """Draws one program."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
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
        self.scope = {"torch": torch, "F": torch.nn.functional}
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
        return Program(tuple(self.inputs), tuple(self.statements), tuple(returns), (sizes, other), grad)

    def _input(self) -> str:
        r = self.r
        if self.inputs and r.random() < 0.2:
            of = f"x{r.randrange(len(self.inputs))}"
            if not self.values[of].requires_grad and self.values[of].dim():
                return r.choice(
                    (f"{of}[...]", f"{of}.mT" if self.values[of].dim() > 1 else f"{of}[:]", f"{of}[1:]", of)
                )
        dims = (
            "mnk"[: r.choice((0, 1, 2, 2, 2, 3))] if r.random() < 0.7 else r.choice(("n", "nk", "nm", "kmn"))
        )
        dims = [d if r.random() < 0.8 else r.choice("1234") for d in dims]
        dims += ["2"] * (r.random() < 0.1)
        shape = f"({', '.join(dims)}{',' * (len(dims) == 1)})"
        return f"tensor({r.randrange(1000)}, {shape}, torch.{r.choice(DTYPES)}, {r.choice(LAYOUTS)!r})"

    def _statement(self) -> None:
        lists, weights = zip(*KINDS)
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
        made = {
            k: v
            for k, v in scope.items()
            if k not in self.scope and k != "__builtins__" and isinstance(v, torch.Tensor)
        }
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
        return self.r.choice(names[-5:] if self.r.random() < 0.6 else names)

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
            return (
                f"torch.tensor([0, -1, 0])[:{self.r.randint(1, 3)}] % {self.anchor}.shape[{dim}]"
                if self.r.random() < 0.5
                else f"torch.tensor({self.r.choice(([0], [1, 0], [0, -1], [2]))})"
            )
        name = self.pick(lambda t: t.dtype in (torch.int64, torch.int32) and t.dim() == 1)
        return f"({name}.long() % {self.anchor}.shape[{dim}])"

    def number(self) -> str:
        return self.r.choice(("0", "1", "2", "-1", "0.5", "-1.5", "3", "1e-3", "2.0"))


Slot = Callable[[Generator], str]
SLOTS: dict[str, Slot] = {
    "t": lambda g: g.first(lambda t: True),
    "f": lambda g: g.first(torch.is_floating_point),
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
    "D": lambda g: "torch." + g.r.choice(DTYPES),
}


def generate(seed: int) -> Program:
    """The program of a seed."""
    return Generator(seed).program()
