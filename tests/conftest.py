"""Real bundles for the tests: parts are drawn, a small ALGAN-image is trained on them and exported, once a session."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import kizu
from helpers import Trained, make_parts, part, without
from kizu import _core
from rows import METHODS, MethodRow


def _make(folder: Path, *, color: bool, row: MethodRow = METHODS[0]) -> Trained:
    for package in ("torch", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            without(f"no bundle can be trained: {package} is not installed (pip install 'kizu[train]')")
    from kizu.export import export
    from kizu.settings import TrainingSettings
    from kizu.training import train

    made = Trained(make_parts(folder / "parts", color=color, good=120, bad=12), folder / "run", folder / "part.kizu")
    settings = TrainingSettings(
        data=str(made.data),
        method=row.name,
        config=row.config,
        size=row.size,
        seed=1,
        epochs=6,
        validate_every=3,
        autocast="off",
        threads=1,
    )
    train(settings, made.run)
    export(made.run, made.bundle, false_reject=0.1)
    return made


@pytest.fixture(scope="session")
def train_method(tmp_path_factory: pytest.TempPathFactory) -> Callable[[MethodRow], Trained]:
    """Of a method's row: colour parts, a run and a bundle, made once."""
    return functools.cache(lambda row: _make(tmp_path_factory.mktemp(row.name), color=True, row=row))


@pytest.fixture(scope="session")
def trained(train_method: Callable[[MethodRow], Trained]) -> Trained:
    """Colour parts, the run and the bundle."""
    return train_method(METHODS[0])


@pytest.fixture(scope="session")
def mono_trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Grey parts, the run and the bundle."""
    return _make(tmp_path_factory.mktemp("mono"), color=False)


@pytest.fixture(scope="session")
def bundle_path(trained: Trained) -> Path:
    """A bundle for colour frames."""
    return trained.bundle


@pytest.fixture(scope="session")
def mono_bundle_path(mono_trained: Trained) -> Path:
    """A bundle for grey frames."""
    return mono_trained.bundle


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of compiled engines that the tests share."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
def frames() -> list[NDArray[np.uint8]]:
    """Colour frames that no training has seen, good and scratched."""
    rng = np.random.default_rng(99)
    return [part(rng, color=True, scratched=i % 2 == 1) for i in range(24)]


@pytest.fixture(scope="session")
def detector(bundle_path: Path, engine_cache: Path) -> Iterator[kizu.Detector]:
    """A detector of colour frames in fp32 that no test may close."""
    with kizu.load(bundle_path, precision="fp32", threads=2, max_batch=4, cache=engine_cache) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: the networks of these tests are too small to share out."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch in double precision: Adam takes a gradient's sign at first, and rounding decides the sign of a tiny one."""
    import torch

    before = torch.get_default_dtype()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def cuda() -> None:
    """A CUDA device, or a skip that says why; under KIZU_REQUIRE_GPU=1 a failure."""
    if _core.cuda_devices() == 0:
        why = "there is no CUDA device: the driver offers none, or kizu was built without CUDA"
        (pytest.fail if os.environ.get("KIZU_REQUIRE_GPU") == "1" else pytest.skip)(why)
