"""Lets these tests run against an extension built elsewhere.

MINICOMPILE_NATIVE_DIR is searched for `minicompile._native` before the package itself.

The tests need no torch unless they say so, so that they also run on Pythons for which there is none here.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import minicompile

if "MINICOMPILE_NATIVE_DIR" in os.environ:
    minicompile.__path__.insert(0, os.path.join(os.environ["MINICOMPILE_NATIVE_DIR"], "minicompile"))
