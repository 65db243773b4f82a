"""What a captured program does to the outside world happens on each call, in order, or it is refused."""

import contextlib
import io
import logging
import os
import random
import sys
import time
import uuid
import warnings

import numpy
import pytest
import torch
from torch import nn

import minicompile

from .common import compiled, refusals

X = torch.arange(3.0)
LOG = logging.getLogger(__name__)


def said(f, *args):
    out, log = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(out), warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            f(*args)
    finally:
        logging.getLogger().removeHandler(handler)
    return out.getvalue(), log.getvalue(), [(str(w.message), w.category, w.filename, w.lineno) for w in heard]


def speaks(x, n):
    print("a", n, [n, (1, 2)], sep="-")
    warnings.warn("careful")
    LOG.warning("value %d", n)
    y = x + 1
    print("b", y.shape, end="!")
    warnings.warn(DeprecationWarning("old"))
    logging.error("root")
    LOG.debug("unheard")
    return y


def test_print_warnings_and_logging_happen_on_every_call():
    c = compiled(speaks)
    for _ in range(3):
        assert said(c, X, 3) == said(speaks, X, 3)
    assert said(c, X, 4) == said(speaks, X, 4)
    assert not refusals(c)


def prints_tensor(x):
    print(x)


def prints_list_of_tensors(x):
    print([x])


def formats(x):
    return f"{x}"


def texts(x):
    return str([x]), repr(x), f"{x.shape}"


def clock(x):
    return x + time.time() * 0


def counter(x):
    return x + time.perf_counter() * 0


def randomness(x):
    return x + random.gauss(0, 1) * 0


def numpy_randomness(x):
    return x + float(numpy.random.rand()) * 0


def environment(x):
    return x + len(os.getcwd()) * 0


def writes(x):
    sys.stdout.write("text")
    return x


def opens(x):
    with open(os.devnull) as f:
        return x + len(f.read())


def identifier(x):
    return x + uuid.uuid4().int * 0


def seeds(x):
    torch.manual_seed(0)
    return x + torch.rand(3)


def saves(x):
    torch.save(x, io.BytesIO())
    return x


@pytest.mark.parametrize(
    "f",
    [
        prints_tensor, prints_list_of_tensors, texts, clock, counter, randomness, numpy_randomness,
        environment, writes, opens, identifier, seeds, saves],
    ids=lambda f: f.__name__,
)
def test_acts_that_are_not_kept_are_refused(f):
    c = compiled(f)
    for _ in range(2):
        assert said(c, X) == said(f, X)
    torch.manual_seed(3)
    assert repr(c(X)) == repr(f(X)) if f is not seeds else torch.equal(c(X), f(X))
    assert refusals(c)


SCALE = [10.0]


class Scaled(torch.autograd.Function):
    """A square whose backward is not its derivative."""

    @staticmethod
    def forward(ctx, x, k):
        ctx.save_for_backward(x)
        ctx.k = k
        return x * x * k

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x * SCALE[0] + ctx.k, None


class WithSetup(torch.autograd.Function):
    @staticmethod
    def forward(x, k=2.0):
        return x * k, x + 1

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.k = inputs[1]

    @staticmethod
    def backward(ctx, g, h):
        return g * 7 + h * ctx.k + ctx.saved_tensors[0], None


def gradient(f, *args):
    x = torch.randn(4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = f(x, *args)
    out.sum().backward()
    return out.detach(), x.grad


def setup_style(x):
    a, b = WithSetup.apply(x.sin())
    return a * 2 + b


@pytest.mark.parametrize("f", [lambda x: Scaled.apply(x.sin(), 3.0).cos(), setup_style])
def test_a_custom_function_keeps_its_backward(f):
    c = minicompile.compile(f, fullgraph=True)
    for _ in range(2):
        for a, b in zip(gradient(c), gradient(f)):
            torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(c(X), f(X))


def test_what_a_custom_backward_reads_is_guarded():
    f = lambda x: Scaled.apply(x, 1.0)
    c = minicompile.compile(f)
    for scale in (10.0, 20.0):
        SCALE[0] = scale
        for a, b in zip(gradient(c), gradient(f)):
            torch.testing.assert_close(a, b)
    SCALE[0] = 10.0


def test_reentrant_checkpoint_and_backward_inside():
    from torch.utils.checkpoint import checkpoint

    m = nn.Linear(4, 4)
    for reentrant in (True, False):
        f = lambda x: checkpoint(m, x, use_reentrant=reentrant)
        c = minicompile.compile(f)
        for a, b in zip(gradient(c), gradient(f)):
            torch.testing.assert_close(a, b)

    def step(x):
        w = torch.ones(4, requires_grad=True)
        (w * x).sum().backward()
        return w.grad

    assert torch.equal(minicompile.compile(step)(X[:1].expand(4)), step(X[:1].expand(4)))


def test_backward_hooks_run():
    m = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    seen = []
    m[0].register_full_backward_hook(lambda *a: seen.append("full"))
    m[1].register_full_backward_pre_hook(lambda *a: seen.append("pre"))
    c = minicompile.compile(m)
    for n in (1, 2):
        c(torch.randn(2, 4)).sum().backward()
        assert seen == ["pre", "full"] * n

    def hooked(x):
        y = x * 2
        y.register_hook(lambda g: g * 100)
        return y

    for a, b in zip(gradient(minicompile.compile(hooked)), gradient(hooked)):
        assert torch.equal(a, b)


def test_inference_mode_around_and_inside():
    m = nn.Linear(3, 3)
    c = minicompile.compile(m, fullgraph=True)
    x = torch.randn(2, 3)
    with torch.inference_mode():
        out = c(x)
        assert out.is_inference() and torch.allclose(out, m(x))
        inner = torch.randn(2, 3)
        add = compiled(lambda t: t.add_(1))
        before = inner.clone()
        add(inner)
        assert torch.equal(inner, before + 1)
        mode = compiled(lambda t: t + torch.is_inference_mode_enabled())
        assert torch.equal(mode(x), x + 1)
    assert torch.equal(mode(x), x) and c(x).requires_grad

    @torch.inference_mode()
    def inside(x):
        return m(x)

    out = minicompile.compile(inside)(x)
    assert out.is_inference() and torch.allclose(out, m(x))


def draws_unused(x):
    random.uniform(0, 1)
    return x + 1


def draws_decide(x):
    for _ in range(3):
        if random.uniform(0, 1) < 0.3:
            continue
        x = x * random.randint(1, 3) + random.random()
    return x[random.randrange(3)]


@pytest.mark.parametrize("f", [draws_unused, draws_decide])
def test_pythons_random_numbers_are_drawn_in_order(f):
    c, x = compiled(f), torch.ones(3)
    for seed in range(2):
        random.seed(seed)
        expected = [f(x) for _ in range(6)]
        state = random.getstate()
        random.seed(seed)
        torch.testing.assert_close([c(x) for _ in range(6)], expected)
        assert random.getstate() == state
    assert not refusals(c)
