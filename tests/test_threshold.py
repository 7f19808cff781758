"""Thresholds: the conformal promise by simulation, brute force on small sets, and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import f1_score

from kizu.errors import KizuError, ThresholdError
from kizu.threshold import at_recall, best_f1, conformal, images_needed, one_per_group

DRAWS = 1000
Sampler = Callable[[np.random.Generator, int], NDArray[np.float64]]
Survival = Callable[[float], float]

CONTINUOUS: dict[str, tuple[Sampler, Survival]] = {
    "normal": (lambda rng, n: rng.normal(size=n), lambda t: float(stats.norm.sf(t))),
    "cauchy": (lambda rng, n: rng.standard_cauchy(n), lambda t: float(stats.cauchy.sf(t))),
    "lognormal": (lambda rng, n: rng.lognormal(0, 3, n), lambda t: float(stats.lognorm.sf(t, 3))),
    "pareto": (lambda rng, n: rng.pareto(0.5, n), lambda t: float(stats.lomax.sf(t, 0.5))),
}
TIED: dict[str, tuple[Sampler, Survival]] = {
    "poisson": (lambda rng, n: rng.poisson(1.5, n).astype(float), lambda t: float(stats.poisson.sf(t, 1.5))),
    "coin": (lambda rng, n: rng.integers(0, 2, n).astype(float), lambda t: float(stats.bernoulli.sf(t, 0.5))),
    "geometric": (lambda rng, n: rng.geometric(0.3, n).astype(float), lambda t: float(stats.geom.sf(t, 0.3))),
}
SIZES = [(19, 0.05), (20, 0.05), (38, 0.05), (99, 0.01), (150, 0.01), (50, 0.1), (7, 0.3), (200, 0.02)]


def mean_false_reject(sampler: Sampler, survival: Survival, n: int, alpha: float) -> tuple[float, float]:
    rng = np.random.default_rng([n, round(1000 * alpha)])
    rates = np.array([survival(conformal(sampler(rng, n), alpha)) for _ in range(DRAWS)])
    return float(rates.mean()), float(rates.std(ddof=1) / math.sqrt(DRAWS))


@pytest.mark.parametrize(("n", "alpha"), SIZES)
@pytest.mark.parametrize("name", CONTINUOUS)
def test_conformal_keeps_its_promise(name: str, n: int, alpha: float) -> None:
    mean, error = mean_false_reject(*CONTINUOUS[name], n, alpha)
    assert alpha - 1 / (n + 1) - 3 * error <= mean <= alpha + 3 * error


@pytest.mark.parametrize(("n", "alpha"), SIZES)
@pytest.mark.parametrize("name", TIED)
def test_conformal_keeps_its_promise_with_ties(name: str, n: int, alpha: float) -> None:
    mean, error = mean_false_reject(*TIED[name], n, alpha)
    assert mean <= alpha + 3 * error


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60), st.integers(1, 99))
def test_conformal_is_the_order_statistic(scores: list[int], percent: int) -> None:
    # In integers, with another formula than the code's: the smallest score that leaves room for the new part.
    n, alpha = len(scores), percent / 100
    fits = [k for k in range(1, n + 1) if 100 * k >= (n + 1) * (100 - percent)]
    if fits:
        assert conformal(scores, alpha) == sorted(scores)[fits[0] - 1]
        assert n >= images_needed(alpha)
    else:
        assert n < images_needed(alpha)
        with pytest.raises(ThresholdError, match=f"at least {images_needed(alpha)} "):
            conformal(scores, alpha)


@pytest.mark.parametrize(
    ("n", "alpha"),
    [(19, 0.05), (99, 0.01), (9, 0.1), (999, 0.001), (49, 0.02), (4, 0.2), (33, 0.03), (1, 0.5)],
)
def test_the_fewest_images_that_are_enough(n: int, alpha: float) -> None:
    assert images_needed(alpha) == n
    scores = np.arange(n, dtype=float)
    assert conformal(scores, alpha) == n - 1
    with pytest.raises(ThresholdError) as caught:
        conformal(scores[: n - 1], alpha) if n > 1 else conformal(scores, 0.4)
    assert str(images_needed(alpha if n > 1 else 0.4)) in str(caught.value)


@pytest.mark.parametrize("n", [1, 2, 6, 10, 17, 30, 57, 98, 777])
def test_the_rate_an_error_offers_is_accepted(n: int) -> None:
    with pytest.raises(ThresholdError) as caught:
        conformal(np.arange(n, dtype=float), 0.001)
    offered = re.search(r"a rate of (\S+) or more", str(caught.value))
    assert offered is not None
    rate = float(offered[1])
    assert rate == pytest.approx(1 / (n + 1), rel=1e-3)
    assert conformal(np.arange(n, dtype=float), rate) == n - 1


def test_conformal_at_a_round_rank_is_not_one_too_high() -> None:
    # 0.07: 100 * (1 - 0.07) is 92.99999999999999 or 93.00000000000001, depending on how it is written.
    assert conformal(np.arange(1, 100), 0.07) == 93
    assert conformal(np.arange(1, 100), 0.29) == 71
    assert conformal(np.arange(1, 100, dtype=np.float32), float(np.float64(0.58))) == 42


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, math.nan, math.inf])
def test_rates_out_of_range(alpha: float) -> None:
    for call in (lambda: conformal([1.0] * 100, alpha), lambda: images_needed(alpha)):
        with pytest.raises(ThresholdError, match="strictly between 0 and 1"):
            call()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite(bad: float) -> None:
    scores = [1.0, 2.0, bad, 3.0]
    calls: list[Callable[[], float]] = [
        lambda: conformal(scores, 0.5),
        lambda: best_f1(scores, [0, 0, 1, 1]),
        lambda: at_recall(scores, [0, 0, 1, 1], 0.5),
    ]
    for call in calls:
        with pytest.raises(ThresholdError, match=r"1 of 4 scores are not finite.*index 2"):
            call()


def test_what_cannot_be_used() -> None:
    with pytest.raises(ThresholdError, match="no scores"):
        conformal([], 0.5)
    with pytest.raises(ThresholdError, match=r"shape \(2, 2\)"):
        conformal(np.ones((2, 2)), 0.5)
    with pytest.raises(ThresholdError, match="labels of the shape"):
        best_f1([1.0, 2.0], [0, 1, 1])
    with pytest.raises(ThresholdError, match="booleans"):
        best_f1([1.0, 2.0], [0, 2])
    with pytest.raises(ThresholdError, match="2 good and 0 anomalous"):
        best_f1([1.0, 2.0], [0, 0])
    with pytest.raises(ThresholdError, match="0 good and 2 anomalous"):
        best_f1([1.0, 2.0], [1, 1])
    with pytest.raises(ThresholdError, match="there are none"):
        at_recall([1.0, 2.0], [0, 0], 0.9)
    for recall in (0, -1, 1.01, math.nan):
        with pytest.raises(ThresholdError, match="above 0 and at most 1"):
            at_recall([1.0, 2.0], [0, 1], recall)
    assert issubclass(ThresholdError, KizuError)
    assert issubclass(ThresholdError, ValueError)


labelled = st.lists(
    st.tuples(st.one_of(st.integers(-3, 3).map(float), st.floats(-1e308, 1e308)), st.booleans()),
    min_size=2,
    max_size=25,
).filter(lambda rows: len({label for _, label in rows}) == 2)


def splits(scores: NDArray[np.float64]) -> list[NDArray[np.bool_]]:
    """Every way in which a threshold can reject: the distinct outcomes, fewest rejects first."""
    return [scores > value for value in sorted(set(scores.tolist()), reverse=True)] + [scores > -math.inf]


@given(labelled)
def test_best_f1_against_brute_force(rows: list[tuple[float, bool]]) -> None:
    scores, labels = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    threshold = best_f1(scores, labels)
    rejected = ~(scores <= threshold)
    values = [float(f1_score(labels, each, zero_division=0.0)) for each in splits(scores)]
    assert f1_score(labels, rejected) == pytest.approx(max(values), abs=1e-12)
    # Of the equally good ones, that which rejects most.
    equal = [each for each, value in zip(splits(scores), values, strict=True) if value >= max(values) - 1e-12]
    best = max(int(each.sum()) for each in equal)
    assert rejected.sum() == best
    assert math.isfinite(threshold)


@given(labelled, st.integers(1, 100))
def test_at_recall_against_brute_force(rows: list[tuple[float, bool]], percent: int) -> None:
    scores, labels = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    rejected = ~(scores <= at_recall(scores, labels, percent / 100))
    enough = [each for each in splits(scores) if 100 * int((each & labels).sum()) >= percent * int(labels.sum())]
    assert np.array_equal(rejected, enough[0])


def test_thresholds_lie_midway() -> None:
    scores, labels = [0.0, 1.0, 4.0, 5.0], [0, 0, 1, 1]
    assert best_f1(scores, labels) == 2.5
    assert at_recall(scores, labels, 1.0) == 2.5
    assert at_recall(scores, labels, 0.5) == 4.5
    # A good image between two anomalous ones bounds the interval as well.
    assert at_recall([0.0, 4.0, 3.0], [1, 1, 0], 0.5) == 3.5


def test_thresholds_between_adjacent_floats_and_below_the_lowest() -> None:
    above = math.nextafter(1.0, 2.0)
    assert best_f1([1.0, above], [0, 1]) == 1.0
    # The middle of these two rounds to the upper one, which would then pass.
    assert best_f1([above, math.nextafter(above, 2.0)], [0, 1]) == above
    assert best_f1([1.5e308, 1.7e308], [0, 1]) == pytest.approx(1.6e308)
    assert best_f1([2.0, 6.0], [1, 0]) == 0.0
    assert 1.0 > at_recall([1.0, 1.0], [0, 1], 1.0) > 1 - 1e-12
    assert at_recall([0.0, 1.0, 2.0], [0, 1, 1], 0.29) == 1.5


def test_recall_is_read_as_a_decimal() -> None:
    # 0.28 * 100 is 28.000000000000004: 29 images would be asked for instead of 28.
    scores, labels = np.arange(101, dtype=float), np.array([0] + [1] * 100)
    assert int((scores > at_recall(scores, labels, 0.28)).sum()) == 28


@given(st.lists(st.sampled_from(["a", "b", "c", "dd", "é"]), min_size=1, max_size=40), st.integers(0, 5))
def test_one_per_group_takes_each_part_once(groups: list[str], seed: int) -> None:
    chosen = one_per_group(groups, seed=seed)
    assert sorted(groups[index] for index in chosen) == sorted(set(groups))
    assert np.all(np.diff(chosen) > 0)
    assert np.array_equal(chosen, one_per_group(groups, seed=seed))


def test_one_per_group_draws_evenly() -> None:
    groups = ["a", "b", "a", "a", "b"]
    drawn = np.concatenate([one_per_group(groups, seed=seed) for seed in range(3000)])
    counts = np.bincount(drawn, minlength=5)
    assert stats.chisquare(counts[[0, 2, 3]]).pvalue > 1e-4
    assert stats.chisquare(counts[[1, 4]]).pvalue > 1e-4
    with pytest.raises(ThresholdError, match="no calibration images"):
        one_per_group([], seed=0)


def test_the_promise_needs_one_picture_a_part() -> None:
    """With pictures of few parts repeated, calibrating on all rejects too much; on one a part it does not."""
    rng = np.random.default_rng(5)
    alpha, parts, pictures = 0.06, 19, 10
    groups = [f"part {part}" for part in range(parts) for _ in range(pictures)]
    everything, single = [], []
    for draw in range(DRAWS):
        scores = np.repeat(rng.normal(size=parts), pictures) + 0.1 * rng.normal(size=parts * pictures)
        survival = stats.norm(scale=math.hypot(1, 0.1)).sf
        everything.append(survival(conformal(scores, alpha)))
        single.append(survival(conformal(scores[one_per_group(groups, seed=draw)], alpha)))
    error = float(np.std(single, ddof=1)) / math.sqrt(DRAWS)
    assert np.mean(single) <= alpha + 3 * error
    assert np.mean(everything) > alpha + 3 * error
