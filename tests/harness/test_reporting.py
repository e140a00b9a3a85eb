"""`--report`: there is a report when the session ends, whatever became of the cells."""

from types import SimpleNamespace

import pytest

from mlexp.harness import reporting

pytest_plugins = ["pytester"]


@pytest.mark.parametrize("args", [("--report", "benches"), ("benches", "--mlexp-report=results", "--tb=no")])
def test_a_report_is_written_also_of_cells_that_failed(fit, args):
    result = fit.pytester.runpytest_inprocess(*args, "-p", "no:cacheprovider", "--benchmark-json", "out.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["mlexp: report: results/index.html (1 *"])
    assert not [line for line in result.outlines if line.startswith("now: ")]
    assert "perplexity" in (fit.pytester.path / "results/fit/summary.md").read_text()


def test_ctrl_c_leaves_the_report_of_what_finished(fit):
    fit.edit('raise FloatingPointError("loss is nan")', "raise KeyboardInterrupt")
    result = fit.run("--report=here", "--benchmark-json", "out.json", subprocess=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert any(line.startswith("mlexp: report: here/index.html") for line in result.outlines)
    assert not any("Name (time" in line for line in result.outlines)
    text = (fit.pytester.path / "here/fit/summary.md").read_text()
    assert "unfinished" in text and "30" in text


def test_a_report_that_fails_is_told_and_the_records_stay(fit):
    (fit.folder / "report.py").write_text("def report(records, out):\n    raise RuntimeError('no such figure')\n")
    result = fit.run("--report", "-k", "full")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert any("ERROR: --report: " in line and "no such figure" in line for line in result.outlines)
    assert "mlexp: the records are safe; mend that, then: mlexp report .mlexp/journal.jsonl" in result.outlines
    assert fit.run("-k", "full", "--resume").ret == 0
    assert fit.run("--report", "-k", "n1000").ret == pytest.ExitCode.TESTS_FAILED  # what pytest said stays


def test_where_there_is_nothing_to_report_nothing_is_written(fit):
    for flags in (("--collect-only",), ("-k", "nothing_of_that_name")):
        assert not any("report:" in line for line in fit.run("--report", *flags).outlines)
    result = fit.run("--report", "--benchmark-disable")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--benchmark-disable with --report would report nothing*"])
    assert not (fit.pytester.path / "results").exists()


def test_a_second_ctrl_c_ends_the_report(fit, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(reporting, "subprocess", SimpleNamespace(run=interrupted, DEVNULL=None))
    result = fit.run("--report", "-k", "n1000 and full")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "mlexp: the report was interrupted; now: mlexp report .mlexp/journal.jsonl" in result.outlines


def test_a_path_of_cells_is_no_folder_of_a_report(fit):
    """Where a conftest file loads the plugin, argparse has the last word on what stands behind `--report`."""
    fit.pytester.makeini("[pytest]\npython_files = bench_*.py\n")
    fit.pytester.makeconftest("pytest_plugins = ['mlexp.harness.plugin']")
    result = fit.pytester.runpytest_subprocess("--report", "benches")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--report benches: is benches the report's folder? Then write --report=benches"])
    assert not (fit.pytester.path / "benches/index.html").exists()
