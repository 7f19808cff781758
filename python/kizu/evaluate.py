"""How a detector does on a set of images: their scores, the measures of these, and the time each image took."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kizu.errors import DataError, FrameError, ScoreError
from kizu.metrics import (
    AreaIntervals,
    BoolArray,
    Confusion,
    FloatArray,
    Interval,
    RocCurve,
    aupr,
    auroc,
    bootstrap,
    check_labelled,
    confusion,
    roc_curve,
    wilson,
)
from kizu.prepare import frame_digest

__all__ = ["STAGES", "Evaluation", "KindSummary", "Latency", "Percentiles", "evaluate", "unseen"]

Stage = Literal["prepare", "engine", "score", "total"]
STAGES: tuple[Stage, ...] = ("prepare", "engine", "score", "total")


class Percentiles(NamedTuple):
    """Percentiles of a stage's latency, in seconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, eq=False)
class Latency:
    """Seconds spent on each frame: float64 arrays of one length.

    ``prepare``, ``engine`` and ``score`` are the detector's own times; ``total`` is the time of the whole
    call, and so somewhat more than their sum.
    """

    prepare: FloatArray
    engine: FloatArray
    score: FloatArray
    total: FloatArray

    def __post_init__(self) -> None:
        """Copies the arrays, makes them read-only and checks their lengths."""
        for stage in STAGES:
            object.__setattr__(self, stage, _frozen(getattr(self, stage), np.float64))
        if len({getattr(self, stage).shape for stage in STAGES}) != 1 or self.total.ndim != 1:
            raise DataError("the stages' latencies must be one number a frame, as many for each stage.")

    def percentiles(self, stage: Stage) -> Percentiles:
        """The 50th, 90th and 99th percentile of a stage, in seconds. Raises DataError without frames."""
        seconds: FloatArray = getattr(self, stage)
        if seconds.size == 0:
            raise DataError("no frame was timed.")
        p50, p90, p99 = np.percentile(seconds, (50, 90, 99))
        return Percentiles(float(p50), float(p90), float(p99))


@dataclass(frozen=True)
class KindSummary:
    """The scores of the images of one kind. ``rejected`` is None where there is no threshold."""

    kind: str
    good: bool
    count: int
    minimum: float
    median: float
    maximum: float
    rejected: int | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of a set of images with what is known of them; measures are computed when asked for.

    ``names``, ``kinds``, ``groups``: n strings each (the image, its kind, the physical part on it).
    ``labels``: bool [n], true where anomalous. ``scores``: float64 [n], finite, higher is more anomalous.
    ``threshold``: a finite number, or None where none is set. ``latency``: seconds a frame, or None if not
    timed.

    Measures that need a missing class or threshold are None. Raises DataError if the fields do not fit
    together.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    groups: tuple[str, ...]
    labels: BoolArray
    scores: FloatArray
    threshold: float | None
    latency: Latency | None = None

    def __post_init__(self) -> None:
        """Copies the arrays, makes them read-only and checks that the fields fit together."""
        scores, labels = check_labelled(self.scores, self.labels)
        object.__setattr__(self, "scores", _frozen(scores, np.float64))
        object.__setattr__(self, "labels", _frozen(labels, np.bool_))
        for field in ("names", "kinds", "groups"):
            values = tuple(str(value) for value in getattr(self, field))
            if len(values) != scores.size:
                raise DataError(f"there are {scores.size} scores and {len(values)} {field}.")
            object.__setattr__(self, field, values)
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise DataError(f"the threshold is {self.threshold!r}; it must be finite, or None.")

    @property
    def n_good(self) -> int:
        """Number of good images."""
        return int((~self.labels).sum())

    @property
    def n_anomalous(self) -> int:
        """Number of anomalous images."""
        return int(self.labels.sum())

    @property
    def n_parts(self) -> int:
        """Number of physical parts."""
        return len(set(self.groups))

    @property
    def rejected(self) -> BoolArray | None:
        """Which images the threshold rejects, bool [n]; None without a threshold."""
        return None if self.threshold is None else ~(self.scores <= self.threshold)

    @cached_property
    def roc(self) -> RocCurve | None:
        """The ROC curve; None if a class is missing."""
        return roc_curve(self.scores, self.labels) if self._both else None

    @cached_property
    def auroc(self) -> float | None:
        """Area under the ROC curve, in [0, 1]; None if a class is missing."""
        return auroc(self.scores, self.labels) if self._both else None

    @cached_property
    def aupr(self) -> float | None:
        """Average precision, in [0, 1]; None if a class is missing."""
        return aupr(self.scores, self.labels) if self._both else None

    @cached_property
    def area_intervals(self) -> AreaIntervals | None:
        """95 % bootstrap intervals over parts of AUROC and AUPR; None if a class is missing."""
        return bootstrap(self.scores, self.labels, self.groups) if self._both else None

    @cached_property
    def confusion(self) -> Confusion | None:
        """Counts at the threshold; None without one."""
        return None if self.threshold is None else confusion(self.scores, self.labels, self.threshold)

    @property
    def f1(self) -> float | None:
        """F1 at the threshold, in [0, 1]; None without a threshold or without anomalous images."""
        return self.confusion.f1 if self.confusion else None

    @property
    def false_reject_rate(self) -> float | None:
        """Share of the good images that are rejected, in [0, 1]; None without a threshold or such images."""
        return self.confusion.false_reject_rate if self.confusion else None

    @property
    def miss_rate(self) -> float | None:
        """Share of the anomalous images that pass, in [0, 1]; None without a threshold or such images."""
        return self.confusion.miss_rate if self.confusion else None

    @property
    def false_reject_interval(self) -> Interval | None:
        """95 % Wilson interval of the false-reject rate; too narrow if images repeat parts."""
        counts = self.confusion
        return wilson(counts.false_positive, counts.good) if counts and counts.good else None

    @property
    def miss_interval(self) -> Interval | None:
        """95 % Wilson interval of the miss rate; too narrow if images repeat parts."""
        counts = self.confusion
        return wilson(counts.false_negative, counts.anomalous) if counts and counts.anomalous else None

    @cached_property
    def by_kind(self) -> tuple[KindSummary, ...]:
        """One summary a kind: good kinds first, then by ascending median score, the hardest first."""
        members: dict[tuple[bool, str], list[int]] = {}
        for index, (kind, anomalous) in enumerate(zip(self.kinds, self.labels, strict=True)):
            members.setdefault((not anomalous, kind), []).append(index)
        rejected = self.rejected
        summaries = [
            KindSummary(
                kind=kind,
                good=good,
                count=len(indices),
                minimum=float(self.scores[indices].min()),
                median=float(np.median(self.scores[indices])),
                maximum=float(self.scores[indices].max()),
                rejected=None if rejected is None else int(rejected[indices].sum()),
            )
            for (good, kind), indices in members.items()
        ]
        return tuple(sorted(summaries, key=lambda each: (not each.good, each.median, each.kind)))

    def ranked(self, *, good: bool, highest: bool, count: int) -> tuple[int, ...]:
        """Indices of up to ``count`` images of a class by score, highest or lowest first."""
        indices = np.flatnonzero(self.labels != good)
        keys = -self.scores[indices] if highest else self.scores[indices]
        return tuple(int(index) for index in indices[np.argsort(keys, kind="stable")[:count]])

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it: numbers, strings, lists, dicts and None; times in seconds."""
        counts, intervals, rejected = self.confusion, self.area_intervals, self.rejected
        return {
            "images": len(self.names),
            "good": self.n_good,
            "anomalous": self.n_anomalous,
            "parts": self.n_parts,
            "auroc": self.auroc,
            "auroc_interval": list(intervals.auroc) if intervals else None,
            "aupr": self.aupr,
            "aupr_interval": list(intervals.aupr) if intervals else None,
            "threshold": None if self.threshold is None else float(self.threshold),
            "f1": self.f1,
            "precision": counts.precision if counts else None,
            "recall": counts.recall if counts else None,
            "false_rejects": counts.false_positive if counts else None,
            "false_reject_rate": self.false_reject_rate,
            "false_reject_interval": _list(self.false_reject_interval),
            "misses": counts.false_negative if counts else None,
            "miss_rate": self.miss_rate,
            "miss_interval": _list(self.miss_interval),
            "kinds": [asdict(each) for each in self.by_kind],
            "latency_seconds": None
            if self.latency is None
            else {stage: self.latency.percentiles(stage)._asdict() for stage in STAGES},
            "scores": [
                {
                    "name": self.names[index],
                    "kind": self.kinds[index],
                    "group": self.groups[index],
                    "good": not self.labels[index],
                    "score": float(self.scores[index]),
                    "rejected": None if rejected is None else bool(rejected[index]),
                }
                for index in range(len(self.names))
            ],
        }

    @property
    def _both(self) -> bool:
        return self.n_good > 0 and self.n_anomalous > 0


class SampleLike(Protocol):
    """What is read of a sample of a data set."""

    @property
    def name(self) -> str: ...
    @property
    def good(self) -> bool: ...
    @property
    def kind(self) -> str: ...
    @property
    def group(self) -> str: ...
    def read(self) -> NDArray[np.uint8]: ...


AnySample = TypeVar("AnySample", bound=SampleLike)


class TimingLike(Protocol):
    """Seconds spent on one frame."""

    @property
    def prepare(self) -> float: ...
    @property
    def engine(self) -> float: ...
    @property
    def score(self) -> float: ...


class ResultLike(Protocol):
    """What is read of a detector's result."""

    @property
    def score(self) -> float: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def timing(self) -> TimingLike: ...


class DetectorLike(Protocol):
    """What scores a frame."""

    def score(self, frame: NDArray[np.uint8], /) -> ResultLike: ...


def unseen(samples: Sequence[AnySample], seen: Collection[str]) -> list[AnySample]:
    """The samples whose frames are not among ``seen`` (``frame_digest``): what a bundle's making did not use."""
    known = frozenset(seen)
    return [sample for sample in samples if frame_digest(sample.read()) not in known]


def evaluate(
    detector: DetectorLike,
    samples: Sequence[SampleLike],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores the samples one by one, as a line would, and times each.

    The first frame is scored once more beforehand, untimed, so that the latencies are those of a warm
    detector. Reading and decoding the file is not part of the time. ``progress(done, total)`` is called after
    each sample.

    Raises DataError if there are no samples, one of them cannot be read or does not fit the model, or two
    have one name; ScoreError if a score is not finite. Both name the sample.
    """
    if not samples:
        raise DataError("there are no images to evaluate on.")
    repeated = [name for name, times in Counter(sample.name for sample in samples).items() if times > 1]
    if repeated:
        raise DataError(f"the name {repeated[0]!r} stands for more than one image; names must be unique.")
    scores: list[float] = []
    seconds: list[tuple[float, float, float, float]] = []
    threshold: float | None = None
    for index, sample in enumerate(samples):
        try:
            frame = sample.read()
            if index == 0:
                detector.score(frame)
            start = time.perf_counter()
            result = detector.score(frame)
            total = time.perf_counter() - start
        except (OSError, FrameError) as error:
            raise DataError(f"{sample.name}: {error}") from error
        except ScoreError as error:
            raise ScoreError(f"{sample.name}: {error}") from error
        if not math.isfinite(result.score):
            raise ScoreError(f"{sample.name}: the score is {result.score}; it must be finite.")
        scores.append(float(result.score))
        threshold = result.threshold
        timing = result.timing
        seconds.append((timing.prepare, timing.engine, timing.score, total))
        if progress is not None:
            progress(index + 1, len(samples))
    columns = np.asarray(seconds, dtype=np.float64).T
    return Evaluation(
        names=tuple(sample.name for sample in samples),
        kinds=tuple(sample.kind for sample in samples),
        groups=tuple(sample.group for sample in samples),
        labels=np.asarray([not sample.good for sample in samples], dtype=np.bool_),
        scores=np.asarray(scores, dtype=np.float64),
        threshold=threshold,
        latency=Latency(*columns),
    )


def _frozen(values: ArrayLike, dtype: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.array(values, dtype=dtype)
    array.flags.writeable = False
    return array


def _list(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
