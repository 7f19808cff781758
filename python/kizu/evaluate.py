"""How well scores part good images from anomalous ones, and how sure that is.

An anomalous image is a positive, higher is more anomalous, and ``anomalous = not (score <= threshold)``.

Rates at the threshold come with Wilson intervals (Wilson, JASA 22, 1927), areas with bootstrap intervals that
resample physical parts rather than pictures (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993,
ch. 8 and 13).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kizu.errors import DataError, FrameError, ScoreError

__all__ = [
    "AreaIntervals",
    "Confusion",
    "Evaluation",
    "Interval",
    "KindSummary",
    "Latency",
    "Percentiles",
    "RocCurve",
    "aupr",
    "auroc",
    "bootstrap",
    "confusion",
    "evaluate",
    "roc_curve",
    "wilson",
]

Stage = Literal["prepare", "engine", "score", "total"]
STAGES: tuple[Stage, ...] = ("prepare", "engine", "score", "total")

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class Interval(NamedTuple):
    """A confidence interval, ends included."""

    low: float
    high: float


class AreaIntervals(NamedTuple):
    """Bootstrap intervals of the two areas."""

    auroc: Interval
    aupr: Interval


class Percentiles(NamedTuple):
    """Percentiles of a stage's latency, in seconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, eq=False)
class RocCurve:
    """The operating points of all thresholds, from rejecting nothing to rejecting everything.

    ``false_reject``, ``recall``, ``thresholds``: float64 arrays of one length, (number of distinct scores) +
    1. Point i is what ``not (score <= thresholds[i])`` gives; thresholds descend, the last is minus infinity.
    """

    false_reject: FloatArray
    recall: FloatArray
    thresholds: FloatArray


@dataclass(frozen=True)
class Confusion:
    """Counts at one threshold. Rates are None where their class has no image."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def good(self) -> int:
        """Number of good images."""
        return self.false_positive + self.true_negative

    @property
    def anomalous(self) -> int:
        """Number of anomalous images."""
        return self.true_positive + self.false_negative

    @property
    def false_reject_rate(self) -> float | None:
        """Share of the good images that are rejected, in [0, 1]."""
        return self.false_positive / self.good if self.good else None

    @property
    def miss_rate(self) -> float | None:
        """Share of the anomalous images that pass, in [0, 1]."""
        return self.false_negative / self.anomalous if self.anomalous else None

    @property
    def recall(self) -> float | None:
        """Share of the anomalous images that are rejected, in [0, 1]."""
        return self.true_positive / self.anomalous if self.anomalous else None

    @property
    def precision(self) -> float | None:
        """Share of the rejected images that are anomalous, in [0, 1]; None where nothing is rejected."""
        rejected = self.true_positive + self.false_positive
        return self.true_positive / rejected if rejected else None

    @property
    def f1(self) -> float | None:
        """2 tp / (2 tp + fp + fn), in [0, 1]; None without anomalous images, for then it can only be 0."""
        if not self.anomalous:
            return None
        return 2 * self.true_positive / (2 * self.true_positive + self.false_positive + self.false_negative)


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve, in [0, 1]: the probability that an anomalous image scores above a good one.

    ``scores``: n finite numbers. ``labels``: n booleans (or 0 and 1), true where anomalous. A tie counts one
    half.

    Raises DataError if a class is missing, or the scores or labels cannot be used.
    """
    _, good, anomalous = _by_score(scores, labels, "AUROC")
    # Twice the Mann-Whitney statistic, in integers: exact.
    twice = int((anomalous * (2 * np.cumsum(good) - good)).sum())
    return twice / (2 * int(good.sum()) * int(anomalous.sum()))


def aupr(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the precision-recall curve as average precision, sum of (R_k - R_{k-1}) P_k, in [0, 1].

    Arguments and errors are those of ``auroc``. Equal scores are one point of the curve. A useless score has
    the share of anomalous images for its AUPR, so it can only be compared on the same set.
    """
    _, good, anomalous = _by_score(scores, labels, "AUPR")
    found = np.cumsum(anomalous[::-1])
    rejected = found + np.cumsum(good[::-1])
    return float((anomalous[::-1] * (found / rejected)).sum() / anomalous.sum())


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> RocCurve:
    """The ROC curve with all its points; arguments and errors are those of ``auroc``."""
    values, good, anomalous = _by_score(scores, labels, "a ROC curve")
    false_reject = np.concatenate(([0.0], np.cumsum(good[::-1]) / good.sum()))
    recall = np.concatenate(([0.0], np.cumsum(anomalous[::-1]) / anomalous.sum()))
    return RocCurve(false_reject, recall, np.concatenate((values[::-1], [-np.inf])))


def confusion(scores: ArrayLike, labels: ArrayLike, threshold: float) -> Confusion:
    """Counts at a threshold; one class may be missing.

    Raises DataError if the scores or labels cannot be used, or the threshold is NaN.
    """
    values, anomalous = _labelled(scores, labels)
    if math.isnan(threshold):
        raise DataError("the threshold is not a number.")
    rejected = ~(values <= threshold)
    return Confusion(
        true_positive=int((rejected & anomalous).sum()),
        false_positive=int((rejected & ~anomalous).sum()),
        true_negative=int((~rejected & ~anomalous).sum()),
        false_negative=int((~rejected & anomalous).sum()),
    )


def wilson(count: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate, in [0, 1], from ``count`` of ``n`` independent trials.

    Raises DataError unless 0 <= count <= n, n > 0 and 0 < confidence < 1.
    """
    if n <= 0 or not 0 <= count <= n:
        raise DataError(f"{count} of {n} is not a rate.")
    if not 0 < confidence < 1:
        raise DataError(f"the confidence is {confidence!r}; it must be strictly between 0 and 1.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = count / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 exactly; rounding must not push the interval off them.
    low = 0.0 if count == 0 else max(0.0, centre - half)
    high = 1.0 if count == n else min(1.0, centre + half)
    return Interval(low, high)


def bootstrap(
    scores: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> AreaIntervals:
    """Percentile intervals of AUROC and AUPR from resampling physical parts.

    ``groups``: n names of the part on each picture. Parts are drawn with replacement, with all their
    pictures, apart among those with good pictures only, with anomalous ones only, and with both: so every
    resample has both classes. The same seed gives the same intervals. Where the classes do not overlap at all
    the interval is one point: the bootstrap cannot see what it has not been shown.

    Raises DataError if a class is missing or an argument cannot be used.
    """
    values, anomalous = _labelled(scores, labels)
    _require_both(anomalous, "the interval of an AUROC")
    if len(groups) != values.size:
        raise DataError(f"there are {values.size} scores and {len(groups)} groups.")
    if resamples < 1:
        raise DataError(f"resamples is {resamples}; it must be at least 1.")
    if not 0 < confidence < 1:
        raise DataError(f"the confidence is {confidence!r}; it must be strictly between 0 and 1.")
    names, group = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    has_good = np.bincount(group[~anomalous], minlength=names.size) > 0
    has_anomalous = np.bincount(group[anomalous], minlength=names.size) > 0
    strata = [
        np.flatnonzero(members)
        for members in (has_good & ~has_anomalous, ~has_good & has_anomalous, has_good & has_anomalous)
        if members.any()
    ]
    order = np.argsort(values, kind="stable")
    values, anomalous, group = values[order], anomalous[order], group[order]
    starts = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))

    rng = np.random.default_rng(seed)
    areas = np.empty((2, resamples))
    # Blocks keep the (resamples x images) matrices within tens of megabytes for any number of images.
    block = max(1, min(resamples, 2_000_000 // values.size))
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        times = np.empty((size, names.size))
        for stratum in strata:
            times[:, stratum] = _draw(rng, size, stratum.size)
        areas[:, first : first + size] = _weighted_areas(times[:, group], anomalous, starts)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(areas, (tail, 100 - tail), axis=1)
    return AreaIntervals(Interval(float(low[0]), float(high[0])), Interval(float(low[1]), float(high[1])))


def _draw(rng: np.random.Generator, rows: int, n: int) -> NDArray[np.int64]:
    """How often each of n is drawn in n draws with replacement; [rows, n]."""
    drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)


def _weighted_areas(weights: FloatArray, anomalous: BoolArray, starts: NDArray[np.intp]) -> FloatArray:
    """AUROC and AUPR for each row of weights.

    ``weights``: [rows, n], images by ascending score. ``starts``: where each distinct score begins. Returns
    [2, rows].
    """
    positive = np.add.reduceat(weights * anomalous, starts, axis=1)
    negative = np.add.reduceat(weights * ~anomalous, starts, axis=1)
    positives, negatives = positive.sum(axis=1), negative.sum(axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    found = np.cumsum(positive[:, ::-1], axis=1)[:, ::-1]
    rejected = found + np.cumsum(negative[:, ::-1], axis=1)[:, ::-1]
    # Where nothing is rejected yet nothing is found either, and the term is 0 for any precision.
    precision = found / np.maximum(rejected, 1)
    return np.stack(
        (
            (positive * below).sum(axis=1) / (positives * negatives),
            (positive * precision).sum(axis=1) / positives,
        )
    )


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
        scores, labels = _labelled(self.scores, self.labels)
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
            "kinds": [
                {
                    "kind": each.kind,
                    "good": each.good,
                    "count": each.count,
                    "minimum": each.minimum,
                    "median": each.median,
                    "maximum": each.maximum,
                    "rejected": each.rejected,
                }
                for each in self.by_kind
            ],
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


def _labelled(scores: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, BoolArray]:
    values = np.asarray(scores, dtype=np.float64)
    marks = np.asarray(labels)
    if values.ndim != 1 or marks.shape != values.shape:
        raise DataError(
            f"scores have the shape {values.shape} and labels {marks.shape}; "
            "one score and one label an image are expected."
        )
    if values.size == 0:
        raise DataError("there are no scores to evaluate.")
    if not np.isin(marks, (0, 1)).all():
        raise DataError("labels must be booleans, or 0 (good) and 1 (anomalous).")
    if not np.isfinite(values).all():
        index = int(np.argmin(np.isfinite(values)))
        raise DataError(f"the score at index {index} is {values[index]}; scores must be finite.")
    return values, marks.astype(np.bool_)


def _require_both(anomalous: BoolArray, measure: str) -> None:
    for present, name in ((~anomalous, "good"), (anomalous, "anomalous")):
        if not present.any():
            raise DataError(f"{measure} needs good and anomalous images, and none of these {anomalous.size} is {name}.")


def _by_score(
    scores: ArrayLike, labels: ArrayLike, measure: str
) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    """Distinct scores, ascending, with the number of good and of anomalous images at each."""
    values, anomalous = _labelled(scores, labels)
    _require_both(anomalous, measure)
    distinct, where = np.unique(values, return_inverse=True)
    good = np.bincount(where[~anomalous], minlength=distinct.size).astype(np.int64)
    return distinct, good, np.bincount(where[anomalous], minlength=distinct.size).astype(np.int64)


def _frozen(values: ArrayLike, dtype: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.array(values, dtype=dtype)
    array.flags.writeable = False
    return array


def _list(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
