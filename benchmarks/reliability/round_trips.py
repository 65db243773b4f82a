"""F25: a compiled module where the module itself is expected. For both systems: which of these are as uncompiled.

    python benchmarks/reliability/round_trips.py [--system torch.compile]
"""

from __future__ import annotations

import argparse
import copy
import inspect
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

import common
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("shift", torch.ones(2))
        self.scale = 2.0

    def forward(self, x: torch.Tensor, flag: bool = True) -> torch.Tensor:
        y = self.second(self.first(x).relu()) * self.scale + self.shift
        return y if flag else -y

    def helper(self) -> int:
        return 7


X = torch.linspace(-1, 1, 12).reshape(3, 4)
CHECKS: dict[str, Callable[[Net, Any], bool]] = {}


def check(f: Callable[[Net, Any], bool]) -> Callable:
    CHECKS[f.__name__.replace("_", " ")] = f
    return f


def close(a: Any, b: Any) -> bool:
    return torch.allclose(a, b, atol=1e-6)


@check
def state_dict_keys(net: Net, c: Any) -> bool:
    return list(c.state_dict()) == list(net.state_dict())


@check
def load_state_dict(net: Net, c: Any) -> bool:
    Net().load_state_dict(c.state_dict())
    c.load_state_dict({k: v * 2 for k, v in net.state_dict().items()})
    return close(c(X), net(X))


@check
def names_of_parameters_and_modules(net: Net, c: Any) -> bool:
    return (dict(c.named_parameters()).keys() == dict(net.named_parameters()).keys()
            and dict(c.named_modules()).keys() == dict(net.named_modules()).keys()
            and all(a is b for a, b in zip(c.parameters(), net.parameters())))


@check
def isinstance_and_class(net: Net, c: Any) -> bool:
    return isinstance(c, Net) and c.__class__ is Net


@check
def type_name_and_repr(net: Net, c: Any) -> bool:
    return type(c).__name__ == "Net" and repr(c) == repr(net)


@check
def signature(net: Net, c: Any) -> bool:
    return inspect.signature(c.forward) == inspect.signature(net.forward)


@check
def methods_and_attributes(net: Net, c: Any) -> bool:
    c.scale = 3.0
    return c.helper() == 7 and net.scale == 3.0 and close(c(X), net(X))


@check
def train_and_eval(net: Net, c: Any) -> bool:
    c.eval()
    return not net.training and not net.first.training and c.train().training and net.training


@check
def pickled(net: Net, c: Any) -> bool:
    c(X)
    return close(pickle.loads(pickle.dumps(c))(X), net(X))


@check
def saved_and_loaded(net: Net, c: Any) -> bool:
    file = io.BytesIO()
    torch.save(c, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    return isinstance(loaded, Net) and list(loaded.state_dict()) == list(net.state_dict()) and close(loaded(X), net(X))


@check
def deep_copied(net: Net, c: Any) -> bool:
    c(X)
    other = copy.deepcopy(c)
    with torch.no_grad():
        other.first.weight.mul_(3)
    return isinstance(other, Net) and close(c(X), net(X)) and not close(other(X), net(X))


@check
def shallow_copied(net: Net, c: Any) -> bool:
    return close(copy.copy(c)(X), net(X))


@check
def forward_hooks_before_and_after(net: Net, c: Any) -> bool:
    said: list[str] = []
    handles = [c.register_forward_pre_hook(lambda m, a: said.append("pre")), c.register_forward_hook(lambda m, a, o: said.append("post")),
               net.first.register_forward_hook(lambda m, a, o: o * 2)]
    right = close(c(X), net(X)) and said == ["pre", "post"] * 2
    for h in handles:
        h.remove()
    return right and close(c(X), net(X)) and len(said) == 4


@check
def hooks_registered_after_compiling(net: Net, c: Any) -> bool:
    c(X)
    net.second.register_forward_hook(lambda m, a, o: o + 5)
    return close(c(X), net(X))


@check
def backward_hooks(net: Net, c: Any) -> bool:
    said: list[Any] = []
    c.register_full_backward_hook(lambda m, gi, go: said.append(go[0].sum().item()))
    net.first.weight.register_hook(lambda g: said.append("w"))
    c(X).sum().backward()
    return len(said) == 2 and "w" in said


@check
def moved_to_another_dtype(net: Net, c: Any) -> bool:
    c.double()
    return net.first.weight.dtype is torch.float64 and close(c(X.double()), net(X.double()))


@check
def a_submodule_replaced(net: Net, c: Any) -> bool:
    c(X)
    net.first = nn.Linear(4, 8)
    return close(c(X), net(X)) and c.first is net.first


@check
def functional_call(net: Net, c: Any) -> bool:
    state = {k: v * 2 for k, v in net.state_dict().items()}
    return close(torch.func.functional_call(c, state, (X,)), torch.func.functional_call(net, state, (X,)))


@check
def part_of_another_model(net: Net, c: Any) -> bool:
    outer = nn.Sequential(c, nn.Tanh())
    return list(outer.state_dict()) == list(nn.Sequential(net, nn.Tanh()).state_dict()) and close(outer(X), net(X).tanh())


@check
def optimizer_steps(net: Net, c: Any) -> bool:
    opt = torch.optim.AdamW(c.parameters())
    for _ in range(3):
        opt.zero_grad()
        c(X).square().sum().backward()
        opt.step()
    return close(c(X), net(X))


@check
def averaged_model(net: Net, c: Any) -> bool:
    average = torch.optim.swa_utils.AveragedModel(c)
    average.update_parameters(c)
    return list(average.module.state_dict()) == list(net.state_dict())


@check
def keyword_arguments(net: Net, c: Any) -> bool:
    return close(c(x=X, flag=False), net(X, False)) and close(c(X, flag=False), net(X, False))


@check
def weakly_referenced_and_freed(net: Net, c: Any) -> bool:
    import gc
    import weakref
    fresh = Net()
    dead = weakref.ref(fresh)
    compiled = COMPILE(fresh)
    compiled(X)
    del fresh, compiled
    gc.collect()
    return dead() is None


@check
def huggingface_trainer(net: Net, c: Any) -> bool:
    import accelerate  # noqa: F401  (optional)
    import transformers
    data = [{"x": X[i], "labels": torch.zeros(2)} for i in range(3)]

    class Loss(Net):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict:  # type: ignore[override]
            y = super().forward(x)
            return {"loss": (y - labels).square().mean(), "logits": y}
    args = transformers.TrainingArguments("/tmp/trainer", max_steps=2, report_to=[], use_cpu=True, save_strategy="no")
    transformers.Trainer(COMPILE(Loss()), args, train_dataset=data).train()
    return True


COMPILE: Callable = common.SYSTEMS["minicompile"]


def main() -> int:
    global COMPILE
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--system", choices=list(common.SYSTEMS), default="minicompile")
    p.add_argument("--backend", default="auto")
    given = p.parse_args()
    COMPILE = lambda f: common.SYSTEMS[given.system](f, given.backend)

    def judge(name: str) -> str:
        torch.manual_seed(0)
        net = Net()
        try:
            return "" if CHECKS[name](net, COMPILE(net)) else "differs"
        except ModuleNotFoundError as e:
            return f"not tried: {e}"
        except Exception as e:
            return common.said(e)
    found = dict(common.in_processes(list(CHECKS), judge))
    tried = {name: text for name, text in found.items() if not text.startswith("not tried")}
    for name, text in found.items():
        if text:
            print(f"    {name}: {text}")
    print(f"F25 | {given.system} | {sum(not t for t in tried.values())} of {len(tried)} as uncompiled")
    return 1 if any(tried.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
