# found as: cpp:  internal error: IndexError: index 0 is out of bounds for dimension 1 with size 0 (call 0)
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((33, 33, 3), (0, 33, 3))
GRAD = 'computed'
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
    x0 = tensor(887, (m, n), torch.float64, 'contiguous')
    x1 = tensor(632, (), torch.int64, 'offset')
    return [x0, x1]


def fn(x0, x1):
    x0[..., 0] += x0[..., -1]
    try:
        a2 = x1 / SHARED['absent']
    except KeyError as e:
        a2 = x1 + len(e.args)
    a3 = sum(x for x in SHARED['items'] if isinstance(x, (int, float))) * x1
    a4 = F.adaptive_avg_pool2d(x0[None, None, ...], 2)
    a5 = x1 * (2 if LAYER.training else 3)
    return (a4,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
