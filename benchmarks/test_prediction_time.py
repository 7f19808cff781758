"""Prediction time of every method at 256 x 256 (ALGAN 2022, table 5): a 900 x 900 RGB frame in, a score out, batch 1.

PyTorch eager, and each engine on the processor in each precision that it has here, on two threads. Each side's scores
are checked before it is timed. On one runtime the systems follow one another, and all take several turns, so that a
slow minute of the machine hits all of them. ``--sides`` names a system and a runtime, e.g. f_anogan_openvino_int8.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bundles import module
from kizu.engine import CpuEngine, choose, engines
from prediction import RECORDS
from scores import Score, by_kizu, by_kizu_in, by_torch
from systems import ALGAN, FEW_STEPS, System, of_few_steps, systems

if TYPE_CHECKING:
    from conftest import Load

ENGINES = {name: engine for name, engine in engines().items() if issubclass(engine, CpuEngine)}
RUNTIMES = ("torch", *(f"{name}_{precision}" for name, engine in ENGINES.items() for precision in engine.variants))
Frames = Sequence[NDArray[np.uint8]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every turn, runtime and system; where nothing is timed, ALGAN-image once: others would have to be trained."""
    option = metafunc.config.getoption
    quick = option("benchmark_disable")
    chosen = [
        pytest.param(turn, runtime, system, f"{system.name}_{runtime}", id=f"{turn}-{runtime}-{system.name}")
        for turn in range(1 if quick else option("turns"))
        for runtime in RUNTIMES
        for system in ([ALGAN] if quick else systems())
        if system.turns is None or turn < system.turns
    ]
    metafunc.parametrize(("turn", "runtime", "system", "side"), chosen)


@pytest.fixture(scope="module")
def first_engine() -> str:
    """The engine that the reference is computed by."""
    return next(name for name, engine in ENGINES.items() if engine.unavailable() is None)


@pytest.fixture(scope="module")
def scorer(load: Load, run_of: Callable[[System], Path], first_engine: str) -> Iterator[Callable[[System, str], Score]]:
    """A system's frame to score on a runtime."""

    @functools.cache
    def made(system: System, runtime: str) -> Score:
        bundle = load(of_few_steps(system), first_engine, "fp32").bundle
        if runtime == "torch":
            network = module(run_of(system))
            if system.steps:
                network.steps = system.steps
            return by_torch(network, bundle.manifest)
        engine, precision = runtime.rsplit("_", 1)
        if system.steps in (0, FEW_STEPS):
            return by_kizu(load(system, engine, precision))
        return opened.enter_context(by_kizu_in(system.steps, bundle, engine, precision))

    with ExitStack() as opened:
        yield made


@pytest.fixture(scope="module")
def checked(load: Load, first_engine: str, frames: Frames) -> Callable[[System, str, Score], None]:
    """Holds a side's scores to the first engine's in float32; this also warms the side up.

    Of searches those of few steps are checked, which have the same graphs.
    """

    @functools.cache
    def expected(system: System) -> list[float]:
        detector = load(system, first_engine, "fp32")
        return [detector.score(frame).score for frame in frames[: system.rounds]]

    def check(system: System, runtime: str, score: Score) -> None:
        if system.steps not in (0, FEW_STEPS):
            return
        manifest = load(system, first_engine, "fp32").bundle.manifest
        tolerance = 0.05 + (0.0 if runtime == "torch" else manifest.golden.tolerances[runtime.rsplit("_", 1)[1]])
        scores = [score(frame) for frame, _ in zip(frames, expected(system), strict=False)]
        off = np.abs(np.subtract(scores, expected(system))) / manifest.calibration.deviation()
        assert np.isfinite(off).all()
        assert (off <= tolerance).all(), f"off by {off.max():.3g} standard deviations of the good scores"

    return check


def test_prediction_time(
    benchmark: Any,
    turn: int,
    runtime: str,
    system: System,
    side: str,
    frames: Frames,
    scorer: Callable[[System, str], Score],
    checked: Callable[[System, str, Score], None],
    request: pytest.FixtureRequest,
) -> None:
    reason = unmeasurable(system, runtime)
    if reason:
        pytest.skip(f"{side}: {reason}")
    score = scorer(system, runtime)
    checked(system, runtime, score)

    seconds: list[float] = []
    turns = itertools.cycle(frames)

    def once() -> None:
        frame = next(turns)
        start = perf_counter()
        found = score(frame)
        seconds.append(perf_counter() - start)
        assert np.isfinite(found)

    benchmark.pedantic(once, rounds=system.rounds)
    benchmark.extra_info |= {"side": side, "system": system.name, "runtime": runtime, "seconds": seconds}
    if not request.config.getoption("benchmark_disable"):
        request.config.stash.setdefault(RECORDS, []).append(benchmark.extra_info)


def unmeasurable(system: System, runtime: str) -> str | None:
    """Why this runtime has no time of the system here, or None."""
    if runtime == "torch":
        return None
    engine, precision = runtime.rsplit("_", 1)
    if system.steps and precision not in ("fp32", "fp16"):
        return "a search is measured in fp32 and fp16"
    return ENGINES[engine].unavailable() or choose(engine).unsupported(precision)
