"""C++ kernels over sizes: one compile, many sizes, values against the meaning of the graph; sizes that change
from call to call, tails, threads, library calls, views that are returned."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import pytest
import torch
from size_graphs import S0, S1, Sized, expected, random_sized
from test_loops import NUMBERS, assignments
from test_plans import close, softmax

from minicompile.codegen import cpp, driver
from minicompile.codegen.driver import core_types
from minicompile.ir.sym import Size, asking
from minicompile.loops.build import build_loops
from minicompile.runtime.toolchain import detect_isa
from minicompile.schedule.fuse import schedule

L0, L1 = Size("s0", 40), Size("s1", 300)      # as long as to be worth scratch, tiles and threads
LENGTHS = (2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 257, 1031)


def compiled(graph, cores=True, isa=None):
    with asking() as conditions:
        plan = schedule(build_loops(graph), core_types(detect_isa()) if cores else ())
        source = cpp.emit(plan, isa)
        source.check()
        return driver.load(source), conditions


def check(call, graph, sizes, seed=0):
    inputs, want, after = expected(graph, sizes, seed)
    close(list(call(*inputs)), want)
    close(inputs, after)


@pytest.mark.parametrize("seed", range(24))
def test_random_graphs(seed):
    a, b = (S0, S1) if seed % 2 else (L0, L1)
    graph, made = random_sized(seed, 18, a, b)
    call, conditions = compiled(graph)
    numbers = NUMBERS + [(a.hint, b.hint), (b.hint + 1, a.hint), (2, 64)]
    for sizes in assignments([*made, *conditions], a, b, numbers):
        check(call, graph, sizes, seed)


def rowwise():
    m = Sized()
    x, w = m.input(S0, S1), m.input(S1)
    y = softmax(m, m.mul(x, m.expand(m.reshape(w, (1, S1)), (S0, S1))), (S0, S1))
    return m.output(y, m.sum(y, (0,)), m.amax(x, (0, 1)), m.scan_sum(x, 1)).graph()


@pytest.mark.parametrize("isa", [None, "scalar"])
def test_rows_and_columns_of_every_length(isa):
    graph = rowwise()
    call, conditions = compiled(graph, isa=isa)
    assert not conditions
    for n in LENGTHS:
        check(call, graph, {S0: 5, S1: n}, n)
        check(call, graph, {S0: n, S1: 6}, n)


def test_a_last_axis_that_no_threads_share():
    m = Sized()
    x, w = m.input(128, 3, L0), m.input(3)
    y = m.mul(x, m.expand(m.reshape(w, (1, 3, 1)), (128, 3, L0)))
    graph = m.output(y).graph()
    call, _ = compiled(graph)
    for n in LENGTHS:
        check(call, graph, {L0: n}, n)


def test_long_rows_leave_the_stack():
    """Scratch for a row of a size: on the stack while it fits there."""
    m = Sized()
    x = m.input(L0, L1)
    graph = m.output(softmax(m, m.exp(m.sin(x)), (L0, L1))).graph()
    call, _ = compiled(graph)
    assert "Rows<" in str(call.source)
    for n in (16, 16_384, 16_385, 200_001):
        check(call, graph, {L0: 2, L1: n})


def test_long_sums_stay_exact():
    """The hint is short; a long row must still go through totals."""
    m = Sized()
    x = m.input(S0, S1)
    call, _ = compiled(m.output(m.sum(x, (1,))).graph())
    x = torch.rand(2, 3_000_001) + 1
    assert torch.allclose(call(x)[0].double(), x.double().sum(1), rtol=2e-6)


def test_transposes_by_tiles():
    m = Sized()
    x = m.input(L0, L1)
    graph = m.output(m.add(m.permute(x, (1, 0)), 1.0)).graph()
    call, _ = compiled(graph)
    assert call.source.plan.steps[0].tiling.transpose
    for n in (2, 7, 8, 9, 63, 64, 130):
        for k in (2, 8, 17, 96):
            check(call, graph, {L0: n, L1: k})


def test_products_with_an_epilogue():
    m = Sized()
    x, w, bias = m.input(S0, S1), m.input(S1, 24), m.input(24)
    y = m.add(m.mm(x, w), m.expand(m.reshape(bias, (1, 24)), (S0, 24)))
    graph = m.output(m.mm(m.maximum(y, 0.0), m.permute(m.neg(w), (1, 0), stride=(1, 24)))).graph()
    for cores in (True, False):
        call, conditions = compiled(graph, cores)
        assert not conditions
        for n in LENGTHS[:-1]:
            check(call, graph, {S0: n, S1: 13}, n)
            check(call, graph, {S0: 3, S1: n}, n)


def test_sizes_may_change_at_every_call_and_back():
    """Arena, views of it and results are made anew; what an earlier call returned stays as it was."""
    m = Sized()
    x, w = m.input(S0, 16), m.input(16, 16)
    y = m.mm(m.tanh(m.mm(m.tanh(m.mm(x, w)), w)), w)
    graph = m.output(y, m.sum(y, (0,))).graph()
    call, _ = compiled(graph, cores=False)
    kept = []
    for n in (4, 500, 4, 5, 5, 2000, 3, 500, 4):
        inputs, want, _ = expected(graph, {S0: n}, n)
        kept.append((call(*inputs), want))
    for got, want in kept:
        close(list(got), want)


def test_concurrent_calls_of_different_sizes():
    m = Sized()
    x, w = m.input(S0, 16), m.input(16, 16)
    graph = m.output(m.mm(m.tanh(m.mm(x, w)), w)).graph()
    call, _ = compiled(graph, cores=False)
    wrong = []

    def work(n):
        inputs, want, _ = expected(graph, {S0: n}, n)
        for _ in range(200):
            if not torch.allclose(call(*inputs)[0], want[0], atol=1e-5):
                wrong.append(n)
    threads = [threading.Thread(target=work, args=(n,)) for n in (3, 40, 41, 300)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_threads_are_decided_when_the_sizes_are_known():
    m = Sized()
    x = m.input(S0, S1)
    call, _ = compiled(m.output(m.tanh(m.mul(x, m.tanh(m.sin(x))))).graph())
    assert re.search(r"}, .*n_s0 \* n_s1.* >= \d+\);", str(call.source))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for a, b in ((2, 3), (700, 333), (2, 300_001)):
                x = torch.randn(a, b)
                torch.testing.assert_close(call(x)[0], torch.tanh(x * torch.tanh(x.sin())))
    finally:
        torch.set_num_threads(before)


def test_library_calls_take_sizes():
    """As numbers in a list, through the dispatcher and from Python."""
    from minicompile.ir.spec import TensorSpec
    m = Sized()
    x = m.input(S0, S1)
    y = m.library(torch.ops.aten.repeat_interleave.self_int, TensorSpec.contiguous(torch.float32, (S0 * S1,)),
                  m.reshape(m.neg(x), (S0 * S1,)), 1, output_size=S0 * S1)
    z = m.library(torch.ops.aten.new_full.default, TensorSpec.contiguous(torch.float32, (S1, S0)), x, (S1, S0), S0)
    graph = m.output(m.add(y, 1.0), m.add(z, 0.5)).graph()
    call, _ = compiled(graph)
    for n in (2, 5, 64):
        x = torch.randn(n, 3)
        got = call(x)
        assert got[0].equal(1 - x.reshape(-1)) and got[1].equal(torch.full((3, n), n + 0.5))


def test_results_that_are_views_have_the_geometry_of_the_call():
    from minicompile.ir.graph import Graph, Output
    m = Sized()
    x = m.input(S0, S1)
    y = m.neg(x)
    base = y.tensor
    view = base.with_(shape=(S1, S0 - 1), stride=(1, S1), offset=S1)
    t = m.permute(m.slice(y, 0, 1, S0, 1), (1, 0))
    graph = Graph(tuple(m.inputs), tuple(m.nodes), (Output(y, base), Output(t, view, ("output", 0))))
    call, _ = compiled(graph)
    for n in (2, 9):
        x = torch.randn(n, 4)
        a, b = call(x)
        assert b.equal(a[1:].t()) and b.data_ptr() == a.data_ptr() + 16 and b._base is a


def test_sizes_as_inputs():
    m = Sized()
    x = m.input(S0 * S1)
    m.size(S0)
    m.size(S1)
    call, _ = compiled(m.output(m.sum(m.reshape(m.neg(x), (S0, S1)), (1,))).graph())
    x = torch.arange(12.0)
    assert call(x, 3, 4)[0].equal(-x.reshape(3, 4).sum(1)) and call(x, 2, 6)[0].equal(-x.reshape(2, 6).sum(1))
    with pytest.raises(TypeError):
        call(3, 3, 4)
    with pytest.raises(TypeError):
        call(x, x, 4)


def test_index_errors_tell_of_the_size():
    m = Sized()
    x, i = m.input(S0, 4), m.input(S1, dtype=torch.int64)
    rows = m.expand(m.reshape(i, (S1, 1)), (S1, 4))
    columns = m.expand(m.reshape(m.iota(4, 0, 1, torch.int64), (1, 4)), (S1, 4))
    call, _ = compiled(m.output(m.gather(x, (rows, columns), True)).graph())
    for n in (3, 50):
        x = torch.randn(n, 4)
        i = torch.tensor([0, n - 1, 1])
        assert call(x, i)[0].equal(x[i])
        with pytest.raises(IndexError):
            call(x, torch.tensor([0, n, 1]))


def test_layers_share_a_kernel():
    m = Sized()
    x = m.input(S0, 16)
    for _ in range(4):
        x = softmax(m, m.mm(x, m.input(16, 16)), (S0, 16))
    call, _ = compiled(m.output(x).graph(), cores=False)
    assert len(call.source.kernels) <= 2


def test_sizes_of_what_no_kernel_reads_have_room() -> None:
    """The numbers computed from sizes are counted, also those that only an unused input's strides need."""
    script = ("import torch, minicompile\n"
              "f = minicompile.compile(lambda x, y: (x + 6.0, y.mul(2) is None), dynamic=True)\n"
              "for n in (5, 3, 7, 65):\n"
              "    x, y = torch.rand(n, 33), torch.rand(4, 33, n).permute(2, 1, 0)\n"
              "    assert torch.equal(f(x, y)[0], x + 6.0)\n")
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONMALLOC": "debug"},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
