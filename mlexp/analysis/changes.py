"""How one metric's change is judged, cell by cell: its kind, its limits, and the rows of what is not tested over seeds.

A verdict never follows from a comparison with NaN: a value of 0 has no logarithm and no share of it, so that direction
is the sign of the difference, and what cannot be compared with a limit counts as beyond it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from mlexp.analysis import gate
from mlexp.analysis.gate import Limit, Refused, Rule, Verdict
from mlexp.record import Metric

BETWEEN_RUNS = 0.08  # sd of the log of a median from run to run, A/A on shared virtual machines
DEFAULT = {
    "exact": Limit(0.0, False),
    "memory": Limit(0.05, True),
    "fraction": Limit(0.005, False),
    "quality": Limit(0.005, True),
    "time": Limit(0.05, True),
    "other": Limit(0.005, True),
}
HEAP_BYTES = 2**22
EXACT_PEAK = "cuda_allocator"
UNCLEAR = "changed; neither direction is better"
COLUMNS = (
    *("cell", "metric", "kind", "verdict", "fails", "exit", "base", "head", "change", "points", "low", "high", "n"),
    *("test", "p", "why"),
)
"""`exit`: the exit status that the row asks for; `test`: which test its p is of (see `quality`)."""


def kind_of(metric: Metric, values: pd.Series) -> str:
    """How a metric is compared: as it is declared, whatever its values are, unless these are no numbers."""
    return metric.compared if numeric(values) else "exact"


def numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def directed(name: str, metric: Metric, question: str, rules: Sequence[Rule]) -> Metric:
    """The metric with the direction that a rule gives it. Raises Refused against a declared one."""
    for rule in rules:
        if rule.better and gate.fits(name, rule.metric) and gate.fits(question, rule.question):
            if metric.better not in ("none", rule.better):
                raise Refused(gate.UNREADABLE, f"{rule.text}: {name} is declared: {metric.better} is better")
            metric = metric._replace(better=rule.better)
    return metric


def limits(cells: pd.DataFrame, name: str, metric: Metric, kind: str, rules: Sequence[Rule]) -> pd.DataFrame:
    """A row a cell: `amount`, `relative`; `sign`, the bad direction (0: none); `gated`; `asked`: whether a rule set it;
    `points`: whether changes are shown as differences. Raises Refused for a limit against the metric's direction.
    """
    own, points = {"lower": 1, "higher": -1, "none": 0}[metric.better], metric.unit == "fraction"
    default = DEFAULT["fraction" if kind == "quality" and points else kind]
    gated = kind == "exact" or (own != 0 and kind in ("memory", "quality"))
    filled = {"amount": default.amount, "relative": default.relative, "sign": own, "gated": gated, "asked": False}
    bound = pd.DataFrame(filled | {"points": points}, index=cells.index)
    for rule in rules:
        where = gate.matches(cells["question"], rule.question) & gate.matches(cells["cell"], rule.cell)
        if not where.any() or not gate.fits(name, rule.metric):
            continue
        bound.loc[where, "gated"] = rule.gated
        if rule.limit:
            if own and rule.limit.sign != own:
                raise Refused(gate.UNREADABLE, f"{rule.text}: {name} is better {metric.better}; give the other sign")
            for column, value in zip(("amount", "relative", "sign", "asked"), (*rule.limit, True), strict=True):
                bound.loc[where, column] = value
    return bound


def exact(pair: pd.DataFrame, name: str, kind: str) -> pd.DataFrame:
    """Value against value. A change that has no direction is AMBIGUOUS; of an exact metric it fails all the same."""
    if numeric(pair["base"]) and numeric(pair["head"]):
        heap = (kind == "memory") & ~pair["asked"] & (pair["peak_method_base"] != EXACT_PEAK)
        changed = beyond(pair, allowed(pair).clip(lower=HEAP_BYTES * heap))
        moved: np.ndarray | Verdict = direction(pair)
    else:
        changed, moved = pair["base"].astype(object) != pair["head"].astype(object), Verdict.AMBIGUOUS
    verdict = np.where(changed, np.where(pair["sign"] == 0, Verdict.AMBIGUOUS, moved), Verdict.SAME)
    unclear = verdict == Verdict.AMBIGUOUS
    fails = pair["gated"] & ((verdict == Verdict.WORSE) | (unclear & (kind == "exact")))
    return rows_of(pair, name, kind, verdict=verdict, exit=fails * gate.REGRESSION, why=np.where(unclear, UNCLEAR, ""))


def timing(pair: pd.DataFrame, name: str, kind: str) -> pd.DataFrame:
    """Two runs: SAME within the limit, WORSE or BETTER beyond it and the noise of two runs, else AMBIGUOUS.

    A limit that was asked for is judged on the estimate: beyond it a cell is WORSE, noise or not. So is a value of 0,
    or below, beside one above 0: no noise makes one of the other.
    """
    positive = (pair["head"] > 0) & (pair["base"] > 0)
    log = pd.Series(np.log((pair["head"] / pair["base"]).where(positive)))
    variance = pd.Series(2 * BETWEEN_RUNS**2, index=pair.index)
    for side in ("base", "head") if name == "wall_s" else ():
        spread = (pair[f"wall_iqr_s_{side}"].astype(float) / pair[side]).where(pair[side] > 0)
        rounds = pair[f"rounds_{side}"].astype(float).clip(lower=1)
        variance += ((0.93 * spread) ** 2 / rounds).fillna(0)  # of a normal sample's median, from its quartiles
    half = scipy_stats.norm.ppf(1 - gate.SIGNIFICANT / 2) * np.sqrt(variance)
    sure = (pair["asked"] | ~(log.abs() <= half)) & (pair["sign"] != 0)
    moved = np.where(sure, direction(pair), Verdict.AMBIGUOUS)
    verdict = np.where(beyond(pair, allowed(pair)), moved, Verdict.SAME)
    fails = pair["gated"] & pair["asked"] & (verdict == Verdict.WORSE)
    why = np.where(verdict == Verdict.AMBIGUOUS, "within the noise of two runs; mlexp ab decides", "")
    interval = {"low": np.expm1(log - half), "high": np.expm1(log + half)}
    return rows_of(pair, name, kind, verdict=verdict, exit=fails * gate.REGRESSION, why=why, **interval)


def allowed(pair: pd.DataFrame) -> pd.Series:
    """How far each cell's value may go, in the metric's unit; from a base that is not finite, nowhere."""
    amount = pair["amount"] * pair["base"].abs().where(pair["relative"], 1.0)
    return amount.where(np.isfinite(pair["base"].astype(float)), 0.0)


def difference(pair: pd.DataFrame) -> pd.Series:
    """Head minus base; 0 of two values that are both infinite."""
    base, head = pair["base"].astype(float), pair["head"].astype(float)
    with np.errstate(invalid="ignore"):
        return (head - base).where(head != base, 0.0)


def beyond(pair: pd.DataFrame, limit: pd.Series) -> pd.Series:
    return ~(difference(pair).abs() <= limit)


def direction(pair: pd.DataFrame) -> np.ndarray:
    """WORSE or BETTER by the sign of the difference; AMBIGUOUS where there is none."""
    bad = difference(pair) * pair["sign"]
    return np.select([bad > 0, bad < 0], [Verdict.WORSE, Verdict.BETTER], Verdict.AMBIGUOUS)


def share(change: pd.Series, pair: pd.DataFrame) -> pd.Series:
    """A change as a share of the base's value; of fractions, the difference itself."""
    return change / pair["base"].abs().where(~pair["points"], 1.0).replace(0, np.nan)


def rows_of(pair: pd.DataFrame, name: str, kind: str, **given: Any) -> pd.DataFrame:
    """Rows of the result, one for each of `pair` (with `cell`, and `base` and `head` where there are any)."""
    columns = {"cell": pair["cell"], "metric": name, "kind": kind, "base": pair.get("base"), "head": pair.get("head")}
    columns |= {"low": np.nan, "high": np.nan, "n": 1, "p": np.nan, "test": "", "exit": gate.OK, "why": ""}
    columns |= {"points": False, "change": np.nan}
    if "base" in pair and numeric(pair["base"]) and numeric(pair["head"]):
        pointed = pair.assign(points=pair["points"] if "points" in pair and kind != "exact" else False)
        columns |= {"points": pointed["points"], "change": share(difference(pair), pointed)}
    df = pd.DataFrame(columns | given, index=pair.index)
    df["fails"] = df["exit"] != gate.OK
    df = df.reindex(columns=[*COLUMNS, *(name for name in ("family", "worst", "fell") if name in df)])
    texts = dict.fromkeys(("cell", "metric", "kind", "verdict", "test", "why", "base", "head"), object)
    return df.astype(texts | {"change": float, "p": float, "fails": bool, "exit": int}).reset_index(drop=True)
