"""An arm is one line: renamed or added, it stands in every table and figure of its study, and nothing crashes."""

import copy
import json

import pytest

from tests.study.reported import RECORDS, changed, reported, summary_of

STUDIES = {  # question -> (a committed file, arm axis, an arm that no claim of it is about, tables that leave it out)
    "maze_scaling": ("maze_scaling-quick-intel-xeon-1-thread-2026-11-25.json", "arch", "poh_uniform"),
    "lm_scale_study": ("lm_scale_study-quick-intel-xeon-1-thread-2026-11-25.json", "learner", "recurrent_core"),
    "decoding_speedup": (
        "decoding_speedup-full-gpt2_small-gpt2_nano-amd-epyc-2-threads-2026-11-22.json", "decoder", "hf_batched",
    ),
    "training_speed": ("training_speed-quick-intel-xeon-1-thread-2026-11-25.json", "loop", "compiled"),
    "attention_search": ("attention_search-quick-intel-xeon-1-thread-2026-11-25.json", "variant", "mqa"),
}  # fmt: skip
NEW = "quite_new"
# What is about certain arms by its nature: the original's own outputs, named pairs, gates of PoH, one arm's limits
NOT_OF_ARMS = {
    "maze_scaling": {"gains.csv", "gains.svg", "probes.csv", "efficiency.csv", "scaling_plot_maze8.png", "mazes.svg"},
    "lm_scale_study": {
        *("parts.csv", "gradient.csv", "step.csv", "frontier.csv"),
        *("parts.svg", "gradient.svg", "step.svg", "frontier.svg"),
    },
    "decoding_speedup": {"live_paths.svg"},  # of trees
    "training_speed": set(),
    "attention_search": {
        *("factors.csv", "factorial.csv", "same_cache.csv", "published.csv", "published_claims.csv"),
        "architecture_search_comprehensive_fast.png",
    },
}


def names_in(section, figures) -> dict[str, bool]:
    """Which of its tables and figures name the new arm."""
    tables = {name: data.decode() for name, data in section.out.files.items() if name.endswith(".csv")}
    return {name: NEW in text for name, text in {**tables, **figures}.items()}


@pytest.mark.parametrize("question", STUDIES)
def test_a_renamed_arm_is_in_every_table_and_figure(question, tmp_path):
    file, axis, old = STUDIES[question]

    def rename(params, extra):
        if params.get(axis) == old:
            params[axis] = NEW
            extra["cell"] = extra["cell"].replace(old, NEW)

    ((section, figures), *_) = reported(question, changed(RECORDS / file, tmp_path / "a.json", rename))
    named = names_in(section, figures)
    missing = {name for name, found in named.items() if not found} - NOT_OF_ARMS[question] - {"limits.csv"}
    assert not missing, missing
    assert NEW in summary_of(section)


@pytest.mark.parametrize("question", STUDIES)
def test_an_added_arm_stands_beside_the_others(question, tmp_path):
    """A copy of an arm under another name: every number of it is that arm's, every other is what it was."""
    file, axis, old = STUDIES[question]
    content = json.loads((RECORDS / file).read_text())
    added = []
    for bench in content["benchmarks"]:
        if bench["params"].get(axis) == old:
            twin = copy.deepcopy(bench)
            twin["params"][axis] = NEW
            twin["fullname"] = twin["extra_info"]["cell"] = twin["fullname"].replace(old, NEW)
            twin["extra_info"]["key"] += "-twin"
            content["series"][twin["extra_info"]["key"]] = content["series"].get(bench["extra_info"]["key"], {})
            added.append(twin)
    content["benchmarks"] += added
    (tmp_path / "a.json").write_text(json.dumps(content))
    ((before, _), *_), ((after, figures), *_) = (
        reported(question, RECORDS / file),
        reported(question, tmp_path / "a.json"),
    )
    named = names_in(after, figures)
    missing = {name for name, found in named.items() if not found} - NOT_OF_ARMS[question] - {"limits.csv"}
    assert not missing, missing
    verdicts = [{v["id"]: (v["verdict"], v["effect"]) for v in s.out.verdicts} for s in (before, after)]
    if question != "attention_search":  # where arms share their variance, one more arm is told apart from all
        assert verdicts[0] == verdicts[1]
