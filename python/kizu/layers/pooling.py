"""The pooled channels of ALGAN-image's input, for generated images (ALGAN 2022, section IV-B-5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from kizu.prepare import PrepareSpec


class ChannelPool(nn.Module):
    """Bring generated images to the model's input by the formula that ``prepare`` applies to frames.

    Images (N, own channels, H, W) in [-1, 1] are taken as pixels p = (image + 1) / 2 in [0, 1]; their maximum
    and mean over the channels are appended where the spec pools, and all are normalised, (p - mean) / std.
    Real images pass through the same formula on integers, so that D cannot tell a fake by its pooled channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, prepare: PrepareSpec) -> None:
        super().__init__()
        self.append = prepare.channels > prepare.own_channels
        self.register_buffer("mean", torch.tensor(prepare.channel_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(prepare.channel_std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, channels, H, W) of images (N, own channels, H, W) in [-1, 1]."""
        pixels = (images + 1) / 2
        if self.append:
            pixels = torch.cat([pixels, pixels.amax(1, keepdim=True), pixels.mean(1, keepdim=True)], 1)
        return (pixels - self.mean) / self.std
