"""Whether a metric that varies from seed to seed got worse: differences paired over replicates, tested at two scales.

A family is a metric of a question in a context; its groups are the cells with arm, size and the rest fixed, its
replicates the seeds and prompts. Two one-sided tests a family, each at half of its share of the error budget:

pooled   the mean over all groups. Its unit is the replicate, whose seed all groups share: the mean of each replicate's
         differences over the groups, Student's t over the replicates. It finds what got worse everywhere.
cell     the worst group, less what all groups of a replicate have in common (so that a shared seed is no evidence),
         corrected for the number of groups (Holm). With ten groups or more their variances borrow from each other by
         empirical Bayes (Smyth 2004, limma), as far as the spread of the variances allows: its upper limit is what
         decides. It finds one arm that broke.

A group whose values are all as they were takes no part. Where one group alone moved there is one test, with the whole
share.

Noise has a floor: values that lie on a grid (shares of n items, rounded numbers) come no nearer to each other than its
step, however equal some differences turn out. The standard deviation of a difference is at least that step.

A change for the worse beyond the tolerance in a single replicate is not decided, and the comparison incomplete. So is
one that no test upholds where one of a few replicates fell much further than the base's replicates lie apart.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, special
from scipy import stats as scipy_stats

from mlexp.analysis import gate
from mlexp.analysis.changes import allowed, difference, direction, rows_of, share
from mlexp.analysis.gate import Verdict
from mlexp.analysis.multiple import holm

FINEST = 10_000  # the most steps from 0 to 1 of a grid that is recognised
FLOAT32 = 2.0**-23  # of a value: what is not told apart
HUGE = 1e9  # times the base: larger changes count as this one, and their squares are finite
MIN_BORROWING = 10  # groups from which on variances are shrunk towards each other
SINGLE = "beyond the tolerance, and a single replicate cannot decide; give more replicates, or a limit"
FELL = "a replicate is worse by far more than the base's spread; so few cannot decide; give more, or a limit"
PAIR = "two replicates cannot decide among so many tests; give more, or a limit"
FEW, FAR = 4, 10.0  # replicates that one may outvote; times the base's spread that count as far
ALONE = 0.01  # p of a test of two replicates, below which it counts as undecided where the correction lets it pass
TESTED = {"only": "", "pooled": " (mean over the groups)", "cell": " (against the other groups)"}


class Student(NamedTuple):
    """Means with their standard errors and degrees of freedom."""

    mean: np.ndarray
    error: np.ndarray
    df: np.ndarray

    @property
    def p_worse(self) -> np.ndarray:
        """One-sided p that the mean is above 0."""
        return np.asarray(scipy_stats.t.sf(self.mean / self.error, self.df))

    @property
    def half(self) -> np.ndarray:
        """Half the width of the 95 % interval."""
        return np.asarray(self.error * scipy_stats.t.ppf(1 - gate.SIGNIFICANT / 2, self.df))


def grid_step(values: np.ndarray) -> float:
    """The step of the coarsest grid through 0 on which all values lie, 1 over a whole number; 0 where there is none."""
    values = np.unique(np.abs(values[np.isfinite(values)]))
    size = values.max(initial=0.0)
    steps = np.arange(1, FINEST + 1)
    steps = steps[steps * size * 2 * FLOAT32 < 0.02]  # beyond, any value is near some point
    for sample in (values[:: max(1, len(values) // 30)], values):
        at = steps[:, None] * sample
        steps = steps[(np.abs(at - at.round()) <= steps[:, None] * max(size, 1e-9) * 2 * FLOAT32).all(axis=1)][:20]
    return 1 / steps[0] if len(steps) and size else 0.0


def spread(table: np.ndarray) -> np.ndarray:
    """Of each row the sample variance, of a row with one number NaN."""
    n = np.isfinite(table).sum(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        centred = table - mean(table)[:, None]
        found: np.ndarray = np.nansum(centred**2, axis=1) / np.where(n > 1, n - 1, np.nan)
    return found


def mean(table: np.ndarray) -> np.ndarray:
    """Of each row the mean of its numbers."""
    with np.errstate(invalid="ignore"):
        found: np.ndarray = np.nansum(table, axis=1) / np.isfinite(table).sum(axis=1)
    return found


def pooled_test(change: np.ndarray, floor: np.ndarray) -> Student:
    """The mean over groups, by replicates. `floor`: by group, the least sd of a difference."""
    by_replicate = mean(change.T[np.isfinite(change).any(axis=0)])
    n, groups = len(by_replicate), len(change)
    smallest = np.sqrt((floor[np.nan_to_num(change).any(axis=1)] ** 2).sum()) / groups
    sd = max(float(np.sqrt(spread(by_replicate[None])[0])), smallest)
    return Student(*map(np.asarray, (by_replicate.mean(), sd / np.sqrt(n), n - 1)))


def group_test(change: np.ndarray, floor: np.ndarray) -> Student:
    """Each group for itself: the paired t test."""
    n = np.isfinite(change).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return Student(mean(change), np.sqrt(np.maximum(spread(change), floor**2) / n), n - 1)


def cell_test(change: np.ndarray, floor: np.ndarray, scale: np.ndarray) -> Student:
    """Each group less the mean of all in the same replicate, in units of `scale`."""
    rest = (change - mean(change.T)) / scale[:, None]
    floor, n = floor / scale, np.isfinite(change).sum(axis=1)
    variance = np.maximum(spread(rest), floor**2)
    df, common = prior(variance, n - 1.0) if len(change) >= MIN_BORROWING else (0.0, 1.0)
    shrunk = (df * common + (n - 1) * variance) / (df + n - 1)
    return Student(mean(rest), np.sqrt(shrunk / n), np.minimum(df + n - 1, (n - 1).sum()))


def prior(variance: np.ndarray, df: np.ndarray) -> tuple[float, float]:
    """Degrees of freedom and value of the variance that groups with these sample variances have in common.

    Moments of the log variances as in limma's fitFDist, but of their spread the upper limit, two standard errors up:
    groups that happen to look alike are no proof that they are.
    """
    logs = np.log(variance) - special.digamma(df / 2) + np.log(df / 2)
    noise, fourth = special.polygamma(1, df / 2).mean(), special.polygamma(3, df / 2).mean()
    found = logs.var(ddof=1)
    error = max(found, noise) * np.sqrt((fourth / noise**2 + 2) / len(logs))
    excess = max(found + 2 * error - noise, 1e-6)
    half = optimize.brentq(lambda log: special.polygamma(1, np.exp(log)) - excess, -20, 20)
    common = 2 * float(np.exp(half))
    return common, float(np.exp(logs.mean() + special.digamma(common / 2) - np.log(common / 2)))


class Found(NamedTuple):
    """What the tests of a family found: each group's p on the side to which it went (NaN: it did not move), the test
    that this is of, and the pooled mean, positive where it got worse (None: no pooled test).
    """

    p: np.ndarray
    test: str
    pooled: Student | None


def family_tests(base: np.ndarray, head: np.ndarray, worse: int, fraction: bool) -> Found:
    """The tests of one family, from groups x replicates of both sides; `worse` is 1 where more is worse, else -1."""
    change, p = (head - base) * worse, np.full(len(base), np.nan)
    moving = np.nan_to_num(change).any(axis=1)
    if not moving.any():
        return Found(p, "", None)
    size = np.ones(len(base)) if fraction else np.abs(mean(base))
    size = np.where(size > 0, size, size.mean() or 1.0)
    with np.errstate(over="ignore"):
        floor = (noise_floor(base, head) / size).clip(1 / HUGE, HUGE)
        change = (change / size[:, None]).clip(-HUGE, HUGE)
    if moving.sum() == 1:
        adjust: Callable[[np.ndarray], np.ndarray] = np.asarray
        pooled: Student | None = None
        found = group_test(change[moving], floor[moving])
    else:
        shares = ((mean(base) + mean(head)) / 2)[moving].clip(0, 1)
        scale = np.sqrt((shares * (1 - shares)).clip(1e-4)) if fraction else np.ones(moving.sum())
        found, pooled, adjust = cell_test(change[moving], floor[moving], scale), pooled_test(change, floor), holm
    p_worse = found.p_worse
    p[moving] = np.where(mean(change[moving]) > 0, adjust(p_worse), adjust(1 - p_worse))
    return Found(p, "cell" if pooled else "only", pooled)


def noise_floor(base: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Each group's least standard deviation of a difference: a step of the grid, or what float32 rounds off."""
    values = np.abs(np.hstack([base, head]))
    finite = np.isfinite(values)
    floor: np.ndarray = np.maximum(grid_step(values), FLOAT32 * values.max(axis=1, initial=0.0, where=finite))
    return floor


def quality(pair: pd.DataFrame, name: str, kind: str) -> pd.DataFrame:
    """A row a group, and one over all groups of a family; verdicts by tests still await the comparison's correction."""
    parts = [
        _family(family.reset_index(drop=True), name, kind)
        for _, family in pair.groupby(["context", "gated", "asked"], sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def _family(pair: pd.DataFrame, name: str, kind: str) -> pd.DataFrame:
    pair = pair.assign(d=difference(pair), largest=difference(pair).abs())
    firsts = ("question", "context", "cell", "amount", "relative", "sign", "gated", "asked", "points")
    groups = pair.groupby("group", sort=False).agg(
        n=("d", "size"), d=("d", "mean"), largest=("largest", "max"), base=("base", "mean"), head=("head", "mean"),
        **{column: (column, "first") for column in firsts},
    ).reset_index()  # fmt: skip
    groups["cell"] = groups["cell"].where(groups["n"] == 1, groups["group"])
    base, head = _table(pair, "base"), _table(pair, "head")
    with np.errstate(invalid="ignore"):
        half = group_test(head - base, noise_floor(base, head)).half
    tested = ((groups["n"] > 1) & ~groups["asked"] & np.isfinite(groups["largest"])).to_numpy()
    p, found, first = np.full(len(groups), np.nan), Found(np.array([]), "", None), groups.iloc[0]
    if tested.any():
        found = family_tests(base[tested], head[tested], first["sign"], first["points"])
        p[tested] = found.p
    fell = far_worse(base, head, first["sign"])
    rows = [_group_rows(groups, half, p, found.test, fell, name, kind)]
    rows += [_pooled_row(groups[tested], found.pooled, name, kind)] if found.pooled else []
    return pd.concat(rows, ignore_index=True)


def far_worse(base: np.ndarray, head: np.ndarray, sign: int) -> np.ndarray:
    """Of each group with a few replicates, whether one got worse by far more than two values of the base lie apart.

    The spread is the base's over its replicates, all groups of the family together, or the group's own if that is more,
    or a step of the grid. From few values it is itself uncertain: by Student's t at 1 %, if that is further. Without
    any spread nothing is far.
    """
    own, n, step = spread(base), np.isfinite(base).sum(axis=1), grid_step(np.hstack([base, head]))
    rounding = FLOAT32 * np.abs(base).max(axis=1, initial=0.0, where=np.isfinite(base))
    own = np.where(own > rounding**2, own, 0.0)
    df = (n - 1).clip(min=0)
    together = np.nansum(own * df) / max(df.sum(), 1)
    if not (together or step):
        return np.zeros(len(base), bool)
    times = max(FAR, scipy_stats.t.ppf(0.995, max(df.sum(), 1)))
    far = np.maximum(times * np.sqrt(np.maximum(together, np.nan_to_num(own))), FAR * step)
    worst = np.nan_to_num((head - base) * sign).max(axis=1)
    found: np.ndarray = (worst > far * np.sqrt(2)) & (n > 1) & (n <= FEW)
    return found


def _table(pair: pd.DataFrame, column: str) -> np.ndarray:
    """Groups x replicates, both in the order of their first rows; NaN where a group lacks a replicate."""
    again = pair.groupby(["group", "replicate"], sort=False).cumcount()
    group, replicate = pd.factorize(pair["group"])[0], pd.factorize(pair["replicate"] + again.map("#{}".format))[0]
    table = np.full((group.max() + 1, replicate.max() + 1), np.nan)
    table[group, replicate] = pair[column]
    return table


def _group_rows(
    groups: pd.DataFrame, half: np.ndarray, p: np.ndarray, test: str, fell: np.ndarray, name: str, kind: str
) -> pd.DataFrame:
    limit = allowed(groups)
    within = (groups["d"].abs() + half <= limit) | (groups["largest"] <= limit)
    beyond = ~(groups["d"].abs() <= limit)
    decided = groups["asked"] | np.isfinite(p) | ~np.isfinite(groups["d"])
    moved = np.where(beyond & decided, direction(groups), Verdict.AMBIGUOUS)
    verdict = np.where(within, Verdict.SAME, moved)
    fails = groups["gated"] & (verdict == Verdict.WORSE)
    single = groups["gated"] & beyond & ~decided & (groups["n"] == 1) & (groups["d"] * groups["sign"] > 0)
    few = np.where((groups["n"] == 1) & (verdict == Verdict.AMBIGUOUS), "a single pair has no interval", "")
    interval = {"low": share(groups["d"] - half, groups), "high": share(groups["d"] + half, groups)}
    return rows_of(
        groups, name, kind, verdict=verdict, n=groups["n"], p=p, test=np.where(np.isfinite(p), test, ""),
        exit=np.select([fails, single], [gate.REGRESSION, gate.INCOMPLETE], gate.OK), why=np.where(single, SINGLE, few),
        family=_family_name(groups, name), worst="", **interval,
        fell=fell & groups["gated"] & ~groups["asked"] & beyond & (groups["d"] * groups["sign"] > 0),
    )  # fmt: skip


def _pooled_row(groups: pd.DataFrame, found: Student, name: str, kind: str) -> pd.DataFrame:
    """The row of the pooled test; its base and head are means over the groups, its change is the mean change."""
    first = groups.iloc[0]
    value, half, limit = float(found.mean * first["sign"]), float(found.half), first["amount"]
    moved = Verdict.WORSE if found.mean > 0 else Verdict.BETTER
    verdict = Verdict.SAME if abs(value) + half <= limit else moved if abs(value) > limit else Verdict.AMBIGUOUS
    order = (share(groups["d"], groups) * first["sign"]).sort_values(ascending=False, kind="stable").index[:3]
    row = groups.iloc[:1].assign(
        cell=f"{first['question'] or 'this file'}: all {len(groups)} groups",
        base=groups["base"].mean(),
        head=groups["head"].mean(),
    )
    return rows_of(
        row, name, kind, verdict=verdict, n=int(found.df) + 1, p=float(min(found.p_worse, 1 - found.p_worse)),
        test="pooled", exit=gate.REGRESSION if first["gated"] and verdict == Verdict.WORSE else gate.OK,
        change=value, low=value - half, high=value + half, family=_family_name(row, name),
        worst=", ".join(map(gate.short, groups.loc[order, "group"])),
    )  # fmt: skip


def _family_name(groups: pd.DataFrame, name: str) -> pd.Series:
    counted = groups["gated"].map({True: "gated", False: ""})
    return groups["question"] + "\n" + groups["context"].astype(str) + "\n" + name + "\n" + counted


def corrected(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with p-values corrected for all tests of the comparison: a verdict that they do not uphold becomes
    AMBIGUOUS and fails nothing.

    Every gated family has the same share of the budget, and each of its tests half of that. With two replicates the
    correction for many metrics is out of reach of any change (Student's t of one degree of freedom): there a mean that
    got worse with a p of its own below `ALONE` is not decided.
    """
    tested = rows["p"].notna()
    families = list(rows.loc[tested, "family"].unique()) if tested.any() else []
    gated = max(1, sum(family.endswith("gated") for family in families))
    alone = rows["p"]
    rows["p"] = (alone * gated * np.where(rows["test"] == "only", 1, 2)).clip(upper=1.0)
    unsure = tested & (rows["p"] >= gate.SIGNIFICANT) & rows["verdict"].isin([Verdict.WORSE, Verdict.BETTER])
    few = unsure & (rows["exit"] == gate.REGRESSION) & (rows["n"] == 2) & (rows["test"] != "cell") & (alone < ALONE)
    rows.loc[unsure, "verdict"], rows.loc[unsure, "exit"] = Verdict.AMBIGUOUS, gate.OK
    rows.loc[few, "exit"] = gate.INCOMPLETE
    rows["fell"] = rows.get("fell", pd.Series(False, rows.index)).eq(True) & (rows["exit"] == gate.OK)
    rows.loc[rows["fell"], "exit"] = gate.INCOMPLETE
    rows.loc[tested, "why"] = [_why(row) for row in rows[tested].itertuples()]
    rows["fails"] = rows["exit"] != gate.OK
    return rows


def _why(row: Any) -> str:
    p = f"p {row.p:.2g}" if row.p > 1e-9 else "p < 1e-9"
    text = f"{p}, corrected{TESTED[row.test]}"
    if row.exit == gate.INCOMPLETE:
        return f"{text}: {FELL if row.fell else PAIR}"
    if row.verdict == Verdict.WORSE:
        return text + (f"; most in {row.worst}" if row.worst else "")
    return f"within the noise: {text}" if row.verdict == Verdict.AMBIGUOUS and row.p >= gate.SIGNIFICANT else text
