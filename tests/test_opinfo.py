"""The operator database's runner on a sample of operators, and that it tells right from wrong."""
from __future__ import annotations

import pytest
import torch

from minicompile.testing import opinfo, opinfo_report
from minicompile.testing.opinfo import Case, How, Row, judge

pytest.importorskip("expecttest")
BY_NAME = {opinfo.name_of(i): i for i in opinfo.database()}
QUICK = How(samples=3)
FEW = """add mul where sum cumsum cat index_put scatter_add nn.functional.conv2d nn.functional.layer_norm masked_fill
transpose linalg.svd fft.rfft randn nn.functional.dropout unique""".split()


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_operators_are_equal_to_eager(name: str, dtype: torch.dtype) -> None:
    if not opinfo.supports(BY_NAME[name], dtype, False):
        pytest.skip("not supported by the operator")
    row = opinfo.examine(BY_NAME[name], dtype, QUICK)
    overlaps = [why for why in row.why if why.startswith("refused: overlap")]   # writes that eager refuses, too
    assert row.status == "ok" or row.counts["ok"] and row.why.keys() == set(overlaps), row.why


@pytest.mark.parametrize("name", ["add", "mul", "sum", "nn.functional.layer_norm", "where", "matmul"])
def test_gradients_are_equal_to_eager(name: str) -> None:
    row = opinfo.examine(BY_NAME[name], torch.float32, How(grad=True, samples=3))
    assert row.status == "ok", row.why


def test_through_compile_and_through_generated_code() -> None:
    for how in (How(samples=2, capture=True), How(samples=2, backend="cpp")):
        row = opinfo.examine(BY_NAME["mul"], torch.float32, how)
        assert row.status == "ok" and row.counts["ok"] > 1, row.why


def verdict(fn: object, *args: object) -> tuple[str, str]:
    return judge(Case("", fn, args, {}), How(), None, True)[:2]


def test_each_kind_of_difference_is_seen() -> None:
    calls = iter(range(100))

    def other(x: torch.Tensor, ways: list) -> torch.Tensor:          # another result at every run
        return ways[next(calls) % len(ways)](x)
    x = torch.ones(2, 3)
    for first, second, word in [
        (lambda t: t + 1, lambda t: t + 2, "not close"),
        (lambda t: t + 1, lambda t: (t + 1).double(), "float32[2, 3], not"),
        (lambda t: t + 1, lambda t: (t + 1).t(), "not"),
        (lambda t: t + 1, lambda t: (t + 1).t().contiguous().t(), "stride"),
        (lambda t: t * 1, lambda t: t, "memory is shared"),
        (lambda t: t.mul_(2), lambda t: t * 2, "input 0"),
    ]:
        calls = iter(range(100))
        kind, reason = verdict(other, x, [first, second])
        assert kind == "wrong" and (word in reason or "not" in reason), (kind, reason)


def test_refusals_and_errors() -> None:
    assert verdict(lambda x: x.nonzero(), torch.ones(3))[0] == "ok"          # with capture, which guards the count
    assert verdict(lambda x: x.bincount(), torch.ones(3, dtype=torch.int64))[0] == "break"
    assert verdict(lambda x: x * 2, torch.ones(3).to_sparse())[0] == "refused"
    assert verdict(lambda x: x @ x, torch.ones(2, 3))[0] == "ok"          # eager raises, and so do we
    assert verdict(lambda x: x[torch.tensor([7])], torch.ones(3))[0] == "ok"


def test_a_dying_process_is_a_row() -> None:
    class Info:
        name, variant_test_name, decorators, inplace_variant, error_inputs_func = "dies", "", (), None, None

        @staticmethod
        def sample_inputs(*_: object, **__: object) -> list:
            import os
            os.kill(os.getpid(), 11)
            return []
    rows = list(opinfo.rows_of([(Info, torch.float32), (BY_NAME["neg"], torch.float32)], QUICK))
    assert [r.op for r in rows] == ["dies", "neg"]
    assert rows[0].status == "crash" and "SIGSEGV" in str(rows[0].why) and rows[1].status == "ok"


def test_the_report_counts(tmp_path: object) -> None:
    row = Row("add", "float32")
    row.add("ok")
    row.add("wrong", "output 0: off")
    kept = opinfo_report.merge(tmp_path / "r.json", [row.__dict__])
    assert opinfo_report.merge(tmp_path / "r.json", []) == kept
    text = opinfo_report.markdown(kept)
    assert "| float32 | 1 | 0 | 1 | 0 | 0 | 1 | 0 | 50.0% |" in text
    assert "`add` float32 (1): wrong: output 0: off" in text
