"""The report: every stage of a compiled function side by side on one self-contained page.

Takes an `Explanation`; gives HTML that needs no network. Every line of every pane carries the places in the
user's program that it comes from, so that pointing at one lights up its relatives in all the others. The page
itself (layout, colours, behaviour) is `report.html`; this module only makes its data. Reached by
`Explanation.to_html` and `python -m minicompile explain --html`.
"""
from __future__ import annotations

import ast
import dis
import json
import linecache
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from types import CodeType
from typing import TYPE_CHECKING, Any

import networkx as nx

from ..errors import Where
from ..loops.ir import Extern, Loop, Step
from ..schedule.deps import reads_of, writes_of
from ..schedule.plan import Kernel
from .profile import Timed, assembly

if TYPE_CHECKING:                                        # explanation imports this module
    from .explanation import Explanation

# stage -> (its pane's title, what it shows)
STAGES = {"python": ("Python", "what you wrote"),
          "bytecode": ("Bytecode", "what CPython would run; the interpreter follows it"),
          "capture": ("Captured graph", "the torch calls, one node each"),
          "program": ("Program around it", "fetches inputs, calls the graph, commits effects"),
          "aten": ("ATen", "functional calls of torch's operators"),
          "joint": ("Joint graph", "forward and backward in one graph"),
          "split": ("Cut in two", "what is kept for the backward, and why"),
          "prims": ("Prims", "at most 100 primitives, or a library call"),
          "loops": ("Loops", "loop nests over scalar expressions"),
          "plan": ("Kernels", "fused, tiled, placed in memory"),
          "source": ("C++", "what the C++ compiler gets"),
          "assembly": ("Assembly", "what it made of the kernels")}
RUNNABLE = ("aten", "prims")           # their text is a program


@dataclass(slots=True)
class Keys:
    """Numbers for places, so that a line's relatives are found by equality. A place counts twice: as its
    line, and as the columns in it, which is what is lit up first."""

    numbers: dict[tuple, int] = field(default_factory=dict)

    def of(self, wheres: Iterable[Where | None]) -> list[int]:
        found = {}
        for w in wheres:
            if w is not None:
                found[self._number((w.file, w.line))] = None
                if w.columns is not None:
                    found[self._number((w.file, w.line, *w.columns))] = None
        return list(found)

    def _number(self, key: tuple) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    def exact(self) -> list[int]:
        """The numbers that mean columns, not whole lines."""
        return [n for key, n in self.numbers.items() if len(key) == 4]


@dataclass(slots=True)
class Pane:
    """One stage as text: lines of (text, keys)."""

    stage: str
    lines: list[tuple[str, list[int]]] = field(default_factory=list)
    program: str = ""                                    # what is copied instead, where there is more to run

    def add(self, text: str, keys: Sequence[int] = ()) -> None:
        self.lines += [(line, list(keys)) for line in text.split("\n")]

    def data(self) -> dict[str, Any]:
        side, _, stage = self.stage.rpartition(" ")
        title, about = STAGES[stage]
        return {"stage": stage, "title": f"{title}, {side}" if side else title, "about": about,
                "lines": self.lines, "program": self.program}


def to_html(explanation: Explanation, title: str) -> str:
    """The page. Its data lies in it as JSON, with "<" escaped so that no text can end the script."""
    page = (files(__package__) / "report.html").read_text()
    data = json.dumps(page_data(explanation, title), separators=(",", ":")).replace("<", "\\u003c")
    return page.replace("__TITLE__", _escaped(title)).replace("__DATA__", data)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def page_data(explanation: Explanation, title: str) -> dict[str, Any]:
    """What the page shows, as plain lists, texts and numbers."""
    keys, timed = Keys(), {(t.graph, t.name): t for t in explanation.timed}
    return {"title": title,
            "summary": explanation.summary(),
            "seconds": {k: round(v, 4) for k, v in explanation.seconds.items()},
            "breaks": [b.describe() for b in explanation.break_reasons],
            "kernels": [[k.name, k.kind, k.does, "x".join(map(str, k.space)) or "1", k.passes,
                         "vector" if k.vector else "", "threads" if k.parallel else "",
                         round(k.nanoseconds / 1000, 1), *_measured(timed.get((k.graph, k.name))),
                         keys.of([k.where])] for k in explanation.kernels],
            "errors": [[e.name, f"{e.absolute:.1e}", f"{e.relative:.1e}", keys.of([e.where])]
                       for nodes in explanation.errors for e in sorted(nodes, key=lambda e: -e.relative)],
            "notFused": [[r.a, r.b, r.reason, r.bytes]
                         for r in sorted(explanation.not_fused, key=lambda r: -r.bytes)],
            "saved": [str(v) for v in explanation.saved],
            "graphs": [_graph(stages, guards, keys)
                       for stages, guards in zip(explanation.stages, explanation.guards)],
            "exact": keys.exact()}


def _measured(t: Timed | None) -> list[Any]:
    """Cells of a step's measured time: microseconds, bytes, how near the memory roof it is."""
    if t is None or t.seconds is None or t.roof is None:
        return ["", "", ""]
    return [round(t.seconds * 1e6, 1), t.bytes, f"{t.roof:.0%}"]


def _graph(stages: Any, guards: Sequence[Any], keys: Keys) -> dict[str, Any]:
    capture = stages["capture"]
    wheres = [w for w in getattr(capture, "where", {}).values() if w is not None]
    panes = [_python(wheres, keys), _bytecode(wheres, keys)]
    for stage, border in stages.items():
        side = stage.rpartition(" ")[0]
        panes.append(Pane(stage))
        kind, of = stage.rpartition(" ")[2], partial(places, _origins(stages, side))
        MAKERS[kind](panes[-1], border, keys, of)
        if kind in RUNNABLE:
            panes[-1].program = str(border)
        if kind == "source":
            panes.append(Pane(f"{side} assembly".strip()))
            _assembly(panes[-1], border, keys, of)
        if stage == "capture":
            panes.append(Pane("program"))
            panes[-1].add(capture.program.text.strip())
    drawings = [_drawing(stages[s], keys, partial(places, _origins(stages, s.rpartition(" ")[0])))
                for s in ("plan", "backward plan") if s in stages]
    return {"name": getattr(capture, "name", "graph"), "panes": [p.data() for p in panes if p.lines],
            "guards": [[str(g), keys.of([getattr(g, "where", None)])] for g in guards], "drawings": drawings}


Origins = dict[str, list[Where | None]]
Places = Callable[[Any], list[Where | None]]


def _origins(stages: Any, side: str) -> Origins:
    """A loop's name -> the places of the prims it computes: its own, and those between it and its loads."""
    prims, loops = (stages.get(f"{side} {s}".strip()) for s in ("prims", "loops"))
    if prims is None or loops is None:
        return {}
    realised = {s.name for s in loops.steps}
    absorbed: Origins = {}
    for n in prims.graph.nodes:
        above = [a for a in n.operands if a.name not in realised]
        taken_in = (w for a in above for w in absorbed.get(a.name, ()))
        absorbed[n.name] = list(dict.fromkeys([n.where, *taken_in]))
    return absorbed


def places(origins: Origins, step: Any) -> list[Where | None]:
    """Where a loop, a library call or a kernel comes from."""
    if isinstance(step, Kernel):
        return list(dict.fromkeys(w for loop in step.loops for w in places(origins, loop)))
    return origins.get(step.name, [step.where])


# One maker per stage: fills a pane with the object's text, line by line, with keys.


def _python(wheres: Sequence[Where], keys: Keys) -> Pane:
    """The functions the graph comes from, outermost file first, with line numbers."""
    pane = Pane("python")
    for file, (start, end) in _functions(wheres):
        pane.add(f"# {file}:{start}")
        for number in range(start, end + 1):
            here = [w for w in wheres if (w.file, w.line) == (file, number)]
            pane.add(f"{number:5}  {linecache.getline(file, number).rstrip()}", keys.of(here))
        pane.add("")
    return pane


def _functions(wheres: Sequence[Where]) -> Iterator[tuple[str, tuple[int, int]]]:
    """(file, (first line, last line)) of the innermost functions that hold the places."""
    spans: dict[str, list[tuple[int, int]]] = {}
    found: dict[tuple[str, tuple[int, int]], None] = {}
    for w in wheres:
        if w.file not in spans:
            text = "".join(linecache.getlines(w.file))
            spans[w.file] = [(n.lineno, n.end_lineno or n.lineno) for n in ast.walk(ast.parse(text))
                             if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
        around = [s for s in spans[w.file] if s[0] <= w.line <= s[1]]
        found[w.file, max(around, default=(w.line, w.line))] = None
    yield from found


def _bytecode(wheres: Sequence[Where], keys: Keys) -> Pane:
    pane = Pane("bytecode")
    for file in dict.fromkeys(w.file for w in wheres):
        text = "".join(linecache.getlines(file))
        lines = {w.line for w in wheres if w.file == file}
        for code in _codes(compile(text, file, "exec", dont_inherit=True)) if text else ():
            if lines & {line for _, _, line in code.co_lines() if line} and code.co_name != "<module>":
                pane.add(f"# {code.co_qualname}")
                for i in dis.get_instructions(code):
                    at = i.positions
                    columns = (at.col_offset, at.end_col_offset) if at and at.end_col_offset else None
                    where = Where(file, at.lineno, "", columns) if at and at.lineno in lines else None
                    pane.add(f"{i.offset:5}  {i.opname:<24} {i.argrepr}", keys.of([where]))
                pane.add("")
    return pane


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for c in code.co_consts:
        if isinstance(c, CodeType):
            yield from _codes(c)


def _capture(pane: Pane, capture: Any, keys: Keys, of: Places) -> None:
    """The graph's code has a line per node that computes something; the line's first name is the node's."""
    wheres = {n.name: w for n, w in getattr(capture, "where", {}).items()}
    for line in capture.gm.code.strip().split("\n"):
        name = re.match(r"\s*(\w+)\s*=", line)
        pane.add(line, keys.of([wheres.get(name[1])] if name else []))


def _nodes(pane: Pane, border: Any, keys: Keys, of: Places) -> None:
    graph = getattr(border, "aten", border).graph
    pane.add(f"graph({', '.join(n.name for n in graph.inputs)})")
    for n in graph.inputs:
        pane.add(f"    # {n.name}: {n.spec}")
    for n in graph.nodes:
        pane.add("    " + str(n).split("  | ")[0], keys.of([n.where]))
    for i, n in graph.writes:
        pane.add(f"    write({graph.inputs[i].name}, {n.name})", keys.of([n.where]))
    pane.add(f"    return {', '.join(o.node.name for o in graph.outputs)}")


def _split(pane: Pane, split: Any, keys: Keys, of: Places) -> None:
    wheres = {n.name: n.where for g in (split.forward, split.backward) for n in (*g.inputs, *g.nodes)}
    for line in str(split).split("\n"):
        name = re.match(r"\s*(\w+)\b", line)
        pane.add(line, keys.of([wheres.get(name[1])] if name else []))


def _loops(pane: Pane, loops: Any, keys: Keys, of: Places) -> None:
    pane.add(f"loops({', '.join(loops.inputs)})")
    for b in loops.buffers.values():
        note = f"  ({loops.notes[b.name]})" if b.name in loops.notes else ""
        pane.add(f"    {b.kind} {b.name}: {b.spec}{note}")
    for s in loops.steps:
        pane.add("    " + str(s).split("  # ")[0], keys.of(of(s)))


def _plan(pane: Pane, plan: Any, keys: Keys, of: Places) -> None:
    for s in plan.steps:
        loops = {loop.out.buffer: loop for loop in s.loops} if isinstance(s, Kernel) else {}
        head, *lines = re.sub(r"  # .*", "", str(s)).split("\n")
        pane.add(head, keys.of(of(s)))
        for line in lines:
            stored = re.match(r"\s*(\w+)\[", line)
            pane.add(line, keys.of(of(loops[stored[1]])) if stored and stored[1] in loops else [])
        pane.add("")


def _source(pane: Pane, source: Any, keys: Keys, of: Places) -> None:
    _functions_of(pane, source, source.text, r"MC_EXPORT void (\w+)\(", "}", keys, of)


def _assembly(pane: Pane, source: Any, keys: Keys, of: Places) -> None:
    text = assembly(source)
    if text:
        _functions_of(pane, source, text, r"(\w+):$", "", keys, of)


def _functions_of(pane: Pane, source: Any, text: str, begins: str, ends: str, keys: Keys, of: Places) -> None:
    """A function's lines belong to the kernels that call it."""
    callers: dict[str, list[Where | None]] = {}
    for step, call in zip(source.plan.steps, source.calls):
        if call is not None:
            callers.setdefault(call.function, []).extend(of(step))
    here: list[int] = []
    for line in text.split("\n"):
        started = re.match(begins, line)
        if started:
            here = keys.of(callers.get(started[1], []))
        pane.add(line, here)
        if line == ends:
            here = []


MAKERS: dict[str, Callable[[Pane, Any, Keys, Places], None]] = {
    "capture": _capture, "aten": _nodes, "joint": _nodes, "split": _split, "prims": _nodes, "loops": _loops,
    "plan": _plan, "source": _source}


def _drawing(plan: Any, keys: Keys, of: Places) -> dict[str, Any]:
    """The plan as boxes, one per step, in layers: a box lies below all it reads from. Edges carry buffers'
    names and bytes."""
    graph = nx.DiGraph()
    made: dict[str, int] = {}
    edges: dict[tuple[int, int], list[str]] = {}
    for i, step in enumerate(plan.steps):
        graph.add_node(i)
        parts = _parts(step)
        for name in dict.fromkeys(name for part in parts for name in reads_of(part)):
            if name in made and made[name] != i:
                edges.setdefault((made[name], i), []).append(name)
        made.update((name, i) for part in parts for name in writes_of(part))
    graph.add_edges_from(edges)
    boxes = [{"title": s.name, "lines": _inside(s), "kernel": isinstance(s, Kernel), "keys": keys.of(of(s))}
             for s in plan.steps]
    return {"boxes": boxes, "layers": _layers(graph),
            "edges": [[a, b, ", ".join(names), sum(plan.buffers[n].spec.nbytes for n in names)]
                      for (a, b), names in edges.items()]}


def _layers(graph: nx.DiGraph) -> list[list[int]]:
    """Topological generations, each ordered by the mean position of what its boxes read (the barycentre
    heuristic of Sugiyama, Tagawa and Toda, 1981)."""
    place: dict[int, float] = {}
    layers = []
    for layer in nx.topological_generations(graph):
        def centre(n: int) -> float:
            above = [place[p] for p in graph.predecessors(n)]
            return sum(above) / len(above) if above else 0.0

        ordered = sorted(layer, key=lambda n: (centre(n), n))
        place.update({n: (j + 0.5) / len(ordered) for j, n in enumerate(ordered)})
        layers.append(ordered)
    return layers


def _parts(step: Any) -> list[Step]:
    """The loops and the library call that a step of a plan is made of."""
    if isinstance(step, Extern):
        return [step]
    return [*([step.core] if step.core is not None else []), *step.loops]


def _inside(step: Any) -> list[str]:
    if isinstance(step, Extern):
        return [str(step.op).removeprefix("aten.")]
    core = [str(step.core.op).removeprefix("aten.")] if step.core is not None else []
    return core + [_loop_text(loop) for loop in step.loops]


def _loop_text(loop: Loop) -> str:
    what = loop.name.rsplit("_", 1)[0]
    return f"{loop.out.buffer} = {loop.combine + ' of ' if loop.combine else ''}{what}"
