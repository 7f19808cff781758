"""Methods that reconstruct the frame, from frame to score and map: a graph written by hand, on each CPU engine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import kizu
from graphs import residual_graph
from helpers import read_bundle, rewrite_bundle
from kizu import Bundle, BundleError, Detector, EngineError, ScoreError, scoring
from kizu.compiled import _key
from kizu.cpu_pipeline import CpuPipeline
from kizu.detector import MAP_SIGMA
from kizu.engine import BuildOptions, engines
from kizu.errors import FrameError, ThresholdError
from kizu.heat_map_reference import smooth_map_reference
from kizu.prepare import PrepareSpec, Tiles
from kizu.prepare_reference import prepare_reference
from kizu.scoring_reference import map_reference, score_reference

Frames = list[NDArray[np.uint8]]
RULES = [name for name, rule in scoring.RULES.items() if rule.residual]
ENGINES = ("openvino", "onnxruntime")
WEIGHT = 0.3


def weight_of(rule: str) -> float:
    return WEIGHT if scoring.rule(rule).weighs else 0.0


def outputs(x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The graph's outputs by ONNX Runtime itself, and x."""
    session = onnxruntime.InferenceSession(residual_graph(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {**dict(zip(names, session.run(None, {"x": x}), strict=True)), "x": x}


def scores_by_hand(rule: str, frames: Sequence[NDArray[np.uint8]], spec: Any, weight: float) -> NDArray[np.float32]:
    x = np.stack([prepare_reference(frame, spec) for frame in frames])
    return score_reference(rule, outputs(x), weight=weight)


@pytest.fixture(scope="module")
def residual_bundle(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Bundles of the graph for a rule; ``edit`` changes their manifests."""
    folder = tmp_path_factory.mktemp("residual")
    source = Bundle.open(bundle_path)
    golden = list(source.golden_frames())
    drop = [member for name, member in source.manifest.graphs.items() if name != "fp32"]

    def make(rule: str, edit: Callable[[dict[str, Any]], object] = lambda manifest: None, **of_graph: Any) -> Path:
        spec = source.manifest.prepare
        scores = scores_by_hand(rule, golden, spec, weight_of(rule))

        def rewrite(manifest: dict[str, Any]) -> None:
            manifest["scoring"], manifest["weight"] = rule, weight_of(rule)
            manifest["graphs"] = {"fp32": manifest["graphs"]["fp32"]}
            manifest["golden"]["scores"] = scores.astype(float).tolist()
            manifest["golden"]["tolerances"] = {"fp32": 1e-3}
            manifest["calibration"]["scores"] = {"fp32": sorted(scores.astype(float).tolist())}
            manifest["threshold"]["values"] = {"fp32": float(np.median(scores))}
            edit(manifest)

        target = folder / f"{len(list(folder.iterdir())):03}.kizu"
        members = {source.manifest.graphs["fp32"]: residual_graph(**of_graph), **dict.fromkeys(drop)}
        return rewrite_bundle(bundle_path, target, members=members, edit=rewrite)

    return make


def cpu_pipeline(detector: Detector) -> CpuPipeline:
    (pipeline,) = detector._pool.pipelines
    assert isinstance(pipeline, CpuPipeline)
    return pipeline


def tensors_of(detector: Detector, n: int) -> dict[str, NDArray[np.float32]]:
    return cpu_pipeline(detector)._bound[n][1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", RULES)
def test_scores_and_maps_are_those_of_the_references(
    rule: str, engine: str, residual_bundle: Callable[..., Path], engine_cache: Path, frames: Frames
) -> None:
    path = residual_bundle(rule)
    with kizu.load(path, engine=engine, threads=2, max_batch=4, cache=engine_cache) as detector:
        spec = detector.bundle.manifest.prepare
        assert detector.weight == weight_of(rule)
        by_hand = scores_by_hand(rule, frames, spec, weight_of(rule))
        assert np.ptp(by_hand) > 0.01
        for frame, expected in zip(frames, by_hand, strict=True):
            result = detector.score(frame)
            assert result.map is None
            np.testing.assert_allclose(result.score, expected, rtol=1e-4)
            tensors = tensors_of(detector, 1)
            assert result.score == score_reference(rule, tensors, weight=weight_of(rule))[0]  # to the last bit
            np.testing.assert_array_equal(tensors["x"][0], prepare_reference(frame, spec))

            mapped = detector.score(frame, map=True)
            assert mapped.score == result.score
            assert mapped.timing.score > 0
            residual = map_reference(tensors["x"], tensors["x_hat"])[0]
            size = frame.shape[0], frame.shape[1]
            sigma = 4.0 * size[0] / 32, 4.0 * size[1] / 32
            assert mapped.map is not None
            assert mapped.map.shape == size
            assert mapped.map.dtype == np.float32
            np.testing.assert_array_equal(mapped.map, smooth_map_reference(residual, size, sigma=sigma))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_gives_each_frame_its_own_map(
    engine: str, residual_bundle: Callable[..., Path], engine_cache: Path, frames: Frames
) -> None:
    odd = [np.random.default_rng(i).integers(0, 256, (20 + 7 * i, 91 - 5 * i, 3), np.uint8) for i in range(5)]
    mixed = [frame for pair in zip(frames, odd, strict=False) for frame in pair]
    with kizu.load(
        residual_bundle("residual_logit"), engine=engine, threads=2, max_batch=4, cache=engine_cache
    ) as detector:
        single = [detector.score(frame, map=True) for frame in mixed]
        for n in (1, 3, 4, 5, 10):
            for found, expected in zip(detector.score_batch(mixed[:n], map=True), single, strict=False):
                assert found.map is not None
                assert expected.map is not None
                assert found.score == pytest.approx(expected.score, rel=1e-4)
                np.testing.assert_allclose(found.map, expected.map, rtol=1e-3, atol=1e-5)
        kept = [result.map.copy() for result in single if result.map is not None]
        detector.score_batch(mixed, map=True)
        for result, before in zip(single, kept, strict=True):  # a result's map is its own
            np.testing.assert_array_equal(result.map, before)
        assert detector.score_batch([], map=True) == []


def test_the_map_covers_what_the_model_sees_smoothed_as_asked(
    residual_bundle: Callable[..., Path], engine_cache: Path, frames: Frames
) -> None:
    crop = (12, 6, 61, 55)
    path = residual_bundle("residual_feature")
    golden = list(Bundle.open(path).golden_frames())
    cropped = dataclasses.replace(Bundle.open(path).manifest.prepare, crop=crop)
    scores = scores_by_hand("residual_feature", golden, cropped, WEIGHT).astype(float).tolist()

    def edit(manifest: dict[str, Any]) -> None:
        manifest["prepare"]["crop"], manifest["golden"]["scores"] = list(crop), scores

    path = residual_bundle("residual_feature", edit)
    with kizu.load(path, engine="onnxruntime", cache=engine_cache, map_sigma=1.5) as detector:
        assert detector.map_sigma == 1.5
        for sigma in (1.5, 0.0, 3.0):
            detector.map_sigma = sigma
            found = detector.score(frames[0], map=True).map
            tensors = tensors_of(detector, 1)
            residual = map_reference(tensors["x"], tensors["x_hat"])[0]
            scaled = (sigma * 49 / 32, sigma * 49 / 32)
            expected = np.zeros(frames[0].shape[:2], np.float32)
            expected[6:55, 12:61] = smooth_map_reference(residual, (49, 49), sigma=scaled)
            np.testing.assert_array_equal(found, expected)


# Lambda


def test_another_lambda_needs_another_threshold(
    residual_bundle: Callable[..., Path], engine_cache: Path, frames: Frames
) -> None:
    path = residual_bundle("residual_feature")
    with pytest.raises(ThresholdError, match=r"weight is 0\.6, but the bundle's .* weight 0\.3 .* threshold="):
        kizu.load(path, weight=0.6, cache=engine_cache)
    for weight in (0.6, 0, 1):
        with kizu.load(path, engine="onnxruntime", weight=weight, threshold=0.5, cache=engine_cache) as detector:
            assert (detector.weight, detector.threshold) == (weight, 0.5)
            found = detector.score(frames[0]).score
            assert found == score_reference("residual_feature", tensors_of(detector, 1), weight=weight)[0]
    for wrong in (-0.1, 1.5, math.nan, "0.5"):
        with pytest.raises(ScoreError, match="must be a number from 0 to 1"):
            kizu.load(path, weight=wrong, threshold=0.5, cache=engine_cache)  # type: ignore[arg-type]


def test_a_rule_without_lambda_takes_none(
    bundle_path: Path, residual_bundle: Callable[..., Path], engine_cache: Path
) -> None:
    for rule, path in {"logit": bundle_path, "residual": residual_bundle("residual")}.items():
        for weight in (0.0, 0.5):
            with pytest.raises(ScoreError, match=f"the bundle's rule {rule} has no weight"):
                kizu.load(path, weight=weight, threshold=0.5, cache=engine_cache)


@pytest.mark.parametrize("weight", [-0.01, 1.01])
def test_a_lambda_out_of_range_is_no_bundle(weight: float, residual_bundle: Callable[..., Path]) -> None:
    path = residual_bundle("residual_logit", lambda manifest: manifest.update(weight=weight))
    with pytest.raises(BundleError, match=r"the weight must lie in \[0, 1\]"):
        Bundle.open(path)


def test_a_lambda_that_weighs_nothing_is_refused(
    bundle_path: Path, residual_bundle: Callable[..., Path], tmp_path: Path, engine_cache: Path
) -> None:
    path = rewrite_bundle(bundle_path, tmp_path / "a.kizu", edit=lambda manifest: manifest.update(weight=0.5))
    with pytest.raises(ScoreError, match="the rule logit weighs nothing"):
        kizu.load(path, cache=engine_cache)
    path = residual_bundle("residual", lambda manifest: manifest.update(weight=0.5))
    with pytest.raises(ScoreError, match="the rule residual weighs nothing"):
        kizu.load(path, cache=engine_cache)


def test_a_bundle_without_lambda_has_none(bundle_path: Path, tmp_path: Path) -> None:
    assert read_bundle(bundle_path)[0]["weight"] == 0
    path = rewrite_bundle(bundle_path, tmp_path / "a.kizu", edit=lambda manifest: manifest.pop("weight"))
    assert Bundle.open(path).manifest.weight == 0


def test_the_proof_is_of_the_bundles_lambda(residual_bundle: Callable[..., Path], tmp_path: Path) -> None:
    path = residual_bundle("residual_feature", lambda manifest: manifest.update(weight=0.9))
    with pytest.raises(EngineError, match="does not reproduce the golden scores"):
        kizu.load(path, engine="onnxruntime", cache=tmp_path)
    keys = {
        _key(Bundle.open(residual_bundle("residual_feature", edit)), engines()["onnxruntime"], BuildOptions("fp32"))
        for edit in (lambda manifest: None, lambda manifest: manifest.update(weight=0.9))
    }
    assert len(keys) == 2


@pytest.mark.parametrize("sigma", [-1.0, math.nan, math.inf, "4", None, True])
def test_a_smoothing_that_makes_no_sense_is_refused(sigma: Any, bundle_path: Path, engine_cache: Path) -> None:
    with pytest.raises(ScoreError, match=r"map_sigma is .*, but must be a number of pixels"):
        kizu.load(bundle_path, map_sigma=sigma, cache=engine_cache)


# Graphs that do not fit the rule


def test_a_graph_whose_reconstruction_has_another_shape_is_refused(
    residual_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    for engine in ENGINES:
        with pytest.raises(EngineError, match=r"outputs do not fit: .* x_hat has the shape \(1, 3, 32, 32\)"):
            kizu.load(residual_bundle("residual_logit", x_hat_channels=3), engine=engine, cache=tmp_path)


def test_a_graph_without_what_the_rule_reads_is_refused(residual_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="the graph has no output f, which the rule 'residual_feature' reads"):
        kizu.load(residual_bundle("residual_feature", leave_out=("f",)), engine="onnxruntime", cache=tmp_path)
    for rule, unread in (("residual_logit", ("f", "f_hat")), ("residual", ("f", "f_hat", "logit"))):
        with kizu.load(residual_bundle(rule, leave_out=unread), cache=tmp_path) as detector:
            assert math.isfinite(detector.score(np.zeros((60, 72, 3), np.uint8)).score)


def test_a_reconstruction_that_is_not_finite_never_passes(
    residual_bundle: Callable[..., Path], engine_cache: Path, frames: Frames
) -> None:
    path = residual_bundle("residual_logit")
    with kizu.load(path, engine="onnxruntime", threshold=1e30, cache=engine_cache) as detector:
        assert not detector.score(frames[0]).anomalous
        runner, tensors = cpu_pipeline(detector)._bound[1]

        class Broken:
            def run(self) -> None:
                runner.run()
                tensors["x_hat"][0, 1, 2, 3] = np.nan

        cpu_pipeline(detector)._bound[1] = (Broken(), tensors)
        with pytest.raises(ScoreError, match="the score is nan"):
            detector.score(frames[0], map=True)


VIEWS: dict[str, dict[str, Any]] = {
    "tiles": {"tiles": Tiles(2, 3, 4), "reduce": "max"},
    "rotations": {"rotations": 5, "reduce": "mean"},
    "tiles turned": {"tiles": Tiles(2, 2, 0), "rotations": 4, "reduce": "mean"},
}


def of_views(
    rule: str, frame: NDArray[np.uint8], spec: PrepareSpec, boxes: Any = None
) -> tuple[float, NDArray[np.float32]]:
    """A frame's score and its residual maps, by hand."""
    tensors = outputs(prepare_reference(frame, spec, boxes=boxes).reshape(-1, 5, 32, 32))
    score = score_reference(rule, tensors, weight=WEIGHT, views=len(tensors["x"]), reduce=spec.reduce)
    return float(score[0]), map_reference(tensors["x"], tensors["x_hat"])


def heat_map_by_hand(
    maps: NDArray[np.float32], regions: Sequence[Any], spec: PrepareSpec, shape: tuple[int, int]
) -> Any:
    """The largest of the regions' smoothed maps at each pixel."""
    whole = np.zeros(shape, np.float32)
    for (left, top, right, bottom), residual in zip(regions, maps[:: spec.rotations], strict=True):
        size = (bottom - top, right - left)
        sigma = (MAP_SIGMA * size[0] / 32, MAP_SIGMA * size[1] / 32)
        place = whole[top:bottom, left:right]
        np.maximum(place, smooth_map_reference(residual, size, sigma=sigma), out=place)
    return whole


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("engine", ENGINES)
def test_views_go_through_the_engine_side_by_side(
    engine: str, views: str, residual_bundle: Callable[..., Path], frames: Frames, tmp_path: Path
) -> None:
    spec = dataclasses.replace(Bundle.open(residual_bundle("residual_feature")).manifest.prepare, **VIEWS[views])
    golden = list(Bundle.open(residual_bundle("residual_feature")).golden_frames())

    def edit(manifest: dict[str, Any]) -> None:
        manifest["prepare"] = spec.as_dict()
        manifest["golden"]["scores"] = [of_views("residual_feature", frame, spec)[0] for frame in golden]

    path = residual_bundle("residual_feature", edit)
    with kizu.load(path, engine=engine, max_batch=2, cache=tmp_path) as detector:
        for result, frame in zip(detector.score_batch(frames[:5], map=True), frames, strict=False):
            score, maps = of_views("residual_feature", frame, spec)
            np.testing.assert_allclose(result.score, score, rtol=1e-4)
            assert result.score == detector.score(frame).score
            size = frame.shape[0], frame.shape[1]
            expected = heat_map_by_hand(maps, spec.crop_and_cut(*size), spec, size)
            assert result.map is not None
            np.testing.assert_allclose(result.map, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rotations", [1, 4])
def test_boxes_are_scored_where_the_caller_says(
    rotations: int, residual_bundle: Callable[..., Path], frames: Frames, tmp_path: Path
) -> None:
    base = Bundle.open(residual_bundle("residual_logit")).manifest.prepare
    spec = dataclasses.replace(base, boxes=True, rotations=rotations)
    golden = list(Bundle.open(residual_bundle("residual_logit")).golden_frames())

    def whole(frame: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
        return [(0, 0, frame.shape[1], frame.shape[0])]

    def edit(manifest: dict[str, Any]) -> None:
        manifest["prepare"] = spec.as_dict()
        manifest["golden"]["scores"] = [of_views("residual_logit", frame, spec, whole(frame))[0] for frame in golden]

    path = residual_bundle("residual_logit", edit)
    with kizu.load(path, engine="onnxruntime", max_batch=3, cache=tmp_path) as detector:
        for boxes in ([(3, 4, 40, 50)], [(0, 0, 20, 20), (10, 5, 60, 44)], [(1, 1, 9, 9)] * 3):
            score, maps = of_views("residual_logit", frames[0], spec, boxes)
            result = detector.score(frames[0], boxes=boxes, map=True)
            np.testing.assert_allclose(result.score, score, rtol=1e-4)
            size = frames[0].shape[0], frames[0].shape[1]
            assert result.map is not None
            np.testing.assert_allclose(result.map, heat_map_by_hand(maps, boxes, spec, size), rtol=1e-3, atol=1e-5)
        with pytest.raises(FrameError, match=f"4 boxes and so {4 * rotations} views, but {3 * rotations} go through"):
            detector.score(frames[0], boxes=[(0, 0, 9, 9)] * 4)
        with pytest.raises(FrameError, match="pass boxes"):
            detector.score(frames[0])
        with pytest.raises(FrameError, match="at least one"):
            detector.score(frames[0], boxes=[])
        with pytest.raises(FrameError, match="for each frame"):
            detector.score_batch(frames[:2])
        half: Any = [(0.5, 0, 9, 9)]
        with pytest.raises(FrameError, match=r"a box is \(0.5, 0, 9, 9\), but must be whole pixels"):
            detector.score(frames[0], boxes=half)
