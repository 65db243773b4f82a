# result 1 differs in 3 of 3 elements (call 0)
# aten is wrong at copy_1: says int64[3] stride(0), but aten.copy.default gives int64[3] (agree with eager: capture)
# seed 12024
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((5, 3, 2), (3, 3, 2))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(215, (n,), torch.int64, 'expanded')
    return [x0]


def fn(x0):
    x0[0] = 3
    a3 = x0.count_nonzero()
    a4, b4 = torch.broadcast_tensors(x0, x0)
    return (a3, b4,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
