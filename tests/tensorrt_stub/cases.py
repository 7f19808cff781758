"""What kizu does with TensorRT's bindings, to the last argument; test_tensorrt.py runs this on each package's bindings.

KIZU_BINDINGS names them, KIZU_STUB the library below (stub.c).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stub import BATCH, IO, PLAN, Stub, dims, load, text

from kizu import EngineError, _core, engine_file
from kizu.engine import BuildOptions, DeviceTensor, TensorSpec
from kizu.engines import tensorrt as module
from kizu.engines.tensorrt import ENGINES

trt, STUB = load(os.environ["KIZU_BINDINGS"], Path(os.environ["KIZU_STUB"]))
(Engine,) = (engine for engine in ENGINES if f"{engine.package}_bindings" == os.environ["KIZU_BINDINGS"])
RTX = Engine.name == "tensorrt-rtx"
DEVICE = {"name": "a card", "compute_capability": "8.6", "driver": 13000, "runtime": 13000, "integrated": False}
OPTIONS = BuildOptions("int8", 3, BATCH[2], BATCH[0], BATCH[1])
WORKSPACE, STREAM = 0x7000_0000_0100, 0x5555_0000_1234
TENSORS = {
    "x": DeviceTensor(0x7000_1000_0000, (2, 5, 32, 32), "float32"),
    "logit": DeviceTensor(0x7000_2000_0000, (2,), "float32"),
}
rtx = pytest.mark.skipif(not RTX, reason="only TensorRT-RTX has it")
server = pytest.mark.skipif(RTX, reason="only tensorrt has it")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_no_device", lambda: None)
    monkeypatch.setattr(_core, "cuda_device", lambda: DEVICE, raising=False)


@pytest.fixture(autouse=True)
def stub() -> Iterator[Stub]:
    answers = dict(STUB.answers)
    STUB.answers["context.get_tensor_shape"] = lambda name, *_: TENSORS[text(name)].shape
    STUB.calls.clear()
    yield STUB
    STUB.answers = answers


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "part.onnx").write_bytes(b"a graph")
    return tmp_path / "part.onnx"


@pytest.fixture
def built(graph: Path, tmp_path: Path, stub: Stub) -> Path:
    Engine.build(graph, tmp_path / "part.engine", OPTIONS)
    stub.calls.clear()
    return tmp_path / "part.engine"


def called(name: str) -> list[tuple[int, ...]]:
    return [arguments for called, arguments in STUB.calls if called == name]


def order(*names: str) -> list[str]:
    """These names in the order in which they were called."""
    return [name for name, _ in STUB.calls if name in names]


def says(message: str) -> Any:
    """An answer for which TensorRT tells the logger something first, as it does, and fails."""

    def answer(*arguments: int) -> int:
        log, severity = module._log(trt), trt.ILogger.Severity
        log.log(severity.VERBOSE, "chatter")
        log.log(severity.WARNING, "a warning")
        log.log(severity.ERROR, message)
        return 0

    return answer


# Building


def test_a_build_calls_what_it_must(graph: Path, tmp_path: Path, stub: Stub) -> None:
    parsed: list[bytes] = []

    def parse(address: int, size: int, path: int) -> int:
        parsed.append(ctypes.string_at(address, size))
        return 1

    shapes: list[tuple[str, int, tuple[int, ...]]] = []

    def shape(name: int, which: int, value: int) -> int:
        shapes.append((text(name), which & 0xFF, dims(value)))
        return 1

    with stub.answering(parser__parse=parse, profile__set_shape=shape):
        Engine.build(graph, tmp_path / "part.engine", OPTIONS)
    assert parsed == [b"a graph"]
    assert [arguments[0] & 0xFFFF for arguments in called("builder.set_max_threads")] == [3]
    (flags,) = called("builder.create_network")
    assert flags[0] & 0xFFFFFFFF == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert [arguments[0] & 0xFF for arguments in called("config.clear_flag")] == [int(trt.BuilderFlag.TF32)]
    assert shapes == [("x", which, (n, 5, 32, 32)) for which, n in enumerate(BATCH)]
    assert called("config.set_memory_pool_limit") == called("config.create_timing_cache") == []
    if RTX:
        assert called("config.num_compute_capabilities")[0][0] & 0xFF == 1
        capability, index, _ = called("config.set_compute_capability")[0]
        assert (capability & 0xFFFF, index & 0xFFFF) == (int(trt.ComputeCapability.SM86), 0)
        assert [a[0] & 0xFF for a in called("config.set_flag")] == [int(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)]
    else:
        assert called("config.set_flag") == []
    last = ("profile.set_shape", "config.add_optimization_profile", "builder.build_serialized_network")
    assert order(*last) == [last[0]] * 3 + list(last[1:])
    header, plan = engine_file.read(tmp_path / "part.engine")
    assert bytes(plan) == PLAN
    assert header.inputs == (TensorSpec("x", (None, 5, 32, 32)),)
    assert header.outputs == (TensorSpec("logit", (None,)),)
    assert (header.engine, header.version, header.compute_capability) == (Engine.name, trt.__version__, "8.6")
    assert (header.precision, header.batch) == ("int8", BATCH)


@pytest.mark.parametrize(
    "name",
    [
        "library.builder",
        "builder.create_network",
        "builder.create_builder_config",
        "builder.create_optimization_profile",
        "builder.build_serialized_network",
        "library.parser",
        "parser.parse",
        "profile.set_shape",
        *(["config.set_compute_capability"] if RTX else []),
    ],
)
def test_a_build_that_fails_says_so(name: str, graph: Path, tmp_path: Path, stub: Stub) -> None:
    with (
        stub.answering(**{name.replace(".", "__"): says("no\n  memory")}),
        pytest.raises(EngineError, match=rf"^{Engine.title} could not compile part\.onnx for int8: ") as raised,
    ):
        Engine.build(graph, tmp_path / "part.engine", OPTIONS)
    if name != "parser.parse":  # it has a list of its own
        assert "no memory" in str(raised.value)
    assert "chatter" not in str(raised.value)
    assert "a warning" not in str(raised.value)
    assert not (tmp_path / "part.engine").exists()
    Engine.build(graph, tmp_path / "part.engine", OPTIONS)  # nothing of it is left


def test_a_refused_profile_says_so(graph: Path, tmp_path: Path, stub: Stub) -> None:
    with (
        stub.answering(config__add_optimization_profile=-1),
        pytest.raises(EngineError, match="the batches 1:2:4 are refused"),
    ):
        Engine.build(graph, tmp_path / "part.engine", OPTIONS)


def test_the_parsers_errors_are_all_told(graph: Path, tmp_path: Path, stub: Stub) -> None:
    with (
        stub.answering(parser__parse=0, parser__num_errors=2),
        pytest.raises(EngineError) as raised,
    ):
        Engine.build(graph, tmp_path / "part.engine", OPTIONS)
    code = next(name for name, value in trt.ErrorCode.__members__.items() if int(value) == 8)
    assert str(raised.value).endswith("for int8: " + "; ".join([f"node conv (Conv): {code}, cannot"] * 2))
    assert [arguments[0] & 0xFF for arguments in called("parser.get_error")] == [0, 1]
    with stub.answering(parser__parse=0), pytest.raises(EngineError, match="its parser gives no reason"):
        Engine.build(graph, tmp_path / "part.engine", OPTIONS)


def test_types_that_cannot_be_bound_are_refused(graph: Path, tmp_path: Path, stub: Stub) -> None:
    for kind, name in ((trt.DataType.BF16, "BF16"), (trt.DataType.BOOL, "BOOL")):
        with stub.answering(logit__dtype=int(kind)), pytest.raises(EngineError, match=f"logit is {name} "):
            Engine.build(graph, tmp_path / "part.engine", OPTIONS)
    for kind, name in module._DTYPES.items():
        with stub.answering(logit__dtype=int(getattr(trt.DataType, kind))):
            Engine.build(graph, tmp_path / "part.engine", OPTIONS)
            assert engine_file.read(tmp_path / "part.engine")[0].outputs[0].dtype == name


@server
def test_the_workspace_is_limited(graph: Path, tmp_path: Path, stub: Stub) -> None:
    Engine.build(graph, tmp_path / "part.engine", replace(OPTIONS, workspace=5))
    ((pool, size, _),) = called("config.set_memory_pool_limit")
    assert (pool & 0xFF, size) == (int(trt.MemoryPoolType.WORKSPACE), 5 << 20)


@server
def test_the_timing_cache_is_read_and_extended(graph: Path, tmp_path: Path, stub: Stub) -> None:
    path = tmp_path / "timings"
    options = replace(OPTIONS, timing_cache=str(path))
    read: list[bytes] = []

    def create(address: int, size: int, _: int) -> str:
        read.append(ctypes.string_at(address, size) if size else b"")
        return "->cache"

    with stub.answering(config__create_timing_cache=create):
        for _ in range(2):
            Engine.build(graph, tmp_path / "part.engine", options)
    assert read == [b"", PLAN]
    assert path.read_bytes() == PLAN
    assert (
        order("config.set_timing_cache", "builder.build_serialized_network", "cache.serialize")
        == [
            "config.set_timing_cache",
            "builder.build_serialized_network",
            "cache.serialize",
        ]
        * 2
    )
    assert called("config.set_timing_cache")[0][1] & 0xFF == 0  # a cache of another device is not taken


@server
@pytest.mark.parametrize("name", ["config__create_timing_cache", "config__set_timing_cache"])
def test_a_timing_cache_that_does_not_fit_is_refused_and_kept(
    name: str, graph: Path, tmp_path: Path, stub: Stub
) -> None:
    path = tmp_path / "timings"
    path.write_bytes(b"of another device")
    options = replace(OPTIONS, timing_cache=str(path))
    with (
        stub.answering(**{name: says("it is not mine")}),
        pytest.raises(EngineError, match=r"timings cannot be used: it is not mine; .* name another file"),
    ):
        Engine.build(graph, tmp_path / "part.engine", options)
    assert path.read_bytes() == b"of another device"
    with (
        stub.answering(builder__build_serialized_network=0),
        pytest.raises(EngineError, match="it gives no reason"),
    ):
        Engine.build(graph, tmp_path / "part.engine", options)
    assert path.read_bytes() == b"of another device"
    with pytest.raises(EngineError, match=r"the timing cache .* cannot be used: .*Is a directory"):
        Engine.build(graph, tmp_path / "part.engine", replace(OPTIONS, timing_cache=str(tmp_path)))


def test_options_of_the_other_package_are_refused_by_name(graph: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"compute_capability": "8.6"}
    if RTX:
        options = {"workspace": 5, "timing_cache": "timings"}
    for name, value in options.items():
        with pytest.raises(EngineError, match=f"{Engine.name} has no option {name} .given: {value}.; leave it out"):
            Engine.build(graph, tmp_path / "part.engine", replace(OPTIONS, **{name: value}))
    assert order("library.builder") == []


def test_an_old_release_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Engine.unavailable() is None
    assert Engine.machine() == "a card, compute capability 8.6, driver 13000"
    low, high = Engine.oldest
    for version, fine in ((f"{low}.{high}.0", True), (f"{low}.{high - 1}.9.9", False), (f"{low - 1}.99", False)):
        monkeypatch.setattr(trt, "__version__", version)
        reason = Engine.unavailable()
        assert reason is None if fine else f"{version} is too old; {low}.{high} or newer is needed" in str(reason)


# Loading


def test_a_load_hands_over_the_plan(built: Path, stub: Stub) -> None:
    got: list[bytes] = []

    def deserialize(address: int, size: int, _: int) -> str:
        got.append(ctypes.string_at(address, size))
        return "->engine"

    with stub.answering(runtime__deserialize_cuda_engine=deserialize), Engine(built, OPTIONS) as engine:
        assert got == [PLAN]
        assert engine.workspace == 4096
        assert engine.inputs == (TensorSpec("x", (None, 5, 32, 32)),)
        assert engine.outputs == (TensorSpec("logit", (None,)),)
    engine.close()


@pytest.mark.parametrize(
    "name",
    [
        "library.runtime",
        "runtime.deserialize_cuda_engine",
        *(["engine.create_runtime_config", "options.create_runtime_cache", "options.set_runtime_cache"] if RTX else []),
    ],
)
def test_a_load_that_fails_says_so(name: str, built: Path, stub: Stub) -> None:
    with (
        stub.answering(**{name.replace(".", "__"): says("it is not to be")}),
        pytest.raises(EngineError, match=r"^could not load the compiled engine .*part\.engine: .*it is not to be"),
    ):
        Engine(built, OPTIONS)


@pytest.mark.parametrize(
    ("name", "answer", "reason"),
    [
        ("num_io_tensors", 1, "its plan has .*, but its header says"),
        ("get_tensor_name", lambda i, *_: ("x", "logits")[i], "its plan has .*logits.*, but its header says"),
        ("get_tensor_mode", lambda name, *_: 2, "its plan has"),
        ("get_tensor_shape", lambda name, *_: (-1, 5, 32, 31), "its plan has"),
        ("get_tensor_shape", lambda name, *_: (2, *IO[text(name)][0][1:]), "its plan has"),
        ("get_tensor_dtype", 1, "its plan has .*float16"),
        ("get_tensor_location", 1, "it wants the tensor x in host memory"),
        ("get_tensor_profile_shape", lambda name, _, which: (1 + which, 5, 32, 32), r"takes batches \(1, 2, 3\)"),
    ],
)
def test_a_plan_that_is_not_what_the_header_says_is_refused(
    name: str, answer: Any, reason: str, built: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(IO, "logits", IO["logit"])
    with (
        stub.answering(**{f"engine__{name}": answer}),
        pytest.raises(EngineError, match=rf"^could not load the compiled engine .*: .*{reason}"),
    ):
        Engine(built, OPTIONS)


def test_a_plan_for_one_batch_may_give_it_as_fixed(graph: Path, tmp_path: Path, stub: Stub) -> None:
    options = BuildOptions("fp32", 1, 2, 2, 2)
    Engine.build(graph, tmp_path / "two.engine", options)
    fixed = {
        "engine__get_tensor_profile_shape": lambda name, *_: (2, 5, 32, 32),
        "engine__get_tensor_shape": lambda name, *_: (2, *IO[text(name)][0][1:]),
    }
    with stub.answering(**fixed), Engine(tmp_path / "two.engine", options) as engine:
        assert engine.inputs[0].shape == (None, 5, 32, 32)
        engine.context(TENSORS, WORKSPACE)


# Running


def test_a_context_is_told_everything(built: Path, stub: Stub) -> None:
    shapes: list[tuple[str, tuple[int, ...]]] = []

    def set_shape(name: int, value: int, _: int) -> int:
        shapes.append((text(name), dims(value)))
        return 1

    addresses: dict[str, int] = {}

    def set_address(name: int, address: int, _: int) -> int:
        addresses[text(name)] = address
        return 1

    answers = {"context__set_input_shape": set_shape, "context__set_tensor_address": set_address}
    with stub.answering(**answers), Engine(built, OPTIONS) as engine:
        context = engine.context(TENSORS, WORKSPACE)
        managed = int(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if RTX:
            assert called("engine.create_execution_context")[0][0] == stub.object("options")
            assert called("options.set_execution_context_allocation_strategy")[0][0] & 0xFF == managed
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            assert called("options.dynamic_shapes_kernel_specialization_strategy")[0][0] & 0xFF == int(eager)
            assert called("options.cuda_graph_strategy")[0][0] & 0xFF == int(trt.CudaGraphStrategy.DISABLED)
            assert called("options.set_runtime_cache")[0][0] == stub.object("kernels")
        else:
            assert called("engine.create_execution_context")[0][0] & 0xFF == managed
        assert called("context.set_device_memory")[0][:2] == (WORKSPACE, 4096)
        assert shapes == [("x", (2, 5, 32, 32))]
        assert addresses == {name: tensor.address for name, tensor in TENSORS.items()}
        assert called("context.execute_async_v3") == []
        for _ in range(2):
            context.enqueue(STREAM)
        assert [arguments[0] for arguments in called("context.execute_async_v3")] == [STREAM] * 2
        if RTX:
            assert context.capturable(STREAM)
            assert called("context.is_stream_capturable")[-1][0] == STREAM
            with stub.answering(context__is_stream_capturable=0):
                assert not context.capturable(STREAM)
        else:
            assert context.capturable(STREAM)


@pytest.mark.parametrize(
    ("name", "answer", "reason"),
    [
        ("engine.create_execution_context", 0, "no context can be made: .*out of memory"),
        ("context.active_optimization_profile", -1, "no context can be made"),
        ("context.set_input_shape", 0, "the shape of x is refused: .*out of memory"),
        ("context.get_tensor_shape", (3,), r"x has the shape \(2, 5, 32, 32\), but the engine makes \(3,\)"),
        ("context.get_tensor_shape", (-1, 5, 32, 32), r".*but the engine makes \(-1, 5, 32, 32\)"),
        ("context.set_tensor_address", 0, "the address of x is refused: .*out of memory"),
        ("context.set_device_memory", 0, "out of memory"),
    ],
)
def test_a_context_that_cannot_be_made_says_so(name: str, answer: Any, reason: str, built: Path, stub: Stub) -> None:
    def fails(*arguments: int) -> Any:
        says("out of memory")()
        return answer

    with (
        Engine(built, OPTIONS) as engine,
        stub.answering(**{name.replace(".", "__"): fails}),
        pytest.raises(EngineError, match=f"^{Engine.title} could not bind the tensors: {reason}"),
    ):
        engine.context(TENSORS, WORKSPACE)


def changed(name: str, **fields: Any) -> dict[str, DeviceTensor]:
    return {**TENSORS, name: TENSORS[name]._replace(**fields)}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"x": TENSORS["x"]}, "given are x, but the graph has x, logit"),
        ({**TENSORS, "y": TENSORS["x"]}, "given are x, logit, y"),
        (changed("x", dtype="float16"), r"x is float16 \(2, 5, 32, 32\), but must be float32 \(None, 5, 32, 32\)"),
        (changed("x", shape=(2, 5, 32, 31)), "x is float32"),
        (changed("x", shape=(2, 5, 32)), "x is float32"),
        (changed("logit", shape=(3,)), "the batch is 2 and 3, but the engine was compiled for one of 1 to 4"),
        (
            {"x": TENSORS["x"]._replace(shape=(5, 5, 32, 32)), "logit": TENSORS["logit"]._replace(shape=(5,))},
            "batch is 5",
        ),
        (
            {"x": TENSORS["x"]._replace(shape=(0, 5, 32, 32)), "logit": TENSORS["logit"]._replace(shape=(0,))},
            "batch is 0",
        ),
    ],
)
def test_tensors_that_do_not_fit_never_reach_tensorrt(tensors: Any, reason: str, built: Path, stub: Stub) -> None:
    with Engine(built, OPTIONS) as engine:
        stub.calls.clear()
        with pytest.raises(EngineError, match=reason):
            engine.context(tensors, WORKSPACE)
        assert [name for name, _ in stub.calls if name.startswith(("engine.", "context."))] == []


def test_the_workspace_must_be_there_and_aligned(built: Path, stub: Stub) -> None:
    with Engine(built, OPTIONS) as engine:
        for address in (0, WORKSPACE + 128):
            with pytest.raises(EngineError, match="is not aligned to 256 bytes"):
                engine.context(TENSORS, address)
    with stub.answering(engine__device_memory_size_v2=0), Engine(built, OPTIONS) as engine:
        stub.calls.clear()
        engine.context(TENSORS, 0)
        assert called("context.set_device_memory") == []


def test_a_run_that_fails_says_so(built: Path, stub: Stub) -> None:
    with Engine(built, OPTIONS) as engine:
        context = engine.context(TENSORS, WORKSPACE)
        with (
            stub.answering(context__execute_async_v3=says("the device is lost")),
            pytest.raises(EngineError, match=f"^{Engine.title} could not run: the device is lost$"),
        ):
            context.enqueue(STREAM)
        if RTX:
            assert not built.with_name("part.engine.kernels").exists()
        context.enqueue(STREAM)
        with stub.answering(context__execute_async_v3=0), pytest.raises(EngineError, match="it gives no reason"):
            context.enqueue(STREAM)  # what was said before is not said again


def test_engines_may_be_loaded_and_closed_at_will(built: Path) -> None:
    engines = [Engine(built, OPTIONS) for _ in range(3)]
    contexts = [engine.context(TENSORS, WORKSPACE) for engine in engines for _ in range(2)]
    for context in contexts:
        context.enqueue(STREAM)
    del contexts, context
    for engine in engines:
        engine.close()
        engine.close()


# The kernels that TensorRT-RTX makes at the first run


@rtx
def test_kernels_are_kept_after_the_first_run(built: Path, stub: Stub) -> None:
    file = built.with_name("part.engine.kernels")
    read: list[bytes] = []

    def deserialize(address: int, size: int, _: int) -> int:
        read.append(ctypes.string_at(address, size))
        return 1

    with stub.answering(kernels__deserialize=deserialize):
        for start in range(2):
            with Engine(built, OPTIONS) as engine:
                context = engine.context(TENSORS, WORKSPACE)
                assert file.exists() == (start > 0)
                context.enqueue(STREAM)
                written = file.stat()
                serialized = len(called("kernels.serialize"))
                for again in (context, engine.context(TENSORS, WORKSPACE)):
                    again.enqueue(STREAM)
                assert len(called("kernels.serialize")) == serialized + 1  # once for each context
                assert (file.stat().st_ino, file.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
                del context, again
    assert read == [PLAN]
    assert file.read_bytes()[32:] == PLAN


@rtx
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "refused"])
def test_damaged_kernels_are_made_anew(damage: str, built: Path, stub: Stub) -> None:
    file = built.with_name("part.engine.kernels")
    with Engine(built, OPTIONS) as engine:
        engine.context(TENSORS, WORKSPACE).enqueue(STREAM)
    whole = file.read_bytes()
    changed = {"flipped": whole[:50] + b"!" + whole[51:], "cut": whole[:-1], "empty": b"", "refused": whole}[damage]
    file.write_bytes(changed)
    stub.calls.clear()
    with stub.answering(kernels__deserialize=0), Engine(built, OPTIONS) as engine:
        assert len(called("kernels.deserialize")) == (damage == "refused")
        engine.context(TENSORS, WORKSPACE).enqueue(STREAM)
    assert file.read_bytes() == whole


@rtx
def test_a_folder_that_cannot_be_written_is_only_slower(
    built: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(engine_file, "write_whole", refuse)
    with Engine(built, OPTIONS) as engine:
        engine.context(TENSORS, WORKSPACE).enqueue(STREAM)
    assert len(called("kernels.serialize")) == 1
