"""Cold start: a new process loads a bundle whose engine is in the cache and scores one frame."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bundles import KEPT, THREADS
from kizu import Detector

PROGRAM = """
import json, sys
from time import perf_counter
import numpy, openvino
openvino.Core  # a lazy import would count against us, or for us
frame = numpy.load(sys.argv[2])
start = perf_counter()
import kizu
with kizu.load(sys.argv[1], engine="openvino", precision="int8", threads=int(sys.argv[3]), cache=sys.argv[4]) as d:
    score = d.score(frame).score
    print(json.dumps({"seconds": perf_counter() - start, "score": score, "torch": "torch" in sys.modules}))
"""


@pytest.mark.side("cold_start")
def test_cold_start(
    benchmark: Any,
    bundle: Path,
    loaded: Callable[[str], Detector],
    frames: list[NDArray[np.uint8]],
    tmp_path: Path,
) -> None:
    expected = loaded("int8").score(frames[0]).score  # the engine is in the cache now
    image = tmp_path / "frame.npy"
    np.save(image, frames[0])
    seconds = []

    def start() -> None:
        command = [sys.executable, "-c", PROGRAM, str(bundle), str(image), str(THREADS), str(KEPT / "cache")]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert said["score"] == expected
        assert not said["torch"]
        seconds.append(said["seconds"])

    benchmark.pedantic(start, rounds=5)
    benchmark.extra_info |= {"side": "cold_start", "value": float(np.median(seconds))}
