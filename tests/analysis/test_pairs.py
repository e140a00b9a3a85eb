"""Arms against a baseline: scipy's paired interval, planted ratios, and refusals that name what is wrong."""

import numpy as np
import pytest
from scipy import stats

import mlexp

STUDY = {"arm": "decoder", "arms": ["plain", "tree"], "baseline": "plain", "over": ["model"], "replicates": ["prompt"]}


@pytest.fixture
def df(make, tmp_path):
    """model (3) x prompt (4) x decoder; the study's declaration in the file."""
    studies = {"speed": STUDY | {"outcome": "wall_s", "claims": {}}}
    return mlexp.load(make.write_json(tmp_path / "a.json", make.grid(), studies=studies))


def arms_of(df, metric="wall_s"):
    """Block x arm, by pandas alone."""
    return df.pivot(index=["model", "prompt"], columns="decoder", values=metric)


def test_what_the_study_declares_need_not_be_said(df):
    found = mlexp.pairs(df)
    assert (found.metric, found.axis, found.baseline, found.replicates) == ("wall_s", "decoder", "plain", ("prompt",))
    assert list(found.blocks) == ["model", "prompt", "decoder", "value", "baseline", "difference", "ratio"]
    blocks, by_hand = found.blocks.set_index(["model", "prompt"]), arms_of(df)
    assert blocks["ratio"].to_dict() == (by_hand["tree"] / by_hand["plain"]).to_dict()
    assert blocks["difference"].to_dict() == (by_hand["tree"] - by_hand["plain"]).to_dict()
    assert "wall_s by decoder against plain" in repr(found) and "<table" in found._repr_html_()


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_intervals_are_scipys_over_replicates(df, confidence):
    found, by_hand = mlexp.pairs(df), arms_of(df)
    differences = (by_hand["tree"] - by_hand["plain"]).unstack("model")
    logs = np.log(by_hand["tree"] / by_hand["plain"]).unstack("model")
    for table, values, back in (
        (found.differences(confidence=confidence), differences, float),
        (found.ratios(confidence=confidence), logs, np.exp),
    ):
        assert list(table) == ["model", "decoder", "value", "low", "high", "n"] and set(table["n"]) == {4}
        for row in table.itertuples():
            interval = stats.ttest_1samp(values[row.model], 0).confidence_interval(confidence)
            assert (row.low, row.high) == pytest.approx(tuple(map(back, interval)))
            assert row.value == pytest.approx(back(values[row.model].mean()))
    (mean,) = found.differences(by=(), confidence=confidence).itertuples()  # levels averaged within a prompt
    interval = stats.ttest_1samp(differences.mean(axis=1), 0).confidence_interval(confidence)
    assert (mean.low, mean.high, mean.n) == (pytest.approx(interval[0]), pytest.approx(interval[1]), 4)


def test_an_axis_called_n_keeps_its_name(df):
    df = df.rename(columns={"model": "n"})
    df.attrs["axes"] = ["n" if name == "model" else name for name in df.attrs["axes"]]
    table = mlexp.pairs(df).ratios(by="n")
    assert list(table) == ["n", "decoder", "value", "low", "high", "replicates"]
    assert set(table["n"]) == set(df["n"]) and set(table["replicates"]) == {4}


def test_without_a_declaration_what_is_needed_is_asked_for(make, tmp_path):
    df = mlexp.load(make.write_json(tmp_path / "a.json", make.grid()))
    with pytest.raises(ValueError, match=r"give baseline= .*decoder: plain, tree"):
        mlexp.pairs(df)
    with pytest.raises(ValueError, match="give metric="):
        mlexp.pairs(df, baseline="plain")
    with pytest.raises(ValueError, match=r"which axes are repetitions; give replicates= from model, prompt"):
        mlexp.pairs(df, "wall_s", baseline="plain")
    found = mlexp.pairs(df, "wall_s", baseline="plain", replicates="prompt")
    assert found.axis == "decoder" and len(found.blocks) == 12


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        ({"baseline": "plane"}, "unknown decoder 'plane'; choose from plain, tree"),
        ({"arms": "bush"}, "unknown decoder 'bush'; choose from plain, tree"),
        ({"metric": "speed"}, "unknown metric 'speed'; choose from wall_s"),
        ({"metric": "commit"}, "'commit' is not numeric"),
        ({"axis": "encoder"}, "unknown axis 'encoder'; choose from model, prompt, decoder"),
        ({"replicates": "seed"}, "replicates: 'seed' is no axis of a block; give replicates= from model, prompt"),
        ({"incomplete": "ignore"}, "incomplete is 'ignore'; choose from raise, drop"),
        ({"arms": ["plain"]}, "two values"),
    ],
)
def test_a_wrong_question_is_refused(df, ask, told):
    with pytest.raises(ValueError) as caught:
        mlexp.pairs(df, **ask)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("field", "values", "told"),
    [
        ("machine", ("a desk", "a rack"), "two contexts are never paired: machine is 'a desk' and 'a rack'; take one"),
        (
            "question",
            ("speed", "heat"),
            r"records of 2 questions \(speed, heat\) are not paired; take one of them: df\[",
        ),
        ("corpus_hash", ("c1", "c2"), "plain did not do the same work in block .*corpus_hash is 'c[12]' and 'c[12]'"),
    ],
)
def test_what_is_not_comparable_is_never_pooled(df, field, values, told):
    df[field] = np.where(df["decoder"] == "plain", *values)
    with pytest.raises(ValueError, match=told):
        mlexp.pairs(df)


def test_incomplete_blocks_are_named_and_dropped_knowingly(df):
    with pytest.raises(
        ValueError, match=r"wall_s: 1 of 12 pairs lack a side: model=small prompt=p00 \(plain: no record"
    ):
        mlexp.pairs(df.drop(index=0))
    dropped = mlexp.pairs(df.drop(index=0), incomplete="drop")
    assert len(dropped.blocks) == 11
    assert dropped.ratios()["n"].tolist() == [3, 4, 4] and dropped.ratios(by=())["n"].tolist() == [3]
    without = df[(df["model"] != "small") | (df["prompt"] != "p00")]  # both sides are missing: every pair is complete
    assert mlexp.pairs(without).ratios()["n"].tolist() == [3, 4, 4]
    with pytest.raises(ValueError, match="prompt p00 lacks model=small, so a mean over levels is not one of equals"):
        mlexp.pairs(without).ratios(by=())


def test_a_value_without_a_ratio_is_named(df):
    df.loc[1, "wall_s"] = 0.0
    found = mlexp.pairs(df)
    with pytest.raises(
        ValueError, match=r"wall_s of tree is 0 in block model=small prompt=p00, .*take differences\(\)"
    ):
        found.ratios()
    assert found.differences()["value"].notna().all()


def test_axes_that_no_row_can_stand_for_are_refused(df):
    found = mlexp.pairs(df)
    with pytest.raises(ValueError, match="by is 'prompt', which is a replicate"):
        found.ratios("prompt")
    with pytest.raises(ValueError, match="by is 'size'; choose from model"):
        found.differences("size")


def test_of_one_replicate_the_interval_is_not_known(df):
    table = mlexp.pairs(df[df["prompt"] == "p01"]).ratios()
    assert table["value"].notna().all() and table[["low", "high"]].isna().all(axis=None) and set(table["n"]) == {1}


def test_no_records_and_records_of_another_grid(df):
    with pytest.raises(ValueError, match="no records to pair"):
        mlexp.pairs(df[:0])
    df.attrs["axes"] = ["value", "prompt", "decoder"]
    with pytest.raises(ValueError, match="the axis 'value' has the name of a column of the result"):
        mlexp.pairs(df.rename(columns={"model": "value"}))
    df.attrs["axes"] = ["model", "prompt", "decoder"]
    df.loc[df["prompt"] == "p03", "prompt"] = None
    with pytest.raises(ValueError, match="6 of 24 records have no prompt: they are of another grid"):
        mlexp.pairs(df)


def test_two_records_in_a_block_are_refused(make, tmp_path):
    entries = make.grid(prompts=2)
    again = [make.bench(e["params"], (9.0,), key=f"again {i}") for i, e in enumerate(entries)]
    df = mlexp.load(make.write_json(tmp_path / "a.json", entries + again))
    ask = {"metric": "wall_s", "baseline": "plain", "replicates": "prompt"}
    with pytest.raises(ValueError, match=r"several records in block .*latest\(\)"):
        mlexp.pairs(df, **ask)
    assert len(mlexp.pairs(mlexp.latest(df), **ask).blocks) == 6
