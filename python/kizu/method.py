"""The contract of a method: what training, export and scoring ask of it."""

from __future__ import annotations

import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from kizu.errors import TrainingError

if TYPE_CHECKING:
    from kizu.prepare import PrepareSpec


@dataclass
class TrainingState:
    """Where training stands when a step is taken.

    Attributes:
        epoch: number of the current epoch, from 1.
        batch_index: number of the current batch within the epoch, from 0.
        optimizers: the method's optimisers by name.
        generator: the only source of randomness of a step.
        autocast: compute the networks in bfloat16.
    """

    epoch: int
    batch_index: int
    optimizers: dict[str, torch.optim.Optimizer]
    generator: torch.Generator
    autocast: bool = False


class Method(nn.Module, ABC):
    """A trainable anomaly detector; its public name is its file's name under ``methods/``.

    Everything that has to survive a checkpoint (networks, latents, replay buffers) is a parameter or a
    buffer of the module, so that ``state_dict`` is the whole of it.
    """

    paper: ClassVar[str]
    scoring: str  # a rule of scoring.py
    weight: float = 0.0  # lambda of the rules that have one, from 0 to 1
    least_batch: ClassVar[int] = 1  # images that a training step needs
    pools: ClassVar[bool] = False  # the input has the maximum and mean over a frame's channels appended
    scored_after: ClassVar[str] = ""  # the setting that says after how many epochs the networks can score; "": at once
    config_type: ClassVar[type]  # a frozen dataclass; its defaults are the paper's
    config: Any
    # By name, fields of TrainingSettings that go together; "paper" is as published, with nothing added.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}

    @property
    def first_scored_epoch(self) -> int:
        """The first epoch at whose end the networks can score."""
        return 1 + int(getattr(self.config, self.scored_after)) if self.scored_after else 1

    @classmethod
    @abstractmethod
    def create(cls, prepare: PrepareSpec, config: Any) -> Method:
        """Build the networks for inputs as ``prepare`` makes them; raises TrainingError for what it cannot take."""

    @abstractmethod
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Make the optimisers, by the name of what they train."""

    def start(self, *, batches: int, batch_size: int) -> None:
        """Allocate the training state for epochs of ``batches`` batches of ``batch_size`` images."""

    @abstractmethod
    def training_step(self, batch: Tensor, state: TrainingState) -> dict[str, Tensor]:
        """Take one batch (N, C, H, W) through all optimisers; return the losses by the paper's names."""

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute exactly what the exported graph computes, by output name."""

    def export_module(self) -> nn.Module:
        """Return the module to export: same ``forward`` as this one, training machinery folded away."""
        return self


# How settings are named that must lie in a range: what holds, and how it is said.
_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "share": (lambda value: 0 <= value <= 1, "lie in [0, 1]"),
    "not_negative": (lambda value: value >= 0, "be at least 0"),
    "below_one": (lambda value: 0 <= value < 1, "be at least 0 and below 1"),
    "counted": (lambda value: value >= 1, "be at least 1"),
    "positive": (lambda value: value > 0, "be greater than 0"),
}


def check_config(config: Any, **ranges: tuple[str, ...]) -> None:
    """Check the settings of a method, a dataclass with defaults.

    Args:
        config: each setting must be of its default's type, finite, and one of its ``Literal``'s choices.
        ranges: names of settings by what they must be: ``share``, ``not_negative``, ``below_one``, ``counted`` (at
            least 1) or ``positive``.

    Raises:
        TrainingError: names the setting, what was given and what is accepted.
    """
    hints = get_type_hints(type(config))
    for item in fields(config):
        value = getattr(config, item.name)
        if get_origin(hints[item.name]) is Literal and value not in get_args(hints[item.name]):
            choices = ", ".join(get_args(hints[item.name]))
            raise TrainingError(f"{item.name} is {value!r}, but must be one of {choices}")
        if type(item.default) is bool and type(value) is not bool:
            raise TrainingError(f"{item.name} is {value!r}, but must be true or false")
        if type(item.default) is int and type(value) is not int:
            raise TrainingError(f"{item.name} is {value!r}, but must be a whole number")
        if type(item.default) is float and (type(value) not in (int, float) or not math.isfinite(value)):
            raise TrainingError(f"{item.name} is {value!r}, but must be a finite number")
    for kind, names in ranges.items():
        holds, said = _RANGES[kind]
        for name in names:
            if not holds(getattr(config, name)):
                raise TrainingError(f"{name} is {getattr(config, name)}, but must {said}")


class Iterated(nn.Module, ABC):
    """A module to export that computes by steps: the line runs ``start`` once and ``step`` again and again.

    Both are exported, so that neither may branch on values; shapes but for the batch's are fixed. An image's results
    depend on that image alone.

    Attributes:
        steps: steps taken (>= 1); the outputs are those at the state that they lead to.
        tolerance: an image stops where its loss has fallen by no more than this share of it over the last
            ``patience`` steps; 0: never.
        patience: of the tolerance (>= 1).
    """

    steps: int
    tolerance: float = 0.0
    patience: int = 10

    @abstractmethod
    def start(self, x: Tensor) -> dict[str, Tensor]:
        """The state at the beginning for inputs x (N, C, H, W), by name; float32, each with the batch first."""

    @abstractmethod
    def step(self, x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The next state and, at the state that is given, the outputs and the "loss" (N,), by name; float32.

        What of the state stays the same for all steps is not returned, but is an output, too.
        """

    @abstractmethod
    def halved(self) -> Iterated:
        """A copy whose networks compute in float16; what the state needs float32 for stays so."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The outputs at the last state: ``step`` is called ``steps`` + 1 times, and its last state is not used."""
        state, losses = self.start(x), []
        going = torch.ones(len(x), dtype=torch.bool)
        outputs: dict[str, Tensor] = {}
        for _ in range(self.steps + 1):
            found = self.step(x, state)
            losses.append(found.pop("loss"))
            same = {name: value for name, value in state.items() if name not in found}
            state |= {name: found.pop(name) for name in state if name in found}
            if not self.tolerance:
                outputs = found
                continue
            outputs = {
                name: torch.where(going.view(-1, *[1] * (value.dim() - 1)), value, outputs.get(name, value))
                for name, value in found.items()
            }
            if len(losses) > self.patience:
                before = losses[-1 - self.patience]
                going &= before - losses[-1] > self.tolerance * before
                if not going.any():
                    break
        return {**same, **outputs}


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Take one step against a loss; returns it detached."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def available() -> list[str]:
    """Names of the methods: the public modules under ``kizu.methods``."""
    import kizu.methods

    return sorted(m.name for m in pkgutil.iter_modules(kizu.methods.__path__) if not m.name.startswith("_"))


def get(name: str) -> type[Method]:
    """Return the method class called ``name`` (its file's name); raises TrainingError with the known names."""
    if name not in available():
        raise TrainingError(f"no method is called {name!r}; known methods: {', '.join(available())}")
    module = importlib.import_module(f"kizu.methods.{name}")
    found: type[Method] = module.METHOD
    return found
