"""Data sets of these tests are cached in a folder of their own, where no earlier run has left any."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def maze_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
