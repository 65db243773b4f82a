"""Ctrl-C at every boundary between stages, and at random moments: one KeyboardInterrupt, nothing left behind, and the next
call is compiled and right (F14)."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import environment, run

# what a compile may leave changed in the process, if it is cut short
STATE = """
import gc, random
from minicompile import pipeline
from minicompile.capture import compiled as calls
from minicompile.codegen import driver
from minicompile.runtime import cache, toolchain, library
def state():
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch._C._len_torch_function_stack(),
            torch._C._len_torch_dispatch_stack(), torch.compiler.is_compiling(), gc.isenabled(), torch.get_default_dtype(),
            torch._C._autograd._saved_tensors_hooks_set_tracing(False), sys.gettrace(), len(toolchain._running))
def fresh(i):
    def f(x, w): return torch.softmax(x.sin() + i, -1) @ w * 2, x.relu().sum(0)
    return f
w = torch.linspace(-1, 1, 300).reshape(100, 3)
def good(g, f):
    got, want = list(g(x, w)), list(f(x, w))
    if w.requires_grad:
        for r in (got, want): r.append(torch.autograd.grad(r[0].sum(), w)[0])
    return all(torch.allclose(a, b, 1e-3, 1e-3) for a, b in zip(got, want))
before = state()
"""


def test_at_each_boundary(tmp_path: Path) -> None:
    out, err = run(STATE + """
POINTS = [(pipeline.Compilation, "put"), (calls, "capture"), (calls, "lower_guards"), (cache, "_publish"),
          (cache, "_locked"), (toolchain, "_run"), (library.GraphLibrary, "__init__"), (driver, "_graph")]
done = 0
for trains, (owner, name) in [(True, p) for p in POINTS[:3]] + [(False, p) for p in POINTS]:
    real = getattr(owner, name)
    w.requires_grad_(trains)
    for nth in range(1, 20):
        count, f = 0, fresh(done)
        def point(*a, **k):
            global count
            count += 1
            if count == nth: signal.raise_signal(signal.SIGINT)
            return real(*a, **k)
        setattr(owner, name, point)
        g = minicompile.compile(f, backend="reference" if trains else "cpp")
        try: g(x, w)
        except KeyboardInterrupt: raised = True
        else: raised = False
        setattr(owner, name, real)
        assert raised == (count >= nth), (name, nth, count)
        if not raised: break
        done += 1
        assert state() == before, (name, nth, state(), before)
        assert not list(cache.folder().glob("*.lock")), (name, nth)
        assert good(g, f) and ("loops" in runs(g)) == trains, (name, nth)
print(done >= 15, done)
""", environment(tmp_path, CXX=quick(tmp_path), MINICOMPILE_ISA="scalar"), seconds=300)
    assert out.startswith("True"), out + err
    assert not list((tmp_path / "temporary").iterdir()) and "Traceback" not in err


def quick(folder: Path) -> str:
    path = folder / "quick"
    path.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("seed", [0, 1])
def test_at_random_moments(seed: int, tmp_path: Path) -> None:
    """An interrupt that comes while Python runs a destructor is lost, by Python's rules; the state must be right anyway."""
    out, err = run(STATE + f"""
import faulthandler; faulthandler.enable()
random.seed({seed})
good(minicompile.compile(fresh(-1)), fresh(-1))
begin = time.perf_counter(); good(minicompile.compile(fresh(-2)), fresh(-2)); whole = time.perf_counter() - begin
signal.signal(signal.SIGALRM, signal.default_int_handler)
caught, wrong = 0, []
for i in range(25):
    f = fresh(i % 3)
    g = minicompile.compile(f)
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.6 * whole))
    try:
        g(x, w)
    except KeyboardInterrupt: caught += 1
    try: signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt: pass
    if state() != before or not good(g, f): wrong.append((i, state()))
print(wrong, caught > 0, caught)
""", environment(tmp_path, CXX=quick(tmp_path), MINICOMPILE_ISA="scalar"), seconds=300)
    assert out.startswith("[] True"), out + err
    assert not list((tmp_path / "temporary").iterdir())
