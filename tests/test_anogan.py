"""AnoGAN: losses, one training step after another, and the search's scores on real images."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import kizu
from helpers import EACH_PRECISION, supported
from kizu import PrepareSpec
from kizu.data import locate
from kizu.data.prepared import PreparedImages
from kizu.errors import DataError, KizuError, TrainingError
from kizu.export import export
from kizu.layers.losses import discriminator_loss
from kizu.method import TrainingState, get
from kizu.methods.anogan import Anogan, AnoganConfig, generator_loss
from kizu.metrics import auroc
from kizu.run_folder import load_file
from kizu.settings import TrainingSettings, epoch_file
from kizu.training import train
from kizu.validation import score_images
from rows import EngineRow

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = PrepareSpec(size=(32, 32), pool=False)
CONFIG = AnoganConfig(width=4, latent_dim=5, steps=3, lr_g=1e-3, lr_d=2e-3)


def made(config: AnoganConfig = CONFIG, spec: PrepareSpec = SPEC) -> Anogan:
    torch.manual_seed(0)
    return Anogan.create(spec, config)


def test_it_is_found_by_its_name() -> None:
    assert get("anogan") is Anogan
    assert made().weight == 0.1
    assert Anogan.scoring == "residual_feature"


# Losses


def test_losses_are_the_closed_forms() -> None:
    real, generated = [0.3, -2.0, 40.0], [1.5, -0.5]

    def sigmoid(logit: float) -> float:
        return 1 / (1 + math.exp(-logit))

    expected = -np.mean([math.log(sigmoid(v)) for v in real]) - np.mean([math.log(1 - sigmoid(v)) for v in generated])
    assert discriminator_loss(torch.tensor(real), torch.tensor(generated)).item() == pytest.approx(expected, rel=1e-6)
    expected = -np.mean([math.log(sigmoid(v)) for v in generated])
    assert generator_loss(torch.tensor(generated)).item() == pytest.approx(expected, rel=1e-6)


def test_losses_of_large_logits_are_finite() -> None:
    for logit in (-1e4, 1e4):
        far = torch.full((3,), logit)
        assert torch.isfinite(discriminator_loss(far, far))
        assert torch.isfinite(generator_loss(far))


def test_undecided_is_log_4() -> None:
    zero = torch.zeros(4)
    assert discriminator_loss(zero, zero).item() == pytest.approx(math.log(4), rel=1e-6)


# Training


class Reference:
    """The training of two networks, with binary cross-entropy and torch's Adam."""

    def __init__(self, method: Anogan) -> None:
        self.g: nn.Module = copy.deepcopy(method.generator)
        self.d: nn.Module = copy.deepcopy(method.discriminator)
        config = method.config
        betas = (config.beta1, config.beta2)
        self.adam_g = torch.optim.Adam(self.g.parameters(), config.lr_g, betas, foreach=False)
        self.adam_d = torch.optim.Adam(self.d.parameters(), config.lr_d, betas, foreach=False)

    def step(self, x: Tensor, z: Tensor) -> tuple[float, float]:
        judge = nn.BCEWithLogitsLoss()
        images = self.g(z)
        loss_d = judge(self.d(x), torch.ones(len(x))) + judge(self.d(images.detach()), torch.zeros(len(x)))
        self.adam_d.zero_grad()
        loss_d.backward()
        self.adam_d.step()
        loss_g = judge(self.d(images), torch.ones(len(x)))
        self.adam_g.zero_grad()
        loss_g.backward()
        self.adam_g.step()
        return loss_d.item(), loss_g.item()


def test_two_steps_are_those_of_a_reference() -> None:
    method = made().train()
    reference = Reference(method)
    state = TrainingState(1, 0, method.optimizers(), torch.Generator().manual_seed(3))
    latents = torch.Generator().manual_seed(3)
    x = torch.rand(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for i, batch in enumerate(x):
        state.batch_index = i
        losses = method.training_step(batch, state)
        loss_d, loss_g = reference.step(batch, torch.randn(6, 5, generator=latents))
        assert losses["loss_D"].item() == pytest.approx(loss_d, rel=1e-4)
        assert losses["loss_G"].item() == pytest.approx(loss_g, rel=1e-4)
    for ours, theirs in ((method.generator, reference.g), (method.discriminator, reference.d)):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            # A step of Adam has the size of the learning rate, whatever the gradient's: rounding may turn tiny ones.
            close = (a - b).abs() <= 1e-4 + 1e-3 * b.abs()
            assert close.float().mean() > 0.99, name


def test_each_network_is_trained_by_its_own_optimiser() -> None:
    method = made().train()
    state = TrainingState(1, 0, method.optimizers(), torch.Generator().manual_seed(3))
    before = copy.deepcopy(dict(method.named_parameters()))
    state.optimizers["G"].param_groups[0]["lr"] = 0.0
    method.training_step(torch.zeros(4, 3, 32, 32), state)
    for name, value in method.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("generator"), name
        assert value.requires_grad


def test_the_generator_of_the_state_is_the_only_randomness() -> None:
    found: list[float] = []
    for seed in (1, 1, 2):
        method = made().train()
        state = TrainingState(1, 0, method.optimizers(), torch.Generator().manual_seed(seed))
        torch.manual_seed(len(found))
        found.append(method.training_step(torch.ones(4, 3, 32, 32), state)["loss_G"].item())
    assert found[0] == found[1] != found[2]


# Settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps is 0, but must be at least 1"),
        ({"steps": 2.5}, "steps is 2.5, but must be a whole number"),
        ({"search_lr": 0.0}, "search_lr"),
        ({"weight": 1.1}, "weight"),
        ({"early_stop": -0.1}, "early_stop"),
        ({"seed": -1}, "seed"),
        ({"beta1": 1.0}, "beta1"),
        ({"width": 0}, "width"),
        ({"lr_d": float("nan")}, "lr_d"),
        ({"latent_dim": True}, "latent_dim"),
        ({"search_decay": 1}, "search_decay"),
        ({"search_eps": 0.0}, "search_eps"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        AnoganConfig(**settings)


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(TrainingError, match="48x48"):
        made(spec=PrepareSpec(size=(48, 48), pool=False))


# The search


def test_forward_is_the_exported_search() -> None:
    method = made().eval()
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    found, exported = method(x), method.export_module()(x)
    assert set(found) == {"x_hat", "f", "f_hat"}
    for name, value in found.items():
        assert torch.equal(value, exported[name])
    assert found["x_hat"].shape == x.shape
    torch.testing.assert_close(found["f"], method.discriminator.features(x), rtol=1e-4, atol=1e-5)
    assert not [value for value in found.values() if value.requires_grad]


def test_the_module_carries_its_weights_and_its_first_latent() -> None:
    one, other = made(), made(AnoganConfig(width=4, latent_dim=5, steps=3, seed=1))
    other.load_state_dict(one.state_dict())
    module = other.export_module()
    module.load_state_dict(one.export_module().state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(module(x)["x_hat"], one.export_module()(x)["x_hat"])


# On real images


class HeldOut:
    """A bundle, frames that neither training nor calibration saw, and torch's scores of them."""

    def __init__(self, folder: Path) -> None:
        settings = TrainingSettings(
            data="mnist:1",
            method="anogan",
            size=32,
            config={
                "width": 8,
                "latent_dim": 16,
                "steps": 25,
                "search_lr": 0.2,
                "lr_g": 2e-3,
                "lr_d": 5e-4,
                "beta1": 0.5,
            },
            limit=300,
            epochs=8,
            validate_every=8,
            autocast="off",
            threads=1,
        )
        train(settings, folder / "run")
        self.bundle = folder / "part.kizu"
        export(folder / "run", self.bundle, rule="labelled")
        dataset = settings.dataset()
        spec = settings.prepare(dataset)
        test = TrainingSettings(data="mnist:1").dataset().split().test[::21]
        method = settings.create(spec)
        module = method.export_module()
        module.load_state_dict(load_file(epoch_file(folder / "run", "labelled"))["module"])
        self.frames: list[NDArray[np.uint8]] = [sample.read() for sample in test]
        self.anomalous = np.array([not sample.good for sample in test])
        images = PreparedImages.read(test, spec)
        self.reference = score_images(module, images, scoring=method.scoring, weight=method.weight).astype(np.float64)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    try:
        locate("mnist")
    except DataError as error:
        pytest.skip(f"MNIST is not on this machine: {error}")
    return HeldOut(tmp_path_factory.mktemp("mnist"))


@pytest.mark.parametrize(
    ("row", "precision"),
    [(row, p) for row, p in EACH_PRECISION if p != "int8"],
    ids=[f"{row.name}-{p}" for row, p in EACH_PRECISION if p != "int8"],
)
def test_the_auroc_of_the_whole_search_is_torchs(
    held_out: HeldOut, row: EngineRow, precision: str, engine_cache: Path
) -> None:
    supported(row, precision)
    try:
        detector = kizu.load(held_out.bundle, engine=row.name, precision=precision, threads=1, cache=engine_cache)
    except KizuError as error:
        assert precision != "fp32"
        pytest.skip(f"too coarse for the search: {error}")
    with detector:
        scores = np.array([result.score for result in detector.score_batch(held_out.frames)])
    assert len(scores) > 300
    reference = auroc(held_out.reference, held_out.anomalous)
    assert reference > 0.8  # a network that tells nothing apart would show nothing
    assert abs(auroc(scores, held_out.anomalous) - reference) <= 0.005
