"""The sub-pixel form of transposed convolutions: the same function, nothing else rewritten, and who runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from helpers import make_parts
from kizu import export as exporting
from kizu import variants
from kizu.bundle import TOLERANCES, Bundle, precision_of
from kizu.compiled import compiled, options_for, precisions
from kizu.engine import BuildOptions, CpuEngine, Engine, engines
from kizu.engines.onnxruntime import OnnxRuntime
from kizu.engines.openvino import OpenVino
from kizu.export import export
from kizu.layers.dcgan import Generator
from kizu.methods.algan_image import AlganImage
from kizu.subpixel import subpixel
from kizu.training import train
from training_helpers import tiny

Array = NDArray[np.float32]
FITTING: dict[str, Any] = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def transposed(
    weights: NDArray[Any], bias: NDArray[Any] | None = None, *, constant: bool = True, **attributes: Any
) -> onnx.ModelProto:
    """x (N, C, H, W) -> y, one ConvTranspose; with ``constant`` false its weights are an input with a default."""
    held = [numpy_helper.from_array(weights, "w")] + ([] if bias is None else [numpy_helper.from_array(bias, "b")])
    node = helper.make_node("ConvTranspose", ["x", "w", "b"][: len(held) + 1], ["y"], **{**FITTING, **attributes})
    kind = helper.np_dtype_to_tensor_dtype(weights.dtype)
    rank = weights.ndim
    value = helper.make_tensor_value_info
    inputs = [value("x", kind, ["N", weights.shape[0], *(["H", "W", "D"][: rank - 2])])]
    if not constant:
        inputs.append(value("w", kind, weights.shape))
    outputs = [value("y", kind, ["N", "C", "P", "Q", "R"][:rank])]
    graph = helper.make_graph([node], "one", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", variants.OPSET)], ir_version=10)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def by_onnxruntime(model: onnx.ModelProto, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 3),
    n_in=st.integers(1, 9),
    n_out=st.integers(1, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_torchs_transposed_convolution(
    n: int, n_in: int, n_out: int, height: int, width: int, bias: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, n_in, height, width)).astype(np.float32)
    w = (rng.standard_normal((n_in, n_out, 4, 4)) / np.sqrt(4 * n_in)).astype(np.float32)
    b = rng.standard_normal(n_out).astype(np.float32) if bias else None
    rewritten = subpixel(transposed(w, b))
    assert rewritten is not None
    assert kinds(rewritten) == ["Conv", "DepthToSpace"]
    images, kernels = torch.from_numpy(x).double(), torch.from_numpy(w).double()
    biases = None if b is None else torch.from_numpy(b).double()
    expected = torch.nn.functional.conv_transpose2d(images, kernels, biases, stride=2, padding=1).numpy()
    (by_reference,) = ReferenceEvaluator(rewritten).run(None, {"x": x})
    for y in (by_onnxruntime(rewritten, x=x)["y"], np.asarray(by_reference)):
        assert y.shape == expected.shape == (n, n_out, 2 * height, 2 * width)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


def test_each_weight_is_moved_and_none_is_changed() -> None:
    """In integers the two are equal, not only close; each of the 16 weights of a pair of channels is there once."""
    rng = np.random.default_rng(5)
    w = rng.permutation(np.arange(1, 3 * 2 * 16 + 1)).reshape(3, 2, 4, 4).astype(np.float32)
    x = rng.integers(-9, 10, (2, 3, 5, 4)).astype(np.float32)
    model = transposed(w)
    rewritten = subpixel(model)
    assert rewritten is not None
    (kernels,) = (numpy_helper.to_array(tensor) for tensor in rewritten.graph.initializer)
    assert kernels.shape == (8, 3, 3, 3)
    assert sorted(kernels[kernels != 0]) == sorted(w.ravel())
    np.testing.assert_array_equal(by_onnxruntime(rewritten, x=x)["y"], by_onnxruntime(model, x=x)["y"])


def test_weights_keep_their_type() -> None:
    rewritten = subpixel(transposed(np.ones((2, 3, 4, 4), np.float16), np.ones(3, np.float16)))
    assert rewritten is not None
    assert {tensor.data_type for tensor in rewritten.graph.initializer} == {TensorProto.FLOAT16}


def weights(*shape: int) -> Array:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    "model",
    [
        transposed(weights(2, 3, 4, 4), strides=[1, 1]),
        transposed(weights(2, 3, 4, 4), strides=[2, 1]),
        transposed(weights(2, 3, 4, 4), pads=[0, 0, 0, 0]),
        transposed(weights(2, 3, 4, 4), pads=[1, 1, 1, 0]),
        transposed(weights(2, 3, 4, 4), dilations=[2, 2]),
        transposed(weights(2, 3, 4, 4), group=2),
        transposed(weights(2, 3, 4, 4), output_padding=[1, 1]),
        transposed(weights(2, 3, 4, 4), auto_pad="SAME_UPPER"),
        transposed(weights(2, 3, 4, 4), output_shape=[8, 8]),
        transposed(weights(2, 3, 3, 3), kernel_shape=[3, 3]),
        transposed(weights(2, 3, 2, 2), kernel_shape=[2, 2]),
        transposed(weights(2, 3, 4, 5), kernel_shape=[4, 5]),
        transposed(weights(2, 3, 4), kernel_shape=[4], strides=[2], pads=[1, 1]),
        transposed(weights(2, 3, 4, 4, 4), kernel_shape=[4] * 3, strides=[2] * 3, pads=[1] * 6),
        transposed(weights(2, 3, 4, 4), constant=False),
    ],
    ids=lambda model: str([(a.name, helper.get_attribute_value(a)) for a in model.graph.node[0].attribute]),
)
def test_what_is_another_function_stays(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    assert subpixel(model) is None
    assert model.SerializeToString(deterministic=True) == before


def test_attributes_may_be_left_to_their_defaults_or_spelt_out() -> None:
    model = transposed(weights(2, 3, 4, 4), dilations=[1, 1], group=1, output_padding=[0, 0], auto_pad="NOTSET")
    assert subpixel(model) is not None
    shapeless = transposed(weights(2, 3, 4, 4))
    attributes = shapeless.graph.node[0].attribute
    attributes.remove(next(a for a in attributes if a.name == "kernel_shape"))  # the weights say it
    assert subpixel(shapeless) is not None


def test_a_graph_of_several_inputs_and_outputs_keeps_all_else() -> None:
    """As in a search: weights that another node reads too, two layers of the same weights, and layers that stay."""
    rng = np.random.default_rng(1)
    held = {
        "w": rng.standard_normal((4, 6, 4, 4)).astype(np.float32),
        "small": rng.standard_normal((6, 3, 4, 4)).astype(np.float32),
        "first": rng.standard_normal((5, 4, 4, 4)).astype(np.float32),
        "rate": np.float32(0.1),
    }
    make = helper.make_node
    nodes = [
        make("ConvTranspose", ["z", "first"], ["h"], kernel_shape=[4, 4]),
        make("ConvTranspose", ["h", "w"], ["wide"], **FITTING),
        make("ConvTranspose", ["h2", "w"], ["wide2"], **FITTING),
        make("ConvTranspose", ["wide", "small"], ["x_hat"], **FITTING),
        make("Conv", ["wide", "w"], ["back"], strides=[2, 2], pads=[1] * 4),  # the second layer's gradient
        make("Mul", ["back", "rate"], ["next"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "step",
        [value("z", 1, ["N", 5, 1, 1]), value("h2", 1, ["N", 4, 3, 3])],
        [value(n, 1, ["N", c, f"{n}_h", f"{n}_w"]) for n, c in (("x_hat", 3), ("wide2", 6), ("next", 4), ("wide", 6))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", variants.OPSET)], ir_version=10)
    inputs = {
        "z": rng.standard_normal((2, 5, 1, 1)).astype(np.float32),
        "h2": rng.standard_normal((2, 4, 3, 3)).astype(np.float32),
    }
    before, expected = model.SerializeToString(deterministic=True), by_onnxruntime(model, **inputs)
    every, few = subpixel(model), subpixel(model, most_channels=3)
    assert every is not None
    assert few is not None
    assert subpixel(model, most_channels=2) is None
    assert kinds(every).count("ConvTranspose") == 1
    assert kinds(few).count("ConvTranspose") == 3
    assert {t.name for t in every.graph.initializer} == {"w", "w_subpixel", "small_subpixel", "first", "rate"}
    assert {t.name for t in few.graph.initializer} == {"w", "small_subpixel", "first", "rate"}
    for rewritten in (every, few):
        assert rewritten.graph.input == model.graph.input
        assert rewritten.graph.output == model.graph.output
        found = by_onnxruntime(rewritten, **inputs)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5 * np.abs(values).max())
    assert model.SerializeToString(deterministic=True) == before


class Judged(nn.Module):
    """What ALGAN's discriminator says of an image that a generator makes of it."""

    def __init__(self, discriminator: nn.Module, channels: int) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.encoder = nn.Conv2d(channels, 8, 32)
        self.generator = Generator(size=32, channels=channels, latent_dim=8, width=16)
        self.share = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x_hat: torch.Tensor = self.generator(self.encoder(x).flatten(1))
        logits: torch.Tensor = self.discriminator(x + self.share * x_hat)["logit"]
        return {"logit": logits}


@pytest.mark.parametrize("engine", [OpenVino, OnnxRuntime])
@pytest.mark.parametrize("most_channels", [None, 3])
def test_engines_compute_the_generator_that_torch_computes(
    tmp_path: Path, engine: type[CpuEngine], most_channels: int | None
) -> None:
    torch.manual_seed(3)
    generator = Generator(size=32, channels=3, latent_dim=8, width=8).eval()
    for layer in generator.modules():  # images that use the whole of tanh
        if isinstance(layer, nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, layer.in_channels**-0.5)

    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = generator

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x_hat": self.generator(x.flatten(1))}

    model = subpixel(variants.fp32(Made(), 8, 1, 1), most_channels=most_channels)
    assert model is not None
    assert kinds(model).count("DepthToSpace") == (1 if most_channels else 3)
    onnx.save(model, tmp_path / "graph.onnx")
    options = BuildOptions("fp32", max_batch=4)
    engine.build(tmp_path / "graph.onnx", tmp_path / "built", options)
    x = np.random.default_rng(0).standard_normal((4, 8, 1, 1)).astype(np.float32)
    x_hat = np.empty((4, 3, 32, 32), np.float32)
    with engine(tmp_path / "built", options) as loaded:
        assert isinstance(loaded, CpuEngine)
        loaded.bind({"x": x}, {"x_hat": x_hat}).run()
    with torch.no_grad():
        expected = generator(torch.from_numpy(x).flatten(1)).numpy()
    assert expected.std() > 0.3
    np.testing.assert_allclose(x_hat, expected, rtol=0, atol=1e-5)


def test_an_engine_takes_the_form_that_it_prefers_where_it_is() -> None:
    class Choosy(Engine):
        variants: ClassVar[dict[str, str]] = {"fp32": "fp32", "bf16": "fp32", "int8": "int8"}
        preferred: ClassVar[dict[str, str]] = {"int8": "int8-full", "bf16": "fp32-subpixel"}

    assert Choosy.variant("int8", {"fp32", "int8", "int8-full"}) == "int8-full"
    assert Choosy.variant("int8", {"fp32", "int8"}) == "int8"
    assert Choosy.variant("bf16", {"fp32", "int8-full"}) == "fp32"
    assert Choosy.variant("fp32", {"fp32", "fp32-subpixel"}) == "fp32"
    for engine in engines().values():
        for precision, variant in engine.preferred.items():
            assert precision_of(variant) == engine.variants[precision] != variant


# A bundle whose network has transposed convolutions


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subpixel")
    data = make_parts(folder / "data", color=True, good=60, bad=0)
    train(tiny(data, epochs=1, batch_size=8, config={"width": 8, "latent_dim": 8}), folder / "run")
    return folder / "run"


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export a network that draws an image on the way to its score."""
    plain = AlganImage.export_module

    class Module(Judged):
        def load_state_dict(self, *arguments: Any, **options: Any) -> Any:  # the run's network is within
            return self.discriminator.load_state_dict(*arguments, **options)

    def export_module(self: AlganImage) -> nn.Module:
        module = plain(self)
        torch.manual_seed(11)
        return Module(module, 5).requires_grad_(False)

    monkeypatch.setattr(AlganImage, "export_module", export_module)


@pytest.mark.usefixtures("judged")
def test_the_bundle_has_the_forms_that_engines_prefer(run: Path, tmp_path: Path, engine_cache: Path) -> None:
    done = export(run, tmp_path / "part.kizu", false_reject=0.2)
    bundle = Bundle.open(tmp_path / "part.kizu")
    manifest = bundle.manifest
    wanted = {variant for engine in engines().values() for variant in engine.preferred.values()}
    assert set(manifest.graphs) == {"fp32", "fp16", "int8", "int8+fp16", *wanted}
    assert set(done.deviations) == {*manifest.graphs, "bf16"}
    assert done.left_out == {}
    assert set(manifest.calibration.scores) == set(manifest.threshold.values) == set(TOLERANCES)
    ops = {name: kinds(onnx.load_from_string(bundle.graph(name))) for name in manifest.graphs}
    assert {name: kind.count("DepthToSpace") for name, kind in ops.items()} == {
        "fp32": 1,  # the layer that makes the image
        "fp16": 0,
        "int8": 0,
        "int8+fp16": 0,
        "int8-full": 3,
    }
    assert {name: kind.count("ConvTranspose") for name, kind in ops.items()} == {
        "fp32": 3,
        "fp16": 4,
        "int8": 4,
        "int8+fp16": 4,
        "int8-full": 1,  # from 1x1 to 4x4
    }
    built: list[bytes] = []
    for engine, variant in ((OnnxRuntime, "int8-full"), (OpenVino, "int8")):
        assert "int8" in precisions(bundle, engine)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "build", staticmethod(noting(engine.build, built)))
            options = options_for(engine, manifest.prepare, threads=1, batch=(1, 1, 1))
            entry = compiled(bundle, engine, "int8", options, engine_cache)
        assert entry.proof.refusal is None
        assert built.pop() == bundle.graph(variant)


def noting(build: Callable[..., None], built: list[bytes]) -> Callable[..., None]:
    def call(graph: Path, out: Path, options: BuildOptions) -> None:
        built.append(graph.read_bytes())
        build(graph, out, options)

    return call


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize("other_form", [False, True])
def test_a_form_that_disagrees_is_left_out_and_the_precision_stays(
    run: Path, tmp_path: Path, engine_cache: Path, monkeypatch: pytest.MonkeyPatch, other_form: bool
) -> None:
    """Without its plain variant, which gives a precision its threshold, another form is of no use."""
    make = variants.int8

    def off(model: onnx.ModelProto, inputs: Array, *, between: bool = False) -> onnx.ModelProto:
        made = make(model, inputs, between=between)
        if between == other_form:
            last = [node for node in made.graph.node if node.op_type == "Conv"][-1]
            tensor = next(t for t in made.graph.initializer if t.name == last.input[2])
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(9), tensor.name))
        return made

    monkeypatch.setattr(variants, "int8", off)
    done = export(run, tmp_path / "part.kizu", false_reject=0.2)
    bundle = Bundle.open(tmp_path / "part.kizu")
    manifest = bundle.manifest
    assert manifest.training["left_out"] == done.left_out
    if other_form:
        assert set(done.left_out) == {"int8-full"}
        assert "0.25 are allowed" in done.left_out["int8-full"]
        assert set(manifest.graphs) == {"fp32", "fp16", "int8", "int8+fp16"}
        options = options_for(OnnxRuntime, manifest.prepare, threads=1, batch=(1, 1, 1))
        assert compiled(bundle, OnnxRuntime, "int8", options, engine_cache).proof.refusal is None
    else:
        assert set(done.left_out) == {"int8", "int8+fp16", "int8-full"}
        assert "another form of int8" in done.left_out["int8-full"]
        assert set(manifest.graphs) == {"fp32", "fp16"}
        assert "int8" not in manifest.calibration.scores
        assert precisions(bundle, OnnxRuntime) == ["fp32", "fp16"]


def test_a_network_without_transposed_convolutions_is_not_rewritten(run: Path, tmp_path: Path) -> None:
    assert exporting.export(run, tmp_path / "part.kizu", false_reject=0.2).left_out == {}
    bundle = Bundle.open(tmp_path / "part.kizu")
    assert set(bundle.manifest.graphs) == {"fp32", "fp16", "int8", "int8+fp16"}
    for name in bundle.manifest.graphs:
        assert "DepthToSpace" not in kinds(onnx.load_from_string(bundle.graph(name)))
