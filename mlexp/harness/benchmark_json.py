"""The file of `--benchmark-json`: where it goes, whether it can be written, and what it gets without a timed cell."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mlexp.harness.session import State
from mlexp.series import FOLDER, pruned

JSON_WRITTEN = pytest.StashKey[bool]()  # by pytest-benchmark


def json_path(config: pytest.Config) -> Path | None:
    """Where `--benchmark-json` points (before 5.3 pytest-benchmark's option is an open file)."""
    target: Any = getattr(config.option, "benchmark_json", None)
    if hasattr(target, "write"):
        target = target.name
    return config.invocation_params.dir / target if target else None


def check_json(config: pytest.Config, path: Path) -> None:
    """Raises UsageError where the JSON of these cells could not be written in the end."""
    name = f"--benchmark-json {path}"
    if not path.parent.is_dir():
        raise pytest.UsageError(f"{name}: the folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise pytest.UsageError(f"{name}: cannot be written")
    if is_disabled(config):
        raise pytest.UsageError("--benchmark-disable with --benchmark-json would write nothing; drop one of them")


def is_disabled(config: pytest.Config) -> bool:
    """Whether `--benchmark-disable` is in force."""
    disabled = config.getoption("benchmark_disable", False) and not config.getoption("benchmark_enable", False)
    return bool(disabled)


def add_ours(config: pytest.Config, output: dict[str, Any], state: State) -> None:
    """Complete the output of pytest-benchmark: once for `--benchmark-json`, then for what `--benchmark-save` asks."""
    path, folder = json_path(config), state.journal.path.parent
    if path and JSON_WRITTEN not in config.stash:
        beside = path.with_name(f"{path.stem if path.suffix == '.json' else path.name}.series")
        output.update(state.results.extras(folder, beside))
        pruned(beside, output["series"])
        config.stash[JSON_WRITTEN] = True
    else:
        get = getattr(config._benchmarksession.storage, "get", None)  # type: ignore[attr-defined]  # its own
        beside = Path(get(FOLDER)) if get else folder / FOLDER  # elsewhere than in files: where they are
        output.update(state.results.extras(folder, beside))


def write_unfinished(config: pytest.Config, path: Path, state: State) -> None:
    """Where no cell was timed pytest-benchmark writes no file: a gate must still see what did not finish."""
    hook = config.hook
    machine_info = hook.pytest_benchmark_generate_machine_info(config=config)
    hook.pytest_benchmark_update_machine_info(config=config, machine_info=machine_info)
    commit_info = hook.pytest_benchmark_generate_commit_info(config=config)
    output = hook.pytest_benchmark_generate_json(
        config=config, benchmarks=[], include_data=True, machine_info=machine_info, commit_info=commit_info
    )
    add_ours(config, output, state)
    path.write_text(json.dumps(output, indent=4, default=str))
