"""Records for the tests: benchmark JSON and journals as the harness writes them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlexp.journal import Entry, Journal

PROVENANCE = {
    "status": "passed",
    "reason": None,
    "scale": "quick",
    "settings": '{"samples":20}',
    "overrides": "",
    "seed": 7,
    "device": "cpu",
    "dtype": "float32",
    "machine": "AMD EPYC, 2 threads",
    "weights": "random",
    "weights_hash": "w1",
    "corpus": "pydoc_topics",
    "corpus_hash": "c1",
    "prompts_hash": "p1",
    "commit": "abc1234",
    "dirty": False,
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "python": "3.11.7",
    "replayed": False,
}
MACHINE = {"node": "host", "python_version": "3.11.7", "cpu": {"brand_raw": "AMD EPYC", "count": 2}}


def record(params: dict, question: str = "speed", when: str = "2026-11-22T10:00:00Z", **fields) -> dict:
    """The `extra_info` of a cell."""
    cell = f"benches/{question}/bench_{question}.py::test_run[{'-'.join(map(str, params.values()))}]"
    filled = PROVENANCE | {"question": question, "cell": cell, "when": when} | fields
    context = [filled[name] for name in ("machine", "device", "dtype", "scale", "settings", "weights", "corpus")]
    return {"key": f"{cell} {context}"} | filled


def bench(params: dict, durations=(1.0, 1.1, 0.9), **fields) -> dict:
    """An entry of a benchmark JSON, timed or (status not passed) unfinished."""
    extra = record(params, **fields)
    name = extra["cell"].split("::")[1]
    entry = {
        "group": None,
        "name": name,
        "fullname": extra["cell"],
        "params": params,
        "param": None,
        "extra_info": extra,
    }
    if extra["status"] != "passed":
        return entry
    data = list(durations)
    return entry | {"options": {}, "stats": {"median": sorted(data)[len(data) // 2], "rounds": len(data), "data": data}}


def write_json(path: Path, entries: list[dict], **extra) -> Path:
    """A benchmark JSON at `path`."""
    timed = [entry for entry in entries if "stats" in entry]
    data = {"machine_info": MACHINE, "commit_info": {"id": "abc1234", "dirty": False}, "benchmarks": timed}
    data |= {"datetime": "2026-11-22T10:00:00+00:00", "version": "5.3.1"}
    data["unfinished"] = [entry for entry in entries if "stats" not in entry]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data | extra))
    return path


def write_journal(path: Path, entries: list[dict], series: dict | None = None, metrics: dict | None = None) -> Path:
    """The same entries as a journal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(path)
    for entry in entries:
        extra = entry["extra_info"]
        identity = (extra["cell"], extra["key"], extra["question"], entry["params"])
        durations = entry.get("stats", {}).get("data", [])
        journal.append(Entry(*identity, extra, durations, (series or {}).get(extra["key"], {}), metrics or {}))
    return path


def grid(slope: float = 0.1, prompts: int = 4, noise: float = 0.02, **fields) -> list[dict]:
    """Entries of a study: model size x prompt x decoder, `tree` faster than `plain` by size ** slope."""
    import numpy as np

    rng, entries = np.random.default_rng(1), []
    for model, size in {"small": 124_000_000, "large": 774_000_000, "xl": 1_558_000_000}.items():
        for prompt in range(prompts):
            for decoder in ("plain", "tree"):
                gain = 1.5 * (size / 124e6) ** slope if decoder == "tree" else 1.0
                wall = size / 1e8 / gain * float(np.exp(noise * rng.standard_normal()))
                params = {"model": model, "prompt": f"p{prompt:02d}", "decoder": decoder}
                data = (wall * 0.99, wall, wall * 1.02)
                entries.append(bench(params, data, n_params=size, flops=int(size * 500 / gain), **fields))
    return entries


REPORT = '''"""Is the tree faster, and more so for larger models?"""

from mlexp.analysis import plots, stats
from mlexp.analysis.results import paired
import numpy as np
import pandas as pd


def report(records, out):
    pairs = paired(records, "wall_s", arm="decoder", of="plain", to="tree", over=["model", "prompt"])
    pairs = pairs.merge(records[["model", "n_params"]].drop_duplicates())
    rows = []
    for size, group in pairs.groupby("n_params"):
        found = stats.ratio_interval(group["ratio"])
        rows.append({"decoder": "tree", "n_params": size, **found._asdict()})
    table = pd.DataFrame(rows)
    out.heading("Speed-up by size")
    out.text("Each prompt is **one block**; see `paired`.")
    out.table(table, "speedup.csv", "Geometric means over prompts.")
    fig, ax = plots.figure("", "parameters", "plain / tree")
    plots.curves(ax, table, "n_params", "value", "decoder", plots.looks(["plain", "tree"]))
    plots.log_x(ax, table["n_params"])
    plots.log_y(ax)
    plots.reference(ax, y=1, label="no gain")
    out.figure(fig, "speedup.svg", "The tree is faster", "Speed-up against size", "95 % t interval over prompts")
    matrix = pairs.pivot(index="prompt", columns="n_params", values="ratio")
    x = np.log(matrix.columns.to_numpy(float))
    x = x - x.mean()
    slope = stats.t_interval(np.log(matrix).to_numpy() @ x / (x @ x))
    effect = f"exponent {slope.value:.3f}"
    out.verdict("H1", "Larger models gain more.", stats.verdict(slope), effect, slope[1:3], slope.method)
    out.file("numbers.txt", "1 2 3\\n")
'''


def write_question(benches: Path, name: str = "speed", report: str = REPORT) -> Path:
    """A question's folder with its report."""
    (benches / name).mkdir(parents=True, exist_ok=True)
    (benches / name / "report.py").write_text(report)
    return benches


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The helpers above, for test modules."""
    helpers = (record, bench, write_json, write_journal, grid, write_question)
    return SimpleNamespace(**{helper.__name__: helper for helper in helpers}, REPORT=REPORT)
