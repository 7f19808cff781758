"""Fidelity on real images: every engine and precision against torch on thousands of held-out MNIST images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import kizu
from helpers import EACH_PRECISION, supported
from kizu.data import locate
from kizu.data.prepared import PreparedImages
from kizu.errors import DataError
from kizu.export import export
from kizu.metrics import auroc
from kizu.run_folder import load_file
from kizu.settings import TrainingSettings, epoch_file
from kizu.training import train
from kizu.validation import score_images
from rows import EngineRow


class HeldOut:
    """A bundle, frames that neither training nor calibration saw, and torch's scores of them."""

    def __init__(self, folder: Path) -> None:
        settings = TrainingSettings(
            data="mnist:1", size=32, config={"width": 16}, limit=400, epochs=1, validate_every=1, threads=1
        )
        train(settings, folder / "run")
        self.bundle = folder / "part.kizu"
        export(folder / "run", self.bundle, rule="labelled")
        dataset = settings.dataset()
        spec = settings.prepare(dataset)
        test = TrainingSettings(data="mnist:1").dataset().split().test[::3]
        module = settings.create(spec).export_module()
        module.load_state_dict(load_file(epoch_file(folder / "run", "labelled"))["module"])
        self.frames: list[NDArray[np.uint8]] = [sample.read() for sample in test]
        self.anomalous = np.array([not sample.good for sample in test])
        self.reference = score_images(module, PreparedImages.read(test, spec), scoring="logit").astype(np.float64)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    try:
        locate("mnist")
    except DataError as error:
        pytest.skip(f"MNIST is not on this machine: {error}")
    return HeldOut(tmp_path_factory.mktemp("mnist"))


@pytest.mark.parametrize(("row", "precision"), EACH_PRECISION, ids=[f"{r.name}-{p}" for r, p in EACH_PRECISION])
def test_scores_and_auroc_are_torchs(held_out: HeldOut, row: EngineRow, precision: str, engine_cache: Path) -> None:
    supported(row, precision)
    with kizu.load(held_out.bundle, engine=row.name, precision=precision, threads=1, cache=engine_cache) as detector:
        manifest = detector.bundle.manifest
        scores = np.array([result.score for result in detector.score_batch(held_out.frames)])
    assert len(scores) > 2000
    off = np.abs(scores - held_out.reference) / manifest.calibration.deviation()
    assert off.max() <= manifest.golden.tolerances[precision]
    reference = auroc(held_out.reference, held_out.anomalous)
    assert reference > 0.9  # a network that tells nothing apart would show nothing
    assert abs(auroc(scores, held_out.anomalous) - reference) <= 0.005
