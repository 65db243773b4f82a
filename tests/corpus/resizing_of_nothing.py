# cpp:  raises None, eager RuntimeError('Input and output sizes should be greater than 0, but got input (H: 0, W: 2) output (H: 3, W: 4)') (call 2)
# seed 7001028
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((16, 2, 3), (0, 2, 3))
GRAD = ''
BACKEND = 'cpp'


def inputs(m, n, k):
    return [tensor(851, (m, n), torch.bfloat16, 'transposed')]


def fn(x0):
    return (F.interpolate(x0[None, None, ...], (3, 4), mode='bilinear'),)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'cpp') or "as in eager mode")
