"""A graph break may stand at any statement of any program: the programs of tests/lang, with `graph_break()` put
in at random places, do what CPython does."""

import ast
import inspect
import os
import sys
import textwrap

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minicompile.capture.compiled import Compiled, graph_break

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "lang"))
import programs
from runner import outcome

# What a program shows of its own frames and source differs where statements are put in.
UNFIT = {"locals_builtin", "exc_info_builtin", "class_body"}


class Insert(ast.NodeTransformer):
    """Puts graph_break() in front of the statements whose numbers are in `places`."""

    def __init__(self, places):
        self.places, self.count = places, 0

    def body(self, statements):
        out = []
        for s in statements:
            self.count += 1
            if self.count in self.places and not isinstance(s, (ast.Global, ast.Nonlocal)):
                out.append(ast.parse("graph_break()").body[0])
            out.append(self.visit(s))
        return out

    def generic_visit(self, node):
        if isinstance(node, ast.ClassDef):              # its body may look at its own names
            return node
        for name, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                setattr(node, name, self.body(value))
            elif isinstance(value, list):
                setattr(node, name, [self.visit(v) if isinstance(v, ast.AST) else v for v in value])
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node


def with_breaks(f, places):
    tree = ast.parse(textwrap.dedent(inspect.getsource(f)))
    tree.body[0].decorator_list = []
    tree = ast.fix_missing_locations(Insert(places).visit(tree))
    scope = dict(vars(programs), graph_break=graph_break)
    exec(compile(tree, f"<{f.__name__}>", "exec"), scope)
    return scope[f.__name__]


FIT = [f for f in programs.PROGRAMS if f.__name__ not in UNFIT and outcome(f) == outcome(f)]


@settings(max_examples=int(os.environ.get("BREAK_EXAMPLES", 150)), deadline=None, derandomize=True,
          suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FIT), st.sets(st.integers(1, 12), min_size=1, max_size=4))
def test_breaks_at_random_statements(f, places):
    expected = outcome(with_breaks(f, places))
    c = Compiled(with_breaks(f, places), lambda capture, examples: capture.gm)
    assert outcome(c) == expected
    assert outcome(c) == expected
