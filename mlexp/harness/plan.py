"""The plan of a cell: its place in the grid, its settings, inputs and key, and what has become of it."""

import dataclasses
import hashlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlexp import journal, study
from mlexp.harness import grid, identity
from mlexp.harness.status import Attempt
from mlexp.series import Files

PLAN = pytest.StashKey["Plan"]()
PLUGINS = pytest.StashKey[dict[tuple[Path, frozenset[ModuleType]], tuple[Path, ...]]]()  # see plugins_of


class Plan:
    """A cell before it runs: its place in the grid, its settings, its inputs, its key; and what has become of it."""

    def __init__(self, item: pytest.Function) -> None:
        self.name, self.module, self.path = item.nodeid, item.module, item.path
        self.plugins = plugins_of(item)
        self.question = item.path.parent.name
        self.params = axes_of(item)
        self.block = dict(list(self.params.items())[:-1])  # all axes but the arm
        self.settings: Any = None  # the question's dataclass, where it declares one
        self.inputs: dict[str, Any] = {}
        self.key = ""  # until it is known where the cell runs
        self.elsewhere: journal.Entry | None = None  # what it left where it ran, if not in this session
        self.is_journaled = False  # that entry
        self.files: Files = {}  # of large series, where it is not
        self.attempt = Attempt(0)

    @property
    def group(self) -> str:
        """What pytest-benchmark's table puts together: the arms of one block."""
        return "-".join([self.question, *(grid.label(axis, value) for axis, value in self.block.items())])

    @property
    def seed(self) -> int:
        """32 bits from the block's axes: never from the arm, nor from where the file lies."""
        text = grid.canonical({"question": self.question, **self.block})
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    @property
    def study(self) -> study.Study:
        """What the bench file declares; without a word on arms, the last axis is the arm."""
        declared = study.of(self.module)
        return declared if declared.arm or not self.params else dataclasses.replace(declared, arm=list(self.params)[-1])


def params_of(item: pytest.Function) -> dict[str, Any]:
    """What an item is parametrized with."""
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


def axes_of(item: pytest.Function) -> dict[str, Any]:
    """The axes of a cell: those declared of its arguments, else all that are parametrized. What plugins parametrize
    beside them, such as a repetition, is no axis. Raises TypeError for a value that is neither number nor text.
    """
    arguments = inspect.signature(item.function).parameters
    declared, params = study.of(item.module).axes or arguments, params_of(item)
    axes = {name: params[name] for name in arguments if name in params and name in declared}
    for name, value in axes.items():
        if not isinstance(value, (str, int, float, bool, type(None))):
            shown = f"{type(value).__module__}.{type(value).__qualname__}"
            raise TypeError(f"{item.nodeid}: axis {name!r} holds a {shown}; give a number or a name of it")
    return axes


def plugins_of(item: pytest.Item) -> tuple[Path, ...]:
    """The project's files that bring an item fixtures and hooks: the conftest files above it, and plugins that these or
    the arguments name."""
    known = item.config.stash.setdefault(PLUGINS, {})
    modules = frozenset(plugin for plugin in item.config.pluginmanager.get_plugins() if isinstance(plugin, ModuleType))
    if (item.path.parent, modules) not in known:  # the cells of a file have the same, and there may be thousands
        above = [folder for folder in item.path.parents if folder.is_relative_to(item.config.rootpath)]
        conftests = [path for folder in above if (path := folder / "conftest.py").is_file()]
        files = [source for module in modules if (source := identity.source_of(module))]
        own = sorted(path for path in files if path.name != "conftest.py")
        known[item.path.parent, modules] = (*conftests, *own)
    return known[item.path.parent, modules]
