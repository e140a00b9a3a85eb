"""The site: it builds without a warning, loads nothing from elsewhere, and says what the code and the records say."""

import argparse
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mlexp.cli import parser
from mlexp.harness import grid
from mlexp.harness.options import TABLE
from mlexp.study import load

ROOT = Path(__file__).parents[1]
LOADING = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href", "object": "data"}
RELATIONS_THAT_LOAD_NOTHING = {"canonical", "next", "prev"}


def module(name):
    """A file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def loaded(html):
    """The addresses that a page makes a browser fetch."""
    found = []

    class Page(HTMLParser):
        def handle_starttag(self, tag, attrs):
            values = dict(attrs)
            address = values.get(LOADING.get(tag, ""), "") or ""
            loads = tag != "link" or values.get("rel") not in RELATIONS_THAT_LOAD_NOTHING
            if loads and address and not address.startswith("data:"):
                found.append(address)

    Page().feed(html)
    return found


def loaded_from_elsewhere(text):
    """Those of them, and of a style's, that are at another place."""
    addresses = [*loaded(text), *re.findall(r"(?:@import\s+|\burl\()(?:url\()?[\"']?([^\"')]+)", text)]
    return [address for address in addresses if re.match(r"(https?:)?//", address)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `tox -e docs` builds it."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install --group docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    here = [(page, found.partition("?")[0]) for page in pages for found in loaded(page.read_text())]
    assert not [
        (page, found) for page, found in here if page.name != "404.html" and not (page.parent / found).is_file()
    ]
    assert (site / "search/search_index.js").is_file()  # what pages that are opened as files search in
    assert not {str(page): found for page in pages if (found := loaded_from_elsewhere(page.read_text()))}
    styles = [found for file in site.rglob("*.css") if (found := loaded_from_elsewhere(file.read_text()))]
    assert not styles


@pytest.mark.parametrize(
    ("html", "seen"),
    [
        ('<script src="https://x.org/a.js"></script>', True),
        ('<link rel="stylesheet" href="//x.org/a.css">', True),
        ("<style>@import url(https://x.org/a.css)</style>", True),
        ('<img src="../a.png"><a href="https://x.org">x</a><link rel="canonical" href="https://x.org">', False),
    ],
)
def test_what_comes_from_elsewhere_is_seen(html, seen):
    assert bool(loaded_from_elsewhere(html)) == seen


def test_every_page_of_the_repository_is_shown_and_no_python(site):
    names = [file.parent.name for file in ROOT.glob("benches/*/README.md")]
    assert all((site / "questions" / f"{name}.html").exists() for name in names) and len(names) > 6
    assert not list(site.rglob("*.py*"))
    text = (site / "questions" / "decoding_speedup.html").read_text()
    assert 'href="../models.html"' in text


def test_links_of_readmes_become_those_of_the_site():
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install --group docs")
    pages = module("pages")
    file = ROOT / "benches/maze_scaling/README.md"
    text = "[a](../training_speed/) [b](../../docs/models.md#x) [c](../../mlexp/study.py) [d](https://x.y) ![e](f.png)"
    assert pages.linked(text, file, "questions/maze_scaling.md") == (
        "[a](training_speed.md) [b](../models.md#x) `mlexp/study.py` [d](https://x.y) ![e](f.png)"
    )
    with pytest.raises(FileNotFoundError, match=r"maze_scaling/README\.md: the link to \.\./gone/ leads nowhere"):
        pages.linked("[a](../gone/)", file, "questions/maze_scaling.md")


def subcommands():
    (found,) = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return found.choices


@pytest.mark.parametrize("name", subcommands())
def test_every_option_of_a_command_is_on_its_page(name):
    text = (ROOT / "docs/reference/commands.md").read_text()
    (section,) = re.findall(rf"^## mlexp {name}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    for action in subcommands()[name]._actions:
        for flag in action.option_strings:
            assert flag in ("-h", "--help") or re.search(rf"`{flag}[ `]", section), flag
    assert "Exit status: " in section


def examples():
    """The lines of documents that show a command of ours, without what stands behind them."""
    pages = ("README.md", "docs/running.md", "docs/scale_out.md", "docs/reference/commands.md")  # others run theirs
    for file in (ROOT / page for page in pages):
        for block in re.findall(r"```(?:text)?\n(.*?)```", file.read_text(), re.DOTALL):
            for line in re.findall(r"^(?:\$ )?(mlexp \w.*)$", block, re.MULTILINE):
                if not re.search(r"\[|PYTEST_ARGS|BASE|QUESTION|DIR$", line):  # a usage line
                    yield re.split(r" {2,}", line)[0]


@pytest.mark.parametrize("line", sorted(set(examples())))
def test_every_example_of_a_command_is_one(line):
    assert parser().parse_args(shlex.split(line.partition(" -- ")[0])[1:])


def test_the_originals_commands_name_settings_that_there_are():
    text = (ROOT / "docs/originals.md").read_text()
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert len(sections) == 4
    for question, section in sections:
        settings = load(ROOT / "benches" / question / "study.py").STUDY.settings["full"]
        shown = re.findall(r"--set (\S+=[^\s`]+)", section)
        assert shown
        for change in shown:
            assert grid.override(settings, [grid.parse_override(change)])


def test_every_option_of_pytest_is_on_its_page():
    text = (ROOT / "docs/reference/options.md").read_text()
    assert not [name for name in TABLE if not re.search(rf"`--{name}[ `[]", text)]


def test_what_is_made_is_up_to_date():
    done = subprocess.run([sys.executable, "-m", "docs.make", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    picture = (ROOT / "docs/speedup_vs_params.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_a_stale_block_is_seen_and_mended(tmp_path, monkeypatch, capsys):
    make = module("make")
    for page in make.PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / page, tmp_path / page)

    def reported(folder):
        """What the report leaves, without its seconds."""
        (folder / make.QUESTION).mkdir()
        (folder / make.QUESTION / make.PICTURE).write_bytes(b"drawn")
        return re.search(r"<!-- made: headline -->\n(.*?)\n<!-- end -->", readme, re.DOTALL)[1]

    readme, metrics = (tmp_path / "README.md").read_text(), tmp_path / "docs/metrics.md"
    monkeypatch.setattr(make, "ROOT", tmp_path)
    monkeypatch.setattr(make, "headline", reported)
    assert make.main(["--check"]) == 0
    assert readme.count("**undecided**") == 1
    (tmp_path / "README.md").write_text(readme.replace("**undecided**", "**supported**"))
    metrics.write_text(re.sub(r"\| `accuracy` .*\n", "", metrics.read_text()))
    assert make.main(["--check"]) == 1
    stale = [f"{page} is out of date: run python -m docs.make" for page in ("README.md", "docs/metrics.md")]
    assert capsys.readouterr().err.split("\n")[-3:] == [*stale, ""]
    assert make.main([]) == 0
    assert (tmp_path / "README.md").read_text() == readme and "`accuracy`" in metrics.read_text()
    assert (tmp_path / "docs" / make.PICTURE).read_bytes() == b"drawn"


def test_the_headline_says_no_more_than_the_verdict():
    claim = {"claim": "A is faster", "rank": "primary", "verdict": "not tested", "parts": [], "needs": "no model xl"}
    assert module("make").verdict(claim, "cpu · quick") == (
        '"A is faster" (primary claim) is **not tested**: no model xl. Measured on: cpu · quick.'
    )
