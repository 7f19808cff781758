"""Measures of how well scores part good images from anomalous ones, and how sure they are.

An anomalous image is a positive, higher is more anomalous, and ``anomalous = not (score <= threshold)``.

Rates at the threshold come with Wilson intervals (Wilson, JASA 22, 1927), areas with bootstrap intervals that
resample physical parts rather than pictures (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993,
ch. 8 and 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kizu.errors import DataError

__all__ = [
    "AreaIntervals",
    "BoolArray",
    "Confusion",
    "FloatArray",
    "Interval",
    "RocCurve",
    "aupr",
    "auroc",
    "bootstrap",
    "check_labelled",
    "confusion",
    "roc_curve",
    "wilson",
]

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
    values, anomalous = check_labelled(scores, labels)
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
    values, anomalous = check_labelled(scores, labels)
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


def check_labelled(scores: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, BoolArray]:
    """Scores as float64 [n] and labels as bool [n], n > 0; DataError if they cannot be used."""
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
    values, anomalous = check_labelled(scores, labels)
    _require_both(anomalous, measure)
    distinct, where = np.unique(values, return_inverse=True)
    good = np.bincount(where[~anomalous], minlength=distinct.size).astype(np.int64)
    return distinct, good, np.bincount(where[anomalous], minlength=distinct.size).astype(np.int64)
