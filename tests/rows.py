"""One row a method, op and engine: what it is checked against, how closely, and its settings in small tests.

Something new gets its row here and with it the tests that run over all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kizu import prepare

# How far a precision's score may lie from torch's, in standard deviations of the good calibration scores.
TOLERANCES: Mapping[str, float] = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.25}


@dataclass(frozen=True)
class MethodRow:
    """A method: its graph's outputs with their shapes for N images, and settings that train in a second."""

    name: str
    scoring: str
    outputs: Mapping[str, tuple[str | int, ...]]
    config: Mapping[str, Any]
    size: int = 32


@dataclass(frozen=True)
class OpRow:
    """An op: what kizu runs, its NumPy twin, and how far the two may differ (0: the same bits)."""

    name: str
    run: Callable[..., NDArray[Any]]
    reference: Callable[..., NDArray[Any]]
    tolerance: float


@dataclass(frozen=True)
class EngineRow:
    """An engine: its package, its precisions, and for OpenVINO the hint that each must be compiled with."""

    name: str
    package: str
    precisions: tuple[str, ...]
    hints: Mapping[str, str] = field(default_factory=dict)


def _resize(
    frame: NDArray[np.uint8], spec: prepare.PrepareSpec, *, order: prepare.FrameOrder = "rgb"
) -> NDArray[np.uint8]:
    out = np.empty((spec.own_channels, *spec.size), np.uint8)
    prepare.Preparer(spec).resize(frame, out, order=order)
    return out


METHODS = (
    MethodRow(
        name="algan_image",
        scoring="logit",
        outputs={"logit": ("N",)},
        config={"width": 8, "latent_dim": 16, "lr_g": 1e-3, "lr_d": 1e-3},
    ),
)

OPS = (
    OpRow("prepare", prepare.prepare, prepare.prepare_reference, 0.0),
    OpRow("resize", _resize, prepare.resize_reference, 0.0),
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
