"""What is installed beside this plugin: what cells cannot be measured with, or not without, is refused in one line."""

from pathlib import Path

import pytest
from packaging.version import Version

from mlexp import extras
from mlexp.harness.host import version
from mlexp.harness.imports import wanted_in_functions

MENDED, BROKEN_SINCE = Version("5.3.1"), Version("9.2")  # an older pytest-benchmark with that pytest: errors alone


def check_versions(config: pytest.Config) -> None:
    """Raise UsageError for a pytest-benchmark that this pytest breaks, which no requirement can rule out."""
    benchmark, pytest_s = version("pytest-benchmark"), version("pytest")
    if not benchmark or not pytest_s or not config.pluginmanager.hasplugin("benchmark"):
        return
    if Version(benchmark) < MENDED and Version(pytest_s) >= BROKEN_SINCE:
        told = f"pytest-benchmark {benchmark} and pytest {pytest_s} do not work together"
        raise pytest.UsageError(f'{told}: pip install "pytest-benchmark>={MENDED}" or "pytest<{BROKEN_SINCE}"')


def check_extras(bench: Path) -> None:
    """Say once a file what its cells lack, instead of once a cell."""
    for who in sorted({".".join(name.split(".")[:2]) for name in wanted_in_functions(bench)} & extras.NEEDS.keys()):
        try:
            extras.need(who)
        except extras.MissingExtra as error:
            raise pytest.Collector.CollectError(str(error)) from None
