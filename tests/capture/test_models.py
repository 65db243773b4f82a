"""Models of the ladder: each is one graph and gives eager's result, in eager's types, served or not."""

import os

import pytest
import torch
from torch import nn

from .common import compiled, refusals

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})
        self.scale = nn.ParameterList([nn.Parameter(torch.ones(4))])

    def forward(self, x, *, head="a", **extra):
        for i, layer in enumerate(self.layers):
            x = torch.relu(layer(x)) if i % 2 else layer(x) + x
        for name, layer in self.layers.named_children():
            x = x + layer.weight.sum() * int(name)
        return {"out": self.heads[head](x * self.scale[0]), **extra}


def text(**settings):
    return dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
        **settings,
    )


IDS = torch.arange(24).reshape(2, 12) % 50
IMAGE = torch.randn(1, 3, 32, 32)


def bert():
    return transformers.BertModel(transformers.BertConfig(**text())), {"input_ids": IDS}


def masked_bert():
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 8:] = 0
    return bert()[0], {"input_ids": IDS, "attention_mask": mask}


def hidden_states():
    return bert()[0], {"input_ids": IDS, "output_hidden_states": True, "return_dict": True}


def as_tuple():
    return bert()[0], {"input_ids": IDS, "return_dict": False}


def vit():
    config = transformers.ViTConfig(
        **{k: v for k, v in text().items() if k != "vocab_size"}, image_size=32, patch_size=8
    )
    return transformers.ViTModel(config), {"pixel_values": IMAGE}


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    return transformers.ResNetModel(config), {"pixel_values": IMAGE}


def llama():
    config = transformers.LlamaConfig(**text(), num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS, "use_cache": False}


def llama_with_cache():
    return llama()[0], {"input_ids": IDS, "use_cache": True}


def sequential():
    return nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2)), {
        "input": torch.randn(2, 12)
    }


def loop():
    return Loop(), {"x": torch.randn(2, 4), "head": "b", "tag": 1}


MODELS = [
    sequential,
    loop,
    bert,
    masked_bert,
    hidden_states,
    as_tuple,
    vit,
    resnet,
    llama,
    llama_with_cache,
]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return (
            list(a) == list(b) and all(same(a[k], b[k]) for k in a) and same(vars(a), vars(b))
            if hasattr(a, "__dict__")
            else list(a) == list(b) and all(same(a[k], b[k]) for k in a)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return same(vars(a), vars(b)) if hasattr(a, "__dict__") and not isinstance(a, type) else a == b


@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_one_graph(make):
    torch.manual_seed(0)
    model, kwargs = make()
    model.eval()
    c = compiled(nn.Module._call_impl)
    with torch.no_grad():
        expected = model(**kwargs)
        assert same(c(model, **kwargs), expected)
        assert not refusals(c)
        assert same(c(model, **kwargs), expected)
        assert [e.hits for e in c.entries] == [1]
        for hook in (lambda *a: None, lambda module, args, out: out):
            model.register_forward_hook(hook)
            assert same(c(model, **kwargs), expected)
    assert len(c.entries) == 3
    where = c.entries[0].capture.where
    assert where and all(w.line > 0 and os.path.exists(w.file) for w in where.values())


def test_models_of_one_class_share_a_variant():
    c = compiled(nn.Module._call_impl)
    models = [bert()[0].eval() for _ in range(3)]
    with torch.no_grad():
        for m in models:
            assert same(c(m, input_ids=IDS), m(input_ids=IDS))
    assert [e.hits for e in c.entries] == [2]


def test_training_mode_and_dropout():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    reference = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    reference.load_state_dict(model.state_dict())
    c, x = compiled(nn.Module._call_impl), torch.randn(8, 4)
    for _ in range(3):
        torch.manual_seed(1)
        got = c(model, x)
        torch.manual_seed(1)
        assert torch.equal(got, reference(x))
        got.sum().backward()
    assert torch.equal(model[2].running_mean, reference[2].running_mean)
    assert model[2].num_batches_tracked == 3 and not refusals(c)
