"""The search for the latent of an image by gradient descent through G and D (AnoGAN; 2020, equations 2 to 5)."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from kizu.layers.backward import input_gradient, outputs
from kizu.layers.dcgan import Generator
from kizu.layers.folding import fold_batch_norm
from kizu.layers.pooling import ChannelPool
from kizu.layers.spectral import without_spectral_norm
from kizu.method import Iterated

BETA1, BETA2 = 0.9, 0.999  # Adam's


class Search(Iterated):
    """Find the z whose image G(z) is most like x, and return that image.

    It minimises L(z) = (1 - lambda) mean|x - G(z)| + lambda mean|f(x) - f(G(z))| (equation 4, with means for the
    paper's sums, as the rule residual_feature scores) by Adam. The state of N images, all float32:

    * ``f`` (N, K, h, w): the features of x, which stay as they are.
    * ``z``, ``m``, ``v`` (N, latent_dim): the latent, and Adam's averages of its gradient and of that squared.
    * ``t`` (N, 3): the number of steps taken, 1 - beta1^t and 1 - beta2^t, by which Adam divides its averages. These
      two are averages of ones; as powers of a number near 1, engines would compute them less exactly.

    Adam makes a step of full size of a gradient that is next to nothing, and so of its rounding error; and a residual's
    gradient is its sign, which a rounding error turns now and then. Either way the search goes elsewhere. So ``eps``
    leaves alone what is small against a gradient's usual 1e-4 to 1e-2, and with ``decay`` the learning rate falls
    linearly, to 2 / (steps + 1) of it at the last step.

    The gradient of a mean over 196 608 elements is far below what float16 can hold, and that of their sum above: in
    the networks it is multiplied by about the square root of their number, and divided again before Adam.

    Args:
        generator: G; its batch norm goes by its running statistics, as does that of the features.
        pool: from G's images to the prepared images that x is one of; without pooled channels.
        features: f: prepared images (N, C, H, W) to features (N, K, h, w); see ``backward.outputs`` for the layers.
        weight: lambda, from 0 to 1.
        steps: Gamma of the paper, the number of updates (>= 1).
        lr: Adam's learning rate; its betas are 0.9 and 0.999.
        decay: see above.
        eps: Adam's, likewise.
        seed: of the normal latent that every search begins with.
        tolerance: see ``Iterated``.
    """

    z0: Tensor
    gain: Tensor
    offset: Tensor

    def __init__(
        self,
        generator: Generator,
        pool: ChannelPool,
        features: nn.Sequential,
        *,
        weight: float,
        steps: int,
        lr: float,
        decay: bool = True,
        eps: float = 1e-5,
        seed: int = 0,
        tolerance: float = 0.0,
    ) -> None:
        super().__init__()
        if pool.append:
            raise ValueError("the search has no gradient of pooled channels; use a PrepareSpec with pool=False")
        self.weight, self.steps, self.tolerance = weight, steps, tolerance
        self.lr, self.decay, self.eps = lr, decay, eps
        self.generator = fold_batch_norm(generator.layers)
        self.features = fold_batch_norm(without_spectral_norm(features))
        first = self.generator[0]
        assert isinstance(first, nn.ConvTranspose2d)
        z0 = torch.randn(1, first.in_channels, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("z0", z0)
        # (p - mean) / std of pixels p = (image + 1) / 2
        self.register_buffer("gain", 0.5 / pool.std, persistent=False)
        self.register_buffer("offset", (0.5 - pool.mean) / pool.std, persistent=False)
        self.identical = bool((self.gain == 1).all() and (self.offset == 0).all())

    def start(self, x: Tensor) -> dict[str, Tensor]:
        """See ``Iterated``."""
        z = self.z0.expand(x.shape[0], -1)
        return {
            "f": self.features(x.to(self._dtype)).float(),
            "z": z.clone(),
            "m": torch.zeros_like(z),
            "v": torch.zeros_like(z),
            "t": torch.zeros(1, 3).expand(x.shape[0], -1).clone(),
        }

    def step(self, x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``Iterated``."""
        z, f = state["z"], state["f"]
        made = outputs(self.generator, z[:, :, None, None].to(self._dtype))
        image = made[-1] if self.identical else made[-1] * self.gain + self.offset
        seen = outputs(self.features, image)
        x_hat, f_hat = image.float(), seen[-1].float()
        off, f_off = x_hat - x, f_hat - f
        residual, matching = off.abs().flatten(1).mean(1), f_off.abs().flatten(1).mean(1)

        elements, f_elements = x[0].numel(), f[0].numel()
        scale = 2.0 ** round(math.log2(elements) / 2)
        gradient = input_gradient(
            self.features, seen, (f_off.sign() * (self.weight * scale / f_elements)).to(image.dtype)
        )
        gradient = gradient + (off.sign() * ((1 - self.weight) * scale / elements)).to(image.dtype)
        gradient = gradient if self.identical else gradient * self.gain
        gradient = input_gradient(self.generator, made, gradient).flatten(1).float() / scale
        return {
            **self._adam(state, gradient),
            "x_hat": x_hat,
            "f_hat": f_hat,
            "loss": (1 - self.weight) * residual + self.weight * matching,
        }

    def _adam(self, state: dict[str, Tensor], gradient: Tensor) -> dict[str, Tensor]:
        m = BETA1 * state["m"] + (1 - BETA1) * gradient
        v = BETA2 * state["v"] + (1 - BETA2) * gradient * gradient
        t = state["t"] * torch.tensor([1, BETA1, BETA2]) + torch.tensor([1, 1 - BETA1, 1 - BETA2])
        lr = self.lr * (1 - state["t"][:, :1] / (self.steps + 1)) if self.decay else self.lr
        z = state["z"] - lr * (m / t[:, 1:2]) / ((v / t[:, 2:]).sqrt() + self.eps)
        return {"z": z, "m": m, "v": v, "t": t}

    def halved(self) -> Search:
        """See ``Iterated``."""
        half = copy.deepcopy(self)
        for networks in (half.generator, half.features):
            networks.half()
        half.gain, half.offset = half.gain.half(), half.offset.half()
        return half

    @property
    def _dtype(self) -> torch.dtype:
        """What the networks compute in."""
        return next(self.generator.parameters()).dtype
