"""Gradients of layers with respect to their input, against automatic differentiation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kizu.layers.backward import input_gradient, outputs
from kizu.layers.dcgan import Generator, halving
from kizu.layers.folding import fold_batch_norm
from kizu.layers.spectral import SpectralConv2d

small = st.integers(1, 3)


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """Of a convolution: its sizes differ in height and width."""
    groups = draw(st.integers(1, 2))

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    return {
        "channels": (groups * draw(small), groups * draw(small)),
        "kernel_size": pair(1, 4),
        "stride": pair(1, 3),
        "padding": pair(0, 2),
        "dilation": pair(1, 2),
        "groups": groups,
        "bias": draw(st.booleans()),
        "size": pair(8, 12),
    }


def by_hand(layers: nn.Sequential, x: Tensor, gradient: Tensor) -> Tensor:
    with torch.inference_mode():
        return input_gradient(layers, outputs(layers, x), gradient)


def check(layers: nn.Sequential, x: Tensor) -> None:
    """The chain's output and its gradient for a random one are those of torch."""
    layers.eval()
    oracle = copy.deepcopy(layers)
    for layer in oracle.modules():
        if isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
            layer.inplace = False  # which automatic differentiation does not always take
    x = x.requires_grad_(True)
    y = oracle(x)
    gradient = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, gradient)
    x = x.detach()
    before = x.clone()
    torch.testing.assert_close(outputs(layers, x)[-1].detach(), y.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_hand(layers, x, gradient), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(x, before)  # no layer worked in place


@settings(max_examples=150, deadline=None)
@given(geometry=geometries(), transposed=st.booleans(), data=st.data())
def test_convolutions(geometry: dict[str, Any], transposed: bool, data: st.DataObject) -> None:
    torch.manual_seed(0)
    size, (n_in, n_out) = geometry.pop("size"), geometry.pop("channels")
    kind: Any = nn.ConvTranspose2d if transposed else nn.Conv2d
    if transposed:
        most = [max(s, d) - 1 for s, d in zip(geometry["stride"], geometry["dilation"], strict=True)]
        geometry["output_padding"] = tuple(data.draw(st.integers(0, m)) for m in most)
        size = (size[0] - 3, size[1] - 3)
    check(nn.Sequential(kind(n_in, n_out, **geometry).double()), torch.randn(2, n_in, *size, dtype=torch.double))


def batch_norm(channels: int, **options: Any) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, **options)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.1, 3)
    if layer.weight is not None:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(inplace=True),
        nn.LeakyReLU(0.2, inplace=True),
        nn.LeakyReLU(0.01),
        nn.Tanh(),
        batch_norm(3),
        batch_norm(3, affine=False),
        nn.Sequential(),
        nn.Sequential(nn.Tanh(), nn.Sequential(nn.LeakyReLU(0.3, inplace=True), nn.Tanh())),
        nn.Sequential(nn.Tanh(), nn.ReLU(inplace=True)),  # in place, it would write over what tanh needs
    ],
    ids=str,
)
def test_layers_between_convolutions(layer: nn.Module) -> None:
    torch.manual_seed(0)
    check(nn.Sequential(layer).double(), torch.randn(4, 3, 5, 7, dtype=torch.double))


def test_at_zero_activations_have_the_gradient_of_torch() -> None:
    for layer in (nn.ReLU(), nn.LeakyReLU(0.2)):
        check(nn.Sequential(layer), torch.tensor([-0.0, 0.0, -1.0, 1.0], dtype=torch.double).view(1, 1, 2, 2))


@pytest.mark.parametrize("size", [32, 64])
def test_a_generator_and_a_discriminator(size: int) -> None:
    torch.manual_seed(0)
    generator = Generator(size=size, channels=3, latent_dim=5, width=2).layers
    features = nn.Sequential(*halving(3, [2, 4], norm=False), *halving(4, [3]))
    for chain in (generator, features):
        for i, layer in enumerate(chain):
            if isinstance(layer, nn.BatchNorm2d):
                chain[i] = batch_norm(layer.num_features)
    check(generator.double(), torch.randn(3, 5, 1, 1, dtype=torch.double))
    check(features.double(), torch.randn(3, 3, size, size, dtype=torch.double))
    for chain, x in ((generator, torch.randn(3, 5, 1, 1)), (features, torch.randn(3, 3, size, size))):
        x = x.double()
        folded = fold_batch_norm(chain)
        assert not [layer for layer in folded if isinstance(layer, nn.BatchNorm2d)]
        torch.testing.assert_close(folded(x), chain.eval()(x), rtol=1e-10, atol=1e-12)
        check(folded, x)


def test_folding_copies_and_keeps_what_it_cannot_fold() -> None:
    layers = [batch_norm(2), nn.Conv2d(2, 3, 3), nn.ReLU(), batch_norm(3), nn.Conv2d(3, 2, 1), batch_norm(2)]
    chain = nn.Sequential(*layers)
    chain.train()
    folded = fold_batch_norm(chain)
    assert [type(layer) for layer in folded] == [type(layer) for layer in layers[:-1]]
    assert not folded.training
    assert chain.training
    assert all(layer.training for layer in layers)
    x = torch.randn(2, 2, 6, 5)
    torch.testing.assert_close(folded(x), chain.eval()(x), rtol=1e-5, atol=1e-6)
    held = {id(tensor) for tensor in chain.state_dict(keep_vars=True).values()}
    assert not held & {id(tensor) for tensor in folded.state_dict(keep_vars=True).values()}


@pytest.mark.parametrize(
    "layer",
    [
        nn.GELU(),
        nn.Linear(2, 2),
        SpectralConv2d(2, 2, 3),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, 3, padding="same"),
    ],
    ids=str,
)
def test_other_layers_are_refused(layer: nn.Module) -> None:
    with pytest.raises(TypeError, match="is not written"):
        outputs(nn.Sequential(layer), torch.zeros(1, 2, 8, 8))
