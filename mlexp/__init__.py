"""mlexp measures claims about ML efficiency: pytest-benchmark cells with cost and quality in one record.

`mlexp.load(path)` reads benchmark JSON, journals, or folders of either into one tidy pandas DataFrame.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "load":  # lazily, so that collecting cells imports no pandas
        from mlexp.analysis.results import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
