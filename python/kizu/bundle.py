"""The .kizu file: one stored zip that carries everything the line needs to score as training measured.

Members: ``manifest.json``, the ONNX graph of each precision variant (``graphs/fp32.onnx`` ..., of an iteration also
``graphs/fp32-start.onnx`` ...) and the golden frames (``golden/000.png`` ...). The manifest lists each member's
SHA-256; the zip's comment holds the manifest's own. There is no pickle anywhere, compiled engines are not inside, and
the threshold is never part of a graph.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import struct
import zipfile
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from kizu.errors import BundleError, FrameError
from kizu.prepare import PrepareSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from PIL.Image import Image

FORMAT = "kizu-bundle"
VERSION = 1
MANIFEST = "manifest.json"
_COMMENT = "kizu bundle; SHA-256 of manifest.json: "
_LARGEST_MANIFEST = 64 << 20
# What zipfile raises for headers that make no sense.
_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error)
T = TypeVar("T")

# How far a precision's score of a golden frame may lie from the reference, in standard deviations of the good
# calibration scores.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.25, "int8+fp16": 0.25}

# The same for an iteration: each step decides by the signs of residuals, and one that rounding turns leads elsewhere.
ITERATED_TOLERANCES = {"fp32": 0.02, "fp16": 0.1, "bf16": 0.25}


def precision_of(variant: str) -> str:
    """The precision of a graph variant; another form of it is named after a dash, as in "int8-full"."""
    return variant.partition("-")[0]


@dataclass(frozen=True)
class MethodInfo:
    """The method that was trained: its name, citation and settings."""

    name: str
    paper: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Calibration:
    """Scores of good images used neither for training nor for picking the epoch.

    Attributes:
        scores: for each precision, the scores in ascending order; one picture a part.
        pictures: pictures that were at hand, of which one a part was taken.
    """

    scores: Mapping[str, tuple[float, ...]]
    pictures: int

    def deviation(self) -> float:
        """Standard deviation of the fp32 scores, the unit of the tolerances."""
        return float(np.std(self.scores["fp32"]))


@dataclass(frozen=True)
class Threshold:
    """Where scores become anomalous, for each precision, and how that was decided.

    Attributes:
        values: precision -> threshold; a part is good only if its score is not above it.
        rule: "conformal", "best-f1", "recall" or "manual".
        parameter: the false-reject rate, the recall, or None.
        images: how many scores it was computed from (0: by hand).
    """

    values: Mapping[str, float]
    rule: str
    parameter: float | None
    images: int


@dataclass(frozen=True)
class Golden:
    """Frames whose scores every engine must reproduce, frame to score, before it is used.

    Attributes:
        members: names of the PNG members.
        scores: the reference scores, computed by torch in float32.
        tolerances: precision -> allowed difference, in standard deviations of the good calibration scores.
    """

    members: tuple[str, ...]
    scores: tuple[float, ...]
    tolerances: Mapping[str, float]


@dataclass(frozen=True)
class Iteration:
    """A program of two graphs: one makes a state from the input, the other is run on it again and again.

    The second, which is that of ``Manifest.graphs``, reads the input and the state, and writes the next state (named
    ``next_`` and the state's name; what it does not write stays the same), the outputs at the state that it read, and
    their ``loss``, a number an image.

    Attributes:
        start: precision variant -> member that holds the ONNX of the first graph.
        steps: steps to the state whose outputs count; the second graph is run once more, to compute these (>= 1).
        tolerance: an image stops where its loss has fallen by no more than this share of it over the last ``patience``
            steps (>= 0; 0: never).
        patience: see ``tolerance`` (>= 1).
        state: names of the state's tensors.
    """

    start: Mapping[str, str]
    steps: int
    tolerance: float
    patience: int
    state: tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """Size in bytes and SHA-256 of a member."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that a bundle says of itself.

    Attributes:
        method: what was trained.
        prepare: how a frame becomes the model's input.
        scoring: the scoring rule's name.
        graphs: precision variant, in some precisions also another form of it -> member that holds its ONNX.
        calibration: scores of good images.
        threshold: where scores become anomalous.
        golden: what engines must reproduce.
        training: provenance: data set, split, seed, epoch and the rule that picked it, history, versions.
        seen: digests of the frames that training, validation and calibration used; see ``prepare.frame_digest``.
        weight: the scoring rule's lambda, from 0 to 1; 0 for rules that weigh nothing.
        iteration: how the graphs are iterated, or None where each is run once.
        members: name -> size and digest; filled in by ``write``.
    """

    method: MethodInfo
    prepare: PrepareSpec
    scoring: str
    graphs: Mapping[str, str]
    calibration: Calibration
    threshold: Threshold
    golden: Golden
    training: Mapping[str, Any]
    seen: tuple[str, ...]
    weight: float = 0.0
    iteration: Iteration | None = None
    members: Mapping[str, Member] = field(default_factory=dict)


class Bundle:
    """An opened bundle whose members have been checked against their digests."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open and check a bundle.

        Raises:
            BundleError: the file is missing, not a bundle, truncated, edited, from a newer version, or has members
                that it must not have. The message names the fault.
        """
        path = Path(path)
        if not path.is_file():
            what = (
                "is a folder, not a bundle" if path.is_dir() else "there is no such file; kizu export writes a bundle"
            )
            raise BundleError(f"{path}: {what}")
        with _opened(path) as archive:
            manifest = _read_manifest(path, archive)
            for name, member in manifest.members.items():
                if _digest(archive, name) != (member.size, member.sha256):
                    raise BundleError(
                        f"{path}: member {name} does not match its digest: the file is damaged or was edited; "
                        "copy it again or export it anew"
                    )
        return cls(path, manifest)

    def read(self, member: str) -> bytes:
        """The bytes of a member, checked once more; raises BundleError if it is not there or has changed since."""
        if member not in self.manifest.members:
            raise BundleError(f"{self.path}: there is no member {member}")
        with _opened(self.path) as archive:
            try:
                data = archive.read(member)
            except KeyError as error:
                raise BundleError(
                    f"{self.path}: member {member} is gone: the file was replaced; load it anew"
                ) from error
        if hashlib.sha256(data).hexdigest() != self.manifest.members[member].sha256:
            raise BundleError(f"{self.path}: member {member} has changed since the file was opened; load it anew")
        return data

    def graph(self, variant: str) -> bytes:
        """The ONNX of a precision variant; raises BundleError with those that are there."""
        graphs = self.manifest.graphs
        if variant not in graphs:
            raise BundleError(f"{self.path}: there is no {variant} graph, only {', '.join(graphs)}")
        return self.read(graphs[variant])

    def start_graph(self, variant: str) -> bytes:
        """The ONNX that makes an iteration's state, of a precision variant; raises BundleError if there is none."""
        iteration = self.manifest.iteration
        if iteration is None or variant not in iteration.start:
            raise BundleError(f"{self.path}: there is no iteration in {variant} that could be started")
        return self.read(iteration.start[variant])

    def golden_frames(self) -> Iterator[NDArray[np.uint8]]:
        """The golden frames in order, uint8 (H, W, 3) or (H, W)."""
        for member in self.manifest.golden.members:
            yield np.asarray(self._picture(member))

    def golden_shape(self) -> tuple[int, int]:
        """(height, width) of the first golden frame."""
        width, height = self._picture(self.manifest.golden.members[0]).size  # the header's; nothing is decoded
        return height, width

    def _picture(self, member: str) -> Image:
        from PIL import Image, UnidentifiedImageError  # a warm start needs it once, other imports do not

        try:
            return Image.open(io.BytesIO(self.read(member)))
        except UnidentifiedImageError as error:
            raise BundleError(f"{self.path}: golden frame {member} is not an image") from error


def write(path: str | os.PathLike[str], manifest: Manifest, members: Mapping[str, bytes]) -> None:
    """Write a bundle: all of it or, on any failure, nothing.

    Args:
        path: the file; replaced if it is there.
        manifest: its ``members`` are filled in here.
        members: name -> bytes.
    """
    listed = {name: Member(len(data), hashlib.sha256(data).hexdigest()) for name, data in members.items()}
    text = _to_json(replace(manifest, members=listed))
    with _replacing(Path(path)) as archive:
        _write_manifest(archive, text)
        for name, data in members.items():
            archive.writestr(_info(name), data)


def set_threshold(path: str | os.PathLike[str], threshold: Threshold) -> Manifest:
    """Replace a bundle's threshold, graphs untouched; the file is whole at any moment. Returns the new manifest."""
    bundle = Bundle.open(path)
    manifest = replace(bundle.manifest, threshold=threshold)
    text = _to_json(manifest)
    with _opened(bundle.path) as old, _replacing(bundle.path) as archive:
        _write_manifest(archive, text)
        for name in manifest.members:
            info = _info(name)
            info.file_size = manifest.members[name].size  # known beforehand, as in write: the same bytes
            with old.open(name) as source, archive.open(info, "w") as target:
                while chunk := source.read(1 << 20):
                    target.write(chunk)
    return manifest


def encode_frame(frame: NDArray[np.uint8]) -> bytes:
    """A frame as PNG, lossless."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # the same content gives the same file
    info.external_attr = 0o644 << 16
    return info


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[zipfile.ZipFile]:
    """A new archive beside ``path`` that takes its place and its mode at the end, or vanishes on failure."""
    path = path.resolve()  # a link stays a link
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("x+b") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                yield archive
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            partial.chmod(path.stat().st_mode & 0o7777)
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BundleError(f"{path}: cannot be written: {error}; what was there before is untouched") from error
        raise


def _write_manifest(archive: zipfile.ZipFile, text: bytes) -> None:
    archive.writestr(_info(MANIFEST), text)
    archive.comment = (_COMMENT + hashlib.sha256(text).hexdigest()).encode()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error}") from error
    except _DAMAGE as error:
        raise BundleError(
            f"{path}: not a whole bundle ({error}): the file is truncated, damaged or something else; copy it again"
        ) from error


def _digest(archive: zipfile.ZipFile, name: str) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with archive.open(name) as member:
        while chunk := member.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _read_manifest(path: Path, archive: zipfile.ZipFile) -> Manifest:
    infos = archive.infolist()
    names = [info.filename for info in infos]
    for info in infos:
        parts = PurePosixPath(info.filename)
        if parts.is_absolute() or ".." in parts.parts or "\\" in info.filename or ":" in info.filename:
            raise BundleError(f"{path}: member {info.filename!r} points outside the bundle; do not use this file")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
            raise BundleError(f"{path}: member {info.filename} is compressed or encrypted; kizu did not write it so")
    if MANIFEST not in names:
        raise BundleError(f"{path}: there is no {MANIFEST}: this is not a kizu bundle")
    if archive.getinfo(MANIFEST).file_size > _LARGEST_MANIFEST:
        raise BundleError(f"{path}: {MANIFEST} is larger than {_LARGEST_MANIFEST >> 20} MiB; kizu did not write it so")
    text = archive.read(MANIFEST)
    try:
        values = json.loads(text, parse_constant=_no_number)
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise BundleError(f"{path}: {MANIFEST} is not valid JSON ({error})") from error
    if values.get("format") != FORMAT:
        raise BundleError(f"{path}: {MANIFEST} does not say that this is a {FORMAT}")
    version = values.get("version")
    if version != VERSION:
        fix = "update kizu" if isinstance(version, int) and version > VERSION else "export it anew"
        raise BundleError(f"{path}: bundle version {version}, but this kizu reads version {VERSION}; {fix}")
    if archive.comment != (_COMMENT + hashlib.sha256(text).hexdigest()).encode():
        raise BundleError(
            f"{path}: {MANIFEST} does not match its digest: it was edited; change a threshold with kizu threshold"
        )
    try:
        manifest = _from_json(Manifest, {k: v for k, v in values.items() if k not in ("format", "version")}, "manifest")
    except (KeyError, TypeError, ValueError, FrameError) as error:
        raise BundleError(f"{path}: {MANIFEST} is not valid: {error}") from error
    if sorted(names) != sorted([MANIFEST, *manifest.members]):
        odd = set(names) ^ {MANIFEST, *manifest.members} or {name for name in names if names.count(name) > 1}
        raise BundleError(f"{path}: members and manifest do not agree on {', '.join(sorted(odd))}")
    starts = () if manifest.iteration is None else tuple(manifest.iteration.start.values())
    for member in (*manifest.graphs.values(), *starts, *manifest.golden.members):
        if member not in manifest.members:
            raise BundleError(f"{path}: {MANIFEST} names {member}, which is not in the bundle")
    if not len(manifest.golden.members) == len(manifest.golden.scores) > 0:
        raise BundleError(
            f"{path}: {MANIFEST} has {len(manifest.golden.scores)} golden scores for {len(manifest.golden.members)} "
            "frames; an engine could not be proved against them"
        )
    most = TOLERANCES if manifest.iteration is None else ITERATED_TOLERANCES
    for precision, tolerance in manifest.golden.tolerances.items():
        if not 0 <= tolerance <= most.get(precision, 0.0):
            raise BundleError(
                f"{path}: {MANIFEST} allows {precision} to be off by {tolerance:g} standard deviations, but an engine "
                "proves nothing beyond " + ", ".join(f"{name} {value:g}" for name, value in most.items())
            )
    if not 0 <= manifest.weight <= 1:
        raise BundleError(f"{path}: {MANIFEST} weighs by {manifest.weight:g}, but the weight must lie in [0, 1]")
    if manifest.iteration is not None:
        _check_iteration(path, manifest.iteration, manifest.graphs)
    if not manifest.calibration.scores.get("fp32"):
        raise BundleError(f"{path}: {MANIFEST} has no calibration scores in fp32, the unit of the tolerances")
    return manifest


def _check_iteration(path: Path, iteration: Iteration, graphs: Mapping[str, str]) -> None:
    """Raise BundleError for an iteration that cannot be run."""
    where = f"{path}: {MANIFEST} has an iteration"
    if set(iteration.start) != set(graphs):
        raise BundleError(
            f"{where} that starts in {', '.join(iteration.start) or 'no precision'}, but steps in {', '.join(graphs)}"
        )
    if iteration.steps < 1 or iteration.patience < 1:
        raise BundleError(
            f"{where} of {iteration.steps} steps with a patience of {iteration.patience}; both must be at least 1"
        )
    if not iteration.tolerance >= 0:
        raise BundleError(f"{where} with the tolerance {iteration.tolerance:g}, but it must be at least 0")
    if not iteration.state or len(set(iteration.state)) < len(iteration.state):
        raise BundleError(f"{where} whose state is ({', '.join(iteration.state)}); it must be different names, some")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number that JSON has")


def _to_json(manifest: Manifest) -> bytes:
    values: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for item in fields(manifest):
        value = getattr(manifest, item.name)
        values[item.name] = value.as_dict() if isinstance(value, PrepareSpec) else _plain(value)
    return json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False).encode()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _from_json(kind: type[T], values: Any, where: str) -> T:
    """Rebuild a manifest dataclass; unknown and missing fields are errors."""
    if not isinstance(values, dict):
        raise TypeError(f"{where} is {values!r}, but must be an object")
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    unknown = set(values) - set(known)
    if unknown:
        raise ValueError(
            f"{where} has unknown fields {', '.join(sorted(unknown))}: it is from another version; update kizu"
        )
    missing = {n for n, i in known.items() if i.default is MISSING and i.default_factory is MISSING} - set(values)
    if missing:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    return kind(**{name: _field(str(known[name].type), value, f"{where}.{name}") for name, value in values.items()})


def _field(kind: str, value: Any, where: str) -> Any:
    """Check and convert one field by its annotation."""
    if kind == "PrepareSpec":
        return PrepareSpec.from_dict(value)
    if kind == "Iteration | None":
        return None if value is None else _from_json(Iteration, value, where)
    if kind in _NESTED:
        return _from_json(_NESTED[kind], value, where)
    if kind.startswith("Mapping[str, "):
        if not isinstance(value, dict):
            raise TypeError(f"{where} is not an object")
        inner = kind.removeprefix("Mapping[str, ").removesuffix("]")
        return {name: _field(inner, item, f"{where}.{name}") for name, item in value.items()}
    if kind.startswith("tuple["):
        if not isinstance(value, list):
            raise TypeError(f"{where} is not a list")
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_field(inner, item, where) for item in value)
    if kind == "float | None" and value is None:
        return None
    if kind.startswith("float") and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not np.isfinite(value):
            raise ValueError(f"{where} is {value}, but must be finite")
        return float(value)
    if kind == "Any" or (kind == "str" and isinstance(value, str)) or (kind == "int" and type(value) is int):
        return value
    raise TypeError(f"{where} is {value!r}, but must be {kind}")


_NESTED: dict[str, type] = {kind.__name__: kind for kind in (MethodInfo, Calibration, Threshold, Golden, Member)}
