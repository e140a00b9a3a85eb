"""The attention question as a user runs it, at smoke scale: every arm, the A/A pair, a planted effect, the report."""

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import mlexp
from mlexp.analysis.results import load_series
from mlexp.attention.variants import total_params, training_flops_per_token

from .command import ROOT, run

QUESTION = ROOT / "benches" / "attention_search"


def bench(place, *words, question=QUESTION, name="out.json"):
    where = ("--journal", str(place / "journal.jsonl"), "--benchmark-json", str(place / name))
    options = ("--scale", "smoke", "-p", "no:cacheprovider", "--benchmark-quiet", "-c", "pyproject.toml")
    return run(place, "pytest", str(question), *options, *where, *words)


def load(name, file):
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def grid():
    return load("attention_search_bench", QUESTION / "bench_attention_search.py")


@pytest.fixture(scope="module")
def report():
    return load("attention_search_report", QUESTION / "report.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("attention")
    status, text = bench(place, "--set", "seeds=42", "--set", "longer_windows=2")
    assert status == 0, text
    return place


def cells(place, name="out.json"):
    found = json.loads((place / name).read_text())
    return {tuple(b["params"].values()): b["extra_info"] for b in found["benchmarks"]}


def test_every_arm_leaves_a_complete_record(place, grid):
    found = cells(place)
    assert set(found) == {("finished", "same_shape", 42, a) for a in grid.KINDS}
    for (*_, arm), info in found.items():
        assert info["kv_bytes_per_token"] == info["kv_bytes_closed_form"], arm
        assert info["flops"] == pytest.approx(info["flops_closed_form"], rel=0.01)
        assert info["bayes_loss_nats"] < info["loss_nats"] < info["uniform_loss_nats"]
        assert info["shared_windows"] == 0 and info["attention_kernel"] == "flash_cpu" and info["peak_bytes"] > 0
        assert info["micro_batch"] == 8 and info["saved_activation_bytes"] == info["micro_activation_bytes"] > 0
    assert len({info["text_hash"] for info in found.values()}) == 1  # the same text for every arm


def test_the_report_writes_the_seeds_outputs_and_ours_from_one_seed(place):
    status, text = run(place, "mlexp", "report", str(place / "out.json"), "--out", str(place / "results"))
    assert status == 0, text
    folder = place / "results" / "attention_search"
    rows = json.loads((folder / "architecture_search_results_fast.json").read_text())
    assert len(rows) == 13 and [r["eval_loss"] for r in rows] == sorted(r["eval_loss"] for r in rows)
    assert {r["config_name"] for r in rows} >= {"medium_rope_small", "medium_baseline"}
    said = (folder / "architecture_search_report_fast.md").read_text()
    for heading in ("## Experimental Setup", "## Results Summary", "### Top 5", "## Key Findings", "## Conclusion",
                    "## Architecture Insights", "## Technical Analysis", "## Recommendations"):  # fmt: skip
        assert heading in said
    assert "Model size matters more than attention" in said
    for name in ("architecture_search_comprehensive_fast", "kv_bytes_vs_loss", "losses_finished", "loss_by_position",
                 "length", "learning"):  # fmt: skip
        assert (folder / f"{name}.png").stat().st_size > 10_000 and (folder / f"{name}.svg").exists()
    summary = (folder / "summary.md").read_text()
    assert all(f"| C{i} |" in summary for i in range(1, 14))
    assert summary.count("**undecided**") >= 11 and "nothing can be told apart" in summary
    assert len(pd.read_csv(folder / "factorial.csv")) == 7
    shares = pd.read_csv(folder / "same_flops_same_time.csv")
    assert shares["steps_share_flops"].max() == 1 and (shares["steps_share_flops"] > 0.3).all()


@pytest.mark.parametrize("scale", ["quick", "full"])
def test_parameters_and_flops_can_be_held_equal(grid, scale):
    settings, reference = grid.SETTINGS[scale], grid.VARIANTS[grid.REFERENCE]
    shape = grid.SHAPES[settings.shape]
    flops = settings.steps * training_flops_per_token(reference, shape)
    for name in set(grid.KINDS) - {grid.HALF}:
        arm, wider, steps = grid.build_plan(settings, "same_params", name)
        assert total_params(arm, wider) == pytest.approx(total_params(reference, shape), rel=0.002)
        assert steps == settings.steps
        arm, same, steps = grid.build_plan(settings, "same_flops", name)
        step = training_flops_per_token(arm, shape)
        assert same == shape and abs(steps * step - flops) <= step / 2


def measured(place, name, *words):
    """Run these cells: their records, and what a report is handed beside them."""
    status, text = bench(place, *words, "--set", "longer_windows=2", name=f"{name}.json")
    assert status == 0, text
    series = load_series(place / f"{name}.json")
    return mlexp.load(place / f"{name}.json"), SimpleNamespace(series=series.__getitem__)


def test_a_control_under_two_names_ties(place, report):
    records, out = measured(place, "again", "--set", "seeds=42..46", "--set", "variants=mla_plain,again", "--set",
                            "matches=same_params")  # fmt: skip
    again = report.tested(records, {"again": ("again", "mla_plain")}, out).iloc[0]
    assert again["low"] < 0 < again["high"] and np.isnan(again["p_holm"])  # A/A is no hypothesis
    assert any("they tie, as they must" in line for line in report.tie_words(records))
    assert records["text_hash"].nunique() == 5  # a training text a seed
    assert records["n_params"].unique() == pytest.approx(102_720, rel=0.002)  # the baseline's
    assert records["loss_nats"].nunique() == 10  # no arm is a copy of the other


def test_a_planted_effect_is_found(place, report):
    """Enough steps for attention to matter, which 6 are not: without positions an arm must lose."""
    words = ("--set", "seeds=42..44", "--set", "variants=baseline,nope", "--set", "steps=100", "--set", "batch=16",
             "--set", "eval_batches=8")  # fmt: skip
    effect = report.factor_table(*measured(place, "planted", *words)).set_index("what").loc["positions at all"]
    assert effect["p_holm"] < 0.05 and effect["high"] < -0.05


def test_one_arm_may_diverge_or_run_out_of_memory_and_the_rest_stands(tmp_path):
    tree = tmp_path / "benches" / "attention_search"
    shutil.copytree(QUESTION, tree, ignore=shutil.ignore_patterns("__pycache__"))
    rates = {"quick-multi_lag_v64-6x8": {"rates": {"mqa": 1e30}}}
    (tree / "learning_rates.json").write_text(json.dumps(rates))
    (tree / "conftest.py").write_text(
        "import pytest\n"
        "@pytest.fixture(autouse=True)\n"
        "def scarce(request, monkeypatch):\n"
        "    def refuse(*_, **__):\n"
        '        raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 9 bytes")\n'
        '    if request.node.callspec.params["variant"] == "gqa":\n'
        '        monkeypatch.setattr("mlexp.attention.learn.fit", refuse)\n'
    )
    words = ("--set", "seeds=42,43", "--set", "variants=baseline,mqa,gqa,mla_plain", "--set", "longer_windows=2")
    status, text = bench(tmp_path, *words, question=tree)
    assert status == 0 and "4 xfailed" in text, text
    assert {key[-1] for key in cells(tmp_path)} == {"baseline", "mla_plain"}
    folder = tmp_path / "results"
    status, text = run(tmp_path, "mlexp", "report", str(tmp_path / "out.json"), "--out", str(folder), "--benches",
                       str(tree.parent))  # fmt: skip
    assert status == 0, text
    summary = (folder / "attention_search" / "summary.md").read_text()
    _, _, unfinished = summary.partition("## Did not finish")
    assert unfinished.count("diverged") == 2 and unfinished.count("oom") == 2 and "not finite" not in summary
    # what stands is replayed, what fell is tried again
    status, text = bench(tmp_path, *words, "--resume", question=tree, name="again.json")
    assert status == 0 and "4 replayed" in text, text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": ("mla",)}, "unknown variant 'mla'; choose from baseline, lora_small"),
        ({"matches": ("same_size",)}, "unknown match 'same_size'; choose from same_shape, same_params, same_flops"),
        ({"budgets": ("long",)}, "unknown budget 'long'; choose from original, finished"),
        ({"shape": "huge"}, "unknown shape 'huge'; choose from full, natural, quick"),
        ({"text": "natural"}, "text=natural needs 257 tokens or more; shape=quick has 64: give --set shape=natural"),
        ({"shape": "natural"}, "text=synthetic has 64 tokens; shape=natural has 1024: give --set text=natural too"),
        ({"tokenizer": "mine"}, "tokenizer=mine: text=synthetic was never text; give --set text=natural too"),
        ({"micro_batch": 9}, "micro_batch is 9; 1 to batch=8"),
        ({"steps": 0}, "steps is 0; at least 1"),
        ({"lr": 0.0}, "lr is 0.0; above 0"),
        ({"factors": (0,)}, r"factors is \(0,\); each at least 1"),
    ],
)
def test_bad_settings_name_what_is_allowed(grid, change, message):
    with pytest.raises(ValueError, match=message):
        grid.inputs({}, replace(grid.SETTINGS["smoke"], **change), SimpleNamespace(corpus=None))


def test_a_bad_setting_is_one_line_for_the_user(tmp_path):
    status, text = bench(tmp_path, "--set", "variants=mla", "--collect-only")
    assert status == 4 and "unknown variant 'mla'" in text and "Traceback" not in text


def test_tuned_rates_are_of_seeds_that_are_not_reported_on(grid):
    for where, entry in json.loads(grid.RATES.read_text()).items():
        assert not set(entry["seeds"]) & set(grid.Settings().seeds)
        assert set(entry["rates"]) == set(grid.KINDS) - {grid.AGAIN}, where
        for arm, curve in entry["curves"].items():
            means = {float(rate): np.mean(losses) for rate, losses in curve.items() if None not in losses}
            assert min(means, key=means.get) == entry["rates"][arm]
            assert min(means) < entry["rates"][arm] < max(means)  # not at an end of its grid


# --- the report on made-up records


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
