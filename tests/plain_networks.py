"""The networks, batch norm, spectral norm and Adam written out, from weights alone: what training steps must compute.

Parameters are in the order in which a network has them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kizu.layers.spectral import SpectralConv2d
from kizu.method import Method, TrainingState
from kizu.prepare import PrepareSpec, prepare


def leaf(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.detach().clone().requires_grad_()


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


class PlainNetwork:
    """A network's parameters, the running statistics of its batch norms, the vectors of its spectral norms.

    ``iterate`` takes one power iteration and holds the normalised weights for all passes until the next: the count of
    power iterations is part of an algorithm's state.
    """

    def __init__(self, network: nn.Module) -> None:
        self.parameters = [leaf(parameter) for parameter in network.parameters()]
        norms: list[Any] = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        self.means, self.variances = [n.running_mean.clone() for n in norms], [n.running_var.clone() for n in norms]
        spectral = [module for module in network.modules() if isinstance(module, SpectralConv2d)]
        self.left = [layer.u.clone() for layer in spectral]
        self.right = [layer.v.view(*layer.kernel_size, -1).permute(2, 0, 1).flatten() for layer in spectral]
        self.weights = self.parameters

    def iterate(self) -> None:
        """One power iteration of each convolution's weight."""
        self.weights, i = [], 0
        for weight in self.parameters:
            if weight.ndim == 4:
                matrix = weight.flatten(1)
                with torch.no_grad():
                    left = matrix @ self.right[i]
                    self.left[i] = left / left.norm()
                    right = matrix.T @ self.left[i]
                    self.right[i] = right / right.norm()
                weight = weight / (self.left[i] @ matrix @ self.right[i])
                i += 1
            self.weights.append(weight)
        assert i == len(self.left)

    def norm(
        self, i: int, x: Tensor, scale: Tensor, shift: Tensor, *, batch: bool = True, track: bool = True
    ) -> Tensor:
        """Batch norm number i on the statistics of the batch or on the running ones, which ``track`` moves."""
        mean, variance = self.means[i], self.variances[i]
        if batch:
            mean = x.mean((0, 2, 3))
            variance = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
        if track:
            n = x.numel() / x.shape[1]
            self.means[i] = 0.9 * self.means[i] + 0.1 * mean.detach()
            self.variances[i] = 0.9 * self.variances[i] + 0.1 * variance.detach() * n / (n - 1)
        x = (x - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + 1e-5)
        return x * scale[:, None, None] + shift[:, None, None]

    def assert_is(self, network: nn.Module, *, running: bool = True) -> None:
        """A step moves a weight by about 1e-4; in double precision two ways to compute it differ by far less."""
        other = PlainNetwork(network)
        for one, its in zip(self.parameters, other.parameters, strict=True):
            torch.testing.assert_close(its, one, rtol=0, atol=1e-8)
        for one, its in zip(self.left, other.left, strict=True):  # as many power iterations
            torch.testing.assert_close(its, one, rtol=0, atol=1e-7)
        if running:
            for one, its in zip([*self.means, *self.variances], [*other.means, *other.variances], strict=True):
                torch.testing.assert_close(its, one, rtol=1e-6, atol=1e-9)


class PlainG(PlainNetwork):
    """G: transposed convolutions, batch norm, ReLU; tanh."""

    def __call__(self, z: Tensor, *, batch_statistics: bool = True, track: bool = True) -> Tensor:
        x, rest = z[:, :, None, None], iter(self.weights)
        for i in range(len(self.means)):
            x = functional.conv_transpose2d(x, next(rest), stride=1 if i == 0 else 2, padding=0 if i == 0 else 1)
            x = torch.relu(self.norm(i, x, next(rest), next(rest), batch=batch_statistics, track=track))
        x = torch.tanh(functional.conv_transpose2d(x, next(rest), next(rest), stride=2, padding=1))
        assert next(rest, None) is None
        return x


class PlainE(PlainNetwork):
    """E: convolutions, batch norm, LeakyReLU; a convolution over what is left, and batch norm."""

    def __call__(self, x: Tensor) -> Tensor:
        rest, last = iter(self.weights), len(self.means) - 1
        for i in range(last):
            x = functional.conv2d(x, next(rest), stride=2, padding=1)
            x = leaky(self.norm(i, x, next(rest), next(rest)))
        x = self.norm(last, functional.conv2d(x, next(rest)), next(rest), next(rest))
        assert next(rest, None) is None
        return x.flatten(1)


class PlainD(PlainNetwork):
    """D without batch norm, with spectral norm or (f-AnoGAN's critic) without: convolutions, LeakyReLU.

    ALGAN's has one power iteration an update (of D, and of G through D), however many passes an update makes: real,
    fake and buffered images are told apart here in passes of their own.
    """

    def features(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights[:-2:2], self.weights[1:-2:2], strict=True):
            x = leaky(functional.conv2d(x, weight, bias, stride=2, padding=1))
        return x

    def __call__(self, x: Tensor) -> Tensor:
        return functional.conv2d(self.features(x), self.weights[-2], self.weights[-1]).flatten()


class PlainJointD(PlainNetwork):
    """D of pairs (2020, figure 3): convolutions with spectral and batch norm, LeakyReLU; then as the paper has it."""

    def __init__(self, network: nn.Module, conditioning: str) -> None:
        super().__init__(network)
        self.conditioning = conditioning

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        """One pass takes one power iteration."""
        self.iterate()
        rest, concat = iter(self.weights), self.conditioning == "concat"
        halvings = len(self.means) - concat
        for i in range(halvings):
            x = functional.conv2d(x, next(rest), stride=2, padding=1)
            x = leaky(self.norm(i, x, next(rest), next(rest)))
        assert x.shape[2:] == (4, 4)
        if concat:
            joint = next(rest)[:, :, 0, 0]
            of_x, of_z = joint[:, : x.shape[1]], joint[:, x.shape[1] :]
            x = torch.einsum("oc,nchw->nohw", of_x, x) + torch.einsum("oc,nc->no", of_z, z)[:, :, None, None]
            x = leaky(self.norm(halvings, x, next(rest), next(rest)))
            logits = torch.einsum("chw,nchw->n", next(rest)[0], x) + next(rest)
        else:  # equation 13
            h = torch.einsum("nchw,oc->no", x, next(rest)) + next(rest)
            logits = torch.einsum("nc,c->n", h, next(rest)[0]) + next(rest) + torch.einsum("nc,nc->n", h, z)
        assert next(rest, None) is None
        return logits


class PlainAdam:
    """Adam (Kingma and Ba, algorithm 1), written out."""

    def __init__(self, parameters: list[Tensor], rate: float, beta1: float, beta2: float) -> None:
        self.parameters, self.rate, self.betas, self.t = parameters, rate, (beta1, beta2), 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, self.parameters, retain_graph=True)

    def move(self, gradients: tuple[Tensor, ...]) -> None:
        (b1, b2), self.t = self.betas, self.t + 1
        with torch.no_grad():
            for p, g, m, v in zip(self.parameters, gradients, self.first, self.second, strict=True):
                m.copy_(b1 * m + (1 - b1) * g)
                v.copy_(b2 * v + (1 - b2) * g**2)
                p -= self.rate * (m / (1 - b1**self.t)) / (torch.sqrt(v / (1 - b2**self.t)) + 1e-8)

    def step(self, loss: Tensor) -> None:
        self.move(self.gradients(loss))


# --- What the methods' tests share ---


RGB_POOLED = PrepareSpec(size=(32, 32))
RGB = PrepareSpec(size=(32, 32), pool=False)
MONO = PrepareSpec(size=(32, 32), color="mono")
ODD = PrepareSpec(size=(32, 32), pool=False, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def state_of(method: Method, *, seed: int = 0, autocast: bool = False) -> TrainingState:
    """The state of a training that begins."""
    return TrainingState(1, 0, method.optimizers(), torch.Generator().manual_seed(seed), autocast)


def real_images(n: int = 8, spec: PrepareSpec = RGB_POOLED, seed: int = 1) -> Tensor:
    """Prepared frames of noise (N, C, H, W)."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (n, *spec.size, spec.own_channels), np.uint8)
    return torch.from_numpy(np.stack([prepare(frame, spec) for frame in frames]))


def as_input(images: Tensor, spec: PrepareSpec) -> Tensor:
    """Images of a frame's own channels in [-1, 1] in the units of prepared frames, by the definition of these."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    return ((images + 1) / 2 - mean) / std


class Pictures(nn.Module):
    """In place of a generator: always these images."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images

    def forward(self, z: Tensor) -> Tensor:
        assert z.ndim == 2
        return self.images


def assert_reconstructions_are_in_prepared_units(method: Any, generator: str, spec: PrepareSpec) -> None:
    """A generator that draws the frames themselves must leave no residual."""
    frames = np.random.default_rng(3).integers(0, 256, (4, *spec.size, spec.own_channels), np.uint8)
    setattr(method, generator, Pictures(torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1))
    x = torch.from_numpy(np.stack([prepare(frame, spec) for frame in frames]))
    for module in (method.eval(), method.export_module().eval()):
        with torch.no_grad():
            x_hat = module(x)["x_hat"]
        torch.testing.assert_close(x_hat, x, rtol=0, atol=4e-6)


def assert_an_image_is_scored_alone(method: nn.Module, x: Tensor) -> None:
    """Nothing of a batch may change an image's outputs, as it would if a batch norm took its statistics."""
    method.eval()
    with torch.no_grad():
        together, other = method(x), method(torch.cat([x[:1], x[1:] * -3]))
        for i in range(len(x)):
            for name, value in method(x[i : i + 1]).items():
                torch.testing.assert_close(value[0], together[name][i], rtol=1e-4, atol=1e-5)
        for name, value in other.items():
            torch.testing.assert_close(value[0], together[name][0], rtol=1e-4, atol=1e-5)
            assert not torch.equal(value[1:], together[name][1:])


def assert_export_is_the_method(method: Any, x: Tensor) -> None:
    """The exported module computes what the method does, without what only training needs, and holds still."""
    method.eval()
    with torch.no_grad():
        own = method(x)
        method.train()
        before = {name: value.clone() for name, value in method.state_dict().items()}
        module = method.export_module().eval()
        exported = module(x)
        assert list(exported) == list(own)
        for name, value in own.items():
            torch.testing.assert_close(exported[name], value, rtol=1e-5, atol=1e-6)
        assert not any(isinstance(part, SpectralConv2d) for part in module.modules())
        again = module(x)
        assert all(torch.equal(again[name], value) for name, value in exported.items())
        assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
