"""From a training run to a bundle that has proved itself.

The epoch's network is exported in its precision variants; each must reproduce torch's scores on real frames, through
``prepare`` and an engine, before anything is written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

import kizu
from kizu import bundle, calibrate, threshold, variants
from kizu.data import Sample, Split
from kizu.data.prepared import PreparedImages
from kizu.engine import BuildOptions, default_threads
from kizu.engines.onnxruntime import OnnxRuntime
from kizu.errors import ThresholdError, TrainingError
from kizu.iterated import iterated
from kizu.method import Iterated
from kizu.pipeline import open_pipeline
from kizu.prepare import Preparer, PrepareSpec, frame_digest
from kizu.run_folder import load_file
from kizu.settings import CHECKPOINT, RULES, epoch_file, read_settings
from kizu.subpixel import subpixel
from kizu.validation import score_images
from kizu.variants import ExportError, Graphs

GOLDEN_FRAMES = 32
_RANGE_IMAGES = 64  # good images that set the int8 ranges
# Layers that make an image. In sub-pixel form they cost no engine more in fp32, and OpenVINO in bf16, which computes in
# fp32 whatever lies between the last convolution and an output, then computes the other transposed ones in bf16 as
# well: BiGAN's score graph at 256x256, batch 1, one thread, 63.9 -> 48.8 ms (AVX512-BF16). All of them in sub-pixel
# form: 60.7 (20.5 for 39.9 with AMX), and 1.2 to 1.3 times the fp32 time.
_IMAGE_CHANNELS = 8
Note = Callable[[str], None]
Scoring = tuple[str, float]  # rule and lambda


@dataclass(frozen=True)
class Exported:
    """What an export measured.

    Attributes:
        path: the bundle.
        deviations: graph variant, or bf16 -> largest difference from torch over the golden frames, in standard
            deviations of the good calibration scores.
        left_out: the same -> why it is not in the bundle.
        tolerances: precision -> the largest deviation that is allowed, in the same unit.
    """

    path: Path
    deviations: Mapping[str, float]
    left_out: Mapping[str, str]
    tolerances: Mapping[str, float]


def export(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    rule: str | None = None,
    false_reject: float = 0.05,
    manual: float | None = None,
    note: Note = lambda text: None,
) -> Exported:
    """Export a training run to a bundle.

    Args:
        run: the run's folder.
        path: the bundle to write; replaced if it is there.
        rule: which epoch: "labelled" (the paper's rule), "good" (good images alone) or "last" (the end of training);
            by default "labelled" where the run had labelled validation images.
        false_reject: the rate of good parts rejected that the threshold promises not to exceed.
        manual: a threshold set by hand, for when there are too few calibration images; no rate is promised then.
        note: is told what is being done.

    Raises:
        ThresholdError: too few calibration images for the rate.
        ExportError: torch and the engine disagree, or ``path`` cannot be written.
        TrainingError, DataError: the run or its data are not whole, or the data are not those of the run.
    """
    run, path = Path(run), Path(path)
    if not path.parent.is_dir() or path.is_dir():
        raise ExportError(f"{path} cannot be written: it is a folder, or there is no folder to write it in")
    settings = read_settings(run)
    if rule is not None and rule not in RULES:
        raise ExportError(f"no rule to pick an epoch is called {rule!r}; choose from {', '.join(RULES)}")
    checkpoint = load_file(run / CHECKPOINT)
    rule = rule or ("labelled" if "labelled" in checkpoint["picked"] else "good")
    if rule not in checkpoint["picked"]:
        raise TrainingError(
            f"{run}: the rule {rule} has picked no epoch yet; go on with kizu train --resume until a validation, or "
            "choose another rule"
        )
    picked = load_file(epoch_file(run, rule))
    dataset = settings.dataset()
    split = settings.divide(dataset)
    parts = _calibration_parts(split, settings.seed)
    _check_parts(len(parts), false_reject if manual is None else None)
    used = {"train": split.train, "validation": split.validation, "calibration": split.calibration}
    seen = {name: [frame_digest(sample.read()) for sample in samples] for name, samples in used.items()}
    if dict(zip((sample.name for sample in split.train), seen["train"], strict=True)) != checkpoint["train"]:
        raise TrainingError(
            f"{run}: the images of {settings.data} are not those of the training, so that calibration could fall on "
            "images that the model has seen; bring them back, or train anew"
        )
    spec = settings.prepare(dataset)
    method = settings.create(spec)
    module = method.export_module()
    module.load_state_dict(picked["module"])

    note("exporting the graph and its precision variants")
    graphs, unfit = _graphs(module, spec, split)
    golden = _golden_frames(parts, split, seed=settings.seed)
    note(f"scoring {len(parts)} calibration images and {len(golden)} golden frames in each precision")
    found = _measure(graphs, module, (method.scoring, method.weight), spec, golden, parts)
    left_out = {**unfit, **found.left_out}
    for name in graphs:
        precision = bundle.precision_of(name)
        if precision not in found.scores:
            left_out.setdefault(name, f"it is another form of {precision}, which is left out and so has no threshold")
    graphs = {name: each for name, each in graphs.items() if name not in left_out}

    members, iteration = _members(graphs, module)
    pictures = {f"golden/{i:03}.png": bundle.encode_frame(frame) for i, frame in enumerate(golden)}
    manifest = bundle.Manifest(
        method=bundle.MethodInfo(settings.method, method.paper, asdict(method.config)),
        prepare=spec,
        scoring=method.scoring,
        weight=method.weight,
        iteration=iteration,
        graphs={name: f"graphs/{name}.onnx" for name in graphs},
        calibration=bundle.Calibration(found.scores, len(split.calibration)),
        threshold=(
            calibrate.conformal(found.scores, false_reject)
            if manual is None
            else calibrate.manual(list(found.scores), manual)
        ),
        golden=bundle.Golden(tuple(pictures), found.golden, dict(_tolerances(module))),
        training={
            "settings": settings.as_dict(),
            "split": split.rule,
            "images": {p: len(getattr(split, p)) for p in ("train", "validation", "calibration", "test")},
            "epoch": int(picked["epoch"]),
            "epoch_rule": rule,
            "epoch_value": float(picked["value"]),
            "history": checkpoint["history"],
            "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": {"kizu": kizu.__version__, "torch": str(torch.__version__), "onnx": onnx.__version__},
            "deviations": found.deviations,
            "left_out": left_out,
        },
        seen=tuple(sorted({digest for digests in seen.values() for digest in digests})),
    )
    bundle.write(path, manifest, {**members, **pictures})
    return Exported(path, found.deviations, left_out, manifest.golden.tolerances)


def _members(graphs: Mapping[str, Graphs], module: nn.Module) -> tuple[dict[str, bytes], bundle.Iteration | None]:
    """The bundle's members that hold the graphs, and how they are iterated."""
    members = {f"graphs/{name}.onnx": each.graph.SerializeToString(deterministic=True) for name, each in graphs.items()}
    if not isinstance(module, Iterated):
        return members, None
    starts, state = {}, ()
    for name, each in graphs.items():
        assert each.start is not None
        starts[name] = f"graphs/{name}-start.onnx"
        members[starts[name]] = each.start.SerializeToString(deterministic=True)
        state = tuple(value.name for value in each.start.graph.output)
    return members, bundle.Iteration(starts, module.steps, float(module.tolerance), module.patience, state)


@dataclass(frozen=True)
class _Measured:
    """Scores of the precisions that agree with torch.

    Attributes:
        golden: torch's scores of the golden frames.
        scores: precision -> calibration scores, ascending.
        deviations: graph variant, or bf16 -> as in ``Exported``; none where a score was not finite.
        left_out: the same -> why.
    """

    golden: tuple[float, ...]
    scores: dict[str, tuple[float, ...]]
    deviations: dict[str, float]
    left_out: dict[str, str]


def _measure(
    graphs: Mapping[str, Graphs],
    module: nn.Module,
    scoring: Scoring,
    spec: PrepareSpec,
    golden: Sequence[NDArray[np.uint8]],
    parts: Sequence[Sample],
) -> _Measured:
    """Score golden frames and calibration parts in each precision; raises ExportError if fp32 disagrees with torch."""
    golden_images = _resized(golden, spec)
    part_images = PreparedImages.read(parts, spec)
    reference = _torch_scores(module, scoring, golden_images)
    calibration = _torch_scores(module, scoring, part_images)
    unit = float(np.std(calibration))
    if not (unit > 0 and np.isfinite(reference).all()):
        raise ExportError(
            f"the scores of the good calibration images have a standard deviation of {unit:g}: the network has learnt "
            "nothing that could be measured; train anew"
        )
    scores = {"fp32": tuple(np.sort(calibration).tolist())}
    deviations: dict[str, float] = {}
    left_out: dict[str, str] = {}

    def judge(name: str, of_golden: NDArray[np.float64], of_parts: Callable[[], NDArray[np.float64]]) -> None:
        if not np.isfinite(of_golden).all():
            left_out[name] = "some of its scores are not finite"
            return
        deviations[name] = float(np.max(np.abs(of_golden - reference))) / unit
        allowed = _tolerances(module)[bundle.precision_of(name)]
        if deviations[name] > allowed:
            left_out[name] = (
                f"off by up to {deviations[name]:.3g} standard deviations of the good scores; {allowed:g} are allowed"
            )
        elif name == bundle.precision_of(name) and name not in scores:  # not those of another form of a precision
            found = np.sort(of_parts())
            if np.isfinite(found).all():
                scores[name] = tuple(found.tolist())
            else:
                left_out[name] = "some of its scores are not finite"

    with tempfile.TemporaryDirectory() as folder:
        _, iteration = _members(graphs, module)
        for name, each in graphs.items():
            with _running(each, iteration, spec, scoring, Path(folder), name) as score:
                judge(name, score(golden), partial(score, (sample.read() for sample in parts)))
            if "fp32" in left_out:
                raise ExportError(f"torch and ONNX Runtime disagree on the exported graph: {left_out['fp32']}")
    with torch.autocast("cpu", torch.bfloat16):  # engines compute bf16 from the fp32 graph
        judge(
            "bf16", _torch_scores(module, scoring, golden_images), lambda: _torch_scores(module, scoring, part_images)
        )
    return _Measured(tuple(reference.tolist()), scores, deviations, left_out)


def _tolerances(module: nn.Module) -> Mapping[str, float]:
    return bundle.ITERATED_TOLERANCES if isinstance(module, Iterated) else bundle.TOLERANCES


def _check_parts(n: int, false_reject: float | None) -> None:
    """Raise ThresholdError if there are too few calibration parts, for the rate or for any export."""
    if false_reject is not None:
        try:
            threshold.check_count(n, false_reject)
        except ThresholdError as error:
            raise ThresholdError(
                f"{error} Or train with a larger calibration share, or set the threshold by hand."
            ) from error
    if n < 2:
        raise ThresholdError(
            f"an export needs at least 2 good calibration images, whose spread is the unit of all tolerances, and "
            f"there {'is' if n == 1 else 'are'} {n}; add good images, or train with a larger calibration share"
        )


def _calibration_parts(split: Split, seed: int) -> list[Sample]:
    """One calibration image a physical part."""
    if not split.calibration:
        return []
    chosen = threshold.one_per_group([sample.group for sample in split.calibration], seed=seed)
    return [split.calibration[i] for i in chosen]


def _graphs(module: nn.Module, spec: PrepareSpec, split: Split) -> tuple[dict[str, Graphs], dict[str, str]]:
    """The precision variants, and why others cannot be made."""
    if isinstance(module, Iterated):
        return _iterated_graphs(module, spec)
    spread = np.linspace(0, len(split.train) - 1, min(_RANGE_IMAGES, len(split.train))).round().astype(int)
    images = PreparedImages.read([split.train[i] for i in spread], spec)
    plain = variants.fp32(module, spec.channels, *spec.size)
    image = subpixel(plain, most_channels=_IMAGE_CHANNELS) or plain
    int8 = variants.int8(plain, images.inputs())
    graphs = {"fp32": Graphs(image), "int8": Graphs(int8)}
    unfit: dict[str, str] = {}
    for name, source in (("fp16", plain), ("int8+fp16", int8)):
        try:
            graphs[name] = Graphs(variants.fp16(source))
        except ExportError as error:
            unfit[name] = str(error)
    rewritten = subpixel(plain)
    if rewritten is not None:
        graphs["int8-full"] = Graphs(variants.int8(rewritten, images.inputs(), between=True))
    return graphs, unfit


def _iterated_graphs(module: Iterated, spec: PrepareSpec) -> tuple[dict[str, Graphs], dict[str, str]]:
    graphs = {"fp32": variants.iteration(module, spec.channels, *spec.size)}
    unfit = dict.fromkeys(
        ("int8", "int8+fp16"), "the steps of an iteration need gradients, which int8 is too coarse for"
    )
    try:
        graphs["fp16"] = variants.iteration(module, spec.channels, *spec.size, half=True)
    except ExportError as error:
        unfit["fp16"] = str(error)
    return graphs, unfit


def _golden_frames(parts: Sequence[Sample], split: Split, *, seed: int) -> list[NDArray[np.uint8]]:
    """Real frames: calibration and validation images, then training images, then mirror images if those are few."""
    rng = np.random.default_rng(seed)
    first, more = [*parts, *split.validation], list(split.train)
    rng.shuffle(first)
    rng.shuffle(more)
    frames = [sample.read() for sample in [*first, *more][:GOLDEN_FRAMES]]
    mirrored = [np.ascontiguousarray(frame[:, ::-1]) for frame in frames]
    upside_down = [np.ascontiguousarray(frame[::-1]) for frame in [*frames, *mirrored]]
    while len(frames) < GOLDEN_FRAMES:
        frames += [*mirrored, *upside_down]
    return frames[:GOLDEN_FRAMES]


def _resized(frames: Sequence[NDArray[np.uint8]], spec: PrepareSpec) -> PreparedImages:
    images = np.empty((len(frames), spec.own_channels, *spec.size), np.uint8)
    preparer = Preparer(spec)
    for frame, image in zip(frames, images, strict=True):
        preparer.resize(frame, image)
    return PreparedImages(images, spec)


def _torch_scores(module: nn.Module, scoring: Scoring, images: PreparedImages) -> NDArray[np.float64]:
    rule, weight = scoring
    return score_images(module, images, scoring=rule, weight=weight).astype(np.float64)


@contextmanager
def _running(
    graphs: Graphs,
    iteration: bundle.Iteration | None,
    spec: PrepareSpec,
    scoring: Scoring,
    folder: Path,
    name: str,
) -> Iterator[Callable[[Iterable[NDArray[np.uint8]]], NDArray[np.float64]]]:
    """Frames to scores through prepare, ONNX Runtime and the scoring rule.

    The graphs are run as they are written, not built first: the optimiser of ONNX Runtime 1.31 changes what an
    int8+fp16 graph computes where a tensor is reshaped between two convolutions.
    """
    loaded: list[OnnxRuntime] = []
    for graph in filter(None, graphs):
        source = folder / f"{name}-{len(loaded)}.onnx"
        onnx.save(graph, source)
        loaded.append(OnnxRuntime(source, BuildOptions(name, threads=default_threads())))
    engine = loaded[0] if iteration is None else iterated(loaded[1], loaded[0], iteration, 1)
    rule, weight = scoring
    with engine, open_pipeline(engine, spec, rule, weight=weight) as pipeline:
        yield lambda frames: np.array([float(pipeline.run([frame])[0][0]) for frame in frames])
