"""The keys of a run's cells: what each covers, and whether what a finished cell imported still is what it was."""

import functools
from pathlib import Path
from typing import Any

from mlexp import __version__, journal
from mlexp.harness import grid, identity
from mlexp.harness.plan import Plan
from mlexp.harness.run_config import RunConfig


class Keys:
    """Makes the keys of cells. To be made before the bench files are imported; `sources` has what they import."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        self.sources = identity.Sources([run.root])
        self.covered = functools.cache(self.sources.of)
        self.source = functools.cache(self._source)

    def key_on(self, plan: Plan, machine: str) -> str:
        """The key of a plan's cell where it runs on `machine`."""
        return identity.cell_key(
            plan.name,
            [machine, self.run.device, self.run.dtype, self.run.scale],
            self.settings_text(plan),
            self.run.others.by_plugins,
            plan.inputs,
            self.source(plan.path, plan.plugins),
        )

    def _source(self, bench: Path, plugins: tuple[Path, ...]) -> list[Any]:
        """What the key covers of the code: the files' hashes and the versions of what else is imported."""
        files, others = self.covered(bench, plugins)
        versions = identity.packages(others) | {"mlexp": __version__}
        return [[[path.name, identity.file_hash(path)] for path in files], versions]

    def settings_text(self, plan: Plan) -> str:
        """The settings that all cells of the question share, and the project's own options, in one spelling."""
        shared = grid.fixed(plan.settings, plan.study.axes) if plan.settings else {}
        return grid.canonical(shared | self.run.others.by_project)

    def changed(self, plan: Plan) -> str:
        """What `--set` and the project's own options changed in them."""
        options = " ".join(f"{name}={value}" for name, value in self.run.others.by_project.items())
        if plan.settings is None:
            return options
        sets = grid.changed(plan.settings, plan.study.settings[self.run.scale], plan.study.axes)
        return " ".join(filter(None, (sets, options)))

    def imports(self, plan: Plan) -> tuple[dict[str, str], dict[str, str | None]]:
        """What a cell that has run imported beyond what its key covers: files and their hashes, distributions and their
        versions."""
        self.sources.loaded_by(plan.path)
        files, _ = self.sources.of(plan.path, plan.plugins, seen=True)
        known, _ = self.covered(plan.path, plan.plugins)
        return identity.hashed(sorted(set(files) - set(known)), self.run.root), identity.packages(self.sources.loaded)

    def still_holds(self, entry: journal.Entry) -> bool:
        """Whether what a finished cell imported is now as it was then."""
        return identity.unchanged(entry.imports, entry.packages, self.run.root)
