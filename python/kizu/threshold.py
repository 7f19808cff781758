"""Thresholds on the anomaly score: from good images alone, or from labelled ones.

Higher is more anomalous, and one rule decides everywhere: ``anomalous = not (score <= threshold)``. A part
passes only on proof, so a score equal to the threshold passes and a NaN does not.

``conformal`` is split conformal prediction with the score as nonconformity measure (Vovk, Gammerman and
Shafer, *Algorithmic Learning in a Random World*, 2005; Papadopoulos et al., *Inductive Confidence Machines
for Regression*, 2002). Its promise rests on one assumption: the calibration parts and the parts of the line
are exchangeable, and the model has seen none of them. Ten pictures of one part are one part: see
``one_per_group``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kizu.errors import ThresholdError

__all__ = ["at_recall", "best_f1", "check_count", "conformal", "images_needed", "one_per_group"]


def images_needed(false_reject: float) -> int:
    """The number of good calibration images (physical parts) that a false-reject rate needs.

    The smallest integer n with n >= (1 - false_reject) / false_reject: 19 for 0.05, 99 for 0.01.

    Raises ThresholdError if ``false_reject`` is not strictly between 0 and 1.
    """
    alpha = _rate(false_reject, "false-reject rate")
    return math.ceil((1 - alpha) / alpha)


def check_count(n: int, false_reject: float) -> None:
    """Raise ThresholdError, saying what to do, if ``n`` good calibration images are too few for the rate."""
    needed = images_needed(false_reject)
    if n < needed:
        raise ThresholdError(
            f"a false-reject rate of {float(false_reject)!r} needs at least {needed} good calibration images, each of "
            f"another part, and there {'is' if n == 1 else 'are'} {n}. Add images, or accept a rate of "
            f"{_smallest_rate(n)} or more."
            if n
            else f"a false-reject rate of {float(false_reject)!r} needs at least {needed} good calibration images, "
            "each of another part, and there are none. Add images."
        )


def conformal(scores: ArrayLike, false_reject: float) -> float:
    """The threshold that promises at most ``false_reject`` false rejects, from good images alone.

    It is the ceil((n + 1) (1 - false_reject))-th smallest of the n calibration scores. If the calibration
    parts and a good part of the line are exchangeable, that part is rejected with a probability of at most
    ``false_reject``, for any n and any distribution; and of at least ``false_reject - 1 / (n + 1)`` if scores
    do not tie. The probability is over the draw of the calibration parts as well as of the new part.

    ``scores``: n finite scores of good parts, one a part, used neither for training nor for picking the
    epoch. ``false_reject``: the accepted rate of rejected good parts, strictly between 0 and 1. It is read as
    the decimal number that it prints as, so that 0.05 is one in twenty and 19 images are enough.

    Returns one of the calibration scores.

    Raises ThresholdError if the scores are empty or not finite, if the rate is out of range, or if there are
    fewer images than ``images_needed(false_reject)``.
    """
    alpha = _rate(false_reject, "false-reject rate")
    values = _scores(scores)
    n = values.size
    check_count(n, false_reject)
    # In floating point 20 * (1 - 0.05) may come out a hair above 19 and its ceiling one too high.
    rank = math.ceil((n + 1) * (1 - alpha))
    return float(np.partition(values, rank - 1)[rank - 1])


def best_f1(scores: ArrayLike, labels: ArrayLike) -> float:
    """The threshold with the highest F1 on labelled images, an anomalous image being a positive.

    ``scores``: n finite scores. ``labels``: n booleans (or 0 and 1), true where the image is anomalous.

    Of several thresholds with the same F1 the lowest is taken, which misses the fewest anomalies. Equal
    scores are never parted. F1 is constant between two neighbouring scores; the threshold lies midway between
    them (below the lowest score, if it is best to reject everything).

    Raises ThresholdError if one of the two classes is missing, or the scores or labels cannot be used.
    """
    values, anomalous = _labelled(scores, labels)
    if anomalous.all() or not anomalous.any():
        raise ThresholdError(
            f"the best F1 needs good and anomalous images, and there are {int((~anomalous).sum())} good "
            f"and {int(anomalous.sum())} anomalous ones. With good images alone, name a false-reject rate."
        )
    distinct, positives, negatives = _tally(values, anomalous)
    # Entry i: everything from distinct[i] upwards is rejected.
    true_positives = np.cumsum(positives[::-1])[::-1]
    false_positives = np.cumsum(negatives[::-1])[::-1]
    # F1 = 2 tp / (2 tp + fp + fn) = 2 tp / (rejected + anomalous). Equal ratios of integers round to equal
    # floats.
    f1 = 2 * true_positives / (true_positives + false_positives + int(positives.sum()))
    return _below(distinct, int(np.argmax(f1)))


def at_recall(scores: ArrayLike, labels: ArrayLike, recall: float) -> float:
    """The highest threshold that still finds at least ``recall`` of the anomalous images.

    ``scores``: n finite scores. ``labels``: n booleans (or 0 and 1), true where the image is anomalous.
    ``recall``: above 0 and at most 1; read as the decimal number that it prints as.

    Equal scores are never parted, so the recall reached may be higher than the one asked for. The threshold
    lies midway between the neighbouring scores (below the lowest, if everything has to be rejected). What it
    promises holds for these images; unlike ``conformal`` it promises nothing about others.

    Raises ThresholdError if no image is anomalous, ``recall`` is out of range, or the scores or labels cannot
    be used.
    """
    wanted = _rate(recall, "recall", one_allowed=True)
    values, anomalous = _labelled(scores, labels)
    count = int(anomalous.sum())
    if count == 0:
        raise ThresholdError("a threshold at a given recall needs anomalous images, and there are none.")
    rank = math.ceil(wanted * count)
    lowest_found = np.sort(values[anomalous])[count - rank]
    distinct = np.unique(values)
    return _below(distinct, int(np.searchsorted(distinct, lowest_found)))


def one_per_group(groups: Sequence[str], *, seed: int) -> NDArray[np.intp]:
    """Indices of one picture a physical part, drawn at random.

    Pictures of one part are not exchangeable with those of another: calibrating on all of them breaks the
    promise of ``conformal``. Calibrating on one picture drawn from each part keeps it, for parts of the line
    that are photographed under conditions drawn in the same way.

    ``groups``: n names, the physical part on each picture. ``seed``: the same seed gives the same choice.

    Returns ascending indices into ``groups``, as many as there are parts.

    Raises ThresholdError if ``groups`` is empty.
    """
    if len(groups) == 0:
        raise ThresholdError("there are no calibration images to choose from.")
    order = np.random.default_rng(seed).permutation(len(groups))
    names = np.asarray(groups, dtype=np.str_)
    _, first = np.unique(names[order], return_index=True)
    return np.sort(order[first]).astype(np.intp)


def _rate(value: float, name: str, *, one_allowed: bool = False) -> Fraction:
    """``value`` as the exact decimal that its shortest repr shows."""
    number = float(value)
    if not (0 < number < 1 or (one_allowed and number == 1)):
        accepted = "above 0 and at most 1" if one_allowed else "strictly between 0 and 1"
        raise ThresholdError(f"the {name} is {number!r}; it must be {accepted}.")
    return Fraction(repr(number))


def _smallest_rate(n: int) -> str:
    """1 / (n + 1), the smallest rate that n images allow, rounded up to what can be typed."""
    rate = Context(prec=4, rounding=ROUND_CEILING).divide(Decimal(1), Decimal(n + 1))
    return repr(float(rate))


def _scores(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise ThresholdError(f"scores have the shape {values.shape}; one number an image is expected.")
    if values.size == 0:
        raise ThresholdError("there are no scores; a threshold needs the scores of good images.")
    finite = np.isfinite(values)
    if not finite.all():
        index = int(np.argmin(finite))
        raise ThresholdError(
            f"{int((~finite).sum())} of {values.size} scores are not finite (the first is {values[index]} "
            f"at index {index}). Find out why the model gives such scores before setting a threshold."
        )
    return values


def _labelled(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = _scores(scores)
    marks = np.asarray(labels)
    if marks.shape != values.shape:
        raise ThresholdError(f"there are {values.size} scores and labels of the shape {marks.shape}.")
    if not np.isin(marks, (0, 1)).all():
        raise ThresholdError("labels must be booleans, or 0 (good) and 1 (anomalous).")
    return values, marks.astype(np.bool_)


def _tally(
    values: NDArray[np.float64], anomalous: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct scores, ascending, with the number of anomalous and of good images at each."""
    distinct, where = np.unique(values, return_inverse=True)
    positives = np.bincount(where[anomalous], minlength=distinct.size).astype(np.int64)
    negatives = np.bincount(where[~anomalous], minlength=distinct.size).astype(np.int64)
    return distinct, positives, negatives


def _below(distinct: NDArray[np.float64], index: int) -> float:
    """The threshold that rejects distinct[index] and above and passes all that is lower."""
    rejected = float(distinct[index])
    if index == 0:
        # Nothing below to be midway to: as far below as half the gap above.
        gap = float(distinct[1]) - rejected if distinct.size > 1 else 0.0
        threshold = rejected - gap / 2
        return threshold if -math.inf < threshold < rejected else math.nextafter(rejected, -math.inf)
    passed = float(distinct[index - 1])
    # Halved first: the difference of two finite scores may overflow.
    middle = passed / 2 + rejected / 2
    # Between two adjacent floats there is no middle, and it must not round up to the score that is to be
    # rejected.
    return middle if passed <= middle < rejected else passed
