"""ALGAN-image against the paper: equations 5 and 6, algorithm 1, the networks, the pooled channels, the buffer."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from kizu.errors import TrainingError
from kizu.layers.dcgan import Discriminator, Generator, stage_widths
from kizu.layers.pooling import ChannelPool
from kizu.method import TrainingState
from kizu.methods.algan_image import AlganImage, AlganImageConfig, discriminator_loss, generator_loss
from kizu.prepare import PrepareSpec, prepare
from plain_networks import PlainAdam, PlainD, PlainG, real_images

RGB = PrepareSpec(size=(32, 32))
MONO = PrepareSpec(size=(32, 32), color="mono")
Floats = NDArray[np.float64]


pytestmark = pytest.mark.usefixtures("one_thread")


def make(spec: PrepareSpec = RGB, *, batches: int = 2, batch_size: int = 8, seed: int = 0, **config: Any) -> AlganImage:
    torch.manual_seed(seed)
    method = AlganImage.create(spec, AlganImageConfig(**{"width": 4, "latent_dim": 8, **config}))
    method.start(batches=batches, batch_size=batch_size)
    return method.train()


def state_of(method: AlganImage, *, seed: int = 0, autocast: bool = False) -> TrainingState:
    generator = torch.Generator().manual_seed(seed)
    return TrainingState(1, 0, method.optimizers(), generator, autocast)


def run(method: AlganImage, state: TrainingState, places: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
    losses = []
    for state.epoch, state.batch_index in places:
        losses.append(method.training_step(real_images(seed=state.batch_index), state))
    return losses


# --- Equations 5 and 6 ---


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


LOGITS = st.lists(st.floats(-12, 12), min_size=1, max_size=6).map(lambda values: np.array(values, np.float64))


@settings(deadline=None)
@given(LOGITS, LOGITS, LOGITS, LOGITS, LOGITS, st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_equation_6_and_its_gradient(
    real: Floats, x_n: Floats, x_a: Floats, old_n: Floats, old_a: Floats, alpha: float, xi: float, first: bool
) -> None:
    def log_not(logits: Floats) -> float:  # E[log(1 - D)]
        return float(np.mean(np.log(1 - sigmoid(logits))))

    weights = [alpha * xi, (1 - alpha) * xi, alpha * (1 - xi), (1 - alpha) * (1 - xi)]
    if first:  # algorithm 1, line 11: no buffered data
        weights[2:] = [0, 0]
    fakes = [x_n, x_a, old_n, old_a]
    maximised = np.mean(np.log(sigmoid(real))) + sum(w * log_not(x) for w, x in zip(weights, fakes, strict=True))

    tensors = [torch.tensor(x, requires_grad=True) for x in (real, *fakes)]
    loss = discriminator_loss(*tensors[:3], *((None, None) if first else tensors[3:]), alpha=alpha, xi=xi)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(-maximised, rel=1e-6, abs=1e-9)
    assert tensors[0].grad is not None
    np.testing.assert_allclose(tensors[0].grad.numpy(), -(1 - sigmoid(real)) / real.size, rtol=1e-6, atol=1e-12)
    for weight, x, tensor in zip(weights, fakes, tensors[1:], strict=True):
        got = np.zeros(x.size) if tensor.grad is None else tensor.grad.numpy()
        np.testing.assert_allclose(got, weight * sigmoid(x) / x.size, rtol=1e-6, atol=1e-12)


@settings(deadline=None)
@given(LOGITS)
def test_equation_5_and_its_gradient(logits: Floats) -> None:
    tensor = torch.tensor(logits, requires_grad=True)
    loss = generator_loss(tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(np.mean(np.log(1 - sigmoid(logits))), rel=1e-6, abs=1e-9)
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad.numpy(), -sigmoid(logits) / logits.size, rtol=1e-6, atol=1e-12)


def test_losses_stay_finite_where_a_sigmoid_would_saturate() -> None:
    far = torch.tensor([-1e4, 1e4])
    assert float(discriminator_loss(far, far, far, far, far, alpha=0.5, xi=0.5)) == pytest.approx(1e4)
    assert float(generator_loss(far)) == pytest.approx(-5e3)


@pytest.mark.parametrize(("alpha", "left"), [(1.0, "normal"), (0.0, "anomalous")])
def test_at_the_ends_of_alpha_one_kind_of_fake_is_all(alpha: float, left: str) -> None:
    real, fakes, none = torch.tensor([0.3]), torch.tensor([1.0, -2.0]), torch.empty(0)
    pair = (fakes, none) if left == "normal" else (none, fakes)
    loss = discriminator_loss(real, *pair, *pair, alpha=alpha, xi=0.25)
    expected = math.log1p(math.exp(-0.3)) + (math.log1p(math.exp(1.0)) + math.log1p(math.exp(-2.0))) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-6)


# --- Algorithm 1 against a plain implementation ---


def pooled(own: Tensor) -> Tensor:
    """Images of the own channels in [-1, 1] with their maximum and mean appended."""
    return torch.cat([own, own.max(1, keepdim=True).values, own.mean(1, keepdim=True)], 1)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("mode", ["mixed", "running"])
def test_training_steps_are_algorithm_1(mode: str) -> None:
    alpha, xi, sigma, batch_size = 0.75, 0.6, 4.0, 8
    method = make(alpha=alpha, xi=xi, sigma=sigma, n_dis=2, fake_batch_norm=mode, beta1=0.3, batch_size=batch_size)
    with torch.no_grad():  # untrained statistics would make all fakes equal to within rounding
        for _ in range(30):
            method.generator(torch.randn(8, 8))
    g, d = PlainG(method.generator), PlainD(method.discriminator)
    adam_g, adam_d = PlainAdam(g.parameters, 2e-4, 0.3, 0.9), PlainAdam(d.parameters, 1e-4, 0.3, 0.9)

    drawn: list[Tensor] = []  # the buffered images that the method happened to draw
    sample = method._sample_buffer

    def recorded(state: TrainingState) -> Tensor:
        drawn.append(sample(state).clone())
        return drawn[-1]

    method._sample_buffer = recorded  # type: ignore[method-assign]
    state = state_of(method)
    n = 6  # alpha * batch_size normal latents come first
    for epoch, j in ((1, 0), (1, 1), (2, 0)):
        x = real_images(batch_size, seed=10 * epoch + j).double()
        state.epoch, state.batch_index = epoch, j
        drawn.clear()
        losses = method.training_step(x, state)
        z_d, z_g = method.z_d[j], method.z_g[j]
        assert len(drawn) == (0 if epoch == 1 else 2)
        for k in range(2):  # lines 8 to 17
            with torch.no_grad():
                x_fake = g(z_d, batch_statistics=mode == "mixed", track=False)
            d.iterate()
            loss_d = -torch.log(torch.sigmoid(d(pooled(x[:, :3])))).mean()
            for weight, kind in ((alpha, slice(0, n)), (1 - alpha, slice(n, None))):
                loss_d = loss_d - weight * xi * torch.log(1 - torch.sigmoid(d(pooled(x_fake[kind])))).mean()
                if epoch > 1:
                    old = drawn[k][kind].double()
                    loss_d = loss_d - weight * (1 - xi) * torch.log(1 - torch.sigmoid(d(pooled(old)))).mean()
            adam_d.step(loss_d)
        d.iterate()
        loss_g = torch.log(1 - torch.sigmoid(d(pooled(g(z_g))))).mean()
        adam_g.step(loss_g)
        assert float(losses["loss_D"]) == pytest.approx(float(loss_d.detach()), rel=1e-7)
        assert float(losses["loss_G"]) == pytest.approx(float(loss_g.detach()), rel=1e-7)

    d.assert_is(method.discriminator)
    g.assert_is(method.generator, running=mode == "running")  # else z_d leaves its trace too, which nothing reads


def test_an_update_of_d_does_not_depend_on_the_latents_of_g_nor_the_other_way_round() -> None:
    def after(change: str) -> tuple[list[Tensor], list[Tensor]]:
        method = make(lr_d=1e-12 if change == "z_d" else 1e-4)  # D must stand still where G's step is compared
        state = state_of(method)
        method._draw_latents(state.generator)
        method._draw_latents = lambda generator: None  # type: ignore[method-assign]
        getattr(method, change or "z_g").add_(0.0 if not change else 1.0)
        method.training_step(real_images(), state)
        assert all(p.requires_grad for p in method.parameters())
        return [p.detach() for p in method.discriminator.parameters()], [
            p.detach() for p in method.generator.parameters()
        ]

    (d, _), (d_other, g_other) = after(""), after("z_g")
    assert all(torch.equal(a, b) for a, b in zip(d, d_other, strict=True))
    _, g_still = after("z_d")
    fresh = [p.detach() for p in make().generator.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(fresh, g_other, strict=True))
    reference = make(lr_d=1e-12)
    run(reference, state_of(reference), [(1, 0)])
    for a, b in zip(g_still, reference.generator.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "config", [{"xi": 0.0}, {"xi": 1.0}, {"alpha": 1.0}, {"alpha": 0.0, "fake_batch_norm": "running"}]
)
def test_the_ends_of_alpha_and_xi_train(config: dict[str, Any]) -> None:
    method = make(**config)
    before = copy.deepcopy(method.state_dict())
    losses = run(method, state_of(method), [(1, 0), (1, 1), (2, 0), (2, 1)])
    assert all(math.isfinite(float(value)) for step in losses for value in step.values())
    after = method.state_dict()
    for name, _ in method.named_parameters():
        assert torch.isfinite(after[name]).all()
        assert not torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("spec", [RGB, MONO])
def test_a_step_under_autocast_is_near_the_one_without(spec: PrepareSpec) -> None:
    x = real_images(spec=spec)
    losses = []
    for autocast in (False, True):
        method = make(spec)
        losses.append(method.training_step(x, state_of(method, autocast=autocast)))
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in method.parameters())
    exact, rounded = losses
    for name in exact:
        assert float(rounded[name]) == pytest.approx(float(exact[name]), abs=0.05)
    assert float(rounded["loss_D"]) != float(exact["loss_D"])  # it was computed otherwise


# --- Latents ---


def drawing_epochs(method: AlganImage, epochs: int) -> list[int]:
    state, drawn = state_of(method), []
    before = method.z_d.clone(), method.z_g.clone()
    for state.epoch in range(1, epochs + 1):
        for state.batch_index in range(2):
            method.training_step(real_images(), state)
            now = method.z_d.clone(), method.z_g.clone()
            changed = [not torch.equal(a, b) for a, b in zip(before, now, strict=True)]
            assert all(changed) or not any(changed)
            if any(changed):
                assert state.batch_index == 0
                drawn.append(state.epoch)
            before = now
    return drawn


@pytest.mark.parametrize(("n_z", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [1, 2, 4]), (3, [1, 3]), (9, [1])])
@pytest.mark.parametrize("latents", ["slot", "shared"])
def test_latents_are_drawn_at_the_first_epoch_and_at_multiples_of_n_z(
    n_z: int, expected: list[int], latents: str
) -> None:
    assert drawing_epochs(make(n_z=n_z, n_dis=1, latents=latents), 5) == expected


def test_z_d_mixes_two_variances_and_z_g_is_normal() -> None:
    method = make(latent_dim=200, sigma=5.0, alpha=0.75, batch_size=16, batches=6)
    method._draw_latents(torch.Generator().manual_seed(3))
    assert method.z_d.shape == method.z_g.shape == (6, 16, 200)
    assert (method.n_normal, method.n_anomalous) == (12, 4)
    assert float(method.z_d[:, :12].std()) == pytest.approx(1, abs=0.03)
    assert float(method.z_d[:, 12:].std()) == pytest.approx(5, abs=0.2)
    assert float(method.z_g.std()) == pytest.approx(1, abs=0.03)
    assert len(torch.unique(method.z_d)) > 0.99 * method.z_d.numel()  # each batch of an epoch has its own
    assert make(latents="shared", batches=6).z_d.shape == (1, 8, 8)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.floats(0.001, 0.999))
def test_a_batch_holds_both_kinds_in_their_shares(batch_size: int, alpha: float) -> None:
    method = make(alpha=alpha, batch_size=batch_size, batches=1)
    assert method.n_normal + method.n_anomalous == batch_size
    assert min(method.n_normal, method.n_anomalous) >= 1
    assert abs(method.n_normal - alpha * batch_size) <= 1


# --- G's batch normalisation ---


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_sigma_survives_gs_batch_normalisation_in_both_modes_and_not_in_a_batch_of_its_own() -> None:
    method = make(latent_dim=32, width=8, batch_size=64)
    rng = torch.Generator().manual_seed(5)
    normal, anomalous = torch.randn(48, 32, generator=rng), torch.randn(16, 32, generator=rng)
    with torch.no_grad():
        for _ in range(60):  # running statistics of normal latents
            method.generator(torch.randn(64, 32, generator=rng))
        alone = [method.generator(anomalous * sigma) for sigma in (1, 4)]
    # The trap: alone in a training-mode batch, sigma cancels in the first batch norm.
    assert relative_difference(alone[1], alone[0]) < 0.01
    for mode in ("mixed", "running"):
        object.__setattr__(method.config, "fake_batch_norm", mode)
        fakes = [method.fakes(torch.cat([normal, anomalous * sigma]))[48:] for sigma in (1, 4)]
        assert relative_difference(fakes[1], fakes[0]) > 0.3, mode
        assert method.generator.training
    # On running statistics an image does not depend on its neighbours in the batch.
    torch.testing.assert_close(method.fakes(anomalous), method.fakes(torch.cat([normal, anomalous]))[48:])


def test_making_fakes_on_running_statistics_leaves_them_alone() -> None:
    method = make(fake_batch_norm="running")
    before = copy.deepcopy(method.state_dict())
    method.fakes(torch.randn(8, 8) * 4)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())


# --- Networks and input ---


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("color", ["rgb", "mono"])
def test_every_size_builds(size: int, color: Any) -> None:
    spec = PrepareSpec(size=(size, size), color=color)
    method = AlganImage.create(spec, AlganImageConfig(width=1, latent_dim=3)).eval()
    d = [layer for layer in method.discriminator.layers if isinstance(layer, nn.Conv2d)]
    g = [layer for layer in method.generator.layers if isinstance(layer, nn.ConvTranspose2d)]
    assert len(d) == len(g) == int(math.log2(size)) - 1
    with torch.no_grad():
        images = method.fakes(torch.randn(2, 3))
        assert images.shape == (2, spec.own_channels, size, size)
        assert float(images.abs().max()) <= 1
        assert method(method.pool(images))["logit"].shape == (2,)


def test_at_256_the_networks_are_the_papers() -> None:
    assert stage_widths(256, 64) == [64, 128, 256, 512, 512, 512]
    d = Discriminator(size=256, channels=5, width=64)
    convolutions = [layer for layer in d.layers if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (5, 64),
        (64, 128),
        (128, 256),
        (256, 512),
        (512, 512),
        (512, 512),
        (512, 1),
    ]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in d.modules())
    assert {c.negative_slope for c in d.layers if isinstance(c, nn.LeakyReLU)} == {0.2}
    g = Generator(size=256, channels=3, latent_dim=100, width=64)
    kinds = [type(layer).__name__ for layer in g.layers]
    assert kinds == ["ConvTranspose2d", "BatchNorm2d", "ReLU"] * 6 + ["ConvTranspose2d", "Tanh"]


@pytest.mark.parametrize("size", [(16, 16), (48, 48), (1024, 1024), (32, 64)])
def test_other_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(TrainingError, match=f"{size[0]}x{size[1]}.*32, 64, 128, 256, 512"):
        AlganImage.create(PrepareSpec(size=size), AlganImageConfig(width=1))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["rgb", "mono"]), st.booleans(), st.integers(0, 2**32 - 1))
def test_fakes_get_the_pooled_channels_that_prepare_makes(color: Any, plain: bool, seed: int) -> None:
    own = 3 if color == "rgb" else 1
    mean, std = ((), ()) if plain else ((0.485, 0.456, 0.406)[:own], (0.229, 0.224, 0.225)[:own])
    spec = PrepareSpec(size=(16, 16), color=color, mean=mean, std=std)
    frame = np.random.default_rng(seed).integers(0, 256, (16, 16, own), np.uint8)
    image = torch.from_numpy(np.moveaxis(frame, 2, 0).astype(np.float32) / 127.5 - 1)[None]
    pooled = ChannelPool(spec)(image)[0].numpy()
    assert pooled.shape == (5 if color == "rgb" else 1, 16, 16)
    # Values divided by a std of 0.22 have a rounding four times as large.
    np.testing.assert_allclose(pooled, prepare(frame, spec), rtol=0, atol=1e-6 if plain else 4e-6)


def test_folded_weights_have_spectral_norm_1() -> None:
    method = make(width=8)
    x = real_images(2)
    with torch.no_grad():
        for _ in range(200):
            method(x)
    folded = method.discriminator.folded()
    weights = [layer.weight.detach().numpy() for layer in folded.layers if isinstance(layer, nn.Conv2d)]
    assert len(weights) == 4
    for weight in weights:
        largest = np.linalg.svd(weight.reshape(len(weight), -1), compute_uv=False)[0]
        assert largest == pytest.approx(1, abs=2e-3)


def test_export_module_scores_as_the_method_and_changes_nothing() -> None:
    method = make()
    run(method, state_of(method), [(1, 0), (1, 1), (2, 0)])
    x = real_images(5)
    with torch.no_grad():
        method.eval()
        own = method(x)["logit"]
        method.train()
        before = copy.deepcopy(method.state_dict())
        module = method.export_module()
        exported = module(x)["logit"]
        assert torch.equal(exported, own)
        assert method.training
        assert method.discriminator.training
        assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
        assert not any("parametrizations" in name for name in module.state_dict())
        assert torch.equal(module(x)["logit"], exported)  # and has no state of its own that moves
        for layer in method.discriminator.layers:
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                layer.bias.add_(1)
        assert torch.equal(module(x)["logit"], exported)  # nor shares any with the method


# --- The buffer ---


def labelled(first: int, method: AlganImage) -> Tensor:
    """A batch of fakes, each filled with a number of its own."""
    n = method.n_normal + method.n_anomalous
    return torch.arange(first, first + n, dtype=torch.float32)[:, None, None, None].expand(n, 3, 32, 32)


def held(method: AlganImage, j: int) -> tuple[list[int], list[int]]:
    store = method.buffer[j % len(method.buffer)]
    assert bool((store == store[:, :1, :1, :1]).all())
    numbers = [int(v) for v in store[:, 0, 0, 0]]
    return numbers[: method.held_normal], numbers[method.held_normal :]


@settings(deadline=None, max_examples=50)
@given(
    kind=st.sampled_from(["one", "per_batch"]),
    size=st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0]),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    alpha=st.sampled_from([0.25, 0.75, 1.0]),
    seed=st.integers(0, 1000),
)
def test_the_buffer_keeps_fakes_and_replaces_a_share(
    kind: str, size: float, share: float, alpha: float, seed: int
) -> None:
    method = make(buffer=kind, buffer_size=size, buffer_replaced=share, alpha=alpha, batches=2)
    state = state_of(method, seed=seed)
    assert len(method.buffer) == (2 if kind == "per_batch" else 1)
    wanted = [max(round(size * n), min(n, 1)) for n in (method.n_normal, method.n_anomalous)]
    seen: dict[int, int] = {}  # number of a fake -> 0 normal, 1 anomalous
    first = 1
    for state.epoch in (1, 2, 3):
        for state.batch_index in (0, 1):
            j = state.batch_index
            before = held(method, j)
            fakes = labelled(first, method)
            new = range(first, first + 8)
            seen |= {number: int(i >= method.n_normal) for i, number in enumerate(new)}
            if state.epoch > 1:
                drawn = [int(v) for v in method._sample_buffer(state)[:, 0, 0, 0]]
                assert len(drawn) == 8
                for part, numbers in enumerate((drawn[: method.n_normal], drawn[method.n_normal :])):
                    assert set(numbers) <= set(before[part])
                    distinct = len(set(numbers))  # pictures may be held twice, but each copy is drawn once
                    assert distinct >= min(len(numbers), len(before[part])) - (
                        len(before[part]) - len(set(before[part]))
                    )
            method._store(fakes, state)
            after = held(method, j)
            filling = state.epoch == 1 and (kind == "per_batch" or j == 0)
            for part in (0, 1):
                assert len(after[part]) == wanted[part]
                assert all(seen[number] == part for number in after[part])
                replaced = [a for a, b in zip(after[part], before[part], strict=True) if a != b]
                replacing = wanted[part] * (1 if filling else share)
                assert math.floor(replacing) <= len(replaced) <= math.ceil(replacing - 1e-9)
                assert all(number in new for number in replaced)
            first += 8


def test_a_small_share_of_few_images_is_replaced_all_the_same() -> None:
    """3 % of 24 normal and 8 anomalous images: less than one a visit, but not none."""
    method = make(batch_size=16, buffer="per_batch", buffer_replaced=0.03)
    state = state_of(method)
    method._store(labelled(1, method), state)
    state.epoch, visits, replaced = 2, 500, [0, 0]
    for visit in range(1, visits + 1):
        before = held(method, 0)
        method._store(labelled(1 + visit * 16, method), state)
        for part, after in enumerate(held(method, 0)):
            replaced[part] += sum(a != b for a, b in zip(after, before[part], strict=True))
    # binomial: standard deviations of 0.020 and 0.019
    assert [count / visits for count in replaced] == pytest.approx([0.72, 0.24], abs=0.08)


def test_the_papers_buffer_holds_two_batches_and_takes_one_half_anew() -> None:
    method = make(batch_size=16)
    assert tuple(method.buffer.shape) == (1, 32, 3, 32, 32)
    assert round(method.config.buffer_replaced * method.held_normal) == method.n_normal == 12


def test_buffered_images_are_the_fakes_up_to_half_precision() -> None:
    method = make(buffer="per_batch", buffer_size=1.0)
    state = state_of(method)
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    method._store(images, state)
    state.epoch = 2
    drawn = method._sample_buffer(state)
    distances = (drawn[:, None] - images[None]).abs().amax((2, 3, 4))
    assert float(distances.amin(1).max()) < 0.1 * 2 / 255  # a tenth of one grey level
    assert sorted(distances.argmin(1).tolist()) == list(range(8))


# --- Settings ---


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alpha", -0.1, r"alpha is -0.1.*\[0, 1\]"),
        ("alpha", 1.1, r"alpha is 1.1.*\[0, 1\]"),
        ("xi", 2, r"xi is 2.*\[0, 1\]"),
        ("xi", float("nan"), "xi is nan.*finite"),
        ("buffer_replaced", -1, "buffer_replaced"),
        ("beta1", 1.0, "beta1 is 1.0.*below 1"),
        ("beta2", -0.5, "beta2"),
        ("sigma", 0, "sigma is 0.*greater than 0"),
        ("sigma", float("inf"), "sigma is inf.*finite"),
        ("lr_g", 0.0, "lr_g"),
        ("lr_d", -1e-4, "lr_d"),
        ("lr_d", "fast", "lr_d is 'fast'.*number"),
        ("lr_d", True, "lr_d is True.*number"),
        ("buffer_size", 0, "buffer_size"),
        ("width", 0, "width is 0.*at least 1"),
        ("width", 4.5, "width is 4.5.*whole number"),
        ("width", True, "width is True.*whole number"),
        ("latent_dim", -3, "latent_dim"),
        ("n_z", 0, "n_z"),
        ("n_dis", 0, "n_dis"),
        ("latents", "each", "latents is 'each'.*slot, shared"),
        ("buffer", "two", "buffer is 'two'.*one, per_batch"),
        ("fake_batch_norm", "off", "fake_batch_norm is 'off'.*mixed, running"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        AlganImageConfig(**{name: value})


def test_anomalous_latents_alone_are_refused_where_sigma_would_be_divided_away() -> None:
    with pytest.raises(TrainingError, match=r"alpha is 0.*divides sigma away.*running"):
        AlganImageConfig(alpha=0.0)
    assert AlganImageConfig(alpha=0.0, fake_batch_norm="running").alpha == 0


def test_a_batch_of_one_has_no_room_for_both_kinds() -> None:
    with pytest.raises(TrainingError, match="batch of 1 image"):
        make(batch_size=1)
    method = make(batch_size=1, alpha=1.0)
    state = state_of(method)
    for state.epoch in (1, 2):
        losses = method.training_step(real_images(1), state)
        assert all(math.isfinite(float(value)) for value in losses.values())


def test_the_defaults_are_the_papers() -> None:
    config = AlganImageConfig()
    assert (config.latent_dim, config.sigma, config.alpha, config.xi) == (100, 4, 0.75, 0.75)
    assert (config.n_z, config.n_dis, config.buffer_size, config.buffer_replaced) == (2, 2, 2, 0.5)
    groups = {name: optimizer.param_groups[0] for name, optimizer in make().optimizers().items()}
    assert {name: (group["lr"], group["betas"]) for name, group in groups.items()} == {
        "G": (2e-4, (0.0, 0.9)),
        "D": (1e-4, (0.0, 0.9)),
    }


def test_all_state_travels_in_the_state_dict() -> None:
    one = make()
    state = state_of(one)
    run(one, state, [(1, 0), (1, 1), (2, 0)])
    other = make(seed=9)
    other.load_state_dict(one.state_dict())
    state_other = state_of(other)
    for name, optimizer in state_other.optimizers.items():
        optimizer.load_state_dict(copy.deepcopy(state.optimizers[name].state_dict()))
    state_other.generator.set_state(state.generator.get_state())
    places = [(2, 1), (3, 0), (4, 1)]
    assert [{name: float(v) for name, v in losses.items()} for losses in run(one, state, places)] == [
        {name: float(v) for name, v in losses.items()} for losses in run(other, state_other, places)
    ]
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
