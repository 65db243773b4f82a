# result 0 is float32[2, 5] stride(1, 2), not float32[2, 5] (call 0)
# seed 414
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((5, 5, 2), (33, 5, 2))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(950, (2, n), torch.float32, 'transposed')
    return [x0]


def fn(x0):
    a5 = F.rrelu(x0, training=True)
    return (a5,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
