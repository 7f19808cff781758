"""The cache of compiled engines: compiled once, proved on this machine, never swapped, never trusted blindly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

import kizu
from helpers import PYTHON, digest, python_output, read_bundle, rewrite_bundle
from kizu import Bundle, EngineError, engine_file, pipeline
from kizu.compiled import compiled, default_cache, options_for
from kizu.engine import BuildOptions, CudaEngine, Engine, TensorSpec, engines
from kizu.engine_file import Header
from kizu.errors import ThresholdError
from kizu.prepare import PrepareSpec
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


# Engine files: compiled on another machine, proved and kept on this one


class Card(CudaEngine):
    """A GPU's engine whose plan is the ONNX file, computed by ONNX Runtime."""

    name = "card"
    package = "onnxruntime"
    install = ""
    takes = frozenset({"min_batch", "opt_batch", "compute_capability", "timing_cache"})
    variants: ClassVar[Mapping[str, str]] = {"fp32": "fp32", "int8": "int8", "int8+fp16": "int8+fp16"}
    here: ClassVar[str] = "8.6"
    builds: ClassVar[list[str]] = []

    @staticmethod
    def unavailable() -> str | None:
        return None

    @staticmethod
    def version() -> str:
        return "1.2"

    @staticmethod
    def unsupported(precision: str) -> str | None:
        return None

    @classmethod
    def machine(cls) -> str:
        return f"a card {cls.here}"

    @classmethod
    def build(cls, graph: Path, out: Path, options: BuildOptions) -> None:
        cls.builds.append(options.precision)
        data = graph.read_bytes()
        batch = (options.min_batch, options.opt_batch, options.max_batch)
        tensors = ((TensorSpec("x", (None, 5, 32, 32)),), (TensorSpec("logit", (None,)),))
        capability = options.compute_capability or cls.here
        header = Header(
            cls.name,
            cls.version(),
            options.precision,
            batch,
            capability,
            digest(data),
            *tensors,
            len(data),
            digest(data),
        )
        engine_file.write(out, header, data)

    @classmethod
    def cannot_load(cls, header: Header) -> str | None:
        return None if header.compute_capability == cls.here else f"it is for {header.compute_capability}"

    def __init__(self, built: Path, options: BuildOptions) -> None:
        header, plan = engine_file.read(built)
        assert (header.precision, header.batch[2]) == (options.precision, options.max_batch)
        self.workspace = 0
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder, "graph.onnx")
            graph.write_bytes(plan)
            self.inner = engines()["onnxruntime"](graph, BuildOptions("fp32"))
        self.inputs, self.outputs = header.inputs, header.outputs

    def context(self, tensors: Any, workspace: int) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self.inner.close()


def open_inner(engine: Engine, *arguments: Any, **options: Any) -> Any:
    return pipeline.open_pipeline(engine.inner if isinstance(engine, Card) else engine, *arguments, **options)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> type[Card]:
    monkeypatch.setattr("kizu.compiled.open_pipeline", open_inner)
    Card.builds.clear()
    return Card


def make_file(bundle: Bundle, target: Path, precision: str = "int8", batch: tuple[int, int, int] = (1, 2, 8)) -> Path:
    graph = target.with_suffix(".onnx")
    graph.write_bytes(bundle.graph(Card.variants[precision]))
    low, best, high = batch
    Card.build(graph, target, BuildOptions(precision, 1, high, low, best, "8.6"))
    Card.builds.clear()
    return target


def test_an_engine_file_is_proved_and_kept(card: type[Card], bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    built = make_file(bundle, tmp_path / "part.engine", "int8+fp16")
    options = BuildOptions("fp32", 2, 4)
    for _ in range(2):
        entry = compiled(bundle, card, "auto", options, tmp_path / "cache", built=built)
        assert entry.options == BuildOptions("int8+fp16", 2, 8, 1, 2)
        assert entry.proof.refusal is None
        assert entry.proof.precision == "int8+fp16"
        assert 1e-4 < entry.proof.deviation <= entry.proof.tolerance == TOLERANCES["int8+fp16"]
        assert entry.built.read_bytes() == built.read_bytes()
    assert card.builds == []
    (proof,) = (tmp_path / "cache").glob("engines/card/*/proof.json")
    # From now on it is what these options give without the file, whatever threads compile or cache helps.
    for same in (replace(entry.options, threads=5), replace(entry.options, timing_cache="timings")):
        found = compiled(bundle, card, "int8+fp16", same, tmp_path / "cache")
        assert found.built == proof.with_name("engine")
    assert card.builds == []
    compiled(bundle, card, "int8+fp16", replace(entry.options, max_batch=9), tmp_path / "cache")
    assert card.builds == ["int8+fp16"]


def test_another_file_takes_the_place_of_what_was_kept(card: type[Card], bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    first = make_file(bundle, tmp_path / "part.engine")
    compiled(bundle, card, "int8", BuildOptions("fp32"), tmp_path / "cache", built=first)
    header, plan = engine_file.read(first)
    longer = bytes(plan) + b"\x72\x00"  # an empty field of ONNX: another file, the same graph
    engine_file.write(first, replace(header, plan_size=len(longer), plan_sha256=digest(longer)), longer)
    entry = compiled(bundle, card, "int8", BuildOptions("fp32"), tmp_path / "cache", built=first)
    assert entry.built.read_bytes() == first.read_bytes()
    assert len(list((tmp_path / "cache").glob("engines/card/*"))) == 1


def test_an_engine_file_that_misses_the_golden_scores_is_refused(
    card: type[Card], bundle_path: Path, tmp_path: Path
) -> None:
    target = rewrite_bundle(
        bundle_path, tmp_path / "strict.kizu", edit=lambda m: m["golden"]["tolerances"].update(int8=0.0)
    )
    built = make_file(Bundle.open(target), tmp_path / "part.engine")
    for _ in range(2):
        with pytest.raises(EngineError, match=r"part\.engine: card 1\.2 in int8 does not reproduce the golden scores"):
            compiled(Bundle.open(target), card, "int8", BuildOptions("fp32"), tmp_path / "cache", built=built)
    # It says nothing of what would be compiled here, and nothing of it is left.
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.name.startswith(".")] == []


def test_an_engine_file_must_be_for_the_bundle_and_its_use(
    card: type[Card], bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, cache = Bundle.open(bundle_path), tmp_path / "cache"
    built = make_file(bundle, tmp_path / "part.engine")

    def refused(bundle: Bundle = bundle, built: Path = built, precision: str = "int8", most: int = 1) -> str:
        with pytest.raises(EngineError) as raised:
            compiled(bundle, card, precision, BuildOptions("fp32", 1, most), cache, built=built)
        assert str(raised.value).startswith(f"could not load the compiled engine {built}: ")
        return str(raised.value)

    assert "it computes in int8, but fp32 is asked for" in refused(precision="fp32")
    assert "it takes 1 to 8 inputs at once, but 1 to 9 are needed" in refused(most=9)
    assert "it takes 2 to 8 inputs at once, but 1 to 2 are needed" in refused(
        built=make_file(bundle, tmp_path / "two.engine", batch=(2, 2, 8)), most=2
    )
    other = bundle.graph("int8") + b"\x72\x00"
    edited = rewrite_bundle(bundle_path, tmp_path / "other.kizu", members={bundle.manifest.graphs["int8"]: other})
    assert "it was compiled from another graph than this bundle's" in refused(Bundle.open(edited))

    def forget(manifest: dict[str, Any]) -> None:
        del manifest["golden"]["tolerances"]["int8"]

    without_int8 = rewrite_bundle(bundle_path, tmp_path / "without.kizu", edit=forget)
    assert "but the bundle has fp32, int8+fp16" in refused(Bundle.open(without_int8))
    monkeypatch.setattr(card, "here", "8.9")
    assert "it is for 8.6" in refused()
    built.write_bytes(b"a text")
    assert "no engine file of kizu" in refused()
    built.unlink()
    assert "No such file" in refused()
    assert not cache.exists()


@EACH_ENGINE
def test_engines_of_the_processor_take_no_engine_file(row: EngineRow, bundle_path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    built = make_file(bundle, tmp_path / "part.engine")
    with pytest.raises(EngineError, match=f"{row.name} takes no engine files"):
        compiled(bundle, engines()[row.name], "auto", BuildOptions("fp32"), tmp_path / "cache", built=built)


@EACH_ENGINE
def test_options_that_an_engine_would_ignore_are_refused_before_work_starts(
    row: EngineRow, bundle_path: Path, tmp_path: Path, builds: list[str]
) -> None:
    for options in (BuildOptions("fp32", 1, 4, 2), BuildOptions("fp32", workspace=5)):
        with pytest.raises(EngineError, match=f"{row.name} cannot compile here: {row.name} has no option "):
            compiled(Bundle.open(bundle_path), engines()[row.name], "fp32", options, tmp_path)
    assert builds == []
    assert not list(tmp_path.iterdir())


def test_options_count_the_inputs_that_a_frame_makes(card: type[Card]) -> None:
    tiled = PrepareSpec(size=(32, 32), rotations=4)
    made = options_for(card, tiled, threads=2, batch=(1, 2, 16), compute_capability="8.6", timing_cache="t")
    assert made == BuildOptions("fp32", 2, 64, 4, 8, "8.6", None, "t")
    onnxruntime = engines()["onnxruntime"]
    assert options_for(onnxruntime, tiled, threads=2, batch=(1, 1, 16)) == BuildOptions("fp32", 2, 64)
