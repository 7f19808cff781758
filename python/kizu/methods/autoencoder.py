"""An autoencoder that scores by its residual: the baseline of table 1 (Komoto, Aizawa & Kato 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from kizu.layers.dcgan import Encoder, Generator, of_images
from kizu.layers.pooling import ChannelPool
from kizu.method import Method, TrainingState, check_config, update

if TYPE_CHECKING:
    from kizu.prepare import PrepareSpec


@dataclass(frozen=True)
class AutoencoderConfig:
    """Settings of the autoencoder. The paper names none but its citation; they are those of the GANs it is compared to.

    Attributes:
        width: channels of each network's first (decoder: last) hidden layer; they double at each layer up to eight
            times that.
        latent_dim: length of the code. What it can hold decides what cannot be reconstructed.
        lr: Adam's learning rate.
        beta1, beta2: Adam's momenta.
    """

    width: int = 64
    latent_dim: int = 100
    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        check_config(self, below_one=("beta1", "beta2"), counted=("width", "latent_dim"), positive=("lr",))


class Autoencoder(Method):
    """Encoder and decoder, trained to minimise what they score by: mean|x - x_hat| (equation 7)."""

    paper: ClassVar[str] = (
        "G. E. Hinton and R. R. Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, Science 313, "
        "2006"
    )
    scoring = "residual"
    config_type: ClassVar[type] = AutoencoderConfig
    least_batch: ClassVar[int] = 2  # batch norm of latents, which have one value a channel

    def __init__(self, prepare: PrepareSpec, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        shared = {**of_images(prepare, config.width), "latent_dim": config.latent_dim}
        self.encoder = Encoder(**shared)
        self.decoder = Generator(**shared)
        self.pool = ChannelPool(prepare)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def create(cls, prepare: PrepareSpec, config: Any) -> Autoencoder:
        """Build the networks for square inputs of 32, 64, 128, 256 or 512 pixels."""
        return cls(prepare, config)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam for both networks."""
        config = self.config
        return {"E": torch.optim.Adam(self.parameters(), config.lr, (config.beta1, config.beta2), fused=True)}

    def training_step(self, batch: Tensor, state: TrainingState) -> dict[str, Tensor]:
        """Lower the residual of one batch (N, C, H, W)."""
        x = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=state.autocast):
            x_hat = self.decoder(self.encoder(x))
        loss = (x - self.pool(x_hat.float())).abs().mean()
        return {"loss_residual": update(state.optimizers["E"], loss)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Reconstruct prepared images (N, C, H, W): ``{"x_hat": (N, C, H, W)}``."""
        return {"x_hat": self.pool(self.decoder(self.encoder(x)))}

    def export_module(self) -> nn.Module:
        """Return the method itself: all of it is exported."""
        return self


METHOD = Autoencoder
