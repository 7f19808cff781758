"""DCGAN-like networks (ALGAN 2022, section IV-A-1): 4x4 kernels, each step doubles or halves.

The bi-directional family (2020) leaves its networks open and takes the same; see ``layers/joint.py`` for its D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kizu.errors import TrainingError
from kizu.layers.spectral import SpectralConv2d, without_spectral_norm

if TYPE_CHECKING:
    from kizu.prepare import PrepareSpec

MIN_SIZE, MAX_SIZE = 32, 512


def check_size(height: int, width: int) -> int:
    """Return the side of a square input if it is a power of two in [32, 512]; raises TrainingError if not."""
    if height != width or height & (height - 1) or not MIN_SIZE <= height <= MAX_SIZE:
        raise TrainingError(
            f"input size {height}x{width} is not supported: height and width must be equal and one of "
            "32, 64, 128, 256, 512"
        )
    return height


def of_images(prepare: PrepareSpec, width: int) -> dict[str, Any]:
    """Settings of networks that read prepared images and make such images: ``size``, ``channels`` and ``width``.

    Raises:
        TrainingError: the size is not supported, or the images have pooled channels, which nothing could reconstruct
            but by their formula.
    """
    if prepare.pool:
        raise TrainingError(
            "the method reconstructs a frame's own channels, but prepare appends their maximum and mean; use a "
            "PrepareSpec with pool=False"
        )
    return {"size": check_size(*prepare.size), "channels": prepare.own_channels, "width": width}


def stage_widths(size: int, width: int) -> list[int]:
    """Channels after each halving from ``size`` to 4: ``width`` doubling up to ``8 * width``.

    At 256 with width 64: 64, 128, 256, 512, 512, 512, six stages and with the last layer the paper's seven.
    """
    return [width * min(2**i, 8) for i in range(size.bit_length() - 3)]


def initialise(module: nn.Module) -> None:
    """DCGAN's initial weights: N(0, 0.02) for convolutions and the like, N(1, 0.02) for batch norm's scale."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, SpectralConv2d):
            module.settle()
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def halving(channels: int, widths: list[int], *, spectral: bool = False, norm: bool = True) -> list[nn.Module]:
    """Layers that halve an image at each width: convolution, batch norm with ``norm``, LeakyReLU(0.2)."""
    convolution = SpectralConv2d if spectral else nn.Conv2d
    layers: list[nn.Module] = []
    for n_in, n_out in zip([channels, *widths], widths, strict=False):
        layers.append(convolution(n_in, n_out, 4, 2, 1, bias=not norm))
        layers += [nn.BatchNorm2d(n_out)] if norm else []
        layers.append(nn.LeakyReLU(0.2, inplace=True))
    return layers


class Encoder(nn.Module):
    """x (N, channels, size, size) to latents (N, latent_dim): the mirror image of ``Generator``.

    Convolutions with batch norm and LeakyReLU(0.2). The output layer has batch norm, too, which brings the latents to
    the scale of z ~ N(0, 1) before any training; without it E fools a discriminator by the length of its latents alone.
    """

    def __init__(self, *, size: int, channels: int, latent_dim: int, width: int) -> None:
        super().__init__()
        widths = stage_widths(size, width)
        last = [nn.Conv2d(widths[-1], latent_dim, 4, bias=False), nn.BatchNorm2d(latent_dim)]
        self.layers = nn.Sequential(*halving(channels, widths), *last)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, size, size) to latents (N, latent_dim)."""
        z: Tensor = self.layers(x)
        return z.flatten(1)


class Generator(nn.Module):
    """z (N, latent_dim) to an image (N, channels, size, size) in [-1, 1].

    Transposed convolutions with batch norm and ReLU; none on the output layer, which ends in tanh.
    """

    def __init__(self, *, size: int, channels: int, latent_dim: int, width: int) -> None:
        super().__init__()
        widths = stage_widths(size, width)[::-1]
        layers: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(zip([latent_dim, *widths], widths, strict=False)):
            stride, padding = (1, 0) if i == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(n_in, n_out, 4, stride, padding, bias=False),
                nn.BatchNorm2d(n_out),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(initialise)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents (N, latent_dim) to images (N, channels, size, size)."""
        images: Tensor = self.layers(z[:, :, None, None])
        return images


class Discriminator(nn.Module):
    """x (N, channels, size, size) to one logit an image (N,); high means normal.

    Convolutions with spectral normalisation and LeakyReLU(0.2), no batch norm. With ``standardise`` each image first
    loses its own mean and variance over all channels and pixels, and with them how it was exposed.
    """

    def __init__(self, *, size: int, channels: int, width: int, standardise: bool = False) -> None:
        super().__init__()
        self.standardise = nn.GroupNorm(1, channels, eps=1e-4, affine=False) if standardise else nn.Identity()
        widths = stage_widths(size, width)
        layers = halving(channels, widths, spectral=True, norm=False)
        self.layers = nn.Sequential(*layers, SpectralConv2d(widths[-1], 1, 4))
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N,) of images (N, channels, size, size)."""
        logits: Tensor = self.layers(self.standardise(x))
        return logits.flatten()

    def folded(self) -> Discriminator:
        """Return a copy with plain convolutions that hold the normalised weights, in evaluation mode."""
        return without_spectral_norm(self).eval().requires_grad_(False)
