"""Training graphs: the joint trace, its split, and gradients behind torch's autograd engine."""
from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minicompile
from minicompile.autograd.joint import trace_joint
from minicompile.autograd.partition import recompute_class, saving_cost, split
from minicompile.errors import CheckError
from minicompile.ir.graph import Graph, Output
from minicompile.lower.decompose import decompose
from minicompile.pipeline import compile_graph


def halves_of(fn: Callable[..., Any], *args: torch.Tensor) -> Any:
    joint = trace_joint(torch.fx.symbolic_trace(fn), args)
    joint.check()
    prims = decompose(joint.aten)
    prims.check()
    return split(prims.graph, joint.primals, joint.outputs, joint.tangents, held=joint.held), joint


def net(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(F.gelu(x @ w + b), (16,), g) * torch.sigmoid(x[:, :1])


def net_inputs() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(s, requires_grad=True) for s in ((8, 12), (12, 16), (16,), (16,))]


def test_the_joint_graph_is_eager_forward_and_backward() -> None:
    args = net_inputs()
    _, joint = halves_of(net, *args)
    seed = torch.randn(8, 16)
    out = joint.run(*args, seed)
    expected = net(*args)
    grads = torch.autograd.grad(expected, args, seed)
    assert joint.gradients == (0, 1, 2, 3)
    for got, want in zip(out, [expected, *grads]):
        torch.testing.assert_close(got, want.detach())


def test_the_halves_are_a_type_equation_and_compute_the_joint_graph() -> None:
    args = net_inputs()
    halves, joint = halves_of(net, *args)
    halves.check()
    seed = torch.randn(8, 16)
    from minicompile.lower.graphs import run_graph
    forward = run_graph(halves.forward, args, "forward")
    rest = iter(forward[halves.outputs:])
    saved = [args[i] if i is not None else next(rest) for i in halves.from_input]
    grads = run_graph(halves.backward, [*saved, seed], "backward")
    for got, want in zip([forward[0], *grads], joint.run(*args, seed)):
        torch.testing.assert_close(got, want)


def test_pointwise_values_are_recomputed_and_products_are_saved() -> None:
    """Of gelu(x @ w), only the product is kept: gelu's derivative is recomputed from it."""
    args = [torch.randn(64, 8, requires_grad=True), torch.randn(8, 64, requires_grad=True)]
    halves, _ = halves_of(lambda x, w: torch.tanh(F.gelu(x @ w)) * 2, *args)
    kept = [s for s, i in zip(halves.saved, halves.from_input) if i is None]
    assert [s.bytes for s in kept] == [64 * 64 * 4]
    assert recompute_class(kept[0].node) == "library"
    assert all(s.reason for s in halves.saved)


def test_a_random_mask_is_drawn_once() -> None:
    x = torch.randn(32, 32, requires_grad=True)
    halves, _ = halves_of(lambda x: F.dropout(torch.sin(x), 0.5), x)
    assert sum(recompute_class(n) == "random" for n in halves.forward.nodes) == 1
    assert not any(recompute_class(n) == "random" for n in halves.backward.nodes)


def test_costs() -> None:
    halves, joint = halves_of(net, *net_inputs())
    for n in (*joint.aten.graph.inputs, *joint.aten.graph.nodes):
        cost = saving_cost(n)
        assert cost == float("inf") if isinstance(n.spec, tuple) else cost >= 0
    assert halves.saved_bytes == sum(s.bytes for s in halves.saved)


@pytest.mark.parametrize("plant", ["lost", "shape", "dtype"])
def test_a_wrong_split_is_caught(plant: str) -> None:
    halves, _ = halves_of(net, *net_inputs())
    forward = halves.forward
    at = next(i for i in range(halves.outputs, len(forward.outputs)))
    o = forward.outputs[at]
    if plant == "lost":
        outputs: Sequence[Output] = forward.outputs[:at] + forward.outputs[at + 1:]
    else:
        spec = o.spec.with_(dtype=torch.int32) if plant == "dtype" else o.spec.with_(shape=(3,), stride=(1,))
        outputs = (*forward.outputs[:at], Output(o.node, spec), *forward.outputs[at + 1:])
    broken = dataclasses.replace(halves, forward=dataclasses.replace(
        forward, outputs=tuple(outputs), returned=len(outputs)))
    with pytest.raises(CheckError, match="forward"):
        broken.check()


# ---- through minicompile.compile -----------------------------------------------------------------------------------

class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.out = nn.Linear(4 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.out(F.dropout(h.flatten(1), 0.3, self.training))


def step(module: nn.Module, call: Callable[..., Any], *args: torch.Tensor) -> list[torch.Tensor | None]:
    module.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    loss = F.cross_entropy(call(*args), torch.tensor([1, 0, 4, 2]))
    loss.backward()
    return [loss.detach(), *[p.grad for p in module.parameters()]]


def test_a_convolutional_net_trains_as_in_eager() -> None:
    module = Net()
    other = copy.deepcopy(module)
    compiled = minicompile.compile(other, fullgraph=True)
    x = torch.randn(4, 3, 8, 8)
    for _ in range(3):
        for a, b in zip(step(module, module, x), step(other, compiled, x), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
    for a, b in zip(module.buffers(), other.buffers()):
        torch.testing.assert_close(b, a)
    with torch.no_grad():
        module.eval(), other.eval()
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-5)


def both(fn: Callable[..., Any], *args: torch.Tensor) -> tuple[Any, Any]:
    return fn, minicompile.compile(fn, fullgraph=True)


def test_two_forwards_before_one_backward() -> None:
    """Buffers that a second call writes to must not disturb the first call's backward."""
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        m = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        call = minicompile.compile(m, fullgraph=True) if compiled else m
        x = torch.randn(8, 4)
        (call(x).sum() + call(2 * x).pow(2).sum()).backward()
        results.append([p.grad for p in m.parameters()])
    for a, b in zip(*results):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_views_of_inputs_keep_their_history() -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = x.chunk(2, -1)
        return a * 2, b
    grads = []
    for call in both(f):
        x = torch.arange(8.0).reshape(2, 4).requires_grad_()
        a, b = call(x)
        assert b._base is x or b._is_view()
        (a.sum() + 3 * b.sum()).backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_second_derivatives_are_eager_s() -> None:
    _, c = both(lambda x: (x ** 3).sum())
    x = torch.randn(4, requires_grad=True)
    g, = torch.autograd.grad(c(x), x, create_graph=True)
    gg, = torch.autograd.grad(g.sum(), x)
    torch.testing.assert_close(gg, 6 * x.detach())
    c = minicompile.compile(lambda x: F.dropout(x ** 3, 0.5).sum(), fullgraph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(c(x), x, create_graph=True)


def test_results_without_gradient_and_unused_inputs() -> None:
    def f(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x * y).sum(), z + 1, x.detach() * 2, x.argmax()
    f, c = both(f)
    x, y, z = torch.randn(3, requires_grad=True), torch.randn(3), torch.randn(2, requires_grad=True)
    a, b, d, e = c(2 * x, y, z)
    assert b.requires_grad and not d.requires_grad and not e.requires_grad
    a.backward(retain_graph=True)
    torch.testing.assert_close(x.grad, 2 * y)
    assert z.grad is None
    b.sum().backward()
    assert torch.equal(z.grad, torch.ones(2))


def test_no_graph_is_kept_under_no_grad() -> None:
    m = nn.Linear(3, 3)
    c = minicompile.compile(m, fullgraph=True)
    x = torch.randn(2, 3)
    with torch.no_grad():
        assert not c(x).requires_grad
    assert c(x).requires_grad
    with torch.inference_mode():
        assert c(x).is_inference()


def test_gradcheck() -> None:
    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.softmax(torch.tanh(x @ w), -1).cumsum(0) * F.silu(x[:, :3])
    c = minicompile.compile(f, fullgraph=True)
    x, w = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((4, 5), (5, 3)))
    assert torch.autograd.gradcheck(c, (x, w))


def test_a_graph_of_the_backward_alone_is_functional() -> None:
    halves, _ = halves_of(net, *net_inputs())
    backward: Graph = halves.backward
    assert not backward.writes and all(o.alias is None for o in backward.outputs)


def lowered(fn, *args):
    """fn through the pipeline without capture."""
    graph = torch.fx.Graph()
    graph.output(graph.call_function(fn, tuple(graph.placeholder(f"x{i}") for i in range(len(args)))))
    gm = torch.fx.GraphModule(torch.nn.Module(), graph)
    return compile_graph("test", SimpleNamespace(gm=gm, check=lambda: None), args, "reference").call(*args)


def test_views_of_inputs_are_views_to_the_engine():
    x = torch.randn(3, 4, requires_grad=True)
    for fn in (lambda x: (x.t()[0], x.detach()[1]), lambda x: (x.t()[0], x.detach()[1], x * 2)):
        view, constant, *_ = lowered(fn, x)
        assert view.requires_grad and view._is_view() and not constant.requires_grad
        assert view._base is x and constant.data_ptr() == x[1].data_ptr()


def test_a_gradient_of_zeros_that_depend_on_nothing_is_zeros():
    x = torch.randn(3, requires_grad=True)
    lowered(lambda x: (x.floor() + 0,), x)[0].sum().backward()
    assert torch.equal(x.grad, torch.zeros(3))


def test_a_saved_input_that_is_overwritten_is_kept_densely():
    x, mean, var = torch.randn(4, 2, requires_grad=True), torch.zeros(2, 2)[:, 1], torch.ones(2, 2)[:, 1]

    def norm(x, mean, var):
        y = x * mean.exp()
        mean.add_(var)
        return (y,)
    expected = torch.autograd.grad(norm(x, mean.clone(), var)[0].sum(), x)
    assert torch.equal(torch.autograd.grad(lowered(norm, x, mean, var)[0].sum(), x)[0], expected[0])


VIEWS = {
    "whole": lambda x, w: (lambda h: (h, h[:, 0], h.t()))(x @ w),
    "chunks": lambda x, w: tuple((x @ w).chunk(2, -1)),
    "hidden": lambda x, w: (lambda h: (h.view(-1), h.view(2, -1).sin(), h[1:].detach(), h[1:]))(
        torch.tanh(x @ w)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_results_that_are_views_of_one_tensor(name: str) -> None:
    x, w, fn = torch.randn(4, 6), torch.randn(6, 8, requires_grad=True), VIEWS[name]
    compiled = minicompile.compile(fn, fullgraph=True)
    for used in ([0], [1], [0, 1]):
        want, got = fn(x, w), compiled(x, w)
        assert [t.requires_grad for t in got] == [t.requires_grad for t in want]
        one, other = (torch.autograd.grad(sum(out[i].square().sum() for i in used), w) for out in (want, got))
        torch.testing.assert_close(other, one)
    if name == "chunks":
        return          # eager mode refuses to write to them
    before = [t.detach().clone() for t in got]
    for out in (want, got):
        with torch.no_grad():
            out[0].mul_(2)
    assert not torch.equal(before[-1], got[-1])
    for a, b in zip(got, want):
        torch.testing.assert_close(a.detach(), b.detach())


def test_an_input_without_gradient_is_no_part_of_the_history() -> None:
    c = minicompile.compile(lambda x, old: (x * 2 + old.detach(), old.shape[0]), fullgraph=True)
    w = torch.ones(3, requires_grad=True)
    old = w * 3
    old.sum().backward()          # its history is gone
    c(w, old)[0].sum().backward()
    assert torch.equal(w.grad, torch.full((3,), 5.0))


@pytest.mark.parametrize("part", [lambda y: y.detach(), lambda y: y[0].detach(), lambda y: y.detach().t()])
def test_a_detached_view_of_a_result_needs_no_gradient(part: Any) -> None:
    """Behind a graph break, and as a result: it shares memory with one that does."""
    w = torch.randn(4, 4, requires_grad=True)

    def breaks(x: torch.Tensor) -> torch.Tensor:
        y = x @ w
        return y * len(part(y).numpy())

    def returns(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x @ w
        return y, part(y)
    x = torch.randn(3, 4)
    assert torch.allclose(minicompile.compile(breaks)(x), breaks(x))
    got, want = minicompile.compile(returns)(x), returns(x)
    assert [t.requires_grad for t in got] == [t.requires_grad for t in want] == [True, False]
    assert got[0].untyped_storage().data_ptr() == got[1].untyped_storage().data_ptr()
