"""A study, declared once: what it asks, its arms, settings and metrics, its claims. Standard library only.

    STUDY = Study(
        asks="Is PoH-HRM more than a deeper baseline?",
        arm="arch", arms=ARCHS, baseline="baseline", over=("size",), replicates=("seed",), outcome="accuracy",
        settings=SETTINGS, axes=AXES, metrics=METRICS,
        claims={"Q": Claim("PoH-HRM solves more mazes", Above(Mean(arm("poh_hrm") - arm("baseline"))), primary=True)},
    )

A claim is a statement about quantities. A quantity is a contrast of arms (a weight for each), taken at levels of a
curve axis such as size. Everything here is data with a stable `repr`, so a claim has a fingerprint, which a run stores
with its records: a claim that is written down after the measurement is recognised as such.
"""

import hashlib
import importlib.util
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from mlexp.record import METRICS, Metric, near

MAX_PRIMARY = 3  # claims that share the error budget of a study
ABOUT = ("cost", "behaviour")


@dataclass(frozen=True)
class Contrast:
    """A weighted sum over arms of a metric, or of its logarithm: then a ratio. Made by `arm`, `mean` and `ratio`, which
    are added and subtracted: `arm("a") - mean("b", "c")`.

    Attributes:
        weights: (arm, weight) pairs; weights that add up to 0 compare, those that add up to 1 average.
        metric: empty for the study's outcome.
        log: whether of logarithms.

    Raises:
        ValueError: where contrasts of different metrics, or with and without logarithms, are added or subtracted.
    """

    weights: tuple[tuple[str, float], ...]
    metric: str = ""
    log: bool = False

    def __add__(self, other: "Contrast") -> "Contrast":
        return self._plus(other, 1.0)

    def __sub__(self, other: "Contrast") -> "Contrast":
        return self._plus(other, -1.0)

    def _plus(self, other: "Contrast", sign: float) -> "Contrast":
        if self.log != other.log:
            raise ValueError(
                "a ratio and a plain contrast do not add up: a ratio is made of logarithms; take two ratios, or two "
                "contrasts made of arm() and mean()"
            )
        if self.metric != other.metric:
            a, b = (repr(name) if name else "the study's outcome" for name in (self.metric, other.metric))
            raise ValueError(f"a contrast has one metric: {a} and {b} do not add up")
        total = dict(self.weights)
        for name, weight in other.weights:
            total[name] = total.get(name, 0.0) + sign * weight
        return replace(self, weights=tuple(total.items()))

    def of(self, metric: str) -> "Contrast":
        """The same arms by another metric."""
        return replace(self, metric=metric)


def arm(name: str) -> Contrast:
    """One arm's outcome, in its unit; minus another arm's it is a difference."""
    return Contrast(((name, 1.0),))


def mean(*names: str) -> Contrast:
    """The mean of several arms' outcomes, in their unit."""
    return Contrast(tuple((name, 1 / len(names)) for name in names))


def ratio(of: str, to: str, metric: str = "") -> Contrast:
    """`metric` (empty: the study's outcome) of arm `of` over that of arm `to`, block by block; without unit, averaged
    as a geometric mean. Values of 0 or less have no ratio: a claim on them is not tested, and says so."""
    return Contrast(((of, 1.0), (to, -1.0)), metric, log=True)


@dataclass(frozen=True)
class Levels:
    """Levels of a curve axis, such as sizes; all of them where nothing is given.

    Attributes:
        names: by name.
        low: by the number in the name, this one included.
        high: by the number in the name, this one left out.
        place: `first`, `last`, `complete` (has all arms of the contrast) or `upper half` (from `names` on, if that is
            earlier).
        axis: which curve axis; empty for the study's first.
    """

    names: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    place: str = ""
    axis: str = ""


EVERY = Levels()


@dataclass(frozen=True)
class At:
    """The contrast at each of the levels: a quantity a level."""

    contrast: Contrast
    levels: Levels = EVERY


@dataclass(frozen=True)
class Mean:
    """The mean of the contrast over the levels, within each block: blocks, not cells, are what is independent."""

    contrast: Contrast
    levels: Levels = EVERY


@dataclass(frozen=True)
class Slope:
    """The least-squares slope, within each block, of the contrast on the natural logarithm of a level's size: in the
    metric's unit per factor e; of a ratio the exponent of a power law, without unit.

    Attributes:
        contrast: of arms.
        size: the record's field that says how large a level is; empty for the number in the level's name.
        levels: which levels.
        points: how many levels it needs.
    """

    contrast: Contrast
    size: str = ""
    levels: Levels = EVERY
    points: int = 3


@dataclass(frozen=True)
class Steps:
    """The change of the contrast from each level to the next: a quantity a step."""

    contrast: Contrast
    levels: Levels = EVERY


@dataclass(frozen=True)
class FromMean:
    """The contrast at each level minus its mean over the levels: a quantity a level."""

    contrast: Contrast
    levels: Levels = EVERY


@dataclass(frozen=True)
class Given:
    """A quantity that the study's `estimates` compute themselves, by name: a count, a share, a timing of one cell.
    Where it has no such name, the claim is not tested."""

    name: str


Quantity = At | Mean | Slope | Steps | FromMean | Given


@dataclass(frozen=True)
class Within:
    """Each of the quantity's values lies between `low` and `high`, in the unit of the metric; for a ratio these are
    ratios (1: no difference), for the slope of a ratio exponents (0: none).

    Attributes:
        quantity: what lies there.
        low: the lower bound, itself left out; None: none.
        high: the upper bound, itself left out; None: none.

    Raises:
        ValueError: for a bound of 0 or less of a ratio, and for bounds in the wrong order.
    """

    quantity: Quantity
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        quantity, bounds = self.quantity, [end for end in (self.low, self.high) if end is not None]
        if bounds != sorted(bounds):
            raise ValueError(f"low is {self.low}, high is {self.high}: give the lower bound first")
        ratios = not isinstance(quantity, Given | Slope) and quantity.contrast.log
        if ratios and bounds and bounds[0] <= 0:
            raise ValueError(
                f"the bound of a ratio is {bounds[0]:g}; it is itself a ratio, above 0: 1 means no difference, as in "
                "Above(At(ratio('a', 'b')), 1.0)"
            )


def Above(quantity: Quantity, bound: float = 0.0) -> Within:
    """Each of the quantity's values is above `bound`, as `Within` has it; of a ratio the bound must be named."""
    return Within(quantity, low=bound)


def Below(quantity: Quantity, bound: float = 0.0) -> Within:
    """Each of the quantity's values is below `bound`, as `Within` has it; of a ratio the bound must be named."""
    return Within(quantity, high=bound)


@dataclass(frozen=True)
class Switch:
    """Along the levels the contrast is negative first, positive from some level on; a ratio below 1, then above."""

    quantity: At


@dataclass(frozen=True)
class All:
    """Every one of these statements holds."""

    parts: tuple["Statement", ...]

    def __init__(self, *parts: "Statement"):
        object.__setattr__(self, "parts", parts)


@dataclass(frozen=True)
class Any:
    """At least one of these statements holds."""

    parts: tuple["Statement", ...]

    def __init__(self, *parts: "Statement"):
        object.__setattr__(self, "parts", parts)


Statement = Within | Switch | All | Any


@dataclass(frozen=True)
class Claim:
    """What is asserted and by what it is judged.

    Attributes:
        text: the assertion in one sentence.
        statement: what must hold of which quantities: `Above`, `Below`, `Within`, `Switch`, or `All` and `Any` of them.
        source: where the assertion comes from; `original`: the study that this one repeats.
        about: `cost`, or `behaviour`: then it is not tested on stand-ins for weights or text.
        primary: shares the study's error budget of 5 % with the other primary claims.
        check: is about the implementation (a speed limit, memory), and no hypothesis of the study.
        settings: values that the claim speaks of; under others it is not tested.

    Raises:
        ValueError: for another `about`, and for a check that is primary.
    """

    text: str
    statement: Statement
    source: str = "ours"
    about: str = "cost"
    primary: bool = False
    check: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.about not in ABOUT:
            raise ValueError(f"claim {self.text!r}: about is {self.about!r}; choose from {', '.join(ABOUT)}")
        if self.primary and self.check:
            raise ValueError(f"claim {self.text!r}: an engineering check is not a primary hypothesis")

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of everything that the claim says."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


class Refused(ValueError):
    """A declaration that does not hold; `at` is the argument of Study, or the key in one, that is wrong."""

    def __init__(self, at: str, message: str):
        super().__init__(message)
        self.at = at


Table = typing.Any  # a pandas DataFrame; this module imports no pandas


def contrasts(statement: Statement) -> Iterator[Contrast]:
    """The contrasts that a statement is about."""
    if isinstance(statement, All | Any):
        for part in statement.parts:
            yield from contrasts(part)
    elif not isinstance(statement.quantity, Given):
        yield statement.quantity.contrast


@dataclass(frozen=True)
class Study:
    """One study, as its bench file (or `study.py` beside it) declares it. Names are those of the records.

    Attributes:
        asks: the question in one sentence.
        arm: the axis that is compared.
        arms: its values, in the order shown.
        baseline: the arm that the others are compared with.
        outcome: the metric that it is about.
        replicates: axes whose values are draws of one thing (seeds, prompts), the unit of every interval.
        over: curve axes (size, amount of text).
        apart: arms that compete with none (a second control, a smaller model).
        independent: replicates of two arms are not correlated, so variance is pooled over arms instead of pairing.
        fixed: of further axes, the value that claims and the default tables are about.
        items: of a metric that is a share, the setting that says of how many items it is.
        costs: metrics shown beside the outcome, as far as they are recorded.
        parts: what a difference could be due to: in words -> (arm with it, arm without it). Reports of the study's own
            use it.
        settings: scale (`smoke`, `quick`, `full`) -> an instance of the settings' dataclass.
        axes: argument of the test -> the setting that lists its values; the last one is the arm, which varies fastest.
        metrics: name -> (unit, `lower` | `higher` | `none` is better, what it is), beyond those of `mlexp.record`.
        claims: id -> what is asserted; at most three of them primary.
        derive: a function of the records (a DataFrame) that returns them with further columns.
        estimates: a function of (records, series) that gives the quantities of `Given`: name -> a function of the
            confidence level, or the reason why there is none.
        answer: a function of (findings by id, the table of arms) that gives the study's answer in one sentence.

    Raises:
        ValueError: for a baseline or an arm of a claim that is not among `arms`, an outcome or metric of a claim that
            nobody declared, and for a fourth primary claim.
    """

    asks: str
    arm: str
    arms: Sequence[str]
    baseline: str
    outcome: str
    replicates: tuple[str, ...] = ("seed",)
    over: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    independent: bool = False
    fixed: Mapping[str, object] = field(default_factory=dict)
    items: Mapping[str, str] = field(default_factory=dict)
    costs: tuple[str, ...] = ("wall_s", "flops", "peak_bytes")
    parts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    settings: Mapping[str, typing.Any] = field(default_factory=dict)
    axes: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Metric | tuple[str, ...]] = field(default_factory=dict)
    claims: Mapping[str, Claim] = field(default_factory=dict)
    derive: Callable[[Table], Table] | None = None
    estimates: Callable[[Table, typing.Any], Mapping[str, typing.Any]] | None = None
    answer: Callable[[Mapping[str, typing.Any], Table], str] | None = None

    def __post_init__(self) -> None:
        primary = [name for name, claim in self.claims.items() if claim.primary]
        if len(primary) > MAX_PRIMARY:
            raise Refused("claims", f"{len(primary)} primary claims ({', '.join(primary)}); at most {MAX_PRIMARY}")
        if self.arms and self.baseline not in self.arms:
            raise Refused("baseline", f"baseline {self._no_arm(self.baseline)}")
        if self.arm and self.outcome not in self._known:
            raise Refused("outcome", f"outcome {self._no_metric(self.outcome)}")
        for name, claim in self.claims.items():
            for contrast in contrasts(claim.statement):
                wrong = [arm for arm, _ in contrast.weights if arm not in self.arms]
                if self.arms and wrong:
                    raise Refused(name, f"claim {name}: {self._no_arm(wrong[0])}")
                if contrast.metric and contrast.metric not in self._known:
                    raise Refused(name, f"claim {name}: {self._no_metric(contrast.metric)}")

    @property
    def _known(self) -> set[str]:
        return {*METRICS, *self.metrics}

    def _no_arm(self, name: str) -> str:
        return f"{name!r} is no arm; {near(name, self.arms, 'choose from ' + ', '.join(self.arms))}"

    def _no_metric(self, name: str) -> str:
        mend = near(name, sorted(self._known), f"known: {', '.join(sorted(self._known))}")
        return f"{name!r} is no metric; declare it in metrics=; {mend}"

    @classmethod
    def declared(
        cls, content: Mapping[str, object], metrics: Mapping[str, Metric | tuple[str, ...]] | None = None
    ) -> "Study":
        """The study as far as records carry it: without claims. `metrics` are the question's own, which its file lists
        apart. Raises ValueError where a field is not of its kind."""
        texts = {name: content.get(name) for name in ("arm", "baseline", "outcome")}
        lists = {name: content.get(name, []) for name in ("arms", "over", "replicates")}
        for name, value in {**texts, **lists}.items():
            items = value if isinstance(value, list) and name in lists else [value]
            if not all(isinstance(item, str) for item in items):
                raise ValueError(f"{name} is {value!r:.80}")
        known: dict[str, typing.Any] = {**texts, **{name: tuple(value) for name, value in lists.items()}}  # type: ignore[arg-type]  # checked
        return cls(asks="", metrics=metrics or {}, **known)

    @property
    def declaration(self) -> dict[str, object]:
        """What a run stores of the study beside its records: enough to show every arm, and what was claimed when."""
        return {
            "arm": self.arm,
            "arms": list(self.arms),
            "baseline": self.baseline,
            "over": list(self.over),
            "replicates": list(self.replicates),
            "outcome": self.outcome,
            "claims": {name: claim.fingerprint for name, claim in self.claims.items()},
        }


NOT_IN_KEY = ("claims", "parts", "answer", "derive", "estimates", "asks", "outcome", "costs")  # of a Study: for readers


def beside(bench: str | Path) -> ModuleType:
    """The `study.py` that stands beside a bench file: `declared = beside(__file__)`, then `STUDY = declared.STUDY`.

    Raises:
        FileNotFoundError: where there is none.
    """
    if not (file := Path(bench).with_name("study.py")).is_file():
        raise FileNotFoundError(f"there is no study.py beside {Path(bench).name}")
    return load(file)


def load(file: Path) -> ModuleType:
    """A file of a study as a module whose name no other has; loaded once."""
    name = f"mlexp_{file.stem}_of_{file.parent.name}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(file):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def of(module: ModuleType | object) -> Study:
    """What a bench module declares: its STUDY, or its SETTINGS, AXES and METRICS where they stand alone."""
    study = getattr(module, "STUDY", None)
    if study is None:
        return Study(
            asks="",
            arm="",
            arms=(),
            baseline="",
            outcome="wall_s",
            settings=getattr(module, "SETTINGS", {}),
            axes=getattr(module, "AXES", {}),
            metrics=getattr(module, "METRICS", {}),
        )
    if not isinstance(study, Study):
        raise TypeError(f"STUDY is a {type(study).__name__}; give a mlexp.study.Study")
    return study
