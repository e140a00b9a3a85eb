"""Pages of docs/ as sequences of code blocks, and a project in which they are run one after the other.

What a block is follows from its fence, and from an HTML comment above it where there is one:

    ```python title="FILE"   written to FILE; so are other languages with a title
    ```diff title="FILE"     applied to FILE: lines that are there are replaced
    ```python                run as a cell of a notebook: names live on in later cells, the last expression is displayed
    ```bash                  run as commands
    ```text                  what the block above printed; numbers may differ, `...` stands for anything
    <!-- part of FILE -->    the block stands in FILE as it is
    <!-- exit status 1 -->   how the commands end, if not with 0
    <!-- Ctrl+C at TEXT -->  the commands are interrupted once they print TEXT
    <!-- not run: WHY -->    left out; without a reason this is an error, as every block is that is none of these

A page that says `<!-- needs MODULE -->` is skipped where MODULE is not installed.
"""

import difflib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "recipes").glob("*.md"))]
FENCE = re.compile(r'(?P<indent> *)```(?P<language>\w*)(?: +title="(?P<title>[^"]+)")?(?P<rest>.*)')
COMMENT = re.compile(r"<!-- (.*) -->")
NEEDS = re.compile(r"^<!-- needs (\w+) -->$", re.MULTILINE)
UNITS = r"(?: ?(?:ns|us|ms|s|min|h|B|KB|kB|KiB|MB|MiB|GB|GiB|k|K|M|G|x|%)\b| %)?"
NUMBER = re.compile(rf"(?<![\w.])[-+]?\d[\d_,]*(?:\.\d+)?(?:e[-+]?\d+)?{UNITS}")
RULE = re.compile(r"([-=_])\1{3,}")
SECONDS = 300  # that a block may take
COMMANDS = ("mlexp", "pytest", "python")
PLUGINS = ("randomly", "sugar", "playwright", "html", "anyio", "cacheprovider")  # that a new user does not have, or see
SHIM = """#!/bin/sh
exec "{python}" -P {module}"$@"
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: where it is, what its fence and the comment above it say, and its text."""

    place: str
    language: str
    title: str
    note: str
    text: str


class WrongBlock(AssertionError):
    """A block that does not do what its page says."""


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found, lines, above = [], iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1)), ""
    for number, line in lines:
        opening = FENCE.fullmatch(line)
        if not opening:
            above = line.strip() or above
            continue
        place, indent = f"{page.name}:{number}", len(opening["indent"])
        if opening["rest"]:
            raise WrongBlock(f'{place}: the fence ends in {opening["rest"]!r}; give ```LANGUAGE title="FILE"')
        text = []
        for _, inner in lines:
            if inner.strip() == "```":
                break
            text.append(inner[indent:])
        comment = COMMENT.fullmatch(above)
        note = comment[1] if comment else ""
        found.append(Block(place, opening["language"], opening["title"] or "", note, "\n".join([*text, ""])))
        above = ""
    return found


def needs(page: Path) -> list[str]:
    """The modules that a page's blocks import beyond the harness's own."""
    return NEEDS.findall(page.read_text(encoding="utf-8"))


class Project:
    """An empty folder in which the blocks of one page are run in order, with the commands of this checkout."""

    def __init__(self, folder: Path):
        self.folder, self.printed, self._notebook = folder / "project", "", None
        self.folder.mkdir()
        (folder / "bin").mkdir()
        for name in COMMANDS:
            shim = folder / "bin" / name
            module = "" if name == "python" else f"-m {name} "
            shim.write_text(SHIM.format(python=sys.executable, module=module))
            shim.chmod(0o755)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
        self.env |= {
            "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "PYTEST_ADDOPTS": " ".join(f"-p no:{name}" for name in PLUGINS),
            "OMP_NUM_THREADS": "1",  # two that wait for each other take many times as long where the cores are shared
            "COLUMNS": "100",
            "CUDA_VISIBLE_DEVICES": "",  # pages show what is measured on a CPU
            **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }

    def run(self, block: Block) -> None:
        """Do what a block says. Raises WrongBlock where that is impossible or ends otherwise."""
        kind, _, rest = block.note.partition(": ")
        if kind == "not run":
            if len(rest.split()) < 3:
                raise WrongBlock(f"{block.place}: say why the block is not run: <!-- not run: REASON -->")
        elif block.note.startswith("part of "):
            file = block.note.removeprefix("part of ")
            if block.text not in (self.folder / file).read_text():
                raise WrongBlock(f"{block.place}: {file} has no such lines")
        elif block.language == "diff" and block.title:
            self._edit(block)
        elif block.title:
            self._write(block)
        elif block.language == "bash":
            self.printed = self._commands(block)
        elif block.language == "python":
            self.printed = self._cell(block)
        elif block.language == "text":
            if difference := unlike(block.text, self.printed):
                raise WrongBlock(f"{block.place}: the output is another:\n{difference}")
        else:
            raise WrongBlock(f"{block.place}: nothing runs this block; see tests/pages.py for what can be run")

    def close(self) -> None:
        """End the notebook, if there is one."""
        if self._notebook:
            self._notebook.stdin.close()
            self._notebook.wait(SECONDS)
            self._notebook.stdout.close()

    def _write(self, block: Block) -> None:
        file = self.folder / block.title
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text)
        if file.parent.name == "workflows":
            check = ["-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(file)]
            done = subprocess.run([sys.executable, *check], capture_output=True, text=True, check=False)
            if done.returncode:
                raise WrongBlock(f"{block.place}: no workflow of GitHub's\n{done.stdout}{done.stderr}")

    def _edit(self, block: Block) -> None:
        """Replace the lines that a diff takes away by those that it adds; each of its parts must be there once."""
        file = self.folder / block.title
        content = file.read_text()
        for part in re.split(r"(?m)^ *\.\.\.\n", block.text):
            lines = part.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] != "+")
            after = "".join(line[1:] for line in lines if line[0] != "-")
            if content.count(before) != 1:
                count = content.count(before)
                raise WrongBlock(f"{block.place}: {block.title} has these lines {count} times:\n{before}")
            content = content.replace(before, after)
        file.write_text(content)

    def _commands(self, block: Block) -> str:
        """What the commands of a block print, on either stream."""
        stop = block.note.removeprefix("Ctrl+C at ") if block.note.startswith("Ctrl+C at ") else ""
        status = int(block.note.removeprefix("exit status ")) if block.note.startswith("exit status ") else 0
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        printed = []
        with subprocess.Popen(["bash", "-e", "-c", block.text], cwd=self.folder, env=self.env, **streams) as process:
            for line in process.stdout:
                printed.append(line)
                if stop and stop in line:
                    os.killpg(process.pid, signal.SIGINT)
                    stop = ""
        output = "".join(printed)
        expected = (130, 2, -signal.SIGINT) if block.note.startswith("Ctrl+C") else (status,)
        if stop or process.returncode not in expected:
            raise WrongBlock(f"{block.place}: ended with {process.returncode}, not {expected[0]}:\n{output}")
        return output

    def _cell(self, block: Block) -> str:
        """What a notebook shows of a cell: what it prints, and the last expression."""
        if not self._notebook:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            argv = [sys.executable, "-P", str(Path(__file__).with_name("notebook.py"))]
            self._notebook = subprocess.Popen(argv, cwd=self.folder, env=self.env, **pipes)
        self._notebook.stdin.write(json.dumps(block.text) + "\n")
        self._notebook.stdin.flush()
        answer = json.loads(self._notebook.stdout.readline() or '{"error": "the interpreter died"}')
        if "error" in answer:
            raise WrongBlock(f"{block.place}: {answer['error']}")
        return answer["printed"]


def unlike(expected: str, printed: str) -> str:
    """Where what was printed has another structure than a page shows; empty where it has the same.

    Numbers, with their units, may be others; so may spaces and the length of rules. In `expected` a line of `...`
    stands for any lines, and `...` within a line for any text.
    """
    shown, real = plain(expected), plain(printed)
    if matches(shown, real):
        return ""
    return "\n".join(difflib.unified_diff(shown, real, "page", "printed", lineterm="", n=99)) + f"\n\n{printed}"


def matches(shown: list[str], real: list[str]) -> bool:
    """Whether lines are those shown; each part between two `...` is looked for after the one before."""
    parts: list[list[str]] = [[]]
    for line in shown:
        if line == "...":
            parts.append([])
        else:
            parts[-1].append(line)
    *parts, last = parts
    if not parts:
        return same(last, real)
    at, end = 0, len(real) - len(last)
    for number, part in enumerate(parts):
        places = range(at, end - len(part) + 1) if number else (0,)
        found = next((place for place in places if same(part, real[place : place + len(part)])), None)
        if found is None:
            return False
        at = found + len(part)
    return at <= end and same(last, real[end:])


def same(shown: list[str], real: list[str]) -> bool:
    """Whether each line is the one shown, in which `...` stands for any text."""
    patterns = (re.escape(line).replace(r"\.\.\.", ".*") for line in shown)
    return len(shown) == len(real) and all(map(re.fullmatch, patterns, real))


def plain(text: str) -> list[str]:
    """Lines without what may differ: numbers, rules, spaces, blank lines."""
    lines = (" ".join(NUMBER.sub("#", RULE.sub(r"\1\1\1", line)).split()) for line in text.splitlines())
    return [line for line in lines if line]
