"""Settings whose fields declare their bounds. Standard library only.

    @dataclass(frozen=True)
    class Sizes(Settings):
        models: Annotated[tuple[str, ...], OneOf(MODELS)] = MODELS
        samples: Annotated[int, AtLeast(1)] = 20

A bound of a tuple holds for each of its values; None is never refused.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, get_type_hints


class AtLeast(NamedTuple):
    """The least allowed value of a setting: `train: Annotated[int, AtLeast(1)] = 1000`."""

    value: float

    def refuses(self, value: object) -> str:
        """What is allowed, in words, where `value` is not; else empty."""
        return "" if value >= self.value else f"at least {self.value:g}"  # type: ignore[operator]  # numbers


class MoreThan(NamedTuple):
    """As `AtLeast`, the bound itself left out: `rate: Annotated[float, MoreThan(0)] = 1e-3`."""

    value: float

    def refuses(self, value: object) -> str:
        """What is allowed, in words, where `value` is not; else empty."""
        return "" if value > self.value else f"above {self.value:g}"  # type: ignore[operator]  # numbers


class OneOf(NamedTuple):
    """The allowed values of a setting, such as the keys of a table: `Annotated[str, OneOf(MODELS)]`."""

    values: Collection[object]

    def refuses(self, value: object) -> str:
        """What is allowed, in words, where `value` is not; else empty."""
        return "" if value in self.values else f"choose from {', '.join(map(str, self.values))}"


@dataclass(frozen=True)
class Settings:
    """What the settings of a question derive from: a frozen dataclass whose fields declare bounds as `Annotated[type,
    bound]`. A row of it for each scale stands in `Study.settings`; `--set name=value` replaces a field.

    Raises:
        ValueError: where a value is out of bounds, naming the field, the value and what is allowed.
    """

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
