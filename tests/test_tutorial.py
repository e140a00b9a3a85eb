"""The tutorial and the recipes: every code block is run, in order, in an empty folder, and prints what its page shows."""

import importlib.util

import pytest

from tests.pages import PAGES, ROOT, Project, WrongBlock, blocks, needs, unlike

SLOW = ("ab.md",)  # more than 15 seconds


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    yield project
    project.close()


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW else []) for page in PAGES],
    ids=[str(page.relative_to(ROOT / "docs")) for page in PAGES],
)
def test_every_block_of_a_page_does_what_it_shows(page, project):
    for module in needs(page):
        if not importlib.util.find_spec(module):
            pytest.skip(f"{page.name} needs {module}, which is not installed")
    for block in blocks(page):
        project.run(block)


def page_of(text, folder):
    page = folder / "page.md"
    page.write_text(text)
    return page
