"""torch functions whose own C++ computes with sizes as numbers, as the ATen calls that they come to.

Takes a call of a torch function on fakes with sizes that vary, gives its result by the same ATen operators.
Who runs torch functions on fakes (`capture.record`, `lower.trace`) asks here first. Without such sizes they
run as they are.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .fake import Fake
from .geometry import flat

aten = torch.ops.aten


def of_sizes(func: Any, args: tuple, kwargs: dict) -> Callable[..., Any]:
    """`func`, or what stands for it where the arguments' sizes vary."""
    instead = INSTEAD.get(func)
    if instead is None:
        return func
    varies = any(isinstance(x, torch.SymInt) or isinstance(x, Fake) and x.varying is not None
                 for x in flat((args, tuple(kwargs.values()))))
    return instead if varies else func


def tensor(func: Any) -> Callable[..., Any]:
    """torch.tensor or torch.as_tensor of a size."""
    def run(data: Any, dtype: torch.dtype | None = None, device: Any = None, **kwargs: Any) -> Any:
        if isinstance(data, torch.SymInt) and not any(kwargs.values()):
            return torch.full((), data, dtype=dtype or torch.int64, device=device)
        return func(data, dtype=dtype, device=device, **kwargs)
    return run


SMOOTH = {"linear": 1, "bilinear": 2, "trilinear": 3, "bicubic": 2}          # mode → dimensions


def interpolate(input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
                align_corners: bool | None = None, recompute_scale_factor: bool | None = None,
                antialias: bool = False) -> Any:
    """torch.nn.functional.interpolate, by the overloads whose output size is an argument."""
    dims = input.dim() - 2
    nearest = mode in ("nearest", "nearest-exact") and 1 <= dims <= 3 and align_corners is None
    if (not nearest and SMOOTH.get(mode) != dims or antialias or (size is None) == (scale_factor is None)
            or size is not None and recompute_scale_factor):
        return F.interpolate(input, size, scale_factor, mode, align_corners, recompute_scale_factor,
                             antialias)
    scales: Sequence[float | None] = [None] * dims
    if scale_factor is not None:
        factors = list(scale_factor) if isinstance(scale_factor, (tuple, list)) else [scale_factor] * dims
        size = [scaled(n, s) for n, s in zip(input.shape[2:], factors)]
        scales = scales if recompute_scale_factor else factors
    out = list(size) if isinstance(size, (tuple, list)) else [size] * dims
    if nearest:
        prefix = "upsample_nearest" if mode == "nearest" else "_upsample_nearest_exact"
        return getattr(aten, f"{prefix}{dims}d").default(input, out, *scales)
    return getattr(aten, f"upsample_{mode}{dims}d").default(input, out, bool(align_corners), *scales)


def scaled(n: Any, factor: float) -> Any:
    """floor(n * factor) for a whole factor or its inverse; else n must be known."""
    if factor == int(factor):
        return n * int(factor)
    return n // int(1 / factor) if 1 / factor == int(1 / factor) else int(n * factor)


# ---- recurrent networks, step by step as ATen does; the length must be known ----

Step = Callable[..., tuple[Any, ...]]       # (input's part of the gates, state, the state's weights) → state


def _lstm(pre: Any, state: tuple, w: Any, b: Any = None, project: Any = None) -> tuple[Any, ...]:
    h, c = state
    i, f, g, o = (pre + F.linear(h, w, b)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if project is None else F.linear(h, project)), c


def _gru(pre: Any, state: tuple, w: Any, b: Any = None) -> tuple[Any, ...]:
    (h,), (ir, iz, new) = state, pre.chunk(3, -1)
    hr, hz, hn = F.linear(h, w, b).chunk(3, -1)
    new = (new + (ir + hr).sigmoid() * hn).tanh()
    return ((h - new) * (iz + hz).sigmoid() + new,)


def _rnn(act: Callable[[Any], Any]) -> Step:
    return lambda pre, state, w, b=None: (act(pre + F.linear(state[0], w, b)),)


def layers(func: Any, step: Step) -> Callable[..., Any]:
    """torch.lstm, gru, rnn_tanh and rnn_relu of padded sequences."""
    def run(input: Any, hx: Any, params: Any, has_biases: bool, num_layers: int, dropout: float, train: bool,
            bidirectional: bool, batch_first: bool = False) -> Any:
        if isinstance(params, bool):          # packed sequences: their lengths are data
            return func(input, hx, params, has_biases, num_layers, dropout, train, bidirectional)
        projects = len(params[0]) != 4 * params[1].shape[1] if func is torch.lstm else True
        if not projects and torch.is_grad_enabled() and any(p.requires_grad for p in params):      # oneDNN's
            return func(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
        x = input.transpose(0, 1) if batch_first else input
        states = list(zip(*hx)) if isinstance(hx, (tuple, list)) else [(h,) for h in hx]
        ways = 2 if bidirectional else 1
        each = len(params) // len(states)
        last: list[tuple[Any, ...]] = []
        for layer in range(num_layers):
            outs = []
            for way in range(ways):
                n = layer * ways + way
                w_ih, w_hh, *rest = params[n * each:(n + 1) * each]
                b_ih, b_hh, *project = rest if has_biases else (None, None, *rest)
                steps, state, out = F.linear(x, w_ih, b_ih).unbind(0), states[n], []
                for pre in reversed(steps) if way else steps:
                    state = step(pre, state, w_hh, b_hh, *project)
                    out.append(state[0])
                outs.append(torch.stack(out[::-1] if way else out))
                last.append(state)
            x = torch.cat(outs, -1) if ways > 1 else outs[0]
            if dropout and train and layer + 1 < num_layers:
                x = torch.dropout(x, dropout, train)
        return (x.transpose(0, 1) if batch_first else x, *map(torch.stack, zip(*last)))
    return run


def cell(step: Step) -> Callable[..., Any]:
    """torch.lstm_cell, gru_cell, rnn_tanh_cell and rnn_relu_cell."""
    def run(input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
        given = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        state = step(F.linear(input, w_ih, b_ih), given, w_hh, b_hh)
        return state if len(state) > 1 else state[0]
    return run


STEPS = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn(torch.tanh), "rnn_relu": _rnn(torch.relu)}
INSTEAD: dict[Any, Callable[..., Any]] = {F.interpolate: interpolate,
                                          **{f: tensor(f) for f in (torch.tensor, torch.as_tensor)}}
INSTEAD |= {getattr(torch, name): layers(getattr(torch, name), step) for name, step in STEPS.items()}
INSTEAD |= {getattr(torch, f"{name}_cell"): cell(step) for name, step in STEPS.items()}
