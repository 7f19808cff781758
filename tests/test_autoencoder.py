"""The autoencoder: its residual, its training steps, what it exports and scores."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kizu.errors import TrainingError
from kizu.methods.autoencoder import Autoencoder, AutoencoderConfig
from kizu.prepare import PrepareSpec
from plain_networks import (
    MONO,
    ODD,
    RGB,
    PlainAdam,
    PlainE,
    PlainG,
    as_input,
    assert_an_image_is_scored_alone,
    assert_export_is_the_method,
    assert_reconstructions_are_in_prepared_units,
    real_images,
    state_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def make(spec: PrepareSpec = RGB, *, seed: int = 0, **config: Any) -> Autoencoder:
    torch.manual_seed(seed)
    method = Autoencoder.create(spec, AutoencoderConfig(**{"width": 4, "latent_dim": 8, **config}))
    method.start(batches=2, batch_size=8)
    return method.train()


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("spec", [MONO, ODD], ids=["mono", "odd"])
def test_training_steps_lower_the_residual_that_is_scored(spec: PrepareSpec) -> None:
    method = make(spec, lr=3e-4, beta1=0.4, beta2=0.9)
    e, g = PlainE(method.encoder), PlainG(method.decoder)
    adam = PlainAdam([*e.parameters, *g.parameters], 3e-4, 0.4, 0.9)
    state = state_of(method)
    for j in range(3):
        x = real_images(8, spec, seed=j).double()
        losses = method.training_step(x, state)
        loss = (x - as_input(g(e(x)), spec)).abs().sum() / x.numel()  # equation 7, as its mean over the elements
        adam.step(loss)
        assert list(losses) == ["loss_residual"]
        assert losses["loss_residual"].item() == pytest.approx(loss.item(), rel=1e-9)
    e.assert_is(method.encoder)
    g.assert_is(method.decoder)


def test_it_learns_to_reconstruct() -> None:
    method, x = make(lr=5e-3), torch.linspace(-0.9, 0.9, 24).view(8, 3, 1, 1).expand(-1, -1, 32, 32)
    state = state_of(method)
    losses = [method.training_step(x, state)["loss_residual"].item() for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("spec", [RGB, MONO], ids=["rgb", "mono"])
def test_a_step_under_autocast_is_near_the_one_without(spec: PrepareSpec) -> None:
    losses: list[Tensor] = []
    for autocast in (False, True):
        method = make(spec)
        losses.append(method.training_step(real_images(8, spec), state_of(method, autocast=autocast))["loss_residual"])
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in method.parameters())
    assert losses[1].dtype == torch.float32
    assert float(losses[1]) == pytest.approx(float(losses[0]), abs=0.01)
    assert float(losses[1]) != float(losses[0])  # it was computed otherwise


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("color", ["rgb", "mono"])
def test_every_size_builds(size: int, color: Any) -> None:
    spec = PrepareSpec(size=(size, size), color=color, pool=False)
    method = Autoencoder.create(spec, AutoencoderConfig(width=1, latent_dim=3)).eval()
    x = torch.zeros(2, spec.channels, size, size)
    with torch.no_grad():
        assert method.encoder(x).shape == (2, 3)
        outputs = method(x)
    assert list(outputs) == ["x_hat"]
    assert outputs["x_hat"].shape == x.shape


@pytest.mark.parametrize("size", [(16, 16), (48, 48), (1024, 1024), (32, 64)])
def test_other_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(TrainingError, match=f"{size[0]}x{size[1]}.*32, 64, 128, 256, 512"):
        Autoencoder.create(PrepareSpec(size=size, pool=False), AutoencoderConfig(width=1))


def test_what_is_exported_is_the_method() -> None:
    method, x = make(), real_images(5, RGB)
    state = state_of(method)
    for _ in range(10):
        method.training_step(x, state)
    assert (method.scoring, method.weight) == ("residual", 0)
    assert_export_is_the_method(method, x)
    assert_an_image_is_scored_alone(method, x)


@pytest.mark.parametrize("spec", [RGB, MONO, ODD], ids=["rgb", "mono", "odd"])
def test_reconstructions_are_in_prepared_units(spec: PrepareSpec) -> None:
    assert_reconstructions_are_in_prepared_units(make(spec), "decoder", spec)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("width", 0, "width is 0.*at least 1"),
        ("width", 4.5, "width is 4.5.*whole number"),
        ("latent_dim", -3, "latent_dim is -3"),
        ("lr", 0.0, "lr is 0.0.*greater than 0"),
        ("lr", math.nan, "lr is nan.*finite"),
        ("beta1", 1.0, "beta1 is 1.0.*below 1"),
        ("beta2", -0.5, "beta2 is -0.5"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        AutoencoderConfig(**{name: value})


def test_all_state_travels_in_the_state_dict() -> None:
    one = make()
    state = state_of(one)
    for j in range(3):
        one.training_step(real_images(8, RGB, seed=j), state)
    other = make(seed=9)
    other.load_state_dict(one.state_dict())
    state_other = state_of(other)
    state_other.optimizers["E"].load_state_dict(copy.deepcopy(state.optimizers["E"].state_dict()))
    for j in range(3):
        x = real_images(8, RGB, seed=10 + j)
        losses = [method.training_step(x, s)["loss_residual"] for method, s in ((one, state), (other, state_other))]
        assert torch.equal(*losses)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
