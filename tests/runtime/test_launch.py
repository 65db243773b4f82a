"""The native call: threads, thread counts, memory, arguments, overhead."""

from __future__ import annotations

import gc
import resource
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "codegen"))
from plans import apply, build, f32, pointwise
from test_externs import chain, expected

from minicompile.config import config


@pytest.fixture(autouse=True, scope="module")
def kernel_cache(tmp_path_factory):
    with config.patch(cache_dir=str(tmp_path_factory.mktemp("kernels"))):
        yield


def square(n: int, parallel: int = 1):
    return build(pointwise(lambda x: apply("mul", (x, x), f32), [torch.empty(n)], f32, parallel=parallel))


def test_eight_threads_at_once():
    ex = build(chain())
    wrong: list[str] = []

    def work(seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for _ in range(200):
            x, w = torch.randn(4, 5, generator=g), torch.randn(5, 6, generator=g)
            if not torch.allclose(ex(x, w)[0], expected(x, w), atol=1e-5):
                wrong.append(f"thread {seed}")

    threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_thread_count_is_read_at_every_call():
    ex, x = square(100_003), torch.randn(100_003)
    before = torch.get_num_threads()
    try:
        for n in (1, 2, 3, 1, 2):
            torch.set_num_threads(n)
            assert torch.equal(ex(x)[0], x * x)
    finally:
        torch.set_num_threads(before)


def test_one_openmp_runtime():
    square(64)(torch.randn(64))
    loaded = {
        line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line
    }
    assert len(loaded) == 1, loaded


def test_no_memory_is_lost():
    ex, chained = square(8), build(chain())
    x, a, b = torch.randn(8), torch.randn(4, 5), torch.randn(5, 6)
    counts = [sys.getrefcount(t) for t in (x, a, b)]

    def go(n: int) -> None:
        for _ in range(n):
            ex(x)
            chained(a, b)

    go(2000)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    go(100_000)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2000, f"{grown} KiB"  # 20 bytes per call would show
    assert [sys.getrefcount(t) for t in (x, a, b)] == counts


def test_wrong_arguments():
    ex = square(8)
    with pytest.raises(TypeError, match="takes 1 tensors, not 2"):
        ex(torch.randn(8), torch.randn(8))
    with pytest.raises(TypeError, match="is a int, not a tensor"):
        ex(3)


def test_parameters_and_graph_lifetime():
    ex = square(8)
    p = torch.nn.Parameter(torch.randn(8))
    (out,) = ex(p)
    del ex
    gc.collect()
    assert torch.equal(out, (p * p).detach()) and not out.requires_grad


def test_overhead_of_a_tiny_graph():
    call, x = square(8).call, torch.randn(8)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(2000):
            call(x)
        best = min(best, (time.perf_counter() - start) / 2000)
    assert best < 2e-6, f"{best * 1e6:.2f} us"
