# internal error: ZeroDivisionError: float division by zero
# seed 8211
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((1, 3, 3), (0, 3, 3))
GRAD = 'computed'
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(199, (1,), torch.uint8, 'contiguous')
    x1 = tensor(186, (m, n), torch.float32, 'contiguous')
    return [x0, x1]


def fn(x0, x1):
    a2 = F.mse_loss(x1, x1)
    return (a2,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
