# result 0 has requires_grad True (call 0)
# seed 5299
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((3, 2, 5), (1, 2, 5))
GRAD = 'unused'
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(593, (n, k), torch.bfloat16, 'contiguous')
    x1 = tensor(630, (m, n), torch.float32, 'contiguous')
    x2 = tensor(609, (m, n, k), torch.float32, 'contiguous')
    return [x0, x1, x2]


def fn(x0, x1, x2):
    a3 = x2.detach()
    return (a3,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
