"""Settings whose fields declare their bounds. Standard library only.

@dataclass(frozen=True)
class Sizes(Settings):
    models: Annotated[tuple[str, ...], OneOf(MODELS)] = MODELS
    samples: Annotated[int, AtLeast(1)] = 20
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, get_type_hints


class AtLeast(NamedTuple):
    """A bound of a setting: `train: Annotated[int, AtLeast(1)] = 1000`; of a tuple, of each of its values."""

    value: float

    def refuses(self, value: object) -> str:
        return "" if value >= self.value else f"at least {self.value:g}"  # type: ignore[operator]  # numbers


class MoreThan(NamedTuple):
    """As AtLeast, the bound itself left out."""

    value: float

    def refuses(self, value: object) -> str:
        return "" if value > self.value else f"above {self.value:g}"  # type: ignore[operator]  # numbers


class OneOf(NamedTuple):
    """The allowed values of a setting, or of each value of a tuple."""

    values: Collection[object]

    def refuses(self, value: object) -> str:
        return "" if value in self.values else f"choose from {', '.join(map(str, self.values))}"


@dataclass(frozen=True)
class Settings:
    """Settings whose fields declare bounds, `Annotated[type, bound]`. Raises ValueError, naming value and bound."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            for bound in getattr(hint, "__metadata__", ()):
                given = getattr(self, name)
                for value in given if isinstance(given, tuple) else (given,):
                    if value is not None and (allowed := bound.refuses(value)):
                        known = not isinstance(bound, OneOf)
                        found = f"{name} is {value}" if known else f"unknown {singular(name)} {value!r}"
                        raise ValueError(f"{found}; {allowed}")


def singular(name: str) -> str:
    """One of what a setting lists: sizes -> size, batches -> batch."""
    for ending, one in (("ches", "ch"), ("ies", "y"), ("sses", "ss"), ("s", "")):
        if name.endswith(ending) and not name.endswith("ss"):
            return name.removesuffix(ending) + one
    return name
