"""The spectrally normalised convolution against torch's spectral_norm on a plain one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from kizu.layers.spectral import SpectralConv2d


def pair(layout: torch.memory_format) -> tuple[Any, Any, Any]:
    """The layer, torch's with the same weights and singular vectors, and torch's norm."""
    torch.manual_seed(3)
    one: Any = SpectralConv2d(5, 7, (4, 3), 2, 1).double()
    other: Any = nn.Conv2d(5, 7, (4, 3), 2, 1).double()
    other.load_state_dict({name: getattr(one, name).detach().clone() for name in ("weight", "bias")})
    spectral_norm(other)
    norm = other.parametrizations.weight[0]
    norm._u.copy_(one.u)
    norm._v.copy_(of_indices(one))
    return one.to(memory_format=layout), other, norm


def of_indices(layer: SpectralConv2d) -> Tensor:
    """v in the order of a weight's indices; the layer has it in the order of memory channels last."""
    return layer.v.view(*layer.kernel_size, layer.in_channels).permute(2, 0, 1).flatten()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_it_trains_as_torchs_spectral_norm(layout: torch.memory_format) -> None:
    one, other, norm = pair(layout)
    original = other.parametrizations.weight.original
    steps = [torch.optim.SGD(layer.parameters(), 0.1) for layer in (one, other)]
    for mode in (True, True, False, True):
        x = torch.randn(2, 5, 9, 12, dtype=torch.double)
        results = []
        for layer, step in zip((one, other), steps, strict=True):
            layer.train(mode)
            y = layer(x)
            step.zero_grad()
            (y * y.sin()).sum().backward()
            step.step()
            results.append(y.detach())
        torch.testing.assert_close(*results)
        torch.testing.assert_close(one.weight, original)
        torch.testing.assert_close(one.weight.grad, original.grad)
        torch.testing.assert_close(one.u, norm._u)
        torch.testing.assert_close(of_indices(one), norm._v)


def test_two_passes_before_a_gradient_keep_their_own_vectors() -> None:
    one, other, _ = pair(torch.channels_last)
    x = torch.randn(2, 5, 9, 12, dtype=torch.double)
    for layer in (one, other):
        (layer(x).sin().sum() + layer(-x).cos().sum()).backward()
    torch.testing.assert_close(one.weight.grad, other.parametrizations.weight.original.grad)


def test_evaluation_leaves_the_vectors_alone_and_settling_finds_the_largest_singular_value() -> None:
    layer = SpectralConv2d(3, 6, 4).eval()
    before = layer.u.clone(), layer.v.clone()
    layer(torch.randn(1, 3, 8, 8))
    assert torch.equal(layer.u, before[0])
    assert torch.equal(layer.v, before[1])
    for _ in range(20):
        layer.settle()
    largest = torch.linalg.matrix_norm(layer.normalised().detach().flatten(1), 2)
    assert float(largest) == pytest.approx(1, abs=1e-4)


def test_under_autocast_the_weight_is_rounded_once() -> None:
    layer = SpectralConv2d(3, 6, 4).eval()
    exact = layer.normalised().detach()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer.normalised()
        logits: Any = layer(torch.randn(1, 3, 8, 8))
    logits.float().sum().backward()
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
