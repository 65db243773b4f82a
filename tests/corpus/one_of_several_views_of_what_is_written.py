# plan:  raises None, eager RuntimeError('Output 0 of Unbind is a view and its base or another view of its base has been modified inplace. This view is the output of a function that returns multiple views. Such functions do not allow the output views to be modified inplace. You should replace the inplace operation by an out-of-place one.') (call 0)
# aten is the first that differs:  raises None, eager RuntimeError('Output 0 of Unbind is a view and its base or another view of its base has been modified inplace. This view is the output of a function that returns multiple views. Such functions do not allow the output views to be modified inplace. You should replace the inplace operation by an out-of-place one.') (call 0); right: capture
# seed 2000689
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((2, 33, 5), (33, 33, 5))
GRAD = 'computed'
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(30, (n,), torch.float32, 'contiguous')
    return [x0]


def fn(x0):
    a1 = x0.unbind(0)[0]
    x0[x0 > 0] = 0.5
    return (a1,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'plan') or "as in eager mode")
