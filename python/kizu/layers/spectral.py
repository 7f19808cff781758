"""Convolution with spectral normalisation (Miyato et al. 2018), made for training on processors."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

Network = TypeVar("Network", bound=nn.Module)
_START = 15  # power iterations on the initial weights


class SpectralConv2d(nn.Conv2d):
    """Conv2d with its weight divided by its largest singular value.

    As torch's ``spectral_norm``: a pass in training mode takes one power iteration, and the gradient flows through the
    singular value with its vectors held fixed. Here the division and its gradient take fewer walks through the
    weights, which are read as they lie in memory, channels last, and under autocast come out in its type at once.
    """

    u: Tensor
    v: Tensor

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        matrix = _matrix(self.weight.detach())
        for name, length in zip("uv", matrix.shape, strict=True):
            self.register_buffer(name, normalize(torch.randn(length), dim=0))

    def settle(self) -> None:
        """Bring the singular vectors near those of the weights as they are."""
        for _ in range(_START):
            self._iterate()

    def normalised(self) -> Tensor:
        """The weight over its singular value."""
        sigma = torch.dot(self.u, torch.mv(_matrix(self.weight.detach()), self.v))
        type_ = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        normalised: Tensor = _Normalised.apply(self.weight, sigma, self.u, self.v, type_)  # type: ignore[no-untyped-call]
        return normalised

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        if self.training:
            self._iterate()
        y: Tensor = self._conv_forward(x, self.normalised(), self.bias)
        return y

    @torch.no_grad()
    def plain(self) -> nn.Conv2d:
        """A convolution that holds the normalised weight."""
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn only to be replaced
            convolution = nn.Conv2d(
                self.in_channels,
                self.out_channels,
                self.kernel_size,  # type: ignore[arg-type]
                self.stride,  # type: ignore[arg-type]
                self.padding,  # type: ignore[arg-type]
                bias=self.bias is not None,
            )
        convolution = convolution.to(self.weight)
        convolution.weight.copy_(self.normalised())
        if self.bias is not None and convolution.bias is not None:
            convolution.bias.copy_(self.bias)
        return convolution

    @torch.no_grad()
    def _iterate(self) -> None:
        matrix = _matrix(self.weight)
        self.u = normalize(torch.mv(matrix, self.v), dim=0)
        self.v = normalize(torch.mv(matrix.T, self.u), dim=0)


def without_spectral_norm(module: Network) -> Network:
    """A copy of a network with plain convolutions that hold the normalised weights."""
    plain = copy.deepcopy(module)
    for parent in plain.modules():
        for name, child in parent.named_children():
            if isinstance(child, SpectralConv2d):
                setattr(parent, name, child.plain())
    return plain


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor, type_: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight, u, v)
        ctx.scale = float(1 / sigma)
        normalised: Tensor = weight * ctx.scale
        return normalised.to(type_)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Of W / s with s = u' W v: gradient / s - <gradient, W> / s^2 u v'."""
        weight, u, v = ctx.saved_tensors
        matrix = _matrix(gradient).to(weight.dtype, copy=True)
        along = float(torch.dot(matrix.flatten(), _matrix(weight).flatten()))
        matrix.addr_(u, v, beta=ctx.scale, alpha=-along * ctx.scale**2)
        outputs, inputs, height, width = weight.shape
        return matrix.view(outputs, height, width, inputs).permute(0, 3, 1, 2), None, None, None, None


def _matrix(weight: Tensor) -> Tensor:
    """A row an output channel; a view where the weight lies in memory channels last, else a copy."""
    return weight.permute(0, 2, 3, 1).flatten(1)
