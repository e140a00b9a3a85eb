"""The revisions as folders: worktrees that are removed afterwards."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlexp.analysis import gate
from mlexp.analysis.gate import Refused

SIDES = ("base", "head")  # of one length: the layout of a process's memory follows its paths


@contextlib.contextmanager
def checkouts(refs: Sequence[str], here: Path, scratch: Path) -> Iterator[list[Path]]:
    """The folder that `here` is in each revision: in a worktree, removed afterwards, or (`.`) where it stands."""
    if not here.is_dir():
        raise Refused(gate.UNREADABLE, f"{here}: no such folder")
    top = Path(git(here, "rev-parse", "--show-toplevel")).resolve()
    commits = [None if ref == "." else commit_of(ref, top) for ref in refs]
    roots = [scratch / name if commit else top for name, commit in zip(SIDES, commits, strict=True)]
    try:
        for root, commit, ref in zip(roots, commits, refs, strict=True):
            if commit:
                git(top, "worktree", "add", "--quiet", "--detach", str(root), commit)
            if not (root / here.relative_to(top)).is_dir():
                raise Refused(gate.UNREADABLE, f"{ref} has no folder {here.relative_to(top)}")
        yield [root / here.relative_to(top) for root in roots]
    finally:
        for root in (root for root in roots if root != top and root.exists()):
            git(top, "worktree", "remove", "--force", "--force", str(root))


def commit_of(ref: str, top: Path) -> str:
    """The commit that a revision names. Raises Refused."""
    try:
        return git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    except Refused:
        message = f"unknown revision {ref!r} in {top}; give a commit, a branch, a tag, or . for the working tree"
        raise Refused(gate.UNREADABLE, message) from None


def git(where: Path, *argv: str) -> str:
    """What a git command prints. Raises Refused with the last line of its complaint."""
    try:
        done = subprocess.run(["git", "-C", str(where), *argv], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Refused(gate.UNREADABLE, f"git: {error.strerror}") from None
    if done.returncode:
        raise Refused(gate.UNREADABLE, f"git {argv[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout.strip()
