# loops:  raises None, eager RuntimeError('ZeroDivisionError') (call 1)
# prims is the first that differs; seed 9601198
import torch

from minicompile.testing.programs import tensor

SIZES = ((3, 2, 5), (3, 2, 5))
GRAD = ''
BACKEND = 'loops'


def inputs(m, n, k):
    return [tensor(89, (k, m, n), torch.int32, 'contiguous') * 0]


def fn(x0):
    a1 = torch.fmod(x0, x0)
    a1.sub_(a1)
    return (a1,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'loops') or "as in eager mode")
