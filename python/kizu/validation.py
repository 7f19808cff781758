"""The rules that pick a training's epoch, and scores by torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from kizu import scoring as rules
from kizu.data import Split
from kizu.data.prepared import PreparedImages, cut_paste
from kizu.errors import TrainingError
from kizu.method import Method
from kizu.metrics import auroc
from kizu.prepare import PrepareSpec

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
        self.images = PreparedImages(np.concatenate(sets), good.spec)
        self.digest = hashlib.sha256(self.images.images.data).hexdigest()

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
        scores = score_images(method, self.images, scoring=method.scoring, weight=method.weight)
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
def score_images(
    module: torch.nn.Module, images: PreparedImages, *, scoring: str, weight: float = 0.0, batch: int = 64
) -> NDArray[np.float32]:
    """Scores (N,) float32 of images by torch in evaluation mode, by the rule called ``scoring`` and its lambda.

    The arithmetic is float32 unless the caller is under autocast. Inputs are made a batch at a time.
    """
    training = module.training
    module.eval()
    scores = np.empty(len(images), np.float32)
    scorer = rules.Scorer(scoring, weight=weight)
    for start in range(0, len(images), batch):
        x = images.inputs(start, start + batch)
        outputs = module(torch.from_numpy(x))
        tensors = {name: np.ascontiguousarray(value.float().numpy()) for name, value in outputs.items()}
        scorer({**tensors, "x": x}, scores[start : start + batch])
    module.train(training)
    return scores
