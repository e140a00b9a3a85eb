"""The attention report on made-up records, and what it finds in the published numbers."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from .command import ROOT
from .referees import adjusted, t_interval
from .stand_ins import Pages, lines, load

QUESTION = ROOT / "benches" / "attention_search"


@pytest.fixture(scope="module")
def report():
    return load("attention_search", "report")


def records(report, effects, noise=0.002, n=5):
    """Losses 3 + seed + effect of the arm, with little noise; the seed's 13 and the controls."""
    rng, rows = np.random.default_rng(0), []
    names = [*report.SEED_ARMS, "mla_plain", "mha_pi", "again", "half_size", "nope"]
    for seed in range(n):
        for arm in names:
            rows.append({"budget": "finished", "match": "same_shape", "seed": seed, "variant": arm,
                         "loss_nats": 3 + seed / 10 + effects.get(arm, 0) + rng.normal(0, noise),
                         "attention_params": 10 - len(arm) / 100 if arm.startswith("lora") else 10,
                         "micro_activation_bytes": 100 + len(arm), "n_params": 10,
                         "kv_bytes_per_token": 64 if arm.startswith("rope") else 512})  # fmt: skip
    made = pd.DataFrame(rows)
    made.attrs["axes"] = ["budget", "match", "seed", "variant"]
    return made


def verdicts(report, effects, **more):
    return {row[0]: str(row[2]) for row in report.judge(records(report, effects, **more))}


@pytest.mark.parametrize(
    ("effects", "want"),
    [
        ({"rope_small": -0.2}, {"C1": "supported", "C2": "supported", "C10": "supported"}),
        ({"rope_small": 0.2}, {"C1": "refuted", "C2": "refuted", "C10": "refuted"}),
        ({}, {"C1": "undecided", "C2": "undecided", "C5": "undecided", "C8": "undecided"}),
        ({"mha_pi": -0.1}, {"C3": "supported"}),
        ({"mha_pi": 0.1}, {"C3": "refuted"}),
        ({"lora_xl": 0.1}, {"C4": "supported", "C8": "supported"}),
        ({"lora_xl": -0.1}, {"C4": "refuted"}),
        ({"enhanced_medium": -0.1}, {"C5": "supported", "C6": "supported"}),
        ({"enhanced_xl": 0.1}, {"C7": "supported"}),
        ({"baseline": 0.3}, {"C8": "refuted"}),
        ({"bias_only": -0.1}, {"C9": "supported"}),
        ({"half_size": 0.5, "lora_xl": 0.1}, {"C13": "supported"}),
        ({"half_size": 0.05, "lora_xl": 0.4}, {"C13": "refuted"}),
    ],
)
def test_claims_are_told_from_each_other(report, effects, want):
    found = verdicts(report, effects)
    assert {id: found[id] for id in want} == want
    assert found["C11"] == "refuted" and set(found) == {f"C{i}" for i in range(1, 14)}


def test_one_seed_decides_nothing_that_has_noise(report):
    found = verdicts(report, {"rope_small": -0.2}, n=1)
    assert {v for id, v in found.items() if id not in ("C11", "C12")} == {"undecided"}


def test_the_tie_set_the_front_and_the_a_a_pair(report):
    made = records(report, {"rope_small": -0.2, "rope_only": -0.2, "half_size": -9, "nope": 0.3})
    assert set(report.tied(made)) == {"rope_small", "rope_only"}  # half the model does not compete
    assert set(report.front(made)["variant"]) <= {"rope_small", "rope_only"}
    low, high = report.aa_band(made)
    assert low < made[made["variant"] == "mla_plain"]["loss_nats"].mean() < high < low + 0.05


def test_pairs_are_tested_with_their_numbers(report):
    made = records(report, {"nope": 0.3}, noise=0.0005).assign(key=lambda d: d["variant"] + d["seed"].astype(str))
    curve = np.linspace(4, 3, 101)  # 0.01 nats a step
    out = SimpleNamespace(series=lambda key: {"losses": curve, "document_losses": [3.0, 3.3] if "nope" in key else
                                              [2.7, 3.0], "document_tokens": [3, 1]})  # fmt: skip
    row = report.tested(made, {"nope": ("nope", "baseline"), "a": ("again", "mla_plain")}, out).set_index("name")
    one = row.loc["nope"]
    assert one["difference"] == pytest.approx(0.3, abs=0.01) and one["steps"] == pytest.approx(30, abs=1)
    assert one["low_documents"] == pytest.approx(0.3) == one["high_documents"] and not one["equal"]
    assert one["p_sign"] == 2 / 32 and one["p_holm"] < 1e-5 and 0 < one["detectable"] < 0.02
    assert row.loc["a", "equal"] and np.isnan(row.loc["a", "p_holm"])


def test_main_effects_are_those_that_were_planted(report):
    made = records(report, {})
    rng, rows = np.random.default_rng(1), []
    for (q, pi, bias), arm in report.FACTORIAL.items():
        for seed in range(5):
            loss = 3 + 0.4 * q - 0.2 * pi + 0.1 * q * bias + seed / 10 + rng.normal(0, 0.002)
            rows.append({"budget": "finished", "match": "same_shape", "seed": seed, "variant": arm, "loss_nats": loss})
    table = report.factorial_table(pd.DataFrame(rows)).set_index("effect")
    want = {"query rank": 0.45, "interpolation": -0.2, "biases": 0.05, "query rank x biases": 0.05}
    assert table["difference"][list(want)].to_dict() == pytest.approx(want, abs=0.003)
    assert table["difference"]["query rank x interpolation"] == pytest.approx(0, abs=0.003)
    assert (table["p_holm"][list(want)] < 0.01).all() and report.factorial_table(made).empty


def test_the_published_numbers_say_what_they_can(report):
    sd, low, high, n = report.published_noise()
    assert (round(sd, 4), round(low, 4), round(high, 3), n) == (0.0077, 0.0046, 0.022, 4)
    assert report.normal_range(13) == pytest.approx(3.3360, abs=1e-3)  # tabulated d2
    tests = report.published_tests()
    assert list(tests.index[tests["p_holm"] < 0.05]) == ["enhanced_xl"]
    assert tests["p_holm"]["enhanced_xl"] == pytest.approx(0.033, abs=0.001)
    assert tests["p_holm"]["rope_small"] == pytest.approx(0.34, abs=0.01)
    said = report.published_table().set_index("question")["answer"]
    assert said["families rope, lora, enhanced"] == "Kruskal p 0.46"
    assert said["attention parameters against loss"].startswith("Pearson +0.88 (p 8e-05), Spearman +0.73")
    assert said["do the two runs agree on the order?"] == "Spearman -0.95"
    verdicts = report.published_claims().set_index("claim")["verdict"]
    assert verdicts["RoPE scaling is the winner"] == "undecided"
    assert verdicts["rope_only is the most parameter-efficient"] == "refuted"


def test_the_published_numbers_need_no_records():
    done = subprocess.run([sys.executable, str(QUESTION / "report.py")], capture_output=True, text=True, check=True)
    assert "nearly reversed" in done.stdout and "RoPE scaling is the winner" in done.stdout


# --- a whole report, found again by plain arithmetic

SEED_ARMS = ("baseline", "lora_small", "lora_medium", "lora_large", "lora_xl", "enhanced_small", "enhanced_medium",
             "enhanced_large", "enhanced_xl", "rope_only", "rope_small", "rope_large", "bias_only")  # fmt: skip
FACTORIAL = ("mla_only_pi", "mla_q_pi", "mla_q_bias", "mla_bias_pi", "mla_all_three")
ALL = (
    *SEED_ARMS,
    "mla_plain",
    "mla_true",
    "nope",
    "mha_pi",
    "mha_bias",
    "mqa",
    "gqa",
    "again",
    "half_size",
    *FACTORIAL,
)
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
MEASURED = ("loss_nats", "validation_loss_nats", "train_loss_nats", "accuracy", "perplexity", "bits_per_byte", "wall_s",
            "flops", "flops_closed_form", "n_tokens", "peak_bytes", "lr")  # fmt: skip
OF_ARM = ("n_params", "attention_params", "active_params", "kv_bytes_per_token", "saved_activation_bytes",
          "micro_activation_bytes")  # fmt: skip


def made_up(rng=0, seeds=4):
    """(records in no order, series): every arm on two sets of terms and two budgets, effects far above their noise."""
    random, rows, series = np.random.default_rng(rng), [], {}
    costs = {arm: dict(zip(OF_ARM, random.integers(100, 999, 6).tolist(), strict=True)) for arm in ALL}
    for terms in (("finished", "same_shape"), ("finished", "same_params"), ("original", "same_shape")):
        effect = dict(zip(ALL, random.permutation(len(ALL)) / 50, strict=True)) | {"again": 0.0, "mla_plain": 0.0}
        for seed in range(seeds):
            for arm in ALL:
                key = "-".join((*terms, arm, str(seed)))
                row = {"budget": terms[0], "match": terms[1], "seed": seed, "variant": arm, "key": key,
                       **{name: random.exponential() for name in MEASURED}, **costs[arm], "corpus": "text",
                       "machine": "NVIDIA H100 80GB", "device": "cuda", "dtype": "bfloat16",
                       "attention_kernel": "flash", "settings": '{"shape": "full", "steps": 40, "batch": 16}',
                       **{f"{name}_loss_nats": at for name, at in
                          {"uniform": 4.2, "unigram": 3.9, "bigram": 3.7, "bayes": 1.8}.items()}}  # fmt: skip
                row["loss_nats"] = 3 + seed / 10 + effect[arm] + random.normal(0, 0.01)
                rows.append(row)
                series[key] = {
                    "losses": 4 - np.arange(40) / 40 - random.random(40) ** 3,
                    "loss_by_position": random.random(37) ** 4,
                    "factors": np.array([1, 2, 4]), "loss_by_factor": random.random(3) ** 4,
                    "document_losses": 3 + effect[arm] + random.normal(0, 0.1, 6),
                    "document_tokens": np.array([1, 2, 3, 40, 5, 6]),
                }  # fmt: skip
    records = pd.DataFrame(rows).sample(frac=1, random_state=rng, ignore_index=True)
    records.attrs["axes"] = ["budget", "match", "seed", "variant"]
    return records, series


@pytest.fixture(scope="module")
def whole(report):
    records, series = made_up()
    pages = Pages(series)
    report.report(records, pages)
    return records, series, pages


def of(records, arm, metric="loss_nats", budget="finished", match="same_shape"):
    """A metric of an arm, by seed."""
    mine = records[(records["variant"] == arm) & (records["budget"] == budget) & (records["match"] == match)]
    return mine.set_index("seed")[metric].sort_index()


def check_pairs(table, pairs, whole, budget="finished"):
    """Every test of a table of pairs (arm, without), by scipy."""
    records, series, _ = whole
    assert list(zip(table["arm"], table["against"], strict=True)) == pairs
    gaps = [of(records, arm, budget=budget) - of(records, without, budget=budget) for arm, without in pairs]
    counted = [i for i, (arm, _) in enumerate(pairs) if arm != "again"]
    p = adjusted([stats.ttest_1samp(gaps[i], 0).pvalue for i in counted])
    np.testing.assert_allclose(table["p_holm"].iloc[counted], p)
    for (_, row), gap, (arm, without) in zip(table.iterrows(), gaps, pairs, strict=True):
        assert (row["difference"], row["low"], row["high"]) == pytest.approx((gap.mean(), *t_interval(gap)))
        low, high = t_interval(gap, 0.90)
        assert row["equal"] == (low >= -0.005 and high <= 0.005) and row["seeds"] == 4
        flips = [abs(np.mean(gap * [1 - 2 * (k >> i & 1) for i in range(4)])) for k in range(16)]
        assert row["p_sign"] == np.mean(np.array(flips) >= abs(gap.mean()) - 1e-12)
        bar = stats.t.ppf(1 - 0.05 / len(counted) / 2, 3) + stats.t.ppf(0.8, 3)
        assert row["detectable"] == pytest.approx(bar * gap.std() / 2)
        falls = []
        for key in of(records, without, "key", budget):
            falls.append(-stats.linregress(range(20), series[key]["losses"][20:]).slope)
        assert row["steps"] == pytest.approx(gap.mean() / np.mean(falls))
        keys = (of(records, a, "key", budget) for a in (arm, without))
        documents = [series[one]["document_losses"] - series[other]["document_losses"]
                     for one, other in zip(*keys, strict=True)]  # fmt: skip
        documents = np.average(documents, axis=1, weights=[1, 2, 3, 40, 5, 6])
        middle = (row["low_documents"] + row["high_documents"]) / 2
        assert middle == pytest.approx(np.mean(documents)) and row["low_documents"] < row["high_documents"]


def test_one_thing_at_a_time_is_the_arm_with_it_minus_the_arm_without(whole):
    table = whole[2].tables["factors.csv"]
    assert list(table["what"]) == list(FACTORS)
    check_pairs(table, list(FACTORS.values()), whole)


def test_main_effects_are_means_over_the_other_two_options(whole):
    """Arms by (query rank, interpolation, bias): an effect is the mean with it minus the mean without."""
    records, _, pages = whole
    arms = {"000": "mla_plain", "100": "lora_small", "010": "mla_only_pi", "001": "bias_only", "110": "mla_q_pi",
            "101": "mla_q_bias", "011": "mla_bias_pi", "111": "mla_all_three"}  # fmt: skip
    table = pages.tables["factorial.csv"].set_index("effect")
    names, p = ("query rank", "interpolation", "biases"), []
    for effect, row in table.iterrows():
        which = [names.index(name) for name in effect.split(" x ")]
        sides = {True: [], False: []}
        for levels, arm in arms.items():  # an even number of the options left out counts as having all
            sides[sum(levels[i] == "0" for i in which) % 2 == 0].append(of(records, arm))
        gap = (sum(sides[True]) - sum(sides[False])) / 4
        assert row[["difference", "low", "high"]].tolist() == pytest.approx([gap.mean(), *t_interval(gap)]), effect
        p.append(stats.ttest_1samp(gap, 0).pvalue)
    assert len(table) == 7
    np.testing.assert_allclose(table["p_holm"], adjusted(p))


@pytest.mark.parametrize("budget", ["finished", "original"])
@pytest.mark.parametrize("control", ["mla_plain", "baseline"])
def test_every_arm_is_tested_against_the_controls(whole, budget, control):
    table = whole[2].tables[f"against_{control}_{budget}.csv"]
    pairs = [(arm, control) for arm in table["arm"]]
    assert {arm for arm, _ in pairs} == set(ALL) - {control} and list(table["arm"][:3]) == [
        a for a in SEED_ARMS if a != control][:3]  # fmt: skip
    check_pairs(table, pairs, whole, budget)


def tied_with_best(records, budget):
    """Arms that a one-sided t test at .05 over the others does not find worse than the lowest mean."""
    losses = {arm: of(records, arm, budget=budget) for arm in ALL if arm not in ("again", "half_size")}
    best = min(losses, key=lambda arm: losses[arm].mean())
    same = set()
    for arm, own in losses.items():
        gap = own - losses[best]
        p = 1.0 if arm == best else stats.ttest_1samp(gap, 0, alternative="greater").pvalue
        if p >= 0.05 / (len(losses) - 1):
            same.add(arm)
    return same


@pytest.mark.parametrize("budget", ["finished", "original"])
def test_the_table_of_arms_is_means_best_first_with_those_tied(whole, budget):
    records, _, pages = whole
    table, same = pages.tables[f"arms_{budget}.csv"], tied_with_best(records, budget)
    assert set(table["variant"]) == set(ALL) and list(table["loss_nats"]) == sorted(table["loss_nats"])
    for row in table.itertuples():
        for metric in (*MEASURED[:6], "lr", *OF_ARM[:4]):
            assert getattr(row, metric) == pytest.approx(of(records, row.variant, metric, budget).mean()), metric
        assert (row.low, row.high) == pytest.approx(t_interval(of(records, row.variant, budget=budget)))
        assert row.tied == (None if row.variant in ("again", "half_size") else row.variant in same)
        family = row.variant.partition("_")[0] if row.variant in SEED_ARMS else "control"
        assert (row.family, row.seeds) == (family, 4)
    assert 0 < len(same) < 24


def test_fair_terms_are_differences_to_the_plain_latent_arm(whole):
    records, _, pages = whole
    table = pages.tables["fair.csv"].set_index("variant")
    assert set(table.index) == set(ALL) - {"mla_plain", "again", "half_size"}
    for arm, row in table.iterrows():
        for match in ("same_shape", "same_params"):
            gap = of(records, arm, match=match) - of(records, "mla_plain", match=match)
            found = row[[match, f"{match}_low", f"{match}_high"]].tolist()
            assert found == pytest.approx([gap.mean(), *t_interval(gap)])


def test_curves_are_cut_where_the_cheapest_arm_ends(whole):
    records, series, pages = whole
    arms = [arm for arm in ALL if arm not in ("again", "half_size")]
    table = pages.tables["same_flops_same_time.csv"].set_index("variant")
    for cost, word in (("flops", "flops"), ("wall_s", "time")):
        spent, ends = {arm: of(records, arm, cost).mean() for arm in arms}, {}
        for arm in arms:
            share = min(spent.values()) / spent[arm]
            last = max(1, round(share * 40))
            ends[arm] = np.array(
                [series[key]["losses"][max(0, last - 4) : last].mean() for key in of(records, arm, "key")]
            )
            assert table.loc[arm, f"steps_share_{word}"] == pytest.approx(share)
        for arm in arms:
            gap = ends[arm] - ends["mla_plain"]
            found = table.loc[arm, [f"loss_{word}", f"difference_{word}"]].tolist()
            assert found == pytest.approx([ends[arm].mean(), gap.mean()])
            if arm != "mla_plain":
                ends_of = table.loc[arm, [f"low_{word}", f"high_{word}"]].tolist()
                assert ends_of == pytest.approx(list(t_interval(gap)))


def test_costs_are_means_of_ratios_seed_by_seed(whole):
    records, _, pages = whole
    table = pages.tables["cost.csv"].set_index("variant")
    for arm in ALL:
        v = {name: of(records, arm, name) for name in (*MEASURED, *OF_ARM)}
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
    assert "989 TFLOP/s" in pages.words


def test_a_peak_is_said_of_known_gpus_in_bfloat16_alone(report, whole):
    mine = whole[0].head(3)
    for change, want in (({}, 989e12), ({"machine": "NVIDIA A100-SXM4"}, 312e12), ({"machine": "RTX 4090"}, 165e12),
                         ({"machine": "TPU"}, None), ({"dtype": "float32"}, None),
                         ({"device": "cpu"}, None)):  # fmt: skip
        assert report.peak_flops(mine.assign(**change)) == want


def test_the_front_is_what_no_other_arm_beats_in_cache_and_loss(whole, report):
    records = whole[0]
    mine = records[(records["budget"] == "finished") & (records["match"] == "same_shape")]
    points = {arm: (of(records, arm, "kv_bytes_per_token").mean(), of(records, arm).mean())
              for arm in ALL if arm not in ("again", "half_size")}  # fmt: skip
    beaten = {a for a, (x, y) in points.items() for b, (u, w) in points.items() if b != a and u <= x and w <= y}
    found = report.front(mine)
    assert list(found["variant"]) == sorted(set(points) - beaten, key=points.get) and len(found) > 1
    least = min(points, key=points.get)
    assert report.least_cache(found, list(points)) == f"{least} ({points[least][0]:,.0f} bytes a token)"


def test_arms_of_one_cache_are_ranked(report):
    made = records(report, {"rope_small": -0.2, "rope_large": 0.1, "nope": 0.4, "lora_xl": -0.3})
    table = report.same_cache_table(made).set_index("kv_bytes_per_token")
    assert table.loc[64, ["arms", "best", "worst", "tied_with_best"]].tolist() == [
        3,
        "rope_small",
        "rope_large",
        "none",
    ]
    assert table.loc[512, ["arms", "best", "worst"]].tolist() == [13, "lora_xl", "nope"]
    assert table.loc[64, "best_loss_nats"] == pytest.approx(made[made["variant"] == "rope_small"]["loss_nats"].mean())
    assert table.loc[512, "worst_loss_nats"] == pytest.approx(made[made["variant"] == "nope"]["loss_nats"].mean())


def test_the_a_a_band_is_the_control_give_or_take_the_wider_end(report):
    made = records(report, {"again": 0.001}, noise=0.004)
    mean = {arm: made[made["variant"] == arm].set_index("seed")["loss_nats"] for arm in ("again", "mla_plain")}
    wide = max(map(abs, t_interval(mean["again"] - mean["mla_plain"])))
    middle = mean["mla_plain"].mean()
    assert report.aa_band(made) == pytest.approx((middle - wide, middle + wide))


def test_figures_draw_means_over_seeds(whole):
    records, series, pages = whole
    octaves = [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 37)]
    drawn = {n: lines(pages.figures[f"{n}.png"].axes[0]) for n in ("loss_by_position", "length", "learning")}
    shown = [arm for arm in ALL if arm in drawn["learning"]]
    assert {"baseline", "mla_plain", "nope", "rope_small"} <= set(shown)
    for arm in shown:
        kept = [series[key] for key in of(records, arm, "key")]
        mean = {name: np.mean([s[name] for s in kept], axis=0) for name in ("loss_by_position", "loss_by_factor")}
        x, y = drawn["loss_by_position"][arm]
        np.testing.assert_allclose(y, [mean["loss_by_position"][a:b].mean() for a, b in octaves])
        np.testing.assert_allclose(x, [math.sqrt((a + 1) * b) for a, b in octaves])
        assert drawn["length"][arm][0].tolist() == [1, 2, 4]
        np.testing.assert_allclose(drawn["length"][arm][1], mean["loss_by_factor"])
        np.testing.assert_allclose(drawn["learning"][arm][1], np.mean([s["losses"] for s in kept], axis=0))


def test_the_original_s_json_is_means_best_first(whole):
    records, _, pages = whole
    rows = json.loads(pages.files["architecture_search_results_fast.json"])
    assert [row["eval_loss"] for row in rows] == sorted(row["eval_loss"] for row in rows)
    assert {row["config_name"] for row in rows} == {f"medium_{arm}" for arm in SEED_ARMS}
    for row in rows:
        arm = row["config_name"].removeprefix("medium_")
        mean = {name: of(records, arm, name).mean() for name in (*MEASURED, *OF_ARM)}
        low, high = t_interval(of(records, arm))
        want = {
            "eval_loss": mean["loss_nats"], "eval_accuracy": mean["accuracy"], "eval_perplexity": mean["perplexity"],
            "training_time_minutes": mean["wall_s"] / 60, "parameters_millions": mean["n_params"] / 1e6,
            "peak_memory_gb": (mean["micro_activation_bytes"] + 16 * mean["n_params"]) / 1e9, "eval_loss_low": low,
            "eval_loss_high": high, "seeds": 4,
        }  # fmt: skip
        assert {name: row[name] for name in want} == pytest.approx(want)


def test_the_original_s_report_ranks_and_says_what_was_found(whole):
    records, _, pages = whole
    text = pages.files["architecture_search_report_fast.md"]
    for heading in ("## Experimental Setup", "## Results Summary", "### Top 5", "## Key Findings", "## Conclusion",
                    "## Architecture Insights", "## Technical Analysis", "## Recommendations"):  # fmt: skip
        assert heading in text
    order = sorted(SEED_ARMS, key=lambda arm: of(records, arm).mean())
    for i, arm in enumerate(order[:5], 1):
        assert f"{i}. **{arm}**: loss {of(records, arm).mean():.4f}" in text
    means = [of(records, arm).mean() for arm in SEED_ARMS]
    spread = f"{np.mean(means):.4f} +- {np.std(means, ddof=1):.4f} ({min(means):.4f} to {max(means):.4f})"
    assert f"- Loss: {spread}" in text
    minutes = [of(records, arm, "wall_s").mean() / 60 for arm in SEED_ARMS]
    assert f"- Time, minutes: {np.mean(minutes):.2f} +- {np.std(minutes, ddof=1):.2f}" in text
    families = {}
    for arm in SEED_ARMS:
        families.setdefault(arm.partition("_")[0], []).append(of(records, arm).mean())
    for i, name in enumerate(sorted(families, key=lambda name: np.mean(families[name])), 1):
        assert f"{i}. {name}: {min(families[name]):.4f} to {max(families[name]):.4f}" in text
    for what, (arm, without) in FACTORS.items():
        gap = of(records, arm) - of(records, without)
        assert f"- {what}: {gap.mean():+.4f} nats" in text
    assert set(pages.verdicts) == {f"C{i}" for i in range(1, 14)}
    assert all(pages.verdicts[id].said in text for id in pages.verdicts)


@pytest.mark.parametrize(
    ("id", "worse", "better", "margin"),
    [("C2", ["baseline"], ["rope_only", "rope_small", "rope_large"], 0), ("C3", ["baseline"], ["mha_pi"], 0),
     ("C4", ["lora_xl"], ["lora_small"], 0.005), ("C6", ["lora_medium"], ["enhanced_medium"], 0),
     ("C7", ["enhanced_xl"], ["enhanced_small", "enhanced_medium", "enhanced_large"], 0),
     ("C9", ["mla_plain"], ["bias_only"], 0),
     ("C10", ["lora_small", "lora_medium", "lora_large", "lora_xl"], ["rope_only", "rope_small", "rope_large"], 0)],
)  # fmt: skip
def test_a_claim_is_the_paired_gap_of_those_that_it_names(whole, id, worse, better, margin):
    records, _, pages = whole
    gap = sum(of(records, a) for a in worse) / len(worse) - sum(of(records, a) for a in better) / len(better)
    said = pages.verdicts[id]
    assert said.effect == f"{gap.mean():+.4f} nats" and said.interval == pytest.approx(t_interval(gap))
    low, high = said.interval
    sided = "supported" if low > -margin else "refuted" if high <= -margin else "undecided"
    assert said.said in (sided, "undecided")


def test_a_claim_is_decided_only_where_its_p_survives_holm(report):
    """Weak evidence for one claim of eight: its interval leaves 0 out, its p does not survive Holm."""
    made = records(report, {}, noise=0.0)
    off = {seed: 0.02 + 0.0088 * (seed - 2) for seed in range(5)}  # p = .03 alone
    nope = made["variant"] == "mha_pi"
    made.loc[nope, "loss_nats"] -= made.loc[nope, "seed"].map(off)
    rng = np.random.default_rng(3)
    made.loc[~nope, "loss_nats"] += rng.normal(0, 1e-3, (~nope).sum())
    row = {r[0]: r for r in report.judge(made)}["C3"]
    gap = -1 * (made[nope].set_index("seed")["loss_nats"]
                - made[made["variant"] == "baseline"].set_index("seed")["loss_nats"])  # fmt: skip
    assert stats.ttest_1samp(gap, 0).pvalue < 0.05 and row[4][0] > 0 and str(row[2]) == "undecided"


def test_to_be_the_best_an_arm_must_beat_every_other(report):
    made = {"rope_small": -0.2, "baseline": -0.2}
    assert verdicts(report, made)["C1"] == "undecided"  # beats all but one
    assert verdicts(report, {"rope_small": -0.2})["C1"] == "supported"


def test_the_margin_of_equal_ranks_is_part_of_the_test(report):
    """Larger ranks that lose 3 thousandths: within what does not matter, and so do not help."""
    assert verdicts(report, {"lora_xl": -0.003}, noise=2e-4)["C4"] == "supported"
    assert verdicts(report, {"lora_xl": -0.005}, noise=2e-4)["C4"] == "undecided"
    assert verdicts(report, {"lora_xl": -0.03}, noise=2e-4)["C4"] == "refuted"


def test_memory_to_train_counts_parameters_too(report):
    made = records(report, {})
    made["micro_activation_bytes"] = np.where(made["variant"] == "enhanced_small", 200, 100)
    made["n_params"] = np.where(made["variant"] == "enhanced_small", 10, 20)
    assert {row[0]: str(row[2]) for row in report.judge(made)}["C12"] == "supported"  # 360 against 420
    made["n_params"] = np.where(made["variant"] == "enhanced_small", 10, 14)
    assert {row[0]: str(row[2]) for row in report.judge(made)}["C12"] == "refuted"  # 360 against 324


class Verdicts(Pages):
    """No more than a report's verdicts, which it gives before its first section."""

    def heading(self, text):
        raise StopIteration


def test_records_of_terms_that_are_not_the_original_s_stand_behind(whole, report):
    """The claims are of the same shape and the finished budget, whatever comes first."""
    records, _, pages = whole
    for first in (("finished", "same_params"), ("original", "same_shape")):
        mine, again = (records["budget"] == first[0]) & (records["match"] == first[1]), Verdicts()
        with pytest.raises(StopIteration):
            report.report(pd.concat([records[mine], records[~mine]]), again)
        assert {id: v.effect for id, v in again.verdicts.items()} == {id: v.effect for id, v in pages.verdicts.items()}
