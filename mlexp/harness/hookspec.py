"""The hook that mlexp offers to conftest files and plugins; docs/hook.md shows it at work."""

from collections.abc import Mapping

import pytest


@pytest.hookspec
def pytest_mlexp_record(config: pytest.Config, record: Mapping[str, object], series: Mapping[str, object]) -> None:
    """Called once a finished cell, of any status, when its record is in the journal.

    `record` is flat: axes, metrics, `wall_s`, `wall_iqr_s` and `rounds` (of cells that passed), provenance; a row as
    `mlexp.load` gives it. `record["replayed"]` marks a cell that `--resume` took from the journal. `series` are the
    cell's named arrays, read when they are asked for. A cell that a plugin runs again is called for at each `attempt`.
    Called in the session that was started, never in the processes of `--isolate`, `sweep` and `ab`. What it raises is
    told in one line and changes nothing else.

        def pytest_mlexp_record(config, record, series):
            print(record["cell"], record["status"], record.get("wall_s"))
    """
