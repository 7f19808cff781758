"""What the benchmarks share: the bundles that they measure, made once and kept in ``build/bench``.

Without torch, as on a device, the GPU's benchmarks alone are collected; their bundle is ``$KIZU_BUNDLE``.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kizu
from bundles import KEPT, THREADS, exported, part, trained
from comparisons import machine
from kizu import Detector
from prediction import RECORDS, condensed, text
from systems import ALGAN

if TYPE_CHECKING:
    from systems import System

    Load = Callable[[System, str, str], Detector]


@pytest.fixture(scope="session")
def frames() -> list[NDArray[np.uint8]]:
    """Frames 900 x 900 RGB that are scored."""
    rng = np.random.default_rng(1)
    return [part(rng) for _ in range(8)]


@pytest.fixture(scope="session")
def run_of() -> Callable[[System], Path]:
    """Each system's run, trained when it is first asked for."""
    return functools.cache(trained)


@pytest.fixture(scope="session")
def bundle(run_of: Callable[[System], Path]) -> Path:
    """ALGAN-image's bundle."""
    return exported(run_of(ALGAN))


@pytest.fixture(scope="session")
def load(run_of: Callable[[System], Path]) -> Iterator[Load]:
    """Detectors by system, engine and precision, on two threads, made when they are first asked for."""

    @functools.cache
    def made(system: System, engine: str, precision: str) -> Detector:
        path = exported(run_of(system))
        detector = kizu.load(path, engine=engine, precision=precision, threads=THREADS, cache=KEPT / "cache")
        opened.append(detector)
        return detector

    opened: list[Detector] = []
    yield made
    for detector in opened:
        detector.close()


@pytest.fixture(scope="session")
def loaded(load: Load) -> Callable[[str], Detector]:
    """ALGAN-image's detectors on OpenVINO, by precision."""
    return functools.partial(load, ALGAN, "openvino")


if importlib.util.find_spec("torch") is None:
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_gpu.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--turns", type=int, default=5, help="turns that the sides of the prediction times take (5)")
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


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """What prediction times depend on, into the benchmarks' JSON."""
    machine_info["kizu"] = {**machine(), "threads": THREADS}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The prediction times of this run."""
    records: list[dict[str, Any]] = config.stash.get(RECORDS, [])
    rows = condensed(records)
    if rows:
        terminalreporter.section("prediction time")
        terminalreporter.write_line(text(rows))
