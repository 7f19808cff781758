"""Figure 3: ALGAN in two dimensions. Latents of 100 dimensions are mapped to a two-dimensional normal distribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from kizu.method import TrainingState
from kizu.methods.algan_image import AlganImage, AlganImageConfig
from kizu.prepare import PrepareSpec
from reproduction import figures, provenance, results
from reproduction.page import Context, Section, Table

BATCH, BATCHES, EPOCHS, HIDDEN = 64, 16, 40, 64
# Standard deviation of the data. Spectral normalisation lets D's logit change by at most one a unit of length.
SPREAD = 4.0
# The published learning rates, five times as fast and D against G as in the preset "line"; G on running statistics.
LINE: Mapping[str, Any] = {"lr_g": 1e-3, "lr_d": 2.5e-3, "fake_batch_norm": "running"}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "G on running statistics": LINE,
    "both latents in one batch": {**LINE, "fake_batch_norm": "mixed"},
    "without anomalous latents": {**LINE, "alpha": 1.0},
}
QUANTILE = 0.05
RADII = (3, 4, 5, 6, 8)


class ToyAlgan(AlganImage):
    """ALGAN on points, as images of one pixel: the same training steps; G and D have three fully connected layers."""

    def __init__(self, config: AlganImageConfig) -> None:
        super().__init__(PrepareSpec(size=(32, 32), color="mono"), config)
        self.image_shape = (2, 1, 1)
        self.generator = nn.Sequential(  # type: ignore[assignment]
            *(nn.Linear(config.latent_dim, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU()),
            *(nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU()),
            *(nn.Linear(HIDDEN, 2), nn.Unflatten(1, (2, 1, 1))),
        )
        self.discriminator = nn.Sequential(  # type: ignore[assignment]
            *(nn.Flatten(), spectral_norm(nn.Linear(2, HIDDEN)), nn.LeakyReLU(0.2)),
            *(spectral_norm(nn.Linear(HIDDEN, HIDDEN)), nn.LeakyReLU(0.2)),
            *(spectral_norm(nn.Linear(HIDDEN, 1)), nn.Flatten(0)),
        )
        self.pool = nn.Identity()  # type: ignore[assignment]


@dataclass(frozen=True)
class Toy:
    """A trained toy and its data.

    Attributes:
        method: G and D.
        real: the training points (N, 2).
    """

    method: ToyAlgan
    real: Tensor

    @torch.no_grad()
    def logits(self, points: Tensor) -> Tensor:
        """D's logits (N,) of points (N, 2)."""
        self.method.eval()
        logits: Tensor = self.method(points[:, :, None, None])["logit"]
        return logits

    def fakes(self, batches: int, seed: int) -> tuple[Tensor, Tensor]:
        """Fake-normal and fake-anomalous points, as D sees them in training."""
        method, generator = self.method, torch.Generator().manual_seed(seed)
        method.train()
        normal, anomalous = [], []
        for _ in range(batches):
            z = torch.randn(BATCH, method.config.latent_dim, generator=generator)
            z[method.n_normal :] *= method.config.sigma
            points = method.fakes(z).flatten(1)
            normal.append(points[: method.n_normal])
            anomalous.append(points[method.n_normal :])
        return torch.cat(normal), torch.cat(anomalous)


def train_toy(seed: int, *, epochs: int = EPOCHS, **config: Any) -> Toy:
    """Train the toy; the same seed gives the same bits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = ToyAlgan(AlganImageConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    real = normal_points(BATCH * BATCHES, generator)
    method.start(batches=BATCHES, batch_size=BATCH)
    method.train()
    optimizers = method.optimizers()
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(real), generator=generator)
        for index, batch in enumerate(torch.split(real[order][:, :, None, None], BATCH)):
            method.training_step(batch, TrainingState(epoch, index, optimizers, generator))
    return Toy(method, real)


def normal_points(count: int, generator: torch.Generator) -> Tensor:
    """Normal data (N, 2)."""
    return SPREAD * torch.randn(count, 2, generator=generator)


def ring(radius: float, count: int = 72) -> Tensor:
    """Points on a circle (N, 2) of so many standard deviations of the data."""
    angle = torch.arange(count) * (2 * np.pi / count)
    return SPREAD * radius * torch.stack([torch.cos(angle), torch.sin(angle)], 1)


def margins(toy: Toy, seed: int) -> dict[str, float]:
    """How D's boundary, its 5 % quantile on the training points, lies.

    Returns the share of held-out normal points that it accepts (of points that training has not seen), and for circles
    of some radii, in standard deviations of the data, the share that it rejects: 1 where it encloses the data.
    """
    boundary = torch.quantile(toy.logits(toy.real), QUANTILE)
    held_out = normal_points(2000, torch.Generator().manual_seed(1000 + seed))
    found = {"accepted": _share(toy.logits(held_out) >= boundary)}
    return found | {f"ring_{radius}": _share(toy.logits(ring(radius)) < boundary) for radius in RADII}


def _share(truths: Tensor) -> float:
    return float(truths.float().mean())


def sections(context: Context) -> list[Section]:
    """A panel a variant (first seed), and where the boundary lies for every seed."""
    rows: list[dict[str, Any]] = []
    shown: dict[str, Toy] = {}
    stamp = {**provenance.stamp(), "date": provenance.now()}
    for label, config in VARIANTS.items():
        for seed in context.seeds:
            toy = train_toy(seed, **config)
            shown.setdefault(label, toy)
            normal, anomalous = toy.fakes(8, seed)
            deviations = {"sd_normal": float(normal.std() / SPREAD)}
            if len(anomalous):
                deviations["sd_anomalous"] = float(anomalous.std() / SPREAD)
            rows.append({"variant": label, "seed": seed, **margins(toy, seed), **deviations, **stamp})
    columns = ("variant", "seed", "accepted", *(f"ring_{radius}" for radius in RADII), "sd_normal", "sd_anomalous")
    file, path = context.file(".csv"), context.file(".png")
    rows = results.merge_rows(
        file, rows, lock=context.lock, key=("variant", "seed"), columns=(*columns, *results.STAMP)
    )
    _plot(shown, context.seeds[0], path)
    head = ["variant", "seeds", "held-out normal accepted", *(f"rejected at {radius} sd" for radius in RADII)]
    text = (
        f"D's boundary is its {QUANTILE:.0%} quantile on the training points. *Rejected at r sd*: the share of the "
        "circle of r standard deviations of the data that lies outside the boundary, in the mean over seeds (and in "
        "the worst); 1 where the boundary encloses the data. *sd*: standard deviations of the fakes that D sees, "
        f"relative to the data's. The data have a standard deviation of {SPREAD:g}, since spectral normalisation lets "
        "D's logit change by at most one a unit of length; G's learning rate is 5 times and D's 25 times the published "
        "one."
    )
    body = [_line(label, [row for row in rows if row["variant"] == label]) for label in VARIANTS]
    return [Section(Table([*head, "sd of fake-normal", "sd of fake-anomalous"], body), text, [path], [file])]


def _line(label: str, rows: list[dict[str, Any]]) -> list[str]:
    def values(name: str) -> list[float]:
        return [row[name] for row in rows if name in row]

    rings = [values(f"ring_{radius}") for radius in RADII]
    deviations = [values("sd_normal"), values("sd_anomalous")]
    return [
        *(label, str(len(rows)), f"{mean(values('accepted')):.3f}"),
        *(f"{mean(shares):.2f} ({min(shares):.2f})" for shares in rings),
        *(f"{mean(each):.2f}" if each else "–" for each in deviations),
    ]


def _plot(toys: Mapping[str, Toy], seed: int, path: Path) -> None:
    """D's logit and boundary with the data, fake-normal and fake-anomalous points."""
    figure, axes = figures.panels(len(toys), width=4.2, height=4.2)
    reach = 7 * SPREAD
    axis = torch.linspace(-reach, reach, 121)
    grid = torch.cartesian_prod(axis, axis)
    for panel, (label, toy) in zip(axes, toys.items(), strict=True):
        logits = toy.logits(grid).reshape(121, 121).T.numpy()
        panel.contourf(axis.numpy(), axis.numpy(), logits, levels=16, cmap="Greys_r", alpha=0.5)
        boundary = float(torch.quantile(toy.logits(toy.real), QUANTILE))
        panel.contour(axis.numpy(), axis.numpy(), logits, levels=[boundary], colors="#1B2430", linewidths=1.6)
        normal, anomalous = toy.fakes(8, seed)
        kinds = (
            ("fake-anomalous", anomalous, "#D55E00"),
            ("real", toy.real, "#0072B2"),
            ("fake-normal", normal, "#009E73"),
        )
        for name, points, color in kinds:
            panel.plot(*points[:250].T.numpy(), ".", markersize=3.5, color=color, label=name, alpha=0.8)
        panel.set_xlim(-reach, reach)
        panel.set_ylim(-reach, reach)
        panel.set_aspect("equal")
        panel.set_title(label, fontsize=10)
        panel.grid(False)
    figures.legend(figure, axes)
    figures.save(figure, path)
