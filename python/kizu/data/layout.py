"""What the reader of a data set finds before any image is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kizu.data.dataset import Augmentation, Sample, SplitRule
from kizu.data.images import Color

_NONE = Augmentation()


@dataclass(frozen=True)
class Layout:
    """Files and labels of a data set.

    `color` is None where the files decide. `convert` is set where the data set's own recipe converts
    (toothbrush to grey).
    """

    root: Path
    samples: tuple[Sample, ...]
    rules: tuple[SplitRule, ...]
    augmentation: Augmentation = _NONE
    fixed_test: frozenset[str] = frozenset()
    color: Color | None = None
    convert: bool = False
