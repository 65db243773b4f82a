# found as: plan: result[3] is float64[4, 3, 2] stride(1, 4, 12), not float64[4, 3, 2] (call 0)
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((1, 3, 3), (3, 3, 3))
GRAD = ''
BACKEND = 'plan'


def inputs(m, n, k):
    x0 = tensor(56, (m, n), torch.float32, 'expanded')
    x1 = tensor(425, (2, n, 4), torch.float64, 'contiguous')
    x2 = x1[...]
    return [x0, x1, x2]


def fn(x0, x1, x2):
    a3, b3 = x2.max(0)
    a5 = x0.real
    a6 = x1 + torch.rand(1)
    a7 = x2.permute(*range(x2.dim())[::-1])
    a8 = torch.zeros_like(x1)
    a9 = a7.flip(-2)
    a10 = F.logsigmoid(a9)
    a11 = torch.aminmax(a6, dim=2)[0]
    a12 = torch.div(a8, x2)
    a13, b13 = a11, a11[...]
    return (a11, a12, a13, a10,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
