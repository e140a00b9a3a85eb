"""mlexp measures claims about ML efficiency: pytest-benchmark cells with cost and quality in one record.

To read what was measured: `load` and `load_series` (records and their arrays), `contexts` and `latest` (which of them
may be compared), `pairs` (arms against a baseline, block by block, with intervals), `stats` and `plots` (modules).

To declare a question in a bench file: `Study`, `Settings` with `AtLeast` and `OneOf`, `Metric`; for claims `Claim`,
`Above`, `Below`, `Within`, of `At`, `Mean`, `Slope`, of `arm`, `mean`, `ratio` (the rest is in `mlexp.study`); `Cell`
annotates the fixture. Names are loaded when they are first used: importing mlexp imports nothing else.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` finds each name by _PLACES
    from mlexp.analysis import plots, stats
    from mlexp.analysis.pairs import Pairs, pairs
    from mlexp.analysis.results import LoadError, contexts, latest, load, load_series
    from mlexp.harness.cell import Cell
    from mlexp.record import Metric
    from mlexp.settings import AtLeast, OneOf, Settings
    from mlexp.study import Above, At, Below, Claim, Mean, Slope, Study, Within, arm, mean, ratio

from mlexp import extras

__version__ = "0.1.0"

extras.install()

__all__ = [
    "Above", "At", "AtLeast", "Below", "Cell", "Claim", "LoadError", "Mean", "Metric", "OneOf", "Pairs", "Settings",
    "Slope", "Study", "Within", "__version__", "arm", "contexts", "latest", "load", "load_series", "mean", "pairs",
    "plots", "ratio", "stats",
]  # fmt: skip

_MODULES = {"plots": "mlexp.analysis.plots", "stats": "mlexp.analysis.stats"}
_PLACES = {
    "mlexp.analysis.pairs": ("Pairs", "pairs"),
    "mlexp.analysis.results": ("LoadError", "contexts", "latest", "load", "load_series"),
    "mlexp.harness.cell": ("Cell",),
    "mlexp.record": ("Metric",),
    "mlexp.settings": ("AtLeast", "OneOf", "Settings"),
    "mlexp.study": ("Above", "At", "Below", "Claim", "Mean", "Slope", "Study", "Within", "arm", "mean", "ratio"),
}  # computed, not imported: collecting cells imports no pandas, nor is it part of their keys


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # a type checker that saw it would believe in any name

    def __getattr__(name: str) -> object:
        place = _MODULES.get(name) or next((place for place, names in _PLACES.items() if name in names), None)
        if place is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
        module = importlib.import_module(place)
        globals()[name] = found = module if name in _MODULES else getattr(module, name)
        return found
