# raises RuntimeError('one of the variables needed for gradient computation has been modified by an inplace
# operation'), eager None (call 0)
# seed 1000599
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((2, 17, 2), (5, 17, 2))
GRAD = 'computed'
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(788, (k, m, 3), torch.float32, 'contiguous')
    return [x0]


def fn(x0):
    a4 = torch.div(x0, x0)
    a5 = x0.masked_fill(x0 > 0, 1)
    x0.sigmoid_()
    a6 = a4.movedim(0, -1)
    return (a5,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'plan') or "as in eager mode")
