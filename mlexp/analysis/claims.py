"""Claims evaluated: what the records of one context say of each claim of a study, by the interval that is printed.

Every quantity of a claim gets an interval; together they hold the true values with the claim's confidence (Bonferroni
over the quantities of the claim; Tukey where all of them are differences of two independent arms). A statement is then
true, false or open as logic has it. A claim that lacks an arm, a level or a third block is not tested.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from mlexp.analysis import multiple
from mlexp.analysis.contrasts import (
    Leaf,
    leaves,
    noise_floor,
    paired_estimate,
    pooled_estimate,
    values,
)
from mlexp.analysis.data import Data, Missing, plural
from mlexp.analysis.findings import EXACT, NOT_TESTED, REFUTED, SUPPORTED, UNDECIDED, Finding, Part
from mlexp.analysis.stats import Estimate, Verdict, blocks_to_decide, verdict_within
from mlexp.study import All, Any, Claim, Given, Statement, Study, Switch

ERROR = 0.05  # of a verdict: shared by the primary claims of a study, each secondary claim's own
MIN_BLOCKS = 3


def evaluate(data: Data, stand_in: str, registered: Mapping[str, str]) -> dict[str, Finding]:
    """Every claim of the study, by id, in the order declared; `registered`: the fingerprints that the records carry."""
    n_primary = sum(claim.primary for claim in data.study.claims.values())
    found = {}
    for id, claim in data.study.claims.items():
        alpha = ERROR / n_primary if claim.primary else ERROR
        known = registered.get(id) == claim.fingerprint
        try:
            found[id] = replace(_tested(id, claim, data, alpha, stand_in), registered=known)
        except Missing as missing:
            found[id] = Finding(id, claim, NOT_TESTED, 1 - alpha, why=str(missing), registered=known)
    return found


def _tested(id: str, claim: Claim, data: Data, alpha: float, stand_in: str) -> Finding:
    if claim.about == "behaviour" and stand_in:
        raise Missing(f"a claim about behaviour is not tested on {stand_in}")
    other = {
        name: data.settings.get(name) for name, value in claim.settings.items() if data.settings.get(name) != value
    }
    if other:
        meant = ", ".join(f"{name} {value}" for name, value in claim.settings.items())
        raise Missing(f"the claim is about {meant}; here {', '.join(f'{n} is {v}' for n, v in other.items())}")
    wanted = list(dict.fromkeys(_quantities(claim.statement, data)))
    bar = _tukey(wanted, data, 1 - alpha)
    confidence = 1 - alpha / (len(wanted) if bar is None else 1)  # Tukey's intervals hold together
    estimates = {quantity: _estimate(quantity, data, confidence, bar) for quantity in wanted}
    verdict, parts = _judged(claim.statement, data, estimates)
    logic, _ = _logic(claim.statement, data, 1)
    unit, one = unit_of(data.study), unit_of(data.study, 1)
    units = _units(parts, data)
    finding = Finding(id, claim, verdict, confidence, tuple(parts), unit=unit, one=one, logic=logic, units=units)
    return _with_power(finding, data, confidence) if verdict == UNDECIDED else finding


def _units(parts: list[Part], data: Data) -> dict[str, str]:
    units = {part.metric: data.metrics[part.metric].unit for part in parts if part.metric in data.metrics}
    return units | {"exponent": "exponent"}


def _quantities(statement: Statement, data: Data) -> Iterator[Leaf | Given]:
    """The scalar quantities of a statement."""
    if isinstance(statement, All | Any):
        for part in statement.parts:
            yield from _quantities(part, data)
    elif isinstance(statement.quantity, Given):
        yield statement.quantity
    else:
        yield from leaves(statement.quantity, data)


def _tukey(wanted: list[Leaf | Given], data: Data, confidence: float) -> float | None:
    """The simultaneous bar of a family of differences of independent arms; None where it is no such family."""
    apart = data.study.apart
    leaves = [quantity for quantity in wanted if isinstance(quantity, Leaf)]
    pairs = [leaf for leaf in leaves if leaf.is_pair and not {arm for (_, arm), _ in leaf.weights} & set(apart)]
    if not (data.study.independent and len(pairs) == len(wanted) > 1):
        return None
    return multiple.tukey_bar(data.layout(pairs[0].metric).without(apart), confidence)


def _estimate(quantity: Leaf | Given, data: Data, confidence: float, bar: float | None) -> tuple[Estimate, float]:
    """(estimate with its interval, standard deviation of a block's value)."""
    if isinstance(quantity, Given):
        given = data.estimates.get(quantity.name, f"no {quantity.name} in these records")
        if isinstance(given, str):
            raise Missing(given)
        found = given(confidence)
        if math.isnan(found.low) or math.isnan(found.high):
            raise Missing(f"the interval of {quantity.name} is not known")
        return found, math.nan
    unit = unit_of(data.study)
    if data.study.independent:
        found = pooled_estimate(quantity, data, confidence, bar)
        if found.n < MIN_BLOCKS:
            raise Missing(f"{MIN_BLOCKS} {unit} of every arm are needed, one has {found.n}")
        return found, (found.high - found.low) / 2  # no block has a value of its own
    sample = values(quantity, data)
    if len(sample) < MIN_BLOCKS:
        raise Missing(f"{MIN_BLOCKS} complete {unit} are needed for {quantity.label}, there are {len(sample)}")
    floor = noise_floor(quantity, data)
    return paired_estimate(sample, floor, confidence), max(float(np.std(sample, ddof=1)), floor)


def _judged(
    statement: Statement, data: Data, estimates: Mapping[Leaf | Given, tuple[Estimate, float]]
) -> tuple[Verdict, list[Part]]:
    """The verdict of a statement by the logic of its parts, and these."""
    if isinstance(statement, All | Any):
        judged = [_judged(part, data, estimates) for part in statement.parts]
        combine = all_of if isinstance(statement, All) else any_of
        return combine([verdict for verdict, _ in judged]), [part for _, parts in judged for part in parts]
    bounds: tuple[float | None, float | None] = (
        (statement.low, statement.high)
        if not isinstance(statement, Switch)
        else (1.0 if statement.quantity.contrast.log else 0.0, None)
    )
    quantities = [statement.quantity] if isinstance(statement.quantity, Given) else leaves(statement.quantity, data)
    parts = [_part(quantity, *estimates[quantity], *bounds) for quantity in quantities]
    if isinstance(statement, Switch):
        return switched([part.verdict for part in parts]), parts
    return all_of([part.verdict for part in parts]), parts


def _logic(statement: Statement, data: Data, first: int) -> tuple[str, int]:
    """How the verdict follows from the parts, numbered from `first`; and the number of the next part."""
    if isinstance(statement, All | Any):
        texts = []
        for part in statement.parts:
            text, first = _logic(part, data, first)
            texts.append(text)
        return f"{'all' if isinstance(statement, All) else 'any'}({', '.join(texts)})", first
    count = len(list(_quantities(statement, data)))
    numbers = ", ".join(map(str, range(first, first + count)))
    word = "switch" if isinstance(statement, Switch) else "all"
    return numbers if count == 1 and word == "all" else f"{word}({numbers})", first + count


def _part(quantity: Leaf | Given, estimate: Estimate, sd: float, low: float | None, high: float | None) -> Part:
    if isinstance(quantity, Given):
        label, metric, log, level, where, arms = quantity.name, quantity.name, False, True, "", ""
    else:
        label, metric, where, arms = quantity.label, quantity.metric, quantity.where, quantity.arms
        log = quantity.log and not quantity.exponent
        metric = "exponent" if quantity.exponent else metric
        level = abs(sum(weight for _, weight in quantity.weights) - 1) < 1e-9
    if log:
        low, high = (None if end is None else math.log(end) for end in (low, high))
    band = (-math.inf if low is None else low, math.inf if high is None else high)
    exact = estimate.method == EXACT
    verdict = (
        (SUPPORTED if band[0] < estimate.value < band[1] else REFUTED) if exact else verdict_within(estimate, band)
    )
    return Part(label, metric, log, estimate, verdict, low, high, sd, level, isinstance(quantity, Leaf), where, arms)


def all_of(verdicts: list[Verdict]) -> Verdict:
    """Of a statement that needs each of its parts."""
    if REFUTED in verdicts:
        return REFUTED
    return SUPPORTED if set(verdicts) == {SUPPORTED} else UNDECIDED


def any_of(verdicts: list[Verdict]) -> Verdict:
    """Of a statement that needs one of its parts."""
    if SUPPORTED in verdicts:
        return SUPPORTED
    return REFUTED if set(verdicts) == {REFUTED} else UNDECIDED


def switched(signs: list[Verdict]) -> Verdict:
    """Of a contrast that is negative (refuted to be above 0) at first and positive from some level on: supported by
    sure signs in that order with at most one stretch of open levels, between them; refuted by a sure sign against it.
    """
    sure = [sign for sign in signs if sign != UNDECIDED]
    if signs[0] == SUPPORTED or signs[-1] == REFUTED or sorted(sure, key=(REFUTED, SUPPORTED).index) != sure:
        return REFUTED
    return SUPPORTED if signs[0] == REFUTED and signs[-1] == SUPPORTED and _one_gap(signs) else UNDECIDED


def _one_gap(signs: list[Verdict]) -> bool:
    """Whether all open levels lie between the last negative and the first positive one."""
    last = max(i for i, sign in enumerate(signs) if sign == REFUTED)
    first = signs.index(SUPPORTED)
    return all(last < i < first for i, sign in enumerate(signs) if sign == UNDECIDED)


def _with_power(finding: Finding, data: Data, confidence: float) -> Finding:
    """With the number of further blocks that would decide the open parts, if effects and spreads are as estimated."""
    needed: list[int | None] = []
    for part in finding.parts:
        if part.verdict != UNDECIDED:
            continue
        if part.without_spread:
            return finding
        if data.study.independent:
            ratio = part.sd / part.distance if part.distance else math.inf
            needed.append(math.ceil(part.estimate.n * ratio**2) if math.isfinite(ratio) else None)
        elif math.isfinite(part.sd):
            needed.append(blocks_to_decide(part.distance, part.sd, confidence))
    known = [number for number in needed if number is not None]
    if not needed or len(known) < len(needed):
        return finding
    now = min(part.estimate.n for part in finding.parts)
    more = max(1, max(known) - now)
    rows = data.records
    per_block = float((rows["wall_s"] * rows["rounds"].fillna(1)).sum()) / max(1, _n_blocks(data))
    return replace(finding, more_blocks=more, more_seconds=more * per_block)


def unit_of(study: Study, count: int = 2) -> str:
    """What the blocks of a study are, so many of them: seed, seeds, prompts x batches."""
    endings = ((name, plural(name) if count != 1 else "") for name in study.replicates)
    return " x ".join(f"{name}{ending}" for name, ending in endings) or ("record" if count == 1 else "records")


def _n_blocks(data: Data) -> int:
    names = [name for name in data.study.replicates if name in data.records]
    return len(data.records[names].drop_duplicates()) if names else 1
