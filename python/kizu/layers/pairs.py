"""Images and their reconstructions through one pass of a network."""

from __future__ import annotations

import torch
from torch import Tensor


def paired(first: Tensor, second: Tensor) -> Tensor:
    """Two batches (N, ...) as one (2N, ...), each image beside its partner.

    Not one batch behind the other: OpenVINO 2026.4.1 loses the sign of int8 values concatenated along the batch.
    """
    return torch.stack((first, second), 1).flatten(0, 1)


def unpaired(both: Tensor) -> tuple[Tensor, Tensor]:
    """What ``paired`` joined, or what a network made of it."""
    first, second = both.view(-1, 2, *both.shape[1:]).unbind(1)
    return first, second
