"""Numbers for people: an amount in its unit, as every claim, table and page writes it."""

import math
from collections.abc import Iterable


def amount(value: float, unit: str, log: bool = False, is_level: bool = False) -> str:
    """A quantity in words. `log`: its natural logarithm is given and the ratio is shown; `is_level`: the value of one
    arm, not a difference, which alone bears a sign."""
    sign = "" if is_level else "+"
    if math.isnan(value):
        return "unknown"
    if log:
        return f"{digits(math.exp(value))}x"
    if unit == "fraction":
        return f"{100 * value:.1f} %" if is_level else f"{100 * value:+.1f} points"
    if unit == "ratio":
        return f"{digits(value)}x" if is_level else f"{value:{sign}.3f}"
    if unit == "exponent":
        return f"exponent {value:+.3f}"
    if unit == "nats":
        return f"{value:{sign}.4f} nats"
    return f"{'+' if sign and value > 0 else ''}{thousands(value)} {unit}".strip()


def span(low: float, high: float, unit: str, log: bool = False, is_level: bool = False) -> str:
    """An interval in the unit of its effect, which is not repeated."""
    ends = [amount(end, unit, log, is_level) for end in (low, high)]
    for mark in (" points", " %", f" {unit}"):
        ends = [end.removesuffix(mark).removeprefix("exponent ") for end in ends]
    return " to ".join(ends)


def reach(values: Iterable[float], unit: str = "") -> str:
    """Where values lie, in words: one of them, or the least to the greatest."""
    known = sorted(value for value in values if not math.isnan(value))
    ends = list(dict.fromkeys(amount(value, unit, is_level=True) for value in (known[:1] + known[-1:])))
    return " to ".join(ends) or "unknown"


def digits(value: float) -> str:
    """Three significant digits without an exponent where that is short: 3.11, 0.0421, 124."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    places = 2 - math.floor(math.log10(abs(value)))
    return (
        f"{value:.{places}f}" if 0 <= places <= 6 else f"{value:,.0f}" if places < 0 and places > -7 else f"{value:.3g}"
    )


def thousands(value: float) -> str:
    """Three digits with a letter for the thousands: 124M, -19.4K, 0.25."""
    if not math.isfinite(value) or abs(value) < 999.5:
        return f"{value:.3g}"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours, in two digits."""
    if seconds is None:
        return "unknown"
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.2g} {name}"
    return f"{seconds:.2g} s"
