"""A training step of ``kizu.train`` against a plain PyTorch loop of the same algorithm, two threads on both sides.

The plain loop is algorithm 1 of the paper as one would write it down: float32 and NCHW, torch's Adam and spectral norm,
a DataLoader over a Dataset that opens and prepares an image at each access, a pass of D for each of real, fake and
buffered images, normal and anomalous apart, and fakes made anew for each update of D. With the same weights, images and
draws both sides take the same steps; this is checked before they are timed. Then kizu trains, and after each of its
steps the plain loop takes one on as many images of the same files, so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import softplus
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, Dataset

from bundles import THREADS, part
from kizu.layers.dcgan import Discriminator
from kizu.layers.spectral import SpectralConv2d, without_spectral_norm
from kizu.method import TrainingState
from kizu.methods.algan_image import AlganImage
from kizu.progress import Progress
from kizu.settings import TrainingSettings
from kizu.training import train

SIZE, BATCH, BATCHES = 64, 16, 4
EPOCHS = 5  # the first one warms up: it has no buffered images yet
SIDES = ("train_kizu", "train_eager")
LR_G, LR_D, BETAS = 2e-4, 1e-4, (0.0, 0.9)
SIGMA, ALPHA, XI, N_Z, N_DIS = 4.0, 0.75, 0.75, 2, 2
N_NORMAL = round(ALPHA * BATCH)


class Images(Dataset[Tensor]):
    """Image files as D's input: own channels in [-1, 1], their maximum and their mean."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
        return torch.cat([x, x.amax(0, keepdim=True), x.mean(0, keepdim=True)])


def pooled(images: Tensor) -> Tensor:
    return torch.cat([images, images.amax(1, keepdim=True), images.mean(1, keepdim=True)], 1)


class Plain:
    """Algorithm 1 with equations 5 and 6 and section IV-A-1's buffer; a seed gives it the draws that kizu makes."""

    def __init__(self, method: AlganImage, seed: int) -> None:
        self.g = copy.deepcopy(method.generator)
        self.g.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.d = with_torchs_spectral_norm(method.discriminator)
        self.adam_g = torch.optim.Adam(self.g.parameters(), LR_G, BETAS)
        self.adam_d = torch.optim.Adam(self.d.parameters(), LR_D, BETAS)
        self.random = torch.Generator().manual_seed(seed)
        self.z_d, self.z_g = torch.zeros_like(method.z_d), torch.zeros_like(method.z_g)
        n_images = (2 * N_NORMAL, 2 * (BATCH - N_NORMAL))
        self.held = [torch.zeros(n, *method.image_shape, dtype=torch.float16) for n in n_images]

    def step(self, real: Tensor, epoch: int, j: int) -> tuple[float, float]:
        """Lines 7 to 20 for one batch; the losses of D's last update and of G's."""
        if j == 0 and (epoch == 1 or epoch % N_Z == 0):
            self.z_d.normal_(generator=self.random)
            self.z_d[:, N_NORMAL:] *= SIGMA
            self.z_g.normal_(generator=self.random)
        for _ in range(N_DIS):
            with torch.no_grad():
                fakes = self.g(self.z_d[j])
            fresh = (fakes[:N_NORMAL], fakes[N_NORMAL:])
            with parametrize.cached():  # one power iteration an update, however many passes
                loss_d = softplus(-self.d(real)).mean()
                for weight, new in zip((ALPHA, 1 - ALPHA), fresh, strict=True):
                    loss_d = loss_d + weight * XI * softplus(self.d(pooled(new))).mean()
                if epoch > 1:
                    old = [self.draw(held, new) for held, new in zip(self.held, fresh, strict=True)]
                    for weight, images in zip((ALPHA, 1 - ALPHA), old, strict=True):
                        loss_d = loss_d + weight * (1 - XI) * softplus(self.d(pooled(images))).mean()
            self.adam_d.zero_grad()
            loss_d.backward()  # type: ignore[no-untyped-call]
            self.adam_d.step()
        for held, new in zip(self.held, fresh, strict=True):
            where = torch.randperm(len(held), generator=self.random)
            which = torch.randperm(len(new), generator=self.random).repeat(2)
            n = len(held) if epoch == 1 and j == 0 else len(new)
            held[where[:n]] = new[which[:n]].half()
        loss_g = -softplus(self.d(pooled(self.g(self.z_g[j])))).mean()
        self.adam_g.zero_grad()
        loss_g.backward()  # type: ignore[no-untyped-call]
        self.adam_g.step()
        return loss_d.item(), loss_g.item()

    def draw(self, held: Tensor, new: Tensor) -> Tensor:
        return held[torch.randperm(len(held), generator=self.random)[: len(new)]].float()


def with_torchs_spectral_norm(discriminator: Discriminator) -> Discriminator:
    """The same network on plain convolutions, with the same weights and singular vectors."""
    made = without_spectral_norm(discriminator)
    for to, layer in zip(made.layers, discriminator.layers, strict=True):
        if isinstance(layer, SpectralConv2d):
            plain: Any = to
            plain.weight.data.copy_(layer.weight)
            plain.bias.data.copy_(layer.bias)
            spectral_norm(plain)
            norm = plain.parametrizations.weight[0]
            norm._u.copy_(layer.u)
            # Ours come in the order of memory, height, width, input; torch's in that of indices.
            norm._v.copy_(layer.v.view(*layer.kernel_size, -1).permute(2, 0, 1).flatten())
    return made


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainingSettings:
    """A run on 900 x 900 RGB parts, ``BATCHES`` batches an epoch."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "good").mkdir()
    rng = np.random.default_rng(0)
    for i in range(1 + round(BATCHES * BATCH / 0.6)):  # a folder's random split trains on 60 %
        Image.fromarray(part(rng)).save(folder / "good" / f"{i:03}.png", compress_level=1)
    return TrainingSettings(
        data=str(folder),
        size=SIZE,
        batch_size=BATCH,
        epochs=EPOCHS,
        validate_every=EPOCHS,
        calibration=0.0,
        threads=THREADS,
    )


def made(settings: TrainingSettings) -> tuple[AlganImage, list[Path]]:
    """The method ready for its first step, and the files of its training images."""
    dataset = settings.dataset()
    paths = [sample.path for sample in settings.divide(dataset).train if sample.path is not None]
    assert len(paths) // BATCH == BATCHES
    method = settings.create(settings.prepare(dataset))
    assert isinstance(method, AlganImage)
    method.start(batches=BATCHES, batch_size=BATCH)
    return method, paths


def check(settings: TrainingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides take the same two steps, one without and one with buffered images.

    In double precision: Adam takes a gradient's sign at first, and rounding decides the sign of a tiny one.
    """
    method, paths = made(settings)
    method.double().buffer = method.buffer.half()
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    plain, images = Plain(method, seed=5), Images(paths, SIZE)
    state = TrainingState(1, 0, method.optimizers(), torch.Generator().manual_seed(5))
    for state.epoch in (1, 2):
        real = torch.stack([images[i] for i in range(BATCH)])
        losses = method.training_step(real, state)
        expected = plain.step(real, state.epoch, 0)
        assert (float(losses["loss_D"]), float(losses["loss_G"])) == pytest.approx(expected, rel=1e-6)
    for ours, other in ((method.generator, plain.g), (method.discriminator, plain.d)):
        found = dict(other.named_parameters())
        for name, parameter in ours.named_parameters():
            layer = name.removesuffix("weight")
            expected_weight = found.get(name, found.get(f"{layer}parametrizations.weight.original"))
            torch.testing.assert_close(parameter, expected_weight, rtol=0, atol=1e-8)  # a step moves it by 1e-4


class Turns(Progress):
    """After each of kizu's steps the other side takes one; the seconds of both."""

    def __init__(self, other: Callable[[int], None]) -> None:
        self.other = other
        self.seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        self.started: float | None = None

    def note(self, text: str) -> None:
        pass

    @contextmanager
    def reading(self, images: int) -> Iterator[Callable[[], None]]:
        yield lambda: None

    @contextmanager
    def training(self, epochs: int, batches: int) -> Iterator[Callable[..., None]]:
        yield self.report

    def report(self, *, epoch: int, batch: int, losses: Any, values: Any = None) -> None:
        stopped = perf_counter()
        if values is not None:
            self.started = None  # what lies between two epochs is not a step's
            return
        if self.started is not None and epoch > 1:
            self.seconds["train_kizu"].append(stopped - self.started)
        torch.use_deterministic_algorithms(False)
        started = perf_counter()
        self.other(epoch)
        if epoch > 1:
            self.seconds["train_eager"].append(perf_counter() - started)
        torch.use_deterministic_algorithms(True)
        self.started = perf_counter()


@pytest.fixture(scope="module")
def seconds(settings: TrainingSettings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The seconds of each step of either side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    with pytest.MonkeyPatch.context() as monkeypatch:
        check(settings, monkeypatch)
    method, paths = made(settings)
    plain = Plain(method, seed=5)

    def batches() -> Iterator[Tensor]:
        while True:
            yield from DataLoader(Images(paths, SIZE), BATCH, shuffle=True, drop_last=True)

    batch, taken = batches(), count()

    def step(epoch: int) -> None:
        plain.step(next(batch), epoch, next(taken) % BATCHES)

    turns = Turns(step)
    train(settings, tmp_path_factory.mktemp("train") / "run", progress=turns)
    torch.set_num_threads(threads)
    return turns.seconds


@pytest.mark.parametrize("side", SIDES)
def test_training(benchmark: Any, side: str, seconds: dict[str, list[float]]) -> None:
    assert len(seconds[side]) >= (EPOCHS - 1) * (BATCHES - 1)
    value = median(seconds[side])
    benchmark.extra_info |= {"side": side, "value": value, "seconds": seconds[side]}
    benchmark.pedantic(lambda: value, rounds=1)
