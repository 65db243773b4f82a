# found as: cpp: args[2] differs by 3.08e+00; rounding explains 1.14e-05 (call 0)
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((16, 3, 1), (33, 3, 1))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(352, (3, m, n), torch.int64, 'contiguous')
    x1 = tensor(368, (m, n, k), torch.bfloat16, 'contiguous')
    x2 = tensor(709, (m, 3), torch.float32, 'offset')
    return [x0, x1, x2]


def fn(x0, x1, x2):
    x2.fill_(-1.5)
    x2.squeeze_()
    a10 = torch.normal(0., 1., (3,))
    return (a10,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
