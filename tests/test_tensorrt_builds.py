"""TensorRT-RTX itself compiles every exported model, for GPUs that are not there: what it takes, and what it refuses.

Nothing can be loaded without a driver, so what the plans compute is not tested here.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, version_converter

from graphs import residual_graph
from helpers import Trained, digest, python_output, without
from kizu import Bundle, EngineError, engine_file, variants
from kizu.engine import BuildOptions, TensorSpec
from kizu.engines.tensorrt import TensorRt, TensorRtRtx
from kizu.method import Iterated, get
from kizu.prepare import PrepareSpec
from rows import CUDA_ENGINES, METHODS, MethodRow

(ROW,) = (row for row in CUDA_ENGINES if row.name == "tensorrt-rtx")
CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
BATCHES = {"static": (4, 4, 4), "dynamic": (1, 2, 8)}
LARGE = "algan_image at its published widths"
STANDARDISED = "algan_image, standardised"
MODELS = (*(row.id for row in METHODS), "residual", STANDARDISED, LARGE)
DTYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
DEVICE = {"name": "a card", "compute_capability": "8.6", "driver": 13000, "runtime": 13000, "integrated": False}

Graphs = Mapping[str, onnx.ModelProto]


@pytest.fixture(scope="module", autouse=True)
def package() -> Any:
    if importlib.util.find_spec(ROW.package) is None:
        without(f"{ROW.package} is not installed: pip install -c tools/constraints.txt tensorrt-rtx")
    return importlib.import_module(ROW.package)


def in_every_variant(fp32: onnx.ModelProto, shape: tuple[int, int, int]) -> Graphs:
    images = np.random.default_rng(1).standard_normal((4, *shape)).astype(np.float32)
    int8 = variants.int8(fp32, images)
    return {"fp32": fp32, "fp16": variants.fp16(fp32), "int8": int8, "int8+fp16": variants.fp16(int8)}


def untrained(config: Mapping[str, Any], size: int) -> Graphs:
    torch.manual_seed(0)
    spec, method = PrepareSpec(size=(size, size)), get(METHODS[0].name)
    module = method.create(spec, method.config_type(**config)).export_module()
    return in_every_variant(variants.fp32(module, spec.channels, size, size), (spec.channels, size, size))


@pytest.fixture(scope="module")
def models(train_method: Callable[[MethodRow], Trained]) -> Mapping[str, Graphs]:
    """Each model's graph in every variant; those of the rows as their bundles have them."""
    made: dict[str, Graphs] = {}
    for row in METHODS:
        bundle = Bundle.open(train_method(row).bundle)
        wanted = set(TensorRtRtx.variants.values()) & set(bundle.manifest.graphs)
        made[row.id] = {name: onnx.load_from_string(bundle.graph(name)) for name in wanted}
    residual = version_converter.convert_version(onnx.load_from_string(residual_graph()), variants.OPSET)
    made["residual"] = in_every_variant(residual, (5, 32, 32))
    made[STANDARDISED] = untrained({**METHODS[0].config, "standardise": True}, 64)
    made[LARGE] = untrained({}, 256)
    return made


@dataclass(frozen=True)
class Made:
    graph: onnx.ModelProto
    source: Path
    options: BuildOptions
    file: Path


@pytest.fixture
def folder() -> Iterator[Path]:
    """Gone after the test: the plans of all tests would fill a disk."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture
def make(models: Mapping[str, Graphs], folder: Path) -> Any:
    def build(model: str, precision: str, batch: tuple[int, int, int], capability: str, name: str = "part") -> Made:
        graph = models[model][precision]
        source, file = folder / f"{name}.onnx", folder / f"{name}.engine"
        onnx.save(graph, source)
        low, best, high = batch
        options = BuildOptions(precision, 2, high, low, best, capability)
        TensorRtRtx.build(source, file, options)
        return Made(graph, source, options, file)

    return build


def specs(values: Any) -> tuple[TensorSpec, ...]:
    """Inputs or outputs as the ONNX graph declares them."""
    found = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(None if d.HasField("dim_param") else d.dim_value for d in tensor.shape.dim)
        found.append(TensorSpec(value.name, shape, DTYPES[tensor.elem_type]))
    return tuple(found)


def test_the_models_are_those_of_the_rows(models: Mapping[str, Graphs]) -> None:
    assert set(models) == set(MODELS)
    for graphs in models.values():
        assert set(graphs) == set(ROW.precisions) == set(TensorRtRtx.variants.values()) == set(TensorRt.variants)


# The first method's models for every GPU, the others' for one.
FOR = [(model, c) for model in MODELS for c in CAPABILITIES if c == "8.6" or model not in {r.id for r in METHODS[1:]}]


@pytest.mark.parametrize(("model", "capability"), FOR)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("precision", ROW.precisions)
def test_it_compiles(make: Any, package: Any, model: str, precision: str, batch: str, capability: str) -> None:
    made = make(model, precision, BATCHES[batch], capability)
    header, plan = engine_file.read(made.file)
    assert header.inputs == specs(made.graph.graph.input)
    assert header.outputs == specs(made.graph.graph.output)
    assert header.inputs[0].shape[0] is None
    assert (header.engine, header.version) == ("tensorrt-rtx", package.__version__)
    assert (header.precision, header.compute_capability) == (precision, capability)
    assert header.batch == BATCHES[batch]
    assert header.graph == digest(made.source.read_bytes())
    assert (header.plan_size, header.plan_sha256) == (len(plan), digest(bytes(plan)))
    assert len(plan) > 1000
    assert [path.name for path in made.file.parent.iterdir() if path.name.startswith(".")] == []


@pytest.fixture(scope="module")
def search() -> Mapping[str, onnx.ModelProto]:
    """The two graphs of AnoGAN's search in each of its precisions, at its published widths."""
    torch.manual_seed(0)
    spec, method = PrepareSpec(size=(64, 64), pool=False), get("anogan")
    module = method.create(spec, method.config_type(steps=2)).export_module()
    assert isinstance(module, Iterated)
    graphs: dict[str, onnx.ModelProto] = {}
    for precision, half in (("fp32", False), ("fp16", True)):
        made = variants.iteration(module, spec.channels, *spec.size, half=half)
        assert made.start is not None
        graphs |= {f"start {precision}": made.start, f"step {precision}": made.graph}
    return graphs


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("graph", ["start", "step"])
def test_the_graphs_of_an_iteration_compile(
    search: Mapping[str, onnx.ModelProto], folder: Path, graph: str, precision: str, batch: str
) -> None:
    model = search[f"{graph} {precision}"]
    source, file = folder / "part.onnx", folder / "part.engine"
    onnx.save(model, source)
    low, best, high = BATCHES[batch]
    TensorRtRtx.build(source, file, BuildOptions(precision, 2, high, low, best, "8.6"))
    header, _ = engine_file.read(file)
    assert header.inputs == specs(model.graph.input)
    assert header.outputs == specs(model.graph.output)
    assert {tensor.shape[0] for tensor in (*header.inputs, *header.outputs)} == {None}


@pytest.mark.parametrize("precision", ["int8", "int8+fp16"])
@pytest.mark.parametrize("model", MODELS)
def test_every_convolution_but_of_a_concatenation_reads_int8(
    models: Mapping[str, Graphs], model: str, precision: str
) -> None:
    graph = models[model][precision].graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    before = [node for node in models[model]["fp32"].graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert len(convolutions) == len(before) > 3
    for node in convolutions:
        makers = [made_by.get(name) for name in node.input[:2]]
        assert makers in (["DequantizeLinear"] * 2, ["Concat", None]), node.name
    concatenations = [made_by.get(node.input[0]) for node in convolutions].count("Concat")
    assert concatenations == (model in {row.id for row in METHODS if row.config.get("conditioning") == "concat"})


@pytest.mark.parametrize("precision", ["int8", "int8+fp16"])
def test_an_int8_plan_is_about_a_quarter(make: Any, precision: str) -> None:
    sizes = {}
    for p in ("fp32", "fp16", precision):
        sizes[p] = engine_file.read(make(LARGE, p, (1, 1, 16), "8.6", name=p).file)[0].plan_size
    assert sizes["fp32"] > 40e6
    assert sizes[precision] <= 0.35 * sizes["fp32"]
    assert sizes["fp16"] <= 0.55 * sizes["fp32"]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("precision", ROW.precisions)
@pytest.mark.parametrize("model", ["residual", LARGE])
def test_two_builds_give_the_same_bytes(make: Any, model: str, precision: str, batch: str) -> None:
    first, second = (make(model, precision, BATCHES[batch], "8.9", name=name).file for name in ("first", "second"))
    if batch == "dynamic":
        # Its builder numbers the constants of free shapes in whatever order; they are as many and as long.
        one, two = (engine_file.read(file)[0] for file in (first, second))
        assert one == replace(two, plan_sha256=one.plan_sha256)
    else:
        assert first.read_bytes() == second.read_bytes()
    assert make(model, precision, BATCHES[batch], "8.6", name="other").file.read_bytes() != first.read_bytes()


def test_a_build_prints_nothing(make: Any, tmp_path: Path) -> None:
    source = make(METHODS[0].id, "int8+fp16", (1, 1, 2), "8.6").source
    script = """
import sys
from pathlib import Path
from kizu.engine import BuildOptions
from kizu.engines.tensorrt import TensorRtRtx
TensorRtRtx.build(Path(sys.argv[1]), Path(sys.argv[2]), BuildOptions("int8+fp16", compute_capability="8.6"))
"""
    assert python_output(script, source, tmp_path / "quiet.engine") == ""
    assert engine_file.read(tmp_path / "quiet.engine")[0].batch == (1, 1, 1)


# What it says of graphs that it does not take


def onnx_file(path: Path, nodes: list[onnx.NodeProto], shape: list[Any], kind: int = TensorProto.FLOAT) -> Path:
    value = helper.make_tensor_value_info
    made = helper.make_graph(nodes, "odd", [value("x", kind, shape)], [value("y", kind, shape)])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    path.write_bytes(helper.make_model(made, opset_imports=imports, ir_version=9).SerializeToString())
    return path


def refusal(source: Path, **options: Any) -> str:
    with pytest.raises(EngineError) as raised:
        TensorRtRtx.build(source, source.with_suffix(".out"), BuildOptions("fp32", compute_capability="8.6", **options))
    assert not source.with_suffix(".out").exists()
    message = str(raised.value)
    start = f"TensorRT-RTX could not compile {source.name} for fp32: "
    assert message.startswith(start)
    return message.removeprefix(start)


def test_every_error_of_the_parser_is_told_with_node_operator_and_reason(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["h"], name="first odd one", domain="acme"),
        helper.make_node("Relu", ["h"], ["g"], name="fine"),
        helper.make_node("Zonk", ["x"], ["y"], domain="acme"),
    ]
    said = refusal(onnx_file(tmp_path / "odd.onnx", nodes, ["N", 3, 4, 4]))
    first, second = (part for part in said.split("; ") if part.startswith("node"))
    assert first.startswith("node first odd one (Frobnicate): INVALID_NODE, ")
    assert second.startswith("node 2 (Zonk): INVALID_NODE, ")  # it has no name
    assert "Plugin not found" in first
    assert "fine" not in said


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part.onnx").write_bytes(b"not an ONNX file")
    assert "Failed to parse the ONNX model" in refusal(tmp_path / "part.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert refusal(tmp_path / "empty.onnx") == "the graph has 0 inputs and 0 outputs"


def test_only_the_batch_may_be_free(tmp_path: Path) -> None:
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    assert "x is float32 (None, 3, None, 4), but only the batch may be free" in refusal(
        onnx_file(tmp_path / "free.onnx", relu, ["N", 3, "H", 4])
    )
    assert "x is BF16 (None, 3, 4, 4)" in refusal(
        onnx_file(tmp_path / "bf16.onnx", relu, ["N", 3, 4, 4], TensorProto.BFLOAT16)
    )


def test_a_fixed_batch_is_compiled_for_itself_alone(tmp_path: Path) -> None:
    source = onnx_file(tmp_path / "fixed.onnx", [helper.make_node("Relu", ["x"], ["y"])], [2, 3, 4, 4])
    assert "the batches are 1:1:2, but x is fixed to (2, 3, 4, 4)" in refusal(source, max_batch=2)
    options = BuildOptions("fp32", 1, 2, 2, 2, "8.6")
    TensorRtRtx.build(source, tmp_path / "fixed.engine", options)
    assert engine_file.read(tmp_path / "fixed.engine")[0].inputs == (TensorSpec("x", (2, 3, 4, 4)),)


def test_what_the_builder_says_is_told(tmp_path: Path, package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # A limit that RTX cannot keep: its own error, as it reaches the logger. It is why there is no such option.
    source = tmp_path / "part.onnx"
    source.write_bytes(residual_graph())

    def limited(cls: Any, trt: Any, builder: Any, network: Any, config: Any, options: BuildOptions) -> Any:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 0)
        return plan(trt, builder, network, config, options)

    plan = TensorRtRtx._plan
    monkeypatch.setattr(TensorRtRtx, "_plan", classmethod(limited))
    assert "requires workspace memory greater than 0" in refusal(source)


def test_a_limit_of_the_workspace_is_ignored_by_this_package(
    models: Mapping[str, Graphs], package: Any, tmp_path: Path
) -> None:
    # The day this fails, TensorRtRtx.takes may have "workspace".
    class Log(package.ILogger):  # type: ignore[misc]
        lines: list[str] = []  # noqa: RUF012

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)

    def needs(limit: int | None) -> list[str]:
        Log.lines.clear()
        log = Log()
        builder = package.Builder(log)
        network = builder.create_network(1 << int(package.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = package.OnnxParser(network, log)
        assert parser.parse(models[LARGE]["fp32"].SerializeToString())
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(package.ComputeCapability.SM86, 0)
        profile = builder.create_optimization_profile()
        profile.set_shape("x", *((16, 5, 256, 256),) * 3)
        config.add_optimization_profile(profile)
        if limit is not None:
            config.set_memory_pool_limit(package.MemoryPoolType.WORKSPACE, limit)
        assert builder.build_serialized_network(network, config) is not None
        return [line for line in Log.lines if "Scratch" in line or "Activation" in line]

    assert needs(None) == needs(64 << 20)


# Options


@pytest.mark.parametrize("capability", ["8.7", "9.0", "11.0"])
def test_gpus_that_it_has_no_target_for_are_sent_to_tensorrt(capability: str) -> None:
    reason = TensorRtRtx.cannot_build(BuildOptions("fp32", compute_capability=capability))
    assert reason is not None
    for known in CAPABILITIES:
        assert known in reason
    assert f"not for {capability}" in reason
    assert "tensorrt compiles on the device itself" in reason


@pytest.mark.parametrize("capability", ["86", "8.6 ", "", "8", "SM86", "CURRENT", "120", "1.20"])
def test_a_capability_is_written_as_nvidia_does(capability: str) -> None:
    reason = TensorRtRtx.cannot_build(BuildOptions("fp32", compute_capability=capability))
    assert reason is not None
    assert f"not for {capability};" in reason


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_for_a_named_gpu_no_device_is_needed(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kizu.engines.tensorrt._no_device", lambda: "no CUDA driver")
    assert TensorRtRtx.cannot_build(BuildOptions("fp32", compute_capability=capability)) is None
    assert TensorRtRtx.cannot_build(BuildOptions("fp32")) == "no CUDA driver"
    assert TensorRtRtx.unavailable() == "no CUDA driver"


def test_on_a_gpu_that_it_has_no_target_for_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kizu.engines.tensorrt._no_device", lambda: None)
    monkeypatch.setattr("kizu._core.cuda_device", lambda: DEVICE, raising=False)
    assert TensorRtRtx.unavailable() is None
    monkeypatch.setattr("kizu._core.cuda_device", lambda: {**DEVICE, "compute_capability": "8.7"}, raising=False)
    assert "not for 8.7" in str(TensorRtRtx.unavailable())


def test_for_this_machine_it_compiles_for_its_gpu(
    models: Mapping[str, Graphs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kizu.engines.tensorrt._no_device", lambda: None)
    monkeypatch.setattr("kizu._core.cuda_device", lambda: DEVICE, raising=False)
    onnx.save(models["residual"]["fp32"], tmp_path / "part.onnx")
    for name, capability in (("here", None), ("named", "8.6")):
        options = BuildOptions("fp32", compute_capability=capability)
        TensorRtRtx.build(tmp_path / "part.onnx", tmp_path / name, options)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "named").read_bytes()


# Files that must not reach TensorRT


class Reached(Exception):  # noqa: N818
    """The runtime was constructed."""


@pytest.fixture
def intact(make: Any, package: Any, monkeypatch: pytest.MonkeyPatch) -> Made:
    """An engine file on a machine with its GPU, where nothing of TensorRT's runtime can be used unnoticed."""

    def reached(log: Any) -> None:
        raise Reached

    monkeypatch.setattr(package, "Runtime", reached)
    monkeypatch.setattr("kizu.engines.tensorrt._no_device", lambda: None)
    monkeypatch.setattr("kizu._core.cuda_device", lambda: DEVICE, raising=False)
    made: Made = make("residual", "int8", (1, 1, 4), "8.6")
    options = replace(made.options, compute_capability=None)
    with pytest.raises(Reached):
        TensorRtRtx(made.file, options)
    return replace(made, options=options)


def refused(made: Made, engine: type[TensorRtRtx] | type[TensorRt] = TensorRtRtx, **options: Any) -> str:
    with pytest.raises(EngineError) as raised:
        engine(made.file, replace(made.options, **options))
    start = f"could not load the compiled engine {made.file}: "
    assert str(raised.value).startswith(start)
    return str(raised.value).removeprefix(start)


def test_truncated_files_are_refused(intact: Made) -> None:
    data = intact.file.read_bytes()
    for size in (len(data) - 1, len(data) // 2, 700, 300, 44, 43, 12, 9):
        intact.file.write_bytes(data[:size])
        assert "truncated" in refused(intact), size
    intact.file.write_bytes(data + b"\0")
    assert "truncated or damaged" in refused(intact)


def test_damaged_files_are_refused(intact: Made) -> None:
    data = intact.file.read_bytes()
    places = [*range(8, 60), len(data) - 1, *np.random.default_rng(0).integers(60, len(data), 60)]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        intact.file.write_bytes(changed)
        assert "damaged" in refused(intact), place


@pytest.mark.parametrize("data", [b"", b"a text", b"KIZUENG", b"\x08\x09", None], ids=str)
def test_foreign_files_are_refused(intact: Made, data: bytes | None) -> None:
    plan = bytes(engine_file.read(intact.file)[1])
    for content in (data, plan, intact.source.read_bytes()):
        intact.file.unlink()
        if content is not None:
            intact.file.write_bytes(content)
        said = refused(intact)
        assert "no engine file of kizu" in said if content is not None else "No such file" in said
        intact.file.write_bytes(b"")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("engine", "tensorrt", "it is an engine of tensorrt, not of tensorrt-rtx"),
        ("version", "1.7.1.115", "TensorRT-RTX 1.7.1.115 compiled it, and "),
        ("compute_capability", "8.9", "it is for GPUs of compute capability 8.9, and this machine's, a card, has 8.6"),
        ("precision", "fp32", "it was compiled for fp32 and batches (1, 1, 4), not for int8 and (1, 1, 4)"),
        ("batch", (1, 1, 3), "it was compiled for int8 and batches (1, 1, 3)"),
    ],
)
def test_what_was_compiled_for_something_else_is_refused(intact: Made, field: str, value: Any, reason: str) -> None:
    header, plan = engine_file.read(intact.file)
    engine_file.write(intact.file, replace(header, **{field: value}), plan)
    assert reason in refused(intact)


def test_a_header_of_another_format_is_refused(intact: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    header, plan = engine_file.read(intact.file)
    with monkeypatch.context() as patch:
        patch.setattr(engine_file, "FORMAT", 2)
        engine_file.write(intact.file, header, plan)
    assert "it says format 2): another version of kizu wrote it; build it anew" in refused(intact)


def test_another_packages_engine_is_told_apart_without_that_package(intact: Made) -> None:
    assert refused(intact, TensorRt) == "it is an engine of tensorrt-rtx, not of tensorrt"


def test_other_options_than_it_was_built_with_are_refused(intact: Made) -> None:
    assert "not for int8 and (1, 1, 5)" in refused(intact, max_batch=5)
    assert "not for fp16" in refused(intact, precision="fp16")


def test_without_a_device_nothing_is_constructed(intact: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kizu.engines.tensorrt._no_device", lambda: "no CUDA driver: none")
    assert refused(intact) == "no CUDA driver: none"


def test_a_failed_write_leaves_what_was_there(make: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("residual", "fp32", (1, 1, 1), "8.6")
    before = made.file.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(EngineError, match=r"part\.engine cannot be written: .*No space left"):
            TensorRtRtx.build(made.source, made.file, replace(made.options, max_batch=2))
    assert made.file.read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["part.engine", "part.onnx"]
