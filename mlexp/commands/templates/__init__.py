"""The files that `mlexp init` and `mlexp new` write: `@NAME@` stands for what is filled in."""

from collections.abc import Mapping
from importlib.resources import files


def filled(template: str, values: Mapping[str, str] | None = None) -> str:
    """The text of a template with its values in place."""
    text = files(__name__).joinpath(template).read_text(encoding="utf-8")
    for name, value in (values or {}).items():
        text = text.replace(f"@{name}@", value)
    return text
