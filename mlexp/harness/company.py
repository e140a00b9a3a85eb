"""What is installed beside this plugin: what cells cannot be measured with, or not without, is refused in one line; and
what other plugins do to all tests is kept from cells where it would change what is measured.
"""

import itertools
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from mlexp import extras
from mlexp.harness.host import version
from mlexp.harness.imports import wanted_in_functions

MENDED, BROKEN_SINCE = Version("5.3.1"), Version("9.2")  # an older pytest-benchmark with that pytest: errors alone

# Plugins, by the name of their entry point -> those of their options and ini values that change nothing in a cell that
# has passed, and are therefore no part of its key.
CHANGES_NOTHING = {
    "randomly": ("randomly_seed", "randomly_reset_seed", "randomly_reorganize"),
    "rerunfailures": (
        *("reruns", "reruns_delay", "reruns_delay_backoff_factor", "reruns_mode", "only_rerun", "rerun_except"),
        *("rerun_exclude_path", "rerun_show_tracebacks", "fail_on_flaky", "force_reruns", "max_suite_reruns"),
    ),
    "timeout": (
        *("timeout", "timeout_method", "timeout_func_only", "timeout_disable_debugger_detection", "session_timeout"),
    ),
    "repeat": ("count", "repeat_scope"),
    "pytest_cov": (
        *("cov_source", "cov_report", "cov_config", "cov_branch", "cov_append", "cov_context", "cov_fail_under"),
        *("cov_precision", "no_cov", "no_cov_on_fail"),
    ),
    "sugar": ("force_sugar", "sugar_no_trace", "sugar_trace_dir", "tb_summary"),
    "html": (
        *("htmlpath", "self_contained_html", "css", "environment_table_redact_list", "generate_report_on_test"),
        *("initial_sort", "max_asset_filename_length", "render_collapsed"),
    ),
    "metadata": ("metadata", "metadata_from_json", "metadata_from_json_file"),
    "pytest-split": (
        *("splits", "group", "splitting_algorithm", "durations_path", "store_durations", "clean_durations"),
    ),
    "xdist": ("numprocesses", "maxprocesses", "dist", "tx"),  # `-n 0`: with more, nothing is measured
}
SHUFFLES = "randomly"  # the plugin that does; its shuffle comes before every other hook
COVERS = "pytest_cov"
PLACE = pytest.StashKey[int]()  # of an item among all that were collected
PLACES = pytest.StashKey["itertools.count[int]"]()


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


def changes_nothing(config: pytest.Config) -> set[str]:
    """The options and ini values of plugins that are here and that no cell depends on."""
    here = config.pluginmanager.hasplugin
    return {name for plugin, names in CHANGES_NOTHING.items() if here(plugin) for name in names}


def number(item: pytest.Item) -> None:
    """Note that an item is the next that was collected."""
    places = item.config.stash.setdefault(PLACES, itertools.count())
    item.stash[PLACE] = next(places)


def keep_apart(config: pytest.Config, items: list[pytest.Item], cells: list[pytest.Function]) -> None:
    """Keep from cells what plugins do to all tests: their order, which pairs the arms of a block, is that of the grid,
    and no round runs under coverage."""
    if config.pluginmanager.hasplugin(SHUFFLES):
        ours, ordered = set(cells), iter(sorted(cells, key=lambda cell: cell.stash[PLACE]))
        items[:] = [next(ordered) if item in ours else item for item in items]
    if config.pluginmanager.hasplugin(COVERS):
        for cell in cells:
            cell.add_marker("no_cover")


def tracer() -> str | None:
    """What follows every line or call of this process, and slows it down: coverage, a debugger, a profiler."""
    for function in (sys.gettrace(), sys.getprofile()):
        if function is not None:
            kind = function if hasattr(function, "__qualname__") else type(function)
            return f"{kind.__module__}.{kind.__qualname__}"
    monitoring = getattr(sys, "monitoring", None)  # from Python 3.12 on
    tools = [tool for tool in range(6) if monitoring and monitoring.get_tool(tool) and monitoring.get_events(tool)]
    return str(monitoring.get_tool(tools[0])) if monitoring and tools else None
