# plan: raises RuntimeError('Output 0 of _Function is a view and is being modified inplace. ...') (call 0)
# seed 9100267
import torch

from minicompile.testing.programs import tensor

SIZES = ((5, 5, 3), (5, 5, 3))
GRAD = 'computed'
BACKEND = 'plan'


def inputs(m, n, k):
    return [tensor(865, (m, n), torch.float32, 'contiguous')]


def fn(x0):
    a1 = x0.max(1).values
    a2 = a1[0]
    x0.exponential_()
    a2.relu_()
    return (a2,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'plan') or "as in eager mode")
