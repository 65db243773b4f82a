# plan:  aten breaks its own rules at as_strided: says int32[2] offset(1), but aten.as_strided.default gives float32[2] offset(1) (call 0)
# aten is the first that differs at as_strided:  aten breaks its own rules at as_strided: says int32[2] offset(1), but aten.as_strided.default gives float32[2] offset(1) (call 0); right: capture
# seed 9101457
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((2, 3, 5), (1, 3, 5))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(459, (m, n), torch.float32, 'contiguous')
    return [x0]


def fn(x0):
    a2 = x0.view(torch.int32)
    a8 = a2.as_strided((2,), (1,), 1)
    return (a8,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'plan') or "as in eager mode")
