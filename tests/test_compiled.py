"""The cache of compiled engines: compiled once, proved on this machine, never swapped, never trusted blindly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kizu
from helpers import PYTHON, python_output, read_bundle, rewrite_bundle
from kizu import Bundle, EngineError
from kizu.compiled import compiled, default_cache
from kizu.engine import BuildOptions, Engine, engines
from kizu.errors import ThresholdError
from rows import ENGINES, TOLERANCES, EngineRow

Frames = list[NDArray[np.uint8]]
EACH_ENGINE = pytest.mark.parametrize("row", ENGINES, ids=lambda row: row.name)


def entries(cache: Path) -> dict[str, dict[str, Any]]:
    """The proofs in a cache, with the folder of each, by precision."""
    found = {}
    for path in cache.glob("engines/*/*/proof.json"):
        proof = json.loads(path.read_text())
        assert proof["precision"] not in found
        found[proof["precision"]] = {**proof, "folder": path.parent}
    return found


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Precisions in the order in which they are compiled from now on."""
    calls: list[str] = []

    def counted(engine: type[Engine]) -> Callable[[Path, Path, BuildOptions], None]:
        build = engine.build

        def call(graph: Path, out: Path, options: BuildOptions) -> None:
            calls.append(options.precision)
            build(graph, out, options)

        return call

    for engine in engines().values():
        monkeypatch.setattr(engine, "build", staticmethod(counted(engine)))
    return calls


@EACH_ENGINE
def test_the_second_load_compiles_nothing(
    row: EngineRow, bundle_path: Path, tmp_path: Path, builds: list[str], frames: Frames
) -> None:
    scores = []
    for _ in range(2):
        with kizu.load(bundle_path, engine=row.name, precision="fp32", threads=1, cache=tmp_path) as detector:
            scores.append(detector.score(frames[0]).score)
    assert builds == ["fp32"]
    assert scores[0] == scores[1]
    assert set(entries(tmp_path)) == {"fp32"}


def test_what_an_engine_depends_on_makes_an_entry_of_its_own(
    bundle_path: Path, tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path = bundle_path, **options: Any) -> int:
        options = {"engine": "onnxruntime", "precision": "fp32", "threads": 1, **options}
        kizu.load(path, cache=tmp_path / "c", **options).close()
        return len(builds)

    assert load() == 1
    assert load(threads=2) == 2
    assert load(max_batch=3) == 3
    assert load(precision="int8") == 4
    assert load(engine="openvino") == 5
    # A threshold is no part of it; a golden score is, as is the engine's version.
    moved = rewrite_bundle(
        bundle_path, tmp_path / "moved.kizu", edit=lambda m: m["threshold"]["values"].update(fp32=1.0)
    )
    assert load(moved) == 5
    golden = rewrite_bundle(
        bundle_path,
        tmp_path / "golden.kizu",
        edit=lambda m: m["golden"]["scores"].__setitem__(0, m["golden"]["scores"][0] + 1e-9),
    )
    assert load(golden) == 6
    monkeypatch.setattr(engines()["onnxruntime"], "version", staticmethod(lambda: "99.0"))
    assert load() == 7


@EACH_ENGINE
@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone", "proof gone", "proof empty", "proof odd"])
def test_a_damaged_entry_is_compiled_again(
    row: EngineRow, damage: str, bundle_path: Path, tmp_path: Path, builds: list[str], frames: Frames
) -> None:
    def score() -> float:
        with kizu.load(bundle_path, engine=row.name, precision="fp32", threads=1, cache=tmp_path) as detector:
            return detector.score(frames[0]).score

    first = score()
    folder = entries(tmp_path)["fp32"]["folder"]
    built, proof = folder / "engine", folder / "proof.json"
    data = bytearray(built.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        built.write_bytes(data)
    elif damage == "truncated":
        built.write_bytes(data[:-7])
    elif damage == "gone":
        built.unlink()
    elif damage == "proof gone":
        proof.unlink()
    else:
        proof.write_text("" if damage == "proof empty" else '{"verdict": "fine"}')
    assert score() == first
    assert builds == ["fp32", "fp32"]
    assert score() == first
    assert builds == ["fp32", "fp32"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no leftovers


@EACH_ENGINE
def test_an_engine_that_misses_the_golden_scores_is_refused(
    row: EngineRow, bundle_path: Path, tmp_path: Path, builds: list[str]
) -> None:
    unit = float(np.std(read_bundle(bundle_path)[0]["calibration"]["scores"]["fp32"]))

    def shift(manifest: dict[str, Any]) -> None:
        manifest["golden"]["scores"][7] += 0.5 * unit

    target = rewrite_bundle(bundle_path, tmp_path / "shifted.kizu", edit=shift)
    for _ in range(2):  # the refusal is kept
        with pytest.raises(EngineError) as caught:
            kizu.load(target, engine=row.name, precision="fp32", threads=1, cache=tmp_path)
        message = str(caught.value)
        assert f"{row.name} " in message
        assert "in fp32 does not reproduce the golden scores on this machine" in message
        figures = re.search(r"off by up to (\S+), (\S+) standard deviations .* and (\S+) are allowed", message)
        assert figures is not None
        assert float(figures[1]) == pytest.approx(0.5 * unit, rel=0.01)
        assert float(figures[2]) == pytest.approx(0.5, rel=0.01)
        assert float(figures[3]) == TOLERANCES["fp32"]
    assert builds == ["fp32"]
    assert not (entries(tmp_path)["fp32"]["folder"] / "engine").exists()
    with pytest.raises(EngineError, match=rf"no precision of {row.name} can be used .* in fp32 .* in int8 "):
        kizu.load(target, engine=row.name, threads=1, cache=tmp_path)
    assert builds[0] == "fp32"
    assert len(builds) == len(set(builds))


@EACH_ENGINE
def test_the_tolerance_is_the_line(row: EngineRow, bundle_path: Path, tmp_path: Path) -> None:
    unit = float(np.std(read_bundle(bundle_path)[0]["calibration"]["scores"]["fp32"]))
    for share, passes in ((0.8, True), (1.2, False)):

        def shift(manifest: dict[str, Any], share: float = share) -> None:
            scores = manifest["golden"]["scores"]
            manifest["golden"]["scores"] = [score + share * TOLERANCES["fp32"] * unit for score in scores]

        target = rewrite_bundle(bundle_path, tmp_path / "shifted.kizu", edit=shift)
        try:
            kizu.load(target, engine=row.name, precision="fp32", threads=1, cache=tmp_path).close()
        except EngineError:
            assert not passes
        else:
            assert passes


def test_auto_takes_the_fastest_that_passed(bundle_path: Path, tmp_path: Path, builds: list[str]) -> None:
    kizu.load(bundle_path, engine="onnxruntime", threads=1, cache=tmp_path).close()
    assert sorted(builds) == ["fp16", "fp32", "int8"]
    for wanted in ("int8", "fp32", "fp16"):
        for precision, entry in entries(tmp_path).items():
            proof = {key: value for key, value in entry.items() if key != "folder"}
            proof["seconds"] = 1e-6 if precision == wanted else 1e-3
            (entry["folder"] / "proof.json").write_text(json.dumps(proof))
        with kizu.load(bundle_path, engine="onnxruntime", threads=1, cache=tmp_path) as detector:
            assert detector.precision == wanted
            assert detector.threshold == Bundle.open(bundle_path).manifest.threshold.values[wanted]
    assert len(builds) == 3


def test_auto_leaves_out_what_was_refused(bundle_path: Path, tmp_path: Path) -> None:
    def forbid(manifest: dict[str, Any]) -> None:
        manifest["golden"]["tolerances"].update(int8=0.0, fp16=0.0)

    target = rewrite_bundle(bundle_path, tmp_path / "strict.kizu", edit=forbid)
    with kizu.load(target, engine="onnxruntime", threads=1, cache=tmp_path) as detector:
        assert detector.precision == "fp32"
    refused = {precision for precision, proof in entries(tmp_path).items() if proof["refusal"]}
    assert refused == {"int8", "fp16"}
    with pytest.raises(EngineError, match="in int8 does not reproduce"):
        kizu.load(target, engine="onnxruntime", precision="int8", threads=1, cache=tmp_path)


@pytest.mark.parametrize("precision", ["bf16", "int8+fp16", "int4"])
def test_a_precision_the_engine_has_not_is_refused(precision: str, bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"is not to be had .* choose from: auto, fp32, fp16, int8"):
        kizu.load(bundle_path, engine="onnxruntime", precision=precision, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_precision_the_processor_has_not_is_refused(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines()["openvino"]
    monkeypatch.setattr(engine, "unsupported", staticmethod(lambda p: "no such unit" if p == "bf16" else None))
    with pytest.raises(EngineError, match="precision 'bf16' cannot be used here: no such unit"):
        kizu.load(bundle_path, engine="openvino", precision="bf16", cache=tmp_path)
    with kizu.load(bundle_path, engine="openvino", threads=1, cache=tmp_path) as detector:
        assert detector.precision != "bf16"
    assert "bf16" not in entries(tmp_path)


def test_a_cache_that_cannot_be_written_is_named(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "cache"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(EngineError, match=rf"{blocked} cannot be written: .*; set KIZU_CACHE to a folder that can"):
        kizu.load(bundle_path, precision="fp32", cache=blocked)
    if os.geteuid() != 0:  # root writes everywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(EngineError, match="cannot be written"):
            kizu.load(bundle_path, precision="fp32", cache=locked)


def test_a_read_only_cache_with_the_entry_is_enough(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: Frames
) -> None:
    kizu.load(bundle_path, precision="fp32", threads=1, cache=tmp_path).close()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("os.mkdir", "os.rename", "tempfile.mkdtemp"):
        monkeypatch.setattr(name, refuse)
    with kizu.load(bundle_path, precision="fp32", threads=1, cache=tmp_path) as detector:
        assert np.isfinite(detector.score(frames[0]).score)
    with pytest.raises(EngineError, match=r"cannot be written: .*Permission denied"):
        kizu.load(bundle_path, precision="fp32", threads=2, cache=tmp_path)


def test_a_failed_compilation_leaves_nothing(bundle_path: Path, tmp_path: Path) -> None:
    target = rewrite_bundle(bundle_path, tmp_path / "odd.kizu", members={"graphs/fp32.onnx": b"not a graph"})
    for row in ENGINES:
        with pytest.raises(EngineError, match="could not compile"):
            kizu.load(target, engine=row.name, precision="fp32", cache=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.name.startswith(".")]


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIZU_CACHE", "/somewhere/else")
    assert default_cache() == Path("/somewhere/else")
    monkeypatch.delenv("KIZU_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache() == Path("/xdg/kizu")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "kizu"


def test_the_proof_says_what_was_measured(bundle_path: Path, tmp_path: Path) -> None:
    entry = compiled(Bundle.open(bundle_path), engines()["onnxruntime"], "int8", BuildOptions("fp32", 1, 2), tmp_path)
    assert entry.options == BuildOptions("int8", 1, 2)
    assert entry.proof.refusal is None
    assert 1e-3 < entry.proof.deviation <= entry.proof.tolerance == TOLERANCES["int8"]  # int8 is never exact
    assert 0 < entry.proof.seconds < 1


RACE = """
import sys, time
import numpy as np
import kizu
frame = np.random.default_rng(0).integers(0, 256, (60, 72, 3), np.uint8)
import openvino, onnxruntime
print("ready", flush=True)
sys.stdin.readline()
for threads in (1, 2, 3):
    with kizu.load(sys.argv[1], engine=sys.argv[2], threads=threads, precision="fp32", cache=sys.argv[3]) as detector:
        print(detector.score(frame).score)
"""


@EACH_ENGINE
def test_two_processes_that_compile_at_once_both_get_there(row: EngineRow, bundle_path: Path, tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, [str(PYTHON), os.environ.get("PYTHONPATH")]))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(bundle_path), row.name, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    done = []
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        done.append(out)
    assert done[0] == done[1]
    folders = list((tmp_path / "engines" / row.name).iterdir())
    assert len(folders) == 3
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == ["engine", "proof.json"]


COLD = """
import time
import numpy, openvino
from numpy.random import default_rng
frame = default_rng(0).integers(0, 256, (900, 900, 3), numpy.uint8)
start = time.perf_counter()
import kizu, sys
detector = kizu.load(sys.argv[1], engine="openvino", precision=sys.argv[2], cache=sys.argv[3])
detector.score(frame)
print(time.perf_counter() - start)
"""


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_a_cold_start_takes_half_a_second_at_most(precision: str, bundle_path: Path, engine_cache: Path) -> None:
    kizu.load(bundle_path, engine="openvino", precision=precision, cache=engine_cache).close()
    seconds = [float(python_output(COLD, bundle_path, precision, engine_cache)) for _ in range(3)]
    assert min(seconds) <= 0.5, seconds


def test_auto_goes_on_when_one_precision_cannot_be_built(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines()["onnxruntime"]
    build = engine.build

    def broken(graph: Path, out: Path, options: BuildOptions) -> None:
        if options.precision == "int8":
            raise EngineError("no int8 today")
        build(graph, out, options)

    monkeypatch.setattr(engine, "build", staticmethod(broken))
    with kizu.load(bundle_path, engine="onnxruntime", threads=1, cache=tmp_path) as detector:
        assert detector.precision in ("fp32", "fp16")
    with pytest.raises(EngineError, match="no int8 today"):
        kizu.load(bundle_path, engine="onnxruntime", precision="int8", threads=1, cache=tmp_path)


def test_auto_chooses_among_precisions_that_have_a_threshold(bundle_path: Path, tmp_path: Path) -> None:
    def only_fp16(manifest: dict[str, Any]) -> None:
        manifest["threshold"]["values"] = {"fp16": 1.5}

    target = rewrite_bundle(bundle_path, tmp_path / "fp16.kizu", edit=only_fp16)
    with kizu.load(target, engine="onnxruntime", threads=1, cache=tmp_path / "cache") as detector:
        assert (detector.precision, detector.threshold) == ("fp16", 1.5)
    with pytest.raises(ThresholdError, match="no threshold for fp32"):
        kizu.load(target, engine="onnxruntime", precision="fp32", threads=1, cache=tmp_path / "cache")


def test_the_cache_of_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("KIZU_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert default_cache().is_relative_to(tempfile.gettempdir())


def test_a_precision_without_a_tolerance_is_not_to_be_had(bundle_path: Path, tmp_path: Path) -> None:
    def forget(manifest: dict[str, Any]) -> None:
        del manifest["golden"]["tolerances"]["int8"]

    target = rewrite_bundle(bundle_path, tmp_path / "part.kizu", edit=forget)
    with kizu.load(target, engine="onnxruntime", threads=1, cache=tmp_path / "cache") as detector:
        assert detector.precision != "int8"
    with pytest.raises(EngineError, match="'int8' is not to be had"):
        kizu.load(target, engine="onnxruntime", precision="int8", threads=1, cache=tmp_path / "cache")
