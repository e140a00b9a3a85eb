"""What a missing library is told as: one line that names the extra. Standard library only.

The distribution brings the harness alone; which extra brings a library depends on what of mlexp wants it.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

DISTRIBUTION = "pytest-mlexp"
NEEDS = {  # what running cells of a subject takes; its tables and closed forms take nothing
    "mlexp.decoding": ("torch", "transformers", "tokenizers", "safetensors"),
    "mlexp.maze": ("torch", "maze_dataset"),
    "mlexp.attention": ("torch", "tokenizers"),
    "mlexp.eqprop": ("torch",),
    "mlexp.training": ("torch",),
    "mlexp.flops": ("torch",),
}
LIBRARIES = {"muutils", "triton"}.union(*NEEDS.values())  # that modules import as they are loaded
EXTRAS = {  # of a part of mlexp, and of a library that only one extra brings
    "mlexp.decoding": "decoding",
    "mlexp.maze": "maze",
    "ray": "cluster",
    "pyarrow": "parquet",
    "triton": "triton",
    "ctranslate2": "ctranslate2",
}
OTHERWISE = "studies"
NOT_ON_3_14 = ("maze_dataset", "muutils")


class MissingExtra(ModuleNotFoundError):
    """A library that no installed extra has brought; the message is one line, for users."""


def missing(who: str, library: str) -> MissingExtra:
    """What to raise where `who` ("mlexp.maze", "mlexp sweep") needs a library that is not there."""
    extra = EXTRAS.get(library) or EXTRAS.get(who, OTHERWISE)
    mend = f'pip install "{DISTRIBUTION}[{extra}]"'
    if library in NOT_ON_3_14 and sys.version_info >= (3, 14):
        mend += ", on Python 3.13 or older"
    return MissingExtra(f"{who} needs {library}: {mend}", name=library)


def need(who: str, *libraries: str) -> None:
    """Raise MissingExtra unless these libraries are there (by default, what NEEDS has); imports none."""
    for library in libraries or NEEDS[who]:
        if not is_there(library):
            raise missing(who, library)


def is_there(library: str) -> bool:
    """Whether a library can be imported, without importing it."""
    try:
        return importlib.util.find_spec(library) is not None
    except ValueError:  # it is loaded, and has no spec: a stand-in of a test
        return sys.modules.get(library) is not None


class Teller(MetaPathFinder):
    """Finds the modules of this package where Python does, and has those that lack a library say so in our words."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("mlexp."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = TellingLoader(spec.loader.name, spec.loader.path)
        return spec


class TellingLoader(importlib.machinery.SourceFileLoader):
    """Runs a module as ever; an import in it that fails for want of one of the libraries names the extra."""

    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except ModuleNotFoundError as error:
            if isinstance(error, MissingExtra) or error.name not in LIBRARIES:
                raise
            raise missing(".".join(module.__name__.split(".")[:2]), error.name) from None


def install() -> None:
    """Tell from now on, where there is anything to tell."""
    if not all(map(is_there, LIBRARIES)):
        sys.meta_path.insert(0, Teller())
