"""f-AnoGAN: a Wasserstein GAN, then an encoder trained against its frozen generator and critic (Schlegl et al. 2019).

The GAN follows Gulrajani et al. 2017 (WGAN-GP). The 2020 paper names f-AnoGAN in section 2 ([10]) and scores it as
AnoGAN (equation 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from kizu.layers.dcgan import Encoder, Generator, halving, initialise, of_images, stage_widths
from kizu.layers.pairs import paired, unpaired
from kizu.layers.pooling import ChannelPool
from kizu.method import Method, TrainingState, check_config, update

if TYPE_CHECKING:
    from kizu.prepare import PrepareSpec


@dataclass(frozen=True)
class FAnoganConfig:
    """Settings of f-AnoGAN; the defaults are its paper's, or WGAN-GP's.

    Attributes:
        gan_epochs: epochs of the GAN; those after it train the encoder, and only they give a network that can score.
            Half of the default number of epochs.
        n_critic: batches on which the critic is trained for one on which the generator is.
        gradient_penalty: weight of the critic's gradient penalty (>= 0).
        kappa: weight of the feature residual in the encoder's loss (>= 0).
        width: channels of each network's first (G: last) hidden layer; they double at each layer up to eight times
            that.
        latent_dim: length of z.
        lr, beta1, beta2: Adam's settings for critic and generator, WGAN-GP's.
        lr_e: Adam's learning rate for the encoder; its momenta are Adam's own, (0.9, 0.999).
        weight: lambda of the score (0 to 1), for means over elements. At 0.5 residual and features weigh the same, as
            with the paper's kappa of 1. It can be changed without an export.
    """

    gan_epochs: int = 256
    n_critic: int = 5
    gradient_penalty: float = 10.0
    kappa: float = 1.0
    width: int = 64
    latent_dim: int = 100
    lr: float = 1e-4
    beta1: float = 0.0
    beta2: float = 0.9
    lr_e: float = 1e-4
    weight: float = 0.5

    def __post_init__(self) -> None:
        check_config(
            self,
            share=("weight",),
            not_negative=("gradient_penalty", "kappa"),
            below_one=("beta1", "beta2"),
            counted=("gan_epochs", "n_critic", "width", "latent_dim"),
            positive=("lr", "lr_e"),
        )


class Critic(nn.Module):
    """x (N, channels, size, size) to a value (N,) and the features before it; high means real.

    Without batch norm, since the gradient penalty is each image's own (WGAN-GP, section 4).
    """

    def __init__(self, *, size: int, channels: int, width: int) -> None:
        super().__init__()
        widths = stage_widths(size, width)
        self.features = nn.Sequential(*halving(channels, widths, norm=False))
        self.value = nn.Conv2d(widths[-1], 1, 4)
        self.apply(initialise)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (N,) and features (N, 8 width, 4, 4)."""
        f = self.features(x)
        return self.value(f).flatten(), f


def gradient_penalty(critic: nn.Module, real: Tensor, generated: Tensor, share: Tensor) -> Tensor:
    """WGAN-GP, equation 3: mean of (|gradient of the critic| - 1)^2 at ``share real + (1 - share) generated``."""
    between = (share * real + (1 - share) * generated).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between)[0].float().sum(), between, create_graph=True)
    penalty: Tensor = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty


def encoder_loss(x: Tensor, x_hat: Tensor, f: Tensor, f_hat: Tensor, *, kappa: float) -> Tensor:
    """The loss izi_f (f-AnoGAN, equation 3): mean squared residual plus kappa times that of the features."""
    return (x - x_hat).square().mean() + kappa * (f - f_hat).square().mean()


class FAnogan(Method):
    """Scores by the residual and the critic's features of G(E(x)) (2020, equation 5 with z from an encoder)."""

    paper: ClassVar[str] = (
        "T. Schlegl et al., f-AnoGAN: Fast Unsupervised Anomaly Detection with Generative Adversarial Networks, "
        "Medical Image Analysis 54, 2019"
    )
    scoring = "residual_feature"
    scored_after: ClassVar[str] = "gan_epochs"
    config_type: ClassVar[type] = FAnoganConfig
    least_batch: ClassVar[int] = 2  # batch norm of latents, which have one value a channel

    def __init__(self, prepare: PrepareSpec, config: FAnoganConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = config.weight
        shared = of_images(prepare, config.width)
        self.encoder = Encoder(**shared, latent_dim=config.latent_dim)
        self.generator = Generator(**shared, latent_dim=config.latent_dim)
        self.critic = Critic(**shared)
        self.pool = ChannelPool(prepare)
        self.register_buffer("batches", torch.tensor(0))  # that the GAN was trained on
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    batches: Tensor

    @classmethod
    def create(cls, prepare: PrepareSpec, config: Any) -> FAnogan:
        """Build the networks for square inputs of 32, 64, 128, 256 or 512 pixels."""
        return cls(prepare, config)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam for critic, generator and encoder."""
        config = self.config
        betas = (config.beta1, config.beta2)
        return {
            "C": torch.optim.Adam(self.critic.parameters(), config.lr, betas, fused=True),
            "G": torch.optim.Adam(self.generator.parameters(), config.lr, betas, fused=True),
            "E": torch.optim.Adam(self.encoder.parameters(), config.lr_e, fused=True),
        }

    def training_step(self, batch: Tensor, state: TrainingState) -> dict[str, Tensor]:
        """One batch (N, C, H, W) for critic and every ``n_critic``-th time generator, or later for the encoder."""
        x = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=state.autocast):
            if state.epoch >= self.first_scored_epoch:
                return self._train_encoder(x, state)
            losses = {"loss_C": self._train_critic(x, state)}
            self.batches += 1
            if self.batches % self.config.n_critic == 0:
                losses["loss_G"] = self._train_generator(len(x), state)
            return losses

    def _train_critic(self, x: Tensor, state: TrainingState) -> Tensor:
        """WGAN-GP, algorithm 1, lines 4 to 9."""
        with torch.no_grad():
            x_tilde = self._generated(len(x), state)
        share = torch.rand(len(x), 1, 1, 1, generator=state.generator)
        values = self.critic(torch.cat([x, x_tilde]))[0].float()
        real, generated = values.chunk(2)
        penalty = gradient_penalty(self.critic, x, x_tilde, share)
        loss = generated.mean() - real.mean() + self.config.gradient_penalty * penalty
        return update(state.optimizers["C"], loss)

    def _train_generator(self, n: int, state: TrainingState) -> Tensor:
        """WGAN-GP, algorithm 1, lines 11 and 12."""
        self.critic.requires_grad_(False)  # its gradients are not needed here
        loss = update(state.optimizers["G"], -self.critic(self._generated(n, state))[0].float().mean())
        self.critic.requires_grad_(True)
        return loss

    def _train_encoder(self, x: Tensor, state: TrainingState) -> dict[str, Tensor]:
        """f-AnoGAN, figure 2c: critic and generator stand still, the generator on its running statistics."""
        self.generator.eval().requires_grad_(False)
        self.critic.requires_grad_(False)
        x_hat = self.pool(self.generator(self.encoder(x)).float())
        f, f_hat = unpaired(self.critic(paired(x, x_hat))[1].float())
        loss = update(state.optimizers["E"], encoder_loss(x, x_hat, f, f_hat, kappa=self.config.kappa))
        return {"loss_E": loss}

    def _generated(self, n: int, state: TrainingState) -> Tensor:
        z = torch.randn(n, self.config.latent_dim, generator=state.generator)
        images: Tensor = self.pool(self.generator(z).float())
        return images

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Of prepared images (N, C, H, W): ``x_hat`` = G(E(x)), ``f`` and ``f_hat``, the critic's features."""
        x_hat = self.pool(self.generator(self.encoder(x)))
        f, f_hat = unpaired(self.critic(paired(x, x_hat))[1])
        return {"x_hat": x_hat, "f": f, "f_hat": f_hat}


METHOD = FAnogan
