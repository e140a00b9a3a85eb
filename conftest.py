"""What pytest must know before it collects: Hypothesis profiles, table hooks, Triton's interpreter without a GPU."""

import os

from hypothesis import Phase, settings

from mlexp.harness.measure import gpu_present
from mlexp.harness.plugin import (
    is_cell,
    pytest_benchmark_group_stats,  # noqa: F401, for `pytest-benchmark compare`
    skip_without_gpu,
)

# Shared machines make deadlines meaningless; CI must see the same examples on every run.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile(  # a planted fault is noticed by the first example that shows it
    "planted", deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

if not gpu_present():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is imported, so it must stand first


def pytest_runtest_setup(item):
    """Tests are marked `needs_gpu` too; of cells the plugin takes care."""
    if not is_cell(item):
        skip_without_gpu(item)
