"""The CUDA pipeline from frame to score as one captured graph, with an engine that computes on the processor.

The scores are those of the processor's pipeline with the same engine, to the last bit. Where there is no device the
tests run against an extension built with KIZU_CUDA=EMULATED, where CUDA's calls can be counted and made to fail; see
tests/cuda_on_cpu.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import kizu
from cudart import Cudart
from graphs import residual_graph
from helpers import python_output
from kizu import Detector, EngineError, FrameError, KizuError, _core
from kizu import engine as engine_module
from kizu.cpu_pipeline import CpuPipeline
from kizu.cuda_pipeline import CudaPipeline
from kizu.engine import BuildOptions, TensorSpec, engines
from kizu.errors import DeviceLostError
from kizu.prepare import Box, PrepareSpec, Tiles
from kizu.prepare_reference import prepare_reference
from kizu.scoring import RULES
from kizu.scoring_reference import map_reference, score_reference
from stand_in import Cuda, StandIn

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

SIZE = (32, 32)
Frame = Any


class Emulator(Cudart):
    """What the emulator tells of itself, and errors that it makes."""

    def __init__(self) -> None:
        super().__init__(str(_core.__file__))

    def alive(self) -> dict[str, int]:
        names = ("device_allocations", "pinned_allocations", "streams", "events", "graphs", "graph_execs")
        return {name: self.live(name) for name in names}

    @contextlib.contextmanager
    def failing(self, call: int, error: int, *, sticky: bool = False) -> Iterator[None]:
        self.fail_call(call, error, sticky=sticky)
        try:
            yield
        finally:
            self.fail_call(0)


@pytest.fixture
def emulator() -> Emulator:
    if not Cuda().emulated:
        pytest.skip("calls are counted and made to fail on the emulator alone")
    return Emulator()


class Pair:
    """The two pipelines of one graph: on the processor and on the device."""

    def __init__(self, folder: Path, spec: PrepareSpec, rule: str = "residual_feature", **options: Any) -> None:
        built = folder / "part.onnx"
        built.write_bytes(residual_graph(spec.channels))
        settings = BuildOptions("fp32", threads=1, max_batch=64)
        openvino: Any = engines()["openvino"]
        openvino.build(built, folder / "part.blob", settings)
        self.on_cpu, self.on_cuda = openvino(folder / "part.blob", settings), StandIn(built, settings)
        options = {"max_batch": 4, "weight": 0.3 if RULES[rule].weighs else 0.0} | options
        self.cpu = CpuPipeline(self.on_cpu, spec, rule, threads=1, **options)
        self.cuda = CudaPipeline(self.on_cuda, spec, rule, **options)

    def agree(self, frames: Sequence[Frame], *, boxes: Sequence[Box] | None = None, map: bool = False) -> None:
        """Both give the same bits for these host frames."""
        expected, _ = self.cpu.run(frames, boxes=boxes, map=map)
        found, timing = self.cuda.run(frames, boxes=boxes, map=map)
        np.testing.assert_array_equal(found, expected)
        assert all(seconds >= 0 for seconds in timing)
        if map:
            images = len(frames) * (self.cpu._spec.views or len(boxes or ()))
            np.testing.assert_array_equal(self.cuda.maps(images), self.cpu.maps(images))

    def close(self) -> None:
        for closing in (self.cpu, self.cuda, self.on_cpu, self.on_cuda):
            closing.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def pair(spec: PrepareSpec | None = None, rule: str = "residual_feature", **options: Any) -> Pair:
        made.append(Pair(tmp_path, spec or PrepareSpec(size=SIZE), rule, **options))
        return made[-1]

    yield pair
    for each in made:
        each.close()


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# Scores


@pytest.mark.parametrize("rule", RULES)
def test_scores_are_those_of_the_processor(rule: str, make: Callable[..., Pair]) -> None:
    pair = make(rule=rule)
    map = RULES[rule].residual
    for n, captures in ((1, 1), (1, 1), (3, 2), (4, 3), (3, 3), (1, 4), (4, 4)):  # a batch makes the slot larger
        for seed in range(3):  # the graph must read the new frames
            pair.agree([noise(60, 72, 3, seed=10 * n + seed + i) for i in range(n)], map=map)
        assert pair.cuda.captures == captures
    if map:
        pair.agree([noise(60, 72, 3)])
        assert pair.cuda.captures == 5  # a graph without maps is another


@pytest.mark.parametrize("rule", RULES)
def test_float16_tensors(rule: str, tmp_path: Path) -> None:
    import openvino

    built, options = tmp_path / "half.onnx", BuildOptions("fp32", threads=1, max_batch=3)
    built.write_bytes(residual_graph(half=True))
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = openvino.Core().compile_model(str(built), "CPU", hints)
    spec, weight = PrepareSpec(size=SIZE), 0.3 if RULES[rule].weighs else 0.0
    with StandIn(built, options) as engine, CudaPipeline(engine, spec, rule, max_batch=3, weight=weight) as pipeline:
        for n in (1, 3, 1):
            frames = [noise(60, 72, 3, seed=n + i) for i in range(n)]
            x = prepare_reference(frames, spec).astype(np.float16)
            outputs = model({"x": x})
            tensors = {port.get_any_name(): np.asarray(outputs[port]) for port in model.outputs} | {"x": x}
            assert all(tensor.dtype == np.float16 for tensor in tensors.values())
            found, _ = pipeline.run(frames, map=RULES[rule].residual)
            np.testing.assert_array_equal(found, score_reference(rule, tensors, weight=weight))
            if RULES[rule].residual:
                np.testing.assert_array_equal(pipeline.maps(n), map_reference(x, tensors["x_hat"]))
        engine.inputs = (TensorSpec("x", engine.inputs[0].shape, "float32"),)
        with pytest.raises(EngineError, match=r"all must be float32 or all float16|do not fit"):
            CudaPipeline(engine, spec, rule)


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 120), st.integers(1, 120)), st.booleans(), st.booleans(),
    st.sampled_from([(1, 1, 1), (-1, 1, 1), (1, -1, 1), (2, 3, 1), (1, 1, -1)]), st.integers(0, 2**32),
)  # fmt: skip
def test_frames_of_any_layout(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], color: bool, transposed: bool,
    steps: tuple[int, int, int], seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    spec = PrepareSpec(size=SIZE, color="rgb" if color else "mono")
    pair = pair_of(tmp_path_factory, spec)
    height, width = (abs(step) * side for step, side in zip(steps, shape, strict=False))
    memory = rng.integers(0, 256, (width, height, 3) if transposed else (height, width, 3), np.uint8)
    frame = (memory.transpose(1, 0, 2) if transposed else memory)[:: steps[0], :: steps[1], :: steps[2]]
    pair.agree([frame if color else frame[:, :, 1]])


PAIRS: dict[PrepareSpec, Pair] = {}


def pair_of(factory: pytest.TempPathFactory, spec: PrepareSpec) -> Pair:
    if spec not in PAIRS:
        PAIRS[spec] = Pair(factory.mktemp("pair"), spec, "residual_logit")
    return PAIRS[spec]


@pytest.fixture(scope="module", autouse=True)
def _pairs_end() -> Iterator[None]:
    yield
    for pair in PAIRS.values():
        pair.close()
    PAIRS.clear()


@pytest.mark.parametrize("name", ["BGR8", "BayerRG8"])
def test_pixel_formats(name: str, make: Callable[..., Pair]) -> None:
    pair = make(pixel_format=name)
    channels = (3,) if name == "BGR8" else ()
    for seed in range(2):
        pair.agree([noise(41, 56, *channels, seed=seed)])


@pytest.mark.parametrize("name", ["Mono12", "Mono12p", "Mono12Packed"])
def test_frames_of_twelve_bits(name: str, make: Callable[..., Pair]) -> None:
    pair = make(PrepareSpec(size=SIZE, color="mono", bit_depth=12), pixel_format=name)
    for seed in range(2):
        if name == "Mono12":
            pair.agree([np.random.default_rng(seed).integers(0, 4096, (50, 44), np.uint16)])
        else:
            pair.agree([noise(50, 66, seed=seed)])


@pytest.mark.parametrize(
    "views",
    [{"tiles": Tiles(2, 3, 4)}, {"rotations": 5, "reduce": "mean"}, {"tiles": Tiles(2, 1, 0), "rotations": 3}],
    ids=["tiles", "rotations", "both"],
)
def test_views_of_a_frame(views: dict[str, Any], make: Callable[..., Pair]) -> None:
    pair = make(PrepareSpec(size=SIZE, **views))
    for n in (2, 1, 2, 1):
        pair.agree([noise(60, 72, 3, seed=n + i) for i in range(n)], map=True)
    assert pair.cuda.captures == 2


def test_boxes_change_from_frame_to_frame(make: Callable[..., Pair]) -> None:
    pair = make(PrepareSpec(size=SIZE, boxes=True))
    rng = np.random.default_rng(0)
    for count in (1, 3, 4, 2):
        corners = rng.integers(0, 30, (count, 2))
        boxes: list[Any] = [(int(x), int(y), int(x) + 25, int(y) + 20) for x, y in corners]
        pair.agree([noise(60, 72, 3, seed=count)], boxes=boxes, map=True)
    assert pair.cuda.captures == 0  # run one by one
    with pytest.raises(FrameError, match="5 boxes and so 5 views, but 4 go through the engine at once"):
        pair.cuda.run([noise(60, 72, 3)], boxes=[(0, 0, 9, 9)] * 5)
    with pytest.raises(FrameError, match="does not lie in the frame"):
        pair.cuda.run([noise(60, 72, 3)], boxes=[(0, 0, 99, 9)])
    pair.agree([noise(60, 72, 3)], boxes=[(0, 0, 72, 60)])


def test_a_batch_of_frames_of_several_sizes(make: Callable[..., Pair]) -> None:
    pair = make()
    frames = [noise(60, 72, 3), noise(60, 72, 3, seed=1), noise(33, 40, 3), noise(60, 72, 3, seed=2)]
    alone = [pair.cpu.run(part)[0].copy() for part in (frames[:2], frames[2:3], frames[3:])]
    maps = []
    for part in (frames[:2], frames[2:3], frames[3:]):
        pair.cpu.run(part, map=True)
        maps.append(pair.cpu.maps(len(part)).copy())
    found, _ = pair.cuda.run(frames, map=True)
    np.testing.assert_array_equal(found, np.concatenate(alone))
    np.testing.assert_array_equal(pair.cuda.maps(4), np.concatenate(maps))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (noise(60, 72), r"the frame's shape is \(60, 72\)"),
        (noise(60, 72, 4), r"the frame's shape is \(60, 72, 4\)"),
        (noise(60, 72, 3).astype(np.float32), "the frame's dtype is float32"),
        (noise(0, 72, 3), "has no pixels"),
        ([[1, 2], [3, 4]], "must be a NumPy array, or an array on the CUDA device"),
        (None, "must be a NumPy array, or an array on the CUDA device"),
    ],
)
def test_what_is_no_frame_is_refused(frame: Any, message: str, make: Callable[..., Pair]) -> None:
    pair = make()
    pair.agree([noise(60, 72, 3)])
    with pytest.raises(FrameError, match=message):
        pair.cuda.run([frame])
    pair.agree([noise(60, 72, 3)])  # and nothing was lost
    assert pair.cuda.captures == 1


# Frames on the device


class OnDevice:
    """A frame in device memory, as another library's array, which knows how it was copied there."""

    def __init__(self, frame: NDArray[Any], cuda: Cuda, *, strides: tuple[int, ...] | None = None) -> None:
        self.shape, self.strides, self.cuda = frame.shape, strides or frame.strides, cuda
        self.dtype = frame.dtype
        size = sum((n - 1) * s for n, s in zip(frame.shape, self.strides, strict=True)) + frame.itemsize
        host = np.zeros(size, np.uint8)
        np.ndarray(frame.shape, frame.dtype, host.data, strides=self.strides)[...] = frame
        self.pointer = self.stream = 0
        self.pointer = cuda.device(size)
        self.stream = cuda.stream()
        cuda.copy(self.pointer, host.ctypes.data, size, self.stream)  # nobody waits for it here
        self.asked: list[int] = []

    def __del__(self) -> None:
        with contextlib.suppress(EngineError):
            self.cuda.free_device(self.pointer)
        if self.stream:
            with contextlib.suppress(EngineError):
                self.cuda.destroy_stream(self.stream)


class ArrayInterface(OnDevice):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "stream": self.stream,
            "version": 3,
        }


class DLPack(OnDevice):
    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int) -> Any:
        self.cuda.synchronize(self.stream)  # a producer may also make the consumer's stream wait
        self.asked.append(stream)
        return dlpack_capsule(self)


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device", ctypes.c_int32), ("id", ctypes.c_int32), ("rank", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    )  # fmt: skip


LIVING: dict[int, Any] = {}


def _drop(capsule: int) -> None:
    LIVING.pop(ctypes.pythonapi.PyCapsule_GetPointer(ctypes.c_void_p(capsule), b"dltensor"))


_DROP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_drop)


def dlpack_capsule(array: OnDevice) -> Any:
    rank = len(array.shape)
    integers = ctypes.c_int64 * rank
    item = array.dtype.itemsize
    shape, strides = integers(*array.shape), integers(*(s // item for s in array.strides))
    # The data begin behind the pointer, as for a view of a larger array.
    tensor = _DLTensor(array.pointer - 16, 2, 0, rank, 1, 8 * item, 1, shape, strides, 16, None, None)
    LIVING[ctypes.addressof(tensor)] = (array, tensor, shape, strides)
    ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
    ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_size_t
    return ctypes.pythonapi.PyCapsule_New(ctypes.c_void_p(ctypes.addressof(tensor)), b"dltensor", _DROP)


@pytest.mark.parametrize("kind", [ArrayInterface, DLPack])
def test_frames_on_the_device_are_read_where_they_lie(kind: type[OnDevice], make: Callable[..., Pair]) -> None:
    pair, cuda = make(), Cuda()
    strides = [(216, 3, 1), (216, 3, 1), (256, 3, 1), (300, 4, 1), (216, 3, 1)]
    for seed, stride in enumerate(strides):
        frame = noise(60, 72, 3, seed=seed)
        expected, _ = pair.cpu.run([frame])
        there = kind(frame, cuda, strides=stride)
        found, _ = pair.cuda.run([there])
        np.testing.assert_array_equal(found, expected)
    captures, launches, updates = pair.cuda._replay.counts
    assert (captures, launches) == (1, 5)
    assert updates >= 2  # for each of the other strides; an address may come back
    assert not LIVING  # the capsules were let go of
    pair.agree([noise(60, 72, 3)])  # from the host that is another graph
    assert pair.cuda.captures == 2


def test_new_strides_update_and_new_sizes_capture(make: Callable[..., Pair], emulator: Emulator) -> None:
    pair, cuda = make(PrepareSpec(size=SIZE, rotations=2)), Cuda()
    frames = [ArrayInterface(noise(60, 72, 3, seed=i), cuda, strides=(216 + 8 * i, 3, 1)) for i in range(4)]
    for count, frame in enumerate(frames):
        emulator.reset_calls()
        pair.cuda.run([frame])
        assert emulator.calls("cudaGraphExecKernelNodeSetParams") == (2 if count else 0)  # prepare's kernels
        assert emulator.calls("cudaStreamBeginCapture") == (0 if count else 1)
    pair.cuda.run([ArrayInterface(noise(61, 72, 3), cuda)])
    assert pair.cuda.captures == 2
    emulator.reset_calls()
    pair.cuda.run([frames[0]])  # back to the first size
    assert pair.cuda.captures == 3
    emulator.reset_calls()
    pair.cuda.run([frames[0]])
    assert emulator.calls("cudaGraphExecKernelNodeSetParams") == 0  # the same frame again


def test_a_batch_on_the_device(make: Callable[..., Pair]) -> None:
    pair, cuda = make(), Cuda()
    for first in range(3):
        frames = [noise(60, 72, 3, seed=first + i) for i in range(3)]
        expected, _ = pair.cpu.run(frames)
        found, _ = pair.cuda.run([ArrayInterface(frame, cuda) for frame in frames])
        np.testing.assert_array_equal(found, expected)
    mixed: list[Any] = [frames[0], ArrayInterface(frames[1], cuda), frames[2]]
    alone = [pair.cpu.run([frame])[0].copy() for frame in frames]
    np.testing.assert_array_equal(pair.cuda.run(mixed)[0], np.concatenate(alone))


def test_a_device_frame_that_does_not_fit_is_refused(make: Callable[..., Pair]) -> None:
    pair, cuda = make(), Cuda()
    for frame, message in (
        (noise(60, 72, 4), r"shape must be \(height, width, 3\)"),
        (noise(60, 72, 3).astype(np.uint16), "dtype must be uint8"),
        (noise(60, 72, 3).view(np.int8), "dtype must be uint8"),
    ):
        for kind in (ArrayInterface, DLPack):
            if kind is DLPack and frame.dtype == np.int8:
                continue
            with pytest.raises(FrameError, match=message):
                pair.cuda.run([kind(frame, cuda)])
    stray = ArrayInterface(noise(60, 72, 3), cuda)
    host = noise(60, 72, 3)
    kept, stray.pointer = stray.pointer, host.ctypes.data
    with pytest.raises(FrameError, match="is not in device memory"):
        pair.cuda.run([stray])
    stray.pointer = kept
    other = DLPack(noise(60, 72, 3), cuda)
    other.__dlpack_device__ = lambda: (2, 1)  # type: ignore[method-assign]
    with pytest.raises(FrameError, match="lies on CUDA device 1, but the detector computes on device 0"):
        pair.cuda.run([other])
    with pytest.raises(FrameError, match="the frame is a DLPack, but the model expects"):
        pair.cpu.run([other])
    pair.agree([noise(60, 72, 3)])


class Interface:
    """An object with nothing but the array interface."""

    def __init__(self, frame: OnDevice, **changes: Any) -> None:
        self.frame, self.shape = frame, frame.shape
        interface = {"shape": frame.shape, "typestr": "|u1", "data": (frame.pointer, False), "version": 3}
        self.__cuda_array_interface__ = {**interface, **changes}


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({}, 0),
        ({"stream": None, "strides": None}, 0),
        ({"stream": 1}, 1),
        ({"version": 2}, 1),  # streams are not spoken of: the default one is waited for
    ],
    ids=["none", "None", "default", "version 2"],
)
def test_the_array_interface_says_what_to_wait_for(
    changes: dict[str, Any], waits: int, make: Callable[..., Pair], emulator: Emulator
) -> None:
    pair, cuda = make(), Cuda()
    frame = noise(60, 72, 3)
    there = ArrayInterface(frame, cuda)
    cuda.synchronize(there.stream)
    expected, _ = pair.cpu.run([frame])
    for _ in range(2):
        emulator.reset_calls()
        np.testing.assert_array_equal(pair.cuda.run([Interface(there, **changes)])[0], expected)
    assert emulator.calls("cudaStreamWaitEvent") == waits


def test_pinned_memory_is_read_as_well(make: Callable[..., Pair]) -> None:
    # Cameras' memory on devices that share it with the host.
    pair, cuda = make(), Cuda()
    frame = noise(60, 72, 3)
    there = ArrayInterface(frame, cuda)
    pinned = cuda.pinned(frame.nbytes)
    ctypes.memmove(pinned, frame.ctypes.data, frame.nbytes)
    found, _ = pair.cuda.run([Interface(there, data=(pinned, False))])
    np.testing.assert_array_equal(found, pair.cpu.run([frame])[0])
    cuda.free_pinned(pinned)


def test_what_a_producer_gets_wrong_is_a_frame_error(make: Callable[..., Pair]) -> None:
    pair, cuda = make(), Cuda()
    there = ArrayInterface(noise(60, 72, 3), cuda)

    class Refusing:
        shape = (60, 72, 3)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, *, stream: int) -> Any:
            raise BufferError("cannot export tensors that require gradients")

    wrong: list[tuple[Any, str]] = [
        (Refusing(), "cannot export tensors that require gradients"),
        (Interface(there, shape=(0, 72, 3), data=(0, False)), "no pixels: a side of it is 0"),
        (Interface(there, shape="60"), "is not understood"),
        (Interface(there, shape=(60, 72, 3, 1, 1)), "has 5 axes"),
    ]
    incomplete = Interface(there)
    del incomplete.__cuda_array_interface__["typestr"]
    for frame, message in (*wrong, (incomplete, "typestr")):
        with pytest.raises(FrameError, match=message):
            pair.cuda.run([frame])
    with pytest.raises(FrameError, match="boxes were given, but the model makes its regions itself"):
        pair.cuda.run([there], boxes=[(0, 0, 5, 5)])


def test_a_frame_that_is_refused_costs_no_graph(make: Callable[..., Pair]) -> None:
    pair, cuda = make(PrepareSpec(size=SIZE, color="mono", bit_depth=12), pixel_format="Mono12"), Cuda()
    frame = np.random.default_rng(0).integers(0, 4096, (50, 44), np.uint16)
    there = ArrayInterface(frame, cuda)
    pair.cuda.run([there])
    odd = Interface(there, data=(there.pointer + 1, False), typestr="<u2")
    with pytest.raises(FrameError, match="must be aligned"):
        pair.cuda.run([odd])
    pair.cuda.run([there])
    assert pair.cuda.captures == 1
    with pytest.raises(FrameError):
        pair.cuda.run([frame.astype(np.uint8)])
    with pytest.raises(FrameError, match="0 x 5 pixels"):  # and nothing of the frame before
        pair.cuda.frame_buffer(0, 5)


def test_garbage_is_not_collected_during_a_capture(make: Callable[..., Pair]) -> None:
    # Device memory that a collection frees on the capturing thread would end the capture.
    pair = make()
    pair.agree([noise(60, 72, 3)])
    context = pair.on_cuda.contexts[-1]
    enqueue, enabled = context.enqueue, []

    def watched(stream: int) -> None:
        enabled.append(gc.isenabled())
        enqueue(stream)

    context.enqueue = watched  # type: ignore[method-assign]
    pair.agree([noise(61, 72, 3)])
    assert enabled == [False, False]
    assert gc.isenabled()


# The frame buffer


def test_the_frame_buffer_is_a_frame_like_others(make: Callable[..., Pair]) -> None:
    pair = make()
    buffer = pair.cuda.frame_buffer(60, 72)
    assert pair.cuda.frame_buffer(60, 72).ctypes.data == buffer.ctypes.data
    for seed in range(2):
        frame, other = noise(60, 72, 3, seed=seed), noise(60, 72, 3, seed=9)
        buffer[...] = frame
        pair.agree([buffer])
        for part in (buffer[:, :40], buffer[::-1], buffer[1:], buffer[:, :, ::-1], buffer[::2]):
            pair.agree([part])
        pair.agree([other, buffer])
        pair.agree([buffer, other, buffer])
        pair.agree([other])
        np.testing.assert_array_equal(buffer, frame)  # nobody else writes there


def test_frames_of_one_batch_may_lie_differently(make: Callable[..., Pair]) -> None:
    pair = make()
    frame = noise(60, 72, 3)
    frames = [frame, frame[::-1], frame[:, ::-1], frame]
    alone = np.concatenate([pair.cpu.run([each])[0].copy() for each in frames])
    np.testing.assert_array_equal(pair.cuda.run(frames)[0], alone)


# What a frame costs


def test_a_frame_is_one_launch_and_one_wait(make: Callable[..., Pair], emulator: Emulator) -> None:
    pair = make()
    buffer = pair.cuda.frame_buffer(60, 72)
    for frame in (noise(60, 72, 3), buffer):
        pair.cuda.run([frame])
        enqueued = [context.enqueued for context in pair.on_cuda.contexts]
        emulator.reset_calls()
        for seed in range(20):
            buffer[...] = noise(60, 72, 3, seed=seed)
            pair.cuda.run([frame])
        counted = {
            name: emulator.calls(name) for name in ("cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize")
        }
        assert set(counted.values()) == {20}
        # Besides these it asks for the current device, and sets it, when it launches and when it waits.
        others = emulator.calls() - sum(counted.values())
        assert others == sum(emulator.calls(name) for name in ("cudaGetDevice", "cudaSetDevice"))
        assert others <= 20 * 4
        assert [context.enqueued for context in pair.on_cuda.contexts] == enqueued  # no Python


SHIM = r"""
#include <stddef.h>
static size_t low, high;
static long count;
static int (*inside)(void);
static __thread int busy;
void kizu_test_watch(size_t from, size_t to, int (*of)(void)) { inside = of; high = to; low = from; }
long kizu_test_count(void) { return count; }
static void note(void* caller) {
  if ((size_t)caller < low || (size_t)caller >= high || busy) return;
  busy = 1;
  if (!inside()) __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
  busy = 0;
}
"""


def test_native_code_allocates_nothing_a_frame(emulator: Emulator, tmp_path: Path) -> None:
    # The emulator, which stands in for the driver, allocates as it likes: what is called inside it is not counted.
    from test_detector import SHIM as ALLOCATORS

    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    hooks = ALLOCATORS[ALLOCATORS.index("extern void*") :]
    source.write_text(SHIM + hooks)
    import subprocess

    subprocess.run(["cc", "-O1", "-shared", "-fPIC", source, "-o", shim], check=True, capture_output=True)
    script = """
import ctypes, sys
from pathlib import Path
import numpy as np
from kizu import _core
from kizu.prepare import PrepareSpec
from stand_in import Cuda
from test_replay import ArrayInterface, Pair, noise

shim = ctypes.CDLL(sys.argv[1])
inside = ctypes.cast(ctypes.CDLL(_core.__file__).cuda_on_cpu_inside, ctypes.c_void_p)
shim.kizu_test_watch.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
shim.kizu_test_count.restype = ctypes.c_long
spans = [line.split()[0].split("-") for line in open("/proc/self/maps") if "/_core." in line]
shim.kizu_test_watch(min(int(a, 16) for a, _ in spans), max(int(b, 16) for _, b in spans), inside)

pair, cuda = Pair(Path(sys.argv[2]), PrepareSpec(size=(32, 32))), Cuda()
on_device = [ArrayInterface(noise(60, 72, 3, seed=i), cuda, strides=(216 + 8 * i, 3, 1)) for i in range(2)]
counts = [shim.kizu_test_count()]
for frames in ([noise(60, 72, 3)], [noise(60, 72, 3)[:, ::-1]], [pair.cuda.frame_buffer(60, 72)], on_device):
    for frame in frames * 2:
        pair.cuda.run([frame])
    counts.append(shim.kizu_test_count())
    for _ in range(50):
        for frame in frames:
            pair.cuda.run([frame])
    counts.append(shim.kizu_test_count())
print(*counts)
"""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {"LD_PRELOAD": str(shim), "PYTHONPATH": path}
    counts = [int(n) for n in python_output(script, shim, tmp_path, environment=environment).split()]
    assert counts[1] > counts[0]  # the first frame allocates, so the count does count
    for before, after in zip(counts[1::2], counts[2::2], strict=True):
        assert after == before


def test_ten_thousand_frames_leak_nothing(make: Callable[..., Pair], emulator: Emulator) -> None:
    pair = make(rule="logit")
    frames = [noise(40, 40, 3, seed=i) for i in range(3)]
    expected = [float(pair.cpu.run([frame])[0][0]) for frame in frames]

    def run(count: int) -> None:
        for i in range(count):
            assert float(pair.cuda.run([frames[i % 3]])[0][0]) == expected[i % 3]

    run(500)
    memory, live = resident(), emulator.alive()
    run(10_000)
    grown = resident() - memory
    assert emulator.alive() == live
    assert grown < 8 << 20


def resident() -> int:
    """Bytes of memory in use, without garbage, which may hold more elsewhere."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_where_host_and_device_share_memory_nothing_is_copied(emulator: Emulator, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from kizu import _core
from kizu.prepare import PrepareSpec
from stand_in import Cuda
from test_replay import ArrayInterface, Emulator, Pair, noise

assert _core.cuda_device()["integrated"] == (sys.argv[2] == "1")
emulator, pair = Emulator(), Pair(Path(sys.argv[1]), PrepareSpec(size=(32, 32)))
for seed in range(3):
    pair.agree([noise(60, 72, 3, seed=seed)], map=True)
    pair.agree([noise(60, 72, 3, seed=seed + i) for i in range(3)])
    buffer, frame = pair.cuda.frame_buffer(60, 72), noise(60, 72, 3, seed=seed)
    buffer[...] = frame
    pair.agree([buffer])
    expected, _ = pair.cpu.run([frame])
    assert pair.cuda.run([ArrayInterface(frame, Cuda(), strides=(216 + 8 * seed, 3, 1))])[0] == expected
emulator.reset_calls()
pair.agree([noise(70, 72, 3)])
tensors = 6  # the stand-in copies x and five outputs itself
print(emulator.calls("cudaMemcpyAsync"), emulator.alive()["device_allocations"])
pair.close()
"""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    copies: dict[str, list[int]] = {}
    for integrated in ("0", "1"):
        environment = {"PYTHONPATH": path, "CUDA_ON_CPU_INTEGRATED": integrated}
        copies[integrated] = [
            int(n) for n in python_output(script, tmp_path, integrated, environment=environment).split()
        ]
    # A new size is run once and captured once: the frame there and the score back, twice, less.
    assert copies["0"][0] - copies["1"][0] == 4
    assert copies["0"][1] > copies["1"][1]


# Detectors


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, bundle_path: Path, engine_cache: Path) -> Iterator[Callable[..., Detector]]:
    """Detectors with the stand-in for an engine."""
    known = {**engines(), "stand-in": StandIn}
    monkeypatch.setattr(engine_module, "engines", lambda: known)
    loaded: list[Detector] = []

    def open_one(path: Path = bundle_path, **options: Any) -> Detector:
        loaded.append(kizu.load(path, engine="stand-in", precision="fp32", threads=2, cache=engine_cache, **options))
        return loaded[-1]

    yield open_one
    for detector in loaded:
        detector.close()


Images = list[NDArray[np.uint8]]


def test_a_detector_scores_as_on_the_processor(
    load: Callable[..., Detector], frames: Images, bundle_path: Path, engine_cache: Path
) -> None:
    detector = load(max_batch=4)
    assert (detector.contexts, detector.engine) == (2, "stand-in")
    warm = detector.captures
    assert warm == 2  # at load, not at the first part
    with kizu.load(bundle_path, precision="fp32", threads=2, max_batch=4, cache=engine_cache) as on_cpu:
        for frame in frames:
            found, expected = detector.score(frame), on_cpu.score(frame)
            assert (found.score, found.anomalous) == (expected.score, expected.anomalous)
        for found, expected in zip(detector.score_batch(frames), on_cpu.score_batch(frames), strict=True):
            assert found.score == expected.score
        assert [r.score for r in on_cpu.stream(frames)] == [on_cpu.score(frame).score for frame in frames]
    assert detector.captures == warm + 1  # of four frames, by one of the two


def test_results_of_a_stream_come_in_order(load: Callable[..., Detector], frames: Images) -> None:
    detector = load()
    expected = [detector.score(frame).score for frame in frames]
    for contexts in (1, 2, 3):
        other = load(contexts=contexts)
        assert [result.score for result in other.stream(frames)] == expected
        assert [result.score for result in other.stream(iter(frames[:1]))] == expected[:1]
        assert list(other.stream([])) == []
        assert other.score(frames[0]).score == expected[0]


def test_a_stream_keeps_frames_in_flight(load: Callable[..., Detector], frames: Images, emulator: Emulator) -> None:
    detector = load(contexts=2)
    taken: list[tuple[int, int]] = []

    def source() -> Iterator[NDArray[np.uint8]]:
        for frame in frames:
            taken.append((emulator.calls("cudaGraphLaunch"), emulator.calls("cudaEventSynchronize")))
            yield frame

    emulator.reset_calls()
    assert len(list(detector.stream(source()))) == len(frames)
    # When frame i is taken, i are launched and all but one have been waited for.
    assert taken == [(i, max(0, i - 1)) for i in range(len(frames))]


def test_a_camera_writes_into_the_slots(load: Callable[..., Detector], frames: Images) -> None:
    detector = load(contexts=2)
    expected = [detector.score(frame).score for frame in frames]
    height, width = frames[0].shape[:2]
    buffers = [detector.frame_buffer(height, width, index=i) for i in range(2)]
    assert all(buffer.shape == frames[0].shape and buffer.flags.c_contiguous for buffer in buffers)

    def camera() -> Iterator[Frame]:
        for i, frame in enumerate(frames):
            buffers[i % 2][...] = frame
            yield buffers[i % 2]

    detector.warm_up((height, width))
    captures = detector.captures
    assert [result.score for result in detector.stream(camera())] == expected
    assert detector.captures == captures
    for i, frame in enumerate(frames):
        buffers[i % 2][...] = frame
        assert detector.score(buffers[i % 2]).score == expected[i]
    with pytest.raises(FrameError, match="index is 2, but there are 2 contexts"):
        detector.frame_buffer(height, width, index=2)
    larger = detector.frame_buffer(height + 40, width + 40)
    larger[...] = 7
    buffers[0][...] = frames[0]  # memory that was handed out stays memory
    assert detector.score(buffers[0]).score == expected[0]
    detector.close()
    assert buffers[0][0, 0, 0] == frames[0][0, 0, 0]


def test_a_new_size_captures_once_a_context(load: Callable[..., Detector], frames: Images) -> None:
    detector = load(contexts=2)
    before = detector.captures
    for _ in range(2):
        for size in ((50, 60), (60, 50)):
            detector.warm_up(size)
        assert detector.captures == before + 4
        before = detector.captures
    detector.score(noise(60, 50, 3))
    assert detector.captures == before


@pytest.mark.parametrize("contexts", [1, 2, 3])
def test_threads_get_the_scores_of_one(contexts: int, load: Callable[..., Detector], frames: Images) -> None:
    detector = load(contexts=contexts)
    expected = [detector.score(frame).score for frame in frames]
    wrong: list[int] = []

    def work(n: int) -> None:
        for i in np.random.default_rng(n).integers(0, len(frames), 60):
            if detector.score(frames[i]).score != expected[i]:
                wrong.append(int(i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    streamed = [result.score for result in detector.stream(frames)]
    for thread in threads:
        thread.join()
    assert not wrong
    assert streamed == expected


def test_closing_waits_and_leaves_nothing(load: Callable[..., Detector], frames: Images, emulator: Emulator) -> None:
    gc.collect()
    before = emulator.alive()
    detector = load(contexts=2)
    assert emulator.alive()["device_allocations"] > before["device_allocations"]
    expected = [detector.score(frame).score for frame in frames]
    errors: list[BaseException] = []
    scored = threading.Barrier(3)

    def work() -> None:
        try:
            for round in range(10_000):
                for frame, score in zip(frames, expected, strict=True):
                    assert detector.score(frame).score == score
                if round == 0:
                    scored.wait()
        except KizuError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    scored.wait()
    detector.close()
    for thread in threads:
        thread.join()
    assert ["the detector is closed" in str(error) for error in errors] == [True, True]
    gc.collect()
    assert emulator.alive() == before


def test_closing_with_frames_in_flight(load: Callable[..., Detector], frames: Images, emulator: Emulator) -> None:
    gc.collect()
    before = emulator.alive()
    detector = load(contexts=2)
    stream = detector.stream(frames)
    next(stream)
    detector.close()  # one frame is in flight
    with pytest.raises(KizuError, match="the detector is closed"):
        next(stream)
    gc.collect()
    assert emulator.alive() == before
    other = load(contexts=2)
    abandoned = other.stream(frames)
    next(abandoned)
    abandoned.close()
    assert other.score(frames[0]).score == next(other.stream(frames)).score


def test_an_error_in_a_stream_ends_it_and_no_more(load: Callable[..., Detector], frames: Images) -> None:
    detector = load(contexts=2)
    expected = detector.score(frames[1]).score
    stream = detector.stream([frames[0], np.zeros((4, 4), np.uint8), frames[1]])
    with pytest.raises(FrameError, match=r"shape is \(4, 4\)"):
        list(stream)
    assert [result.score for result in detector.stream([frames[1]] * 3)] == [expected] * 3


def test_two_streams_share_the_contexts(load: Callable[..., Detector], frames: Images) -> None:
    detector = load(contexts=2)
    expected = [detector.score(frame).score for frame in frames]
    both = threading.Barrier(2)
    found: list[list[float]] = []

    def source() -> Iterator[Frame]:
        for i, frame in enumerate(frames):
            if i == 1:
                both.wait(30)  # each has a frame in flight now
            yield frame

    def work() -> None:
        found.append([result.score for result in detector.stream(source())])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected, expected]


def test_a_buffer_in_flight_is_not_taken_again(load: Callable[..., Detector], frames: Images) -> None:
    detector = load(contexts=2)
    height, width = frames[0].shape[:2]

    def camera() -> Iterator[Frame]:
        for frame in frames:
            buffer = detector.frame_buffer(height, width)
            buffer[...] = frame
            yield buffer

    with pytest.raises(FrameError, match="still in flight; use those of index=0 to 1 in turn"):
        list(detector.stream(camera()))
    assert detector.score(frames[1]).score == next(detector.stream([frames[1]])).score


def test_a_call_that_is_interrupted_leaves_nothing_behind(load: Callable[..., Detector], frames: Images) -> None:
    detector = load(contexts=1)
    expected = detector.score(frames[0]).score
    (pipeline,) = detector._pool.pipelines
    assert isinstance(pipeline, CudaPipeline)
    native = pipeline._replay

    class Interrupted:
        def start(self, *arguments: Any) -> None:
            native.start(*arguments)
            raise KeyboardInterrupt

    pipeline._replay = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        detector.score(frames[1])
    pipeline._replay = native
    assert detector.score(frames[0]).score == expected


def test_maps_can_be_warmed_up(make: Callable[..., Pair]) -> None:
    pair = make()
    pair.cuda.run([noise(60, 72, 3)], map=True)
    assert pair.cuda.captures == 1
    pair.agree([noise(60, 72, 3, seed=1)], map=True)
    assert pair.cuda.captures == 1


def test_a_detector_that_was_forgotten_is_freed(
    load: Callable[..., Detector], bundle_path: Path, engine_cache: Path, frames: Images, emulator: Emulator
) -> None:
    gc.collect()
    before = emulator.alive()
    detector = kizu.load(bundle_path, engine="stand-in", precision="fp32", threads=2, cache=engine_cache)
    detector.score(frames[0])
    del detector
    gc.collect()
    assert emulator.alive() == before


# Errors of CUDA


LAUNCH_FAILURE, NO_MEMORY = 719, 2


def scenario(pipeline: CudaPipeline, expected: list[float], others: list[float]) -> None:
    """The pipeline's calls of CUDA, nearly all: captures, launches, updates, another size."""
    frames = [noise(30, 40, 3, seed=i) for i in range(2)]
    cuda = Cuda()
    for frame, score in zip(frames, expected, strict=True):
        assert float(pipeline.run([frame])[0][0]) == score
    for stride, frame, score in zip((120, 128), frames, expected, strict=True):
        on_device = ArrayInterface(frame, cuda, strides=(stride, 3, 1))
        assert float(pipeline.run([on_device])[0][0]) == score
    pipeline.frame_buffer(50, 50)
    assert float(pipeline.run([noise(50, 50, 3)])[0][0]) == others[0]


# When something ends, nobody is there to be told.
UNHEARD = ("cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaEventDestroy", "cudaGraphDestroy",
           "cudaGraphExecDestroy", "cudaSetDevice")  # fmt: skip


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "lost"])
def test_an_error_at_any_call_is_one_exception(sticky: bool, make: Callable[..., Pair], emulator: Emulator) -> None:
    spec = PrepareSpec(size=SIZE)
    pair = make(spec, "logit")
    expected = [float(pair.cpu.run([noise(30, 40, 3, seed=i)])[0][0]) for i in range(2)]
    others = [float(pair.cpu.run([noise(50, 50, 3)])[0][0])]
    pair.cuda.close()
    pair.on_cuda.contexts.clear()
    gc.collect()
    before = emulator.alive()
    call, failed = 0, "nothing yet"
    while failed:
        call += 1
        raised: EngineError | None = None
        pipeline: CudaPipeline | None = None
        emulator.reset_calls()
        with emulator.failing(call, LAUNCH_FAILURE if sticky else NO_MEMORY, sticky=sticky):
            try:
                pipeline = CudaPipeline(pair.on_cuda, spec, "logit", max_batch=4)
                scenario(pipeline, expected, others)
            except EngineError as problem:
                raised = problem.with_traceback(None)
                raised.__cause__ = raised.__context__ = None  # whose frames hold what failed
            failed = emulator.failed_call()
            if raised is not None and sticky and pipeline is not None:  # by our call, or by the tests' own
                assert isinstance(raised, DeviceLostError) or "returned 719" in str(raised)
            if sticky and pipeline is not None:
                pipeline.close()
        if raised is not None and not sticky and pipeline is not None:
            scenario(pipeline, expected, others)  # usable
        if pipeline is not None:
            pipeline.close()
        pair.on_cuda.contexts.clear()
        del pipeline
        if emulator.alive() != before:
            gc.collect()  # slow
        assert emulator.alive() == before, f"call {call}"
        if failed in UNHEARD:
            assert sticky or raised is None  # of a device that is lost the next call tells
        else:
            assert (raised is not None) == bool(failed), f"call {call}, {failed}"
    assert call > 100


def test_a_lost_device_closes_the_detector(load: Callable[..., Detector], frames: Images, emulator: Emulator) -> None:
    gc.collect()
    before = emulator.alive()
    for scoring in (
        lambda detector: detector.score(frames[0]),
        lambda detector: detector.score_batch(frames[:3]),
        lambda detector: list(detector.stream(frames[:3])),
        lambda detector: detector.frame_buffer(200, 200),
    ):
        detector = load(contexts=2)
        stream = detector.stream(frames)
        next(stream)  # a frame is in flight elsewhere
        with emulator.failing(1, LAUNCH_FAILURE, sticky=True):
            with pytest.raises(DeviceLostError, match=r"the CUDA device stopped answering: .*cudaErrorLaunchFailure"):
                scoring(detector)
            with pytest.raises(KizuError, match="the detector is closed"):
                detector.score(frames[0])
            with pytest.raises(KizuError, match="the detector is closed"):
                next(stream)
            detector.close()
        assert detector.captures == 2
        del detector, stream
        gc.collect()
        assert emulator.alive() == before


def test_a_loss_that_the_engine_notices(make: Callable[..., Pair], emulator: Emulator) -> None:
    pair = make()
    pair.agree([noise(60, 72, 3)])

    def enqueue(stream: int) -> None:
        emulator.fail_call(1, LAUNCH_FAILURE, sticky=True)
        raise EngineError("the engine could not run")

    pair.on_cuda.contexts[-1].enqueue = enqueue  # type: ignore[method-assign]
    with emulator.failing(10**9, 0), pytest.raises(DeviceLostError, match="the engine could not run"):
        pair.cuda.run([noise(61, 72, 3)])
