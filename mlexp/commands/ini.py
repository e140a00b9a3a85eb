"""Where a project configures pytest, and whether mlexp's plugin is switched on there. Files are read, never changed."""

import configparser
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

PLUGIN = "mlexp.harness.plugin"
OPTION = f"-p {PLUGIN}"
INI = (
    f"[pytest]\naddopts = {OPTION}\npythonpath = .\n"  # the path, so that bench files can import the project's modules
)
ALONE = ("pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini")  # configure pytest even where they are empty
PLACES = (  # (file, its table), in the order in which pytest looks for them
    *((name, "pytest") for name in ALONE),
    ("pyproject.toml", "tool.pytest"),
    ("pyproject.toml", "tool.pytest.ini_options"),
    ("tox.ini", "pytest"),
    ("setup.cfg", "tool:pytest"),
)


class Place(NamedTuple):
    """A file and the table in it that configure pytest, and what that holds."""

    path: Path
    table: str
    values: dict[str, Any]

    @property
    def is_on(self) -> bool:
        """Whether the plugin is switched on here, or in the conftest file beside it."""
        conftest = self.path.with_name("conftest.py")
        return PLUGIN in str(self.values.get("addopts", "")) or (
            conftest.is_file() and PLUGIN in conftest.read_text(encoding="utf-8", errors="replace")
        )

    @property
    def lines(self) -> str:
        """What has to stand in the file, with the options that are there."""
        before = self.values.get("addopts", "")
        if isinstance(before, list):
            shown = ", ".join(f'"{word}"' for word in (*before, *OPTION.split()))
            return f"[{self.table}]\naddopts = [{shown}]"
        joined = " ".join([*str(before).split(), OPTION])
        if self.table == "tool.pytest" or (self.path.suffix == ".toml" and self.table == "pytest"):
            return f'[{self.table}]\naddopts = ["-p", "{PLUGIN}"]'
        return f"[{self.table}]\naddopts = " + (f'"{joined}"' if self.path.suffix == ".toml" else joined)


def place_of(folder: Path) -> Place | None:
    """Where pytest finds its configuration in a folder. Raises ValueError for a file that cannot be read."""
    for name, table in PLACES:
        path = folder / name
        if path.is_file():
            values = _table(path, table)
            if values is not None or name in ALONE:
                return Place(path, table, values or {})
    return None


def import_paths(folder: Path) -> list[str]:
    """From where pytest run in a folder lets bench files import the project's modules: `pythonpath`, and the folder."""
    try:
        place = place_of(folder)
    except ValueError:  # pytest says what is wrong with it
        place = None
    given = place.values.get("pythonpath", "") if place else ""
    return [str((folder / name).resolve()) for name in (*(given.split() if isinstance(given, str) else given), ".")]


def _table(path: Path, name: str) -> dict[str, Any] | None:
    """A table of a file; None where it is not there."""
    try:
        if path.suffix == ".toml":
            found: Any = tomllib.loads(path.read_text(encoding="utf-8"))
            for part in name.split("."):
                found = found.get(part)
                if not isinstance(found, dict):
                    return None
            return None if name == "tool.pytest" and set(found) == {"ini_options"} else found
        parser = configparser.RawConfigParser(strict=False)
        parser.read_string(path.read_text(encoding="utf-8"))
        return dict(parser[name]) if name in parser else None
    except (tomllib.TOMLDecodeError, configparser.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}".splitlines()[0]) from None
