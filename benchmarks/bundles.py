"""Bundles of the systems that are measured: trained for a few steps on made-up parts, and kept in ``build/bench``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from systems import System

THREADS = 2
ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "bench"
PACKAGE = ROOT / "python" / "kizu"
EXPORTS = ("prepare", "bundle", "export", "variants", "scoring", "subpixel", "iterated")  # those that there are


def part(rng: np.random.Generator, *, side: int = 900) -> NDArray[np.uint8]:
    """A picture of a made-up part, uint8 (side, side, 3): a blurred disc of varying place, size and colour on grain."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    centre, radius = rng.uniform(-0.1, 0.1, 2), rng.uniform(0.25, 0.4)
    disc = 1 / (1 + np.exp((np.hypot(y - centre[0], x - centre[1]) - radius) * 80))
    image = rng.uniform(40, 110, 3) + disc[..., None] * rng.uniform(40, 130, 3)
    noisy: NDArray[np.float64] = image + rng.normal(0, rng.uniform(4, 16), (side, side, 1))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def trained(system: System) -> Path:
    """The run of a system at 256 x 256 and its published widths after 20 seeded training steps."""
    from kizu.settings import TrainingSettings, epoch_file
    from kizu.training import train

    shared = (PACKAGE / "training.py", PACKAGE / "method.py", *PACKAGE.glob("layers/*.py"), Path(__file__))
    folder = KEPT / _digest(shared)
    images = folder / "parts" / "good"
    method = PACKAGE / "methods" / f"{system.method}.py"
    run = folder / f"{system.method}-{_digest([method], json.dumps(system.config))}"
    if not epoch_file(run, "good").exists():
        images.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        for i in range(120):
            Image.fromarray(part(rng)).save(images / f"{i:03}.png", compress_level=1)
        settings = TrainingSettings(
            data=str(folder / "parts"),
            method=system.method,
            config=system.config,
            size=256,
            batch_size=4,
            epochs=20,
            # Of 72 (or 24) training images five remain: one step of four an epoch, 20 in all.
            limit=40 if system.steps else None,
            calibration=0.8 if system.steps else 0.93,
            validate_every=20,
            threads=THREADS,
        )
        train(settings, run, resume=(run / "checkpoint.pt").exists())
    return run


def exported(run: Path) -> Path:
    """The run's bundle beside it, made anew when what writes it or its manifest has changed."""
    from kizu.export import export

    path = run.with_name(f"{run.name}-{_digest(PACKAGE / f'{name}.py' for name in EXPORTS)}.kizu")
    if not path.exists():
        export(run, path, rule="good")
    return path


def module(run: Path) -> Any:
    """The run's network as torch trained it."""
    from kizu.run_folder import load_file
    from kizu.settings import epoch_file, read_settings

    settings = read_settings(run)
    network = settings.create(settings.prepare(settings.dataset())).export_module()
    network.load_state_dict(load_file(epoch_file(run, "good"))["module"])
    return network.eval()


def _digest(paths: Iterable[Path], *words: str) -> str:
    code = hashlib.sha256("\n".join(words).encode())
    for path in sorted(path for path in paths if path.exists()):
        code.update(path.read_bytes())
    return code.hexdigest()[:16]
