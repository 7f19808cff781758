"""The rules that pick a training's epoch, and scores by torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kizu import scoring as rules
from kizu.data import Split
from kizu.data.prepared import PreparedImages, cut_paste
from kizu.errors import TrainingError
from kizu.method import Method
from kizu.metrics import auroc
from kizu.prepare import PrepareSpec

EpochRule = Literal["labelled", "good"]
RULES: tuple[EpochRule, ...] = ("labelled", "good")
_DEFECTS_A_PART = 4  # synthetic defects made of each good validation image


class Validation:
    """Images on which the rules pick the epoch.

    "labelled" is the paper's rule: the AUROC on labelled validation images (section IV-C). "good" needs good images
    alone: the AUROC between the good validation images and synthetic defects cut and pasted from them.

    Args:
        good: good images, at least one.
        anomalous: anomalous images; without any there is no rule "labelled".
        rng: draws the synthetic defects.

    Raises:
        TrainingError: there is no good image.
    """

    def __init__(self, good: PreparedImages, anomalous: PreparedImages, rng: np.random.Generator) -> None:
        if not len(good):
            raise TrainingError(
                "the split leaves no good image for validation, so that no epoch could be picked; add good images or "
                "choose another split rule"
            )
        pasted = np.stack([cut_paste(image, rng) for image in good.images for _ in range(_DEFECTS_A_PART)])
        sets = (good.images, anomalous.images, pasted)
        self._ends = np.cumsum([len(images) for images in sets])[:-1]
        together = np.concatenate(sets)
        self.digest = hashlib.sha256(together.data).hexdigest()
        self.inputs = torch.from_numpy(PreparedImages(together, good.spec).inputs())

    @classmethod
    def read(
        cls,
        split: Split,
        spec: PrepareSpec,
        *,
        threads: int,
        rng: np.random.Generator,
        progress: Callable[[], None] = lambda: None,
    ) -> Validation:
        """Read the validation part of a split; raises DataError and TrainingError."""
        good, anomalous = (
            PreparedImages.read(
                [sample for sample in split.validation if sample.good is kind], spec, threads=threads, progress=progress
            )
            for kind in (True, False)
        )
        return cls(good, anomalous, rng)

    def values(self, method: Method) -> dict[str, float]:
        """The value of each rule that the images allow, higher is better; TrainingError if a score is not finite."""
        scores = score_inputs(method, self.inputs)
        if not np.isfinite(scores).all():
            raise TrainingError("scores of validation images are not finite")
        good, anomalous, pasted = np.split(scores, self._ends)
        values = {}
        for name, bad in (("labelled", anomalous), ("good", pasted)):
            if len(bad):
                labels = np.concatenate([np.zeros(len(good), bool), np.ones(len(bad), bool)])
                values[name] = auroc(np.concatenate([good, bad]), labels)
        return values


@torch.no_grad()
def score_inputs(
    method: torch.nn.Module, inputs: Tensor, *, scoring: str | None = None, batch: int = 64
) -> NDArray[np.float32]:
    """Scores (N,) float32 of model inputs (N, C, H, W) by torch in evaluation mode.

    The arithmetic is float32 unless the caller is under autocast. ``scoring`` is a rule's name; None is the method's.
    """
    rule = scoring if scoring is not None else method.scoring
    training = method.training
    method.eval()
    scores = np.empty(len(inputs), np.float32)
    for start in range(0, len(inputs), batch):
        outputs = {name: value.float().numpy() for name, value in method(inputs[start : start + batch]).items()}
        rules.score(str(rule), outputs, scores[start : start + batch])
    method.train(training)
    return scores
