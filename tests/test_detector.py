"""Detector: the score of training comes out, for one thread or eight, and nothing but a Result is allocated."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

import kizu
from helpers import Trained, part, python_output, read_bundle, rewrite_bundle
from kizu import Bundle, Detector, EngineError, FrameError, KizuError, Result, ScoreError
from kizu.cpu_pipeline import CpuPipeline
from kizu.engine import TensorSpec, engines
from kizu.pipeline import Timing
from kizu.pixel_format import PixelFormat
from kizu.pool import Pool
from kizu.prepare_reference import prepare_reference
from rows import METHODS, TOLERANCES

Frames = list[NDArray[np.uint8]]


def torch_scores(trained: Trained, frames: Frames) -> NDArray[np.float64]:
    """-logit by torch in float32, on inputs by the NumPy twin of prepare."""
    import torch

    from kizu.method import get
    from kizu.run_folder import load_file
    from kizu.settings import epoch_file

    manifest = Bundle.open(trained.bundle).manifest
    method = get(METHODS[0].name).create(manifest.prepare, get(METHODS[0].name).config_type(**METHODS[0].config))
    module = method.export_module()
    module.load_state_dict(load_file(epoch_file(trained.run, manifest.training["epoch_rule"]))["module"])
    with torch.no_grad():
        x = torch.from_numpy(np.stack([prepare_reference(frame, manifest.prepare) for frame in frames]))
        scores: NDArray[np.float64] = -module.eval()(x)["logit"].double().numpy()
    return scores


def deviation(trained: Trained) -> float:
    return float(np.std(read_bundle(trained.bundle)[0]["calibration"]["scores"]["fp32"]))


def held_out(trained: Trained) -> Frames:
    from kizu.settings import read_settings

    settings = read_settings(trained.run)
    return [sample.read() for sample in settings.divide(settings.dataset()).test]


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", ["trained", "mono_trained"])
def test_the_score_is_the_one_of_training(
    engine: str, kind: str, engine_cache: Path, request: pytest.FixtureRequest
) -> None:
    trained: Trained = request.getfixturevalue(kind)
    frames = held_out(trained)
    assert len(frames) >= 20
    expected, unit = torch_scores(trained, frames), deviation(trained)
    assert np.std(expected) > 0.3 * unit
    for precision in ("fp32", "fp16", "bf16", "int8"):
        kind_of_engine = engines()[engine]
        if precision not in kind_of_engine.variants or kind_of_engine.unsupported(precision) is not None:
            assert precision in ("fp16", "bf16")  # not every processor or engine has these
            continue
        with kizu.load(trained.bundle, engine=engine, precision=precision, cache=engine_cache) as detector:
            assert (detector.engine, detector.precision) == (engine, precision)
            found = np.array([detector.score(frame).score for frame in frames])
        assert np.abs(found - expected).max() <= TOLERANCES[precision] * unit, precision


def test_a_result_says_all(detector: Detector, frames: Frames, bundle_path: Path) -> None:
    threshold = read_bundle(bundle_path)[0]["threshold"]["values"]["fp32"]
    start = time.perf_counter()
    result = detector.score(frames[0])
    elapsed = time.perf_counter() - start
    assert type(result) is Result
    assert type(result.score) is float
    assert result.threshold == threshold == detector.threshold
    assert type(result.anomalous) is bool
    assert result.anomalous is not (result.score <= threshold)
    assert result.map is None
    assert type(result.timing) is Timing
    assert all(0 < seconds < elapsed for seconds in result.timing)
    assert sum(result.timing) <= elapsed
    with pytest.raises(AttributeError):
        result.score = 0.0  # type: ignore[misc]
    assert not hasattr(result, "__dict__")


def test_it_tells_what_it_runs(detector: Detector, bundle_path: Path) -> None:
    assert detector.bundle.path == bundle_path
    assert detector.bundle.manifest.method.name == METHODS[0].name
    assert (detector.engine, detector.precision, detector.threads, detector.max_batch) == ("openvino", "fp32", 2, 4)


def test_a_part_passes_up_to_its_threshold_only(bundle_path: Path, engine_cache: Path, frames: Frames) -> None:
    with kizu.load(bundle_path, precision="fp32", cache=engine_cache, threshold=-1e9) as detector:
        score = detector.score(frames[0]).score
        assert detector.score(frames[0]).anomalous
        for threshold, anomalous in (
            (score, False),
            (math.nextafter(score, -math.inf), True),
            (math.nextafter(score, math.inf), False),
            (math.nan, True),  # no proof, no pass
        ):
            detector.threshold = threshold
            assert detector.score(frames[0]).anomalous is anomalous
            assert detector.score_batch([frames[0]])[0].anomalous is anomalous


def test_a_batch_gives_what_single_frames_give(detector: Detector, frames: Frames, trained: Trained) -> None:
    rng = np.random.default_rng(1)
    odd_sizes = [rng.integers(0, 256, (*rng.integers(1, 90, 2), 3), np.uint8) for _ in range(6)]
    mixed = [frame for pair in zip(frames, odd_sizes, strict=False) for frame in pair]
    single = np.array([detector.score(frame).score for frame in mixed])
    for n in (0, 1, 2, 3, 4, 5, 9, 12):
        results = detector.score_batch(iter(mixed[:n]))
        assert [type(r) for r in results] == [Result] * n
        found = np.array([r.score for r in results])
        assert (np.abs(found - single[:n]) <= 1e-4 * deviation(trained)).all()
        assert all(r.threshold == detector.threshold for r in results)
    assert len(mixed) > 2 * detector.max_batch
    assert np.ptp(single) > deviation(trained)


def test_bgr_frames_are_read_as_such(detector: Detector, bundle_path: Path, engine_cache: Path, frames: Frames) -> None:
    with kizu.load(
        bundle_path, precision="fp32", pixel_format="BGR8", threads=2, max_batch=4, cache=engine_cache
    ) as bgr:
        for frame in frames[:5]:
            turned = np.ascontiguousarray(frame[:, :, ::-1])
            assert bgr.score(turned).score == bgr.score(frame[:, :, ::-1]).score == detector.score(frame).score
            assert bgr.score(frame).score != detector.score(frame).score
            assert bgr.score_batch([turned])[0].score == detector.score_batch([frame])[0].score


BAD: dict[str, tuple[Any, str]] = {
    "float": (np.zeros((60, 72, 3), np.float32), "dtype is float32"),
    "16 bits": (np.zeros((60, 72, 3), np.uint16), "dtype is uint16"),
    "mono": (np.zeros((60, 72), np.uint8), r"shape is \(60, 72\)"),
    "RGBA": (np.zeros((60, 72, 4), np.uint8), r"shape is \(60, 72, 4\)"),
    "batch": (np.zeros((1, 60, 72, 3), np.uint8), r"shape is \(1, 60, 72, 3\)"),
    "no rows": (np.zeros((0, 72, 3), np.uint8), "no pixels"),
    "no columns": (np.zeros((60, 0, 3), np.uint8), "no pixels"),
    "too big": (np.broadcast_to(np.uint8(0), (32769, 2, 3)), "32768 pixels at most"),
    "list": ([[[1, 2, 3]]], "is a list"),
    "None": (None, "is a NoneType"),
    "path": ("part.png", "is a str"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_frame_is_refused_and_the_next_is_scored(name: str, detector: Detector, frames: Frames) -> None:
    bad, fault = BAD[name]
    before = detector.score(frames[3]).score
    for call in (detector.score, lambda frame: detector.score_batch([frames[0], frame])):
        with pytest.raises(FrameError, match=fault) as caught:
            call(bad)
        if "at most" not in fault:
            assert "the model expects a uint8 rgb frame of shape (height, width, 3)" in str(caught.value)
        assert detector.score(frames[3]).score == before


def test_a_mono_model_takes_two_axes_or_three(mono_bundle_path: Path, engine_cache: Path) -> None:
    frame = part(np.random.default_rng(7), color=False)
    with kizu.load(mono_bundle_path, precision="fp32", cache=engine_cache) as detector:
        assert detector.score(frame).score == detector.score(frame[:, :, None]).score
        with pytest.raises(FrameError, match=r"uint8 mono frame of shape \(height, width\) or \(height, width, 1\)"):
            detector.score(np.zeros((60, 72, 3), np.uint8))


@pytest.mark.parametrize(
    ("options", "kind", "fault"),
    [
        ({"threads": 0}, EngineError, "threads is 0, but must be a whole number from 1 to 1024"),
        ({"threads": 1.5}, EngineError, "threads is 1.5"),
        ({"threads": True}, EngineError, "threads is True"),
        ({"max_batch": 0}, EngineError, "max_batch is 0"),
        ({"pixel_format": "GBR8"}, FrameError, "pixel_format is 'GBR8', but must be one of Mono8, "),
        ({"pixel_format": "Mono8"}, FrameError, "pixel_format is Mono8, but the model was trained on 8-bit rgb frames"),
        ({"nonfinite": "pass"}, ScoreError, "nonfinite is 'pass', but must be 'error' or 'reject'"),
        ({"engine": "onyx"}, EngineError, "no engine is called 'onyx'"),
        ({"precision": "fp8"}, EngineError, "choose from: auto, fp32"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(
    bundle_path: Path, engine_cache: Path, options: Mapping[str, Any], kind: type[KizuError], fault: str
) -> None:
    with pytest.raises(kind, match=fault):
        kizu.load(bundle_path, **{"cache": engine_cache, **options})


def test_a_map_is_refused_where_there_is_none(detector: Detector, frames: Frames) -> None:
    for call in (lambda: detector.score(frames[0], map=True), lambda: detector.score_batch(frames, map=True)):
        with pytest.raises(ScoreError, match=r"algan_image .* has no map"):
            call()


# Scores that are not finite


def test_a_graph_that_computes_nan_fails_its_proof(bundle_path: Path, tmp_path: Path, engine_cache: Path) -> None:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(read_bundle(bundle_path)[1]["graphs/fp32.onnx"])
    weights = max(graph.graph.initializer, key=lambda tensor: math.prod(tensor.dims))
    weights.CopyFrom(numpy_helper.from_array(np.full(tuple(weights.dims), np.nan, np.float32), weights.name))
    target = rewrite_bundle(bundle_path, tmp_path / "nan.kizu", members={"graphs/fp32.onnx": graph.SerializeToString()})
    for engine in ("openvino", "onnxruntime"):
        for _ in range(2):  # compiled, then from the cache
            with pytest.raises(EngineError, match=r"does not reproduce the golden scores.*nan"):
                kizu.load(target, engine=engine, precision="fp32", cache=engine_cache)


class StubEngine:
    """An engine whose graph says whatever ``value`` is."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.inputs = (TensorSpec("x", (None, 5, 32, 32)),)
        self.outputs = (TensorSpec("logit", (None,)),)

    def bind(self, inputs: Any, outputs: Any) -> Any:
        class Runner:
            def run(runner) -> None:  # noqa: N805
                outputs["logit"].fill(self.value)

        return Runner()

    def close(self) -> None:
        pass


def stub_detector(bundle_path: Path, value: float, nonfinite: Literal["error", "reject"]) -> Detector:
    bundle = Bundle.open(bundle_path)
    engine: Any = StubEngine(value)
    pipeline = CpuPipeline(engine, bundle.manifest.prepare, bundle.manifest.scoring, threads=1, max_batch=2)
    return Detector(
        bundle,
        Pool([pipeline], engine),
        engine="stub",
        precision="fp32",
        threads=1,
        threshold=0.0,
        pixel_format=PixelFormat.parse("RGB8"),
        nonfinite=nonfinite,
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_never_passes(bundle_path: Path, frames: Frames, value: float) -> None:
    detector = stub_detector(bundle_path, value, "error")
    for call in (lambda: detector.score(frames[0]), lambda: detector.score_batch(frames[:3])):
        with pytest.raises(ScoreError, match=rf'the score is {-value}: .* nonfinite="reject"'):
            call()
    detector.threshold = math.inf
    with pytest.raises(ScoreError):
        detector.score(frames[0])
    rejecting = stub_detector(bundle_path, value, "reject")
    for threshold in (0.0, math.inf, -math.inf, math.nan):
        rejecting.threshold = threshold
        assert rejecting.score(frames[0]).anomalous
        assert all(result.anomalous for result in rejecting.score_batch(frames[:3]))
    assert not stub_detector(bundle_path, 1.0, "reject").score(frames[0]).anomalous


# Threads and lifetime


def hammer(detector: Detector, frames: Frames, seconds: float) -> None:
    expected = [detector.score(frame).score for frame in frames]
    wrong: list[tuple[int, float]] = []
    counts, end = [0] * 8, time.perf_counter() + seconds

    def work(n: int) -> None:
        rng = np.random.default_rng(n)
        while time.perf_counter() < end:
            i = int(rng.integers(len(frames)))
            found = detector.score(frames[i]).score
            if found != expected[i]:
                wrong.append((i, found))
            counts[n] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert min(counts) > 10


def test_eight_threads_get_the_scores_of_one(detector: Detector, frames: Frames) -> None:
    mixed = [*frames, np.ascontiguousarray(frames[0][::2]), np.tile(frames[1], (3, 2, 1))]
    hammer(detector, mixed, 1)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_eight_threads_get_the_scores_of_one_for_ten_seconds(
    engine: str, bundle_path: Path, engine_cache: Path, frames: Frames
) -> None:
    mixed = [*frames, np.ascontiguousarray(frames[0][::2]), np.tile(frames[1], (3, 2, 1))]
    with kizu.load(bundle_path, engine=engine, precision="int8", threads=2, cache=engine_cache) as loaded:
        hammer(loaded, mixed, 10)


def test_batches_and_frames_from_several_threads_do_not_mix(detector: Detector, frames: Frames) -> None:
    single = [detector.score(frame).score for frame in frames]
    batched = [result.score for result in detector.score_batch(frames)]
    wrong: list[object] = []

    def one() -> None:
        for i in range(200):
            if detector.score(frames[i % len(frames)]).score != single[i % len(frames)]:
                wrong.append(i)

    def many() -> None:
        for _ in range(10):
            if [result.score for result in detector.score_batch(frames)] != batched:
                wrong.append("batch")

    threads = [threading.Thread(target=target) for target in (one, many, one, many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_closed_detector_says_so(bundle_path: Path, engine_cache: Path, frames: Frames) -> None:
    with kizu.load(bundle_path, precision="fp32", cache=engine_cache) as detector:
        detector.score(frames[0])
    detector.close()  # twice is nothing
    calls: list[Callable[[], object]] = [
        lambda: detector.score(frames[0]),
        lambda: detector.score_batch(frames),
        lambda: detector.score_batch([]),
        lambda: detector.warm_up(),
        lambda: next(detector.stream(frames)),
        lambda: detector.frame_buffer(10, 10),
    ]
    for call in calls:
        with pytest.raises(KizuError, match=r"the detector is closed; kizu\.load makes a new one"):
            call()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_closing_while_others_score_is_safe(engine: str, bundle_path: Path, engine_cache: Path, frames: Frames) -> None:
    for _ in range(5):
        detector = kizu.load(bundle_path, engine=engine, precision="fp32", threads=2, cache=engine_cache)
        expected = detector.score(frames[0]).score
        ends: list[BaseException | float] = []

        def work(detector: Detector = detector, expected: float = expected, ends: list[Any] = ends) -> None:
            try:
                while detector.score(frames[0]).score == expected:
                    pass
                ends.append(math.nan)
            except BaseException as error:
                ends.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        detector.close()
        for thread in threads:
            thread.join(30)
        assert [type(end) for end in ends] == [KizuError] * 4


# What a call costs


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_memory_does_not_grow_over_10000_frames(engine: str, bundle_path: Path, engine_cache: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (40 + 8 * i, 56, 3), np.uint8) for i in range(4)]
    with kizu.load(bundle_path, engine=engine, precision="fp32", threads=1, cache=engine_cache) as detector:

        def score(count: int) -> None:
            for i in range(count):
                detector.score(frames[i % 4])

        score(2000)
        gc.collect()
        before = resident()
        score(10_000)
        gc.collect()
        assert resident() - before < 2 << 20  # 200 bytes a frame; one leaked input of 20 KB a frame would be 200 MB


def test_python_allocates_only_the_result(detector: Detector, frames: Frames) -> None:
    frame = frames[0]

    def calls(count: int) -> int:
        before = sys.getallocatedblocks()
        for _ in range(count):
            detector.score(frame)
        return sys.getallocatedblocks() - before

    calls(2000)
    gc.collect()
    gc.disable()
    try:
        calls(1000)
        assert abs(calls(1000)) < 20  # nothing stays
        tracemalloc.start()
        detector.score(frame)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = detector.score(frame)
        after, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    finally:
        gc.enable()
    kept = sum(map(sys.getsizeof, (result, result.score, result.timing, *result.timing)))
    assert after - before <= kept + 256
    # An input of the model has 20,480 bytes, a frame 12,960: a temporary copy of either would show.
    assert peak - before < 2000


SHIM = r"""
// Counts allocations asked for by code between two addresses.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

static size_t low, high;
static long count;

void kizu_test_watch(size_t from, size_t to) { low = from; high = to; }
long kizu_test_count(void) { return __atomic_load_n(&count, __ATOMIC_RELAXED); }

static void note(void* caller) {
  if ((size_t)caller >= low && (size_t)caller < high) __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
}

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

#define NOTE() note(__builtin_return_address(0))
void* malloc(size_t n) { NOTE(); return __libc_malloc(n); }
void* calloc(size_t n, size_t m) { NOTE(); return __libc_calloc(n, m); }
void* realloc(void* p, size_t n) { NOTE(); return __libc_realloc(p, n); }
void* aligned_alloc(size_t a, size_t n) { NOTE(); return __libc_memalign(a, n); }
int posix_memalign(void** p, size_t a, size_t n) { NOTE(); return (*p = __libc_memalign(a, n)) ? 0 : 12; }
// operator new, new[], and their aligned and nothrow forms
void* _Znwm(size_t n) { NOTE(); return __libc_malloc(n ? n : 1); }
void* _Znam(size_t n) { NOTE(); return __libc_malloc(n ? n : 1); }
void* _ZnwmSt11align_val_t(size_t n, size_t a) { NOTE(); return __libc_memalign(a, n); }
void* _ZnamSt11align_val_t(size_t n, size_t a) { NOTE(); return __libc_memalign(a, n); }
void* _ZnwmRKSt9nothrow_t(size_t n, const void* t) { (void)t; NOTE(); return __libc_malloc(n ? n : 1); }
void* _ZnamRKSt9nothrow_t(size_t n, const void* t) { (void)t; NOTE(); return __libc_malloc(n ? n : 1); }
"""

COUNTED = """
import ctypes, re, sys
import numpy as np
import kizu
from kizu import _core

shim = ctypes.CDLL(sys.argv[1])
shim.kizu_test_watch.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
shim.kizu_test_count.restype = ctypes.c_long
spans = [line.split()[0].split("-") for line in open("/proc/self/maps") if "/_core." in line]
shim.kizu_test_watch(min(int(a, 16) for a, _ in spans), max(int(b, 16) for _, b in spans))

detector = kizu.load(sys.argv[2], engine="openvino", precision="fp32", threads=2, max_batch=2, cache=sys.argv[3])
rng = np.random.default_rng(0)
frames = [rng.integers(0, 256, (60, 72, 3), np.uint8), rng.integers(0, 256, (90, 50, 3), np.uint8)]
frames.append(frames[1][:, ::-1])
counts = [shim.kizu_test_count()]
for frame in frames:
    detector.score(frame)
    detector.score(frame)
    counts.append(shim.kizu_test_count())
    for _ in range(500):
        detector.score(frame)
    detector.score_batch([frame, frame])
    counts.append(shim.kizu_test_count())
print(*counts)
"""


def test_native_code_allocates_nothing_after_warm_up(bundle_path: Path, engine_cache: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler to count allocations")
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", source, "-o", shim], check=True, capture_output=True)
    printed = python_output(COUNTED, shim, bundle_path, engine_cache, environment={"LD_PRELOAD": str(shim)})
    counts = [int(n) for n in printed.split()]
    assert counts[0] > 0  # loading allocates, so the count does count
    assert counts[3] > counts[2]  # and so does the first frame of a new size
    for before, after in zip(counts[1::2], counts[2::2], strict=True):
        assert after == before


def test_prepare_writes_into_what_the_engine_reads(detector: Detector, frames: Frames) -> None:
    (pipeline,) = detector._pool.pipelines
    assert isinstance(pipeline, CpuPipeline)
    first, second = (detector.score(frame).score for frame in frames[:2])
    assert first != second
    spec = detector.bundle.manifest.prepare
    runner, outputs = pipeline._bound[1]
    np.testing.assert_array_equal(pipeline._input[0], prepare_reference(frames[1], spec))
    pipeline._input[0] = prepare_reference(frames[0], spec)  # behind the pipeline's back
    runner.run()
    assert float(-outputs["logit"][0]) == first


def test_a_graph_that_does_not_fit_the_spec_is_refused(bundle_path: Path) -> None:
    manifest = Bundle.open(bundle_path).manifest
    engine: Any = StubEngine(0.0)
    engine.inputs = (TensorSpec("x", (None, 3, 32, 32)),)
    with pytest.raises(EngineError, match="prepare makes"):
        CpuPipeline(engine, manifest.prepare, "logit", threads=1)
    engine = StubEngine(0.0)
    engine.outputs = (TensorSpec("x_hat", (None, 3, 32, 32)),)
    with pytest.raises(EngineError, match="no output logit"):
        CpuPipeline(engine, manifest.prepare, "logit", threads=1)
    with pytest.raises(ScoreError, match="no scoring rule is called 'guess'"):
        CpuPipeline(StubEngine(0.0), manifest.prepare, "guess", threads=1)  # type: ignore[arg-type]


def test_warm_up_pays_for_a_size_beforehand(bundle_path: Path, engine_cache: Path) -> None:
    with kizu.load(bundle_path, precision="fp32", threads=1, cache=engine_cache) as detector:
        detector.warm_up((700, 300))
        frame = np.zeros((700, 300, 3), np.uint8)
        before = detector.score(frame)
        assert before.score == detector.score(frame).score


def test_a_result_can_be_kept_copied_and_sent(detector: Detector, frames: list[NDArray[np.uint8]]) -> None:
    result = detector.score(frames[0])
    for twin in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert twin == result
        assert twin.timing.engine == result.timing.engine
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.score = 0.0  # type: ignore[misc]


def test_a_warm_up_without_pixels_or_frames_is_refused(detector: Detector) -> None:
    for arguments in ({"frame_shape": (0, 5)}, {"frame_shape": (-1, 5)}, {"batch": 0}):
        with pytest.raises(FrameError, match="must be at least 1"):
            detector.warm_up(**arguments)
