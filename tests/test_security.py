"""What the code never does: load a pickle, run a shell string, evaluate text, put unescaped text on a page."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = (path for folder in ("mlexp", "benches") for path in (ROOT / folder).rglob("*.py"))
FILES = [*sorted(MODULES), ROOT / "conftest.py"]

FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "pty"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "jinja2.Template"),
    *("pd.read_pickle", "pandas.read_pickle", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
}
LOADERS = r"torch\.load|.*Model(For\w+)?\.from_pretrained"  # what may unpickle unless it is told not to


def dotted(node: ast.AST) -> str:
    """The name that is called: `torch.load`, `eval`; empty where it is no plain name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}" if dotted(node.value) else ""
    return node.id if isinstance(node, ast.Name) else ""


def faults(source: str) -> list[str]:
    """What a file does that none may, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        if name in FORBIDDEN_CALLS:
            found.append(f"{node.lineno}: calls {name}")
        if re.fullmatch(LOADERS, name) and given.get("weights_only") is not True:
            found.append(f"{node.lineno}: {name} without weights_only=True")
        found += [
            f"{node.lineno}: {word}" for word in ("shell", "allow_pickle", "trust_remote_code") if given.get(word)
        ]
        if name.endswith("Environment") and "jinja2" in name and given.get("autoescape") is not True:
            found.append(f"{node.lineno}: a page that does not escape")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_does_what_none_may(path):
    assert not faults(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from yaml import load",
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoModelForCausalLM.from_pretrained(folder)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=True)",
        "subprocess.run(words, shell=True)",
        "os.system('ls')",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
        "jinja2.Environment(loader=loader)",
    ],
)
def test_the_check_sees_it(source):
    assert faults(source)


def test_the_check_lets_be_what_may_be():
    assert not faults(
        "import torch, numpy as np\ntorch.load(p, weights_only=True)\nmodel.eval()\nre.compile('x')\nnp.load(p)\n"
        "subprocess.run(['a', 'b'])\njinja2.Environment(autoescape=True)"
    )


def test_the_page_escapes_all_but_what_four_files_vouch_for():
    """`safe` stands nowhere in the template; markup is made in the files whose tests are about hostile text."""
    template = (ROOT / "mlexp" / "analysis" / "page.html.j2").read_text()
    assert not re.search(r"\|\s*safe|autoescape\s+false", template)
    makers = {path.name for path in (ROOT / "mlexp").rglob("*.py") if "Markup(" in path.read_text()}
    # markup.py and output.py make it; cache.py reads it back; page.py: the page's own script, by its hash
    assert makers == {"markup.py", "output.py", "cache.py", "page.py"}
