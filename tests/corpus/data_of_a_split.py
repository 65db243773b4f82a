# found as: loops: args[0] is counted as written to (call 0)
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((3, 33, 17), (3, 33, 17))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(429, (k, 2, 4, 2), torch.int64, 'contiguous')
    return [x0]


def fn(x0):
    a2, b2 = x0.split([1, x0.shape[0] - 1], -4)
    a2.data.mul_(2)
    return (b2,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
