# plan:  raises RuntimeError('one of the variables needed for gradient computation has been modified by an inplace operation: [torch.FloatTensor [5, 2]], which is output 0 of Tanh, is at version 1; expected version 0 instead. Hint: enable anomaly detection to find the operation that failed to compute its gradient, with torch.autograd.set_detect_anomaly(True, check_nan=False).'), eager None (call 0)
# aten is the first that differs:  raises RuntimeError('one of the variables needed for gradient computation has been modified by an inplace operation: [torch.FloatTensor [5, 2]], which is output 0 of Tanh, is at version 1; expected version 0 instead. Hint: enable anomaly detection to find the operation that failed to compute its gradient, with torch.autograd.set_detect_anomaly(True, check_nan=False).'), eager None (call 0); right: capture
# seed 2001841
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((2, 5, 3), (3, 5, 3))
GRAD = 'computed'
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(32, (n, m), torch.float32, 'contiguous')
    return [x0]


def fn(x0):
    a1 = torch.bernoulli(torch.sigmoid(x0))
    x0.tanh_()
    return (a1,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'plan') or "as in eager mode")
