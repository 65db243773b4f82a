"""Transforms of torch.func and gradients taken inside a call: one graph each, with eager's results."""

import pytest
import torch
from torch import nn
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

import minicompile

X, W = torch.randn(3, 4), torch.randn(4)
NET = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
MODELS = [nn.Linear(4, 2) for _ in range(3)]


def maml(x, y):
    p = dict(NET.named_parameters())
    for _ in range(2):
        g = grad(lambda q: ((functional_call(NET, q, (x,)) - y) ** 2).mean())(p)
        p = {k: p[k] - 0.1 * g[k] for k in p}
    return functional_call(NET, p, (x,))


def ensemble(x):
    params, buffers = stack_module_state(MODELS)
    return vmap(lambda p, b, v: functional_call(MODELS[0], (p, b), (v,)), (0, 0, None))(params, buffers, x)


def per_sample(x):
    params = {k: v.detach() for k, v in NET.named_parameters()}
    return vmap(grad(lambda p, v: functional_call(NET, p, (v,)).sum()), (None, 0))(params, x)


class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def forces(x):
    with torch.enable_grad():
        p = x.detach().requires_grad_()
        energy = (p ** 3).sum().cos()
        return torch.autograd.grad(energy, p)[0]


def loop_of_vmaps(x):
    for i in range(3):
        x = vmap(lambda a: a * i + a.mean())(x)
    return x


PROGRAMS = [
    lambda x: vmap(lambda a: (a * a).sum())(x),
    lambda x: vmap(lambda a, b: a @ b, (0, None))(x, W),
    lambda x: vmap(lambda a: a + W, in_dims=1, out_dims=1)(x.t().contiguous()),
    lambda x: vmap(vmap(torch.sin))(x),
    lambda x: vmap(lambda d: {"s": d["a"].sum(), "m": d["a"].max(0)[0]})({"a": x}),
    lambda x: vmap(lambda a: torch.where(a > 0, a, -a).softmax(0))(x),
    lambda x: vmap(lambda a: a.cumsum(0), chunk_size=2)(x),
    lambda x: vmap(lambda a: a[:2] * torch.arange(2))(x),
    lambda x: vmap(Square.apply)(x),
    lambda x: grad(lambda a: Square.apply(a).sum())(x),
    lambda x: grad(lambda a: (a.sin() * a).sum())(x),
    lambda x: grad_and_value(lambda a: (a * 2).exp().sum())(x),
    lambda x: grad(grad(lambda s: s ** 3))(x.sum()),
    lambda x: vmap(grad(lambda a: a.sin().prod()))(x),
    lambda x: vjp(lambda a: (a * 2).tanh(), x)[1](x),
    lambda x: jvp(lambda a: a.sin() * 2, (x,), (x,)),
    lambda x: jacrev(lambda a: a.sin() * a.sum())(x[0]),
    lambda x: jacfwd(lambda a: a.sin() * a.sum())(x[0]),
    lambda x: hessian(lambda a: a.sin().prod())(x[0]),
    lambda x: maml(x, x.sum(1, keepdim=True)), ensemble, per_sample, forces, loop_of_vmaps,
]


def same(a, b):
    torch.testing.assert_close(a, b)
    flat = lambda v: torch.utils._pytree.tree_leaves(v)
    assert [t.requires_grad for t in flat(a)] == [t.requires_grad for t in flat(b)]
    assert [t.stride() for t in flat(a)] == [t.stride() for t in flat(b)]


@pytest.mark.parametrize("f", PROGRAMS, ids=range(len(PROGRAMS)))
@pytest.mark.parametrize("trains", [False, True], ids=["no_grad", "grad"])
def test_transform(f, trains):
    x = X.clone().requires_grad_(trains)
    with torch.set_grad_enabled(trains):
        c = minicompile.compile(f, fullgraph=True, backend="aot_eager")
        for v in (x, (x.detach() * 2).requires_grad_(trains)):
            expected, found = f(v), c(v)
            same(found, expected)
            tensors = [t for t in torch.utils._pytree.tree_leaves(expected) if t.requires_grad]
            if tensors:
                leaves = [v, *NET.parameters(), *(p for m in MODELS for p in m.parameters())]
                grads = lambda out: torch.autograd.grad(
                    sum((t * t).sum() for t in torch.utils._pytree.tree_leaves(out) if t.requires_grad), leaves,
                    allow_unused=True)
                torch.testing.assert_close(grads(found), grads(expected), rtol=1e-3, atol=1e-4)


def test_inside_a_transform_runs_as_in_eager_mode():
    c = minicompile.compile(lambda a: a.sin().sum())
    c(W)
    torch.testing.assert_close(vmap(c)(X), X.sin().sum(1))
    torch.testing.assert_close(grad(c)(W), W.cos())
    torch.testing.assert_close(c(W), W.sin().sum())


def test_a_history_from_before_the_call_counts():
    def f(y, x):
        return torch.autograd.grad((y * 2).sum() + 0 * x.sum(), x)[0]

    x = torch.randn(3, requires_grad=True)
    c = minicompile.compile(f)
    for make in (torch.zeros_like, lambda x: torch.zeros(3, requires_grad=True), lambda x: x * 3):
        torch.testing.assert_close(c(make(x), x), f(make(x), x))


def test_hooks_of_an_input_run():
    x = torch.randn(3, requires_grad=True)
    c = minicompile.compile(lambda x: torch.autograd.grad((x * x).sum(), x)[0])
    torch.testing.assert_close(c(x), 2 * x.detach())
    x.register_hook(lambda g: g * 10)
    torch.testing.assert_close(c(x), 20 * x.detach())


def test_a_refusal_leaves_no_transform_behind():
    c = minicompile.compile(lambda x: vmap(lambda a: a + len(open("/dev/null").read()))(x))
    torch.testing.assert_close(c(X), X)
    assert torch._C._functorch.get_dynamic_layer_stack_depth() == 0
    torch.testing.assert_close(jvp(torch.sin, (X,), (X,))[1], X.cos() * X)
