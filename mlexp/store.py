"""Files that are made once and kept: under $XDG_CACHE_HOME/mlexp or ~/.cache/mlexp, written whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

Progress = Callable[[int, int, str], None] | None


def cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlexp"


def say(progress: Progress, text: str):
    """A line that must be seen: to whoever shows progress, else printed."""
    if progress is None:
        print(f"mlexp: {text}", flush=True)
    else:
        progress(0, 0, text)


def kept(path: Path, make: Callable[[], bytes], read: Callable[[bytes], object], progress: Progress = None):
    """`read` of the file's bytes; made and stored first if it is missing, made again if it cannot be read.

    `read` raises ValueError or KeyError on bytes it cannot use.
    """
    if path.exists():
        try:
            return read(path.read_bytes())
        except (ValueError, KeyError, TypeError) as error:
            say(progress, f"{path} is damaged ({type(error).__name__}: {error}); making it again")
    content = make()
    write(path, content)
    return read(content)


def write(path: Path, content: bytes):
    """Write by a temporary file and os.replace: a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
