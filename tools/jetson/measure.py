"""Measures a bundle on this machine, frame to score, with one engine and precision; prints JSON.

    tools/jetson/measure.py part.kizu --engine tensorrt --precision fp16 [--calls 500] [--json FILE]

Needs kizu and NumPy alone. The frames are the bundle's golden ones, whose scores are checked first. Milliseconds are of
single calls, one after the other: with the frame in ordinary memory, and in the detector's frame buffer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kizu import Detector

    Frames = Sequence[NDArray[Any]]

WARM_UP = 50
COLD_STARTS = 3
# A new process: what importing, loading from the cache and the first score take.
COLD_START = """
import json, sys
from time import perf_counter
start = perf_counter()
import kizu
imported = perf_counter()
detector = kizu.load(sys.argv[1], engine=sys.argv[2], precision=sys.argv[3], cache=sys.argv[4] or None)
loaded = perf_counter()
frame = next(iter(detector.bundle.golden_frames()))
read = perf_counter()
detector.score(frame)
scored = perf_counter()
detector.close()
print(json.dumps({"import": imported - start, "load": loaded - imported, "first_score": scored - read}))
"""


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds, and how many were measured."""
    import numpy as np

    p50, p90, p99 = np.percentile(np.array(seconds) * 1e3, (50, 90, 99))
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "calls": len(seconds)}


def check_golden(detector: Detector, frames: Frames) -> dict[str, float]:
    """How far the golden frames' scores are off; raises RuntimeError if that is more than the bundle allows."""
    import numpy as np

    manifest = detector.bundle.manifest
    scores = np.array([detector.score(frame).score for frame in frames])
    off = float(np.abs(scores - manifest.golden.scores).max() / manifest.calibration.deviation())
    allowed = manifest.golden.tolerances[detector.precision]
    if not off <= allowed:
        raise RuntimeError(
            f"{detector.engine} {detector.precision} is off by {off:.3g} standard deviations of the good scores, and "
            f"{allowed:g} are allowed: nothing was measured"
        )
    return {"off_by": off, "allowed": allowed}


def from_memory(detector: Detector, frames: Frames, calls: int) -> dict[str, float]:
    """Calls with frames in ordinary memory."""
    seconds = []
    for i in range(WARM_UP + calls):
        frame = frames[i % len(frames)]
        start = perf_counter()
        detector.score(frame)
        seconds.append(perf_counter() - start)
    return percentiles(seconds[WARM_UP:])


def from_frame_buffer(detector: Detector, frames: Frames, calls: int) -> dict[str, float]:
    """Calls with frames that were written into the detector's frame buffer before."""
    buffer, seconds = detector.frame_buffer(*frames[0].shape[:2]), []
    for i in range(WARM_UP + calls):
        buffer[...] = frames[i % len(frames)]  # as the camera would
        start = perf_counter()
        detector.score(buffer)
        seconds.append(perf_counter() - start)
    return percentiles(seconds[WARM_UP:])


def stream(detector: Detector, frames: Frames, calls: int) -> float:
    """Frames a second of ``Detector.stream``."""
    for _ in detector.stream(frames):  # warm
        pass
    count, start = 0, perf_counter()
    for _ in detector.stream(frames[i % len(frames)] for i in range(calls)):
        count += 1
    assert count == calls
    return count / (perf_counter() - start)


def cold_start(bundle: Path, engine: str, precision: str, cache: str | None) -> dict[str, float]:
    """Seconds of a new process, the one with the median total of three; the compiled engine is in the cache."""
    command = [sys.executable, "-c", COLD_START, str(bundle), engine, precision, cache or ""]
    runs: list[dict[str, float]] = []
    for _ in range(COLD_STARTS):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout))
    return sorted(runs, key=lambda run: sum(run.values()))[COLD_STARTS // 2]


def measure(bundle: Path, engine: str, precision: str, *, calls: int, cache: str | None = None) -> dict[str, Any]:
    """All measurements. The first load on a machine compiles and proves the engine."""
    import kizu
    from kizu.engine import engines

    with kizu.load(bundle, engine=engine, precision=precision, cache=cache) as detector:
        frames = list(detector.bundle.golden_frames())
        shape = frames[0].shape[:2]
        alike = [i for i, frame in enumerate(frames) if frame.shape[:2] == shape]  # one size, as on a line
        used = [frames[i] for i in alike]
        kind = engines()[detector.engine]
        manifest = detector.bundle.manifest
        about = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "kizu": kizu.__version__,
            "engine": detector.engine,
            "engine_version": kind.version(),
            "contexts": detector.contexts,
            "machine": kind.machine(),
            "precision": detector.precision,
            "bundle": bundle.name,
            "method": manifest.method.name,
            "input": [manifest.prepare.channels, *manifest.prepare.size],
            "frame": list(shape),
            "golden": check_golden(detector, frames),
            "memory_ms": from_memory(detector, used, calls),
            "frame_buffer_ms": from_frame_buffer(detector, used, calls),
            "stream_frames_per_second": stream(detector, used, calls),
        }
    return {**about, "cold_start_s": cold_start(bundle, engine, precision, cache)}


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("bundle", type=Path)
    made.add_argument("--engine", default="tensorrt", help="a name that kizu engines lists (tensorrt)")
    made.add_argument("--precision", default="fp16", help="fp32, fp16, int8, int8+fp16 (fp16)")
    made.add_argument("--calls", type=int, default=500, help="measured of each kind (500)")
    made.add_argument("--cache", help="folder of compiled engines ($KIZU_CACHE, or the user's cache)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    return made


def main() -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args()
    if options.calls < 1:
        parser().error(f"--calls is {options.calls}, but must be at least 1")
    from kizu import KizuError

    try:
        found = measure(options.bundle, options.engine, options.precision, calls=options.calls, cache=options.cache)
    except (KizuError, RuntimeError) as error:
        print(f"measure.py: {error}", file=sys.stderr)
        return 1
    text = json.dumps(found, indent=1)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
