"""The demo on real images, seeds 0 to 2: detection on held-out images, and each engine's fidelity to torch there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kizu
from bundles import KEPT, ROOT, THREADS
from kizu.data.prepared import PreparedImages
from kizu.engine import engines
from kizu.metrics import auroc
from kizu.run_folder import load_file
from kizu.settings import epoch_file, read_settings
from kizu.validation import score_images

pytestmark = pytest.mark.slow
SEEDS = range(3)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """The demo's folder -> what it printed, for each seed."""
    said = {}
    for seed in SEEDS:
        output = tmp_path_factory.mktemp(f"seed{seed}")
        command = [str(ROOT / "tools" / "demo"), "--seed", str(seed), "--output", str(output)]
        said[output] = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return said


@pytest.mark.side("detection_worst_auroc")
def test_detection(benchmark: Any, demos: dict[Path, str]) -> None:
    """The worst AUROC at the end of training, as the demo prints it."""
    found = [float(re.findall(r"^AUROC (\d\.\d+) .*rule last", text, re.MULTILINE)[0]) for text in demos.values()]
    assert all(0 <= value <= 1 for value in found)
    benchmark.extra_info |= {"side": "detection_worst_auroc", "value": min(found), "auroc": found}
    benchmark.pedantic(lambda: min(found), rounds=1)


def torch_scores(folder: Path) -> tuple[list[NDArray[np.uint8]], list[bool], NDArray[np.float64]]:
    """Held-out frames, whether they are anomalous, and torch's scores of them."""
    settings = read_settings(folder / "run")
    dataset = settings.dataset()
    test, spec = settings.divide(dataset).test, settings.prepare(dataset)
    module = settings.create(spec).export_module()
    module.load_state_dict(load_file(epoch_file(folder / "run", "last"))["module"])
    scores = score_images(module, PreparedImages.read(test, spec), scoring="logit").astype(np.float64)
    return [sample.read() for sample in test], [not sample.good for sample in test], scores


def detectors(path: Path) -> Iterator[kizu.Detector]:
    for name, engine in engines().items():
        if engine.unavailable() is None:
            for precision in engine.variants:
                if engine.unsupported(precision) is None:
                    with kizu.load(
                        path, engine=name, precision=precision, threads=THREADS, cache=KEPT / "cache"
                    ) as detector:
                        yield detector


@pytest.mark.side("detection_worst_auroc")
def test_fidelity(demos: dict[Path, str]) -> None:
    """Every engine and precision scores every held-out image as torch does, within its tolerance."""
    checked = set()
    for folder in demos:
        frames, anomalous, reference = torch_scores(folder)
        for detector in detectors(folder / "cookies-last.kizu"):
            manifest = detector.bundle.manifest
            scores = np.array([detector.score(frame).score for frame in frames])
            off = np.abs(scores - reference).max() / manifest.calibration.deviation()
            assert off <= manifest.golden.tolerances[detector.precision], (folder, detector.engine, detector.precision)
            # With so few images one pair that changes places is more than 0.005.
            pairs = sum(anomalous) * (len(anomalous) - sum(anomalous))
            assert abs(auroc(scores, anomalous) - auroc(reference, anomalous)) <= max(0.005, 1 / pairs) + 1e-9
            checked.add((detector.engine, detector.precision))
    assert {("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp16")} <= checked
