"""What the benchmarks share: the bundle they measure, made once and kept in ``build/bench``.

Without torch, as on a device, the GPU's benchmarks alone are collected; their bundle is ``$KIZU_BUNDLE``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import kizu
from kizu import Detector

THREADS = 2
ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "bench"


def part(rng: np.random.Generator, *, side: int = 900) -> NDArray[np.uint8]:
    """A picture of a made-up part, uint8 (side, side, 3): a blurred disc of varying place, size and colour on grain."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    centre, radius = rng.uniform(-0.1, 0.1, 2), rng.uniform(0.25, 0.4)
    disc = 1 / (1 + np.exp((np.hypot(y - centre[0], x - centre[1]) - radius) * 80))
    image = rng.uniform(40, 110, 3) + disc[..., None] * rng.uniform(40, 130, 3)
    noisy: NDArray[np.float64] = image + rng.normal(0, rng.uniform(4, 16), (side, side, 1))
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def frames() -> list[NDArray[np.uint8]]:
    """Frames 900 x 900 RGB that are scored."""
    rng = np.random.default_rng(1)
    return [part(rng) for _ in range(8)]


@pytest.fixture(scope="session")
def run() -> Path:
    """ALGAN-image at 256 x 256 and its published widths after 20 seeded training steps."""
    from kizu.settings import TrainingSettings, epoch_file
    from kizu.training import train

    code = hashlib.sha256()
    for path in sorted(ROOT.glob("python/kizu/**/*.py")):
        if path.parent.name in ("methods", "layers") or path.name in ("training.py", "method.py"):
            code.update(path.read_bytes())
    code.update(Path(__file__).read_bytes())
    folder = KEPT / code.hexdigest()[:16]
    if not epoch_file(folder / "run", "good").exists():
        images = folder / "parts" / "good"
        images.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        for i in range(120):
            Image.fromarray(part(rng)).save(images / f"{i:03}.png", compress_level=1)
        settings = TrainingSettings(
            data=str(folder / "parts"),
            size=256,
            batch_size=4,
            epochs=20,
            limit=None,
            calibration=0.93,  # of 72 training images five remain: one step of four an epoch, 20 in all
            validate_every=20,
            threads=THREADS,
        )
        train(settings, folder / "run", resume=(folder / "run" / "checkpoint.pt").exists())
    return folder / "run"


@pytest.fixture(scope="session")
def bundle(run: Path) -> Path:
    """The run's bundle, made anew when what writes it or its manifest has changed."""
    from kizu.export import export

    code = hashlib.sha256()
    for name in ("prepare", "bundle", "export"):
        code.update((ROOT / "python" / "kizu" / f"{name}.py").read_bytes())
    path = run.parent / f"algan-{code.hexdigest()[:16]}.kizu"
    if not path.exists():
        export(run, path, rule="good")
    return path


@pytest.fixture(scope="session")
def torch_discriminator(run: Path) -> object:
    """The run's network as torch trained it."""
    from kizu.run_folder import load_file
    from kizu.settings import epoch_file, read_settings

    settings = read_settings(run)
    method = settings.create(settings.prepare(settings.dataset()))
    module = method.export_module()
    module.load_state_dict(load_file(epoch_file(run, "good"))["module"])
    return module.eval()


@pytest.fixture(scope="session")
def loaded(bundle: Path) -> Iterator[Callable[[str], Detector]]:
    """Detectors of the bundle by precision, on two threads."""
    made: dict[str, Detector] = {}

    def load(precision: str) -> Detector:
        if precision not in made:
            made[precision] = kizu.load(
                bundle, engine="openvino", precision=precision, threads=THREADS, cache=KEPT / "cache"
            )
        return made[precision]

    yield load
    for detector in made.values():
        detector.close()


if importlib.util.find_spec("torch") is None:
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_gpu.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sides", default="", help="run only the benchmarks that measure these sides (comma-separated)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what ``--sides`` does not name; without it, what is slow."""
    wanted = set(filter(None, config.getoption("--sides").split(",")))

    def chosen(item: pytest.Item) -> bool:
        if not wanted:
            return "slow" not in item.keywords
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        names = {mark.args[0] for mark in item.iter_markers("side")} | {parameters.get("side")}
        return bool(names & wanted)

    config.hook.pytest_deselected(items=[item for item in items if not chosen(item)])
    items[:] = [item for item in items if chosen(item)]


def pytest_configure(config: pytest.Config) -> None:
    """Two threads on both sides; libraries read these before they start theirs."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(THREADS))
