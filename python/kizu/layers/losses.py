"""Losses that methods share."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """A GAN's loss of D from logits (N,), for minimisation: mean of -log D(real), plus mean of -log(1 - D(generated)).

    Equations 1 and 6 of the consistency BiGAN paper (2020), negated: x, or (x, E(x)), is labelled 1, and G(z), or
    (G(z), z), is labelled 0.
    """
    return softplus(-real).mean() + softplus(generated).mean()
