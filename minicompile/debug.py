"""Looking inside while compiling: topics logged to stderr, and every stage's object written to a folder.

Takes any border object of any stage; used by `pipeline`, `api` and what people look at. Stages themselves log
with `logging.getLogger("minicompile.<topic>")`, which `configure` turns on and off from
`minicompile.config.log`.
"""
from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .config import LOG_TOPICS, config

# stage -> the file its object is written to; "joint" and "split" are those of graphs that are trained through
ARTEFACTS = {"capture": "0_capture.py", "aten": "1_aten.py", "joint": "1_joint.py", "prims": "2_prims.py",
             "split": "2_split.txt", "loops": "3_loops.txt", "plan": "4_plan.txt", "source": "5_source.cpp"}
ROOT = logging.getLogger("minicompile")


class Handler(logging.StreamHandler):
    """Writes "[topic] text" to whatever sys.stderr is at that moment (tests and notebooks exchange it)."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("[%(name)s] %(message)s"))

    @property
    def stream(self) -> Any:
        return sys.stderr


def configure() -> None:
    """Brings the loggers of all topics in line with `config.log`; cheap, called once per compilation."""
    if config.log and not any(isinstance(h, Handler) for h in ROOT.handlers):
        ROOT.addHandler(Handler())
    for topic in LOG_TOPICS:
        ROOT.getChild(topic).setLevel(logging.INFO if topic in config.log else logging.WARNING)


def log(topic: str, text: str | Callable[[], str]) -> None:
    """One message on a topic of `config.LOG_TOPICS`; a function is only called if the topic is on."""
    if topic not in LOG_TOPICS:
        raise ValueError(f"{topic!r} is no log topic; they are {', '.join(LOG_TOPICS)}")
    if topic in config.log:
        configure()
        ROOT.getChild(topic).info("%s", text() if callable(text) else text)


def write_stage(folder: Path, stage: str, border: Any) -> Path:
    """Writes str(border) under `folder`, which is made if need be; gives the file's path. A Source is
    written as its text alone."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ARTEFACTS[stage]
    text = border.text if stage == "source" else str(border)
    file.write_text(text if text.endswith("\n") else text + "\n")
    return file


def write_stages(folder: Path, stages: Mapping[str, Any]) -> list[Path]:
    """write_stage for every object of `stages` that is not None."""
    return [write_stage(folder, stage, border) for stage, border in stages.items() if border is not None]


def dump_stage(name: str, stage: str, border: Any) -> None:
    """Writes one stage's object of the graph `name` under `config.dump`, if that is set."""
    if config.dump:
        file = write_stage(Path(config.dump) / safe(name), stage, border)
        log("code", f"wrote {file}")


def safe(name: str) -> str:
    """`name` as a file name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "graph"
