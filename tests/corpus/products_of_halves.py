# found as: loops: result[0] has NaN or infinity at other places (call 1)
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((2, 65, 2), (2, 65, 2))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(19, (m, n), torch.float64, 'contiguous')
    x1 = tensor(247, (2,), torch.float64, 'contiguous')
    x2 = tensor(500, (1, n, k), torch.float16, 'transposed')
    return [x0, x1, x2]


def fn(x0, x1, x2):
    a8 = x2.prod(1)
    return (a8,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
