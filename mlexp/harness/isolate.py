"""`--isolate`: a cell in a process of its own, so that a segfault, the kernel's OOM killer or a hang costs it alone."""

import os
import sys
from typing import Any

import pytest

from mlexp import journal
from mlexp.harness.plan import PLAN
from mlexp.harness.session import STATE
from mlexp.harness.status import CellDied
from mlexp.harness.worker import Child, files_of, late, record_of

START_S = 300.0  # for a session to come up, where cells may last so long at most


def run(item: pytest.Item) -> journal.Entry:
    """Run one cell in a fresh interpreter, with this session's arguments, and return its entry. Raises CellDied where
    there is none."""
    call, plan, limit = item.config.invocation_params, item.stash[PLAN], item.config.stash[STATE].run.cell_timeout
    assert plan.key, f"{plan.name} has no key yet"
    args, start = [os.fspath(arg) for arg in call.args], limit and max(limit, START_S)
    child = Child(args, [str(item.path)], str(call.dir), path=sys.path, timeout=start)
    reply: dict[str, Any] = {"died": child.broken}
    try:
        if not child.broken:
            reply = child.run(plan.name, plan.key, limit)
        entry, plan.files = entry_of(item, reply), files_of(reply)
    except TimeoutError:
        assert limit is not None, "nothing else sets a time limit"
        raise CellDied("crashed", late(limit)) from None
    finally:
        if "line" not in reply or reply["output"]:
            item.add_report_section("call", "output of the cell's process", child.tail())
        child.close(at_once="line" not in reply)
    return entry


def entry_of(item: pytest.Item, reply: dict[str, Any]) -> journal.Entry:
    """The entry of `item` in a reply. Raises CellDied where the reply has none."""
    if "died" in reply:
        raise CellDied("crashed", reply["died"].replace("its process", "the cell's process", 1))
    if "refused" in reply:
        raise CellDied("failed", f"the cell's own process refuses it: {reply['refused']}")
    if "skipped" in reply:
        pytest.skip(reply["skipped"])
    entry = record_of(item, reply["line"])
    if entry is None:
        raise CellDied("crashed", "what the cell's process sent is no record of it")
    return entry
