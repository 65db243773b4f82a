"""Makes the hand-made plans of tests/codegen importable. Kernels run by Triton's interpreter, on CPU tensors."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is an optional extra: pip install minicompile[triton]")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "codegen"))
