"""The attention study on made-up records, found again by scipy and plain arithmetic; the published numbers."""

import functools
import json
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import stats

from .command import ROOT
from .referees import contrast, pooled, t_interval, verdict
from .reported import Reported, findings_of, part, record, reported
from .stand_ins import lines

QUESTION = "attention_search"
ORIGINAL = ("baseline", "lora_small", "lora_medium", "lora_large", "lora_xl", "enhanced_small", "enhanced_medium",
            "enhanced_large", "enhanced_xl", "rope_only", "rope_small", "rope_large", "bias_only")  # fmt: skip
COMPETING = (*ORIGINAL, "mla_plain", "mla_true", "nope", "mha_pi", "mha_bias", "mqa", "gqa", "mla_only_pi", "mla_q_pi",
             "mla_q_bias", "mla_bias_pi", "mla_all_three")  # fmt: skip
APART = ("again", "half_size")
ALL = (*COMPETING, *APART)
FACTORS = {
    "positions at all": ("baseline", "nope"),
    "interpolation, multi-head": ("mha_pi", "baseline"),
    "interpolation, latent": ("mla_only_pi", "mla_plain"),
    "biases, multi-head": ("mha_bias", "baseline"),
    "biases, latent": ("bias_only", "mla_plain"),
    "a query rank of 32": ("lora_small", "mla_plain"),
    "a latent for values, one shared key": ("mla_plain", "baseline"),
    "half the key without positions": ("mla_true", "mla_plain"),
    "one head of keys and values": ("mqa", "baseline"),
    "two heads of keys and values": ("gqa", "baseline"),
    "half the model": ("half_size", "baseline"),
}
TERMS = (("finished", "same_params"), ("original", "same_shape"), ("finished", "same_shape"))
MEASURED = ("validation_loss_nats", "train_loss_nats", "accuracy", "perplexity", "bits_per_byte", "wall_s", "flops",
            "flops_closed_form", "n_tokens", "peak_bytes", "lr")  # fmt: skip
OF_ARM = ("n_params", "attention_params", "active_params", "kv_bytes_per_token", "saved_activation_bytes",
          "micro_activation_bytes")  # fmt: skip
SETTINGS = {"shape": "full", "steps": 40, "batch": 16}
FLOORS = {"uniform": 4.2, "unigram": 3.9, "bigram": 3.2, "bayes": 1.8}
GPU = {"machine": "NVIDIA H100 80GB", "device": "cuda", "dtype": "bfloat16"}


def cell(terms, seed, arm, values, series=None, **context):
    params = {"budget": terms[0], "match": terms[1], "seed": seed, "variant": arm}
    floors = {f"{name}_loss_nats": at for name, at in FLOORS.items()}
    values = {"attention_kernel": "flash", **floors, **values}
    return record(QUESTION, "test_train", params, values, SETTINGS, series, **context)


# --- a whole report


def made_up(rng=0, seeds=4):
    """Every arm on two sets of terms and two budgets; another number for every arm, seed and metric."""
    random, rows = np.random.default_rng(rng), []
    costs = {arm: dict(zip(OF_ARM, random.integers(100, 999, 6).tolist(), strict=True)) for arm in ALL}
    for arm in ("mqa", "gqa", "nope"):
        costs[arm]["kv_bytes_per_token"] = costs["mla_plain"]["kv_bytes_per_token"]
    for terms in TERMS:
        effect = dict(zip(ALL, random.permutation(len(ALL)) / 100, strict=True)) | {"again": 0.0, "mla_plain": 0.0}
        effect |= {"gqa": effect["baseline"] + 0.0028, "mqa": effect["baseline"] + 0.001, "half_size": -0.05}
        lowest = min(effect, key=lambda arm: effect[arm] + (arm in APART))
        effect["lora_xl"] = effect[lowest] + 0.004  # near enough to tie with the best
        for seed in range(42, 42 + seeds):
            for arm in ALL:
                if (arm, seed) == ("lora_medium", 45):
                    continue
                values = {name: float(random.exponential()) for name in MEASURED} | costs[arm]
                values["accuracy"] = float(random.uniform())
                values["loss_nats"] = 3 + effect[arm] + float(random.normal(0, 0.003))
                series = {
                    "losses": (4 - np.arange(40) / 40 - random.random(40) ** 3).tolist(),
                    "loss_by_position": (random.random(37) ** 4).tolist(),
                    "factors": [1, 2, 4], "loss_by_factor": (random.random(3) ** 4).tolist(),
                    "document_losses": (3 + effect[arm] + random.normal(0, 0.1, 6)).tolist(),
                    "document_tokens": [1, 2, 3, 40, 5, 6],
                }  # fmt: skip
                rows.append(cell(terms, seed, arm, values, series, **GPU))
    random.shuffle(rows)
    return rows


class Whole:
    """Records, their report, and the records by what they are of."""

    def __init__(self, rows):
        self.rows, self.report = rows, reported(QUESTION, rows)
        self.at = {tuple(row.params.values()): row for row in rows}

    def cells(self, arm, budget="finished", match="same_shape"):
        return [self.at[budget, match, seed, arm] for seed in range(42, 46) if (budget, match, seed, arm) in self.at]

    def of(self, arm, metric="loss_nats", *terms):
        return np.array([row.values[metric] for row in self.cells(arm, *terms)])

    def series(self, arm, name, *terms):
        return np.array([row.series[name] for row in self.cells(arm, *terms)])

    def losses(self, *terms, arms=ALL):
        return {arm: self.of(arm, "loss_nats", *terms) for arm in arms}


@pytest.fixture(scope="module")
def whole():
    return Whole(made_up())


def test_claims_are_of_the_same_shape_and_the_finished_budget(whole):
    rows = [row for row in whole.rows if tuple(row.params.values())[:2] == TERMS[2]]
    rows.sort(key=lambda row: (ALL.index(row.params["variant"]), row.params["seed"]))
    check_claims(rows, whole.report.findings)
    assert list(whole.report.findings) == [f"C{i}" for i in range(1, 14)]
    stored = {row["id"]: row for row in json.loads(whole.report.text("claims.json"))}
    assert {id: row["verdict"] for id, row in stored.items()} == whole.report.verdicts


def check_pairs(table, pairs, whole, budget="finished"):
    """Every test of a table of pairs (arm, without), by scipy."""
    losses = whole.losses(budget)
    sd, df = pooled(losses.values())
    assert list(zip(table["arm"], table["against"], strict=True)) == pairs
    for row in table.itertuples():
        value, low, high = contrast(losses, {row.arm: 1, row.against: -1})
        assert (row.difference, row.low, row.high) == pytest.approx((value, low, high), abs=1e-12)
        _, low, high = contrast(losses, {row.arm: 1, row.against: -1}, 0.90)
        assert bool(row.equal) == (low > -0.005 and high < 0.005) and row.seeds == min(
            len(losses[row.arm]), len(losses[row.against]))  # fmt: skip
        n = 2 / (1 / len(losses[row.arm]) + 1 / len(losses[row.against]))
        error = sd * math.sqrt(2 / n)
        if row.arm == "again":
            assert math.isnan(row.p_tukey)
        else:
            k = len(COMPETING) + (row.arm in APART)
            p = stats.studentized_range.sf(abs(value) / error * math.sqrt(2), k, df)
            assert row.p_tukey == pytest.approx(p, abs=1e-9)
        shift = row.detectable / (sd * math.sqrt(2 / row.seeds))
        assert stats.nct.sf(stats.t.ppf(0.975, df), df, shift) == pytest.approx(0.8, abs=1e-6)
        falls = [
            -stats.linregress(range(20), curve[20:]).slope for curve in whole.series(row.against, "losses", budget)
        ]
        assert row.steps == pytest.approx(value / np.mean(falls))
        both = [whole.series(arm, "document_losses", budget) for arm in (row.arm, row.against)]
        if len(both[0]) != len(both[1]):
            assert math.isnan(row.low_documents)
            continue
        by_seed = np.average(both[0] - both[1], axis=1, weights=[1, 2, 3, 40, 5, 6])
        assert (row.low_documents + row.high_documents) / 2 == pytest.approx(by_seed.mean())
        assert row.high_documents - row.low_documents > np.ptp(t_interval(by_seed)) * 0.5


def test_one_thing_at_a_time_is_the_arm_with_it_minus_the_arm_without(whole):
    table = whole.report.tables["factors.csv"]
    assert list(table["what"]) == list(FACTORS)
    check_pairs(table, list(FACTORS.values()), whole)


@pytest.mark.parametrize("budget", ["finished", "original"])
@pytest.mark.parametrize("control", ["mla_plain", "baseline"])
def test_every_arm_is_tested_against_the_controls(whole, budget, control):
    table = whole.report.tables[f"against_{control}_{budget}.csv"]
    assert set(table["arm"]) == set(ALL) - {control}
    check_pairs(table, [(arm, control) for arm in table["arm"]], whole, budget)
    if (control, budget) == ("baseline", "finished"):
        assert 0 < table["equal"].sum() < 4  # gqa and mqa were planted near the bound


def test_main_effects_are_means_over_the_other_two_options(whole):
    """Arms by (query rank, interpolation, bias): an effect is the mean with it minus the mean without."""
    arms = {"000": "mla_plain", "100": "lora_small", "010": "mla_only_pi", "001": "bias_only", "110": "mla_q_pi",
            "101": "mla_q_bias", "011": "mla_bias_pi", "111": "mla_all_three"}  # fmt: skip
    table, names = whole.report.tables["factorial.csv"].set_index("effect"), ("query rank", "interpolation", "biases")
    for effect, row in table.iterrows():
        which = [names.index(name) for name in effect.split(" x ")]
        signs = {arm: (-1) ** sum(levels[i] == "0" for i in which) / 4 for levels, arm in arms.items()}
        want = contrast(whole.losses(), signs)
        assert row[["difference", "low", "high", "seeds"]].tolist() == pytest.approx([*want, 4]), effect
    assert len(table) == 7


def tied_with_best(losses):
    """The arms whose simultaneous interval (Tukey, spread of all arms) of the difference to the lowest mean holds 0."""
    sd, df = pooled(losses.values())
    best = min(COMPETING, key=lambda arm: losses[arm].mean())
    bar = stats.studentized_range.ppf(0.95, len(COMPETING), df) / math.sqrt(2)
    error = {arm: sd * math.sqrt(1 / len(losses[arm]) + 1 / len(losses[best])) for arm in COMPETING}
    return {a for a in COMPETING if a == best or losses[a].mean() - losses[best].mean() <= bar * error[a]}, best


@pytest.mark.parametrize("budget", ["finished", "original"])
def test_the_table_of_arms_is_means_best_first_with_those_tied(whole, budget):
    table, (same, best) = whole.report.tables[f"arms_{budget}.csv"], tied_with_best(whole.losses(budget))
    assert set(table["variant"]) == set(ALL) and list(table["loss_nats"]) == sorted(table["loss_nats"])
    for row in table.itertuples():
        for metric in ("loss_nats", *MEASURED[:5], "lr", *OF_ARM[:4]):
            assert getattr(row, metric) == pytest.approx(whole.of(row.variant, metric, budget).mean()), metric
        assert (row.low, row.high) == pytest.approx(t_interval(whole.of(row.variant, "loss_nats", budget)))
        assert str(row.tied) == ("nan" if row.variant in APART else str(row.variant in same))
        family = row.variant.partition("_")[0] if row.variant in ORIGINAL else "control"
        assert (row.family, row.seeds) == (family, 4 - (row.variant == "lora_medium"))
    assert 1 < len(same) < 24
    sentence = f"{best} has the lowest loss, and {len(same) - 1} more of {len(COMPETING)} arms cannot be told from it"
    assert sentence in whole.report.words


def test_the_answer_names_the_arm_of_the_lowest_mean(whole):
    _, best = tied_with_best(whole.losses())
    mean = whole.of(best).mean()
    verdicts = {"supported": "rope_small, the original's winner, is the best of the 13",
                "refuted": "The original's winner, rope_small, is not the best of the 13",
                "undecided": "Whether rope_small is the best of the 13 cannot be told"}  # fmt: skip
    first = verdicts[whole.report.verdicts["C1"]]
    assert whole.report.answer == f"{first}; {best} has the lowest mean loss, {mean:.4f} nats."


def test_the_control_under_two_names_is_tested_and_arms_above_a_floor_are_named(whole):
    value, low, high = contrast(whole.losses(), {"again": 1, "mla_plain": -1})
    span = f"differs by {value:+.4f} [{low:+.4f}, {high:+.4f}]"
    assert f"{span}: they {'tie, as they must' if low <= 0 <= high else 'do NOT tie'}" in whole.report.words
    means = {arm: whole.of(arm).mean() for arm in ALL}
    above = [arm for arm in means if means[arm] > FLOORS["bigram"]]
    (sentence,) = {line for line in whole.report.words.splitlines() if "the bigram floor (3.200)" in line
                   and set(above) == set(line.partition("): ")[2].partition(": ")[0].split(", "))} or {""}  # fmt: skip
    assert bool(sentence) == bool(above) and above and "unigram floor" not in whole.report.words


def test_fair_terms_are_differences_to_the_plain_latent_arm(whole):
    table = whole.report.tables["fair.csv"].set_index("variant")
    assert set(table.index) == set(COMPETING) - {"mla_plain"}
    for arm, row in table.iterrows():
        for match in ("same_shape", "same_params"):
            want = contrast(whole.losses("finished", match), {arm: 1, "mla_plain": -1})
            assert row[[match, f"{match}_low", f"{match}_high"]].tolist() == pytest.approx(list(want))


def test_curves_are_cut_where_the_cheapest_arm_ends(whole):
    table = whole.report.tables["same_flops_same_time.csv"].set_index("variant")
    assert set(table.index) == set(COMPETING)
    for cost, word in (("flops", "flops"), ("wall_s", "time")):
        spent, ends = {arm: whole.of(arm, cost).mean() for arm in COMPETING}, {}
        for arm in COMPETING:
            share = min(spent.values()) / spent[arm]
            last = max(1, round(share * 40))
            ends[arm] = whole.series(arm, "losses")[:, max(0, last - 4) : last].mean(axis=1)
            assert table.loc[arm, f"steps_share_{word}"] == pytest.approx(share)
        for arm in COMPETING:
            assert table.loc[arm, f"loss_{word}"] == pytest.approx(ends[arm].mean())
            if arm != "mla_plain":
                row = table.loc[arm, [f"{name}_{word}" for name in ("difference", "low", "high")]]
                assert row.tolist() == pytest.approx(list(contrast(ends, {arm: 1, "mla_plain": -1})))


def test_costs_are_means_of_ratios_seed_by_seed(whole):
    table = whole.report.tables["cost.csv"].set_index("variant")
    for arm in ALL:
        v = {name: whole.of(arm, name) for name in (*MEASURED, *OF_ARM)}
        want = {
            "tokens_per_s": v["n_tokens"] / v["wall_s"],
            "flop_per_s": v["flops"] / v["wall_s"],
            "mfu": v["flops"] / v["wall_s"] / 989e12,
            "flops_per_token": v["flops"] / v["n_tokens"],
            "counted_over_closed_form": v["flops"] / v["flops_closed_form"],
            "peak_with_params_bytes": v["peak_bytes"] + 4 * v["n_params"],  # float32 parameters
            "training_bytes": v["micro_activation_bytes"] + 16 * v["n_params"],  # and gradient, and two moments
            **{name: v[name] for name in ("saved_activation_bytes", "kv_bytes_per_token", "n_params")},
        }
        for name, values in want.items():
            assert table.loc[arm, name] == pytest.approx(values.mean(), rel=1e-9, abs=0), name
        assert table.loc[arm, "attention_kernel"] == "flash"
    assert "989 TFLOP/s" in whole.report.words and "Attention kernel of every arm: flash." in whole.report.words


def test_a_peak_is_named_for_known_gpus_in_bfloat16_alone(whole):
    some = [row for row in whole.rows if row.params["seed"] < 44 and tuple(row.params.values())[:2] == TERMS[2]
            and row.params["variant"] in ("baseline", "mla_plain")]  # fmt: skip
    for change, want in (({"machine": "NVIDIA A100-SXM4"}, 312e12), ({"machine": "RTX 4090"}, 165e12),
                         ({"machine": "TPU"}, None), ({"dtype": "float32"}, None),
                         ({"device": "cpu"}, None)):  # fmt: skip
        rows = [cell(TERMS[2], row.params["seed"], row.params["variant"], row.values, row.series, **GPU | change)
                for row in some]  # fmt: skip
        found = reported(QUESTION, rows)
        table = found.tables["cost.csv"].set_index("variant")
        assert ("mfu" in table) == (want is not None) == ("No MFU" not in found.words)
        if want:
            rate = np.mean(
                [row.values["flops"] / row.values["wall_s"] for row in some if row.params["variant"] == "baseline"]
            )
            assert (
                table.loc["baseline", "mfu"] == pytest.approx(rate / want)
                and f"{want / 1e12:.0f} TFLOP/s" in found.words
            )


def points(whole):
    return {arm: (whole.of(arm, "kv_bytes_per_token").mean(), whole.of(arm).mean()) for arm in COMPETING}


def test_the_front_joins_what_no_other_arm_beats_in_cache_and_loss(whole):
    at, ax = points(whole), whole.report.figures["kv_bytes_vs_loss.svg"].axes[0]
    beaten = {a for a, (x, y) in at.items() for b, (u, w) in at.items() if b != a and u <= x and w <= y}
    front = sorted(at[arm] for arm in set(at) - beaten)
    (joined,) = [line.get_xydata() for line in ax.lines if line.get_linewidth() == 0.9 and line.get_linestyle() == "-"]
    np.testing.assert_allclose(joined, front)
    assert len(front) > 1
    single = np.array([line.get_xydata()[0] for line in ax.lines if len(line.get_xydata()) == 1])
    for point in at.values():
        assert (np.abs(single - point).max(axis=1) < 1e-12).any()
    assert {text.get_text() for text in ax.texts} >= set(COMPETING)  # every arm is named


def test_arms_of_one_cache_are_ranked(whole):
    table, at = whole.report.tables["same_cache.csv"], points(whole)
    same, _ = tied_with_best(whole.losses())
    sizes = {}
    for arm, (size, loss) in at.items():
        sizes.setdefault(size, []).append((loss, arm))
    several = {size: sorted(arms) for size, arms in sizes.items() if len(arms) > 1}
    assert list(table["kv_bytes_per_token"]) == sorted(several)
    for row in table.itertuples():
        arms = several[row.kv_bytes_per_token]
        (low, best), (high, worst) = arms[0], arms[-1]
        assert (row.arms, row.best, row.worst) == (len(arms), best, worst)
        assert (row.best_loss_nats, row.worst_loss_nats) == pytest.approx((low, high))
        both = [arm for _, arm in arms[1:] if {best, arm} <= same]
        assert row.both_tied_with_best == (", ".join(both) or "none")


def test_losses_are_drawn_as_differences_best_first_with_the_tied_arms_filled(whole):
    ax = whole.report.figures["losses_finished.svg"].axes[0]
    order = [arm for arm in sorted(ALL, key=lambda arm: whole.of(arm).mean()) if arm != "mla_plain"]
    assert [label.get_text() for label in ax.get_yticklabels()] == order
    bars = [segment for drawn in ax.collections for segment in drawn.get_segments()]
    marks = [line for line in ax.lines if line.get_marker() not in ("None", "|", "")]
    same, _ = tied_with_best(whole.losses())
    for i, arm in enumerate(order):
        value, low, high = contrast(whole.losses(), {arm: 1, "mla_plain": -1})
        assert [[low, i], [high, i]] == pytest.approx(np.array(bars[i])), arm
        assert list(marks[i].get_xdata()) == pytest.approx([value])
        assert (marks[i].get_fillstyle() == "full") == (arm in same), arm


def test_the_title_of_the_losses_says_who_ties(whole):
    same, _ = tied_with_best(whole.losses())
    best = min(COMPETING, key=lambda arm: whole.of(arm).mean())
    (block,) = [block for block in whole.report.out.blocks if block.get("name") == "losses_finished.svg"]
    assert block["finding"].startswith(f"{best} has the lowest loss ({whole.of(best).mean():.3f} nats); ")
    assert f"{len(same) - 1} of the {len(COMPETING) - 1} others cannot" in block["finding"]
    assert block["caption"].endswith("variance pooled over all arms. n: 4 seeds.")


def test_curves_draw_differences_to_the_baseline_with_their_intervals(whole):
    octaves = [0, 1, 2, 4, 8, 16, 32, 37]
    axes = {n: whole.report.figures[f"{n}.svg"].axes[0] for n in ("loss_by_position", "length", "learning")}
    drawn = {name: lines(ax) for name, ax in axes.items()}
    shown = [arm for arm in ALL if arm in drawn["learning"]]
    best = {}
    for arm in ALL:
        best.setdefault(arm.partition("_")[0] if arm in ORIGINAL else "control", []).append((whole.of(arm).mean(), arm))
    wanted = {min(arms)[1] for arms in best.values()} | {"baseline", "mla_plain", "mla_true", "nope", "rope_small"}
    assert set(shown) == wanted - {"baseline"}
    bands = [band for band in axes["length"].collections if band.get_label() == "_band"]
    for arm, band in zip((line.get_label() for line in axes["length"].lines), bands, strict=False):
        runs, base = whole.series(arm, "loss_by_factor"), whole.series("baseline", "loss_by_factor")
        low = [stats.ttest_ind(a, b).confidence_interval(0.95).low for a, b in zip(runs.T, base.T, strict=True)]
        ends = band.get_paths()[0].vertices
        for x, end in zip((1, 2, 4), low, strict=True):
            assert ends[np.isclose(ends[:, 0], x), 1].min() == pytest.approx(end)
    for arm in shown:
        mean = {name: whole.series(arm, name).mean(axis=0) - whole.series("baseline", name).mean(axis=0)
                for name in ("loss_by_position", "loss_by_factor", "losses")}  # fmt: skip
        x, y = drawn["loss_by_position"][arm]
        np.testing.assert_allclose(y, [mean["loss_by_position"][a:b].mean() for a, b in pairwise(octaves)])
        np.testing.assert_allclose(x, [math.sqrt((a + 1) * b) for a, b in pairwise(octaves)])
        assert drawn["length"][arm][0].tolist() == [1, 2, 4]
        np.testing.assert_allclose(drawn["length"][arm][1], mean["loss_by_factor"])
        np.testing.assert_allclose(drawn["learning"][arm][0], (np.arange(40) + 0.5) / 40)
        np.testing.assert_allclose(drawn["learning"][arm][1], mean["losses"])


# --- the original's outputs


def test_the_original_s_json_is_means_best_first(whole):
    rows = json.loads(whole.report.text("architecture_search_results_fast.json"))
    assert [row["eval_loss"] for row in rows] == sorted(row["eval_loss"] for row in rows)
    assert {row["config_name"] for row in rows} == {f"medium_{arm}" for arm in ORIGINAL}
    same, _ = tied_with_best(whole.losses())
    for row in rows:
        arm = row["config_name"].removeprefix("medium_")
        mean = {name: whole.of(arm, name).mean() for name in ("loss_nats", *MEASURED, *OF_ARM)}
        low, high = t_interval(whole.of(arm))
        want = {
            "eval_loss": mean["loss_nats"], "eval_accuracy": mean["accuracy"], "eval_perplexity": mean["perplexity"],
            "training_time_minutes": mean["wall_s"] / 60, "parameters_millions": mean["n_params"] / 1e6,
            "peak_memory_gb": (mean["micro_activation_bytes"] + 16 * mean["n_params"]) / 1e9, "eval_loss_low": low,
            "eval_loss_high": high, "seeds": 4 - (arm == "lora_medium"),
        }  # fmt: skip
        assert {name: row[name] for name in want} == pytest.approx(want)
        assert row["tied_with_best"] == (arm in same)


def test_the_original_s_panels_show_its_arms(whole):
    panels = whole.report.figures["architecture_search_comprehensive_fast.png"].axes
    for ax, (x, y, width, height) in zip(panels, (
        ("n_params", "loss_nats", 1e6, 1), ("n_params", "accuracy", 1e6, 1), ("n_params", "perplexity", 1e6, 1),
        ("wall_s", None, 60, 1e6), ("wall_s", "loss_nats", 60, 1),
    ), strict=False):  # fmt: skip
        drawn = sorted(line.get_xydata()[0].tolist() for line in ax.lines if len(line.get_xydata()) == 1)
        want = []
        for arm in ORIGINAL:
            memory = whole.of(arm, "micro_activation_bytes").mean() + 16 * whole.of(arm, "n_params").mean()
            value = whole.of(arm, y).mean() if y else memory
            want.append([whole.of(arm, x).mean() / width, value / height])
        np.testing.assert_allclose(drawn, sorted(want), err_msg=str(y))
    assert [label.get_text() for label in panels[5].get_xticklabels()] == ["rope", "enhanced", "lora", "bias",
                                                                         "baseline"]  # fmt: skip


def test_the_original_s_report_ranks_and_repeats_every_verdict(whole):
    text = whole.report.text("architecture_search_report_fast.md")
    for heading in ("## Experimental Setup", "## Results Summary", "### Top 5", "## Key Findings", "## Conclusion",
                    "## Architecture Insights", "## Technical Analysis", "## Recommendations"):  # fmt: skip
        assert heading in text
    order = sorted(ORIGINAL, key=lambda arm: whole.of(arm).mean())
    for i, arm in enumerate(order[:5], 1):
        assert f"{i}. **{arm}**: loss {whole.of(arm).mean():.4f}" in text
    means = [whole.of(arm).mean() for arm in ORIGINAL]
    spread = f"{np.mean(means):.4f} +- {np.std(means, ddof=1):.4f} ({min(means):.4f} to {max(means):.4f})"
    assert f"- Loss: {spread}" in text
    minutes = [whole.of(arm, "wall_s").mean() / 60 for arm in ORIGINAL]
    assert f"- Time, minutes: {np.mean(minutes):.2f} +- {np.std(minutes, ddof=1):.2f}" in text
    families = {}
    for arm in ORIGINAL:
        families.setdefault(arm.partition("_")[0], []).append(whole.of(arm).mean())
    for i, name in enumerate(sorted(families, key=lambda name: np.mean(families[name])), 1):
        assert f"{i}. {name}: {min(families[name]):.4f} to {max(families[name]):.4f}" in text
    for what, (arm, without) in FACTORS.items():
        value, low, high = contrast(whole.losses(), {arm: 1, without: -1})
        assert f"- {what}: {value:+.4f} nats [{low:+.4f}, {high:+.4f}]" in text
    for id, finding in whole.report.findings.items():
        assert f"- **{finding.verdict}**: {finding.claim.text} (" in text, id
    same, _ = tied_with_best(whole.losses())
    tied = [arm for arm in order if arm in same]
    assert f"Not told from the best: {', '.join(tied)}." in text or len(tied) < 2
    least = min(tied, key=lambda arm: (whole.of(arm, "kv_bytes_per_token").mean(), whole.of(arm).mean()))
    size = whole.of(least, "kv_bytes_per_token").mean()
    assert f"the smallest cache: {least} ({size:,.0f} bytes a token)" in text
    assert f"beyond doubt: {', '.join(arm for arm in order if arm not in same)}." in text
    at = {arm: (whole.of(arm, "n_params").mean(), whole.of(arm).mean()) for arm in ORIGINAL}
    beaten = {a for a, (x, y) in at.items() for b, (u, w) in at.items() if b != a and u <= x and w <= y}
    front = sorted(set(at) - beaten, key=at.get)
    assert f"Not beaten in both parameters and loss: {', '.join(front)}." in text


# --- every claim, by planted effects


CLAIMED = (*ORIGINAL, "mla_plain", "mha_pi", "gqa", *APART)  # what claims are about, and an arm besides


def simple(effects, drop=(), n=4, noise=0.002, seed=0):
    """Cells of one set of terms: losses 3 + effect of the arm, means exact, with an odd seed fewer in two arms."""
    random, rows = np.random.default_rng(seed), []
    for arm in (name for name in CLAIMED if name not in drop):
        count = n - (arm in ("gqa", "lora_medium") and n > 3)
        off = random.normal(0, noise, count)
        for i, value in enumerate(off - off.mean() * (count > 1)):
            rows.append(cell(TERMS[2], 42 + i, arm, {
                "loss_nats": 3 + effects.get(arm, 0) + value, "n_params": 10, "micro_activation_bytes": 100 + len(arm),
                **dict.fromkeys(MEASURED, 1.0), "saved_activation_bytes": 1, "active_params": 1,
                "attention_params": 20 if arm.startswith("lora") else 10, "kv_bytes_per_token": 64,
            }))  # fmt: skip
    return rows


def losses_of(rows):
    found = {}
    for row in rows:
        found.setdefault(row.params["variant"], []).append(row.values["loss_nats"])
    return found


LORA = ("lora_small", "lora_medium", "lora_large", "lora_xl")
ROPE = ("rope_only", "rope_small", "rope_large")
CASES = {  # claim: effects that make it supported, refuted, undecided; an arm that it needs
    "C1": ({"rope_small": -0.1}, {"baseline": -0.1}, {}, "rope_only"),
    "C2": ({"rope_large": -0.1}, {"rope_large": 0.1}, {}, "baseline"),
    "C3": ({"mha_pi": -0.1}, {"mha_pi": 0.1}, {}, "mha_pi"),
    "C4": ({"lora_xl": -0.002}, {"lora_xl": -0.1}, {"lora_xl": -0.005}, "lora_xl"),
    "C5": ({"enhanced_medium": -0.1}, {"enhanced_xl": -0.1}, {}, "enhanced_large"),
    "C6": ({"enhanced_medium": -0.1}, {"lora_medium": -0.1}, {}, "lora_medium"),
    "C7": ({"enhanced_xl": 0.1}, {"enhanced_xl": -0.1}, {}, "enhanced_small"),
    "C8": ({"lora_xl": 0.1}, {"baseline": 0.1}, {}, "bias_only"),
    "C9": ({"bias_only": -0.1}, {"mla_plain": -0.1}, {}, "mla_plain"),
    "C10": ({"lora_xl": 0.1}, {"rope_only": 0.1}, {}, "lora_large"),
    "C13": ({"half_size": 0.2, "lora_xl": 0.1}, {"half_size": 0.05, "lora_xl": 0.2}, {"half_size": 0.0}, "half_size"),
}  # fmt: skip


@functools.cache
def findings_for(*effects):
    """Of planted (arm, effect) alone; all claims at once."""
    return findings_of(QUESTION, simple(dict(effects)))


@pytest.mark.parametrize("id", CASES)
def test_a_claim_is_supported_refuted_or_undecided_as_planted(id):
    for word, effects in zip(("supported", "refuted", "undecided"), CASES[id], strict=False):
        finding = findings_for(*effects.items())[id]
        assert (str(finding.verdict), finding.rank) == (word, "primary" if id in ("C1", "C10", "C13") else "secondary")
        if word == "undecided":
            assert finding.more_blocks is None or finding.more_blocks >= 1


@pytest.mark.parametrize("id", CASES)
def test_a_claim_without_one_of_its_arms_is_not_tested_and_names_it(id):
    found, arm = findings_of(QUESTION, simple(CASES[id][0], drop=(CASES[id][3],))), CASES[id][3]
    assert found[id].verdict == "not tested" and found[id].why == f"no loss_nats of {arm}" and not found[id].parts
    assert found["C6" if id != "C6" else "C9"].verdict in ("undecided", "supported")


def test_counts_decide_the_claims_on_parameters_and_memory():
    """Counts have no noise, so neither claim is ever undecided."""

    def verdicts(drop=(), seeds=1, **of):
        rows = simple({}, drop, n=seeds)
        for row in rows:
            row.values |= of.get(row.params["variant"], {})
        return {id: str(f.verdict) for id, f in findings_of(QUESTION, rows).items()}, findings_of(QUESTION, rows)

    lean = {"enhanced_small": {"micro_activation_bytes": 200, "n_params": 1}}  # 216 bytes; the others need 264 and more
    found, findings = verdicts(**lean)
    assert (found["C11"], found["C12"]) == ("supported", "supported")
    assert [p.estimate.value for p in findings["C11"].parts] == [10] * 4
    want = [100 + len(arm) + 160 - 216 for arm in ORIGINAL if arm != "enhanced_small"]
    assert [p.estimate.value for p in findings["C12"].parts] == want and "counted" in findings["C12"].reason
    more = {"enhanced_small": {"micro_activation_bytes": 100, "n_params": 11}}  # 276 against 265 of gqa's like
    found, _ = verdicts(**more, lora_xl={"attention_params": 10})
    assert (found["C11"], found["C12"]) == ("refuted", "refuted")  # as many are no more
    found, findings = verdicts(drop=("enhanced_small", "lora_large"))
    assert {found["C11"], found["C12"]} == {"not tested"}
    assert findings["C11"].why == "no attention parameters of lora_large over the baseline in these records"
    assert findings["C12"].why == "no bytes to train baseline over enhanced_small in these records"
    del_base, findings = verdicts(drop=("baseline",))
    assert del_base["C11"] == "not tested" and "lora_small over the baseline" in findings["C11"].why


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_seeds_test_nothing_that_has_noise(n):
    found = findings_of(QUESTION, simple({"rope_small": -0.2}, n=n))
    assert {f.verdict for id, f in found.items() if id not in ("C11", "C12")} == {"not tested"}
    assert "3 seeds of every arm are needed, one has 2" in found["C1"].why or n == 1


def test_two_of_the_13_arms_name_what_is_missing():
    finding = findings_of(QUESTION, simple({}, drop=set(CLAIMED) - {"rope_small", "gqa"}))["C1"]
    rest = [arm for arm in ORIGINAL if arm != "rope_small"]
    assert finding.verdict == "not tested" and finding.why == f"no loss_nats of {rest[0]}"


def weights(plus, minus):
    made = {}
    for names, sign in ((plus, 1), (minus, -1)):
        for name in names:
            made[name] = made.get(name, 0) + sign / len(names)
    return made


def added(one, other):
    made = {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
    return {name: weight for name, weight in made.items() if weight}


OTHERS = [arm for arm in ORIGINAL if arm != "rope_small"]
ENHANCED = ("enhanced_small", "enhanced_medium", "enhanced_large", "enhanced_xl")
PARTS = {  # claim: (weights of each quantity, its lower bound, error of the claim, whether Tukey's)
    "C1": ([weights([a], ["rope_small"]) for a in OTHERS], 0, 0.05 / 3, True),
    "C2": ([weights(["baseline"], ROPE)], 0, 0.05, False),
    "C3": ([weights(["baseline"], ["mha_pi"])], 0, 0.05, False),
    "C4": ([weights(["lora_xl"], ["lora_small"])], -0.005, 0.05, False),
    "C5": ([weights([a], ["enhanced_medium"]) for a in ENHANCED if a != "enhanced_medium"], 0, 0.05, True),
    "C6": ([weights(["lora_medium"], ["enhanced_medium"])], 0, 0.05, False),
    "C7": ([weights(["enhanced_xl"], ENHANCED[:3])], 0, 0.05, False),
    "C8": ([weights([a], ["baseline"]) for a in ORIGINAL[1:]], 0, 0.05, True),
    "C9": ([weights(["mla_plain"], ["bias_only"])], 0, 0.05, False),
    "C10": ([weights(LORA, ROPE)], 0, 0.05 / 3, False),
    "C13": ([added(weights(["half_size"], ["baseline"]), weights([better], [worse]))
             for worse in ORIGINAL for better in ORIGINAL if worse != better], 0, 0.05 / 3, False),
}  # fmt: skip


def check_claims(rows, findings):
    """Every quantity of every claim by scipy: value, interval, number of seeds, verdict; the claim by its logic."""
    losses = losses_of(rows)
    competing = [arm for arm in losses if arm not in APART]
    for id, (quantities, bound, error, tukey) in PARTS.items():
        finding, confidence, bar = findings[id], 1 - error / len(quantities), None
        if tukey:  # over the arms that compete, with the spread of all
            confidence = 1 - error
            degrees = sum(len(x) - 1 for x in losses.values())
            bar = stats.studentized_range.ppf(confidence, len(competing), degrees) / math.sqrt(2)
        assert finding.confidence == pytest.approx(confidence) and len(finding.parts) == len(quantities), id
        words = []
        for found, weighted in zip(finding.parts, quantities, strict=True):
            value, low, high = contrast(losses, weighted, confidence, bar)
            assert found.estimate[:3] == pytest.approx((value, low, high), abs=1e-10), (id, found.label)
            assert found.estimate.n == min(len(losses[arm]) for arm in weighted) and found.low == bound, id
            words.append(verdict(low, high, above=bound))
            assert found.verdict == words[-1], (id, found.label)
        every, some = ("refuted", "supported") if id != "C8" else ("supported", "refuted")
        want = every if every in words else some if set(words) == {some} else "undecided"
        assert finding.verdict == want, id


@settings(max_examples=3, deadline=None, phases=[Phase.generate])  # a failure has nothing to shrink
@given(st.integers(0, 2**32 - 1))
def test_every_quantity_of_every_claim_is_found_again(seed):
    random = np.random.default_rng(seed)
    rows = simple(dict(zip(CLAIMED, random.normal(0, 0.006, len(CLAIMED)), strict=True)), noise=0.004, seed=seed)
    check_claims(rows, findings_of(QUESTION, rows))


def test_a_family_of_pairs_is_scipy_s_own_tukey_test():
    """Without the arms that stand apart, the comparisons of C1 and their p are those of scipy.stats.tukey_hsd."""
    rows = [
        row for row in made_up(2) if row.params["variant"] in COMPETING and tuple(row.params.values())[:2] == TERMS[2]
    ]
    rows.sort(key=lambda row: COMPETING.index(row.params["variant"]))
    losses = losses_of(rows)
    arms = list(losses)
    test = stats.tukey_hsd(*losses.values())
    interval, at = test.confidence_interval(1 - 0.05 / 3), arms.index("rope_small")
    for found, arm in zip(findings_of(QUESTION, rows)["C1"].parts, OTHERS, strict=True):
        ends = (interval.low[arms.index(arm), at], interval.high[arms.index(arm), at])
        assert (found.estimate.low, found.estimate.high) == pytest.approx(ends)
    table = reported(QUESTION, rows).tables["against_baseline_finished.csv"].set_index("arm")
    for arm in arms[1:]:
        assert table.loc[arm, "p_tukey"] == pytest.approx(test.pvalue[arms.index(arm), 0], abs=1e-9)


# --- arms that the study does not know, and few of those that it knows


def renamed(rows, new, *old):
    """Records in which arms have another name."""
    names = dict(zip(old, new, strict=True))
    made = []
    for row in rows:
        budget, match, seed, arm = row.params.values()
        made.append(cell((budget, match), seed, names.get(arm, arm), row.values, row.series, **GPU))
    return made


@pytest.fixture(scope="module")
def unknown() -> Reported:
    rows = [row for row in made_up(1) if tuple(row.params.values())[:2] != TERMS[1]]
    more = renamed([row for row in rows if row.params["variant"] == "gqa"], ("an_added_arm",), "gqa")
    return reported(QUESTION, [*renamed(rows, ("my_new_arm",), "mqa"), *more])


def test_an_arm_that_the_study_does_not_know_stands_in_every_table_and_figure(unknown):
    for name, table in unknown.tables.items():
        if name not in ("factors.csv", "factorial.csv", "same_cache.csv", "published.csv", "published_claims.csv"):
            names = set(table["arm" if "arm" in table else "variant"])
            assert {"my_new_arm", "an_added_arm"} <= names and "mqa" not in names, name
    assert {"my_new_arm", "an_added_arm"} <= {t.get_text() for t in unknown.figures["losses_finished.svg"].axes[0]
                                              .get_yticklabels()}  # fmt: skip
    for name in ("loss_by_position", "length", "learning"):
        assert {"my_new_arm", "an_added_arm"} <= set(lines(unknown.figures[f"{name}.svg"].axes[0])), name
    single = [line for line in unknown.figures["kv_bytes_vs_loss.svg"].axes[0].lines if len(line.get_xdata()) == 1]
    assert len(single) == 3 * (len(COMPETING) + 1)  # a mark, and the two ends of its interval
    assert "one head of keys and values" not in set(unknown.tables["factors.csv"]["what"])


def test_a_claim_is_judged_with_unknown_arms_among_those_that_compete():
    rows = simple({"rope_small": -0.008})
    gqa = [row for row in rows if row.params["variant"] == "gqa"]
    losses = [row.values | {"loss_nats": row.values["loss_nats"] + 0.1} for row in gqa]
    more = [cell(TERMS[2], row.params["seed"], "an_added_arm", some) for row, some in zip(gqa, losses, strict=True)]
    check_claims([*rows, *more], findings_of(QUESTION, [*rows, *more]))


def test_controls_alone_leave_nothing_to_rank():
    rows = [row for row in made_up() if row.params["variant"] in APART]
    found = reported(QUESTION, rows)
    assert "contain only again, half_size, which compete with no arm" in found.words and not found.tables
    assert set(found.verdicts.values()) == {"not tested"}


@pytest.mark.parametrize("drop", [("again",), ("mla_plain",), ("baseline", "half_size"), ("mla_q_pi",), ORIGINAL])
def test_a_report_without_some_arms_has_the_rest(drop):
    rows = [
        row for row in made_up() if row.params["variant"] not in drop and tuple(row.params.values())[:2] == TERMS[2]
    ]
    found = reported(QUESTION, rows)
    assert set(found.tables["arms_finished.csv"]["variant"]) == set(ALL) - set(drop)
    gone = [what for what, pair in FACTORS.items() if set(pair) & set(drop)]
    assert set(found.tables["factors.csv"]["what"]) == set(FACTORS) - set(gone)
    factorial = {"mla_plain", "mla_q_pi", "lora_small", "bias_only"} & set(drop)
    assert ("factorial.csv" in found.tables) == (not factorial)
    assert ("Main effects need all of mla_plain" in found.words) == bool(factorial)
    if drop == ORIGINAL:
        assert "None of the original's 13 arms" in found.words


def test_one_seed_has_means_and_no_interval():
    rows = [row for row in made_up() if row.params["seed"] == 42 and tuple(row.params.values())[:2] == TERMS[2]]
    found = reported(QUESTION, rows)
    assert found.tables["arms_finished.csv"][["low", "high", "tied"]].isna().all().all()
    assert "Fewer than two seeds or arms: nothing can be told apart." in found.words
    assert "one seed cannot tell any arm from another" in found.text("architecture_search_report_fast.md")


# --- the published numbers


@pytest.fixture(scope="module")
def published():
    return part(QUESTION, "original/published")


def test_the_published_numbers_say_what_they_can(published):
    sd, low, high, n = published.noise()
    assert (round(sd, 4), round(low, 4), round(high, 3), n) == (0.0077, 0.0046, 0.022, 4)
    assert published.normal_range(13) == pytest.approx(3.3360, abs=1e-3)  # tabulated d2
    tests = published.tests()
    assert list(tests.index[tests["p_holm"] < 0.05]) == ["enhanced_xl"]
    assert tests["p_holm"]["enhanced_xl"] == pytest.approx(0.033, abs=0.001)
    assert tests["p_holm"]["rope_small"] == pytest.approx(0.34, abs=0.01)
    answers = published.table().set_index("question")["answer"]
    assert answers["families rope, lora, enhanced"] == "Kruskal p 0.46"
    assert answers["attention parameters against loss"].startswith("Pearson +0.88 (p 8e-05), Spearman +0.73")
    assert answers["do the two runs agree on the order?"] == "Spearman -0.95"
    verdicts = published.claims().set_index("claim")["verdict"]
    assert verdicts["RoPE scaling is the winner"] == "undecided"
    assert verdicts["rope_only is the most parameter-efficient"] == "refuted"


def test_the_published_numbers_need_no_records():
    file = ROOT / "benches" / QUESTION / "report.py"
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True)
    assert "nearly reversed" in done.stdout and "RoPE scaling is the winner" in done.stdout
