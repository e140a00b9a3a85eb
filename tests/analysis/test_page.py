"""The page: well-formed, whole without a network or a script, hostile names as text, readable in light and dark."""

import base64
import hashlib
import re
import textwrap
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mlexp.analysis import output, plots
from mlexp.analysis import page as page_module
from mlexp.analysis import report as driver
from mlexp.analysis.report import run
from mlexp.analysis.section import tally
from mlexp.analysis.sections import question_of

EVIL = "<script>alert('x')</script>|`*\"&"
SHOW = """
def report(records, out):
    out.table(records[["n", "wall_s"]], "all.csv", "All of " + str(len(records)))
"""
VOID = {"meta", "link", "br", "hr", "img", "input", "col", "base", "wbr", "source"}
LOADS = {"src", "srcset", "action", "data", "poster", "background", "ping", "xlink:href"}  # and href, but of an <a>


class Page(HTMLParser):
    """A page as a list of (tag, attributes, path); tags that are not closed in order are in `wrong`."""

    def __init__(self, html: str):
        super().__init__()
        self.found, self.open, self.wrong, self.text, self.scripts = [], [], [], "", []
        self.feed(html)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), tuple(self.open)))
        self.wrong += [name for i, (name, _) in enumerate(attrs) if name in dict(attrs[:i])]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts.append(data) if self.open[-1] == "script" else None
        else:
            self.text += data

    def of(self, *tags):
        return [attrs for tag, attrs, _ in self.found if tag in tags]


def faults(html: str) -> list[str]:
    """What is wrong with a page that should stand alone."""
    page = Page(html)
    ids = [attrs["id"] for _, attrs, _ in page.found if "id" in attrs]
    wrong = [f"not closed in order: {tag}" for tag in page.wrong]
    wrong += [f"id twice: {id}" for id in set(ids) if ids.count(id) > 1]
    wrong += [f"id with a space: {id}" for id in ids if re.search(r"\s", id)]
    for tag, attrs, path in page.found:
        for name, value in attrs.items():
            local = not value or value.startswith(("#", "data:"))
            if (name in LOADS or (name == "href" and tag != "a")) and not local:
                wrong.append(f"loads {value}")
            if name in ("href", "xlink:href") and value.startswith("#") and value[1:] not in ids:
                wrong.append(f"points nowhere: {value}")
            if name in ("aria-labelledby", "aria-describedby") and value not in ids:
                wrong.append(f"named by nothing: {value}")
            wrong += [f"runs: {name}"] if name.startswith("on") else []
        if (tag == "img" and "alt" not in attrs) or (tag == "svg" and not attrs.get("aria-label")):
            wrong.append(f"{tag} without a text")
        wrong += ["th without scope"] if tag == "th" and attrs.get("scope") not in ("col", "row") else []
        wrong += [f"{tag} outside"] if tag in ("h1", "h2", "h3", "h4", "table", "figure") and "body" not in path else []
    wrong += [f"loads {url}" for url in re.findall(r"@import|url\((?!#|data:)[^)]*", html)]
    levels = [int(tag[1]) for tag, _, _ in page.found if re.fullmatch("h[1-6]", tag)]
    wrong += ["headings skip a level"] if any(b > a + 1 for a, b in zip([0, *levels], levels, strict=False)) else []
    return wrong


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def page(make, tmp_path_factory) -> str:
    """Two contexts, a figure, tables, verdicts, a cell that did not finish, a README with a question."""
    place = tmp_path_factory.mktemp("page")
    entries = make.grid() + make.grid(slope=0, prompts=3, scale="smoke", dirty=True)
    entries.append(
        make.bench({"model": "xl", "prompt": "p09", "decoder": "tree"}, status="oom", reason="out of memory")
    )
    make.write_json(place / "a.json", entries)
    make.write_question(place / "benches")
    (place / "benches/speed/README.md").write_text("# speed: is the tree *faster* & better?\n\ntext\n")
    assert run([place / "a.json"], place / "results", place / "benches") == 0
    return (place / "results/index.html").read_text()


def test_the_page_stands_alone(page):
    assert faults(page) == []
    assert page.count("<svg") == 2


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("</main>", "", "not closed in order"),
        ("<main id", '<img src="https://g.org/x.png" alt=""><main id', "loads https://g.org/x.png"),
        ("<main id", '<link rel="icon" href="//g.org/x"><main id', "loads //g.org/x"),
        ("<style>", "<style>p { background: url(x.png) }", "loads url(x.png"),
        ("<main id", '<i id="results"></i><main id', "id twice: results"),
        ("<main id", '<a href="#gone"></a><main id', "points nowhere: #gone"),
        (' scope="col"', "", "th without scope"),
        ("aria-label=", "title=", "svg without a text"),
        ("<h2 ", "<h6></h6><h2 ", "headings skip a level"),
        ("<main id", '<main onload="x()" id', "runs: onload"),
    ],
)
def test_a_page_with_a_fault_is_found_out(page, old, new, told):
    assert old in page
    assert any(told in fault for fault in faults(page.replace(old, new)))


def test_one_script_and_no_other_may_run(page):
    scripts, policy = Page(page).scripts, re.search(r'Policy" content="([^"]*)"', page)[1]
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy


def test_without_a_script_everything_is_there(page):
    """Nothing is hidden until a script shows it, and verdicts are words before they are colours."""
    text = " ".join(Page(page).text.split())
    css = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    hidden = re.findall(r"([^{}]*)\{ display: none[^}]*\}", re.sub(r"@media \(max-width.*", "", css, flags=re.DOTALL))
    assert [rule.strip() for rule in hidden] == ["[hidden]", ".more"]  # what a script hides; what a box shows
    assert "figure:has(.all:checked) .more { display: table-cell; }" in css
    for said in ("Is the tree *faster* & better?", "✓ 1 supported", "H1 Larger models gain more.", "exponent 0.098",
                 "Did not finish", "test_run[xl-p09-tree]", "out of memory", "stand-in weights and corpus",
                 "measured with uncommitted code (dirty)", "AMD EPYC, 2 threads · cpu · float32 · smoke"):  # fmt: skip
        assert said in text, said


def test_contexts_have_sections_of_their_own_and_one_card(page):
    assert page.count('class="card"') == 1
    assert page.count('class="context"') == 2
    assert len(re.findall("<h2 id=", page)) == 1


def test_hostile_names_are_text_on_the_page(make, place):
    fields = {"machine": EVIL, "corpus": EVIL, "overrides": EVIL, "question": "one"}
    entries = [make.bench({"n": EVIL}, **fields), make.bench({"n": "n2"}, **fields, status="failed", reason=EVIL)]
    make.write_json(place / "a.json", entries)
    report = f"EVIL = {EVIL!r}\n{SHOW}" + textwrap.indent(
        "out.heading(EVIL)\nout.text(EVIL)\nout.verdict(EVIL, EVIL, 'refuted', EVIL, (1, 2), EVIL)\n"
        "out.table(records[['n']].rename(columns={'n': EVIL}), 'evil.csv', EVIL)\n"
        "from mlexp.analysis import plots\nfig, ax = plots.figure(EVIL, EVIL, EVIL)\nax.plot([1], [1], label=EVIL)\n"
        "ax.legend()\nout.figure(fig, 'f.png', EVIL)\n",
        "    ",
    )
    make.write_question(place / "benches", "one", report)
    (place / "benches/one/README.md").write_text(f"# one: {EVIL}")
    assert run([place / "a.json"]) == 0
    html = (place / "results/index.html").read_text()
    assert faults(html) == []
    page = Page(html)
    assert len(page.of("script")) == 1
    assert page.text.count("<script>alert('x')</script>") > 14
    summary = (place / "results/one/summary.md").read_text()
    assert "| &lt;script>alert('x')&lt;/script>\\|`*\"& |" in summary


def test_a_long_table_is_all_on_the_page_and_in_part_in_the_summary(make, place):
    n = output.PAGE_ROWS + 30
    make.write_json(place / "a.json", [make.bench({"n": f"n{i}"}, question="one") for i in range(n)])
    make.write_question(place / "benches", "one", SHOW)
    assert run([place / "a.json"]) == 0
    page, summary = ((place / "results" / name).read_text() for name in ("index.html", "one/summary.md"))
    assert page.count('<th scope="row">n') == output.PAGE_ROWS
    assert "The first 400 rows; 30 more in the file." in page
    assert summary.count("| n") == page_module.SHOWN_ROWS + 1
    assert f"{n - page_module.SHOWN_ROWS} more rows in the file." in summary


def test_a_table_without_rows_says_so(make, place):
    make.write_json(place / "a.json", [make.bench({"n": "n1"}, question="one")])
    report = "import pandas as pd\ndef report(records, out):\n    out.table(pd.DataFrame(), 'a.csv')\n"
    make.write_question(place / "benches", "one", report)
    assert run([place / "a.json"]) == 0
    html = (place / "results/index.html").read_text()
    assert "No rows" in html
    assert faults(html) == []


def test_a_label_does_not_say_what_the_claim_says(make):
    out = output.Output("q", {}, None, dict)
    out.verdict("H2 xl", "xl: it is faster", "refuted", why="see `--set a=b` and `")
    out.verdict("H3 xl", "The larger one is faster", "undecided")
    out.verdict("H4 x", "xl: it is faster", "supported")
    out.verdict("", "nameless", "supported")
    assert [said["label"] for said in out.verdicts] == ["H2", "H3 xl", "H4 x", ""]
    assert out.verdicts[0]["why_html"] == "see <code>--set a=b</code> and `"
    assert tally(out.verdicts) == {"supported": 2, "refuted": 1, "undecided": 1}


def test_the_question_is_what_its_readme_s_heading_asks(tmp_path):
    assert question_of(tmp_path / "README.md") == ""
    for text, asks in (("# a: is it so: really?\nno", "Is it so: really?"), ("# a\n", ""), ("", "")):
        (tmp_path / "README.md").write_text(text)
        assert question_of(tmp_path / "README.md") == asks


def test_greys_of_figures_are_the_page_s_and_hues_stay():
    fig, ax = plots.figure("title")
    ax.plot([0, 1], color=plots.COLOURS[0])
    ax.plot([1, 0], color="0.1")
    svg, styles = output.inline_svg(plots.save(fig).svg.decode(), "x", "label")
    said = " ".join(f"{css};" for css in styles.values())
    assert set(re.findall(r"#[0-9a-f]{6}\b", said)) == {plots.COLOURS[0]} and not re.findall(r"#[0-9a-f]{6}\b", svg)
    assert {"currentColor", "var(--line)", "var(--paper)"} <= set(re.findall(r": ([a-z]\S*?);", said))
    assert "<metadata" not in svg


def test_text_in_a_figure_stays_what_it_is():
    text = 'x id="a" style="fill: #404040" y="0.12345" url(#p)'
    fig, _ = plots.figure(text)
    svg = str(output.inline_svg(plots.save(fig).svg.decode(), "x", text)[0])
    page = Page(svg)
    assert text in page.text
    assert page.of("svg")[0]["aria-label"] == text
    assert page.wrong == []


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme):
    """4.5 to 1 for text (WCAG AA), 3 to 1 for every colour of a line."""
    css = (Path(driver.__file__).parent / "page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", {"light": light, "dark": dark}[scheme]))
    for ground in ("paper", "panel"):
        for ink in ("ink", "soft", "link", "supported", "refuted", "undecided"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for word in ("supported", "refuted", "undecided"):
        assert contrast(colours[word], colours[f"{word}-wash"]) >= 4.5, word
    assert all(contrast(colour, colours["paper"]) >= 3 for colour in plots.COLOURS)
    assert contrast("#777777", "#ffffff") < 4.5 < contrast("#767676", "#ffffff")
