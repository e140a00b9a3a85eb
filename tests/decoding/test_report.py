"""The decoding report on made-up records: every ratio, interval and verdict once more with pandas and scipy."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ..stand_ins import load

report = load("decoding_speedup", "report")
ARMS = ("sequential", "hf_batched", "shared_prefill", "dedup", "eab_paper", "eab_particles")
SIZES = {"gpt2_nano": 10, "gpt2_small": 100, "gpt2_medium": 300, "gpt2_large": 700, "gpt2_xl": 1500}
PAIR = ("sequential", "eab_particles")
ORIGINAL = {"prompt_tokens": 200, "samples": 20, "max_new_tokens": 50, "temperature": 0.8, "threshold": 0.4}
# Time over that of eab_particles; the trained model's differs, so that it is seen where it takes part
SLOWER = {"sequential": 2.0, "hf_batched": 1.7, "shared_prefill": 1.4, "dedup": 1.2, "eab_paper": 0.9, "eab_particles": 1}  # fmt: skip  # noqa: E501


def records(sizes=SIZES, prompts=5, times=None, settings=ORIGINAL, arms=ARMS, **columns):
    """A row a cell. times: (model, decoder, number of the prompt) -> seconds; all else is drawn, or given by column."""
    rng, rows = np.random.default_rng(3), []
    for (model, n), i, decoder in ((m, i, d) for m in sizes.items() for i in range(prompts) for d in arms):
        noise = math.exp(rng.normal(0, 0.1))
        grows = 9.0 if model == "gpt2_nano" else (n / 100) ** 0.2
        wall = times(model, decoder, i) if times else SLOWER[decoder] * noise * (grows if decoder != "eab_particles" else 1)  # fmt: skip  # noqa: E501
        row = {"model": model, "n_params": n, "prompt": f"p{i:02d}", "decoder": decoder, "wall_s": wall,
               "weights": "random", "settings": json.dumps(settings), "question": "decoding_speedup",
               "key": f"{model} {i} {decoder}", "worst_functional": ("token_0", "token_1", "token_0")[i % 3],
               "worst_effective_samples": rng.uniform(9, 19), "surprisal_effective_samples": 19.5,
               "first_token_effective_samples": rng.uniform(5, 9), "mean_surprisal_nats": rng.normal(50, 3),
               "n_samples": 13 if decoder == "eab_paper" else 20}  # fmt: skip
        row |= {name: rng.lognormal(3) for name in ("token_forwards", "flops", "peak_bytes")}
        row |= {name: rng.uniform() for name in NUMBERS if name not in row}
        rows.append(row | columns)
    return pd.DataFrame(rows)


NUMBERS = (
    "branch_rate", "branch_count", "branch_position_first", "branch_position_mean", "branch_position_last",
    "final_paths", "n_samples", "worst_effective_samples", "surprisal_effective_samples",
    "first_token_effective_samples", "unique_samples", "mean_surprisal_nats", "distinct_1", "distinct_2", "self_bleu",
    "accuracy", "bytes_per_sample", "kv_bytes",
)  # fmt: skip


class Out:
    """What a report says, as it says it."""

    def __init__(self, series=None):
        self.verdicts, self.tables, self.figures, self.texts, self.headings = {}, {}, {}, [], []
        self.series = series or (lambda key: {"live_paths": [1, 2, 3]})

    def verdict(self, id, claim, verdict, effect="", interval=None, why=""):
        self.verdicts[id] = SimpleNamespace(claim=claim, verdict=str(verdict), effect=effect, interval=interval, why=why)  # fmt: skip  # noqa: E501

    def table(self, df, name, caption=""):
        self.tables[name] = df

    def figure(self, fig, name, caption=""):
        self.figures[name] = fig

    def text(self, text):
        self.texts.append(text)

    def heading(self, text):
        self.headings.append(text)


def said(df, **more):
    out = Out(**more)
    report.report(df, out)
    return out


def judged(*args, **more):
    """The verdicts on made-up records of the arms that they are about."""
    df, out = records(*args, **more), Out()
    report.verdicts(df, report.speedup_table(df), out)
    return out.verdicts


@pytest.fixture(scope="module")
def whole():
    """Records of all sizes, and what the report says of them; their series name their cells."""
    df = records()
    return df, said(df, series=lambda key: {"live_paths": [len(key), 1, int(key.split()[1])]})


def column(df, model, decoder, name="wall_s"):
    """Values by prompt, in order."""
    mine = df[(df["model"] == model) & (df["decoder"] == decoder)]
    return mine.sort_values("prompt")[name].to_numpy(float)


def interval(values):
    """(mean, low, high) by Student's t."""
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return np.mean(values) + np.array([0, -half, half])


def geometric(ratios):
    return np.exp(interval(np.log(ratios)))


def curves(ax):
    """What is drawn: {arm: (x, y)}."""
    return {line.get_label(): (line[0].get_xdata(), line[0].get_ydata()) for line in ax.containers}


def test_speedups_are_a_baseline_s_time_over_the_method_s(whole):
    df, table = whole[0], whole[1].tables["speedup.csv"]
    assert len(table) == len(SIZES) * 2 * 4 and list(table["model"].unique()) == list(SIZES)
    for row in table.itertuples():
        ratio = column(df, row.model, row.baseline) / column(df, row.model, row.method)
        assert (row.speedup, row.low, row.high) == pytest.approx(geometric(ratio))
        worth = column(df, row.model, row.method, "worst_effective_samples") / 20
        assert row.per_effective_sample == pytest.approx(stats.gmean(ratio * worth))
        assert (row.n_params, row.prompts) == (SIZES[row.model], 5)


def test_three_times_as_fast_is_three():
    df = records(
        {"gpt2_small": 100}, 2, lambda model, decoder, i: 1.0 + i if decoder.startswith("eab") else 3.0 + 3 * i
    )
    table = said(df).tables["speedup.csv"]
    assert table[["speedup", "low", "high"]].to_numpy() == pytest.approx(3.0)


def test_limits_are_ratios_of_what_was_counted(whole):
    df, table = whole[0], whole[1].tables["limits.csv"]
    names = {"token_forwards": "tokens", "flops": "flops", "wall_s": "time", "peak_bytes": "peak_bytes"}
    assert len(table) == len(SIZES) * 4
    for row in table.to_dict("records"):
        for metric, name in names.items():
            ratio = column(df, row["model"], row["baseline"], metric) / column(
                df, row["model"], "eab_particles", metric
            )
            assert row[name] == pytest.approx(stats.gmean(ratio))


@pytest.mark.parametrize(
    ("flops", "tokens", "time", "words"),
    [
        (1.2, 1.5, 1.3, "theory allows x1.20 (FLOPs) to x1.50 (tokens); measured x1.30, faster"),
        (1.5, 1.2, 1.6, "measured x1.60, faster than the saving explains"),
        (1.2, 1.5, 0.9, "measured x0.90, slower: its bookkeeping"),
    ],
)
def test_what_the_tree_saved_is_said_beside_what_it_could(flops, tokens, time, words):
    row = {"model": "m", "flops": flops, "tokens": tokens, "time": time}
    limits = pd.DataFrame([row | {"baseline": name} for name in ("sequential", "dedup", "shared_prefill")])
    lines = list(report.limit_words(limits))
    assert len(lines) == 2 and all(words in line for line in lines)
    assert words.endswith("explains") or "explains" not in lines[0]


def test_behaviour_is_the_mean_over_prompts_and_differences_are_the_arm_s_less_sequential_s(whole):
    df, table = whole[0], whole[1].tables["quality.csv"]
    assert len(table) == len(SIZES) * 6
    for row in table.to_dict("records"):
        for name in NUMBERS:
            assert row[name] == pytest.approx(column(df, row["model"], row["decoder"], name).mean()), name
        assert row["worst_functional"] == "token_0 (3 of 5)"
        nats = [column(df, row["model"], arm, "mean_surprisal_nats") for arm in (row["decoder"], "sequential")]
        got = row["surprisal_vs_sequential"], row["low"], row["high"]
        if row["decoder"] == "sequential":
            assert np.isnan(got).all()
        else:
            assert got == pytest.approx(interval(nats[0] - nats[1]))


def batches():
    rng = np.random.default_rng(5)
    return pd.DataFrame([
        {"model": model, "n_params": n, "batch": f"b{i:02d}", "decoder": arm, "n_prompts": 10, "settings": "{}",
         "question": "decoding_speedup", "wall_s": rng.lognormal(1), "key": f"{model} b{i} {arm}"}
        for model, n in SIZES.items() for i in range(3) for arm in ARMS[1:]
    ])  # fmt: skip


def test_throughput_is_prompts_a_second_and_its_speedup_is_over_shared_prefill():
    df = batches()
    out = said(df)
    table = out.tables["throughput.csv"]
    assert out.headings == ["Throughput"] and len(table) == len(SIZES) * 5
    for row in table.itertuples():
        wall, shared = (
            df[(df["model"] == row.model) & (df["decoder"] == arm)]["wall_s"].to_numpy()
            for arm in (row.decoder, "shared_prefill")
        )
        assert row.prompts_per_s == pytest.approx((10 / wall).mean())
        if row.decoder == "shared_prefill":
            assert np.isnan(row.speedup)
        else:
            assert (row.speedup, row.low, row.high) == pytest.approx(geometric(shared / wall))
        assert (row.prompts, row.batches) == (10, 3)
    drawn = curves(out.figures["throughput.png"].axes[0])
    for arm, (x, y) in drawn.items():
        assert y == pytest.approx(table[table["decoder"] == arm]["prompts_per_s"]) and list(x) == list(SIZES.values())
    assert len(drawn) == 5


def test_batches_and_single_prompts_have_sections_of_their_own(whole):
    few = records({"gpt2_nano": 10}, 2, arms=("sequential", "eab_particles"))
    out = said(pd.concat([few, batches()], ignore_index=True))
    assert out.headings == ["Speed-up", "Cost", "Samples", "Throughput"]
    assert whole[1].headings == out.headings[:3]
    pd.testing.assert_frame_equal(out.tables["speedup.csv"], report.speedup_table(few))


# The figures: what is drawn.


def test_figures_draw_what_the_tables_hold(whole):
    df, out = whole
    table = out.tables["speedup.csv"]
    for ax, method in zip(out.figures["speedup_vs_params.png"].axes, ("eab_particles", "eab_paper"), strict=True):
        drawn = curves(ax)
        assert method in ax.get_title() and len(drawn) == 4
        for baseline, (_, y) in drawn.items():
            mine = table[(table["method"] == method) & (table["baseline"] == baseline)]
            assert y == pytest.approx(mine["speedup"])
    for baseline, (_, y) in curves(out.figures["time_saved.png"].axes[0]).items():
        saved = [(column(df, m, baseline) - column(df, m, "eab_particles")).mean() for m in SIZES]
        assert y == pytest.approx(saved)
    metrics = ("token_forwards", "flops", "peak_bytes")
    for ax, metric in zip(out.figures["cost.png"].axes, metrics, strict=True):
        drawn = curves(ax)
        assert len(drawn) == 6
        for arm, (_, y) in drawn.items():
            assert y == pytest.approx([column(df, m, arm, metric).mean() for m in SIZES])
    for ax, model in zip(out.figures["live_paths.png"].axes, SIZES, strict=True):
        drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
        assert ax.get_title() == model and set(drawn) == {"dedup", "eab_paper", "eab_particles"}
        for arm, y in drawn.items():
            assert list(y) == [len(f"{model} 0 {arm}"), 1, 2]  # the mean over prompts 0 to 4


# H1: the trend over sizes.


def test_the_trend_is_the_slope_of_log_speedup_over_the_four_sizes(whole):
    df, out = whole
    h1, four = out.verdicts["H1"], list(SIZES)[1:]
    logs = np.log([column(df, m, "sequential") / column(df, m, "eab_particles") for m in four])
    slopes = np.polyfit(np.log([SIZES[m] for m in four]), logs, 1)[0]
    value, low, high = interval(slopes)
    assert h1.effect == f"exponent {value:+.3f}" and h1.interval == pytest.approx((low, high))
    assert h1.verdict == "supported" and low > 0
    assert f"Page's p = {stats.page_trend_test(logs.T).pvalue:.2g}" in h1.why and "4 sizes, 5 prompts" in h1.why
    assert h1.claim.endswith("(cost at equal branch rate)") and out.verdicts["H1b"].verdict == "undecided"


@pytest.mark.parametrize(
    ("curve", "verdict"),
    [((1, 2, 3), "supported"), ((3, 2, 1), "refuted"), ((1, 3, 2.9), "undecided"), ((2, 2, 2), "undecided")],
    ids=["up", "down", "up, and not in order", "flat"],
)
def test_a_trend_is_supported_by_its_slope_and_by_page_s_test(curve, verdict):
    """Up and down again has a slope above 0 with two prompts alike, and Page's p is .25."""
    sizes = dict(list(SIZES.items())[1:4])
    ratio = dict(zip(sizes, curve, strict=True))
    noise = {"sequential": (1.0, 1.01), "eab_particles": (1.01, 1.0)}

    def times(model, decoder, i):
        return noise.get(decoder, (1, 1))[i] * (ratio[model] if decoder == "sequential" else 1.0)

    found = judged(sizes, 2, times, arms=PAIR, weights="pretrained")
    assert found["H1"].verdict == verdict
    assert "branch rate" not in found["H1"].claim and "H1b" not in found


def test_weights_trained_here_stand_in_too_and_two_sizes_are_no_trend():
    h1 = judged(dict(list(SIZES.items())[:3]), arms=PAIR, weights="trained")["H1"]
    assert h1.verdict == "undecided" and "has 2, 5" in h1.why
    assert "cost at equal branch rate" in h1.claim


# H2: the bands that the original predicts.


def banded(settings=ORIGINAL):
    ratio = {"gpt2_nano": 9, "gpt2_small": 2.3, "gpt2_medium": 2.3, "gpt2_large": 2.8, "gpt2_xl": 3.0}

    def times(model, decoder, i):
        return ratio[model] * (0.98 + 0.01 * i) if decoder == "sequential" else 1.0 + (decoder == "eab_paper")

    return judged(SIZES, 5, times, settings, arms=(*PAIR, "eab_paper", "dedup")), ratio


def test_bands_are_the_original_s_and_judged_by_the_interval():
    out, ratio = banded()
    found = {id.split()[1]: row for id, row in out.items() if id.startswith("H2")}
    assert {model: row.verdict for model, row in found.items()} == {
        "gpt2_small": "refuted", "gpt2_medium": "supported", "gpt2_large": "undecided", "gpt2_xl": "supported"
    }  # fmt: skip
    for model, row in found.items():
        want = geometric(ratio[model] * np.array([0.98, 0.99, 1.0, 1.01, 1.02]))
        assert row.effect == f"x{want[0]:.2f}" and row.interval == pytest.approx(want[1:])
    assert [row.claim.split()[-1] for row in found.values()] == ["1.8-2.2", "2.0-2.5", "2.2-2.8", "2.5-3.2"]


def test_a_prediction_for_other_settings_is_not_judged():
    out, _ = banded(ORIGINAL | {"samples": 4, "threshold": 0.3})
    found = [row for id, row in out.items() if id.startswith("H2")]
    assert {row.verdict for row in found} == {"undecided"} and len(found) == 4
    assert all(row.why.endswith("this run has samples 4, threshold 0.3") for row in found)
    one = judged(prompts=1, arms=PAIR)["H2 gpt2_small"]
    assert one.verdict == "undecided" and one.interval is None and one.why == "one prompt has no interval"


# H3: time for the same information.


@pytest.mark.parametrize(("worth", "verdict"), [(12.0, "supported"), (6.0, "refuted"), (None, "undecided")])
def test_the_worst_functional_decides(worth, verdict):
    """Twice as fast as the baselines, with 20 samples: what they are worth decides, whatever surprisal says."""
    times = {"dedup": 2.0, "shared_prefill": 2.1}
    df = records({"gpt2_nano": 1}, 5, lambda model, arm, i: times.get(arm, 1.0) + 0.01 * i)
    out = Out()
    report.per_sample(df.assign(worst_effective_samples=worth), out)
    found = out.verdicts
    assert {row.verdict for row in found.values()} == {verdict} and len(found) == (2 if worth else 1)
    if worth:
        ratio = (2.0 + 0.01 * np.arange(5)) / (1 + 0.01 * np.arange(5)) * worth / 20
        row = found["H3 gpt2_nano dedup"]
        assert row.effect == f"x{geometric(ratio)[0]:.2f}" and row.interval == pytest.approx(geometric(ratio)[1:])


def test_several_tests_are_corrected_together():
    """An interval above 1 whose p is below .05 alone, and not after Holm over four."""
    logs = {"dedup": np.array([0.02, 0.10, 0.20, 0.03, 0.15]), "shared_prefill": np.array([0.3, -0.3, 0.1, -0.1, 0.01])}
    p = stats.ttest_1samp(logs["dedup"], 0).pvalue
    assert 0.0125 < p < 0.05

    def times(model, decoder, i):
        which = "shared_prefill" if model == "gpt2_nano" else decoder
        return math.exp(logs[which][i]) if decoder in logs else 1.0

    sizes = dict(list(SIZES.items())[:2])
    found = judged(sizes, 5, times, arms=("shared_prefill", "dedup", "eab_particles"), worst_effective_samples=20.0)
    row = found["H3 gpt2_small dedup"]
    assert row.verdict == "undecided" and row.interval[0] > 1
    assert f"p = {4 * p:.2g} after Holm over 4" in row.why


def test_older_records_are_shown_and_not_judged_by_surprisal_alone(whole):
    df = records({"gpt2_nano": 10}, 3).drop(columns=[name for name in NUMBERS if "effective_samples" in name])
    df = df.drop(columns="worst_functional").assign(effective_samples=18.0)
    out = said(df)
    assert {out.verdicts[f"H3 gpt2_nano {arm}"].verdict for arm in ("dedup", "shared_prefill")} == {"undecided"}
    assert any("surprisal alone" in text for text in out.texts)
    for row in out.tables["speedup.csv"].itertuples():
        ratio = column(df, row.model, row.baseline) / column(df, row.model, row.method)
        assert row.per_effective_sample_by_surprisal == pytest.approx(stats.gmean(ratio) * 18 / 20)
    assert (out.tables["quality.csv"]["effective_samples"] == 18).all()
    now = whole[1]
    assert "per_effective_sample_by_surprisal" not in now.tables["speedup.csv"]
    assert not any("surprisal alone" in text for text in now.texts)
