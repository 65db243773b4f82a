"""Programs over torch's features, for `test_features`: each makes (callable, argument tuple), anew each time.

`mutate` changes the callable or its arguments between the second and the third call.
"""

import contextlib
import copy
import functools
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, rnn, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

FEATURES = {}        # name -> (make, mutate or None)


def feature(mutate=None):
    def register(make):
        FEATURES[make.__name__] = (make, mutate)
        return make
    return register


def module(body, *args, mutate=None, name=None, **state):
    """A feature whose module has `state` (callables make it) and runs body(self, *args)."""
    def make():
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                for k, v in state.items():
                    setattr(self, k, v() if callable(v) else v)

            def forward(self, *a, **k):
                return body(self, *a, **k)
        return Model(), tuple(a() if callable(a) else a for a in args)
    FEATURES[name or body.__name__] = (make, mutate)


def x(*shape, **more):
    return lambda: torch.randn(*(shape or (3, 4)), **more)


def linear(a=4, b=4):
    return lambda: nn.Linear(a, b)


def case(mutate=None, args=None, **state):
    def register(body):
        module(body, *(args or (x(),)), mutate=mutate, **state)
        return body
    return register


def wrapped(make_module, *args, mutate=None):
    """A feature that is a module of torch as it comes."""
    def register(name):
        FEATURES[name] = (lambda: (make_module(), tuple(a() for a in args)), mutate)
    return register


# ---- hooks ------------------------------------------------------------------------------------------

def _hooked(add):
    def make():
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        net.log = []
        add(net)
        return net, (torch.randn(3, 4),)
    return make


def hooks(add, mutate=None):
    FEATURES[add.__name__] = (_hooked(add), mutate)
    return add


@hooks
def forward_hook_replaces(net): net[0].register_forward_hook(lambda m, a, out: out * 2)
@hooks
def forward_hook_records(net): net[0].register_forward_hook(lambda m, a, out: net.log.append(out.shape))
@hooks
def forward_hook_keeps_activation(net): net[1].register_forward_hook(lambda m, a, out: net.log.append(out))
@hooks
def pre_hook_replaces(net): net[2].register_forward_pre_hook(lambda m, a: (a[0] + 1,))
@hooks
def pre_hook_with_kwargs(net): net.register_forward_pre_hook(lambda m, a, k: ((a[0] * 2,), k), with_kwargs=True)
@hooks
def hook_with_kwargs(net): net.register_forward_hook(lambda m, a, k, out: out + len(k), with_kwargs=True)
@hooks
def hook_prepended(net):
    net[0].register_forward_hook(lambda m, a, out: out * 2)
    net[0].register_forward_hook(lambda m, a, out: out + 1, prepend=True)
@hooks
def hook_always_called(net): net[0].register_forward_hook(lambda m, a, out: None, always_call=True)
@hooks
def backward_hook(net): net[0].register_full_backward_hook(lambda m, gi, go: net.log.append(len(go)))
@hooks
def backward_pre_hook(net): net[0].register_full_backward_pre_hook(lambda m, go: (go[0] * 2,))
@hooks
def parameter_hook(net): net[0].weight.register_hook(lambda g: g * 3)
@hooks
def accumulate_hook(net): net[0].weight.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(2) is None or None)


def _hook_later(net, args):
    net[0].register_forward_hook(lambda m, a, out: out * 3)


def _hook_removed(net, args):
    net.handle.remove()


def no_hook_yet(net): pass
hooks(no_hook_yet, mutate=_hook_later)
def hook_taken_away(net): net.handle = net[0].register_forward_hook(lambda m, a, out: out * 2)
hooks(hook_taken_away, mutate=_hook_removed)


# ---- parametrisations, norms, lazy modules -----------------------------------------------------------

class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).transpose(-1, -2)


def _parametrized():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


wrapped(_parametrized, x())("parametrized")
wrapped(lambda: weight_norm(nn.Linear(4, 3)), x())("weight_norm_old")
wrapped(lambda: parametrizations.weight_norm(nn.Linear(4, 3)), x())("weight_norm_new")
wrapped(lambda: spectral_norm(nn.Linear(4, 3)), x())("spectral_norm_old")
wrapped(lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), x())("spectral_norm_new")
wrapped(lambda: parametrizations.orthogonal(nn.Linear(4, 4)).eval(), x())("orthogonal")
wrapped(lambda: nn.LazyLinear(3), x())("lazy_linear")
wrapped(lambda: nn.Sequential(nn.LazyConv2d(3, 2), nn.LazyBatchNorm2d()), x(2, 3, 4, 4))("lazy_conv")


@case(net=_parametrized)
def parametrize_cached(self, x):
    with parametrize.cached():
        return self.net(x) + self.net(x * 2)


# ---- buffers, parameters, modes of modules -----------------------------------------------------------

def _train(m, args): m.train(not m.training)
def _double(m, args): m.double(); args[0].data = args[0].double()


wrapped(lambda: nn.BatchNorm1d(4), x(), mutate=_train)("batch_norm_toggled")
wrapped(lambda: nn.BatchNorm1d(4, momentum=None), x())("batch_norm_cumulative")
wrapped(lambda: nn.InstanceNorm1d(3, track_running_stats=True), x(2, 3, 5))("instance_norm")
wrapped(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4)), x(), mutate=_train)("dropout_toggled")
wrapped(lambda: nn.Linear(4, 4), x(), mutate=_double)("dtype_changed")
wrapped(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()), x(),
        mutate=lambda m, a: m.__setitem__(1, nn.ReLU()))("module_swapped")
wrapped(lambda: nn.Sequential(nn.Linear(4, 4)), x(), mutate=lambda m, a: m.append(nn.ReLU()))("module_appended")
wrapped(lambda: nn.Linear(4, 4), x(),
        mutate=lambda m, a: m.weight.data.mul_(2))("weight_data_scaled")
wrapped(lambda: nn.Linear(4, 4), x(),
        mutate=lambda m, a: setattr(m, "bias", None))("bias_taken")
wrapped(lambda: nn.Linear(4, 4), x(),
        mutate=lambda m, a: m.weight.requires_grad_(False))("weight_frozen")


@case(lin=linear())
def buffer_made_in_forward(self, x):
    if not hasattr(self, "scale"):
        self.register_buffer("scale", x.abs().amax().detach())
    return self.lin(x) / self.scale


@case(lin=linear(), table=lambda: nn.ParameterDict({"a": nn.Parameter(torch.ones(4))}),
      rows=lambda: nn.ParameterList([nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))]))
def parameter_containers(self, x):
    for name, p in self.table.items():
        x = x * p + len(name)
    return self.lin(x) + sum(self.rows) + len(list(self.parameters()))


@case(avg=lambda: torch.zeros(4))
def plain_tensor_attribute(self, x):
    self.avg = 0.9 * self.avg + 0.1 * x.mean(0).detach()
    return x - self.avg


@case(step=0, lin=linear())
def counter(self, x):
    self.step += 1
    return self.lin(x) * (2 if self.step > 1 else 1)


@case(lin=linear())
def swaps_its_modules(self, x):
    y = self.lin(x)
    self.lin = nn.Identity()
    return y


@case(lin=linear())
def state_dict_inside(self, x):
    return {k: v.sum() for k, v in self.state_dict().items()}, x


@case(a=linear(), b=linear())
def iterates_modules(self, x):
    for m in self.modules():
        if isinstance(m, nn.Linear):
            x = m(x)
    for n, m in self.named_children():
        x = m(x) + len(n)
    return x, sum(p.numel() for p in self.parameters()), [n for n, _ in self.named_buffers()]


@case(a=linear())
def requires_grad_read(self, x):
    return self.a(x) if any(p.requires_grad for p in self.parameters()) else x


@case(a=linear())
def zero_grad_inside(self, x):
    self.zero_grad()
    return self.a(x)


@case(lin=linear())
def module_made_inside(self, x):
    torch.manual_seed  # only looked at
    return nn.LayerNorm(4)(self.lin(x)) + nn.ReLU()(x)


@case(lin=linear())
def deepcopied_module(self, x):
    return copy.deepcopy(self.lin)(x)


@case(lin=linear())
def apply_to_modules(self, x):
    self.apply(lambda m: setattr(m, "seen", True))
    return self.lin(x)


# ---- checkpoint, custom functions, custom ops ----------------------------------------------------------

@case(lin=linear(), act=nn.Dropout)
def checkpoint_new(self, x):
    return checkpoint(lambda v: self.act(self.lin(v)).relu(), x, use_reentrant=False)


@case(lin=linear())
def checkpoint_reentrant(self, x):
    return checkpoint(self.lin, x, use_reentrant=True)


@case(net=lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
def checkpoint_of_layers(self, x):
    return checkpoint_sequential(self.net, 2, x, use_reentrant=False)


class Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low):
        ctx.save_for_backward(x)
        ctx.low = low
        ctx.mark_non_differentiable(keep := x > low)
        return x.clamp(min=low), keep

    @staticmethod
    def backward(ctx, g, _):
        x, = ctx.saved_tensors
        return g * (x > ctx.low) * 2, None


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


@case(lin=linear())
def custom_function(self, x):
    y, keep = Clamp.apply(self.lin(x), 0.1)
    return Straight.apply(y) * y, keep


@torch.library.custom_op("minicompile_tests::scaled", mutates_args=())
def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
    return x * by


@scaled.register_fake
def _(x, by):
    return torch.empty_like(x)


scaled.register_autograd(lambda ctx, g: (g * ctx.by, None), setup_context=lambda ctx, inputs, output: setattr(
    ctx, "by", inputs[1]))


@torch.library.custom_op("minicompile_tests::bump", mutates_args=("x",))
def bump(x: torch.Tensor) -> None:
    x += 1


@case(lin=linear())
def custom_op(self, x):
    return scaled(self.lin(x), 2.5) + torch.ops.minicompile_tests.scaled(x, 0.5)


@case(lin=linear())
def custom_op_that_writes(self, x):
    y = self.lin(x).detach() * 2
    bump(y)
    return y


# ---- modes ---------------------------------------------------------------------------------------------

@case(lin=linear())
def no_grad_inside(self, x):
    with torch.no_grad():
        scale = self.lin(x).norm()
    return self.lin(x) / scale


@case(lin=linear())
def grad_modes_nested(self, x):
    with torch.no_grad():
        a = self.lin(x)
        with torch.enable_grad():
            b = self.lin(x)
        torch.set_grad_enabled(True)
        c = self.lin(x)
        torch.set_grad_enabled(False)
    return a, b, c, torch.is_grad_enabled()


@case(lin=linear())
def no_grad_decorated(self, x):
    @torch.no_grad()
    def norm(v):
        return v.norm(), torch.is_grad_enabled()
    n, mode = norm(self.lin(x))
    return self.lin(x) / n, mode


@case(lin=linear())
def inference_mode_inside(self, x):
    with torch.inference_mode():
        y = self.lin(x)
    return y + 1 if not y.requires_grad else y


@case(lin=linear())
def autocast_inside(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = self.lin(x)
        with torch.autocast("cpu", enabled=False):
            z = self.lin(x.float())
        s = y.softmax(-1)
    return y, z, s, torch.is_autocast_enabled("cpu")


@case()
def default_dtype_inside(self, x):
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        y = torch.ones(3) + torch.tensor(1.5)
    finally:
        torch.set_default_dtype(old)
    return y, torch.ones(2)


@case()
def device_context(self, x):
    with torch.device("cpu"):
        return torch.zeros(3) + x.sum()


@case()
def is_compiling_is_not_stored(self, x):
    return x + 1 if torch.compiler.is_compiling() or torch.jit.is_scripting() or True else x


@case()
def seeds(self, x):
    g = torch.Generator().manual_seed(3)
    return torch.rand(3, generator=g) + x.sum()


@case()
def random_numbers(self, x):
    return torch.rand(2) + torch.randn_like(x).sum(), torch.randperm(4), F.dropout(x, 0.5, True), torch.bernoulli(
        x.sigmoid())


@case()
def seed_set_inside(self, x):
    torch.manual_seed(5)
    return x + torch.rand(4)


@case()
def fork_rng_inside(self, x):
    with torch.random.fork_rng():
        a = torch.rand(4)
    return x + a + torch.rand(4)


# ---- tensors: attributes, data, views, out=, in-place ----------------------------------------------------

@case(lin=linear())
def data_read(self, x):
    return self.lin.weight.data.sum() + x.data.sum() + x


@case(lin=linear())
def data_written_in_place(self, x):
    self.lin.weight.data.mul_(0.5)
    return self.lin(x)


@case(lin=linear())
def data_set(self, x):
    self.lin.weight.data = self.lin.weight.data * 0.5
    return self.lin(x)


@case(lin=linear())
def parameter_copied_into(self, x):
    with torch.no_grad():
        self.lin.weight.copy_(self.lin.weight * 0.9)
        self.lin.bias.zero_()
    return self.lin(x)


@case()
def input_written(self, x):
    y = x.detach()
    y.mul_(2)
    return y.sum()


@case()
def input_view_written(self, x):
    x.detach()[0].add_(1)
    x.detach().t()[1] = 5
    return x * 2


@case(out=lambda: torch.zeros(3, 4))
def out_argument(self, x):
    torch.add(x.detach(), 1, out=self.out)
    return self.out * 1, torch.mul(x.detach(), 2, out=torch.empty(3, 4))


@case(out=lambda: torch.zeros(0))
def out_resized(self, x):
    return torch.add(x.detach(), 1, out=self.out)


@case()
def in_place_chain(self, x):
    y = x.clone()
    y += 1
    y[:, 0] = 0
    y[y > 1] = 0.5
    y.clamp_(-1, 1).neg_()
    y[0], y[1] = y[1].clone(), y[0].clone()
    return y


@case()
def in_place_views(self, x):
    y = x.clone()
    a, b = y.chunk(2, 1)
    a *= 2
    b.copy_(a)
    y.view(-1)[3:5].fill_(7)
    return y, a, b


@case()
def geometry_in_place(self, x):
    y = x.clone()
    y.t_()
    y.unsqueeze_(0)
    y.squeeze_(0)
    y.transpose_(0, 1)
    return y, y.shape, y.stride(), y.is_contiguous(), y.storage_offset()


@case()
def attributes_of_tensors(self, x):
    y = x.clone()
    y.tag = "mine"
    return y, y.dtype, y.device, y.ndim, y.layout, y.is_cuda, y.is_leaf, x.T, y.mT, y.itemsize, y.nbytes, x.real


@case()
def attribute_kept_on_input(self, x):
    x.tag = "mine"
    return x * 2


@case()
def shape_arithmetic(self, x):
    b, n = x.shape
    half = -(-n // 2)
    return x.reshape(b * 2, half), x.new_zeros(b, half), torch.full((n,), x.size(0) / 2), x.numel(), len(x), [*x.shape]


@case()
def requires_grad_set(self, x):
    y = x.detach().clone().requires_grad_()
    return (y * 2).detach()


@case()
def leaf_returned(self, x):
    return x.detach().clone().requires_grad_()


@case()
def leaf_and_result_returned(self, x):
    y = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        return y, y * 2


@case(lin=linear())
def grad_read(self, x):
    g = self.lin.weight.grad
    return self.lin(x) if g is None else self.lin(x) + g.sum()


@case()
def result_is_input(self, x):
    return x, x.view(-1), x.detach(), x[0]


@case()
def results_share_memory(self, x):
    y = x * 2
    return y, y[0], y.t(), [y, {"again": y}]


@case()
def to_numpy(self, x):
    return torch.from_numpy(x.detach().numpy() * 2)


@case()
def to_list(self, x):
    return [round(v, 3) for v in x[0].tolist()], x.sum().item() > 0


@case()
def data_dependent_branch(self, x):
    return x + 1 if x.sum() > 0 else x - 1


@case()
def masks(self, x):
    m = x > 0
    return x[m], m.nonzero(), torch.where(m), x.masked_select(m), m.sum().item(), x[m.any(1)]


@case()
def printed_tensor(self, x):
    print(x)
    return x + 1


@case()
def sparse_inside(self, x):
    return (x.to_sparse() * 2).to_dense()


@case(args=(lambda: torch.eye(3).to_sparse(),))
def sparse_given(self, x):
    return x.to_dense() * 2


@case()
def nested_inside(self, x):
    return torch.nested.nested_tensor([x[0], x[1, :2]]).to_padded_tensor(0.0)


@case(args=(x(3, 4, dtype=torch.complex64),))
def complex_numbers(self, x):
    return x.abs(), x.conj() * x, torch.view_as_real(x), x.imag, x.real + 1


@case()
def quantized_inside(self, x):
    return torch.quantize_per_tensor(x.detach(), 0.1, 0, torch.qint8).dequantize()


class Tagged(torch.Tensor):
    pass


@case(args=(lambda: torch.randn(3, 4).as_subclass(Tagged),))
def subclass_given(self, x):
    return x * 2


@case()
def subclass_made(self, x):
    return (x.as_subclass(Tagged) * 2).as_subclass(torch.Tensor)


@case(args=(x(4), x(4)))
def aliased_inputs(self, a, b):
    return a.detach().add_(b), b


FEATURES["aliased_inputs"] = (
    lambda: (lambda a, b: (a.add_(b), b * 2), (lambda t: (t[:3], t[1:]))(torch.randn(4))), None)


# ---- recurrent nets, functional ------------------------------------------------------------------------

wrapped(lambda: nn.LSTM(4, 3, 2, batch_first=True), x(2, 5, 4))("lstm")
wrapped(lambda: nn.GRU(4, 3, bidirectional=True), x(5, 2, 4))("gru")
wrapped(lambda: nn.RNN(4, 3), x(5, 4))("rnn_unbatched")
wrapped(lambda: nn.LSTMCell(4, 3), x(2, 4))("lstm_cell")
wrapped(lambda: nn.MultiheadAttention(4, 2, batch_first=True), x(2, 3, 4), x(2, 3, 4), x(2, 3, 4))("attention")
wrapped(lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), x(2, 3, 4))("encoder_layer")
wrapped(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2).eval(),
        x(2, 3, 4))("encoder")
wrapped(lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True).eval(), x(2, 3, 4), x(2, 3, 4))("transformer")
wrapped(lambda: nn.Embedding(5, 3, padding_idx=0, max_norm=1.0), lambda: torch.arange(4))("embedding_max_norm")
wrapped(lambda: nn.EmbeddingBag(5, 3), lambda: torch.arange(4), lambda: torch.tensor([0, 2]))("embedding_bag")
wrapped(lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2]), x(3, 4), lambda: torch.tensor([0, 3, 5]))("adaptive_softmax")
wrapped(lambda: nn.CTCLoss(), lambda: torch.randn(6, 2, 5).log_softmax(-1), lambda: torch.ones(2, 3, dtype=torch.long),
        lambda: torch.tensor([6, 5]), lambda: torch.tensor([3, 2]))("ctc_loss")


@case(net=lambda: nn.GRU(4, 3, batch_first=True), args=(x(2, 5, 4),))
def packed_sequence(self, x):
    packed = rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
    out, h = self.net(packed)
    return rnn.pad_packed_sequence(out, batch_first=True)[0], h


@case()
def padded_sequences(self, x):
    return rnn.pad_sequence([x[0], x[1, :2]], batch_first=True), rnn.unpad_sequence(x, torch.tensor([4, 2, 1]), True)


# ---- Python around it ------------------------------------------------------------------------------------

@dataclass
class Output(OrderedDict):
    a: torch.Tensor = None
    b: tuple = None

    def __post_init__(self):
        self.update({k: v for k, v in self.__dict__.items() if v is not None})


@case()
def output_dataclass(self, x):
    return Output(a=x * 2, b=(x, 1))["a"] + 1, dict(Output(x).items())


@case()
def cached_property_of_module(self, x):
    class Holder:
        @functools.cached_property
        def scale(self):
            return x.sum()
    h = Holder()
    return h.scale + h.scale


@case(lin=linear())
def weak_reference(self, x):
    r = weakref.ref(self.lin)
    return r()(x)


@case()
def exit_stack(self, x):
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        y = x * 2
    return y, torch.is_grad_enabled()


@case()
def raises_and_catches(self, x):
    try:
        x.view(7, 7)
    except RuntimeError as e:
        return x + len(type(e).__name__)


@case(lin=linear())
def raises(self, x):
    if x.shape[0] == 3:
        raise ValueError(f"bad shape {tuple(x.shape)}")
    return self.lin(x)


@case(lin=linear(), cache=dict)
def cache_by_shape(self, x):
    key = tuple(x.shape)
    if key not in self.cache:
        self.cache[key] = torch.ones(x.shape[-1]) * len(self.cache)
    return self.lin(x) + self.cache[key]


@case(args=(x(), lambda: None, lambda: {"k": torch.ones(4), "n": 3}, lambda: [torch.ones(4), (2, torch.zeros(4))]))
def nested_arguments(self, x, nothing, d, items):
    d["new"] = x * d["k"]
    items.append(d["n"])
    return x + items[1][1] * d["n"], nothing is None


@feature()
def function_with_defaults():
    def f(x, *rest, scale=2.0, **more):
        return x * scale + sum(rest) + sum(more.values())
    return (lambda x: f(x, 1, x, k=3)), (torch.randn(3),)


@feature()
def decorated():
    def twice(f):
        @functools.wraps(f)
        def inner(*a, **k):
            return f(f(*a, **k), **k)
        return inner

    @twice
    def f(x, k=1):
        return x.sin() * k
    return f, (torch.randn(3),)


@feature()
def bound_method():
    class Box:
        scale = 3

        def run(self, x):
            self.scale += 1
            return x * self.scale
    return Box().run, (torch.randn(3),)
