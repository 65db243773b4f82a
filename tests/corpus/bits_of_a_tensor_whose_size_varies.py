# cpp:  raises RuntimeError("aten::as_strided() Expected a value of type 'List[int]' for argument 'size' but instead found type 'tuple'.\nPosition: 1\nValue: (s0, 2, 2)\nDeclaration: aten::as_strided(Tensor(a) self, SymInt[] size, SymInt[] stride, SymInt? storage_offset=None) -> Tensor(a)\nCast error details: Unable to cast Python instance of type <class 'minicompile.ir.sym.Size'> to C++ type '?' (#define PYBIND11_DETAILED_ERROR_MESSAGES or compile in debug mode for details)"), eager None (call 2)
# cpp is the first that differs:  raises RuntimeError("aten::as_strided() Expected a value of type 'List[int]' for argument 'size' but instead found type 'tuple'.\nPosition: 1\nValue: (s0, 2, 2)\nDeclaration: aten::as_strided(Tensor(a) self, SymInt[] size, SymInt[] stride, SymInt? storage_offset=None) -> Tensor(a)\nCast error details: Unable to cast Python instance of type <class 'minicompile.ir.sym.Size'> to C++ type '?' (#define PYBIND11_DETAILED_ERROR_MESSAGES or compile in debug mode for details)"), eager None (call 2); right: capture, aten, prims, loops, plan
# seed 2000564
import torch
import torch.nn.functional as F

from minicompile.testing.programs import tensor

SIZES = ((2, 2, 2), (65, 2, 2))
GRAD = ''
BACKEND = 'reference'


def inputs(m, n, k):
    x0 = tensor(952, (m, 2, 2), torch.float32, 'contiguous')
    return [x0]


def fn(x0):
    a6 = x0.view(torch.int32)
    return (a6,)


if __name__ == "__main__":
    from minicompile.testing.fuzz import replay

    print(replay(__file__, 'cpp') or "as in eager mode")
