"""Whole reports of committed records that lost cells, figures made but not drawn: none is lost, no verdict is false."""

import random

import pytest

from tests.study.reported import RECORDS, changed, reported, verdicts
from tests.study.test_arms import STUDIES

ALL = {**{question: file for question, (file, *_) in STUDIES.items()},
       "harness": "harness_gate-full-intel-xeon-1-thread-2026-11-25.json"}  # fmt: skip


def without(question, tmp_path, share, seed):
    rng = random.Random(seed)
    return changed(RECORDS / ALL[question], tmp_path / "a.json", lambda *_: rng.random() >= share)


@pytest.mark.parametrize("question", ALL)
def test_a_fifth_of_the_cells_may_be_missing(question, tmp_path):
    check(question, tmp_path, 0.2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("question", ALL)
def test_any_share_of_the_cells_may_be_missing(question, share, seed, tmp_path):
    check(question, tmp_path, share, seed)


def check(question, tmp_path, share, seed):
    """Every context is reported; no claim is now decided the other way."""
    whole = reported(question, RECORDS / ALL[question])
    part = reported(question, without(question, tmp_path, share, seed))
    for section, _ in part:
        assert section.out.files["claims.json"] and section.out.answer is not None
    for (before, _), (after, _) in zip(whole[:1], part[:1], strict=False):  # of few records none may be left
        if before.out.line != after.out.line:
            continue
        opposite = {"supported": "refuted", "refuted": "supported"}
        turned = {
            id: (word, verdicts(after)[id])
            for id, word in verdicts(before).items()
            if verdicts(after)[id] == opposite.get(word)
        }
        assert not turned
