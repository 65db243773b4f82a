# result 0 is float32[3, 3] stride(1, 3), not float32[3, 3] (call 0)
# seed 20176
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((3, 3, 65), (2, 3, 65))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(875, (m, 3), torch.float32, 'transposed')
    return [x0]


def fn(x0):
    a7 = x0.masked_fill(x0 > 0, 3)
    return (a7,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
