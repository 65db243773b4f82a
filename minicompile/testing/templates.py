"""Templates of statements, for `programs`: plain data.

Each is Python source with slots in braces (see `programs.SLOTS`): {f} a float, {i} an integer, {b} a mask,
{t} any tensor, {x} an input, {u} one that broadcasts with the first, {s} one like it, {d} a dimension, {P}
all dimensions in some order, {c} {k} numbers, {D} a dtype, {v} {w} what is defined. A statement that doesn't
run in eager mode is not used, so templates need no typing rules. BLOCKS are Python as people write it:
control flow, containers, closures, state that outlives the call; they use what PRELUDE defines, and CHANGES
happen to that between calls.
"""

from __future__ import annotations

UNARY = """abs neg exp sin cos tanh sigmoid relu sign floor ceil round trunc sqrt rsqrt log1p expm1 erf square
    reciprocal isnan isfinite log2 atan asinh sinh frac logical_not exp2 erfc deg2rad positive nan_to_num
    signbit logsumexp(0) lgamma digamma""".split()
ACTIVATIONS = """gelu silu elu selu softplus hardswish hardtanh mish leaky_relu logsigmoid relu6 celu
    hardsigmoid tanhshrink softsign softshrink""".split()
BINARY = """add sub mul maximum minimum fmod remainder atan2 eq ne lt le gt ge div true_divide floor_divide
    logical_and logical_xor hypot copysign pow fmax fmin heaviside nextafter xlogy logaddexp""".split()
REDUCE = "sum mean amax amin prod var std argmax argmin any all logsumexp nansum count_nonzero".split()

EXPRESSIONS = [
    *(("{t}.%s" % n if "(" in n else "torch.%s({t})" % n) for n in UNARY),
    *("F.%s({f})" % n for n in ACTIVATIONS),
    *["torch.%s({t}, {u})" % n for n in BINARY] * 2,
    *["{t} + {u}", "{t} * {u}", "{t} - {c}", "{c} - {t}", "{t} / {c}", "{t} // {u}", "{t} % {c}", "{t} ** 2"]
    * 2,
    *["{i} & {u}", "{i} | {u}", "{i} ^ {u}", "~{i}", "{i} << {k}", "{i} >> {k}", "{b} & {u}", "~{b}",
      "({t} > {c}) > ({t} > 0)", "({t} < 0) <= ({u} < {c})", "({t} > 0) < ({u} > 0)"],
    "torch.div({t}, {u}, rounding_mode='floor')",
    "torch.div({t}, {u}, rounding_mode='trunc')",
    *["torch.where({b}, {u}, {u})", "torch.where({t} > 0, {u}, {u})", "torch.where({t} > {c}, {u}, {c})"] * 2,
    "torch.clamp({t}, {c}, {c})",
    "torch.clamp({t}, min={u})",
    "torch.lerp({f}, {s}, {c})",
    "{c} ** {f}",
    "torch.where(torch.tensor({k} > 1), {t}, {t} + 1)",
    "torch.addcmul({f}, {u}, {u}, value={c})",
    "torch.addcdiv({f}, {u}, {s}.abs() + 1)",
    "{t}.masked_fill({t} > 0, {c})",
    *["{t}.to({D})"] * 4,
    "{f}.double().to({f}.dtype)",
    *["{f}.to({D}).to({D})", "{f}.bfloat16().float()", "{f}.half().float() * 1.5", "{f}.to({D}) * {f}.sum()",
      "{f}.bfloat16() * torch.tensor(0.1)", "{f}.half() + {f}.double().mean()", "F.relu({f}.round())",
      "{f}.bfloat16() - {f}.flatten()[0]", "torch.eq({f}.bfloat16(), {f}.flatten()[0])",
      "{f}.half() > {f}.flatten()[-1]", "torch.maximum({f}.bfloat16(), {f}.mean())",
      "{f}.to({D}).sum({d}).float()", "F.threshold({f}, {c}, {c})", "F.hardtanh({f}, {c}, 2)"],
    "{t}.type_as({u})",
    "{t}.float()",
    "{t}.bool()",
    # what is not a number
    "torch.fmax({f}.sqrt(), {s})", "torch.fmin({s}, {f}.log())", "{f}.sqrt().nan_to_num({c})",
    "{f}.log().nansum({d})", "torch.where({f}.sqrt() > {c}, {s}, {c})", "{f}.sqrt().isnan().sum({d})",
    "{f}.rsqrt().clamp({c}, 2).isfinite()",
    # reductions and scans
    "{t}.prod({d}, dtype=torch.bool)", "{t}.sum({d}, dtype=torch.bool)", "{b}.prod({d})", "{b}.sum({d})",
    *["{t}.cumsum({d}).flip({d}).cumsum({d})", "{t}.cumsum({d}).roll(1, {d}).cumsum({d})",
      "{f}.softmax({d}).flip({d}).softmax({d})", "{t}.cumsum({d}).permute({P}).cumsum({d})",
      "{f}.softmax(-1).mT.softmax(-1)", "torch.cat([{t}.cumsum({d}), {s}], {d}).flip({d}).cumsum({d})"],
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
VIEWS = ["{t}.view(-1)", "{t}.reshape({t}.shape[0], -1)", "{t}.reshape(-1)", "{t}.transpose(0, -1)", "{t}.mT",
         "{t}.permute(*range({t}.dim())[::-1])", "{t}.expand(2, *{t}.shape)", "{t}.unsqueeze({d})",
         "{t}.squeeze()", "{t}[1:]", "{t}[..., ::2]", "{t}[:, 1:-1]", "{t}[0]", "{t}[..., -1]", "{t}[None]",
         "{t}.select({d}, -1)", "{t}.narrow({d}, 1, 1)", "{t}.split(2, {d})[0]", "{t}.chunk(2, {d})[-1]",
         "{t}.unbind({d})[0]", "{t}.diagonal()", "{t}.unfold({d}, 2, 1)", "{t}.flatten()",
         "{t}.unflatten({d}, (1, -1))", "{t}.movedim(0, -1)", "{t}.view_as({t})", "{t}.detach()",
         "{t}.expand_as({t})", "{x}.view(torch.int32)", "{t}.swapaxes(0, -1)", "{t}.squeeze({d})", "{t}.T",
         "{t}.diagonal(1)", "{t}.tensor_split(3)[1]", "{t}.as_strided((2,), (1,), 1)", "{t}.ravel()",
         "{t}.view({t}.shape[::-1])", "{t}.contiguous()", "{t}.real", "{t}.view(-1, *{t}.shape[1:])",
         "{t}.data", "{t}.alias_copy()", *["{t}.permute({P})"] * 3, "{t}[1::2]", "{t}[::2][1:]",
         "{t}[..., 1:][..., ::3]", "{t}[2:]", "{t}[..., 1::2]", "{t}[::3]", "{t}.permute({P}).permute({P})",
         "{t}.narrow({d}, 1, 2)", "{t}.permute({P})[1:]", "{t}.as_strided((2, 2), (1, 2), 1)",
         "{t}.unbind()[-1]", "{t}.repeat(1, 1)[0]",]
WRITES = [*["{t}.add_({u})", "{t}.mul_({c})", "{t}.sub_({u})", "{t}.copy_({u})", "{t}.fill_({c})",
            "{t}.zero_()"] * 2, *["{t}[1:].mul_({c})", "{t}[0] = {c}", "{t}[..., ::2] = {c}",
                                  "{t}.select({d}, 0).add_({c})", "{t}.diagonal().fill_({c})",
                                  "{t}.view(-1)[::2].add_(1)", "{t}[{t} > 0] = {c}", "{t}[{j0}] = {c}",
                                  "{t}[:, :1].copy_({t}[:, -1:])", "{t} += {u}", "{t} *= {u}",],
          "{t}.relu_()", "{f}.sigmoid_()", "{t}.clamp_({c}, 2)", "{t}.masked_fill_({b}, {c})",
          "{t}.scatter_({d}, {I}, {c})", "{t}.index_add_({d}, {j}, {t}.index_select({d}, {j}))",
          "{t}.index_fill_({d}, {j}, 1)", "{t}.t_()", "{t}.unsqueeze_(0)", "{t}.squeeze_()",
          "{t}.index_put_(({j0},), {t}[0], accumulate=True)", "{t}.unbind()[0].neg_()", "{t}.mT.add_({c})",
          "{f}.div_({c})", "{t}.floor_()", "torch.add({t}, {u}, out={t})",
          "{t}.transpose(0, -1)[..., 0] = {c}", "{t}[0], {t}[-1] = {t}[-1], {t}[0]", "{f}.exp_()",
          "{t}.logical_not_()", "{t}.addcmul_({u}, {u})", "{t}.unfold(0, 2, 2).add_(1)", "{t}.cumsum_(0)",
          "{t}[..., 0] += {t}[..., -1]", "{t}.flip(0).add_(1)", "{t}.data.mul_(2)", "{t}.detach().add_({c})",
          "{t}.swapaxes_(0, -1)", "{t}.expand_as({t}).add_(1)", "{f}.tanh_()", "{t}.clamp_min_({u})",
          "{t}.narrow({d}, 0, 1).fill_({c})", "{t}.reshape(-1).mul_(2)",
          "{t}.index_copy_(0, {j0}[:1], {t}[:1])", "{t}.as_strided((2,), (1,)).add_(1)",]
RANDOM = ["F.dropout({f}, 0.5)", "torch.rand_like({f})", "torch.randn({k}, 3)",
          "torch.bernoulli(torch.sigmoid({f}))", "torch.randperm({t}.shape[0])",
          "torch.randint(0, 5, ({k}, 2))", "{f} + torch.rand(1)", "torch.randn_like({f}) * {f}",
          "F.dropout({f}, 0.3, training=False)", "torch.normal(0., 1., (3,))",
          "torch.multinomial({f}.flatten().abs() + 1, 2)", "F.rrelu({f}, training=True)",
          "F.dropout1d({f3}, 0.5)",]
RANDOM_WRITES = ["{f}.mT.uniform_()", "{f}.permute({P}).normal_()", "{f}[..., ::2].uniform_()",
                 "{f}[..., 1:].exponential_()", "{f}.normal_()", "{f}.uniform_()",
                 "{f}.bernoulli_(0.5)", "{f}.exponential_()",
                 "F.dropout({f}, 0.5, inplace=True)"]
SEVERAL = ["{v}, {w} = {t}.split([1, {t}.shape[{d}] - 1], {d})", "{v}, {w} = {t}.chunk(2, {d})",
           "{v}, {w} = {t}.unbind({d})", "{v}, {w} = {t}.max({d})", "{v}, {w} = torch.var_mean({f}, {d})",
           "{v}, {w} = {t}.sort({d}, stable=True)", "{v}, {w} = torch.frexp({f})", "{v}, {w} = {t}, {t}[...]",
           "{v}, {w} = torch.broadcast_tensors({t}, {u})", "{v}, {w} = {t}.mode({d})",
           "{v} = {f} + 1\n{w} = {v} - {v}.amax(-1, True)\n{f}.mul_({c})",
           "{v} = {f}.exp()\n{f}.sub_({f}.sum(-1, True))\n{w} = {v} / {v}.sum(-1, True)",
           "{v} = {f} * 2\n{w} = {v} - {v}.mean()\n{f}.copy_({w})",
           "{v}, {w} = {f}.kthvalue(1, {d})", "{v}, {w} = torch.aminmax({t})"]

PRELUDE = """\
import functools
import operator


class Box:
    factor = 2

    def __init__(self, t):
        self.t, self.n, self.log = t, 0, []

    def __call__(self, x):
        self.n += 1
        return x * self.n

    @property
    def half(self):
        return self.t / 2

    def bump(self, by=1):
        self.n += by
        return self


class Crate(Box):
    factor = 3

    def __call__(self, x):
        return x - self.n


def helper(x, *rest, k=2, **more):
    return x * k + len(rest) - len(more)


def counter():
    n = 0

    def step(x):
        nonlocal n
        n += 1
        return x + n
    return step


def tick():
    global TICKS
    TICKS += 1
    return TICKS


def numbers(n):
    for i in range(n):
        yield i * SHARED["scale"]


TICKS = 0
STEP = counter()
BOX = Box(tensor(1, (3,), torch.float32))
LAYER = torch.nn.Linear(3, 2)
SHARED = {"flag": True, "scale": 2.0, "items": [1, 2.5], "count": 0, "name": "a",
          "t": tensor(2, (3,), torch.float32)}
WATCHED = ["TICKS", "STEP", "BOX", "LAYER", "SHARED"]
"""
CHANGES = [
    "SHARED['flag'] = not SHARED['flag']", "SHARED['scale'] *= 1.5", "SHARED['items'].append(3)",
    "BOX.n += 5",
    "BOX.t = BOX.t + 1", "BOX.t.mul_(2)", "SHARED['name'] = 'b'", "SHARED['items'] = [4, 5]",
    "Box.factor += 1",
    "helper.__kwdefaults__['k'] += 1", "globals()['TICKS'] += 2", "BOX.extra = 7", "SHARED['t'] = BOX.t",
    "SHARED['count'] = 0", "STEP(0)", "SHARED['t'].add_(1)", "globals()['BOX'] = Box(SHARED['t'])",
    "BOX.log.append(0)",
    "LAYER.weight.data.mul_(2)", "LAYER.requires_grad_(not LAYER.weight.requires_grad)", "LAYER.eval()",
    "SHARED['t'] = SHARED['t'].double()", "SHARED['t'] = SHARED['t'][:2]", "BOX.t.requires_grad_()",
    "Box.half = property(lambda self: self.t * 3)", "globals()['helper'] = lambda x, *a, **k: x - 1",
    "SHARED['new_key'] = 1", "SHARED['absent'] = 4",
    "SHARED['last'] = SHARED['t'] * 2",
    "BOX.__class__ = (Box, Crate, Box)[call]  # 'n' 't' 'half' 'factor'",
    "SHARED['scale'] = (2., 3.5, 4)[call]",
    "BOX.n = (0, 1, 2.5)[call]", "SHARED['count'] = (0, 1, True)[call]",
    "SHARED['scale'] = int(SHARED['scale'])",
    "SHARED['items'] = tuple(SHARED['items'])", "SHARED['new'] = [9]", "vars(BOX).pop('extra', None)",
    "SHARED['t'] = SHARED['t'].view(1, -1)", "BOX.log = [1, 2]", "SHARED.pop('name', None)",
    "Box.bump = lambda self, by=1: self",
]
BLOCKS = [
    # control flow
    "if SHARED['flag']:\n    {v} = {t} + 1\nelse:\n    {v} = {t} * 2",
    "{v} = {t}\nfor i in range({k}):\n    {v} = {v} * 2 + i",
    "{v} = {t}\nwhile SHARED['count'] < {k}:\n    SHARED['count'] += 1\n    {v} = {v} + SHARED['count']",
    "try:\n    {v} = {t} / SHARED['absent']\nexcept KeyError as e:\n    {v} = {t} + len(e.args)",
    "try:\n    if {t}.shape[0] > 2:\n        raise ValueError('no')\n    {v} = {t}\nexcept ValueError:\n"
    "    {v} = {t} * 2\nfinally:\n    SHARED['count'] += 1",
    "with torch.no_grad():\n    {v} = {t} * 2",
    "with torch.enable_grad():\n    {v} = {t} * 2",
    "match {t}.dim():\n    case 2:\n        {v} = {t}.sum(1)\n    case n:\n        {v} = {t} + n",
    "{v} = {t} + 1 if bool(({t} > 0).all()) else {t} - 1",
    "for i, x in enumerate({t}):\n    if i > 2:\n        break\n    {v} = x * i\nelse:\n    {v} = {t}",
    "{v} = {t}\nfor x in SHARED['items']:\n    if not isinstance(x, (int, float)):\n        continue\n"
    "    {v} = {v} * x",
    "if SHARED['name'] == 'a' and {t}.shape[-1] > 2 or SHARED['count'] > 3:\n    {v} = {t}.exp()\n"
    "else:\n    {v} = {t}",
    "assert {t}.dim() < 6, 'many'\n{v} = {t} * 1",
    "{v} = (y := {t} + 1) * y",
    # containers
    "SHARED['items'].append({t}.shape[0])",
    "SHARED['items'].append({t})",
    "{v} = sum(x for x in SHARED['items'] if isinstance(x, (int, float))) * {t}",
    "SHARED['last'] = {t}",
    "{v} = SHARED.pop('last', {t}) * 2",
    "{v} = [x * 2 for x in ({t}, {t})][-1]",
    "{v} = max([{t}, {u}], key=lambda x: x.dim())",
    "first, *rest = {t}, 1, 2\n{v} = first + len(rest)",
    "{v} = functools.reduce(operator.add, [{t}, {u}, 1])",
    "{v} = sum(i * x for i, x in enumerate([{t}, {u}]))",
    "{v} = sorted([(2, {t}), (0, {u})], key=lambda p: p[0])[0][1] + 1",
    "xs = [{t}, {t}]\nxs[0].add_(1)\n{v} = xs[1]",
    "{v} = torch.stack(list({'b': {t}, 'a': {s}}.values()))",
    "table = {SHARED['name']: {t}, SHARED['name'] * 2: {u}}\n{v} = table['aa'] * 2 - table['a']",
    "{v} = {t} * SHARED.get('absent', 3)",
    "{v} = {t} + (SHARED['last'] if 'last' in SHARED else 1)",
    "{v} = {t} * (isinstance(SHARED['scale'], float) + 2) * (type(BOX) is Box)",
    "del SHARED['items'][:1]",
    "SHARED['items'][-1:] = [{k}]",
    "SHARED.setdefault('new', []).append({k})",
    "for key, value in list(SHARED.items()):\n    if key == 'count':\n        {v} = {t} + value",
    "table = {i: x for i, x in enumerate([{t}, {u}])}\ntable.update({1: {t}})\n{v} = table[1] * len(table)",
    "a, b = {t}, {u}\na, b = b, a\n{v} = a - b",
    "{v} = {t} * (3 in {1, 2, 3}) + ('scale' in SHARED)",
    "q = list(zip([1, 2, 3], [{t}, {u}]))\nq.reverse()\n{v} = q[0][1] * q[0][0]",
    "{v} = {t}[tuple(slice(0, n) for n in {t}.shape)]",
    # closures, calls, generators
    "def inner(y, z={c}):\n    return y * z\n{v} = inner({t})",
    "{v} = helper({t}, {u}, k={k}, extra=1)",
    "{v} = helper(*[{t}, 1], **{'other': 2})",
    "{v} = STEP({t})",
    "{v} = {t} + tick()",
    "{v} = sum(numbers({k})) + {t}",
    "fs = [lambda x, n=n: x + n for n in range(3)]\n{v} = fs[{k} - 1]({t})",
    "{v} = functools.partial(helper, k={k})({t})",
    "{v} = list(map(lambda x: x + 1, [{t}]))[0]",
    "gen = (x + 1 for x in [{t}, {u}])\n{v} = next(gen) * 2",
    # state and attributes
    "BOX.t = {t}", "BOX.t.add_(1)", "{v} = BOX.half", "{v} = BOX({t})", "{v} = BOX.bump({k}).n * {t}",
    "BOX.extra = {k}", "{v} = getattr(BOX, 'extra', 3) * {t}", "BOX.log.append(BOX.n)", "BOX.log.clear()",
    "{v} = {t} * Box.factor", "setattr(BOX, 'n', len(BOX.log))", "{v} = {t} + BOX.t.sum()",
    "{v} = {t} * SHARED['scale']\nSHARED['scale'] += 0.5", "SHARED['t'].mul_(2)",
    "{v} = {t} + SHARED['t'][0]",
    "{v} = LAYER({f}.float().flatten()[:3].view(1, -1))", "{v} = LAYER.weight.sum() * {t}",
    "{v} = {t} * (2 if LAYER.training else 3)",
    "{v} = {t} + 1 if {t} is {u} else {u} * 2", "SHARED['t'] = {t}.detach()", "{v} = BOX.__dict__['n'] + {t}",
    "{v} = {t} * 2 if hasattr(BOX, 'extra') else {t}", "SHARED['count'] += {t}.shape[0]",
    "{v} = {t} * len(SHARED['name'] + f'{{t}.dim()}')", "del BOX.log[:]",
]
RETURNS = ["SHARED['count']", "len(SHARED)", "BOX.n", "{'a': {r}, 'b': [{r}]}", "[{r}, ({r},)]", "BOX",
           "SHARED['items']",
           "{r}.dtype", "lambda: 1", "(SHARED['t'], BOX.t)", "SHARED['name'] * 2", "TICKS"]
