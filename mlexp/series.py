"""Series of cells as they are kept: small ones in the record's own line, large ones in an .npz beside it, by reference.

A reference stands where the numbers would: `{"npz": path, "sha256": of that file, "shape": [500, 1000]}`. The path is
relative to the folder of the file that holds the reference. Standard library only; numpy where there is a large one.
"""

import hashlib
import io
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from mlexp.store import write

LARGE = 10_000  # numbers in the series of a cell: with more they are in a file of their own
FOLDER = "series"  # beside a journal
NAME = re.compile(r"[0-9a-f]+-[0-9a-f]{8}\.npz\Z")
Series = dict[str, Any]  # name -> nested lists, a number, an array, or a reference
Files = dict[str, bytes]  # by relative path


class SeriesError(ValueError):
    """A series that cannot be read; the message names the file and what to do."""


def is_reference(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a value says where an array is: of a series itself no value is a dict."""
    return isinstance(value, dict)


def size(value: object) -> int:
    """How many numbers a series holds here; none where it is a reference."""
    if isinstance(value, (list, tuple)):
        return sum(map(size, value))
    return 0 if is_reference(value) else math.prod(getattr(value, "shape", ()))


def large_array(value: Any) -> Any:
    """A copy of an array (numpy, torch, ...) with more than `LARGE` numbers, NaN where it is not finite; None for what
    is smaller, and for what holds no plain numbers."""
    if size(value) <= LARGE:
        return None
    import numpy

    try:
        found = numpy.array(numpy.asarray(value))
    except (TypeError, RuntimeError):  # of torch: on a device, in bfloat16, with a gradient
        found = numpy.array(value.tolist())
    if found.dtype.kind == "f":
        found = found.astype(min(found.dtype, numpy.dtype(float), key=lambda kind: kind.itemsize), copy=False)
        found[~numpy.isfinite(found)] = math.nan
    return found if found.dtype.kind in "biuf" else None


def spilled(series: Series, key: str) -> tuple[Series, Files]:
    """The series of the cell `key` as its line holds them, and the file that goes beside the line: of large series all
    that are rectangular arrays. What is ragged stays in the line; None within an array becomes NaN."""
    if sum(map(size, series.values())) <= LARGE:
        return series, {}
    arrays = {name: found for name, value in series.items() if (found := _rectangular(value)) is not None}
    if not arrays:
        return inline(series), {}
    content = npz(arrays)
    digest = hashlib.sha256(content).hexdigest()
    path = f"{FOLDER}/{key}-{digest[:8]}.npz"
    made = {name: {"npz": path, "sha256": digest, "shape": list(array.shape)} for name, array in arrays.items()}
    return inline(series | made), {path: content}


def _rectangular(value: object) -> Any:
    """An array of what can be one, None for the rest."""
    if is_reference(value):
        return None
    import numpy

    try:
        return value if isinstance(value, numpy.ndarray) else numpy.array(value, dtype=float)
    except (ValueError, TypeError, OverflowError):
        return None


def inline(series: Series) -> Series:
    """The series as JSON can hold them."""
    return {name: _plain(value) for name, value in series.items()}


def _plain(value: Any) -> Any:
    if not hasattr(value, "tolist"):
        return value
    nested = value.astype(object)
    nested[value != value] = None  # NaN
    return nested.tolist()


def npz(arrays: Mapping[str, Any]) -> bytes:
    """The bytes of an .npz, as `numpy.load` reads it; equal arrays give equal bytes."""
    from numpy.lib import format as npy

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)
    return content.getvalue()


def read(series: Mapping[str, Any], name: str, folder: Path) -> Any:
    """One series; where it is a reference, the array that it stands for. Raises SeriesError where the file is not there
    or not what it was."""
    value = series[name]
    if not is_reference(value):
        return value
    import numpy

    content = content_of(value, folder)
    try:
        return numpy.load(io.BytesIO(content), allow_pickle=False)[name]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        path = folder / value["npz"]
        raise SeriesError(f"{path} does not hold the series {name!r} ({type(error).__name__}: {error})") from None


def content_of(reference: Mapping[str, Any], folder: Path) -> bytes:
    """The file behind a reference, as it was written. Raises SeriesError."""
    path, digest = reference.get("npz"), reference.get("sha256")
    if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
        raise SeriesError(f"a series is in {path!r:.80}, which is no path below the folder of its record")
    try:
        content = (folder / path).read_bytes()
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise SeriesError(f"{folder / path}: {why}; move it with the file that names it, or measure again") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise SeriesError(f"{folder / path} is not what was measured: its SHA-256 differs; restore it or measure again")
    return content


def missing(series: Mapping[str, Any], folder: Path) -> str:
    """Why the files of a cell's series cannot be read; empty where they can."""
    try:
        for value in {str(value.get("npz")): value for value in series.values() if is_reference(value)}.values():
            content_of(value, folder)
    except SeriesError as error:
        return str(error)
    return ""


def copied(series: Series, folder: Path, to: Path) -> Series:
    """The series for a file that stands beside the folder `to`, into which their files are copied."""
    found = dict(series)
    for name, value in series.items():
        if is_reference(value):
            path = to / Path(str(value["npz"])).name
            write(path, content_of(value, folder))
            found[name] = value | {"npz": f"{to.name}/{path.name}"}
    return found


def pruned(folder: Path, kept: Mapping[str, Series]) -> None:
    """Take away what an earlier version of the file beside this folder referred to."""
    values = [value for series in kept.values() for value in series.values()]
    names = {Path(str(value["npz"])).name for value in values if is_reference(value)}
    for path in folder.iterdir() if folder.is_dir() else ():
        if NAME.match(path.name) and path.name not in names:
            path.unlink(missing_ok=True)


class Kept(Mapping[str, Any]):
    """The series of a cell by name, each read when it is asked for."""

    def __init__(self, series: Series, folder: Path) -> None:
        self._series, self._folder = series, folder

    def __getitem__(self, name: str) -> Any:
        return read(self._series, name, self._folder)

    def __iter__(self) -> Iterator[str]:
        return iter(self._series)

    def __len__(self) -> int:
        return len(self._series)
