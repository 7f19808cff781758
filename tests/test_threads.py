"""Operations have the threads that they were given: none with threads=1, on a line that shares its cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kizu.heat_map import MapSmoother
from kizu.prepare import Preparer, PrepareSpec
from kizu.scoring import Scorer

TASKS = Path("/proc/self/task")
pytestmark = pytest.mark.skipif(not TASKS.is_dir(), reason="this system does not list a process's threads")


def _prepare(threads: int) -> Callable[[], None]:
    prepare = Preparer(PrepareSpec(size=(40, 30)), threads=threads)
    frame, out = np.zeros((90, 80, 3), np.uint8), np.empty((5, 40, 30), np.float32)
    return lambda: prepare(frame, out)


def _score(threads: int) -> Callable[[], None]:
    score = Scorer("residual_feature", weight=0.5, threads=threads)
    image, feature = np.ones((4, 3, 50, 60), np.float32), np.ones((4, 999), np.float32)
    tensors, out = {"x": image, "x_hat": image, "f": feature, "f_hat": feature}, np.empty(4, np.float32)
    return lambda: score(tensors, out)


def _smooth_map(threads: int) -> Callable[[], None]:
    smooth = MapSmoother((20, 30), (90, 80), sigma=(3.0, 3.0), threads=threads)
    maps, out = np.ones((2, 20, 30), np.float32), np.empty((2, 90, 80), np.float32)
    return lambda: smooth(maps, out)


def _count() -> int:
    return len(list(TASKS.iterdir()))


def _settled(wanted: int) -> int:
    """The number of threads; one that has ended may be listed for a moment."""
    end = time.monotonic() + 5
    while _count() != wanted and time.monotonic() < end:
        time.sleep(0.001)
    return _count()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("make", [_prepare, _score, _smooth_map])
def test_an_operation_has_the_threads_it_was_given(make: Callable[[int], Callable[[], None]], threads: int) -> None:
    before = _count()
    call = make(threads)
    for _ in range(3):
        call()
    assert _count() == before + threads - 1
    del call
    assert _settled(before) == before
