"""What the documents show works as shown: CONTRIBUTING's question is added as one folder, run and reported."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]


def run(*argv, where):
    done = subprocess.run([sys.executable, "-m", *argv], cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_question_is_one_file_in_one_folder(tmp_path):
    """Run with three seeds of two of its arms; its claim stands registered; an edited claim replays every cell, and is
    post hoc."""
    (bench,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    file = tmp_path / "benches" / "temperature_cost" / "bench_temperature_cost.py"
    file.parent.mkdir(parents=True)
    file.write_text(bench)
    (ini,) = re.findall(r"```\n(\[pytest\]\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "pytest.ini").write_text(ini)
    two = ("--scale", "smoke", "--weights", "random", "-k", "cold or hot", "--set", "seeds=1..3")
    run("pytest", "benches", *two, "--benchmark-json", "out.json", where=tmp_path)
    content = json.loads((tmp_path / "out.json").read_text())
    assert len(content["benchmarks"]) == 6 and all(b["extra_info"]["flops"] > 0 for b in content["benchmarks"])
    assert content["studies"]["temperature_cost"]["arms"] == ["cold", "warm", "hot"]
    shown = run("mlexp", "report", "out.json", where=tmp_path)
    assert "H1" in shown and "(primary, registered)" in shown
    reported = tmp_path / "results" / "temperature_cost"
    assert list(pd.read_csv(reported / "arms.csv")["temperature"]) == ["cold", "hot"]
    assert list(pd.read_csv(reported / "against_baseline.csv")["temperature"]) == ["hot"]
    assert "Heat costs time" in (tmp_path / "results" / "index.html").read_text()

    assert bench.count('"Heat costs time"') == 1
    file.write_text(bench.replace('"Heat costs time"', '"Heat costs much time"'))
    replayed = run("pytest", "benches", *two, "--resume", "--benchmark-json", "again.json", where=tmp_path)
    assert "6 replayed" in replayed
    assert "(primary, post hoc)" in run("mlexp", "report", "again.json", where=tmp_path)
