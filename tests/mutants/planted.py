"""Faults to plant: one-line changes that a user would be hurt by, listed as small diffs in `faults/*.txt`.

A fault is a paragraph of a list:

    mlexp/maze/learn.py  data  tests/maze tests/test_maze_scaling.py
    - train, held_out = split(mazes)
    + train, held_out = mazes, mazes

The first line names the file, the fault's kind and the tests that must notice it. The text after "- ", which may be
part of a line, stands in the file exactly once; the text after "+ " replaces it. Where one line is not enough to find
the place, further "- " lines follow it. A line that begins with "? " says why the fault is known to survive.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTS = Path(__file__).parent / "faults"
KINDS = ("data", "metrics", "time", "identity", "training", "library", "report")


@dataclass(frozen=True)
class Fault:
    """One planted change; `name` is its list and its place in that list."""

    name: str
    path: str
    kind: str
    tests: tuple[str, ...]
    old: str
    new: str
    survives: str = ""

    def planted(self, text):
        """The text of the file with the fault in it."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.old!r} stands {count} times in {self.path}; it must stand there once")
        return text.replace(self.old, self.new)

    def plant(self, root):
        """Change the file under `root`; returns the text that stood there."""
        file = Path(root) / self.path
        text = file.read_text()
        file.write_text(self.planted(text))
        return text


def parse(text, name):
    """The faults of one list."""
    paragraphs = [p for p in text.split("\n\n") if p.strip() and not p.lstrip().startswith("#")]
    faults = []
    for number, paragraph in enumerate(paragraphs, 1):
        head, *changes = paragraph.strip("\n").splitlines()
        path, kind, *tests = head.split()
        if kind not in KINDS:
            raise ValueError(f"{name}-{number}: unknown kind {kind!r}; choose from {', '.join(KINDS)}")
        parts = {mark: "\n".join(line[2:] for line in changes if line[:2].strip() == mark) for mark in "-+?"}
        faults.append(Fault(f"{name}-{number}", path, kind, tuple(tests), parts["-"], parts["+"], parts["?"]))
    return faults


def all_faults():
    return [fault for file in sorted(LISTS.glob("*.txt")) for fault in parse(file.read_text(), file.stem)]
