"""`mlexp sweep`: the cells of a pytest call on a Ray cluster, in one pytest session that is the driver.

The session collects, gives keys and takes up a journal as any other. In place of its loop, each cell goes to a warm
worker with a share of the cluster to itself (dispatch.py, cluster.py); the driver journals what comes back. Then the
loop runs as ever and finds every cell finished, so that table, JSON and exit status are those of a local run because
the same code makes them.
"""

import os
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from mlexp import extras, journal
from mlexp.harness import measure
from mlexp.harness.cluster import available_cores, described, nodes
from mlexp.harness.dispatch import Dispatch, Room, SweepError
from mlexp.harness.plan import PLAN
from mlexp.harness.session import STATE, SWEEP, State

STORE_BYTES = 100 << 20  # of a cluster started here: records are small and never in it


@dataclass(frozen=True)
class Share:
    """What a cell has of the cluster, and how often it may lose its worker."""

    address: str | None = None
    gpus: float | None = None
    cpus: int | None = None
    share_cores: bool = False
    retries: int = 2


def run(share: Share, args: Sequence[str]) -> int:
    """`mlexp sweep`: returns the exit status, pytest's own."""
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):  # a cell is timed at the priority of a local one
        os.environ.setdefault(name, "0")
    try:
        extras.need("mlexp sweep", "ray")
    except extras.MissingExtra as error:
        print(error, file=sys.stderr)
        return int(pytest.ExitCode.USAGE_ERROR)
    import ray

    early = "ignore:Module already imported so cannot be rewritten; mlexp:pytest.PytestAssertRewriteWarning"
    return int(pytest.main(["-p", "mlexp.harness.plugin", "-W", early, *args], plugins=[Sweep(ray, share)]))


class Sweep:
    """The pytest plugin of the driver."""

    def __init__(self, ray: Any, share: Share) -> None:
        self.ray, self.share = ray, share
        self.cpus = share.cpus or measure.threads()

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[SWEEP] = self
        self.settle_device(config)
        if getattr(config.option, "benchmark_disable", False):
            raise pytest.UsageError("--benchmark-disable would measure nothing; drop it, or sweep")

    def settle_device(self, config: pytest.Config) -> None:
        """Decide where cells run before the plugin looks at this machine: a driver may well have no GPU."""
        gpus, option = self.share.gpus, config.option
        if option.mlexp_device == "auto":
            wanted = gpus > 0 if gpus is not None else measure.gpu_present()
            option.mlexp_device = "cuda" if wanted else "cpu"
        self.gpus = gpus if gpus is not None else float(option.mlexp_device == "cuda")
        device = option.mlexp_device
        if (device == "cuda") != (self.gpus > 0):
            raise pytest.UsageError(f"--gpus-per-cell {self.gpus:g} with --device {device}: they contradict")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        failed = session.testsfailed and not session.config.option.continue_on_collection_errors
        if failed or session.config.option.collectonly:
            return (yield)
        stopped: BaseException | None = None
        try:
            self.sweep(session)
        except (KeyboardInterrupt, SweepError, journal.JournalError) as error:
            stopped = error  # the JSON still gets what has finished
            session.items[:] = [item for item in session.items if PLAN in item.stash and item.stash[PLAN].elsewhere]
        result = yield
        if isinstance(stopped, KeyboardInterrupt):
            raise stopped
        if stopped:
            raise pytest.UsageError(f"sweep: {stopped}")
        return result

    def sweep(self, session: pytest.Session) -> None:
        """Run on the cluster the cells that no journal has."""
        state, items = session.config.stash[STATE], [item for item in session.items if PLAN in item.stash]
        if not items:
            return
        try:
            self.connect()
            if state.results.finished:
                self.take_up(state, items)
            todo = [item for item in items if not item.stash[PLAN].elsewhere]
            if todo:
                share = self.share
                room = Room(self.cpus, self.gpus, share.share_cores, share.retries, local=not share.address)
                Dispatch(self.ray, room, session.config, todo).run()
        except self.ray.exceptions.RayError as error:
            raise SweepError(f"the cluster is gone ({type(error).__name__})") from None
        finally:
            self.ray.shutdown()

    def connect(self) -> None:
        """To the cluster at the address, or one of this machine alone."""
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        alone = {"num_cpus": len(available_cores()), "include_dashboard": False, "object_store_memory": STORE_BYTES}
        try:
            if self.share.address:
                self.ray.init(address=self.share.address, **quiet)
            else:
                self.ray.init(address="local", **alone, **quiet)
        except Exception as error:  # Ray raises anything, bare Exception too
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise SweepError(f"--address {self.share.address or 'local'}: no Ray cluster ({first})") from None

    def take_up(self, state: State, items: list[pytest.Item]) -> None:
        """`--resume`: a cell is finished if the journal has it from a machine such as the cluster is made of."""
        machines = self.machines(state.run.device)
        for plan in (item.stash[PLAN] for item in items):
            plan.elsewhere, plan.is_journaled = None, False  # of the driver's machine
            for machine in machines:
                if not plan.elsewhere:
                    plan.key = state.keys.key_on(plan, machine)
                    state.take_up(plan)

    def machines(self, device: str) -> set[str]:
        """What cells would call the nodes of the cluster."""
        from ray.util.scheduling_strategies import (
            NodeAffinitySchedulingStrategy as OnNode,
        )

        probe = self.ray.remote(num_cpus=0)(described)
        waits = {name: os.environ[name] for name in measure.WAITS if name in os.environ}
        calls = [
            probe.options(scheduling_strategy=OnNode(node["NodeID"], soft=False)).remote(device, self.threads(), waits)
            for node in nodes(self.ray)
        ]
        answered, _ = self.ray.wait(calls, num_returns=len(calls), timeout=60)
        return {text for ref in answered for text in self.replies(ref)}

    def replies(self, ref: object) -> list[str]:
        """The reply to a call, none if its node is lost."""
        try:
            return [self.ray.get(ref)]
        except self.ray.exceptions.RayError:  # a node that has just left
            return []

    def threads(self) -> int | None:
        """Threads of a cell as its record will have them; None = as many as its node has cores."""
        limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        return measure.threads() if limit.isdigit() and int(limit) else None if self.share.share_cores else self.cpus
