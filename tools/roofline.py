"""Predicts, on paper, how long ALGAN-image at 256 x 256 takes on GPUs: a frame in host memory to its score, batch 1.

    tools/roofline.py [--markdown]

Operations and bytes of each layer are counted in the ONNX graph that is exported at the published widths; those of
prepare are docs/kernels.md's. Two times come of them. *Least* is the pure roofline: no frame is faster. *Expected* adds
what is assumed of TensorRT's kernels and of the host; the same assumptions give three published measurements of
ResNet-50. Nothing here is measured by this project. --markdown writes the tables into docs/gpu.md, which explains them.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from profile_kernels import Sheet

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "gpu.md"
KERNELS = ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- tables: written by tools/roofline.py --markdown -->", "<!-- end of the tables -->"

Precision = Literal["fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
FRAME = 900 * 900 * 3  # bytes
PAPER = 10.6e-3  # seconds an image on an A100: ALGAN (2022), table 5

# What is assumed of kernels; docs/gpu.md explains it.
MEMORY = 0.75  # share of the memory's bandwidth that a kernel gets
TENSOR = 0.7  # share of a multiprocessor's tensor throughput that its largest tile gets
ISSUE = 0.5  # share of a multiprocessor's instructions a cycle that prepare gets
LINK = 0.85  # share of PCIe's rate that a copy gets
TILES = (32, 64, 128)  # sides of the piece of a convolution's output that a thread block computes
SPLITS = (1, 2, 4, 8, 16)  # thread blocks that share a piece's sum
SHORTEST_SPLIT = 256  # terms of each


@dataclass(frozen=True)
class Device:
    """A GPU and its host. Rates a second and sizes in bytes; times in seconds."""

    name: str
    bandwidth: float
    processors: int
    clock: float
    tensor: dict[Precision, float]  # dense operations, a multiplication and an addition being two
    link: float | None  # PCIe, one direction; None: the GPU reads the frame where the host wrote it
    kernel: float  # assumed: from one kernel's end to the next one's work, and its own start and end
    launch: float  # assumed: launching the graph and waking up on its event
    python: float  # assumed: of a call
    host_copy: float  # assumed: four threads' copy from ordinary memory into the frame buffer
    target: float | None = None


def ampere(processors: int, clock: float) -> dict[Precision, float]:
    """Orin's and A100's dense tensor throughput: 2048 float16 and 4096 int8 operations a cycle and multiprocessor."""
    return {"fp16": 2048.0 * processors * clock, "int8": 4096.0 * processors * clock}


orin = functools.partial(Device, link=None, kernel=3e-6, launch=30e-6, python=30e-6, host_copy=16e9)
thor = functools.partial(Device, link=None, kernel=3e-6, launch=15e-6, python=15e-6, host_copy=30e9)
server = functools.partial(Device, kernel=6e-6, launch=10e-6, python=10e-6, host_copy=24e9)
DEVICES = (
    orin("Orin NX 16GB", 102.4e9, 8, 0.918e9, ampere(8, 0.918e9)),
    orin("AGX Orin 64GB", 204.8e9, 16, 1.3e9, ampere(16, 1.3e9), target=1.5e-3),
    thor("AGX Thor T5000", 273e9, 20, 1.57e9, {"fp16": 258.75e12, "int8": 517.5e12}),
    server("H100 SXM", 3.35e12, 132, 1.755e9, {"fp16": 989.4e12, "int8": 1978.9e12}, 64e9, target=0.25e-3),
)
A100 = server("A100 PCIe 80GB", 1.935e12, 108, 1.41e9, ampere(108, 1.41e9), 32e9)
# The median of ResNet-50, int8, one image at a time: MLPerf Inference, closed division, NVIDIA, SingleStream; Orins
# from round 3.1, A100 from round 3.0.
MEASURED = ((DEVICES[0], 1.0785e-3), (DEVICES[1], 0.6362e-3), (A100, 0.4697e-3))


# Layers


@dataclass(frozen=True)
class Layer:
    """A convolution with its activation, as a product of matrices, or a change of type. Elements, not bytes."""

    name: str
    pixels: int
    channels: int
    taps: int  # of the kernel; 0: a change of type
    depth: int  # channels that are read
    read: int
    weights: int
    written: int
    types: tuple[str, str] | None = None  # that are read and written; None: the precision's

    @property
    def operations(self) -> int:
        """A multiplication and an addition being two."""
        return 2 * self.pixels * self.channels * self.taps * self.depth

    def bytes(self, precision: Precision) -> int:
        """Everything read once and written once; biases are float32."""
        read, written = (BYTES[t] for t in self.types or (precision, precision))
        biases = BYTES["fp32"] * self.channels if self.taps else 0
        return self.read * read + self.weights * BYTES[precision] + biases + self.written * written


class Time(NamedTuple):
    """Seconds, and what takes them."""

    seconds: float
    bound: str


def least(layer: Layer, device: Device, precision: Precision) -> Time:
    """The roofline: memory at full bandwidth, or tensor cores at full throughput."""
    return max(
        Time(layer.bytes(precision) / device.bandwidth, "memory"),
        Time(layer.operations / device.tensor[precision], "tensor"),
    )


def expected(layer: Layer, device: Device, precision: Precision) -> Time:
    """The fastest way to cut the layer into thread blocks, with the assumed shares."""
    memory = layer.bytes(precision) / (device.bandwidth * MEMORY)
    ways = [
        max(Time(memory, "memory"), Time(busy, "tensor"), Time(device.kernel, "start"))._replace(
            seconds=device.kernel + max(memory, busy) + more
        )
        for busy, more in _cuts(layer, device, precision)
    ]
    return min(ways)


def _cuts(layer: Layer, device: Device, precision: Precision) -> Iterator[tuple[float, float]]:
    """Of each way to cut: the busiest multiprocessor's time, and what adding the parts of split sums takes."""
    if not layer.taps:
        yield 0.0, 0.0
        return
    of_one = device.tensor[precision] / device.processors * TENSOR
    read_together = 16 // BYTES[precision]  # channels in 16 bytes; layers with fewer are padded
    terms = layer.taps * ceil(layer.depth / read_together) * read_together
    for height in TILES:
        for width in TILES:
            # A tile reads height + width elements for height * width products: the smaller, the slower.
            share = height * width / (height + width) / (max(TILES) / 2)
            for split in SPLITS:
                if split > 1 and terms / split < SHORTEST_SPLIT:
                    continue
                blocks = ceil(layer.pixels / height) * ceil(layer.channels / width) * split
                rounds = ceil(blocks / device.processors)
                busy = rounds * 2 * height * width * ceil(terms / split) / (of_one * share)
                sums = 2 * BYTES["fp32"] * layer.pixels * layer.channels * split / (device.bandwidth * MEMORY)
                yield busy, (device.kernel / 2 + sums if split > 1 else 0.0)


# ALGAN-image


@functools.cache
def graph() -> Any:
    """The ONNX graph of ALGAN-image's export module at the published widths; its weights are not trained."""
    import torch

    from kizu import variants
    from kizu.methods.algan_image import AlganImage, AlganImageConfig
    from kizu.prepare import PrepareSpec

    spec = PrepareSpec(size=(256, 256))
    torch.manual_seed(0)
    return variants.fp32(AlganImage.create(spec, AlganImageConfig()).export_module(), spec.channels, *spec.size)


@functools.cache
def algan(precision: Precision) -> tuple[Layer, ...]:
    """The layers of that graph."""
    return layers(graph(), precision)


FUSED = {"LeakyRelu"}  # into the convolution before it
FREE = {"Flatten", "Reshape"}


def layers(model: Any, precision: Precision) -> tuple[Layer, ...]:
    """What TensorRT is expected to run for one image: the input's change of type, the convolutions, the output's."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else 1 for d in dims)  # the batch
    size = prod(shapes[inferred.input[0].name])
    found = [Layer(f"float32 → {precision}", 1, 1, 0, 0, size, 0, size, ("fp32", precision))]
    for node in inferred.node:
        if node.op_type in FUSED | FREE | {"Constant"}:
            continue
        if node.op_type != "Conv":
            raise RuntimeError(f"the graph has a layer {node.op_type} that tools/roofline.py cannot count")
        (_, channels, height, width), kernel = shapes[node.output[0]], shapes[node.input[1]]
        stride = next((a.ints[0] for a in node.attribute if a.name == "strides"), 1)
        title = f"{len(found)}: {kernel[2]}×{kernel[3]}/{stride}, {kernel[1]} → {channels}, {height}×{width}"
        sizes = (prod(shapes[node.input[0]]), prod(kernel), prod(shapes[node.output[0]]))
        found.append(Layer(title, height * width, channels, kernel[2] * kernel[3], kernel[1], *sizes))
    *before, last = found
    wide = Layer(**{**last.__dict__, "types": (precision, "fp32")})  # the logit leaves as float32
    return (*before, wide)


class Part(NamedTuple):
    """A part of a frame's way: least and expected seconds."""

    name: str
    least: float
    expected: float


def prepare_counts() -> tuple[float, float]:
    """(instructions, bytes) of prepare, as docs/kernels.md's table has them."""
    row = re.search(
        r"^\| prepare: RGB 900×900 → 5×256×256 float32 \| ([\d.]+) \| ([\d,]+) \|",
        KERNELS.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    if row is None:
        raise RuntimeError(f"{KERNELS} has no row of prepare: tools/profile --markdown")
    return float(row[1]) * 256 * 256, float(row[2].replace(",", ""))


def parts(device: Device, precision: Precision) -> tuple[Part, ...]:
    """The way of a frame that lies in the frame buffer."""
    instructions, moved = prepare_counts()
    issue = instructions / 32 / (4 * device.processors * device.clock)
    memory = moved / device.bandwidth
    transfer = FRAME / device.link if device.link else 0.0
    return (
        Part("transfer", transfer, device.kernel + transfer / LINK if transfer else 0.0),
        Part("prepare", max(issue, memory), device.kernel + max(issue / ISSUE, memory / MEMORY)),
        Part("engine", *(engine(device, precision, time) for time in (least, expected))),
        Part("score", 0, 2 * device.kernel),  # the kernel, and the score's way back
        Part("launch, wait", 0, device.launch),
        Part("Python", 0, device.python),
    )


def engine(device: Device, precision: Precision, time: Callable[[Layer, Device, Precision], Time]) -> float:
    """Seconds of all layers."""
    return sum(time(layer, device, precision).seconds for layer in algan(precision))


def resnet50() -> tuple[Layer, ...]:
    """ResNet-50 v1.5."""
    found = [Layer("stem", 112 * 112, 64, 49, 3, 224 * 224 * 3, 64 * 147, 112 * 112 * 64)]
    depth, side = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            out = side // 2 if stage and not block else side
            added = out * out * 4 * width  # the block's other way, which its last convolution adds
            shapes = [
                (side, width, 1, depth, side, 0),
                (out, width, 9, width, side, 0),
                (out, 4 * width, 1, width, out, added),
            ]
            if not block:
                shapes.append((out, 4 * width, 1, depth, side, 0))
            found += [
                Layer("", o * o, n, taps, k, i * i * k + more, n * taps * k, o * o * n)
                for o, n, taps, k, i, more in shapes
            ]
            depth, side = 4 * width, out
    found += [
        Layer("pool", 1, 1, 0, 0, 112 * 112 * 64, 0, 56 * 56 * 64),
        Layer("pool", 1, 1, 0, 0, 7 * 7 * 2048, 0, 2048),
        Layer("classes", 1, 1001, 1, 2048, 2048, 1001 * 2048, 1001),
    ]
    return tuple(found)


def resnet50_seconds(device: Device) -> float:
    """Expected of ResNet-50 in int8, one image in host memory to its class, called from C++."""
    copy = 224 * 224 * 3 / (device.link * LINK) if device.link else 0
    return device.launch + copy + sum(expected(layer, device, "int8").seconds for layer in resnet50())


# Tables


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


def summary_sheet() -> Sheet:
    """A row a device and precision."""
    head = (
        "Device, precision", "least", "expected, frame buffer", "expected, other memory", "target", "",
        "of the paper's",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for device in DEVICES:
        for precision in PRECISIONS:
            way = parts(device, precision)
            fastest, here = sum(part.least for part in way), sum(part.expected for part in way)
            elsewhere = here + FRAME / device.host_copy
            verdicts = ["met" if time <= (device.target or 0) else "missed" for time in (here, elsewhere)]
            rows.append((
                f"{device.name} {precision}", _ms(fastest), _ms(here), _ms(elsewhere),
                f"{device.target * 1e3:g}" if device.target else "–",
                " / ".join(verdicts) if device.target else "–",
                f"1/{PAPER / here:.0f}",
            ))  # fmt: skip
    title = "PREDICTED milliseconds of one frame, 900×900 RGB in host memory to its score. Not measured."
    return Sheet(title, head, rows)


def parts_sheet() -> Sheet:
    """A row a device and precision, a column a part."""
    ways = [(device, precision, parts(device, precision)) for device in DEVICES for precision in PRECISIONS]
    head = ("Device, precision", *(part.name for part in ways[0][2]), "copy of other memory")
    rows = [
        (
            f"{device.name} {precision}",
            *(f"{_us(part.least)} → {_us(part.expected)}" for part in way),
            _us(FRAME / device.host_copy),
        )
        for device, precision, way in ways
    ]
    return Sheet("PREDICTED microseconds of each part, least → expected.", head, rows)


def layer_sheet(precision: Precision) -> Sheet:
    """A row a layer."""
    head = ("Layer", "MOP", "weights, kB", "moved, kB", *(device.name for device in DEVICES))

    def cell(layer: Layer, device: Device) -> str:
        lower, upper = (time(layer, device, precision) for time in (least, expected))
        return f"{_us(lower.seconds)} {lower.bound} → {_us(upper.seconds)} {upper.bound}"

    counted = algan(precision)
    rows = [
        (
            layer.name,
            f"{layer.operations / 1e6:,.1f}",
            f"{layer.weights * BYTES[precision] / 1e3:,.0f}",
            f"{layer.bytes(precision) / 1e3:,.0f}",
            *(cell(layer, device) for device in DEVICES),
        )
        for layer in counted
    ]
    rows.append((
        "all",
        f"{sum(layer.operations for layer in counted) / 1e6:,.1f}",
        f"{sum(layer.weights for layer in counted) * BYTES[precision] / 1e3:,.0f}",
        f"{sum(layer.bytes(precision) for layer in counted) / 1e3:,.0f}",
        *(" → ".join(_us(engine(device, precision, time)) for time in (least, expected)) for device in DEVICES),
    ))  # fmt: skip
    title = f"The engine in {precision}: PREDICTED microseconds and what bounds them, least → expected."
    return Sheet(title, head, rows)


def device_sheet() -> Sheet:
    """What is taken of each device."""
    head = (
        "Device", "GB/s", "SMs", "GHz", "fp16, TFLOP/s", "int8, TOP/s", "PCIe, GB/s", "a kernel, µs", "launch, µs",
        "Python, µs", "host copy, GB/s",
    )  # fmt: skip
    rows = [
        (
            device.name, f"{device.bandwidth / 1e9:,.1f}", str(device.processors), f"{device.clock / 1e9:g}",
            *(f"{device.tensor[precision] / 1e12:,.1f}" for precision in PRECISIONS),
            f"{device.link / 1e9:g}" if device.link else "shared",
            *(f"{time * 1e6:g}" for time in (device.kernel, device.launch, device.python)),
            f"{device.host_copy / 1e9:g}",
        )
        for device in (*DEVICES, A100)
    ]  # fmt: skip
    return Sheet("Devices. The last four columns are assumed.", head, rows)


def check_sheet() -> Sheet:
    """The same assumptions against published measurements."""
    head = ("ResNet-50, int8, batch 1", "expected, ms", "published median, ms", "ratio")
    rows: list[tuple[str, ...]] = [
        (device.name, _ms(resnet50_seconds(device)), _ms(measured), f"{resnet50_seconds(device) / measured:.2f}")
        for device, measured in MEASURED
    ]
    return Sheet("What the assumptions give for ResNet-50, against MLPerf's published measurements.", head, rows)


def sheets() -> list[Sheet]:
    """All tables, in the page's order."""
    return [
        summary_sheet(), parts_sheet(), *(layer_sheet(precision) for precision in PRECISIONS), device_sheet(),
        check_sheet(),
    ]  # fmt: skip


def between_marks(text: str, tables: Sequence[Sheet]) -> str:
    """The page's text with these tables between its marks."""
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:before]}\n\n" + "\n".join(sheet.markdown() for sheet in tables) + f"\n{text[after:]}"


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/roofline.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--markdown", action="store_true", help=f"write the tables into {DOCUMENT.relative_to(ROOT)}")
    options = parser.parse_args()
    found = sheets()
    console = Console(width=None if sys.stdout.isatty() else 190)
    for sheet in found:
        sheet.show(console)
    if options.markdown:
        DOCUMENT.write_text(between_marks(DOCUMENT.read_text(encoding="utf-8"), found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
