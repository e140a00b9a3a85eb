"""What the documents show works as shown: CONTRIBUTING's question is added as one folder, run and reported."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*words, where):
    done = subprocess.run([sys.executable, "-m", *words], cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_question_is_one_folder(tmp_path):
    bench, report = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    folder = tmp_path / "benches" / "temperature_cost"
    folder.mkdir(parents=True)
    (folder / "bench_temperature_cost.py").write_text(bench)
    (folder / "report.py").write_text(report)
    (ini,) = re.findall(r"```\n(\[pytest\]\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "pytest.ini").write_text(ini)
    two = ("--scale", "smoke", "--weights", "random", "-k", "cold or hot")  # of three: those that its report compares
    run("pytest", "benches", *two, "--benchmark-json", "out.json", where=tmp_path)
    benchmarks = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert len(benchmarks) == 4 and all(bench["extra_info"]["flops"] > 0 for bench in benchmarks)
    shown = run("mlexp", "report", "out.json", where=tmp_path)
    assert "temperature_cost" in shown and "H1" in shown
    assert (tmp_path / "results" / "temperature_cost" / "pairs.csv").exists()
    assert "Heat costs time" in (tmp_path / "results" / "index.html").read_text()
