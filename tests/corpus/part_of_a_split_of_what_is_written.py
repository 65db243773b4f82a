# loops:  raises None, eager RuntimeError('Output 0 of Split is a view and its base or another view of its base has been modified inplace. This view is the output of a function that returns multiple views. Such functions do not allow the output views to be modified inplace. You should replace the inplace operation by an out-of-place one.') (call 0)
# aten is the first that differs:  raises None, eager RuntimeError('Output 0 of Split is a view and its base or another view of its base has been modified inplace. This view is the output of a function that returns multiple views. Such functions do not allow the output views to be modified inplace. You should replace the inplace operation by an out-of-place one.') (call 0); right: capture
# seed 2001282
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((17, 2, 65), (16, 2, 65))
GRAD = 'computed'
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(564, (2, k), torch.float16, 'contiguous')
    return [x0]


def fn(x0):
    a2 = x0.split(2, 1)[0]
    x0.fill_(2)
    return (a2,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'loops') or "as in eager mode")
