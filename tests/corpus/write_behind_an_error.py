# cpp: x1 differs by 1.00e+00 (call 0)
# plan is the first that differs; seed 9100844
import torch

from minicompile.testing.programs import tensor

SIZES = ((5, 2, 1), (3, 2, 1))
GRAD = ''
BACKEND = 'cpp'


def inputs(m, n, k):
    return [tensor(280, (4, n), torch.int64, 'contiguous') * 0, tensor(1, (3,), torch.float32)]


def fn(x0, x1):
    torch.fmod(x0, x0)
    x1.add_(1)
    return (x0 * 2,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'cpp') or "as in eager mode")
