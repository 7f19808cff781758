"""Exponential moving averages of networks' weights, which score steadier than the last batch's weights do."""

from __future__ import annotations

import torch
from torch import nn

from kizu.layers.spectral import SpectralConv2d, without_spectral_norm


def start_average(network: nn.Module) -> nn.Module:
    """A copy of a network to hold its average: with plain convolutions for spectral ones, and not to be trained."""
    return without_spectral_norm(network).requires_grad_(False)


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, *, decay: float, batches: int) -> None:
    """Move an average towards its network, after the network's step number ``batches`` (from 1).

    Averaged are weights as they act, spectral norm divided out. Batch norm's running statistics are not: those of the
    average come from what passes through it. The decay begins with (1 + batches) / (10 + batches), so that the initial
    weights are soon forgotten, and ``decay`` is its limit.
    """
    share = 1 - min(decay, (1 + batches) / (10 + batches))
    for to, layer in zip(average.modules(), network.modules(), strict=True):
        for name, value in to.named_parameters(recurse=False):
            if name == "weight" and isinstance(layer, SpectralConv2d):
                value.lerp_(layer.normalised(), share)
            else:
                value.lerp_(layer.get_parameter(name), share)
