"""What a run says of its cells: a line for each, a table of arms for each question. Text from entries, no intervals.

The report has the intervals and the claims; this is what a look at the terminal is for.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mlexp.harness import grid
from mlexp.journal import Entry
from mlexp.record import METRICS, Metric, metrics_of

ROWS = 12  # of a question's table: with more, levels of the curve axes are taken together
REASON = 120  # characters of why a cell did not finish
UNNAMED = ("count", "ratio", "name", "flag")  # units that say nothing to a reader
TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
PREFIXED = ("FLOP", "bytes", "J", "FLOP/s", "bytes/s")  # those that take G and M before them
SIZES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
Block = tuple[object, ...]


def cell_line(entry: Entry, several: bool = False) -> str:
    """A cell in the study's words: `n1000 seed42 full: perplexity 37.4 (12 s)`. `several`: its question has more than
    one cell function, so that its name stands first."""
    labels = [grid.label(axis, value) for axis, value in entry.params.items()]
    names = [function_of(entry).removeprefix("test_")] if several or not labels else []
    return f"{' '.join([*names, *labels])}: {outcome_text(entry)}"


def outcome_text(entry: Entry) -> str:
    """What became of a cell: its outcome and its time, or its status and the reason."""
    if entry.status != "passed":
        reason = " ".join(str(entry.record.get("reason") or "").split())
        return f"{entry.status}{': ' * bool(reason)}{shortened(reason, REASON)}"
    name, time = outcome_of(entry), seconds(statistics.median(entry.durations))
    if name == "wall_s":
        return time
    metric = metric_of(entry, name)
    return f"{spoken(name, metric)} {amount(entry.record[name], metric.unit)} ({time})"


def outcome_of(entry: Entry) -> str:
    """The metric that a cell is about: its study's outcome where it recorded that, else its time."""
    name = str(entry.study.get("outcome") or "wall_s")
    return name if entry.record.get(name) is not None else "wall_s"


def metric_of(entry: Entry, name: str) -> Metric:
    return METRICS.get(name) or metrics_of(entry.metrics)[name]


def function_of(entry: Entry) -> str:
    return entry.cell.rpartition("::")[2].partition("[")[0]


def spoken(name: str, metric: Metric) -> str:
    """A metric's name without the unit in it, which its values bear."""
    return "time" if name == "wall_s" else name.removesuffix(f"_{metric.unit.lower()}")


def amount(value: Any, unit: str) -> str:
    """A value in its unit: `37.4`, `53.0 %`, `1.2 ms`, `4.71 GFLOP`."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if unit == "s":
        return seconds(value)
    if unit == "fraction":
        return f"{100 * value:.1f} %"
    size, letter = next((row for row in SIZES if abs(value) >= max(row[0], 1e4)), (1.0, ""))
    word = "" if unit in UNNAMED else unit
    gap = "" if unit in PREFIXED or not letter else " "
    return f"{value / size:.4g} {letter}{gap}{word}".strip()


def seconds(value: float) -> str:
    """A duration: `740 ns`, `1.2 ms`, `37 s`, `4.2 min`, `1.5 h`."""
    for long, name in ((3600, "h"), (60, "min")):
        if value >= 2 * long:
            return f"{value / long:.2g} {name}"
    size, name = next((row for row in TIMES if value >= row[0]), TIMES[-1])
    return f"{value / size:.3g} {name}"


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def summary(entries: Iterable[Entry]) -> list[str]:
    """For each cell function of each question, a title and a table of its arms."""
    functions: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        functions.setdefault((entry.question, function_of(entry)), []).append(entry)
    questions = [question for question, _ in functions]
    lines: list[str] = []
    for (question, function), cells in functions.items():
        name = question if questions.count(question) == 1 else f"{question} {function.removeprefix('test_')}"
        lines += table_of(name, cells)
    return lines


def folded(failures: Iterable[tuple[str, str, str]]) -> list[str]:
    """A line for each (status, reason, place) that several cells share: one mistake in a cell's body fails them all."""
    counts = Counter(failures)
    return [
        f"{count} cells {status}: {shortened(reason, REASON)}{f' ({where})' if ':' in where else ''}"
        for (status, reason, where), count in counts.items()
        if count > 1
    ]


def table_of(name: str, cells: Sequence[Entry]) -> list[str]:
    """Title and table of the cells of one function: a row an arm, or an arm and level where these are few."""
    passed, arm = [entry for entry in cells if entry.status == "passed"], arm_of(cells[0])
    if not passed:
        return [f"{name}: none of {len(cells)} cells finished"]
    arms, measured = arms_of(cells, arm), measures(passed)
    base = base_of(cells[0], arms)
    over = [axis for axis in cells[0].study.get("over", ()) if axis in cells[0].params and axis != arm]
    if len({level_of(entry, over) for entry in cells}) * len(arms) > ROWS:
        over = []
    rows = [
        [*level, *row_of([entry for entry in cells if level_of(entry, over) == level], arm, value, base, measured)]
        for level in dict.fromkeys(level_of(entry, over) for entry in cells)
        for value in arms
    ]
    head = [*over, arm or "cell", "cells"]
    for measure in measured:
        head += [spoken(measure, metric_of(cells[0], measure)), *([f"vs {base}"] if base else [])]
    what = ", ".join(f"{kind_of(measure)} {spoken(measure, metric_of(cells[0], measure))}" for measure in measured)
    note = f"; vs {base}: geometric mean of ratios within blocks (no interval)" if base else ""
    return [f"{name}: {what}{note}", *aligned([head, *rows], len(over) + 1)]


def row_of(cells: Sequence[Entry], arm: str, value: str, base: str, measured: Sequence[str]) -> list[str]:
    """The row of one arm: cells that finished, each measure, and its ratio to the arm `base`."""
    own = [entry for entry in cells if str(entry.params.get(arm, function_of(entry))) == value]
    passed = [entry for entry in own if entry.status == "passed"]
    row = [value, str(len(own)) if len(own) == len(passed) else f"{len(passed)} of {len(own)}"]
    for name in measured:
        values = [value_of(entry, name) for entry in passed]
        middle = statistics.median if kind_of(name) == "median" else statistics.fmean
        row.append(amount(middle(values), metric_of(cells[0], name).unit) if values else "-")
        if base:
            row.append("1" if value == base else ratio(pairs(cells, arm, value, base, name), len(passed)))
    return row


def pairs(cells: Iterable[Entry], arm: str, value: str, base: str, name: str) -> list[tuple[float, float]]:
    """(the arm, the baseline) by a measure, of every block that has both: one value of each other axis, one machine."""
    blocks: dict[Block, dict[str, float]] = {}
    for entry in cells:
        if entry.status == "passed":
            block = (*((axis, v) for axis, v in entry.params.items() if axis != arm), entry.record.get("machine"))
            blocks.setdefault(block, {})[str(entry.params[arm])] = value_of(entry, name)
    return [(block[value], block[base]) for block in blocks.values() if value in block and base in block]


def ratio(found: Sequence[tuple[float, float]], of: int) -> str:
    """The geometric mean of ratios; the mean difference, with a sign, where a value is no positive number."""
    if not found:
        return "-"
    if all(low > 0 for pair in found for low in pair):
        text = f"{statistics.geometric_mean([one / other for one, other in found]):.3g}x"
    else:
        text = f"{statistics.fmean([one - other for one, other in found]):+.3g}"
    return text if len(found) == of else f"{text} ({len(found)} pairs)"


def measures(passed: Sequence[Entry]) -> list[str]:
    """The outcome, where all cells have the same and it is a number, and their time."""
    names = {outcome_of(entry) for entry in passed}
    numeric = all(isinstance(entry.record.get(name, 0.0), int | float) for entry in passed for name in names)
    return [*(sorted(names - {"wall_s"}) if len(names) == 1 and numeric else []), "wall_s"]


def value_of(entry: Entry, name: str) -> float:
    return statistics.median(entry.durations) if name == "wall_s" else float(entry.record[name])


def kind_of(measure: str) -> str:
    return "median" if measure == "wall_s" else "mean"


def level_of(entry: Entry, over: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(entry.params[axis]) for axis in over)


def arm_of(entry: Entry) -> str:
    """The axis that is compared: what the study says, else the last one; empty for a cell without axes."""
    declared = str(entry.study.get("arm") or "")
    return declared if declared in entry.params else next(reversed(entry.params), "")


def arms_of(cells: Sequence[Entry], arm: str) -> list[str]:
    """Its values: those declared in their order, then the others in theirs."""
    present = dict.fromkeys(str(entry.params.get(arm, function_of(entry))) for entry in cells)
    declared = [str(name) for name in cells[0].study.get("arms", ())]
    return [*(name for name in declared if name in present), *(name for name in present if name not in declared)]


def base_of(entry: Entry, arms: Sequence[str]) -> str:
    """What the arms are compared with: the baseline, the first arm without one; nothing where there is one arm."""
    baseline = str(entry.study.get("baseline") or "")
    return "" if len(arms) < 2 else baseline if baseline in arms else arms[0]


def aligned(rows: Sequence[Sequence[str]], names: int) -> list[str]:
    """Rows as columns: the first `names` to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            text.ljust(width) if i < names else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
