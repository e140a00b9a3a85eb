"""The architectures, one line each; needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Arch:
    """What an arm is: iterations (None = the setting R), where its gates come from, and how it spends what PoH
    costs."""

    iterations: int | None = 1
    gates: str = "none"  # none, static (learned, the same for every input), or hrm
    slow: bool = True  # whether the slow state is ever updated
    deep: bool = False  # R times the layers, untied
    wide: bool = False  # as many parameters as poh_hrm has
    long: bool = False  # R times the training steps


ARCHS = {
    "baseline": Arch(),
    "poh_hrm": Arch(None, "hrm"),
    "poh_r1": Arch(1, "hrm"),
    "poh_uniform": Arch(None),  # a looped transformer
    "poh_static": Arch(None, "static"),
    "poh_t_inf": Arch(None, "hrm", slow=False),
    "baseline_wide": Arch(wide=True),
    "baseline_deep": Arch(deep=True),
    "baseline_long": Arch(long=True),
}
