"""Latency of one frame, batch 1, two threads on every side: a 900 x 900 RGB frame in, a score out.

Each side's scores are checked before it is timed. The sides take turns, so that a slow minute of the machine hits
all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bundles import THREADS, module
from kizu import Detector
from kizu.engine import choose
from scores import Score, by_kizu, by_torch
from systems import ALGAN, System

TURNS = range(5)
ROUNDS = 25
BY_HAND_TOLERANCE = 3.0  # standard deviations of the good scores
SIDES = ("kizu_int8", "torch_eager", "kizu_bf16", "openvino_by_hand", "kizu_fp32")
Frames = Sequence[NDArray[np.uint8]]


def by_openvino(detector: Detector) -> Score:
    """What an OpenVINO user would write: OpenCV's resize, plain NumPy, the model with OpenVINO's defaults."""
    import cv2
    import openvino

    cv2.setNumThreads(THREADS)
    core = openvino.Core()
    model = core.read_model(detector.bundle.graph("fp32"))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": THREADS})

    def score(frame: NDArray[np.uint8]) -> float:
        resized = cv2.resize(frame, (256, 256))
        x = resized.astype(np.float32) / 127.5 - 1
        x = np.concatenate([x, x.max(2, keepdims=True), x.mean(2, keepdims=True)], 2)
        return float(-compiled({0: x.transpose(2, 0, 1)[None]})[0][0])

    return score


@pytest.fixture(scope="module")
def sides(loaded: Callable[[str], Detector], run_of: Callable[[System], Path]) -> dict[str, tuple[Score, float]]:
    """Each side, and how far its scores may be from torch's in standard deviations of the good scores."""
    manifest = loaded("fp32").bundle.manifest
    tolerances = manifest.golden.tolerances
    made: dict[str, tuple[Score, float]] = {"torch_eager": (by_torch(module(run_of(ALGAN)), manifest), 0.05)}
    for precision in ("fp32", "int8", "bf16"):
        if choose("openvino").unsupported(precision) is None:
            made[f"kizu_{precision}"] = (by_kizu(loaded(precision)), tolerances[precision] + 0.05)
    # Another image, since OpenCV's default resize does not antialias, and bf16 where the processor has it.
    made["openvino_by_hand"] = (by_openvino(loaded("fp32")), BY_HAND_TOLERANCE)
    return made


@pytest.fixture(scope="module")
def reference(loaded: Callable[[str], Detector], frames: Frames) -> list[float]:
    return [loaded("fp32").score(frame).score for frame in frames]


@pytest.mark.parametrize(
    ("turn", "side"),
    [(turn, side) for turn in TURNS for side in SIDES],
)
def test_latency(
    benchmark: Any,
    turn: int,
    side: str,
    sides: dict[str, tuple[Score, float]],
    frames: Frames,
    reference: list[float],
    loaded: Callable[[str], Detector],
) -> None:
    if side not in sides:
        pytest.skip(f"{side}: OpenVINO has no such arithmetic on this processor")
    score, tolerance = sides[side]
    unit = loaded("fp32").bundle.manifest.calibration.deviation()
    off = np.abs(np.array([score(frame) for frame in frames]) - reference) / unit
    assert np.isfinite(off).all()
    assert off.max() <= tolerance, f"{side} is off by {off.max():.3g} standard deviations"
    turns = itertools.cycle(frames)
    benchmark.extra_info["side"] = side
    benchmark.pedantic(lambda: score(next(turns)), rounds=ROUNDS, warmup_rounds=5)


@pytest.mark.side("overhead_share")
def test_overhead(benchmark: Any, loaded: Callable[[str], Detector], frames: Frames) -> None:
    """The share of the int8 latency that is not the engine's: prepare, scoring and Python."""
    detector = loaded("int8")
    shares = []
    for frame in list(frames) * 13:
        start = perf_counter()
        result = detector.score(frame)
        total = perf_counter() - start
        assert 0 < result.timing.engine < total
        shares.append(1 - result.timing.engine / total)
    benchmark.extra_info |= {"side": "overhead_share", "value": float(np.median(shares[len(frames) :]))}
    benchmark.pedantic(lambda: detector.score(frames[0]), rounds=ROUNDS)
