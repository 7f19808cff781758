"""Transposed convolutions as convolution and pixel shuffle, exactly: the sub-pixel form (Shi et al. 2016, ESPCN).

A transposed convolution of kernel 4, stride 2 and padding 1 computes each of the 2x2 output pixels above an input pixel
from the 3x3 inputs around it, with a quarter of the kernel each::

    out[o, 2r + a, 2c + b] = sum over i, d, e of w[i, o, a + 1 - 2d, b + 1 - 2e] in[i, r + d, c + e],  d, e in -1, 0, 1

where ``w`` is 0 outside its 4x4. That is a 3x3 convolution to four times the channels and DepthToSpace. It multiplies
by 20 zeros for every 16 weights, and is faster only where an engine computes convolutions in an arithmetic or with a
kernel that it lacks for transposed ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_EXACTLY: dict[str, Any] = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]}
_DEFAULTS: dict[str, Any] = {
    "auto_pad": b"NOTSET", "dilations": [1, 1], "group": 1, "output_padding": [0, 0],
    "strides": [1, 1], "pads": [0, 0, 0, 0], "kernel_shape": [4, 4],
}  # fmt: skip


def subpixel(model: onnx.ModelProto, *, most_channels: int | None = None) -> onnx.ModelProto | None:
    """The graph with its transposed convolutions (4, 2, 1) as convolutions and DepthToSpace, or None without any.

    Those with groups, dilation, an output shape or weights that are not constant stay, and those that make more than
    ``most_channels``.
    """
    settable = {value.name for value in model.graph.input}
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in settable}

    def wanted(node: onnx.NodeProto) -> bool:
        return _matches(node, constants) and (
            most_channels is None or constants[node.input[1]].dims[1] <= most_channels
        )

    if not any(wanted(node) for node in model.graph.node):
        return None
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    nodes: list[onnx.NodeProto] = []
    made: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        if not wanted(node):
            nodes.append(node)
            continue
        inputs = [node.input[0]]
        for name, spread in zip(filter(None, node.input[1:]), (_kernels, _fourfold), strict=False):
            inputs.append(f"{name}_subpixel")
            made[inputs[-1]] = numpy_helper.from_array(spread(numpy_helper.to_array(constants[name])), inputs[-1])
        inner = f"{node.output[0]}_subpixel"
        nodes.append(helper.make_node("Conv", inputs, [inner], node.name, kernel_shape=[3, 3], pads=[1] * 4))
        nodes.append(helper.make_node("DepthToSpace", [inner], [node.output[0]], blocksize=2, mode="CRD"))
    replaced = {name for node in graph.node if wanted(node) for name in node.input[1:]}
    replaced -= {name for node in nodes for name in node.input}  # a backward pass may read the weights too
    kept = [tensor for tensor in graph.initializer if tensor.name not in replaced]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend([*kept, *made.values()])
    onnx.checker.check_model(result, full_check=True)
    return result


def _matches(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "ConvTranspose" or node.domain or not all(n in constants for n in node.input[1:] if n):
        return False
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (
        tuple(constants[node.input[1]].dims[2:]) == (4, 4)
        and "output_shape" not in given
        and {**_DEFAULTS, **given} == {**_DEFAULTS, **_EXACTLY}
    )


def _kernels(w: NDArray[np.generic]) -> NDArray[np.generic]:
    """(in, out, 4, 4) to (4 out, in, 3, 3), as the formula above says."""
    n_in, n_out = w.shape[:2]
    result = np.zeros((n_out, 2, 2, n_in, 3, 3), w.dtype)
    for a, d in ((0, 0), (0, -1), (1, 0), (1, 1)):
        for b, e in ((0, 0), (0, -1), (1, 0), (1, 1)):
            result[:, a, b, :, d + 1, e + 1] = w[:, :, a + 1 - 2 * d, b + 1 - 2 * e].T
    return result.reshape(4 * n_out, n_in, 3, 3)


def _fourfold(bias: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.repeat(bias, 4)
