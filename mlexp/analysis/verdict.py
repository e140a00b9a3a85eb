"""The four words of a verdict, in the order in which they are counted."""

from enum import StrEnum


class Verdict(StrEnum):
    """What the data say of a claim. `not tested`: they lack something that the claim needs."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    NOT_TESTED = "not tested"
