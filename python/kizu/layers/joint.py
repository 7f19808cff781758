"""The discriminator of the bi-directional family: it judges an image and its latent together (2020, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kizu.layers.dcgan import halving, initialise, stage_widths
from kizu.layers.spectral import SpectralConv2d

Conditioning = Literal["concat", "projection"]


class JointDiscriminator(nn.Module):
    """(x, z), of (N, channels, size, size) and (N, latent_dim), to one logit a pair and the features f(x, z).

    ``phi`` halves the image down to 4x4 with convolutions that have spectral and batch normalisation and LeakyReLU.

    - "concat" (figure 3a): z is appended to each position's channels, a 1x1 convolution of the same kind mixes the two,
      and a convolution over the 4x4 positions gives the logit. f is what the 1x1 convolution gives: the deepest layer
      that has seen both.
    - "projection" (equation 13): ``h = FC_zdim(GSP(phi(x)))``, ``D(x, z) = FC_1(h) + <h, z>``, GSP being global sum
      pooling; no embedding. f is ``phi(x)``: no layer but the inner product has seen z.
    """

    def __init__(self, *, size: int, channels: int, latent_dim: int, width: int, conditioning: Conditioning) -> None:
        super().__init__()
        widths = stage_widths(size, width)
        self.phi = nn.Sequential(*halving(channels, widths, spectral=True))
        self.conditioning = conditioning
        last = widths[-1]
        if conditioning == "concat":
            self.mixed = nn.Sequential(
                SpectralConv2d(last + latent_dim, last, 1, bias=False),
                nn.BatchNorm2d(last),
                nn.LeakyReLU(0.2, inplace=True),
            )
            self.logit = SpectralConv2d(last, 1, 4)
        else:
            self.h = nn.Linear(last, latent_dim)
            self.logit_of_h = nn.Linear(latent_dim, 1)
        self.apply(initialise)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N,) and features (N, width, 4, 4) of pairs."""
        phi = self.phi(x)
        if self.conditioning == "concat":
            everywhere = z[:, :, None, None].expand(-1, -1, phi.shape[2], phi.shape[3])
            f = self.mixed(torch.cat([phi, everywhere.to(phi.dtype)], 1))
            return self.logit(f).flatten(), f
        h = self.h(global_sum_pool(phi))
        return self.logit_of_h(h).flatten() + (h * z).sum(1), phi


def global_sum_pool(images: Tensor) -> Tensor:
    """Sum over the positions: (N, C, H, W) to (N, C)."""
    return images.sum((2, 3))
