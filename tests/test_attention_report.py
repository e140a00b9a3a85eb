"""The attention report on made-up records, and what it finds in the published numbers."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from .command import ROOT
from .stand_ins import load

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
