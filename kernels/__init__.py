"""Hand-written target code: C++ headers that emitted kernels include. `FOLDER` is where they lie."""
from pathlib import Path

FOLDER = Path(__file__).parent
