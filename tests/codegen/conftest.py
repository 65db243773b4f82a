"""Makes `plans` importable, and keeps compiled test kernels in one cache folder per session."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def kernel_cache(tmp_path_factory):
    from minicompile.config import config  # after the path above is set

    with config.patch(cache_dir=str(tmp_path_factory.mktemp("kernels"))):
        yield
