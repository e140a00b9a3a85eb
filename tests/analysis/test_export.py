"""`mlexp export`: what was loaded comes back from every format; LaTeX is whole and escaped; nothing is half-written."""

import gzip
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import mlexp
from mlexp.analysis import latex
from mlexp.cli import main

from ..needs import needs

STUDY = {"arm": "decoder", "arms": ["plain", "tree"], "baseline": "plain", "over": ["model"], "replicates": ["prompt"]}
STUDIES = {"speed": STUDY | {"outcome": "wall_s", "claims": {}}}
OWN = {"speed": {"hits_100": ["items", "higher", "hits & misses"], "note": ["name", "none", "a text"]}}


@pytest.fixture
def records(make, tmp_path):
    """24 timed cells and one that ran out of memory; texts and numbers that formats get wrong."""
    entries = make.grid(hits_100=0.1 + 0.2, note='a, "b"\nc_d & 5 %', dirty=True)
    entries[0]["extra_info"] |= {"hits_100": None, "note": None}
    lost = {"model": "xxl", "prompt": "p00", "decoder": "tree"}
    entries.append(make.bench(lost, status="oom", reason="no room", hits_100=99.0))
    return make.write_json(tmp_path / "a.json", entries, studies=STUDIES, metrics=OWN)


def export(records, to, *options):
    assert main(["export", str(records), "--to", str(to), "--benches", str(records.parent), *options]) == 0
    return to


def read_back(file):
    if ".jsonl" in file.name:
        text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
        return pd.DataFrame([json.loads(line) for line in text.splitlines()])
    return (
        pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file, keep_default_na=False, na_values="")
    )


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet"])
def test_every_record_comes_back_to_the_last_digit(records, tmp_path, ending, capsys):
    if ending == ".parquet":
        needs("pyarrow")
    back, df = read_back(export(records, tmp_path / f"out{ending}")), mlexp.load(records, status=None)
    assert "25 records" in capsys.readouterr().out
    assert list(back) == list(df) and len(back) == 25
    for name in df:
        a, b = df[name].to_numpy(object, na_value=None), back[name].to_numpy(object, na_value=None)
        a = np.where(a == "", None, a) if "csv" in ending else a  # an empty text is a missing one there
        assert [x for x in a if x is not None] == [x for x in b if x is not None], name
        assert [x is None for x in a] == [x is None for x in b], name


def test_a_column_of_several_kinds_becomes_text_in_parquet(make, tmp_path):
    needs("pyarrow")
    entries = [make.bench({"n": n}, key=str(n)) for n in (1, "two", None)]
    back = read_back(export(make.write_json(tmp_path / "a.json", entries), tmp_path / "a.parquet"))
    assert back["n"].tolist()[:2] == ["1", "two"] and back["n"].isna()[2]


def test_columns_and_question_choose(records, tmp_path):
    out = export(records, tmp_path / "out.csv", "--columns", "decoder,wall_s", "--question", "speed")
    assert list(read_back(out)) == ["decoder", "wall_s"]


def test_a_summary_has_means_and_intervals(records, tmp_path):
    out = read_back(export(records, tmp_path / "out.csv", "--table", "summary", "--columns", "hits_100,wall_s"))
    df = mlexp.load(records)
    assert set(out["metric"]) == {"hits_100", "wall_s"} and list(out["level"].unique()) == ["small", "large", "xl"]
    for row in out[out["metric"] == "wall_s"].itertuples():
        cells = df.loc[(df["model"] == row.level) & (df["decoder"] == row.arm), "wall_s"]
        found = mlexp.stats.t_interval(cells)
        assert (row.value, row.low, row.high, row.n) == pytest.approx(found[:4])


def test_a_summary_has_the_question_s_own_metrics_unless_it_is_for_a_page(records, tmp_path):
    out = read_back(export(records, tmp_path / "out.csv", "--table", "summary"))
    assert list(out["metric"].unique()) == ["wall_s", "flops", "hits_100"]  # a text has no mean
    assert "hits" not in export(records, tmp_path / "out.tex").read_text()


def test_a_column_of_a_latex_summary_has_one_notation(make, tmp_path):
    entries = make.grid()
    for entry in entries:
        factor = 1e-5 if entry["params"]["model"] == "small" else 1.0
        entry["extra_info"] |= {"flops": 1000 + len(entry["params"]["prompt"]), "energy_j": 0.0}
        entry["stats"]["data"] = [value * factor for value in entry["stats"]["data"]]
    records = make.write_json(tmp_path / "a.json", entries, studies=STUDIES)
    chosen = ("--columns", "wall_s,flops,energy_j")
    text = export(records, tmp_path / "o.tex", *chosen).read_text()
    columns = list(zip(*re.findall(r"(?:plain|tree) & (.*) & (.*) & (.*) ", text), strict=True))
    assert [{"times" in cell for cell in column} for column in columns] == [{True}, {False}, {False}]
    assert len(columns[0]) == 6 and r"\times 10^{0}" in columns[0][2] and columns[2][0] == "$0$"
    assert r"wall\_s (s) & flops (FLOP) & energy\_j (J)" in text


def test_the_latex_summary_says_what_its_numbers_are(records, tmp_path):
    text = export(records, tmp_path / "out.tex").read_text()
    assert "needs the packages booktabs\n" in text
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{llrr}", r"\label{tab:speed-model-1}",
                 r"model & decoder & wall\_s (s) & flops (FLOP) \\",
                 r"Means over 4 prompts $\pm$ half the width of the 95\,\%",
                 "stand-in weights", "uncommitted code (dirty)", "unfinished grid"):  # fmt: skip
        assert part in text, part
    df = mlexp.load(records)
    cells = df.loc[(df["model"] == "small") & (df["decoder"] == "tree"), "wall_s"]
    found, half = mlexp.stats.t_interval(cells), re.search(r"& tree & \$([\d.]+) \\pm ([\d.]+)\$", text)
    assert float(half[1]) == pytest.approx(found.value, abs=1e-3)
    assert float(half[2]) == pytest.approx((found.high - found.low) / 2, rel=0.05)


def test_each_context_has_a_table_of_its_own(make, tmp_path):
    entries = make.grid() + make.grid(prompts=1, machine="a desk")
    records = make.write_json(tmp_path / "a.json", entries, studies=STUDIES)
    text = export(records, tmp_path / "out.tex").read_text()
    assert text.count(r"\begin{table}") == 2 and text.count(r"\label{") == len(set(re.findall(r"\\label\{.*?\}", text)))
    assert "Values of one prompt. a desk" in text and r"$1.2" in text


def test_what_an_arm_did_not_record_is_a_dash_and_not_counted(make, tmp_path):
    entries = make.grid()
    for entry in entries:
        if entry["params"]["decoder"] == "tree":
            entry["extra_info"]["flops"] = None
    records = make.write_json(tmp_path / "a.json", entries, studies=STUDIES)
    text = export(records, tmp_path / "out.tex").read_text()
    assert re.search(r"& tree & \$.*\$ & -- ", text) and "Means over 4 prompts" in text
    assert main(["export", str(records), "--to", str(tmp_path / "b.tex"), "--columns", "energy_j"]) == 4


def balanced(text):
    """Whether braces and environments close, and no special character stands unescaped outside of mathematics."""
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    begun, ended = (sorted(re.findall(rf"\\{word}\{{(\w+)\}}", text)) for word in ("begin", "end"))
    lines = [line for line in bare.splitlines() if not line.startswith("%")]
    outside = re.sub(r"\$[^$]*\$", "", "\n".join(lines))
    rows = [line for line in outside.splitlines() if not line.startswith(("\\label", "\\begin"))]
    return bare.count("{") == bare.count("}") and begun == ended and not re.search(r"[_%#^$]", "\n".join(rows))


def test_records_as_latex_are_escaped(records, tmp_path):
    chosen = ("--table", "records", "--columns", "decoder,note,hits_100")
    text = export(records, tmp_path / "out.tex", *chosen).read_text()
    assert 'tree & a, "b" c\\_d \\& 5 \\% & 0.30000000000000004 ' in text
    assert r"decoder & note & hits\_100 \\" in text and balanced(text)
    assert not balanced(text.replace(r"\_d", "_d")) and not balanced(text.replace(r"\end{tabular}", ""))


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no TeX")
def test_latex_compiles(records, tmp_path):
    export(records, tmp_path / "out.tex")
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{out}\\end{document}"
    )
    call = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    assert subprocess.run(call, cwd=tmp_path, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.5, 0.459, 0.541), r"$0.500 \pm 0.041$"),
        ((1234.0, 1222.0, 1246.0), r"$1234 \pm 12$"),
        ((1.5e9, 1.44e9, 1.56e9), r"$(1.500 \pm 0.060) \times 10^{9}$"),
        ((2e-5, 1.9e-5, 2.1e-5), r"$(2.00 \pm 0.10) \times 10^{-5}$"),
        ((4980.0, 4980.0, 4980.0), "$4980$"),
        ((3.0, np.nan, np.nan), "$3$"),
        ((0.0, -1.0, 1.0), r"$0.0 \pm 1.0$"),
    ],
)
def test_a_mean_is_printed_to_two_digits_of_its_interval(numbers, text):
    assert latex.quantity(*numbers) == text


@pytest.mark.parametrize(
    ("argv", "status", "told"),
    [
        (["a.json", "--to", "out.xlsx"], 4, "out.xlsx: unknown ending; choose from .csv, .csv.gz, .jsonl"),
        (["a.json", "--to", "out.csv", "--columns", "wall_s,speed"], 4, "unknown column 'speed'; choose from model, "),
        (["a.json", "--to", "out.tex", "--columns", "note"], 4, "unknown metric 'note'; choose from "),
        (["a.json", "--to", "out.csv", "--question", "heat"], 2, "no records of 'heat'; there are some of speed"),
        (["none.json", "--to", "out.csv"], 2, "nothing to export: no records"),
        (["plain.json", "--to", "out.tex"], 2, "--table records has all records"),
        (["nowhere.json", "--to", "out.csv"], 4, "nowhere.json: no such file or folder"),
        (["notes.json", "--to", "out.csv"], 4, "notes.json: not JSON"),
        (["a.json", "--to", "a.json/out.csv"], 4, "cannot write a.json/out.csv"),
        (["--to", "out.csv"], 2, "nothing to export: no .mlexp/journal.jsonl"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_no_file(make, records, argv, status, told, monkeypatch, capsys):
    monkeypatch.chdir(records.parent)
    make.write_json(records.parent / "none.json", [])
    make.write_json(records.parent / "plain.json", make.grid(prompts=1))
    (records.parent / "notes.json").write_text("milk")
    before = sorted(records.parent.iterdir())
    assert main(["export", *argv]) == status
    said = capsys.readouterr()
    assert told in said.err and said.err.count("\n") == 1 and not said.out
    assert sorted(records.parent.iterdir()) == before


def test_without_pyarrow_one_line_names_the_extra(records, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["export", str(records), "--to", str(tmp_path / "out.parquet")]) == 4
    assert capsys.readouterr().err == "mlexp export: Parquet needs pyarrow: pip install 'pytest-mlexp[parquet]'\n"
    assert not (tmp_path / "out.parquet").exists()
