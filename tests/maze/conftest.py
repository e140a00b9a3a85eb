"""Data sets of these tests are kept in a folder of their own: what an earlier run left elsewhere is not what is tested."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def maze_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
