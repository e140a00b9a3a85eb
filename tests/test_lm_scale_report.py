"""The language-model study on made-up records, found again by scipy and plain arithmetic: claims, tables, figures."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import stats

from .referees import adjusted, t_interval, verdict
from .reported import findings_of, record, reported
from .stand_ins import lines

QUESTION = "lm_scale_study"
SIZES, LENGTHS, SEEDS = (1000, 2000, 5000, 10_000, 20_000, 50_000), (16, 32), (42, 43, 44, 45, 46)
VARIANTS = ("looped_mlp", "recurrent_core", "full")
SETTLED = (*VARIANTS, "full_kappa0")
TWINS = tuple(f"{name}_twin" for name in VARIANTS)
LEARNERS = ("backprop", "backprop_matched", *SETTLED, *TWINS)
RULED = (*SETTLED, *TWINS)
BEST = "eqprop_best"
SETTING = {"width": 16, "layers": 2, "length": 32, "epochs": 30, "updates": 100, "sequence_chars": 10_000}
GRIDS = {"n_chars": ("test_data_size", "n", SIZES), "seq_len": ("test_sequence_length", "len", LENGTHS)}


def cell(axis, value, seed, learner, values, series=None):
    """A training; a twin is a control."""
    function, prefix, _ = GRIDS[axis]
    name = "control" if learner.endswith("_twin") else "learner"
    if name == "control":
        function = f"test_controls_{axis}"
    params = {axis: f"{prefix}{value}", "seed": seed, name: learner}
    common = {"tuned": False, "planned_cells": 360, "best_step": 90, "updates": 100, "n_params": 10}
    return record(QUESTION, function, params, common | values, SETTING, series)


def learner_of(row):
    return row.params.get("learner") or row.params.get("control")


def simple(advantages=None, lengths=None, rule=None, drop=lambda *_: False, noise=0.003, seed=0, seeds=SEEDS):
    """Both grids: each variant's log of backprop's perplexity over its own, by size and by length; `rule`: nats by
    which a learner is worse than its twin. Means over seeds are exact."""
    random, rows = np.random.default_rng(seed), []
    for axis, points, of in (("n_chars", SIZES, advantages or {}), ("seq_len", LENGTHS, lengths or {})):
        for i, n in enumerate(points):
            for learner in ("backprop", *VARIANTS, *TWINS):
                off = random.normal(0, noise, len(seeds))
                off = off - off.mean()
                gain = of.get(learner, (0,) * len(points))[i]
                for at, off_seed in zip(seeds, off, strict=True):
                    if drop(axis, n, learner):
                        continue
                    loss = 2 + (rule or {}).get(learner, 0) + off_seed
                    rows.append(cell(axis, n, at, learner, {
                        "loss_nats": loss, "perplexity": math.exp(3 - gain + off_seed), "validation_perplexity": 9.0,
                        "last_validation_perplexity": 9.5, "gradient_cosine": 0.995 if learner in VARIANTS else None,
                    }))  # fmt: skip
    return rows


def all_variants(*values):
    return dict.fromkeys(VARIANTS, values)


RISING, FALLING = (-0.3, -0.2, -0.1, 0.1, 0.3, 0.9), (0.9, 0.3, 0.1, -0.1, -0.2, -0.3)
FLAT, LN2 = (0,) * 6, math.log(2)
OVER = {  # claim: advantages by size that make it supported, refuted, undecided; what to drop; what is named as missing
    "Q": ({"full": RISING}, all_variants(*[0.1] * 6), {}, lambda a, n, who: (n, who) == (50_000, "full"),
          "no perplexity of full at n50000"),
    "E1": (all_variants(-0.1, -0.1, 0, 0, 0, 0), {"full": (0.1, -0.1, 0, 0, 0, 0)}, {},
           lambda a, n, who: n in (1000, 2000), "no n_chars below 5000"),
    "E2": ({"full": (0, 0, -0.1, 0.1, 0.1, 0)}, all_variants(*[-0.1] * 6), {}, lambda a, n, who: n in (10_000, 20_000),
           "no n_chars of at least 10000 and below 20001"),
    "E3": ({"full": (0, 0, 0, 0, 0, 0.9)}, {}, all_variants(0, 0, 0, 0, 0, LN2), lambda a, n, who: n == 50_000,
           "no n_chars of at least 20001"),
    "T": ({"full": RISING}, all_variants(*FALLING), {}, lambda a, n, who: n in SIZES[2:],
          "3 values of n_chars are needed, there are 2: n1000, n2000"),
}  # fmt: skip


@pytest.mark.parametrize("id", OVER)
def test_a_claim_on_the_amount_of_text_is_as_planted(id):
    *planted, drop, why = OVER[id]
    for word, advantages in zip(("supported", "refuted", "undecided"), planted, strict=True):
        finding = findings_of(QUESTION, simple(advantages))[id]
        assert (str(finding.verdict), finding.rank) == (word, "primary" if id == "Q" else "secondary")
    finding = findings_of(QUESTION, simple(planted[0], drop=drop))[id]
    assert (finding.verdict, finding.why, finding.parts) == ("not tested", why, ())


@pytest.mark.parametrize(
    ("advantages", "want"),
    [(all_variants(*FALLING), "refuted"), (all_variants(*[-0.1] * 6), "refuted"),
     ({"full": (-0.1,) * 3 + (0.1,) * 3}, "supported"), ({"full": (-0.1, 0.1, -0.1, 0.1, 0.1, 0.1)}, "undecided"),
     ({"looped_mlp": (-0.1, -0.1, 0, 0, 0.1, 0.1)}, "supported"),
     ({"full": (-0.1, 0, -0.1, 0, 0.1, 0.1)}, "undecided")],
)  # fmt: skip
def test_a_crossover_is_losses_first_and_wins_after(advantages, want):
    assert findings_of(QUESTION, simple(advantages))["Q"].verdict == want


def test_claims_on_the_smallest_amounts_ignore_the_rest():
    high = all_variants(-0.1, -0.1, 0.5, 0.5, 0.5, 0.5)  # backprop wins below 5K alone
    assert findings_of(QUESTION, simple(high))["E1"].verdict == "supported"
    at_10k = {"full": (0, 0, -0.1, 0.1, -0.1, 0)}  # wins at 10K, not at 20K
    assert findings_of(QUESTION, simple(at_10k | dict.fromkeys(VARIANTS[:2], (-0.1,) * 6)))["E2"].verdict == "refuted"
    before = {"full": (-0.1, -0.1, 0.1, 0.1, 0.1, 0)}  # loses at 1K and 2K, and wins at the size before 10K already
    assert findings_of(QUESTION, simple(before | dict.fromkeys(VARIANTS[:2], (-0.1,) * 6)))["E2"].verdict == "refuted"


def test_a_claim_on_the_length_of_sequences_is_as_planted():
    for word, lengths in (("supported", {"full": (0, 0.3)}), ("refuted", all_variants(0.3, 0)), ("undecided", {})):
        finding = findings_of(QUESTION, simple(all_variants(*FALLING), lengths))["S"]
        assert finding.verdict == word, word
    finding = findings_of(QUESTION, simple(drop=lambda axis, n, who: n == 32))["S"]
    assert (finding.verdict, finding.why) == ("not tested", "2 values of seq_len are needed, there are 1: len16")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_rule_that_costs_something_is_found(name):
    for nats, word in (
        (0, "supported"),
        (0.1, "refuted"),
        (-0.1, "refuted"),
        (0.02, "undecided"),
        (-0.02, "undecided"),
    ):
        found = findings_of(QUESTION, simple(rule={name: nats}))
        assert found[f"R {name}"].verdict == word, nats
        assert {found[f"R {other}"].verdict for other in VARIANTS if other != name} == {"supported"}
    finding = findings_of(QUESTION, simple(drop=lambda axis, n, who: who == f"{name}_twin"))[f"R {name}"]
    assert (finding.verdict, finding.why) == ("not tested", f"no n_chars has all of {name}, {name}_twin")


def test_a_rule_is_judged_at_the_sizes_that_have_both():
    def drop(axis, n, who):
        return who.endswith("_twin") and (axis != "n_chars" or n != 10_000)

    finding = findings_of(QUESTION, simple(rule={"full": 0.05}, drop=drop))["R full"]
    assert finding.verdict == "refuted" and finding.parts[0].estimate.value == pytest.approx(0.05)


def test_a_learner_missing_at_one_size_leaves_the_others_judged():
    whole = simple(all_variants(*RISING))
    some = [row for row in whole if not (row.params.get("n_chars") == "n50000" and learner_of(row) == "full")]
    all_, found = findings_of(QUESTION, whole), findings_of(QUESTION, some)
    for id in ("Q", "E3", "T"):
        assert (found[id].verdict, found[id].why) == ("not tested", "no perplexity of full at n50000"), id
    for id in ("E1", "E2", "S", "R looped_mlp", "R recurrent_core"):
        assert found[id].verdict == all_[id].verdict != "not tested"
        assert found[id].parts == all_[id].parts
    assert found["R full"].verdict == "supported"


def test_two_seeds_test_nothing_that_has_noise():
    found = findings_of(QUESTION, simple(all_variants(*RISING), seeds=(42, 43)))
    tested = {id for id, finding in found.items() if finding.verdict != "not tested"}
    assert tested == {"G"} and "3 complete seeds are needed for backprop over looped_mlp" in found["Q"].why


# --- every quantity of every claim


def by_seed(rows, axis, value, learner, metric):
    prefix = GRIDS[axis][1]
    found = {row.params["seed"]: row.values[metric] for row in rows
             if row.params.get(axis) == f"{prefix}{value}" and learner_of(row) == learner}  # fmt: skip
    return pd.Series(found).sort_index()


def logs_of(rows, axis, value, learner):
    """Log of backprop's perplexity over the learner's, by seed."""
    one, other = (by_seed(rows, axis, value, who, "perplexity") for who in ("backprop", learner))
    return np.log(one / other).dropna()


def slopes_of(rows, axis, points, learner):
    table = pd.DataFrame({n: logs_of(rows, axis, n, learner) for n in points}).dropna()
    return [stats.linregress(np.log(points), row).slope for row in table.to_numpy()]


def check_claims(rows, findings):
    """Every interval by scipy: Bonferroni over the quantities of a claim; the verdict by its logic."""
    small, middle, large = (1000, 2000), (10_000, 20_000), (50_000,)

    def at(points, **bounds):
        return {name: [(logs_of(rows, "n_chars", n, name), bounds) for n in points] for name in VARIANTS}

    zero = {"above": 0.0}
    by_variant = {
        "Q": at(SIZES, **zero),
        "E1": at(small, below=0.0),
        "E2": {name: at((5000,), below=0.0)[name] + at(middle, **zero)[name] for name in VARIANTS},
        "E3": at(large, above=LN2),
        "T": {name: [(slopes_of(rows, "n_chars", SIZES, name), zero)] for name in VARIANTS},
        "S": {name: [(slopes_of(rows, "seq_len", LENGTHS, name), zero)] for name in VARIANTS},
    }
    for name in VARIANTS:
        rule, twin = ([by_seed(rows, "n_chars", n, who, "loss_nats") for n in SIZES] for who in (name, f"{name}_twin"))
        gaps = [one - other for one, other in zip(rule, twin, strict=True)]
        by_variant[f"R {name}"] = {name: [((sum(gaps) / len(gaps)).dropna(), {"above": -0.02, "below": 0.02})]}
    for id, quantities in by_variant.items():
        wanted, finding = [q for some in quantities.values() for q in some], findings[id]
        confidence, words = 1 - 0.05 / len(wanted), []
        assert finding.confidence == pytest.approx(confidence) and len(finding.parts) == len(wanted), id
        for found, (sample, bounds) in zip(finding.parts, wanted, strict=True):
            low, high = t_interval(sample, confidence)
            assert found.estimate[:4] == pytest.approx((np.mean(sample), low, high, len(sample)), abs=1e-12), id
            assert (found.low, found.high) == (bounds.get("above"), bounds.get("below")), id
            words.append(verdict(low, high, **bounds))
            assert found.verdict == words[-1]
        parts = [words[i * len(words) // len(quantities) : (i + 1) * len(words) // len(quantities)]
                 for i in range(len(quantities))]  # fmt: skip
        one = [switched(part) if id == "Q" else every(part) for part in parts]
        assert finding.verdict == (every(one) if id == "E1" or id[0] == "R" else some_of(one)), id


def every(words):
    return "refuted" if "refuted" in words else "supported" if set(words) == {"supported"} else "undecided"


def some_of(words):
    return "supported" if "supported" in words else "refuted" if set(words) == {"refuted"} else "undecided"


def switched(words):
    """By enumeration: open levels may have either sign; one switch in every way to fill them, or in none."""
    signs = [{"supported": "+", "refuted": "-", "undecided": "+-"}[word] for word in words]
    n = len(signs)
    fits = [k for k in range(1, n) if all(("-" if i < k else "+") in sign for i, sign in enumerate(signs))]
    sure = [word for word in words if word != "undecided"]
    if not fits or words[0] == "supported" or words[-1] == "refuted":
        return "refuted"
    gap = [i for i, word in enumerate(words) if word == "undecided"]
    joined = all(b - a == 1 for a, b in itertools.pairwise(gap))
    last = max((i for i, word in enumerate(words) if word == "refuted"), default=-1)
    between = (
        all(i > last for i in gap) and all(i < words.index("supported") for i in gap) if "supported" in words else False
    )
    return (
        "supported"
        if sure and words[0] == "refuted" and words[-1] == "supported" and joined and between
        else "undecided"
    )


@settings(max_examples=5, deadline=None, phases=[Phase.generate])  # a failure has nothing to shrink
@given(st.integers(0, 2**32 - 1))
def test_every_quantity_of_every_claim_is_found_again(seed):
    random = np.random.default_rng(seed)
    rise = random.normal(0, 0.2) * np.linspace(-1, 1, 6)
    advantages = {name: tuple(rise + random.normal(0, 0.02, 6)) for name in VARIANTS}
    rows = simple(advantages, {name: random.normal(0, 0.02, 2) for name in VARIANTS},
                  {name: random.normal(0, 0.02) for name in VARIANTS}, noise=0.01, seed=seed)  # fmt: skip
    check_claims(rows, findings_of(QUESTION, rows))


# --- single steps and gradients


def stepped(factor=1.0, rounds=5, iqr=0.01):
    """The grid of steps. A backprop step is 1 s, on a machine that is twice as slow at s4."""
    rows = []
    for sweep, slow in (("s1", 1.0), ("s2", 1.0), ("s4", 2.0)):
        n = int(sweep[1:])
        for stepper in ("backprop", "full", "full_unrolled", "full_kappa0", "full_kappa0_unrolled"):
            limit = (n + 2 * n + 3) / 3 if stepper in ("full", "full_kappa0") else None
            wall = 1.0 if stepper == "backprop" else 1.5 if stepper.endswith("_unrolled") else 1.5 * limit * factor * n
            if stepper == "full_kappa0":
                wall = {1: 2.0, 2: 3.0 * factor, 4: 9.0}[n]
            values = {
                "wall_s": wall * slow, "wall_iqr_s": iqr * wall * slow, "step_limit": limit, "rounds": rounds,
                "saved_bytes": 1e6 * (1 + (n if "unrolled" in stepper else 0.001 * n)), "peak_bytes": 1e7 * n,
                "flops": 1e8 * n, "n_params": 10, "planned_cells": 0,
            }  # fmt: skip
            rows.append(record(QUESTION, "test_step", {"sweep": sweep, "stepper": stepper}, values, SETTING))
    return rows


def timed(value, cells, confidence=0.95, rounds=5, iqr=0.01):
    """The normal interval of a product or ratio of medians of so many rounds: each 1.253 sd / sqrt(n) on the log."""
    spread = math.sqrt(cells) * 1.253 * iqr / 1.349 / math.sqrt(rounds)
    half = stats.norm.ppf(0.5 + confidence / 2) * spread
    return value, value * math.exp(-half), value * math.exp(half), rounds


def test_a_step_is_judged_against_its_limit():
    for factor, word in ((0.3, "supported"), (0.34, "refuted"), (1.3 / 4, "undecided")):
        finding = findings_of(QUESTION, stepped(factor))["L full"]  # at worst 4 times this factor of the limit
        assert (finding.verdict, finding.rank) == (word, "check"), factor
        (part,) = finding.parts
        assert part.estimate[:4] == pytest.approx(timed(4 * factor, 4)) and part.high == 1.3 and part.low is None
    few = findings_of(QUESTION, stepped(rounds=2))
    assert few["L full"].verdict == few["K"].verdict == "not tested"
    assert few["L full"].why == "no step of full over its limit in these records"
    assert few["L looped_mlp"].why == "no step of looped_mlp over its limit in these records"


@pytest.mark.parametrize("gone", ["backprop", "full_unrolled"])
def test_a_step_without_what_it_is_compared_with_is_not_judged(gone):
    """Nor is one whose comparison was timed too few times."""
    for change in ("left out", "two rounds"):
        rows = [row for row in stepped() if row.params["stepper"] != gone or change == "two rounds"]
        for row in rows:
            row.values["rounds"] = 2 if row.params["stepper"] == gone else 5
        found = findings_of(QUESTION, rows)
        assert found["L full"].verdict == "not tested" and found["M full"].verdict == "supported"
        assert (found["K"].verdict == "not tested") == (gone == "backprop")


def test_a_step_is_judged_at_the_sweeps_that_training_makes():
    rows = simple()
    for row in rows:
        row.values["nudged_sweeps"] = 2.2 if learner_of(row) == "full" else 4.0
    (part,) = findings_of(QUESTION, [*rows, *stepped()])["L full"].parts
    assert part.estimate.value == pytest.approx(2.0)  # at two sweeps


def test_a_step_without_feedback_is_a_few_of_backprop_s():
    for factor, word in ((1.0, "supported"), (1.5, "refuted"), (4 / 3, "undecided")):
        finding = findings_of(QUESTION, stepped(factor))["K"]
        assert finding.verdict == word and finding.parts[0].high == 4
        assert finding.parts[0].estimate[:4] == pytest.approx(timed(3 * factor, 2))
    no = [row for row in stepped() if row.params != {"sweep": "s2", "stepper": "full_kappa0"}]
    assert findings_of(QUESTION, no)["K"].why == "no step of full_kappa0 over backprop's in these records"


def test_memory_that_grows_with_the_sweeps_is_found():
    """Bytes are counted: never undecided."""
    for grows, word in ((1.005, "supported"), (1.02, "refuted")):
        rows = stepped()
        for row in rows:
            row.values["saved_bytes"] = (grows if row.params["sweep"] == "s4" else 1.0) * 1e6
        finding = findings_of(QUESTION, rows)["M full"]
        assert finding.verdict == word and finding.parts[0].estimate.value == pytest.approx(grows)
    one = [row for row in stepped() if row.params["sweep"] == "s1"]
    why = "no bytes stored by full, most sweeps over fewest in these records"
    assert findings_of(QUESTION, one)["M full"].why == why


def test_the_smallest_cosine_of_all_trainings_decides_on_the_gradient():
    """Cosines are counted: never undecided."""
    rows = simple()
    finding = findings_of(QUESTION, rows)["G"]
    assert (finding.verdict, finding.parts[0].estimate[:4]) == ("supported", (0.995, 0.995, 0.995, 3 * 8 * 5))
    next(row for row in rows if learner_of(row) == "full" and "seq_len" in row.params).values["gradient_cosine"] = 0.98
    finding = findings_of(QUESTION, rows)["G"]
    assert finding.verdict == "refuted" and finding.parts[0].estimate.value == 0.98
    rows = [row for row in rows if learner_of(row) == "backprop"]
    assert findings_of(QUESTION, rows)["G"].why == "no smallest gradient cosine in these records"


def gradients():
    rows, k = [], 0
    for variant, nudge, beta in itertools.product(
        ("full", "looped_mlp"), ("split", "symmetric", "positive"), (0.1, 1.0)
    ):
        for tolerance in ("tol1_0", "tol0_1"):
            k += 1
            params = {
                "variant": variant,
                "beta": f"beta{beta}".replace(".", "_"),
                "tolerance": tolerance,
                "nudge": nudge,
            }
            rows.append(record(QUESTION, "test_gradient", params, {
                "gradient_cosine": 0.9883 + 0.00035 * k, "inner_cosine": 0.5 + 0.01 * k, "gradient_ratio": 1 + k / 50,
                "free_sweeps": 3 + k, "nudged_sweeps": 4 + 2 * k, "wall_s": 0.1 * k, "flops": 1e6 * (40 - k),
                "planned_cells": 0,
            }, SETTING))  # fmt: skip
    return rows


def test_the_frontier_is_of_each_variant_as_it_trains():
    """looped_mlp's own beta is here, at its own nudge; `full` trains at a beta that is not."""
    found = reported(QUESTION, gradients())
    steps_of = {
        row.params["tolerance"]: row.values
        for row in gradients()
        if (row.params["variant"], row.params["nudge"], row.params["beta"]) == ("looped_mlp", "symmetric", "beta0_1")
    }
    table = found.tables["frontier.csv"]
    assert table["variant"].tolist() == ["looped_mlp"] * 2 and table["tolerance"].tolist() == [1, 0.1]
    base = steps_of["tol0_1"]["wall_s"]
    for line, tolerance in zip(table.to_dict("records"), ("tol1_0", "tol0_1"), strict=True):
        for name in ("gradient_cosine", "free_sweeps", "nudged_sweeps", "wall_s"):
            assert line[name] == pytest.approx(steps_of[tolerance][name])
        assert line["over"] == pytest.approx(steps_of[tolerance]["wall_s"] / base)
    (ax,) = found.figures["frontier.svg"].axes
    drawn = next(line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_label() == "looped_mlp")
    assert drawn.get_xdata() == pytest.approx(table["over"].to_numpy())
    assert drawn.get_ydata() == pytest.approx((1 - table["gradient_cosine"]).to_numpy())


def test_gradients_stand_in_a_table_and_those_below_the_bar_are_noted():
    found, rows = reported(QUESTION, gradients()), gradients()
    table = found.tables["gradient.csv"]
    assert len(table) == 24
    for row in rows:
        line = row_of(table, **row.params)
        for name in (
            "gradient_cosine",
            "inner_cosine",
            "gradient_ratio",
            "free_sweeps",
            "nudged_sweeps",
            "wall_s",
            "flops",
        ):
            assert line[name] == pytest.approx(row.values[name]), name
        assert (line["note"] == "gradient not trusted") == (row.values["gradient_cosine"] < 0.99)
    assert 0 < (table["note"] == "gradient not trusted").sum() < 24
    panels = found.figures["gradient.svg"].axes
    assert [ax.get_title() for ax in panels] == ["full", "looped_mlp"]
    for ax in panels:
        drawn = lines(ax)
        for nudge, beta in itertools.product(("split", "symmetric", "positive"), (0.1, 1.0)):
            some = [r for r in rows if (r.params["variant"], r.params["nudge"], r.params["beta"]) ==
                    (ax.get_title(), nudge, f"beta{beta}".replace(".", "_"))]  # fmt: skip
            some.sort(key=lambda row: row.values["flops"])
            x, y = drawn[f"{nudge}, {beta:g}"]
            assert list(x) == [row.values["flops"] for row in some]
            assert list(y) == pytest.approx([1 - row.values["gradient_cosine"] for row in some])


def test_steps_are_in_backprop_s_of_their_block_and_in_units_of_one_sweep():
    found = reported(QUESTION, stepped())
    table = found.tables["step.csv"]
    for n, slow in ((1, 1), (2, 1), (4, 2)):
        limit, row = (3 * n + 3) / 3, row_of(table, stepper="full", sweeps=n)
        assert row["over_backprop"] == pytest.approx(1.5 * limit * n) and row["limit"] == pytest.approx(limit)
        assert row["in_units"] == pytest.approx(limit * n) and row["over"] == pytest.approx(n)
        assert row["wall_s"] == pytest.approx(1.5 * limit * n * slow) and row["rounds"] == 5
        assert (row["saved_bytes"], row["peak_bytes"], row["flops"]) == pytest.approx(
            (1e6 * (1 + 0.001 * n), 1e7 * n, 1e8 * n)
        )
        assert row_of(table, stepper="backprop", sweeps=n)["over_backprop"] == 1
    left, right = found.figures["step.svg"].axes
    for ax, column, scale in ((left, "over_backprop", 1), (right, "saved_bytes", 1e-6)):
        drawn = curves_of(ax)
        assert set(drawn) == {"backprop", "full", "full_unrolled", "full_kappa0"}
        for name, (x, y) in drawn.items():
            some = table[table["stepper"] == name].sort_values("sweeps")
            assert list(x) == list(some["sweeps"]) and list(y) == pytest.approx(list(some[column] * scale))


# --- a whole report


def made_up(seed=0):
    """Both grids with every learner: every metric of every record is another number."""
    random, rows = np.random.default_rng(seed), []
    for axis, (_, _, points) in GRIDS.items():
        for n, learner, s in itertools.product(points, LEARNERS, SEEDS):
            if (axis, n, learner, s) in (("n_chars", 1000, "full", 46), ("seq_len", 16, "looped_mlp", 42)):
                continue
            rise = 0.1 * math.log(n / 7000) if learner in VARIANTS and axis == "n_chars" else 0.0
            row = {
                "loss_nats": 3 - rise + random.normal(0, 0.03),
                "perplexity": math.exp(3 - rise + random.normal(0, 0.05)),
            }
            row |= {f"{name}_perplexity": random.uniform(5, 30) for name in ("validation", "train")}
            row["last_validation_perplexity"] = math.exp(2.5 - rise + random.normal(0, 0.04))
            row |= {"bigram_perplexity": 9 + s % 10 + n / 1e4, "unigram_perplexity": 20 + 2 * (s % 10) + n / 1e4}
            row |= {name: random.uniform(1, 9) * 1e6 for name in ("wall_s", "flops", "peak_bytes", "saved_bytes")}
            row["scoring_s"] = row["wall_s"] * (0.1 + 0.05 * LEARNERS.index(learner) + 0.002 * (s % 10))
            row |= {"n_params": 1000 + LEARNERS.index(learner), "best_step": int(random.integers(20, 90))}
            settling = ("free_sweeps", "nudged_sweeps", "free_residual", "nudged_residual")
            row |= {name: random.uniform(1, 9) if learner in RULED else None for name in settling}
            row["unconverged_fraction"] = random.uniform() if learner in RULED else None
            for name in ("gradient_cosine", "inner_cosine"):
                row[name] = random.uniform(0.985, 1) if learner in SETTLED else None
            validation = [4.0 + random.uniform(), 2.0 + random.uniform(), 3.0 + random.uniform()]
            checks = [0.999, 0.99, float(random.uniform(0.9, 0.98))]
            series = {"held_out": validation, "held_out_steps": [25, 50, 75], "checked_steps": [0, 50, 100],
                      "gradient_cosine": checks, "inner_cosine": [0.99, 0.9, 0.5]}  # fmt: skip
            rows.append(cell(axis, n, s, learner, row, series))
    random.shuffle(rows)
    return rows


def frame_of(rows):
    """Records as a table of their own: axis, n, seed, learner, metrics, series; the chosen variant besides."""
    made = []
    for row in rows:
        axis = "n_chars" if "n_chars" in row.params else "seq_len"
        n = int(row.params[axis].lstrip("nle"))
        made.append(row.values | {"axis": axis, "n": n, "seed": row.params["seed"], "learner": learner_of(row),
                                  "arrays": row.series})  # fmt: skip
    table = pd.DataFrame(made)
    best = []
    for _, block in table[table["learner"].isin(VARIANTS)].groupby(["axis", "n", "seed"]):
        if len(block) == 3:
            best.append(block.loc[block["validation_perplexity"].idxmin()])
    best = pd.DataFrame(best)
    return pd.concat([table, best.assign(picked=best["learner"], learner=BEST)], ignore_index=True)


class Whole:
    def __init__(self, rows):
        self.rows, self.report, self.table = rows, reported(QUESTION, rows), frame_of(rows)

    def of(self, axis, n, learner):
        some = self.table[(self.table["axis"] == axis) & (self.table["n"] == n) & (self.table["learner"] == learner)]
        return some.set_index("seed").sort_index()


@pytest.fixture(scope="module")
def whole():
    return Whole(made_up())


def row_of(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1, where
    return table.iloc[0]


def curves_of(ax):
    """What `plots.curves` drew: (x, y) of each line by its label."""
    drawn = {}
    for line in ax.containers:
        x, y = line.lines[0].get_data()
        drawn[line.get_label()] = np.asarray(x, float), np.asarray(y, float)
    return drawn


def mean_interval(values):
    return [np.mean(values), *t_interval(values)]


TABLES = {"n_chars": ("perplexity.csv", "advantage.csv", "data_size.svg"),
          "seq_len": ("sequence_perplexity.csv", "sequence_advantage.csv", "sequence_length.svg")}  # fmt: skip
POINTS = [(axis, n) for axis, (_, _, points) in GRIDS.items() for n in points]


def test_claims_of_the_whole_are_found_again(whole):
    check_claims([row for row in whole.rows if learner_of(row) in ("backprop", *VARIANTS, *TWINS)],
                 whole.report.findings)  # fmt: skip
    assert len(whole.report.findings) == 6 + 3 + 1 + 4 + 1 + 4
    stored = json.loads(whole.report.text("claims.json"))
    assert {row["id"]: row["verdict"] for row in stored} == whole.report.verdicts
    same = sum(whole.report.verdicts[f"R {name}"] == "supported" for name in VARIANTS)
    assert whole.report.answer.endswith(f"; the rule itself makes no difference in {same} of 3 variants.")


@pytest.mark.parametrize(("axis", "n"), POINTS)
def test_perplexities_are_geometric_means_of_the_records(whole, axis, n):
    table = whole.report.tables[TABLES[axis][0]]
    assert len(table) == (len(LEARNERS) + 3) * len(GRIDS[axis][2])
    for learner in (*LEARNERS, BEST):
        cells, row = whole.of(axis, n, learner), row_of(table, **{axis: n, "learner": learner})
        want = np.exp(mean_interval(cells["loss_nats"]))
        assert [row["perplexity"], row["low"], row["high"]] == pytest.approx(list(want)), learner
        for short, column in (("validation", "validation"), ("last", "last_validation"), ("train", "train")):
            assert row[short] == pytest.approx(stats.gmean(cells[f"{column}_perplexity"])), (learner, short)
        assert row["best_step"] == pytest.approx(cells["best_step"].mean()) and row["seeds"] == len(cells)
        assert (row["updates"], row["n_params"]) == (100, cells["n_params"].iloc[0])
        bad = int((cells["gradient_cosine"].astype(float) < 0.99).sum())
        assert (f"gradient not trusted ({bad} of {len(cells)})" in str(row["note"])) is (bad > 0)
        if learner == BEST:
            for name, count in cells["picked"].value_counts().items():
                assert f"{name} {count}" in row["note"]
    cells = whole.table[(whole.table["axis"] == axis) & (whole.table["n"] == n) & (whole.table["learner"] != BEST)]
    for floor in ("bigram", "unigram"):
        row = row_of(table, **{axis: n, "learner": floor})
        with_best = pd.concat([cells, whole.of(axis, n, BEST)])
        assert row["perplexity"] == pytest.approx(stats.gmean(with_best[f"{floor}_perplexity"])), floor
        assert row["seeds"] == 5


def check_holm(found):
    """Pairs (p, adjusted p) of a family."""
    p, given_ = zip(*found, strict=True)
    np.testing.assert_allclose(given_, adjusted(np.array(p)), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("axis", GRIDS)
def test_advantages_are_backprop_s_perplexity_over_the_learner_s_paired_by_seed(whole, axis):
    table, found = whole.report.tables[TABLES[axis][1]], []
    for n, learner in itertools.product(GRIDS[axis][2], (*LEARNERS[1:], BEST)):
        row = row_of(table, **{axis: n, "learner": learner})
        logs = np.log(whole.of(axis, n, "backprop")["perplexity"] / whole.of(axis, n, learner)["perplexity"]).dropna()
        assert [row["ratio"], row["low"], row["high"]] == pytest.approx(list(np.exp(mean_interval(logs))))
        assert row["seeds"] == len(logs) and row["bigram"] < row["unigram"]
        found.append((stats.ttest_1samp(logs, 0).pvalue, row["p_holm"]))
    assert len(found) == len(table)
    check_holm(found)


PAIRS = {
    "the rule, looped_mlp": ("looped_mlp", "looped_mlp_twin"),
    "the rule, recurrent_core": ("recurrent_core", "recurrent_core_twin"),
    "the rule, full": ("full", "full_twin"),
    "the network, looped_mlp": ("looped_mlp_twin", "backprop"),
    "the network, recurrent_core": ("recurrent_core_twin", "backprop"),
    "the network, full": ("full_twin", "backprop"),
    "feedback in full": ("full", "full_kappa0"),
    "full without feedback": ("full_kappa0", "backprop"),
    "recurrent_core, equal parameters": ("recurrent_core", "backprop_matched"),
}


def test_parts_are_differences_of_what_is_named_first_minus_the_other(whole):
    table, found = whole.report.tables["parts.csv"], []
    panels = whole.report.figures["parts.svg"].axes
    assert len(table) == len(SIZES) * len(PAIRS) and len(panels) == len(SIZES)
    for n, (part, (arm, against)) in itertools.product(SIZES, PAIRS.items()):
        one, other = (whole.of("n_chars", n, name) for name in (arm, against))
        row, nats = row_of(table, n_chars=n, part=part), (one["loss_nats"] - other["loss_nats"]).dropna()
        assert (row["arm"], row["against"], row["seeds"]) == (arm, against, len(nats))
        assert [row["value"], row["low"], row["high"]] == pytest.approx(mean_interval(nats))
        smallest = pd.concat([one, other])["gradient_cosine"].astype(float).min()
        assert row["smallest_cosine"] == pytest.approx(smallest, nan_ok=True) and row["bigram"] < row["unigram"]
        found.append((stats.ttest_1samp(nats, 0).pvalue, row["p_holm"]))
        drawn = panels[SIZES.index(n)].containers[list(PAIRS).index(part)].lines[0].get_xdata()
        assert list(drawn) == pytest.approx([nats.mean()])
    check_holm(found)


def test_trust_is_of_the_worst_cells(whole):
    table, named = whole.report.tables["trust.csv"], whole.table[whole.table["learner"].isin(RULED)]
    assert set(table["learner"]) == set(RULED)
    for learner, cells in named.groupby("learner"):
        row = row_of(table, learner=learner)
        assert row["cells"] == len(cells)
        for name, how in (("gradient_cosine", "min"), ("inner_cosine", "min"), ("free_sweeps", "mean"),
                          ("nudged_sweeps", "mean"), ("free_residual", "max"), ("nudged_residual", "max"),
                          ("unconverged_fraction", "max")):  # fmt: skip
            assert row[name] == pytest.approx(getattr(cells[name].astype(float), how)(), nan_ok=True), (learner, name)
        assert row["not_trusted"] == (cells["gradient_cosine"].astype(float) < 0.99).sum()
    part = whole.report.findings["G"].parts[0]
    assert part.estimate.value == named["gradient_cosine"].astype(float).min() and part.verdict == "refuted"


def test_costs_are_ratios_to_backprop_within_a_block(whole):
    table = whole.report.tables["cost.csv"]
    metrics = {"time": "wall_s", "scoring": "scoring_s", "training": "rest", "flops": "flops", "peak": "peak_bytes",
               "saved": "saved_bytes"}  # fmt: skip
    whole.table["rest"] = whole.table["wall_s"] - whole.table["scoring_s"]
    for learner in LEARNERS[1:]:
        row, cells = row_of(table, learner=learner), whole.table[whole.table["learner"] == learner]
        for short, metric in metrics.items():
            one, other = ({at: whole.of(*at, who)[metric] for at in POINTS} for who in (learner, "backprop"))
            logs = np.log(pd.DataFrame(one) / pd.DataFrame(other))
            want = np.exp(mean_interval(logs.mean(axis=1)))  # a value a seed, over its cells in both grids
            assert [row[short], row[f"{short}_low"], row[f"{short}_high"]] == pytest.approx(list(want)), short
        assert row["cells"] == len(cells)
        if learner in RULED:
            assert (row["free"], row["nudged"]) == pytest.approx(tuple(cells[["free_sweeps", "nudged_sweeps"]].mean()))
    assert math.isnan(row_of(table, learner="backprop")["time"]) and len(table) == len(LEARNERS)


def crossings(table, confidence=0.95):
    """(first change of sign of the mean, linear in log x; ends of what a t test at each x does not tell from 0)."""
    logs, mean = np.log(table.columns.to_numpy(float)), table.mean().to_numpy()
    first = next(i for i in range(len(mean) - 1) if mean[i] * mean[i + 1] < 0)
    value = logs[first] + (logs[first + 1] - logs[first]) * mean[first] / (mean[first] - mean[first + 1])
    fine = np.linspace(logs[0], logs[-1], 40_001)
    curves = np.array([np.interp(fine, logs, row) for row in table.to_numpy()])
    p = stats.ttest_1samp(curves, 0).pvalue
    open_ = fine[p >= 1 - confidence]
    return math.exp(value), math.exp(open_.min()), math.exp(open_.max())


def test_the_crossover_is_where_the_mean_advantage_changes_its_sign(whole):
    table = whole.report.tables["crossover.csv"]
    assert table["learner"].iloc[0] == BEST and set(table["learner"]) == {*LEARNERS[1:], BEST}
    assert len(table) == 2 * (len(LEARNERS) - 1) + 1
    checked = 0
    for name, (scored, nats) in itertools.product((*VARIANTS, BEST), {
        "test, early stopped": lambda cells: cells["loss_nats"],
        "validation, last update": lambda cells: np.log(cells["last_validation_perplexity"]),
    }.items()):  # fmt: skip
        if name == BEST and scored.startswith("validation"):
            continue
        gain = pd.DataFrame({n: nats(whole.of("n_chars", n, "backprop")) - nats(whole.of("n_chars", n, name))
                             for n in SIZES}).dropna()  # fmt: skip
        row, mean = row_of(table, learner=name, scored_on=scored), gain.mean().to_numpy()
        changes = sum(mean[i] * mean[i + 1] < 0 for i in range(5))
        assert row["seeds"] == len(gain)
        if changes != 1:
            continue
        value, low, high = crossings(gain)
        assert row["crossover"] == pytest.approx(value) and row["outcome"].startswith("wins above")
        if SIZES[0] * 1.01 < low and high < SIZES[-1] * 0.99:
            assert (row["low"], row["high"]) == pytest.approx((low, high), rel=2e-3)
            assert SIZES[0] < row["bootstrap_low"] <= row["median"] <= row["bootstrap_high"] < SIZES[-1]
            checked += 1
    assert checked >= 3


def test_a_curve_without_a_crossover_is_ahead_or_behind():
    random = np.random.default_rng(0)
    ahead = {"full": {n: -0.3 + 0.01 * random.normal() for n in SIZES}, "looped_mlp": dict.fromkeys(SIZES, 0.3)}
    rows = [cell("n_chars", n, s, who, {
        "loss_nats": 3 + ahead.get(who, {}).get(n, 0) + random.normal(0, 0.01), "perplexity": 20.0,
        "train_perplexity": 9.0,
        "validation_perplexity": 20.0, "last_validation_perplexity": 20.0 + random.uniform(), "bigram_perplexity": 9.0,
        "unigram_perplexity": 20.0, "flops": 1e6, "peak_bytes": 1e6, "saved_bytes": 1e6, "gradient_cosine": None,
        "inner_cosine": None, "free_residual": None, "nudged_residual": None, "unconverged_fraction": None,
    }, {"held_out": [3.0, 2.0], "held_out_steps": [1, 2]}) for n in SIZES for s in SEEDS
            for who in ("backprop", "full", "looped_mlp")]  # fmt: skip
    table = reported(QUESTION, rows).tables["crossover.csv"]
    first = table[table["scored_on"] == "test, early stopped"].set_index("learner")["outcome"]
    assert first["full"] == "no crossover: ahead from 1K to 50K" and first["looped_mlp"].startswith(
        "no crossover: behind"
    )


def test_two_lengths_of_a_sequence_are_rows_of_a_table_and_no_figure(whole):
    assert len(LENGTHS) == 2 and "sequence_length.svg" not in whole.report.figures


def test_figures_draw_perplexities_and_advantages(whole):
    axis = "n_chars"
    left, right = whole.report.figures[TABLES[axis][2]].axes
    drawn, shown = curves_of(left), curves_of(right)
    assert set(drawn) == {"backprop", *VARIANTS, "bigram", "unigram"} and set(shown) == set(VARIANTS)
    points = GRIDS[axis][2]
    for name in ("backprop", *VARIANTS):
        want = [math.exp(whole.of(axis, n, name)["loss_nats"].mean()) for n in points]
        assert list(drawn[name][0]) == pytest.approx(points, rel=0.1)  # points of one size stand side by side
        assert list(drawn[name][1]) == pytest.approx(want)
    for name in VARIANTS:
        logs = [np.log(whole.of(axis, n, "backprop")["perplexity"] / whole.of(axis, n, name)["perplexity"]).mean()
                for n in points]  # fmt: skip
        assert list(shown[name][1]) == pytest.approx(list(np.exp(logs)))


def test_curves_draw_means_over_seeds_and_the_whole_gradient(whole):
    for ax, n in zip(whole.report.figures["learning.svg"].axes, SIZES, strict=True):
        drawn = lines(ax)
        assert set(drawn) == set(VARIANTS)
        for name, (x, y) in drawn.items():
            one, other = (whole.of("n_chars", n, who)["arrays"].map(lambda arrays: np.array(arrays["held_out"]))
                          for who in (name, "backprop"))  # fmt: skip
            gaps = [one[seed] - other[seed] for seed in one.index if seed in other.index]
            assert list(x) == [25, 50, 75] and y == pytest.approx(np.mean(gaps, axis=0))
        dots = [line.get_xydata()[0].tolist() for line in ax.get_lines() if len(line.get_xdata()) == 1]
        np.testing.assert_allclose(sorted(dots), sorted([50, y[1]] for _, y in drawn.values()))
    panels = whole.report.figures["gradient_course.svg"].axes
    assert [ax.get_title() for ax in panels] == list(SETTLED)
    for ax in panels:
        arrays = whole.table.loc[whole.table["learner"] == ax.get_title(), "arrays"]
        drawn = [line for line in ax.get_lines() if len(line.get_xdata()) == 3]
        assert len(drawn) == len(arrays) and all(list(line.get_xdata()) == pytest.approx([0, 0.5, 1]) for line in drawn)
        want = sorted(1 - some["gradient_cosine"][2] for some in arrays)
        assert sorted(line.get_ydata()[2] for line in drawn) == pytest.approx(want)
        bar = [line for line in ax.get_lines() if len(line.get_xdata()) == 2]
        assert list(bar[0].get_ydata()) == pytest.approx([0.01, 0.01])


# --- the original's outputs


COLUMNS = {"perplexity": "perplexity", "val_perplexity": "validation_perplexity", "time_s": "wall_s",
           "final_epoch_perplexity": "last_validation_perplexity", "train_perplexity": "train_perplexity",
           "params": "n_params", "gradient_cosine": "gradient_cosine", "nudged_sweeps": "nudged_sweeps",
           "free_sweeps": "free_sweeps", "unconverged_fraction": "unconverged_fraction", "best_step": "best_step",
           "bigram_perplexity": "bigram_perplexity", "unigram_perplexity": "unigram_perplexity",
           "saved_bytes": "saved_bytes", "peak_bytes": "peak_bytes", "flops": "flops"}  # fmt: skip


def test_the_original_s_files_hold_every_training_once(whole):
    trained = whole.table[whole.table["learner"] != BEST]
    content = json.loads(whole.report.text("results_intermediate.json"))
    assert not content["finished"] and content["cells"] == len(content["results"]) == len(trained) == 358
    assert content["planned_cells"] == 360
    assert content["config"] == {"hidden": 16, "layers": 2, "seq_len": 32, "epochs": None, "updates": 100}
    first = whole.report.tables["crossover.csv"].iloc[0]
    assert content["crossover"]["crossover"] == pytest.approx(first["crossover"])
    seen = set()
    for line in content["results"]:
        axis, n = ("n_chars", line["n_chars"]) if line["experiment"] == "data_size" else ("seq_len", line["seq_len"])
        cells = whole.of(axis, n, line["learner"]).loc[line["seed"]]
        assert line["seq_len" if axis == "n_chars" else "n_chars"] == (32 if axis == "n_chars" else 10_000)
        for name, column in COLUMNS.items():
            want = cells.get(column)
            assert line[name] == (None if want is None or pd.isna(want) else pytest.approx(want)), name
        seen.add((axis, n, line["learner"], line["seed"]))
    assert len(seen) == 358 and len(whole.report.tables["results_final.csv"]) == 358


def test_a_finished_study_has_another_file_than_a_part_of_it():
    rows = [row for row in made_up() if row.params.get("n_chars") == "n1000" and row.params["seed"] == 42]
    for row in rows:
        row.values["planned_cells"] = len(rows)
    content = json.loads(reported(QUESTION, rows).text("results_final.json"))
    assert content["finished"] and content["cells"] == len(rows) == 9 and content["crossover"] is None


def test_the_answers_name_means_over_blocks_that_have_all_variants(whole):
    (best,) = [line for line in whole.report.words.splitlines() if "Best variant" in line]
    blocks = [(n, s) for n in SIZES for s in SEEDS if (n, s) != (1000, 46)]  # where full was left out
    for name in VARIANTS:
        losses = [whole.of("n_chars", n, name).loc[s, "loss_nats"] for n, s in blocks]
        assert f"{name} {math.exp(np.mean(losses)):.2f}" in best
    picks = whole.table[(whole.table["learner"] == BEST) & (whole.table["axis"] == "n_chars")]["picked"].value_counts()
    assert len(whole.table[(whole.table["learner"] == BEST) & (whole.table["axis"] == "n_chars")]) == 29
    assert all(f"{name} {count} times" in best for name, count in picks.items())
    (crossover,) = [line for line in whole.report.words.splitlines() if "Crossover point" in line]
    row = row_of(whole.report.tables["advantage.csv"], n_chars=1000, learner="looped_mlp")
    assert f"looped_mlp {row['ratio']:.2f}x [{row['low']:.2f}, {row['high']:.2f}] at 1K" in crossover
    assert "Sequences." in whole.report.words and "Budget." not in whole.report.words
    assert "**Not tuned:**" in whole.report.words


@pytest.mark.parametrize(("of_42", "rest", "late"), [(100, 80, False), (95, 95, True), (100, 88, True)])
def test_a_baseline_that_still_learned_at_its_end_is_named(of_42, rest, late):
    rows = [row for row in made_up() if "n_chars" in row.params and learner_of(row) in ("backprop", "full")]
    for row in rows:
        row.values["best_step"] = 10
        if learner_of(row) == "backprop" and row.params["n_chars"] in ("n20000", "n50000"):
            row.values["best_step"] = of_42 if row.params["seed"] == 42 else rest
        row.values["tuned"] = True
    words = reported(QUESTION, rows).words
    assert ("At 20K, 50K backprop was best at its last ones" in words) == late and "Not tuned" not in words


# --- arms that the study does not know


def test_a_learner_that_the_study_does_not_know_stands_in_every_table_and_figure():
    names, rows = {"recurrent_core": "recurrent_mix"}, []
    for row in made_up(1):
        axis = "n_chars" if "n_chars" in row.params else "seq_len"
        n, who = int(row.params[axis].lstrip("nle")), learner_of(row)
        rows.append(cell(axis, n, row.params["seed"], names.get(who, who), row.values, row.series))
        if who == "full":
            rows.append(cell(axis, n, row.params["seed"], "an_added_learner", row.values, row.series))
    found, new = reported(QUESTION, rows), {"recurrent_mix", "an_added_learner"}
    for name, table in found.tables.items():
        if name != "parts.csv":
            assert new <= set(table["learner"]) and "recurrent_core" not in set(table["learner"]), name
    for ax in found.figures["data_size.svg"].axes:
        assert new <= set(curves_of(ax))
    assert new <= set(lines(found.figures["learning.svg"].axes[0]))
    assert new <= {ax.get_title() for ax in found.figures["gradient_course.svg"].axes}
    assert found.findings["Q"].why.startswith("no perplexity of recurrent_core at n1000")
    assert found.verdicts["R full"] != "not tested" == found.verdicts["R recurrent_core"]
    assert new <= {row["learner"] for row in json.loads(found.text("results_final.json"))["results"]}
