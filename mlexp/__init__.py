"""mlexp measures claims about ML efficiency: pytest-benchmark cells with cost and quality in one record.

`mlexp.load(path)` reads benchmark JSON, journals, or folders of either into one tidy pandas DataFrame.
"""

import importlib
from typing import Any

from mlexp import extras

__version__ = "0.1.0"

extras.install()

LAZY = {"load": "mlexp.analysis.results"}  # so that collecting cells imports no pandas, nor is it part of their keys


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
