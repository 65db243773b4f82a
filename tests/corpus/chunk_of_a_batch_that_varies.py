# cpp:  raises RuntimeError("aten::as_strided() ...
# seed 9102624
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((2, 17, 2), (5, 17, 2))
GRAD = 'computed'
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(158, (1,), torch.int32, 'contiguous')
    x1 = tensor(349, (m, 4, 2), torch.float64, 'contiguous', True)
    x2 = tensor(192, (m, n), torch.bfloat16, 'contiguous')
    return [x0, x1, x2]


def fn(x0, x1, x2):
    a4 = x2.chunk(2, 0)[-1]
    return (a4,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'cpp') or "as in eager mode")
