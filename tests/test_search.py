"""The search for a latent: against automatic differentiation and torch's Adam, in torch and in each engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from helpers import installed
from kizu import variants
from kizu.engine import BuildOptions, CpuEngine
from kizu.layers.dcgan import Generator, halving
from kizu.layers.pooling import ChannelPool
from kizu.layers.search import Search
from kizu.prepare import PrepareSpec
from kizu.variants import Graphs
from rows import ENGINES, EngineRow

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, LATENT, WEIGHT, LR = 32, 7, 0.1, 0.05
# Pixels normalised as they often are, so that x_hat is not G's image itself.
SPEC = PrepareSpec(size=(SIZE, SIZE), pool=False, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
EACH_ENGINE = pytest.mark.parametrize("row", ENGINES, ids=lambda row: row.name)


class Networks:
    """G and the features, with weights and running statistics that make their outputs depend on their inputs."""

    def __init__(self, spec: PrepareSpec = SPEC, *, width: int = 4) -> None:
        torch.manual_seed(0)
        (size, _), channels = spec.size, spec.own_channels
        self.generator = Generator(size=size, channels=channels, latent_dim=LATENT, width=width)
        self.features = nn.Sequential(*halving(channels, [width], norm=False), *halving(width, [2 * width, 3 * width]))
        self.pool = ChannelPool(spec)
        for layer in (*self.generator.modules(), *self.features.modules()):
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                taps = 16 if isinstance(layer, nn.Conv2d) else 4
                nn.init.normal_(layer.weight, 0, (2 / taps / layer.in_channels) ** 0.5)
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2)
        for network in (self.generator, self.features):
            network.eval().requires_grad_(False)

    def search(self, **options: Any) -> Search:
        settings: dict[str, Any] = {"weight": WEIGHT, "steps": 10, "lr": LR, "decay": False, "eps": 1e-8, **options}
        search = Search(self.generator, self.pool, self.features, **settings)
        return search.eval()

    def loss(self, x: Tensor, z: Tensor) -> Tensor:
        """Equation 4 with means, an image at a time."""
        x_hat = self.pool(self.generator(z))
        residual: Tensor = (x - x_hat).abs().mean((1, 2, 3))
        matching: Tensor = (self.features(x) - self.features(x_hat)).abs().mean((1, 2, 3))
        return (1 - WEIGHT) * residual + WEIGHT * matching


def images(n: int, spec: PrepareSpec = SPEC) -> Tensor:
    pixels = torch.rand(n, spec.own_channels, *spec.size, generator=torch.Generator().manual_seed(5))
    made: Tensor = ChannelPool(spec)(2 * pixels - 1)
    return made


def by_autograd(
    networks: Networks, x: Tensor, z0: Tensor, steps: int, *, decay: bool = False, eps: float = 1e-8
) -> list[Tensor]:
    """The latents after each of ten steps at most of a search written as anyone would, image by image."""
    found = []
    for image in x:
        z = z0.clone().requires_grad_(True)
        adam = torch.optim.Adam([z], lr=LR, betas=(0.9, 0.999), eps=eps)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda k: 1 - k / 11 if decay else 1.0)
        path = []
        for _ in range(steps):
            adam.zero_grad()
            networks.loss(image[None], z).sum().backward()  # type: ignore[no-untyped-call]
            adam.step()
            schedule.step()
            path.append(z.detach().clone())
        found.append(path)
    return [torch.cat(of_step) for of_step in zip(*found, strict=True)]


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks()


@pytest.mark.parametrize(("decay", "eps"), [(False, 1e-8), (True, 1e-8), (True, 1e-3)])
def test_ten_steps_are_those_of_autograd_and_adam(networks: Networks, decay: bool, eps: float) -> None:
    search, x = networks.search(decay=decay, eps=eps), images(3)
    expected = by_autograd(networks, x, search.z0, 10, decay=decay, eps=eps)
    with torch.inference_mode():
        state = search.start(x)
        for step, z in enumerate(expected):
            torch.testing.assert_close(state["t"], torch.tensor([step, 1 - 0.9**step, 1 - 0.999**step]).expand(3, 3))
            found = search.step(x, state)
            torch.testing.assert_close(found["loss"], networks.loss(x, state["z"]), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found["x_hat"], networks.pool(networks.generator(state["z"])))
            state |= {name: found[name] for name in ("z", "m", "v", "t")}
            torch.testing.assert_close(state["z"], z, rtol=0, atol=1e-5)
    assert (expected[-1] - search.z0).abs().max() > 0.2  # it went somewhere


def test_the_outputs_are_those_at_the_last_latent(networks: Networks) -> None:
    search, x = networks.search(steps=4), images(2)
    z = by_autograd(networks, x, search.z0, 4)[-1]
    found = search(x)
    x_hat = networks.pool(networks.generator(z))
    assert set(found) == {"x_hat", "f", "f_hat"}
    torch.testing.assert_close(found["x_hat"], x_hat, rtol=0, atol=1e-3)
    torch.testing.assert_close(found["f_hat"], networks.features(x_hat), rtol=0, atol=1e-3)
    torch.testing.assert_close(found["f"], networks.features(x))


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_short_latents_are_searched_and_exported(latent_dim: int) -> None:
    generator = Generator(size=SIZE, channels=3, latent_dim=latent_dim, width=2).eval()
    features = nn.Sequential(*halving(3, [2], norm=False))
    search = Search(generator, ChannelPool(SPEC), features, weight=WEIGHT, steps=2, lr=LR).eval()
    with torch.inference_mode():
        state = search.start(images(2))
        found = search.step(images(2), state)
    assert state["t"].shape == found["t"].shape == (2, 3)
    assert found["z"].shape == (2, latent_dim)
    assert search(images(2))["x_hat"].shape == (2, 3, SIZE, SIZE)
    graphs = variants.iteration(search, 3, SIZE, SIZE)
    assert graphs.start is not None
    made = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in graphs.start.graph.output}
    assert (made["z"], made["t"]) == (latent_dim, 3)


def test_every_search_begins_with_the_latent_of_its_seed(networks: Networks) -> None:
    one, two, other = networks.search(), networks.search(), networks.search(seed=1)
    assert torch.equal(one.z0, two.z0)
    assert not torch.equal(one.z0, other.z0)
    expected = torch.randn(1, LATENT, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one.start(images(3))["z"], expected.expand(3, -1))
    assert "z0" in one.state_dict()


def test_neither_batch_nor_place_matters(networks: Networks) -> None:
    search, x = networks.search(), images(5)
    together = search(x)
    for i in range(5):
        alone = search(x[i : i + 1])
        for name, value in together.items():
            torch.testing.assert_close(alone[name][0], value[i], rtol=0, atol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_loss_falls_at_both_ends_of_lambda(networks: Networks, weight: float) -> None:
    search, x = networks.search(weight=weight), images(2)
    state, losses = search.start(x), []
    for _ in range(30):
        found = search.step(x, state)
        losses.append(found["loss"])
        off, off_f = x - found["x_hat"], state["f"] - found["f_hat"]
        expected = (off if weight == 0 else off_f).abs().mean((1, 2, 3))
        torch.testing.assert_close(found["loss"], expected)
        state |= {name: found[name] for name in ("z", "m", "v", "t")}
    assert (losses[-1] < losses[0] - 0.01).all()


# Early stop


def test_early_stop_keeps_the_outputs_of_each_images_own_step(networks: Networks) -> None:
    x, tolerance, patience = images(4), 0.02, 10
    search = networks.search(steps=100, tolerance=tolerance)
    stops, expected = [], []
    for image in x[:, None]:
        state, losses = search.start(image), []
        for k in range(101):
            found = search.step(image, state)
            losses.append(float(found["loss"]))
            if k >= patience and losses[k - patience] - losses[k] <= tolerance * losses[k - patience]:
                break
            state |= {name: found[name] for name in ("z", "m", "v", "t")}
        stops.append(k)
        expected.append(found["x_hat"][0])
    assert len(set(stops)) > 1
    assert max(stops) < 100
    torch.testing.assert_close(search(x)["x_hat"], torch.stack(expected), rtol=0, atol=1e-3)


def test_pooled_channels_are_refused(networks: Networks) -> None:
    pool = ChannelPool(PrepareSpec(size=(SIZE, SIZE)))
    with pytest.raises(ValueError, match="pooled channels"):
        Search(networks.generator, pool, networks.features, weight=0.1, steps=1, lr=0.1)


# Exported


State = Mapping[str, NDArray[np.float32]]


def arrays(tensors: Any, n: int) -> dict[str, NDArray[np.float32]]:
    return {t.name: np.full((n, *t.shape[1:]), np.nan, np.float32) for t in tensors}


def run(engine: CpuEngine, inputs: State) -> State:
    outputs = arrays(engine.outputs, len(inputs["x"]))
    engine.bind({t.name: np.ascontiguousarray(inputs[t.name]) for t in engine.inputs}, outputs).run()
    return outputs


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., list[CpuEngine]]]:
    with ExitStack() as stack:

        def loaded(row: EngineRow, graphs: Graphs, precision: str = "fp32", *, threads: int = 1) -> list[CpuEngine]:
            """The engines of the start and of the step."""
            engine, options, made = installed(row), BuildOptions(precision, threads=threads, max_batch=4), []
            assert graphs.start is not None
            for name, graph in (("start", graphs.start), ("step", graphs.graph)):
                source, built = tmp_path / f"{name}.onnx", tmp_path / name
                onnx.save(graph, source)
                engine.build(source, built, options)
                made.append(stack.enter_context(engine(built, options)))
            return made

        yield loaded


@pytest.fixture(scope="module")
def exported(networks: Networks) -> Graphs:
    return variants.iteration(networks.search(), 3, SIZE, SIZE)


@pytest.fixture(scope="module")
def exported_half(networks: Networks) -> Graphs:
    return variants.iteration(networks.search(), 3, SIZE, SIZE, half=True)


def test_the_graphs_say_what_they_read_and_write(exported: Graphs, exported_half: Graphs) -> None:
    for graphs in (exported, exported_half):
        assert graphs.start is not None
        names = [
            [value.name for value in values]
            for graph in (graphs.start.graph, graphs.graph.graph)
            for values in (graph.input, graph.output)
        ]
        assert names[0] == ["x"]
        assert names[1] == ["f", "z", "m", "v", "t"]
        assert names[2] == ["x", "f", "z", "m", "v", "t"]
        assert sorted(names[3]) == sorted(["next_z", "next_m", "next_v", "next_t", "x_hat", "f_hat", "loss"])
        for graph in (graphs.start, graphs.graph):
            onnx.checker.check_model(graph, full_check=True)
            for value in (*graph.graph.input, *graph.graph.output):
                tensor = value.type.tensor_type
                assert tensor.elem_type == TensorProto.FLOAT
                assert tensor.shape.dim[0].dim_param
                assert all(dim.dim_value for dim in tensor.shape.dim[1:])
            assert {node.domain for node in graph.graph.node} <= {""}


@EACH_ENGINE
def test_ten_steps_in_an_engine_are_those_of_autograd_and_adam(
    row: EngineRow, networks: Networks, exported: Graphs, load: Any
) -> None:
    start, step = load(row, exported)
    for n in (1, 3):
        x = images(n)
        expected = by_autograd(networks, x, networks.search().z0, 10)
        state = {"x": x.numpy(), **run(start, {"x": x.numpy()})}
        for z in expected:
            found = run(step, state)
            state |= {name: found[f"next_{name}"] for name in ("z", "m", "v", "t")}
            np.testing.assert_allclose(state["z"], z.numpy(), rtol=0, atol=1e-4)


def test_float16_is_the_networks_alone(exported_half: Graphs) -> None:
    """What Adam computes is float32: no float16 tensor lies between its state and the next, but the gradient."""
    graph = onnx.shape_inference.infer_shapes(exported_half.graph).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            assert [({**kinds, **constants})[name] for name in node.input] == [TensorProto.FLOAT16] * len(node.input)
    todo, seen = ["next_z", "next_m", "next_v", "next_t", "loss"], set()
    while todo:  # back to the casts that end the networks
        name = todo.pop()
        if name in seen or name not in made_by:
            continue
        seen.add(name)
        node = made_by[name]
        assert kinds[name] in (TensorProto.FLOAT, TensorProto.INT64), node
        if node.op_type != "Cast":
            todo += node.input
    assert len(seen) > 15
    assert sum(node.op_type in ("Conv", "ConvTranspose") for node in graph.node) == 2 * (4 + 3)


def test_float16_does_not_lose_the_gradient_of_a_large_image() -> None:
    spec = PrepareSpec(size=(256, 256), pool=False)
    search = Networks(spec).search()
    x = images(2, spec)
    state = search.start(x)
    expected = search.step(x, state)["m"]
    with torch.inference_mode():
        half = search.halved()
        found = half.step(x, half.start(x))
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert 0 < expected.abs().max() < 6e-5 * 1000
    error = (found["m"] - expected).norm() / expected.norm()
    assert error < 0.03


def test_float16_reaches_what_float32_does(networks: Networks, exported_half: Graphs, load: Any) -> None:
    (row,) = (row for row in ENGINES if row.name == "onnxruntime")
    start, step = load(row, exported_half, "fp16")
    x = images(2)
    state = {"x": x.numpy(), **run(start, {"x": x.numpy()})}
    for _ in range(11):
        found = run(step, state)
        state |= {name: found[f"next_{name}"] for name in ("z", "m", "v", "t")}
    expected = networks.search()(x)
    np.testing.assert_allclose(found["x_hat"], expected["x_hat"].numpy(), rtol=0, atol=0.05)
    off = np.abs(found["x_hat"] - x.numpy()).mean((1, 2, 3)) - (expected["x_hat"] - x).abs().mean((1, 2, 3)).numpy()
    assert np.abs(off).max() < 2e-3


def test_a_weight_that_float16_cannot_hold_is_refused(networks: Networks) -> None:
    search = networks.search()
    first = search.generator[0]
    assert isinstance(first, nn.ConvTranspose2d)
    with torch.no_grad():
        first.weight[0, 0, 0, 0] = 1e5
    with pytest.raises(variants.ExportError, match="float16 cannot"):
        variants.iteration(search, 3, SIZE, SIZE, half=True)
