"""Times of records as instants: two texts are one time where only their zones or their digits differ."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime


def seconds(when: object) -> float:
    """Seconds from 1970 to the time that an ISO 8601 text names, in UTC where it has no zone; -inf of anything else."""
    try:
        at = datetime.fromisoformat(when)  # type: ignore[arg-type]  # TypeError is caught
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return -math.inf


def in_order(texts: Iterable[object]) -> list[str]:
    """The times among `texts`, the earliest first."""
    return sorted((text for text in texts if isinstance(text, str)), key=seconds)
