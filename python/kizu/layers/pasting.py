"""Pseudo-anomalies made of good images: a patch of one pasted into another (after CutPaste, Li et al., CVPR 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def paste_patches(
    images: Tensor, generator: torch.Generator, *, area: tuple[float, float] = (0.01, 0.3), aspect: float = 3.0
) -> Tensor:
    """Paste into each image a rectangle of the image before it (the first: of the last), at another place.

    Args:
        images: (N, C, H, W); not changed. A single image is pasted into itself.
        generator: source of the draw.
        area: range of the rectangle's share of the image, drawn evenly in its logarithm.
        aspect: its sides' ratio lies between this and its inverse, evenly in the logarithm.

    Returns:
        Images (N, C, H, W). The rectangle is at least a pixel and at most all but a pixel high and wide.
    """
    n, _, height, width = images.shape

    def log_uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(math.log(low), math.log(high), generator=generator).exp()

    size, ratio = log_uniform(*area) * (height * width), log_uniform(1 / aspect, aspect)
    masks, sources = [], []
    for side, whole in (((size * ratio).sqrt(), height), ((size / ratio).sqrt(), width)):
        length = side.round().clamp(1, max(whole - 1, 1))
        start, to = ((torch.rand(n, generator=generator) * (whole - length + 1)).floor().long() for _ in range(2))
        place = torch.arange(whole)[None]
        masks.append((place >= to[:, None]) & (place < to[:, None] + length[:, None]))
        sources.append((place + (start - to)[:, None]).clamp(0, whole - 1))
    donor = torch.arange(n).roll(1)[:, None, None]
    patches = images[donor, :, sources[0][:, :, None], sources[1][:, None, :]].permute(0, 3, 1, 2)
    return torch.where((masks[0][:, :, None] & masks[1][:, None, :])[:, None], patches, images)
