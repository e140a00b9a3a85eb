"""The page in a real browser: sorted, filtered, highlighted, unfolded, printed; narrow and dark; found accessible."""

import shutil

import pytest

from mlexp.analysis.report import run

pytestmark = pytest.mark.slow
STUDY = """
from dataclasses import dataclass
from mlexp.settings import Settings
from mlexp.study import Above, At, Claim, Study, ratio

@dataclass(frozen=True)
class Sizes(Settings):
    decoders: tuple[str, ...] = ("plain", "tree")

STUDY = Study(
    asks="Is the tree faster?", arm="decoder", arms=("plain", "tree"), baseline="plain", over=("model",),
    replicates=("prompt",), outcome="wall_s", settings={"smoke": Sizes(), "quick": Sizes(), "full": Sizes()},
    axes={"decoder": "decoders"}, claims={"T": Claim("The tree is faster", Above(At(ratio("plain", "tree")), 1.0))},
)
"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def place(make, tmp_path_factory):
    """A question with two contexts, a wide table and a figure of two arms."""
    place = tmp_path_factory.mktemp("browser")
    make.write_json(place / "a.json", make.grid() + make.grid(slope=0, prompts=3, scale="smoke"))
    make.write_question(place / "benches")
    (place / "benches/speed/study.py").write_text(STUDY)
    report = place / "benches/speed/report.py"
    wide = "\n    others = [name for name in records if name != 'decoder']\n"
    wide += "    out.table(records[['decoder', *others[:12]]], 'wide.csv', 'All of it')\n"
    report.write_text(report.read_text().replace('    out.file("numbers.txt"', wide + '    out.file("numbers.txt"'))
    assert run([place / "a.json"], place / "results", place / "benches") == 0
    return place / "results/index.html"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine; Debian's package is `chromium`")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def look(browser, place):
    """Opens the page; whatever its console says fails the test."""
    opened, said = [], []

    def look(width=1280, scheme="light", script=True, bypass_csp=False):
        size = {"width": width, "height": 900}
        context = browser.new_context(
            viewport=size, color_scheme=scheme, java_script_enabled=script, bypass_csp=bypass_csp
        )
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(place.as_uri())
        opened.append(context)
        return page

    yield look
    for context in opened:
        context.close()
    assert said == []


def unfold(page):
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")


def column(page, table, n):
    return [cell.inner_text() for cell in page.locator(table).first.locator(f"tbody tr > :nth-child({n})").all()]


def test_a_click_on_a_heading_sorts_up_down_and_back(look):
    page = look()
    unfold(page)
    table = "figure[id$='speedup-csv'] table"
    before = column(page, table, 2)
    heads = page.locator(table).first.locator("thead th button")
    heads.nth(1).click()
    up = column(page, table, 2)
    heads.nth(1).click()
    down = column(page, table, 2)
    heads.nth(1).click()
    assert up == down[::-1] and column(page, table, 2) == before
    values = [float(text.replace("\u2212", "-").replace(",", "")) for text in up]
    assert values == sorted(values) and len(values) > 2


def test_columns_beyond_the_seventh_are_behind_a_box_that_needs_no_script(look):
    page = look(script=False)
    page.locator("details.context > summary").first.click()
    figure = page.locator("figure[id$='wide-csv']").first
    shown = [head.is_visible() for head in figure.locator("thead th").all()]
    assert shown[:7] == [True] * 7 and not any(shown[7:]) and len(shown) > 7
    figure.locator("input.all").check()
    assert all(head.is_visible() for head in figure.locator("thead th").all())


def test_the_filter_leaves_what_holds_its_words(look):
    page = look()
    page.get_by_role("searchbox").fill("larger models gain more")
    claims = [claim for claim in page.locator(".verdicts > li").all() if claim.is_visible()]
    assert claims and all("Larger models gain more" in claim.inner_text() for claim in claims)
    assert not any(figure.is_visible() for figure in page.locator(".card figure").all())
    page.get_by_role("searchbox").fill("speedup.csv")
    visible = [figure for figure in page.locator(".card figure").all() if figure.is_visible()]
    assert visible and all("speedup.csv" in figure.inner_text() for figure in visible)
    page.get_by_role("searchbox").fill("")
    assert page.locator(".card figure").first.is_visible()


def test_an_arm_is_highlighted_in_figures_and_tables_until_clicked_again(look):
    page = look()
    unfold(page)
    lit = "document.querySelectorAll('.on').length"
    row = page.locator("tr[data-arm]").first
    arm = row.get_attribute("data-arm")
    row.hover()
    on = page.evaluate("[...new Set([...document.querySelectorAll('.on')].map((each) => each.dataset.arm))]")
    assert on == [arm] and page.evaluate("document.querySelectorAll('svg .on').length") > 0
    row.click()
    page.mouse.move(1, 1)
    assert page.evaluate(lit) > 0  # it stays
    row.click()
    page.mouse.move(1, 1)
    assert page.evaluate(lit) == 0


def test_a_link_to_what_is_folded_away_unfolds_it(look, place):
    page = look()
    target = page.locator("details.context figure").last.get_attribute("id")
    assert not page.locator(f"[id='{target}']").is_visible()
    page.goto(f"{place.as_uri()}#{target}")
    page.wait_for_timeout(100)
    assert page.locator(f"[id='{target}']").is_visible()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_itself_never_scrolls_sideways(look, width):
    page = look(width=width)
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        unfold(page)


def test_what_is_printed_has_every_column_within_the_sheet(look):
    page = look(width=1040)  # A4 across, less its margins
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert all(head.is_visible() for head in page.locator(".card th.more").all())
    assert page.evaluate(
        "[...document.querySelectorAll('td, th')].every((c) => c.getBoundingClientRect().right <= innerWidth)"
    )
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.locator("details.context").first.evaluate("(each) => each.open")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(look, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = look(scheme=scheme, bypass_csp=True)
    unfold(page)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
