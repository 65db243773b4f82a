"""Whole models through the lowering; printing, aliases, checks, and the time it takes."""
from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx, nn

from minicompile.errors import CheckError, Where
from minicompile.ir.graph import Graph, Node
from minicompile.ir.spec import TensorSpec
from minicompile.lower.decompose import decompose
from minicompile.lower.graphs import Program
from minicompile.lower.trace import callable_inputs, tensors_in, trace, trace_callable


def build(name: str) -> tuple[nn.Module, tuple, dict]:
    import transformers  # here, because it takes seconds and only these tests need it
    torch.manual_seed(0)
    ids = torch.randint(0, 100, (2, 16))
    if name == "bert":
        config = transformers.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100
        )
        return transformers.BertModel(config), (), {"input_ids": ids}
    if name == "llama":
        config = transformers.LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            vocab_size=100,
        )
        return transformers.LlamaForCausalLM(config), (), {"input_ids": ids, "use_cache": False}
    if name == "vit":
        config = transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
        )
        return transformers.ViTModel(config), (torch.randn(2, 3, 32, 32),), {}
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    return transformers.ResNetModel(config), (torch.randn(2, 3, 32, 32),), {}


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models ask whether they are being compiled before they look at data; capture answers yes."""
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("name", ["bert", "llama", "vit", "resnet"])
@torch.no_grad()
def test_models_agree_with_eager(name: str) -> None:
    model, args, kwargs = build(name)
    model = model.eval()
    want = list(tensors_in(model(*args, **kwargs)))
    inputs = callable_inputs(model, *args, **kwargs)
    aten = trace_callable(model, *args, **kwargs)
    prims = decompose(aten)
    for program in (aten, prims):
        program.check()
        for got, expected in zip(program.run(*inputs), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
            assert got.stride() == expected.stride()


@torch.no_grad()
def test_time() -> None:
    """Four transformer layers take well under a quarter of a second (three times that here, for busy
    machines)."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True).eval()
    model = nn.Sequential(*[layer] * 4)
    x = torch.randn(2, 16, 64)
    torch.backends.mha.set_fastpath_enabled(False)
    best = 1.0
    for _ in range(3):
        start = time.perf_counter()
        decompose(trace_callable(model, x))
        best = min(best, time.perf_counter() - start)
    torch.backends.mha.set_fastpath_enabled(True)
    assert best < 0.75


def example(x: torch.Tensor, y: torch.Tensor) -> Any:
    h = torch.softmax(x @ y, -1)
    x.mul_(torch.tensor([[2.0], [3.0]]))
    return h, x[0], h.t(), torch.arange(3).float() - float("inf"), x.sum(), h[0]


@pytest.mark.parametrize("stage", ["aten", "prims"])
def test_text_is_a_program(stage: str) -> None:
    x, y = torch.randn(2, 3), torch.randn(3, 2)
    program: Program = trace_callable(example, x, y)
    program = decompose(program) if stage == "prims" else program
    scope: dict = {}
    exec(str(program), scope)
    a, b = x.clone(), x.clone()
    for got, want in zip(scope["graph"](a, y), program.run(b, y), strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)
    assert torch.equal(a, b)


def test_outputs_alias_as_in_eager() -> None:
    x, y = torch.randn(2, 3), torch.randn(3, 2)
    prims = decompose(trace_callable(example, x, y))
    h, row, turned, _, _, first = prims.run(x, y)
    assert row.untyped_storage()._cdata == x.untyped_storage()._cdata
    assert turned.untyped_storage()._cdata == h.untyped_storage()._cdata == first.untyped_storage()._cdata
    (whole,) = decompose(trace_callable(lambda x: (x + 1)[:, 0], x)).run(x)
    assert whole.stride() == (3,) and whole.untyped_storage().nbytes() == 24  # a window on a hidden output


def test_trace_of_a_graph_with_scalars_and_places() -> None:
    graph = fx.Graph()
    x, n = graph.placeholder("x"), graph.placeholder("n")
    doubled = graph.call_function(torch.mul, (x, n))
    moved = graph.call_method("reshape", (doubled, -1))
    graph.output((moved,))
    gm, place = fx.GraphModule({}, graph), Where("user.py", 7)
    aten = trace(gm, [torch.randn(2, 3), 4], {doubled: place})
    assert len(aten.graph.inputs) == 2 and aten.graph.nodes[0].where == place          # numbers vary
    t = torch.randn(2, 3)
    assert torch.equal(aten.run(t, torch.tensor(4))[0], (t * 4).reshape(-1))
    again = trace(gm, [TensorSpec.of(t), 4])
    assert str(again.graph.nodes[0].spec) == "float32[2, 3]"


def softmax_prims() -> Any:
    x, y = torch.randn(2, 3), torch.randn(3, 2)
    return decompose(trace_callable(example, x, y)), (x, y)


def edited(program: Any, name: str, **changes: Any) -> Any:
    """The program with fields of one node changed, wherever it is used."""
    new: dict[Node, Node] = {}

    def follow(a: Any) -> Any:
        if isinstance(a, Node):
            return new.get(a, a)
        return tuple(map(follow, a)) if isinstance(a, tuple) else a
    for n in program.graph.nodes:
        new[n] = replace(n, args=follow(n.args), **(changes if n.name == name else {}))
    g = program.graph
    outputs = tuple(replace(o, node=follow(o.node)) for o in g.outputs)
    return type(program)(
        Graph(g.inputs, tuple(new.values()), outputs, tuple((i, follow(n)) for i, n in g.writes), g.returned)
    )


def test_check_finds_wrong_specs() -> None:
    prims, _ = softmax_prims()
    prims.check()
    for n in prims.graph.nodes:
        spec = n.spec
        for wrong in (
            spec.with_(dtype=torch.float16),
            spec.with_(shape=(*spec.shape, 2), stride=(*spec.stride, 1)),
            spec.with_(stride=(*spec.stride, 5)),
        ):
            with pytest.raises(CheckError) as caught:
                edited(prims, n.name, spec=wrong).check()
            assert caught.value.stage == "prims"
    mm = next(n for n in prims.graph.nodes if "mm" in str(n.op))
    with pytest.raises(CheckError):
        edited(prims, mm.name, spec=mm.spec.with_(stride=(1, 2))).check()


def test_check_finds_wrong_structure() -> None:
    prims, (x, y) = softmax_prims()
    g = prims.graph
    with pytest.raises(CheckError):
        type(prims)(replace(g, nodes=g.nodes[1:])).check()
    with pytest.raises(CheckError):
        type(prims)(replace(g, nodes=g.nodes[:1] + g.nodes)).check()
    with pytest.raises(CheckError):
        prims.run(x, y.t().contiguous().t())          # not the strides that were promised
    with pytest.raises(CheckError):
        prims.run(x.double(), y)
