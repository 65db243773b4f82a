# plan:  internal error: AttributeError: 'bool' object has no attribute 'dtype' (call 0)
# aten is the first that differs at (no node: MinicompileError: nothing of fn was compiled: [internal] AttributeError: 'bool' object has no attribute 'dtype'):  internal error: AttributeError: 'bool' object has no attribute 'dtype' (call 0); right: capture
# seed 9101035
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((3, 17, 2), (65, 17, 2))
GRAD = 'computed'
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(536, (), torch.bfloat16, 'contiguous')
    return [x0]


def fn(x0):
    a3 = torch.xlogy(x0, x0)
    a3.copy_(x0)
    return (a3,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'plan') or "as in eager mode")
