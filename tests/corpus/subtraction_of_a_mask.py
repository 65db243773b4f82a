# plan:  raises None, eager RuntimeError('Subtraction, the `-` operator, with a bool tensor is not supported. If you are trying to invert a mask, use the `~` or `logical_not()` operator instead.') (call 2)
# aten is the first that differs at (no node: RuntimeError: The size of tensor a (0) must match the size of tensor b (5) at non-singleton dimension 1):  raises None, eager RuntimeError('Subtraction, the `-` operator, with a bool tensor is not supported. If you are trying to invert a mask, use the `~` or `logical_not()` operator instead.') (call 2); right: capture
# seed 2000709
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((5, 0, 0), (0, 0, 0))
GRAD = 'computed'
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(182, (m, n, k), torch.float32, 'contiguous')
    x1 = tensor(19, (m, n), torch.int64, 'contiguous')
    return [x0, x1]


def fn(x0, x1):
    a4 = torch.gt(x1, x1)
    a9 = torch.logaddexp(x0, a4)
    return (a9,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'plan') or "as in eager mode")
