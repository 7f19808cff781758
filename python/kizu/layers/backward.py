"""The gradient of a chain of layers with respect to its input, by operations that ONNX has.

It is what automatic differentiation gives for layers in evaluation mode, written out so that an engine can compute it:
the gradient of a convolution is a transposed convolution with the same weights, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def outputs(layers: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each layer computes, ``x`` first: the chain's output comes last. Nothing is overwritten.

    The layers: Conv2d, ConvTranspose2d, BatchNorm2d (by its running statistics), ReLU, LeakyReLU, Tanh, Sequential.

    Raises:
        TypeError: there is another layer.
    """
    made = [x]
    for layer in _flat(layers):
        made.append(_output(layer, made[-1]))
    return made


def input_gradient(layers: nn.Sequential, made: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """The gradient with respect to the chain's input.

    Args:
        layers: as for ``outputs``.
        made: what ``outputs`` returned.
        gradient: that with respect to the chain's output, in its shape.
    """
    chain = list(_flat(layers))
    for layer, x, y in zip(chain[::-1], made[-2::-1], made[:0:-1], strict=True):
        gradient = _gradient(layer, x, y, gradient)
    return gradient


def _flat(layers: nn.Sequential) -> Iterator[nn.Module]:
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            yield from _flat(layer)
        else:
            yield layer


def _output(layer: nn.Module, x: Tensor) -> Tensor:
    y: Tensor
    if isinstance(layer, nn.ReLU):  # not in place: the gradient needs what it reads
        y = F.relu(x)
    elif isinstance(layer, nn.LeakyReLU):
        y = F.leaky_relu(x, layer.negative_slope)
    elif isinstance(layer, nn.BatchNorm2d):
        y = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
    elif type(layer) in (nn.ConvTranspose2d, nn.Tanh) or (
        type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    ):  # not those that are derived from them: their weights may be others than those that they hold
        y = layer(x)
    else:
        raise TypeError(f"the gradient of {layer} is not written; see kizu.layers.backward.outputs for what is")
    return y


def _gradient(layer: nn.Module, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with respect to a layer's input x, from that with respect to its output y."""
    if isinstance(layer, nn.ReLU):
        return torch.where(y > 0, gradient, 0.0)
    if isinstance(layer, nn.LeakyReLU):
        return torch.where(y > 0, gradient, gradient * layer.negative_slope)
    if isinstance(layer, nn.Tanh):
        return gradient * (1 - y * y)
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_var is not None
        scale = torch.rsqrt(layer.running_var + layer.eps)
        return gradient * (scale if layer.weight is None else scale * layer.weight)[:, None, None]
    if isinstance(layer, nn.ConvTranspose2d):
        stride, padding, dilation = _pair(layer.stride), _pair(layer.padding), _pair(layer.dilation)
        made = F.conv2d(gradient, layer.weight, None, stride, padding, dilation, layer.groups)
        return made[:, :, : x.shape[2], : x.shape[3]] if made.shape[2:] != x.shape[2:] else made
    assert isinstance(layer, nn.Conv2d)
    stride, padding, dilation = _pair(layer.stride), _pair(layer.padding), _pair(layer.dilation)
    # Rows and columns at the end that no kernel reached: their gradient is 0.
    left = [
        (n + 2 * p - d * (k - 1) - 1) % s
        for n, k, s, p, d in zip(x.shape[2:], layer.kernel_size, stride, padding, dilation, strict=True)
    ]
    return F.conv_transpose2d(gradient, layer.weight, None, stride, padding, _pair(left), layer.groups, dilation)


def _pair(values: str | Sequence[int]) -> tuple[int, int]:
    assert not isinstance(values, str)
    first, second = values
    return first, second
