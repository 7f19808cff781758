"""ALGAN-image: a discriminator trained against generated pseudo-anomalies (Murase & Fukumizu 2022).

Equation and algorithm numbers below are that paper's (IEEE Access 10, doi 10.1109/ACCESS.2022.3169594).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from kizu.errors import TrainingError
from kizu.layers.averaging import move_average
from kizu.layers.dcgan import Discriminator, Generator, check_size
from kizu.layers.pasting import paste_patches
from kizu.layers.pooling import ChannelPool
from kizu.method import Method, TrainingState, check_config, update

if TYPE_CHECKING:
    from kizu.prepare import PrepareSpec


@dataclass(frozen=True)
class AlganImageConfig:
    """Settings of ALGAN-image; the defaults are the paper's (sections III-D and IV-A), without additions.

    Attributes:
        width: channels of D's first layer; they double at each layer up to eight times that.
        latent_dim: length of z.
        sigma: standard deviation of the anomalous latents (> 0; the paper's peak is at 4 to 5).
        alpha: share of fake-normal against fake-anomalous, in the loss and in a batch of latents (0 to 1).
        xi: share of fresh fakes against buffered ones in the loss (0 to 1).
        n_z: epochs between two draws of the latents.
        n_dis: updates of D a batch.
        lr_g, lr_d: Adam's learning rates of G and D.
        beta1, beta2: Adam's momenta.
        latents: "slot" keeps a batch of latents for each batch of an epoch, "shared" one for all of them
            (algorithm 1 to the letter).
        buffer: "one" buffer for the whole training set (section IV-A-1) or one "per_batch", together a store as
            long as section III-A's.
        buffer_size: images a buffer holds, in batches.
        buffer_replaced: share of a buffer's images that new fakes replace at each visit, on average.
        fake_batch_norm: how G makes D's fakes. "mixed": normal and anomalous latents in one training-mode
            batch; "running": G on its running statistics. (Anomalous latents in a training-mode batch of
            their own would have sigma divided away.)
        cutpaste_weight: addition: weight in D's loss of training images with a pasted patch, which D learns to reject
            besides G's fakes (>= 0); half as many as real images.
        instance_noise: addition: standard deviation of Gaussian noise on all that D sees in training (>= 0), where
            pixels lie in [-1, 1].
        ema_decay: addition: decay a batch of an exponential moving average of D's normalised weights, which scores in
            D's place (below 1; 0: D itself scores). After t batches it is (1 + t) / (10 + t) where that is less: the
            average spans the last tenth of a short training.
        standardise: addition: D takes each image less its mean, divided by its standard deviation, so that the
            exposure does not count; nor does a part that is too dark or too bright as a whole.
    """

    width: int = 64
    latent_dim: int = 100
    sigma: float = 4.0
    alpha: float = 0.75
    xi: float = 0.75
    n_z: int = 2
    n_dis: int = 2
    lr_g: float = 2e-4
    lr_d: float = 1e-4
    beta1: float = 0.0
    beta2: float = 0.9
    latents: Literal["slot", "shared"] = "slot"
    buffer: Literal["one", "per_batch"] = "one"
    buffer_size: float = 2.0
    buffer_replaced: float = 0.5
    fake_batch_norm: Literal["mixed", "running"] = "mixed"
    cutpaste_weight: float = 0.0
    instance_noise: float = 0.0
    ema_decay: float = 0.0
    standardise: bool = False

    def __post_init__(self) -> None:
        check_config(
            self,
            share=("alpha", "xi", "buffer_replaced"),
            not_negative=("cutpaste_weight", "instance_noise"),
            below_one=("beta1", "beta2", "ema_decay"),
            counted=("width", "latent_dim", "n_z", "n_dis"),
            positive=("sigma", "lr_g", "lr_d", "buffer_size"),
        )
        if self.alpha == 0 and self.fake_batch_norm == "mixed":
            raise TrainingError(
                "alpha is 0, so that a batch holds anomalous latents alone, and batch normalisation of such a batch "
                'divides sigma away; set fake_batch_norm to "running", or alpha above 0'
            )


# What holds on parts as they are, where the paper's recipe loses its boundary (docs/training.md).
LINE: Mapping[str, Any] = {
    "epochs": 100,
    "config": {
        "lr_d": 5e-4,
        "buffer": "per_batch",
        "buffer_replaced": 0.03,
        "fake_batch_norm": "running",
        "cutpaste_weight": 2.0,
        "ema_decay": 0.998,
    },
}
# For surfaces photographed under changing light, at a size that two processor cores train in minutes.
SURFACE: Mapping[str, Any] = {
    "size": 64,
    "epochs": 80,
    "config": {**LINE["config"], "width": 32, "standardise": True},
}


def discriminator_loss(
    real: Tensor,
    fake_normal: Tensor,
    fake_anomalous: Tensor,
    buffered_normal: Tensor | None,
    buffered_anomalous: Tensor | None,
    *,
    alpha: float,
    xi: float,
) -> Tensor:
    """Equation 6, negated for minimisation, from logits (each of shape (N,)).

    ``-log D(x) = softplus(-logit)`` and ``-log(1 - D(x)) = softplus(logit)``. Without buffered images (the
    first epoch, algorithm 1 line 10) their terms are left out.
    """

    def fake(fresh: Tensor, buffered: Tensor | None) -> Tensor:
        loss = xi * _mean(softplus(fresh))
        return loss if buffered is None else loss + (1 - xi) * _mean(softplus(buffered))

    return (
        softplus(-real).mean()
        + alpha * fake(fake_normal, buffered_normal)
        + (1 - alpha) * fake(fake_anomalous, buffered_anomalous)
    )


def generator_loss(fake_normal: Tensor) -> Tensor:
    """Equation 5 from logits (N,): the mean of ``log(1 - D(G(z)))``."""
    return -softplus(fake_normal).mean()


def _mean(losses: Tensor) -> Tensor:
    """Mean; 0 for no elements (alpha of 0 or 1 leaves one kind of fake out)."""
    return losses.mean() if losses.numel() else losses.sum()


class AlganImage(Method):
    """ALGAN on images. Scores by minus the discriminator's logit (equation 8, figure 5)."""

    paper: ClassVar[str] = (
        "H. Murase and K. Fukumizu, ALGAN: Anomaly Detection by Generating Pseudo Anomalous Data via Latent "
        "Variables, IEEE Access 10, 2022"
    )
    scoring = "logit"
    pools: ClassVar[bool] = True
    config_type: ClassVar[type] = AlganImageConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "line": LINE, "surface": SURFACE}
    z_d: Tensor
    z_g: Tensor
    buffer: Tensor
    averages: Tensor  # how many D's have gone into the average

    def __init__(self, prepare: PrepareSpec, config: AlganImageConfig) -> None:
        super().__init__()
        self.config = config
        size = check_size(*prepare.size)
        self.image_shape = (prepare.own_channels, size, size)
        self.generator = Generator(
            size=size, channels=prepare.own_channels, latent_dim=config.latent_dim, width=config.width
        )
        self.discriminator = Discriminator(
            size=size, channels=prepare.channels, width=config.width, standardise=config.standardise
        )
        self.averaged = self.discriminator.folded() if config.ema_decay else None
        self.pool = ChannelPool(prepare)
        for name in ("z_d", "z_g", "buffer"):
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("averages", torch.tensor(0))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def create(cls, prepare: PrepareSpec, config: Any) -> AlganImage:
        """Build ALGAN-image for square inputs of 32, 64, 128, 256 or 512 pixels."""
        return cls(prepare, config)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam for G and for D."""
        config = self.config
        betas = (config.beta1, config.beta2)
        return {
            "G": torch.optim.Adam(self.generator.parameters(), config.lr_g, betas, fused=True),
            "D": torch.optim.Adam(self.discriminator.parameters(), config.lr_d, betas, fused=True),
        }

    def start(self, *, batches: int, batch_size: int) -> None:
        """Allocate latents and buffers; raises TrainingError for batches too small to hold both kinds of fakes."""
        config = self.config
        if batch_size < 2 and 0 < config.alpha < 1:
            raise TrainingError(
                "a batch of 1 image has no room for a fake-normal and a fake-anomalous image; use batches of at least "
                "2 and as many training images, or set alpha to 1"
            )
        self.n_anomalous = round((1 - config.alpha) * batch_size)
        if 0 < config.alpha < 1:  # a batch of both kinds has at least one of each
            self.n_anomalous = min(max(self.n_anomalous, 1), batch_size - 1)
        self.n_normal = batch_size - self.n_anomalous
        slots = batches if config.latents == "slot" else 1
        self.z_d = torch.zeros(slots, batch_size, config.latent_dim)
        self.z_g = torch.zeros(slots, batch_size, config.latent_dim)
        self.held_normal = max(round(config.buffer_size * self.n_normal), min(self.n_normal, 1))
        held_anomalous = max(round(config.buffer_size * self.n_anomalous), min(self.n_anomalous, 1))
        buffers = batches if config.buffer == "per_batch" else 1
        # Half precision halves a long memory; its rounding is a tenth of one grey level.
        self.buffer = torch.zeros(buffers, self.held_normal + held_anomalous, *self.image_shape, dtype=torch.float16)

    def training_step(self, batch: Tensor, state: TrainingState) -> dict[str, Tensor]:
        """Algorithm 1, lines 7 to 20, for one batch of prepared real images (N, C, H, W)."""
        config = self.config
        if state.batch_index == 0 and (state.epoch == 1 or state.epoch % config.n_z == 0):
            self._draw_latents(state.generator)
        fakes = self.fakes(self.z_d[state.batch_index % len(self.z_d)], autocast=state.autocast)
        # Lines 8 to 17. G stands still meanwhile, so line 9 gives the same fakes at each of the n_dis updates.
        for _ in range(config.n_dis):
            buffered = self._sample_buffer(state) if state.epoch > 1 else fakes[:0]
            pasted = self._pasted(batch, state)
            images = torch.cat([batch, self.pool(torch.cat([fakes, buffered])), pasted])
            logits = self._logits(images, state)
            has_old = len(buffered) > 0
            kinds = [self.n_normal, self.n_anomalous]
            sizes = [len(batch), *kinds, *(kinds if has_old else [0, 0]), len(pasted)]
            real, normal, anomalous, old_normal, old_anomalous, cut = torch.split(logits, sizes)
            loss_d = discriminator_loss(
                real,
                normal,
                anomalous,
                old_normal if has_old else None,
                old_anomalous if has_old else None,
                alpha=config.alpha,
                xi=config.xi,
            )
            if len(pasted):
                loss_d = loss_d + config.cutpaste_weight * softplus(cut).mean()
            update(state.optimizers["D"], loss_d)
        self._store(fakes, state)
        loss_g = self._update_generator(state)
        self._average()
        return {"loss_D": loss_d.detach(), "loss_G": loss_g.detach(), "logit_real": real.detach().mean()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return ``{"logit": (N,)}`` of prepared images (N, C, H, W), by the averaged D where there is one."""
        return {"logit": (self.discriminator if self.averaged is None else self.averaged)(x)}

    def export_module(self) -> nn.Module:
        """Return the discriminator alone with its spectral norm folded into the weights."""
        return _Scorer(copy.deepcopy(self.averaged) if self.averaged is not None else self.discriminator.folded())

    @torch.no_grad()
    def fakes(self, z: Tensor, *, autocast: bool = False) -> Tensor:
        """G(z_d) (line 9): latents (N, latent_dim) to images (N, own channels, H, W) by ``fake_batch_norm``."""
        self.generator.train(self.config.fake_batch_norm == "mixed")
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                images: Tensor = self.generator(z)
            return images.float()
        finally:
            self.generator.train(self.training)

    def _draw_latents(self, generator: torch.Generator) -> None:
        """Lines 3 and 4; in each batch of z_d the normal latents come first."""
        self.z_d.normal_(generator=generator)
        self.z_d[:, self.n_normal :] *= self.config.sigma
        self.z_g.normal_(generator=generator)

    def _update_generator(self, state: TrainingState) -> Tensor:
        """Lines 19 and 20, on normal latents only."""
        z = self.z_g[state.batch_index % len(self.z_g)]
        self.discriminator.requires_grad_(False)  # its gradients are not needed here
        with torch.autocast("cpu", torch.bfloat16, enabled=state.autocast):
            images = self.generator(z)
        loss = generator_loss(self._logits(self.pool(images.float()), state))
        update(state.optimizers["G"], loss)
        self.discriminator.requires_grad_(True)
        return loss

    def _logits(self, images: Tensor, state: TrainingState) -> Tensor:
        """D's logits (N,) of images (N, C, H, W), which have noise added to them first."""
        if self.config.instance_noise:
            images = images + self.config.instance_noise * torch.empty_like(images).normal_(generator=state.generator)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=state.autocast):
            logits: Tensor = self.discriminator(images)
        return logits.float()

    def _pasted(self, batch: Tensor, state: TrainingState) -> Tensor:
        """Pseudo-anomalies by pasting, made of a random half of the real images; none where their weight is 0."""
        if not self.config.cutpaste_weight:
            return batch[:0]
        half = torch.randperm(len(batch), generator=state.generator)[: -(-len(batch) // 2)]
        return paste_patches(batch[half], state.generator)

    def _average(self) -> None:
        """Move the average towards D."""
        if self.averaged is not None:
            self.averages += 1
            move_average(self.averaged, self.discriminator, decay=self.config.ema_decay, batches=int(self.averages))

    def _parts(self) -> list[tuple[slice, slice]]:
        """(where in a batch of fakes, where in a buffer) of the normal and of the anomalous images."""
        return [
            (slice(0, self.n_normal), slice(0, self.held_normal)),
            (slice(self.n_normal, None), slice(self.held_normal, None)),
        ]

    def _sample_buffer(self, state: TrainingState) -> Tensor:
        """Line 13: as many buffered images as a batch of fakes, of each kind."""
        held = self.buffer[state.batch_index % len(self.buffer)]
        picked = []
        for fresh, old in self._parts():
            n = len(range(self.n_normal + self.n_anomalous)[fresh])
            images = held[old]
            if n:
                order = torch.randperm(len(images), generator=state.generator)
                picked.append(images[order.repeat(-(-n // len(images)))[:n]])
        return torch.cat(picked).float()

    def _store(self, fakes: Tensor, state: TrainingState) -> None:
        """Line 18: new fakes replace a random share of the buffer; the first visits fill it."""
        held = self.buffer[state.batch_index % len(self.buffer)]
        first_visit = state.epoch == 1 and (self.config.buffer == "per_batch" or state.batch_index == 0)
        for fresh, old in self._parts():
            images, new = held[old], fakes[fresh]
            if not len(images):
                continue
            wanted = len(images) * (1.0 if first_visit else self.config.buffer_replaced)
            n = int(wanted)
            # A small share of few images is less than one a visit; rounded down it would never replace any.
            if wanted > n and float(torch.rand((), generator=state.generator)) < wanted - n:
                n += 1
            where = torch.randperm(len(images), generator=state.generator)[:n]
            which = torch.randperm(len(new), generator=state.generator)
            images[where] = new[which.repeat(-(-n // len(new)))[:n]].half()


class _Scorer(nn.Module):
    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logit": self.discriminator(x)}


METHOD = AlganImage
