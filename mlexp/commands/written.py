"""Files of a project that are written once: what is there stays as it is, and is named."""

from collections.abc import Mapping
from pathlib import Path


def write_new(folder: Path, texts: Mapping[str, str]) -> list[str]:
    """Write each text under its path, unless there is something; a line on each for the user."""
    lines = []
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
        except FileExistsError:
            lines.append(f"kept   {path} (it was there)")
        else:
            lines.append(f"wrote  {path}")
    return lines


def add_lines(path: Path, wanted: tuple[str, ...]) -> list[str]:
    """Append to a file the lines that it lacks; a line on it for the user."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    missing = [line for line in wanted if line not in text.splitlines()]
    if not missing:
        return [f"kept   {path} (has all lines)"]
    begin = "" if not text or text.endswith("\n") else "\n"
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(begin + "".join(f"{line}\n" for line in missing))
    return [f"{'added' if text else 'wrote'}  {path}: {', '.join(missing)}"]
