# loops: result[0] is bool[1, 3, 2], not bool[1, 2, 3] (call 1)
# aten is the first that differs; seed 9605106
import torch

from minicompile.testing.programs import tensor

SIZES = ((3, 2, 2), (5, 2, 2))
GRAD = 'unused'
BACKEND = 'loops'


def inputs(m, n, k):
    return [tensor(683, (2, n), torch.bfloat16, 'contiguous', True), tensor(480, (n, m), torch.bool)]


def fn(x0, x1):
    x1.t_()
    return (x1[None],)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'loops') or "as in eager mode")
