"""Tests of what an extra brings are skipped where it is not installed; the reason names the extra."""

import pytest

from mlexp import extras


def needs(library: str, who: str = "this test"):
    """The library, as `importorskip` gives it."""
    return pytest.importorskip(library, reason=str(extras.missing(who, library)))
