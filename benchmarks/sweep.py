"""Every common operator at three sizes and several thread counts: minicompile against eager mode, in turns.

    python benchmarks/sweep.py [--only REGEX] [--threads 1,2] [--below 0.97] [--compilers eager,minicompile] [--json F]

Prints what is slower than `--below` times eager mode at once, and everything in the JSON; the contest that would run eager mode where that is faster
is off. A ratio is the least time of one over the least time of the
other, over alternating runs: on a shared machine the least time is what the work takes.
"""
from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Made = tuple[Callable[..., Any], tuple]
SIZES = {"small": 0, "medium": 1, "large": 2}


def rows(k: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A matrix of activations: 16 KiB, 768 KiB, 12 MiB of float32."""
    return torch.randn(*[(32, 128), (256, 768), (2048, 1536)][k]).to(dtype)


def image(k: int, channels: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    n, c, s = [(1, 8, 16), (4, 32, 32), (8, 64, 56)][k]
    return torch.randn(n, channels or c, s, s).to(dtype)


def last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def of(function: Callable[..., Any], *makers: Callable[[int], Any]) -> Callable[[int], Made]:
    """A case that calls `function` on what `makers` make for a size."""
    return lambda k: (function, tuple(m(k) for m in makers))


def module(build: Callable[[int], nn.Module], make: Callable[[int], torch.Tensor] = rows, last_dim: bool = False) -> Callable[[int], Made]:
    """A case that calls a module built for the number of channels (or features) of its input."""
    def case(k: int) -> Made:
        x = make(k)
        m = build(x.shape[1] if x.ndim > 2 and not last_dim else x.shape[-1]).eval().to(x.dtype)
        return (m.to(memory_format=torch.channels_last) if x.ndim == 4 and x.stride(1) == 1 < x.shape[1] else m), (x,)
    return case


def backward(build: Callable[[int], nn.Module], make: Callable[[int], torch.Tensor] = rows) -> Callable[[int], Made]:
    """A case that runs a module forward and backward. What is timed includes the autograd engine, in both."""
    def case(k: int) -> Made:
        x = make(k).requires_grad_()
        m = build(x.shape[1] if x.ndim > 2 else x.shape[-1]).train()

        def step(call: Callable[..., torch.Tensor]) -> Any:
            out = call(x)
            return torch.autograd.grad(out, [x, *m.parameters()], ones.setdefault(out.shape, torch.ones_like(out)))
        ones: dict[Any, torch.Tensor] = {}
        step.module = m                                      # type: ignore[attr-defined]
        return step, ()
    return case


def attention(k: int, heads: int = 0, queries: int = 0) -> tuple[torch.Tensor, ...]:
    b, h, n, d = [(1, 2, 32, 32), (2, 4, 128, 64), (2, 8, 512, 64)][k]
    return tuple(torch.randn(b, h, m, d) for m in (queries or n, n, n))


def ids(k: int) -> torch.Tensor:
    return torch.randint(0, 1000, [(4, 16), (16, 128), (64, 256)][k])


def pairs(k: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return rows(k, dtype), rows(k, dtype)


def two(function: Callable[..., Any], dtype: torch.dtype = torch.float32) -> Callable[[int], Made]:
    return lambda k: (function, pairs(k, dtype))


def attending(function: Callable[..., Any], **how: int) -> Callable[[int], Made]:
    return lambda k: (function, attention(k, **how))


def low(make: Callable[..., torch.Tensor], dtype: torch.dtype = torch.bfloat16) -> Callable[[int], torch.Tensor]:
    return lambda k: make(k).to(dtype)


def channels_last(k: int) -> torch.Tensor:
    return last(image(k))


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def pixels(k: int) -> torch.Tensor:
    return torch.randint(0, 256, (*[(1, 32, 32), (2, 128, 128), (8, 224, 224)][k], 3), dtype=torch.uint8)


CONV: dict[str, Callable[[int], nn.Module]] = {
    "conv3": lambda c: nn.Conv2d(c, c, 3, padding=1), "conv3_stride": lambda c: nn.Conv2d(c, 2 * c, 3, 2, 1),
    "conv1": lambda c: nn.Conv2d(c, c, 1), "conv1_wide": lambda c: nn.Conv2d(c, 4 * c, 1), "conv5": lambda c: nn.Conv2d(c, c, 5, padding=2),
    "conv1_stride": lambda c: nn.Conv2d(c, 2 * c, 1, 2), "depthwise": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c),
    "depthwise7": lambda c: nn.Conv2d(c, c, 7, padding=3, groups=c), "grouped": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=4),
    "conv_bn_relu": lambda c: nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
    "conv_dilated": lambda c: nn.Conv2d(c, c, 3, padding=2, dilation=2), "conv_transpose": lambda c: nn.ConvTranspose2d(c, c, 2, 2),
    "max_pool": lambda c: nn.MaxPool2d(2), "max_pool3": lambda c: nn.MaxPool2d(3, 2, 1), "avg_pool": lambda c: nn.AvgPool2d(2),
    "adaptive_pool": lambda c: nn.AdaptiveAvgPool2d(1), "adaptive_pool7": lambda c: nn.AdaptiveAvgPool2d(7),
    "batch_norm": nn.BatchNorm2d, "group_norm": lambda c: nn.GroupNorm(4, c), "instance_norm": nn.InstanceNorm2d,
    "upsample": lambda c: nn.Upsample(scale_factor=2), "bilinear": lambda c: nn.Upsample(scale_factor=2, mode="bilinear"),
    "pixel_shuffle": lambda c: nn.PixelShuffle(2), "pixel_unshuffle": lambda c: nn.PixelUnshuffle(2), "pad_zero": lambda c: nn.ZeroPad2d(1),
    "pad_reflect": lambda c: nn.ReflectionPad2d(1), "pad_replicate": lambda c: nn.ReplicationPad2d(2), "unfold": lambda c: nn.Unfold(3, padding=1),
    "softmax2d": lambda c: nn.Softmax2d(),
}
CASES: dict[str, Callable[[int], Made]] = {
    # ---- elementwise
    "add": two(torch.add), "add_bf16": two(torch.add, torch.bfloat16), "add_f16": two(torch.add, torch.float16), "add_f64": two(torch.add, torch.float64),
    "mul_scalar": of(lambda x: x * 2, rows), "relu": of(torch.relu, rows), "relu_bf16": of(torch.relu, low(rows)), "gelu": of(F.gelu, rows),
    "gelu_bf16": of(F.gelu, low(rows)), "gelu_tanh": of(lambda x: F.gelu(x, approximate="tanh"), rows), "silu": of(F.silu, rows), "silu_bf16": of(F.silu, low(rows)),
    "exp": of(torch.exp, rows), "sigmoid": of(torch.sigmoid, rows), "tanh": of(torch.tanh, rows), "sin": of(torch.sin, rows), "log": of(lambda x: torch.log(x.abs()), rows),
    "sqrt": of(lambda x: torch.sqrt(x.abs()), rows), "rsqrt": of(lambda x: torch.rsqrt(x.abs()), rows), "pow": of(lambda x: x.abs() ** 1.7, rows),
    "pow3": of(lambda x: x ** 3, rows), "erf": of(torch.erf, rows), "exp_f64": of(torch.exp, low(rows, torch.float64)), "floor": of(torch.floor, rows),
    "softplus": of(F.softplus, rows), "mish": of(F.mish, rows), "elu": of(F.elu, rows), "hardswish": of(F.hardswish, rows), "leaky": of(F.leaky_relu, rows),
    "clamp": of(lambda x: x.clamp(-1, 1), rows), "where": two(lambda x, y: torch.where(x > y, x, y)), "masked_fill": two(lambda x, y: x.masked_fill(y > 0, -1.0)),
    "atan2": two(torch.atan2), "div": two(torch.div), "fmod": two(torch.fmod), "lerp": two(lambda x, y: torch.lerp(x, y, 0.3)), "addcmul": two(lambda x, y: torch.addcmul(x, x, y)),
    "int_add": of(lambda i: i + 1, ids), "int_div": of(lambda i: i // 7, ids), "int_mod": of(lambda i: i % 7, ids), "compare": two(torch.lt), "isnan": of(torch.isnan, rows),
    "to_bf16": of(lambda x: x.bfloat16(), rows), "from_bf16": of(lambda x: x.float(), low(rows)), "to_f16": of(lambda x: x.half(), rows), "to_int": of(lambda x: x.int(), rows),
    "to_u8": of(lambda x: (x * 10).to(torch.uint8), rows), "from_u8": of(lambda x: x.float() / 255, pixels), "swiglu": two(lambda x, y: F.silu(x) * y), "glu": of(F.glu, rows),
    "bias_gelu": of(lambda x: F.gelu(x + x[0]), rows), "clone": of(torch.clone, rows), "dropout_eval": module(lambda c: nn.Dropout()),
    # ---- reductions, norms
    "sum": of(torch.sum, rows), "sum0": of(lambda x: x.sum(0), rows), "sum1": of(lambda x: x.sum(1), rows), "mean_bf16": of(lambda x: x.mean(-1), low(rows)),
    "sum0_bf16": of(lambda x: x.sum(0), low(rows)), "max1": of(lambda x: x.max(1), rows), "argmax": of(lambda x: x.argmax(-1), rows), "argmax0": of(lambda x: x.argmax(0), rows),
    "amax0": of(lambda x: x.amax(0), rows), "var": of(lambda x: x.var(-1), rows), "std0": of(lambda x: x.std(0), rows), "norm": of(torch.norm, rows), "any": of(lambda x: (x > 4).any(), rows),
    "logsumexp": of(lambda x: x.logsumexp(-1), rows), "cumsum": of(lambda x: x.cumsum(-1), rows), "cumsum0": of(lambda x: x.cumsum(0), rows), "prod": of(lambda x: x.prod(-1), rows),
    "softmax": of(lambda x: x.softmax(-1), rows), "softmax0": of(lambda x: x.softmax(0), rows), "softmax_bf16": of(lambda x: x.softmax(-1), low(rows)), "log_softmax": of(lambda x: x.log_softmax(-1), rows),
    "layer_norm": module(nn.LayerNorm), "layer_norm_bf16": module(nn.LayerNorm, low(rows)), "rms_norm": module(nn.RMSNorm), "rms_norm_bf16": module(nn.RMSNorm, low(rows)),
    "normalize": of(lambda x: F.normalize(x, dim=-1), rows), "cosine": two(lambda x, y: F.cosine_similarity(x, y)), "mse": two(F.mse_loss), "l1": two(F.l1_loss),
    "cross_entropy": lambda k: (F.cross_entropy, (rows(k), torch.randint(0, 100, (rows(k).shape[0],)))), "bce": two(lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid())),
    "spatial_mean": of(lambda x: x.mean((2, 3)), image), "channel_sum": of(lambda x: x.sum((0, 2, 3)), image), "spatial_mean_last": of(lambda x: x.mean((2, 3)), channels_last),
    "topk": of(lambda x: x.topk(5), rows), "sort": of(lambda x: x.sort(-1), rows), "median": of(lambda x: x.median(-1), rows), "count": of(torch.count_nonzero, rows),
    # ---- movement
    "transpose": of(lambda x: x.t().contiguous(), rows), "transpose_bf16": of(lambda x: x.t().contiguous(), low(rows)), "to_nhwc": of(lambda x: x.permute(0, 2, 3, 1).contiguous(), image),
    "to_nchw": of(lambda x: x.contiguous(), channels_last), "rgb_to_nchw": of(lambda x: x.permute(0, 3, 1, 2).float().div(255), pixels), "rgb_planes": of(lambda x: x.permute(0, 3, 1, 2).contiguous(), pixels),
    "nhwc3_f32": of(lambda x: x.permute(0, 3, 1, 2).contiguous(), low(pixels, torch.float32)), "nchw3_f32": of(lambda x: x.permute(0, 2, 3, 1).contiguous(), lambda k: image(k, 3)),
    "heads": of(lambda x: x.view(x.shape[0], -1, 64).transpose(0, 1).contiguous(), rows), "cat": two(lambda x, y: torch.cat([x, y], -1)), "cat0": two(lambda x, y: torch.cat([x, y])),
    "stack": two(lambda x, y: torch.stack([x, y], -1)), "stack0": two(lambda x, y: torch.stack([x, y])), "chunk": of(lambda x: [c.clone() for c in x.chunk(4, -1)], rows), "flip": of(lambda x: x.flip(-1), rows),
    "roll": of(lambda x: x.roll(3, -1), rows), "roll2": of(lambda x: x.roll((3, 3), (2, 3)), image), "repeat": of(lambda x: x.repeat(2, 2), rows), "interleave": of(lambda x: x.repeat_interleave(2, -1), rows),
    "expand": of(lambda x: x[:, None].expand(-1, 4, -1).contiguous(), rows), "pad1": of(lambda x: F.pad(x, (1, 1)), rows), "pad_rows": of(lambda x: F.pad(x, (0, 0, 2, 0)), rows), "tril": of(torch.tril, rows),
    "strided": of(lambda x: x[:, ::2].contiguous(), rows), "shift": of(lambda x: x[:, 1:] - x[:, :-1], rows), "diff0": of(lambda x: x[1:] - x[:-1], rows), "windows": of(lambda x: x.unfold(-1, 8, 4).contiguous(), rows),
    "gather": lambda k: (torch.gather, (rows(k), -1, torch.randint(0, 128, rows(k).shape))), "index_select": lambda k: (lambda x, i: x[i], (rows(k), torch.randint(0, 32, (rows(k).shape[0],)))),
    "take_columns": lambda k: (lambda x, i: x[:, i], (rows(k), torch.randint(0, 128, (64,)))), "embedding": of(nn.Embedding(1000, 256), ids), "embedding_bag": of(nn.EmbeddingBag(1000, 64), ids),
    "one_hot": of(lambda i: F.one_hot(i, 1000), lambda k: ids(k)[:16, :32].contiguous()), "scatter_add": lambda k: (lambda x, i, y: x.scatter_add(-1, i, y), (rows(k), torch.randint(0, 128, rows(k).shape), rows(k))),
    "index_add": lambda k: (lambda x, i, y: x.index_add(0, i, y), (rows(k), torch.randint(0, 32, (rows(k).shape[0],)), rows(k))), "index_put": lambda k: (lambda x, i, y: x.index_put((i,), y), (rows(k), torch.randperm(rows(k).shape[0]), rows(k))),
    "masked_select": of(lambda x: x[x > 0], rows), "arange": of(lambda x: x + torch.arange(x.shape[-1]), rows), "rope": lambda k: (rope, (attention(k)[0], *(torch.randn(attention(k)[0].shape[-2:]) for _ in range(2)))),
    "meshgrid": of(lambda x: torch.stack(torch.meshgrid(x[0], x[:, 0], indexing="ij")), rows), "outer": of(lambda x: torch.outer(x[0], x[0]), rows),
    # ---- products
    "linear": module(lambda c: nn.Linear(c, c)), "linear_bf16": module(lambda c: nn.Linear(c, c), low(rows)), "linear_gelu": module(lambda c: nn.Sequential(nn.Linear(c, c), nn.GELU())),
    "linear_one": module(lambda c: nn.Linear(c, c), lambda k: rows(k)[:1]), "linear_few": module(lambda c: nn.Linear(c, c), lambda k: rows(k)[:6]), "linear_narrow": module(lambda c: nn.Linear(c, 10)),
    "linear_one_bf16": module(lambda c: nn.Linear(c, c), lambda k: rows(k)[:1].bfloat16()), "matmul": two(lambda x, y: x @ y.t()), "matmul_t": two(lambda x, y: x.t() @ y), "mv": of(lambda x: x @ x[0], rows), "vm": of(lambda x: x[:, 0] @ x, rows),
    "bmm": attending(lambda q, k, v: q @ k.transpose(-1, -2)), "bmm2": attending(lambda q, k, v: (q @ k.transpose(-1, -2)) @ v), "baddbmm": attending(lambda q, k, v: torch.baddbmm(q[0] @ k[0].mT, q[0], k[0].mT)), "einsum": attending(lambda q, k, v: torch.einsum("bhqd,bhkd->bqkh", q, k)),
    "addmm": two(lambda x, y: torch.addmm(x[:, :1], x, y.t())), "dot": of(lambda x: torch.dot(x.flatten(), x.flatten()), rows), "sdpa": attending(F.scaled_dot_product_attention), "sdpa_causal": attending(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
    "sdpa_one": attending(F.scaled_dot_product_attention, queries=1), "sdpa_manual": attending(lambda q, k, v: (q @ k.mT / 8).softmax(-1) @ v), "lstm": module(lambda c: nn.LSTM(c, 64), lambda k: rows(k)[:16, None], True), "gru": module(lambda c: nn.GRU(c, 64), lambda k: rows(k)[:16, None], True),
    "mha": module(lambda c: nn.TransformerEncoderLayer(c, 4, 2 * c), lambda k: rows(min(k, 1))[:, None], True), "conv1d": module(lambda c: nn.Conv1d(c, c, 3, padding=1), lambda k: image(k).flatten(2)[:, :, :400]), "conv1d_depthwise": module(lambda c: nn.Conv1d(c, c, 4, padding=3, groups=c), lambda k: image(k).flatten(2)),
    "conv3d": module(lambda c: nn.Conv3d(c, c, 3, padding=1), lambda k: image(min(k, 1))[:, :, None].expand(-1, -1, 4, -1, -1).contiguous()), "conv_rgb": module(lambda c: nn.Conv2d(c, 32, 7, 2, 3), lambda k: image(k, 3)), "patches": module(lambda c: nn.Conv2d(c, 192, 16, 16), lambda k: torch.randn([1, 2, 8][k], 3, [32, 112, 224][k], [32, 112, 224][k])),
    "grid_sample": lambda k: (lambda x, g: F.grid_sample(x, g, align_corners=False), (image(k), torch.rand(image(k).shape[0], 24, 24, 2) * 2 - 1)),
    # ---- what is common: forward and backward
    **{f"train_{n}": backward(b, m) for n, b, m in (
        ("linear", lambda c: nn.Linear(c, c), rows), ("gelu", lambda c: nn.GELU(), rows), ("layer_norm", nn.LayerNorm, rows), ("softmax", lambda c: nn.Softmax(-1), rows), ("rms_norm", nn.RMSNorm, rows),
        ("mlp", lambda c: nn.Sequential(nn.Linear(c, c), nn.GELU(), nn.Linear(c, c)), rows), ("dropout", lambda c: nn.Dropout(0.1), rows), ("conv3", CONV["conv3"], image), ("conv1", CONV["conv1"], image), ("depthwise", CONV["depthwise"], image),
        ("batch_norm", nn.BatchNorm2d, image), ("group_norm", CONV["group_norm"], image), ("max_pool", CONV["max_pool3"], image), ("avg_pool", CONV["avg_pool"], image), ("bilinear", CONV["bilinear"], image), ("pad", CONV["pad_zero"], image),
        ("instance_norm", CONV["instance_norm"], image), ("conv_bn_relu", CONV["conv_bn_relu"], image), ("batch_norm_last", nn.BatchNorm2d, channels_last), ("batch_norm1d", nn.BatchNorm1d, rows))},
    **{n: module(b, image) for n, b in CONV.items()}, **{n + "_last": module(b, channels_last) for n, b in CONV.items()}, **{n + "_bf16": module(CONV[n], low(image)) for n in ("conv3", "conv1", "depthwise", "batch_norm", "max_pool", "group_norm")},
}


def compiler(name: str) -> Callable[[Any], Any]:
    if name == "eager":
        return lambda f: f
    if name == "torch.compile":
        return lambda f: torch.compile(f)
    import minicompile
    minicompile.config.contest = False                     # it would hide what is slower
    return minicompile.compile


def calls(made: Made, names: list[str]) -> dict[str, Callable[[], Any]]:
    function, args = made
    inner = getattr(function, "module", None)
    result = {}
    for n in names:
        made_by = compiler(n)
        result[n] = partial(made_by(function), *args) if inner is None else partial(function, made_by(inner))
    return result


def measure(run: dict[str, Callable[[], Any]], seconds: float, training: bool) -> dict[str, float]:
    """Least seconds of a call, over turns of a few milliseconds each."""
    with torch.set_grad_enabled(training):
        for call in run.values():
            for _ in range(3):
                call()
        least = dict.fromkeys(run, math.inf)
        first = next(iter(run.values()))
        start = time.perf_counter()
        first()
        inner = max(1, int(0.002 / max(time.perf_counter() - start, 1e-7)))
        end = time.perf_counter() + seconds
        turns = 0
        while time.perf_counter() < end or turns < 5:
            turns += 1
            for n, call in run.items():
                start = time.perf_counter()
                for _ in range(inner):
                    call()
                least[n] = min(least[n], (time.perf_counter() - start) / inner)
    return least


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default=".")
    p.add_argument("--sizes", default="small,medium,large")
    p.add_argument("--threads", default="1,2")
    p.add_argument("--compilers", default="eager,minicompile")
    p.add_argument("--below", type=float, default=0.97)
    p.add_argument("--seconds", type=float, default=0.15, help="of turns per measurement")
    p.add_argument("--json")
    a = p.parse_args()
    found: list[dict[str, Any]] = []
    for name in (n for n in CASES if re.search(a.only, n)):
        for size in a.sizes.split(","):
            torch.manual_seed(0)
            training = name.startswith("train_")
            try:
                run = calls(CASES[name](SIZES[size]), a.compilers.split(","))
                for threads in map(int, a.threads.split(",")):
                    torch.set_num_threads(threads)
                    least = measure(run, a.seconds, training)
                    if least["eager"] > a.below * min(least.values()) and least["eager"] < a.below * least["minicompile"]:
                        least = {n: min(least[n], again) for n, again in measure(run, 3 * a.seconds, training).items()}
                    row = {"name": name, "size": size, "threads": threads, "us": {n: round(s * 1e6, 2) for n, s in least.items()},
                           "vs_eager": {n: round(least["eager"] / s, 3) for n, s in least.items()}}
                    found.append(row)
                    ratio = row["vs_eager"]["minicompile"]
                    if ratio < a.below or a.below > 50:
                        print(f"{name:20} {size:7} {threads} threads: eager {least['eager'] * 1e6:10.1f} us, {ratio:5.2f} x eager", flush=True)
            except Exception as e:                           # shown, and the rest still runs
                print(f"{name:20} {size:7} FAILED {type(e).__name__}: {str(e)[:200]}", flush=True)
    torch.set_num_threads(1)
    ratios = [r["vs_eager"]["minicompile"] for r in found]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"{len(ratios)} measurements, geometric mean {mean:.2f} x eager, {sum(r < a.below for r in ratios)} below {a.below}")
    if a.json:
        with open(a.json, "w") as file:
            json.dump(found, file, indent=0)


if __name__ == "__main__":
    main()
