"""Export: what is in a bundle, its graphs, their agreement with torch, thresholds, and what a failure leaves."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image
from torch import nn

import kizu
from helpers import digest, make_parts, read_bundle
from kizu import variants
from kizu.bundle import TOLERANCES, Bundle, precision_of
from kizu.data import Sample, Split, open_dataset
from kizu.engine import engines
from kizu.errors import BundleError, ThresholdError, TrainingError
from kizu.export import GOLDEN_FRAMES, export
from kizu.prepare import prepare
from kizu.run_folder import load_file
from kizu.settings import CHECKPOINT, epoch_file, read_settings
from kizu.training import train
from kizu.variants import ExportError
from training_helpers import tiny

GRAPHS = ("fp32", "fp16", "int8", "int8+fp16")
FALSE_REJECT = 0.1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on colour parts; 12 good images are kept for calibration."""
    folder = tmp_path_factory.mktemp("export")
    data = make_parts(folder / "data", color=True, good=100, bad=8)
    train(tiny(data, epochs=4, batch_size=8, config={"width": 8, "latent_dim": 8}), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def path(run: Path) -> Path:
    """The run's bundle."""
    export(run, run.parent / "part.kizu", false_reject=FALSE_REJECT)
    return run.parent / "part.kizu"


@pytest.fixture(scope="module")
def graphs(path: Path) -> dict[str, onnx.ModelProto]:
    """The bundle's graphs."""
    bundle = Bundle.open(path)
    return {name: onnx.load_from_string(bundle.graph(name)) for name in GRAPHS}


def split_of(run: Path) -> Split:
    chosen = read_settings(run)
    return chosen.divide(chosen.dataset())


def module_of(run: Path, rule: str) -> nn.Module:
    """The picked epoch's network, built without export's help."""
    chosen = read_settings(run)
    module = chosen.create(chosen.prepare(chosen.dataset())).export_module()
    module.load_state_dict(load_file(epoch_file(run, rule))["module"])
    return module.eval()


def inputs_of(run: Path, samples: tuple[Sample, ...]) -> NDArray[np.float32]:
    chosen = read_settings(run)
    spec = chosen.prepare(chosen.dataset())
    return np.stack([prepare(sample.read(), spec) for sample in samples])


def by_torch(run: Path, x: NDArray[np.float32], rule: str = "labelled") -> NDArray[np.float64]:
    with torch.no_grad():
        logits = module_of(run, rule)(torch.from_numpy(x))["logit"]
    scores: NDArray[np.float64] = -logits.numpy().astype(np.float64)
    return scores


def by_onnx(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float64]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logit"], {"x": x})
    return -np.asarray(logits, np.float64)


@pytest.mark.parametrize("standardise", [False, True])
def test_a_run_with_every_addition_scores_on_every_engine_as_in_torch(
    tmp_path: Path, engine_cache: Path, standardise: bool
) -> None:
    data = make_parts(tmp_path / "data", color=True, good=100, bad=8)
    config = {
        "width": 8,
        "latent_dim": 8,
        "cutpaste_weight": 1.0,
        "instance_noise": 0.1,
        "ema_decay": 0.5,
        "standardise": standardise,
    }
    run, path = tmp_path / "run", tmp_path / "part.kizu"
    train(tiny(data, epochs=4, batch_size=8, config=config), run)
    export(run, path, rule="last", false_reject=FALSE_REJECT)
    manifest = Bundle.open(path).manifest
    assert (manifest.training["epoch_rule"], manifest.training["epoch"]) == ("last", 4)
    samples = split_of(run).test[:12]
    expected = by_torch(run, inputs_of(run, samples), "last")
    checked = set()
    for name, engine in engines().items():
        if engine.unavailable() is not None:
            continue
        for precision in engine.variants:
            if engine.unsupported(precision) is not None:
                continue
            with kizu.load(path, engine=name, precision=precision, threads=1, cache=engine_cache) as detector:
                scores = np.array([detector.score(sample.read()).score for sample in samples])
            off = np.abs(scores - expected).max() / manifest.calibration.deviation()
            assert off <= TOLERANCES[precision], (name, precision)
            checked.add((name, precision))
    assert {("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp32"), ("onnxruntime", "fp16")} <= checked


# --- What is inside ---


def test_the_content_of_a_bundle(run: Path, path: Path) -> None:
    manifest, members = read_bundle(path)
    chosen, split = read_settings(run), split_of(run)
    assert manifest["graphs"] == {name: f"graphs/{name}.onnx" for name in manifest["graphs"]}
    assert set(manifest["graphs"]) == set(GRAPHS)
    assert manifest["golden"]["members"] == [f"golden/{i:03}.png" for i in range(GOLDEN_FRAMES)]
    assert set(members) == {*manifest["graphs"].values(), *manifest["golden"]["members"]}
    assert {name: entry["sha256"] for name, entry in manifest["members"].items()} == {
        name: digest(data) for name, data in members.items()
    }
    assert manifest["method"]["name"] == "algan_image"
    assert "ALGAN" in manifest["method"]["paper"]
    assert (manifest["method"]["config"]["width"], manifest["method"]["config"]["sigma"]) == (8, 4.0)
    assert manifest["scoring"] == "logit"
    assert manifest["prepare"]["size"] == [32, 32]
    assert manifest["golden"]["tolerances"] == TOLERANCES
    training = manifest["training"]
    picked = load_file(epoch_file(run, "labelled"))
    assert training["settings"] == chosen.as_dict()
    assert (training["epoch_rule"], training["epoch"], training["epoch_value"]) == (
        "labelled",
        picked["epoch"],
        picked["value"],
    )
    assert training["history"] == load_file(run / CHECKPOINT)["history"]
    assert training["images"] == {
        name: len(getattr(split, name)) for name in ("train", "validation", "calibration", "test")
    }
    assert training["left_out"] == {}
    assert set(training["deviations"]) == {*TOLERANCES, *GRAPHS}


def test_the_calibration_scores_and_thresholds_of_each_precision(run: Path, path: Path) -> None:
    manifest = Bundle.open(path).manifest
    split = split_of(run)
    n = len({sample.group for sample in split.calibration})
    assert n >= 9
    assert set(manifest.calibration.scores) == set(TOLERANCES)
    assert manifest.calibration.pictures == len(split.calibration)
    expected = np.sort(by_torch(run, inputs_of(run, split.calibration)))
    spread = float(np.std(expected))
    for precision, scores in manifest.calibration.scores.items():
        assert len(scores) == n
        assert list(scores) == sorted(scores)
        allowed = 2 * TOLERANCES[precision] * spread + 1e-6
        np.testing.assert_allclose(scores, expected, rtol=0, atol=allowed)
        rank = int(np.ceil(round((n + 1) * (1 - FALSE_REJECT), 9)))
        assert manifest.threshold.values[precision] == sorted(scores)[rank - 1]
    assert len(set(manifest.calibration.scores.values())) == len(TOLERANCES)  # each precision has its own
    assert (manifest.threshold.rule, manifest.threshold.parameter, manifest.threshold.images) == (
        "conformal",
        FALSE_REJECT,
        n,
    )


def test_a_part_photographed_more_than_once_is_calibrated_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from kizu.settings import TrainingSettings

    divide = TrainingSettings.divide

    def grouped(self: TrainingSettings, dataset: Any) -> Split:
        split = divide(self, dataset)
        pairs = tuple(replace(s, group=f"part {i // 2}") for i, s in enumerate(split.calibration))
        return replace(split, calibration=pairs)

    monkeypatch.setattr(TrainingSettings, "divide", grouped)
    export(run, tmp_path / "part.kizu", false_reject=0.2)
    calibration = Bundle.open(tmp_path / "part.kizu").manifest.calibration
    pictures = len(split_of(run).calibration)
    assert calibration.pictures == pictures
    assert {len(scores) for scores in calibration.scores.values()} == {-(-pictures // 2)}


def test_golden_frames_are_real_frames_with_torchs_scores(run: Path, path: Path) -> None:
    bundle = Bundle.open(path)
    frames = list(bundle.golden_frames())
    split = split_of(run)
    known = {sample.read().tobytes() for part in (split.calibration, split.validation) for sample in part}
    assert len(frames) == GOLDEN_FRAMES >= 32
    assert len({frame.tobytes() for frame in frames}) >= 28  # 12 calibration images and 24 of validation
    assert {frame.tobytes() for frame in frames} <= known
    spec = bundle.manifest.prepare
    expected = by_torch(run, np.stack([prepare(frame, spec) for frame in frames]))
    spread = bundle.manifest.calibration.deviation()
    np.testing.assert_allclose(bundle.manifest.golden.scores, expected, rtol=0, atol=1e-4 * spread)


# --- The graphs ---


def test_the_graphs_are_plain_convolutions_with_a_free_batch(graphs: dict[str, onnx.ModelProto]) -> None:
    for name, model in graphs.items():
        assert model.opset_import[0].version >= 19
        (x,), (logit,) = model.graph.input, model.graph.output
        assert (x.name, logit.name) == ("x", "logit")
        dims = x.type.tensor_type.shape.dim
        assert dims[0].dim_param
        assert [d.dim_value for d in dims[1:]] == [5, 32, 32]
        assert logit.type.tensor_type.shape.dim[0].dim_param == dims[0].dim_param
        for value in (x, logit):
            assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        kinds = [node.op_type for node in model.graph.node]
        assert kinds.count("Conv") == 4, name
        # Spectral normalisation divides by a product of matrices and vectors; none of it is left.
        left = set(kinds) - {"Conv", "LeakyRelu", "Reshape", "Flatten", "Cast", "QuantizeLinear", "DequantizeLinear"}
        assert left <= {"Shape", "Concat", "Gather", "Squeeze", "Constant"}, name
        assert not any("parametrizations" in tensor.name for tensor in model.graph.initializer)
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    weights = sum(numpy_helper.to_array(t).size for t in graphs["fp32"].graph.initializer)
    assert weights == pytest.approx(8 * 5 * 16 + 16 * 8 * 16 + 32 * 16 * 16 + 32 * 16 + 57, abs=8)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_gives_the_scores_of_single_images(
    run: Path, graphs: dict[str, onnx.ModelProto], name: str, batch: int
) -> None:
    x = inputs_of(run, split_of(run).test[:batch])
    together = by_onnx(graphs[name], x)
    alone = np.concatenate([by_onnx(graphs[name], x[i : i + 1]) for i in range(batch)])
    assert together.shape == (batch,)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5 if name == "fp32" else 2e-3)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_variants_agree_with_torch_on_frames_not_seen_before(
    run: Path, path: Path, graphs: dict[str, onnx.ModelProto], name: str
) -> None:
    x = inputs_of(run, split_of(run).test)
    spread = Bundle.open(path).manifest.calibration.deviation()
    expected, found = by_torch(run, x), by_onnx(graphs[name], x)
    assert np.abs(found - expected).max() <= TOLERANCES[precision_of(name)] * spread
    if name != "fp32":
        assert np.abs(found - expected).max() > 0  # it is another arithmetic


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


@pytest.mark.parametrize("name", ["int8", "int8+fp16"])
def test_every_convolution_reads_symmetric_int8(graphs: dict[str, onnx.ModelProto], name: str) -> None:
    model = graphs[name]
    made = producers(model)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    real = np.float16 if name == "int8+fp16" else np.float32
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 4
    for conv in convolutions:
        for source in conv.input[:2]:
            assert made[source].op_type == "DequantizeLinear"
            assert tensors[made[source].input[1]].dtype == real  # the scale
        activation, weight = (made[source] for source in conv.input[:2])
        assert made[activation.input[0]].op_type == "QuantizeLinear"
        assert tensors[weight.input[0]].dtype == np.int8
        assert tensors[weight.input[0]].min() >= -127  # -128 has no counterpart
        assert tensors[weight.input[1]].shape == (tensors[weight.input[0]].shape[0],)  # a scale an output channel
        assert tensors[conv.input[2]].dtype == real
    quantising = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in quantising:
        if len(node.input) > 2:
            zero = tensors[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    # What one convolution writes goes through its activation before it is quantised again.
    assert sum(node.op_type == "QuantizeLinear" for node in quantising) == 4


def test_int8_weights_are_those_of_the_network(run: Path, graphs: dict[str, onnx.ModelProto]) -> None:
    model = graphs["int8"]
    made = producers(model)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    layers = [layer for layer in module_of(run, "labelled").modules() if isinstance(layer, nn.Conv2d)]
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for conv, layer in zip(convolutions, layers, strict=True):
        dequantise = made[conv.input[1]]
        scale = tensors[dequantise.input[1]].reshape(-1, 1, 1, 1)
        stored = tensors[dequantise.input[0]].astype(np.float32) * scale
        original = layer.weight.detach().numpy()
        assert np.all(np.abs(stored - original) <= 0.51 * scale)
        assert layer.bias is not None
        np.testing.assert_array_equal(tensors[conv.input[2]], layer.bias.detach().numpy())


def test_fp16_is_half_precision_inside_and_single_at_the_border(graphs: dict[str, onnx.ModelProto]) -> None:
    for name in ("fp16", "int8+fp16"):
        model = graphs[name]
        kinds = {t.name: t.data_type for t in model.graph.initializer}
        assert TensorProto.FLOAT16 in kinds.values()
        assert TensorProto.FLOAT not in kinds.values()
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        inner = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
        for node in model.graph.node:
            if node.op_type in ("Conv", "LeakyRelu"):
                assert inner[node.output[0]] == TensorProto.FLOAT16
        casts = [node for node in model.graph.node if node.op_type == "Cast"]
        assert (list(casts[0].input), casts[0].attribute[0].i) == (["x"], TensorProto.FLOAT16)
        assert (list(casts[-1].output), casts[-1].attribute[0].i) == (["logit"], TensorProto.FLOAT)


class Halves(nn.Module):
    """Chunks are as many as the batch says, which torch takes from its example."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        first, second = torch.cat([x, x]).chunk(2)
        return {"y": first + second}


def test_a_network_that_would_take_one_batch_alone_is_not_exported() -> None:
    with pytest.raises(ExportError, match="fixed the batch of x"):
        variants.fp32(Halves(), 1, 4, 4)


def test_a_weight_beyond_float16_is_an_error_that_names_it(graphs: dict[str, onnx.ModelProto]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(graphs["fp32"])
    tensor = next(t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = 1e5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ExportError, match=r"1e\+05, which float16 cannot"):
        variants.fp16(model)


def test_the_same_run_gives_the_same_bundle(run: Path, path: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "again.kizu", false_reject=FALSE_REJECT)
    one, members = read_bundle(path)
    other, others = read_bundle(tmp_path / "again.kizu")
    assert members == others
    for manifest in (one, other):
        del manifest["training"]["exported"]
    assert one == other


def test_each_rule_exports_its_own_epoch(run: Path, path: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    values = load_file(epoch_file(run, "good"))
    values["module"] = {name: tensor * 0.5 for name, tensor in values["module"].items()}  # tell the two apart
    torch.save({**values, "epoch": 77}, epoch_file(copied, "good"))
    export(copied, tmp_path / "good.kizu", rule="good", false_reject=FALSE_REJECT)
    manifest = Bundle.open(tmp_path / "good.kizu").manifest
    assert (manifest.training["epoch_rule"], manifest.training["epoch"]) == ("good", 77)
    assert manifest.golden.scores != Bundle.open(path).manifest.golden.scores
    checkpoint = load_file(copied / CHECKPOINT)
    del checkpoint["picked"]["labelled"]  # as of a run whose validation images are all good
    torch.save(checkpoint, copied / CHECKPOINT)
    with pytest.raises(TrainingError, match="labelled has picked no epoch"):
        export(copied, tmp_path / "default.kizu", rule="labelled", false_reject=FALSE_REJECT)
    export(copied, tmp_path / "default.kizu", false_reject=FALSE_REJECT)
    assert Bundle.open(tmp_path / "default.kizu").manifest.training["epoch_rule"] == "good"


def test_a_detector_loads_what_was_exported(run: Path, path: Path, tmp_path: Path) -> None:
    frame = split_of(run).test[0].read()
    expected = by_torch(run, inputs_of(run, split_of(run).test[:1]))[0]
    with kizu.load(path, engine="onnxruntime", precision="fp32", threads=1, cache=tmp_path) as detector:
        spread = detector.bundle.manifest.calibration.deviation()
        assert detector.score(frame).score == pytest.approx(expected, abs=1e-3 * spread)


# --- Few images ---


def test_few_images_still_give_32_golden_frames(tmp_path: Path) -> None:
    data = make_parts(tmp_path / "data", color=False, good=11, bad=0)
    train(tiny(data, epochs=1, calibration=0.4), tmp_path / "run")
    split = split_of(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "part.kizu", false_reject=0.5)
    bundle = Bundle.open(tmp_path / "part.kizu")
    frames = list(bundle.golden_frames())
    assert len(frames) == len(bundle.manifest.golden.scores) == GOLDEN_FRAMES
    real = {s.read().tobytes() for part in (split.calibration, split.validation, split.train) for s in part}
    given = {frame.tobytes() for frame in frames}
    assert real <= given
    assert len(given) == GOLDEN_FRAMES  # the others are mirror images of them, each another
    for frame in frames:
        mirrored = [np.ascontiguousarray(m).tobytes() for m in (frame, frame[:, ::-1], frame[::-1], frame[::-1, ::-1])]
        assert real & set(mirrored)


def test_too_few_calibration_images_are_counted_before_any_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = len(split_of(run).calibration)

    def work(*_: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(variants, "fp32", work)
    with pytest.raises(ThresholdError, match=rf"0\.01 needs at least 99 .* there are {n}\..*larger calibration share"):
        export(run, tmp_path / "part.kizu", false_reject=0.01)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ThresholdError, match=r"false-reject rate is 1\.5"):
        export(run, tmp_path / "part.kizu", false_reject=1.5)


def test_the_rate_that_the_message_offers_is_accepted(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ThresholdError) as caught:
        export(run, tmp_path / "part.kizu", false_reject=0.001)
    offered = float(str(caught.value).partition("accept a rate of ")[2].split()[0])
    export(run, tmp_path / "part.kizu", false_reject=offered)
    manifest = Bundle.open(tmp_path / "part.kizu").manifest
    assert manifest.threshold.values["fp32"] == max(manifest.calibration.scores["fp32"])


@pytest.mark.parametrize(("calibration", "there"), [(0.0, "there are none"), (0.1, "there is 1")])
def test_without_calibration_images_there_is_no_export(tmp_path: Path, calibration: float, there: str) -> None:
    data = make_parts(tmp_path / "data", color=False, good=12, bad=0)
    train(tiny(data, epochs=1, calibration=calibration), tmp_path / "run")
    with pytest.raises(ThresholdError, match=f"needs at least 1 .*{there}|at least 2 good calibration images.*{there}"):
        export(tmp_path / "run", tmp_path / "part.kizu", false_reject=0.5)
    with pytest.raises(ThresholdError, match="at least 2 good calibration images"):
        export(tmp_path / "run", tmp_path / "part.kizu", manual=1.0)
    assert not (tmp_path / "part.kizu").exists()


def test_a_threshold_by_hand_needs_no_rate(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "part.kizu", manual=0.25, false_reject=0.001)
    manifest = Bundle.open(tmp_path / "part.kizu").manifest
    assert set(manifest.threshold.values) == set(manifest.calibration.scores) == set(TOLERANCES)
    assert set(manifest.threshold.values.values()) == {0.25}
    assert (manifest.threshold.rule, manifest.threshold.parameter) == ("manual", None)


# --- Failures ---


def shifted(by: float) -> Callable[..., Any]:
    """``variants.fp32`` or another maker whose graph is off by ``by``."""

    def wrap(make: Callable[..., onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
        def made(*arguments: Any, **options: Any) -> onnx.ModelProto:
            model = make(*arguments, **options)
            last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
            tensor = next(t for t in model.graph.initializer if t.name == last.input[2])
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((values + by).astype(values.dtype), tensor.name))
            return model

        return made

    return wrap


def fails(run: Path, folder: Path, error: type[BaseException], match: str) -> None:
    """The export fails, leaves nothing where there was nothing, and an old bundle as it was."""
    for old in (None, b"an old bundle"):
        target = folder / "part.kizu"
        if old is not None:
            target.write_bytes(old)
        with pytest.raises(error, match=match):
            export(run, target, false_reject=FALSE_REJECT)
        assert [(p.name, p.read_bytes()) for p in folder.iterdir()] == ([] if old is None else [("part.kizu", old)])


def test_a_graph_that_disagrees_with_torch_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "fp32", shifted(0.1)(variants.fp32))
    fails(run, tmp_path, ExportError, r"torch and ONNX Runtime disagree.*standard deviations.*0\.001 are allowed")


def test_a_full_disk_leaves_nothing_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, write = [0], zipfile.ZipFile.writestr

    def full(self: Any, *arguments: Any) -> None:
        encoded[0] += 1
        if encoded[0] % 7 == 0:
            raise OSError(28, "No space left on device")
        write(self, *arguments)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    fails(run, tmp_path, BundleError, "No space left")


@pytest.mark.parametrize("off", [10.0, float("nan")])
def test_a_variant_that_disagrees_is_left_out_and_recorded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    monkeypatch.setattr(variants, "int8", shifted(off)(variants.int8))
    done = export(run, tmp_path / "part.kizu", false_reject=FALSE_REJECT)
    manifest = Bundle.open(tmp_path / "part.kizu").manifest
    assert set(done.left_out) == {"int8", "int8+fp16"}
    assert set(manifest.graphs) == {"fp32", "fp16"}
    assert set(manifest.calibration.scores) == set(manifest.threshold.values) == {"fp32", "fp16", "bf16"}
    assert manifest.training["left_out"] == dict(done.left_out)
    assert manifest.training["deviations"] == dict(done.deviations)
    if np.isnan(off):
        assert all("not finite" in reason for reason in done.left_out.values())
    else:
        assert done.deviations["int8"] > TOLERANCES["int8"]
        assert all(f"{done.deviations[name]:.3g}" in reason for name, reason in done.left_out.items())
        assert "0.25 are allowed" in done.left_out["int8"]


def test_a_network_that_float16_cannot_hold_is_exported_without_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfit(model: onnx.ModelProto) -> onnx.ModelProto:
        raise ExportError("weight holds 1e+05, which float16 cannot")

    monkeypatch.setattr(variants, "fp16", unfit)
    done = export(run, tmp_path / "part.kizu", false_reject=FALSE_REJECT)
    assert set(done.left_out) == {"fp16", "int8+fp16"}
    assert set(Bundle.open(tmp_path / "part.kizu").manifest.graphs) == {"fp32", "int8"}


def test_a_network_with_one_score_for_all_is_not_exported(run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    values = load_file(epoch_file(run, "labelled"))
    values["module"] = {name: torch.zeros_like(tensor) for name, tensor in values["module"].items()}
    torch.save(values, epoch_file(copied, "labelled"))
    (tmp_path / "out").mkdir()
    fails(copied, tmp_path / "out", ExportError, "standard deviation of 0")


def test_images_added_after_the_training_are_noticed(tmp_path: Path) -> None:
    data = make_parts(tmp_path / "data", color=False, good=20, bad=0)
    train(tiny(data, epochs=1), tmp_path / "run")
    Image.fromarray(np.full((60, 72), 90, np.uint8)).save(data / "good" / "new.png")
    assert len(open_dataset(data).samples) == 21
    with pytest.raises(TrainingError, match=r"not those of the training.*images that the model has seen"):
        export(tmp_path / "run", tmp_path / "part.kizu", false_reject=0.5)


def test_what_cannot_be_exported_is_refused_at_once(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot be written.*no folder"):
        export(run, tmp_path / "none" / "part.kizu")
    with pytest.raises(ExportError, match=r"cannot be written.*is a folder"):
        export(run, tmp_path)
    with pytest.raises(ExportError, match=r"'best'.*labelled, good, last"):
        export(run, tmp_path / "part.kizu", rule="best")
    with pytest.raises(TrainingError, match="no training run here"):
        export(tmp_path, tmp_path / "part.kizu")
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "settings.json", tmp_path / "begun")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt.*no such file"):
        export(tmp_path / "begun", tmp_path / "part.kizu")
    assert json.loads((tmp_path / "begun" / "settings.json").read_text())["settings"]["size"] == 32


def test_pixels_changed_after_the_training_are_noticed(tmp_path: Path) -> None:
    data = make_parts(tmp_path / "data", color=False, good=20, bad=0)
    settings = tiny(data, epochs=1)
    train(settings, tmp_path / "run")
    changed = settings.divide(settings.dataset()).train[0].path
    assert changed is not None
    pixels = np.array(Image.open(changed))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(changed)
    with pytest.raises(TrainingError, match="not those of the training"):
        export(tmp_path / "run", tmp_path / "part.kizu", false_reject=0.4)
    assert not (tmp_path / "part.kizu").exists()


def test_sums_and_what_follows_them_have_float32s_room_in_float16() -> None:
    """Also where a weight is read on both sides."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "w"], ["a"]),
            helper.make_node("ReduceSum", ["a", "axes"], ["s"], keepdims=0),
            helper.make_node("Mul", ["s", "w"], ["y"]),
        ],
        "sums",
        [value("x", TensorProto.FLOAT, ["N", 4])],
        [value("y", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(np.array([300], np.float32), "w"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    made = variants.fp16(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))
    outputs: Any = ReferenceEvaluator(made).run(None, {"x": np.ones((2, 4), np.float32)})
    assert outputs[0].tolist() == [360000, 360000]  # 65504 is float16's largest
    inner = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(made).graph.value_info}
    assert (inner["a"], inner["s"]) == (TensorProto.FLOAT16, TensorProto.FLOAT)
