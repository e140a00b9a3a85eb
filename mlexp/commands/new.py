"""`mlexp new`: a question of one's own, from a template that runs as written."""

import argparse
import keyword
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlexp.commands.templates import filled
from mlexp.commands.written import write_new

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

OK, BAD_INPUT = 0, 4
NAME = re.compile(r"[a-z][a-z0-9_]*\Z")  # of a question, an axis
VALUE = re.compile(r"[a-z0-9_]+\Z")  # of an axis
OWN = ("cell", "seed", "arm", "seeds", "arms")  # names that the template uses
LEVELS = (1, 2, 4)


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    new = commands.add_parser(
        "new",
        help="begin a question of your own",
        description="Writes benches/QUESTION/bench_QUESTION.py and a README, which run as they are: then put your own "
        "work in place of theirs.",
        epilog="exit status: 0 written; 4 a name that will not do, or that is taken",
    )
    new.add_argument("question", metavar="QUESTION", help="its name: a-z, 0-9 and _")
    new.add_argument("--arms", default="baseline,variant", metavar="A,B", help="compared; the first is the baseline")
    new.add_argument("--over", default="", metavar="AXIS", help="along which axis they are compared, such as size")
    new.add_argument("--benches", type=Path, default=Path("benches"), metavar="DIR", help="default: %(default)s")
    new.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the question; say what to run and what to edit."""
    question, arms, over = options.question, options.arms.split(","), options.over
    folder = options.benches / question
    try:
        check(question, arms, over)
        if folder.exists():
            raise ValueError(f"{folder} exists; choose another name, or edit what is there")
        lines = write_new(folder, texts(folder, question, arms, over))
    except (OSError, ValueError) as error:
        print(f"mlexp new: {error}", file=sys.stderr)
        return BAD_INPUT
    print("\n".join(lines))
    print(f"\nnow:\n    pytest {folder} --benchmark-json out.json     runs as it is")
    print("    mlexp report out.json")
    print(f"then say in {folder / f'bench_{question}.py'} what you ask, what an arm is, what is timed, what you claim")
    return OK


def check(question: str, arms: list[str], over: str) -> None:
    """Raises ValueError for a name that will not do, with the reason."""
    for name in (question, *filter(None, [over])):
        if not NAME.match(name) or keyword.iskeyword(name):
            raise ValueError(f"{name!r} is no name; use a-z, 0-9 and _, a letter first")
    for arm in arms:
        if not VALUE.match(arm):
            raise ValueError(f"arm {arm!r} cannot stand in a test id; use a-z, 0-9 and _")
        if f"_{arm}_" in f"_{question}_":
            raise ValueError(f"{question!r} holds the arm {arm!r}: `-k {arm}` would select all of it; rename one")
    if len(set(arms)) < max(2, len(arms)):
        raise ValueError(f"--arms {','.join(arms)}: give two or more, each once")
    if over in OWN:
        raise ValueError(f"--over {over}: the name is taken; choose another")


def texts(folder: Path, question: str, arms: list[str], over: str) -> dict[str, str]:
    """The files of a question: name -> text."""
    along = {
        "FIELDS": f"    {over}s: tuple[int, ...] = {LEVELS}\n",
        "OVER": f'    over=("{over}",),\n',
        "AXES": f'"{over}": "{over}s", ',
        "ARGUMENTS": f"{over}, ",
        "TIMES": f" * {over}",
        "VARIED": f"`{over}`, ",
    }
    values = {
        "QUESTION": question,
        "ASKS": f"Is {arms[1]} faster than {arms[0]}?",
        "ARMS": ", ".join(f'"{arm}": {4 if arm == arms[0] else 1}' for arm in arms),
        "LISTED": ", ".join(f"`{arm}`" for arm in arms),
        "BASELINE": arms[0],
        "OTHER": arms[1],
        "FOLDER": str(folder),
        **(along if over else dict.fromkeys(along, "")),
    }
    templates = {f"bench_{question}.py": "bench_new.py.txt", "README.md": "README.new.md"}
    return {name: filled(template, values) for name, template in templates.items()}
