# cpp: gradient of leaf 0 is None, not tensor([], size=(4, 0), dtype=torch.bfloat16) (call 0)
# aten is the first that differs: gradient of leaf 0 is None, not tensor([], size=(4, 0), dtype=torch.bfloat16) (call 0); right: capture
# seed 2000036
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((3, 0, 3), (0, 0, 3))
GRAD = 'leaf'
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
SHARED = {"flag": True, "scale": 2.0, "items": [1, 2.5], "count": 0, "name": "a",
          "t": tensor(2, (3,), torch.float32)}
WATCHED = ["TICKS", "STEP", "BOX", "LAYER", "SHARED"]


def inputs(m, n, k):
    x0 = tensor(829, (4, n), torch.bfloat16, 'contiguous')
    return [x0]


def fn(x0):
    gen = (x + 1 for x in [x0, x0])
    a4 = next(gen) * 2
    a7 = SHARED['last'] = a4
    a9 = getattr(BOX, 'extra', 3) * a4
    return (a9,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'cpp') or "as in eager mode")
