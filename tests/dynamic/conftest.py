"""Makes the hand-made prim graphs importable, and keeps compiled test kernels in one cache folder."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "loops")]


@pytest.fixture(autouse=True, scope="session")
def kernel_cache(tmp_path_factory):
    from minicompile.config import config

    with config.patch(cache_dir=str(tmp_path_factory.mktemp("kernels"))):
        yield
