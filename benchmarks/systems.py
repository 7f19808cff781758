"""The systems whose prediction time is measured: a method, and what of its settings decides the network's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FEW_STEPS = 10
SEARCH = {"steps": FEW_STEPS}
METHODS = Path(__file__).resolve().parent.parent / "python" / "kizu" / "methods"


@dataclass(frozen=True)
class System:
    """One system at 256 x 256 and its published widths.

    Attributes:
        name: as sides and comparisons are called.
        label: as tables and figures call it.
        method: the method's name.
        config: settings of the method that differ from its defaults.
        alike: labels of the trained systems whose network has this shape, by the names that ``prediction.system_of``
            gives; their time is this one's.
        steps: of the search for a frame's latent; 0: there is none. Its bundle is made, and each engine proved, with
            ``FEW_STEPS``: the graphs are the same, and that is hundreds of searches.
    """

    name: str
    label: str
    method: str
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    alike: Mapping[str, str] = field(default_factory=dict, hash=False)
    steps: int = 0

    @property
    def rounds(self) -> int:
        """Frames that are timed in a turn."""
        return 25 if not self.steps else 2 if self.steps == FEW_STEPS else 1

    @property
    def turns(self) -> int | None:
        """Turns that it takes at most; with the steps of its paper one frame can be a minute."""
        return 1 if self.steps > 100 else None


ALGAN = System("algan_image", "ALGAN-image", "algan_image", alike={"algan_image": "ALGAN-image"})

# The consistency loss trains the same networks to other weights: with and without it a bi-directional GAN takes as
# long, so that its four systems have two shapes. Both are trained with it here.
SYSTEMS = (
    ALGAN,
    System("autoencoder", "AutoEncoder", "autoencoder", alike={"autoencoder": "AutoEncoder"}),
    System(
        "bigan_concat_consistency",
        "BiGAN concatenation (EGBAD), ± consistency",
        "bigan",
        {"conditioning": "concat"},
        alike={"bigan_concat": "EGBAD", "bigan_concat_consistency": "BiGAN concatenation + consistency"},
    ),
    System(
        "bigan_projection_consistency",
        "BiGAN projection, ± consistency",
        "bigan",
        {"conditioning": "projection"},
        alike={
            "bigan_projection": "BiGAN projection",
            "bigan_projection_consistency": "BiGAN projection + consistency",
        },
    ),
    # Half of the 20 epochs train the GAN, half the encoder.
    System("f_anogan", "f-AnoGAN", "f_anogan", {"gan_epochs": 10}, alike={"f_anogan": "f-AnoGAN"}),
    # The steps of the experiments, and of its paper.
    *(
        System(f"anogan_{n}_steps", f"AnoGAN, {n} steps", "anogan", SEARCH, {"anogan": f"AnoGAN, {n} steps"}, steps=n)
        for n in (FEW_STEPS, 500)
    ),
)


def systems() -> tuple[System, ...]:
    """Those whose method there is."""
    return tuple(system for system in SYSTEMS if (METHODS / f"{system.method}.py").exists())


def of_few_steps(system: System) -> System:
    """The system itself, or of a search the one with the same graphs whose bundle is made."""
    return (
        next(other for other in SYSTEMS if other.method == system.method and other.steps == FEW_STEPS)
        if system.steps
        else system
    )
