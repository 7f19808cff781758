"""The predictions of tools/roofline.py: what is counted, known answers of the model, and that docs/gpu.md has them."""

from __future__ import annotations

import functools
import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from kizu.layers.dcgan import Discriminator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import roofline
from profile_kernels import Sheet
from roofline import A100, DEVICES, DOCUMENT, MEASURED, PRECISIONS, Device, Layer, Precision

WIDTHS = (5, 64, 128, 256, 512, 512, 512)  # channels after each convolution of stride 2, from 256 x 256
ELEMENT = {"fp16": 2, "int8": 1}
EVERY = pytest.mark.parametrize("precision", PRECISIONS)


@functools.cache
def sheets() -> list[Sheet]:
    return roofline.sheets()


def test_the_page_has_what_the_tool_prints_now() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert roofline.between_marks(text, sheets()) == text, "out of date: tools/roofline.py --markdown"


def test_predictions_are_labelled() -> None:
    assert "**No GPU has run this path yet.**" in DOCUMENT.read_text(encoding="utf-8")
    for sheet in sheets():
        times = any("→" in cell for row in sheet.rows for cell in row[1:]) or "least" in sheet.head
        assert not times or "PREDICTED" in sheet.title, sheet.title


@EVERY
def test_counts_equal_the_closed_form(precision: Precision) -> None:
    size, found = ELEMENT[precision], roofline.algan(precision)
    assert len(found) == 8
    assert found[0].bytes(precision) == 5 * 256**2 * (4 + size)
    assert found[0].operations == 0
    for i, (n_in, n_out) in enumerate(itertools.pairwise(WIDTHS)):
        before, after = (256 >> i) ** 2, (128 >> i) ** 2
        assert found[1 + i].operations == 2 * after * n_out * n_in * 16
        assert found[1 + i].bytes(precision) == size * (before * n_in + 16 * n_in * n_out + after * n_out) + 4 * n_out
    assert found[7].operations == 2 * 512 * 16
    assert found[7].bytes(precision) == size * (16 * 512 + 16 * 512) + 4 + 4  # a bias, and a logit in float32


def test_operations_are_torchs() -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Discriminator(size=256, channels=5, width=64).folded()(torch.zeros(1, 5, 256, 256))
    assert sum(layer.operations for layer in roofline.algan("fp16")) == counter.get_total_flops()


def test_a_layer_that_is_not_known_is_refused() -> None:
    node = helper.make_node("Softmax", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3)) for name in "xy")
    with pytest.raises(RuntimeError, match="Softmax"):
        roofline.layers(helper.make_model(helper.make_graph([node], "g", [x], [y])), "fp16")


def test_another_graph_is_counted() -> None:
    """Kernel, stride and batch come from the graph: a 3 x 3 convolution of stride 1, its batch free."""
    weight = onnx.numpy_helper.from_array(np.zeros((7, 3, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 3, 10, 12))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 7, 10, 12))
    _, layer = roofline.layers(helper.make_model(helper.make_graph([node], "g", [x], [y], [weight])), "int8")
    assert layer.operations == 2 * 120 * 7 * 27
    assert layer.bytes("int8") == 360 + 189 + 4 * 7 + 4 * 840


# A device of round numbers: 1 GB/s; ten multiprocessors of 10 GOP/s each.
ROUND = Device("round", 1e9, 10, 1e9, {"fp16": 1e11, "int8": 2e11}, None, 1e-6, 0, 0, 1e9)


def test_least_is_the_slower_of_memory_and_tensor_cores() -> None:
    few = Layer("few", 100, 1, 1, 1, 1000, 10, 500)
    assert few.bytes("fp16") == 2 * 1510 + 4
    seconds, bound = roofline.least(few, ROUND, "fp16")
    assert seconds == pytest.approx(3024e-9)
    assert bound == "memory"
    many = Layer("many", 1000, 1000, 10, 10, 1000, 10, 500)
    seconds, bound = roofline.least(many, ROUND, "fp16")
    assert seconds == pytest.approx(2e8 / 1e11)
    assert bound == "tensor"
    assert roofline.least(many, ROUND, "int8").seconds == pytest.approx(2e8 / 2e11)


def test_expected_of_whole_tiles() -> None:
    """Twenty tiles of 128 x 128 are two rounds of ten multiprocessors at 70 %; sums of 128 terms are not split."""
    layer = Layer("whole", 20 * 128, 128, 16, 8, 1, 1, 1)
    seconds, bound = roofline.expected(layer, ROUND, "fp16")
    assert seconds == pytest.approx(1e-6 + 2 * 2 * 128 * 128 * 128 / (1e10 * 0.7))
    assert bound == "tensor"


def test_expected_pads_few_channels_and_small_outputs() -> None:
    """A pixel of a channel costs a tile of 32 x 32, which has a quarter of the products a value read; 5 channels 8."""
    small = Layer("small", 1, 1, 16, 5, 1, 1, 1)
    assert roofline.expected(small, ROUND, "fp16").seconds == pytest.approx(
        1e-6 + 2 * 32 * 32 * 16 * 8 / (1e10 * 0.7 / 4)
    )


def test_a_long_sum_is_split() -> None:
    long = Layer("long", 32, 32, 16, 512, 1, 1, 1)  # one tile: without splitting one multiprocessor would work
    alone = 2 * 32 * 32 * 8192 / (1e10 * 0.7 / 4)
    assert roofline.expected(long, ROUND, "fp16").seconds < alone / 4


@EVERY
@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_nothing_is_expected_below_the_roofline(device: Device, precision: Precision) -> None:
    for layer in (*roofline.algan(precision), *roofline.resnet50()):
        assert roofline.expected(layer, device, precision).seconds > roofline.least(layer, device, precision).seconds
    for part in roofline.parts(device, precision):
        assert part.expected >= part.least >= 0


def test_resnet50_is_the_published_one() -> None:
    """4.09 GMAC and 25.5 million weights, by its authors and torchvision (here with 1001 classes, without biases)."""
    assert sum(layer.operations for layer in roofline.resnet50()) / 2 == pytest.approx(4.09e9, rel=0.005)
    assert sum(layer.weights for layer in roofline.resnet50()) == pytest.approx(25.5e6, rel=0.005)


@pytest.mark.parametrize(("device", "measured"), MEASURED, ids=lambda value: getattr(value, "name", ""))
def test_the_assumptions_give_what_was_measured_elsewhere(device: Device, measured: float) -> None:
    assert roofline.resnet50_seconds(device) == pytest.approx(measured, rel=0.1)


def test_devices_are_those_of_their_data_sheets() -> None:
    """NVIDIA's figures: Orin's 170 sparse INT8 TOPS, A100's 624 dense; int8 is twice fp16 on all."""
    agx = DEVICES[1]
    assert agx.tensor["int8"] == pytest.approx(170e12 / 2, rel=0.01)
    assert A100.tensor["int8"] == pytest.approx(624e12, rel=0.01)
    assert all(device.tensor["int8"] == pytest.approx(2 * device.tensor["fp16"], rel=0.001) for device in DEVICES)


def test_prepare_is_counted_in_the_kernels_page() -> None:
    instructions, moved = roofline.prepare_counts()
    assert 900 * 900 * 3 + 5 * 256**2 * 4 < moved < 1.5 * (900 * 900 * 3 + 5 * 256**2 * 4)
    assert 300 < instructions / 256**2 < 3000
