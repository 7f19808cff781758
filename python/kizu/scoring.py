"""The scoring rules: from a graph's outputs to one score an image. Higher is more anomalous, everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kizu import _core
from kizu.errors import ScoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from kizu.prepare import Device, Reduce

NonFinite = Literal["error", "reject"]


@dataclass(frozen=True)
class Rule:
    """A scoring rule.

    Attributes:
        name: as written in a bundle.
        outputs: names of the graph's outputs it reads.
        residual: it also reads the graph's input ``x`` and has a map of ``|x - x_hat|``.
        weighs: it adds a second term, by a weight lambda.
    """

    name: str
    outputs: tuple[str, ...]
    residual: bool
    weighs: bool


RULES = {
    rule.name: rule
    for rule in (
        # minus the discriminator's logit (ALGAN 2022, equation 8 and figure 5)
        Rule("logit", ("logit",), residual=False, weighs=False),
        # mean|x - x_hat| (consistency BiGAN 2020, equation 7)
        Rule("residual", ("x_hat",), residual=True, weighs=False),
        # (1 - lambda) mean|x - x_hat| + lambda mean|f - f_hat| (consistency BiGAN 2020, equations 7, 8 and 10)
        Rule("residual_feature", ("x_hat", "f", "f_hat"), residual=True, weighs=True),
        # (1 - lambda) mean|x - x_hat| + lambda softplus(-logit) (consistency BiGAN 2020, equations 7, 9 and 10)
        Rule("residual_logit", ("x_hat", "logit"), residual=True, weighs=True),
    )
}


def rule(name: str) -> Rule:
    """Return the rule called ``name``; raises ScoreError with the known names."""
    if name not in RULES:
        raise ScoreError(f"no scoring rule is called {name!r}; this version of kizu knows {', '.join(RULES)}")
    return RULES[name]


def check_weight(name: str, weight: object) -> float:
    """Return the weight lambda for the rule called ``name``; raises ScoreError for one that it cannot have."""
    weighs = rule(name).weighs
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        raise ScoreError(f"weight is {weight!r}, but must be a number from 0 to 1")
    if weight and not weighs:
        raise ScoreError(f"weight is {weight!r}, but the rule {name} weighs nothing; leave it at 0")
    return float(weight)


class Scorer:
    """``score`` bound to one rule, with its work space and threads kept between calls.

    The sums have one canonical order (csrc/ops/score.h): instruction set, number of threads, batch size and position
    in the batch change no bit. One call at a time: calls from several threads take turns.

    Args:
        rule: the rule's name.
        weight: lambda, from 0 (the residual alone) to 1; 0 for rules that weigh nothing.
        views: consecutive images that are views of one frame.
        reduce: how their scores become one: the largest, NaN if one is NaN, or the mean.
        threads: how many threads share the sums of a call (1: the caller's own, none is spawned).
        device: "cpu", or "cuda" to compute the same bits on a CUDA device; tensors are copied there and scores back.

    Raises:
        ScoreError: an argument is out of range.
    """

    def __init__(
        self,
        rule: str,
        *,
        weight: float = 0.0,
        views: int = 1,
        reduce: Reduce = "max",
        threads: int = 1,
        device: Device = "cpu",
    ) -> None:
        self.weight = check_weight(rule, weight)
        self.rule = RULES[rule]
        if isinstance(views, bool) or not isinstance(views, int) or views < 1:
            raise ScoreError(f"views is {views!r}, but must be a whole number from 1")
        self._views = views
        threads = threads if self.rule.residual or threads < 1 else 1  # a logit is not shared among threads
        try:
            self._op = _core.Score(rule=rule, weight=self.weight, reduce=reduce, threads=threads, device=device)
        except (TypeError, ValueError) as error:
            raise ScoreError(f"there is no such scorer: {error}") from error

    def __call__(
        self,
        tensors: Mapping[str, NDArray[Any]],
        out: NDArray[np.float32],
        map: NDArray[np.float32] | None = None,
        *,
        views: int | None = None,
    ) -> None:
        """Write the scores of a batch; nothing is allocated after the first call of its size.

        Args:
            tensors: what the rule reads, C-contiguous, all float32 or all float16: the graph's outputs ``logit`` (N,),
                ``x_hat`` (N, C, H, W), ``f`` and ``f_hat`` (N, ...), and its input ``x`` (N, C, H, W). Others are
                ignored.
            out: float32 (N / views,), written in place.
            views: as in the constructor, for this call.
            map: float32 (N, H, W), or None: is given the mean over the channels of ``|x - x_hat|`` at each pixel.

        Raises:
            ScoreError: a tensor is missing or does not fit, or the rule has no map.
        """
        get = tensors.get
        try:
            self._op.run((get("x"), get("x_hat"), get("f"), get("f_hat"), get("logit")), out, map, views or self._views)
        except (TypeError, ValueError) as error:
            for name, array in (("out", out), ("map", map)):
                if not isinstance(array, np.ndarray) and not (array is None and name == "map"):
                    raise ScoreError(f"{name} is a {type(array).__name__}, but must be a NumPy array") from None
            raise ScoreError(f"the rule {self.rule.name} cannot score this: {error}") from error


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
