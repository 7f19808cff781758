"""From what the user names to a checked data set."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kizu.data.coil100 import read_coil100
from kizu.data.dataset import Augmentation, Dataset, Sample, Skipped
from kizu.data.folder import read_folder
from kizu.data.images import Color, ImageFacts, check_image, odd_mode_advice
from kizu.data.layout import Layout
from kizu.data.locating import locate
from kizu.data.magnetic_tile import read_magnetic_tile
from kizu.data.mnist import read_mnist
from kizu.data.mvtec import CATEGORIES, read_category, read_mvtec
from kizu.data.sources import SOURCES
from kizu.errors import DataError

_LISTED = 10  # files named in one message


def read_layout(spec: str | os.PathLike[str]) -> tuple[str, Layout]:
    """The name and the layout of what `spec` names; no image is decoded."""
    text = os.fspath(spec)
    name, _, option = text.partition(":")
    if not isinstance(spec, str) or name not in [source.name for source in SOURCES]:
        return text, read_folder(Path(text))
    if name == "mvtec":
        if option not in CATEGORIES:
            raise DataError(f"{text}: name a category: mvtec: and one of {', '.join(CATEGORIES)}")
        return text, read_category(locate(name, part=option), option)
    if name == "mnist":
        return text, read_mnist(locate(name), option)
    if name == "coil100":
        return text, read_coil100(locate(name), option)
    if option:
        raise DataError(f"{text}: {name} takes no option; write {name}")
    return text, read_magnetic_tile(locate(name)) if name == "magnetic_tile" else read_mvtec(locate(name))


@dataclass(frozen=True)
class Checked:
    """A sample with the facts of its file, or with the reason why it cannot be read."""

    sample: Sample
    facts: ImageFacts | None
    reason: str = ""


def check_samples(samples: tuple[Sample, ...]) -> list[Checked]:
    """Open every file to its end."""
    checked = []
    for sample in samples:
        if sample.path is None:
            frame = sample.read()
            color: Color = "mono" if frame.ndim == 2 else "rgb"
            facts = ImageFacts("L" if color == "mono" else "RGB", color, frame.shape[1], frame.shape[0])
            checked.append(Checked(sample, facts))
            continue
        try:
            checked.append(Checked(sample, check_image(sample.path)))
        except DataError as error:
            checked.append(Checked(sample, None, str(error).removeprefix(f"{sample.path}: ")))
    return checked


def open_dataset(
    spec: str | os.PathLike[str],
    *,
    color: Color | None = None,
    convert: bool = False,
    skip_unreadable: bool = False,
    limit: int | None = None,
    augmentation: Augmentation | None = None,
) -> Dataset:
    """Open a data set and check every file in it.

    Args:
        spec: "magnetic_tile", "mnist:<digit>", "mvtec:<category>", "cookies", "coil100" (or "coil100:seed3",
            "coil100:1,5,77"), or the path of a folder: `good/` with optional `bad/`, the MVTec layout, or
            images that are all good. A path object, or a text that starts otherwise such as "./mnist", is a
            folder.
        color: "rgb" or "mono"; None takes the colour on which all files agree.
        convert: read files of other modes by converting them (see `read_image`).
        skip_unreadable: leave out files that cannot be read and, unless `convert`, odd ones; they are in
            `Dataset.skipped`. Without it they are an error.
        limit: at most this many good images outside the data set's own test part, and as many anomalous ones
            there, and the same of the test part's own good and anomalous images; drawn evenly, always the
            same ones.
        augmentation: in training; None takes the paper's for this data (none for a folder).

    Raises:
        DataError: nothing there, an unknown name, unreadable or odd files (named by path), or colours that
        disagree.
    """
    if color not in ("rgb", "mono", None):
        raise DataError(f"color {color!r}: accepted are 'rgb' and 'mono', or None to take the files' own")
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit}: give at least 1, or None for all images")
    name, layout = read_layout(spec)
    wanted, convert = color or layout.color, convert or layout.convert
    samples = layout.samples if limit is None else _limited(layout, limit)
    skipped: tuple[Skipped, ...] = ()
    if any(sample.path is not None for sample in samples):
        samples, wanted, skipped = _checked(name, samples, wanted, convert, skip_unreadable)
    elif wanted != layout.color:
        raise DataError(f"{name}: its frames are {layout.color}; color={color!r} cannot be had from them")
    if not any(sample.good for sample in samples):
        raise DataError(f"{name}: no good images are left ({len(skipped)} files skipped)")
    assert wanted is not None
    return Dataset(
        name=name,
        root=layout.root,
        color=wanted,
        samples=tuple(
            sorted(
                (dataclasses.replace(s, color=wanted, convert=convert) for s in samples),
                key=lambda sample: sample.name,
            )
        ),
        augmentation=layout.augmentation if augmentation is None else augmentation,
        rules=layout.rules,
        fixed_test=layout.fixed_test & {sample.name for sample in samples},
        skipped=skipped,
    )


def _limited(layout: Layout, limit: int) -> tuple[Sample, ...]:
    kept: list[Sample] = []
    rng = np.random.default_rng(0)
    for own_test in (False, True):
        for good in (True, False):
            stratum = sorted(
                (s for s in layout.samples if s.good is good and (s.name in layout.fixed_test) is own_test),
                key=lambda sample: sample.name,
            )
            order = np.argsort(rng.random(len(stratum)), kind="stable")
            kept += [stratum[i] for i in order[:limit]]
    return tuple(kept)


def _checked(
    name: str, samples: tuple[Sample, ...], wanted: Color | None, convert: bool, skip: bool
) -> tuple[tuple[Sample, ...], Color, tuple[Skipped, ...]]:
    checked = check_samples(samples)
    readable = [(item.sample, item.facts) for item in checked if item.facts is not None]
    left_out = [Skipped(_path(item.sample), item.reason) for item in checked if item.facts is None]
    if wanted is None:
        wanted = _agreed_color(name, readable, convert)
    odd = [] if convert else [(s, facts) for s, facts in readable if facts.color != wanted]
    left_out += [Skipped(_path(s), f"the image mode is {facts.mode}, wanted is {wanted}") for s, facts in odd]
    if left_out and not skip:
        lines = [f"  {item.path}: {item.reason}" for item in left_out[:_LISTED]]
        if len(left_out) > _LISTED:
            lines.append(f"  and {len(left_out) - _LISTED} more; `kizu data info` names them all")
        advice = f"For odd modes: {odd_mode_advice(wanted)}. " if odd else ""
        raise DataError(
            f"{name}: {len(left_out)} of {len(samples)} files cannot be used:\n"
            + "\n".join(lines)
            + f"\n{advice}Mend or remove them, or leave them out with --skip-unreadable "
            "(skip_unreadable=True)"
        )
    dropped = {item.path for item in left_out}
    return tuple(s for s in samples if s.path not in dropped), wanted, tuple(left_out)


def _path(sample: Sample) -> Path:
    assert sample.path is not None
    return sample.path


def _agreed_color(name: str, readable: list[tuple[Sample, ImageFacts]], convert: bool) -> Color:
    """The colour of all files that have one; odd ones have no say unless everything is converted."""
    if not readable:
        return "rgb"  # every file is reported as unreadable anyway
    votes = Counter(facts.color for _, facts in readable if facts.color is not None)
    if len(votes) == 1:
        return next(iter(votes))
    if convert:
        grey = all(
            facts.mode.split(",")[0].split(" ")[0] in ("1", "L", "LA", "I", "I;16", "I;16B") for _, facts in readable
        )
        return "mono" if grey else "rgb"
    if not votes:
        examples = [f"{s.path} ({facts.mode})" for s, facts in readable[:3]]
        raise DataError(f"{name}: no file can be used as it is: {', '.join(examples)}. {odd_mode_advice('rgb')}")
    first = {color: next(s.path for s, facts in readable if facts.color == color) for color in sorted(votes)}
    examples = [f"{votes[color]} are {color} (for example {path})" for color, path in first.items()]
    raise DataError(
        f"{name}: the files do not agree in colour: {' and '.join(examples)}. Name one with --color (color=) and pass "
        "--convert (convert=True) to convert the others, or leave them out with --skip-unreadable"
    )
