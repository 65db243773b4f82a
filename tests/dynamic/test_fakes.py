"""Fakes with sizes that vary: what torch computes with them, what is inferred of an operator's results, and what of
them is asked."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minicompile.ir.fake import Fake, FakeMode
from minicompile.ir.geometry import geometries, witnesses
from minicompile.ir.scalar import Specialise, sym_of, symint, unbound
from minicompile.ir.spec import TensorSpec, at, bind, contiguous_stride
from minicompile.ir.sym import Condition, NeedsSizes, Size, asking

S, T = Size("s0", 7), Size("s1", 5)
aten = torch.ops.aten


def fake(*shape: object, dtype: torch.dtype = torch.float32) -> Fake:
    return Fake.from_spec(TensorSpec.contiguous(dtype, shape))


# what is computed, the shape, the strides
GEOMETRIES = {
    "the same": (lambda x: x + 1, (S, T, 4), (4 * T, 4, 1)),
    "transposed": (lambda x: x.transpose(0, 1), (T, S, 4), (4, 4 * T, 1)),
    "turned": (lambda x: x.transpose(0, 1).contiguous(), (T, S, 4), (4 * S, 4, 1)),
    "flattened": (lambda x: x.flatten(), (4 * S * T,), (1,)),
    "half of it": (lambda x: x.flatten(0, 1), (S * T, 4), (4, 1)),
    "the rest": (lambda x: x.view(x.shape[0], -1), (S, 4 * T), (4 * T, 1)),
    "together": (lambda x: torch.cat([x, x], 1), (S, 2 * T, 4), (8 * T, 4, 1)),
    "selected": (lambda x: x[:, -1], (S, 4), (4 * T, 1)),
    "all but one": (lambda x: x[1:], (S - 1, T, 4), (4 * T, 4, 1)),
    "every second": (lambda x: x[::2], ((S + 1) // 2, T, 4), (8 * T, 4, 1)),
    "reduced": (lambda x: x.sum(1), (S, 4), (4, 1)),
    "product": (lambda x: x @ x.transpose(1, 2), (S, T, T), (T * T, T, 1)),
    "expanded": (lambda x: x[:, :1].expand(-1, x.shape[0], -1), (S, S, 4), (4 * T, 0, 1)),
    "padded": (lambda x: F.pad(x, (0, 0, 1, 2)), (S, T + 3, 4), (4 * (T + 3), 4, 1)),
    "counted": (lambda x: torch.arange(x.shape[1]), (T,), (1,)),
    "made": (lambda x: x.new_zeros(x.shape[1] * 2, x.shape[0]), (2 * T, S), (S, 1)),
    "laid out like it": (lambda x: torch.empty_like(x.transpose(0, 2)), (4, T, S), (1, 4, 4 * T)),
    "windows": (lambda x: F.avg_pool1d(x.transpose(1, 2), 3, 2, 1), (S, 4, (T - 1) // 2 + 1), None),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry(name: str) -> None:
    f, shape, stride = GEOMETRIES[name]
    with asking() as conditions, torch.no_grad(), FakeMode():
        spec = f(fake(S, T, 4)).spec
        assert spec.shape == shape and (stride is None or spec.stride == stride)
    assert all(c.holds({"s0": 2, "s1": 3}) for c in conditions), list(map(str, conditions))
    for env in ({"s0": 3, "s1": 9}, {"s0": 64, "s1": 3}):
        real = f(torch.zeros(env["s0"], env["s1"], 4))
        assert (tuple(real.shape), real.stride()) == (at(spec.shape, env), at(spec.stride, env))


def test_torch_asks() -> None:
    with asking() as conditions:
        x = fake(S, T)
        assert x.shape[0] > 1 and x.shape[0] != 1 and x.is_contiguous() and x.numel() == S.hint * T.hint
        assert list(map(str, conditions)) == ["(s0*s1 + -35) == 0"]
        assert x.shape[0] > 3
        assert [str(c) for c in conditions][1:] == ["(s0 + -4) >= 0"]


@pytest.mark.parametrize("f", [
    lambda x: list(range(x.shape[0])), lambda x: float(x.shape[0]), lambda x: x.split(2), lambda x: x.unbind(0),
    lambda x: torch.empty(3).uniform_(0, x.shape[0])], ids="range float split unbind uniform".split())
def test_what_needs_the_number_says_so(f: object) -> None:
    with asking(), FakeMode(), pytest.raises(NeedsSizes) as raised:
        f(fake(S, T))
    assert raised.value.sizes == [S]


def test_only_what_cannot_vary_is_asked_for() -> None:
    with asking(), pytest.raises(NeedsSizes) as raised:
        F.layer_norm(fake(T, S), (7,), torch.ones(7), torch.ones(7))
    assert raised.value.sizes == [S]


def test_equal_sizes_are_asked_to_stay_so() -> None:
    other = Size("s2", S.hint)
    with asking() as conditions:
        spec = (fake(S, 3) + fake(other, 3)).spec
        assert spec.shape[0] is S or spec.shape[0] is other
    assert [c.relation for c in conditions] == ["eq"]


def test_numbers_of_sizes_stay_apart_from_numbers() -> None:
    assert sym_of([symint(S * 2), 3, (symint(4),)]) == [S * 2, 3, (4,)]
    with pytest.raises(NeedsSizes):
        torch.sym_float(symint(S))
    assert not issubclass(NeedsSizes, Specialise)


def test_unbound() -> None:
    assert unbound([symint(S), fake(2, S), symint(T), symint(T), 3]) == (2,)
    assert bind([fake(2, S).spec, T], [torch.zeros(2, 9), 4]) == {"s0": 9, "s1": 4}


def test_witnesses_obey_conditions() -> None:
    rules = frozenset((Condition("eq", (S + 4) % 8), Condition("eq", S - 2 * T), Condition("ge", T - 40)))
    found = witnesses((S, T), rules)
    assert len(found) >= 3 and all(c.holds(env) for env in found for c in rules)
    assert witnesses((S,), frozenset((Condition("eq", S * S - 50),))) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([S, T, 1, 3, 4]), min_size=1, max_size=4), st.data())
def test_inferred_geometries_are_the_kernels(shape: list, data: st.DataObject) -> None:
    """Permuted, sliced, reduced and copied: what is inferred is what the kernel gives at other sizes."""
    order = data.draw(st.permutations(range(len(shape))))
    stride = contiguous_stride(shape)
    spec = TensorSpec(torch.float32, tuple(shape[d] for d in order), tuple(stride[d] for d in order))
    op, args = data.draw(st.sampled_from([
        (aten.clone.default, ()), (aten.sum.dim_IntList, ((0,),)), (aten.mul.Tensor, (2.0,)),
        (aten.select.int, (0, 0)), (aten.unsqueeze.default, (0,)), (aten.flip.default, ((0,),)),
        (aten.clone.default, ()), (aten.argmax.default, (0, True)), (aten.softmax.int, (0,))]))
    call = lambda f, a, k: f(*a, **k)
    with asking() as conditions:
        try:
            ((size, steps, _),) = geometries(call, op, (spec, *args), {})
        except NeedsSizes:
            assert not spec.varies
            return
    for env in ({"s0": 6, "s1": 11}, {"s0": 2, "s1": 2}, {"s0": 300, "s1": 7}):
        if all(c.holds(env) for c in conditions):
            there = at(spec, env)
            real = op(torch.empty_strided(there.shape, there.stride, device="meta"), *args)
            assert (tuple(real.shape), real.stride()) == (at(size, env), at(steps, env))
