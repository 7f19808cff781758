"""AnoGAN: the latent of a part is searched by gradient descent through G and D (Schlegl et al. 2017).

Equation numbers are those of the consistency BiGAN paper (Komoto et al. 2020, section 2), which compares with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from kizu.layers.dcgan import Generator, halving, initialise, of_images, stage_widths
from kizu.layers.losses import discriminator_loss
from kizu.layers.pooling import ChannelPool
from kizu.layers.search import Search
from kizu.method import Method, TrainingState, check_config, update

if TYPE_CHECKING:
    from kizu.prepare import PrepareSpec


@dataclass(frozen=True)
class AnoganConfig:
    """Settings of AnoGAN; the defaults are the papers' where they give any.

    Attributes:
        width: channels of D's first layer (G: of its last hidden one); they double at each layer up to eight times
            that.
        latent_dim: length of z.
        lr_g, lr_d: Adam's learning rates of G and D.
        beta1, beta2: Adam's momenta (2020, section 4.1).
        steps: of the search (Gamma; AnoGAN, section 3): a part costs as many passes forth and back through G and D.
        search_lr: Adam's learning rate in the search; its momenta are Adam's own, (0.9, 0.999).
        search_decay: it falls linearly.
        search_eps: Adam's epsilon in the search (> 0). With Adam's own 1e-8, rounding errors move the scores a hundred
            times as far, to no use: a gradient's usual size is 1e-4 to 1e-2.
        weight: lambda of the search's loss and of the score (0 to 1), for means over elements; AnoGAN's is 0.1 for
            sums. That of the score can be changed without an export, that of the search cannot.
        early_stop: the search for an image ends when its loss has fallen by no more than this share of it over the
            last 10 steps (>= 0; 0: never). A GPU's engine cannot do it.
        seed: of the latent that every search begins with (>= 0).
    """

    width: int = 64
    latent_dim: int = 100
    lr_g: float = 1e-4
    lr_d: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    steps: int = 500
    search_lr: float = 0.05
    search_decay: bool = True
    search_eps: float = 1e-5
    weight: float = 0.1
    early_stop: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(
            self,
            share=("weight",),
            not_negative=("early_stop", "seed"),
            below_one=("beta1", "beta2"),
            counted=("width", "latent_dim", "steps"),
            positive=("lr_g", "lr_d", "search_lr", "search_eps"),
        )


class Discriminator(nn.Module):
    """x (N, channels, size, size) to one logit an image (N,); high means real.

    Convolutions with batch norm and LeakyReLU(0.2); none on the first and the last, as DCGAN has it.
    """

    def __init__(self, *, size: int, channels: int, width: int) -> None:
        super().__init__()
        first, *others = stage_widths(size, width)
        self.features = nn.Sequential(*halving(channels, [first], norm=False), *halving(first, others))
        self.logit = nn.Conv2d(others[-1], 1, 4)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N,)."""
        logits: Tensor = self.logit(self.features(x))
        return logits.flatten()


def generator_loss(generated: Tensor) -> Tensor:
    """That of equation 1 which does not saturate (Goodfellow et al. 2014), from logits (N,): -log D(G(z))."""
    return softplus(-generated).mean()


class Anogan(Method):
    """Scores by the residual and D's features of the image that a search through G finds (equations 2 to 5)."""

    paper: ClassVar[str] = (
        "T. Schlegl et al., Unsupervised Anomaly Detection with Generative Adversarial Networks to Guide Marker "
        "Discovery, IPMI 2017"
    )
    scoring = "residual_feature"
    config_type: ClassVar[type] = AnoganConfig

    def __init__(self, prepare: PrepareSpec, config: AnoganConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = config.weight
        shared = of_images(prepare, config.width)
        self.generator = Generator(**shared, latent_dim=config.latent_dim)
        self.discriminator = Discriminator(**shared)
        self.pool = ChannelPool(prepare)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def create(cls, prepare: PrepareSpec, config: Any) -> Anogan:
        """Build the networks for square inputs of 32, 64, 128, 256 or 512 pixels."""
        return cls(prepare, config)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam for G and for D."""
        config = self.config
        betas = (config.beta1, config.beta2)
        return {
            "G": torch.optim.Adam(self.generator.parameters(), config.lr_g, betas, fused=True),
            "D": torch.optim.Adam(self.discriminator.parameters(), config.lr_d, betas, fused=True),
        }

    def training_step(self, batch: Tensor, state: TrainingState) -> dict[str, Tensor]:
        """One step of D and one of G (equation 1) for prepared images (N, C, H, W), with the same latents."""
        x = batch.contiguous(memory_format=torch.channels_last)
        z = torch.randn(len(x), self.config.latent_dim, generator=state.generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=state.autocast):
            generated = self.pool(self.generator(z).float())
            # Batch norm sees real and generated images apart, or D could tell them by the company they keep.
            real, fake = self.discriminator(x).float(), self.discriminator(generated.detach()).float()
            loss_d = update(state.optimizers["D"], discriminator_loss(real, fake))
            self.discriminator.requires_grad_(False)  # its gradients are not needed here
            loss_g = update(state.optimizers["G"], generator_loss(self.discriminator(generated).float()))
            self.discriminator.requires_grad_(True)
        return {"loss_D": loss_d, "loss_G": loss_g, "logit_real": real.detach().mean()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Of prepared images (N, C, H, W): ``x_hat`` = G(z) of the z that the search finds, ``f`` and ``f_hat``."""
        found: dict[str, Tensor] = self.export_module()(x)
        return found

    def export_module(self) -> Search:
        """Return the search, with batch norm folded into the weights of G and D."""
        config = self.config
        return Search(
            self.generator,
            self.pool,
            self.discriminator.features,
            weight=config.weight,
            steps=config.steps,
            lr=config.search_lr,
            decay=config.search_decay,
            eps=config.search_eps,
            seed=config.seed,
            tolerance=config.early_stop,
        )


METHOD = Anogan
