# found as: cpp: result[0] differs by 5.96e-08; rounding explains 1.41e-14 (call 0)
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((5, 33, 2), (5, 33, 2))
GRAD = ''
BACKEND = 'cpp'
import functools
import operator


class Box:
    factor = 2

    def __init__(self, t):
        self.t, self.n, self.log = t, 0, []

    def __call__(self, x):
        self.n += 1
        return x * self.n

    @property
    def half(self):
        return self.t / 2

    def bump(self, by=1):
        self.n += by
        return self


def helper(x, *rest, k=2, **more):
    return x * k + len(rest) - len(more)


def counter():
    n = 0

    def step(x):
        nonlocal n
        n += 1
        return x + n
    return step


def tick():
    global TICKS
    TICKS += 1
    return TICKS


def numbers(n):
    for i in range(n):
        yield i * SHARED["scale"]


TICKS = 0
STEP = counter()
BOX = Box(tensor(1, (3,), torch.float32))
LAYER = torch.nn.Linear(3, 2)
SHARED = {"flag": True, "scale": 2.0, "items": [1, 2.5], "count": 0, "name": "a", "t": tensor(2, (3,), torch.float32)}
WATCHED = ["TICKS", "STEP", "BOX", "LAYER", "SHARED"]


def inputs(m, n, k):
    x0 = tensor(825, (m, n), torch.float64, 'transposed')
    return [x0]


def fn(x0):
    a1 = torch.fmod(x0, x0)
    a5 = a1 + BOX.t.sum()
    return (a5,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
