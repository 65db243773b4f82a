"""The shape of the code, enforced: imports point backwards, budgets hold, no torch internals."""
from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "minicompile"
FILES = sorted(PACKAGE.rglob("*.py"))
NATIVE = sorted([*PACKAGE.rglob("*.c"), *PACKAGE.rglob("*.h")])
SIZED = [*FILES, *NATIVE, *sorted(f for f in (ROOT / "kernels").rglob("*.*") if f.suffix in (".h", ".py"))]
CORE = [f for f in [*FILES, *NATIVE] if f.relative_to(PACKAGE).parts[0] not in ("testing", "viz")]

# Each name is a folder or a module directly under minicompile/; a file imports from its own group or from one
# further left.
ORDER = ("errors", "collector", "config", "ir", "capture", "lower", "autograd", "loops", "schedule", "runtime", "codegen",
         "debug", "pipeline", "api", "testing", "viz", "cli", "__main__")
# Tests' helpers and the explorer look at all stages; __init__ only names things lazily.
NATIVE_HOME = {"_native": "capture", "_launch": "runtime"}
ANYTHING = ("testing", "viz", "__init__")

FORBIDDEN = ("torch._dynamo", "torch._inductor", "torch._functorch", "torch._decomp", "torch._refs",
             "torch._prims", "torch._prims_common", "torch._subclasses", "torch.fx.experimental", "torch._guards", "sympy")


def group(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST, file: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything imported; `from a import b` gives a.b, as b may be a module."""
    package = ("minicompile", *file.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name, node.lineno) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{a.name}", node.lineno) for a in node.names)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def shown(file: Path, line: int = 0) -> str:
    return f"{file.relative_to(ROOT)}:{line}" if line else str(file.relative_to(ROOT))


def forward_imports(tree: ast.AST, file: Path) -> list[str]:
    home, bad = group(file), []
    for name, line in imports(tree, file):
        parts = name.split(".")
        if parts[0] != "minicompile" or len(parts) < 2:
            continue
        target = parts[1]
        target = NATIVE_HOME.get(target, target)
        if target in ("kernels", "__version__", home):
            continue
        if target not in ORDER or ORDER.index(target) > ORDER.index(home):
            bad.append(f"{shown(file, line)} imports {name}")
    return bad


def test_every_module_has_a_place_in_the_order() -> None:
    assert {group(f) for f in FILES} <= {*ORDER, *ANYTHING}


def test_imports_point_backwards() -> None:
    assert [b for f in FILES if group(f) not in ANYTHING for b in forward_imports(parsed(f), f)] == []


def test_a_forward_import_would_be_seen() -> None:
    file = PACKAGE / "loops" / "build.py"
    for text in ("from ..codegen import cpp", "from ..codegen.cpp import emit", "import minicompile.api",
                 "from .. import schedule"):
        assert forward_imports(ast.parse(text), file), text
    for text in ("from ..ir.spec import TensorSpec", "from .ir import Loop", "from ..errors import Where",
                 "import torch"):
        assert not forward_imports(ast.parse(text), file), text


def forbidden_imports(tree: ast.AST, file: Path) -> list[str]:
    bad = [f"{shown(file, line)} imports {name}" for name, line in imports(tree, file)
           if any(name == f or name.startswith(f + ".") for f in FORBIDDEN) or name.endswith(".make_fx")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if any(text == f or text.startswith(f + ".") for f in FORBIDDEN):
                bad.append(f"{shown(file, node.lineno)} uses {text}")
    return bad


def test_the_compiler_is_from_scratch() -> None:
    assert [b for f in FILES if group(f) != "testing" for b in forbidden_imports(parsed(f), f)] == []


def test_a_forbidden_import_would_be_seen() -> None:
    for text in ("import torch._dynamo", "from torch import _inductor", "import sympy",
                 "from torch._subclasses import FakeTensor", "x = torch._decomp.core_aten_decompositions()",
                 "from torch.fx.experimental.proxy_tensor import make_fx"):
        assert forbidden_imports(ast.parse(text), PACKAGE / "lower" / "trace.py"), text


def functions(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.lineno, (node.end_lineno or 0) - node.lineno + 1


def test_functions_are_at_most_60_lines() -> None:
    found = [(shown(f, line), name, n) for f in FILES for name, line, n in functions(parsed(f))]
    assert [f"{where} {name}: {n} lines" for where, name, n in found if n > 60] == []


def test_files_are_at_most_700_lines() -> None:
    assert [f"{shown(f)}: {n} lines" for f in SIZED if (n := len(f.read_text().splitlines())) > 700] == []


def test_lines_are_at_most_110_characters() -> None:
    assert [f"{shown(f, i)}: {len(line)} characters" for f in SIZED
            for i, line in enumerate(f.read_text().splitlines(), 1) if len(line) > 110] == []


def code_lines(file: Path) -> int:
    """Lines that hold code: no blanks, comments or docstrings. Counting explanation against a project that exists
    to be read would reward leaving it out."""
    text = file.read_text()
    if file.suffix != ".py":
        text = re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.S))
        return sum(bool(line.strip()) for line in text.splitlines())
    tree = ast.parse(text)
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    held = {line for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in skip
            for line in range(t.start[0], t.end[0] + 1)}
    return len(held - prose)


@pytest.mark.parametrize("suffixes, limit", [((".py",), 20_500), ((".c", ".h"), 4_000)])
def test_the_core_is_within_its_budget(suffixes: tuple[str, ...], limit: int) -> None:
    """Python to read, and the C of the hook, the guards and the launcher, without which a call would cost more than
    a microsecond."""
    assert sum(code_lines(f) for f in CORE if f.suffix in suffixes) <= limit


def test_code_lines_are_counted_without_prose(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text('"""Doc\nstring."""\n\n# why\nx = (1,\n     2)  # more\n\ndef f():\n    """Doc."""\n    return """a\nb"""\n')
    assert code_lines(file) == 5
    file = tmp_path / "a.c"
    file.write_text("/* why\n * more */\nint x; // there\n\n// only this\nint y;\n")
    assert code_lines(file) == 2


def swallowed(tree: ast.AST) -> list[int]:
    """Lines of handlers that catch everything and do nothing with it."""
    broad = ("Exception", "BaseException")
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) in broad):
            if all(ast.unparse(s) in ("pass", "continue", "...", "None") for s in node.body):
                lines.append(node.lineno)
    return lines


def test_no_error_is_swallowed() -> None:
    assert [shown(f, line) for f in FILES for line in swallowed(parsed(f))] == []
    assert swallowed(ast.parse("try:\n  f()\nexcept Exception:\n  pass")) == [3]


def function_imports(tree: ast.AST, source: list[str]) -> list[int]:
    """Lines of imports inside functions that no comment on the same or the line above explains."""
    lines = []
    for outer in ast.walk(tree):
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(outer):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    if not any("#" in source[i] for i in (node.lineno - 1, node.lineno - 2)):
                        lines.append(node.lineno)
    return lines


def test_imports_inside_functions_say_why() -> None:
    assert [shown(f, line) for f in FILES
            for line in function_imports(parsed(f), f.read_text().splitlines())] == []


def test_every_module_says_what_it_is() -> None:
    assert [shown(f) for f in FILES if f.read_text().strip() and not ast.get_docstring(parsed(f))] == []


MODELS = ("bert", "minilm", "resnet", "llama", "gpt2", "torchbench", "huggingface", "timm")


def test_no_model_is_named_in_the_compiler() -> None:
    skip = ("testing", "viz")
    files = [f for f in FILES if group(f) not in skip]
    assert [f"{shown(f)}: {m}" for f in files for m in MODELS if m in f.read_text().lower()] == []


@pytest.mark.parametrize("statement", ["", "minicompile.compile",
                                       "minicompile.compile(lambda x: x + 1)(torch.ones(3))"])
def test_importing_and_compiling_load_no_torch_compiler(statement: str) -> None:
    heavy = ("torch._dynamo", "torch._inductor", "torch._functorch.aot_autograd", "sympy")
    code = f"import sys, torch, minicompile\n{statement}\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_import_alone_does_not_need_torch() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport minicompile; print(minicompile.config.numerics)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "eager", done.stderr
