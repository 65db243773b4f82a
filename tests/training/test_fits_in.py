"""Where others call a compiled module: torch.compile's backend, Trainer, data parallel, checkpoints."""
from __future__ import annotations

import copy
import importlib.util
import io
import os
import pickle
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minicompile
from minicompile.api import torch_backend

ROOT = Path(__file__).parents[2]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))


def train(m: nn.Module, call: Any, steps: int = 4) -> list[float]:
    opt, losses = torch.optim.AdamW(m.parameters(), 0.01), []
    for i in range(steps):
        torch.manual_seed(i)
        opt.zero_grad()
        loss = F.cross_entropy(call(torch.randn(8, 6)), torch.randint(0, 3, (8,)))
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


def test_as_a_backend_of_torch_compile() -> None:
    a, b = net(), net()
    call = torch.compile(b, backend=torch_backend)
    assert train(a, a) == pytest.approx(train(b, call), abs=1e-5)


def test_checkpoints_go_both_ways() -> None:
    a, b = net(), net()
    compiled = minicompile.compile(b)
    train(b, compiled)
    train(a, a)
    assert list(compiled.state_dict()) == list(a.state_dict())
    file = io.BytesIO()
    torch.save(compiled.state_dict(), file)
    file.seek(0)
    other = net()
    other.load_state_dict(torch.load(file))
    x = torch.randn(2, 6)
    torch.testing.assert_close(other(x), compiled(x), rtol=1e-4, atol=1e-6)
    compiled.load_state_dict(net().state_dict())
    torch.testing.assert_close(net()(x), compiled(x), rtol=1e-4, atol=1e-6)
    again = pickle.loads(pickle.dumps(compiled))
    torch.testing.assert_close(again(x), compiled(x), rtol=1e-4, atol=1e-6)
    assert isinstance(compiled, nn.Sequential) and copy.deepcopy(compiled)(x).shape == (2, 3)


TRAINER = """
    import sys, torch, transformers, minicompile, minicompile.api
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    how, out = sys.argv[1:]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = BertForSequenceClassification(config)
    data = [{"input_ids": torch.randint(0, 50, (8,)), "labels": torch.tensor(i % 2)} for i in range(16)]
    if how == "module":
        model = minicompile.compile(model)
    if how == "backend":
        minicompile.api.allow_in_accelerate()
        if "minicompile" not in torch.compiler.list_backends():          # not installed: no entry point
            torch._dynamo.register_backend(minicompile.api.torch_backend, name="minicompile")
    extra = {"torch_compile": True, "torch_compile_backend": "minicompile"} if how == "backend" else {}
    args = TrainingArguments(out, max_steps=4, per_device_train_batch_size=4, use_cpu=True, report_to=[],
                             logging_steps=1, save_strategy="no", seed=0, disable_tqdm=True, **extra)
    trainer = Trainer(model, args, train_dataset=data)
    trainer.train()
    print("LOSSES", *(h["loss"] for h in trainer.state.log_history if "loss" in h))
"""


def losses_of(how: str, folder: Path) -> list[float]:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(TRAINER))
    done = subprocess.run([sys.executable, str(script), how, str(folder / "out")], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("LOSSES"))
    return [float(x) for x in line.split()[1:]]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="Trainer needs accelerate")
def test_trainer(tmp_path: Path) -> None:
    eager = losses_of("eager", tmp_path)
    assert len(eager) == 4
    for how in ("module", "backend"):
        assert losses_of(how, tmp_path) == pytest.approx(eager, abs=2e-4), how


ACCELERATOR = """
    import sys, tempfile, torch, minicompile
    from accelerate import Accelerator
    from torch import nn
    compiled, precision, steps = sys.argv[1] == "compiled", sys.argv[2], int(sys.argv[3])
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Dropout(0.1), nn.Linear(8, 3))
    call = minicompile.compile(module) if compiled else module
    data = list(zip(torch.randn(32, 6), torch.randint(0, 3, (32,))))
    optimizer = torch.optim.AdamW(call.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=steps)
    model, optimizer, data, schedule = accelerator.prepare(
        call, optimizer, torch.utils.data.DataLoader(data, batch_size=8), schedule)

    def epoch():
        for x, y in data:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                print("LOSS", loss.item())
    epoch()
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        epoch()
        accelerator.load_state(folder)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    epoch()
    assert accelerator.unwrap_model(model) is call and list(before) == list(module.state_dict())
    if compiled:
        assert call.__minicompile__.compilations and not call.__minicompile__.refusals
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not there")
@pytest.mark.parametrize(("precision", "steps", "far"), [("no", "2", 1e-5), ("bf16", "1", 5e-3)])
def test_accelerator(precision: str, steps: str, far: float, tmp_path: Path) -> None:
    """prepare, accumulate, clipping, save_state and load_state, unwrap_model: as with an uncompiled module."""
    (tmp_path / "script.py").write_text(textwrap.dedent(ACCELERATOR))
    losses = []
    for how in ("eager", "compiled"):
        done = subprocess.run([sys.executable, str(tmp_path / "script.py"), how, precision, steps], timeout=300,
                              capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append([float(x.split()[1]) for x in done.stdout.splitlines() if x.startswith("LOSS")])
    assert len(losses[0]) == 12 and losses[1] == pytest.approx(losses[0], abs=far)


PARALLEL = """
    import os, sys, torch, torch.distributed as dist, torch.multiprocessing as mp
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    import minicompile

    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))

    def worker(rank, port):
        torch.set_num_threads(1)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        dist.init_process_group("gloo", rank=rank, world_size=2)
        results = []
        for how in ("eager", "inside", "outside"):
            m = net()
            call = DistributedDataParallel(minicompile.compile(m) if how == "inside" else m)
            call = minicompile.compile(call) if how == "outside" else call
            opt = torch.optim.SGD(m.parameters(), 0.1)
            for i in range(4):
                torch.manual_seed(10 * i + rank)
                opt.zero_grad()
                call(torch.randn(5, 6)).square().mean().backward()
                opt.step()
            results.append([p.detach().clone() for p in m.parameters()])
            if how == "outside":
                assert call.__minicompile__.compilations and not call.__minicompile__.refusals
                assert isinstance(call, DistributedDataParallel) and "module.0.weight" in call.state_dict()
        for other in results[1:]:
            for a, b in zip(results[0], other):
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
        for p in results[1]:
            mine = p.clone()
            dist.broadcast(mine, 0)
            torch.testing.assert_close(mine, p)
        print("SAME", rank, flush=True)
        dist.destroy_process_group()

    if __name__ == "__main__":
        mp.spawn(worker, (sys.argv[1],), nprocs=2)
"""


def in_a_process(text: str, folder: Path) -> Any:
    """Runs a script that is given a free port."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    (folder / "script.py").write_text(textwrap.dedent(text))
    return subprocess.run([sys.executable, str(folder / "script.py"), port], capture_output=True, text=True,
                          timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_distributed_data_parallel(tmp_path: Path) -> None:
    done = in_a_process(PARALLEL, tmp_path)
    assert done.returncode == 0 and done.stdout.count("SAME") == 2, done.stdout + done.stderr[-3000:]


def test_other_processes_are_left_to_eager_mode() -> None:
    """What talks to them is never run while capturing, when it would be done once and not again."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    from minicompile.capture.policy import Policy, of_code
    for f in (FullyShardedDataParallel.forward, torch.distributed.barrier,
              nn.parallel.DistributedDataParallel.forward):
        assert of_code(f.__code__) is Policy.FORBID


SHARDED = """
    import os, sys, torch, torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    import minicompile

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1])
    dist.init_process_group("gloo", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    for shard in (lambda m: FullyShardedDataParallel(m, device_id=torch.device("cpu")),
                  lambda m: fully_shard(m, mesh=mesh)):
        losses = []
        for compiled in (False, True):
            torch.manual_seed(0)
            m = shard(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)))
            call = minicompile.compile(m) if compiled else m
            opt = torch.optim.SGD(m.parameters(), 0.1)
            for i in range(3):
                torch.manual_seed(i)
                opt.zero_grad()
                loss = call(torch.randn(5, 6)).square().mean()
                loss.backward()
                opt.step()
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) < 1e-5, losses
        print("RIGHT", [r.code for r in call.__minicompile__.refusals], flush=True)
    dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_sharded_modules_are_left_to_eager_mode(tmp_path: Path) -> None:
    done = in_a_process(SHARDED, tmp_path)
    lines = [x for x in done.stdout.splitlines() if x.startswith("RIGHT")]
    assert done.returncode == 0 and len(lines) == 2 and all("forbidden" in x for x in lines), done.stderr[-3000:]
