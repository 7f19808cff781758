"""What costs nothing after training: the scoring rule and its weight lambda, chosen on validation images.

A score is (1 - lambda) residual + lambda other, so that its two parts give it for any lambda. A run of a method that
scores by a residual keeps them, of validation and test images, at the epoch that the labelled rule picked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kizu import scoring
from kizu.data.prepared import PreparedImages
from kizu.method import Method, get
from kizu.metrics import auroc
from kizu.prepare import PrepareSpec
from kizu.settings import TrainingSettings

LAMBDAS = (0.0, 0.02, 0.05, *(i / 10 for i in range(1, 11)))
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Choice:
    """What was chosen on validation images.

    Attributes:
        scoring: a rule of ``kizu.scoring``.
        weight: its lambda, one of ``LAMBDAS``; 0 for a rule without.
        validation, test: AUROC on the images it was chosen on, and on the test images.
    """

    scoring: str
    weight: float
    validation: float
    test: float


def ends(rule: str) -> tuple[float, ...]:
    """The lambdas at which a rule gives the parts of its score: 0 and 1, 0 of the residual alone; none without it."""
    if not scoring.rule(rule).residual:
        return ()
    return (0.0, 1.0) if len(scoring.rule(rule).outputs) > 1 else (0.0,)


def methods(settings: TrainingSettings, spec: PrepareSpec) -> list[Method]:
    """The run's method for each value of its option ``score``, on which training does not depend; its own first."""
    config_type = get(settings.method).config_type
    choices: Sequence[Any] = ()
    if "score" in [item.name for item in fields(config_type)]:
        choices = get_args(get_type_hints(config_type)["score"])
    own = settings.create(spec)
    others = [
        replace(settings, config={**settings.config, "score": choice}).create(spec)
        for choice in choices
        if choice != own.config.score
    ]
    return [own, *others]


@torch.no_grad()
def score_by_weight(
    module: nn.Module, images: PreparedImages, *, scoring_rule: str, weights: Sequence[float], batch: int = 64
) -> Scores:
    """Scores (len(weights), N) of images for several lambdas, as ``kizu.validation.score_images`` gives for one.

    The network computes each image once, which for a method that searches for latents is what takes the time.
    """
    module.eval()
    scorers = [scoring.Scorer(scoring_rule, weight=weight) for weight in weights]
    scores = np.empty((len(weights), len(images)), np.float32)
    for start in range(0, len(images), batch):
        x = images.inputs(start, start + batch)
        outputs = module(torch.from_numpy(x))
        tensors = {name: np.ascontiguousarray(value.float().numpy()) for name, value in outputs.items()}
        for scorer, row in zip(scorers, scores, strict=True):
            scorer({**tensors, "x": x}, row[start : start + batch])
    return scores


def choose(arrays: Mapping[str, NDArray[Any]]) -> Choice | None:
    """Choose by what a run keeps: the best AUROC on the validation images, the first of equals.

    Args:
        arrays: "labels" and "validation_labels", true where anomalous, and for each rule of which there are parts
            "validation_RULE" and "test_RULE": (2, N) scores at lambda 0 and 1, or (1, N) of the residual alone.

    Returns:
        None if there are no parts.
    """
    best: Choice | None = None
    for rule in [name.removeprefix("test_") for name in arrays if name.startswith("test_")]:
        validation, test = arrays[f"validation_{rule}"], arrays[f"test_{rule}"]
        for weight in LAMBDAS if len(test) == 2 else (0.0,):
            value = auroc(at(validation, weight), arrays["validation_labels"])
            if best is None or value > best.validation:
                best = Choice(rule, weight, value, auroc(at(test, weight), arrays["labels"]))
    return best


def at(parts: NDArray[Any], weight: float) -> NDArray[np.float64]:
    """The scores (N,) at a lambda."""
    residual, other = parts[0].astype(np.float64), parts[-1].astype(np.float64)
    scores: NDArray[np.float64] = (1 - weight) * residual + weight * other
    return scores
