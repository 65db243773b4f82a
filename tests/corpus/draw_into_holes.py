# result 0 differs by 1.47e-01; rounding explains 7.84e-06 (call 0)
# prims is wrong at exponential (<fuzzed>:18 in fn): output 0 differs by 6.15e-01; rounding explains 2.85e-05 (agree with eager: capture, aten)
# seed 10
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((3, 0, 16), (3, 0, 16))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(880, (m, 3, 2), torch.float32, 'contiguous')
    return [x0]


def fn(x0):
    a5 = x0.diagonal(1)
    a5.exponential_()
    return (a5,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
