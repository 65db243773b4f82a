"""First calls from many threads at once: one of them compiles, the others wait for it."""

import threading
import time

import torch

from .common import compiled


def together(count, call):
    """call(i) in `count` threads that start at once; what they gave, exceptions included."""
    results, barrier = [None] * count, threading.Barrier(count)

    def run(i):
        barrier.wait()
        try:
            results[i] = call(i)
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return results


def captures(c):
    return sum(kind == "capture" for kind, _ in c.events)


def test_concurrent_first_calls_compile_once():
    c = compiled(lambda x, k: torch.sin(x) * k)
    results = together(32, lambda i: c(torch.full((3,), float(i)), 2))
    for i, r in enumerate(results):
        torch.testing.assert_close(r, torch.sin(torch.full((3,), float(i))) * 2)
    assert captures(c) == 1 and len(c.entries) == 1


def test_concurrent_calls_of_different_kinds_compile_one_variant_each():
    """One for the first length, one for all others."""
    c = compiled(lambda x, k: torch.sin(x) * k)
    results = together(32, lambda i: c(torch.ones(3 + i % 4), 2))
    for i, r in enumerate(results):
        torch.testing.assert_close(r, torch.sin(torch.ones(3 + i % 4)) * 2)
    assert captures(c) == 2 and len(c.entries) == 2


def test_refused_calls_do_not_wait_for_each_other():
    """What is refused runs outside the lock: here each call needs all others to be inside it."""
    inside = threading.Barrier(8, timeout=20)

    def f(x):
        inside.wait()
        return x + 1

    c = compiled(f)
    for r in together(8, lambda i: c(torch.full((2,), float(i)))):
        assert isinstance(r, torch.Tensor), r
    assert len(c.entries) == 1


def test_numbers_that_differ_between_threads():
    c = compiled(lambda x, k: torch.sin(x) * k)
    results = together(32, lambda i: c(torch.ones(3), i / 4))
    for i, r in enumerate(results):
        torch.testing.assert_close(r, torch.sin(torch.ones(3)) * (i / 4))
    assert len(c.entries) == 2


def test_modules_called_by_threads_at_once():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    c = compiled(lambda x: net(x).softmax(-1))
    given = [torch.randn(2 + i % 3, 4) for i in range(32)]
    for x, r in zip(given, together(32, lambda i: [c(given[i]) for _ in range(5)])):
        for got in r:
            torch.testing.assert_close(got, net(x).softmax(-1))


def work(n):
    """Python calls of many kinds: what a hook on every frame would slow down or capture."""
    class Box:
        def __init__(self, v):
            self.v = v

        def __lt__(self, other):
            return self.v < other.v

    return sum(b.v for b in sorted(Box(i * 7 % 11) for i in range(n)))


def test_other_threads_run_as_before():
    """While one thread captures, another's results stay right, and it is offered no frame of its own."""
    stop, results = threading.Event(), []

    def other():
        while not stop.is_set():
            results.append(work(50))

    thread = threading.Thread(target=other)
    thread.start()
    try:
        for i in range(10):
            c = compiled(lambda x: sum(sorted([float(v) for v in range(20)], key=lambda v: -v)) * x)
            torch.testing.assert_close(c(torch.ones(2 + i)), torch.full((2 + i,), 190.0))
    finally:
        stop.set()
        thread.join()
    assert results and set(results) == {work(50)}


def test_python_is_not_slowed_by_what_was_compiled():
    def seconds():
        start = time.perf_counter()
        for _ in range(300):
            work(50)
        return time.perf_counter() - start

    seconds()
    before = min(seconds() for _ in range(5))
    c = compiled(lambda x: x * 2)
    c(torch.ones(3))
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.extend(seconds() for _ in range(5)))
    thread.start()
    thread.join()
    assert min(min(found), min(seconds() for _ in range(5))) < 1.5 * before
