"""The sides of a comparison: functions from a frame to its score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bundles import KEPT, THREADS
from kizu.compiled import compiled, options_for
from kizu.engine import choose
from kizu.pipeline import open_pipeline

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kizu import Detector
    from kizu.bundle import Bundle, Manifest

Score = Callable[["NDArray[np.uint8]"], float]


def by_kizu(detector: Detector) -> Score:
    return lambda frame: detector.score(frame).score


@contextmanager
def by_kizu_in(steps: int, bundle: Bundle, engine: str, precision: str) -> Iterator[Score]:
    """A search of another number of steps than the bundle's, with the engine that was proved with the bundle's."""
    chosen, manifest = choose(engine), bundle.manifest
    options = options_for(chosen, manifest.prepare, threads=THREADS, batch=(1, 1, 16))  # kizu.load's
    entry: Any = compiled(bundle, chosen, precision, options, KEPT / "cache")
    with replace(entry, iteration=replace(entry.iteration, steps=steps)).load() as program:
        rule, weight = manifest.scoring, manifest.weight
        with open_pipeline(program, manifest.prepare, rule, threads=THREADS, weight=weight) as pipeline:
            yield lambda frame: float(pipeline.run([frame])[0][0])


def by_torch(module: Any, manifest: Manifest) -> Score:
    """What a PyTorch user would run: Pillow's resize, the rest in eager torch, float32."""
    import torch
    from torch.nn.functional import softplus

    torch.set_num_threads(THREADS)
    spec, weight = manifest.prepare, manifest.weight
    assert spec.crop is None
    assert {*spec.mean, *spec.std} == {0.5}

    def prepared(frame: NDArray[np.uint8]) -> Any:
        resized = Image.fromarray(frame).resize(spec.size[::-1], Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 127.5 - 1
        return torch.cat([x, x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1) if spec.pool else x

    def logit(frame: NDArray[np.uint8]) -> float:
        with torch.inference_mode():
            return float(-module(prepared(frame))["logit"][0])

    def residual(frame: NDArray[np.uint8]) -> float:
        with torch.inference_mode():
            x = prepared(frame)
            found = module(x)
            score = (x - found["x_hat"]).abs().mean()
            if "f" in found:
                score = (1 - weight) * score + weight * (found["f"] - found["f_hat"]).abs().mean()
            elif "logit" in found:
                score = (1 - weight) * score + weight * softplus(-found["logit"][0])
            return float(score)

    return logit if manifest.scoring == "logit" else residual
