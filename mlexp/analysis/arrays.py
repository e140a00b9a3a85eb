"""The series of a record as arrays; a large one is read from its file when it is asked for."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlexp import series
from mlexp.analysis.checks import array
from mlexp.analysis.sources import LoadError


class Arrays(Mapping[str, np.ndarray]):
    """Name -> array of one record; null becomes NaN. Raises LoadError for what is no array, and where a file is missing
    or was altered."""

    def __init__(self, kept: Mapping[str, Any], folder: Path, source: str) -> None:
        self._kept, self._folder, self._source = kept, folder, source
        self._here = {name: self._read(name) for name, value in kept.items() if not series.is_reference(value)}

    def _read(self, name: str) -> np.ndarray:
        where = f"{self._source}: series {name!r}"
        try:
            return array(series.read(self._kept, name, self._folder), where)
        except series.SeriesError as error:
            raise LoadError(f"{where}: {error}") from None

    def __getitem__(self, name: str) -> np.ndarray:
        return self._here[name] if name in self._here else self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
