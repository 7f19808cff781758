"""The networks of finished runs of ALGAN-image: what D scores, what G makes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kizu.data import Dataset, Split
from kizu.data.prepared import PreparedImages
from kizu.methods.algan_image import AlganImage
from kizu.run_folder import load_file
from kizu.settings import CHECKPOINT, epoch_file
from kizu.validation import score_images
from reproduction.runs import Run

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Networks:
    """D and G of a run, at a checkpoint.

    Attributes:
        method: both, as they are trained.
        scorer: D as it scores.
        dataset, split: the run's images.
        run: the run.
    """

    method: AlganImage
    scorer: nn.Module
    dataset: Dataset
    split: Split
    run: Run

    @classmethod
    def load(cls, run: Run, output: Path, *, epoch: int | None = None) -> Networks:
        """The networks at the end of training, or at a stop; raises TrainingError."""
        settings, folder = run.settings, run.folder(output)
        dataset = settings.dataset()
        split = settings.divide(dataset)
        method: Any = settings.create(settings.prepare(dataset))
        batch = min(settings.batch_size, len(split.train))
        method.start(batches=len(split.train) // batch, batch_size=batch)
        checkpoint = load_file(folder / CHECKPOINT if epoch is None else run.checkpoint(output, epoch))
        method.load_state_dict(checkpoint["method"])
        scorer = method.export_module()
        if epoch is None:
            scorer.load_state_dict(load_file(epoch_file(folder, "last"))["module"])
        return cls(method, scorer, dataset, split, run)

    def images(self, part: str, *, good: bool | None = None) -> PreparedImages:
        """Images of a part of the split, all or of one kind."""
        samples = [sample for sample in getattr(self.split, part) if good is None or sample.good is good]
        return PreparedImages.read(samples, self.run.settings.prepare(self.dataset))

    def score(self, images: PreparedImages) -> Scores:
        """Scores (N,) of images."""
        return score_images(self.scorer, images, scoring=self.method.scoring, weight=self.method.weight)

    @torch.no_grad()
    def fakes(self, count: int, *, sigma: float | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        """``count`` fake-normal and as many fake-anomalous images, as D sees them in training.

        They are made batch by batch as in training: of either kind as many as there, normal latents first.
        """
        method, generator = self.method, torch.Generator().manual_seed(seed)
        before = copy.deepcopy(method.generator.state_dict())  # of batch normalisation, which goes on
        method.train()
        size = method.n_normal + method.n_anomalous
        sets: tuple[list[Tensor], list[Tensor]] = ([], [])
        for _ in range(-(-count // max(1, min(method.n_normal, method.n_anomalous)))):
            z = torch.randn(size, method.config.latent_dim, generator=generator)
            z[method.n_normal :] *= method.config.sigma if sigma is None else sigma
            images = method.fakes(z)
            sets[0].append(images[: method.n_normal])
            sets[1].append(images[method.n_normal :])
        method.generator.load_state_dict(before)
        normal, anomalous = (torch.cat(images)[:count] for images in sets)
        return normal, anomalous

    @torch.no_grad()
    def score_fakes(self, images: Tensor) -> Scores:
        """Scores (N,) of images that G made."""
        logits = [self.scorer(self.method.pool(part))["logit"] for part in torch.split(images, 64)]
        scores: Scores = -torch.cat(logits).float().numpy()
        return scores
