# found as: plan:  internal error: RuntimeError: Output 1 of SplitWithSizes is a view and its base or another view of its base has been modified inpla
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((0, 16, 2), (33, 16, 2))
GRAD = 'leaf'
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(669, (m,), torch.float32, 'contiguous')
    return [x0]


def fn(x0):
    a1 = x0.chunk(2, 0)[-1]
    x0.data.mul_(2)
    return (a1,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
