# found as: plan:  raises RuntimeError('Output 0 of _Function is a view and is being modified inplace. This view was created inside a custom Function
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((5, 5, 17), (17, 5, 17))
GRAD = 'computed'
BACKEND = 'plan'


def inputs(m, n, k):
    x0 = tensor(980, (n, k), torch.float32, 'channels')
    x1 = tensor(425, (n,), torch.float64, 'contiguous')
    return [x0, x1]


def fn(x0, x1):
    a2 = x0[torch.tensor([1, 0]), ..., 0]
    x1.div_(2.0)
    a2.mul_(0)
    return (a2,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
