# cpp: result[0] is float32[3, 65], not float32[3, 65] offset(3) (call 1)
# aten is the first that differs: its elements are others, too; seed 9303076
import torch

from minicompile.testing.programs import tensor

SIZES = ((3, 65, 1), (1, 65, 1))
GRAD = ''
BACKEND = 'cpp'
TWINS = (0, 1)


def inputs(m, n, k):
    return [tensor(888, (3, n), torch.float32, 'offset'), tensor(140, (3, n), torch.float32, 'contiguous')]


def fn(x0, x1):
    return (x1.squeeze(1),)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'cpp') or "as in eager mode")
