# shared: [0, 1, 2], not [0, 0, 2] (call 0)
# seed 1513
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((3, 2, 17), (33, 2, 17))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(345, (n,), torch.bfloat16, 'contiguous')
    return [x0]


def fn(x0):
    a3 = torch.tensor([1, 2, 2])
    return (a3, a3[None],)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
