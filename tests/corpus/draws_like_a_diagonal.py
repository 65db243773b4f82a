import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((0, 5, 0), (16, 5, 0))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(851, (m, n, 3), torch.float64, 'contiguous')
    return [x0]


def fn(x0):
    a2 = x0.diagonal()
    a5 = torch.randn_like(a2) * a2
    return (a5,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
