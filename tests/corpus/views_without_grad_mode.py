# found as: loops:  internal error: RuntimeError: A view was created in no_grad mode and its base or another view of its base has been modified inplac
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((16, 2, 3), (2, 2, 3))
GRAD = 'unused'
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(313, (2, n), torch.float32, 'contiguous')
    return [x0]


def fn(x0):
    a4, b4 = x0.split([1, x0.shape[0] - 1], 0)
    a4.add_(b4)
    return (a4,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
