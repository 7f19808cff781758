"""From a training run to a bundle that has proved itself.

The epoch's network is exported in its precision variants; each must reproduce torch's scores on real frames, through
``prepare`` and an engine, before anything is written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path


import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

import kizu
from kizu import bundle, threshold, variants
from kizu.data import Sample, Split
from kizu.data.prepared import PreparedImages
from kizu.engine import BuildOptions
from kizu.engines.onnxruntime import OnnxRuntime
from kizu.errors import ThresholdError
from kizu.pipeline import Pipeline
from kizu.prepare import Preparer, PrepareSpec
from kizu.training import CHECKPOINT, epoch_file, load_file, read_settings, score_inputs
from kizu.variants import ExportError

GOLDEN_FRAMES = 32
_RANGE_IMAGES = 64  # good images that set the int8 ranges
Note = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """What an export measured.

    Attributes:
        path: the bundle.
        deviations: precision -> largest difference from torch over the golden frames, in standard deviations of the
            good calibration scores.
        left_out: precision -> why it is not in the bundle.
    """

    path: Path
    deviations: Mapping[str, float]
    left_out: Mapping[str, str]


def export(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    rule: str | None = None,
    false_reject: float = 0.05,
    note: Note = lambda text: None,
) -> Exported:
    """Export a training run to a bundle.

    Args:
        run: the run's folder.
        path: the bundle to write; replaced if it is there.
        rule: which epoch: "labelled" (the paper's rule) or "good" (good images alone); by default "labelled" where the
            run had labelled validation images.
        false_reject: the rate of good parts rejected that the threshold promises not to exceed.
        note: is told what is being done.

    Raises:
        ThresholdError: too few calibration images for the rate.
        ExportError: torch and the engine disagree.
        TrainingError, DataError: the run or its data are not whole.
    """
    run, path = Path(run), Path(path)
    settings = read_settings(run)
    rule = rule or ("labelled" if epoch_file(run, "labelled").exists() else "good")
    picked = load_file(epoch_file(run, rule))
    dataset = settings.dataset()
    split = settings.divide(dataset)
    chosen = threshold.one_per_group([sample.group for sample in split.calibration], seed=settings.seed)
    parts = [split.calibration[i] for i in chosen]
    needed = threshold.images_needed(false_reject)
    if len(parts) < needed:
        raise ThresholdError(
            f"a false-reject rate of {false_reject:g} needs {needed} calibration images of different good parts, but "
            f"{len(parts)} are set aside; add good images, train with a larger calibration share, or accept a rate of "
            f"{1 / (len(parts) + 1):.3g} or more"
        )
    spec = settings.prepare(dataset)
    method = settings.create(spec)
    module = method.export_module()
    module.load_state_dict(picked["module"])

    note("exporting the graph and its precision variants")
    graphs = _graphs(module, spec, split)
    golden = _golden_frames(parts, split, seed=settings.seed)
    frames = [sample.read() for sample in parts]

    note(f"scoring {len(frames)} calibration images and {len(golden)} golden frames in each precision")
    reference = _torch_scores(module, method.scoring, spec, golden)
    scores = {"fp32": _torch_scores(module, method.scoring, spec, frames)}
    unit = float(np.std(scores["fp32"]))
    if not unit > 0:
        raise ExportError("the calibration images all have the same score: the network has learnt nothing to tell")
    deviations: dict[str, float] = {}
    left_out: dict[str, str] = {}

    def judge(precision: str, found: NDArray[np.float64]) -> bool:
        deviations[precision] = float(np.max(np.abs(found - reference))) / unit
        allowed = bundle.TOLERANCES[precision]
        if deviations[precision] <= allowed:
            return True
        left_out[precision] = (
            f"off by up to {deviations[precision]:.3g} standard deviations of the good scores; {allowed:g} are allowed"
        )
        return False

    with tempfile.TemporaryDirectory() as folder:
        for name, graph in list(graphs.items()):
            with _running(graph, spec, method.scoring, Path(folder), name) as score:
                if not judge(name, score(golden)):
                    del graphs[name]
                elif name != "fp32":
                    scores[name] = score(frames)
    if "fp32" in left_out:
        raise ExportError(f"torch and ONNX Runtime disagree on the exported graph: {left_out['fp32']}")
    with torch.autocast("cpu", torch.bfloat16):
        if judge("bf16", _torch_scores(module, method.scoring, spec, golden)):
            scores["bf16"] = _torch_scores(module, method.scoring, spec, frames)

    members = {f"graphs/{name}.onnx": graph.SerializeToString(deterministic=True) for name, graph in graphs.items()}
    pictures = {f"golden/{i:03}.png": bundle.encode_frame(frame) for i, frame in enumerate(golden)}
    ordered = {name: tuple(sorted(float(v) for v in values)) for name, values in scores.items()}
    manifest = bundle.Manifest(
        method=bundle.MethodInfo(settings.method, method.paper, asdict(method.config)),
        prepare=spec,
        scoring=method.scoring,
        graphs={name: f"graphs/{name}.onnx" for name in graphs},
        calibration=bundle.Calibration(ordered, len(split.calibration)),
        threshold=conformal(ordered, false_reject),
        golden=bundle.Golden(tuple(pictures), tuple(float(v) for v in reference), dict(bundle.TOLERANCES)),
        training={
            "settings": settings.as_dict(),
            "split": split.rule,
            "images": {p: len(getattr(split, p)) for p in ("train", "validation", "calibration", "test")},
            "epoch": int(picked["epoch"]),
            "epoch_rule": rule,
            "epoch_value": float(picked["value"]),
            "history": load_file(run / CHECKPOINT)["history"],
            "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": {"kizu": kizu.__version__, "torch": str(torch.__version__), "onnx": onnx.__version__},
            "deviations": deviations,
            "left_out": left_out,
        },
    )
    bundle.write(path, manifest, {**members, **pictures})
    return Exported(path, deviations, left_out)


def conformal(scores: Mapping[str, Sequence[float]], false_reject: float) -> bundle.Threshold:
    """The threshold of each precision from its own calibration scores; raises ThresholdError."""
    values = {name: threshold.conformal(np.array(s), false_reject) for name, s in scores.items()}
    return bundle.Threshold(values, "conformal", false_reject, len(scores["fp32"]))


def _graphs(module: nn.Module, spec: PrepareSpec, split: Split) -> dict[str, onnx.ModelProto]:
    images = PreparedImages.read(split.train[:_RANGE_IMAGES], spec)
    fp32 = variants.fp32(module, spec.channels, *spec.size)
    int8 = variants.int8(fp32, images.inputs())
    return {"fp32": fp32, "fp16": variants.fp16(fp32), "int8": int8, "int8+fp16": variants.fp16(int8)}


def _golden_frames(parts: Sequence[Sample], split: Split, *, seed: int) -> list[NDArray[np.uint8]]:
    """Real frames: calibration and validation images, then training images, then mirror images if those are few."""
    rng = np.random.default_rng(seed)
    first, more = [*parts, *split.validation], list(split.train)
    rng.shuffle(first)  # type: ignore[arg-type]
    rng.shuffle(more)  # type: ignore[arg-type]
    frames = [sample.read() for sample in [*first, *more][:GOLDEN_FRAMES]]
    mirrored = [np.ascontiguousarray(frame[:, ::-1]) for frame in frames]
    upside_down = [np.ascontiguousarray(frame[::-1]) for frame in [*frames, *mirrored]]
    while len(frames) < GOLDEN_FRAMES:
        frames += [*mirrored, *upside_down]
    return frames[:GOLDEN_FRAMES]


def _torch_scores(
    module: nn.Module, scoring: str, spec: PrepareSpec, frames: Sequence[NDArray[np.uint8]]
) -> NDArray[np.float64]:
    inputs = np.empty((len(frames), spec.channels, *spec.size), np.float32)
    preparer = Preparer(spec)
    for frame, row in zip(frames, inputs, strict=True):
        preparer(frame, row)
    return score_inputs(module, torch.from_numpy(inputs), scoring=scoring).astype(np.float64)


@contextmanager
def _running(
    graph: onnx.ModelProto, spec: PrepareSpec, scoring: str, folder: Path, name: str
) -> Iterator[Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float64]]]:
    """Frames to scores through prepare, ONNX Runtime and the scoring rule."""
    source, built = folder / f"{name}.onnx", folder / f"{name}.built"
    onnx.save(graph, source)
    options = BuildOptions(name)
    OnnxRuntime.build(source, built, options)
    pipeline = Pipeline(OnnxRuntime(built, options), spec, scoring, threads=1)
    try:
        yield lambda frames: np.array([float(pipeline.run([frame])[0][0]) for frame in frames])
    finally:
        pipeline.close()
