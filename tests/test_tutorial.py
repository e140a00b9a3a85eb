"""The tutorial and the recipes: every code block is run, in order, in an empty folder, and prints what is shown."""

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


def run_page(text, folder, project):
    for block in blocks(page_of(text, folder)):
        project.run(block)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\necho five\n```\n```text\nfour\n```", "page.md:4: the output is another"),
        ("```bash\nfalse\n```", "page.md:1: ended with 1, not 0"),
        ("<!-- exit status 1 -->\n\n```bash\ntrue\n```", "ended with 0, not 1"),
        ("```bash\nfalse\ntrue\n```", "ended with 1"),
        ("<!-- Ctrl+C at never -->\n```bash\necho now\n```", "ended with 0"),
        ("```python\n1 / 0\n```", "ZeroDivisionError"),
        ("```python\n2\n```\n```text\nNone\n```", "the output is another"),
        ('```bash title="a"\nx\n```\n```diff title="a"\n-y\n+z\n```', "a has these lines 0 times"),
        ('```bash title="a"\nx\n```\n<!-- part of a -->\n```bash\ny\n```', "a has no such lines"),
        ("```yaml\na: 1\n```", "page.md:1: nothing runs this block"),
        ("```\necho 1\n```", "nothing runs this block"),
        ("<!-- not run -->\n```bash\nfalse\n```", "say why the block is not run"),
        ("<!-- not run: because -->\n```bash\nfalse\n```", "say why the block is not run"),
        ('```yaml title=".github/workflows/a.yml"\non: push\n```', "no workflow of GitHub's"),
        ("```bash linenums\n```", "the fence ends in . linenums."),
    ],
)
def test_a_block_that_does_otherwise_is_named(text, message, tmp_path, project):
    with pytest.raises(WrongBlock, match=message.replace("+", r"\+")):
        run_page(text, tmp_path, project)


def test_blocks_do_what_their_fences_say(tmp_path, project):
    text = """
```python title="sub/a.py"
x = 1
y = 2
```

<!-- part of sub/a.py -->

```python
y = 2
```

```diff title="sub/a.py"
-x = 1
+x = 3
...
 y = 2
+z = 4
```

```python
import sys
sys.path.append("sub")
```

```python
from a import x, z
print(x)
z
```

```text
3
4
```

<!-- not run: it would never end -->

```bash
sleep 10000
```

<!-- Ctrl+C at waiting -->

```bash
echo waiting; exec sleep 100
```
"""
    run_page(text, tmp_path, project)
    assert (project.folder / "sub/a.py").read_text() == "x = 3\ny = 2\nz = 4\n"


@pytest.mark.parametrize(
    ("shown", "printed", "alike"),
    [
        ("n1000 seed1: 4.2 us", "n1000  seed1: 1.31 ms", True),  # numbers, their units, spaces
        ("n1000 seed1: 4.2 us", "n2000 seed1: 4.2 us", False),  # a number in a name
        ("H1 supported 7.8x [4.5x to 13x]", "H1 supported 1,307x [+6.5e+03x to 22_982x]", True),
        ("H1 supported 7.8x", "H1 undecided 7.8x", False),
        ("=== 5 passed ===", "====== 6 passed in 3 s =====", False),
        ("====== 5 passed =====", "======== 6 passed ==========", True),
        ("a\nb", "a\nb\nc", False),
        ("a\n...", "a\nb\nc", True),
        ("...\nc", "a\nb\nc", True),
        ("...\nb", "a\nb\nc", False),
        ("a\n...\nc", "a\nc", True),
        ("...\nb\n...\nb\n...", "a\nb\nc", False),  # two are shown
        ("...\nc\n...\na\n...", "a\nb\nc", False),  # another order
        ("a ... d", "a b c d", True),
        ("a ... d", "a b c", False),
    ],
)
def test_outputs_are_compared_by_structure(shown, printed, alike):
    assert (unlike(shown, printed) == "") == alike
