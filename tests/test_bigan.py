"""The bi-directional GANs against the paper: equations 6 to 16, algorithm 1, both discriminators, what is scored."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from kizu import variants
from kizu.errors import TrainingError
from kizu.layers.joint import JointDiscriminator
from kizu.layers.losses import discriminator_loss
from kizu.layers.spectral import SpectralConv2d, without_spectral_norm
from kizu.methods.bigan import Bigan, BiganConfig, adversarial_loss, consistency_loss
from kizu.prepare import PrepareSpec
from plain_networks import (
    MONO,
    ODD,
    RGB,
    PlainAdam,
    PlainE,
    PlainG,
    PlainJointD,
    as_input,
    assert_an_image_is_scored_alone,
    assert_export_is_the_method,
    assert_reconstructions_are_in_prepared_units,
    real_images,
    state_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

Floats = NDArray[np.float64]
KINDS = ("concat", "projection")


def make(spec: PrepareSpec = RGB, *, seed: int = 0, **config: Any) -> Bigan:
    torch.manual_seed(seed)
    method = Bigan.create(spec, BiganConfig(**{"width": 4, "latent_dim": 8, **config}))
    method.start(batches=2, batch_size=8)
    return method.train()


def lived_in(method: Bigan, steps: int = 20) -> Bigan:
    """With running statistics of its own layers, as after some training."""
    with torch.no_grad():
        for i in range(steps):
            x, z = real_images(8, RGB, seed=100 + i), torch.randn(8, method.config.latent_dim)
            method.discriminator(x, method.encoder(x))
            method.generator(z)
    return method


# --- Losses ---


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


LOGITS = st.lists(st.floats(-12, 12), min_size=1, max_size=6).map(lambda values: np.array(values, np.float64))


def gradients(loss: Tensor, *tensors: Tensor) -> list[Floats]:
    return [gradient.numpy() for gradient in torch.autograd.grad(loss, tensors)]


@settings(deadline=None)
@given(LOGITS, LOGITS)
def test_equation_6_and_its_gradient(real: Floats, generated: Floats) -> None:
    """log D(x, E(x)) + log(1 - D(G(z), z)) is maximised: a pair of an image and its encoding is labelled 1."""
    pair = [torch.tensor(x, requires_grad=True) for x in (real, generated)]
    loss = discriminator_loss(*pair)
    maximised = np.mean(np.log(sigmoid(real))) + np.mean(np.log(1 - sigmoid(generated)))
    assert loss.item() == pytest.approx(-maximised, rel=1e-6, abs=1e-9)
    of_real, of_generated = gradients(loss, *pair)
    np.testing.assert_allclose(of_real, -(1 - sigmoid(real)) / real.size, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(of_generated, sigmoid(generated) / generated.size, rtol=1e-6, atol=1e-12)


@settings(deadline=None)
@given(LOGITS, LOGITS)
def test_e_and_g_want_the_labels_swapped(real: Floats, generated: Floats) -> None:
    pair = [torch.tensor(x, requires_grad=True) for x in (real, generated)]
    loss = adversarial_loss(*pair)
    maximised = np.mean(np.log(1 - sigmoid(real))) + np.mean(np.log(sigmoid(generated)))
    assert loss.item() == pytest.approx(-maximised, rel=1e-6, abs=1e-9)
    assert loss.item() == pytest.approx(discriminator_loss(-pair[0], -pair[1]).item(), rel=1e-12)
    of_real, of_generated = gradients(loss, *pair)
    np.testing.assert_allclose(of_real, sigmoid(real) / real.size, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(of_generated, -(1 - sigmoid(generated)) / generated.size, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("loss", [discriminator_loss, adversarial_loss])
def test_losses_do_not_saturate(loss: Any) -> None:
    far = [torch.tensor([-1e4, 1e4], requires_grad=True) for _ in range(2)]
    value = loss(*far)
    assert value.item() == pytest.approx(1e4)
    # Half the pairs are as wrong as can be, and each of those has its whole gradient.
    assert [sorted(np.abs(gradient).tolist()) for gradient in gradients(value, *far)] == [[0, 0.5], [0, 0.5]]


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 4),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    latent_dim=st.integers(1, 7),
    norm=st.sampled_from(["mean", "sum"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equations_11_and_12_and_their_gradients(
    n: int, shape: tuple[int, int, int], latent_dim: int, norm: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((n, *size)) for size in (shape, shape, (latent_dim,), (latent_dim,))]
    x, x_hat, z, z_hat = (torch.tensor(array, requires_grad=True) for array in arrays)
    loss = consistency_loss(x, x_hat, z, z_hat, norm=norm)
    of_images = [np.linalg.norm((a - b).ravel(), 1) for a, b in zip(*arrays[:2], strict=True)]
    of_latents = [np.linalg.norm(a - b, 1) for a, b in zip(*arrays[2:], strict=True)]
    counts = (math.prod(shape), latent_dim) if norm == "mean" else (1, 1)
    assert loss.item() == pytest.approx(np.mean(of_images) / counts[0] + np.mean(of_latents) / counts[1], rel=1e-9)
    of_x, of_x_hat, of_z, of_z_hat = gradients(loss, x, x_hat, z, z_hat)
    for got, (a, b), count in ((of_x, arrays[:2], counts[0]), (of_z, arrays[2:], counts[1])):
        np.testing.assert_allclose(got, np.sign(a - b) / n / count, rtol=1e-9)
    np.testing.assert_array_equal(of_x_hat, -of_x)
    np.testing.assert_array_equal(of_z_hat, -of_z)


# --- Algorithm 1 ---


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize(("consistency", "norm"), [(0.0, "mean"), (0.9, "mean"), (0.9, "sum")])
@pytest.mark.parametrize("conditioning", KINDS)
def test_training_steps_are_algorithm_1(conditioning: Any, consistency: float, norm: Any) -> None:
    config = {"conditioning": conditioning, "consistency": consistency, "norm": norm}
    method = make(ODD, **config, lr=2e-4, beta1=0.4, beta2=0.9)
    e, g = PlainE(method.encoder), PlainG(method.generator)
    d = PlainJointD(method.discriminator, conditioning)
    adam_eg = PlainAdam([*e.parameters, *g.parameters], 2e-4, 0.4, 0.9)
    adam_d = PlainAdam(d.parameters, 2e-4, 0.4, 0.9)
    state, rng = state_of(method), torch.Generator().manual_seed(0)
    for j in range(3):
        x = real_images(8, ODD, seed=j).double()
        state.batch_index = j
        losses = method.training_step(x, state)
        z = torch.randn(8, 8, generator=rng)
        z_tilde, x_tilde = e(x), as_input(g(z), ODD)
        real, generated = torch.sigmoid(d(x, z_tilde)), torch.sigmoid(d(x_tilde, z))
        loss_d = -torch.log(real).mean() - torch.log(1 - generated).mean()
        loss_eg = loss_adversarial = -torch.log(1 - real).mean() - torch.log(generated).mean()
        expected = {"loss_D": loss_d, "loss_adversarial": loss_adversarial}
        if consistency:
            of_images = (x - as_input(g(z_tilde), ODD)).abs().sum((1, 2, 3)).mean()
            of_latents = (z - e(x_tilde)).abs().sum(1).mean()
            counts = (3 * 32 * 32, 8) if norm == "mean" else (1, 1)
            expected["loss_consistency"] = of_images / counts[0] + of_latents / counts[1]
            loss_eg = consistency * expected["loss_consistency"] + (1 - consistency) * loss_adversarial
        of_d, of_eg = adam_d.gradients(loss_d), adam_eg.gradients(loss_eg)  # both before either moves
        adam_d.move(of_d)
        adam_eg.move(of_eg)
        assert losses.keys() == expected.keys()
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-7), name
    for plain, network in ((e, method.encoder), (g, method.generator), (d, method.discriminator)):
        plain.assert_is(network)


def test_with_consistency_alone_d_has_no_say_in_e_and_g() -> None:
    weights = []
    for seed in (1, 2):
        method = make(consistency=1.0)
        torch.manual_seed(seed)
        method.discriminator = JointDiscriminator(size=32, channels=3, latent_dim=8, width=4, conditioning="projection")
        method.training_step(real_images(8, RGB), state_of(method))
        weights.append([p.detach() for part in (method.encoder, method.generator) for p in part.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("spec", [RGB, MONO], ids=["rgb", "mono"])
@pytest.mark.parametrize("conditioning", KINDS)
def test_a_step_under_autocast_is_near_the_one_without(spec: PrepareSpec, conditioning: Any) -> None:
    losses = []
    for autocast in (False, True):
        method = make(spec, conditioning=conditioning)
        losses.append(method.training_step(real_images(8, spec), state_of(method, autocast=autocast)))
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in method.parameters())
    exact, rounded = losses
    assert all(value.dtype == torch.float32 for value in rounded.values())
    for name in exact:
        assert float(rounded[name]) == pytest.approx(float(exact[name]), rel=0.03, abs=0.03)
    assert float(rounded["loss_D"]) != float(exact["loss_D"])  # it was computed otherwise


def test_d_learns_to_tell_the_pairs_apart_and_e_and_g_to_reconstruct() -> None:
    """The signs of the game: with E and G at rest the logit of (x, E(x)) rises above that of (G(z), z)."""
    method = make(consistency=0.9, lr=2e-3)
    x = torch.linspace(-0.9, 0.9, 24).view(8, 3, 1, 1).expand(-1, -1, 32, 32)
    state = state_of(method)
    first = method.training_step(x, state)
    for _ in range(40):
        last = method.training_step(x, state)
    assert float(last["loss_consistency"]) < 0.8 * float(first["loss_consistency"])
    method = make(lr=2e-3)
    at_rest = torch.optim.SGD([*method.encoder.parameters(), *method.generator.parameters()], lr=0.0)
    state = state_of(method)
    state.optimizers["EG"] = at_rest
    for _ in range(40):
        losses = method.training_step(x, state)
    assert float(losses["loss_D"]) < 0.5 < 2 < float(losses["loss_adversarial"])


# --- The discriminators ---


def weight_of(layer: Any) -> Floats:
    weight = layer.normalised() if isinstance(layer, SpectralConv2d) else layer.weight
    array: Floats = weight.detach().double().numpy()
    return array


def test_projection_is_equation_13() -> None:
    d: Any = lived_in(make(conditioning="projection")).discriminator.eval()
    x, z = real_images(5, RGB), torch.randn(5, 8)
    with torch.no_grad():
        logits, f = d(x, z)
        phi = d.phi(x)
    assert torch.equal(f, phi)
    h = np.einsum("nchw,oc->no", phi.double().numpy(), weight_of(d.h)) + d.h.bias.detach().numpy()
    expected = h @ weight_of(d.logit_of_h)[0] + d.logit_of_h.bias.item() + np.einsum("nc,nc->n", h, z.numpy())
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_concat_sees_the_latent_at_every_position() -> None:
    d: Any = lived_in(make(conditioning="concat")).discriminator.eval()
    x, z = real_images(5, RGB), torch.randn(5, 8)
    with torch.no_grad():
        logits, f = d(x, z)
        phi = d.phi(x)
    assert f.shape == (5, 16, 4, 4)
    convolution, norm = d.mixed[0], d.mixed[1]
    pair = np.concatenate([phi.double().numpy(), np.tile(z.numpy()[:, :, None, None], (1, 1, 4, 4))], 1)
    mixed = np.einsum("oc,nchw->nohw", weight_of(convolution)[:, :, 0, 0], pair)
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().double().numpy()[:, None, None]
    mean, shift = (value.detach().double().numpy()[:, None, None] for value in (norm.running_mean, norm.bias))
    mixed = (mixed - mean) * scale + shift
    mixed = np.where(mixed > 0, mixed, 0.2 * mixed)
    np.testing.assert_allclose(f.numpy(), mixed, rtol=1e-4, atol=1e-5)
    expected = np.einsum("ochw,nchw->n", weight_of(d.logit), mixed) + d.logit.bias.item()
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conditioning", KINDS)
def test_d_depends_on_each_number_of_the_latent_and_of_the_image(conditioning: Any) -> None:
    d = lived_in(make(conditioning=conditioning)).discriminator.eval()
    x, z = real_images(3, RGB).requires_grad_(), torch.randn(3, 8, requires_grad=True)
    logits, f = d(x, z)
    of_x, of_z = torch.autograd.grad(logits.sum(), (x, z), retain_graph=True)
    assert (of_z != 0).all()
    assert (of_x != 0).float().mean() > 0.99
    for i in range(4):
        for j in range(4):
            (seen,) = torch.autograd.grad(f[:, :, i, j].sum(), z, retain_graph=True, allow_unused=True)
            assert (seen is None) == (conditioning == "projection")
            assert seen is None or bool((seen != 0).all())


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("conditioning", KINDS)
@pytest.mark.parametrize("color", ["rgb", "mono"])
def test_every_size_builds(size: int, conditioning: Any, color: Any) -> None:
    spec = PrepareSpec(size=(size, size), color=color, pool=False)
    method = Bigan.create(spec, BiganConfig(width=1, latent_dim=3, conditioning=conditioning)).eval()
    halvings = int(math.log2(size)) - 2
    spectral = [module for module in method.discriminator.modules() if isinstance(module, SpectralConv2d)]
    plain = [module for module in method.discriminator.modules() if type(module) is nn.Conv2d]
    norms = [module for module in method.discriminator.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not plain  # spectral normalisation is on all of D's convolutions
    assert len(spectral) == halvings + 2 * (conditioning == "concat")
    assert len(norms) == halvings + (conditioning == "concat")
    with torch.no_grad():
        z = method.encoder(torch.zeros(2, spec.channels, size, size))
        assert z.shape == (2, 3)
        outputs = method(torch.zeros(2, spec.channels, size, size))
        assert outputs["x_hat"].shape == (2, spec.own_channels, size, size)
        assert float(outputs["x_hat"].abs().max()) <= 1
        assert outputs["f"].shape[2:] == (4, 4)


def test_the_sum_over_positions_is_far_from_the_end_of_float16() -> None:
    """At the largest size, of pictures such as no training has seen. Sums have 4x4 terms at every size."""
    spec = PrepareSpec(size=(512, 512), pool=False)
    torch.manual_seed(0)
    method = Bigan.create(spec, BiganConfig(width=8, latent_dim=16, score="cross_entropy")).train()
    y, x = torch.meshgrid(torch.linspace(-3, 3, 512), torch.linspace(-3, 3, 512), indexing="ij")
    smooth = [0.6 * torch.exp(-((x - i / 9) ** 2) - y**2) - 0.3 for i in range(4)]
    good = torch.stack(smooth)[:, None].expand(-1, 3, -1, -1) + 0.1 * torch.randn(4, 3, 512, 512)
    for norm in (module for module in method.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():  # statistics of smooth pictures with some grain
        method.discriminator(good, method.encoder(good))
        method.generator(torch.randn(4, 16))
    board = (torch.arange(512)[:, None] + torch.arange(512)) % 2 * 2.0 - 1
    noise = torch.randn(1, 3, 512, 512).sign()
    ones = torch.ones(1, 3, 512, 512)
    images = torch.cat([good[:1], -ones, ones, noise, board.expand(1, 3, -1, -1)])
    module: Any = method.export_module().eval()
    with torch.no_grad():
        logits = module(images)["logit"].numpy()
        sums = module.discriminator.phi(images).sum((2, 3)).abs().amax(1)
    assert float(sums[0]) < float(sums[1:].max()) < 65504 / 10
    spread = np.abs(logits).max()
    graph = variants.fp16(variants.fp32(module, 3, 512, 512))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (by_graph,) = session.run(["logit"], {"x": images.numpy()})
    assert np.isfinite(by_graph).all()
    np.testing.assert_allclose(by_graph, logits, rtol=0, atol=0.02 * spread)
    # ONNX Runtime would hold in float32 what float16 cannot; so the graph itself must say it.
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    after = False
    for node in graph.graph.node:
        after = after or node.op_type == "ReduceSum"
        if node.op_type == "Conv":
            assert not after
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT16
        if after and node.output[0] not in ("x_hat", "view"):
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT, node.name


# --- What is exported and scored ---


@pytest.mark.parametrize("score", ["feature_matching", "cross_entropy"])
@pytest.mark.parametrize("conditioning", KINDS)
def test_the_outputs_are_what_the_score_reads(conditioning: Any, score: Any) -> None:
    method = lived_in(make(ODD, conditioning=conditioning, score=score, weight=0.3)).eval()
    assert method.scoring == {"feature_matching": "residual_feature", "cross_entropy": "residual_logit"}[score]
    assert method.weight == 0.3
    x = real_images(5, ODD)
    with torch.no_grad():
        outputs = method(x)
        z = method.encoder(x)
        x_hat = as_input(method.generator(z), ODD)
        logit, f = method.discriminator(x, z)
        _, f_hat = method.discriminator(x_hat, z)
    expected = {"x_hat": x_hat}
    expected |= {"f": f, "f_hat": f_hat} if score == "feature_matching" else {"logit": logit}
    assert list(outputs) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value, rtol=1e-4, atol=1e-5)
    assert_export_is_the_method(method, x)
    assert_an_image_is_scored_alone(method, x)


# --- The average ---


def acting(method: Bigan) -> list[Tensor]:
    """Weights as they act, of E, G and D."""
    networks = (method.encoder, method.generator, without_spectral_norm(method.discriminator))
    return [value.detach().clone() for network in networks for value in network.parameters()]


@pytest.mark.parametrize("limit", [0.3, 0.99])  # from the third step on, and never reached
@pytest.mark.parametrize("conditioning", KINDS)
def test_the_average_is_that_of_what_acts(conditioning: Any, limit: float) -> None:
    config = {"conditioning": conditioning, "consistency": 0.5, "lr": 1e-2}
    method, plain = make(**config, ema_decay=limit), make(**config)
    expected = acting(method)
    states = state_of(method), state_of(plain)
    for t in range(1, 5):
        x = real_images(8, RGB, seed=t)
        for each, state in zip((method, plain), states, strict=True):
            each.training_step(x, state)
        decay = min(limit, (1 + t) / (10 + t))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, acting(method), strict=True)]
    for value, wanted in zip(method.averaged.parameters(), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
        assert not value.requires_grad
    # It watches the networks and does not change how they learn.
    assert all(torch.equal(a, b) for a, b in zip(acting(method), acting(plain), strict=True))


def test_the_averages_statistics_are_of_what_passes_through_it_when_it_scores() -> None:
    method = make(conditioning="concat", ema_decay=0.9, lr=1e-2)
    state = state_of(method)
    x = real_images(8, RGB)
    for _ in range(60):  # at weights that hardly move any more, running statistics are those of the batch
        method.training_step(x, state)
        for optimizer in state.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] *= 0.8
    seen: dict[nn.Module, Tensor] = {}

    def see(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[norm] = given[0].mean((0, 2, 3))

    for layer in method.averaged.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(see)
    with torch.no_grad():
        method.train()(x)  # E sees x, G sees E(x), D sees both pairs
    norms = [layer for layer in method.averaged.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == len(seen) > 8
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        off = (norm.running_mean - seen[norm]).abs() / (norm.running_var + norm.eps).sqrt()
        assert float(off.max()) < 0.05


def test_the_average_scores_and_is_exported() -> None:
    method = make(ODD, ema_decay=0.9, lr=1e-2)
    state = state_of(method)
    for j in range(6):
        method.training_step(real_images(8, ODD, seed=j), state)
    plain = make(ODD, seed=3).eval()
    plain.discriminator = without_spectral_norm(plain.discriminator)
    for network, average in zip((plain.encoder, plain.generator, plain.discriminator), method.averaged, strict=True):
        network.load_state_dict(average.state_dict())
    x = real_images(5, ODD)
    method.eval()
    with torch.no_grad():
        found, expected = method(x), plain(x)
        trained = make(ODD, lr=1e-2).eval()
        trained.load_state_dict(method.state_dict(), strict=False)
        without = trained(x)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found[name], without[name], atol=1e-3), "the trained networks score"
    assert_export_is_the_method(method, x)


@pytest.mark.parametrize("spec", [RGB, MONO, ODD], ids=["rgb", "mono", "odd"])
def test_reconstructions_are_in_prepared_units(spec: PrepareSpec) -> None:
    assert_reconstructions_are_in_prepared_units(make(spec), "generator", spec)


# --- Settings and state ---


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("conditioning", "both", "conditioning is 'both'.*concat, projection"),
        ("norm", "max", "norm is 'max'.*sum, mean"),
        ("score", "logit", "score is 'logit'.*feature_matching, cross_entropy"),
        ("consistency", -0.1, r"consistency is -0.1.*\[0, 1\]"),
        ("consistency", 1.1, r"consistency is 1.1.*\[0, 1\]"),
        ("consistency", float("nan"), "consistency is nan.*finite"),
        ("weight", 2, r"weight is 2.*\[0, 1\]"),
        ("weight", "0.1", "weight is '0.1'.*number"),
        ("width", 0, "width is 0.*at least 1"),
        ("latent_dim", 2.5, "latent_dim is 2.5.*whole number"),
        ("latent_dim", True, "latent_dim is True.*whole number"),
        ("lr", 0.0, "lr is 0.0.*greater than 0"),
        ("lr", float("inf"), "lr is inf.*finite"),
        ("beta1", 1.0, "beta1 is 1.0.*below 1"),
        ("beta2", -0.5, "beta2 is -0.5"),
        ("ema_decay", 1.0, "ema_decay is 1.0.*below 1"),
        ("ema_decay", -0.1, "ema_decay is -0.1.*at least 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        BiganConfig(**{name: value})


def test_the_defaults_are_the_papers() -> None:
    config = BiganConfig()
    assert (config.conditioning, config.consistency, config.score) == ("projection", 0.9, "feature_matching")
    groups = {name: optimizer.param_groups[0] for name, optimizer in make().optimizers().items()}
    assert {name: (group["lr"], group["betas"]) for name, group in groups.items()} == {
        "EG": (1e-4, (0.9, 0.999)),
        "D": (1e-4, (0.9, 0.999)),
    }
    assert Bigan.presets["egbad"] == {"config": {"conditioning": "concat", "consistency": 0.0}}


def test_every_weight_has_one_optimiser() -> None:
    method = make(conditioning="concat")
    held = [p for o in method.optimizers().values() for group in o.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(method.parameters()))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("conditioning", KINDS)
def test_all_state_travels_in_the_state_dict(conditioning: Any, ema_decay: float) -> None:
    one = make(conditioning=conditioning, ema_decay=ema_decay)
    state = state_of(one)
    for j in range(3):
        one.training_step(real_images(8, RGB, seed=j), state)
    other = make(conditioning=conditioning, ema_decay=ema_decay, seed=9)
    other.load_state_dict(one.state_dict())
    state_other = state_of(other)
    for name, optimizer in state_other.optimizers.items():
        optimizer.load_state_dict(copy.deepcopy(state.optimizers[name].state_dict()))
    state_other.generator.set_state(state.generator.get_state())
    for j in range(3):
        x = real_images(8, RGB, seed=10 + j)
        losses = [method.training_step(x, s) for method, s in ((one, state), (other, state_other))]
        assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
