"""Makes the prim graphs of tests/loops importable by the tests of the next stage."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "loops"))
