"""Bi-directional GANs: EGBAD, its projection discriminator, its consistency loss (Komoto, Aizawa & Kato 2020).

Equation and algorithm numbers are that paper's. Four rows of its table 1 are two switches: ``conditioning`` of D and
the weight of the ``consistency`` loss; "concat" without consistency is EGBAD (Zenati et al. 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from kizu.layers.averaging import move_average, start_average
from kizu.layers.dcgan import Encoder, Generator, of_images
from kizu.layers.joint import Conditioning, JointDiscriminator
from kizu.layers.losses import discriminator_loss
from kizu.layers.pairs import paired, unpaired
from kizu.layers.pooling import ChannelPool
from kizu.layers.spectral import without_spectral_norm
from kizu.method import Method, TrainingState, check_config

if TYPE_CHECKING:
    from kizu.prepare import PrepareSpec


@dataclass(frozen=True)
class BiganConfig:
    """Settings of the bi-directional family; the defaults are the paper's "ours" where it names a value.

    Attributes:
        conditioning: how D takes the latent: "concat" (EGBAD) or "projection" (equation 13).
        consistency: alpha, the weight of the consistency loss against the adversarial one (0 to 1; 0: there is none).
        norm: whether the consistency loss takes each L1 norm as the "sum" of its elements, as the paper writes it, or
            as their "mean". With means the adversarial loss outweighs consistency by far, in spite of an alpha of 0.9,
            and G(E(x)) does not come to resemble x.
        width: channels of each network's first (G: last) hidden layer; they double at each layer up to eight times
            that.
        latent_dim: length of z. The paper does not say; ALGAN's 100.
        lr: Adam's learning rate, of E, G and D.
        beta1, beta2: Adam's momenta.
        ema_decay: addition: decay a batch of an exponential moving average of the three networks, which scores in their
            place; 0: there is none. The adversarial game goes back and forth, which the average evens out.
        score: what L_D of the score is: "feature_matching" (equation 8) or "cross_entropy" of the logit (equation 9).
        weight: lambda of the score (0 to 1), for means over elements, so that it says the same at every size. The paper
            does not say; EGBAD's 0.1. It can be changed without an export.
    """

    conditioning: Conditioning = "projection"
    consistency: float = 0.9
    norm: Literal["sum", "mean"] = "sum"
    width: int = 64
    latent_dim: int = 100
    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    ema_decay: float = 0.0
    score: Literal["feature_matching", "cross_entropy"] = "feature_matching"
    weight: float = 0.1

    def __post_init__(self) -> None:
        check_config(
            self,
            share=("consistency", "weight"),
            below_one=("beta1", "beta2", "ema_decay"),
            counted=("width", "latent_dim"),
            positive=("lr",),
        )


def adversarial_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Algorithm 1's L_adversarial with equation 6's labels: E and G want D to take each kind of pair for the other."""
    return softplus(real).mean() + softplus(-generated).mean()


def consistency_loss(x: Tensor, x_hat: Tensor, z: Tensor, z_hat: Tensor, *, norm: Literal["sum", "mean"]) -> Tensor:
    """Equations 11 and 12: the mean over the batch of the L1 norms of x - G(E(x)) and of z - E(G(z))."""
    of_images, of_latents = (x - x_hat).abs().flatten(1), (z - z_hat).abs().flatten(1)
    if norm == "mean":
        return of_images.mean() + of_latents.mean()
    return of_images.sum(1).mean() + of_latents.sum(1).mean()


class Bigan(Method):
    """E, G and D. Scores by the residual and what D makes of the reconstruction (equations 7 to 10, 14 to 16)."""

    paper: ClassVar[str] = (
        "K. Komoto, H. Aizawa and K. Kato, Consistency Ensured Bi-directional GAN for Anomaly Detection, 2020"
    )
    config_type: ClassVar[type] = BiganConfig
    least_batch: ClassVar[int] = 2  # batch norm of latents, which have one value a channel
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "egbad": {"config": {"conditioning": "concat", "consistency": 0.0}},
    }

    averages: Tensor

    def __init__(self, prepare: PrepareSpec, config: BiganConfig) -> None:
        super().__init__()
        self.config = config
        self.scoring = "residual_feature" if config.score == "feature_matching" else "residual_logit"
        self.weight = config.weight
        shared = {**of_images(prepare, config.width), "latent_dim": config.latent_dim}
        self.encoder = Encoder(**shared)
        self.generator = Generator(**shared)
        self.discriminator = JointDiscriminator(**shared, conditioning=config.conditioning)
        averaged = map(start_average, self._trained()) if config.ema_decay else ()
        self.averaged = nn.ModuleList(averaged)
        self.register_buffer("averages", torch.tensor(0))
        self.pool = ChannelPool(prepare)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def create(cls, prepare: PrepareSpec, config: Any) -> Bigan:
        """Build the networks for square inputs of 32, 64, 128, 256 or 512 pixels."""
        return cls(prepare, config)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam for E and G together, which have one loss, and for D."""
        config = self.config
        betas = (config.beta1, config.beta2)
        both = [*self.encoder.parameters(), *self.generator.parameters()]
        return {
            "EG": torch.optim.Adam(both, config.lr, betas, fused=True),
            "D": torch.optim.Adam(self.discriminator.parameters(), config.lr, betas, fused=True),
        }

    def training_step(self, batch: Tensor, state: TrainingState) -> dict[str, Tensor]:
        """Algorithm 1 for one batch (N, C, H, W): both gradients are taken where the networks stand, then all move."""
        config = self.config
        x = batch.contiguous(memory_format=torch.channels_last)
        z = torch.randn(len(x), config.latent_dim, generator=state.generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=state.autocast):
            z_tilde = self.encoder(x)
            x_tilde = self.pool(self.generator(z).float())
            real, _ = self.discriminator(x, z_tilde)
            generated, _ = self.discriminator(x_tilde, z)
            if config.consistency:
                x_hat, z_hat = self.pool(self.generator(z_tilde).float()), self.encoder(x_tilde)
        real, generated = real.float(), generated.float()
        losses = {"loss_D": discriminator_loss(real, generated), "loss_adversarial": adversarial_loss(real, generated)}
        loss_eg = losses["loss_adversarial"]
        if config.consistency:
            losses["loss_consistency"] = consistency_loss(x, x_hat, z, z_hat.float(), norm=config.norm)
            loss_eg = config.consistency * losses["loss_consistency"] + (1 - config.consistency) * loss_eg
        _set_gradients(state.optimizers["D"], losses["loss_D"], retain=True)
        _set_gradients(state.optimizers["EG"], loss_eg, retain=False)
        for optimizer in state.optimizers.values():
            optimizer.step()
        if self.averaged:
            self._average(x, state)
        return {name: loss.detach() for name, loss in losses.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Of prepared images (N, C, H, W): ``x_hat`` = G(E(x)), and ``f``, ``f_hat`` or ``logit`` by the score."""
        return score_outputs(*self.scoring_networks(), self.pool, self.scoring, x)

    @torch.no_grad()
    def _average(self, x: Tensor, state: TrainingState) -> None:
        """Move the averages towards the networks, and their batch norm's statistics towards those of scoring."""
        self.averages += 1
        for average, network in zip(self.averaged, self._trained(), strict=True):
            move_average(average, network, decay=self.config.ema_decay, batches=int(self.averages))
        with torch.autocast("cpu", torch.bfloat16, enabled=state.autocast):
            self.forward(x)

    def _trained(self) -> tuple[Encoder, Generator, JointDiscriminator]:
        return self.encoder, self.generator, self.discriminator

    def scoring_networks(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """E, G and D that score: the averages where there are any, else those that are trained."""
        encoder, generator, discriminator = self.averaged or self._trained()
        return encoder, generator, discriminator

    def export_module(self) -> nn.Module:
        """Return E, G and D as one network, D's spectral norm folded into its weights."""
        return _Scorer(self)


class _Scorer(nn.Module):
    def __init__(self, method: Bigan) -> None:
        super().__init__()
        self.encoder, self.generator, discriminator = method.scoring_networks()
        self.discriminator, self.pool = without_spectral_norm(discriminator), method.pool
        self.scoring = method.scoring

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return score_outputs(self.encoder, self.generator, self.discriminator, self.pool, self.scoring, x)


def score_outputs(
    encoder: nn.Module, generator: nn.Module, discriminator: nn.Module, pool: nn.Module, scoring: str, x: Tensor
) -> dict[str, Tensor]:
    """What the scoring rule reads; D sees (x, E(x)) and (G(E(x)), E(x)) as one batch."""
    z = encoder(x)
    x_hat = pool(generator(z))
    if scoring == "residual_logit":
        logit, _ = discriminator(x, z)
        return {"x_hat": x_hat, "logit": logit}
    _, features = discriminator(paired(x, x_hat), paired(z, z))
    f, f_hat = unpaired(features)
    return {"x_hat": x_hat, "f": f, "f_hat": f_hat}


def _set_gradients(optimizer: torch.optim.Optimizer, loss: Tensor, *, retain: bool) -> None:
    """The loss's gradient of what the optimiser trains, and of nothing else."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=retain)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


METHOD = Bigan
