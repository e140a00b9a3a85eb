"""The plugin's own options, under names that nobody else has; and everybody else's, where a cell can read them.

Every option is `--mlexp-NAME`, and `--NAME` too where that is free. Who else owns names is known only when the
project's conftest files are loaded, so the options are added right after that.
"""

import argparse
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import pytest
from _pytest.config import get_config

from mlexp.harness.company import changes_nothing
from mlexp.harness.grid import SCALES

REPORTS = "results"  # where a report goes that names no folder

TABLE: dict[str, dict[str, Any]] = {
    "scale": {"choices": SCALES, "default": "quick", "help": "which row of the questions' settings (default: quick)"},
    "set": {
        "action": "append",
        "default": [],
        "metavar": "NAME=VALUE",
        "help": "override a setting of the question",
    },
    "device": {
        "choices": ("auto", "cpu", "cuda"),
        "default": "auto",
        "help": "where cells run (default: a GPU if present)",
    },
    "dtype": {
        "choices": ("auto", "float32", "bfloat16"),
        "default": "auto",
        "help": "auto: float32 on CPU, bfloat16 on GPU",
    },
    "weights": {"metavar": "auto|random|PATH", "help": "pretrained weights: the local cache, none, or a folder"},
    "model": {
        "action": "append",
        "default": [],
        "metavar": "NAME=FOLDER",
        "help": "a checkpoint as a further model",
    },
    "prompts": {"metavar": "PATH", "help": "a JSONL file of prompts instead of the question's own"},
    "corpus": {"metavar": "PATH", "help": "a text file instead of the built-in text"},
    "journal": {"metavar": "PATH", "help": "finished cells (default: .mlexp/journal.jsonl in the root directory)"},
    "resume": {"action": "store_true", "help": "replay the cells that the journal holds, run the rest"},
    "isolate": {"action": "store_true", "help": "each cell in a process of its own: a crash costs one cell"},
    "cell-timeout": {
        "type": float,
        "metavar": "SECONDS",
        "help": "end a cell that takes longer, as crashed; implies --isolate",
    },
    "require-gpu": {"action": "store_true", "help": "a cell or test that needs a GPU fails where there is none"},
    "report": {
        "nargs": "?",
        "const": REPORTS,
        "metavar": "DIR",
        "help": "write the report when the session ends, also after Ctrl+C (--report=DIR; default: results)",
    },
    "commit": {"metavar": "COMMIT", "help": "what records name as the commit, where git cannot tell it"},
}
TIMED = ("benchmark_disable_gc",)  # of pytest-benchmark's options, what changes how long a cell takes


def add(parser: pytest.Parser) -> list[str]:
    """Add the options, each under every name of its own that is still free. Returns the names that are not."""
    group, clashes = parser.getgroup("mlexp", "experiment cells"), []
    for name, attributes in TABLE.items():
        short = [f"--{name}"] if is_free(parser, f"--{name}") else []
        group.addoption(f"--mlexp-{name}", *short, dest=dest(name), **attributes)
        clashes += [] if short else [name]
    return clashes


def yield_names(parser: pytest.Parser) -> None:
    """Once pytest has parsed its arguments, let conftest files that it meets in collection have our short names: they
    can add no option any more, but must not fail in trying (from pytest 9.2 on they would)."""
    known = getattr(getattr(parser, "optparser", None), "_option_string_actions", {})
    for name in TABLE:
        action = known.get(f"--{name}")
        if action is not None and action.dest == dest(name):
            del known[f"--{name}"]


def dest(name: str) -> str:
    return f"mlexp_{name.replace('-', '_')}"


def is_free(parser: pytest.Parser, flag: str) -> bool:
    """Whether no plugin or conftest has taken `flag`."""
    try:
        return flag in parser.parse_known_and_unknown_args([flag])[1]
    except pytest.UsageError:  # it is there, and wants a value
        return False


def ours(config: pytest.Config) -> SimpleNamespace:
    """The values of our options, by name."""
    return SimpleNamespace(**{name.replace("-", "_"): getattr(config.option, dest(name)) for name in TABLE})


class Scan(argparse.ArgumentParser):
    """A parser that raises ValueError instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def without_ours(parser: pytest.Parser, args: list[str]) -> list[str]:
    """`args` without our options and their values: until these are added, pytest takes the values for paths."""
    scan, args = Scan(add_help=False, allow_abbrev=False), spelled_out(parser, args)
    for name, attributes in TABLE.items():
        flags = [flag for flag in (f"--mlexp-{name}", f"--{name}") if is_free(parser, flag)]
        action = "store_true" if attributes.get("action") == "store_true" else "store"
        scan.add_argument(*flags, dest=dest(name), action=action)
    try:
        return scan.parse_known_args(args)[1]
    except ValueError:  # a value is missing: pytest says so in the end
        return args


def spelled_out(parser: pytest.Parser, args: list[str]) -> list[str]:
    """`args` with the folder behind `--report` where it was left out: the next word is a path of cells. To be asked
    before our options are added."""
    flags = [flag for flag in ("--mlexp-report", "--report") if is_free(parser, flag)]
    return [f"{arg}={REPORTS}" if arg in flags else arg for arg in args]


class Others(NamedTuple):
    """What is not at its default of the options and ini values that are neither pytest's, pytest-benchmark's nor ours:
    those that the project's conftest files added, and those of plugins (but for what company.CHANGES_NOTHING lists)."""

    by_project: dict[str, object]
    by_plugins: dict[str, object]


def others(config: pytest.Config, parser: pytest.Parser, of_plugins: set[str]) -> Others:
    """Read them; `of_plugins` are the names that stood before the conftest files were loaded."""
    known, nothing = names(get_config()._parser), changes_nothing(config)
    values: dict[str, object] = {}
    for name, default in vars(parser.parse_known_args([])).items():
        value = getattr(config.option, name, default)
        if value != default and f"--{name}" not in known and is_theirs(name):
            values[f"--{name}"] = plain(value)
    for name in names(parser) - known:
        if not name.startswith("--") and (value := config.getini(name)) and value != parser._inidict[name][2]:
            values[name] = plain(value)
    shown = {name: value for name, value in values.items() if name in of_plugins}
    by_plugins = {name: value for name, value in shown.items() if name.removeprefix("--") not in nothing}
    return Others({name: value for name, value in values.items() if name not in of_plugins}, by_plugins)


def names(parser: pytest.Parser) -> set[str]:
    """What a parser knows: `--dest` of every option, and every ini value."""
    return {f"--{name}" for name in vars(parser.parse_known_args([]))} | set(parser._inidict)


def is_theirs(name: str) -> bool:
    return name in TIMED or not name.startswith(("benchmark_", "mlexp_"))


def plain(value: object) -> object:
    """A value as JSON can hold it."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
