"""The file of `--benchmark-json`: where it goes, whether it can be written, and what it gets without a timed cell."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mlexp.harness.results import Results

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


def write_unfinished(config: pytest.Config, path: Path, results: Results) -> None:
    """Where no cell was timed pytest-benchmark writes no file: a gate must still see what did not finish."""
    hook = config.hook
    machine_info = hook.pytest_benchmark_generate_machine_info(config=config)
    hook.pytest_benchmark_update_machine_info(config=config, machine_info=machine_info)
    commit_info = hook.pytest_benchmark_generate_commit_info(config=config)
    output = hook.pytest_benchmark_generate_json(
        config=config, benchmarks=[], include_data=True, machine_info=machine_info, commit_info=commit_info
    )
    path.write_text(json.dumps(output | results.extras(), indent=4, default=str))
