"""ONNX graphs written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def residual_graph(
    channels: int = 5, *, x_hat_channels: int | None = None, leave_out: Sequence[str] = (), half: bool = False
) -> bytes:
    """x (N, channels, 32, 32) -> x_hat by two convolutions, f and f_hat by one more with a stride, logit (N,).

    All in float32, or with ``half`` in float16.
    """
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    rng = np.random.default_rng(3)
    hat = x_hat_channels or channels

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        scale = 1 / math.sqrt(math.prod(shape[1:]))
        return numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(dtype), name)

    initializers = [
        weights("w1", 8, channels, 3, 3),
        weights("w2", hat, 8, 3, 3),
        weights("w3", 6, channels, 3, 3),
        weights("w3_hat", 6, hat, 3, 3),
        weights("w4", 1, 6, 1, 1),
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
    ]
    if hat == channels:
        initializers[3] = numpy_helper.from_array(numpy_helper.to_array(initializers[2]), "w3_hat")
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["hidden"], pads=[1] * 4),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("Conv", ["positive", "w2"], ["x_hat"], pads=[1] * 4),
        helper.make_node("Conv", ["x", "w3"], ["f"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Conv", ["x_hat", "w3_hat"], ["f_hat"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Conv", ["f", "w4"], ["patches"]),
        helper.make_node("ReduceMean", ["patches", "axes"], ["logit"], keepdims=0),
    ]
    shapes: dict[str, list[Any]] = {
        "x_hat": ["N", hat, 32, 32],
        "f": ["N", 6, 16, 16],
        "f_hat": ["N", 6, 16, 16],
        "logit": ["N"],
    }
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "residual",
        [value("x", kind, ["N", channels, 32, 32])],
        [value(name, kind, shape) for name, shape in shapes.items() if name not in leave_out],
        initializers,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
