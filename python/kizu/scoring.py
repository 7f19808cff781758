"""The scoring rules: from a graph's outputs to one score an image. Higher is more anomalous, everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kizu.errors import ScoreError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from numpy.typing import NDArray

    NonFinite = Literal["error", "reject"]


@dataclass(frozen=True)
class Rule:
    """A scoring rule.

    Attributes:
        name: as written in a bundle.
        outputs: names of the graph's outputs it reads.
    """

    name: str
    outputs: tuple[str, ...]


RULES = {
    # minus the discriminator's logit (ALGAN 2022, equation 8 and figure 5)
    "logit": Rule(name="logit", outputs=("logit",)),
}


def rule(name: str) -> Rule:
    """Return the rule called ``name``; raises ScoreError with the known names."""
    if name not in RULES:
        raise ScoreError(f"no scoring rule is called {name!r}; this version of kizu knows {', '.join(RULES)}")
    return RULES[name]


def score(name: str, outputs: Mapping[str, NDArray[np.float32]], out: NDArray[np.float32]) -> None:
    """Write the scores of a batch by the rule called ``name``.

    Args:
        name: the rule; "logit" reads ``logit`` (N,).
        outputs: the graph's outputs by name, float32.
        out: float32 (N,), written in place; nothing is allocated.
    """
    rule(name)
    np.negative(outputs["logit"], out=out)


def is_anomalous(value: float, threshold: float, *, nonfinite: NonFinite = "error") -> bool:
    """A part passes only on proof: anomalous unless ``value <= threshold``.

    Raises:
        ScoreError: the score is not finite and ``nonfinite`` is "error"; with "reject" it is anomalous.
    """
    if not np.isfinite(value):
        if nonfinite == "reject":
            return True
        raise ScoreError(
            f"the score is {value}: the engine computed a value that is not finite. Check the frame and the "
            'engine (kizu evaluate), or load with nonfinite="reject" to reject such parts'
        )
    return not (value <= threshold)
