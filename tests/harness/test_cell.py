"""What a cell runs before its timed rounds, and which FLOPs its record has, in processes with and without torch."""

import pytest

from ..needs import needs

pytest_plugins = ["pytester"]

CALL = "cell.time(run, rounds=3, warmup=False)"
BODY = "time.sleep(0.001)"
PRODUCT = "import torch; torch.ones(2, 3) @ torch.ones(3, 4)"


@pytest.mark.parametrize(
    ("asked", "body", "runs", "flops"),
    [
        ("rounds=3, warmup=False", PRODUCT, 3, "not recorded"),
        ("rounds=1, count=False", PRODUCT, 1 + 1, "not recorded"),
        ("rounds=3, count=False", PRODUCT, 1 + 1 + 3, "not recorded"),  # the second reads peak memory
        ("rounds=1, count=False, warmup=False", PRODUCT, 1, "not recorded"),
        ("rounds=1", "pass", 1 + 1, None),  # nobody has imported torch
        ("rounds=1", "import torch", 1 + 1 + 1, None),  # torch is there and does nothing
        ("rounds=1", PRODUCT, 1 + 1 + 1, 2 * 2 * 3 * 4),  # the first run imports it, the second counts
    ],
)
def test_runs_before_the_rounds_and_flops_of_the_record(toy, asked, body, runs, flops):
    if "torch" in body:
        needs("torch")
    source = toy.bench.read_text()
    assert CALL in source and BODY in source
    toy.bench.write_text(source.replace(CALL, f"cell.time(run, {asked})").replace(BODY, body))
    fresh = flops != "not recorded"  # in a process where nobody has imported torch, where that matters
    done = toy.run("-k", "m_one-seed1-base", "--benchmark-json", "out.json", subprocess=fresh)
    done.assert_outcomes(passed=1)
    info = toy.json()["benchmarks"][0]["extra_info"]
    assert len((toy.folder / "ran.log").read_text().split()) == runs
    assert info.get("flops", "not recorded") == flops
    assert info["peak_bytes"] is not None


def test_a_cell_after_one_that_used_torch_has_no_flops_of_it(toy):
    needs("torch")
    source = toy.bench.read_text().replace(CALL, "cell.time(run)")
    toy.bench.write_text(source.replace(BODY, f"if arm == 'base':\n            {PRODUCT}"))
    toy.run("-k", "m_one-seed1", "--benchmark-json", "out.json", subprocess=True).assert_outcomes(passed=2)
    found = {bench["params"]["arm"]: bench["extra_info"]["flops"] for bench in toy.json()["benchmarks"]}
    assert found == {"base": 48, "ours": None}


def test_a_part_of_the_rounds_is_a_metric_of_its_own(toy):
    """Three rounds of three blocks of 10 ms, beside 20 ms that are no part."""
    toy.edit('METRICS = {"things"', 'METRICS = {"apart_s": ("s", "none", "a part"), "things"')
    block = "\n        for _ in range(3):\n            with cell.part('apart_s'):\n                time.sleep(0.01)\n"
    toy.edit(BODY, f"{block}        time.sleep(0.02)")
    toy.run("-k", "m_one-seed1-base", "--benchmark-json", "out.json").assert_outcomes(passed=1)
    (bench,) = toy.json()["benchmarks"]
    whole, apart = 3 * bench["stats"]["mean"], bench["extra_info"]["apart_s"]
    assert 0.09 <= apart <= whole - 0.06


def test_a_part_is_of_a_declared_metric(toy):
    toy.edit(BODY, "\n        with cell.part('apart_s'):\n            pass")
    done = toy.run("-k", "m_one-seed1-base")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*unknown metric*apart_s*"])
