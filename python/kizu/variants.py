"""The precision variants of an ONNX graph: fp16, int8 as symmetric QDQ, and int8 with fp16 around it.

Strongly typed builders take the precision from the file, so each variant is a graph of its own. All read and write
float32.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from kizu.errors import KizuError

if TYPE_CHECKING:
    from kizu.method import Iterated

OPSET = 20  # >= 19: QuantizeLinear and DequantizeLinear take float16
_CONVOLUTIONS = ["Conv", "ConvTranspose"]
_BETWEEN = ["LeakyRelu", "Relu", "DepthToSpace", "Concat", "Reshape", "Unsqueeze"]
_LARGEST_FP16 = float(np.finfo(np.float16).max)


class ExportError(KizuError):
    """A model cannot be exported, or what was exported does not agree with it."""


class Graphs(NamedTuple):
    """The graph of one precision variant; of an iterated module that of a step, and the one that starts it."""

    graph: onnx.ModelProto
    start: onnx.ModelProto | None = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' advice to their developers from the user's screen; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Outputs(nn.Module):
    """A module's function of tensors with a tuple for its dictionary, as the exporter wants it."""

    def __init__(self, module: nn.Module, call: Callable[..., Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.module = module  # whose parameters these are
        self.call = call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.call(*tensors).values())


def fp32(module: nn.Module, channels: int, height: int, width: int) -> onnx.ModelProto:
    """The ONNX graph of an export module: input ``x`` (batch, channels, height, width), outputs by their names.

    Raises:
        ExportError: the module's graph would take one size of batch alone.
    """
    module = module.eval()
    example = {"x": torch.zeros(2, channels, height, width)}
    with torch.no_grad():
        names = list(module(*example.values()))
    return _exported(module, module, example, names)


def iteration(module: Iterated, channels: int, height: int, width: int, *, half: bool = False) -> Graphs:
    """The ONNX graphs of an iterated module's ``start`` and ``step``, or with ``half`` those of ``module.halved()``.

    ``start`` computes the state from ``x``. ``step`` reads ``x`` and the state, and writes what of the state changes as
    ``next_`` and its name, the outputs and ``loss``. All of them are float32.

    Raises:
        ExportError: a weight does not fit float16.
    """
    module = module.eval()
    with torch.no_grad():
        x = torch.zeros(2, channels, height, width)
        state = module.start(x)
        found = list(module.step(x, state))
    names = [f"next_{name}" if name in state else name for name in found]
    if half:
        module = module.halved().eval()

    def step(x: Tensor, *values: Tensor) -> dict[str, Tensor]:
        return module.step(x, dict(zip(state, values, strict=True)))

    with torch.no_grad():
        start = _exported(module, module.start, {"x": x}, list(state))
        graph = _exported(module, step, {"x": x, **state}, names)
    for tensor in (tensor for each in (start, graph) for tensor in each.graph.initializer):
        if half and tensor.data_type == TensorProto.FLOAT16 and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise ExportError(f"{tensor.name} holds a value of more than {_LARGEST_FP16:g}, which float16 cannot")
    return Graphs(graph, start)


def _exported(
    module: nn.Module,
    call: Callable[..., Mapping[str, Tensor]],
    example: Mapping[str, Tensor],
    names: Sequence[str],
) -> onnx.ModelProto:
    """The graph of a module's function of tensors, by its inputs' and outputs' names; all have a free batch."""
    batch = {0: torch.export.Dim("batch")}
    with _quiet():
        program = torch.onnx.export(
            _Outputs(module, call),
            tuple(example.values()),
            dynamo=True,
            input_names=list(example),
            output_names=list(names),
            dynamic_shapes=(tuple(batch for _ in example),),  # of the variadic argument
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch returned no ONNX program")
    model: onnx.ModelProto = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(
                f"torch fixed the batch of {value.name} to its example's: something in forward depends on it"
            )
    for node in model.graph.node:  # where torch's source lay is of no use on the line
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its inner tensors in float16, float32 inputs and outputs cast at the border.

    Sums over positions and what follows them stay in float32: they have no bound that float16 would hold (the
    projection discriminator's logit, 2020, equation 13, goes beyond it on pictures unlike any that were trained on).

    Raises:
        ExportError: a weight does not fit float16.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    wide = _after_sums(graph)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    real = {v.name for v in (*inferred.value_info, *graph.input) if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    body = [(node, name in wide) for node in graph.node for name in node.output[:1]]
    by_wide, by_narrow = (
        {n for node, is_wide in body if is_wide == kind for n in node.input} for kind in (True, False)
    )
    widened: dict[str, str] = {}
    for tensor in list(graph.initializer):
        if tensor.name in by_wide & by_narrow and tensor.data_type == TensorProto.FLOAT:
            widened[tensor.name] = f"{tensor.name}_fp32"
            copy = numpy_helper.from_array(numpy_helper.to_array(tensor), widened[tensor.name])
            graph.initializer.add().CopyFrom(copy)
        if tensor.name not in by_wide - by_narrow:
            _halve(tensor)
    nodes = [helper.make_node("Cast", [v.name], [f"{v.name}_fp16"], to=TensorProto.FLOAT16) for v in graph.input]
    narrow = {value.name: f"{value.name}_fp16" for value in graph.input}
    outputs = [value.name for value in graph.output]
    for node, is_wide in body:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and not is_wide:
                _halve(attribute.t)
        for i, name in enumerate(node.input):
            if not is_wide:
                node.input[i] = narrow.get(name, name)
                continue
            if name in narrow and name in real and name not in widened:
                widened[name] = f"{name}_fp32"
                nodes.append(helper.make_node("Cast", [narrow[name]], [widened[name]], to=TensorProto.FLOAT))
            node.input[i] = widened.get(name, name)
        nodes.append(node)
        for i, name in enumerate(node.output):
            if not is_wide:
                narrow[name] = node.output[i] = f"{name}_fp16" if name in outputs else name
    for name in outputs:
        if name not in wide:
            nodes.append(helper.make_node("Cast", [f"{name}_fp16"], [name], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    onnx.checker.check_model(result, full_check=True)
    return result


def _after_sums(graph: onnx.GraphProto) -> set[str]:
    """The tensors that are sums over positions, or computed from one."""
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == "ReduceSum" or found & set(node.input):
            found |= set(node.output)
    return found


def _halve(tensor: onnx.TensorProto) -> None:
    if tensor.data_type != TensorProto.FLOAT:
        return
    values = numpy_helper.to_array(tensor)
    if values.size and float(np.abs(values).max()) > _LARGEST_FP16:
        raise ExportError(f"{tensor.name} holds {np.abs(values).max():.3g}, which float16 cannot")
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))


def int8(model: onnx.ModelProto, inputs: NDArray[np.float32], *, between: bool = False) -> onnx.ModelProto:
    """The graph with convolutions reading int8: symmetric QDQ, weights a channel, biases left as they are.

    A convolution of a concatenation is left as it is (but with ``between``): OpenVINO 2026.4 quantises each of the
    concatenated tensors by itself, to unsigned integers, and then convolves them as if their zero point were 0.

    Args:
        model: the fp32 graph.
        inputs: model inputs (N, C, H, W) of good images; the activations' ranges come from them.
        between: quantise what convolutions write too, and all that lies between two of them, as ONNX Runtime needs it
            to compute in int8. Other engines do without, and the tensors are rounded less often.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    concatenated = {name for node in model.graph.node if node.op_type == "Concat" for name in node.output}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(
            str(source),
            str(target),
            _Reader(iter(inputs)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_CONVOLUTIONS, *(_BETWEEN if between else ())],
            nodes_to_exclude=[] if between else [n.name for n in model.graph.node if concatenated & set(n.input)],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                # Quantise what a convolution reads; what it writes goes through its activation first.
                "OpTypesToExcludeOutputQuantization": [] if between else _CONVOLUTIONS,
            },
        )
        result = onnx.load(target)
    del result.graph.value_info[:]
    onnx.checker.check_model(result, full_check=True)
    return result


class _Reader:
    def __init__(self, inputs: Iterator[NDArray[np.float32]]) -> None:
        self._inputs = inputs

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._inputs, None)
        return None if image is None else {"x": image[None]}
