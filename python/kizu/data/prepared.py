"""Images held in memory as the resized integers of ``prepare``, and the model inputs made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from kizu.errors import FrameError
from kizu.prepare import Preparer, PrepareSpec, frame_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from kizu.data.dataset import Augmentation, Sample


@dataclass(frozen=True)
class PreparedImages:
    """Resized uint8 images (N, own channels, height, width), ready to be augmented and brought to model inputs.

    Resizing an image to its own size changes nothing, so an input made from here has the bits that ``prepare``
    makes of the original frame.
    """

    images: NDArray[np.uint8]
    spec: PrepareSpec
    digests: tuple[str, ...] = ()  # of the frames they were read from

    @classmethod
    def read(
        cls,
        samples: Sequence[Sample],
        spec: PrepareSpec,
        *,
        threads: int = 1,
        progress: Callable[[], None] = lambda: None,
    ) -> PreparedImages:
        """Read and resize all samples; raises DataError or FrameError that names the one at fault."""
        images = np.empty((len(samples), spec.own_channels, *spec.size), np.uint8)
        preparer = Preparer(spec, threads=threads)
        digests = []
        for sample, image in zip(samples, images, strict=True):
            frame = sample.read()
            try:
                preparer.resize(frame, image)
            except FrameError as error:
                raise FrameError(f"{sample.path or sample.name}: {error}") from error
            digests.append(frame_digest(frame))
            progress()
        return cls(images, spec, tuple(digests))

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Model inputs (N, channels, height, width), float32, of the images from ``start`` to before ``stop``."""
        return _to_inputs(self.images[start:stop], self.spec)

    def batch(
        self, indices: NDArray[np.int64], augmentation: Augmentation, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Model inputs (len(indices), channels, height, width) of augmented images; the draw comes from ``rng``."""
        return _to_inputs(np.stack([augment(self.images[i], augmentation, rng) for i in indices]), self.spec)


def _to_inputs(images: NDArray[np.uint8], spec: PrepareSpec) -> NDArray[np.float32]:
    resized = replace(spec, crop=None, tiles=None, boxes=False, resize=None, rotations=1)
    preparer = Preparer(resized)
    out = np.empty((len(images), spec.channels, *spec.size), np.float32)
    for image, row in zip(images, out, strict=True):
        preparer(np.moveaxis(image, 0, 2), row)
    return out


def augment(image: NDArray[np.uint8], augmentation: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Flip and rotate one image (channels, height, width) at random, as ``augmentation`` allows.

    A rotation is by any angle, bilinear; what it uncovers is filled with the median colour of the border.
    """
    if augmentation.rotation:
        border = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], axis=1)
        fill = tuple(int(v) for v in np.median(border, axis=1))
        picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(image, 0, 2)).squeeze())
        turned = picture.rotate(
            float(rng.uniform(0, 360)), Image.Resampling.BILINEAR, fillcolor=fill if len(fill) > 1 else fill[0]
        )
        image = np.moveaxis(np.asarray(turned).reshape(*image.shape[1:], len(fill)), 2, 0)
    if augmentation.horizontal_flip and rng.random() < 0.5:
        image = image[:, :, ::-1]
    if augmentation.vertical_flip and rng.random() < 0.5:
        image = image[:, ::-1]
    return image


def cut_paste(
    image: NDArray[np.uint8], rng: np.random.Generator, *, area: tuple[float, float] = (0.02, 0.15)
) -> NDArray[np.uint8]:
    """A synthetic defect: a patch of the image, its brightness jittered, pasted elsewhere in it.

    After CutPaste (ALGAN 2022, section V-G and figure 8), with smaller patches, as defects are.

    Args:
        image: uint8 (channels, height, width); not changed.
        rng: the source of the draw.
        area: range of the patch's share of the image; its aspect lies between 3:1 and 1:3.
    """
    height, width = image.shape[1:]
    size = rng.uniform(*area) * height * width
    aspect = float(np.exp(rng.uniform(-np.log(3), np.log(3))))
    h = int(np.clip(round((size * aspect) ** 0.5), 1, height - 1))
    w = int(np.clip(round((size / aspect) ** 0.5), 1, width - 1))
    y, to_y = rng.integers(0, height - h + 1, 2)
    x, to_x = rng.integers(0, width - w + 1, 2)
    out: NDArray[np.uint8] = image.copy()
    patch = image[:, y : y + h, x : x + w] * rng.uniform(0.75, 1.25)
    out[:, to_y : to_y + h, to_x : to_x + w] = np.clip(np.rint(patch), 0, 255).astype(np.uint8)
    return out
