"""Thresholds of a bundle: from its stored calibration scores, from labelled images, or by hand.

Each precision has scores of its own and so a threshold of its own. The graphs are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from kizu import threshold
from kizu.bundle import Threshold
from kizu.detector import load
from kizu.engine import choose
from kizu.errors import EngineError, ThresholdError
from kizu.evaluate import evaluate

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from kizu.data import Sample


def conformal(scores: Mapping[str, Sequence[float]], false_reject: float) -> Threshold:
    """From good images alone: the threshold of each precision whose calibration ``scores`` are given.

    Raises ThresholdError if there are too few scores for the rate, and says how many are needed.
    """
    values = {name: threshold.conformal(np.array(s), false_reject) for name, s in scores.items()}
    return Threshold(values, "conformal", false_reject, len(scores["fp32"]))


def manual(precisions: Sequence[str], value: float) -> Threshold:
    """The same threshold for every precision; raises ThresholdError if it is not finite."""
    if not np.isfinite(value):
        raise ThresholdError(f"the threshold is {value}, but must be a finite number")
    return Threshold({name: float(value) for name in precisions}, "manual", None, 0)


@dataclass(frozen=True)
class Labelled:
    """Thresholds from labelled images, and the precisions that could not be scored here and so have none."""

    threshold: Threshold
    left_out: Mapping[str, str]


def labelled(
    path: str | os.PathLike[str],
    samples: Sequence[Sample],
    *,
    rule: Literal["best-f1", "recall"],
    recall: float | None = None,
    engine: str = "auto",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Labelled:
    """From labelled images, scored by the engine of this machine in each precision it has.

    Args:
        path: the bundle.
        samples: good and anomalous images.
        rule: "best-f1", or "recall" with the share of anomalous images that must be found.
        recall: for the rule "recall".
        engine: as for ``kizu.load``.
        threads: as for ``kizu.load``.
        progress: called with (done, total) images, anew for each precision.

    Raises:
        ThresholdError: images of one class only.
        EngineError: no precision can be scored here.
    """
    chosen = choose(engine)
    values: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for precision in chosen.variants:
        try:
            with load(path, engine=chosen.name, precision=precision, threads=threads, threshold=0.0) as detector:
                found = evaluate(detector, samples, progress=progress)
        except EngineError as error:
            left_out[precision] = str(error)
            continue
        values[precision] = _from_scores(found.scores, found.labels, rule, recall)
    if not values:
        raise EngineError(f"no precision could be scored: {'; '.join(left_out.values())}")
    return Labelled(Threshold(values, rule, recall, len(samples)), left_out)


def _from_scores(scores: NDArray[np.float64], labels: NDArray[np.bool_], rule: str, recall: float | None) -> float:
    if rule == "recall":
        if recall is None:
            raise ThresholdError("the rule recall needs the share of anomalous images that must be found")
        return threshold.at_recall(scores, labels, recall)
    return threshold.best_f1(scores, labels)
