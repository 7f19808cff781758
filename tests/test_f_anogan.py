"""f-AnoGAN against its papers: WGAN-GP's algorithm 1, the encoder's loss, and what stands still when."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import make_parts
from kizu.errors import TrainingError
from kizu.method import TrainingState
from kizu.methods.f_anogan import FAnogan, FAnoganConfig, encoder_loss, gradient_penalty
from kizu.prepare import PrepareSpec
from kizu.training import train
from plain_networks import (
    MONO,
    ODD,
    RGB,
    PlainAdam,
    PlainD,
    PlainE,
    PlainG,
    as_input,
    assert_an_image_is_scored_alone,
    assert_export_is_the_method,
    assert_reconstructions_are_in_prepared_units,
    real_images,
    state_of,
)
from training_helpers import read_log, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

Place = tuple[int, int]  # epoch, batch of it


def make(spec: PrepareSpec = RGB, *, seed: int = 0, **config: Any) -> FAnogan:
    torch.manual_seed(seed)
    values = {"width": 4, "latent_dim": 8, "gan_epochs": 2, "n_critic": 2, **config}
    method = FAnogan.create(spec, FAnoganConfig(**values))
    method.start(batches=3, batch_size=8)
    return method.train()


def run(method: FAnogan, state: TrainingState, places: Sequence[Place]) -> list[dict[str, Tensor]]:
    losses = []
    for state.epoch, state.batch_index in places:
        losses.append(method.training_step(real_images(8, RGB, seed=10 * state.epoch + state.batch_index), state))
    return losses


def everything(*parts: nn.Module) -> list[Tensor]:
    """Weights and running statistics as they are now."""
    return [value.clone() for part in parts for value in part.state_dict().values()]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


# --- Losses ---


class Linear(nn.Module):
    """<w, x>: its gradient is w everywhere."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return (x * self.w).sum((1, 2, 3)), None


class Quadratic(Linear):
    """w |x|^2 / 2: its gradient is w x."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return (x.square() * self.w / 2).sum((1, 2, 3)), None


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, scale=st.floats(0.01, 100), seed=st.integers(0, 2**32 - 1))
def test_the_gradient_penalty_of_a_linear_critic(shape: tuple[int, ...], scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape[1:]) * scale
    critic = Linear(torch.tensor(w))
    real, generated = (torch.tensor(rng.standard_normal(shape)) for _ in range(2))
    penalty = gradient_penalty(critic, real, generated, torch.rand(shape[0], 1, 1, 1).double())
    length = np.linalg.norm(w)
    assert penalty.item() == pytest.approx((length - 1) ** 2, rel=1e-9)
    (gradient,) = torch.autograd.grad(penalty, critic.w)
    np.testing.assert_allclose(gradient.numpy(), 2 * (length - 1) * w / length, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1))
def test_the_gradient_penalty_is_taken_between_the_images(shape: tuple[int, ...], seed: int) -> None:
    """Each image has its own place on the line, and its own norm."""
    rng = np.random.default_rng(seed)
    real, generated, share = rng.standard_normal(shape), rng.standard_normal(shape), rng.random((shape[0], 1, 1, 1))
    critic = Quadratic(torch.full((), 1.5, dtype=torch.float64))
    penalty = gradient_penalty(critic, *(torch.tensor(array) for array in (real, generated, share)))
    between = (share * real + (1 - share) * generated).reshape(shape[0], -1)
    lengths = np.linalg.norm(between, axis=1)
    assert penalty.item() == pytest.approx(np.mean((1.5 * lengths - 1) ** 2), rel=1e-9)
    (gradient,) = torch.autograd.grad(penalty, critic.w)
    assert gradient.item() == pytest.approx(np.mean(2 * (1.5 * lengths - 1) * lengths), rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, kappa=st.floats(0, 10), seed=st.integers(0, 2**32 - 1))
def test_the_loss_izi_f_and_its_gradient(shape: tuple[int, ...], kappa: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(size) for size in (shape, shape, (shape[0], 5), (shape[0], 5))]
    x, x_hat, f, f_hat = (torch.tensor(array, requires_grad=True) for array in arrays)
    loss = encoder_loss(x, x_hat, f, f_hat, kappa=kappa)
    of_images = [np.linalg.norm((a - b).ravel()) ** 2 / a.size for a, b in zip(*arrays[:2], strict=True)]
    of_features = [np.linalg.norm(a - b) ** 2 / a.size for a, b in zip(*arrays[2:], strict=True)]
    assert loss.item() == pytest.approx(np.mean(of_images) + kappa * np.mean(of_features), rel=1e-9)
    of_x_hat, of_f_hat = torch.autograd.grad(loss, (x_hat, f_hat))
    np.testing.assert_allclose(of_x_hat, 2 * (arrays[1] - arrays[0]) / arrays[0].size, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of_f_hat, 2 * kappa * (arrays[3] - arrays[2]) / arrays[2].size, rtol=1e-9, atol=1e-12)


# --- Training ---

PLACES = [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1)]  # two epochs of the GAN, then the encoder


@pytest.mark.usefixtures("in_double")
def test_training_steps_are_wgan_gp_and_then_the_encoder() -> None:
    method = make(ODD, gradient_penalty=7.0, kappa=0.6, lr=2e-4, lr_e=3e-4, beta1=0.3)
    e, g, c = PlainE(method.encoder), PlainG(method.generator), PlainD(method.critic)
    adam_c, adam_g = PlainAdam(c.parameters, 2e-4, 0.3, 0.9), PlainAdam(g.parameters, 2e-4, 0.3, 0.9)
    adam_e = PlainAdam(e.parameters, 3e-4, 0.9, 0.999)
    state, rng, batches = state_of(method), torch.Generator().manual_seed(0), 0
    for epoch, j in PLACES:
        x = real_images(8, ODD, seed=10 * epoch + j).double()
        state.epoch, state.batch_index = epoch, j
        losses = method.training_step(x, state)
        expected: dict[str, Tensor] = {}
        if epoch <= 2:
            with torch.no_grad():
                x_tilde = as_input(g(torch.randn(8, 8, generator=rng)), ODD)
            share = torch.rand(8, 1, 1, 1, generator=rng)
            between = (share * x + (1 - share) * x_tilde).requires_grad_()
            (gradient,) = torch.autograd.grad(c(between).sum(), between, create_graph=True)
            penalty = ((gradient.square().sum((1, 2, 3)).sqrt() - 1) ** 2).mean()
            expected["loss_C"] = c(x_tilde).mean() - c(x).mean() + 7.0 * penalty
            adam_c.step(expected["loss_C"])
            batches += 1
            if batches % 2 == 0:  # n_critic is counted across epochs
                z = torch.randn(8, 8, generator=rng)
                expected["loss_G"] = -c(as_input(g(z), ODD)).mean()
                adam_g.step(expected["loss_G"])
        else:
            x_hat = as_input(g(e(x), batch_statistics=False, track=False), ODD)
            of_features = (c.features(x) - c.features(x_hat)).square().mean()
            expected["loss_E"] = (x - x_hat).square().mean() + 0.6 * of_features
            adam_e.step(expected["loss_E"])
        assert losses.keys() == expected.keys()
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-7), (epoch, j, name)
    assert batches == int(method.batches) == 6
    for plain, network in ((e, method.encoder), (g, method.generator), (c, method.critic)):
        plain.assert_is(network)


def test_generator_and_critic_stand_still_once_the_encoder_trains() -> None:
    method = make()
    state = state_of(method)
    before = everything(method.encoder)
    run(method, state, PLACES[:6])
    assert all(same(before, everything(method.encoder)))  # the GAN's phase leaves the encoder alone
    still, count = everything(method.generator, method.critic), int(method.batches)
    optimisers = copy.deepcopy([state.optimizers[name].state_dict() for name in "CG"])
    method.eval()  # as a validation does
    method.train()
    losses = run(method, state, PLACES[6:])
    assert all(same(still, everything(method.generator, method.critic)))
    assert int(method.batches) == count
    for was, name in zip(optimisers, "CG", strict=True):
        now = state.optimizers[name].state_dict()["state"]
        assert all(torch.equal(value, now[i][key]) for i, item in was["state"].items() for key, value in item.items())
    moved = same(before, everything(method.encoder))
    assert not any(moved)
    assert [list(step) for step in losses] == [["loss_E"]] * 2


def test_an_update_of_the_critic_leaves_the_generators_weights_alone_and_the_other_way_round() -> None:
    method = make(n_critic=2)
    state = state_of(method)
    weights = [p.detach().clone() for p in method.generator.parameters()]
    critic = everything(method.critic)
    run(method, state, [(1, 0)])  # the critic alone
    assert all(same(weights, [p.detach() for p in method.generator.parameters()]))
    assert not all(same(critic, everything(method.critic)))
    for group in state.optimizers["C"].param_groups:
        group["lr"] = 0.0
    critic = everything(method.critic)
    run(method, state, [(1, 1)])  # both
    assert not any(same(weights, [p.detach() for p in method.generator.parameters()]))
    assert all(same(critic, everything(method.critic)))
    assert all(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("n_critic", [1, 3, 5])
def test_the_generator_is_trained_on_every_nth_batch(n_critic: int) -> None:
    method = make(n_critic=n_critic, gan_epochs=4)
    losses = run(method, state_of(method), [(epoch, j) for epoch in (1, 2, 3) for j in range(3)])
    assert ["loss_G" in step for step in losses] == [(i + 1) % n_critic == 0 for i in range(9)]
    assert all("loss_C" in step for step in losses)


@pytest.mark.parametrize("spec", [RGB, MONO], ids=["rgb", "mono"])
def test_a_step_under_autocast_is_near_the_one_without(spec: PrepareSpec) -> None:
    found: list[dict[str, Tensor]] = []
    for autocast in (False, True):
        method = make(spec, n_critic=1)
        state = state_of(method, autocast=autocast)
        losses: dict[str, Tensor] = {}
        for state.epoch in (1, 3):
            losses |= method.training_step(real_images(8, spec), state)
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in method.parameters())
        found.append(losses)
    exact, rounded = found
    assert list(exact) == ["loss_C", "loss_G", "loss_E"]
    for name in exact:
        assert rounded[name].dtype == torch.float32
        assert float(rounded[name]) == pytest.approx(float(exact[name]), rel=0.03, abs=0.03)
    assert any(float(rounded[name]) != float(exact[name]) for name in exact)  # they were computed otherwise


# --- Through kizu.training ---


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour parts: 40 good, 6 scratched."""
    return make_parts(tmp_path_factory.mktemp("parts") / "data", color=True, good=40, bad=6)


CONFIG = {"width": 4, "latent_dim": 8, "gan_epochs": 3, "n_critic": 3}


def test_too_few_epochs_are_refused_before_any_work(data: Path, tmp_path: Path) -> None:
    for config, first in ((CONFIG, 4), ({"width": 4}, 257)):
        with pytest.raises(
            TrainingError, match=rf"f_anogan can score from epoch {first} on, but epochs is 3.*longer.* gan_epochs=1"
        ):
            train(tiny(data, method="f_anogan", config=config, epochs=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_epoch_of_the_gan_is_validated_or_picked_and_losses_are_means(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []
    step = FAnogan.training_step

    def watched(self: FAnogan, batch: Tensor, state: TrainingState) -> dict[str, Tensor]:
        losses = step(self, batch, state)
        seen.append({name: float(value) for name, value in losses.items()})
        return losses

    monkeypatch.setattr(FAnogan, "training_step", watched)
    outcome = train(
        tiny(data, method="f_anogan", config=CONFIG, epochs=5, validate_every=1, batch_size=5), tmp_path / "run"
    )
    rows = read_log(tmp_path / "run")
    assert [row["val_auroc_good"] != "" for row in rows] == [False, False, False, True, True]
    assert all(picked.epoch > 3 for picked in outcome.picked.values())
    n = len(seen) // 5
    assert n == 3  # the generator's turn comes once an epoch
    for epoch, row in enumerate(rows):
        steps = seen[epoch * n : (epoch + 1) * n]
        for name in ("loss_C", "loss_G", "loss_E"):
            values = [losses[name] for losses in steps if name in losses]
            assert (row[name] == "") == (not values)
            assert (name == "loss_E") == (epoch >= 3) or not values
            if values:
                assert float(row[name]) == pytest.approx(np.mean(values), rel=1e-12)


# --- Networks, what is exported and scored ---


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("color", ["rgb", "mono"])
def test_every_size_builds(size: int, color: Any) -> None:
    spec = PrepareSpec(size=(size, size), color=color, pool=False)
    method = FAnogan.create(spec, FAnoganConfig(width=1, latent_dim=3)).eval()
    convolutions = [module for module in method.critic.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == int(math.log2(size)) - 1
    assert {type(module) for module in convolutions} == {nn.Conv2d}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in method.critic.modules())
    x = torch.zeros(2, spec.channels, size, size)
    with torch.no_grad():
        outputs = method(x)
        assert method.critic(x)[0].shape == (2,)
    assert list(outputs) == ["x_hat", "f", "f_hat"]
    assert outputs["x_hat"].shape == x.shape
    assert outputs["f"].shape == outputs["f_hat"].shape
    assert outputs["f"].shape[2:] == (4, 4)


def test_the_outputs_are_the_residual_and_the_critics_features() -> None:
    method, x = make(ODD, weight=0.25), real_images(5, ODD)
    state = state_of(method)
    for state.epoch in (1, 1, 3):
        method.training_step(real_images(8, ODD), state)
    assert (method.scoring, method.weight) == ("residual_feature", 0.25)
    method.eval()
    with torch.no_grad():
        outputs = method(x)
        x_hat = as_input(method.generator(method.encoder(x)), ODD)
        expected = {"x_hat": x_hat, "f": method.critic(x)[1], "f_hat": method.critic(x_hat)[1]}
    assert list(outputs) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value, rtol=1e-4, atol=1e-5)
    assert_export_is_the_method(method, x)
    assert_an_image_is_scored_alone(method, x)


@pytest.mark.parametrize("spec", [RGB, MONO, ODD], ids=["rgb", "mono", "odd"])
def test_reconstructions_are_in_prepared_units(spec: PrepareSpec) -> None:
    assert_reconstructions_are_in_prepared_units(make(spec), "generator", spec)


# --- Settings and state ---


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gan_epochs", 0, "gan_epochs is 0.*at least 1"),
        ("n_critic", 0, "n_critic is 0.*at least 1"),
        ("n_critic", 2.5, "n_critic is 2.5.*whole number"),
        ("gradient_penalty", -1, "gradient_penalty is -1.*at least 0"),
        ("gradient_penalty", math.inf, "gradient_penalty is inf.*finite"),
        ("kappa", -0.1, "kappa is -0.1.*at least 0"),
        ("width", 0, "width is 0"),
        ("latent_dim", 0, "latent_dim is 0"),
        ("lr", 0.0, "lr is 0.0.*greater than 0"),
        ("lr_e", -1.0, "lr_e is -1.0.*greater than 0"),
        ("beta1", 1.0, "beta1 is 1.0.*below 1"),
        ("beta2", "0.9", "beta2 is '0.9'.*number"),
        ("weight", 1.5, r"weight is 1.5.*\[0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        FAnoganConfig(**{name: value})


def test_the_defaults_are_the_papers() -> None:
    config = FAnoganConfig()
    assert (config.n_critic, config.gradient_penalty, config.kappa) == (5, 10, 1)
    groups = {name: optimizer.param_groups[0] for name, optimizer in make().optimizers().items()}
    assert {name: (group["lr"], group["betas"]) for name, group in groups.items()} == {
        "C": (1e-4, (0.0, 0.9)),
        "G": (1e-4, (0.0, 0.9)),
        "E": (1e-4, (0.9, 0.999)),
    }


@pytest.mark.parametrize("split", [1, 3, 5, 6, 7])
def test_all_state_travels_in_the_state_dict(split: int) -> None:
    one = make()
    state = state_of(one)
    run(one, state, PLACES[:split])
    other = make(seed=9)
    other.load_state_dict(one.state_dict())
    state_other = state_of(other)
    for name, optimizer in state_other.optimizers.items():
        optimizer.load_state_dict(copy.deepcopy(state.optimizers[name].state_dict()))
    state_other.generator.set_state(state.generator.get_state())
    for a, b in zip(run(one, state, PLACES[split:]), run(other, state_other, PLACES[split:]), strict=True):
        assert list(a) == list(b)
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
