"""Values that Python learns from tensors' data: taken as constants while capturing, checked at run time."""

import math

import pytest
import torch

import minicompile

from .common import compiled, refusals

X = torch.arange(6.0)


def captures(c):
    return sum(kind == "capture" for kind, _ in c.events)


def agree(f, calls, **settings):
    """`f`'s outcomes for the calls, in order, compiled and as they are; gives the Compiled."""
    c = compiled(f, **settings)
    for args in calls:
        theirs = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
        mine = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
        torch.manual_seed(3)
        want = f(*theirs)
        torch.manual_seed(3)
        same(c(*mine), want)
        same(mine, theirs)
    return c


def same(got, want):
    assert type(got) is type(want)
    if isinstance(want, torch.Tensor):
        torch.testing.assert_close(got, want, equal_nan=True)
        assert not want.numel() or got.stride() == want.stride()
        assert got.requires_grad == want.requires_grad
    elif isinstance(want, (tuple, list)):
        assert len(got) == len(want)
        for g, w in zip(got, want):
            same(g, w)
    else:
        assert got == want or got != got and want != want


def t(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


SCALARS = {
    "item": lambda x: x + x.sum().item(),
    "int": lambda x: x.repeat(int(x.sum())),
    "float": lambda x: x * float(x[0]),
    "bool": lambda x: x + 1 if x.sum() > 3 else x - 1,
    "and": lambda x: x + 1 if (x > 0).all() and not (x > 5).any() else x - 1,
    "tolist": lambda x: x * sum(x.tolist()),
    "nested tolist": lambda x: x * x.view(1, -1).long().tolist()[0][1],
    "range": lambda x: [x * i for i in range(x.sum().long())],
    "index": lambda x: [x, x * 2, x * 3, x * 4][(x[0] > 1).long()],
    "equal": lambda x: x + 1 if torch.equal(x, x.sort()[0]) else x,
    "allclose": lambda x: x + 1 if torch.allclose(x, x.flip(0)) else x,
    "contains": lambda x: x + 1 if 2.0 in x else x,
    "while": lambda x: halve(x),
    "format": lambda x: (x, f"sum {x.sum().item():.1f} {x.sum()}"),
    "size from a tensor": lambda x: torch.zeros(x.sum().long(), 2) + x[0],
    "slice by a tensor": lambda x: x[: x[0].long()],
    "index by a tensor": lambda x: x[x[0].long()] + 1,
    "a list of tensors": lambda x: torch.tensor([x.sum(), 2, x[0].long()]) * 2,
    "split": lambda x: torch.ones(6).split([int(x[0]), 6 - int(x[0])]),
}


def halve(x):
    steps = 0
    while x.abs().max() > 1:
        x, steps = x / 2, steps + 1
    return x, steps


@pytest.mark.parametrize("name", SCALARS)
def test_values_that_flip(name):
    a, b = t(1, 2, 1), t(2, 2, 3)
    c = agree(SCALARS[name], [(a,), (b,), (a,), (b,), (a,), (b,)])
    assert not refusals(c) and captures(c) <= 3, "a variant for each value, and no more"


def test_the_program_is_readable():
    c = compiled(lambda x: x + int(x.sum()))
    c(X)
    capture = c.entries[0].capture
    assert "require(0, int(seen0), 15)" in str(capture)
    (guard,) = capture.data_guards
    assert "int() == 15" in str(guard) and guard.where.file == __file__


def test_a_value_of_no_input_is_not_guarded():
    c = compiled(lambda x: x.view(2, torch.div(6, 2, rounding_mode="trunc")))
    assert c(X).shape == (2, 3) and not c.entries[0].capture.data_guards


def test_constants_written_with_data_are_guarded():
    def f(x):
        n = torch.zeros(2)
        n[1] = x.sum()
        return x * n[1].item()

    agree(f, [(X,), (X + 1,), (X,)])


def test_nan_and_signed_zero():
    f = lambda x: (x, math.copysign(1.0, x[0].item()))
    c = agree(f, [(t(math.nan),), (t(math.nan),), (t(0.0),), (t(-0.0),), (t(0.0),)])
    assert captures(c) == 3


MASKS = {
    "mask": lambda x: x[x > 0] * 2,
    "mask of rows": lambda x: x.view(3, 2)[x.view(3, 2)[:, 0] > 0, 1:],
    "mask of columns": lambda x: x.view(3, 2)[..., x.view(3, 2)[0] > 0],
    "mask with more": lambda x: x.view(3, 2)[x.view(3, 2)[:, 0] > 0, None, 0],
    "masked_select": lambda x: torch.masked_select(x.view(3, 2), x[:2] > 0),
    "nonzero": lambda x: (x > 0).nonzero(),
    "nonzero 2-d": lambda x: x.view(3, 2).nonzero(),
    "nonzero as_tuple": lambda x: torch.nonzero(x.view(3, 2) > 0, as_tuple=True),
    "where": lambda x: torch.where(x > 0)[0] + 1,
    "argwhere": lambda x: torch.argwhere(x > 0),
    "repeat_interleave": lambda x: torch.repeat_interleave(x, x.clamp(0).long()),
    "repeat_interleave dim": lambda x: x.view(3, 2).repeat_interleave(x.clamp(0).long()[:3], dim=0),
    "repeat_interleave counts": lambda x: torch.repeat_interleave(x.clamp(0).int()),
    "unique": lambda x: torch.unique(x.clamp(0)),
    "unique all": lambda x: x.clamp(0).view(3, 2).unique(return_inverse=True, return_counts=True),
    "unique_consecutive": lambda x: torch.unique_consecutive(x.clamp(0), return_counts=True),
    "one_hot": lambda x: torch.nn.functional.one_hot(x.clamp(0).long()),
    "mask store": lambda x: x.index_put((x > 0,), x[x > 0] * 3),
    "loop": lambda x: [x[i] * 2 for i in (x > 0).nonzero().flatten()],
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_with_changing_counts(name):
    many, few, none = t(1, -1, 2, 0, 3, 1), t(-1, -1, 2, 0, -3, -1), -torch.ones(6)
    calls = [(many,), (few,), (many.flip(0),), (few,), (none,), (many,), (few,)]
    c = agree(MASKS[name], calls)
    assert captures(c) >= 2
    agree(MASKS[name], [(none,), (many,)])


@pytest.mark.parametrize("index", [lambda x: x[torch.ones(5, dtype=torch.bool)],
                                   lambda x: x[torch.tensor(True)],
                                   lambda x: torch.repeat_interleave(x, -torch.ones(6).long())])
def test_errors_and_odd_masks_are_eager_s(index):
    c = compiled(index)
    for _ in range(2):
        outcomes = []
        for f in (index, c):
            try:
                outcomes.append(f(X).tolist())
            except Exception as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]


def test_a_value_that_always_changes_is_refused_after_a_while():
    f = lambda x: x * x.sum().item()
    c = agree(f, [(X + i,) for i in range(8)])
    assert refusals(c) == ["data-dependent"]
    c.reset()
    assert torch.equal(c(X), f(X)) and len(refusals(c)) == 1, "reset begins anew"


def test_a_value_that_the_backend_computes_otherwise_is_refused():
    from minicompile.capture.compiled import Compiled

    def off(capture, examples):
        return lambda *tensors: [x.double() + 1e-3 for x in capture.gm(*tensors)]

    events = []
    c = Compiled(lambda x: (x.sum().item(),), off, on_event=lambda kind, payload: events.append(kind))
    assert c(X) == c(X) == (15.001,)
    assert events.count("break") == 1 and events.count("refusal") == 0


def test_nothing_is_committed_on_a_miss():
    log = []

    def f(x, box):
        box["n"] += 1
        log.append(len(log))
        return x * int(x.sum()) if x.sum() > 3 else x - 1

    c, box = compiled(f), {"n": 0}
    for i, x in enumerate([X, X + 1, X, X - 5, X + 1]):
        c(x, box)
        assert box == {"n": i + 1} and log == list(range(i + 1))
    assert not refusals(c)


def test_writes_to_inputs_happen_once():
    def f(x):
        n = int(x.sum())
        x.add_(n)
        return x * 2 if x.sum() > 20 else x - 1

    c = agree(f, [(X.clone(),), (X + 1,), (X.clone(),), (X - 3,)])
    capture = c.entries[0].capture
    assert "= check(x)" in str(capture.program) and len(capture.program.outputs) == 1


def test_values_that_depend_on_writes():
    def f(x, counter):
        counter += 1
        if counter % 2 == 0:
            return x * 2
        return x

    c, counter = compiled(f), torch.zeros(())
    for i in range(6):
        torch.testing.assert_close(c(X, counter), X * (1 + i % 2))
        assert counter == i + 1
    assert captures(c) == 2 and not refusals(c)


def test_values_seen_before_a_write_are_those_of_then():
    def f(x):
        y = x.clone()
        a = y[0].item()
        y += 1
        b = y[0].item()
        view = y[:2]
        view.zero_()
        return x * a + b + y[0].item()

    agree(f, [(X,), (X + 2,), (X,)])


def test_aliased_inputs():
    def f(x, y):
        x.add_(1)
        return y * int(y[0])

    base = torch.ones(4)
    c = compiled(f)
    torch.testing.assert_close(c(base, base[1:]), torch.full((3,), 4.0))


def test_random_numbers_are_drawn_once():
    def f(x):
        noise = torch.rand(3)
        if noise[0] > 0.5:
            return x[:3] + noise
        return x[:3] - torch.rand(3)

    c = compiled(f)
    for seed in (0, 1, 2, 3, 4, 0, 1):
        torch.manual_seed(seed)
        want, after = f(X), torch.rand(1)
        torch.manual_seed(seed)
        torch.testing.assert_close(c(X), want)
        torch.testing.assert_close(torch.rand(1), after)
    assert captures(c) == 2 and not refusals(c)


def test_random_numbers_before_and_after_a_value():
    def f(x):
        torch.rand(2)
        y = torch.nn.functional.dropout(x, 0.5)
        k = int((y != 0).sum())
        return y * k + torch.rand(6)

    agree(f, [(X,), (X,), (X * 0,), (X,)])


def test_a_call_that_raises_for_other_values():
    f = lambda table, i: table[i[: int(i[0]) + 1]] if i[0] >= 0 else table * 2
    table = torch.randn(4, 2)
    agree(f, [(table, t(1, 3, 2, dtype=torch.int64)), (table, t(-9, 3, 2, dtype=torch.int64)),
              (table, t(2, 0, 3, dtype=torch.int64))])
    c = compiled(f)
    c(table, t(1, 3, 2, dtype=torch.int64))
    with pytest.raises(IndexError):
        c(table, t(1, 9, 2, dtype=torch.int64))


def test_batch_norm_statistics_are_updated_once():
    def make():
        torch.manual_seed(0)
        return torch.nn.BatchNorm1d(3)

    def f(bn, x):
        y = bn(x)
        return y * 2 if y.sum() + bn.running_mean.sum() > 0.1 else y

    eager, mine, c = make(), make(), compiled(f)
    for i in range(5):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(i)) + i % 2
        torch.testing.assert_close(c(mine, x), f(eager, x))
        for a, b in zip(mine.buffers(), eager.buffers()):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("f", [
    lambda x, w: (x * w)[x > 0].sum() * int((x > 0).sum()),
    lambda x, w: torch.masked_select(x * w, x > 0).sum() + w.sum().item(),
    lambda x, w: (x * w).sum() if (x * w).detach().max() > 2 else (x - w).sum(),
    lambda x, w: torch.repeat_interleave(x * w, x.clamp(0).long()).sum()])
def test_training(f):
    c = compiled(f)
    for x in (X - 2, X - 4, X - 2, X):
        w = torch.full((6,), 0.5, requires_grad=True)
        v = w.detach().clone().requires_grad_()
        got, want = c(x, w), f(x, v)
        torch.testing.assert_close(got, want)
        got.backward(), want.backward()
        torch.testing.assert_close(w.grad, v.grad)


def test_inference_mode_and_autocast():
    def f(x, w):
        with torch.autocast("cpu", torch.bfloat16):
            y = x.view(2, 3) @ w
            k = float(y.sum())
        return y.float() * k

    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            agree(f, [(X, torch.full((3, 2), 1.01)), (X + 1, torch.full((3, 2), 1.01))])
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", ["mask", "mask of rows", "nonzero 2-d", "unique all", "repeat_interleave dim", "nonzero", "loop", "one_hot"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_all_stages(name, backend):
    f = MASKS[name]
    c = minicompile.compile(f, backend=backend)
    for x in (t(1, -1, 2, 0, 3, 1), t(-1, -1, 2, 0, -3, -1), t(1, -1, 2, 0, 3, 1)):
        same(c(x), f(x))
    handle = c.__minicompile__
    assert len(handle.compilations) <= 2 and not handle.refusals


def test_all_stages_of_training():
    def f(x, w):
        y = x * w
        return y[y.detach() > 1].sum() * (y > 0).sum().item()

    c = minicompile.compile(f)
    for x in (X, X - 2, X):
        w = torch.full((6,), 1.5, requires_grad=True)
        v = w.detach().clone().requires_grad_()
        got, want = c(x, w), f(x, v)
        torch.testing.assert_close(got, want)
        got.backward(), want.backward()
        torch.testing.assert_close(w.grad, v.grad)
    assert not c.__minicompile__.refusals
    assert "the data's item()" in str(minicompile.explain(c)(X, torch.ones(6)))
