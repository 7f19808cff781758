"""One row a method, op and engine: what it is checked against, how closely, and its settings in small tests.

Something new gets its row here and with it the tests that run over all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kizu import heat_map, heat_map_reference, prepare, prepare_reference, scoring, scoring_reference

# How far a precision's score may lie from torch's, in standard deviations of the good calibration scores.
TOLERANCES: Mapping[str, float] = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.25, "int8+fp16": 0.25}


@dataclass(frozen=True, eq=False)
class MethodRow:
    """A method: its graph's outputs with their shapes for a colour image, and settings that train in a second.

    A method whose settings change its graph has a row for each graph.
    """

    name: str
    scoring: str
    outputs: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]
    size: int = 32
    variant: str = ""

    @property
    def id(self) -> str:
        return f"{self.name}, {self.variant}" if self.variant else self.name


@dataclass(frozen=True)
class OpRow:
    """An op: what kizu runs, its NumPy twin, how far the two may differ (0: the same bits), and what it takes."""

    name: str
    run: Callable[..., NDArray[Any]]
    reference: Callable[..., NDArray[Any]]
    tolerance: float
    takes: str = "frames"


@dataclass(frozen=True)
class EngineRow:
    """An engine: its package, its precisions, and for OpenVINO the hint that each must be compiled with."""

    name: str
    package: str
    precisions: tuple[str, ...]
    hints: Mapping[str, str] = field(default_factory=dict)


def _resize(
    frames: prepare.Frames,
    spec: prepare.PrepareSpec,
    *,
    pixel_format: str | None = None,
    boxes: Sequence[prepare.Box] | None = None,
) -> prepare.Frame:
    shape = prepare.output_shape(frames, spec, pixel_format=pixel_format, boxes=boxes, resized=True)
    out: prepare.Frame = np.empty(shape, spec.dtype)
    prepare.Preparer(spec, pixel_format=pixel_format).resize(frames, out, boxes=boxes)
    return out


def _score(rule: str, tensors: Mapping[str, NDArray[Any]], *, threads: int = 1, **options: Any) -> NDArray[np.float32]:
    scores = np.full(len(tensors["logit"]) // options.get("views", 1), 7, np.float32)
    scoring.Scorer(rule, threads=threads, **options)(tensors, scores)
    return scores


def _map(
    x: NDArray[Any], x_hat: NDArray[Any], *, rule: str = "residual_logit", threads: int = 1
) -> NDArray[np.float32]:
    tensors = {"x": x, "x_hat": x_hat, "f": x, "f_hat": x_hat, "logit": np.zeros(len(x), x.dtype)}
    maps = np.full((len(x), *x.shape[2:]), 7, np.float32)
    scoring.Scorer(rule, threads=threads)(tensors, np.empty(len(x), np.float32), maps)
    return maps


IMAGE = (3, 32, 32)
DEEPEST = (32, 4, 4)  # after three halvings: 8, 16, 32 channels

METHODS = (
    MethodRow(
        name="algan_image",
        scoring="logit",
        outputs={"logit": ()},
        config={"width": 8, "latent_dim": 16, "lr_g": 1e-3, "lr_d": 1e-3},
    ),
    MethodRow(
        name="autoencoder",
        scoring="residual",
        outputs={"x_hat": IMAGE},
        config={"width": 8, "latent_dim": 16, "lr": 2e-3},
    ),
    MethodRow(
        name="bigan",
        scoring="residual_feature",
        outputs={"x_hat": IMAGE, "f": DEEPEST, "f_hat": DEEPEST},
        config={"width": 8, "latent_dim": 16, "lr": 1e-3},
    ),
    MethodRow(
        name="bigan",
        variant="concatenation by its logit",
        scoring="residual_logit",
        outputs={"x_hat": IMAGE, "logit": ()},
        config={"width": 8, "latent_dim": 16, "lr": 1e-3, "conditioning": "concat", "score": "cross_entropy"},
    ),
    MethodRow(
        name="f_anogan",
        scoring="residual_feature",
        outputs={"x_hat": IMAGE, "f": DEEPEST, "f_hat": DEEPEST},
        config={"width": 8, "latent_dim": 16, "lr": 1e-3, "lr_e": 2e-3, "gan_epochs": 2, "n_critic": 2},
    ),
)

# Of two graphs, which test_iterated.py and test_anogan.py run and test_tensorrt_builds.py compiles.
ITERATED = (
    MethodRow(
        name="anogan",
        scoring="residual_feature",
        outputs={"x_hat": IMAGE, "f": DEEPEST, "f_hat": DEEPEST},
        config={"width": 8, "latent_dim": 16, "lr_g": 1e-3, "lr_d": 1e-3, "steps": 10},
    ),
)

OPS = (
    OpRow("prepare", prepare.prepare, prepare_reference.prepare_reference, 0.0),
    OpRow("resize", _resize, prepare_reference.resize_reference, 0.0),
    OpRow("score", _score, scoring_reference.score_reference, 0.0, takes="tensors"),
    OpRow("map", _map, scoring_reference.map_reference, 0.0, takes="images"),
    OpRow("smooth_map", heat_map.smooth_map, heat_map_reference.smooth_map_reference, 0.0, takes="map"),
)

ENGINES = (
    EngineRow(
        name="openvino",
        package="openvino",
        precisions=("fp32", "fp16", "bf16", "int8"),
        hints={"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"},
    ),
    EngineRow(name="onnxruntime", package="onnxruntime", precisions=("fp32", "fp16", "int8")),
)

# What runs on a CUDA device alone; test_tensorrt_builds.py compiles with them, test_tensorrt.py tells what they say.
CUDA_ENGINES = (
    EngineRow(name="tensorrt", package="tensorrt", precisions=("fp32", "fp16", "int8", "int8+fp16")),
    EngineRow(name="tensorrt-rtx", package="tensorrt_rtx", precisions=("fp32", "fp16", "int8", "int8+fp16")),
)
