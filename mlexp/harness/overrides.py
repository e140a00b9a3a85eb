"""What the command line changes in the questions: `--set` in their settings, `--model` in their axes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlexp import study
from mlexp.harness import grid, mistakes
from mlexp.harness.plan import Plan
from mlexp.harness.run_config import RunConfig


class Overrides:
    """The changes of a run. What does not fit a question raises nothing until it is known whether that is selected.

    Raises ValueError for a `--set` that is not of its form.
    """

    def __init__(self, texts: Sequence[str], run: RunConfig) -> None:
        self._run = run
        self._changes = [grid.parse_override(text) for text in texts]
        self._misfits: dict[str, str] = {}  # question -> what is wrong with what was given for it

    def settings(self, module: ModuleType, question: str) -> Any:
        """A question's settings for this scale, with `--set` applied."""
        changes = [change for change in self._changes if change.question in (None, question)]
        row = study.of(module).settings[self._run.scale]
        try:
            return grid.override(row, changes)
        except ValueError as error:
            self._misfits[question] = str(error)
            return row

    def further(self, module: ModuleType, question: str) -> Mapping[str, tuple[Any, ...]]:
        """The values that the command line adds to a question's axes."""
        try:
            if not hasattr(module, "more"):
                return {}
            added: Mapping[str, tuple[Any, ...]] = mistakes.call(
                Path(str(module.__file__)), module.more, self._run.options
            )
            return added
        except ValueError as error:
            self._misfits[question] = str(error)
            return {}

    def check(self, plans: Sequence[Plan]) -> None:
        """Raises UsageError for a `--set` that fits none, or more than one, of the selected questions, and for a
        `--model` that none of them takes."""
        questions = sorted({plan.question for plan in plans})
        for change in self._changes:
            if change.question and change.question not in questions:
                raise pytest.UsageError(f"{change}: unknown question; selected: {', '.join(questions)}")
            if not change.question and len(questions) > 1:
                scale = self._run.scale
                having = {p.question for p in plans if hasattr(p.study.settings.get(scale), change.name)}
                which = ", ".join(f"{question}.{change.name}" for question in questions if question in having)
                which = which or f"none of them has a setting {change.name!r}"
                raise pytest.UsageError(f"{change}: {len(questions)} questions are selected; say which: {which}")
        for question in questions:
            if question in self._misfits:
                raise pytest.UsageError(self._misfits[question])
        models = self._run.options.model
        if models and not any(hasattr(plan.module, "more") for plan in plans):
            names = ", ".join(questions)
            raise pytest.UsageError(f"--model {', '.join(models)}: not taken by what is selected: {names}")
