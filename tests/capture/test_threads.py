"""First calls from many threads at once: one of them compiles, the others wait for it."""

import threading

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
    c = compiled(lambda x, k: torch.sin(x) * k)
    results = together(32, lambda i: c(torch.ones(3), i % 4))
    for i, r in enumerate(results):
        torch.testing.assert_close(r, torch.sin(torch.ones(3)) * (i % 4))
    assert captures(c) == 4 and len(c.entries) == 4


def test_refused_calls_do_not_wait_for_each_other():
    """A refused function runs outside the lock: here each call needs all others to be inside it."""
    inside = threading.Barrier(8, timeout=20)

    def f(x):
        inside.wait()
        return x + 1

    c = compiled(f)
    for r in together(8, lambda i: c(torch.full((2,), float(i)))):
        assert isinstance(r, torch.Tensor), r
    assert captures(c) == 0 and len(c.entries) == 1
