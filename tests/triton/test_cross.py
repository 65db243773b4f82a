"""Cross compilation: cubins, figures, the folder it writes, and the command."""

from __future__ import annotations

import json

import pytest
import torch

import minicompile
from minicompile import cli
from minicompile.errors import MinicompileError
from minicompile.viz import vectors
from minicompile.viz.cross import CLASSES, PTX_CLASSES, cross, instruction_mix, main_loop, ptx_mix


def softmax(x):
    return torch.softmax(x + 1, -1)


@pytest.mark.parametrize("target", ["sm_70", "sm_80", "sm_90"])
def test_rows_compile_with_wide_loads_and_without_spills(target):
    got = cross(softmax, target)(torch.randn(64, 128))
    (figures,) = got.figures
    assert figures.bytes == 2 * 4 * 64 * 128 and figures.spills == 0 and 0 < figures.registers <= 255
    assert figures.instructions["128-bit loads"] > 0 and figures.instructions["other loads"] == 0
    assert figures.instructions["128-bit stores"] > 0 and figures.microseconds["A100"] > 0
    assert all(b.cubin[:4] == b"\x7fELF" for b in got.binaries.values())
    assert "registers" in str(got)


def test_equal_kernels_are_compiled_once():
    got = cross(lambda x, y: (softmax(x), softmax(y)), "sm_80")(torch.randn(8, 16), torch.randn(8, 16))
    assert len(got.figures) >= len(got.binaries) == 1


def test_training_gives_both_graphs():
    got = cross(torch.nn.LayerNorm(32), "sm_80")(torch.randn(4, 32, requires_grad=True))
    assert len(got.sources) == 2


def test_the_command_writes_a_folder(tmp_path, capsys):
    code = tmp_path / "code.py"
    code.write_text("import torch\ndef f(x):\n    return (x * 2).sum(-1)\n")
    out = tmp_path / "out"
    assert cli.main(["cross", "--target", "sm_90", "--out", str(out), f"{code}:f", "torch.randn(16, 64)"]) == 0
    assert "sm_90: 1 graphs" in capsys.readouterr().out
    (entry,) = json.loads((out / "kernels.json").read_text())
    assert (out / entry["cubin"]).read_bytes()[:4] == b"\x7fELF"
    assert json.loads((out / "report.json").read_text())[0]["kernel"] == entry["kernel"]
    compile((out / "load.py").read_text(), "load.py", "exec")
    compile((out / "graph0.py").read_text(), "graph0.py", "exec")


def test_what_cannot_be_done_is_said():
    with pytest.raises(MinicompileError, match="sm_80"):
        cross(softmax, "sm_12")
    with pytest.raises(MinicompileError, match="nothing was compiled"):
        cross(lambda: 3, "sm_80")()


def test_the_longest_loop_is_found():
    ptx = """
$L__BB0_1:
	ld.global.b32 %r1, [%rd1];
$L__BB0_2:
	mma.sync.aligned %r1;
	@%p1 bra 	$L__BB0_2;
	@%p2 bra 	$L__BB0_1;
	bra.uni 	$L__BB0_3;
$L__BB0_3:
	ret;
"""
    assert ptx_mix(main_loop(ptx))["mma"] == 1 and "ret" not in main_loop(ptx) and "ld" in main_loop(ptx)
    sass = ".L_x_1:\n /*0040*/ HMMA.16816.F32 R4, R8 ;\n /*0050*/ @P0 BRA `(.L_x_1) ;\n.L_x_2:\n /*0060*/ BRA `(.L_x_2);"
    assert instruction_mix(main_loop(sass))["mma"] == 1 and main_loop("no loop at all") == ""


def test_wide_accesses_are_told_from_the_plan_and_from_the_code():
    def f(x, y):
        return (x + y[:, :64], y[:, 1:65] * 2, x.softmax(-1))
    got = cross(f, "sm_80")(torch.randn(64, 64), torch.randn(64, 96))
    (source,) = got.sources
    for step, call in zip(source.plan.steps, source.calls):
        binary = got.binaries[0, call.function]
        possible = vectors.allowed(step, source.plan.buffers, call)
        assert possible > 0 and possible == vectors.given(binary.ptx), call
    odd = cross(lambda x: x[:, 1:] + 1, "sm_80")(torch.randn(64, 64))
    step, call = odd.sources[0].plan.steps[0], odd.sources[0].calls[0]
    assert vectors.allowed(step, odd.sources[0].plan.buffers, call) == 0 == vectors.given(odd.binaries[0, call.function].ptx)


def test_instructions_are_classified():
    sass = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/               @P0 LDG.E R4, desc[UR4][R2.64] ;
        /*0020*/              @!P1 STG.E.128 desc[UR4][R2.64], R4 ;
        /*0030*/                   LDGSTS.E.BYPASS.128 [R5], [R2.64] ;
        /*0040*/                   HMMA.16816.F32 R4, R8, R2, R4 ;
        /*0050*/                   STL [R1], R4 ;
"""
    mix = instruction_mix(sass)
    assert {k: n for k, n in mix.items() if n} == {"128-bit loads": 1, "other loads": 1, "128-bit stores": 1,
                                                   "async copies": 1, "mma": 1, "local": 1}
    ptx = "\t@%p1 ld.global.v4.b32 {%r1}, [%rd1];\n\tst.global.b32 [%rd1], %r1;\n\tfma.rn.f32 %f1, %f2, %f3, %f4;\n"
    mix = ptx_mix(ptx)
    assert {k: n for k, n in mix.items() if n} == {"128-bit loads": 1, "other stores": 1, "fma": 1}
    assert set(CLASSES) == set(PTX_CLASSES)


@pytest.mark.parametrize("target", ["sm_70", "sm_80", "sm_90"])
def test_random_numbers_by_a_counter_are_drawn_in_the_kernel(target):
    with minicompile.config.patch(random="philox"):
        got = cross(lambda x: torch.nn.functional.dropout(x, 0.3) * 2, target)(torch.randn(64, 128))
    (figures,) = got.figures
    assert figures.spills == 0 and got.libraries == ("aten.randint.low",)       # which draws the seed
    assert figures.bytes <= 2 * 4 * 64 * 128 + 8
