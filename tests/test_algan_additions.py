"""What ALGAN-image can be given beyond the paper: pasted pseudo-anomalies, noise, an averaged D; and the presets."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kizu.errors import TrainingError
from kizu.layers.pasting import paste_patches
from kizu.method import TrainingState, available, get
from kizu.methods.algan_image import AlganImage, AlganImageConfig
from kizu.prepare import PrepareSpec
from kizu.settings import TrainingSettings, preset
from plain_networks import real_images
from test_algan_image import make, run, state_of

pytestmark = pytest.mark.usefixtures("one_thread")


# --- Pasted patches ---


def numbered(n: int, channels: int, height: int, width: int) -> Tensor:
    """Images in which every pixel has a number of its own."""
    return torch.arange(n * channels * height * width, dtype=torch.float64).reshape(n, channels, height, width)


@settings(deadline=None, max_examples=150)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 24), st.integers(1, 24)),
    least=st.floats(0.001, 1.0),
    most=st.floats(1.0, 30.0),
    aspect=st.floats(1.0, 8.0),
    seed=st.integers(0, 1000),
)
def test_a_rectangle_of_the_image_itself_or_the_one_before_is_pasted(
    shape: tuple[int, int, int, int], least: float, most: float, aspect: float, seed: int
) -> None:
    n, channels, height, width = shape
    images = numbered(*shape)
    before = images.clone()
    area = (least, min(1.0, least * most))
    pasted = paste_patches(images, torch.Generator().manual_seed(seed), area=area, aspect=aspect)
    assert torch.equal(images, before)
    for i in range(n):
        changed = (pasted[i] != images[i]).all(0).numpy()
        assert np.array_equal(changed, (pasted[i] != images[i]).any(0).numpy())  # all channels of a pixel together
        ys, xs = np.nonzero(changed)
        if not len(ys):  # pasted in place, from itself
            continue
        h, w = ys.max() - ys.min() + 1, xs.max() - xs.min() + 1
        assert changed.sum() == h * w  # a full rectangle
        assert h < max(height, 2)
        assert w < max(width, 2)
        patch = pasted[i][:, ys.min() : ys.min() + h, xs.min() : xs.min() + w]
        donor, place = divmod(int(patch[0, 0, 0]), channels * height * width)
        assert donor in (i, (i - 1) % n)
        y, x = divmod(place, width)
        assert torch.equal(patch, images[donor][:, y : y + h, x : x + w])


def test_areas_aspects_and_donors_are_drawn_evenly_and_places_spread() -> None:
    images = numbered(4000, 1, 64, 64)
    pasted = paste_patches(images, torch.Generator().manual_seed(0))
    changed = (pasted != images)[:, 0].numpy()
    donors = (pasted.flatten(1).amax(1) // 64**2 - torch.arange(4000)).numpy()  # its numbers are higher, or the image's
    before = pasted.flatten(1).amin(1).numpy() < np.arange(4000) * 64**2
    before[0] = donors[0] != 0
    assert before.mean() == pytest.approx(0.5, abs=0.03)
    heights, widths = changed.any(2).sum(1)[before], changed.any(1).sum(1)[before]  # of itself, pixels may stay
    areas = heights * widths / 64**2
    assert 0.018 < areas.min() < 0.03  # sides are whole pixels
    assert 0.47 < areas.max() < 0.53
    np.testing.assert_allclose(np.quantile(areas, [0.25, 0.5, 0.75]), [0.14, 0.26, 0.38], atol=0.02)
    ratios = np.log(heights / widths)
    assert ratios.min() == pytest.approx(-np.log(3), abs=0.1)
    assert np.quantile(ratios, [0.25, 0.5, 0.75]) == pytest.approx([-np.log(3) / 2, 0, np.log(3) / 2], abs=0.07)
    cover = changed.mean(0)
    assert cover.min() > 0  # corners are reached, though rarely
    assert cover[:, ::-1] == pytest.approx(cover, abs=0.05)
    assert cover[::-1] == pytest.approx(cover, abs=0.05)


def spy_on_d(method: AlganImage, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What D is shown, pass by pass."""
    seen: list[Tensor] = []
    forward = method.discriminator.forward

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return forward(x)

    monkeypatch.setattr(method.discriminator, "forward", watched)
    return seen


def test_pasted_images_enter_ds_loss_with_their_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(cutpaste_weight=0.7, n_dis=1, lr_d=1e-12, lr_g=1e-12)
    seen = spy_on_d(method, monkeypatch)
    x = real_images(7)
    method.start(batches=2, batch_size=7)
    loss = method.training_step(x, state_of(method))["loss_D"]
    plain = make(n_dis=1, lr_d=1e-12, lr_g=1e-12)
    plain.start(batches=2, batch_size=7)
    without = plain.training_step(x, state_of(plain))["loss_D"]  # the same weights and latents
    pasted = seen[0][14:]
    assert len(pasted) == 4  # half of seven
    for image in pasted:
        own = (image == x).flatten(1).float().mean(1)
        assert 0.45 < own.max() < 1  # a real image, but for a patch
    with torch.no_grad():
        method.discriminator.eval()
        logits = method.discriminator(pasted).double()
    expected = float(without) + 0.7 * float(np.log1p(np.exp(logits.numpy())).mean())
    assert float(loss) == pytest.approx(expected, abs=2e-3)  # the norm's power iteration has moved meanwhile


def test_noise_is_on_all_that_d_sees_in_training_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for noise in (0.0, 0.25):
        method = make(instance_noise=noise, n_dis=1, cutpaste_weight=1.0, lr_d=1e-12, lr_g=1e-12)
        with torch.no_grad():
            method.eval()
            logit = method(real_images())["logit"]
            method.train()
        seen = spy_on_d(method, monkeypatch)
        run(method, state_of(method), [(1, 0)])
        shown[noise] = (*seen, logit)
    (d, g, score), (d_noisy, g_noisy, score_too) = shown[0.0], shown[0.25]
    assert torch.equal(score, score_too)
    # Noise is drawn after what it is added to, so that real images and fakes are the same on both sides.
    parts = ((d_noisy - d)[:8], (d_noisy - d)[8:16], g_noisy - g)
    for added in parts:
        assert float(added.mean()) == pytest.approx(0, abs=0.01)
        assert float(added.std()) == pytest.approx(0.25, rel=0.02)
        assert float(added.flatten(2).std(2).min()) > 0.2  # on each channel of each image


# --- The average of D's weights ---


def folded_weights(method: AlganImage) -> list[Tensor]:
    return [p.detach().clone() for p in method.discriminator.folded().parameters()]


@pytest.mark.parametrize("limit", [0.3, 0.99])  # from the third batch on, and never reached
def test_the_average_is_that_of_the_normalised_weights(limit: float) -> None:
    method = make(ema_decay=limit, n_dis=1, lr_d=1e-2)
    assert method.averaged is not None
    expected = folded_weights(method)
    state = state_of(method)
    for t, place in enumerate([(1, 0), (1, 1), (2, 0), (2, 1)], start=1):
        run(method, state, [place])
        decay = min(limit, (1 + t) / (10 + t))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, folded_weights(method), strict=True)]
    for weight, wanted in zip(method.averaged.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.detach(), wanted, rtol=1e-5, atol=1e-6)
        assert not weight.requires_grad
    plain = make(n_dis=1, lr_d=1e-2)
    run(plain, state_of(plain), [(1, 0), (1, 1), (2, 0), (2, 1)])
    for a, b in zip(plain.discriminator.parameters(), method.discriminator.parameters(), strict=True):
        assert torch.equal(a, b)  # it watches D and does not change how D learns


def test_the_average_scores_exports_and_survives_a_checkpoint() -> None:
    method = make(ema_decay=0.5, cutpaste_weight=1.0, instance_noise=0.1)
    state = state_of(method)
    run(method, state, [(1, 0), (1, 1)])
    x = real_images(5)
    with torch.no_grad():
        method.eval()
        assert method.averaged is not None
        logit = method(x)["logit"]
        assert torch.equal(logit, method.averaged(x))
        assert not torch.allclose(logit, method.discriminator(x), atol=1e-6)
        module = method.export_module()
        assert torch.equal(module(x)["logit"], logit)
        for parameter in method.averaged.parameters():
            parameter.add_(1)
        assert torch.equal(module(x)["logit"], logit)  # a copy
        assert list(module.state_dict()) == list(make().export_module().state_dict())
        for parameter in method.averaged.parameters():
            parameter.sub_(1)
    method.train()
    other = make(seed=5, ema_decay=0.5, cutpaste_weight=1.0, instance_noise=0.1)
    other.load_state_dict(method.state_dict())
    state_too = state_of(other)
    for name, optimizer in state_too.optimizers.items():
        optimizer.load_state_dict(copy.deepcopy(state.optimizers[name].state_dict()))
    state_too.generator.set_state(state.generator.get_state())
    for each, where in ((method, state), (other, state_too)):
        run(each, where, [(2, 0), (2, 1)])
    for name, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_averaging_keeps_the_scale_where_averaged_parameters_would_not() -> None:
    """Each folded weight has spectral norm 1, so an average of them has at most that."""
    method = make(ema_decay=0.99, lr_d=1e-2, width=8)
    state = state_of(method)
    with torch.no_grad():
        for _ in range(100):  # power iterations until the norm is exact
            method.discriminator(real_images(2))
    method.averaged = method.discriminator.folded()
    run(method, state, [(epoch, j) for epoch in range(1, 8) for j in (0, 1)])
    for layer in method.averaged.layers:
        if isinstance(layer, nn.Conv2d):
            largest = np.linalg.svd(layer.weight.detach().flatten(1).numpy(), compute_uv=False)[0]
            assert largest < 1.2


def test_standardised_images_keep_their_logits_whatever_the_exposure() -> None:
    method = make(standardise=True, ema_decay=0.5)
    plain = make(ema_decay=0.5)
    for each in (method, plain):
        run(each, state_of(each), [(1, 0), (1, 1)])
    x = real_images(6) * 0.5
    exposed = x * torch.rand(6, 1, 1, 1).add(0.5) + torch.rand(6, 1, 1, 1)
    with torch.no_grad():
        for module in (method.eval(), method.export_module()):
            torch.testing.assert_close(module(exposed)["logit"], module(x)["logit"], rtol=0, atol=2e-3)
        assert float((plain.eval()(exposed)["logit"] - plain(x)["logit"]).abs().max()) > 0.02
        seen = method.discriminator.standardise(x).flatten(1).double()
    values = x.flatten(1).double()
    expected = (values - values.mean(1, keepdim=True)) / (values.var(1, keepdim=True, unbiased=False) + 1e-4).sqrt()
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cutpaste_weight", -0.1, "cutpaste_weight is -0.1.*at least 0"),
        ("instance_noise", -1.0, "instance_noise is -1.0.*at least 0"),
        ("instance_noise", math.inf, "instance_noise is inf.*finite"),
        ("ema_decay", 1.0, "ema_decay is 1.0.*below 1"),
        ("ema_decay", -0.5, "ema_decay is -0.5.*at least 0"),
        ("ema_decay", "long", "ema_decay is 'long'.*number"),
        ("standardise", 1, "standardise is 1.*true or false"),
    ],
)
def test_additions_out_of_range_are_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        AlganImageConfig(**{name: value})


# --- Presets ---


@pytest.mark.parametrize("method", available())
def test_every_method_has_the_papers_preset_and_all_presets_are_settings(method: str) -> None:
    assert preset(method, "paper") == {"method": method}
    for name, values in get(method).presets.items():
        chosen = TrainingSettings.from_preset(name, data="parts", method=method)
        config = get(method).config_type(**chosen.config)  # raises for what it does not know
        for key, value in values.get("config", {}).items():
            assert getattr(config, key) == value
        assert {key: getattr(chosen, key) for key in values} == dict(values)
        assert chosen.create(PrepareSpec(size=(32, 32), pool=get(method).pools)) is not None


def test_what_is_given_goes_before_a_preset() -> None:
    line = get("algan_image").presets["line"]
    chosen = TrainingSettings.from_preset("line", data="parts", epochs=3, config={"ema_decay": 0.5, "width": 8})
    assert chosen.epochs == 3
    assert chosen.config == {**line["config"], "ema_decay": 0.5, "width": 8}
    assert "width" not in line["config"]  # the preset itself is not changed


def test_without_a_name_it_is_line_where_the_method_has_that(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TrainingSettings.from_preset(data="parts") == TrainingSettings.from_preset("line", data="parts")
    monkeypatch.setattr(AlganImage, "presets", {"paper": {}})
    assert TrainingSettings.from_preset(data="parts") == TrainingSettings(data="parts")


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TrainingError, match="algan_image has no preset 'fast'; it has paper, line, surface"):
        TrainingSettings.from_preset("fast", data="parts")
    with pytest.raises(TrainingError, match="no method is called 'algan'"):
        preset("algan", "paper")


def test_a_step_of_the_line_preset_from_a_state() -> None:
    method = make(**get("algan_image").presets["line"]["config"])
    state = TrainingState(1, 0, method.optimizers(), torch.Generator().manual_seed(0), autocast=True)
    losses = run(method, state, [(1, 0), (1, 1), (2, 0), (2, 1)])
    assert all(math.isfinite(float(value)) for step in losses for value in step.values())
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in method.parameters())
