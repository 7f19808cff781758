"""Measures against scikit-learn, SciPy and closed forms; intervals by their coverage; a stand-in detector."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

from kizu.errors import DataError, FrameError, ScoreError
from kizu.evaluate import (
    Evaluation,
    Latency,
    _weighted_areas,
    aupr,
    auroc,
    bootstrap,
    confusion,
    evaluate,
    roc_curve,
    wilson,
)

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


# --- Evaluation -----------------------------------------------------------------------------------


@pytest.fixture
def evaluation() -> Evaluation:
    return Evaluation(
        names=("a", "b", "c", "d", "e", "f"),
        kinds=("good", "good", "good", "scratch", "scratch", "dent"),
        groups=("1", "1", "2", "3", "4", "5"),
        labels=np.array([0, 0, 0, 1, 1, 1], dtype=np.bool_),
        scores=np.array([0.1, 0.2, 0.9, 0.5, 2.0, 0.3]),
        threshold=0.5,
        latency=Latency(*(np.arange(1, 7, dtype=np.float64) * (1e-3 * stage) for stage in (1, 5, 0.1, 7))),
    )


def test_summary(evaluation: Evaluation) -> None:
    assert (evaluation.n_good, evaluation.n_anomalous, evaluation.n_parts) == (3, 3, 5)
    assert evaluation.auroc == pytest.approx(7 / 9)
    assert evaluation.f1 == pytest.approx(0.4)
    assert evaluation.false_reject_rate == pytest.approx(1 / 3)
    assert evaluation.miss_rate == pytest.approx(2 / 3)
    assert evaluation.false_reject_interval == wilson(1, 3)
    assert evaluation.miss_interval == wilson(2, 3)
    assert evaluation.rejected is not None
    assert evaluation.rejected.tolist() == [False, False, True, False, True, False]
    assert [(each.kind, each.count, each.rejected) for each in evaluation.by_kind] == [
        ("good", 3, 1),
        ("dent", 1, 0),
        ("scratch", 2, 1),
    ]
    assert evaluation.by_kind[2].median == 1.25
    assert evaluation.ranked(good=True, highest=True, count=2) == (2, 1)
    assert evaluation.ranked(good=False, highest=False, count=9) == (5, 3, 4)
    assert evaluation.latency is not None
    assert evaluation.latency.percentiles("engine").p50 == pytest.approx(17.5e-3)


def test_as_dict_is_json(evaluation: Evaluation) -> None:
    for each in (evaluation, replace(evaluation, threshold=None, latency=None)):
        loaded = json.loads(json.dumps(each.as_dict(), allow_nan=False))
        assert loaded["auroc"] == each.auroc
        assert loaded["images"] == len(loaded["scores"]) == 6
        assert loaded["miss_rate"] == each.miss_rate
    assert evaluation.as_dict()["latency_seconds"]["total"]["p99"] == pytest.approx(41.65e-3)
    assert evaluation.as_dict()["scores"][2] == {
        "name": "c",
        "kind": "good",
        "group": "2",
        "good": True,
        "score": 0.9,
        "rejected": True,
    }


@pytest.mark.parametrize("anomalous", [False, True])
def test_one_class_has_no_areas(anomalous: bool) -> None:
    one = Evaluation(
        names=("a", "b"),
        kinds=("k", "k"),
        groups=("a", "b"),
        labels=np.array([anomalous] * 2),
        scores=np.array([1.0, 2.0]),
        threshold=1.5,
    )
    assert [one.auroc, one.aupr, one.roc, one.area_intervals] == [None] * 4
    rates = (one.false_reject_rate, one.miss_rate)
    assert rates == ((None, 0.5) if anomalous else (0.5, None))
    json.dumps(one.as_dict(), allow_nan=False)


def test_fields_that_do_not_fit(evaluation: Evaluation) -> None:
    with pytest.raises(DataError, match="6 scores and 1 names"):
        replace(evaluation, names=("a",))
    with pytest.raises(DataError, match="must be finite, or None"):
        replace(evaluation, threshold=math.nan)
    with pytest.raises(DataError, match="index 0 is inf"):
        replace(evaluation, scores=np.full(6, np.inf))
    with pytest.raises(DataError, match="one number a frame"):
        Latency(np.ones(2), np.ones(2), np.ones(2), np.ones(3))
    with pytest.raises(DataError, match="no frame was timed"):
        Latency(*(np.empty(0) for _ in range(4))).percentiles("total")
    with pytest.raises(ValueError, match="read-only"):
        evaluation.scores[0] = 5


# --- evaluate -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    prepare: float = 1e-5
    engine: float = 2e-5
    score: float = 3e-5


@dataclass(frozen=True)
class Result:
    score: float
    threshold: float | None = 10.0
    timing: Timing = Timing()


@dataclass
class MeanDetector:
    """Scores a frame by its mean, as a detector would."""

    seen: list[float] = field(default_factory=list)

    def score(self, frame: NDArray[np.uint8], /) -> Result:
        if frame.ndim != 2:
            raise FrameError("the model expects one channel.")
        if frame.max() == 255:
            raise ScoreError("the score is nan.")
        time.sleep(0.002)
        self.seen.append(float(frame.mean()))
        return Result(float(frame.mean()) if frame.max() < 254 else math.nan)


@dataclass(frozen=True)
class Frame:
    name: str
    value: int
    good: bool = True
    kind: str = "good"
    group: str = "1"
    shape: tuple[int, ...] = (4, 4)
    error: Exception | None = None

    def read(self) -> NDArray[np.uint8]:
        if self.error is not None:
            raise self.error
        return np.full(self.shape, self.value, dtype=np.uint8)


def test_evaluate() -> None:
    samples = [Frame("a", 3), Frame("b", 12, good=False, kind="dent", group="2"), Frame("c", 5, group="3")]
    detector, calls = MeanDetector(), list[tuple[int, int]]()
    result = evaluate(detector, samples, progress=lambda done, total: calls.append((done, total)))
    assert result.names == ("a", "b", "c")
    assert result.kinds == ("good", "dent", "good")
    assert result.groups == ("1", "2", "3")
    assert result.labels.tolist() == [False, True, False]
    assert result.scores.tolist() == [3, 12, 5]
    assert result.threshold == 10
    assert calls == [(1, 3), (2, 3), (3, 3)]
    # The first frame once more, to warm up; its time is not among those kept.
    assert detector.seen == [3, 3, 12, 5]
    assert result.latency is not None
    assert result.latency.engine.tolist() == [2e-5] * 3
    assert result.latency.total.shape == (3,)
    assert (result.latency.total >= 0.002).all()


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (Frame("line/x.png", 0, error=DataError("line/x.png is truncated")), DataError, "x.png is truncated"),
        (Frame("line/x.png", 0, error=OSError("no such file")), DataError, "line/x.png: no such file"),
        (Frame("line/x.png", 0, shape=(4, 4, 3)), DataError, "line/x.png: the model expects one channel"),
        (Frame("line/x.png", 255), ScoreError, "line/x.png: the score is nan"),
        (Frame("line/x.png", 254), ScoreError, "line/x.png: the score is nan; it must be finite"),
        (Frame("a", 1), DataError, "'a' stands for more than one"),
    ],
)
def test_evaluate_names_the_sample_at_fault(bad: Frame, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        evaluate(MeanDetector(), [Frame("a", 3), bad])


def test_evaluate_nothing() -> None:
    with pytest.raises(DataError, match="no images"):
        evaluate(MeanDetector(), [])
