"""ATen operators through trace and decompose against eager mode: values, dtypes and strides, on PyTorch's
own samples."""
from __future__ import annotations

import sys
import types
import unittest
import warnings

import pytest
import torch

from minicompile.errors import Refusal
from minicompile.lower.decompose import decompose
from minicompile.lower.trace import callable_inputs, tensors_in, trace_callable

if "expecttest" not in sys.modules:          # torch's test helpers import it; nothing here needs it
    stub = types.ModuleType("expecttest")
    stub.TestCase = unittest.TestCase
    sys.modules["expecttest"] = stub
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

# No library call may be left of these.
WHOLE = """
abs acos acosh add arange mul sub addcmul addcdiv asin asinh atan atan2 atanh broadcast_to broadcast_tensors
bitwise_not bitwise_left_shift bitwise_right_shift cartesian_prod ceil chunk unsafe_chunk clone contiguous
sum_to_size clamp positive copysign cos cosh cumsum cumprod deg2rad diff true_divide exp expand expand_as
diag_embed diagonal diagonal_scatter eq frac floor flip fliplr flipud log1p ge gt gradient le log log10 log2
logaddexp logaddexp2 logical_not lt masked_fill var_mean std_mean maximum minimum logical_and logical_or
logical_xor bitwise_and bitwise_or bitwise_xor isclose softmax nn.functional.softmin nn.functional.normalize
as_strided_scatter nn.functional.cosine_similarity nn.functional.relu nn.functional.instance_norm
nn.functional.rms_norm constant_pad_nd nn.functional.hardswish nn.functional.leaky_relu nn.functional.glu
nn.functional.elu nn.functional.prelu nn.functional.celu nn.functional.selu
torch.ops.aten._safe_softmax.default nn.functional.silu nn.functional.hardsigmoid nn.functional.logsigmoid
nn.functional.mish nn.functional.softsign nn.functional.tanhshrink nn.functional.threshold nextafter to
nn.functional.batch_norm nn.functional.softshrink nn.functional.hardshrink nn.functional.hardtanh
nn.functional.gelu nn.functional.relu6 ne neg outer permute float_power rad2deg real roll round sin sinc
sinh sign sgn split unsafe_split split_with_sizes __radd__ __rdiv__ __rmul__ __rand__ __ror__ __rxor__
__rsub__ rsub select select_scatter slice slice_scatter signbit tan tanh hsplit vsplit dsplit trunc exp2
expm1 nan_to_num reciprocal rsqrt sqrt square lerp isfinite isinf isposinf isneginf isreal isnan ravel
reshape reshape_as view view_as atleast_1d atleast_2d atleast_3d flatten unflatten column_stack __getitem__
take bfloat16 bool byte char double float half int long short zeros_like ones_like full_like new_zeros
new_ones ones zeros full eye scalar_tensor new_full stack hstack hypot cat unbind vstack dstack movedim
repeat squeeze fill take_along_dim tile trapz trapezoid unsqueeze xlogy zero_ logsumexp transpose T H mT mH
tril triu kron sigmoid digamma erf erfc erfinv nn.functional.smooth_l1_loss nn.functional.l1_loss lgamma
log_softmax logit where norm t nn.functional.softplus nn.functional.mse_loss all any amax amin mean prod sum
nn.functional.huber_loss nn.functional.poisson_nll_loss diagflat fft.fftshift linalg.diagonal linalg.vander
linalg.vector_norm special.ndtr special.xlog1py special.entr masked.sum masked.softmax std var
""".split()
# Some samples of these go to the ATen kernel (integer division, 0-d indexing, products, …); values must
# agree all the same.
PARTLY = """
as_strided native_layer_norm clamp_max clamp_min div fmax fmin fmod remainder floor_divide heaviside
linspace nn.functional.cross_entropy native_group_norm nn.functional.adaptive_avg_pool1d
nn.functional.group_norm nn.functional.layer_norm pow __rmod__ __rpow__ einsum gather index_fill index_copy
index_select index_add index_put scatter scatter_add scatter_reduce nn.functional.embedding argmax argmin
addmm baddbmm mm bmm matmul nn.functional.linear nn.functional.conv1d nn.functional.conv2d nn.functional.pad
nn.functional.interpolate max min sort topk cummax nn.functional.avg_pool2d fft.rfft count_nonzero
searchsorted masked_scatter tril_indices nn.functional.pixel_shuffle
nn.functional.scaled_dot_product_attention
""".split()
DTYPES = (torch.float32, torch.int64, torch.bool, torch.bfloat16)
SAMPLES = 2
BY_NAME: dict[str, list] = {}
for info in op_db:
    BY_NAME.setdefault(info.name, []).append(info)


def samples(info: object, dtype: torch.dtype) -> list:
    torch.manual_seed(0)
    try:
        found = list(info.sample_inputs("cpu", dtype, requires_grad=False))
    except (RuntimeError, NotImplementedError):          # some generators do not take some dtypes
        return []
    return [
        s
        for s in found[:: max(1, len(found) // SAMPLES)]
        if "dropout_p" not in s.kwargs or not s.kwargs["dropout_p"]
    ]


def compare(fn: object, args: tuple, kwargs: dict, dtype: torch.dtype) -> list:
    """Checks fn through the lowering against eager; the operators left in the prims."""
    want = list(tensors_in(fn(*args, **kwargs)))
    aten = trace_callable(fn, *args, **kwargs)
    prims = decompose(aten)
    aten.check()
    prims.check()
    got = prims.run(*callable_inputs(fn, *args, **kwargs))
    assert len(got) == len(want)
    tolerance = {"rtol": 3e-2, "atol": 3e-2} if dtype is torch.bfloat16 else {}
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert not a.numel() or all(
            n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True)
        )
        torch.testing.assert_close(a, b, equal_nan=True, **tolerance)
    return [n.op for n in prims.graph.nodes if isinstance(n.op, torch._ops.OpOverload)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", WHOLE + PARTLY)
@torch.no_grad()
def test_operator_agrees_with_eager(name: str) -> None:
    tried = 0
    for info in BY_NAME[name]:
        for dtype in DTYPES:
            if dtype in info.supported_dtypes("cpu"):
                for s in samples(info, dtype):
                    try:
                        left = compare(info.op, (s.input, *s.args), s.kwargs, dtype)
                    except Refusal:
                        assert name in PARTLY
                        continue
                    assert name not in WHOLE or info.variant_test_name or not left, left
                    tried += 1
    assert tried


def test_the_list_is_long_enough() -> None:
    assert len(set(WHOLE)) >= 150
    assert not set(WHOLE) & set(PARTLY)
