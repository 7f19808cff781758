"""The measures of an evaluation, what it refuses, and evaluating with a stand-in detector."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from kizu.errors import DataError, FrameError, ScoreError
from kizu.evaluate import Evaluation, Latency, evaluate
from kizu.metrics import wilson

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
