# raises IndexError('index out of range in self'), eager None (call 0)
# loops is wrong at gather (<fuzzed>:17 in fn): raised IndexError('index out of range in self'), eager raised None (agree with eager: capture, aten, prims)
# seed 504
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((33, 0, 2), (0, 0, 2))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(246, (n, m), torch.float64, 'contiguous')
    return [x0]


def fn(x0):
    a4 = x0.index_add(-1, torch.tensor([1, 0]), x0.index_select(-1, torch.tensor([0, -1, 0])[:2] % x0.shape[1]))
    return (a4,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__) or "as in eager mode")
