"""Pairing: the planted ratio is found, an A/A is one, and what is not comparable is refused."""

import numpy as np
import pytest

from mlexp.analysis import stats
from mlexp.analysis.results import load, paired

ASK = {"metric": "wall_s", "arm": "decoder", "of": "plain", "to": "tree", "over": ["model", "prompt"]}


@pytest.fixture
def df(make, tmp_path):
    return load(make.write_json(tmp_path / "a.json", make.grid()))


def test_a_pair_is_two_arms_of_one_block(df):
    pairs = paired(df, **ASK)
    assert list(pairs.columns)[:6] == ["model", "prompt", "of", "to", "ratio", "difference"]
    assert pairs["scale"].unique() == ["quick"]
    assert len(pairs) == 12
    block = df[(df["model"] == "xl") & (df["prompt"] == "p02")].set_index("decoder")["wall_s"]
    pair = pairs[(pairs["model"] == "xl") & (pairs["prompt"] == "p02")].iloc[0]
    assert pair["ratio"] == block["plain"] / block["tree"]
    assert pair["difference"] == block["tree"] - block["plain"]
    assert pairs.attrs["unpaired"] == []


def test_a_planted_effect_is_found_and_an_a_a_is_not(make, tmp_path):
    planted = paired(load(make.write_json(tmp_path / "a.json", make.grid(slope=0))), **ASK)
    low, high = stats.ratio_interval(planted["ratio"])[1:3]
    assert low < 1.5 < high
    entries = make.grid(slope=0)
    for entry in entries:
        if entry["params"]["decoder"] == "tree":
            entry["stats"]["data"] = [value * 1.5 for value in entry["stats"]["data"]]
    same = paired(load(make.write_json(tmp_path / "aa.json", entries)), **ASK)
    low, high = stats.ratio_interval(same["ratio"])[1:3]
    assert low < 1 < high


def test_pairs_stand_in_the_order_of_the_records_and_their_values_do_not_depend_on_it(df):
    assert paired(df, **ASK)["model"].unique().tolist() == ["small", "large", "xl"]
    shuffled = paired(df.sample(frac=1, random_state=3), **ASK).set_index(["model", "prompt"])["ratio"]
    assert shuffled.sort_index().equals(paired(df, **ASK).set_index(["model", "prompt"])["ratio"].sort_index())


def test_a_missing_partner_is_told(df):
    df = df.drop(index=0)
    df.loc[3, "wall_s"] = np.nan
    pairs = paired(df, **ASK)
    assert len(pairs) == 10
    assert pairs.attrs["unpaired"] == [
        {"model": "small", "prompt": "p00", "why": "plain: no record"},
        {"model": "small", "prompt": "p01", "why": "tree: null"},
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"of": "eab"}, "unknown decoder 'eab'; choose from plain, tree"),
        ({"metric": "speed"}, "unknown metric 'speed'; choose from wall_s, wall_iqr_s, rounds, flops, n_params"),
        ({"metric": "commit"}, "'commit' is not numeric"),
        ({"arm": "size"}, "unknown axis 'size'; choose from model, prompt, decoder"),
        ({"over": ["modle"]}, "unknown axis 'modle'"),
        ({"over": []}, "`over` is empty"),
        ({"over": ["decoder"]}, "not part of the block"),
        ({"of": "tree"}, "two values"),
        ({"over": ["model"]}, "several records in block {'model': 'small'}"),
    ],
)
def test_a_wrong_question_is_refused(df, change, told):
    with pytest.raises(ValueError) as caught:
        paired(df, **ASK | change)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("scale", "full", "two contexts are never paired: scale is 'quick' and 'full'"),
        ("settings", '{"samples":10}', "settings is {'samples': 20} and {'samples': 10}"),
        ("weights", None, "weights is 'random' and nan"),
        ("weights_hash", "w2", "did not do the same work in block {'model': 'xl', 'prompt': 'p03'}: weights_hash"),
        ("prompts_hash", "p2", "prompts_hash is 'p1' and 'p2'"),
        ("corpus_hash", "c2", "same work in block {'model': 'xl', 'prompt': 'p03'}: corpus_hash"),
        ("question", "other", "question is 'speed' and 'other'"),
    ],
)
def test_what_is_not_comparable_is_refused(df, field, value, told):
    df.loc[df.index[-1], field] = value
    with pytest.raises(ValueError) as caught:
        paired(df, **ASK)
    assert told in str(caught.value)


def test_an_axis_that_differs_between_the_arms_is_refused(df):
    one_each = df[df["prompt"] == df["decoder"].map({"plain": "p00", "tree": "p01"})]
    with pytest.raises(ValueError, match=r"same work in block {'model': 'small'}: prompt is 'p00' and 'p01'"):
        paired(one_each, **ASK | {"over": ["model"]})
