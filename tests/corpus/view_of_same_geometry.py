# identical: [0, 1, 0], not [0, 1, 2] (call 0)
# seed 3
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((17, 33, 33), (1, 33, 33))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(553, (m,), torch.uint8, 'contiguous')
    x1 = tensor(948, (m,), torch.bfloat16, 'contiguous')
    return [x0, x1]


def fn(x0, x1):
    a2 = x1.expand_as(x1)
    return (a2,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
