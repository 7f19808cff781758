"""Latency on a GPU, batch 1: a 900 x 900 RGB frame in host memory in, a score out; ALGAN-image at 256 x 256.

The bundle is ``$KIZU_BUNDLE``, or is trained here where torch is installed. Scores are checked before they are timed;
what is timed for the overhead computes no scores.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kizu
from bundles import KEPT
from kizu import Bundle, Detector, _core
from kizu.compiled import compiled, default_cache
from kizu.engine import BuildOptions, choose, default_threads, engines
from kizu.pipeline import engine_batch, open_pipeline

pytestmark = pytest.mark.gpu

ENGINE = "tensorrt"
CACHE = None if os.environ.get("KIZU_BUNDLE") else KEPT / "cache"  # kizu build's, or the benchmarks' own
ROUNDS, WARM_UP = 300, 50
Frame = NDArray[Any]


def device_name() -> str:
    """The board's name, where it has one (all Orin GPUs are called Orin), and the engine's for GPU and driver."""
    board = Path("/proc/device-tree/model")
    named = board.read_text(encoding="utf-8").strip("\0\n ") if board.exists() else ""
    return f"{named} {engines()[ENGINE].machine()}".strip()


def need(fault: str | None) -> None:
    """Skip with the reason; under KIZU_REQUIRE_GPU=1 fail."""
    if fault:
        (pytest.fail if os.environ.get("KIZU_REQUIRE_GPU") == "1" else pytest.skip)(fault)


@pytest.fixture(scope="module")
def device() -> str:
    need(None if _core.cuda_devices() else "there is no CUDA device: the driver offers none, or kizu has no CUDA")
    need(None if ENGINE in engines() else f"this kizu has no engine {ENGINE}")
    reason = engines()[ENGINE].unavailable()
    need(f"{ENGINE}: {reason}" if reason else None)
    return device_name()


@pytest.fixture(scope="module")
def path(device: str, request: pytest.FixtureRequest) -> Path:
    """A bundle of ALGAN-image as published, 256 x 256, for RGB frames."""
    given = os.environ.get("KIZU_BUNDLE")
    path = Path(given) if given else Path(request.getfixturevalue("bundle"))
    manifest = Bundle.open(path).manifest
    prepare, method = manifest.prepare, manifest.method
    if (method.name, method.config["width"], prepare.size, prepare.color) != ("algan_image", 64, (256, 256), "rgb"):
        pytest.skip(f"{path} is not ALGAN-image at its published widths for 256 x 256 RGB, which the targets are for")
    return path


@pytest.fixture(scope="module")
def loaded_on_gpu(path: Path) -> Iterator[Callable[[str], Detector]]:
    """Detectors by precision, whose golden scores were checked here besides the engine's own proof."""
    made: dict[str, Detector] = {}

    def load(precision: str) -> Detector:
        if precision not in made:
            detector = made[precision] = kizu.load(path, engine=ENGINE, precision=precision, cache=CACHE)
            manifest = detector.bundle.manifest
            scores = np.array([detector.score(frame).score for frame in detector.bundle.golden_frames()])
            off = np.abs(scores - manifest.golden.scores).max() / manifest.calibration.deviation()
            assert off <= manifest.golden.tolerances[precision]
        return made[precision]

    yield load
    for detector in made.values():
        detector.close()


def time(benchmark: Any, run: Callable[[], object], *, side: str, device: str) -> None:
    """Record the median of single calls, in milliseconds."""
    seconds: list[float] = []

    def once() -> None:
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)

    benchmark.pedantic(once, rounds=ROUNDS, warmup_rounds=WARM_UP)
    benchmark.extra_info |= {"side": side, "device": device, "value": float(np.median(seconds[-ROUNDS:]) * 1e3)}


@pytest.mark.parametrize("side", ["gpu_fp16_p50", "gpu_int8_p50"])
def test_frame_in_memory(
    benchmark: Any, side: str, device: str, loaded_on_gpu: Callable[[str], Detector], frames: list[Frame]
) -> None:
    detector, turns = loaded_on_gpu(side.split("_")[1]), itertools.cycle(frames)
    time(benchmark, lambda: detector.score(next(turns)), side=side, device=device)


@pytest.mark.parametrize("side", ["gpu_fp16_buffer_p50", "gpu_int8_buffer_p50"])
def test_frame_in_the_frame_buffer(
    benchmark: Any, side: str, device: str, loaded_on_gpu: Callable[[str], Detector], frames: list[Frame]
) -> None:
    detector = loaded_on_gpu(side.split("_")[1])
    expected = [detector.score(frame).score for frame in frames]
    buffer = detector.frame_buffer(*frames[0].shape[:2])
    for frame, score in zip(frames, expected, strict=True):
        buffer[...] = frame
        assert detector.score(buffer).score == score
    time(benchmark, lambda: detector.score(buffer), side=side, device=device)


class NoContext:
    """Computes nothing."""

    def enqueue(self, stream: int) -> None:
        """Put nothing on the stream."""

    def capturable(self, stream: int) -> bool:
        return True


@pytest.mark.side("gpu_overhead")
def test_overhead(
    benchmark: Any, device: str, path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copy, prepare, score, launch and wait: a frame's way with an engine that computes nothing."""
    bundle = Bundle.open(path)
    spec, rule = bundle.manifest.prepare, bundle.manifest.scoring
    options = BuildOptions("fp16", default_threads(), engine_batch(spec, 16))  # kizu.load's
    with compiled(bundle, choose(ENGINE), "fp16", options, CACHE or default_cache()).load() as engine:
        monkeypatch.setattr(engine, "context", lambda tensors, workspace: NoContext())
        with open_pipeline(engine, spec, rule) as pipeline:
            turns = itertools.cycle(frames)
            assert pipeline.run([frames[0]])[0].shape == (1,)
            time(benchmark, lambda: pipeline.run([next(turns)]), side="gpu_overhead", device=device)
