# written: [False, False, False], not [True, False, False] (call 2)
# loops is wrong at cat_1: reads in0 after cat has overwritten it (agree with eager: capture, aten, prims)
# seed 315
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((5, 5, 2), (1, 5, 2))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(938, (m, n, 2), torch.int32, 'contiguous')
    x1 = tensor(466, (m, n, 2), torch.float32, 'contiguous')
    x2 = tensor(230, (m,), torch.bool, 'contiguous')
    return [x0, x1, x2]


def fn(x0, x1, x2):
    x0[1:].mul_(3)
    return (x2,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
