"""Files that are made once, cached in $XDG_CACHE_HOME/mlexp or ~/.cache/mlexp, each written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
Progress = Callable[[int, int, str], None] | None


def cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlexp"


def announce(progress: Progress, text: str) -> None:
    """Show a line that must be seen: through `progress` where there is one, else printed."""
    if progress is None:
        print(f"mlexp: {text}", flush=True)
    else:
        progress(0, 0, text)


def cached(path: Path, make: Callable[[], bytes], read: Callable[[bytes], Result], progress: Progress = None) -> Result:
    """Return `read` of the file's bytes; call `make` and store its bytes first if the file is missing or unreadable.

    `read` raises ValueError or KeyError on bytes that it cannot use.
    """
    if path.exists():
        try:
            return read(path.read_bytes())
        except (ValueError, KeyError, TypeError) as error:
            announce(progress, f"{path} is damaged ({type(error).__name__}: {error}); making it again")
    content = make()
    write(path, content)
    return read(content)


def cached_folder(path: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder; have `make` fill it first if it is not there.

    It is filled under another name and then renamed, so that a folder of this name is whole; where another process was
    first, its folder stays.
    """
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=path.name, suffix=".part"))
    try:
        make(part)
        os.chmod(part, 0o777 & ~_umask())
        try:
            os.rename(part, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def write(path: Path, content: bytes, sync: bool = False) -> None:
    """Write by a temporary file and os.replace: a reader sees all of it or none. `sync`: after a power cut too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
