"""Pseudo-anomalies made of good images: a patch of one pasted into another (after CutPaste, Li et al., CVPR 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def paste_patches(
    images: Tensor, generator: torch.Generator, *, area: tuple[float, float] = (0.02, 0.5), aspect: float = 3.0
) -> Tensor:
    """Paste into each image a rectangle from another place, of itself or, as often, of the image before it.

    Args:
        images: (N, C, H, W); not changed. Before the first comes the last.
        generator: source of the draw.
        area: range of the rectangle's share of the image, drawn evenly.
        aspect: its sides' ratio lies between this and its inverse, drawn evenly in the logarithm.

    Returns:
        Images (N, C, H, W). The rectangle is at least a pixel and at most all but a pixel high and wide.
    """
    n, _, height, width = images.shape
    size = torch.empty(n).uniform_(*area, generator=generator) * (height * width)
    ratio = torch.empty(n).uniform_(-math.log(aspect), math.log(aspect), generator=generator).exp()
    masks, sources = [], []
    for side, whole in (((size * ratio).sqrt(), height), ((size / ratio).sqrt(), width)):
        length = side.round().clamp(1, max(whole - 1, 1))
        start, to = ((torch.rand(n, generator=generator) * (whole - length + 1)).floor().long() for _ in range(2))
        place = torch.arange(whole)[None]
        masks.append((place >= to[:, None]) & (place < to[:, None] + length[:, None]))
        sources.append((place + (start - to)[:, None]).clamp(0, whole - 1))
    own = torch.arange(n)
    donor = torch.where(torch.rand(n, generator=generator) < 0.5, own, own.roll(1))
    patches = images[donor[:, None, None], :, sources[0][:, :, None], sources[1][:, None, :]].permute(0, 3, 1, 2)
    return torch.where((masks[0][:, :, None] & masks[1][:, None, :])[:, None], patches, images)
