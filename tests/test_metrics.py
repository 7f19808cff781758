"""Measures against scikit-learn, SciPy and closed forms; intervals by their coverage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

from kizu.errors import DataError
from kizu.metrics import _weighted_areas, aupr, auroc, bootstrap, confusion, roc_curve, wilson

labelled = st.lists(
    st.tuples(st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6)), st.booleans()),
    min_size=2,
    max_size=60,
).filter(lambda rows: len({label for _, label in rows}) == 2)
Rows = list[tuple[float, bool]]


def columns(rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


@given(labelled)
def test_areas_and_curve_against_scikit_learn(rows: Rows) -> None:
    scores, labels = columns(rows)
    assert auroc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert aupr(scores, labels) == pytest.approx(metrics.average_precision_score(labels, scores), abs=1e-12)
    curve = roc_curve(scores, labels)
    false, true, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_reject, false, atol=1e-12)
    np.testing.assert_allclose(curve.recall, true, atol=1e-12)


@given(labelled)
def test_points_of_the_curve_are_those_of_their_thresholds(rows: Rows) -> None:
    scores, labels = columns(rows)
    curve = roc_curve(scores, labels)
    for false_reject, recall, threshold in zip(curve.false_reject, curve.recall, curve.thresholds, strict=True):
        counts = confusion(scores, labels, float(threshold))
        assert counts.false_reject_rate == pytest.approx(false_reject, abs=1e-12)
        assert counts.recall == pytest.approx(recall, abs=1e-12)


@given(labelled, st.integers(-3, 3))
def test_counts_against_scikit_learn(rows: Rows, threshold: int) -> None:
    scores, labels = columns(rows)
    counts = confusion(scores, labels, threshold)
    matrix = metrics.confusion_matrix(labels, scores > threshold, labels=[False, True])
    assert [[counts.true_negative, counts.false_positive], [counts.false_negative, counts.true_positive]] == (
        matrix.tolist()
    )
    assert counts.f1 == pytest.approx(metrics.f1_score(labels, scores > threshold, zero_division=0.0))
    assert counts.miss_rate == pytest.approx(1 - metrics.recall_score(labels, scores > threshold))


def test_closed_forms() -> None:
    assert auroc([0, 1, 2, 3], [0, 0, 1, 1]) == 1
    assert auroc([3, 2, 1, 0], [0, 0, 1, 1]) == 0
    assert auroc([5, 5, 5, 5, 5], [0, 1, 1, 0, 1]) == 0.5
    # All tied, the only point of the curve rejects everything: the share of anomalous images.
    assert aupr([5, 5, 5, 5, 5], [0, 1, 1, 0, 1]) == pytest.approx(3 / 5)
    # One anomalous image in last place of n: its precision is 1 / n.
    assert aupr(np.arange(10), np.arange(10) == 0) == pytest.approx(1 / 10)
    # Good uniform on 1..n, anomalous the same shifted by k: sum over pairs of [a + k > b] + half the ties.
    n, k = 40, 7
    scores, labels = np.concatenate((np.arange(n), np.arange(n) + k)), np.repeat([0, 1], n)
    pairs = sum((a + k > b) + 0.5 * (a + k == b) for a in range(n) for b in range(n))
    assert auroc(scores, labels) == pairs / n**2


def test_a_score_at_the_threshold_passes() -> None:
    counts = confusion([1.0, 1.0, 2.0], [0, 1, 1], 1.0)
    assert (counts.true_positive, counts.false_positive, counts.true_negative, counts.false_negative) == (
        1,
        0,
        1,
        1,
    )


@pytest.mark.parametrize("measure", [auroc, aupr, roc_curve, lambda s, y: bootstrap(s, y, ["g"] * len(s))])
def test_one_class_and_unusable_input(measure: Callable[..., object]) -> None:
    with pytest.raises(DataError, match="none of these 3 is anomalous"):
        measure([1.0, 2.0, 3.0], [0, 0, 0])
    with pytest.raises(DataError, match="none of these 3 is good"):
        measure([1.0, 2.0, 3.0], [1, 1, 1])
    with pytest.raises(DataError, match="no scores"):
        measure([], [])
    with pytest.raises(DataError, match="index 1 is nan"):
        measure([1.0, math.nan], [0, 1])
    with pytest.raises(DataError, match="shape"):
        measure([1.0, 2.0], [0, 1, 1])
    with pytest.raises(DataError, match="booleans"):
        measure([1.0, 2.0], [0, 3])


def test_confusion_of_one_class() -> None:
    counts = confusion([1.0, 2.0], [0, 0], 1.5)
    assert counts.false_reject_rate == 0.5
    assert counts.miss_rate is counts.recall is counts.f1 is None
    assert confusion([1.0, 2.0], [1, 1], 5.0).precision is None
    with pytest.raises(DataError, match="threshold is not a number"):
        confusion([1.0], [0], math.nan)


@given(st.integers(1, 500), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_wilson_against_scipy(n: int, data: st.DataObject, confidence: float) -> None:
    count = data.draw(st.integers(0, n))
    expected = stats.binomtest(count, n).proportion_ci(confidence, method="wilson")
    interval = wilson(count, n, confidence=confidence)
    assert interval.low == pytest.approx(expected.low, abs=1e-12)
    assert interval.high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= interval.low <= count / n <= interval.high <= 1


@pytest.mark.parametrize(("count", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_of_what_is_no_rate(count: int, n: int) -> None:
    with pytest.raises(DataError, match="not a rate"):
        wilson(count, n)


@given(labelled, st.integers(0, 2**32 - 1))
def test_weighted_areas_against_scikit_learn(rows: Rows, seed: int) -> None:
    scores, labels = columns(sorted(rows))
    weights = np.random.default_rng(seed).integers(0, 4, size=(5, scores.size)).astype(float)
    weights[:, np.argmax(labels)] += 1
    weights[:, np.argmin(labels)] += 1
    starts = np.flatnonzero(np.concatenate(([True], scores[1:] != scores[:-1])))
    areas = _weighted_areas(weights, labels, starts)
    for row, weight in enumerate(weights):
        kept = weight > 0
        expected = metrics.roc_auc_score(labels[kept], scores[kept], sample_weight=weight[kept])
        assert areas[0, row] == pytest.approx(expected, abs=1e-9)
        expected = metrics.average_precision_score(labels[kept], scores[kept], sample_weight=weight[kept])
        assert areas[1, row] == pytest.approx(expected, abs=1e-9)


def test_bootstrap_resamples_as_a_loop_would() -> None:
    """Spread and ends agree with a plain loop over groups, to the noise of either."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 5, 60)
    groups = np.repeat([f"part {index}" for index in range(60)], sizes)
    part = np.repeat(np.arange(60), sizes)
    labels = part >= 35
    scores = np.repeat(rng.normal(size=60), sizes) + 0.5 * rng.normal(size=part.size) + 1.2 * labels
    loop = []
    for _ in range(1500):
        drawn = np.concatenate((rng.integers(0, 35, 35), rng.integers(35, 60, 25)))
        rows = np.concatenate([np.flatnonzero(part == each) for each in drawn])
        loop.append(
            (
                metrics.roc_auc_score(labels[rows], scores[rows]),
                metrics.average_precision_score(labels[rows], scores[rows]),
            )
        )
    expected = np.percentile(loop, (2.5, 97.5), axis=0)
    intervals = bootstrap(scores, labels, groups.tolist(), resamples=4000)
    spread = np.std(loop, axis=0)
    for area, interval in enumerate(intervals):
        assert interval.low == pytest.approx(expected[0, area], abs=0.2 * spread[area])
        assert interval.high == pytest.approx(expected[1, area], abs=0.2 * spread[area])
    # Taking the pictures for parts would make the interval too narrow.
    naive = bootstrap(scores, labels, [str(index) for index in range(part.size)], resamples=4000)
    assert naive.auroc.high - naive.auroc.low < 0.85 * (intervals.auroc.high - intervals.auroc.low)


def test_bootstrap_covers_the_true_area() -> None:
    """Two normals a distance d apart have the AUROC Phi(d / sqrt 2)."""
    rng = np.random.default_rng(1)
    truth = stats.norm.cdf(1.0 / math.sqrt(2))
    labels = np.repeat([0, 1], 60)
    groups = [str(index) for index in range(120)]
    hits = 0
    for trial in range(300):
        interval = bootstrap(rng.normal(size=120) + labels, labels, groups, resamples=400, seed=trial).auroc
        hits += interval.low <= truth <= interval.high
    assert 0.90 <= hits / 300 <= 0.985


def test_bootstrap_keeps_both_classes_whatever_the_groups() -> None:
    # One anomalous part, one part with both, and a good one: every resample still has both classes.
    intervals = bootstrap([1.0, 2.0, 3.0, 0.0], [0, 1, 1, 0], ["a", "a", "b", "c"], resamples=500)
    assert intervals.auroc == (1, 1)
    mixed = bootstrap([1.0, 2.0, 2.0, 1.0], [0, 1, 0, 1], ["a", "a", "b", "b"], resamples=2000)
    assert mixed.auroc == (0, 1)
    assert all(math.isfinite(end) for interval in mixed for end in interval)


def test_bootstrap_is_seeded_independent_of_its_blocks_and_fast() -> None:
    rng = np.random.default_rng(2)
    labels = rng.random(4000) < 0.3
    scores = rng.normal(size=4000) + labels
    groups = [str(index // 2) for index in range(4000)]
    start = time.perf_counter()
    first = bootstrap(scores, labels, groups)
    assert time.perf_counter() - start < 10
    assert first == bootstrap(scores, labels, groups)
    assert first != bootstrap(scores, labels, groups, seed=1)
    assert first.auroc.low < auroc(scores, labels) < first.auroc.high
    with pytest.raises(DataError, match="4000 scores and 1 groups"):
        bootstrap(scores, labels, ["a"])
    with pytest.raises(DataError, match="resamples"):
        bootstrap(scores, labels, groups, resamples=0)
    with pytest.raises(DataError, match="confidence"):
        bootstrap(scores, labels, groups, confidence=1)
