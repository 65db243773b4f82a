"""The demo's training half: a small convolutional net on scikit-learn's digits, eager and compiled.

Takes nothing but the `demo` extra's packages; uses only the public surface. Both runs begin from the same
seed and take turns, epoch by epoch; a compiled step is forward, backward and optimizer in one graph. Prints
the loss curves side by side, the final accuracy and the seconds. Run by `python -m minicompile demo`, after
`demo`.
"""
from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from torch import nn

from .. import api
from ..errors import MinicompileError

BATCH, TRAINED, WIDTH, HEIGHT = 50, 1500, 40, 10
STEPS, WITHIN = 50, 1e-4          # the first steps' losses must agree so well


def net() -> nn.Module:
    """8 x 8 grey digits -> 10 logits."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.25), nn.Linear(32 * 16, 10))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [1797, 1, 8, 8] images and int64 [1797] labels, shuffled. Raises MinicompileError without
    scikit-learn."""
    try:
        found = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError as e:
        raise MinicompileError(f"the demo needs {e.name}: pip install 'minicompile[demo]'") from e
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    return images[order], torch.tensor(found.target)[order]


@dataclass
class Run:
    """One training run and what was measured of it."""

    name: str
    compiled: bool
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = net()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.02, momentum=0.9)

        def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(self.model(images), labels)
            loss.backward()
            optimizer.step()
            return loss.detach()
        self.step: Callable[..., torch.Tensor] = api.compile(step) if self.compiled else step

    def epoch(self, images: torch.Tensor, labels: torch.Tensor, number: int) -> None:
        torch.manual_seed(number)          # the same batches and dropout masks for each run
        start, losses = time.perf_counter(), []
        for batch in torch.randperm(TRAINED).split(BATCH):
            losses.append(self.step(images[batch], labels[batch]))
        self.seconds.append(time.perf_counter() - start)
        self.losses += [x.item() for x in losses]

    def accuracy(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        self.model.eval()
        with torch.no_grad():
            right = (self.model(images).argmax(1) == labels).float().mean().item()
        self.model.train()
        return right


def curve(losses: list[float], top: float) -> str:
    """The losses as WIDTH columns of blocks, HEIGHT lines high."""
    size = max(len(losses) / WIDTH, 1)
    parts = [losses[int(i * size):max(int((i + 1) * size), int(i * size) + 1)] for i in range(WIDTH)]
    eighths = [round(8 * HEIGHT * min(sum(p) / len(p) / top, 1)) for p in parts if p]
    return "\n".join("".join(" ▁▂▃▄▅▆▇█"[min(max(n - 8 * line, 0), 8)] for n in eighths)
                     for line in reversed(range(HEIGHT)))


def run(epochs: int = 6, console: Console | None = None) -> int:
    """The demo. Gives the exit status: 0 if the first losses are the same and nothing was refused."""
    console = console or Console(highlight=False)
    images, labels = digits()
    runs = [Run("eager", False), Run("minicompile", True)]
    for number in range(epochs):
        for r in runs:
            r.epoch(images[:TRAINED], labels[:TRAINED], number)
    eager, ours = runs
    top = max(eager.losses)
    console.print(f"\nA small convolutional net on {TRAINED} handwritten digits, {epochs} epochs: the loss",
                  style="bold")
    console.print(Columns([Panel(curve(r.losses, top), title=r.name, width=WIDTH + 4) for r in runs]))
    grid = Table()
    for name, right in (("", False), *((r.name, True) for r in runs)):
        grid.add_column(name, justify="right" if right else "left")
    apart = max(abs(a - b) for a, b in zip(eager.losses[:STEPS], ours.losses[:STEPS]))
    handle = api.handle_of(ours.step)
    assert handle is not None, "compile() gives a function with a handle"
    grid.add_row("first epoch, seconds", *(f"{r.seconds[0]:.2f}" for r in runs))
    grid.add_row("seconds per epoch", *(f"{min(r.seconds[1:] or r.seconds):.3f}" for r in runs))
    grid.add_row("final loss", *(f"{sum(r.losses[-STEPS:]) / STEPS:.4f}" for r in runs))
    grid.add_row("accuracy on unseen digits",
                 *(f"{r.accuracy(images[TRAINED:], labels[TRAINED:]):.1%}" for r in runs))
    grid.add_row(f"largest difference, first {STEPS} losses", "", f"{apart:.1e}")
    grid.add_row("graphs of a step", "", str(len(handle.compilations)))
    console.print(grid)
    for refusal in handle.refusals:
        console.print(f"Refused: {refusal}", style="yellow", markup=False)
    if apart > WITHIN:
        console.print("THE LOSSES DIFFER", style="bold red")
    return int(apart > WITHIN or bool(handle.refusals))


__all__ = ["curve", "digits", "net", "run"]
