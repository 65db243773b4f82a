# found as: plan: BOX.t is Tensor, not  (call 2)
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((3, 2, 2), (3, 2, 2))
GRAD = ''
BACKEND = 'reference'
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
    x0 = tensor(806, (2,), torch.float64, 'contiguous')
    x1 = tensor(239, (n, 4), torch.float32, 'contiguous')
    x2 = tensor(569, (n,), torch.bfloat16, 'contiguous')
    return [x0, x1, x2]


def fn(x0, x1, x2):
    SHARED['scale'] += 0.5
    a6 = BOX.t = x2
    xs = [a6, a6]
    a7 = xs[1]
    return (a7,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
