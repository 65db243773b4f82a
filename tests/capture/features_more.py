"""More programs over torch's features, for `test_features`: what research code does around its tensors."""

import collections
import itertools
import math
import operator
import types

import torch
import torch.nn.functional as F
from torch import distributions, nn
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from .features import case, feature, linear, wrapped, x

# ---- Python's protocols on tensors ---------------------------------------------------------------------

@case()
def iterates_rows(self, x):
    a, *rest = x
    return [r * i for i, r in enumerate(x)], a + sum(rest), next(zip(x, x.t())), list(reversed(x))


@case()
def operators(self, x):
    m, i = x > 0, (x * 4).int()
    return (1 - x, 2 / x, 2 ** x, x ** 2, x // 2, x % 3, -x, +x, abs(x), ~m, m & ~m, m | m, m ^ m, i << 1, i >> 1, i & 3,
            x @ x.t(), x == x, x != x.t()[0][0], x < 1, torch.round(x, decimals=1))


@case()
def compares_with_none(self, x):
    return x is None, x is not None, x == None, None != x, bool(x is x)  # noqa: E711


@case()
def builtins_on_tensors(self, x):
    parts = [x[0], x[1] * 2]
    return sum(parts), sum(p.sum() for p in parts), max(p.shape for p in parts), len(parts[0]), isinstance(
        x, torch.Tensor), type(x) is torch.Tensor, hasattr(x, "shape"), callable(x), getattr(x, "nope", 3), id(x) == id(x)


@case()
def indexes(self, x):
    i = torch.tensor([2, 0])
    return (x[..., None], x[:, -1], x[1:, ::2], x[i], x[i, i], x[:, i], x[None, 0], x[i.tolist()], x[-1, ...],
            x[torch.tensor(1)], x[[0, 1], [1, 2]], x[True], x[x.shape[0] - 1], x[slice(0, 2)])


@case()
def index_assignments(self, x):
    y = torch.zeros_like(x)
    y[0] = x[1]
    y[:, 1] = 3
    y[[1, 2], [0, 0]] = torch.tensor([5.0, 6.0])
    y[..., -1] += x[:, 0]
    y[2, 3], y[1, 1] = 7, x[0, 0]
    return y


@case()
def scalars_out_and_in(self, x):
    n = int(x.abs().sum()) % 3
    s = float(x[0, 0])
    return x[:n + 1] * s, n, s, math.floor(s), f"{s:.3f}", bool(x[0, 0] > -100), x[0, 0].item() * 2


@case()
def formats(self, x):
    return f"{x.shape} {x.dtype} {x.ndim}", str(x.shape), repr(x.dtype), f"{tuple(x.size())}", f"{x.sum():.2f}"


@case()
def conversions(self, x):
    return (x.to(torch.float64), x.double(), x.half(), x.bfloat16().float(), x.int(), x.to("cpu"), x.type_as(x.int()), x.cpu(),
            x.to(x.double()), x.type(torch.int32), x.bool(), x.long() / 2, x.contiguous(), x.view(torch.int32), x.type())


@case()
def promotion(self, x):
    i, b, h = torch.arange(4), torch.tensor([True, False, True, True]), torch.ones(4, dtype=torch.float16)
    return (i + 1.5, i / 2, i // 2, b + b, b.sum(), b * 2, i * h, h + x[0], i.to(torch.uint8) + 300 if False else i, b + 1.0,
            torch.result_type(i, 1.5), torch.promote_types(torch.int8, torch.float16), i.float().mean(), (i + h).dtype)


@case()
def constants_made(self, x):
    return (torch.tensor(x.shape), torch.zeros(*x.shape), torch.ones(x.shape[0], dtype=torch.int8), torch.arange(x.size(1)),
            torch.full((2, 2), math.pi), torch.eye(3), torch.linspace(0, 1, 5), torch.tensor([[1, 2], [3, 4]]),
            torch.tensor([1.0, x.shape[0]]), torch.empty(0), torch.tensor(True), torch.full_like(x, 2), x.new_tensor([1, 2]),
            torch.tensor([x.sum(), 1.0]), torch.stack([x[0], torch.zeros(4)]), torch.scalar_tensor(3))


@case()
def facts(self, x):
    return (torch.is_tensor(x), x.is_floating_point(), torch.finfo(x.dtype).min, torch.iinfo(torch.int32).max, torch.numel(x),
            torch.broadcast_shapes((3, 1), (4,)), torch.Size([2, 3]).numel(), torch.get_default_dtype(), x.is_contiguous(),
            x.element_size(), x.dim(), x.requires_grad, torch.are_deterministic_algorithms_enabled(),
            torch.jit.is_tracing(), torch.onnx.is_in_onnx_export(), torch.is_grad_enabled(), x.is_sparse, x.get_device())


@case()
def dicts_of_tensors(self, x):
    d = collections.OrderedDict(a=x, b=x * 2)
    d.move_to_end("a")
    by = {t: i for i, t in enumerate(d.values())}
    counts = collections.Counter(k[0] for k in d)
    return d, list(by.values()), dict(counts), max(d), d.popitem()[0], "b" in d


@case()
def tensor_in_list(self, x):
    a, b = x[0], x[1]
    items = [a, b]
    return items.index(a), any(t is b for t in items), len({a, b}), items.count(a) if False else 1


@case()
def functional_tools(self, x):
    import functools
    rows = list(itertools.chain(x, x * 2))
    pairs = list(itertools.islice(itertools.product(x[:2], repeat=2), 3))
    return (functools.reduce(operator.add, rows), operator.itemgetter(0, 2)(rows), [a * b for a, b in pairs],
            list(itertools.accumulate(rows[:3])), next(map(torch.sum, rows)), sorted(rows, key=lambda r: r.shape)[0])


@case()
def generators(self, x):
    def parts(t):
        for r in t:
            got = yield r * 2
            if got is not None:
                yield got + r
    g = parts(x)
    first = next(g)
    return first, g.send(first), list(g), sum(r.sum() for r in parts(x))


@case(args=(lambda: {"x": torch.ones(2), "l": [torch.zeros(2), (torch.ones(1), None)]},))
def pytrees(self, tree):
    flat, spec = _pytree.tree_flatten(tree)
    return _pytree.tree_map(lambda t: t + 1 if t is not None else None, tree), _pytree.tree_unflatten(flat, spec)


# ---- modules ------------------------------------------------------------------------------------------------

@feature()
def forward_of_the_instance():
    m = nn.Linear(4, 4)
    m.forward = types.MethodType(lambda self, v: F.linear(v, self.weight) * 2, m)
    return m, (torch.randn(3, 4),)


@feature()
def call_overridden():
    class Twice(nn.Linear):
        def __call__(self, v):
            return super().__call__(v) * 2
    return nn.Sequential(Twice(4, 4)), (torch.randn(3, 4),)


@feature()
def getattr_of_the_class():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inner, name)

        def forward(self, v):
            return self.inner(v) + self.weight.sum() + self.in_features
    return Wrapper(nn.Linear(4, 4)), (torch.randn(3, 4),)


@case(net=lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), more=lambda: nn.ModuleDict({"a": nn.Linear(4, 4)}))
def containers(self, x):
    for m in self.net[:2]:
        x = m(x)
    for name, m in self.more.items():
        x = m(x) + len(name)
    return self.net[-1](x), len(self.net), "a" in self.more, type(self.net[0]).__name__, self.get_submodule("net.2")(x)


@case(drop=lambda: nn.Dropout(0.5))
def eval_inside(self, x):
    was = self.training
    self.eval()
    y = self.drop(x)
    self.train(was)
    return y + self.drop(x)


@case(lin=linear(), cache=list)
def cache_of_tensors(self, x):
    self.cache.append(self.lin(x).detach())
    return torch.cat(self.cache).mean(0)


@case(lin=linear(), memory=lambda: torch.zeros(0, 4))
def growing_memory(self, x):
    self.memory = torch.cat([self.memory, x.detach()[:1]])
    return self.lin(x) + self.memory.sum(0)


@case(lin=linear(), queue=lambda: collections.deque(maxlen=2))
def queue_of_tensors(self, x):
    self.queue.append(x.detach().mean())
    return self.lin(x) * sum(self.queue)


@case(ema=linear(), net=linear())
def ema_update(self, x):
    with torch.no_grad():
        for a, b in zip(self.ema.parameters(), self.net.parameters()):
            a.mul_(0.9).add_(b, alpha=0.1)
    return self.net(x) - self.ema(x).detach()


@case(net=linear())
def weights_rewritten(self, x):
    with torch.no_grad():
        self.net.weight = nn.Parameter(self.net.weight * 0.5)
    return self.net(x)


@case(net=linear())
def norm_of_parameters(self, x):
    v = nn.utils.parameters_to_vector(self.net.parameters())
    return self.net(x) + v.norm(), sum(p.pow(2).sum() for p in self.parameters())


@case(net=linear())
def loads_state(self, x):
    self.net.load_state_dict({k: v * 0.5 for k, v in self.net.state_dict().items()})
    return self.net(x)


def _pruned():
    m = nn.Linear(4, 4)
    prune.l1_unstructured(m, "weight", 0.5)
    return m


wrapped(_pruned, x())("pruned")
wrapped(lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), x())("fx_module")
wrapped(lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), x())("scripted_module")
wrapped(lambda: torch.optim.swa_utils.AveragedModel(nn.Linear(4, 4)), x())("averaged_model")


# ---- modes and transforms of torch -----------------------------------------------------------------------

class Doubling(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 2 if func is torch.sin else out


@case()
def function_mode_inside(self, x):
    with Doubling():
        y = torch.sin(x)
    return y, torch.sin(x)


@case()
def sdpa_flags(self, x):
    q = x.view(1, 1, 3, 4)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, q, q)


@case()
def jacobian(self, x):
    return torch.autograd.functional.jacobian(lambda v: v.sin() * v.sum(), x[0].detach()), torch.autograd.functional.vjp(
        lambda v: v * 2, x.detach(), x.detach())


@case()
def forward_mode(self, x):
    import torch.autograd.forward_ad as fw
    with fw.dual_level():
        y = fw.make_dual(x.detach(), torch.ones_like(x)).sin()
        return fw.unpack_dual(y).tangent


@case()
def autocast_decorated(self, x):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def f(v):
        return v @ v.t()
    return f(x), torch.is_autocast_enabled("cpu")


@case(lin=linear())
def set_grad_by_value(self, x):
    with torch.set_grad_enabled(x.shape[0] > 5):
        y = self.lin(x)
    return y, torch.is_grad_enabled()


@case(lin=linear())
def detached_in_place(self, x):
    y = self.lin(x)
    y.detach_()
    return y * 2, y.requires_grad


@case(lin=linear())
def tensor_hook_inside(self, x):
    y = self.lin(x)
    if y.requires_grad:
        y.register_hook(lambda g: g * 2)
    return y.relu()


@case(lin=linear())
def retained_grad(self, x):
    y = self.lin(x)
    if y.requires_grad:
        y.retain_grad()
    return y * 2


@case(lin=linear())
def checks(self, x):
    torch._assert(x.shape[0] > 0, "empty")
    torch._check(x.shape[1] == 4)
    assert x.dim() == 2, f"bad {x.shape}"
    return self.lin(x)


@torch.jit.script
def scripted(v: torch.Tensor, n: int) -> torch.Tensor:
    for i in range(n):
        v = v * 2 + i
    return v


@case()
def scripted_function(self, x):
    return scripted(x, 3)


@case()
def custom_forward_backward_under_autocast(self, x):
    class Scale(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cpu")
        def forward(ctx, v):
            return v * 3

        @staticmethod
        @torch.amp.custom_bwd(device_type="cpu")
        def backward(ctx, g):
            return g * 3
    return Scale.apply(x)


# ---- distributions, randomness ---------------------------------------------------------------------------------

@case()
def normal_distribution(self, x):
    d = distributions.Normal(x.mean(1), x.std(1) + 0.1)
    s = d.rsample((2,))
    return s, d.log_prob(s), d.entropy(), distributions.kl_divergence(d, distributions.Normal(0.0, 1.0))


@case()
def categorical_distribution(self, x):
    d = distributions.Categorical(logits=x)
    a = d.sample()
    return a, d.log_prob(a), d.probs, d.entropy()


@case()
def mixed_distributions(self, x):
    base = distributions.Independent(distributions.Normal(x, torch.ones_like(x)), 1)
    t = distributions.TransformedDistribution(base, [distributions.TanhTransform(cache_size=1)])
    y = t.rsample()
    return y, t.log_prob(y), distributions.Bernoulli(logits=x).sample(), distributions.Beta(x.exp(), x.exp()).mean


@case(g=lambda: torch.Generator().manual_seed(7))
def generator_attribute(self, x):
    return x + torch.rand(4, generator=self.g)


@case()
def multinomial_sampling(self, x):
    return torch.multinomial(x.softmax(-1), 2), torch.normal(x, 1.0), torch.randint(0, 5, (3,)), torch.poisson(x.exp())


@case()
def gumbel(self, x):
    return F.gumbel_softmax(x, hard=True), F.rrelu(x, training=True), F.alpha_dropout(x, 0.3, True)


# ---- library calls ------------------------------------------------------------------------------------------------

@case()
def spectra(self, x):
    s = torch.stft(x.reshape(-1), 4, 2, return_complex=True, window=torch.hann_window(4))
    return s.abs(), torch.fft.rfft(x).real, torch.fft.irfft(torch.fft.rfft(x), n=4), torch.view_as_real(s).shape


@case()
def linear_algebra(self, x):
    a = x @ x.t() + torch.eye(3) * 3
    return (torch.linalg.solve(a, x), torch.linalg.cholesky(a), torch.linalg.det(a), torch.linalg.inv(a), a.logdet(),
            torch.linalg.norm(x), torch.linalg.vector_norm(x, dim=1), torch.einsum("ij,kj->ik", x, x), torch.trace(a))


@case(args=(x(1, 2, 6, 6),))
def images(self, x):
    grid = F.affine_grid(torch.eye(2, 3)[None], (1, 2, 4, 4), align_corners=False)
    return (F.grid_sample(x, grid, align_corners=False), F.interpolate(x, scale_factor=2, mode="bilinear"),
            F.interpolate(x, size=(3, 5)), F.unfold(x, 3), F.fold(F.unfold(x, 2), (6, 6), 2), F.pixel_shuffle(
            x[:, :1].expand(1, 4, 6, 6), 2), F.pad(x, (1, 2, 0, 1), mode="reflect"), F.max_pool2d(x, 2, return_indices=True))


@case()
def losses(self, x):
    t = torch.tensor([0, 2, 1])
    return (F.cross_entropy(x, t, label_smoothing=0.1, ignore_index=1), F.nll_loss(x.log_softmax(1), t), F.mse_loss(x, x * 2),
            F.smooth_l1_loss(x, x * 3), F.kl_div(x.log_softmax(1), x.softmax(1), reduction="batchmean"),
            F.binary_cross_entropy_with_logits(x, (x > 0).float()), F.cosine_similarity(x, x * 2), F.triplet_margin_loss(
            x, x + 1, x - 2), F.hinge_embedding_loss(x, torch.where(x > 0, 1, -1)), F.gaussian_nll_loss(x, x * 2, x.exp()))


@case()
def sorting(self, x):
    v, i = x.sort(descending=True)
    return v, i, x.topk(2), x.argmax(1), x.median(1), x.kthvalue(2)[0], torch.unique((x > 0).int()), x.cummax(1), torch.bincount(
        i.reshape(-1)), torch.searchsorted(v.flip(1).contiguous(), x), torch.histc(x, 4), x.argsort(stable=True)


@case()
def scatter_and_gather(self, x):
    i = torch.tensor([[0, 1, 1, 0]] * 3)
    y = torch.zeros(2, 4).scatter_add(0, i, x)
    return (y, x.gather(0, i), torch.zeros(3, 4).scatter(0, i, x.detach(), reduce="multiply"), x.index_select(1, i[0]),
            x.index_add(0, torch.tensor([0, 2]), x[:2]), x.take_along_dim(i, 0), y.scatter_reduce(0, i, x, "amax"),
            x.masked_fill(x > 0, -1), x.index_fill(0, torch.tensor([1]), 5.0), x.put(torch.tensor([1]), torch.tensor([9.0])))


@case()
def memory_formats(self, x):
    y = x.reshape(1, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    return y, y.is_contiguous(memory_format=torch.channels_last), (y * 2).stride(), y.clone().stride(), F.conv2d(
        y, torch.ones(2, 3, 1, 1))


@case(state=lambda: torch.zeros(3, 4))
def writes_into_state(self, x):
    self.state.copy_(x.detach())
    self.state[0].zero_()
    self.state.t()[1] += 1
    view = self.state.view(-1)
    view[5] = 9
    return self.state.sum(), view[:6]


@case(state=lambda: torch.zeros(3, 4))
def geometry_of_state_changes(self, x):
    self.state.unsqueeze_(0)
    y = self.state.sum()
    self.state.squeeze_(0)
    return y + x


@case(state=lambda: torch.zeros(2))
def state_resized(self, x):
    self.state.resize_(5).fill_(1)
    return self.state + x.sum()


@case(state=lambda: torch.zeros(3, 4))
def state_set(self, x):
    self.state.set_(x.detach().clone())
    return self.state * 2


@case(a=linear(), b=linear())
def tied_weights(self, x):
    self.b.weight = self.a.weight
    return self.b(self.a(x))


@case()
def nonlocal_and_default(self, x):
    count = 0

    def step(v, acc=[]):  # noqa: B006
        nonlocal count
        count += 1
        acc.append(count)
        return v * count + len(acc)
    return step(step(x)), count


@case()
def error_from_torch(self, x):
    try:
        return torch.cat([x, x[:, :2]])
    except RuntimeError as e:
        return x, str(e)


@case()
def error_of_data(self, x):
    try:
        return x[torch.tensor([5])]
    except IndexError:
        return x


@case()
def error_leaves(self, x):
    return x.view(5, 5)


@case()
def inner_torch_compile(self, x):
    return torch.compiler.disable(lambda v: v * 2)(x)
