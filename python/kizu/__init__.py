"""kizu: visual anomaly detection for production lines, trained on good parts only.

``kizu.load("part.kizu")`` returns a Detector; its ``score(frame)`` returns a Result. Importing kizu loads neither
torch nor an engine.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kizu")
except PackageNotFoundError:  # run from a source tree without installation
    __version__ = "0+unknown"

from kizu.bundle import Bundle
from kizu.detector import Detector, Result, load
from kizu.errors import BundleError, EngineError, FrameError, KizuError, ScoreError
from kizu.pipeline import Timing
from kizu.prepare import PrepareSpec

__all__ = [
    "Bundle",
    "BundleError",
    "Detector",
    "EngineError",
    "FrameError",
    "KizuError",
    "PrepareSpec",
    "Result",
    "ScoreError",
    "Timing",
    "load",
]
